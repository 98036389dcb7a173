"""From detections and ground truth to the numbers people read: metrics, the table, and COCO results."""

import numpy as np
import torch

from evaluation.matching import find_partners
from evaluation.voc_ap import IOU_THRESHOLDS, area_ap, best_threshold, class_curves, eleven_point_ap
from util.boxes import xyxy_to_xywh
from util.masks import paste_as_rle

PROTOCOL = ("PASCAL VOC: IoU >= 0.5, difficult objects neither hit nor miss; mAP (AP50) is the area under the "
            "curve (VOC2010+), voc07 (AP50-07) the 11-point mean, mAP_50_95 (AP50-95) the mean area at IoU 0.50, 0.55 .. 0.95")
# row key, heading, format
COLUMNS = (("pictures", "pictures", "d"), ("objects", "objects", "d"), ("difficult", "difficult", "d"),
           ("detections", "detections", "d"), ("precision", "P", ".3f"), ("recall", "R", ".3f"), ("f1", "F1", ".3f"),
           ("threshold", "threshold", ".3f"), ("ap50", "AP50", ".4f"), ("ap50_voc07", "AP50-07", ".4f"),
           ("ap50_95", "AP50-95", ".4f"), *((name, name, ".3f") for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")),
           ("AP_masks", "AP masks", ".3f"))
RATES = ("precision", "recall", "f1", "threshold")


def mean_of_known(values: list) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def evaluate(detections: dict, ground_truth: dict, classes: list[str]) -> dict:
    """All numbers of a detector on a set of pictures; builtins only, ready for JSON.

    detections    {image_id: {"boxes" [K, 4] xyxy original pixels, "scores" [K], "labels" [K]}}; left out = none found
    ground_truth  {image_id: {"boxes" [M, 4], "labels" [M], "difficult" bool [M]}}: every picture, those without
                  objects too
    returns       "protocol" str; "mAP", "ap" {class: AP}: area at IoU 0.5; "mAP_50_95"; "voc07", "area": {"mAP", "ap"};
                  "per_class" {class: row} and "all", a row; "score_threshold": that of the row all
    row           "pictures" (showing the class; all: evaluated), "objects" (without the difficult), "difficult",
                  "detections"; "precision", "recall", "f1" at "threshold", where F1 is best (all: one threshold for all
                  classes, and the means over them); "ap50", "ap50_voc07", "ap50_95"

    A class without objects, or with difficult ones only, has None for every rate and is left out of every mean; a mean
    over nothing is None. A threshold is None where nothing is hit at any. Raises ValueError as find_partners does.
    """
    partners = find_partners(detections, ground_truth, len(classes))
    curves = [class_curves(partners, len(classes), threshold) for threshold in IOU_THRESHOLDS]
    points = working_points(partners, curves[0], len(ground_truth), classes)
    per_class = {name: points["per_class"][name] | class_aps([at_threshold[label] for at_threshold in curves])
                 for label, name in enumerate(classes)}
    ap = {key: {name: row[key] for name, row in per_class.items()} for key in ("ap50", "ap50_voc07", "ap50_95")}
    mean_ap = {key: mean_of_known(list(values.values())) for key, values in ap.items()}
    return {
        "protocol": PROTOCOL, "mAP": mean_ap["ap50"], "mAP_50_95": mean_ap["ap50_95"], "ap": ap["ap50"],
        "voc07": {"mAP": mean_ap["ap50_voc07"], "ap": ap["ap50_voc07"]},
        "area": {"mAP": mean_ap["ap50"], "ap": dict(ap["ap50"])},
        "score_threshold": points["all"]["threshold"], "all": points["all"] | mean_ap, "per_class": per_class,
    }


def working_points(partners, curves: list, num_pictures: int, classes: list[str]) -> dict:
    """Counts, and where F1 is best: {"all": row, "per_class": {class: row}}, the rows as `evaluate` has them, without APs.

    partners, curves   of find_partners, and of class_curves at the IoU that counts as a hit
    """
    per_class = {}
    for label, (name, curve) in enumerate(zip(classes, curves, strict=True)):
        own, difficult = partners.gt_labels == label, partners.gt_difficult
        counts = {"pictures": len(np.unique(partners.gt_pictures[own])), "objects": int((own & ~difficult).sum()),
                  "difficult": int((own & difficult).sum()), "detections": int((partners.labels == label).sum())}
        per_class[name] = counts | (best_threshold([curve]) if curve else dict.fromkeys(RATES))
    counts = {"pictures": num_pictures} | {
        key: sum(row[key] for row in per_class.values()) for key in ("objects", "difficult", "detections")}
    known = [curve for curve in curves if curve is not None]
    return {"all": counts | (best_threshold(known) if known else dict.fromkeys(RATES)), "per_class": per_class}


def class_aps(curves: list) -> dict:
    """The APs of one class from its curves at IOU_THRESHOLDS, all None where it has no curve."""
    if curves[0] is None:
        return dict.fromkeys(("ap50", "ap50_voc07", "ap50_95"))
    areas = [area_ap(curve.precision, curve.recall) for curve in curves]
    return {"ap50": areas[0], "ap50_voc07": eleven_point_ap(curves[0].precision, curves[0].recall),
            "ap50_95": float(np.mean(areas))}


def format_table(metrics: dict) -> str:
    """The metrics of any protocol as a table for the terminal: row "all" first, then each class; "-" where there is no number."""
    columns = [column for column in COLUMNS if column[0] in metrics["all"]]
    lines = [["class", *(heading for _, heading, _ in columns)]]
    for name, row in [("all", metrics["all"]), *metrics["per_class"].items()]:
        lines.append([name, *("-" if row[key] is None else format(row[key], form) for key, _, form in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines]
    twelve = [title + "  ".join(f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in metrics[kind].items())
              for kind, title in (("coco", "boxes: " * ("segm" in metrics)), ("segm", "masks: ")) if kind in metrics]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "-" * len(lines[0]),
                      "P, R, F1 at IoU 0.5 and the score threshold of best F1 (row all: one threshold for all classes).",
                      metrics["protocol"], *twelve])


def coco_results(detections: dict, category_ids: list, image_ids: dict, sizes: dict | None = None) -> list[dict]:
    """Detections as COCO results: [{"image_id", "category_id", "bbox" [x, y, w, h], "score"}], ready for JSON; with a
    "segmentation" (RLE) where they have masks.

    category_ids   that of each label; detections of a label whose id is None are left out
    image_ids      {image_id of the detections: that of the results}
    sizes          {image_id of the detections: (h, w) of the picture}, which only masks need
    Pictures and detections stay in the order given. Raises ValueError for a box or score that is not finite, or a label
    outside the categories.
    """
    results = []
    for image_id, found in detections.items():
        boxes_xywh = xyxy_to_xywh(found["boxes"].double().reshape(-1, 4))
        rows = torch.cat([boxes_xywh, found["scores"].double()[:, None]], dim=1)
        if not rows.isfinite().all():
            raise ValueError(f"detections of picture {image_id!r}: box and score "
                             f"{rows[~rows.isfinite().all(1)][0].tolist()}, must be finite numbers")
        masks = [{"segmentation": rle} for rle in paste_as_rle(found, sizes[image_id])] if "masks" in found else [{}] * len(rows)
        for label, (*box_xywh, score), mask in zip(found["labels"].tolist(), rows.tolist(), masks, strict=True):
            if not 0 <= label < len(category_ids):
                raise ValueError(f"detections of picture {image_id!r}: label {label}, "
                                 f"must lie in 0..{len(category_ids) - 1}")
            if category_ids[label] is not None:
                results.append({"image_id": image_ids[image_id], "category_id": category_ids[label], "bbox": box_xywh, "score": score, **mask})
    return results
