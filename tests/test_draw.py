import numpy as np
import pytest
import torch
from PIL import Image

from util import draw
from util.draw import BACKGROUND, class_colours, draw_detections, grid, text_colour

GREY = (128, 128, 128)


def changed(picture, colour=GREY):
    """bool [H, W]: where a picture that was all `colour` has been drawn on."""
    return (np.asarray(picture) != colour).any(axis=2)


def grey(width, height):
    return Image.new("RGB", (width, height), GREY)


def test_a_tensor_and_a_picture_give_the_same_drawing_and_stay_as_they_were():
    picture = grey(200, 150)
    tensor = torch.full((3, 150, 200), 128, dtype=torch.uint8)
    arguments = ([[50, 60, 120, 110]], ["nail"], [0.8], ["clip", "nail"])
    drawn = draw_detections(picture, *arguments)
    assert drawn.size == (200, 150) and drawn.mode == "RGB"
    assert drawn.tobytes() == draw_detections(tensor, *arguments).tobytes()
    assert not changed(picture).any() and bool((tensor == 128).all())
    assert draw_detections(picture.convert("L"), *arguments).tobytes() == drawn.tobytes()


def test_no_boxes_leave_the_picture_alone():
    assert not changed(draw_detections(grey(60, 40), torch.zeros(0, 4), [], torch.zeros(0), ["a"])).any()
    assert not changed(draw_detections(grey(60, 40), [], [])).any()


def test_the_line_lies_around_the_box_and_leaves_its_inside_free():
    drawn = changed(draw_detections(grey(300, 300), [[100, 120, 140, 160]], ["a"], plates=False))
    assert not drawn[120:160, 100:140].any()
    assert drawn[118:120, 98:142].all() and drawn[160:162, 98:142].all() and drawn[118:162, 140:142].all()
    assert drawn.sum() == 44 * 44 - 40 * 40


def test_lines_and_plates_grow_with_the_picture():
    def line_and_plate(width, height):
        box = [[width // 2, height // 2, width // 2 + 100, height // 2 + 100]]
        column = [changed(draw_detections(grey(width, height), box, ["a"], plates=plates))[:, width // 2 + 4].sum()
                  for plates in (False, True)]
        return column[0] // 2, column[1] - column[0]

    small, large = line_and_plate(300, 300), line_and_plate(2560, 1440)
    assert small[0] == 2 and 4 <= large[0] <= 6
    assert 12 <= small[1] <= 20 and 30 <= large[1] <= 50


@pytest.mark.parametrize("box", [[0, 0, 300, 300], [-50, -50, 20, 20], [290, 0, 300, 10], [280, 290, 400, 400],
                                 [400, 400, 500, 500], [150, 150, 150, 150]])
def test_boxes_and_plates_at_the_border_or_beyond_stay_inside(box):
    drawn = draw_detections(grey(300, 300), [box], ["a rather long class name"], [0.5])
    plain = draw_detections(grey(300, 300), [box], ["a rather long class name"], [0.5], plates=False)
    plate = np.asarray(drawn) != np.asarray(plain)
    rows, columns = np.flatnonzero(plate.any(axis=(1, 2))), np.flatnonzero(plate.any(axis=(0, 2)))
    assert np.ptp(columns) > 100 and np.ptp(rows) >= 8


def test_a_name_wider_than_the_picture_is_cut_and_does_not_fail():
    assert changed(draw_detections(grey(40, 30), [[5, 5, 30, 25]], ["an endless class name " * 3], [0.5])).any()
    assert changed(draw_detections(grey(3, 2), [[0, 0, 3, 2]], ["nail"], [0.5])).all()


def test_names_in_other_letters_can_be_told_apart(monkeypatch):
    monkeypatch.setattr(draw, "SYSTEM_FONTS", ())

    def drawn(name):
        return draw_detections(grey(200, 150), [[50, 60, 120, 110]], [name]).tobytes()
    assert len({drawn(name) for name in ("гайка", "винты", "螺丝", "夹子", "écrou", "ecrou")}) == 6
    assert drawn("螺丝") == drawn(r"\u87ba\u4e1d")


def test_plates_do_not_hide_each_other_where_there_is_room():
    boxes = [[100, 100, 200, 200], [102, 102, 202, 202], [98, 98, 198, 198]]
    colours = class_colours(3)
    drawn = np.asarray(draw_detections(grey(400, 400), boxes, ["a", "b", "c"], [0.9, 0.8, 0.7]))
    single = np.asarray(draw_detections(grey(400, 400), boxes[:1], ["a"], [0.9], ["a", "b", "c"]))
    of_one_plate = (single == colours[0]).all(axis=2).sum() - 4 * 102 * 2
    for colour in colours:
        assert (drawn == colour).all(axis=2).sum() > of_one_plate


def test_ground_truth_is_dashed_and_thinner():
    box = [[100, 100, 200, 200]]
    solid, dashed = (changed(draw_detections(grey(300, 300), box, ["a"], plates=False, dashed=dashed)).sum()
                     for dashed in (False, True))
    assert 0.15 * solid < dashed < 0.5 * solid


def test_the_best_score_is_drawn_last():
    boxes = [[100, 100, 200, 200], [100, 100, 200, 200]]
    drawn = draw_detections(grey(300, 300), boxes, ["a", "b"], [0.9, 0.8], plates=False)
    assert drawn.getpixel((150, 99)) == class_colours(2)[0]


def test_a_class_keeps_its_colour_when_others_join():
    assert class_colours(90)[:20] == class_colours(20) and len(set(class_colours(90))) == 90
    few, many = (draw_detections(grey(99, 99), [[9, 9, 50, 50]], ["b"], None, names, plates=False).getpixel((9, 8))
                 for names in (["a", "b"], ["a", "b", "c", "d"]))
    assert few == many == class_colours(2)[1]


def test_the_first_colours_are_far_apart():
    colours = np.array(class_colours(12), dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours, axis=2)[~np.eye(12, dtype=bool)]
    assert distances.min() > 60


def test_text_is_black_on_light_and_white_on_dark():
    assert text_colour((255, 255, 0)) == text_colour((90, 200, 255)) == (0, 0, 0)
    assert text_colour((0, 0, 200)) == text_colour((90, 20, 30)) == (255, 255, 255)


def test_a_sheet_by_hand():
    red, tall = Image.new("RGB", (100, 50), (255, 0, 0)), Image.new("RGB", (20, 200), (0, 255, 0))
    sheet = grid([red, torch.zeros(3, 50, 100, dtype=torch.uint8), tall], columns=2, side=100, gap=10)
    # the tall one shrinks to 10 x 100; columns 100 and 100 px, rows 50 and 100 px, gaps of 10 around
    assert sheet.size == (230, 180)
    assert sheet.getpixel((10, 10)) == (255, 0, 0) and sheet.getpixel((120, 59)) == (0, 0, 0)
    assert sheet.getpixel((60, 120)) == (0, 255, 0) and sheet.getpixel((20, 120)) == BACKGROUND
    assert red.size == (100, 50) and tall.size == (20, 200)


def test_a_sheet_of_one_picture_and_of_none():
    assert grid([grey(30, 20)], columns=4, gap=5).size == (40, 30)
    with pytest.raises(ValueError, match="0 pictures"):
        grid([], columns=3)
