"""Other people's state dicts to ours: every key used or dropped on purpose, every shape equal.

`FAMILIES` is all that is known of other implementations: how each calls its weights, and what a network has to do
to mean the same by them. Where files of one family have the same keys and shapes and still mean different things, there
are variants, and somebody has to say which it is.
"""
import re

import torch
from torch import Tensor, nn

from model import build_model
from model.config import MODELS, PRESETS


def _number(text: str, shift: int = 0, times: int = 1):
    """A replacement for re.sub: `text` with the number n that the pattern caught as n * times + shift."""
    return lambda match: text.format(int(match[1]) * times + shift)


def _head(prefix: str, **names: str) -> list:
    """Keys below `prefix`: ours=theirs, and the learned factors of the levels."""
    return [*((rf"^{prefix}\.{theirs}\.", f"head.{ours}.") for ours, theirs in names.items()),
            (rf"^{prefix}\.(?:scales|scale_exp)\.(\d)\.scale$", r"head.scales.\1")]


_DETECTRON2_BODY = [
    (r"^backbone\.bottom_up\.(stem\.)?", "backbone."), (r"\.res(\d)\.", _number(".layer{}.", -1)), (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."), (r"\.shortcut\.", ".downsample.0."),
    (r"^backbone\.fpn_lateral(\d)\.", _number("fpn.lateral.{}.", -3)), (r"^backbone\.fpn_output(\d)\.", _number("fpn.output.{}.", -3)),
    (r"^backbone\.top_block\.p(\d)\.", _number("fpn.extra.{}.", -6))]
_TORCHVISION_BODY = [
    (r"^backbone\.body\.", "backbone."),         # the files published first lack the ".0"
    (r"^backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?\.", r"fpn.lateral.\1."), (r"^backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?\.", r"fpn.output.\1.")]
_CAFFE = {"pixel_order": "bgr", "pixel_std": (1.0, 1.0, 1.0), "stride_in_1x1": True}          # MSRA's ResNets
_CAFFE2_MEAN, _DETECTRON2_MEAN = (102.9801, 115.9465, 122.7717), (103.53, 116.28, 123.675)   # blue, green, red

# keys             (pattern, replacement) for re.sub, which one after the other make our key of theirs
# config           the fields that all files of the family need, beyond those that the shapes tell
# variants         name -> the rest of the fields
# background       {our layer: (rows of the background before those of label 0, how many of them go behind the last label)}; the others are
#                  dropped on purpose: a sigmoid needs no background, and background has no box
FAMILIES = {
    "torchvision": {                    # its fcos_resnet50_fpn
        "keys": [
            *_TORCHVISION_BODY,
            (r"^backbone\.fpn\.extra_blocks\.p(\d)\.", _number("fpn.extra.{}.", -6)),
            *_head(r"head\.classification_head", cls_tower="conv", cls_logits="cls_logits"),
            *_head(r"head\.regression_head", reg_tower="conv", ltrb="bbox_reg", quality="bbox_ctrness")],
        "config": PRESETS["torchvision"],
        "variants": {}, "background": {"head.cls_logits": (1, 0)}},
    "torchvision_rcnn": {               # its fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn; the published files have no eps in their norms
        "keys": [
            *_TORCHVISION_BODY,
            (r"^rpn\.head\.conv(?:\.0\.0)?\.", "rpn.conv."),
            (r"^rpn\.head\.cls_logits\.", "rpn.objectness."), (r"^rpn\.head\.bbox_pred\.", "rpn.deltas."),
            (r"^roi_heads\.box_head\.fc", "box_head.fc"), (r"^roi_heads\.box_predictor\.cls_score\.", "box_head.cls_logits."),
            (r"^roi_heads\.box_predictor\.bbox_pred\.", "box_head.deltas."),
            (r"^roi_heads\.mask_head\.(\d)\.0\.", _number("mask_head.convs.{}.", times=2)),
            (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", _number("mask_head.convs.{}.", -2, times=2)),
            (r"^roi_heads\.mask_predictor\.conv5_mask\.", "mask_head.upsample."),
            (r"^roi_heads\.mask_predictor\.mask_fcn_logits\.", "mask_head.mask_logits.")],
        "config": {},
        "variants": {"published": {"norm_eps": 0.0}, "trained": {}},
        "background": {"box_head.cls_logits": (1, 1), "box_head.deltas": (4, 0), "mask_head.mask_logits": (1, 0)}},
    "fcos": {                           # the authors' own, on maskrcnn-benchmark: FCOS_R_50..., FCOS_imprv_R_50...
        "keys": [
            (r"^backbone\.body\.(stem\.)?", "backbone."),
            (r"^backbone\.fpn\.fpn_inner(\d)\.", _number("fpn.lateral.{}.", -2)), (r"^backbone\.fpn\.fpn_layer(\d)\.", _number("fpn.output.{}.", -2)),
            (r"^backbone\.fpn\.top_blocks\.p(\d)\.", _number("fpn.extra.{}.", -6)),
            *_head(r"rpn\.head", cls_tower="cls_tower", reg_tower="bbox_tower", cls_logits="cls_logits", ltrb="bbox_pred", quality="centerness")],
        "config": {**_CAFFE, "pixel_mean": _CAFFE2_MEAN, "norm_eps": 0.0},
        "variants": {"plain": PRESETS["fcos"], "improved": {"distance": "relu"}}},
    "adelaidet": {
        "keys": [
            *_DETECTRON2_BODY,
            *_head(r"proposal_generator\.fcos_head", shared_tower="share_tower", cls_tower="cls_tower", reg_tower="bbox_tower",
                   cls_logits="cls_logits", ltrb="bbox_pred", quality="ctrness")],
        "config": {**_CAFFE, "distance": "relu", "pixel_mean": _DETECTRON2_MEAN},
        "variants": {}},
    "detectron2": {                     # detectron2's own FCOS
        "keys": [
            *_DETECTRON2_BODY,
            *_head("head", cls_tower="cls_subnet", reg_tower="bbox_subnet", cls_logits="cls_score", ltrb="bbox_pred", quality="ctrness")],
        "config": {**_CAFFE, "distance": "relu", "pixel_mean": _DETECTRON2_MEAN, "box_weighting": "none", "range_ends": "open",
                   "threshold_on": "score", "score_threshold": 0.2},
        "variants": {}},
    "cvpods": {                         # Megvii's, in which BorderDet's FCOS is trained; and what was written from it on detectron2
        "keys": [
            *_DETECTRON2_BODY,
            *_head("head", cls_tower="cls_subnet", reg_tower="bbox_subnet", cls_logits="cls_score", ltrb="bbox_pred", quality="centerness")],
        "config": {**_CAFFE, "pixel_mean": _DETECTRON2_MEAN, "location_offset": 0.0, "rank_by": "cls"},
        "variants": {"plain": PRESETS["fcos"], "improved": {"distance": "relu"}}},
    "zhenghao977": {                    # FCOS-PyTorch-37.2AP: the published VOC file, what train_voc.py writes, the published COCO file
        "keys": [
            (r"^fcos_body\.backbone\.", "backbone."),
            (r"^fcos_body\.fpn\.prj_(\d)\.", _number("fpn.lateral.{}.", -3)), (r"^fcos_body\.fpn\.conv_(\d)\.", _number("fpn.output.{}.", -3)),
            (r"^fcos_body\.fpn\.conv_out(\d)\.", _number("fpn.extra.{}.", -6)),
            *_head(r"fcos_body\.head", cls_tower="cls_conv", reg_tower="reg_conv", cls_logits="cls_logits", ltrb="reg_pred", quality="cnt_logits")],
        "config": {"distance": "exp", "distance_unit": "pixel", "box_weighting": "none", "threshold_on": "score", "candidates": "argmax",
                   "top_k_scope": "picture", "max_detections": 1000},
        "variants": {"voc": {"quality_tower": "cls"}, "train_voc": {"quality_tower": "box"},
                     "train_coco": {"quality_tower": "box", "pixel_mean": (104.0136, 114.0342, 119.9166), "pixel_std": (73.6028, 69.8908, 70.9151)}}},
    "mmdet": {                          # fcos_*-caffe_*, the same with center-normbbox-centeronreg-giou, and those of lsj-200e
        "keys": [
            (r"^neck\.lateral_convs\.(\d)\.conv\.", r"fpn.lateral.\1."), (r"^neck\.fpn_convs\.([0-2])\.conv\.", r"fpn.output.\1."),
            (r"^neck\.fpn_convs\.(\d)\.conv\.", _number("fpn.extra.{}.", -3)),
            (r"(?<=_convs\.)(\d+)\.conv\.", _number("{}.", times=3)), (r"(?<=_convs\.)(\d+)\.gn\.", _number("{}.", 1, times=3)),
            *_head("bbox_head", cls_tower="cls_convs", reg_tower="reg_convs", cls_logits="conv_cls", ltrb="conv_reg", quality="conv_centerness")],
        "config": {"rank_by": "cls", "score_rule": "product"},
        "variants": {"plain": {**_CAFFE, **PRESETS["fcos"], "pixel_mean": _CAFFE2_MEAN, "nms_iou_threshold": 0.5},
                     "improved": {**_CAFFE, "distance": "relu", "pixel_mean": _DETECTRON2_MEAN},
                     "lsj": {"distance": "relu"}}},
}
DROPPED = r"(.*\.)?(num_batches_tracked|pixel_mean|pixel_std|anchor_generator\..*)"          # counters, and what the config holds
_RESNETS = {(2, 2): "resnet18", (2, 6): "resnet34", (3, 6): "resnet50", (3, 23): "resnet101"}  # convolutions a block, blocks of layer3

# The fields of a config that say what weights mean; the others say how to train on and what to report.
BODY_MEANING = ("backbone", "backbone_norm", "fpn_channels", "pixel_order", "pixel_mean", "pixel_std", "stride_in_1x1", "norm_eps")      # of backbone and pyramid
MEANING = (*BODY_MEANING, "levels", "head_convs", "head_norm", "head_norm_groups", "tower_bias", "shared_tower", "quality",
           "quality_tower", "distance", "distance_unit", "scale_distances", "location_offset", "strides_from_grid", "p6_from",
           "pyramid", "anchor_scale", "anchor_ratios", "roi_levels", "roi_size", "box_channels", "box_refinement", "mask_size", "mask_convs",
           "mask_channels")

# What --weights coco takes: {model: (name among torchvision's weights, family, variant)}
COCO_WEIGHTS = {"fcos": ("FCOS_ResNet50_FPN_Weights.COCO_V1", "torchvision", None),
                "faster_rcnn": ("FasterRCNN_ResNet50_FPN_Weights.COCO_V1", "torchvision_rcnn", "published"),
                "mask_rcnn": ("MaskRCNN_ResNet50_FPN_Weights.COCO_V1", "torchvision_rcnn", "published")}
ROWS_OF_A_CLASS = {"head.cls_logits": 1, "box_head.cls_logits": 1, "box_head.deltas": 4, "mask_head.mask_logits": 1}


def convert(state: dict[str, Tensor], family: str | None = None, variant: str | None = None) -> tuple[str, dict, dict[str, Tensor], list]:
    """A detector of another implementation -> (its family, config for build_model, state dict of that network, keys dropped).

    family   a name of FAMILIES, None: the one whose keys these are;  variant: one of the family's, where it has any
    Labels count from 0, without a background. Keys that match DROPPED are left out on purpose, everything else is strict.
    Raises ValueError naming the first key of theirs that has no place or another shape, or ours that none of theirs fills.
    """
    family = family or family_of(state)
    if family not in FAMILIES:
        raise ValueError(f"the family is {family!r}, not one of {', '.join(FAMILIES)}")
    known = FAMILIES[family]
    if (variant or "") not in (known["variants"] or [""]):
        raise ValueError(f"the variant of {family} is {variant or 'not named'}, must be one of {', '.join(known['variants']) or 'none'}; "
                         "the weights themselves do not tell")
    dropped = [key for key in state if re.fullmatch(DROPPED, key)]
    theirs = {_our_key(family, key): key for key in state if key not in dropped}
    ours = {our_key: state[key] for our_key, key in theirs.items()}
    if unused := {*state} - {*dropped, *theirs.values()}:
        raise ValueError(f"{min(unused)} and another key are both {_our_key(family, min(unused))}")
    if scales := sorted(key for key in ours if key.startswith("head.scales.")):
        ours["head.scales"] = torch.cat([ours.pop(key).flatten() for key in scales])
    for layer, (before, behind) in known.get("background", {}).items():
        for key in {f"{layer}.weight", f"{layer}.bias"} & {*ours}:
            ours[key] = torch.cat([ours[key][before:], ours[key][:behind]])
    shape = _shape(ours)
    config = MODELS[shape["model"]].from_dict({**known["config"], **known["variants"].get(variant, {}), **shape}).asdict()
    return family, config, _fitted(ours, theirs, config, f"a {config['model']} of {family} with {config['backbone']}"), dropped


def _fitted(ours: dict, theirs: dict, config: dict, what: str) -> dict:
    """`ours` with the counters that batch norms of ours have, if it is what the config's network needs. theirs: {our key: their key}"""
    with torch.device("meta"):                                          # shapes, without memory and random numbers
        needed = build_model(config).state_dict()
    ours = ours | {key: torch.zeros((), dtype=torch.long) for key in needed if key.endswith("num_batches_tracked")}
    for key in (*ours, *needed):
        if key not in needed:
            raise ValueError(f"{theirs.get(key, key)} has no place in {what}")
        if key not in ours:
            raise ValueError(f"nothing becomes {key}, which {what} has")
        if ours[key].shape != needed[key].shape:
            raise ValueError(f"{theirs.get(key, key)} is {list(ours[key].shape)}, must be {list(needed[key].shape)} in {what}")
    return ours


def family_of(state: dict) -> str:
    """The family that has a name for the class layer among these keys, and for the quality too, where one has. Raises ValueError where none has."""
    found = [family for family in FAMILIES if any(_our_key(family, key) in CLASS_LAYERS and key not in CLASS_LAYERS for key in state)]
    if found:
        return next((family for family in found if any(_our_key(family, key) == "head.quality.weight" for key in state)), found[0])
    raise ValueError(f"keys such as {next(iter(state), 'none at all')} are of no detector of {', '.join(FAMILIES)}")


def _our_key(family: str, key: str) -> str:
    key = re.sub(r"^((module|_orig_mod)\.)+", "", key)                   # of a network saved inside DataParallel, or compiled
    for pattern, replacement in FAMILIES[family]["keys"]:
        key = re.sub(pattern, replacement, key)
    return key


def _shape(state: dict) -> dict:
    """The config fields that names and shapes tell. Raises ValueError where there is no class layer or no ResNet of ours."""
    layer = next((key for key in CLASS_LAYERS if key in state), None)
    if not layer:
        raise ValueError(f"nothing becomes {next(iter(CLASS_LAYERS))}, the class layer")
    blocks = re.findall(r"backbone\.layer3\.(\d+)\.conv(\d)\.weight", " ".join(state))
    depth = max((int(conv) for _, conv in blocks), default=0), max((int(block) + 1 for block, _ in blocks), default=0)
    if depth not in _RESNETS:
        raise ValueError(f"layer3 of the backbone has {depth[1]} blocks of {depth[0]} convolutions, as none of {', '.join(_RESNETS.values())} has")
    shape = {"backbone": _RESNETS[depth]} | CLASS_LAYERS[layer](state, *state[layer].shape[:2])
    return shape if depth[0] == 3 else {**shape, "stride_in_1x1": False}             # where there is no 1x1


def _fcos_shape(state: dict, num_classes: int, channels: int) -> dict:
    p6 = state.get("fpn.extra.0.weight", state["head.cls_logits.weight"])
    shared = "head.shared_tower.0.weight" in state
    tower = "head.shared_tower" if shared else "head.reg_tower"
    layers = [value.dim() for key, value in state.items() if re.fullmatch(rf"{tower}\.\d+\.weight", key)]
    return {"model": "fcos", "num_classes": num_classes, "fpn_channels": channels, "p6_from": "p5" if p6.shape[1] == channels else "c5",
            "levels": 3 + sum(bool(re.fullmatch(r"fpn\.extra\.\d+\.weight", key)) for key in state),
            "head_convs": layers.count(4), "head_norm": "bn" if f"{tower}.1.0.weight" in state else "gn" if 1 in layers else "none",
            "head_norm_groups": 32 * (1 in layers), "tower_bias": f"{tower}.0.bias" in state, "shared_tower": shared,
            "scale_distances": "head.scales" in state}


def _rcnn_shape(state: dict, rows: int, channels: int) -> dict:
    masks = [value for key, value in state.items() if re.fullmatch(r"mask_head\.convs\.\d+\.weight", key)]
    shape = {"model": "mask_rcnn", "mask_convs": len(masks), "mask_channels": len(masks[0])} if masks else {"model": "faster_rcnn"}
    return {**shape, "num_classes": rows - 1, "box_channels": channels, "fpn_channels": len(state.get("fpn.lateral.0.weight", ()))}


CLASS_LAYERS = {"head.cls_logits.weight": _fcos_shape, "box_head.cls_logits.weight": _rcnn_shape}      # by which a model is known


_LITE_PARTS = {"_expand_conv": "conv", "_bn0": "bn", "_depthwise_conv": "conv", "_bn1": "bn", "_project_conv": "conv", "_bn2": "bn"}
_LITE_LAYER = {"_expand_conv": 0, "_bn0": 0, "_depthwise_conv": 2, "_bn1": 2, "_project_conv": 4, "_bn2": 4}


def load_backbone(backbone: nn.Module, kind: str, state: dict[str, Tensor]) -> None:
    """ImageNet weights into a backbone of model.backbone, strictly but for the classifier.

    kind   "torchvision" (its ResNets and RegNets) or "efficientnet_lite" (the names of EfficientNet-PyTorch)
    Raises ValueError naming the first key that has no place, is missing or has another shape.
    """
    if kind == "efficientnet_lite":
        state = {_lite_key(key, len(backbone.to_c3), len(backbone.to_c4)): value for key, value in state.items()
                 if not key.startswith(("_conv_head", "_bn1.", "_fc"))}
    else:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    _load_strictly(backbone, state)


def _load_strictly(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Every key, and no other, but for the counters of batch norms, which not every file has."""
    ours = module.state_dict()
    shapes, our_shapes = ({key: value.shape for key, value in each.items() if not key.endswith("num_batches_tracked")} for each in (state, ours))
    wrong = sorted(key for key in {*shapes, *our_shapes} if shapes.get(key) != our_shapes.get(key))
    if wrong:
        raise ValueError(f"pre-trained weights: {len(wrong)} keys are missing, unknown or of another shape; first: {wrong[0]}")
    module.load_state_dict({**ours, **state})


def _lite_key(key: str, to_c3: int, to_c4: int) -> str:
    """Theirs -> ours, of a network with so many blocks to C3 and from there to C4."""
    if key.startswith(("_conv_stem", "_bn0")):
        return key.replace("_conv_stem", "stem.0.conv").replace("_bn0", "stem.0.bn")
    match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", key)
    if not match or match[2] not in _LITE_PARTS:
        raise ValueError(f"pre-trained weights: {key} is not a key of EfficientNet-Lite")
    block, layer = int(match[1]), _LITE_LAYER[match[2]]
    part, first = ("to_c3", 0) if block < to_c3 else ("to_c4", to_c3) if block < to_c3 + to_c4 else ("to_c5", to_c3 + to_c4)
    if block == 0:                                       # the first block has no expansion
        layer -= 2
    return f"{part}.{block - first}.layers.{layer}.{_LITE_PARTS[match[2]]}.{match[3]}"


def load_detector(network: nn.Module, state: dict[str, Tensor], class_rows: list) -> None:
    """A detector of the same shape that may know other classes.

    class_rows   [(ours, theirs)]: which of our classes each of theirs becomes; the rows of our others stay as they were
                 initialised. Everything else is strict, and the row of the background goes with it.
    Raises ValueError naming the first key that is missing, unknown or of another shape.
    """
    ours, state = network.state_dict(), dict(state)
    keys = {f"{layer}.{part}": rows for layer, rows in ROWS_OF_A_CLASS.items() for part in ("weight", "bias")}
    for key, a_class in keys.items():
        if key in ours:
            if key not in state or state[key].shape[1:] != ours[key].shape[1:]:
                raise ValueError(f"pre-trained weights: {key} is missing or has another shape; the detector was built with other settings")
            rows, background = ours[key].clone(), len(ours[key]) - a_class * network.config.num_classes
            rows[len(rows) - background:] = state[key][len(state[key]) - background:]
            for our_class, their_class in class_rows:
                rows[our_class * a_class:(our_class + 1) * a_class] = state[key][their_class * a_class:(their_class + 1) * a_class]
            state[key] = rows
    wrong = sorted({*state} ^ {*ours}) or [key for key in ours if state[key].shape != ours[key].shape]
    if wrong:
        raise ValueError(f"pre-trained weights: {wrong[0]} does not fit; the detector was built with other settings (backbone, channels, levels)")
    network.load_state_dict(state)


def load_body(network: nn.Module, state: dict[str, Tensor], finest: int) -> list[str]:
    """Backbone and pyramid of a detector of another model, whose BODY_MEANING is the same; everything else stays as it was initialised.

    finest   of their pyramid, 3 of P3: its levels go by their names, and those that only one of the two has are left out
    returns  what was taken: "backbone", "P3", ...
    Raises ValueError naming the first key of the backbone that is missing or unknown, or any of another shape.
    """
    def ours(found: re.Match) -> str:
        return f"fpn.{found[1]}.{int(found[2]) + finest - network.config.finest}."
    own = {key: value for key, value in network.state_dict().items() if not key.startswith("backbone.")}
    state = {re.sub(r"^fpn\.(lateral|output)\.(\d+)\.", ours, key): value for key, value in state.items()}
    taken = {key: value for key, value in state.items() if key.startswith("backbone.") or key.startswith("fpn.") and key in own}
    _load_strictly(network, own | taken)
    return ["backbone", *(f"P{int(key.split('.')[2]) + network.config.finest}" for key in taken if re.fullmatch(r"fpn\.output\..*\.weight", key))]
