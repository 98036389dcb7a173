import math

import pytest
import torch
from torchvision.ops import distance_box_iou_loss, generalized_box_iou_loss, sigmoid_focal_loss

from model.box_loss import BOX_LOSSES, diou_loss, giou_loss, iou_loss, linear_iou_loss, paired_iou
from model.config import FCOSConfig
from model.locations import pyramid_locations
from model.loss import FCOSLoss, centerness
from model.targets import assign

CONFIG = FCOSConfig(num_classes=3)


def losses(logit=0.0, ltrb=1.0, quality=0.0, boxes=(((0, 0, 16, 16),),), labels=((1,),), weights=None, config=CONFIG, dtype=torch.float32):
    """Losses on one 32 x 32 level of stride 8 with constant outputs; returns them and the output tensors."""
    boxes, labels = torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)
    locations, strides = pyramid_locations(((4, 4),), (8,))
    batch, count = len(boxes), len(locations)
    outputs = {"cls_logits": torch.full((batch, count, 3), logit, dtype=dtype), "ltrb": torch.full((batch, count, 4), ltrb, dtype=dtype),
               "quality_logits": torch.full((batch, count), quality, dtype=dtype)}
    for value in outputs.values():
        value.requires_grad_()
    matched = assign(boxes, labels, torch.zeros_like(labels, dtype=torch.bool), [(4, 4)], (8,), ((0, math.inf),), 1.5)
    weights = torch.ones_like(labels, dtype=torch.float32) if weights is None else torch.tensor(weights)
    return FCOSLoss(config)(outputs, locations, strides, matched, {"boxes": boxes, "labels": labels, "weights": weights}), outputs


def test_centerness_by_hand():
    ltrb = torch.tensor([[4.0, 4, 4, 4], [1, 2, 4, 2], [0, 1, 1, 1], [0, 0, 0, 0]])
    assert centerness(ltrb).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_iou_by_hand_and_without_area():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 1, 1], [3, 3, 3, 3]])
    b = torch.tensor([[1.0, 0, 3, 2], [2, 2, 3, 3], [3, 3, 3, 3]])
    assert torch.allclose(paired_iou(a, b), torch.tensor([1 / 3, 0.0, 0.0]))
    assert torch.isfinite(iou_loss(a, b)).all()
    pixel = torch.tensor([1920.0, 1080, 1921, 1081], requires_grad=True)
    iou_loss(pixel, torch.tensor([0.0, 0, 3840, 2160])).backward()            # its IoU is 1 / 8,294,400
    assert (pixel.grad[:2] > 0.5).all() and (pixel.grad[2:] < -0.5).all()


def test_giou_and_diou_are_torchvisions():
    torch.manual_seed(0)
    corners = torch.rand(2, 500, 2) * 10
    a, b = torch.cat([corners, corners + torch.rand(2, 500, 2) * 6], -1)
    assert torch.allclose(giou_loss(a, b), generalized_box_iou_loss(a, b), atol=1e-5)
    assert torch.allclose(diou_loss(a, b), distance_box_iou_loss(a, b), atol=1e-5)
    assert giou_loss(torch.tensor([0.0, 0, 1, 1]), torch.tensor([1.0, 0, 2, 1])).item() == pytest.approx(1.0)


def test_linear_iou_and_diou_by_hand():
    a, b = torch.tensor([0.0, 0, 2, 2]), torch.tensor([1.0, 0, 3, 2])
    assert linear_iou_loss(a, b).item() == pytest.approx(2 / 3)
    assert diou_loss(a, b).item() == pytest.approx(2 / 3 + 1 / (9 + 4))            # centres 1 apart in a hull of 3 x 2


@pytest.mark.parametrize("name, each", [("giou", 1 - 2.25 / 5.75 + 0.5 / 6.25), ("iou", -math.log(2.25 / 5.75)), ("linear_iou", 1 - 2.25 / 5.75),
                                        ("diou", 1 - 2.25 / 5.75 + 0.5 / 12.5)])
def test_each_box_loss_where_positives_weigh_the_same(name, each):
    # As below by hand: four positives, IoU 2.25 / 5.75 in a hull of 2.5 x 2.5, the centres (0.5, 0.5) apart.
    result, _ = losses(config=FCOSConfig(num_classes=3, box_loss=name, box_weighting="none"))
    assert result["reg"][0].tolist() == pytest.approx([4 * each, 4], rel=1e-4)


def test_the_focal_loss_has_the_alpha_and_gamma_of_the_config():
    # All probabilities are a half; 4 of the 16 x 3 are those of positives.
    result, _ = losses(logit=0.0, config=FCOSConfig(num_classes=3, focal_alpha=0.4, focal_gamma=1.0))
    assert result["cls"][0, 0].item() == pytest.approx((4 * 0.4 + 44 * 0.6) * 0.5 * math.log(2), rel=1e-4)


def test_the_losses_of_one_box_by_hand():
    # The box [0, 0, 16, 16] claims the four cells of its inside (|x - 8| < 12, inside the box): centres 4 and 12.
    result, _ = losses(logit=0.0, ltrb=1.0, quality=0.0)
    cls, reg, quality = (result[name][0] for name in ("cls", "reg", "quality"))
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    assert cls[0].item() == pytest.approx(4 * positive + (16 * 3 - 4) * negative, rel=1e-5)
    assert cls[1].item() == quality[1].item() == 4
    # In strides each target is (.5, .5, 1.5, 1.5) in some order, centerness 1/3. Prediction: 2 x 2 around the cell; the box is
    # 2 x 2, shifted by .5 in x and y: intersection 1.5^2, union 8 - 2.25, hull 2.5^2.
    giou = 2.25 / 5.75 - (6.25 - 5.75) / 6.25
    assert reg[1].item() == pytest.approx(4 / 3, rel=1e-5)
    assert reg[0].item() == pytest.approx(4 / 3 * (1 - giou), rel=1e-4)
    assert quality[0].item() == pytest.approx(4 * math.log(2), rel=1e-5)


def test_the_quality_target_can_be_the_iou():
    result, outputs = losses(ltrb=1.0, config=FCOSConfig(num_classes=3, quality="iou"))
    result["quality"][0, 0].backward()
    expected = 0.5 - 2.25 / 5.75                       # sigmoid(0) - IoU at the positives
    assert outputs["quality_logits"].grad[0, 0].item() == pytest.approx(expected, rel=1e-4)
    assert outputs["ltrb"].grad is None or outputs["ltrb"].grad.abs().sum() == 0


def test_a_perfect_prediction_costs_nothing():
    locations, strides = pyramid_locations(((4, 4),), (8,))
    boxes, labels = torch.tensor([[[0.0, 0, 16, 16]]]), torch.tensor([[1]])
    matched = assign(boxes, labels, torch.zeros(1, 1, dtype=torch.bool), [(4, 4)], (8,), ((0, math.inf),), 1.5)
    ltrb = torch.cat([locations, 16 - locations], 1)[None].clamp(min=0) / 8
    logits = torch.full((1, 16, 3), -30.0)
    logits[0, matched[0] == 0, 1] = 30.0
    outputs = {"cls_logits": logits, "ltrb": ltrb, "quality_logits": torch.zeros(1, 16)}
    result = FCOSLoss(CONFIG)(outputs, locations, strides, matched, {"boxes": boxes, "labels": labels, "weights": torch.ones(1, 1)})
    assert result["cls"][0, 0] < 1e-8 and result["reg"][0, 0].abs() < 1e-5


def test_a_picture_without_objects_costs_only_its_background():
    result, outputs = losses(logit=-2.0, boxes=(((0, 0, 0, 0),),), labels=((-1,),))
    expected = sigmoid_focal_loss(torch.full((16, 3), -2.0), torch.zeros(16, 3), reduction="sum")
    assert result["cls"][0].tolist() == pytest.approx([expected.item(), 0.0])
    assert result["reg"][0].tolist() == result["quality"][0].tolist() == [0.0, 0.0]
    sum(pair[0, 0] for pair in result.values()).backward()
    assert outputs["ltrb"].grad.abs().sum() == 0 and outputs["quality_logits"].grad.abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("logit", [-1000.0, -100.0, 17.0, 100.0, 1000.0])
@pytest.mark.parametrize("ltrb", [0.0, 1e-6, 1000.0])
@pytest.mark.parametrize("box", [(0, 0, 16, 16), (8, 8, 8, 8), (3, 3, 3.0001, 30)])
def test_no_finite_output_gives_a_loss_or_gradient_that_is_not_finite(logit, ltrb, box, dtype):
    for config in (CONFIG, *(FCOSConfig(num_classes=3, box_loss=name, quality="iou") for name in BOX_LOSSES)):
        result, outputs = losses(logit, ltrb, logit, boxes=((box,),), config=config, dtype=dtype)
        sum(pair[0, 0] for pair in result.values()).backward()
        assert all(torch.isfinite(pair).all() for pair in result.values())
        assert all(torch.isfinite(value.grad).all() for value in outputs.values())


def test_a_weight_counts_in_sums_and_counts_and_zero_is_no_gradient():
    full, _ = losses()
    half, _ = losses(weights=((0.5,),))
    for name in ("reg", "quality"):
        assert torch.allclose(half[name], full[name] / 2)
    none, outputs = losses(weights=((0.0,),))
    sum(pair[0, 0] for pair in none.values()).backward()
    assert outputs["ltrb"].grad.abs().sum() == 0
    assert outputs["cls_logits"].grad[0, 0].abs().sum() == 0 and outputs["cls_logits"].grad[0, 15].abs().sum() > 0


def test_what_is_ignored_is_neither_object_nor_background():
    locations, strides = pyramid_locations(((4, 4),), (8,))
    outputs = {"cls_logits": torch.zeros(1, 16, 3, requires_grad=True), "ltrb": torch.ones(1, 16, 4), "quality_logits": torch.zeros(1, 16)}
    targets = {"boxes": torch.zeros(1, 1, 4), "labels": torch.tensor([[-1]]), "weights": torch.zeros(1, 1)}
    result = FCOSLoss(CONFIG)(outputs, locations, strides, torch.tensor([[-2] * 6 + [-1] * 10]), targets)
    assert result["cls"][0].tolist() == pytest.approx([10 * 3 * 0.75 * 0.25 * math.log(2), 0], rel=1e-5)
    result["cls"][0, 0].backward()
    gradient = outputs["cls_logits"].grad[0].abs().sum(1)
    assert (gradient[:6] == 0).all() and (gradient[6:] > 0).all()


def test_the_iou_that_the_quality_learns_is_a_constant():
    result, outputs = losses(ltrb=1.0, quality=1.0, config=FCOSConfig(num_classes=3, quality="iou"))     # at 0 the entropy is that of any target
    result["quality"][0, 0].backward()
    assert outputs["ltrb"].grad is None or outputs["ltrb"].grad.abs().sum() == 0


def test_outputs_of_half_precision_are_reckoned_with_in_float32():
    logit, ltrb, quality = (torch.tensor(value, dtype=torch.bfloat16).item() for value in (-1.3, 0.7, 2.3))
    half, whole = (losses(logit, ltrb, quality, dtype=dtype)[0] for dtype in (torch.bfloat16, torch.float32))
    assert all(torch.equal(half[name], whole[name]) for name in whole)


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_every_box_loss_is_finite_for_two_boxes_that_are_one_point(name):
    point = torch.tensor([[3.0, 3, 3, 3]], requires_grad=True)
    loss = BOX_LOSSES[name](point, point.detach())
    loss.sum().backward()
    assert loss.isfinite().all() and point.grad.isfinite().all()


def test_the_iou_loss_pulls_a_first_box_also_at_an_object_of_eighty_megapixels():
    pixel = torch.tensor([4500.0, 4500, 4501, 4501], requires_grad=True)
    iou_loss(pixel, torch.tensor([0.0, 0, 9000, 9000])).backward()            # its IoU is 1 / 81,000,000
    assert (pixel.grad[:2] > 0.5).all() and (pixel.grad[2:] < -0.5).all()
