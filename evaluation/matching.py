"""Which detection finds which object: the matching of the PASCAL VOC devkit (VOCevaldet.m), for all classes at once.

The devkit compares a detection with the one object of its class that it overlaps most, taken or not. That partner
depends neither on the other detections nor on the threshold, so it is looked up once (`find_partners`), and each
threshold after that (`match`) is a few array operations.
"""

from typing import NamedTuple

import numpy as np
import torch

from util.boxes import box_area, box_intersection, box_iou


class Partners(NamedTuple):
    """All D detections and all G objects of all pictures in flat arrays.

    scores        float64 [D]  falling; equal scores in the order of the picture ids, then as they came
    labels        int64 [D]
    pictures      int64 [D]    rank of the picture among the sorted ids
    boxes         float64 [D, 4]  xyxy, original pixels
    partner       int64 [D]    row, in the gt_ arrays, of the most overlapped object of the same picture and class, the
                               first of equals; -1 where the picture has none of that class
    iou           float64 [D]  with the partner
    gt_labels, gt_pictures  int64 [G];  gt_boxes  float64 [G, 4];  gt_difficult, gt_crowd  bool [G]
    """
    scores: np.ndarray
    labels: np.ndarray
    pictures: np.ndarray
    boxes: np.ndarray
    partner: np.ndarray
    iou: np.ndarray
    gt_labels: np.ndarray
    gt_pictures: np.ndarray
    gt_boxes: np.ndarray
    gt_difficult: np.ndarray
    gt_crowd: np.ndarray


def overlaps(boxes: torch.Tensor, gt_boxes: torch.Tensor, gt_crowd: torch.Tensor) -> torch.Tensor:
    """float64 [D, G]: the IoU, with a crowd the share of the detection that lies in it, as COCO counts it."""
    within = box_intersection(boxes, gt_boxes) / box_area(boxes)[:, None].clamp(min=1e-12)
    return torch.where(gt_crowd, within, box_iou(boxes, gt_boxes))


def check_boxes(boxes: torch.Tensor, labels: torch.Tensor, num_classes: int, where: str):
    if not torch.isfinite(boxes).all():
        raise ValueError(f"{where}: a box is {boxes[~boxes.isfinite().all(1)][0].tolist()}, "
                         f"must be four finite numbers")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(f"{where}: labels run from {int(labels.min())} to {int(labels.max())}, "
                         f"must lie in 0..{num_classes - 1}")


def find_partners(detections: dict, ground_truth: dict, num_classes: int) -> Partners:
    """The most overlapped object of every detection.

    detections    {image_id: {"boxes" [K, 4] xyxy, "scores" [K], "labels" [K]}}; a picture left out has none
    ground_truth  {image_id: {"boxes" [M, 4] xyxy, "labels" [M], "difficult" bool [M]}}, with "ignore" bool [M] where some are
                  crowds, which are difficult too: what reaches no other object (IoU 0.5) may lie in one

    Raises ValueError for a picture the ground truth does not know, a score or box that is not finite, a label outside
    0..num_classes-1. Law: the order of either dict changes nothing.
    """
    for image_id in detections:
        if image_id not in ground_truth:
            raise ValueError(f"detections: picture {image_id!r} is not among the {len(ground_truth)} pictures of the "
                             f"ground truth")
    found, objects, num_objects = [], [], 0
    for rank, image_id in enumerate(sorted(ground_truth)):
        target = ground_truth[image_id]
        gt_boxes, gt_labels = target["boxes"].double().reshape(-1, 4), target["labels"].long()
        check_boxes(gt_boxes, gt_labels, num_classes, f"ground truth of picture {image_id!r}")
        crowd = target["ignore"].bool() if "ignore" in target else torch.zeros(len(gt_labels), dtype=torch.bool)
        objects.append((gt_labels, torch.full_like(gt_labels, rank), gt_boxes, target["difficult"].bool(), crowd))
        if image_id in detections and len(detections[image_id]["scores"]):
            boxes, scores, labels = (detections[image_id][key] for key in ("boxes", "scores", "labels"))
            boxes, scores, labels = boxes.double(), scores.double(), labels.long()
            check_boxes(boxes, labels, num_classes, f"detections of picture {image_id!r}")
            if not torch.isfinite(scores).all():
                raise ValueError(f"detections of picture {image_id!r}: a score is "
                                 f"{float(scores[~scores.isfinite()][0])}, must be a finite number")
            iou, partner = torch.full_like(scores, -1), torch.full_like(labels, -1)
            if len(gt_labels):
                iou = torch.where(labels[:, None] == gt_labels, overlaps(boxes, gt_boxes, crowd), -1)
                reached = (iou.masked_fill(crowd, -1) >= 0.5).any(dim=1, keepdim=True)
                iou, partner = iou.masked_fill(crowd & reached, -1).max(dim=1)
                partner = torch.where(iou >= 0, partner + num_objects, -1)
            found.append((scores, labels, torch.full_like(labels, rank), boxes, partner, iou))
        num_objects += len(gt_labels)
    no_numbers, no_indices, no_boxes = torch.zeros(0).double(), torch.zeros(0).long(), torch.zeros(0, 4).double()
    found.append((no_numbers, no_indices, no_indices, no_boxes, no_indices, no_numbers))
    objects.append((no_indices, no_indices, no_boxes, no_indices.bool(), no_indices.bool()))
    found = [torch.cat(column).numpy() for column in zip(*found, strict=True)]
    objects = [torch.cat(column).numpy() for column in zip(*objects, strict=True)]
    order = np.argsort(-found[0], kind="stable")
    return Partners(*(column[order] for column in found), *objects)


def match(partners: Partners, iou_threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which detections are hits, and which are not counted at all.

    returns  hit  bool [D], neither  bool [D], in the order of `partners`; all others are false alarms

    A detection that overlaps its partner by iou_threshold or more is a hit if it is the first (best scored) to do so, a
    false alarm if another was before it. On a difficult object it is neither, however many there are.
    """
    reaches = (partners.partner >= 0) & (partners.iou >= iou_threshold)
    neither = np.zeros_like(reaches)
    neither[reaches] = partners.gt_difficult[partners.partner[reaches]]
    rows = np.flatnonzero(reaches & ~neither)
    first = np.unique(partners.partner[rows], return_index=True)[1]
    hit = np.zeros_like(reaches)
    hit[rows[first]] = True
    return hit, neither


def confusion_matrix(detections: dict, ground_truth: dict, num_classes: int,
                     score_threshold: float | None = None) -> np.ndarray:
    """How often an object of one class was found as another, at IoU 0.5.

    score_threshold  detections below it do not exist; None keeps all
    returns          int64 [C + 1, C + 1]: row = class of the object, column = class of the detection;
                     last row: detections of nothing (doubles too), last column: objects missed, last cell 0

    The diagonal holds the hits of `match`. Then each detection that is left, best score first, takes the most
    overlapped object of another class that is left. One that lies on a difficult object is not counted, nor is the
    object.
    """
    partners = find_partners(detections, ground_truth, num_classes)
    hit, neither = match(partners, 0.5)
    kept = partners.scores >= score_threshold if score_threshold is not None else np.ones_like(hit)
    matrix = np.zeros((num_classes + 1, num_classes + 1), dtype=np.int64)
    hits = partners.labels[hit & kept]
    np.add.at(matrix, (hits, hits), 1)
    free = ~partners.gt_difficult
    free[partners.partner[hit & kept]] = False
    left = np.flatnonzero(kept & ~hit & ~neither)
    left = left[np.argsort(partners.pictures[left], kind="stable")]
    pictures, begins = np.unique(partners.pictures[left], return_index=True)
    for picture, rows in zip(pictures, np.split(left, begins[1:]), strict=False):
        start, stop = np.searchsorted(partners.gt_pictures, [picture, picture + 1])
        own = (torch.from_numpy(part[start:stop]) for part in (partners.gt_boxes, partners.gt_crowd))
        iou = overlaps(torch.from_numpy(partners.boxes[rows]), *own).numpy()
        for label, overlap in zip(partners.labels[rows], iou, strict=True):
            reached = overlap >= 0.5
            if (reached & partners.gt_difficult[start:stop]).any():
                continue
            open_rows = np.flatnonzero(reached & free[start:stop] & (partners.gt_labels[start:stop] != label))
            if not len(open_rows):
                matrix[num_classes, label] += 1
                continue
            taken = start + open_rows[overlap[open_rows].argmax()]
            free[taken] = False
            matrix[partners.gt_labels[taken], label] += 1
    np.add.at(matrix[:, num_classes], partners.gt_labels[free], 1)
    return matrix
