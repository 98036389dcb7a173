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

and replace what an earlier evaluation left there.
"""
import argparse
import json
import os
import time
from pathlib import Path

from engine.flags import chosen_checkpoint, input_sizes, number, prediction_parser
from engine.log import one_sentence_errors

HERE = Path(__file__).resolve().parent
PICTURES_DRAWN = 8


def parse_flags(argv):
    parser = prediction_parser(__doc__, batch_size=8)
    add = parser.add_argument
    add("--data", nargs="+", metavar="DIR", default=[os.path.relpath(HERE / "foreign_object_dataset")],
        help="folders in VOC layout")
    add("--split", metavar="S", default="auto",
        help="list in ImageSets; all: every XML file; auto: test if there is such a list, else val, else all")
    add("--output", metavar="DIR", default=argparse.SUPPRESS,
        help="where to write (default: eval/ beside the checkpoint)")
    add("--workers", type=number(int, 0), default=2, metavar="N", help="loading processes; 0: the main one loads")
    add("--zero-based", action="store_true", help="coordinates start at 0 (VOC's own start at 1)")
    add("--skip-bad", action="store_true", help="leave out what cannot be read, and say what, instead of stopping")
    return parser.parse_args(argv)


def evaluate_checkpoint(args):
    """Evaluates as the flags say and returns the metrics. Raises ValueError for what a person can cause."""
    from dataset.loader import eval_loader
    from dataset.voc import VOCDataset
    from engine.distributed import select_device
    from engine.predict import predict
    from evaluation.report import coco_results, evaluate, format_table
    from model import load_model

    device = select_device(args.device)
    path, checkpoint = chosen_checkpoint(args, HERE / "checkpoint")
    classes, sizes = checkpoint["classes"], input_sizes(args, checkpoint)
    split = default_split(args.data) if args.split == "auto" else args.split
    dataset = VOCDataset(args.data, None if split == "all" else split, classes, not args.zero_based, args.skip_bad)
    for note in [*dataset.notes, *dataset.skipped]:
        print(f"note: {note}")
    print(f"{path} on {' '.join(args.data)}, split {split}: {len(dataset)} pictures, on {device}")

    started = time.perf_counter()
    loader = eval_loader(dataset, **sizes, overlap=args.overlap, batch_size=args.batch_size, workers=args.workers,
                         pin_memory=device.type == "cuda")
    network = load_model(checkpoint["config"], checkpoint["model"], device)
    detections = predict(network, loader, device, nms_iou_threshold=network.config.nms_iou_threshold,
                         max_detections=network.config.max_detections)
    seconds = (time.perf_counter() - started) / len(dataset)
    ground_truth = {image_id: dataset.target(index) for index, image_id in enumerate(dataset.ids)}
    metrics = evaluate(detections, ground_truth, classes) | {
        "checkpoint": str(path), "data": args.data, "split": split, "input": sizes, "device": str(device),
        "seconds_per_picture": round(seconds, 4), "skipped": len(dataset.skipped),
    }
    print(format_table(metrics))

    output = Path(args.output) if "output" in args else path.parent / "eval"
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    (output / "detections.json").write_text(json.dumps(coco_results(detections, classes)), encoding="utf-8")
    plot(detections, ground_truth, dataset, metrics["score_threshold"], output)
    print(f"{seconds:.3f} s a picture; metrics.json, detections.json, plots and pictures are in {output}")
    return metrics


def default_split(folders):
    from dataset.voc import find_splits

    lists = [find_splits(folder) for folder in folders]
    return next((name for name in ("test", "val") if all(name in splits for splits in lists)), "all")


def plot(detections, ground_truth, dataset, score_threshold, output):
    """The two plots, and drawn pictures evenly spread over the data set, with the detections of `score_threshold` or
    more; None, where nothing was hit at any, is 0.3.
    """
    from dataset.pictures import read_picture
    from evaluation.plots import plot_confusion_matrix, plot_precision_recall
    from util.draw import draw_detections

    classes = dataset.classes
    plot_precision_recall(detections, ground_truth, classes, output / "precision_recall.png")
    plot_confusion_matrix(detections, ground_truth, classes, output / "confusion_matrix.png", score_threshold)
    (output / "pictures").mkdir(exist_ok=True)
    for old in (output / "pictures").glob("*.jpg"):
        old.unlink()
    for index in range(0, len(dataset), -(-len(dataset) // PICTURES_DRAWN)):
        truth, found = dataset.target(index), detections[dataset.ids[index]]
        sure = found["scores"] >= (0.3 if score_threshold is None else score_threshold)
        names = [classes[label] for label in truth["labels"]]
        picture = draw_detections(read_picture(dataset.pictures[index]), truth["boxes"], names, classes=classes,
                                  dashed=True, plates=False)
        picture = draw_detections(picture, found["boxes"][sure], [classes[label] for label in found["labels"][sure]],
                                  found["scores"][sure], classes)
        picture.save(output / "pictures" / f"{dataset.ids[index].replace('/', '_')}.jpg", quality=92)


def main(argv=None):
    args = parse_flags(argv)
    with one_sentence_errors():
        return evaluate_checkpoint(args)


if __name__ == "__main__":
    main()
