"""Every choice of the config on both of its sides."""
import math

import pytest
import torch
from torch import nn

from model import build_model
from model.backbone import BACKBONES, build_backbone
from model.config import CHOICES, PRESETS, FCOSConfig
from model.fpn import FPN
from model.head import FCOSHead
from model.locations import pyramid_locations
from model.postprocess import FCOSDetection

SMALL = {"num_classes": 3, "backbone": "regnet_x_400mf", "fpn_channels": 32, "head_convs": 1, "levels": 3}


def small_model(**fields):
    torch.manual_seed(0)
    return build_model({**SMALL, **fields})


def small_head(**fields):
    torch.manual_seed(0)
    return FCOSHead(FCOSConfig(**{**SMALL, **fields}))


def pyramid(batch=2):
    torch.manual_seed(1)
    return [torch.randn(batch, 32, side, side + 1) for side in (4, 2, 1)]


BATCH = {"images": torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), "image_sizes": torch.tensor([[64, 96], [50, 70]])}
TARGETS = {"boxes": torch.tensor([[[8.0, 8, 40, 40]], [[0, 0, 0, 0]]]), "labels": torch.tensor([[1], [-1]]),
           "weights": torch.ones(2, 1), "ignore": torch.zeros(2, 1, dtype=torch.bool)}
FCOS_PRESETS = {name: preset for name, preset in PRESETS.items() if name != "rcnn_small"}
OTHERS = [(field, value) for field, values in CHOICES.items() if hasattr(FCOSConfig, field) for value in values
          if value != getattr(FCOSConfig(3), field) and field not in ("stride_in_1x1", "backbone_freeze")]


@pytest.mark.parametrize("fields", [{field: value} for field, value in OTHERS] + [{**preset, **SMALL} for preset in FCOS_PRESETS.values()],
                         ids=[f"{field} {value}" for field, value in OTHERS] + list(FCOS_PRESETS))
def test_every_choice_and_preset_trains_and_detects(fields):
    network = build_model({**SMALL, **fields, "score_threshold": 0.0})
    losses = network(**BATCH, targets=TARGETS)
    sum(pair[0, 0] for pair in losses.values()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in network.parameters())
    assert all(torch.isfinite(pair).all() for pair in losses.values()) and losses["cls"][0, 1] > 0
    with torch.inference_mode():
        results = network.eval()(**BATCH)
    assert len(results) == 2 and all(torch.isfinite(result["boxes"]).all() for result in results)


def test_the_presets_are_configs_and_the_improved_one_is_the_default():
    assert list(PRESETS) == ["fcos", "fcos_improved", "torchvision", "keras_fcos", "regnet_small", "rcnn_small"]
    assert all(FCOSConfig(2, **preset).asdict().items() >= preset.items() for preset in FCOS_PRESETS.values())
    assert PRESETS["fcos_improved"] == {}


@pytest.mark.parametrize("fields, sentence", [
    ({"distance": "log"}, "distance is 'log', not one of exp, relu"), ({"location_offset": 0.3}, "location_offset is 0.3, not one of 0.5, 0.0"),
    ({"head_norm_groups": 5}, "head_norm_groups is 5, which does not divide fpn_channels 32"), ({"norm_eps": -1.0}, "norm_eps is -1.0"),
    ({"stride_in_1x1": True}, "stride_in_1x1 is True, but the backbone regnet_x_400mf has no bottlenecks")])
def test_what_cannot_be_is_refused_by_name(fields, sentence):
    with pytest.raises(ValueError, match=sentence):
        small_model(**fields)


# Backbone and pyramid

@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("freeze", ["none", "early"])
def test_with_group_norms_a_picture_is_seen_alike_in_every_batch_in_training_and_after_it(name, freeze):
    torch.manual_seed(0)
    body = build_backbone(name, freeze, norm="gn").train()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in body.modules())
    pictures = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        together, alone = body(pictures), body.eval()(pictures[:1])
    assert all(torch.allclose(two[:1], one, atol=1e-3 * float(one.abs().max())) for two, one in zip(together, alone, strict=True))


def test_the_norms_of_timms_networks_are_their_own():
    with pytest.raises(ValueError, match="backbone_norm is 'gn', but the norms of timm:resnet18 are timm's own matter"):
        build_backbone("timm:resnet18", "none", norm="gn")


def test_caffes_resnets_shrink_the_map_in_their_1x1_convolutions():
    plain, caffe = build_backbone("resnet50", "none"), build_backbone("resnet50", "none", stride_in_1x1=True).eval()
    for stage in (2, 3, 4):
        ours, theirs = (getattr(body, f"layer{stage}")[0] for body in (plain, caffe))
        assert (ours.conv1.stride, ours.conv2.stride) == ((1, 1), (2, 2)) and (theirs.conv1.stride, theirs.conv2.stride) == ((2, 2), (1, 1))
    assert caffe.layer1[0].conv1.stride == (1, 1) and caffe.layer2[1].conv1.stride == (1, 1)
    with torch.inference_mode():
        assert [feature.shape[-1] for feature in caffe(torch.zeros(1, 3, 64, 64))] == [16, 8, 4, 2]


@pytest.mark.parametrize("freeze", ["none", "norm"])
def test_the_eps_of_the_batch_norms_is_their_own_or_the_given_one(freeze):
    def found(body):
        return {module.eps for module in body.modules() if isinstance(module, nn.BatchNorm2d)}
    assert found(build_backbone("efficientnet_lite0", freeze)) == {1e-3}
    assert found(build_backbone("efficientnet_lite0", freeze, norm_eps=0.01)) == {0.01}
    (none,) = found(build_backbone("efficientnet_lite0", freeze, norm_eps=0.0))
    assert none > 0 and torch.tensor(1e-20) + none == torch.tensor(1e-20)            # torch 2.11 refuses 0


def test_a_backbone_that_wants_bgr_gets_bgr():
    means = {"pixel_mean": (10.0, 20.0, 30.0), "pixel_std": (1.0, 2.0, 3.0)}
    rgb, bgr = (small_model(pixel_order=order, **means) for order in ("rgb", "bgr"))
    pixel = torch.tensor([11, 24, 39], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 32, 32)
    size = torch.tensor([[32, 32]])
    assert rgb.normalize(pixel, size)[0, :, 0, 0].tolist() == [1, 2, 3]
    assert bgr.normalize(pixel.flip(1), size)[0, :, 0, 0].tolist() == [1, 2, 3]


def test_p6_is_made_from_p5_or_from_c5():
    features = [torch.randn(1, c, 64 // s, 64 // s) for c, s in ((8, 8), (16, 16), (24, 32))]
    for source, channels in (("p5", 4), ("c5", 24)):
        network = FPN([8, 16, 24], 4, 5, source)
        levels = network(features)
        assert network.extra[0].in_channels == channels and network.extra[1].in_channels == 4
        assert torch.equal(levels[3], network.extra[0](levels[2] if source == "p5" else features[2]))
        assert torch.equal(levels[4], network.extra[1](levels[3].relu()))


# Head

@pytest.mark.parametrize("distance, unit, expected", [("exp", "stride", [math.exp(2)] * 3), ("exp", "pixel", [math.exp(2) / s for s in (8, 16, 32)]),
                                                      ("relu", "stride", [2.0] * 3), ("relu", "pixel", [2 / s for s in (8, 16, 32)])])
def test_distances_are_in_strides_whatever_the_head_speaks(distance, unit, expected):
    head = small_head(distance=distance, distance_unit=unit)
    for value, wanted in ((1.0, expected), (-1e6, [0.0] * 3), (1e6, [math.exp(7)] * 3)):
        nn.init.zeros_(head.ltrb.weight), nn.init.constant_(head.ltrb.bias, value), nn.init.constant_(head.scales, 2.0)
        found = [level[0, 0, 0].item() for level in head(pyramid())["ltrb"].split([20, 6, 2], 1)]
        assert found == pytest.approx(wanted, rel=1e-4)


def test_scales_are_learned_or_one():
    assert "scales" in dict(small_head().named_parameters())
    head = small_head(scale_distances=False)
    assert not any(name.startswith("scales") for name in head.state_dict()) and head.scales.tolist() == [1, 1, 1]
    assert all(torch.equal(value, head(pyramid())[name]) for name, value in small_head()(pyramid()).items())


def test_the_quality_grows_from_the_tower_that_the_config_names():
    for tower, deaf, heard in (("box", "cls_tower", "reg_tower"), ("cls", "reg_tower", "cls_tower")):
        head = small_head(quality_tower=tower)
        before = head(pyramid())["quality_logits"]
        nn.init.zeros_(getattr(head, deaf)[0].weight)
        assert torch.equal(head(pyramid())["quality_logits"], before)
        nn.init.zeros_(getattr(head, heard)[0].weight)
        assert not torch.equal(head(pyramid())["quality_logits"], before)


def test_without_a_quality_there_is_no_branch_and_no_loss_and_the_score_is_the_class_score():
    network = small_model(quality="none")
    assert list(network.head(pyramid())) == ["cls_logits", "ltrb"] and not hasattr(network.head, "quality")
    assert list(network(**BATCH, targets=TARGETS)) == ["cls", "reg"]
    assert scores_of(quality="none") == pytest.approx([0.64, 0.49])


def test_towers_are_two_or_one():
    separate, shared = small_head(head_convs=2), small_head(head_convs=2, shared_tower=True)
    names = {name.split(".")[0] for name in shared.state_dict()}
    assert "shared_tower" in names and not names & {"cls_tower", "reg_tower"}
    assert sum(p.numel() for p in separate.parameters()) - sum(p.numel() for p in shared.parameters()) == 2 * (9 * 32 * 32 + 2 * 32)
    assert not any(name.startswith("shared_tower") for name in separate.state_dict())


@pytest.mark.parametrize("norm, bias, keys", [("gn", False, ["0.weight", "1.bias", "1.weight"]), ("none", False, ["0.bias", "0.weight"]),
                                              ("gn", True, ["0.bias", "0.weight", "1.bias", "1.weight"])])
def test_what_a_tower_is_made_of(norm, bias, keys):
    assert sorted(small_head(head_norm=norm, tower_bias=bias).cls_tower.state_dict()) == keys


def test_group_norms_have_the_groups_asked_for():
    assert small_head().cls_tower[1].num_groups == 16 and small_head(head_norm_groups=32).cls_tower[1].num_groups == 32


def test_each_level_has_its_own_batch_norm_and_sees_in_evaluation_what_it_saw_in_training():
    head, features = small_head(head_norm="bn", tower_bias=True), pyramid(batch=64)
    features = [feature * (level + 1) for level, feature in enumerate(features)]
    assert head.train().cls_tower[1][0] is not head.cls_tower[1][1]
    for _ in range(100):
        trained = head(features)
    evaluated = head.eval()(features)
    assert torch.allclose(trained["cls_logits"], evaluated["cls_logits"], atol=1e-2)


# Detection: two cells with two classes; class scores .64 and .36, .25 and .49, qualities .25 and 1

def scores_of(cls=((0.64, 0.36), (0.25, 0.49)), qualities=(0.25, 1 - 1e-7), level_sizes=(2,), only="scores", **fields):
    """Scores (of far-off boxes, so that NMS leaves all) for a threshold of 0.4."""
    locations, strides = pyramid_locations(((1, 2),), (8,))
    outputs = {"cls_logits": torch.logit(torch.tensor([cls])), "ltrb": torch.full((1, 2, 4), 0.5), "quality_logits": torch.logit(torch.tensor([qualities]))}
    config = FCOSConfig(num_classes=2, **{"score_threshold": 0.4, **fields})
    (result,) = FCOSDetection(config)(outputs, locations, strides, list(level_sizes), torch.tensor([[8, 16]]))
    return [round(value, 4) for value in result[only].tolist()]


def test_the_score_is_the_root_of_the_product_or_the_product():
    assert scores_of() == pytest.approx([0.7, 0.4]) and scores_of(score_rule="product") == pytest.approx([0.49, 0.16])


def test_the_threshold_is_on_the_class_score_or_on_the_score():
    assert scores_of() == pytest.approx([0.7, 0.4])                                          # .64 and .49 pass
    assert scores_of(threshold_on="score") == pytest.approx([0.7, 0.5])                      # .4 is not above .4, .5 and .7 are


def test_the_best_are_chosen_by_score_or_by_class_score():
    assert scores_of(pre_nms_top_k=1) == pytest.approx([0.7]) and scores_of(pre_nms_top_k=1, rank_by="cls") == pytest.approx([0.4])


def test_all_pairs_are_candidates_or_the_best_class_of_each_location():
    assert scores_of(score_threshold=0.1) == pytest.approx([0.7, 0.5, 0.4, 0.3])
    assert scores_of(score_threshold=0.1, candidates="argmax") == pytest.approx([0.7, 0.4])
    assert scores_of(score_threshold=0.1, candidates="argmax", only="labels") == [1, 0]


def test_the_best_are_counted_by_level_or_by_picture():
    few = {"pre_nms_top_k": 1, "level_sizes": (1, 1)}
    assert scores_of(**few) == pytest.approx([0.7, 0.4]) and scores_of(**few, top_k_scope="picture") == pytest.approx([0.7])
