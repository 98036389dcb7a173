"""Other people's state dicts to ours: every key used or dropped on purpose, every shape equal."""
import re

from torch import Tensor, nn

_LITE0_PARTS = {"_expand_conv": "conv", "_bn0": "bn", "_depthwise_conv": "conv", "_bn1": "bn", "_project_conv": "conv", "_bn2": "bn"}
_LITE0_LAYER = {"_expand_conv": 0, "_bn0": 0, "_depthwise_conv": 2, "_bn1": 2, "_project_conv": 4, "_bn2": 4}
_FCOS_NAMES = {r"backbone\.body\.": "backbone.", r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": r"fpn.lateral.\1.",
               r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": r"fpn.output.\1.",
               r"backbone\.fpn\.extra_blocks\.p6\.": "fpn.extra.0.", r"backbone\.fpn\.extra_blocks\.p7\.": "fpn.extra.1."}


def load_weights(network: nn.Module, kind: str, state: dict[str, Tensor], class_rows: list = ()) -> None:
    """Weights to start from: a detector of ours ("fcos"), torchvision's ("torchvision_fcos"), or one of load_backbone's kinds."""
    if kind == "fcos":
        load_detector(network, state, class_rows)
    elif kind == "torchvision_fcos":
        load_torchvision_fcos(network, state)
    else:
        load_backbone(network.backbone, kind, state)


def load_backbone(backbone: nn.Module, kind: str, state: dict[str, Tensor]) -> None:
    """ImageNet weights into a backbone of model.backbone, strictly but for the classifier.

    kind   "torchvision" (its ResNets and RegNets) or "efficientnet_lite0" (the names of EfficientNet-PyTorch)
    Raises ValueError naming the first key that has no place, is missing or has another shape.
    """
    if kind == "efficientnet_lite0":
        state = {_lite0_key(key): value for key, value in state.items()
                 if not key.startswith(("_conv_head", "_bn1.", "_fc"))}
    else:
        state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    _load_strictly(backbone, state)


def load_torchvision_fcos(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Backbone and pyramid of torchvision's fcos_resnet50_fpn into an FCOS with resnet50, 256 channels and 5 levels.

    The head is dropped on purpose: its towers have biases before the group norm and its distances are ReLUs of strides;
    ours have no such biases and are exponentials. Raises ValueError as load_backbone does.
    """
    renamed = {}
    for key, value in state.items():
        if not key.startswith("head."):
            for theirs, ours in _FCOS_NAMES.items():
                key = re.sub("^" + theirs, ours, key)
            renamed[key] = value
    _load_strictly(nn.ModuleDict({"backbone": network.backbone, "fpn": network.fpn}), renamed)


def _load_strictly(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Every key, and no other, but for the counters of batch norms, which frozen ones do not have."""
    ours = module.state_dict()
    shapes, our_shapes = ({key: value.shape for key, value in each.items() if not key.endswith("num_batches_tracked")} for each in (state, ours))
    wrong = sorted(key for key in {*shapes, *our_shapes} if shapes.get(key) != our_shapes.get(key))
    if wrong:
        raise ValueError(f"pre-trained weights: {len(wrong)} keys are missing, unknown or of another shape; first: {wrong[0]}")
    module.load_state_dict({**ours, **state})


def _lite0_key(key: str) -> str:
    if key.startswith(("_conv_stem", "_bn0")):
        return key.replace("_conv_stem", "stem.0.conv").replace("_bn0", "stem.0.bn")
    match = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", key)
    if not match or match[2] not in _LITE0_PARTS:
        raise ValueError(f"pre-trained weights: {key} is not a key of EfficientNet-Lite0")
    block, layer = int(match[1]), _LITE0_LAYER[match[2]]
    part, first = ("to_c3", 0) if block < 5 else ("to_c4", 5) if block < 11 else ("to_c5", 11)
    if block == 0:                                       # the first block has no expansion
        layer -= 2
    return f"{part}.{block - first}.layers.{layer}.{_LITE0_PARTS[match[2]]}.{match[3]}"


def load_detector(network: nn.Module, state: dict[str, Tensor], class_rows: list) -> None:
    """A detector of the same shape that may know other classes.

    class_rows   [(ours, theirs)]: which row of our class layer each of theirs becomes; our other rows stay as they were
                 initialised. Everything else is strict.
    Raises ValueError naming the first key that is missing, unknown or of another shape.
    """
    ours = network.state_dict()
    for key in ("head.cls_logits.weight", "head.cls_logits.bias"):
        if key not in state or state[key].shape[1:] != ours[key].shape[1:]:
            raise ValueError(f"pre-trained weights: {key} is missing or has another shape; the detector was built with other settings")
        rows = ours[key].clone()
        for our_row, their_row in class_rows:
            rows[our_row] = state[key][their_row]
        state = {**state, key: rows}
    wrong = sorted({*state} ^ {*ours}) or [key for key in ours if state[key].shape != ours[key].shape]
    if wrong:
        raise ValueError(f"pre-trained weights: {wrong[0]} does not fit; the detector was built with other settings (backbone, channels, levels)")
    network.load_state_dict(state)
