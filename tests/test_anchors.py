import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.anchors import decode_deltas, encode_deltas, match, pyramid_anchors, sample
from model.targets import BACKGROUND, IGNORED
from util.boxes import box_area, box_iou

CPU = torch.device("cpu")


def targets(boxes, labels=None, ignore=None):
    """One picture's."""
    boxes = torch.tensor([boxes], dtype=torch.float32).view(1, -1, 4)
    rows = boxes.shape[1]
    return {"boxes": boxes, "labels": torch.tensor([labels or [0] * rows]), "ignore": torch.tensor([ignore or [False] * rows])}


def test_anchors_by_hand():
    # Two cells of stride 16 in a row, anchors of 16 px: 16x16, and half as high as wide: 22.6 x 11.3, which are 22 x 12 in whole pixels.
    anchors = pyramid_anchors(((1, 2), (1, 1)), ((16, 16), (16, 32)), (16, 32), 1.0, (0.5, 1.0), CPU)
    assert anchors.tolist() == [[-11, -6, 11, 6], [-8, -8, 8, 8], [5, -6, 27, 6], [8, -8, 24, 8], [-23, -11, 23, 11], [-16, -16, 16, 16]]


def test_deltas_by_hand():
    # An anchor of 20 x 10 around (10, 5); the box is twice as wide, as high, and its centre 5 to the right, 1 above.
    anchor, box = torch.tensor([0.0, 0, 20, 10]), torch.tensor([-5.0, -1, 35, 9])
    assert torch.allclose(encode_deltas(anchor, box), torch.tensor([0.25, -0.1, math.log(2), 0]))
    assert torch.allclose(encode_deltas(anchor, box, (10.0, 5.0)), torch.tensor([2.5, -1, 5 * math.log(2), 0]))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-500, 500), min_size=4, max_size=4), st.lists(st.floats(4, 200), min_size=4, max_size=4))
def test_what_was_encoded_is_decoded(corners, sides):
    corners, sides = torch.tensor(corners).view(2, 2), torch.tensor(sides).view(2, 2)
    anchor, box = torch.cat([corners, corners + sides], 1)
    assert torch.allclose(decode_deltas(anchor, encode_deltas(anchor, box)), box, atol=1e-2)
    assert torch.allclose(decode_deltas(anchor, encode_deltas(anchor, box, (10.0, 5.0)), (10.0, 5.0)), box, atol=1e-2)


def test_boxes_without_area_and_extreme_deltas_are_finite():
    flat, anchor = torch.tensor([3.0, 3, 3, 3]), torch.tensor([0.0, 0, 8, 8])
    assert encode_deltas(anchor, flat).isfinite().all() and encode_deltas(flat, anchor).isfinite().all()
    box = decode_deltas(anchor, torch.tensor([100.0, -100, 100, -100]))
    assert box.isfinite().all() and (box[2] - box[0]).item() == pytest.approx(8 * 1000 / 16)


def test_matches_by_hand():
    wanted = targets([[0, 0, 10, 10], [100, 100, 104, 104]])
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 20, 20], [50, 50, 60, 60], [100, 100, 120, 120]])     # IoU 1, .5, .25, 0, .04
    assert match(anchors, wanted, 0.3, 0.7).tolist() == [[0, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]]
    assert match(anchors, wanted, 0.3, 0.7, best_too=True).tolist() == [[0, IGNORED, BACKGROUND, BACKGROUND, 1]]
    assert match(anchors, wanted, 0.5, 0.5).tolist() == [[0, 0, BACKGROUND, BACKGROUND, BACKGROUND]]


def test_padding_matches_nothing_and_a_region_to_leave_out_takes_the_background_inside_it():
    boxes = [[0, 0, 10, 10], [0, 0, 40, 40], [50, 50, 60, 60]]
    anchors = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [35, 35, 45, 45], [50, 50, 60, 60]])
    found = match(anchors, targets(boxes, [0, 1, -1], [False, True, False]), 0.3, 0.7, best_too=True)
    assert found.tolist() == [[0, IGNORED, BACKGROUND, BACKGROUND]]
    assert match(anchors, targets(boxes, [-1] * 3), 0.3, 0.7, best_too=True).tolist() == [[BACKGROUND] * 4]


def test_a_region_to_leave_out_takes_what_would_answer_for_it_were_it_an_object():
    wanted = targets([[0, 0, 10, 10], [100, 100, 104, 104]], ignore=[True, True])
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 20, 20], [50, 50, 60, 60], [100, 100, 120, 120]])     # IoU 1, .5, .25, 0, .04
    assert match(anchors, wanted, 0.3, 0.7).tolist() == [[IGNORED, IGNORED, BACKGROUND, BACKGROUND, BACKGROUND]]
    assert match(anchors, wanted, 0.3, 0.7, best_too=True).tolist() == [[IGNORED, IGNORED, BACKGROUND, BACKGROUND, IGNORED]]


def dense(anchors, boxes, real, regions, low, high, best_too):
    """The definition: the matrix of all IoUs."""
    iou = torch.where(real, box_iou(anchors, boxes), -1.0)
    best, row = iou.max(1)
    matched = torch.where(best >= high, row, torch.where(best >= low, IGNORED, BACKGROUND))
    if best_too:
        highest = iou.amax(0)
        matched = torch.where(((iou == highest) & (highest > 0)).any(1), row, matched)
    corner, opposite = torch.maximum(anchors[:, None, :2], boxes[:, :2]), torch.minimum(anchors[:, None, 2:], boxes[:, 2:])
    inside = box_area(torch.cat([corner, opposite.maximum(corner)], -1)) > 0.5 * box_area(anchors)[:, None]
    whole = box_iou(anchors, boxes)
    claimed = (whole >= low) | ((whole == whole.amax(0)) & (whole > 0) & best_too)
    return torch.where((matched == BACKGROUND) & ((inside | claimed) & regions).any(1), IGNORED, matched)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10 ** 6), st.booleans())
def test_matching_equals_the_dense_definition(seed, best_too):
    torch.manual_seed(seed)
    anchors = pyramid_anchors(((6, 8), (3, 4)), ((8, 8), (16, 16)), (8, 16), 2.0, (0.5, 1.0, 2.0), CPU)
    corner = torch.randint(0, 50, (2, 5, 2)).float()
    wanted = {"boxes": torch.cat([corner, corner + torch.randint(1, 40, (2, 5, 2))], -1), "labels": torch.randint(-1, 2, (2, 5)),
              "ignore": torch.rand(2, 5) < 0.3}
    found = match(anchors, wanted, 0.3, 0.6, best_too)
    for picture in range(2):
        real = wanted["labels"][picture] >= 0
        left_out = wanted["ignore"][picture]
        expected = dense(anchors, wanted["boxes"][picture], real & ~left_out, real & left_out, 0.3, 0.6, best_too)
        assert torch.equal(found[picture], expected)
        each = {name: value[picture:picture + 1] for name, value in wanted.items()}
        assert torch.equal(match(anchors[None], each, 0.3, 0.6, best_too)[0], expected)       # candidates of each picture's own


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10 ** 6), st.integers(1, 40), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_sample_holds_no_more_than_it_may_positives_first_and_none_twice(seed, count, share):
    torch.manual_seed(seed)
    matched = torch.randint(-2, 3, (3, 30))
    index, real = sample(matched, count, share)
    assert index.shape == real.shape == (3, min(count, 30))
    for row, places, here in zip(matched, index, real):
        chosen = row[places[here]]
        positives = int((chosen >= 0).sum())
        assert len(set(places[here].tolist())) == len(chosen) and (chosen != IGNORED).all() and (chosen[:positives] >= 0).all()
        assert positives == min(max(1, int(count * share)) if share else 0, int((row >= 0).sum()))
        assert len(chosen) == positives + min(count - positives, int((row == BACKGROUND).sum()))


def test_samples_are_random_and_repeat_with_the_seed():
    matched = torch.randint(-2, 3, (2, 500))
    torch.manual_seed(5)
    first, second = sample(matched, 16, 0.5)[0], sample(matched, 16, 0.5)[0]
    torch.manual_seed(5)
    assert torch.equal(sample(matched, 16, 0.5)[0], first) and not torch.equal(first, second)
