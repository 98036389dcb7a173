"""Train FCOS, or another --model, on pictures with COCO json.

    python train_coco.py --data coco                        annotations/instances_train*.json and train*/, the same for val
    python train_coco.py --train-json a.json --train-images pictures [--val-json b.json --val-images pictures]
    python train_coco.py --data coco --config configs/coco_r50_1x.yaml
    python train_coco.py --resume                           the newest run of this command below checkpoint/ goes on

Classes are the categories of the training json, by rising id; best.pth is the one of best AP (IoU 0.5 to 0.95). Crowds are
regions, neither object nor background. --min-size 640 800 draws one of the two for each batch, --min-size 640-800 any in
between; each batch is padded to its largest picture.

Several GPUs of one machine: the same command (DataParallel), or one process each, which is faster:
    torchrun --nproc-per-node 4 train_coco.py --data coco --config configs/coco_r50_1x.yaml
Several machines: as train_voc.py says.

The run folder checkpoint/coco-N is that of train_voc.py.
"""
import argparse
import os
from pathlib import Path

from flags import add_training_flags, read_training_flags
from training import run_folder, train
from util.command_line import Parser, one_sentence_errors

HERE = Path(__file__).resolve().parent
PATHS = ("data", "train_json", "train_images", "val_json", "val_images")


def build_parser() -> Parser:
    parser = Parser(__doc__)
    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--data", metavar="DIR", help="folder in COCO's layout: annotations/instances_NAME.json with the pictures in NAME, NAME beginning "
        "with train and val")
    add("--train-json", metavar="FILE", help="instances to train on, instead of those in --data")
    add("--train-images", metavar="DIR", help="the pictures of --train-json")
    add("--val-json", metavar="FILE", help="instances to evaluate on, instead of those in --data; none: no evaluation")
    add("--val-images", metavar="DIR", help="the pictures of --val-json")
    add_training_flags(parser, data, "coco")
    return parser


def parse_flags(argv: list | None) -> tuple[argparse.Namespace, dict | None]:
    """(flags, checkpoint to resume or None)"""
    flags, resumed = read_training_flags(build_parser(), argv, HERE / "checkpoint")
    for name in PATHS:                      # a run can be repeated from any place
        value = getattr(flags, name)
        setattr(flags, name, os.path.abspath(value) if value and value != "none" else value)
    return flags, resumed


def open_data(flags: argparse.Namespace):
    """(training set, evaluation set or None)"""
    from dataset.coco import COCODataset
    from model import needs_masks
    train_pair, val_pair = (chosen_pair(flags, part) for part in ("train", "val"))
    if train_pair is None:
        raise ValueError(f"--data {flags.data}: has no annotations/instances_train*.json" if flags.data else
                         "there is nothing to train on: give --data DIR, or --train-json FILE with --train-images DIR")
    options = {"skip_bad": flags.skip_bad, "with_masks": needs_masks(flags.model)}
    train_set = COCODataset(*train_pair, pseudo_weight=flags.pseudo_weight, **options)
    if not any(train_set.class_counts().values()):
        raise ValueError(f"{train_pair[0]}: not one object in {len(train_set)} pictures to train on")
    return train_set, COCODataset(*val_pair, classes=train_set.classes, **options) if val_pair else None


def chosen_pair(flags: argparse.Namespace, part: str) -> tuple | None:
    """(json, folder of its pictures) for train or val; None where the flags name none."""
    from dataset.coco import choose_pair
    file, images = getattr(flags, f"{part}_json"), getattr(flags, f"{part}_images")
    if file == "none":
        return None
    if bool(file) != bool(images):
        raise ValueError(f"--{part}-json and --{part}-images go together, {'the second' if file else 'the first'} is missing")
    return (file, images) if file else choose_pair(flags.data, part) if flags.data else None


def run(argv: list | None) -> None:
    """What main does, but a person's mistake is raised (ValueError, OSError)."""
    flags, resumed = parse_flags(argv)
    from evaluation.coco_ap import evaluate
    train(flags, resumed, run_folder(flags, resumed, HERE / "checkpoint", "coco"), open_data, evaluate)


def main(argv: list | None = None) -> None:
    with one_sentence_errors():
        run(argv)


if __name__ == "__main__":
    main()
