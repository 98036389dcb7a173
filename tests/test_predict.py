import pytest
import torch
from torch import nn

from engine.predict import detect_batch, merge_windows, predict


class Stub(nn.Module):
    """Hands out prepared (boxes, scores, labels) rows, one per network input, and notes how it was called."""

    def __init__(self, outputs):
        super().__init__()
        self.layer, self.frozen = nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1)
        self.outputs, self.calls = list(outputs), []

    def forward(self, images, image_sizes):
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        self.calls.append((self.training, torch.is_grad_enabled(), channels_last, self.layer(images.float()).dtype))
        return [as_detections(self.outputs.pop(0)) for _ in range(len(images))]


def as_detections(rows):
    boxes, scores, labels = zip(*rows, strict=True) if rows else ([], [], [])
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def batch_of(*infos, input_size=(100, 200)):
    images = torch.zeros(len(infos), 3, 128, 224, dtype=torch.uint8)
    return {"images": images, "image_sizes": torch.tensor([input_size] * len(infos))}, list(infos)


def info(image_id, window=(0, 0, 400, 200), orig_size=(200, 400)):
    return {"image_id": image_id, "orig_size": orig_size, "window": window}


def run(outputs, *batches, **options):
    return predict(Stub(outputs), batches, "cpu", progress=False, **options)


def test_a_box_comes_back_in_the_pictures_own_pixels():
    # the input is 200 wide and 100 high and shows a picture of 400 x 300: x doubles, y triples
    result = run([[([10, 20, 60, 100], 0.5, 3)]], batch_of(info("a", (0, 0, 400, 300), (300, 400))))
    assert result["a"]["boxes"].tolist() == [[20, 60, 120, 300]]
    assert result["a"]["scores"].tolist() == [0.5] and result["a"]["labels"].tolist() == [3]


def test_a_box_in_a_tile_moves_by_the_tiles_corner():
    # a tile of 100 x 50 pixels at (300, 150), shown enlarged twice
    result = run([[([20, 10, 40, 30], 0.5, 0)]], batch_of(info("a", window=(300, 150, 400, 200))))
    assert result["a"]["boxes"].tolist() == [[310, 155, 320, 165]]


def test_boxes_are_clipped_to_the_picture_and_not_to_its_padding():
    result = run([[([-5, -5, 224, 128], 0.5, 0)]], batch_of(info("a")))
    assert result["a"]["boxes"].tolist() == [[0, 0, 400, 200]]


def test_every_id_appears_also_without_a_detection_and_types_hold():
    result = run([[], [([0, 0, 9, 9], 0.5, 0)], []], batch_of(info("a"), info("b")), batch_of(info("c")))
    assert list(result) == ["a", "b", "c"]
    assert [len(result[name]["scores"]) for name in "abc"] == [0, 1, 0]
    assert result["a"]["boxes"].shape == (0, 4) and result["a"]["labels"].dtype == torch.int64
    assert not result["b"]["boxes"].is_inference() and not result["b"]["scores"].is_inference()


def test_an_empty_loader_gives_an_empty_dict():
    assert run([]) == {}


def test_modes_gradients_and_weights_are_left_as_found():
    network = Stub([[]])
    network.train()
    network.frozen.eval()
    predict(network, [batch_of(info("a"))], "cpu", progress=False)
    assert network.calls == [(False, False, True, torch.float32)]
    assert network.training and network.layer.training and not network.frozen.training
    assert network.layer.weight.is_contiguous()


def test_modes_are_restored_when_the_network_raises():
    network = Stub([])
    with pytest.raises(IndexError):
        predict(network.train(), [batch_of(info("a"))], "cpu", progress=False)
    assert network.training


def test_amp_dtype_reaches_the_network():
    network = Stub([[]])
    detect_batch(network, batch_of(info("a"))[0], torch.device("cpu"), torch.bfloat16)
    assert network.calls[0][3] == torch.bfloat16


LEFT, RIGHT = (0, 0, 200, 200), (150, 0, 350, 200)


def merge(*parts, orig_size=(200, 350), **options):
    return merge_windows([(as_detections(rows), info("a", window, orig_size)) for window, rows in parts], **options)


def test_an_object_seen_in_two_tiles_is_reported_once():
    result = merge((LEFT, [([160, 50, 180, 70], 0.8, 0)]), (RIGHT, [([161, 50, 181, 70], 0.9, 0)]))
    assert result["boxes"].tolist() == [[161, 50, 181, 70]]


def test_nms_between_tiles_is_class_aware():
    result = merge((LEFT, [([160, 50, 180, 70], 0.8, 0)]), (RIGHT, [([160, 50, 180, 70], 0.9, 1)]))
    assert result["labels"].tolist() == [1, 0]


def test_a_fragment_at_a_tile_border_gives_way_to_the_whole_even_with_a_higher_score():
    fragment, whole = ([180, 50, 199, 70], 0.9, 0), ([180, 50, 240, 70], 0.7, 0)  # IoU 19 / 60: NMS would keep both
    assert merge((LEFT, [fragment]), (RIGHT, [whole]))["boxes"].tolist() == [[180, 50, 240, 70]]


@pytest.mark.parametrize(
    "fragment, whole, why",
    [
        (([170, 50, 189, 70], 0.9, 0), ([170, 50, 230, 70], 0.7, 0), "no border cuts it"),
        (([180, 50, 199, 70], 0.9, 1), ([180, 50, 240, 70], 0.7, 0), "another class"),
        (([180, 50, 199, 70], 0.9, 0), ([180, 50, 240, 70], 0.4, 0), "the larger box is much less sure"),
        (([180, 50, 199, 70], 0.9, 0), ([190, 50, 240, 70], 0.7, 0), "only 9 / 19 of it are inside"),
    ],
)
def test_a_small_box_inside_a_larger_one_stays(fragment, whole, why):
    assert len(merge((LEFT, [fragment]), (RIGHT, [whole]))["scores"]) == 2, why


def test_many_fragments_go_as_one_does():
    tall = {"orig_size": (40000, 350)}
    left, right = (0, 0, 200, 40000), (150, 0, 350, 40000)
    fragments, wholes = ([([180, y, 199, y + 20], 0.9, 0) for y in range(0, 30000, 50)], [([180, y, 240, y + 20], 0.7, 0) for y in range(0, 30000, 50)])
    assert sorted(merge((left, fragments), (right, wholes), **tall)["boxes"].tolist()) == [box for box, *_ in wholes]


def test_boxes_at_the_pictures_own_border_are_not_cut():
    small, large = ([0, 50, 20, 70], 0.9, 0), ([0, 50, 60, 70], 0.7, 0)
    assert len(merge((LEFT, [small]), ((0, 0, 180, 200), [large]))["scores"]) == 2


def test_two_boxes_of_one_tile_are_never_fragments_of_each_other():
    assert len(merge((LEFT, [([180, 50, 199, 70], 0.9, 0), ([100, 50, 199, 70], 0.8, 0)]), (RIGHT, []))["scores"]) == 2


def test_merging_keeps_all_that_the_tiles_give_and_sorts_by_score():
    rows = [([5 * x, 0, 5 * x + 4, 10], (x * 37 % 101) / 101, 0) for x in range(80)]
    merged = merge((LEFT, rows[:40]), (RIGHT, rows[40:]))["scores"].tolist()
    assert merged == pytest.approx(sorted((score for _, score, _ in rows), reverse=True)) and len(merged) == 80
    many = [([5 * (x % 40), 20 * (x // 40), 5 * (x % 40) + 4, 20 * (x // 40) + 10], 0.9, 0) for x in range(160)]
    assert len(merge((LEFT, many), (RIGHT, []))["scores"]) == 160


def test_merging_nothing_gives_nothing():
    result = merge((LEFT, []), (RIGHT, []))
    assert result["boxes"].shape == (0, 4) and len(result["labels"]) == 0


def test_windows_of_one_picture_may_come_in_different_batches():
    tiles = [info("a", (0, 0, 200, 100), (100, 350)), info("a", (150, 0, 350, 100), (100, 350))]
    outputs = [[([180, 50, 199, 70], 0.9, 0)], [([0, 0, 9, 9], 0.5, 0)], [([30, 50, 90, 70], 0.7, 0)]]
    result = run(outputs, batch_of(tiles[0], info("b")), batch_of(tiles[1]))
    assert result["a"]["boxes"].tolist() == [[180, 50, 240, 70]] and len(result["b"]["scores"]) == 1


def test_an_object_that_both_tiles_cut_and_see_alike_is_found_once():
    seen = ([150, 50, 200, 70], 0.9, 0)                     # from the one tile's border to the other's
    assert merge((LEFT, [seen]), (RIGHT, [seen]))["boxes"].tolist() == [[150, 50, 200, 70]]


def test_what_counts_as_cut_and_as_contained_at_their_limits():
    whole = ([180, 50, 240, 70], 0.7, 0)
    assert len(merge((LEFT, [([182, 50, 196.5, 70], 0.9, 0)]), (RIGHT, [whole]))["scores"]) == 1         # 3.5 px of 200 from the border: 1.75 %
    assert len(merge((LEFT, [([182, 50, 195, 70], 0.9, 0)]), (RIGHT, [whole]))["scores"]) == 2           # 2.5 %
    for start, left in ((174, 1), (171, 2)):                # 20 of 26 px, and 20 of 29, lie inside: 77 % and 69 %
        assert len(merge((LEFT, [([start, 50, 200, 70], 0.9, 0)]), (RIGHT, [whole]))["scores"]) == left


def test_the_margin_of_a_tile_is_a_share_of_its_own_width_and_height():
    left, right = (0, 0, 200, 30), (150, 0, 350, 30)        # 3 px before its border: 1.5 % of the width, 10 % of the height
    result = merge((left, [([180, 5, 197, 25], 0.9, 0)]), (right, [([180, 5, 240, 25], 0.7, 0)]), orig_size=(30, 350))
    assert result["boxes"].tolist() == [[180, 5, 240, 25]]
