"""Compares pseudo labels with the labels that are missing, which the full file knows.

    python -m pseudo_label.evaluate_pseudo_labels pseudo.json --full full.json
    python -m pseudo_label.evaluate_pseudo_labels pseudo.json --full full.json --output quality.json
    python -m pseudo_label.evaluate_pseudo_labels pseudo --full foreign_object_dataset            VOC folders

Missing is what the full file has and the other has not, by id; crowds and difficult objects are neither missing nor false.

by class    positives by falling score, each against the missing box of its class that it overlaps most, taken or not; precision P,
            recall R, F1, mean IoU of the hits, and PQ = sum of IoU / (TP + FP / 2 + FN / 2), at IoU 0.5 and 0.75; the same for small,
            medium and large boxes (areas up to 32², 96², above); ap50: area under precision over recall, where all have a score
as seed     Jmq14/FCOS's count: boxes in the order of the file, classes ignored, each missing box takes the free pseudo label that
            it overlaps most with 0.5 or more
ignored     recall of positives and ignored boxes together, and the share of the ignored boxes that are a missing object
calibration mean difference between p_real and the share of hits, over ten bins, weighted by their counts
doubles     positives that overlap a kept box of their class with an IoU above 0.5

This is the one stage that looks at dropped labels; nothing it finds may be used to choose what is trained.
"""
from pseudo_label.labels import add_place, by_image, human, is_crowd, is_neutral, missing_labels, read_labels, refuse_inputs, write_json
from util.command_line import Parser, one_sentence_errors

SIZES = (("small", 0, 32**2), ("medium", 32**2, 96**2), ("large", 96**2, float("inf")))
IOU_THRESHOLDS = (0.5, 0.75)
BINS = 10
COLUMNS = (("missing", "d"), ("pseudo", "d"), ("tp", "d"), ("fp", "d"), ("fn", "d"), ("precision", ".3f"), ("recall", ".3f"), ("f1", ".3f"),
           ("mean_iou", ".3f"), ("pq", ".3f"))


def quality(tp: int, fp: int, fn: int, iou_sum: float) -> dict:
    """The numbers of one row; None where there is nothing to divide by."""
    def share(value, count):
        return value / count if count else None
    return {"missing": tp + fn, "pseudo": tp + fp, "tp": tp, "fp": fp, "fn": fn,
            "precision": share(tp, tp + fp), "recall": share(tp, tp + fn), "f1": share(2 * tp, 2 * tp + fp + fn),
            "mean_iou": share(iou_sum, tp), "pq": share(iou_sum, tp + fp / 2 + fn / 2)}


def seed_quality(pseudo: list, missing: list, images: list) -> dict:
    """Seed 000's own measure: TP, FP, FN, mean IoU and PQ without classes and scores."""
    from pseudo_label.policies import boxes_of
    from util.boxes import box_iou
    tp, iou_sum = 0, 0.0
    pseudo_of, missing_of = (by_image({"images": images, "annotations": boxes}) for boxes in (pseudo, missing))
    for image in images:
        iou = box_iou(boxes_of(missing_of[image["id"]]), boxes_of(pseudo_of[image["id"]]))
        for row in iou if iou.numel() else ():      # a view: what is taken is taken for those that follow
            best = row.argmax()
            if row[best] >= 0.5:
                tp, iou_sum = tp + 1, iou_sum + float(row[best])
                iou[:, best] = 0
    return quality(tp, len(pseudo) - tp, len(missing) - tp, iou_sum)


def evaluate(contents: dict, full: dict, name="the pseudo labels", full_name="the full file") -> dict:
    """All numbers of the manual, builtins only. Raises ValueError as labels.missing_labels does, without any pseudo label,
    and for one of a class that the full file does not have."""
    from evaluation.matching import match
    from evaluation.report import mean_of_known
    from evaluation.voc_ap import area_ap, class_curves

    missing = [each for each in missing_labels(contents, full, name, full_name) if not is_neutral(each)]
    pseudo = [each for each in contents["annotations"] if each.get("ispseudo")]
    positive, ignored = ([each for each in pseudo if (each.get("zone") == "ignore") == wanted] for wanted in (False, True))
    if not pseudo:
        raise ValueError(f"{name}: holds no pseudo label (an annotation with ispseudo) to evaluate")
    classes = [each["name"] for each in full["categories"]]
    names = {each["id"]: each["name"] for each in contents["categories"]}
    if strange := [each for each in pseudo if names[each["category_id"]] not in classes]:
        raise ValueError(f"{name}: pseudo label {strange[0]['id']} is of the class {names[strange[0]['category_id']]!r}, which {full_name} does not "
                         f"have ({', '.join(classes)})")
    partners = partners_of(positive, missing, contents, full)
    measures = {}
    for threshold in IOU_THRESHOLDS:
        hit, neither = match(partners, threshold)
        everything = (hit, neither, partners)
        measures[f"iou_{threshold}"] = {
            "all": quality_where(*everything),
            "classes": {each: quality_where(*everything, label=label) for label, each in enumerate(classes)},
            "sizes": {size: quality_where(*everything, areas=areas) for size, *areas in SIZES}}
    curves = class_curves(partners, len(classes), 0.5)
    return {"by_class": measures,
            "ap50": None if any("score" not in each for each in positive)
            else mean_of_known([area_ap(curve.precision, curve.recall) if curve else None for curve in curves]),
            "as_seed": seed_quality(positive, missing, contents["images"]),
            "ignored": ignored_quality(positive, ignored, missing, contents, full),
            "calibration_error": calibration_error(pseudo, missing, contents, full), "doubles": count_doubles(positive, contents)}


def partners_of(pseudo: list, missing: list, contents: dict, full: dict):
    """evaluation.matching.Partners of pseudo labels as detections and missing boxes as objects, neutral ones as difficult objects and crowds."""
    import torch

    from evaluation.matching import find_partners
    from pseudo_label.policies import boxes_of
    names = {each["name"]: label for label, each in enumerate(full["categories"])}

    def labels_of(entries, categories):
        name_of = {each["id"]: each["name"] for each in categories}
        return torch.tensor([names[name_of[each["category_id"]]] for each in entries], dtype=torch.int64)
    shown = {image["id"] for image in contents["images"]}
    neutral = [each for each in full["annotations"] if is_neutral(each) and each["image_id"] in shown]
    pseudo_of, objects_of = (by_image({"images": contents["images"], "annotations": boxes}) for boxes in (pseudo, [*missing, *neutral]))
    detections = {str(id): {"boxes": boxes_of(own), "scores": torch.tensor([float(each.get("score", 1)) for each in own]),
                            "labels": labels_of(own, contents["categories"])} for id, own in pseudo_of.items()}
    truth = {str(id): {"boxes": boxes_of(own), "labels": labels_of(own, full["categories"]),
                       "difficult": torch.tensor([is_neutral(each) for each in own], dtype=torch.bool),
                       "ignore": torch.tensor([is_crowd(each) for each in own], dtype=torch.bool)} for id, own in objects_of.items()}
    return find_partners(detections, truth, len(names))


def quality_where(hit, neither, partners, label=None, areas=(0, float("inf"))) -> dict:
    """`quality` of one class, or of one range of areas: a hit belongs to that of its object."""
    def belongs(labels, boxes):
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        return (area >= areas[0]) & (area < areas[1]) & (label is None or labels == label)
    own = belongs(partners.gt_labels, partners.gt_boxes) & ~partners.gt_difficult
    false = belongs(partners.labels, partners.boxes) & ~hit & ~neither
    hits = hit.copy()
    hits[hit] = own[partners.partner[hit]]
    return quality(int(hits.sum()), int(false.sum()), int(own.sum() - hits.sum()), float(partners.iou[hits].sum()))


def ignored_quality(positive, ignored, missing, contents, full) -> dict:
    """Positives come first: an ignored box is real where it finds a missing object that no positive found."""
    from evaluation.matching import match
    boxes = [{**each, "score": rank + each.get("score", 1)} for rank, part in ((2, positive), (0, ignored)) for each in part]
    partners = partners_of(boxes, missing, contents, full)
    hit, _ = match(partners, 0.5)
    real = int((hit & (partners.scores < 2)).sum())
    return {"boxes": len(ignored), "real": real / len(ignored) if ignored else None,
            "recall_with_positives": int(hit.sum()) / len(missing) if missing else None}


def calibration_error(pseudo, missing, contents, full) -> float | None:
    """None where no pseudo label has a p_real."""
    import numpy as np

    from evaluation.matching import match
    boxes = [{**each, "score": each["p_real"]} for each in pseudo if "p_real" in each]
    if not boxes:
        return None
    partners = partners_of(boxes, missing, contents, full)
    hit, neither = match(partners, 0.5)
    hit, chance = hit[~neither], partners.scores[~neither]
    place = np.minimum((chance * BINS).astype(int), BINS - 1)
    return float(np.abs(np.bincount(place, hit - chance)).sum() / max(1, len(hit)))


def count_doubles(positive, contents) -> int:
    from pseudo_label.policies import boxes_of
    from util.boxes import box_iou
    kept_of, count = by_image({**contents, "annotations": [each for each in human(contents) if not is_neutral(each)]}), 0
    for image_id, own in by_image({**contents, "annotations": positive}).items():
        kept = kept_of[image_id]
        iou = box_iou(boxes_of(own), boxes_of(kept))
        count += sum(any(iou[row, place] > 0.5 and other["category_id"] == each["category_id"] for place, other in enumerate(kept))
                     for row, each in enumerate(own))
    return count


def format_quality(result: dict) -> str:
    """The table for the terminal; "-" where there is nothing to divide by."""
    at_half, at_three_quarters = (result["by_class"][f"iou_{threshold}"] for threshold in IOU_THRESHOLDS)

    def cells(numbers, columns=COLUMNS):
        return ["-" if numbers[key] is None else format(numbers[key], form) for key, form in columns]
    lines = [["", *(key.replace("_", " ") for key, _ in COLUMNS), "F1 at .75", "IoU at .75", "PQ at .75"],
             ["all", *cells(at_half["all"]), *cells(at_three_quarters["all"], COLUMNS[7:])],
             *([name, *cells(numbers), *cells(at_three_quarters[part][name], COLUMNS[7:])]
               for part in ("classes", "sizes") for name, numbers in at_half[part].items()),
             ["as seed counts", *cells(result["as_seed"]), "", "", ""]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    ignored, known = result["ignored"], lambda value: "-" if value is None else f"{value:.3f}"
    return "\n".join([*table, f"AP50 of the missing boxes {known(result['ap50'])}; {ignored['boxes']} ignored boxes, of which real "
                      f"{known(ignored['real'])}, recall with them {known(ignored['recall_with_positives'])}; calibration error "
                      f"{known(result['calibration_error'])}; {result['doubles']} doubles of kept boxes"])


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="labels with pseudo labels: COCO json, or a folder in VOC layout")
    add("--full", required=True, metavar="SOURCE", help="the labels before some were dropped, likewise")
    add("--output", metavar="FILE", help="also write all numbers as json")
    add_place(parser)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        if flags.output:
            refuse_inputs(flags.output, flags.source, flags.full)
        contents, full = (read_labels(source, flags.images, flags.split, flags.skip_bad).contents for source in (flags.source, flags.full))
        result = evaluate(contents, full, flags.source, flags.full)
        print(format_quality(result))
        if flags.output:
            write_json(flags.output, result, indent=1)


if __name__ == "__main__":
    main()
