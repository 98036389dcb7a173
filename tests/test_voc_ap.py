from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.matching import confusion_matrix, find_partners, match
from evaluation.voc_ap import IOU_THRESHOLDS, area_ap, best_threshold, class_curves, eleven_point_ap

PASCAL_CASE_1 = Path(__file__).parents[1] / "../shared/data/eval_fixtures/pascal_case_1"


def objects(*rows):
    """Rows (x1, y1, x2, y2, label, difficult)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].long(), "difficult": table[:, 5].bool()}


def found(*rows):
    """Rows (x1, y1, x2, y2, label, score)."""
    table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].long(), "scores": table[:, 5]}


def both_aps(detections, ground_truth, num_classes=1, iou_threshold=0.5, label=0):
    curve = class_curves(find_partners(detections, ground_truth, num_classes), num_classes, iou_threshold)[label]
    return curve and (eleven_point_ap(curve.precision, curve.recall), area_ap(curve.precision, curve.recall))


A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
NOWHERE = (70, 70, 80, 80)


def test_hit_false_alarm_hit_by_hand():
    ground_truth = {"1": objects((*A, 0, 0), (*B, 0, 0))}
    detections = {"1": found((*A, 0, 0.9), (*NOWHERE, 0, 0.8), (*B, 0, 0.7))}
    # precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: six recall points 0 .. .5 at 1, five at 2/3
    assert both_aps(detections, ground_truth) == pytest.approx(((6 + 5 * 2 / 3) / 11, 1 / 2 + 1 / 3))


def test_the_eleven_recall_points_are_the_devkits_own_floats():
    # recall .3 (3 of 10) lies below 0.30000000000000004, so only 0, .1, .2 are reached; in exact numbers it would be 4
    precision, recall = np.array([1.0, 1.0, 1.0]), np.array([0.1, 0.2, 3 / 10])
    assert eleven_point_ap(precision, recall) == pytest.approx(3 / 11)
    assert area_ap(precision, recall) == pytest.approx(0.3)


def test_area_is_taken_under_the_best_precision_to_the_right():
    precision, recall = np.array([0.5, 2 / 3, 0.5]), np.array([0.25, 0.5, 0.75])
    assert area_ap(precision, recall) == pytest.approx(0.5 * 2 / 3 + 0.25 * 0.5)


def test_no_detection_is_ap_0_and_no_object_is_no_ap():
    assert both_aps({}, {"1": objects((*A, 0, 0))}) == (0, 0)
    assert both_aps({"1": found((*A, 0, 0.9))}, {"1": objects()}) is None
    assert both_aps({"1": found((*A, 0, 0.9))}, {"1": objects((*A, 0, 1))}) is None
    assert class_curves(find_partners({}, {}, 2), 2, 0.5) == [None, None]


def test_the_second_hit_on_an_object_is_a_false_alarm_whatever_its_iou():
    ground_truth = {"1": objects((*A, 0, 0), (*B, 0, 0))}
    detections = {"1": found((0, 0, 10, 6, 0, 0.9), (*A, 0, 0.8), (*B, 0, 0.7))}
    hit, neither = match(find_partners(detections, ground_truth, 1), 0.5)
    assert hit.tolist() == [True, False, True] and not neither.any()


def test_a_detection_is_compared_only_with_the_object_it_overlaps_most_even_if_taken():
    # the second detection overlaps the second object by .6, but the first, which is taken, by more
    ground_truth = {"1": objects((0, 0, 10, 10, 0, 0), (3, 0, 13, 10, 0, 0))}
    detections = {"1": found((0, 0, 10, 10, 0, 0.9), (1, 0, 11, 10, 0, 0.8))}
    assert match(find_partners(detections, ground_truth, 1), 0.5)[0].tolist() == [True, False]


def test_detections_on_a_difficult_object_do_not_count_however_many():
    ground_truth = {"1": objects((*A, 0, 1), (*B, 0, 0))}
    detections = {"1": found((*A, 0, 0.99), (*A, 0, 0.98), (*B, 0, 0.5))}
    hit, neither = match(find_partners(detections, ground_truth, 1), 0.5)
    assert hit.tolist() == [False, False, True] and neither.tolist() == [True, True, False]
    assert both_aps(detections, ground_truth) == pytest.approx((1, 1))


def test_an_overlap_equal_to_the_threshold_is_enough():
    ground_truth = {"1": objects((0, 0, 10, 10, 0, 0))}
    detections = {"1": found((0, 0, 10, 5, 0, 0.9))}
    assert both_aps(detections, ground_truth)[1] == 1
    assert both_aps(detections, ground_truth, iou_threshold=0.5000001)[1] == 0


def test_tied_scores_keep_their_order_first_by_picture_id_then_as_they_came():
    ground_truth = {"1": objects((*A, 0, 0)), "2": objects((*A, 0, 0))}
    false_first = {"2": found((*A, 0, 0.5)), "1": found((*NOWHERE, 0, 0.5), (*A, 0, 0.5))}
    assert both_aps(false_first, ground_truth)[1] == pytest.approx(2 / 3)
    hit_first = {"2": found((*A, 0, 0.5)), "1": found((*A, 0, 0.5), (*NOWHERE, 0, 0.5))}
    assert both_aps(hit_first, ground_truth)[1] == pytest.approx(1 / 2 + 1 / 3)


def test_classes_do_not_see_each_other():
    ground_truth = {"1": objects((*A, 0, 0), (*A, 1, 0))}
    detections = {"1": found((*A, 0, 0.9), (*A, 1, 0.8))}
    assert both_aps(detections, ground_truth, 2, label=0) == both_aps(detections, ground_truth, 2, label=1)
    assert both_aps(detections, ground_truth, 2)[1] == 1


def test_boxes_without_area_hit_nothing():
    ground_truth = {"1": objects((5, 5, 5, 5, 0, 0))}
    assert both_aps({"1": found((5, 5, 5, 5, 0, 0.9))}, ground_truth) == (0, 0)


def test_the_best_f1_threshold_by_hand():
    ground_truth = {"1": objects((*A, 0, 0), (*B, 0, 0), (*C, 0, 0))}
    detections = {"1": found((*A, 0, 0.9), (*B, 0, 0.6), (*NOWHERE, 0, 0.3), (*A, 0, 0.2))}
    curve = class_curves(find_partners(detections, ground_truth, 1), 1, 0.5)[0]
    assert best_threshold([curve]) == pytest.approx({"precision": 1, "recall": 2 / 3, "f1": 0.8, "threshold": 0.6})


def test_a_threshold_takes_all_of_its_tied_detections_or_none():
    ground_truth = {"1": objects((*A, 0, 0))}
    detections = {"1": found((*A, 0, 0.5), (*NOWHERE, 0, 0.5), (*NOWHERE, 0, 0.5))}
    curve = class_curves(find_partners(detections, ground_truth, 1), 1, 0.5)[0]
    assert best_threshold([curve]) == pytest.approx({"precision": 1 / 3, "recall": 1, "f1": 0.5, "threshold": 0.5})


def test_one_threshold_for_two_classes_has_the_best_mean_f1():
    ground_truth = {"1": objects((*A, 0, 0), (*B, 1, 0))}
    detections = {"1": found((*A, 0, 0.9), (*NOWHERE, 0, 0.4), (*NOWHERE, 0, 0.4), (*B, 1, 0.3))}
    curves = class_curves(find_partners(detections, ground_truth, 2), 2, 0.5)
    # at .9: F1 1 and 0; at .3: F1 2/4 and 1
    expected = {"precision": (1 / 3 + 1) / 2, "recall": 1, "f1": 0.75, "threshold": 0.3}
    assert best_threshold(curves) == pytest.approx(expected)


def test_where_nothing_is_hit_there_is_no_threshold():
    curve = class_curves(find_partners({"1": found((*NOWHERE, 0, 0.9))}, {"1": objects((*A, 0, 0))}, 1), 1, 0.5)[0]
    assert best_threshold([curve]) == {"precision": 0, "recall": 0, "f1": 0, "threshold": None}


@pytest.mark.parametrize("iou_threshold, eleven_point, area", [
    (0.1, "0.3333333333", "0.3371980676"), (0.3, "0.2683982683", "0.2456866804"),
    (0.5, "0.0303030303", "0.0222222222"), (0.75, "0.0000000000", "0.0000000000")])
def test_the_published_numbers_of_pascal_case_1_to_ten_digits(iou_threshold, eleven_point, area):
    if not PASCAL_CASE_1.is_dir():
        pytest.skip(f"{PASCAL_CASE_1} is not here")
    detections, ground_truth = ({path.stem: read_boxes(path) for path in (PASCAL_CASE_1 / part).glob("*.txt")}
                                for part in ("dets", "gts"))
    assert len(ground_truth) == 7
    aps = both_aps(detections, ground_truth, iou_threshold=iou_threshold)
    assert [f"{ap:.14f}"[:12] for ap in aps] == [eleven_point, area]  # published cut, not rounded


def read_boxes(path):
    """Lines "object [score] x y w h" in inclusive pixels; edges are x, y, x + w + 1, y + h + 1."""
    rows = torch.tensor([[float(word) for word in line.split()[1:]] for line in path.read_text().splitlines()]).double()
    x, y, w, h = rows[:, -4:].unbind(dim=1)
    count = len(rows)
    return {"boxes": torch.stack([x, y, x + w + 1, y + h + 1], dim=1), "labels": torch.zeros(count).long(),
            "scores": rows[:, 0], "difficult": torch.zeros(count).bool()}


def random_case(seed, pictures=6, num_classes=2, objects_each=5, detections_each=9):
    """Boxes on a coarse grid and scores of one decimal, so that ties and equal overlaps happen."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.integers(0, 5, (count, 2))
        return np.concatenate([corner, corner + rng.integers(1, 4, (count, 2))], axis=1)

    ground_truth, detections = {}, {}
    for number in range(pictures):
        count = rng.integers(0, objects_each)
        columns = rng.integers(0, num_classes, count), rng.random(count) < 0.2
        ground_truth[str(number)] = objects(*np.column_stack([boxes(count), *columns]).tolist())
        count = rng.integers(0, detections_each)
        columns = rng.integers(0, num_classes, count), rng.integers(0, 11, count) / 10
        detections[str(number)] = found(*np.column_stack([boxes(count), *columns]).tolist())
    return detections, ground_truth


def slow_curve(detections, ground_truth, label, iou_threshold):
    """The devkit's loop, a sentence a line: (precision, recall) lists, None without objects."""
    total, listed = 0, []
    for image_id in sorted(ground_truth):
        target = ground_truth[image_id]
        total += int(((target["labels"] == label) & ~target["difficult"]).sum())
        result = detections.get(image_id, found())
        for box, score, its_label in zip(result["boxes"].tolist(), result["scores"].tolist(), result["labels"]):
            if its_label == label:
                listed.append((score, image_id, box))
    if total == 0:
        return None
    taken, hits, alarms, precision, recall = set(), 0, 0, [], []
    for score, image_id, box in sorted(listed, key=lambda entry: -entry[0]):
        target, best, best_row = ground_truth[image_id], -1.0, None
        for row, (gt_box, gt_label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist())):
            width = min(box[2], gt_box[2]) - max(box[0], gt_box[0])
            height = min(box[3], gt_box[3]) - max(box[1], gt_box[1])
            if gt_label != label or width <= 0 or height <= 0:
                continue
            areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, gt_box)]
            iou = width * height / (sum(areas) - width * height)
            if iou > best:
                best, best_row = iou, row
        if best_row is not None and best >= iou_threshold:
            if target["difficult"][best_row]:
                continue
            new = (image_id, best_row) not in taken
            taken.add((image_id, best_row))
        else:
            new = False
        hits, alarms = hits + new, alarms + (not new)
        precision.append(hits / (hits + alarms))
        recall.append(hits / total)
    return precision, recall


def slow_aps(precision, recall):
    points = [max([p for p, r in zip(precision, recall) if r >= point], default=0) for point in np.arange(0, 1.1, 0.1)]
    area, before = 0, 0
    for at, r in enumerate(recall):
        area += (r - before) * max(precision[at:])
        before = r
    return sum(points) / 11, area


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.3, *IOU_THRESHOLDS.tolist()]))
def test_random_cases_agree_with_the_devkits_loop(seed, iou_threshold):
    detections, ground_truth = random_case(seed)
    for label in range(2):
        slow = slow_curve(detections, ground_truth, label, iou_threshold)
        ours = both_aps(detections, ground_truth, 2, iou_threshold, label)
        assert (ours is None) == (slow is None)
        assert slow is None or ours == pytest.approx(slow_aps(*slow), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_false_alarm_below_all_others_changes_no_ap_and_one_above_all_raises_none(seed):
    detections, ground_truth = random_case(seed, num_classes=1)
    ground_truth["0"] = objects((*A, 0, 0))
    before = both_aps(detections, ground_truth)
    below, above = (
        both_aps(detections | {"0": {key: torch.cat([detections["0"][key], value])
                                     for key, value in found((*NOWHERE, 0, score)).items()}}, ground_truth)
        for score in (-1.0, 2.0))
    assert below == pytest.approx(before)
    assert all(new <= old + 1e-12 for new, old in zip(above, before, strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 0.2, 0.5]))
def test_the_confusion_matrix_counts_every_object_once_and_has_the_hits_on_its_diagonal(seed, threshold):
    detections, ground_truth = random_case(seed, num_classes=3)
    matrix = confusion_matrix(detections, ground_truth, 3, threshold)
    partners = find_partners(detections, ground_truth, 3)
    counted = partners.gt_labels[~partners.gt_difficult]
    assert matrix[:3].sum(axis=1).tolist() == np.bincount(counted, minlength=3).tolist()
    kept = partners.scores >= (-1 if threshold is None else threshold)
    hits = partners.labels[match(partners, 0.5)[0] & kept]
    assert np.diag(matrix)[:3].tolist() == np.bincount(hits, minlength=3).tolist()
    assert (matrix[:, :3].sum(axis=0) <= np.bincount(partners.labels[kept], minlength=3)).all() and matrix[3, 3] == 0


def test_a_confusion_matrix_by_hand():
    ground_truth = {"1": objects((*A, 0, 0), (*B, 1, 0), (*C, 1, 1), (60, 0, 70, 10, 0, 0))}
    detections = {"1": found((*A, 1, 0.99), (*A, 0, 0.9), (*B, 0, 0.8), (*C, 1, 0.7), (*C, 0, 0.7),
                             (*NOWHERE, 1, 0.6), (60, 0, 70, 10, 0, 0.1))}
    # A is found as 0 though a 1 scored higher there; B as 0; on the difficult C nothing counts; the last is below .5
    assert confusion_matrix(detections, ground_truth, 2, 0.5).tolist() == [[1, 0, 1], [1, 0, 0], [0, 2, 0]]
    assert confusion_matrix({}, {}, 1).tolist() == [[0, 0], [0, 0]]
