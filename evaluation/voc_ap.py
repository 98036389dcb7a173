"""Average precision under both PASCAL VOC protocols, and the score threshold of best F1."""

from typing import NamedTuple

import numpy as np

from evaluation.matching import Partners, match

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_POINTS = np.arange(0, 1.1, 0.1)  # as the devkit's ports to Python have them: the fourth is 0.30000000000000004, not 0.3


class Curve(NamedTuple):
    """One class, detections by falling score, those on difficult objects left out.

    scores     float64 [K]
    precision  float64 [K]  hits among the first k + 1 detections / (k + 1)
    recall     float64 [K]  hits among the first k + 1 detections / objects, rising
    objects    int          not counting difficult ones, at least 1
    """
    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    objects: int


def class_curves(partners: Partners, num_classes: int, iou_threshold: float) -> list[Curve | None]:
    """The curve of each class; None where it has no object, or difficult ones only, and so no recall."""
    hit, neither = match(partners, iou_threshold)
    counts = np.bincount(partners.gt_labels[~partners.gt_difficult], minlength=num_classes)
    curves = []
    for label, objects in enumerate(counts.tolist()):
        chosen = (partners.labels == label) & ~neither
        hits = np.cumsum(hit[chosen])
        curves.append(Curve(partners.scores[chosen], hits / np.arange(1, len(hits) + 1), hits / objects, objects)
                      if objects else None)
    return curves


def eleven_point_ap(precision: np.ndarray, recall: np.ndarray) -> float:
    """VOC2007: mean over eleven recalls of the best precision at that recall or a higher one; 0 without detections."""
    return float(np.mean([precision[recall >= point].max(initial=0) for point in RECALL_POINTS]))


def area_ap(precision: np.ndarray, recall: np.ndarray) -> float:
    """VOC2010 and later: area under the curve of `falling` precision over recall; 0 without detections."""
    return float(np.sum(np.diff(recall, prepend=0) * falling(precision)))


def falling(precision: np.ndarray) -> np.ndarray:
    """The best precision at each place of a curve or at any later one, where the recall is higher."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def best_threshold(curves: list[Curve]) -> dict:
    """The one score threshold with the highest mean F1 over the curves, and the means there.

    returns  {"precision", "recall", "f1", "threshold"}; a detection counts when score >= threshold; among equals the
             highest threshold. A class without detections above it has precision 0. All 0 and threshold None where
             nothing is ever hit.
    """
    thresholds = np.unique(np.concatenate([curve.scores for curve in curves]))[::-1]
    means = np.zeros((3, len(thresholds)))
    for curve in curves:
        count = np.searchsorted(-curve.scores, -thresholds, side="right")
        precision = np.concatenate([[0], curve.precision])[count]
        recall = np.concatenate([[0], curve.recall])[count]
        f1 = 2 * recall * curve.objects / (count + curve.objects)
        means += np.stack([precision, recall, f1]) / len(curves)
    if not means.any():
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0, "threshold": None}
    best = means[2].argmax()
    precision, recall, f1 = means[:, best].tolist()
    return {"precision": precision, "recall": recall, "f1": f1, "threshold": float(thresholds[best])}
