"""Train FCOS, or another --model, on pictures with PASCAL VOC XML.

    python train_voc.py                                     the embedded foreign-object set
    python train_voc.py --data my_pictures                  any folder in VOC layout; classes come from the data
    python train_voc.py --data export/train --val-data export/valid      XML beside the pictures, a folder for each split
    python train_voc.py --data VOC2007 VOC2012 --train-split trainval --backbone resnet50 --min-size 640 800 --max-size 1333 --lr 0.002
    python train_voc.py --data VOC2007 VOC2012 --train-split train trainval --val-data VOC2007      a list for each folder
    python train_voc.py --config configs/demo.yaml          a recipe file: the flags of a published number
    python train_voc.py --resume                            the newest run of this command below checkpoint/ goes on
    python train_voc.py --data my_pictures --teacher checkpoint/voc-1/last.pth      labels with holes: a first run on them fills these

One GPU of several: --device cuda:1. All of one machine: the same command (DataParallel; CUDA_VISIBLE_DEVICES=0,1 shows it two), or one process each, which is faster:
    torchrun --nproc-per-node 4 train_voc.py --data my_pictures
Several machines: the same on each
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train_voc.py --data my_pictures

A run folder checkpoint/voc-N holds best.pth, last.pth, config.yaml, network.yaml, log.txt, metrics.csv, steps.csv, training.png, train_batch.jpg.
"""
import argparse
import os
from pathlib import Path

from flags import add_training_flags, read_training_flags
from training import run_folder, train
from util.command_line import Parser, from_here, one_sentence_errors

HERE = Path(__file__).resolve().parent


def build_parser() -> Parser:
    parser = Parser(__doc__)
    data = parser.add_argument_group("data")
    add = data.add_argument
    add("--data", nargs="+", default=[from_here(HERE / "foreign_object_dataset")], metavar="DIR", help="folders in VOC layout")
    add("--train-split", nargs="+", default=["auto"], metavar="S", help="list in ImageSets to train on, one for all folders or one for each; "
        "all: every XML file; auto: train, or all where there are no lists")
    add("--val-data", nargs="+", metavar="DIR", help="folders to evaluate on, where they are others than --data")
    add("--val-split", default="auto", metavar="S", help="list to evaluate on; none: no evaluation; all: every XML file; auto: val, if the lists train "
        "and val exist and train is trained on, else none; with --val-data its val, or all where it has no lists")
    add("--zero-based", action="store_true", help="coordinates start at 0 (VOC's own start at 1)")
    add_training_flags(parser, data, "voc")
    return parser


def parse_flags(argv: list | None) -> tuple[argparse.Namespace, dict | None]:
    """(flags, checkpoint to resume or None)"""
    flags, resumed = read_training_flags(build_parser(), argv, HERE / "checkpoint")
    for name in ("data", "val_data"):           # a run can be repeated from any place
        setattr(flags, name, [os.path.abspath(folder) for folder in getattr(flags, name) or []] or None)
    return flags, resumed


def open_data(flags: argparse.Namespace):
    """(training set, evaluation set or None)"""
    from dataset.voc import VOCDataset
    from dataset.voc_folder import find_splits, training_split, wider_trainval
    from model import needs_masks
    if needs_masks(flags.model):
        raise ValueError(f"--model {flags.model} learns from masks, and VOC XML has none; train_coco.py takes them from COCO json")
    lists = [find_splits(folder) for folder in flags.data]
    train_split, val_split = training_split(flags.data, flags.train_split), flags.val_split
    if val_split == "auto" and flags.val_data:
        val_split = "val" if any(map(find_splits, flags.val_data)) else "all"
    elif val_split == "auto":
        val_split = "val" if {*train_split} == {"train"} and all("val" in splits for splits in lists) else "none"
    options = {"one_based": not flags.zero_based, "skip_bad": flags.skip_bad}
    train_set = VOCDataset(flags.data, train_split, pseudo_weight=flags.pseudo_weight, **options)
    if not any(train_set.class_counts().values()):
        raise ValueError(f"--data {' '.join(flags.data)}: not one object in {len(train_set)} pictures to train on")
    if not any(lists) and [*flags.train_split, flags.val_split] == ["auto", "auto"] and not flags.val_data:
        train_set.notes.append("there are no lists: all pictures are trained on, and none is left to judge the detector by; "
                               f"python tools/make_splits.py {flags.data[0]} draws them")
    if flags.train_split == ["auto"]:
        train_set.notes += filter(None, map(wider_trainval, flags.data))
    if val_split == "none":
        if flags.val_split == "auto" and {*train_split} != {"train"} and any("val" in splits for splits in lists):
            train_set.notes.append("not only 'train' is trained on, so that no list is taken to evaluate on by itself; --val-split val, or --val-data DIR, names one")
        elif flags.val_split == "auto" and (some := [folder for folder, splits in zip(flags.data, lists, strict=True) if "val" in splits]):
            train_set.notes.append(f"only {', '.join(some)} has a list val, not all folders of --data, so that none is taken to evaluate on by itself; --val-data DIR names one")
        return train_set, None
    return train_set, VOCDataset(flags.val_data or flags.data, None if val_split == "all" else val_split, classes=train_set.classes, **options)


def main(argv: list | None = None) -> None:
    with one_sentence_errors():
        flags, resumed = parse_flags(argv)
        from evaluation.report import evaluate
        train(flags, resumed, run_folder(flags, resumed, HERE / "checkpoint", "voc"), open_data, evaluate)


if __name__ == "__main__":
    main()
