"""Measure a detector on a data set of COCO json: the twelve COCO numbers, and AP per class.

    python eval_coco.py --data coco                           the newest checkpoint on annotations/instances_val*.json
    python eval_coco.py --checkpoint checkpoint/coco-1/best.pth --json a.json --images pictures
    python eval_coco.py --data coco --min-size 800 --max-size 1333

The numbers are those of pycocotools on the file as it is, for masks too where the network finds them. Into --output go what eval_voc.py writes there; detections.json
holds the image ids and category ids of the file, so that any COCO tool or server takes it.
"""
import argparse
from pathlib import Path

from evaluating import evaluate_checkpoint
from flags import evaluation_parser
from util.command_line import one_sentence_errors

HERE = Path(__file__).resolve().parent


def parse_flags(argv: list | None) -> argparse.Namespace:
    parser = evaluation_parser(__doc__)
    add = parser.add_argument
    add("--data", metavar="DIR", help="folder in COCO's layout: annotations/instances_NAME.json with the pictures in NAME")
    add("--split", metavar="NAME", default="val", help="which of them: the one whose NAME begins so")
    add("--json", metavar="FILE", help="instances to evaluate on, instead of those in --data")
    add("--images", metavar="DIR", help="the pictures of --json")
    return parser.parse_args(argv)


def open_data(flags: argparse.Namespace, checkpoint: dict):
    """(data set, which it is)"""
    from dataset.coco import COCODataset, choose_pair
    from model import needs_masks, parse_config
    if bool(flags.json) != bool(flags.images) or not (flags.json or flags.data):
        raise ValueError("there is nothing to evaluate on: give --data DIR, or --json FILE with --images DIR")
    pair = (flags.json, flags.images) if flags.json else choose_pair(flags.data, flags.split)
    if pair is None:
        raise ValueError(f"--data {flags.data}: has no annotations/instances_{flags.split}*.json")
    with_masks = needs_masks(parse_config(checkpoint["config"]).model)
    dataset = COCODataset(*pair, checkpoint["classes"], flags.skip_bad, with_masks)
    return dataset, {"json": str(pair[0]), "images": str(pair[1])}


def main(argv: list | None = None) -> dict:
    flags = parse_flags(argv)
    with one_sentence_errors():
        from evaluation.coco_ap import evaluate
        return evaluate_checkpoint(flags, HERE / "checkpoint", open_data, evaluate)


if __name__ == "__main__":
    main()
