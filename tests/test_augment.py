import math
import random
from functools import cached_property

import pytest
import torch
from PIL import Image, ImageDraw

from dataset.augment import MEAN_COLOUR, Augment, jitter_colour, keep_visible, mirror, rotate, show
from dataset.sample import PER_BOX, check_target, make_target

COLOURS = ((250, 0, 0), (0, 250, 0), (0, 0, 250))


class Drawn:
    """Pictures of one ellipse a colour on black; the label is the colour."""

    classes = ("red", "green", "blue")

    def __init__(self, boxes, size=(120, 200), length=1):
        self.boxes, self.size, self.length = boxes, size, length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        labels = list(range(len(self.boxes)))
        difficult = [label == 1 for label in labels]
        return self.pixels, make_target(self.boxes, labels, difficult, str(index), self.size)

    @cached_property
    def pixels(self):
        image = Image.new("RGB", (self.size[1] * 4, self.size[0] * 4))
        for box, colour in zip(self.boxes, COLOURS, strict=False):
            ImageDraw.Draw(image).ellipse([4 * box[0], 4 * box[1], 4 * box[2] - 1, 4 * box[3] - 1], fill=colour)
        image = image.resize((self.size[1], self.size[0]), Image.Resampling.BOX)
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(*self.size, 3).permute(2, 0, 1)


BOXES = [[10, 20, 60, 50], [80, 60, 110, 110], [150, 30, 190, 44]]


def extent(image, label):
    """The box [x1, y1, x2, y2] of the pixels of a label's colour, to about half a pixel; None if there are none."""
    others = [channel for channel in range(3) if channel != label]
    seen = (image[label] > 125) & (image[others] < 100).all(0)
    if not seen.any():
        return None
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def assert_boxes_lie_on_their_ellipses(image, target, tolerance=1.6):
    check_target(target, image.shape[-2:], 3, "augmented")
    assert image.dtype == torch.uint8 and image.shape[0] == 3
    assert target["difficult"].tolist() == (target["labels"] == 1).tolist()
    for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
        found = extent(image, label)
        assert found is not None and (found - box).abs().max() < tolerance, (label, box, found)


AUGMENTS = {
    "mirror": Augment(flip=1, jitter=0, rotate=0),
    "vertical mirror": Augment(flip=0, vertical_flip=1, jitter=0, rotate=0),
    "rotation": Augment(flip=0, jitter=0, rotate=10, rotate_probability=1),
    "zooming out": Augment(flip=0, jitter=0, rotate=0, zoom=(0.4, 0.9)),
    "colour": Augment(flip=0, jitter=0.2, rotate=0),
}


@pytest.mark.parametrize("name", AUGMENTS)
@pytest.mark.parametrize("min_size", [90, 120, 200])
def test_boxes_stay_on_their_objects_under(name, min_size):
    for seed in range(8):
        image, target = AUGMENTS[name](Drawn(BOXES), 0, min_size, 1000, random.Random(seed))
        assert tuple(image.shape[-2:]) == (min_size, round(min_size * 200 / 120))
        assert len(target["boxes"]) == 3
        assert_boxes_lie_on_their_ellipses(image, target)


@pytest.mark.parametrize("augment", [
    Augment(jitter=0, rotate=0, zoom=(1.2, 2.5)),
    Augment(jitter=0, rotate=0, crop=96, zoom=(0.5, 2.0)),
    Augment(jitter=0, rotate=8, rotate_probability=1, vertical_flip=0.5, crop=128, zoom=(0.5, 1.5)),
])
def test_boxes_of_objects_wholly_in_view_stay_on_them_when_cut_out(augment):
    seen = 0
    for seed in range(40):
        image, target = augment(Drawn(BOXES), 0, 120, 1000, random.Random(seed))
        check_target(target, image.shape[-2:], 3, "augmented")
        if augment.crop:
            assert tuple(image.shape[-2:]) == (augment.crop, augment.crop)
        for box, label in zip(target["boxes"], target["labels"].tolist(), strict=True):
            inside = (box[:2] > 3).all() and (box[2:] < torch.tensor(image.shape[:0:-1]) - 3).all()
            if inside:
                seen += 1
                assert (extent(image, label) - box).abs().max() < 2.2
    assert seen > 20


def test_a_crop_shows_an_object_most_of_the_time_in_a_large_picture():
    dataset = Drawn([[1000, 700, 1040, 730]], size=(1000, 1500))
    augment = Augment(crop=100, rotate=0, jitter=0, zoom=(0.8, 1.25))
    hits = sum(len(augment(dataset, 0, 1, 1, random.Random(seed))[1]["boxes"]) for seed in range(30))
    assert 18 <= hits < 30


def test_a_mosaic_fills_the_canvas_from_four_pictures_and_keeps_fields_aligned():
    dataset = Drawn(BOXES, length=4)
    counts = []
    for seed in range(20):
        augment = Augment(jitter=0, rotate=0, mosaic=1, zoom=(0.3, 0.6))
        image, target = augment(dataset, 0, 120, 1000, random.Random(seed))
        check_target(target, image.shape[-2:], 3, "mosaic")
        assert tuple(image.shape[-2:]) == (120, 200) and target["image_id"] == "0"
        assert target["difficult"].tolist() == (target["labels"] == 1).tolist()
        for box, label in zip(target["boxes"].round().int().tolist(), target["labels"].tolist(), strict=True):
            x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
            if 2 < box[0] and 2 < box[1] and box[2] - box[0] > 5 and box[3] - box[1] > 5:
                assert image[label, y, x] > 90, (box, label)
        counts.append(len(target["boxes"]))
    assert max(counts) > 6


def test_pictures_without_objects_and_pictures_of_one_pixel_go_through_everything():
    augment = Augment(vertical_flip=1, rotate=20, rotate_probability=1, zoom=(0.5, 2), mosaic=0.5)
    for size in ((40, 60), (1, 1), (1, 300)):
        for seed in range(6):
            for each in (augment, Augment(crop=32, mosaic=0.5)):
                image, target = each(Drawn([], size=size, length=2), 0, 32, 64, random.Random(seed))
                check_target(target, image.shape[-2:], 3, "empty")
                assert target["boxes"].shape == (0, 4)


def test_one_state_of_the_random_numbers_gives_one_result():
    augment = Augment(vertical_flip=0.5, rotate_probability=0.5, zoom=(0.5, 2), mosaic=0.5)
    dataset = Drawn(BOXES, length=4)
    for seed in range(4):
        first, second = (augment(dataset, 1, 100, 200, random.Random(seed)) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1]["boxes"], second[1]["boxes"])


def test_nothing_is_cropped_or_zoomed_unless_asked():
    image, target = Augment(flip=0, jitter=0, rotate=0)(Drawn(BOXES), 0, 120, 1000, random.Random(0))
    plain, plain_target = Drawn(BOXES)[0]
    assert torch.equal(image, plain) and torch.equal(target["boxes"], plain_target["boxes"])


def test_a_mirrored_full_picture_box_stays_whole():
    image, target = Drawn([[0, 0, 200, 120]])[0]
    assert mirror(image, target)[1]["boxes"].tolist() == [[0, 0, 200, 120]]
    corner = {**target, "boxes": torch.tensor([[0.0, 5, 30, 9]])}
    assert mirror(image, corner)[1]["boxes"].tolist() == [[170, 5, 200, 9]]
    assert mirror(image, corner, vertical=True)[1]["boxes"].tolist() == [[0, 111, 30, 115]]


def test_a_rotated_box_is_the_extent_of_its_ellipse():
    image = torch.zeros(3, 400, 400, dtype=torch.uint8)
    square = make_target([[150, 150, 250, 250]], [0], [False], "x", (400, 400))
    # a circle turns into itself
    assert torch.allclose(rotate(image, square, 10.0)[1]["boxes"], square["boxes"], atol=1e-3)
    bar = make_target([[50, 170, 350, 230]], [0], [False], "x", (400, 400))
    x1, y1, x2, y2 = rotate(image, bar, 10.0)[1]["boxes"][0].tolist()
    assert (x2 - x1) * (y2 - y1) / (300 * 60) == pytest.approx(1.29, abs=0.01)
    assert rotate(image, bar, 90.0)[1]["boxes"][0].tolist() == pytest.approx([170, 50, 230, 350], abs=1e-2)


def test_rotation_is_counter_clockwise_and_its_corners_have_the_mean_colour():
    image, target = Drawn([[150, 50, 170, 70]], size=(120, 200))[0]  # right of the centre
    turned, turned_target = rotate(image, target, 20.0)
    assert turned_target["boxes"][0, 1] < 50  # so it goes up
    assert turned[:, 0, 0].tolist() == list(MEAN_COLOUR)
    assert math.isclose(turned_target["boxes"][0, [0, 2]].mean(), 100 + 60 * math.cos(math.radians(20)), abs_tol=1e-3)


def test_objects_mostly_out_of_view_are_dropped_with_all_their_fields():
    boxes = [[-70.0, 10, 31, 20], [-72, 10, 28, 20], [50, 50, 51.5, 60], [50, 50, 52, 60], [200, 10, 220, 30]]
    target = make_target(boxes, [0, 1, 2, 0, 1], [False, True, True, True, False], "x", (100, 100))
    kept = keep_visible(target, (0, 0, 100, 100))
    assert kept["boxes"].tolist() == [[0, 10, 31, 20], [50, 50, 52, 60]]
    assert kept["labels"].tolist() == [0, 0] and kept["difficult"].tolist() == [False, True]
    assert {len(kept[field]) for field in PER_BOX} == {2}


def test_what_a_window_was_laid_around_is_marked_and_all_else_in_view_is_labelled_hardly_less_often_than_anywhere():
    rng, augment, counts = random.Random(0), Augment(around_object=0.8), {True: 0, False: 0}
    sought_too = 0
    for _ in range(1500):
        places = [(rng.uniform(0, 190), rng.uniform(0, 110)) for _ in range(12)]
        objects = [([x, y, x + 10, y + 10], rng.random() < 0.3) for x, y in places]
        kept = make_target([box for box, is_kept in objects if is_kept], [0] * sum(is_kept for _, is_kept in objects),
                           [False] * sum(is_kept for _, is_kept in objects), "x", (120, 200))
        (x1, y1, x2, y2), target = augment._window(kept, (120, 200), (60, 60), rng)
        sought = target["boxes"][target["sought"]].tolist()
        assert len(sought) < 2 and all(box[0] >= x1 and box[2] <= x2 and box[1] >= y1 and box[3] <= y2 for box in sought)
        sought_too += len(sought)
        for box, is_kept in objects:
            seen = x1 < box[0] + 5 < x2 and y1 < box[1] + 5 < y2
            counts[is_kept] += seen and torch.tensor(box).tolist() not in sought
    share = counts[True] / sum(counts.values())
    # of 12 objects 1 is taken for the middle where k >= 1 are labelled, so of the 11 others E[k - 1 | k >= 1] / 11 = 0.241 are
    assert 0.24 < share < 0.3 and (counts[True] + sought_too) / (sum(counts.values()) + sought_too) > 0.4
    whole = augment._window(kept, (120, 200), (120, 200), rng)[1]
    assert not whole["sought"].any()            # the whole picture is in view, whatever is labelled
    image, target = Augment(around_object=1.0, mosaic=1.0)(Drawn(BOXES), 0, 120, 200, rng)
    assert 1 <= target["sought"].sum() <= 4 and len(target["sought"]) == len(target["boxes"])


def test_a_window_beside_the_picture_shows_the_mean_colour_and_nothing_else():
    image, target = Drawn(BOXES)[0]
    shown, shown_target = show(image, target, (500, 0, 600, 100), (50, 50))
    assert shown_target["boxes"].shape == (0, 4)
    assert (shown == torch.tensor(MEAN_COLOUR, dtype=torch.uint8)[:, None, None]).all()


def test_colour_factors_of_one_change_nothing_and_zero_does_what_it_says():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(jitter_colour(image, 1, 1, 1), image)
    assert (jitter_colour(image, 0, 1, 1) == 0).all()
    assert jitter_colour(image, 1, 0, 1).unique().numel() == 1
    grey = jitter_colour(image, 1, 1, 0)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])
    assert grey[0, 0, 0] == round(sum(w * int(v) for w, v in zip((0.299, 0.587, 0.114), image[:, 0, 0], strict=True)))
    doubled = jitter_colour(torch.full((3, 1, 1), 60, dtype=torch.uint8), 2, 1, 1)
    assert doubled.tolist() == [[[120]]] * 3


def test_contrast_is_around_the_mean_grey_and_brightness_multiplies_what_comes_out():
    pair = torch.tensor([40, 80], dtype=torch.uint8).expand(3, 1, 2)            # mean 60
    assert jitter_colour(pair, 1, 0.5, 1)[0].tolist() == [[50, 70]] and jitter_colour(pair, 2, 0.5, 1)[0].tolist() == [[100, 140]]


class Middle(random.Random):
    def uniform(self, low, high):
        return (low + high) / 2


def test_zoom_is_drawn_on_a_log_scale():
    image, target = Augment(flip=0, jitter=0, rotate=0, zoom=(0.25, 4))(Drawn(BOXES), 0, 120, 1000, Middle(0))
    assert torch.equal(image, Drawn(BOXES)[0][0]) and target["boxes"].tolist() == BOXES        # between a quarter and four times: 1


def test_rotation_goes_either_way(monkeypatch):
    degrees = []
    monkeypatch.setattr("dataset.augment.rotate", lambda image, target, angle: degrees.append(angle) or (image, target))
    for seed in range(40):
        Augment(jitter=0, rotate=5, rotate_probability=1)(Drawn(BOXES), 0, 120, 1000, random.Random(seed))
    assert -5 <= min(degrees) < -3 and 3 < max(degrees) <= 5


def test_a_mosaic_takes_its_other_pictures_from_the_whole_data_set():
    asked = []

    class Noted(Drawn):
        def __getitem__(self, index):
            asked.append(index)
            return super().__getitem__(index)
    for seed in range(10):
        Augment(jitter=0, rotate=0, mosaic=1)(Noted(BOXES, length=4), 0, 120, 1000, random.Random(seed))
    assert set(asked) == {0, 1, 2, 3} and len(asked) == 40


@pytest.mark.parametrize("sides", [(120, 100), (60, 200)])
def test_a_window_that_is_smaller_along_one_side_is_laid_around_an_object_too(sides):
    _, target = Augment(around_object=1.0)._window(Drawn(BOXES)[0][1], (120, 200), sides, random.Random(0))
    assert target["sought"].sum() == 1
