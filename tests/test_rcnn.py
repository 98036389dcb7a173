"""Faster R-CNN and Mask R-CNN: both stages by hand, every choice, empty cases. (One gradient however a batch is split: test_distributed.)"""
from types import SimpleNamespace

import pytest
import torch

from engine.distributed import combine
from model import build_model, needs_masks
from model.config import MODELS, PRESETS, MaskRCNNConfig, RCNNConfig
from model.mask_head import MaskHead
from model.roi_heads import BoxHead, RoIPool, level_by_size
from model.rpn import RPN, suppress
from util.masks import pack_bits

FASTER = {"num_classes": 3, "model": "faster_rcnn", "backbone": "regnet_x_400mf", "fpn_channels": 16, "box_channels": 32, "proposals": 50,
          "training_proposals": 60}
SMALL = {**FASTER, "model": "mask_rcnn", "mask_convs": 1, "mask_channels": 8}
IMAGES, SIZES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])


def small_model(**fields):
    torch.manual_seed(0)
    return build_model({**(FASTER if fields.get("model") == "faster_rcnn" else SMALL), **fields})


def targets(boxes=((8, 8, 40, 40), (30, 10, 90, 60)), labels=((1, 2), (-1, -1))):
    labels = torch.tensor(labels)
    masks = torch.zeros(2, 2, 64, 96, dtype=torch.uint8)
    masks[:, :, 10:30, 10:50] = 1
    return {"boxes": torch.tensor([boxes] * 2, dtype=torch.float32), "labels": labels, "weights": torch.ones(labels.shape),
            "ignore": torch.zeros(labels.shape, dtype=torch.bool), "masks": pack_bits(masks)}


CHOICES = [{}, FASTER, {"pyramid": "p3-p5"}, {"roi_levels": "own"}, {"box_refinement": False}, {"mask_convs": 0},
           {"backbone": "efficientnet_lite0", "pyramid": "p3-p5"}, {"anchor_ratios": (1.0,), "anchor_scale": 4.0}, PRESETS["rcnn_small"]]


@pytest.mark.parametrize("fields", CHOICES, ids=lambda fields: "faster_rcnn" if fields is FASTER else " ".join(fields) or "default")
@pytest.mark.parametrize("labels", [((1, 2), (-1, -1)), ((-1, -1), (-1, -1))], ids=["objects", "none"])
def test_every_choice_trains_and_detects_with_objects_and_without(fields, labels):
    network = small_model(**fields | {"score_threshold": 0.0})
    losses = network(IMAGES, SIZES, targets(labels=labels))
    assert list(losses) == ["objectness", "rpn_reg", "cls", *["reg"] * network.config.box_refinement, *["mask"] * network.needs_masks]
    assert all(pair.shape == (1, 2) and pair.dtype == torch.float32 and pair.isfinite().all() for pair in losses.values())
    assert losses["cls"][0, 1] > 0 and network.needs_masks == (network.config.model == "mask_rcnn")
    combine(losses)[0].backward()
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())        # and all of them have one
    with torch.inference_mode():
        results = network.eval()(IMAGES, SIZES)
    for result, (height, width) in zip(results, SIZES.tolist(), strict=True):
        boxes, scores = result["boxes"], result["scores"]
        assert 0 < len(boxes) == len(scores) == len(result["labels"]) <= 100 and (scores.diff() <= 0).all()
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height] * 2)).all() and (result["labels"] < 3).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all() and ("masks" in result) == network.needs_masks
        if network.needs_masks:
            assert result["masks"].shape == (len(boxes), 28, 28) and (result["masks"] >= 0).all() and (result["masks"] <= 1).all()


def test_where_nothing_is_sure_enough_or_proposed_nothing_is_found():
    network = small_model(score_threshold=0.999).eval()
    with torch.inference_mode():
        for result in network(IMAGES, SIZES):
            assert result["boxes"].shape == (0, 4) and result["masks"].shape == (0, 28, 28) and result["labels"].dtype == torch.int64
        network.rpn.deltas.bias.fill_(-1e4)                     # all proposals left of and above the picture, without area
        assert (network.rpn.propose(*network.look(IMAGES, SIZES)[1:], SIZES, 50)[1] == -1).all()
        assert [len(result["boxes"]) for result in network(IMAGES, SIZES)] == [0, 0]
    losses = network(IMAGES, SIZES, targets(labels=((-1, -1), (-1, -1))))
    assert losses["cls"].tolist() == losses["mask"].tolist() == [[0, 0]] and losses["objectness"][0, 1] == 512
    combine(losses)[0].backward()
    losses = network(IMAGES, SIZES, targets())                  # the objects themselves are left to learn from
    assert losses["cls"][0, 1] == losses["mask"][0, 1] == 2 and all(pair.isfinite().all() for pair in losses.values())


def test_objects_without_area_are_none():
    network = small_model(rpn_samples=10 ** 4, roi_samples=10 ** 4).eval()
    bare, flat = (network(IMAGES, SIZES, targets(boxes=((20, 20, 20, 40), (5, 5, 5, 5)), labels=labels))
                  for labels in (((-1, -1), (-1, -1)), ((1, 2), (0, -1))))
    assert all(flat[name][0, 1] == pair[0, 1] and torch.allclose(flat[name], pair) for name, pair in bare.items())


@pytest.mark.parametrize("fields, sentence", [
    ({"model": "fast_rcnn"}, "model is 'fast_rcnn', not one of fcos, faster_rcnn, mask_rcnn"), ({"pyramid": "p1-p9"}, "pyramid is 'p1-p9', not one of p2-p6, p3-p5"),
    ({"roi_levels": "all"}, "roi_levels is 'all', not one of size, own"), ({"rpn_iou": (0.7, 0.3)}, r"rpn_iou is \(0.7, 0.3\), must be two numbers, the lower first"),
    ({"rpn_iou": (0.3, 1.7)}, r"rpn_iou is \(0.3, 1.7\), must be in 0..1"), ({"proposals": 0}, "proposals is 0, must be 1 or more"),
    ({"anchor_ratios": ()}, r"anchor_ratios is \(\), must be one or more"), ({"anchor_scale": -8.0}, "anchor_scale is -8.0, must be in 0.5..64"),
    ({"roi_size": 0}, "roi_size is 0, must be 1 or more"), ({"levels": 5}, "unknown field 'levels'"), ({"backbone": "vgg"}, "backbone is 'vgg', not one of")])
def test_what_cannot_be_is_refused_by_name(fields, sentence):
    with pytest.raises(ValueError, match=f"^.*{sentence}"):
        small_model(**fields)


def test_the_config_survives_its_own_plain_dict_and_tells_its_levels():
    config = MaskRCNNConfig(num_classes=7, anchor_ratios=(1.0, 3.0))
    assert MaskRCNNConfig.from_dict(config.asdict()) == config
    assert config.strides == (4, 8, 16, 32, 64) and RCNNConfig(7, pyramid="p3-p5").strides == (8, 16, 32)
    assert [needs_masks(name) for name in MODELS] == [False, False, True]


# The first stage

def test_proposals_by_hand():
    # One level of 1 x 2 cells 16 px apart, one anchor of 32 x 32 at (0, 0) and (16, 0), both cut to the upper left of 40 x 30.
    rpn, anchors = RPN(RCNNConfig(1, anchor_ratios=(1.0,))), torch.tensor([[-16.0, -16, 16, 16], [0, -16, 32, 16]])
    outputs = {"objectness": torch.tensor([[0.0, 1.0]]), "deltas": torch.zeros(1, 2, 4)}
    boxes, levels = rpn.propose(outputs, anchors, [2], torch.tensor([[30, 40]]), 5)
    assert boxes.tolist() == [[[0, 0, 32, 16], [0, 0, 16, 16]]] and levels.tolist() == [[0, 0]]
    outputs["deltas"][0, 0, 0] = 0.375                          # 12 px to the right: [-4, -16, 28, 16], whose IoU with the better one is 7/8
    boxes, levels = rpn.propose(outputs, anchors, [2], torch.tensor([[30, 40]]), 5)
    assert boxes.tolist() == [[[0, 0, 32, 16], [0, 0, 0, 0]]] and levels.tolist() == [[0, -1]]
    boxes, levels = rpn.propose(outputs, anchors, [1, 1], torch.tensor([[30, 40]]), 5)          # of two levels they do not meet
    assert boxes.tolist() == [[[0, 0, 32, 16], [0, 0, 28, 16]]] and levels.tolist() == [[1, 0]]
    boxes, levels = rpn.propose(outputs, anchors, [1, 1], torch.tensor([[30, 40]]), 1)
    assert boxes.tolist() == [[[0, 0, 32, 16]]] and levels.tolist() == [[1]]


def test_the_losses_of_the_first_stage_by_hand():
    # Of three anchors one matches, the second is ignored, the third background: two sampled ones, of logits 0: log 2 each.
    rpn, anchors = RPN(RCNNConfig(1)), torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20], [50, 50, 60, 60]])
    outputs = {"objectness": torch.zeros(1, 3), "deltas": torch.zeros(1, 3, 4)}
    wanted = {"boxes": torch.tensor([[[1.0, 0, 11, 10]]]), "labels": torch.tensor([[0]]), "weights": torch.tensor([[3.0]])}
    losses = rpn.loss(outputs, anchors, torch.tensor([[0, -2, -1]]), wanted)
    assert losses["objectness"][0].tolist() == pytest.approx([(3 + 1) * 0.6931472, 4])         # an object of weight 3, and background
    assert losses["rpn_reg"][0].tolist() == pytest.approx([3 * 0.5 * 0.1 ** 2 * 9, 4])          # 0.1 sides to the right: x^2 / 2 / beta


def test_nms_keeps_the_best_of_each_picture_in_order():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 10], [0, 0, 10, 9]])
    scores, picture = torch.tensor([0.5, 0.9, 0.6, 0.7, 0.8]), torch.tensor([0, 0, 0, 1, 1])
    keep, rank = suppress(boxes, scores, picture, picture, 0.7, 10)
    assert keep.tolist() == [1, 2, 4] and rank.tolist() == [0, 1, 0]
    keep, rank = suppress(boxes, scores, torch.arange(5), picture, 0.7, 2)
    assert keep.tolist() == [1, 2, 4, 3] and rank.tolist() == [0, 1, 0, 1]
    keep, rank = suppress(boxes[:0], scores[:0], picture[:0], picture[:0], 0.7, 2)
    assert len(keep) == len(rank) == 0


def test_nms_decides_alike_for_a_small_box_wherever_it_stands_in_a_large_batch():
    groups = torch.arange(2).repeat_interleave(2)
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8 * 0.701], [0, 0, 8, 8], [0, 0, 8, 8 * 0.699], [0, 0, 1300, 800]])
    for first in (0, 1000):                                    # as of 12 pictures with 80 classes
        of = torch.cat([groups + first, torch.tensor([first + 2])])
        keep, _ = suppress(boxes, torch.tensor([0.9, 0.8, 0.9, 0.8, 0.1]), of, of, 0.7, 10)
        assert keep.tolist() == [0, 2, 3, 4]


# The second stage

def test_twice_the_side_is_a_level_up():
    boxes = torch.tensor([[0.0, 0, 224, 224], [0, 0, 112, 112], [0, 0, 448, 112], [0, 0, 111, 111], [0, 0, 0, 0], [0, 0, 4000, 4000], [0, 0, 447, 447]])
    assert (level_by_size(boxes, 14, 2, 5) + 2).tolist() == [4, 3, 4, 2, 2, 5, 4]
    assert (level_by_size(boxes, 14, 3, 5) + 3).tolist() == [4, 3, 4, 3, 3, 5, 4]


@pytest.mark.parametrize("levels, pyramid, expected", [("size", "p2-p6", [2, 2, 3, 4, 5]), ("own", "p2-p6", [2, 3, 4, 5, 6]), ("own", "p3-p5", [3, 3, 4, 5, 5])])
def test_an_object_is_seen_on_the_level_of_proposals_of_its_size(levels, pyramid, expected):
    # anchors are 32, 64, 128, 256 and 512 px; what lies nearest to 32 ends at 45
    boxes = torch.tensor([[0.0, 0, side, side] for side in (44, 46, 140, 300, 480)])
    config = RCNNConfig(1, pyramid=pyramid, roi_levels=levels)
    assert (RoIPool(config).by_size(boxes) + config.finest).tolist() == expected


@pytest.mark.parametrize("levels, expected", [("size", [4, 8, 16]), ("own", [64, 32, 16])])
def test_features_come_from_the_level_of_the_size_or_from_ones_own(levels, expected):
    strides = RCNNConfig(1).strides
    pyramid = [torch.full((2, 1, 512 // stride, 512 // stride), float(stride)) for stride in strides]
    pyramid[2][1] += 0.5                                        # the second picture
    boxes = torch.tensor([[0.0, 0, 32, 32], [0, 0, 150, 150], [0, 0, 300, 300]])
    pool = RoIPool(RCNNConfig(1, roi_levels=levels))
    features = pool(pyramid, boxes, torch.tensor([0, 0, 1]), torch.tensor([4, 3, 2]), 7)
    assert features.shape == (3, 1, 7, 7) and features.amax((1, 2, 3)).tolist() == [*expected[:2], 16.5]


def box_head(**fields):
    """A head of one class (two with refinement) that says nothing but its biases."""
    head = BoxHead(RCNNConfig(2, fpn_channels=1, box_channels=4, **fields))
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    return head, [torch.zeros(1, 1, side, side) for side in (32, 16, 8, 4, 2)]


def test_the_losses_of_the_second_stage_by_hand():
    head, pyramid = box_head(roi_samples=4)
    wanted = {"boxes": torch.tensor([[[0.0, 0, 20, 20]]]), "labels": torch.tensor([[1]]), "weights": torch.tensor([[2.0]]), "ignore": torch.tensor([[False]])}
    proposals = torch.tensor([[[0.0, 0, 20, 16], [60, 60, 80, 80], [0, 0, 0, 0]]]), torch.tensor([[0, 0, -1]])
    samples = head.samples(proposals, wanted)
    assert sorted(samples.matched_gt[0].tolist()) == [-2, -2, -1, 0]         # one positive of four at most: of 0.8, or the object itself
    samples.boxes[samples.matched_gt == 0] = torch.tensor([0.0, 0, 20, 16])
    losses = head.loss(pyramid, samples, wanted)
    assert losses["cls"][0].tolist() == pytest.approx([(2 + 1) * 1.0986123, 3])                # log 3: two classes and background
    move, scale = 10 * 2 / 16, 5 * torch.tensor(20 / 16).log().item()
    assert losses["reg"][0].tolist() == pytest.approx([2 * (move - 1 / 18 + scale - 1 / 18), 3])


def test_detections_by_hand():
    head, pyramid = box_head()
    with torch.no_grad():
        head.cls_logits.bias.copy_(torch.tensor([0.2, 0.7, 0.1]).log())
        head.deltas.bias.view(2, 4)[1] = torch.tensor([1.0, 0, 0, 0])        # class 1: a tenth of its width to the right
        proposals = torch.tensor([[[0.0, 0, 20, 16], [0, 0, 20, 17], [50, 50, 60, 60]]]), torch.tensor([[0, 0, -1]])
        found = head.detect(pyramid, proposals, torch.tensor([[64, 21]]))
    assert found.labels.tolist() == [1, 0] and found.picture.tolist() == [0, 0] and found.level.tolist() == [0, 0]
    assert found.scores.tolist() == pytest.approx([0.7, 0.2])
    assert found.boxes[0].tolist() == pytest.approx([2, 0, 21, 16]) and found.boxes[1].tolist() == pytest.approx([0, 0, 20, 16])


def test_without_refinement_a_detection_is_its_proposal():
    network = small_model(box_refinement=False, score_threshold=0.0).eval()
    with torch.inference_mode():
        pyramid, *rest = network.look(IMAGES, SIZES)
        boxes, _ = network.rpn.propose(*rest, SIZES, 50)
        results = network(IMAGES, SIZES)
    assert "box_head.deltas.weight" not in network.state_dict()
    for result, proposals in zip(results, boxes, strict=True):
        assert (result["boxes"][:, None] == proposals).all(-1).any(1).all()


def test_the_mask_loss_by_hand():
    head = MaskHead(MaskRCNNConfig(2, fpn_channels=1, mask_channels=2, mask_convs=0))
    pyramid = [torch.zeros(1, 1, side, side) for side in (16, 8, 4, 2, 1)]
    torch.nn.init.zeros_(head.upsample.weight)
    head.mask_logits.bias.data = torch.tensor([0.0, 2.0])
    masks = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    masks[0, 0, :, :20] = 1                                     # the left half of the box, of all pixels but those around the edge
    wanted = {"labels": torch.tensor([[1, 0, 0]]), "weights": torch.tensor([[3.0, 1, 1]]), "masks": pack_bits(masks)}
    boxes = torch.tensor([[[0.0, 0, 40, 40], [10, 10, 30, 30], [40, 40, 60, 60]]])
    samples = SimpleNamespace(boxes=boxes, level=torch.zeros(1, 3, dtype=torch.int64), matched_gt=torch.tensor([[0, 1, -1]]))
    total, count = head.loss(pyramid, samples, wanted)["mask"][0].tolist()
    inside, outside = torch.nn.functional.softplus(torch.tensor([-2.0, 2.0])).tolist()
    assert count == 3 and total == pytest.approx(3 * (inside + outside) / 2, rel=0.04)         # the second has no mask and does not count
    found = SimpleNamespace(boxes=boxes[0], picture=torch.zeros(3, dtype=torch.int64), level=torch.zeros(3, dtype=torch.int64), labels=torch.tensor([0, 1, 0]))
    assert head.detect(pyramid, found)["masks"].amax((1, 2)).tolist() == pytest.approx([0.5, 0.8807971, 0.5])


# The whole

def test_a_region_to_leave_out_and_a_weight_of_nothing_count_for_nothing():
    network = small_model(rpn_samples=10 ** 4, roi_samples=10 ** 4).eval()
    with torch.no_grad():
        wanted = targets()
        bare = network(IMAGES, SIZES, targets(labels=((-1, -1), (-1, -1))))
        wanted["weights"][:] = 0
        weightless = network(IMAGES, SIZES, wanted)
        assert weightless["rpn_reg"][0, 0] == weightless["reg"][0, 0] == weightless["mask"][0, 0] == 0
        wanted["ignore"][0, :] = True
        left_out = network(IMAGES, SIZES, wanted)
    assert left_out["objectness"][0, 1] < bare["objectness"][0, 1] and left_out["rpn_reg"][0, 0] == 0


def test_one_seed_gives_one_loss_and_another_gives_another():
    network = small_model(rpn_samples=8, roi_samples=8)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(network(IMAGES, SIZES, targets())["objectness"][0, 0].item())
    assert found[0] == found[1] != found[2]


def test_half_precision_gives_float32_losses_and_nearly_those_of_float32():
    network = small_model(rpn_samples=10 ** 4, roi_samples=10 ** 4).eval()
    full = network(IMAGES, SIZES, targets())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(IMAGES, SIZES, targets())
        detections = network(IMAGES, SIZES)
    assert all(pair.dtype == torch.float32 for pair in half.values()) and all(value.dtype == torch.float32 for name, value in detections[0].items() if name != "labels")
    for name in ("objectness", "rpn_reg"):
        assert torch.allclose(half[name], full[name], rtol=0.05)


def test_what_each_anchor_and_proposal_was_assigned_to_is_told():
    network, wanted = small_model(), targets()
    parts = network.assigned(IMAGES, SIZES, wanted)
    assert [part["name"] for part in parts] == ["RPN P2", "RPN P3", "RPN P4", "RPN P5", "RPN P6", "proposals"]
    for part in parts:
        assert part["boxes"].shape == (*part["matched_gt"].shape, 4) and part["boxes"].shape[0] == 2
        assert (part["matched_gt"][1] < 0).all() and (part["matched_gt"] < 2).all()
    assert {row for part in parts[:5] for row in part["matched_gt"][0].tolist()} >= {-1, 0, 1}


def test_an_ignore_zone_is_no_object_and_leaves_out_what_it_covers():
    network, zone = small_model(model="faster_rcnn"), torch.tensor([[False, True]] * 2)
    given = targets(labels=((1, 2), (1, 2)))
    by_zone, by_region = (network.assigned(IMAGES, SIZES, given | {name: zone}) for name in ("zone_ignore", "ignore"))
    assert all(torch.equal(one["matched_gt"], other["matched_gt"]) for one, other in zip(by_zone, by_region, strict=True))
    assert not any((level["matched_gt"] == 1).any() for level in by_zone) and any((level["matched_gt"] == -2).any() for level in by_zone)
