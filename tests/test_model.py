import copy
import math
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import nms

from dataset.strong_view import strong_view
from engine.distributed import combine
from model import build_model, load_model
from model.backbone import BACKBONES, ConvNorm, FrozenBatchNorm2d, build_backbone, freeze_norms
from model.config import PRESETS, FCOSConfig
from model.fpn import FPN
from model.grid import per_level, pyramid_grid
from model.head import FCOSHead
from model.locations import pyramid_locations
from model.postprocess import FCOSDetection

SMALL = {"num_classes": 3, "backbone": "regnet_x_400mf", "fpn_channels": 32, "head_convs": 1}


def small_model(**fields):
    torch.manual_seed(0)
    return build_model({**SMALL, **fields})


def detect(*arguments):
    """The last one is the config."""
    return FCOSDetection(arguments[-1])(*arguments[:-1])


def targets(boxes, labels):
    boxes, labels = torch.tensor(boxes, dtype=torch.float32), torch.tensor(labels)
    return {"boxes": boxes, "labels": labels, "weights": torch.ones(labels.shape), "ignore": torch.zeros(labels.shape, dtype=torch.bool)}


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_gives_c2_to_c5_at_strides_4_8_16_32(name):
    backbone = build_backbone(name, "none").eval()
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape[1:]) for f in features] == [(c, 64 // s, 96 // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)]


def test_freezing_keeps_norms_and_early_layers_as_they_are_while_training():
    network = small_model(backbone_freeze="early").train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    losses = network(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8), torch.full((2, 2), 64), targets([[[8, 8, 40, 40]]] * 2, [[1]] * 2))
    sum(pair[0, 0] for pair in losses.values()).backward()
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    frozen = {f"backbone.{name}" for name, m in network.backbone.named_modules() if isinstance(m, FrozenBatchNorm2d)}
    assert changed and not any(name.rsplit(".", 1)[0] in frozen for name in changed)
    assert not any(name.startswith(("backbone.stem", "backbone.trunk_output.block1")) for name in changed)
    assert any(name.startswith("backbone.trunk_output.block2") for name in changed)


class NormAndReLU(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


class TimmStub(nn.Sequential):
    """What timm.create_model gives, with strides 4, 8, 16 and 32."""

    def __init__(self, norm):
        super().__init__(nn.Conv2d(3, 4, 1), norm(4))
        self.feature_info = SimpleNamespace(reduction=lambda: [4, 8, 16, 32], channels=lambda: [4, 4, 4, 4])

    def forward(self, x):
        return [super(TimmStub, self).forward(F.avg_pool2d(x, stride)) for stride in (4, 8, 16, 32)]


class ChannelsLastStub(TimmStub):
    def forward(self, x):
        return [features.permute(0, 2, 3, 1) for features in super().forward(x)]


class OneSizeStub(TimmStub):
    def forward(self, x):
        assert x.shape[-2:] == (224, 224), "Input height (64) doesn't match model (224)"
        return super().forward(x)


@pytest.fixture
def timm(monkeypatch):
    """A stub of timm that knows four networks."""
    def create_model(name, **options):
        if name not in (known := {"plain": TimmStub, "fused": TimmStub, "channels_last": ChannelsLastStub, "one_size": OneSizeStub}):
            raise RuntimeError(f"Unknown model ({name})")
        return known[name](NormAndReLU if name == "fused" else nn.BatchNorm2d)
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))


def test_only_plain_batch_norms_are_frozen_and_others_are_refused(timm):
    assert isinstance(build_backbone("timm:plain", "norm").network[1], FrozenBatchNorm2d)
    assert type(build_backbone("timm:fused", "none").network[1]) is NormAndReLU
    with pytest.raises(ValueError, match=r"backbone_freeze must be none for this backbone: its layer 1 is a NormAndReLU"):
        build_backbone("timm:fused", "norm")


def test_a_timm_network_that_is_not_known_is_refused_by_name(timm, monkeypatch):
    with pytest.raises(ValueError, match=r"^backbone timm:resnot: timm cannot make it: Unknown model \(resnot\)$"):
        build_backbone("timm:resnot", "none")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm is not installed"):
        build_backbone("timm:plain", "none")


def test_a_timm_network_is_tried_on_a_picture_before_it_is_used(timm):
    assert build_backbone("timm:plain", "none").training
    with pytest.raises(ValueError, match=r"^backbone timm:one_size: it cannot take pictures of any size: Input height \(64\) doesn't match"):
        build_backbone("timm:one_size", "none")
    with pytest.raises(ValueError, match=r"^backbone timm:channels_last: of a picture of 64x96 px its features are \[\(1, 16, 24, 4\)"):
        build_backbone("timm:channels_last", "none")


def test_the_network_of_a_checkpoint_is_loaded_ready_to_detect():
    network = small_model()
    loaded = load_model(network.config.asdict(), network.state_dict())
    assert not loaded.training and loaded.fpn.lateral[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_train_and_eval_are_what_they_say():
    network = small_model()
    assert network.eval() is network and not any(module.training for module in network.modules())
    assert network.train() is network and all(module.training for module in network.modules())


def test_the_pyramid_has_the_levels_asked_for():
    features = [torch.zeros(1, c, 64 // s, 64 // s) for c, s in ((8, 8), (16, 16), (24, 32))]
    for levels in (3, 5):
        shapes = [tuple(p.shape[1:]) for p in FPN([8, 16, 24], 4, levels)(features)]
        assert shapes == [(4, 8, 8), (4, 4, 4), (4, 2, 2), (4, 1, 1), (4, 1, 1)][:levels]


def test_the_pyramid_takes_sides_that_do_not_halve_evenly():
    FPN([8, 16, 24], 4, 5)([torch.zeros(1, 8, 13, 9), torch.zeros(1, 16, 7, 5), torch.zeros(1, 24, 4, 3)])


def test_the_head_starts_out_certain_of_background():
    head = FCOSHead(FCOSConfig(3, fpn_channels=32, levels=3, head_convs=1))
    outputs = head([torch.zeros(2, 32, 4, 5), torch.zeros(2, 32, 2, 3), torch.zeros(2, 32, 1, 2)])
    assert outputs["cls_logits"].shape == (2, 28, 3) and outputs["ltrb"].shape == (2, 28, 4) and outputs["quality_logits"].shape == (2, 28)
    assert torch.allclose(outputs["cls_logits"].sigmoid(), torch.tensor(0.01))
    assert (outputs["ltrb"] == 1).all()


def test_the_padding_is_zero_after_normalisation_whatever_it_was():
    network = small_model()
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    normal = network.normalize(images, torch.tensor([[40, 50]]))
    assert (normal[0, :, 40:] == 0).all() and (normal[0, :, :, 50:] == 0).all() and (normal[0, :, :40, :50] != 0).any()


def test_what_you_bring_decides_what_you_get_in_both_modes():
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])
    for network in (small_model().train(), small_model().eval()):
        losses = network(images, sizes, targets([[[8, 8, 40, 40]], [[0, 0, 0, 0]]], [[1], [-1]]))
        assert list(losses) == ["cls", "reg", "quality"] and all(pair.shape == (1, 2) for pair in losses.values())
        results = network(images, sizes)
        assert [sorted(result) for result in results] == [["boxes", "class_scores", "labels", "scores"]] * 2


def outputs_of(cls, ltrb, quality):
    return {"cls_logits": torch.logit(torch.tensor([cls])), "ltrb": torch.tensor([ltrb]), "quality_logits": torch.logit(torch.tensor([quality]))}


def test_detections_by_hand():
    # Two cells of stride 8 at (4, 4) and (12, 4). The score is sqrt(class * quality); the threshold is on the class score.
    locations, strides = pyramid_locations(((1, 2),), (8,))
    outputs = outputs_of([[0.64, 0.04], [0.02, 0.81]], [[1.0, 0.25, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]], [0.25, 1 - 1e-7])
    (result,) = detect(outputs, locations, strides, [2], torch.tensor([[6, 100]]), FCOSConfig(num_classes=2))
    assert result["labels"].tolist() == [1, 0]
    assert result["scores"].tolist() == pytest.approx([0.9, 0.4], abs=1e-4) and result["class_scores"].tolist() == pytest.approx([0.81, 0.64])
    assert result["boxes"].tolist() == [[8, 0, 16, 6], [0, 2, 8, 6]]        # clipped to the picture, 6 high


def test_nothing_above_the_threshold_is_an_empty_result():
    locations, strides = pyramid_locations(((1, 2),), (8,))
    (result,) = detect(outputs_of([[0.01, 0.01]] * 2, [[1.0] * 4] * 2, [0.5] * 2), locations, strides, [2], torch.tensor([[8, 16]]), FCOSConfig(num_classes=2))
    assert result["boxes"].shape == (0, 4) and result["scores"].shape == result["labels"].shape == (0,)


def test_a_box_that_has_no_area_inside_the_picture_is_none():
    locations, strides = pyramid_locations([(1, 2)], (8,))                  # the second cell lies in the padding
    outputs = outputs_of([[0.9], [0.9]], [[0.25] * 4, [0.25] * 4], [0.9, 0.9])
    (result,) = detect(outputs, locations, strides, [2], torch.tensor([[8, 10]]), FCOSConfig(num_classes=1))
    assert result["boxes"].tolist() == [[2, 2, 6, 6]]


def test_overlapping_boxes_of_one_class_are_suppressed_and_of_two_classes_are_not():
    locations, strides = pyramid_locations(((1, 2),), (8,))
    ltrb = [[0.5, 0.5, 1.5, 0.5], [1.5, 0.5, 0.5, 0.5]]                     # the same box twice
    config = FCOSConfig(num_classes=2)
    (one,) = detect(outputs_of([[0.9, 0.01], [0.8, 0.01]], ltrb, [0.9, 0.9]), locations, strides, [2], torch.tensor([[8, 16]]), config)
    (two,) = detect(outputs_of([[0.9, 0.01], [0.01, 0.8]], ltrb, [0.9, 0.9]), locations, strides, [2], torch.tensor([[8, 16]]), config)
    assert len(one["boxes"]) == 1 and two["labels"].tolist() == [0, 1]


def test_overlap_is_that_of_the_boxes_also_where_there_are_a_thousand_classes():
    # 8 px wide and 2.05 px apart: an IoU of .592 under a threshold of .6. Moved by class 1202 in float32 they were 2 px apart, .6 and more.
    outputs = {"cls_logits": torch.full((1, 2, 1203), -9.0), "ltrb": torch.tensor([[[4, 4, 4, 4], [9.95, 4, -1.95, 4]]]), "quality_logits": torch.full((1, 2), 9.0)}
    outputs["cls_logits"][0, :, 1202] = torch.tensor([2.0, 1.0])
    locations = torch.tensor([[1204.09375, 704], [1212.09375, 704]])
    (found,) = detect(outputs, locations, torch.ones(2), [2], torch.tensor([[1000, 2000]]), FCOSConfig(num_classes=1203))
    assert found["boxes"].flatten().tolist() == pytest.approx([1200.09375, 700, 1208.09375, 708, 1202.14375, 700, 1210.14375, 708])


def test_detection_equals_the_slow_obvious_way():
    torch.manual_seed(3)
    sizes, config = [(6, 8), (3, 4)], FCOSConfig(num_classes=3, levels=3, pre_nms_top_k=20, max_detections=15)
    locations, strides = pyramid_locations(sizes, (8, 16))
    outputs = {"cls_logits": torch.randn(2, 60, 3), "ltrb": torch.rand(2, 60, 4) * 2, "quality_logits": torch.randn(2, 60)}
    results = detect(outputs, locations, strides, [48, 12], torch.tensor([[48, 64], [40, 50]]), config)
    for b, (height, width) in enumerate(((48, 64), (40, 50))):
        candidates = []
        for start, end in ((0, 48), (48, 60)):
            level = []
            for n in range(start, end):
                for c in range(3):
                    p = outputs["cls_logits"][b, n, c].sigmoid()
                    if p > 0.05:
                        l, t, r, d = (outputs["ltrb"][b, n] * strides[n]).tolist()
                        x, y = locations[n].tolist()
                        box = [min(max(x - l, 0), width), min(max(y - t, 0), height), min(max(x + r, 0), width), min(max(y + d, 0), height)]
                        level.append((math.sqrt(p * outputs["quality_logits"][b, n].sigmoid()), c, box))
            best = sorted(level, key=lambda item: -item[0])[:20]
            candidates += [item for item in best if item[2][0] < item[2][2] and item[2][1] < item[2][3]]
        kept = []
        for c in range(3):
            own = [item for item in candidates if item[1] == c]
            if own:
                index = nms(torch.tensor([item[2] for item in own]), torch.tensor([item[0] for item in own]), 0.6)
                kept += [own[i] for i in index]
        kept = sorted(kept, key=lambda item: -item[0])[:15]
        assert results[b]["labels"].tolist() == [item[1] for item in kept]
        assert torch.allclose(results[b]["scores"], torch.tensor([item[0] for item in kept]), atol=1e-5)
        assert torch.allclose(results[b]["boxes"], torch.tensor([item[2] for item in kept]), atol=1e-3)


def test_boxes_stay_inside_the_picture_and_out_of_its_padding():
    network = small_model(score_threshold=0.0).eval()
    images = torch.full((2, 3, 96, 128), 77, dtype=torch.uint8)
    with torch.inference_mode():
        small, large = network(images, torch.tensor([[64, 50], [96, 128]]))
    assert len(small["boxes"]) and (small["boxes"] <= torch.tensor([50, 64, 50, 64])).all() and (small["boxes"] >= 0).all()
    assert large["boxes"][:, 2].max() > 64


def test_the_config_survives_its_own_plain_dict():
    config = FCOSConfig(num_classes=7, backbone="resnet50", levels=3)
    assert FCOSConfig.from_dict(config.asdict()) == config
    assert config.ranges == ((0.0, 64.0), (64.0, 128.0), (128.0, math.inf)) and config.strides == (8, 16, 32)


@pytest.mark.parametrize("fields, sentence", [({"model": "yolo"}, "model is 'yolo', not one of fcos"), ({"backbone": "vgg"}, "backbone is 'vgg', not one of"),
                                              ({"colour": 1}, "unknown field 'colour'"), ({"backbone_freeze": "half"}, "not one of none, norm, early")])
def test_a_config_that_is_not_known_is_refused_by_name(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        build_model({**SMALL, **fields})


def test_half_precision_gives_nearly_the_losses_of_float32():
    network = small_model()
    images, sizes = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [64, 96]])
    wanted = targets([[[8, 8, 40, 40]], [[20, 4, 90, 60]]], [[1], [0]])
    full = network(images, sizes, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(images, sizes, wanted)
    for name in full:
        assert half[name].dtype == torch.float32
        assert torch.allclose(half[name], full[name], rtol=0.03)


@pytest.mark.parametrize("kernel, stride", [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2)])
@pytest.mark.parametrize("freeze", ["none", "norm"])
def test_a_convolution_with_its_norm_is_padded_as_tensorflow_does_and_the_same_where_the_norm_is_folded_in(kernel, stride, freeze):
    """Reference: the input padded by hand, the odd pixel right and bottom; then convolution, then norm. In float64, with gradients."""
    torch.manual_seed(0)
    layer = ConvNorm(4, 4, kernel, stride, groups=4)
    with torch.no_grad():
        layer.bn.running_mean.normal_(), layer.bn.running_var.uniform_(0.5, 2), layer.bn.weight.uniform_(0.5, 2), layer.bn.bias.normal_()
    reference = copy.deepcopy(layer)
    if freeze == "norm":
        freeze_norms(layer)
        reference.bn.eval().requires_grad_(False)
    layer.double(), reference.double()
    x = torch.randn(2, 4, 8, 12, dtype=torch.float64)
    total = max(kernel - stride, 0)
    padded = F.pad(x, (total // 2, total - total // 2) * 2)
    expected = reference.bn(F.conv2d(padded, reference.conv.weight, stride=stride, groups=4))
    assert torch.allclose(layer(x), expected, atol=1e-12)
    weights = torch.randn_like(expected)
    (layer(x) * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(layer.conv.weight.grad, reference.conv.weight.grad, atol=1e-10)
    assert (layer.bn.weight.grad is None) == (freeze == "norm")


def test_class_scores_go_with_their_boxes_where_a_later_level_is_the_surer_one():
    locations, strides = pyramid_locations(((1, 1), (1, 1)), (8, 16))
    outputs = outputs_of([[0.64], [0.81]], [[0.25] * 4] * 2, [0.25, 1 - 1e-7])
    (result,) = detect(outputs, locations, strides, [1, 1], torch.tensor([[16, 16]]), FCOSConfig(num_classes=1))
    assert result["scores"].tolist() == pytest.approx([0.9, 0.4], abs=1e-4) and result["class_scores"].tolist() == pytest.approx([0.81, 0.64])


def test_outputs_of_half_precision_are_scored_in_float32():
    locations, strides = pyramid_locations(((1, 2),), (8,))
    half = {"cls_logits": torch.tensor([[[0.3], [1.7]]]), "ltrb": torch.tensor([[[0.31, 0.4, 0.37, 0.45]] * 2]), "quality_logits": torch.tensor([[0.9, -0.3]])}
    half = {name: value.bfloat16() for name, value in half.items()}
    arguments = locations, strides, [2], torch.tensor([[8, 16]]), FCOSConfig(num_classes=1)
    (found,), (expected,) = detect(half, *arguments), detect({name: value.float() for name, value in half.items()}, *arguments)
    assert len(expected["scores"]) == 2 and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("fields", [{}, {"assignment": "atss", "quality": "iou"}, {"backbone": "efficientnet_lite0"}, PRESETS["torchvision"] | {"range_ends": "closed"},
                                    PRESETS["keras_fcos"]], ids=["default", "atss", "lite", "torchvision", "keras"])
def test_a_training_step_mixes_no_devices_and_asks_nothing_of_the_gpu(fields):
    """Fake tensors say where they lie and have no values: what mixes CPU and GPU raises, and what would wait for a value (.item(), nonzero) too."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda").uniform_()
    except (RuntimeError, AssertionError):          # torch 2.6, which asks for the driver; a build for CPUs
        pytest.skip("this torch has no CUDA tensors without a CUDA device, not even fake ones")
    caches = per_level, pyramid_grid
    for cache in caches:
        cache.cache_clear()
    try:
        with FakeTensorMode():
            with torch.device("cuda"):
                network = build_model({**SMALL, "backbone": "resnet18", **fields, "backbone_freeze": "norm"})
                images, sizes = torch.zeros(2, 3, 128, 160, dtype=torch.uint8), torch.full((2, 2), 128)
                no = torch.zeros(2, 2, dtype=torch.bool)
                wanted = {"boxes": torch.zeros(2, 2, 4), "labels": torch.zeros(2, 2, dtype=torch.int64), "weights": torch.ones(2, 2), "ignore": no, "zone_ignore": no}
            assert combine(network(strong_view(images, sizes), sizes, wanted))[0].device.type == "cuda"
    finally:
        for cache in caches:
            cache.cache_clear()         # else fake tensors stay in them
