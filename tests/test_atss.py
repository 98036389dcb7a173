"""ATSS against its definition: location by location, box by box, in plain Python numbers."""
import math
import statistics

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_targets import coordinate

from model.atss import assign_atss
from model.targets import BACKGROUND, IGNORED


def iou(a, b):
    overlap = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return overlap / max((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap, 1e-7)


def reference(boxes, labels, ignore, sizes, strides, spacings=None, offset=0.5):
    """The gt row of each location of one picture: the paper's algorithm 1."""
    spacings = spacings or [(s, s) for s in strides]
    levels, number = [], 0
    for (height, width), (sy, sx), stride in zip(sizes, spacings, strides):
        cells = [((j + offset) * sx, (i + offset) * sy) for i in range(height) for j in range(width)]
        levels.append([(number + n, x, y, (x - 4 * stride, y - 4 * stride, x + 4 * stride, y + 4 * stride)) for n, (x, y) in enumerate(cells)])
        number += len(cells)
    best = {}
    for m, box in enumerate(boxes):
        if labels[m] < 0 or ignore[m]:
            continue
        cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        near = [cell for level in levels for cell in sorted(level, key=lambda cell: (cell[1] - cx) ** 2 + (cell[2] - cy) ** 2)[:9]]
        ious = [iou(anchor, box) for *_, anchor in near]
        threshold = statistics.fmean(ious) + (statistics.stdev(ious) if len(ious) > 1 else 0.0)
        for (n, x, y, _), value in zip(near, ious):
            inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0
            if inside and value >= threshold - 1e-9 and value > best.get(n, (0.0, None))[0]:
                best[n] = value, m
    result = []
    for n, x, y, _ in (cell for level in levels for cell in level):
        covered = any(ignore[m] and labels[m] >= 0 and min(x - b[0], y - b[1], b[2] - x, b[3] - y) >= 0 for m, b in enumerate(boxes))
        result.append(best[n][1] if n in best else IGNORED if covered else BACKGROUND)
    return result


def one_image(boxes, sizes=((8, 8), (4, 4)), strides=(8, 16), labels=None, ignore=None):
    count = len(boxes)
    labels, ignore = labels or [0] * count, ignore or [False] * count
    return assign_atss(torch.tensor([boxes], dtype=torch.float32), torch.tensor([labels]), torch.tensor([ignore]), list(sizes), strides)[0]


def test_one_box_by_hand():
    # Anchors of side 64 around cells 8 apart, box of side 64 around (28, 28), which is a cell: that one has IoU 1, its four
    # neighbours 56 / 72, the diagonal ones 49 / 79. Mean 0.732, deviation 0.128: only the first passes.
    matched = one_image([[-4, -4, 60, 60]], ((8, 8),), (8,)).view(8, 8)
    assert matched[3, 3] == 0 and (matched >= 0).sum() == 1


def test_a_location_goes_to_the_box_of_the_higher_iou_and_of_equal_ones_to_the_first():
    assert one_image([[-4, -4, 60, 60], [-2, -4, 60, 60]], ((8, 8),), (8,)).view(8, 8)[3, 3] == 0
    assert one_image([[-2, -4, 60, 60], [-4, -4, 60, 60]], ((8, 8),), (8,)).view(8, 8)[3, 3] == 1
    assert one_image([[-4, -4, 60, 60]] * 2, ((8, 8),), (8,)).view(8, 8)[3, 3] == 0


def test_padding_no_area_and_far_away_are_background_and_regions_are_ignored():
    assert one_image([[0, 0, 32, 32]], labels=[-1]).unique().tolist() == [BACKGROUND]
    assert one_image([[4, 4, 4, 4], [-500, -500, -400, -400], [900, 900, 999, 999]]).unique().tolist() == [BACKGROUND]
    assert one_image([[0, 0, 8, 8]], ignore=[True]).nonzero().flatten().tolist() == list(range(80))
    assert one_image([[0, 0, 8, 8]], ignore=[True])[0] == IGNORED


def test_a_level_of_one_cell_alone_takes_what_is_around_it():
    assert one_image([[0, 0, 8, 8]], ((1, 1),), (8,)).tolist() == [0]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_windowed_selection_equals_the_definition(data):
    images, rows = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 4))
    corners = torch.tensor([[sorted(data.draw(st.tuples(coordinate, coordinate))) + sorted(data.draw(st.tuples(coordinate, coordinate)))
                             for _ in range(rows)] for _ in range(images)], dtype=torch.float32)
    boxes = corners[..., [0, 2, 1, 3]]
    labels = torch.tensor([[data.draw(st.integers(-1, 3)) for _ in range(rows)] for _ in range(images)])
    ignore = torch.tensor([[data.draw(st.booleans()) and data.draw(st.booleans()) for _ in range(rows)] for _ in range(images)])
    strides = (8, 16, 32, 64, 128)[:data.draw(st.integers(1, 5))]
    height, width = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    sizes = [(math.ceil(height * 64 / s), math.ceil(width * 64 / s)) for s in strides]
    offset = data.draw(st.sampled_from([0.5, 0.0]))
    spacings = data.draw(st.sampled_from([None, tuple((height * 64 // h, width * 64 // w) for h, w in sizes)]))
    expected = [reference(*(value.tolist() for value in picture), sizes, strides, spacings, offset)
                for picture in zip(boxes, labels, ignore)]
    assert assign_atss(boxes, labels, ignore, sizes, strides, spacings, offset).tolist() == expected
