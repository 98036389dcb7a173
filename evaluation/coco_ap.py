"""The COCO numbers, by pycocotools, kept from what it does silently wrong (each case is tested):

annotation id 0 counts as no match          ids are numbered anew from 1
no detection at all ends in an IndexError   its index is built without loadRes, which is what fails
a missing iscrowd ends in a KeyError        every object has one
other maxDets give an AP of -1              the numbers are read from its arrays, not from summarize()
`ignore` is overwritten with iscrowd        it is set again afterwards
an object without a mask is a KeyError      its box is a region for masks: neither miss, nor false alarm what lies in it
masks are judged by the size of boxes       a detection's area is that of its mask
"""
import contextlib
import io

import numpy as np

from evaluation.matching import find_partners
from evaluation.report import working_points
from evaluation.voc_ap import class_curves
from util.boxes import box_area, clip_boxes, xyxy_to_xywh
from util.masks import paste_as_rle

PROTOCOL = ("COCO: mAP is the mean over IoU 0.50, 0.55 .. 0.95 and classes of the precision at 101 recalls, at most 100 detections of a class in a picture; "
            "small, medium, large: areas up to 32², 96², and above; crowds neither hit nor miss")
MAX_DETECTIONS = (1, 10, 100)
# name: (precision or recall, IoU or None for all, area, most detections); the first twelve numbers of the COCO server, in its order
NUMBERS = {"AP": ("precision", None, "all", 100), "AP50": ("precision", 0.5, "all", 100), "AP75": ("precision", 0.75, "all", 100),
           "APs": ("precision", None, "small", 100), "APm": ("precision", None, "medium", 100), "APl": ("precision", None, "large", 100),
           "AR1": ("recall", None, "all", 1), "AR10": ("recall", None, "all", 10), "AR100": ("recall", None, "all", 100),
           "ARs": ("recall", None, "small", 100), "ARm": ("recall", None, "medium", 100), "ARl": ("recall", None, "large", 100)}


def evaluate(detections: dict, ground_truth: dict, classes: list[str]) -> dict:
    """All numbers of a detector on a set of pictures under the COCO protocol; builtins only, ready for JSON.

    detections    {image_id: {"boxes" [K, 4] xyxy original pixels, "scores" [K], "labels" [K]}}; left out = none found
    ground_truth  {image_id: {"boxes" [M, 4], "labels" [M], "difficult" bool [M], "ignore" bool [M], "areas" [M]}}: every picture.
                  difficult = neither hit nor miss; those with ignore are crowds besides, regions which any number of
                  detections may lie in. Without "areas", those of the boxes
    returns       "protocol" str; "mAP" (AP of IoU 0.5 to 0.95), "ap" {class: AP}; "mAP_50"; "coco": the twelve
                  numbers {AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl}; "per_class" {class: row} and "all", a row;
                  "score_threshold": that of the row all
    row           counts and best F1 at IoU 0.5 as in evaluation.report.evaluate, and the twelve numbers

    Where the ground truth has "masks" (RLEs; and "orig_size") the detections have masks too, as util.masks.paste_masks takes
    them, and the result has "segm", the twelve numbers of the masks, and in each row "AP_masks".

    What has no object is None and left out of every mean. Raises ValueError as find_partners does.
    """
    partners = find_partners(detections, ground_truth, len(classes))
    points = working_points(partners, class_curves(partners, len(classes), 0.5), len(ground_truth), classes)
    arrays = _accumulate(detections, ground_truth, len(classes), "bbox")
    numbers = {name: _number(arrays, *which) for name, which in NUMBERS.items()}
    per_class = {name: points["per_class"][name] | {key: _number(arrays, *which, label) for key, which in NUMBERS.items()}
                 for label, name in enumerate(classes)}
    metrics = {"protocol": PROTOCOL, "mAP": numbers["AP"], "mAP_50": numbers["AP50"],
               "ap": {name: row["AP"] for name, row in per_class.items()}, "coco": numbers,
               "score_threshold": points["all"]["threshold"], "all": points["all"] | numbers, "per_class": per_class}
    if any("masks" in target for target in ground_truth.values()):
        arrays = _accumulate(detections, ground_truth, len(classes), "segm")
        metrics["segm"] = {name: _number(arrays, *which) for name, which in NUMBERS.items()}
        for label, row in (*enumerate(per_class.values()), (slice(None), metrics["all"])):
            row["AP_masks"] = _number(arrays, *NUMBERS["AP"], label)
    return metrics


def _objects(target, kind):
    """The annotations of a picture; "neither" is what `ignore` is meant to be."""
    from pycocotools import mask
    boxes = target["boxes"].double().reshape(-1, 4)
    areas = target["areas"].double() if "areas" in target else box_area(boxes)
    rows = zip(xyxy_to_xywh(boxes).tolist(), areas.tolist(), target["labels"].tolist(), target["difficult"].tolist(),
               target["ignore"].tolist(), strict=True)
    objects = [{"category_id": label, "bbox": bbox, "area": area, "neither": int(difficult or crowd), "iscrowd": int(crowd)}
               for bbox, area, label, difficult, crowd in rows]
    if kind == "segm":
        inside = xyxy_to_xywh(clip_boxes(boxes, target["orig_size"])).tolist()
        for each, rle, box_xywh in zip(objects, target["masks"], inside, strict=True):
            if mask.area(rle):
                each["segmentation"] = rle
            else:
                each |= {"segmentation": mask.frPyObjects(np.array([box_xywh]), *target["orig_size"])[0], "neither": 1, "iscrowd": 1}
    return objects


def _results(found, kind, size):
    """The annotations of what was found in a picture of `size` (h, w), which only masks need."""
    from pycocotools import mask
    boxes_xywh = xyxy_to_xywh(found["boxes"].double().reshape(-1, 4)).tolist()
    results = [{"category_id": label, "bbox": bbox, "area": bbox[2] * bbox[3], "score": score, "iscrowd": 0}
               for bbox, score, label in zip(boxes_xywh, found["scores"].tolist(), found["labels"].tolist(), strict=True)]
    for each, rle in zip(results, paste_as_rle(found, size), strict=True) if kind == "segm" else ():
        each |= {"segmentation": rle, "area": float(mask.area(rle))}
    return results


def _accumulate(detections, ground_truth, num_classes, kind):
    """COCOeval after accumulate(): .eval["precision"] [T, R, C, A, D], .eval["recall"] [T, C, A, D], -1 without objects.

    kind  whose IoU: "bbox" or "segm"
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        def _prepare(self):
            super()._prepare()
            for objects in self._gts.values():
                for each in objects:
                    each["ignore"] = each["neither"]

    images, objects, found = [], [], []
    for number, (image_id, target) in enumerate(ground_truth.items(), start=1):
        height, width = size = target.get("orig_size", (0, 0))
        images.append({"id": number, "height": height, "width": width})
        objects += [{"image_id": number, **each} for each in _objects(target, kind)]
        if image_id in detections:
            found += [{"image_id": number, **each} for each in _results(detections[image_id], kind, size)]
    sets = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (objects, found):
            each = COCO()
            each.dataset = {"images": images,
                            "categories": [{"id": label} for label in range(num_classes)],
                            "annotations": [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)]}
            each.createIndex()
            sets.append(each)
        evaluation = Evaluation(*sets, kind)
        evaluation.params.maxDets = list(MAX_DETECTIONS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _number(evaluation, kind, iou, area, most, label=slice(None)):
    """The mean over what has objects, None where nothing has."""
    params, values = evaluation.params, evaluation.eval[kind]
    values = values[..., params.areaRngLbl.index(area), MAX_DETECTIONS.index(most)][..., label]
    values = values if iou is None else values[np.isclose(params.iouThrs, iou)]
    values = values[values > -1]
    return float(values.mean()) if values.size else None
