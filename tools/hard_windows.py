"""Cuts windows around a detector's false alarms, and makes a folder in VOC layout of them, to train on beside all else.

    python eval_voc.py --checkpoint checkpoint/voc-1/best.pth --data more_pictures --split all --output found
    python tools/hard_windows.py found --output hard
    python train_voc.py --data my_pictures hard --val-data my_pictures --weights checkpoint/voc-1/best.pth

Much of a large picture is easy, and what a detector takes for objects is rare in it; so rare that random windows hardly show it.
FOUND is a folder of eval_voc.py. A false alarm is a detection of score --score-threshold or more that hits no object (IoU 0.5;
doubles and badly drawn boxes count) and touches no difficult one. The surest come first; each that no window shows in full yet
gets one of --size, or of what the picture has of it, as central as the picture's borders allow. Its objects are labelled as in a
crop of training: cut to what is in view, and left out where that is less than 0.3 of them. Evaluate pictures that it was not
trained on, since it is seldom wrong on those, and that you will not judge it by. The windows come as a list train, so that my_pictures has to have lists too
(tools/make_splits.py), and their coordinates count as those of the evaluated pictures do. Look at the windows before you train: a "false
alarm" that is an object nobody labelled would be taught as background.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, number, one_sentence_errors  # noqa: E402


def windows_around(boxes: list, size: tuple[int, int], shape: tuple[int, int]) -> list:
    """Windows [(x1, y1, x2, y2)], whole pixels, each of `shape` (h, w) or as large as the picture of `size` (h, w), that show every box.

    A box gets a window only if none of an earlier box holds it.
    """
    windows = []
    for x1, y1, x2, y2 in boxes:
        if any(left <= x1 and top <= y1 and x2 <= right and y2 <= bottom for left, top, right, bottom in windows):
            continue
        sides = [min(side, limit) for side, limit in zip(shape, size, strict=True)]
        top, left = (min(max(round(middle - side / 2), 0), limit - side)
                     for middle, side, limit in zip(((y1 + y2) / 2, (x1 + x2) / 2), sides, size, strict=True))
        windows.append((left, top, left + sides[1], top + sides[0]))
    return windows


def false_alarms(found: list, target: dict) -> list:
    """Boxes (x1, y1, x2, y2) of one picture's detections that hit nothing, the surest first.

    found    [{"bbox" [x, y, w, h], "score", "label" int}]
    target   of the picture, see dataset.sample.make_target
    """
    import torch

    from evaluation.matching import find_partners, match
    from util.boxes import box_iou, xywh_to_xyxy
    detections = {"boxes": xywh_to_xyxy(torch.tensor([each["bbox"] for each in found], dtype=torch.float64).reshape(-1, 4)),
                  "scores": torch.tensor([each["score"] for each in found]), "labels": torch.tensor([each["label"] for each in found])}
    partners = find_partners({0: detections}, {0: target}, int(max([0, *target["labels"], *detections["labels"]])) + 1)
    hit, neither = match(partners, 0.5)
    left_out = target["boxes"][target["difficult"] | target["ignore"]].double()
    boxes = torch.from_numpy(partners.boxes)[torch.from_numpy(~hit & ~neither)]
    return boxes[~(box_iou(boxes, left_out) > 0).any(1)].tolist()


def read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None


def cut(evaluated: Path, output: Path, score_threshold: float, shape: tuple[int, int]) -> tuple[int, int, dict]:
    """Writes the folder; returns how many pictures had false alarms, how many windows there are, and the metrics.json. Raises ValueError where there are none."""
    from PIL import Image

    from dataset.augment import show
    from dataset.pictures import flat_names
    from dataset.voc import VOCDataset, annotation
    from dataset.voc_folder import list_text
    metrics, detections = (read_json(evaluated / name) for name in ("metrics.json", "detections.json"))
    if not isinstance(metrics, dict) or not {"data", "split", "per_class", "skipped", "zero_based"} <= metrics.keys():
        raise ValueError(f"{evaluated}: its metrics.json is none of eval_voc.py as it is now, which alone says where the pictures are; evaluate them anew")
    wanted = {"image_id", "category_id", "bbox", "score"}
    if not isinstance(detections, list) or not all(isinstance(each, dict) and wanted <= each.keys() for each in detections):
        raise ValueError(f"{evaluated}: its detections.json is none of eval_voc.py, a list of {', '.join(sorted(wanted))}; evaluate anew")
    split, zero_based = metrics["split"], metrics["zero_based"]
    dataset = VOCDataset(metrics["data"], None if split == "all" else split, list(metrics["per_class"]), not zero_based, metrics["skipped"] > 0)
    found = {}
    for each in detections:
        if each["score"] >= score_threshold:
            found.setdefault(each["image_id"], []).append(each | {"label": each["category_id"] - 1})
    if strange := found.keys() - {*dataset.ids}:
        raise ValueError(f"{evaluated}: its detections.json has the picture {min(strange)!r}, which {' '.join(metrics['data'])} has not (any more)")
    flat, names, pictures = flat_names(dataset.ids), [], 0
    for index, id in enumerate(dataset.ids):
        boxes = false_alarms(found[id], dataset.target(index)) if id in found else []
        if not boxes:
            continue
        pictures += 1
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (output / folder).mkdir(parents=True, exist_ok=True)
        image, target = dataset[index]
        for place, window in enumerate(windows_around(boxes, target["orig_size"], shape)):
            name, (x1, y1, x2, y2) = f"{flat[index]}_{place}", window
            part, seen = show(image, target, window, (y2 - y1, x2 - x1))
            Image.fromarray(part.permute(1, 2, 0).numpy()).save(output / "JPEGImages" / f"{name}.jpg", quality=95, subsampling=0)
            text = annotation(seen | {"orig_size": (y2 - y1, x2 - x1)}, f"{name}.jpg", dataset.classes, not zero_based)
            (output / "Annotations" / f"{name}.xml").write_text(text, encoding="utf-8")
            names.append(name)
    if not names:
        raise ValueError(f"{evaluated}: has no false alarm of score {score_threshold:g} or more in {len(dataset)} pictures")
    (output / "ImageSets/Main/train.txt").write_text(list_text(names), encoding="utf-8")
    return pictures, len(names), metrics


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("found", metavar="FOUND", type=Path, help="a folder of eval_voc.py, with its metrics.json and detections.json")
    add("--output", required=True, type=Path, metavar="DIR", help="folder to write, which must not be there yet")
    add("--score-threshold", type=number(float, 0, 1), default=0.3, metavar="X", help="lowest score of a false alarm that gets a window")
    add("--size", type=number(int, 32), nargs=2, default=[640, 360], metavar=("W", "H"), help="px of a window")
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        from dataset.voc_folder import find_splits
        if flags.output.exists():
            raise ValueError(f"--output {flags.output}: is there already; name another folder")
        pictures, windows, metrics = cut(flags.found, flags.output, flags.score_threshold, (flags.size[1], flags.size[0]))
        if metrics["split"] == "all" and (lists := {"val", "test"} & {name for folder in metrics["data"] for name in find_splits(folder)}):
            print(f"note: windows of the pictures of {' and '.join(sorted(lists))} are among them: what is trained on them must not be judged by these lists; "
                  "evaluate with --split train to leave them out")
        print(f"{windows} windows of {pictures} pictures: train_voc.py --data my_pictures {flags.output} --val-data my_pictures{' --zero-based' * metrics['zero_based']}")


if __name__ == "__main__":
    main()
