import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from util.boxes import box_area, box_iou, clip_boxes, xywh_to_xyxy, xyxy_to_xywh

corners = st.lists(st.integers(-50, 50), min_size=4, max_size=4)
boxes_lists = st.lists(corners, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float64).reshape(-1, 4))


def test_areas_by_hand_and_none_for_a_box_turned_inside_out():
    boxes = torch.tensor([[0.0, 0, 4, 3], [1, 1, 1, 5], [4, 3, 0, 0], [5, 0, 1, 9]])
    assert box_area(boxes).tolist() == [12, 0, 0, 0]


def test_iou_by_hand():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 20, 20]])
    others = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [5, 5, 15, 15], [10, 0, 20, 10], [20, 20, 20, 20]])
    assert box_iou(boxes, others)[0].tolist() == pytest.approx([1, 70 / 130, 25 / 175, 0, 0])
    assert box_iou(boxes, others)[1].tolist() == [0, 0, 0, 0, 0]


def test_edges_give_the_devkits_inclusive_pixel_iou():
    # VOC boxes 1..10 and 4..13, shifted by 3 px: the devkit counts 7 * 10 shared pixels of 130
    edges = torch.tensor([[1.0, 1, 10, 10], [4, 1, 13, 10]]) - torch.tensor([1.0, 1, 0, 0])
    assert float(box_iou(edges[:1], edges[1:])) == pytest.approx(70 / 130)


def test_iou_of_no_boxes_has_no_rows_or_columns():
    assert box_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)
    assert box_iou(torch.zeros(3, 4), torch.zeros(0, 4)).shape == (3, 0)


@given(boxes_lists, boxes_lists)
def test_iou_lies_between_0_and_1_and_does_not_care_who_comes_first(boxes, others):
    iou = box_iou(boxes, others)
    assert bool(((iou >= 0) & (iou <= 1)).all())
    assert torch.equal(iou, box_iou(others, boxes).T)


@given(boxes_lists)
def test_xywh_and_back_is_the_same_box(boxes):
    assert torch.equal(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)


def test_xywh_by_hand():
    assert xyxy_to_xywh(torch.tensor([1.0, 2, 5, 9])).tolist() == [1, 2, 4, 7]


def test_clipping_takes_height_before_width():
    boxes = torch.tensor([[-5.0, -5, 300, 300], [120, 20, 140, 30]])
    assert clip_boxes(boxes, (50, 100)).tolist() == [[0, 0, 100, 50], [100, 20, 100, 30]]
    assert clip_boxes(torch.zeros(0, 4), (50, 100)).shape == (0, 4)
