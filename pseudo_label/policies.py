"""Which detections become pseudo labels. A policy is (contents, detections, options) -> ([(detection, further keys)], {what to tell}).

contents     of an instances json, its humans' labels alone ("kept" below)
detections   [{"image_id", "category_id", "bbox" xywh, "score", ...}], in any order
"""
from typing import NamedTuple

import numpy as np
import torch

from pseudo_label.labels import by_image, is_crowd, is_neutral
from util.boxes import box_area, box_intersection, box_iou, xywh_to_xyxy

HIT, DOUBLE, LEFT = 0, 1, 2     # a detection is the first on a kept box; another on one, or on what is neutral; on none
SURE_SHARE = 0.5                # the keep rate is read off half as many of the best detections as there are kept boxes: more are less
SURE_LEAST = 100                # sure, fewer say less; but off so many at least, or, of fewer kept boxes, off as many as these
PRIOR = 5.0                     # how much the fits hold on to what they begin with
COUNT_POSITIVE = 0.5            # share of the missing boxes of a class that policy count takes for positive, the rest for ignored


class Options(NamedTuple):
    confidence: float = 0.5             # least score of seed and fixed
    keep_rate: float | None = None      # share of the objects that are labelled; None: estimated
    positive: float = 0.6               # least probability of a positive, ...
    ignore: float = 0.2                 # ... and of an ignored box, under precision


def boxes_of(entries: list) -> torch.Tensor:
    """float64 [n, 4] xyxy"""
    return xywh_to_xyxy(torch.tensor([each["bbox"] for each in entries], dtype=torch.float64).reshape(-1, 4))


def compare(contents: dict, detections: list) -> np.ndarray:
    """HIT, DOUBLE or LEFT of each detection [D].

    By falling score a detection takes the kept box of its class that it overlaps most with an IoU of 0.5 or more, if no other
    has it: a hit. What is no hit is double where it overlaps a kept box with an IoU above 0.5 in its class or 0.75 in any, or where
    one of the two, of one class, lies in the other with over 0.9 of its area; and where it overlaps with these IoUs a surer one that is neither. A
    detection on a difficult object, or with half of its area in a crowd of its class, is double too: it says nothing about what is missing.
    """
    state, rows_of = np.full(len(detections), LEFT), {}
    for row in sorted(range(len(detections)), key=lambda row: -detections[row]["score"]):
        rows_of.setdefault(detections[row]["image_id"], []).append(row)
    kept_of, label_of = by_image(contents), {each["id"]: label for label, each in enumerate(contents["categories"])}
    for image_id, rows in rows_of.items():
        kept, found = kept_of[image_id], [detections[row] for row in rows]
        boxes, others = boxes_of(found), boxes_of(kept)
        iou, common = box_iou(boxes, others), box_intersection(boxes, others)
        inside, contained = common / box_area(boxes)[:, None], common / torch.minimum(box_area(boxes)[:, None], box_area(others))
        labels, kept_labels = (torch.tensor([label_of[each["category_id"]] for each in entries], dtype=torch.int64) for entries in (found, kept))
        same = labels[:, None] == kept_labels
        crowd = torch.tensor([is_crowd(each) for each in kept], dtype=torch.bool)
        again = box_iou(boxes, boxes) > torch.where(labels[:, None] == labels, 0.5, 0.75)
        double = torch.where(crowd, same & (inside >= 0.5), (same & ((iou > 0.5) | (contained > 0.9))) | (iou > 0.75)).any(1)
        free = torch.tensor([not is_neutral(each) for each in kept], dtype=torch.bool)
        left = torch.zeros(len(rows), dtype=torch.bool)
        for place, row in enumerate(rows):
            reached = torch.where(same[place] & free & (iou[place] >= 0.5), iou[place], 0)
            if reached.any():
                free[reached.argmax()] = False
                state[row] = HIT
            elif double[place] or (again[place] & left).any():
                state[row] = DOUBLE
            else:
                left[place] = True
    return state


def column(detections: list, key: str) -> np.ndarray:
    return np.array([each[key] for each in detections])


def kept_counts(contents: dict) -> dict:
    """{category id: number of kept boxes}"""
    counts = {each["id"]: 0 for each in contents["categories"]}
    for each in contents["annotations"]:
        counts[each["category_id"]] += not is_neutral(each)
    return counts


def estimated_keep_rate(contents: dict, detections: list, state: np.ndarray) -> float:
    """The share of hits among the best detections, which are nearly all real: there a detection hits nothing only because what it
    found is not labelled. Right where the teacher did not train on these pictures, too high where it did.

    Raises ValueError where there are no detections, or no hit among these.
    """
    scores = np.where(state == DOUBLE, -np.inf, column(detections, "score") if detections else [])
    kept = sum(kept_counts(contents).values())
    sure = max(min(kept, SURE_LEAST), round(SURE_SHARE * kept))
    best = np.argsort(-scores, kind="stable")[:min(sure, int((state != DOUBLE).sum()))]
    rate = float((state[best] == HIT).mean()) if len(best) else 0.0
    if not rate:
        raise ValueError(f"the keep rate cannot be estimated: none of the {len(best)} best detections is on a labelled box; "
                         "give it with --keep-rate X")
    return rate


def fit_reality(x: np.ndarray, hit: np.ndarray, keep_rate: float, prior: np.ndarray) -> np.ndarray:
    """(intercept, slope) w of P(real | x) = sigmoid(w0 + w1 x), w1 >= 0: most likely given which of the detections hit a kept box [D],
    as P(hit | x) = keep_rate * P(real | x), with a normal prior around `prior` of precision PRIOR. Fisher scoring."""
    columns, w = np.stack([np.ones_like(x), x], 1), prior.copy()
    for _ in range(100):
        real = 1 / (1 + np.exp(-columns @ w))
        gradient = columns.T @ (np.where(hit, 1, left_over(real, keep_rate)) - real) - PRIOR * (w - prior)
        weight = keep_rate * real * (1 - real) ** 2 / (1 - keep_rate * real)
        step = np.linalg.solve((columns * weight[:, None]).T @ columns + PRIOR * np.eye(2), gradient).clip(-1, 1)
        if w[1] == 0 and step[1] < 0:                       # the slope stays at its end: the step of the intercept alone
            step = np.array([np.clip(gradient[0] / (weight.sum() + PRIOR), -1, 1), 0.0])
        w = np.maximum(w + step, [-np.inf, 0])
        if np.abs(step).max() < 1e-6:
            break
    return w


def left_over(real: np.ndarray, keep_rate: float) -> np.ndarray:
    """P(real | no kept box is there) from P(real): of the real ones the share 1 - keep_rate is left, of the others all."""
    return real * (1 - keep_rate) / (1 - keep_rate * real)


def real_probabilities(detections: list, state: np.ndarray, keep_rate: float) -> np.ndarray:
    """P(an object is there | score, class, no kept box is there) of each detection [D]; no full label is looked at.

    If boxes were dropped at random, a detection of score s hits a kept box with P(hit | s) = keep_rate * P(real | s) (Elkan and
    Noto, 2008). P(real | s) is logistic in the log odds of the score, fitted to all classes (to begin with: the score itself), then to
    each, which goes its own way as far as its hits tell; for each teacher anew, as networks differ in how sure they are. A free rising function in its place (isotonic) spreads two to
    three times as much, and with some hundred hits a whole class crosses a threshold by chance. Doubles are not looked at, and get 0.
    """
    chances, counts = np.zeros(len(detections)), state != DOUBLE
    if not counts.any() or keep_rate >= 1:
        return chances
    scores, classes, hit = column(detections, "score").clip(1e-4, 1 - 1e-4), column(detections, "category_id"), state == HIT
    x = np.log(scores / (1 - scores))
    teachers = np.array([str(each.get("teacher")) for each in detections])
    for teacher in np.unique(teachers[counts]):
        seen = counts & (teachers == teacher)
        general = fit_reality(x[seen], hit[seen], keep_rate, np.array([0.0, 1.0]))
        for category in np.unique(classes[seen]):
            own = seen & (classes == category)
            w = fit_reality(x[own], hit[own], keep_rate, general)
            chances[own] = left_over(1 / (1 + np.exp(-(w[0] + w[1] * x[own]))), keep_rate)
    return chances


def seed(contents, detections, options):
    """As Jmq14/FCOS's generator does: from a score on, and of the boxes that overlap a kept box only the one that does so most is
    dropped, whatever its class, with an IoU of 0.5 or more. No score is stored. (Its box sides had a pixel more, its
    category_id was the network's label: these two are not repeated.)"""
    sure = [each for each in detections if each["score"] >= options.confidence]
    rows_of, dropped = {}, set()
    for row, each in enumerate(sure):
        rows_of.setdefault(each["image_id"], []).append(row)
    kept_of = by_image(contents)
    for image_id, rows in rows_of.items():
        if kept_of[image_id]:
            iou, best = box_iou(boxes_of(kept_of[image_id]), boxes_of([sure[row] for row in rows])).max(1)
            dropped |= {rows[place] for place in best[iou >= 0.5].tolist()}
    return [(each, {}) for row, each in enumerate(sure) if row not in dropped], {"confidence": options.confidence}


def scored(each, zone="positive", **more):
    return each, {"score": each["score"], **more, "zone": zone, **{key: each[key] for key in ("teacher",) if key in each}}


def fixed(contents, detections, options):
    """From a score on, what is neither hit nor double."""
    state = compare(contents, detections)
    return [scored(each) for each, how in zip(detections, state, strict=True)
            if how == LEFT and each["score"] >= options.confidence], {"confidence": options.confidence}


def count(contents, detections, options):
    """As many of each class as are missing, by the counts of the kept boxes and the keep rate (the idea of LabelMatch, 2206.06608):
    the best half of them positive, the rest ignored."""
    state = compare(contents, detections)
    keep_rate = options.keep_rate or estimated_keep_rate(contents, detections, state)
    missing = {category: round(kept * (1 / keep_rate - 1)) for category, kept in kept_counts(contents).items()}
    chosen, taken = [], dict.fromkeys(missing, 0)
    for row in sorted(np.flatnonzero(state == LEFT).tolist(), key=lambda row: -detections[row]["score"]):
        category = detections[row]["category_id"]
        if taken[category] < missing[category]:
            chosen.append(scored(detections[row], "positive" if taken[category] < COUNT_POSITIVE * missing[category] else "ignore"))
            taken[category] += 1
    return chosen, {"keep_rate": keep_rate}


def precision(contents, detections, options):
    """By the probability that an object is there: `positive` and above positive, with it as weight; down to `ignore` ignored."""
    state = compare(contents, detections)
    keep_rate = options.keep_rate or estimated_keep_rate(contents, detections, state)
    chances = real_probabilities(detections, state, keep_rate).round(4).tolist()
    chosen = [scored(each, "positive" if chance >= options.positive else "ignore", p_real=chance, weight=chance)
              for each, how, chance in zip(detections, state, chances, strict=True) if how == LEFT and chance >= options.ignore]
    return chosen, {"keep_rate": keep_rate, "positive": options.positive, "ignore": options.ignore}


POLICIES = {"seed": seed, "fixed": fixed, "count": count, "precision": precision}
