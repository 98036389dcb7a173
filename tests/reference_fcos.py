"""Other people's FCOS in the slow obvious way: tensors under their key names, and loops over locations, classes and boxes.

Written from what each implementation does, and from nothing of ours, for tests of importing their weights:
`random_weights(case)` is a file of theirs and `detections` what they find with it. Two things are ours,
on purpose: boxes are clipped to the picture before NMS, and areas are without "+ 1".
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F

BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}                   # ResNet-50
TOWER = 4
STRIDES = (8, 16, 32, 64, 128)
PIXELS = {                                          # in the order that the network wants
    "caffe2": ((102.9801, 115.9465, 122.7717), (1, 1, 1)), "detectron2": ((103.53, 116.28, 123.675), (1, 1, 1)),
    "imagenet": ((0.485 * 255, 0.456 * 255, 0.406 * 255), (0.229 * 255, 0.224 * 255, 0.225 * 255)),
    "centernet": ((0.40789654 * 255, 0.44719302 * 255, 0.47026115 * 255), (0.28863828 * 255, 0.27408164 * 255, 0.27809835 * 255))}

TORCHVISION_BODY = {"conv": "{body}layer{layer}.{block}.conv{n}", "norm": "{body}layer{layer}.{block}.bn{n}",
                    "shortcut": "{body}layer{layer}.{block}.downsample.0", "shortcut_norm": "{body}layer{layer}.{block}.downsample.1"}
DETECTRON2_BODY = {
    "stem": "backbone.bottom_up.stem.conv1", "stem_norm": "backbone.bottom_up.stem.conv1.norm",
    "conv": "backbone.bottom_up.res{stage}.{block}.conv{n}", "norm": "backbone.bottom_up.res{stage}.{block}.conv{n}.norm",
    "shortcut": "backbone.bottom_up.res{stage}.{block}.shortcut", "shortcut_norm": "backbone.bottom_up.res{stage}.{block}.shortcut.norm",
    "lateral": "backbone.fpn_lateral{level}", "output": "backbone.fpn_output{level}", "extra": "backbone.top_block.p{level}"}
NAMES = {
    "fcos": {**{kind: name.replace("{body}", "module.backbone.body.") for kind, name in TORCHVISION_BODY.items()},
             "stem": "module.backbone.body.stem.conv1", "stem_norm": "module.backbone.body.stem.bn1",
             "lateral": "module.backbone.fpn.fpn_inner{below}", "output": "module.backbone.fpn.fpn_layer{below}",
             "extra": "module.backbone.fpn.top_blocks.p{level}",
             "cls_tower": "module.rpn.head.cls_tower.{place}", "box_tower": "module.rpn.head.bbox_tower.{place}",
             "cls": "module.rpn.head.cls_logits", "box": "module.rpn.head.bbox_pred", "centre": "module.rpn.head.centerness",
             "scale": "module.rpn.head.scales.{index}.scale"},
    "adelaidet": {**DETECTRON2_BODY,
                  "cls_tower": "proposal_generator.fcos_head.cls_tower.{place}", "box_tower": "proposal_generator.fcos_head.bbox_tower.{place}",
                  "share_tower": "proposal_generator.fcos_head.share_tower.{place}",
                  "cls": "proposal_generator.fcos_head.cls_logits", "box": "proposal_generator.fcos_head.bbox_pred",
                  "centre": "proposal_generator.fcos_head.ctrness", "scale": "proposal_generator.fcos_head.scales.{index}.scale"},
    "detectron2": {**DETECTRON2_BODY, "cls_tower": "head.cls_subnet.{place}", "box_tower": "head.bbox_subnet.{place}",
                   "cls": "head.cls_score", "box": "head.bbox_pred", "centre": "head.ctrness", "scale": None},
    "cvpods": {**DETECTRON2_BODY, "cls_tower": "head.cls_subnet.{place}", "box_tower": "head.bbox_subnet.{place}",
               "cls": "head.cls_score", "box": "head.bbox_pred", "centre": "head.centerness", "scale": "head.scales.{index}.scale"},
    "zhenghao977": {**{kind: name.replace("{body}", "module.fcos_body.backbone.") for kind, name in TORCHVISION_BODY.items()},
                    "stem": "module.fcos_body.backbone.conv1", "stem_norm": "module.fcos_body.backbone.bn1",
                    "lateral": "module.fcos_body.fpn.prj_{level}", "output": "module.fcos_body.fpn.conv_{level}",
                    "extra": "module.fcos_body.fpn.conv_out{level}",
                    "cls_tower": "module.fcos_body.head.cls_conv.{place}", "box_tower": "module.fcos_body.head.reg_conv.{place}",
                    "cls": "module.fcos_body.head.cls_logits", "box": "module.fcos_body.head.reg_pred",
                    "centre": "module.fcos_body.head.cnt_logits", "scale": "module.fcos_body.head.scale_exp.{index}.scale"},
    "mmdet": {**{kind: name.replace("{body}", "backbone.") for kind, name in TORCHVISION_BODY.items()},
              "stem": "backbone.conv1", "stem_norm": "backbone.bn1",
              "lateral": "neck.lateral_convs.{index}.conv", "output": "neck.fpn_convs.{index}.conv", "extra": "neck.fpn_convs.{index}.conv",
              "cls_tower": "bbox_head.cls_convs.{number}.{part}", "box_tower": "bbox_head.reg_convs.{number}.{part}",
              "cls": "bbox_head.conv_cls", "box": "bbox_head.conv_reg", "centre": "bbox_head.conv_centerness",
              "scale": "bbox_head.scales.{index}.scale"}}


@dataclass(frozen=True)
class Case:
    """What one kind of file means. distance: "exp" of pixels, or "relu" of strides; score: what has to pass `threshold`."""

    family: str
    variant: str | None = None
    classes: int = 80
    order: str = "bgr"
    pixels: str = "caffe2"
    eps: float = 1e-5
    stride_in_1x1: bool = True
    p6_from: str = "p5"
    levels: int = 5
    tower_bias: bool = True
    tower_norm: str = "gn"                          # gn, or bn: one for each level
    one_tower: bool = False
    distance: str = "relu"
    centre_on: str = "box"
    tested: str = "cls"                             # cls, or the final score
    threshold: float = 0.05
    ranked: str = "score"                           # score, or cls
    root: bool = True                               # score = sqrt(cls * centre), or cls * centre
    best_class_only: bool = False
    over_all_levels: bool = False
    iou: float = 0.6
    keep: int = 100
    offset: float = 0.5                             # of a location in its cell


CASES = [
    Case("fcos", "plain", eps=0.0, distance="exp", centre_on="cls"),
    Case("fcos", "improved", eps=0.0),
    Case("adelaidet", pixels="detectron2"),
    Case("adelaidet", levels=3, tower_norm="bn", one_tower=True, pixels="detectron2"),          # as FCOS_RT
    Case("detectron2", pixels="detectron2", tested="score", threshold=0.2),
    Case("cvpods", "improved", pixels="detectron2", ranked="cls", offset=0.0),
    Case("cvpods", "plain", pixels="detectron2", distance="exp", centre_on="cls", ranked="cls", offset=0.0),
    *(Case("zhenghao977", variant, classes, "rgb", pixels, stride_in_1x1=False, p6_from=p6_from, distance="exp", centre_on=centre_on,
           tested="score", best_class_only=True, over_all_levels=True, keep=1000)
      for variant, classes, pixels, centre_on, p6_from in (
          ("voc", 20, "imagenet", "cls", "p5"), ("train_voc", 20, "imagenet", "box", "c5"), ("train_coco", 80, "centernet", "box", "p5"))),
    Case("mmdet", "plain", tower_bias=False, distance="exp", centre_on="cls", ranked="cls", root=False, iou=0.5),
    Case("mmdet", "improved", pixels="detectron2", ranked="cls", root=False),
    Case("mmdet", "lsj", order="rgb", pixels="imagenet", stride_in_1x1=False, ranked="cls", root=False)]


def random_weights(case: Case, channels: int = 64, seed: int = 0) -> dict:
    """A state dict of theirs whose outputs are spread as a trained network's are."""
    rng, weights, names = torch.Generator().manual_seed(seed), {}, NAMES[case.family]

    def conv(name, inputs, outputs, side, bias):
        weights[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, generator=rng) * 0.1 * (2 / (inputs * side * side)) ** 0.5
        if bias:
            weights[f"{name}.bias"] = torch.randn(outputs, generator=rng) * 0.1

    def norm(name, width, gain=1.0, running=True):
        weights[f"{name}.weight"] = gain * (0.5 + torch.rand(width, generator=rng))
        weights[f"{name}.bias"] = torch.randn(width, generator=rng) * 0.2
        if running:                                 # variances small enough for the eps to matter
            weights[f"{name}.running_mean"] = torch.randn(width, generator=rng) * 0.05
            weights[f"{name}.running_var"] = 0.005 + 0.01 * torch.rand(width, generator=rng)

    conv(names["stem"], 3, 64, 7, False)
    norm(names["stem_norm"], 64)
    width = 64
    for layer, blocks in BLOCKS.items():
        inner = 32 * 2 ** layer
        for block in range(blocks):
            at = {"layer": layer, "stage": layer + 1, "block": block}
            for n, (inputs, outputs, side) in enumerate(((width, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1)), 1):
                conv(names["conv"].format(n=n, **at), inputs, outputs, side, False)
                norm(names["norm"].format(n=n, **at), outputs, 0.3 if n == 3 else 1.0)
            if block == 0:
                conv(names["shortcut"].format(**at), width, 4 * inner, 1, False)
                norm(names["shortcut_norm"].format(**at), 4 * inner)
            width = 4 * inner
    for index, inputs in enumerate((512, 1024, 2048)):
        conv(names["lateral"].format(level=index + 3, below=index + 2, index=index), inputs, channels, 1, True)
    for index in range(case.levels):
        name = names["output" if index < 3 else "extra"]
        inputs = 2048 if index == 3 and case.p6_from == "c5" else channels
        conv(name.format(level=index + 3, below=index + 2, index=index), inputs, channels, 3, True)
    for tower in ("share_tower",) if case.one_tower else ("cls_tower", "box_tower"):
        for number in range(TOWER):
            conv(names[tower].format(number=number, part="conv", place=3 * number), channels, channels, 3, case.tower_bias)
            name = names[tower].format(number=number, part="gn", place=3 * number + 1)
            for each in [name] if case.tower_norm == "gn" else [f"{name}.{index}" for index in range(case.levels)]:
                norm(each, channels, running=case.tower_norm == "bn")
    for last, outputs in (("cls", case.classes), ("box", 4), ("centre", 1)):
        conv(names[last], channels, outputs, 3, True)
    for index in range(case.levels if names["scale"] else 0):
        factor = 0.8 + 0.4 * torch.rand(1, generator=rng)
        weights[names["scale"].format(index=index)] = factor.squeeze() if case.family == "mmdet" else factor

    levels = raw_outputs(case, weights, pictures(1, (128, 160)), ((128, 160),))
    spread = {"cls": (-6.0, 1.5), "centre": (0.5, 1.0), "box": (2.2, 0.7) if case.distance == "relu" else (3.2, 0.35)}
    for last, (mean, deviation) in spread.items():
        values = torch.cat([level[last].flatten(2) for level in levels], 2).transpose(0, 1).flatten(1)
        factor = deviation / values.std(1)
        weights[f"{names[last]}.weight"] *= factor[:, None, None, None]
        weights[f"{names[last]}.bias"] = mean + (weights[f"{names[last]}.bias"] - values.mean(1)) * factor
    return weights


def pictures(number: int, size: tuple, seed: int = 1) -> torch.Tensor:
    """uint8 [number, 3, h, w]: clouds of colours with noise."""
    rng = torch.Generator().manual_seed(seed)
    clouds = F.interpolate(torch.rand(number, 3, 8, 10, generator=rng), size=size, mode="bilinear")
    return (clouds * 220 + 30 * torch.rand(number, 3, *size, generator=rng)).to(torch.uint8)


def raw_outputs(case: Case, weights: dict, images, sizes) -> list:
    """[{"cls" [B, C, h, w], "box" [B, 4, h, w] before its factor, "centre" [B, 1, h, w]}] from P3 to P7."""
    names = NAMES[case.family]

    def conv(x, name, stride=1):
        weight = weights[f"{name}.weight"]
        return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, weight.shape[-1] // 2)

    def norm(x, name, eps=case.eps):
        mean, variance, gain, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / (variance + eps) ** 0.5 * gain + shift

    def tower(x, name, index):
        for number in range(TOWER):
            x = conv(x, names[name].format(number=number, part="conv", place=3 * number))
            at = names[name].format(number=number, part="gn", place=3 * number + 1)
            if case.tower_norm == "bn":
                x = norm(x, f"{at}.{index}", 1e-5).relu()
            else:
                x = F.group_norm(x, 32, weights[f"{at}.weight"], weights[f"{at}.bias"]).relu()
        return x

    dtype = weights[f"{names['cls']}.weight"].dtype
    mean, deviation = (torch.tensor(values, dtype=dtype).view(3, 1, 1) for values in PIXELS[case.pixels])
    x = torch.zeros(images.shape, dtype=dtype)
    for place, (height, width) in enumerate(sizes):                             # what pads is zero after this
        picture = images[place, :, :height, :width]
        x[place, :, :height, :width] = ((picture.flip(0) if case.order == "bgr" else picture) - mean) / deviation
    x = F.max_pool2d(norm(conv(x, names["stem"], 2), names["stem_norm"]).relu(), 3, 2, 1)
    features = []
    for layer, blocks in BLOCKS.items():
        for block in range(blocks):
            at = {"layer": layer, "stage": layer + 1, "block": block}
            stride = 2 if block == 0 and layer > 1 else 1
            first, second = (stride, 1) if case.stride_in_1x1 else (1, stride)
            y = norm(conv(x, names["conv"].format(n=1, **at), first), names["norm"].format(n=1, **at)).relu()
            y = norm(conv(y, names["conv"].format(n=2, **at), second), names["norm"].format(n=2, **at)).relu()
            y = norm(conv(y, names["conv"].format(n=3, **at)), names["norm"].format(n=3, **at))
            if block == 0:
                x = norm(conv(x, names["shortcut"].format(**at), stride), names["shortcut_norm"].format(**at))
            x = (x + y).relu()
        features.append(x)
    merged, pyramid = None, []
    for index in (2, 1, 0):
        at = {"level": index + 3, "below": index + 2, "index": index}
        lateral = conv(features[index + 1], names["lateral"].format(**at))
        merged = lateral if merged is None else lateral + merged.repeat_interleave(2, 2).repeat_interleave(2, 3)
        pyramid.insert(0, conv(merged, names["output"].format(**at)))
    if case.levels == 5:
        pyramid.append(conv(pyramid[2] if case.p6_from == "p5" else features[3], names["extra"].format(level=6, index=3), 2))
        pyramid.append(conv(pyramid[3].relu(), names["extra"].format(level=7, index=4), 2))
    outputs = []
    for index, level in enumerate(pyramid[:case.levels]):
        name = {"cls": "share_tower", "box": "share_tower"} if case.one_tower else {"cls": "cls_tower", "box": "box_tower"}
        towers = {part: tower(level, name[part], index) for part in name}
        outputs.append({"cls": conv(towers["cls"], names["cls"]), "box": conv(towers["box"], names["box"]),
                        "centre": conv(towers[case.centre_on], names["centre"])})
    return outputs


def detections(case: Case, weights: dict, outputs: list, sizes, top_k: int = 1000, keep: int | None = None) -> list:
    """[[(score, label, (x1, y1, x2, y2)), ...]] per picture, best first, from raw_outputs."""
    return [_picture(case, weights, [{kind: values[place] for kind, values in level.items()} for level in outputs], size, top_k, keep or case.keep)
            for place, size in enumerate(sizes)]


def _picture(case, weights, levels, size, top_k, keep):
    found = []                                                                  # a list a level of (rank, score, label, box)
    for index, (level, stride) in enumerate(zip(levels, STRIDES[:case.levels], strict=True)):
        factor = float(weights[NAMES[case.family]["scale"].format(index=index)]) if NAMES[case.family]["scale"] else 1.0
        sides = (level["box"] * factor).exp() if case.distance == "exp" else (level["box"] * factor).relu() * stride
        cls, centre, sides = level["cls"].sigmoid().tolist(), level["centre"][0].sigmoid().tolist(), sides.tolist()
        candidates = []
        for i in range(len(centre)):
            for j in range(len(centre[0])):
                classes = range(case.classes)
                if case.best_class_only:
                    classes = [max(classes, key=lambda label: cls[label][i][j])]
                for label in classes:
                    score = cls[label][i][j] * centre[i][j]
                    score = score ** 0.5 if case.root else score
                    if (score if case.tested == "score" else cls[label][i][j]) > case.threshold:
                        x, y = (j + case.offset) * stride, (i + case.offset) * stride
                        box = (x - sides[0][i][j], y - sides[1][i][j], x + sides[2][i][j], y + sides[3][i][j])
                        candidates.append((score if case.ranked == "score" else cls[label][i][j], score, label, box))
        found.append(candidates)
    if case.over_all_levels:
        found = [[candidate for candidates in found for candidate in candidates]]
    best = [candidate for candidates in found for candidate in sorted(candidates, reverse=True)[:top_k]]
    height, width = size
    boxes = [(score, label, (max(x1, 0), max(y1, 0), min(x2, width), min(y2, height))) for _, score, label, (x1, y1, x2, y2) in best]
    boxes = sorted((each for each in boxes if each[2][0] < each[2][2] and each[2][1] < each[2][3]), reverse=True)
    kept = []
    for score, label, box in boxes:
        if all(label != other or iou(box, other_box) <= case.iou for _, other, other_box in kept):
            kept.append((score, label, box))
    return kept[:keep]


def iou(a, b) -> float:
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)
