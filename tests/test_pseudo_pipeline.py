"""From checkpoints to features, and the whole experiment, on a network that finds coloured shapes and on one of seconds."""
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from colour_network import ColourNetwork, colour_checkpoint, refusal
from conftest import make_voc
from test_train_voc import TINY
from torch import nn

import train_coco
from dataset.coco import COCODataset, xywh_edges
from dataset.voc import VOCDataset
from engine.checkpoint import load_checkpoint, save_checkpoint
from model import build_model
from model.config import FCOSConfig
from pseudo_label import (evaluate_pseudo_labels, extract_features, generate_pseudo_labels, make_folds, make_partial, query_nearest_neighbors,
                          run_pipeline, visualize_pseudo_labels)
from pseudo_label.labels import read_labels


class WithPyramid(ColourNetwork):
    """Its features are the mean colours, so that what looks alike is alike."""

    def __init__(self, config):
        super().__init__(config)
        self.config.strides = (8, 16)
        self.fpn = nn.ModuleList(nn.AvgPool2d(stride) for stride in self.config.strides)
        self.fpn.forward = lambda images: [pool(images) for pool in self.fpn]

    def forward(self, images, image_sizes):
        self.fpn(images.float())
        return super().forward(images, image_sizes)


@pytest.fixture
def colours(tmp_path, monkeypatch):
    """(VOC folder with one object a picture, partial.json with half of them, images, checkpoint) of a detector that finds all."""
    folder = make_voc(tmp_path / "voc", n=24, max_objects=1)
    make_partial.main([str(folder), "--output", str(tmp_path / "partial.json")])
    checkpoint = colour_checkpoint(tmp_path / "colour.pth", monkeypatch)
    monkeypatch.setattr("model.build_model", WithPyramid)
    return folder, tmp_path / "partial.json", folder / "JPEGImages", checkpoint


def test_a_pooled_feature_is_that_of_the_level_of_its_size():
    levels = [torch.zeros(2, 32, 32), torch.zeros(2, 16, 16), torch.zeros(2, 8, 8)]         # strides 8, 16, 32 of a picture of 256 px
    levels[0][0], levels[1][1], levels[2][:] = 3, 5, 1
    levels[0][1, 0, 0] = 100                                                              # outside all boxes
    boxes = torch.tensor([[100.0, 100, 228, 120], [100, 100, 229, 120], [0, 0, 256, 256], [100, 100, 101, 101], [-900, 0, 900, 256]])
    features = extract_features.box_features(levels, boxes, (8, 16, 32))
    assert features.dtype == torch.float16 and features.shape == (5, 2)
    diagonal = math.sqrt(0.5)
    assert torch.allclose(features.float(), torch.tensor([[1, 0], [0, 1], [0, 1], [1, 0], [diagonal, diagonal]]), atol=1e-3)
    assert extract_features.box_features(levels, torch.zeros(0, 4), (8, 16, 32)).shape == (0, 2)


def test_class_score_and_quality_stand_apart_and_make_the_score(tmp_path):
    folder = make_voc(tmp_path / "voc", n=8)
    for rule, made in (("sqrt", lambda cls, ctr: math.sqrt(cls * ctr)), ("product", lambda cls, ctr: cls * ctr)):
        torch.manual_seed(0)
        config = FCOSConfig(num_classes=2, backbone="regnet_x_400mf", fpn_channels=32, head_convs=1, score_threshold=0.001, score_rule=rule, max_detections=5).asdict()
        network = build_model(config)
        nn.init.normal_(network.head.cls_logits.weight, std=0.3)
        path = tmp_path / f"{rule}.pth"
        save_checkpoint(path, {"config": config, "model": network.state_dict(), "classes": ["slab", "disc"], "score_threshold": 0.3,
                               "metrics": {}, "input": {"min_size": 64, "max_size": 96, "tile": None}})
        output = tmp_path / rule
        extract_features.main([str(folder), "--checkpoint", str(path), "--output", str(output), "--workers", "0", "--device", "cpu", "--batch-size", "3"])
        detections, arrays = query_nearest_neighbors.read_found(output)
        assert len(detections) == 20 and [each["id"] for each in detections] == list(range(20))
        assert all(each["score"] == pytest.approx(made(each["cls"], each["ctr"]), abs=2e-5) for each in detections)
        assert len({each["ctr"] for each in detections}) > 10 and {each["image_id"] for each in detections} == {1, 2, 3, 4}
        lengths = np.linalg.norm(np.concatenate([arrays["detections"], arrays["kept"]]).astype(float), axis=1)
        assert arrays["detections"].dtype == np.float16 and arrays["detections"].shape == (20, 32) and np.allclose(lengths, 1, atol=2e-3)
        labels = read_labels(folder).contents["annotations"]
        assert arrays["kept_ids"].tolist() == [each["id"] for each in labels]
        assert arrays["kept"].nbytes == len(labels) * 64                # where Jmq14/FCOS kept 50 KB a box, in a file of its own


def test_rounding_moves_no_box_out_of_its_picture():
    x1 = 100 - torch.rand(5000, generator=torch.Generator().manual_seed(0)) ** 4 * 3            # most of them as good as without width
    boxes = torch.stack([x1, torch.full_like(x1, 10), torch.full_like(x1, 100), torch.full_like(x1, 30)], 1)
    output = {"scores": torch.full_like(x1, 0.5), "labels": torch.zeros(len(x1), dtype=torch.int64)}
    for each in extract_features.detections_of(output, boxes, (50, 100), 1, "t", SimpleNamespace(score_rule="product"), [1]):
        x1, _, x2, _ = xywh_edges(each["bbox"], (50, 100))              # as training reads it
        assert x1 < x2


def test_detections_are_in_original_pixels_and_their_nearest_label_is_of_their_class(colours, tmp_path, capsys):
    pytest.importorskip("faiss")
    folder, partial, images, checkpoint = colours
    words = [partial, "--images", images, "--checkpoint", checkpoint, "--output", tmp_path / "found", "--workers", 0, "--device", "cpu"]
    extract_features.main([str(word) for word in words])
    found = json.loads((tmp_path / "found/detections.json").read_text())
    full = read_labels(folder).contents["annotations"]
    assert len(found) == len(full) == 12 and {each["ctr"] for each in found} == {1.0}
    for one, other in zip(found, full, strict=True):
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=4)
    query_nearest_neighbors.main([str(tmp_path / "found"), "--output", str(tmp_path / "n.json")])
    near, kept = json.loads((tmp_path / "n.json").read_text()), {each["id"]: each for each in read_labels(partial).contents["annotations"]}
    assert all(each["category_id"] == kept[each["nn_ids"][0]]["category_id"] and each["nn_distances"][0] < 0.05 for each in near)
    tiled = colour_state(tmp_path / "tiled.pth", checkpoint, input={"min_size": 96, "max_size": 200, "tile": 64})
    assert "detects in tiles of 64 px, several of which" in refusal(extract_features.main, [*words[:4], tiled, *words[5:]], capsys)
    large = colour_state(tmp_path / "large.pth", checkpoint, input={"min_size": 96, "max_size": 200, "tile": 2560})     # as the shipped one: one tile each
    extract_features.main([str(word) for word in (*words[:4], large, *words[5:])])
    again = json.loads((tmp_path / "found/detections.json").read_text())
    assert [(each["image_id"], each["bbox"]) for each in again] == [(each["image_id"], each["bbox"]) for each in found]
    contents = json.loads(partial.read_text())
    contents["images"] += [{**contents["images"][0], "id": 99}, {"id": 100, "file_name": "gone.jpg"}]         # a file twice, and one that is not there
    twice = tmp_path / "twice.json"
    twice.write_text(json.dumps(contents))
    extract_features.main([str(word) for word in (twice, *words[1:], "--skip-bad")])
    again = json.loads((tmp_path / "found/detections.json").read_text())
    assert [each["image_id"] for each in again] == [*range(2, 13)]
    strange = colour_state(tmp_path / "strange.pth", checkpoint, classes=["disc", "cup"])
    assert "finds the class 'cup'" in refusal(extract_features.main, [*words[:4], strange, *words[5:]], capsys)
    assert "needs --images DIR" in refusal(extract_features.main, [partial, *words[3:]], capsys)
    before = (tmp_path / "found/features.npz").read_bytes()
    for name, contents in (("features.npz", b"mine"), ("detections.json", json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1}]).encode())):
        (tmp_path / f"found/{name}").write_bytes(contents)
        for more in ((), ("--no-features",)):
            assert f"holds {name}, which no earlier call has left there" in refusal(extract_features.main, [*words, *more], capsys)
        assert (tmp_path / f"found/{name}").read_bytes() == contents
        (tmp_path / "found/features.npz").write_bytes(before)


def test_a_picture_that_is_not_there_is_no_pattern_for_others_and_no_picture_is_too_few(colours, tmp_path, capsys):
    _, partial, images, checkpoint = colours
    contents, lost = json.loads(partial.read_text()), tmp_path / "lost.json"
    contents["images"][0]["file_name"] = "000[0].jpg"
    lost.write_text(json.dumps(contents))
    words = ["--images", images, "--checkpoint", checkpoint, "--output", tmp_path / "found", "--workers", 0, "--device", "cpu"]
    assert "000[0].jpg: no such picture" in refusal(extract_features.main, [lost, *words], capsys)
    lost.write_text(json.dumps({**contents, "images": [], "annotations": []}))
    assert "lost.json: lists no picture" in refusal(extract_features.main, [lost, *words], capsys)


def test_voc_folders_go_through_all_stages_too(colours, tmp_path, capsys):
    folder, _, _, checkpoint = colours
    partial, found, out = (str(tmp_path / name) for name in ("partial", "found", "pseudo"))
    make_partial.main([str(folder), "--output", partial])
    extract_features.main([partial, "--checkpoint", checkpoint, "--output", found, "--workers", "0", "--device", "cpu", "--no-features"])
    generate_pseudo_labels.main([partial, "--detections", f"{found}/detections.json", "--policy", "fixed", "--output", out])
    evaluate_pseudo_labels.main([out, "--full", str(folder), "--output", str(tmp_path / "quality.json")])
    quality = json.loads((tmp_path / "quality.json").read_text())["as_seed"]
    how = json.loads((tmp_path / "partial/dropped.json").read_text())
    assert quality["tp"] == quality["missing"] == how["dropped"] > 3 and quality["fp"] == 0
    visualize_pseudo_labels.main([out, "--full", str(folder), "--output", str(tmp_path / "drawn"), "--pictures", "3"])
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 3
    dataset = VOCDataset(out, "train")
    assert sum(int(dataset.target(index)["pseudo"].sum()) for index in range(12)) == how["dropped"]
    assert "is there already" in refusal(generate_pseudo_labels.main, [partial, "--detections", f"{found}/detections.json", "--output", out], capsys)


def colour_state(path, checkpoint, **changes):
    save_checkpoint(path, {**load_checkpoint(checkpoint), **changes})
    return path


def test_each_fold_is_predicted_by_its_own_teacher(colours, tmp_path, capsys):
    _, partial, images, checkpoint = colours
    other = colour_state(tmp_path / "other.pth", checkpoint, metrics={"other": 1})
    make_folds.main([str(partial), "--output", str(tmp_path / "folds")])
    folds = tmp_path / "folds/folds.json"
    words = [partial, "--images", images, "--folds", folds, "--output", tmp_path / "found", "--workers", 0, "--device", "cpu"]
    extract_features.main([str(word) for word in (*words, "--checkpoint", checkpoint, other)])
    detections, arrays = query_nearest_neighbors.read_found(tmp_path / "found")
    first = json.loads(folds.read_text())["folds"][0]
    names = [extract_features.file_digest(file)[:12] for file in (checkpoint, other)]
    assert [each["teacher"] for each in detections] == [names[each["image_id"] not in first] for each in detections] and len({*names}) == 2
    image_of = {each["id"]: each["image_id"] for each in read_labels(partial).contents["annotations"]}
    assert arrays["kept_teachers"].tolist() == [names[image_of[id] not in first] for id in arrays["kept_ids"].tolist()]
    assert "several need --folds" in refusal(extract_features.main, [*words[:3], *words[5:], "--checkpoint", checkpoint, other], capsys)
    first_teacher, second = (colour_state(tmp_path / f"{fold}.pth", checkpoint, flags={"train_json": f"/x/train-{fold}.json"}) for fold in (0, 1))
    assert "1.pth: is named for fold 0, but was trained on train-1.json" in refusal(extract_features.main, [*words, "--checkpoint", second, first_teacher], capsys)
    extract_features.main([str(word) for word in (*words, "--checkpoint", first_teacher, second)])
    assert "has 2 folds, but --checkpoint names 1" in refusal(extract_features.main, [*words, "--checkpoint", checkpoint], capsys)
    folds.write_text(json.dumps({"folds": [first, first]}))
    assert "must hold each of the 12 pictures" in refusal(extract_features.main, [*words, "--checkpoint", checkpoint, other], capsys)
    folds.write_text("[]")
    assert "as make_folds writes it" in refusal(extract_features.main, [*words, "--checkpoint", checkpoint, other], capsys)


@pytest.fixture
def pretended(colours, monkeypatch):
    """(VOC folder, list of the words of each training): train_coco.run writes the checkpoint that finds all colours."""
    folder, _, _, checkpoint = colours
    calls = []

    def run(argv):
        calls.append(argv)
        flags = train_coco.parse_flags(argv)[0]
        folder = Path(flags.output)
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("epoch,step,seconds,loss\n1,10,60,2\n2,20,120,1\n")
        for name in ("last.pth", "best.pth"):
            colour_state(folder / name, checkpoint, metrics={"run": folder.name}, flags=vars(flags))
    monkeypatch.setattr(train_coco, "run", run)
    return folder, calls


def value_of(words, flag):
    return words[words.index(flag) + 1]


def test_the_whole_experiment_goes_on_where_it_stopped(pretended, tmp_path, capsys):
    folder, calls = pretended
    words = [folder, "--keep", "0.5", "--output", tmp_path / "out", "--seeds", 0, 1, "--", *TINY, "--workers", "0"]
    run_pipeline.main([str(word) for word in words])
    printed, out = capsys.readouterr().out, tmp_path / "out"
    assert [Path(value_of(call, "--output")).relative_to(out).as_posix() for call in calls] == [
        f"seed-{seed}/{run}" for seed in (0, 1) for run in ("A", "A+", "B", "teacher-0", "teacher-1", "C", "D", "F")]
    assert {(value_of(call, "--seed"), value_of(call, "--val-json")) for call in calls} == {("0", "none"), ("1", "none")}
    flags = {Path(value_of(call, "--output")).name: train_coco.parse_flags(call)[0] for call in calls[:8]}
    assert {name: (own.strong_view, own.pseudo_weight, own.teacher, own.ema > 0) for name, own in flags.items()} == {
        "A": (None, 1, "none", False), "A+": (True, 1, "none", True), "B": (True, 0.5, "none", True), "C": (True, 1, "none", True),
        "D": (True, 1, str(out / "seed-0/A+/last.pth"), True), "F": (True, 1, "none", True), "teacher-0": (True, 1, "none", True), "teacher-1": (True, 1, "none", True)}
    epochs = {name: own.epochs for name, own in flags.items()}
    assert epochs["teacher-0"] == epochs["teacher-1"] == 2 * epochs["B"] and len({epochs[name] for name in ("A", "A+", "B", "C", "D", "F")}) == 1
    trained_on = {Path(value_of(call, "--output")).name: read_labels(value_of(call, "--train-json")).contents for call in calls[:8]}
    labels = {name: len(contents["annotations"]) for name, contents in trained_on.items()}
    assert labels["F"] == 12 and labels["A"] == labels["A+"] == labels["D"] == labels["teacher-0"] + labels["teacher-1"] < 8
    assert labels["B"] == labels["C"] == 12 and all(len(trained_on[name]["images"]) == 12 for name in ("A", "A+", "B", "C", "D", "F"))
    for name, weight in (("B", 0.5), ("C", 1)):         # as the data room reads what the arms train on
        dataset = COCODataset(out / f"seed-0/pseudo-{name}.json", folder / "JPEGImages", pseudo_weight=weight)
        targets = [dataset.target(index) for index in range(12)]
        pseudo = torch.cat([target["pseudo"] for target in targets])
        weights = torch.cat([target["weights"] for target in targets])
        assert int(pseudo.sum()) == 12 - labels["A"] and (weights[~pseudo] == 1).all() and (weights[pseudo] > 0.49).all() and (weights[pseudo] < 1).all()
    results = json.loads((out / "results.json").read_text())
    assert {*results["arms"]} == {"A", "A+", "B", "C", "D", "F"} and results["arms"]["C"]["minutes"] == 6 and results["arms"]["B"]["minutes"] == 4
    assert results["arms"]["D"]["ap50"] > 0.9 and results["arms"]["C"]["over_b"] == 0 and results["arms"]["A"]["steps"] == 20
    table = (out / "table.md").read_text()
    assert table.strip() in printed and "| C   | pseudo labels of cross-fitted teachers" in table
    assert list((out / "seed-0/drawn-C").glob("*.png")) and json.loads((out / "seed-1/quality-B.json").read_text())["as_seed"]["fp"] == 0
    calls.clear()
    (out / "seed-1/pseudo-B.json").unlink()             # as if it had been stopped once the pictures were drawn
    run_pipeline.main([str(word) for word in words])
    assert not calls and json.loads((out / "results.json").read_text()) == results
    assert "--arms A A+ B C D F has all" in refusal(run_pipeline.main, [*words[:5], "--seeds", 0, 1, "--arms", "A", *words[8:]], capsys)
    assert "--seeds 0 1 2 has all" in refusal(run_pipeline.main, [*words[:5], "--seeds", 2, *words[8:]], capsys)
    assert not calls and json.loads((out / "results.json").read_text()) == results
    assert "holds an experiment with keep 0.5, not 0.4" in refusal(run_pipeline.main, [folder, "--keep", 0.4, *words[3:]], capsys)


def test_flags_that_make_arms_hard_to_compare_are_told():
    said = [run_pipeline.doubts(train_coco.parse_flags(words.split())[0]) for words in (
        "--min-size 96", "--min-size 96 --zoom 0.5 1", "--crop 96 --mosaic 0.5", "--weights coco --zoom 1 2", f"--weights {__file__}")]
    assert said[:2] == [[], []] and [len(each) for each in said[2:]] == [1, 2, 1]
    assert said[2][0].startswith("--crop, --mosaic: windows") and said[3][0].startswith("--zoom: ") and said[3][1].startswith("--weights coco: ")


def test_an_arm_without_pseudo_labels_is_refused_after_the_others(pretended, tmp_path, capsys):
    folder, _ = pretended
    words = [folder, "--keep", 1, "--keep-rate", 1, "--output", tmp_path / "out", "--arms", "A", "C", "F", "--", *TINY, "--workers", "0"]
    with pytest.raises(SystemExit, match="2"):
        run_pipeline.main([str(word) for word in words])
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: arm C, seed 0: policy precision makes not one pseudo label")
    assert {*json.loads((tmp_path / "out/results.json").read_text())["arms"]} == {"A", "F"}


def test_an_arm_whose_training_fails_does_not_cost_the_others(pretended, tmp_path, capsys, monkeypatch):
    folder, _ = pretended
    trained = train_coco.run

    def run(argv):
        if Path(value_of(argv, "--output")).name == "D":
            raise ValueError("step 3: the loss is not finite")
        trained(argv)
    monkeypatch.setattr(train_coco, "run", run)
    words = [folder, "--output", tmp_path / "out", "--arms", "A", "D", "F", "--", *TINY, "--workers", "0"]
    with pytest.raises(SystemExit, match="2"):
        run_pipeline.main([str(word) for word in words])
    assert capsys.readouterr().err.splitlines()[-1] == "error: arm D, seed 0: step 3: the loss is not finite"
    assert {*json.loads((tmp_path / "out/results.json").read_text())["arms"]} == {"A", "F"}
    monkeypatch.undo()
    with pytest.raises(ValueError, match="--train-json and --train-images go together"):
        train_coco.run(["--train-json", str(tmp_path / "none.json")])


def test_labels_that_were_edited_are_another_experiment_and_a_folder_of_the_same_is_not(pretended, tmp_path, monkeypatch, capsys):
    folder, calls = pretended
    words = ["--output", tmp_path / "out", "--arms", "A", "A", "--seeds", "0", "0", "--", *TINY]
    run_pipeline.main([str(word) for word in (folder, *words)])
    monkeypatch.chdir(folder.parent)
    run_pipeline.main([str(word) for word in (folder.name, *words)])        # the same by another name
    assert len(calls) == 1
    xml = next(folder / "Annotations" / f"{id}.xml" for id in (folder / "ImageSets/Main/train.txt").read_text().split())
    xml.write_text(xml.read_text().replace("<annotation>", "<annotation> ", 1))
    assert "holds an experiment with sha256 of the labels to train on" in refusal(run_pipeline.main, [folder, *words], capsys)


def test_files_of_somebody_else_are_no_place_for_an_experiment(pretended, tmp_path, capsys):
    folder, calls = pretended
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train.json").write_text("mine")
    assert "holds train.json, which no experiment has left there" in refusal(run_pipeline.main, [folder, "--output", tmp_path / "out", "--arms", "A", "--", *TINY], capsys)
    assert (tmp_path / "out/train.json").read_text() == "mine" and not calls
    words = [folder, "--output", tmp_path / "out", "--arms", "A", "--", *TINY]
    for name in ("results.json", "pipeline.json"):
        for strange in ("[]", "{1"):
            (tmp_path / f"out/{name}").write_text(strange)
            assert f"{name}: " in refusal(run_pipeline.main, words, capsys) and (tmp_path / f"out/{name}").read_text() == strange
        (tmp_path / f"out/{name}").unlink()


def test_a_recipe_that_was_edited_is_another_experiment(pretended, tmp_path, capsys):
    folder, calls = pretended
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 0.01\n")
    words = [folder, "--output", tmp_path / "out", "--arms", "A", "--", *TINY, "--config", recipe, "--workers"]
    run_pipeline.main([*map(str, words), "0"])
    run_pipeline.main([*map(str, words), "1"])          # which changes nothing of what is trained
    recipe.write_text("lr: 0.001\n")
    assert "holds an experiment with training lr 0.01, not 0.001" in refusal(run_pipeline.main, [*words, 0], capsys) and len(calls) == 1
    recipe.write_text("lr: 0.01\n")
    kept = json.loads((tmp_path / "out/pipeline.json").read_text())
    del kept["training drops"]                          # as if this flag had not been there yet
    (tmp_path / "out/pipeline.json").write_text(json.dumps(kept))
    run_pipeline.main([*map(str, words), "0"])
    assert len(calls) == 1


def test_flags_that_make_an_arm_what_it_is_are_refused(pretended, tmp_path, capsys):
    folder, calls = pretended
    words = [folder, "--output", tmp_path / "out", "--arms", "A", "--", *TINY]
    for flag, value in (("--teacher", "ema"), ("--strong-view", "on"), ("--pseudo-weight", 0.5), ("--keep-rate", 0.3), ("--output", "x"), ("--seed", 3),
                        ("--train-json", "x.json"), ("--val-json", "none")):
        assert f"{flag} " in (told := refusal(run_pipeline.main, [*words, flag, value], capsys)) and "set by the experiment itself" in told
    assert "--ema 0: all arms but A" in refusal(run_pipeline.main, [*words, "--ema", 0], capsys)
    assert "--tile 416: the teachers of B and C see whole pictures" in refusal(
        run_pipeline.main, [folder, "--output", tmp_path / "out", "--arms", "A+", "B", "--", "--crop", 416], capsys)
    assert "--bias size: chooses among" in refusal(run_pipeline.main, [*words[:3], "--bias", "size", "--protocol", "image", *words[3:]], capsys)
    assert "--keep-rate: is 0.005, must be in 0.01..1" in refusal(run_pipeline.main, [*words[:3], "--keep-rate", 0.005, *words[3:]], capsys)
    assert not calls and not (tmp_path / "out").exists()


def test_the_pipeline_refuses_in_one_sentence(colours, tmp_path, capsys):
    folder, partial, images, _ = colours
    output = ["--output", tmp_path / "out"]
    assert "unrecognized arguments: --no-such 3" in refusal(run_pipeline.main, [folder, *output, "--arms", "A", "--", "--no-such", 3], capsys)
    assert "needs another one to judge on" in refusal(run_pipeline.main, [partial, *output, "--arms", "A", "--images", images], capsys)
    assert "6 of the 6 pictures to judge on are trained on too" in refusal(run_pipeline.main, [folder, *output, "--arms", "A", "--split", "all"], capsys)
    assert "has no split 'none'" in refusal(run_pipeline.main, [folder, *output, "--arms", "A", "--test-split", "none"], capsys)


def test_an_arm_is_really_trained_and_a_broken_one_goes_on(tmp_path, monkeypatch):
    folder = make_voc(tmp_path / "voc", n=16)
    words = [str(folder), "--arms", "D", "--output", str(tmp_path / "out"), "--", *TINY, "--workers", "0"]
    run_pipeline.main(words)
    run = tmp_path / "out/seed-0/D"
    before = load_checkpoint(run / "last.pth")
    assert before["flags"]["teacher"] == str(run.parent / "A+/last.pth") and before["flags"]["val_json"] == "none" and before["classes"] == VOCDataset(folder, "train").classes
    assert {*json.loads((tmp_path / "out/results.json").read_text())["arms"]} == {"D"}
    assert run_pipeline.last_row(run / "metrics.csv")["step"] == "4"
    (run / "best.pth").unlink()                     # as if it had been broken off
    calls = []
    monkeypatch.setattr(train_coco, "run", calls.append)
    run_pipeline.main(words)
    where = ["--device", "cpu", "--workers", "0"]
    assert calls == [["--resume", str(run / "last.pth"), *where]]
    stopping = run_pipeline.Experiment(run.parent, folder / "JPEGImages", (), 0, None, [*TINY, "--max-steps", "3"])
    stopping.train(tmp_path / "none.json", "D", [])
    assert calls[1:] == [["--resume", str(run / "last.pth"), "--device", "cpu", "--workers", "1", "--max-steps", "3"]]
