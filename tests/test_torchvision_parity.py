"""With the preset "torchvision" our network is torchvision's FCOS: the same outputs, detections and losses for the same weights."""
import re

import pytest
import torch
import torchvision
from torchvision.models.detection import FCOS, fcos_resnet50_fpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from model import build_model
from model.config import PRESETS

CLASSES = 4
OURS = ((r"backbone\.body\.", "backbone."), (r"backbone\.fpn\.inner_blocks\.(\d)\.0", r"fpn.lateral.\1"),
        (r"backbone\.fpn\.layer_blocks\.(\d)\.0", r"fpn.output.\1"), (r"backbone\.fpn\.extra_blocks\.p6", "fpn.extra.0"),
        (r"backbone\.fpn\.extra_blocks\.p7", "fpn.extra.1"), (r"head\.classification_head\.conv", "head.cls_tower"),
        (r"head\.regression_head\.conv", "head.reg_tower"), (r"head\.classification_head\.", "head."),
        (r"head\.regression_head\.bbox_reg", "head.ltrb"), (r"head\.regression_head\.bbox_ctrness", "head.quality"))


def resnet18_fcos(extra_channels):
    """A small one; P6 is made from P5 (64 channels), or from C5 (512)."""
    body = BackboneWithFPN(torchvision.models.resnet18(), {"layer2": "0", "layer3": "1", "layer4": "2"}, [128, 256, 512], 64,
                           extra_blocks=LastLevelP6P7(extra_channels, 64))
    return FCOS(body, CLASSES, head=FCOSHead(64, 1, CLASSES, num_convs=2))


def pair(size):
    """(ours, torchvision's) with one set of random weights, which are far from those that training starts from."""
    if size == "resnet50":
        theirs, fields = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES), {}
    else:
        theirs = resnet18_fcos(512 if size == "c5" else 64)
        fields = {"backbone": "resnet18", "fpn_channels": 64, "head_convs": 2, "p6_from": "c5" if size == "c5" else "p5"}
    state = theirs.state_dict()
    for name, value in state.items():
        if name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("bias", "running_mean")):
            value.normal_(0, 0.1)
        elif name.startswith("head."):
            value.normal_(0, value[0].numel() ** -0.5)
    state["head.classification_head.cls_logits.bias"] -= 2
    state["head.regression_head.bbox_reg.bias"] += 1
    theirs.transform.resize = lambda image, target: (image, target)
    theirs.topk_candidates, theirs.detections_per_img = 50, 10 ** 6
    renamed = {}
    for name, value in state.items():
        for pattern, replacement in OURS:
            name = re.sub("^" + pattern, replacement, name)
        renamed[name] = value
    ours = build_model({"num_classes": CLASSES, **PRESETS["torchvision"], **fields, "pre_nms_top_k": 50, "max_detections": 10 ** 6})
    ours.load_state_dict(renamed)
    return ours.eval(), theirs.eval()


def random_pictures(count, largest):
    """The same as both want them: ([float 0..1], uint8 batch padded with noise to multiples of 32, sizes)."""
    sizes = torch.randint(33, largest, (count, 2))
    height, width = (-(-sizes.amax(0) // 32) * 32).tolist()
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    return [image[:, :h, :w] / 255 for image, (h, w) in zip(images, sizes.tolist())], images, sizes


def random_targets(sizes):
    """Half of them on multiples of 16, where distances are the ends of ranges. Areas are equal or clearly different:
    torchvision's tie break knows no differences below 8 square pixels."""
    batch, rows = len(sizes), 8
    side = torch.linspace(10, 200, rows)[torch.stack([torch.randperm(rows) for _ in range(batch)])]
    shape = torch.rand(batch, rows) + 0.5
    corner = torch.rand(batch, rows, 2) * sizes.flip(1)[:, None] - 10
    boxes = torch.cat([corner, corner + torch.stack([side * shape, side / shape], -1)], -1)
    boxes[:, ::2] = (boxes[:, ::2] / 16).round() * 16
    labels = torch.randint(0, CLASSES, (batch, rows))
    labels[-1, 3:] = -1
    return {"boxes": boxes, "labels": labels, "weights": torch.ones(batch, rows), "ignore": torch.zeros(batch, rows, dtype=torch.bool)}


CASES = pytest.mark.parametrize("size, seed", [("resnet18", 0), ("resnet18", 1), ("c5", 2), ("resnet50", 3)])


@CASES
@torch.inference_mode()
def test_raw_outputs_and_detections_are_torchvisions(size, seed):
    torch.manual_seed(seed)
    ours, theirs = pair(size)
    pictures, images, sizes = random_pictures(2, 200)
    outputs, *_ = ours.look(images, sizes)
    padded, _ = theirs.transform(pictures)
    expected = theirs.head(list(theirs.backbone(padded.tensors).values()))
    for name, their_name in (("cls_logits", "cls_logits"), ("ltrb", "bbox_regression"), ("quality_logits", "bbox_ctrness")):
        assert torch.allclose(outputs[name], expected[their_name].view_as(outputs[name]), atol=1e-4), name
    for found, wanted in zip(ours(images, sizes), theirs(pictures), strict=True):
        real = (wanted["boxes"][:, 2:] > wanted["boxes"][:, :2]).all(1)             # torchvision also reports boxes without area
        wanted = {name: value[real] for name, value in wanted.items()}
        assert len(found["boxes"]) == len(wanted["boxes"]) > 20
        assert torch.allclose(found["scores"], wanted["scores"], atol=1e-5)
        for box, score, label in zip(*(found[name] for name in ("boxes", "scores", "labels")), strict=True):
            same = (wanted["labels"] == label) & ((wanted["scores"] - score).abs() < 1e-5)
            assert (wanted["boxes"][same] - box).abs().amax(1).min() < 0.01


@CASES
@torch.inference_mode()
def test_losses_are_torchvisions(size, seed):
    torch.manual_seed(seed)
    ours, theirs = pair(size)
    pictures, images, sizes = random_pictures(2, 200)
    targets = random_targets(sizes)
    padded, _ = theirs.transform(pictures)
    features = list(theirs.backbone(padded.tensors).values())
    theirs_targets = [{"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]} for boxes, labels in zip(targets["boxes"], targets["labels"])]
    expected = theirs.compute_loss(theirs_targets, theirs.head(features), theirs.anchor_generator(padded, features),
                                   [feature.shape[-2] * feature.shape[-1] for feature in features])
    losses = {name: (pair[0, 0] / pair[0, 1].clamp(min=1)).item() for name, pair in ours(images, sizes, targets).items()}
    assert losses == pytest.approx({"cls": expected["classification"].item(), "reg": expected["bbox_regression"].item(),
                                    "quality": expected["bbox_ctrness"].item()}, rel=1e-4)


def test_other_conventions_are_not_torchvisions():
    """What the preset sets matters: each field at its default gives other boxes or other losses."""
    torch.manual_seed(0)
    ours, _ = pair("resnet18")
    images = torch.randint(0, 256, (2, 3, 160, 224), dtype=torch.uint8)
    sizes = torch.tensor([[160, 224], [129, 200]])
    targets = random_targets(sizes)

    def result(config):
        network = build_model(config)
        network.load_state_dict({**network.state_dict(), **{name: value for name, value in ours.state_dict().items() if name in network.state_dict()}})
        with torch.inference_mode():
            found = network.eval()(images, sizes)
            losses = network(images, sizes, targets)
        return torch.cat([torch.cat([one["boxes"].flatten().sort()[0] for one in found]), *(pair.flatten() for pair in losses.values())])

    config, base = ours.config.asdict(), result(ours.config.asdict())
    default = type(ours.config)(num_classes=CLASSES)
    for field in PRESETS["torchvision"]:
        if getattr(default, field) != config[field] and field not in ("backbone", "fpn_channels", "head_norm_groups", "scale_distances"):
            changed = result(config | {field: getattr(default, field)})
            assert changed.shape != base.shape or not torch.allclose(changed, base, rtol=1e-3), field
