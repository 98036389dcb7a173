"""Train FCOS on pictures with PASCAL VOC XML.

    python train_voc.py                                     the embedded foreign-object set
    python train_voc.py --data my_pictures                  any folder in VOC layout; classes come from the data
    python train_voc.py --data VOC2007 VOC2012 --train-split trainval --backbone resnet50 --min-size 640 800 --max-size 1333
    python train_voc.py --config configs/demo.yaml          a recipe file: the flags of a published number
    python train_voc.py --resume                            the newest run goes on where it stopped

Several GPUs of one machine: the same command (DataParallel), or one process each, which is faster:
    torchrun --nproc-per-node 4 train_voc.py --data my_pictures
Several machines: the same on each
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train_voc.py --data my_pictures

A run folder checkpoint/voc-N holds best.pth, last.pth, config.yaml, log.txt, metrics.csv, training.png, train_batch.jpg.
"""
import argparse
import os
import sys
import time
from pathlib import Path

from engine.flags import Parser, file_words, number
from engine.log import RunLog, next_run_folder, one_sentence_errors

HERE = Path(__file__).resolve().parent
OF_THIS_CALL = ("resume", "config", "output", "max_steps")     # flags that a resumed run does not take over
SETTLED = ("model", "backbone", "weights", "freeze", "channels", "levels", "head_convs", "head_norm", "quality", "box_loss", "center_radius",
           "momentum", "weight_decay", "backbone_lr", "ema", "amp")     # and those that its network and optimizer are made of


def build_parser() -> Parser:
    parser = Parser(__doc__)
    add, count, share = parser.add_argument_group("data").add_argument, number(int, 1), number(float, 0, 1)
    add("--data", nargs="+", default=[os.path.relpath(HERE / "foreign_object_dataset")], metavar="DIR", help="folders in VOC layout")
    add("--train-split", default="auto", metavar="S", help="list in ImageSets to train on; all: every XML file; "
        "auto: train, or all where there are no lists")
    add("--val-split", default="auto", metavar="S", help="list to evaluate on; none: no evaluation; auto: val if there are train and val, else none")
    add("--zero-based", action="store_true", help="coordinates start at 0 (VOC's own start at 1)")
    add("--skip-bad", action="store_true", help="leave out unreadable pictures and impossible boxes, and say which, instead of stopping")
    add("--workers", type=number(int, 0), default=min(8, max(1, (os.cpu_count() or 2) - 1)), metavar="N",
        help="loading processes; 0: the main one loads")

    add = parser.add_argument_group("model").add_argument
    add("--model", default="fcos", choices=["fcos"], help="detector")
    add("--backbone", default="efficientnet_lite0", metavar="NAME",
        help="efficientnet_lite0, resnet18, resnet34, resnet50, resnet101, regnet_x_400mf or timm:NAME")
    add("--weights", default="auto", metavar="auto|coco|imagenet|none|FILE", help="what to start from: ImageNet (auto: where that can be had, "
        "else nothing), backbone and pyramid of torchvision's FCOS for COCO, or a checkpoint of this repository, whose classes may be others")
    add("--freeze", default="auto", choices=["auto", "none", "norm", "early"],
        help="what of the backbone stays as it was loaded: nothing, the batch norms, or these and the layers up to stride 4; "
             "auto: early with pre-trained weights, else none")
    add("--channels", type=number(int, 32, step=32), default=128, metavar="N", help="channels of pyramid and head, a multiple of 32")
    add("--levels", type=int, default=5, choices=[3, 4, 5], help="pyramid levels from P3 up")
    add("--head-convs", type=number(int, 0), default=4, metavar="N", help="convolutions in each tower of the head")
    add("--head-norm", default="gn", choices=["gn", "none"], help="normalisation in the head: group norm or none")
    add("--quality", default="centerness", choices=["centerness", "iou"], help="what the quality branch predicts")
    add("--box-loss", default="giou", choices=["giou", "iou"], help="loss of the boxes")
    add("--center-radius", type=number(float, 0.5), default=1.5, metavar="X", help="centre sampling radius in strides; inf turns it off")

    add = parser.add_argument_group("what the network sees").add_argument
    add("--min-size", type=count, nargs="+", default=[480], metavar="PX", help="shorter side; several: one is drawn for each batch")
    add("--max-size", type=count, default=800, metavar="PX", help="longest side")
    add("--crop", type=number(int, 32), metavar="PX", help="train on squares of PX at full resolution (small objects in large pictures); without "
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
    add("--schedule", default="cosine", choices=["step", "cosine"], help="step: x 0.1 at 2/3 and 8/9 of the run")
    add("--warmup", type=number(int, 0), default=300, metavar="STEPS", help="linear warm-up; at most a fifth of the run")
    add("--momentum", type=share, default=0.9, metavar="X", help="of stochastic gradient descent")
    add("--weight-decay", type=number(float, 0), default=1e-4, metavar="X", help="on weights, not on biases and norms")
    add("--clip", type=number(float, 0), default=35.0, metavar="X", help="largest gradient norm; 0: no clipping")
    add("--ema", type=share, default=0.998, metavar="X", help="decay of the averaged weights; 0: none")
    add("--amp", default="auto", choices=["auto", "bf16", "fp16", "off"], help="mixed precision; auto: bf16 or fp16 on CUDA, off on the CPU")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--seed", type=int, default=0, metavar="N", help="one seed, one run")
    add("--eval-every", type=count, default=1, metavar="EPOCHS", help="evaluate every so many epochs, and after the last")
    add("--max-steps", type=count, metavar="N", help="stop after so many steps, counted from the run's beginning; --resume goes on")

    add = parser.add_argument_group("run").add_argument
    add("--config", metavar="FILE", help="YAML file of flags; flags on the command line win")
    add("--output", metavar="DIR", help="run folder (default: checkpoint/voc-N)")
    add("--resume", nargs="?", const="newest", metavar="FILE", help="a last.pth to go on with, with its flags (default: the newest)")
    return parser


def parse_flags(argv: list | None) -> tuple[argparse.Namespace, dict | None]:
    """(flags, checkpoint to resume or None). The command line wins over --config, that over the resumed run's flags."""
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else list(argv)
    flags, words, resumed = parser.parse_args(argv), [], None
    if flags.resume:
        from engine.checkpoint import load_checkpoint, newest_run
        file = newest_run(HERE / "checkpoint") if flags.resume == "newest" else Path(flags.resume)
        resumed = {**load_checkpoint(file), "file": file}
        if "training" not in resumed:
            raise ValueError(f"{file}: holds no optimizer state; --resume takes the last.pth of a run")
        words += file_words(parser, {name: value for name, value in resumed["flags"].items() if name not in OF_THIS_CALL}, file)
    if flags.config:
        import yaml
        try:
            words += file_words(parser, yaml.safe_load(Path(flags.config).read_text(encoding="utf-8")), flags.config)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{flags.config}: is not YAML: {' '.join(str(error).split())}") from None
    words += argv
    flags = parser.parse_args(words)
    flags.data = [os.path.abspath(folder) for folder in flags.data]     # a run can be repeated from any place
    flags.weights = os.path.abspath(flags.weights) if os.path.isfile(flags.weights) else flags.weights
    if flags.crop and not any(word.partition("=")[0] == "--min-size" for word in words):
        flags.tile = flags.tile or flags.crop       # judged at the scale it was trained at
    if flags.zoom[0] > flags.zoom[1]:
        raise ValueError(f"--zoom is {flags.zoom[0]:g} {flags.zoom[1]:g}, LOW must not be above HIGH")
    if resumed and flags.output:
        raise ValueError(f"--output {flags.output}: a resumed run goes on in its own folder, {file.parent}")
    for name in SETTLED if resumed else ():
        now, then = getattr(flags, name), resumed["flags"].get(name, getattr(flags, name))
        if now != then:
            raise ValueError(f"--{name.replace('_', '-')} is {now}, but {file} was trained with {then}, which --resume cannot change")
    return flags, resumed


def run_folder(flags: argparse.Namespace, resumed: dict | None) -> Path:
    folder = resumed["file"].parent if resumed else Path(flags.output) if flags.output else next_run_folder(HERE / "checkpoint", "voc")
    for name in () if resumed else ("last.pth", "best.pth"):
        if (folder / name).exists():
            raise ValueError(f"--output {folder}: holds a run already ({name}); name another folder, or --resume {folder / 'last.pth'}")
    return folder


def train(flags: argparse.Namespace, resumed: dict | None) -> None:
    import torch

    from dataset.augment import Augment
    from dataset.loader import TrainLoader
    from engine.distributed import rank, select_device, start_process_group, world_size
    from engine.fit import FitOptions, fit

    torch.manual_seed(flags.seed)
    device = select_device(flags.device)
    folder = run_folder(flags, resumed)         # the same in all processes, none of which is past the next line
    start_process_group(device)
    if flags.batch_size % world_size():
        raise ValueError(f"--batch-size is {flags.batch_size}, not a multiple of the {world_size()} processes")
    train_set, val_set, notes = open_data(flags)
    network, config, told = build_network(flags, train_set.classes, resumed)
    run = RunLog(folder, active=rank() == 0)    # nothing is written before this line
    run.config({name: value for name, value in vars(flags).items() if name not in ("resume", "config", "output")})
    for sentence in (*notes, *told):
        run.say(f"note: {sentence}")

    augment = Augment(flip=flags.flip, vertical_flip=flags.vertical_flip, jitter=flags.jitter, rotate=flags.rotate,
                      zoom=tuple(flags.zoom), crop=flags.crop, mosaic=flags.mosaic)
    loader = TrainLoader(train_set, augment, flags.batch_size // world_size(), flags.min_size, flags.max_size, seed=flags.seed,
                         workers=flags.workers, rank=rank(), world_size=world_size(), pin_memory=device.type == "cuda")
    options = FitOptions(
        epochs=flags.epochs, lr=flags.lr * flags.batch_size / 16, momentum=flags.momentum, weight_decay=flags.weight_decay,
        warmup_steps=min(flags.warmup, flags.epochs * len(loader) // 5), schedule=flags.schedule, pretrained_lr=flags.backbone_lr,
        clip_norm=flags.clip, ema_decay=flags.ema, amp=amp_dtype(flags.amp, device), evaluate_every=flags.eval_every,
        max_steps=flags.max_steps)
    checkpoint = {"config": config, "classes": train_set.classes, "score_threshold": 0.3, "flags": vars(flags),
                  "input": {"min_size": max(flags.min_size), "max_size": flags.max_size, "tile": flags.tile}}
    counts = train_set.class_counts()
    run.say(f"{len(train_set)} pictures, {sum(counts.values())} objects ({', '.join(f'{n} {c}' for n, c in counts.items())}); "
            + (f"{len(val_set)} pictures to evaluate on, " if val_set else "no list to evaluate on, detection ")
            + (f"in tiles of {flags.tile} px" if flags.tile else f"whole at {max(flags.min_size)} px"))
    run.say(f"{flags.model} {flags.backbone}, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters, on {device}; "
            f"{flags.epochs} epochs of {len(loader)} steps, learning rate {options.lr:.4g} for {flags.batch_size} pictures a step; in {folder}")
    save_sample(loader, train_set.classes, folder, run)

    started = time.perf_counter()
    evaluate = make_evaluate(val_set, flags, device, options.amp) if val_set else None
    try:
        best = fit(network, loader, evaluate, run, options, device, checkpoint, resumed)
    except KeyboardInterrupt:
        run.say(f"interrupted; python train_voc.py --resume {folder / 'last.pth'} goes on")
        raise
    run.say(f"trained in {(time.perf_counter() - started) / 60:.1f} minutes; best.pth and last.pth are in {folder}")
    if run.active:
        from evaluation.plots import plot_training
        from evaluation.report import format_table
        if best:
            run.say(format_table(best))
        plot_training(folder / "metrics.csv", folder / "training.png")


def open_data(flags: argparse.Namespace):
    """(training set, evaluation set or None, sentences on what was left out or looks odd)"""
    from dataset.voc import VOCDataset, find_splits
    lists = [find_splits(folder) for folder in flags.data]
    has_train, has_val = (all(name in splits for splits in lists) for name in ("train", "val"))
    if flags.train_split == "auto" and any(lists) and not has_train:
        folder, splits = next((each, splits) for each, splits in zip(flags.data, lists, strict=True) if "train" not in splits)
        raise ValueError(f"{folder}: has no list 'train' in ImageSets (but {', '.join(splits) or 'none at all'}); name one with --train-split S, "
                         "or take every XML file with --train-split all")
    train_split = {"auto": "train" if has_train else None, "all": None}.get(flags.train_split, flags.train_split)
    val_split = {"auto": "val" if has_train and has_val else None, "none": None}.get(flags.val_split, flags.val_split)
    options = {"one_based": not flags.zero_based, "skip_bad": flags.skip_bad}
    train_set = VOCDataset(flags.data, train_split, **options)
    if not train_set.classes:
        raise ValueError(f"--data {' '.join(flags.data)}: not one object in {len(train_set)} pictures to train on")
    val_set = VOCDataset(flags.data, val_split, classes=train_set.classes, **options) if val_split else None
    notes = [*dict.fromkeys(note for part in (train_set, val_set) if part for note in (*part.notes, *part.skipped))]
    if val_set and (shared := {*train_set.ids} & {*val_set.ids}):
        notes.append(f"{len(shared)} of the {len(val_set)} pictures to evaluate on are trained on too; the measure flatters")
    return train_set, val_set, notes


def build_network(flags: argparse.Namespace, classes: list, resumed: dict | None):
    """(network, its config as a plain dict, sentences on its weights), with the weights that --weights asks for."""
    from engine.pretrained import starting_weights
    from model import build_model
    from model.backbone import pixel_statistics
    from model.config import FCOSConfig
    from model.foreign_weights import load_weights
    if resumed:
        if resumed["classes"] != classes:
            raise ValueError(f"{resumed['file']}: was trained on the classes {', '.join(resumed['classes'])}, the data has {', '.join(classes)}")
        return build_model(resumed["config"]), resumed["config"], []
    kind, state, their_classes, told = starting_weights(flags.weights, flags.backbone, flags.channels, flags.levels)
    config = FCOSConfig(
        num_classes=len(classes), model=flags.model, backbone=flags.backbone,
        backbone_freeze=flags.freeze if flags.freeze != "auto" else "early" if state else "none",
        fpn_channels=flags.channels, levels=flags.levels, head_convs=flags.head_convs, head_norm=flags.head_norm,
        quality=flags.quality, box_loss=flags.box_loss, center_sampling_radius=flags.center_radius,
        **pixel_statistics(flags.backbone)).asdict()
    network = build_model(config)
    shared = [name for name in classes if name in their_classes]
    if state:
        try:
            load_weights(network, kind, state, [(classes.index(name), their_classes.index(name)) for name in shared])
        except ValueError as error:
            raise ValueError(f"--weights {flags.weights}: {error}") from None
    if their_classes:
        told.append(f"weights of {flags.weights}; class rows taken over: {', '.join(shared) or 'none'}; new: "
                    f"{', '.join(name for name in classes if name not in shared) or 'none'}")
    return network, config, told


def make_evaluate(val_set, flags: argparse.Namespace, device, amp):
    """network -> metrics on the evaluation set, in original pixels."""
    from dataset.loader import eval_loader
    from engine.predict import predict
    from evaluation.report import evaluate
    loader = eval_loader(val_set, max(flags.min_size), flags.max_size, tile=flags.tile, batch_size=flags.batch_size, workers=flags.workers,
                         pin_memory=device.type == "cuda")
    truth = {target["image_id"]: target for target in map(val_set.target, range(len(val_set)))}
    return lambda network: evaluate(predict(network, loader, device, amp, progress=False), truth, val_set.classes)


def amp_dtype(choice: str, device):
    """The autocast type, None for float32. bf16 needs no scaler; CUDA before Ampere has only fp16."""
    import torch
    if choice == "auto":
        choice = "off" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[choice]


def save_sample(loader, classes: list, folder: Path, run: RunLog) -> None:
    """train_batch.jpg: the first batch as the network sees it, with its boxes."""
    if not run.active:
        return
    from util.draw import draw_detections, grid
    batch, _ = next(iter(loader.batches(0)))
    pictures = [draw_detections(image, boxes[labels >= 0], [classes[label] for label in labels[labels >= 0]], classes=classes)
                for image, boxes, labels in zip(batch["images"], batch["boxes"], batch["labels"], strict=True)]
    grid(pictures[:12], columns=4).save(folder / "train_batch.jpg", quality=88)


def main(argv: list | None = None) -> None:
    with one_sentence_errors():
        train(*parse_flags(argv))


if __name__ == "__main__":
    main()
