import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset.preprocess import map_boxes, resize_masks, resize_picture, resized_size, tile_windows


def test_the_short_side_is_resized_unless_the_long_one_gets_too_long():
    assert resized_size(480, 640, 416, 800) == (416, 555)
    assert resized_size(640, 480, 416, 800) == (555, 416)
    assert resized_size(100, 1000, 416, 800) == (80, 800)
    assert resized_size(300, 300, 300, 800) == (300, 300)
    assert resized_size(1, 5000, 416, 800) == (1, 800)


def test_a_picture_of_the_right_size_is_not_touched():
    image = torch.zeros(3, 8, 9, dtype=torch.uint8)
    assert resize_picture(image, (8, 9)) is image
    assert tuple(resize_picture(image, (4, 3)).shape) == (3, 4, 3)


def test_resizing_is_antialiased():
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(3, 64, 64)
    small = resize_picture(stripes, (16, 16))
    assert small[:, 4:-4, 4:-4].float().sub(127.5).abs().max() < 8


def test_boxes_follow_a_rectangle_and_come_back():
    boxes = torch.tensor([[10.0, 20, 30, 40]])
    there = map_boxes(boxes, (10, 0, 110, 100), (0, 5, 50, 205))
    assert there.tolist() == [[0, 45, 10, 85]]
    assert torch.allclose(map_boxes(there, (0, 5, 50, 205), (10, 0, 110, 100)), boxes)
    assert map_boxes(torch.zeros(0, 4), (0, 0, 1, 1), (0, 0, 2, 2)).shape == (0, 4)


def test_tiles_are_equal_and_pushed_inside():
    assert tile_windows(100, 100, 100, 0.25) == [(0, 0, 100, 100)]
    assert tile_windows(60, 150, 100, 0.25) == [(0, 0, 100, 60), (50, 0, 150, 60)]
    assert tile_windows(100, 250, 100, 0.25) == [(0, 0, 100, 100), (75, 0, 175, 100), (150, 0, 250, 100)]


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.floats(0, 0.9))
def test_tiles_cover_every_pixel_and_overlap_as_asked(height, width, tile, overlap):
    windows = tile_windows(height, width, tile, overlap)
    assert {(x2 - x1, y2 - y1) for x1, y1, x2, y2 in windows} == {(min(tile, width), min(tile, height))}
    for side, low, high in ((width, 0, 2), (height, 1, 3)):
        spans = sorted({(window[low], window[high]) for window in windows})
        assert spans[0][0] == 0 and spans[-1][1] == side
        for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
            # rounding may cost one pixel, and a step is never less than one
            assert end - start >= min(tile - 1, tile * overlap - 1)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, 32])
def test_an_impossible_overlap_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap"):
        tile_windows(100, 100, 10, overlap)


def test_a_new_pixel_of_a_mask_is_what_lies_under_its_middle():
    assert resize_masks(torch.tensor([[[0, 1, 0]]], dtype=torch.uint8), (1, 1)).tolist() == [[[1]]]
    assert resize_masks(torch.tensor([[[0, 0, 1, 1]]], dtype=torch.uint8), (1, 8)).tolist() == [[[0] * 4 + [1] * 4]]
