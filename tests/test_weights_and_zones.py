"""Pseudo labels from the files to the losses: what is read, what weighs how much, what is left open, what stays as it was."""
import json
import random

import pytest
import torch
from conftest import write_xml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_train_voc import TINY, same_weights

import train_coco
import train_voc
from dataset.annotated import Origin, read_origin
from dataset.augment import keep_visible
from dataset.coco import COCODataset
from dataset.loader import collate
from dataset.sample import make_target
from dataset.voc import VOCDataset
from engine.checkpoint import load_checkpoint
from engine.distributed import combine
from evaluation.coco_ap import evaluate as evaluate_coco
from evaluation.report import evaluate as evaluate_voc
from model import build_model
from model.config import FCOSConfig
from model.targets import assign, claims, silenced
from tools import voc_to_coco

MARKS = {"ispseudo": True, "score": 0.9, "p_real": 0.75, "weight": 0.5, "zone": "positive"}
ZONE = {"ispseudo": True, "score": 0.3, "zone": "ignore"}
BOXES = ((11, 11, 30, 30), (51, 11, 80, 40), (11, 41, 20, 48))       # VOC's numbers


def coco(folder, *marks):
    """A json with one picture of 100 x 50 and three boxes of two classes, marked so."""
    Image.new("RGB", (100, 50)).save(folder / "a.png")
    annotations = [{"id": id, "image_id": 1, "category_id": id % 2, "bbox": [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], "area": 100.0 + id, **mark}
                   for id, ((x1, y1, x2, y2), mark) in enumerate(zip(BOXES, marks, strict=True))]
    path = folder / "a.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations,
                                "categories": [{"id": 0, "name": "clip"}, {"id": 1, "name": "nail"}]}))
    return path


def voc(folder, *marks):
    """The same in VOC layout."""
    Image.new("RGB", (100, 50)).save(folder / "a.png")
    write_xml(folder / "a.xml", (50, 100), [(("clip", "nail")[id % 2], box) for id, box in enumerate(BOXES)])
    head, *objects = (folder / "a.xml").read_text().split("</object>")[:-1], "\n</annotation>"
    objects = [text + "".join(f"<{key}>{value}</{key}>" for key, value in mark.items()) for text, mark in zip(head, marks, strict=True)]
    (folder / "a.xml").write_text("</object>".join([*objects, "\n</annotation>"]))
    return folder


def opened(tmp_path, *marks, **options):
    """The same objects from both formats."""
    return (COCODataset(coco(tmp_path, *marks), tmp_path, **options),
            VOCDataset(voc(tmp_path, *marks), **options))


def test_marks_of_an_object():
    assert read_origin({}) == read_origin({"id": 3, "zone": "positive", "ispseudo": 0}) == Origin(False, 1.0, False)
    assert read_origin(MARKS) == Origin(True, 0.5, False) and read_origin(ZONE) == Origin(True, 1.0, True)
    assert read_origin({"ispseudo": " True ", "weight": "0", "zone": " Ignore"}) == Origin(True, 0.0, True)


WRONG = [({"ispseudo": "maybe"}, "ispseudo is 'maybe', must be one of true, false, 1, 0"), ({"score": 1.5}, "score is 1.5, must be a number in 0..1"),
         ({"p_real": "high"}, "p_real is 'high', must be a number in 0..1"), ({"weight": -1}, "weight is -1, must be a number of 0 or more"),
         ({"weight": "nan"}, "weight is 'nan', must be a number of 0 or more"), ({"weight": "inf"}, "weight is 'inf', must be a number of 0 or more"),
         ({"zone": "middle"}, "zone is 'middle', must be one of positive, ignore"), ({"zone": ""}, "zone is '', must be one of positive, ignore")]


@pytest.mark.parametrize("mark, sentence", WRONG)
def test_a_wrong_mark_is_refused_by_file_object_and_rule(tmp_path, mark, sentence):
    for part in ("coco", "voc"):
        (tmp_path / part).mkdir()
    file = coco(tmp_path / "coco", {}, mark, {})
    with pytest.raises(ValueError) as error:
        COCODataset(file, tmp_path / "coco")
    assert str(error.value).startswith(f"{file}: annotation 1: (nail) {sentence};")
    voc(tmp_path / "voc", {}, mark, {})
    with pytest.raises(ValueError) as error:
        VOCDataset(tmp_path / "voc")
    said = sentence if isinstance(next(iter(mark.values())), str) else sentence.replace(f"is {next(iter(mark.values()))}", f"is '{next(iter(mark.values()))}'")
    assert str(error.value).startswith(f"{tmp_path / 'voc/a.xml'}: object 2 (nail) {said};")
    assert len(VOCDataset(tmp_path / "voc", skip_bad=True).target(0)["boxes"]) == 2


def test_json_has_no_true_weight():
    with pytest.raises(ValueError, match="weight is True, must be a number"):
        read_origin({"weight": True})


def test_both_formats_give_weights_pseudo_labels_and_zones(tmp_path):
    for dataset in opened(tmp_path, {}, MARKS, ZONE, pseudo_weight=0.5):
        target = dataset.target(0)
        assert target["weights"].tolist() == [1, 0.25, 0.5]
        assert target["pseudo"].tolist() == [False, True, True] and target["zone_ignore"].tolist() == [False, False, True]
        assert dataset.class_counts() == {"clip": 1, "nail": 1}
        assert "1 of the 3 boxes are pseudo labels, of weight 0.25 on average, and 1 are zones to ignore" in dataset.notes[-1]
        batch, _ = collate([dataset[0], (dataset[0][0], make_target([], [], [], "empty", (50, 100)))])
        assert batch["weights"].tolist() == [[1, 0.25, 0.5], [0, 0, 0]] and batch["zone_ignore"].tolist() == [[False, False, True], [False] * 3]
    plain = opened(tmp_path, {}, {"weight": 0.5}, {})[0]
    assert plain.target(0)["weights"].tolist() == [1, 0.5, 1] and ["1 human labels weigh 0.5 to 0.5" in note for note in plain.notes] == [True]


def test_evaluation_takes_no_label_of_a_network_for_true(tmp_path):
    for dataset, evaluate in zip(opened(tmp_path, {}, MARKS, {"zone": "ignore"}), (evaluate_coco, evaluate_voc), strict=True):
        truth = dataset.truth()["1" if evaluate is evaluate_coco else "a"]
        assert truth["boxes"].tolist() == [[10, 10, 30, 30]] and truth["labels"].tolist() == [0] and truth.get("areas", torch.tensor([100.0])).tolist() == [100]
        found = {dataset.ids[0]: {"boxes": dataset.target(0)["boxes"], "scores": torch.tensor([0.5, 0.9, 0.8]), "labels": torch.tensor([0, 1, 0])}}
        metrics = evaluate(found, dataset.truth(), dataset.classes)
        assert metrics["ap"]["nail"] is None and metrics["ap"]["clip"] == pytest.approx(0.5, abs=0.01)


def test_a_conversion_keeps_the_marks_that_training_uses(tmp_path):
    (tmp_path / "back").mkdir()
    first, _ = opened(tmp_path, {}, MARKS, ZONE)
    contents = voc_to_coco.to_coco(first, tmp_path)
    assert "ispseudo" not in contents["annotations"][0] and "weight" not in contents["annotations"][0]
    (tmp_path / "again.json").write_text(json.dumps(contents))
    voc_to_coco.to_voc(first, tmp_path, tmp_path / "back", "train")
    for again in (COCODataset(tmp_path / "again.json", tmp_path), VOCDataset(tmp_path / "back", "train")):
        assert all(torch.equal(first.target(0)[field], again.target(0)[field]) for field in ("boxes", "weights", "pseudo", "zone_ignore"))


def test_what_stays_in_view_of_a_zone_counts_however_little():
    target = make_target([[0, 0, 100, 40]] * 2, [0, 0], [False] * 2, "x", (50, 100), zone_ignore=[False, True])
    assert keep_visible(target, (0, 0, 10, 40))["zone_ignore"].tolist() == [True]


@pytest.mark.parametrize("command", [train_voc, train_coco])
def test_marks_that_say_what_is_so_anyway_train_as_no_marks_do_and_a_weight_does_not(command, tmp_path, voc_folder):
    voc_to_coco.main([str(voc_folder), "--split", "train", "--output", str(tmp_path / "train.json")])

    def run(name, mark, *flags):
        if command is train_voc:
            data = ["--data", str(voc_folder), "--train-split", "train", "--val-split", "none"]
            tags = "".join(f"<{key}>{value}</{key}>" for key, value in mark.items())
            for xml in (voc_folder / "Annotations").glob("*.xml"):
                xml.write_text(plain[xml].replace("<difficult>", f"{tags}<difficult>"))
        else:
            contents = json.loads((tmp_path / "train.json").read_text())
            for annotation in contents["annotations"]:
                annotation |= mark
            (tmp_path / "marked.json").write_text(json.dumps(contents))
            data = ["--train-json", str(tmp_path / "marked.json"), "--train-images", str(voc_folder / "JPEGImages"), "--val-json", "none"]
        command.main([*data, "--output", str(tmp_path / name), *TINY, "--workers", "0", "--epochs", "1", *flags])
        return load_checkpoint(tmp_path / name / "last.pth")

    plain = {xml: xml.read_text() for xml in (voc_folder / "Annotations").glob("*.xml")}
    first = run("plain", {})
    assert same_weights(first, run("marked", {"ispseudo": "true", "score": 0.5, "weight": 1, "zone": "positive"}))
    assert not same_weights(first, run("half", {"ispseudo": "true"}, "--pseudo-weight", "0.5"))


# The losses. One picture of 64 x 64 in a pyramid of two levels, three classes.

CONFIG = FCOSConfig(num_classes=3, levels=3, fpn_channels=32, head_convs=1, backbone="regnet_x_400mf")
NETWORK = build_model(CONFIG.asdict())
ATSS = build_model({**CONFIG.asdict(), "assignment": "atss"})


def targets_of(*objects):
    """[(box, label, weight, zone)] -> targets of one picture."""
    boxes, labels, weights, zones = zip(*(objects or (((0, 0, 0, 0), -1, 0.0, False),)), strict=True)
    return {"boxes": torch.tensor([boxes], dtype=torch.float32), "labels": torch.tensor([labels]), "weights": torch.tensor([weights]),
            "ignore": torch.zeros(1, len(boxes), dtype=torch.bool), "zone_ignore": torch.tensor([zones])}


def losses(targets, network=NETWORK, logit=-1.0):
    """(losses, gradients of the outputs, matched_gt) with constant outputs."""
    sizes = ((8, 8), (4, 4), (2, 2))
    locations, strides = network.locate(sizes)
    outputs = {"cls_logits": torch.full((1, 84, 3), logit), "ltrb": torch.ones(1, 84, 4), "quality_logits": torch.zeros(1, 84)}
    for value in outputs.values():
        value.requires_grad_()
    matched_gt, silent = network.match(targets, sizes, None)
    result = network.loss(outputs, locations, strides, matched_gt, targets, silent)
    combine(result)[0].backward()
    return result, {name: value.grad[0] for name, value in outputs.items()}, matched_gt[0]


KEPT, OTHER = ((4.0, 4.0, 28.0, 28.0), 1, 1.0, False), ((36.0, 36.0, 60.0, 60.0), 2, 1.0, False)


def test_a_weight_reaches_classes_boxes_and_quality_and_their_counts():
    for name, pair in losses(targets_of(KEPT))[0].items():
        half = losses(targets_of((*KEPT[:2], 0.5, False)))[0][name]
        assert half[0, 1] == pair[0, 1] / 2 > 0
        if name != "cls":
            assert half[0, 0].item() == pytest.approx(pair[0, 0].item() / 2)
    _, one, matched = losses(targets_of(KEPT, OTHER))
    _, half, _ = losses(targets_of(KEPT, (*OTHER[:2], 0.5, False)))
    mine = matched == 1
    for name in one:            # the normaliser counts weights: 2 objects of equal count against 1.5
        assert torch.allclose(half[name][mine], one[name][mine] / 2 * 2 / 1.5, rtol=1e-4)
        assert torch.allclose(half[name][matched == 0], one[name][matched == 0] * 2 / 1.5, rtol=1e-4)


def test_background_weighs_1_whatever_box_comes_first():
    _, one, matched = losses(targets_of(KEPT))
    result, light, _ = losses(targets_of((*KEPT[:2], 0.25, False)))
    assert torch.allclose(light["cls_logits"][matched == -1] * result["cls"][0, 1].clamp(min=1), one["cls_logits"][matched == -1] * (matched == 0).sum())


def test_a_weight_of_0_is_exactly_no_gradient_of_that_box():
    _, gradients, matched = losses(targets_of((*KEPT[:2], 0.0, False), OTHER))
    assert (matched == 0).any() and all((gradient[matched == 0] == 0).all() for gradient in gradients.values())
    assert (gradients["cls_logits"][matched != 0] != 0).all()


@pytest.mark.parametrize("network", [NETWORK, ATSS], ids=["ranges", "atss"])
def test_a_zone_silences_its_class_alone_where_its_box_would_claim(network):
    _, plain, alone = losses(targets_of((*OTHER[:2], 1.0, False)), network)
    result, gradients, matched = losses(targets_of(KEPT, (*OTHER[:2], 1.0, True)), network)
    place = alone == 0
    assert place.any() and (matched[place] == -1).all()
    assert (gradients["cls_logits"][place][:, 2] == 0).all()
    assert (gradients["cls_logits"][place][:, :2] > 0).all() and (gradients["cls_logits"][~place] != 0).all()
    assert (gradients["ltrb"][place] == 0).all() and result["cls"][0, 1] == (matched == 0).sum()


@pytest.mark.parametrize("network", [NETWORK, ATSS], ids=["ranges", "atss"])
def test_a_zone_never_covers_a_positive_not_even_of_another_class(network):
    for label in range(3):
        _, gradients, matched = losses(targets_of(KEPT, (KEPT[0], label, 1.0, True)), network)
        _, plain, without = losses(targets_of(KEPT), network)
        assert torch.equal(matched, without) and torch.equal(gradients["cls_logits"], plain["cls_logits"])


def test_zones_of_several_classes_at_one_place_all_count():
    _, gradients, _ = losses(targets_of((KEPT[0], 0, 1.0, True), ((2.0, 2.0, 30.0, 30.0), 2, 1.0, True)))
    _, _, claimed = losses(targets_of(KEPT))
    both = (gradients["cls_logits"] == 0) == torch.tensor([True, False, True])
    assert both.all(1)[claimed == 0].all()


@pytest.mark.parametrize("network", [NETWORK, ATSS], ids=["ranges", "atss"])
@pytest.mark.parametrize("objects", [(), ((*KEPT[:2], 0.0, False),), ((*KEPT[:2], 0.1, False), (*OTHER[:2], 0.2, False)), ((*KEPT[:3], True), (*OTHER[:3], True)),
                                     (((0.0, 0.0, 64.0, 64.0), 0, 1.0, True),), (((5.0, 5.0, 5.0, 5.0), 0, 0.0, True),)],
                         ids=["empty", "weight 0", "all pseudo", "all zones", "one large zone", "zone without area"])
@pytest.mark.parametrize("logit", [-100.0, 0.0, 100.0])
def test_pictures_of_pseudo_labels_of_zones_and_of_nothing_are_finite(objects, logit, network):
    result, gradients, _ = losses(targets_of(*objects), network, logit)
    assert all(torch.isfinite(pair).all() for pair in result.values()) and all(torch.isfinite(gradient).all() for gradient in gradients.values())


def test_without_a_zone_all_is_as_without_the_field_bit_for_bit():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with_field = targets_of(KEPT, OTHER, ((0.0, 0.0, 0.0, 0.0), -1, 0.0, False))
    without = {name: value for name, value in with_field.items() if name != "zone_ignore"}
    first, second = (NETWORK(images, torch.tensor([[64, 64]]), targets) for targets in (with_field, without))
    assert all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_silence_is_what_each_zone_would_claim_alone(seed, rows):
    rng = random.Random(seed)
    corners = [[sorted(rng.uniform(-10, 74) for _ in range(2)) for _ in "xy"] for _ in range(rows)]
    boxes = torch.tensor([[[x[0], y[0], x[1], y[1]] for x, y in corners]])
    labels, zones = torch.tensor([[rng.randrange(-1, 3) for _ in range(rows)]]), torch.tensor([[rng.random() < 0.7 for _ in range(rows)]])
    sizes, ranges = ((8, 8), (4, 4)), ((0.0, 24.0), (24.0, 1000.0))
    location, claimed, _ = claims(boxes, sizes, (8, 16), ranges, 1.5)
    found = silenced(location, claimed & (zones & (labels >= 0))[..., None], labels, 80, 3)
    expected = torch.zeros(1, 80, 3, dtype=torch.bool)
    for row in range(rows):
        if zones[0, row] and labels[0, row] >= 0:
            alone = assign(boxes[:, row:row + 1], labels[:, row:row + 1], torch.zeros(1, 1, dtype=torch.bool), sizes, (8, 16), ranges, 1.5)
            expected[0, :, labels[0, row]] |= alone[0] == 0
    assert torch.equal(found, expected)
