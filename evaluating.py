"""What every evaluating command does once its flags are read: data, network and loader assembled, measured, and written down."""
import argparse
import json
import time
from pathlib import Path

from flags import chosen_checkpoint, input_sizes
from util.command_line import from_here

PICTURES_DRAWN = 8
FILES = ("metrics.json", "detections.json", "precision_recall.png", "confusion_matrix.png")     # and pictures/NAME.jpg


def evaluate_checkpoint(flags: argparse.Namespace, checkpoints: Path, open_data, evaluate) -> dict:
    """Measures as the flags say, writes, and returns the metrics. What differs between the commands is handed over:

    checkpoints   the folder of the run folders, where --checkpoint names none
    open_data     (flags, checkpoint) -> (data set like dataset.voc.VOCDataset, {name: plain value} for metrics.json to say which)
    evaluate      (detections, ground truth, classes) -> metrics, as evaluation.report.evaluate
    """
    from dataset.loader import eval_loader
    from engine.distributed import select_device
    from engine.predict import predict
    from evaluation.report import coco_results, format_table
    from model import load_model

    device = select_device(flags.device)
    path, checkpoint = chosen_checkpoint(flags, checkpoints)
    sizes = input_sizes(flags, checkpoint)
    print(f"{path} finds {', '.join(checkpoint['classes'])}")
    dataset, which = open_data(flags, checkpoint)
    if dataset.of_other_classes and not sum(dataset.class_counts().values()):
        raise ValueError(f"{path}: finds {', '.join(checkpoint['classes'])}, and no object of the data is one of these; name another --checkpoint")
    for note in [*dataset.notes, *dataset.skipped]:
        print(f"note: {note}")
    output = Path(flags.output) if "output" in flags else path.parent / "eval"
    files = [*FILES, *drawn_files(dataset).values()]
    earlier = files_of_earlier(output, files)
    (output / "pictures").mkdir(parents=True, exist_ok=True)
    told = ", ".join(f"{name} {' '.join(map(from_here, value)) if isinstance(value, list) else value}" for name, value in which.items() if value is not False)
    print(f"{path} on {told}: {len(dataset)} pictures, on {device}")

    started = time.perf_counter()
    loader = eval_loader(dataset, **sizes, overlap=flags.overlap, batch_size=flags.batch_size, workers=flags.workers,
                         pin_memory=device.type == "cuda")
    network = load_model(checkpoint["config"], checkpoint["model"], device)
    detections = predict(network, loader, device, nms_iou_threshold=network.config.nms_iou_threshold)
    seconds = (time.perf_counter() - started) / len(dataset)
    truth = dataset.truth()
    metrics = evaluate(detections, truth, dataset.classes) | {
        "checkpoint": str(path), **which, "input": sizes, "postprocess": {name: checkpoint["config"][name] for name in flags.result_flags}, "device": str(device),
        "seconds_per_picture": round(seconds, 4), "skipped": len(dataset.skipped), "files": files,
    }
    print(format_table(metrics))

    for name in earlier:
        (output / name).unlink(missing_ok=True)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    picture_sizes = {image_id: target["orig_size"] for image_id, target in truth.items()}
    results = coco_results(detections, dataset.category_ids, dataset.image_ids, picture_sizes)
    (output / "detections.json").write_text(json.dumps(results), encoding="utf-8")
    plot(detections, truth, dataset, metrics["score_threshold"], output)
    print(f"{seconds:.3f} s a picture; metrics.json, detections.json, plots and pictures are in {output}")
    return metrics


def drawn_files(dataset) -> dict:
    """{index of a picture: its drawn copy, below the output folder}, evenly spread over the data set."""
    from dataset.pictures import flat_names
    drawn = range(0, len(dataset), -(-len(dataset) // PICTURES_DRAWN))
    return dict(zip(drawn, (f"pictures/{name}.jpg" for name in flat_names(dataset.ids[index] for index in drawn)), strict=True))


def files_of_earlier(output: Path, files: list) -> list:
    """What an earlier evaluation wrote into `output`, as its metrics.json lists it. Raises ValueError where one of `files`, which
    are to be written, is there already and is somebody else's.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output}: is a file, must be a folder")
    try:
        listed = json.loads((output / "metrics.json").read_text(encoding="utf-8"))["files"]
        earlier = [name for name in listed if name in FILES or name == f"pictures/{Path(name).name}"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        earlier = []
    for name in files:
        if name not in earlier and (output / name).exists():
            raise ValueError(f"--output {output}: holds {name}, which its metrics.json does not list as a file of an earlier evaluation; "
                             "name another folder, or move it away")
    return earlier


def plot(detections, ground_truth, dataset, score_threshold, output):
    """The two plots, and the drawn pictures, with the detections of `score_threshold` or more; None, where nothing was hit at any, is 0.3."""
    from dataset.pictures import read_picture
    from dataset.sample import keep_objects, of_people
    from evaluation.plots import plot_confusion_matrix, plot_precision_recall
    from util.draw import draw_detections
    from util.masks import OneByOne, paste_masks

    classes = dataset.classes
    plot_precision_recall(detections, ground_truth, classes, output / "precision_recall.png")
    plot_confusion_matrix(detections, ground_truth, classes, output / "confusion_matrix.png", score_threshold)
    for index, name in drawn_files(dataset).items():
        truth, found = dataset.target(index), detections[dataset.ids[index]]
        truth = keep_objects(truth, of_people(truth))
        sure = found["scores"] >= (0.3 if score_threshold is None else score_threshold)
        names = [classes[label] for label in truth["labels"]]
        picture = draw_detections(read_picture(dataset.pictures[index]), truth["boxes"], names, classes=classes,
                                  dashed=True, plates=False)
        found = {name: values[sure] for name, values in found.items()}
        masks = OneByOne(lambda row: paste_masks(found["masks"][row:row + 1], found["boxes"][row:row + 1], truth["orig_size"])[0]) if "masks" in found else None
        picture = draw_detections(picture, found["boxes"], [classes[label] for label in found["labels"]], found["scores"], classes, masks=masks)
        picture.save(output / name, quality=92)
