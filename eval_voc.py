"""Measure a detector on a data set in PASCAL VOC layout: AP per class under both VOC protocols, and mAP@[.5:.95].

    python eval_voc.py                                        the newest checkpoint on the embedded set's test split
    python eval_voc.py --checkpoint checkpoint/voc-1/best.pth --data VOC2007 --split test
    python eval_voc.py --data VOC2007 VOC2012 --split val     several folders as one data set
    python eval_voc.py --data photos --min-size 800           another size than the checkpoint was trained for
    python eval_voc.py --data photos --tile 640               small objects: full resolution, overlapping tiles

The class names are the checkpoint's. Difficult objects are neither hit nor miss. Boxes are compared in the pixels of
the original pictures. Into --output go

    metrics.json             every number of the table
    detections.json          COCO results: image_id is the name in the split's list, category_id the place of the
                             class among the checkpoint's, from 1
    precision_recall.png, confusion_matrix.png
    pictures/                a few pictures, ground truth dashed, detections on top

and replace what an earlier evaluation left there, as its metrics.json lists it; files of yours are not touched.
"""
import argparse
import os
from pathlib import Path

from evaluating import evaluate_checkpoint
from flags import evaluation_parser
from util.command_line import from_here, one_sentence_errors

HERE = Path(__file__).resolve().parent


def parse_flags(argv: list | None) -> argparse.Namespace:
    parser = evaluation_parser(__doc__)
    add = parser.add_argument
    add("--data", nargs="+", metavar="DIR", default=[from_here(HERE / "foreign_object_dataset")],
        help="folders in VOC layout")
    add("--split", metavar="S", default="auto",
        help="list in ImageSets; all: every XML file; auto: test if every folder has such a list, else val; all where no folder has either")
    add("--zero-based", action="store_true", help="coordinates start at 0 (VOC's own start at 1)")
    flags = parser.parse_args(argv)
    flags.data = [os.path.abspath(folder) for folder in flags.data]         # also in the ids of several folders, as others read them from anywhere
    return flags


def open_data(flags: argparse.Namespace, checkpoint: dict):
    """(data set, which it is)"""
    from dataset.voc import VOCDataset
    split = default_split(flags.data) if flags.split == "auto" else flags.split
    dataset = VOCDataset(flags.data, None if split == "all" else split, checkpoint["classes"], not flags.zero_based, flags.skip_bad)
    if flags.split == "auto" and split == "all":
        dataset.notes.append("there is no list 'test' or 'val': all pictures are judged; where some were trained on, the measure flatters")
    return dataset, {"data": flags.data, "split": split, "zero_based": flags.zero_based}


def default_split(folders: list) -> str:
    """The list that all folders have, "all" where none has one to judge by. Raises ValueError where some have and others have not."""
    from dataset.voc_folder import find_splits
    lists = [find_splits(folder) for folder in folders]
    common = next((name for name in ("test", "val") if all(name in splits for splits in lists)), "all")
    if common == "all" and (held := [f"{folder}: {', '.join(splits) or 'none'}" for folder, splits in zip(folders, lists, strict=True)
                                     if len(folders) > 1 and any({"test", "val"} & {*other} for other in lists)]):
        raise ValueError(f"no list to judge by that all folders of --data have ({'; '.join(held)}); name one with --split, or fewer folders")
    return common


def main(argv: list | None = None) -> dict:
    flags = parse_flags(argv)
    with one_sentence_errors():
        from evaluation.report import evaluate
        return evaluate_checkpoint(flags, HERE / "checkpoint", open_data, evaluate)


if __name__ == "__main__":
    main()
