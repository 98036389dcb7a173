import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.locations import SPACINGS, decode_ltrb, encode_ltrb, level_locations, pyramid_locations
from model.targets import BACKGROUND, IGNORED, RANGE_ENDS, assign

INF = math.inf
PAPER = ((0, 64), (64, 128), (128, 256), (256, 512), (512, INF))
STRIDES = (8, 16, 32, 64, 128)


def dense(boxes, labels, ignore, sizes, strides, ranges, radius, spacings=None, offset=0.5, ends="closed"):
    """The definition, location by location and box by box."""
    within = {"closed": lambda low, value, high: low <= value <= high, "open": lambda low, value, high: low < value < high}[ends]
    spacings = spacings or [(s, s) for s in strides]
    matched = []
    for image in range(len(boxes)):
        row = []
        for (height, width), stride, spacing, (low, high) in zip(sizes, strides, spacings, ranges):
            for i in range(height):
                for j in range(width):
                    x, y = torch.tensor((j + offset) * spacing[1]), torch.tensor((i + offset) * spacing[0])
                    best, area, ignored = BACKGROUND, INF, False
                    for m, (x1, y1, x2, y2) in enumerate(boxes[image]):
                        if labels[image, m] < 0:
                            continue
                        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
                        if ignore[image, m]:
                            ignored |= bool(min(left, top, right, bottom) >= 0)
                            continue
                        near = abs(x - (x1 + x2) / 2) < radius * stride and abs(y - (y1 + y2) / 2) < radius * stride
                        longest = max(left, top, right, bottom)
                        if min(left, top, right, bottom) > 0 and within(low, longest, high) and near and (x2 - x1) * (y2 - y1) < area:
                            best, area = m, (x2 - x1) * (y2 - y1)
                    row.append(IGNORED if best == BACKGROUND and ignored else best)
        matched.append(row)
    return torch.tensor(matched)


def one_image(boxes, sizes=((4, 4),), strides=(8,), ranges=((0, INF),), radius=INF, labels=None, ignore=None):
    boxes = torch.tensor([boxes], dtype=torch.float32).view(1, -1, 4)
    labels = torch.zeros(1, boxes.shape[1], dtype=torch.int64) if labels is None else torch.tensor([labels])
    ignore = torch.zeros_like(labels, dtype=torch.bool) if ignore is None else torch.tensor([ignore])
    return assign(boxes, labels, ignore, list(sizes), strides, ranges, radius)[0]


def test_locations_are_the_centres_of_the_cells():
    assert level_locations(2, 2, (8, 8)).tolist() == [[4, 4], [12, 4], [4, 12], [12, 12]]
    locations, strides = pyramid_locations(((1, 2), (1, 1)), (8, 16))
    assert locations.tolist() == [[4, 4], [12, 4], [8, 8]] and strides.tolist() == [8, 8, 16]


def test_locations_can_be_the_corners_of_the_cells_and_lie_apart_as_the_grid_says():
    assert level_locations(1, 2, (8, 8), offset=0.0).tolist() == [[0, 0], [8, 0]]
    sizes = ((4, 6), (2, 3), (1, 2), (1, 1))
    spacings = SPACINGS[True]((32, 48), sizes)
    assert spacings == ((8, 8), (16, 16), (32, 24), (32, 48)) and SPACINGS[False]((32, 48), sizes) is None
    locations, strides = pyramid_locations(sizes, (8, 16, 32, 64), spacings=spacings, offset=0.0)
    assert locations[-3:].tolist() == [[0, 0], [24, 0], [0, 0]] and strides[-3:].tolist() == [32, 32, 64]


def test_ltrb_distances_by_hand_and_back():
    point, box = torch.tensor([10.0, 20.0]), torch.tensor([4.0, 18.0, 30.0, 25.0])
    assert encode_ltrb(point, box).tolist() == [6, 2, 20, 5]
    assert torch.equal(decode_ltrb(point, encode_ltrb(point, box)), box)


def test_a_box_claims_the_cells_whose_centres_it_holds():
    matched = one_image([[0, 0, 16, 8]])
    assert matched.view(4, 4).tolist() == [[0, 0, -1, -1]] + [[-1] * 4] * 3


def test_centre_sampling_keeps_the_cells_near_the_centre():
    matched = one_image([[0, 0, 56, 56]], sizes=((7, 7),), radius=1.5).view(7, 7)
    expected = torch.full((7, 7), -1)
    expected[2:5, 2:5] = 0                     # |x - 28| < 12: the centres 20, 28 and 36
    assert torch.equal(matched, expected)


def test_the_smaller_box_wins_and_of_equal_ones_the_first():
    assert one_image([[0, 0, 32, 32], [0, 0, 8, 8]]).view(4, 4)[0].tolist() == [1, 0, 0, 0]
    assert one_image([[0, 0, 32, 32], [0, 0, 32, 32]]).unique().tolist() == [0]


def test_the_range_decides_the_level_with_both_ends_included():
    sizes, ranges = ((8, 8), (4, 4)), ((0, 28), (28, INF))
    matched = one_image([[0, 0, 32, 32]], sizes, (8, 16), ranges)
    assert (matched[:64] >= 0).sum() == 16 and (matched[64:] >= 0).sum() == 0       # longest on level 2: 24, below 28
    matched = one_image([[0, 0, 32, 32]], sizes, (8, 16), ((0, 24), (24, INF)))
    assert (matched[:64] >= 0).sum() == 4 and (matched[64:] >= 0).sum() == 4        # 28 in the corners, 20 within; 24 = 24


def test_the_ends_of_a_range_can_be_left_out():
    sizes, ranges = ((8, 8), (4, 4)), RANGE_ENDS["open"](((0, 24), (24, INF)))
    matched = one_image([[0, 0, 32, 32]], sizes, (8, 16), ranges)
    assert (matched[:64] >= 0).sum() == 4 and (matched[64:] >= 0).sum() == 0        # 20 within; all 24 on level 2
    assert RANGE_ENDS["closed"](((0, 24),)) == ((0, 24),)


def test_padding_and_a_picture_without_objects_are_background():
    assert one_image([[0, 0, 32, 32]], labels=[-1]).unique().tolist() == [BACKGROUND]


def test_an_ignored_region_is_left_out_but_never_covers_a_positive():
    matched = one_image([[0, 0, 16, 16], [0, 0, 8, 8]], ignore=[True, False]).view(4, 4)
    assert matched.tolist() == [[1, -2, -1, -1], [-2, -2, -1, -1], [-1] * 4, [-1] * 4]


def test_boxes_of_no_area_and_outside_the_picture_claim_nothing():
    assert one_image([[4, 4, 4, 4], [-50, -50, -10, -10], [500, 500, 600, 600]]).unique().tolist() == [BACKGROUND]


coordinate = st.one_of(st.integers(-40, 300).map(float), st.integers(-10, 75).map(lambda cell: cell * 4.0),
                       st.floats(-40, 300, width=32, allow_subnormal=False))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_sparse_assignment_equals_the_definition(data):
    images, rows = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5))
    corners = torch.tensor([[sorted(data.draw(st.tuples(coordinate, coordinate))) + sorted(data.draw(st.tuples(coordinate, coordinate)))
                             for _ in range(rows)] for _ in range(images)], dtype=torch.float32)
    boxes = corners[..., [0, 2, 1, 3]]
    labels = torch.tensor([[data.draw(st.integers(-1, 3)) for _ in range(rows)] for _ in range(images)])
    ignore = torch.tensor([[data.draw(st.booleans()) and data.draw(st.booleans()) for _ in range(rows)] for _ in range(images)])
    levels = data.draw(st.integers(1, 3))
    strides = STRIDES[:levels]
    ranges = data.draw(st.sampled_from([PAPER[:levels], ((0, INF),) * levels, tuple((s, 4 * s) for s in strides)]))
    radius = data.draw(st.sampled_from([1.5, 1.0, 0.7, 2.5, INF]))
    height, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    sizes = [(-(-height * 64 // s), -(-width * 64 // s)) for s in strides]
    ends, offset = data.draw(st.sampled_from(["closed", "open"])), data.draw(st.sampled_from([0.5, 0.0]))
    spacings = data.draw(st.sampled_from([None, tuple((height * 64 // h, width * 64 // w) for h, w in sizes),
                                          tuple((s - s // 8, s - s // 4) for s in strides)]))
    expected = dense(boxes, labels, ignore, sizes, strides, ranges, radius, spacings, offset, ends)
    found = assign(boxes, labels, ignore, sizes, strides, RANGE_ENDS[ends](ranges), radius, spacings, offset)
    assert torch.equal(found, expected)


def test_a_box_that_begins_far_outside_the_picture_claims_what_it_holds_of_it():
    assert one_image([[-400, -400, 432, 432]]).unique().tolist() == [0]         # all 16 cells, from the first on
