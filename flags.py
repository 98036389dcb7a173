"""Flags that the commands have in common. Imports nothing heavy, so that `--help` answers at once."""
import argparse
import dataclasses
import os
import re
import sys
from pathlib import Path

from model.config import CHOICES, MODELS, PRESETS
from util.command_line import Parser, file_words, from_here, number, switch

OF_THIS_CALL = ("resume", "config", "output", "max_steps")     # flags that a resumed run does not take over
RESULT_FLAGS = ("nms_iou_threshold", "max_detections")
INPUT_FLAGS = ("min_size", "max_size", "tile")
TILE_OVERLAP = 0.25                                             # share of a tile common to neighbours
LARGEST_SIDE = 65535                                            # of a JPEG; what is too large for the memory is smaller

# What shapes the network: flag: (field of its config, default of the commands, choices or type, help). None: the config's own default.
MODEL_FLAGS = {
    "backbone": ("backbone", "efficientnet_lite0", str,
                 "efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, resnet18, resnet34, resnet50, resnet101, regnet_x_400mf or timm:NAME"),
    "backbone_norm": ("backbone_norm", "bn", CHOICES["backbone_norm"], "normalisation in the backbone: batch norm, or group norm, which learns sooner from nothing "
                      "with few pictures a step, and for which there are no ImageNet weights"),
    "channels": ("fpn_channels", 128, number(int, 32, step=32), "channels of pyramid and head, a multiple of 32"),
    "levels": ("levels", 5, CHOICES["levels"], "pyramid levels from P3 up"),
    "pyramid": ("pyramid", "p2-p6", CHOICES["pyramid"], "levels of a two-stage model"),
    "p6_from": ("p6_from", "p5", CHOICES["p6_from"], "what P6 is made of"),
    "head_convs": ("head_convs", 4, number(int, 0), "convolutions in each tower of the head"),
    "head_norm": ("head_norm", "gn", CHOICES["head_norm"], "normalisation in the head: group norm, batch norm, batch norm with statistics that stay as they were loaded, or none"),
    "head_norm_groups": ("head_norm_groups", 0, number(int, 0), "groups of the group norm; 0: 32, or half of the channels where they are few"),
    "tower_bias": ("tower_bias", False, switch, "bias of the tower convolutions beside a norm"),
    "shared_tower": ("shared_tower", False, switch, "one tower for class and box"),
    "distance": ("distance", "exp", CHOICES["distance"], "what makes distances of the head's numbers"),
    "distance_unit": ("distance_unit", "stride", CHOICES["distance_unit"], "unit of these distances"),
    "scale_distances": ("scale_distances", True, switch, "a learned factor for each level before exp or relu"),
    "quality": ("quality", "centerness", CHOICES["quality"], "what the quality branch predicts"),
    "quality_tower": ("quality_tower", "box", CHOICES["quality_tower"], "tower that carries the quality branch"),
    "assignment": ("assignment", "ranges", CHOICES["assignment"], "positives by size ranges and centre sampling, or by ATSS"),
    "center_radius": ("center_sampling_radius", 1.5, number(float, 0.5, finite=False), "centre sampling radius in strides; inf turns it off"),
    "range_ends": ("range_ends", "closed", CHOICES["range_ends"], "whether the ends of a level's range belong to it"),
    "location_offset": ("location_offset", 0.5, CHOICES["location_offset"], "of a location in its cell, in strides"),
    "strides_from_grid": ("strides_from_grid", False, switch, "a level's stride is padded size // grid size"),
    "box_loss": ("box_loss", "giou", CHOICES["box_loss"], "loss of the boxes"),
    "box_weighting": ("box_weighting", "centerness", CHOICES["box_weighting"], "weight of a location in the loss of the boxes"),
    "focal_alpha": ("focal_alpha", 0.25, number(float, 0, 1), "weight of positives in the loss of the classes"),
    "focal_gamma": ("focal_gamma", 2.0, number(float, 0), "how much less easy locations count in it: 0, or 1 or more"),
    "score_threshold": ("score_threshold", 0.05, number(float, 0, 1), "lowest score of a candidate"),
    "threshold_on": ("threshold_on", "cls", CHOICES["threshold_on"], "--score-threshold is compared with the class score, or with the final one"),
    "score_rule": ("score_rule", "sqrt", CHOICES["score_rule"], "the final score: root of class score times quality, or the product itself"),
    "rank_by": ("rank_by", "score", CHOICES["rank_by"], "what the best candidates are chosen by"),
    "anchor_scale": ("anchor_scale", 8.0, number(float, 0.5, 64), "side of the anchors of a level, in strides"),
    "proposals": ("proposals", 1000, number(int, 1), "proposals of a level before NMS and of a picture after it"),
    "training_proposals": ("training_proposals", 2000, number(int, 1), "--proposals in training"),
    "rpn_samples": ("rpn_samples", 256, number(int, 1), "anchors of a picture that the losses look at"),
    "roi_samples": ("roi_samples", 512, number(int, 1), "proposals of a picture that the losses look at"),
    "roi_levels": ("roi_levels", "size", CHOICES["roi_levels"], "a proposal's features come from the level of its size, or from its own"),
    "box_channels": ("box_channels", 1024, number(int, 1), "channels of the two layers of the second stage"),
    "box_refinement": ("box_refinement", True, switch, "the second stage moves the boxes too"),
    "pre_nms_top_k": ("pre_nms_top_k", 1000, number(int, 1), "candidates before NMS"),
    "top_k_scope": ("top_k_scope", "level", CHOICES["top_k_scope"], "--pre-nms-top-k counts for each level, or for the whole picture"),
    "candidates": ("candidates", "pairs", CHOICES["candidates"], "every class of a location, or its best one only"),
    "nms_iou_threshold": ("nms_iou_threshold", None, number(float, 0, 1), "overlap above which the lower score goes; if not given 0.6, with two stages 0.5"),
    "max_detections": ("max_detections", 100, number(int, 1), "detections of a picture"),
}
SETTLED = ("model", "preset", *MODEL_FLAGS, "weights", "freeze", "momentum", "weight_decay", "backbone_lr", "normalizer_momentum", "normalizer_floor", "ema",
           "amp", "teacher")       # that a resumed run cannot change


def size_or_range(text):
    """A `type` for argparse: "640" -> 640; "640-800", the two and all between, stays a text for `every_size`."""
    low, dash, high = text.partition("-")
    ends = [int(end) if end.isdecimal() else 0 for end in ([low, high] if dash else [low])]
    if not 1 <= ends[0] <= ends[-1] <= LARGEST_SIDE:
        raise argparse.ArgumentTypeError(f"is {text}, must be a size of 1 to {LARGEST_SIDE} px, or a range LOW-HIGH of them")
    return text if dash else int(text)


def every_size(sizes):
    """[640, "700-702"] -> [640, 700, 701, 702]"""
    ends = [[int(end) for end in str(size).split("-")] for size in sizes]
    return [size for low, *high in ends for size in range(low, max([low, *high]) + 1)]


def longest_side(min_size):
    """--max-size where it is not given, in px: wide enough for pictures of 3:5, as 800 and 1333 are."""
    return round(min_size * 5 / 3)


def _add_model_flags(parser):
    add = parser.add_argument_group("model", "A flag that the --model has no use for is refused.").add_argument
    add("--model", default=next(iter(MODELS)), choices=list(MODELS), help="detector")
    add("--weights", default="auto", metavar="auto|coco|imagenet|none|FILE", help="what to start from: ImageNet (auto: where that can be had, "
        "else nothing), torchvision's detector for COCO, the file of a backbone (torchvision's ResNets and RegNets), or that of a detector, ours or another's (tools/convert_weights.py), whose classes may be "
        "others; a detector decides the network, one of another --model only backbone and pyramid")
    add("--freeze", default="auto", choices=["auto", "none", "norm", "early", "all"],
        help="what of the backbone stays as it was loaded: nothing, the batch norms, these and the layers up to stride 4, or all of it (quicker); "
             "auto: early with pre-trained weights (of timm: none), else none")
    add("--preset", default="fcos_improved", choices=list(PRESETS), help="what the flags below are where they are not given: the choices of a "
        "known detector, and beyond these the defaults named here")
    for name, (_, default, kind, text) in MODEL_FLAGS.items():
        kind = {"choices": kind, "type": type(kind[0])} if isinstance(kind, tuple) else {"type": kind, "metavar": "on|off" if kind is switch else "X"}
        shown = {True: "on", False: "off"}.get(default, default) if kind["type"] is switch else default
        add(f"--{name.replace('_', '-')}", default=None, help=text if default is None else f"{text} (default: {shown})", **kind)


def _add_incomplete_label_flags(parser):
    add = parser.add_argument_group("incomplete labels").add_argument
    add("--pseudo-weight", type=number(float, 0), default=1.0, metavar="X", help="factor on the weight of boxes that a network has labelled")
    add("--teacher", default="none", metavar="none|ema|FILE", help="fills the holes of the labels at each step: ema, the averaged weights; or the "
        "detector of FILE, trained on the same labels, and from .6 of the run on the averaged weights; "
        "and the network learns from a strong view of the same picture")
    add("--burn-in", type=number(float, 0, 1), default=0.25, metavar="SHARE", help="share of the run before --teacher ema adds its first box")
    add("--keep-rate", type=number(float, 0.01, 1), metavar="SHARE",
        help="share of all objects that carry a label, where it is known (default: estimated)")
    add("--strong-view", type=switch, metavar="on|off",
        help="train on pictures of stronger colours and with erased patches (default: on with a teacher)")


def add_training_flags(parser, data, runs):
    """What all training commands have in common: to the group `data` of the parser, and in groups of their own.

    runs      the name of their run folders: checkpoint/runs-1, ...
    """
    add, count, share = data.add_argument, number(int, 1), number(float, 0, 1)
    add("--skip-bad", action="store_true", help="leave out unreadable pictures and impossible boxes, and say which, instead of stopping")
    add("--workers", type=number(int, 0), default=min(8, max(1, (os.cpu_count() or 2) - 1)), metavar="N",
        help="loading processes of each training process: one less than there are cores, at most 8; 0: the main one loads")

    _add_model_flags(parser)

    add = parser.add_argument_group("what the network sees").add_argument
    add("--min-size", type=size_or_range, nargs="+", default=[480], metavar="PX",
        help="shorter side; several, or a range like 640-800: one is drawn for each batch")
    add("--max-size", type=count, metavar="PX", help="longest side (default: five thirds of the largest --min-size; so much at least where a recipe sets it and --min-size is given)")
    add("--crop", type=number(int, 32, LARGEST_SIDE), metavar="PX", help="train on squares of PX at full resolution (small objects in large pictures); without "
        "--min-size this is --tile too")
    add("--zoom", type=number(float, 0.1, 10), nargs=2, default=[1.0, 1.0], metavar=("LOW", "HIGH"), help="random magnification, in times")
    add("--mosaic", type=share, default=0.0, metavar="P", help="probability of a canvas made of four pictures")
    add("--flip", type=share, default=0.5, metavar="P", help="probability of a left-right mirror")
    add("--vertical-flip", type=share, default=0.0, metavar="P", help="probability of a top-bottom mirror")
    add("--jitter", type=share, default=0.3, metavar="X", help="brightness, contrast and saturation vary by this share")
    add("--rotate", type=number(float, 0, 180), default=5.0, metavar="DEGREES", help="largest random rotation")
    add("--tile", type=number(int, 32), metavar="PX", help="evaluate and detect in overlapping tiles of PX at full resolution, "
        "not in whole pictures")

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=count, default=30, metavar="N", help="times that each picture is seen")
    add("--batch-size", type=count, default=8, metavar="N", help="pictures a step, over all devices")
    add("--lr", type=number(float, 0), default=0.01, metavar="X", help="learning rate for 16 pictures a step; scaled to --batch-size")
    add("--backbone-lr", type=number(float, 0), default=1.0, metavar="X", help="factor on the rate of the backbone")
    add("--schedule", default="cosine", choices=["step", "cosine"], help="step: x 0.1 at each of --drops")
    add("--drops", type=share, nargs="+", default=[0.67, 0.89], metavar="X", help="parts of the run after which --schedule step lowers the rate")
    add("--warmup", type=number(int, 0), default=300, metavar="STEPS", help="linear warm-up; at most a fifth of the run")
    add("--momentum", type=share, default=0.9, metavar="X", help="of stochastic gradient descent")
    add("--weight-decay", type=number(float, 0), default=1e-4, metavar="X", help="on weights, not on biases and norms")
    add("--clip", type=number(float, 0), default=35.0, metavar="X", help="largest gradient norm; 0: no clipping")
    add("--normalizer-momentum", type=share, default=0.0, metavar="X", help="losses are divided by the running mean of their counts, of which "
        "each step keeps this share; 0: by those of the step")
    add("--normalizer-floor", type=number(float, 0), default=0.0, metavar="X", help="losses are divided by at least X a picture; about 8, the "
        "locations of one small object, keep steps with few labels from being as large as others")
    add("--ema", type=share, default=0.998, metavar="X", help="decay of the averaged weights; 0: none")
    add("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"], help="mixed precision; auto: bf16 or fp16 on CUDA, off on the CPU")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, metavar="N", help="of all random numbers: the same seed repeats the run")
    add("--eval-every", type=count, default=1, metavar="EPOCHS", help="evaluate every so many epochs, and after the last")
    add("--max-steps", type=count, metavar="N", help="stop after so many steps, counted from the run's beginning; --resume goes on")

    _add_incomplete_label_flags(parser)

    add = parser.add_argument_group("run").add_argument
    add("--config", metavar="FILE", help="YAML file of flags; flags on the command line win")
    add("--output", metavar="DIR", help=f"run folder (default: checkpoint/{runs}-N)")
    add("--resume", nargs="?", const="newest", metavar="FILE", help="go on with this last.pth and its flags; without FILE with the newest run of this command below checkpoint/")


def read_training_flags(parser, argv, checkpoints, before=()):
    """(flags, checkpoint to resume or None). The command line wins over --config, that over the resumed run's flags, those
    over the preset, and that over the defaults.

    checkpoints   the folder of the run folders, for a --resume that names none: the newest run of this command goes on
    before        words that all of these win over, such as the flags of a trained network
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    flags, layers, resumed = parser.parse_args(argv), [[*before], [], argv], None
    if flags.resume:
        from engine.checkpoint import newest_run
        file = newest_run(checkpoints, vars(flags)) if flags.resume == "newest" else Path(flags.resume)
        resumed = {**trained_detector(file), "file": file}
        if "training" not in resumed:
            raise ValueError(f"{file}: holds no optimizer state; --resume takes the last.pth of a run")
        layers[0] = file_words(parser, {name: value for name, value in resumed["flags"].items() if name not in OF_THIS_CALL}, file)
    if flags.config:
        layers[1] = recipe_words(parser, flags.config)
    flags = parser.parse_args(sum(layers, []))
    fill_model_flags(flags, {field.name: field.default for field in dataclasses.fields(MODELS[flags.model])}, PRESETS[flags.preset])
    said = {word.partition("=")[0]: place for place, layer in enumerate(layers) for word in layer}          # where a flag was said last
    if not flags.max_size or said.get("--min-size", -1) > said.get("--max-size", -1):   # that of a recipe or of a resumed run belongs to its own --min-size
        flags.max_size = max(flags.max_size or 0, longest_side(max(every_size(flags.min_size))))
    if flags.backbone_norm == "gn" and flags.weights in ("auto", "imagenet"):
        if flags.weights == "imagenet":
            raise ValueError("--backbone-norm gn has no ImageNet weights, which are of networks with batch norms; take --weights none")
        flags.weights = "none"
    flags.weights = os.path.abspath(flags.weights) if os.path.isfile(flags.weights) else flags.weights
    if flags.crop and "--min-size" not in said:
        flags.tile = flags.tile or flags.crop       # judged at the scale it was trained at
    drops = " ".join(f"{drop:g}" for drop in flags.drops)
    if flags.schedule == "cosine" and said.get("--drops") == 2:            # typed, not in the settings of a run
        raise ValueError(f"--drops {drops}: --schedule cosine has none; they go with --schedule step")
    if sorted({*flags.drops} - {0, 1}) != flags.drops:
        raise ValueError(f"--drops {drops}: must rise, from above 0 to below 1")
    if flags.zoom[0] > flags.zoom[1]:
        raise ValueError(f"--zoom is {flags.zoom[0]:g} {flags.zoom[1]:g}, LOW must not be above HIGH")
    if flags.teacher != "none" and not flags.ema:
        raise ValueError(f"--teacher {flags.teacher} takes the averaged weights, but with --ema 0 there are none")
    if flags.teacher not in ("none", "ema"):
        if not os.path.isfile(flags.teacher):
            raise ValueError(f"--teacher {flags.teacher}: is neither none nor ema, and there is no such file")
        flags.teacher = os.path.abspath(flags.teacher)
    if resumed and flags.output:
        raise ValueError(f"--output {flags.output}: a resumed run goes on in its own folder, {file.parent}")
    for name in SETTLED if resumed else ():
        now, then = getattr(flags, name), resumed["flags"].get(name, getattr(flags, name))
        if now != then:
            raise ValueError(f"--{name.replace('_', '-')} is {now}, but {file} was trained with {then}, which --resume cannot change")
    return flags, resumed


def recipe_words(parser, file):
    """What the YAML file of flags says, as a command line. Raises ValueError for what is no such file."""
    import yaml
    try:
        text = Path(file).read_text(encoding="utf-8")
        values, keys = yaml.safe_load(text), re.findall(r"^([a-z][\w-]*) *:", text, re.MULTILINE)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
    if twice := [key for place, key in enumerate(keys) if key.replace("-", "_") in {other.replace("-", "_") for other in keys[:place]}]:
        raise ValueError(f"{file}: says {twice[0]} twice")
    for name in ("resume", "config"):
        if isinstance(values, dict) and name in values:
            raise ValueError(f"{file}: holds {name}, which only the command line can say")
    return file_words(parser, values, file)


def augmentation(flags):
    """What dataset.augment.Augment is told."""
    return {name: getattr(flags, name) for name in ("flip", "vertical_flip", "jitter", "rotate", "zoom", "crop", "mosaic")}


def model_fields(flags):
    """{field of the model's config: value} of the MODEL_FLAGS that the model has."""
    return {field: getattr(flags, name) for name, (field, *_) in MODEL_FLAGS.items() if getattr(flags, name) is not None}


def fill_model_flags(flags, config, preset):
    """Gives the flags that were not given what the preset, the table or the config's own default says, in this order.

    config   {field: default} of the model;  flags of fields that it does not have stay None
    Raises ValueError for a flag or a preset that sets such a field.
    """
    foreign = [name for name, (field, *_) in MODEL_FLAGS.items() if getattr(flags, name) is not None and field not in config]
    if foreign:
        raise ValueError(f"--{foreign[0].replace('_', '-')} is given, but is none of --model {flags.model}")
    if foreign := [field for field in preset if field not in config]:
        raise ValueError(f"--preset {flags.preset} is of another model than --model {flags.model}, which has no {foreign[0]}")
    for name, (field, default, _, _) in MODEL_FLAGS.items():
        if getattr(flags, name) is None and field in config:
            setattr(flags, name, preset.get(field, config[field] if default is None else default))


def prediction_parser(manual, batch_size):
    """A parser with the flags of every command that runs a trained network. Flags whose default lies in the checkpoint
    are absent from what is parsed unless given: `chosen_checkpoint` and `input_sizes` read them.
    """
    parser = Parser(manual)
    add, pixels = parser.add_argument, {"metavar": "PX", "default": argparse.SUPPRESS}
    add("--checkpoint", metavar="FILE", default=argparse.SUPPRESS,
        help="weights to use (default: the best.pth written last below checkpoint/, else the shipped one)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--batch-size", type=number(int, 1), default=batch_size, metavar="N",
        help="pictures, frames or tiles at a time")
    add("--min-size", type=number(int, 1, LARGEST_SIDE), **pixels,
        help="shorter side of the network's input, which sees whole pictures then (default: the checkpoint's)")
    add("--max-size", type=number(int, 1), **pixels,
        help="longest allowed longer side, of whole pictures (default: the checkpoint's, or five thirds of a larger --min-size)")
    add("--tile", type=number(int, 0), **pixels,
        help="side of overlapping tiles at full resolution; 0: whole pictures (default: the checkpoint's)")
    add("--overlap", type=number(float, 0, 0.9), default=TILE_OVERLAP, metavar="X", help="share of a tile common to neighbours; an object longer than that may be found in two pieces")
    parser.set_defaults(result_flags=RESULT_FLAGS)
    for name in RESULT_FLAGS:
        _, _, kind, text = MODEL_FLAGS[name]
        add(f"--{name.replace('_', '-')}", type=kind, metavar="X", default=argparse.SUPPRESS, help=f"{text.partition(';')[0]} (default: the checkpoint's)")
    return parser


def evaluation_parser(manual):
    """A parser with the flags of every evaluating command."""
    parser = prediction_parser(manual, batch_size=8)
    parser.set_defaults(result_flags=(*RESULT_FLAGS, "score_threshold"))
    add = parser.add_argument
    add("--score-threshold", type=MODEL_FLAGS["score_threshold"][2], metavar="X", default=argparse.SUPPRESS,
        help="lowest score of a candidate, before AP: not the threshold of detect.py (default: the checkpoint's)")
    add("--output", metavar="DIR", default=argparse.SUPPRESS, help="where to write (default: eval/ beside the checkpoint)")
    add("--workers", type=number(int, 0), default=2, metavar="N", help="loading processes; 0: the main one loads")
    add("--skip-bad", action="store_true", help="leave out what cannot be read, and say what, instead of stopping")
    return parser


def trained_detector(path):
    """What engine.checkpoint.load_checkpoint returns. Raises ValueError, naming the file, also for a network that is not known."""
    from engine.checkpoint import load_checkpoint
    from model import parse_config

    checkpoint = load_checkpoint(path)
    try:
        parse_config(checkpoint["config"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return checkpoint


def chosen_checkpoint(args, folder):
    """(path, contents) of --checkpoint, or of the newest in `folder`, with the result flags that are given in its config. Raises ValueError as
    `trained_detector` does."""
    from engine.checkpoint import newest_checkpoint

    path = Path(args.checkpoint) if "checkpoint" in args else Path(from_here(newest_checkpoint(folder)))
    checkpoint = trained_detector(path)
    checkpoint["config"] |= {name: vars(args)[name] for name in args.result_flags if name in args}
    return path, checkpoint


def input_sizes(args, checkpoint):
    """{"min_size", "max_size", "tile"} in px: the checkpoint's, where the flags say nothing else. A side length without --tile means
    whole pictures, and to --min-size alone belongs at least `longest_side` of it.
    """
    given = {name: vars(args)[name] for name in INPUT_FLAGS if name in args}
    if "min_size" in given:
        given = {"max_size": max(longest_side(given["min_size"]), checkpoint["input"]["max_size"])} | given
    return checkpoint["input"] | ({"tile": None} if given else {}) | given
