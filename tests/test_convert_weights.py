"""tools/convert_weights.py: what another implementation finds with its weights, the converted checkpoint finds too."""
import argparse
import re
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from reference_fcos import CASES, detections, pictures, random_weights, raw_outputs

import detect
from dataset.pictures import find_pictures, read_picture
from engine.checkpoint import load_checkpoint
from model import load_model
from model.config import FCOSConfig
from model.foreign_weights import convert
from tools import convert_weights
from util.class_names import COCO_NAMES, VOC_NAMES

TINY = Path(__file__).parent.parent.parent / "shared" / "data" / "coco_tiny" / "val2017"


def converted(folder, content, *flags):
    """The checkpoint that the tool makes of what another repository saved."""
    torch.save(content, folder / "theirs.pth")
    convert_weights.main([str(folder / "theirs.pth"), str(folder / "ours.pth"), *flags])
    return load_checkpoint(folder / "ours.pth")


def found(checkpoint, images, sizes, **changed):
    """[[(score, label, box), ...]] per picture, by the network of a checkpoint with some fields of its config changed."""
    with torch.inference_mode():
        results = load_model({**checkpoint["config"], **changed}, checkpoint["model"])(images, torch.tensor(sizes))
    return [list(zip(result["scores"].tolist(), result["labels"].tolist(), result["boxes"].tolist(), strict=True)) for result in results]


def assert_same(ours, theirs, at_least=20, threshold=float("inf")):
    """Each of theirs is one of ours, within 1e-4 in score and 1e-3 pixels, and there are no more. What is within 1e-4 of the score
    threshold may be found by one of the two alone: processors round differently."""
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        rest, missing = list(mine), []
        for score, label, box in other:
            match = next((each for each in rest if each[1] == label and abs(each[0] - score) < 1e-4
                          and all(abs(a - b) < 1e-3 for a, b in zip(each[2], box, strict=True))), None)
            rest.remove(match) if match else missing.append((score, label, box))
        assert not [each for each in (*rest, *missing) if abs(each[0] - threshold) >= 1e-4]
        assert len(other) >= at_least


def named(case):
    return "-".join(filter(None, (case.family, case.variant, f"{case.levels}-levels" * (case.levels < 5))))


@pytest.fixture
def no_random_start(monkeypatch):
    """Networks that are filled from a file at once need no random numbers, which take longer than all else here."""
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_", "trunc_normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *arguments, **options: tensor)


@pytest.mark.usefixtures("no_random_start")
@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_converted_file_finds_the_same(case, tmp_path):
    with torch.inference_mode():
        weights = random_weights(case)
        content = {"fcos": {"model": weights, "iteration": 90000, "optimizer": {"state": {}}},
                   "mmdet": {"meta": {"epoch": 12}, "state_dict": weights}}.get(case.family, weights)
        checkpoint = converted(tmp_path, content, *(("--variant", case.variant) if case.variant else ()))
        images = pictures(2, (128, 160), seed=3)
        whole, smaller = ((128, 160), (128, 160)), ((128, 160), (100, 130))
        sizes = whole if case.family == "zhenghao977" else smaller          # which pads before it subtracts the mean
        outputs = raw_outputs(case, {key: value.double() for key, value in weights.items()}, images, sizes)
        assert_same(found(checkpoint, images, sizes), detections(case, weights, outputs, sizes))
        assert_same(found(checkpoint, images, sizes, pre_nms_top_k=60, max_detections=50),      # where the caps cut
                    detections(case, weights, outputs, sizes, top_k=60, keep=50))
    assert checkpoint["classes"] == [*(COCO_NAMES.values() if case.classes == 80 else VOC_NAMES)]


MANY = 100_000
NOT_SEEN = {"head_norm_groups", "box_loss", "box_weighting", "center_sampling_radius", "range_ends", "max_detections"}
OF_SHAPE = {"num_classes", "backbone", "fpn_channels", "levels", "p6_from", "head_norm", "tower_bias", "shared_tower", "scale_distances"}


@pytest.mark.usefixtures("no_random_start")
@pytest.mark.parametrize("kind", [("fcos", "improved"), ("detectron2", None), ("zhenghao977", "voc"), ("mmdet", "plain")], ids=str)
def test_each_field_that_a_file_decides_changes_what_is_found(kind):
    case = next(case for case in CASES if (case.family, case.variant) == kind)
    _, config, state, _ = convert(random_weights(case), variant=case.variant)
    images, sizes, defaults, right = pictures(1, (96, 128), seed=3), ((70, 100),), FCOSConfig(num_classes=1).asdict(), {}
    for field in {field for field in config if config[field] != defaults[field]} - NOT_SEEN - OF_SHAPE:
        top_k = 30 if field in ("rank_by", "top_k_scope") else 1000
        checkpoint = {"config": {**config, "pre_nms_top_k": top_k, "max_detections": 1000}, "model": state}
        right[top_k] = right.get(top_k) or found(checkpoint, images, sizes)
        assert found(checkpoint, images, sizes, **{field: defaults[field]}) != right[top_k], field


@pytest.fixture(scope="module")
def oracle():
    """torchvision's FCOS, which does not resize, with random weights whose outputs are spread as a trained network's are."""
    torch.manual_seed(0)
    network = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, detections_per_img=MANY).eval()
    network.transform.resize = lambda image, target: (image, target)
    cls, head = network.head.classification_head.cls_logits, network.head.regression_head
    with torch.no_grad():
        for block in network.backbone.body.modules():
            if isinstance(block, torchvision.models.resnet.Bottleneck):
                block.bn3.weight.fill_(0.3)
        head.bbox_reg.bias.fill_(1.0)                                       # above 0, so that the relu changes nothing yet
        outputs = network.head([*network.backbone(torch.randn(2, 3, 128, 160)).values()])
        for layer, values, mean, deviation in ((cls, outputs["cls_logits"], -6.0, 1.5), (head.bbox_ctrness, outputs["bbox_ctrness"], 0.5, 1.0),
                                               (head.bbox_reg, outputs["bbox_regression"], 2.5, 0.5)):
            factor = deviation / values.std((0, 1))
            layer.weight *= factor[:, None, None, None]
            layer.bias.copy_(mean + (layer.bias - values.mean((0, 1))) * factor)
        cls.bias[[label for label in range(91) if label not in COCO_NAMES]] = -100.0        # which no object ever was
    return network


@pytest.fixture(scope="module")
def from_torchvision(oracle, tmp_path_factory):
    return converted(tmp_path_factory.mktemp("torchvision"), oracle.state_dict())


def agrees_with(oracle, checkpoint, images):
    """Detections of a batch of pictures (uint8 [3, h, w] of any sizes) are the same, but that torchvision keeps boxes without area,
    those of locations in the padding. Hence no cap, which they would fill."""
    sizes = [tuple(image.shape[-2:]) for image in images]
    height, width = (-(-max(sides) // 32) * 32 for sides in zip(*sizes, strict=True))
    batch = torch.stack([torch.nn.functional.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=77) for image in images])
    label_of = {id: label for label, id in enumerate(COCO_NAMES)}
    with torch.inference_mode():
        results = oracle([image / 255 for image in images])
    rows = [zip(*(result[name].tolist() for name in ("scores", "labels", "boxes")), strict=True) for result in results]
    theirs = [[(score, label_of[label], box) for score, label, box in each if box[0] < box[2] and box[1] < box[3]] for each in rows]
    assert_same(found(checkpoint, batch, sizes, max_detections=MANY), theirs, threshold=oracle.score_thresh)


@pytest.mark.parametrize("sizes", [((128, 160),), ((100, 130), (64, 90), (97, 161))], ids=["one", "batch"])
def test_torchvisions_own_network_is_the_oracle(oracle, from_torchvision, sizes):
    agrees_with(oracle, from_torchvision, [pictures(1, size, seed)[0] for seed, size in enumerate(sizes)])
    assert from_torchvision["classes"] == [*COCO_NAMES.values()]


def test_torchvisions_own_network_on_real_pictures(oracle, from_torchvision):
    if not TINY.is_dir():
        pytest.skip("../shared/data/coco_tiny is not there")
    agrees_with(oracle, from_torchvision, [read_picture(path)[:, ::2, ::2] for path in find_pictures([TINY])[:2]])


def test_a_torchvision_detector_of_ones_own_has_a_background_row_and_names_to_give(tmp_path, capsys):
    state = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3).state_dict()
    torch.save(state, tmp_path / "theirs.pth")
    assert refused(tmp_path / "theirs.pth", capsys) == f"error: {tmp_path / 'theirs.pth'}: has 2 classes; name them with --classes\n"
    assert "has 2 classes, not the 3 that are named" in refused(tmp_path / "theirs.pth", capsys, "--classes", "background,nail,clip")
    assert "has 2 classes, not the 99 that are named" in refused(tmp_path / "theirs.pth", capsys, "--classes", ",".join(f"a class {n}" for n in range(99)))
    (tmp_path / "names.txt").write_text("nail\nclip, large\n", encoding="utf-8-sig")       # as Windows' editors write it
    checkpoint = converted(tmp_path, state, "--classes", str(tmp_path / "names.txt"))
    assert checkpoint["classes"] == ["nail", "clip, large"] and checkpoint["config"]["num_classes"] == 2
    assert torch.equal(checkpoint["model"]["head.cls_logits.weight"], state["head.classification_head.cls_logits.weight"][1:])


def refused(file, capsys, *flags):
    out = file.with_name("ours.pth")
    with pytest.raises(SystemExit) as end:
        convert_weights.main([str(file), str(out), *flags])
    line = capsys.readouterr().err
    assert end.value.code == 2 and not out.exists() and line.startswith("error: ") and line.count("\n") == 1
    return line


@pytest.fixture(scope="module")
def small():
    """A state dict of AdelaiDet's, of few channels."""
    with torch.inference_mode():
        return random_weights(next(case for case in CASES if case.family == "adelaidet"), channels=32)


@pytest.fixture(scope="module")
def small_file(small, tmp_path_factory):
    file = tmp_path_factory.mktemp("adelaidet") / "theirs.pth"
    torch.save({"model": small}, file)
    return file


@pytest.mark.parametrize("change, sentence", [
    (lambda state: state.pop("backbone.fpn_output4.bias"), "nothing becomes fpn.output.1.bias, which a fcos of adelaidet with resnet50 has"),
    (lambda state: state.update({"top_module.weight": torch.zeros(1)}), "top_module.weight has no place in a fcos of adelaidet with resnet50"),
    (lambda state: state.update({"backbone.top_block.p7.weight": torch.zeros(32, 32, 1, 1)}),
     "backbone.top_block.p7.weight is [32, 32, 1, 1], must be [32, 32, 3, 3] in a fcos of adelaidet with resnet50"),
    (lambda state: state.pop("proposal_generator.fcos_head.scales.3.scale"), "head.scales is [4], must be [5]"),
    (lambda state: [state.pop(key) for key in [*state] if ".res4.5." in key],
     "layer3 of the backbone has 5 blocks of 3 convolutions, as none of resnet18"),
    (lambda state: state.update({f"module.{key}": value for key, value in state.items() if "ctrness" in key}),
     "and another key are both head.quality."),
    (lambda state: [state.pop(key) for key in [*state] if "cls_logits" in key],
     "are of no detector of torchvision, torchvision_rcnn, fcos, adelaidet, detectron2, cvpods, zhenghao977, mmdet"),
])
def test_what_does_not_fit_is_named(small, change, sentence):
    state = dict(small)
    change(state)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        convert(state)


@pytest.mark.parametrize("content, held", [
    ({}, "nothing"), ([], "a list"), ({"model": {}}, "'model'"), ({"state_dict": {"a": 1}}, "'state_dict'"), (torch.zeros(1), "a Tensor"),
    ({"ema": {"a": torch.zeros(1)}, "epoch": 3}, "'ema', 'epoch'"), ({"a": torch.zeros(1), **dict.fromkeys("bcdef", 1)}, "'a', 'b', 'c', 'd', 'e'")])
def test_what_is_no_state_dict_is_refused(content, held, tmp_path, capsys):
    torch.save(content, tmp_path / "theirs.pth")
    sentence = f"is no state dict and has none below 'model' or 'state_dict'; it holds {held}"
    assert refused(tmp_path / "theirs.pth", capsys) == f"error: {tmp_path / 'theirs.pth'}: {sentence}\n"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_network_that_was_wrapped_for_training_is_known_all_the_same(small, prefix):
    plain, wrapped = convert(small), convert({f"{prefix}{key}": value for key, value in small.items()})
    assert wrapped[:2] == plain[:2] and all(torch.equal(value, plain[2][key]) for key, value in wrapped[2].items())


@pytest.mark.usefixtures("no_random_start")
def test_what_torchvisions_training_script_writes_is_taken(tmp_path, capsys):
    network = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[16, 22])
    content = {"model": network.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": scheduler.state_dict(),
               "args": argparse.Namespace(lr=0.02, lr_steps=[16, 22], amp=True), "epoch": 25}
    assert converted(tmp_path, content, "--classes", "nail")["classes"] == ["nail"]
    assert "left out: counters of batch norms, optimizer, lr_scheduler, args, epoch, " in capsys.readouterr().out


@pytest.mark.parametrize("flags, sentence", [
    (["--from", "fcos"], "the variant of fcos is not named, must be one of plain, improved; the weights themselves do not tell"),
    (["--from", "mmdet", "--variant", "best"], "the variant of mmdet is best, must be one of plain, improved, lsj"),
    (["--variant", "plain"], "the variant of adelaidet is plain, must be one of none"),
    (["--from", "yolo"], "the family is 'yolo', not one of torchvision, torchvision_rcnn, fcos"),
    (["--from", "detectron2"], "nothing becomes head.cls_logits.weight"),
    (["--classes", "a,b"], "has 80 classes, not the 2 that are named"),
    (["--classes", "a,,b"], "--classes a,,b: '' is no name, or is there twice"),
    (["--classes", "a,b,a"], "--classes a,b,a: 'a' is no name, or is there twice"),
    (["--classes", ""], "--classes : holds no name"),
])
def test_a_wrong_flag_ends_in_one_sentence(small_file, flags, sentence, capsys):
    assert sentence in refused(small_file, capsys, *flags)


def test_what_is_left_out_is_said_and_nothing_is_overwritten(small, tmp_path, capsys):
    content = {"model": {**small, "pixel_mean": torch.zeros(3, 1, 1)}, "iteration": 90000, "scheduler": {}}
    checkpoint = converted(tmp_path, content)
    line = capsys.readouterr().out
    assert "the resnet50 of adelaidet with 80 classes, person to toothbrush; left out: " in line
    assert all(name in line for name in ("iteration", "scheduler", "pixel_mean")) and "training" not in checkpoint
    with pytest.raises(SystemExit):
        convert_weights.main([str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")])
    assert "ours.pth: is there already; name another file" in capsys.readouterr().err


def test_detect_takes_a_converted_checkpoint(small, tmp_path):
    converted(tmp_path, small)
    Image.fromarray(pictures(1, (120, 150))[0].permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    entries = detect.main([str(tmp_path / "a.png"), "--checkpoint", str(tmp_path / "ours.pth"), "--output", str(tmp_path / "found"),
                           "--device", "cpu", "--min-size", "120", "--score-threshold", "0.1"])
    assert len(entries[0]["detections"]) > 10 and {found["label"] for found in entries[0]["detections"]} <= {*COCO_NAMES.values()}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet101"])
def test_the_depth_of_the_resnet_is_told_by_its_keys(backbone):
    extra = torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256)
    with torch.device("meta"):
        body = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name=backbone, weights=None, returned_layers=[2, 3, 4], extra_blocks=extra)
        state = torchvision.models.detection.FCOS(body, 91).state_dict()
    family, config, _, dropped = convert(state)
    assert (family, config["backbone"]) == ("torchvision", backbone) and all(key.endswith("num_batches_tracked") for key in dropped)
