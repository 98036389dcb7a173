"""torchvision's fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn, converted, are what they were: the same proposals,
detections and masks, and the same losses and gradients on the same samples."""
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models.detection import fasterrcnn_resnet50_fpn, maskrcnn_resnet50_fpn

from dataset.pictures import find_pictures, read_picture
from engine.checkpoint import load_checkpoint
from model import build_model, load_model
from model.anchors import sample
from model.foreign_weights import convert, load_detector
from tools import convert_weights
from util.class_names import COCO_NAMES
from util.masks import pack_bits

TINY = Path(__file__).parent.parent.parent / "shared" / "data" / "coco_tiny" / "val2017"
NO_CLASS = [0, *(id for id in range(91) if id not in COCO_NAMES)]
SHAPES = (96, 128), (90, 121)
PROPOSALS, MOST = 250, 40               # fewer than usual, for time


def spread(layer, values, mean, deviation, width=1):
    """Rescales a layer whose outputs were `values` [..., rows], so that they have this mean and deviation, in groups of `width` rows alike."""
    factor = deviation / values.flatten(0, -2).std(0)
    layer.weight *= factor.view(-1, *[1] * (layer.weight.ndim - 1))
    layer.bias.copy_(mean + (layer.bias - values.flatten(0, -2).mean(0)) * factor)


@pytest.fixture(scope="module")
def oracle():
    """torchvision's Mask R-CNN, which does not resize, with random weights whose outputs are spread as a trained network's are."""
    torch.manual_seed(0)
    network = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, rpn_post_nms_top_n_test=PROPOSALS, box_detections_per_img=MOST).eval()
    network.transform.resize = lambda image, target: (image, target)
    head, roi = network.rpn.head, network.roi_heads
    with torch.no_grad():
        for block in network.backbone.body.modules():
            if isinstance(block, torchvision.models.resnet.Bottleneck):
                block.bn3.weight.fill_(0.3)
        network.rpn._pre_nms_top_n["testing"] = PROPOSALS
        features = network.backbone(torch.randn(1, 3, *SHAPES[0]))
        x = [head.conv(feature).permute(0, 2, 3, 1).flatten(1, 2) for feature in features.values()]
        for layer, mean, deviation in ((head.cls_logits, -1.0, 2.0), (head.bbox_pred, 0.0, 0.3)):
            spread(layer, torch.cat(x, 1) @ layer.weight.flatten(1).T + layer.bias, mean, deviation)
        corner = torch.rand(200, 2) * 80
        boxes = [torch.cat([corner, corner + 10 + 40 * torch.rand(200, 2)], 1)]
        x = roi.box_head(roi.box_roi_pool(features, boxes, [SHAPES[0]]))
        spread(roi.box_predictor.cls_score, roi.box_predictor.cls_score(x), 0.0, 2.0)
        spread(roi.box_predictor.bbox_pred, roi.box_predictor.bbox_pred(x), 0.0, 0.5)
        roi.box_predictor.cls_score.bias[NO_CLASS[1:]] = -100.0                                # which no object ever was
        masks = roi.mask_head(roi.mask_roi_pool(features, boxes, [SHAPES[0]]))
        spread(roi.mask_predictor.mask_fcn_logits, roi.mask_predictor(masks).permute(0, 2, 3, 1), 0.0, 2.0)
    return network


@pytest.fixture(scope="module")
def checkpoints(oracle, tmp_path_factory):
    """{model: checkpoint} of the files that the tool makes of a Mask R-CNN's state dict, and of the Faster R-CNN in it."""
    folder, found = tmp_path_factory.mktemp("rcnn"), {}
    with pytest.MonkeyPatch.context() as patch:                 # filled from a file at once, they need no random start
        for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_"):
            patch.setattr(torch.nn.init, name, lambda tensor, *arguments, **options: tensor)
        convert_files(oracle, folder, found)
    return found


def convert_files(oracle, folder, found):
    for model in ("mask_rcnn", "faster_rcnn"):
        state = {key: value for key, value in oracle.state_dict().items() if model == "mask_rcnn" or ".mask_" not in key}
        torch.save(state, folder / "theirs.pth")
        convert_weights.main([str(folder / "theirs.pth"), str(folder / f"{model}.pth"), "--variant", "trained"])
        found[model] = load_checkpoint(folder / f"{model}.pth")
        (folder / f"{model}.pth").unlink()


def network_of(checkpoint):
    return load_model(checkpoint["config"] | {"proposals": PROPOSALS, "max_detections": MOST}, checkpoint["model"])


@pytest.fixture(scope="module")
def ours(checkpoints):
    return network_of(checkpoints["mask_rcnn"])


def as_batch(pictures):
    """uint8 pictures -> ([float 0..1] as torchvision wants them, uint8 batch padded with 77, sizes)"""
    sizes = torch.tensor([picture.shape[-2:] for picture in pictures])
    height, width = (-(-sizes.amax(0) // 32) * 32).tolist()
    batch = [torch.nn.functional.pad(picture, (0, width - picture.shape[2], 0, height - picture.shape[1]), value=77) for picture in pictures]
    return [picture / 255 for picture in pictures], torch.stack(batch), sizes


def random_pictures():
    generator = torch.Generator().manual_seed(1)
    return as_batch([torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=generator) for shape in SHAPES])


def assert_same_boxes(ours, theirs, at_least, pixels=0.01):
    """Each of theirs is one of ours, and there are no more; dicts with boxes and, where theirs have them, scores, labels and masks."""
    assert len(ours["boxes"]) == len(theirs["boxes"]) >= at_least
    near = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(-1) < pixels
    for name, tolerance in (("scores", 1e-4), ("labels", 0.5)):
        if name in theirs:
            near &= (ours[name][:, None] - theirs[name]).abs() < tolerance
    assert near.any(0).all() and near.any(1).all()
    if "masks" in theirs:
        assert (ours["masks"][near.int().argmax(0)] - theirs["masks"][:, 0]).abs().max() < 1e-3


def detections(oracle, pictures):
    """torchvision's, with labels of ours and masks inside their boxes."""
    label_of = {id: label for label, id in enumerate(COCO_NAMES)}
    paste, oracle.transform.postprocess = oracle.transform.postprocess, lambda results, *sizes: results
    try:
        results = oracle(pictures)
    finally:
        oracle.transform.postprocess = paste
    return [{**result, "labels": torch.tensor([label_of[id] for id in result["labels"].tolist()])} for result in results]


@torch.inference_mode()
def test_the_anchors_and_proposals_are_torchvisions(oracle, ours):
    pictures, images, sizes = random_pictures()
    padded, _ = oracle.transform(pictures)
    features = oracle.backbone(padded.tensors)
    _, outputs, anchors, level_sizes = ours.look(images, sizes)
    assert torch.equal(anchors, oracle.rpn.anchor_generator(padded, list(features.values()))[0])
    for most in (1000, 60, PROPOSALS):
        oracle.rpn._pre_nms_top_n["testing"] = oracle.rpn._post_nms_top_n["testing"] = most
        boxes, levels = ours.rpn.propose(outputs, anchors, level_sizes, sizes, most)
        for box, level, theirs in zip(boxes, levels, oracle.rpn(padded, features)[0], strict=True):
            assert_same_boxes({"boxes": box[level >= 0]}, {"boxes": theirs}, 50)


@torch.inference_mode()
def test_detections_and_masks_are_torchvisions(oracle, ours):
    pictures, images, sizes = random_pictures()
    for result, theirs in zip(ours(images, sizes), detections(oracle, pictures), strict=True):
        assert_same_boxes(result, theirs, MOST)


@torch.inference_mode()
def test_the_faster_rcnn_finds_the_same_without_masks(ours, checkpoints):
    _, images, sizes = random_pictures()
    network = network_of(checkpoints["faster_rcnn"])
    assert (network.config.model, network.needs_masks, ours.needs_masks) == ("faster_rcnn", False, True)
    for found, expected in zip(network(images, sizes), ours(images, sizes), strict=True):
        assert all(torch.equal(found[name], expected[name]) for name in ("boxes", "scores", "labels")) and "masks" not in found


@torch.inference_mode()
def test_detections_are_torchvisions_on_real_pictures(oracle, ours):
    if not TINY.is_dir():
        pytest.skip("../shared/data/coco_tiny is not there")
    pictures, images, sizes = as_batch([read_picture(path)[:, ::3, ::3].contiguous() for path in find_pictures([TINY])[:2]])
    for result, theirs in zip(ours(images, sizes), detections(oracle, pictures), strict=True):
        assert_same_boxes(result, theirs, MOST)


def ramp(shape, device=None):
    """Numbers by which the first ones of each picture are sampled."""
    return torch.linspace(1, 0, shape[1]).expand(shape)


class FirstOnes:
    """torchvision's sampler, which draws, as one that takes the first."""

    def __init__(self, count, share):
        self.count, self.share = count, share

    def __call__(self, labels):
        found = [], []
        for label in labels:
            positive, negative = (label >= 1), (label == 0)
            positive &= positive.cumsum(0) <= int(self.count * self.share)
            negative &= negative.cumsum(0) <= self.count - positive.sum()
            found[0].append(positive.to(torch.uint8))
            found[1].append(negative.to(torch.uint8))
        return found


def test_the_losses_are_torchvisions_on_the_same_samples(oracle, ours, monkeypatch):
    pictures, images, sizes = random_pictures()
    boxes = torch.tensor([[[5.0, 5, 40, 60], [50, 20, 120, 90], [30, 30, 37, 38]], [[10, 10, 100, 80], [0, 0, 0, 0], [0, 0, 0, 0]]])
    labels, masks = torch.tensor([[3, 17, 3], [40, -1, -1]]), torch.zeros(2, 3, 96, 128, dtype=torch.uint8)
    for picture, row, (x1, y1, x2, y2) in ((0, 0, (8, 9, 30, 50)), (0, 1, (50, 20, 90, 90)), (0, 2, (30, 32, 37, 38)), (1, 0, (10, 30, 100, 80))):
        masks[picture, row, y1:y2, x1:x2] = 1
    wanted = {"boxes": boxes, "labels": labels, "weights": torch.ones(2, 3), "ignore": torch.zeros(2, 3, dtype=torch.bool), "masks": pack_bits(masks)}
    ids = torch.tensor([*COCO_NAMES])
    theirs = [{"boxes": box[label >= 0], "labels": ids[label[label >= 0]], "masks": mask[label >= 0, :h, :w]}
              for box, label, mask, (h, w) in zip(boxes, labels, masks, sizes.tolist(), strict=True)]

    for mine, sampler, count in ((ours.rpn, oracle.rpn, 256), (ours.box_head, oracle.roi_heads, 64)):
        monkeypatch.setattr(mine, "sample", lambda matched_gt, *_, count=count: sample(matched_gt, count, 0.25, ramp))
        monkeypatch.setattr(sampler, "fg_bg_sampler", FirstOnes(count, 0.25))
    for module in (oracle, oracle.rpn, oracle.roi_heads):       # without their batch norms
        monkeypatch.setattr(module, "training", True)
    expected = oracle(pictures, theirs)
    losses = {name: pair[0, 0] / pair[0, 1] for name, pair in ours(images, sizes, wanted).items()}
    names = {"objectness": "loss_objectness", "rpn_reg": "loss_rpn_box_reg", "cls": "loss_classifier", "reg": "loss_box_reg", "mask": "loss_mask"}
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx({name: expected[theirs].item() for name, theirs in names.items()}, rel=1e-3)

    layers = ours.rpn.deltas, ours.box_head.fc6, ours.mask_head.upsample, ours.fpn.lateral[0]
    same = oracle.rpn.head.bbox_pred, oracle.roi_heads.box_head.fc6, oracle.roi_heads.mask_predictor.conv5_mask, oracle.backbone.fpn.inner_blocks[0][0]
    gradients = (torch.autograd.grad(sum(found.values()), [layer.weight for layer in parts]) for found, parts in ((losses, layers), (expected, same)))
    for gradient, theirs in zip(*gradients, strict=True):
        assert (gradient - theirs).norm() < 1e-3 * theirs.norm()


# The converter

def meta_state(build, **options):
    with torch.device("meta"):
        return build(weights=None, weights_backbone=None, **options).state_dict()


@pytest.mark.parametrize("build, model", [(fasterrcnn_resnet50_fpn, "faster_rcnn"), (maskrcnn_resnet50_fpn, "mask_rcnn")])
def test_every_key_has_its_place_in_old_files_too_and_background_goes_last(build, model):
    state = meta_state(build, num_classes=4)
    state["roi_heads.box_predictor.cls_score.bias"] = torch.tensor([9.0, 1, 2, 3])
    state["roi_heads.box_predictor.bbox_pred.bias"] = torch.arange(16.0)
    for published in (state, {key.replace("head.conv.0.0.", "head.conv.").replace("_blocks.0.0.", "_blocks.0."): value for key, value in state.items()}):
        family, config, ours, dropped = convert(published, variant="published")
        assert (family, config["model"], config["num_classes"], config["norm_eps"]) == ("torchvision_rcnn", model, 3, 0.0)
        assert all(key.endswith("num_batches_tracked") for key in dropped)
        assert ours["box_head.cls_logits.bias"].tolist() == [1, 2, 3, 9] and ours["box_head.deltas.bias"].tolist() == [*range(4, 16)]
    if model == "mask_rcnn":
        old = {key: value for key, value in state.items() if ".mask_head." not in key}
        old |= {f"roi_heads.mask_head.mask_fcn{place + 1}.{part}": state[f"roi_heads.mask_head.{place}.0.{part}"] for place in range(4) for part in ("weight", "bias")}
        assert {*convert(old, variant="published")[2]} == {*ours}


def test_what_does_not_fit_is_named():
    state = meta_state(fasterrcnn_resnet50_fpn, num_classes=4)
    with pytest.raises(ValueError, match="^the variant of torchvision_rcnn is not named, must be one of published, trained"):
        convert(state)
    with pytest.raises(ValueError, match="^nothing becomes rpn.objectness.bias, which a faster_rcnn of torchvision_rcnn with resnet50 has"):
        convert({key: value for key, value in state.items() if key != "rpn.head.cls_logits.bias"}, variant="trained")
    with pytest.raises(ValueError, match="^roi_heads.keypoint_head.0.weight has no place in a faster_rcnn"):
        convert({**state, "roi_heads.keypoint_head.0.weight": torch.zeros(1)}, variant="trained")


def test_a_detector_with_other_classes_gives_the_rows_that_are_asked_for_and_its_background():
    small = {"model": "mask_rcnn", "backbone": "regnet_x_400mf", "fpn_channels": 16, "box_channels": 8, "mask_convs": 0, "mask_channels": 8}
    torch.manual_seed(0)
    old, new = build_model({"num_classes": 3, **small}).state_dict(), build_model({"num_classes": 2, **small})
    fresh = {key: value.clone() for key, value in new.state_dict().items()}
    load_detector(new, old, [(0, 2)])
    now = new.state_dict()
    assert torch.equal(now["box_head.cls_logits.weight"][[0, 2]], old["box_head.cls_logits.weight"][[2, 3]])
    assert torch.equal(now["box_head.deltas.weight"][:4], old["box_head.deltas.weight"][8:])
    assert torch.equal(now["mask_head.mask_logits.weight"][0], old["mask_head.mask_logits.weight"][2])
    for key, rows in (("box_head.cls_logits.weight", [1]), ("box_head.deltas.weight", [4, 5, 6, 7]), ("mask_head.mask_logits.weight", [1])):
        assert torch.equal(now[key][rows], fresh[key][rows])
    assert torch.equal(now["rpn.conv.weight"], old["rpn.conv.weight"]) and torch.equal(now["box_head.fc6.weight"], old["box_head.fc6.weight"])
