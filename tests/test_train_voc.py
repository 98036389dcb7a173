"""The training command from end to end, on a network of seconds: run folder, repetition, resume, weights, refusals."""
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
import yaml
from colour_network import BAD_CHECKPOINTS, bad_checkpoint, real_checkpoint, refusal
from conftest import make_voc
from PIL import Image
from reference_fcos import CASES, random_weights

import engine.distributed
import engine.predict
import train_voc
from engine.checkpoint import load_checkpoint, save_checkpoint
from flags import MODEL_FLAGS, input_sizes
from model.config import CHOICES, PRESETS, FCOSConfig, RCNNConfig
from util.command_line import switch
from tools import convert_weights, make_splits
from reporting import notes_on
from training import build_network

ROOT = Path(__file__).resolve().parent.parent
TINY = ("--backbone regnet_x_400mf --channels 32 --head-convs 1 --levels 3 --min-size 64 --max-size 96 --weights none "
        "--device cpu --batch-size 3 --epochs 2").split()               # 6 pictures: 2 epochs of 2 steps


def words(folder, output, *flags):
    return ["--data", str(folder), "--output", str(output), *TINY, "--workers", "0", *map(str, flags)]


def train(folder, output, *flags):
    """The contents of last.pth after the run."""
    train_voc.main(words(folder, output, *flags))
    return load_checkpoint(output / "last.pth")


def same_weights(a, b):
    return all(torch.equal(a[part][name], b[part][name]) for a, b in ((a, b), (a["training"], b["training"]))
               for part in ("model",) for name in a[part])


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys, folder, output, *flags):
    """The one line of stderr; nothing was written."""
    line = refusal(train_voc.main, words(folder, output, *flags), capsys)
    assert not Path(output).exists()
    return line


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """(VOC folder, run folder, its last.pth) of a run that nothing interrupted."""
    place = tmp_path_factory.mktemp("unbroken")
    folder = make_voc(place / "voc")
    return folder, place / "run", train(folder, place / "run")


def test_a_run_folder_holds_all_that_is_promised(unbroken):
    folder, run, last = unbroken
    assert {"config.yaml", "log.txt", "metrics.csv", "best.pth", "last.pth", "training.png", "train_batch.jpg"} <= set(os.listdir(run))
    assert [(row["epoch"], row["step"]) for row in rows(run)] == [("1", "2"), ("2", "4")]
    assert all(float(row["loss"]) > 0 and 0 <= float(row["mAP"]) <= 1 for row in rows(run))
    assert "6 pictures of train, " in (run / "log.txt").read_text() and "AP50" in (run / "log.txt").read_text()
    for name in ("training.png", "train_batch.jpg"):
        Image.open(run / name).verify()
    best = load_checkpoint(run / "best.pth")
    assert best["classes"] == ["disc", "slab"] and best["input"] == {"min_size": 64, "max_size": 96, "tile": None}
    assert last["training"]["step"] == 4 and last["flags"]["data"] == [str(folder)]


def test_a_run_can_be_repeated_from_another_folder(unbroken, tmp_path, monkeypatch):
    folder, run, last = unbroken
    monkeypatch.chdir(folder.parent)
    flags, _ = train_voc.parse_flags(["--data", folder.name, "--weights", "run/best.pth"])
    assert (flags.data, flags.weights) == ([str(folder)], str(run / "best.pth"))
    assert train_voc.parse_flags(["--weights", "none"])[0].weights == "none"


def test_crops_are_evaluated_in_tiles_of_their_size_unless_a_size_or_a_tile_is_given(tmp_path, voc_folder):
    def tile(*flags):
        return train_voc.parse_flags(["--crop", "64", *flags])[0].tile

    assert tile() == 64 and tile("--tile", "96") == 96 and train_voc.parse_flags([])[0].tile is None
    assert tile("--min-size", "64") is None and tile("--min-size=64") is None
    (tmp_path / "recipe.yaml").write_text("min_size: [64]\n")
    assert tile("--config", str(tmp_path / "recipe.yaml")) is None

    flags = "--backbone regnet_x_400mf --channels 32 --head-convs 1 --levels 3 --weights none --device cpu --batch-size 3 --crop 64 --max-steps 1 --workers 0"
    train_voc.main(["--data", str(voc_folder), "--output", str(tmp_path / "run"), *flags.split()])
    assert load_checkpoint(tmp_path / "run" / "last.pth")["input"]["tile"] == 64
    assert "3 pictures of val to evaluate on, in tiles of 64 px" in (tmp_path / "run" / "log.txt").read_text()


def test_the_config_of_a_run_repeats_it(unbroken, tmp_path):
    _, run, last = unbroken
    train_voc.main(["--config", str(run / "config.yaml"), "--output", str(tmp_path / "again")])
    assert same_weights(load_checkpoint(tmp_path / "again" / "last.pth"), last)
    assert (tmp_path / "again" / "config.yaml").read_text() == (run / "config.yaml").read_text()


@pytest.mark.parametrize("steps, workers", [(1, 0), (3, 2)])
def test_a_run_that_stopped_early_is_resumed_as_if_unbroken_with_any_number_of_workers(unbroken, tmp_path, steps, workers):
    folder, run, last = unbroken
    assert train(folder, tmp_path / "run", "--max-steps", steps)["training"]["step"] == steps
    train_voc.main(["--resume", str(tmp_path / "run" / "last.pth"), "--workers", str(workers)])
    resumed = load_checkpoint(tmp_path / "run" / "last.pth")
    assert resumed["training"]["step"] == 4 and same_weights(resumed, last)
    assert rows(tmp_path / "run")[-1]["mAP"] == rows(run)[-1]["mAP"]


def test_ctrl_c_in_a_terminal_leaves_a_run_that_resumes_as_if_unbroken(tmp_path, voc_folder):
    flags = ["--epochs", 100, "--val-split", "none", "--workers", 2]
    command = [sys.executable, str(ROOT / "train_voc.py"), *words(voc_folder, tmp_path / "broken", *flags)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "broken" / "metrics.csv").exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)                       # as a terminal does: the loading processes get it too
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err, err
    last = tmp_path / "broken" / "last.pth"
    assert f"--resume {last}" in out
    done = load_checkpoint(last)["training"]["step"]
    assert 2 <= done < 200

    train_voc.main(["--resume", str(last), "--workers", "0", "--max-steps", str(done + 3)])
    whole = train(voc_folder, tmp_path / "whole", *flags[:4], "--max-steps", done + 3)
    assert same_weights(load_checkpoint(last), whole)


def test_resume_without_a_file_takes_the_newest_run(tmp_path, voc_folder, monkeypatch, capsys):
    monkeypatch.setattr(train_voc, "HERE", tmp_path)
    assert "holds no run to resume" in refusal(train_voc.main, ["--resume"], capsys)
    flags = ["--data", str(voc_folder), *TINY, "--workers", "0", "--max-steps", "1"]
    train_voc.main(flags)
    train_voc.main(flags)
    train_voc.main(["--resume", "--max-steps", "2"])
    steps = [load_checkpoint(tmp_path / "checkpoint" / name / "last.pth")["training"]["step"] for name in ("voc-1", "voc-2")]
    assert steps == [1, 2] and "goes on in epoch 1 with step 2 of 4" in (tmp_path / "checkpoint/voc-2/log.txt").read_text()


def test_a_run_that_is_through_keeps_the_recipe_that_repeats_it(unbroken, tmp_path):
    _, run, last = unbroken
    shutil.copytree(run, tmp_path / "run")
    train_voc.main(["--resume", str(tmp_path / "run" / "last.pth"), "--lr", "0.5"])
    assert (tmp_path / "run" / "config.yaml").read_text() == (run / "config.yaml").read_text()
    assert "nothing is left to do" in (tmp_path / "run" / "log.txt").read_text() and same_weights(load_checkpoint(tmp_path / "run" / "last.pth"), last)


def test_two_processes_of_torchrun_train_as_one(tmp_path, voc_folder):
    train(voc_folder, tmp_path / "first", "--max-steps", 1, "--val-split", "none")
    flags = ["--weights", tmp_path / "first" / "best.pth", "--freeze", "norm", "--batch-size", 2, "--epochs", 1, "--max-steps", 2, "--val-split", "none", "--lr", 0.1, "--warmup", 0]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(ROOT / "train_voc.py")]
    done = subprocess.run([*command, *words(voc_folder, tmp_path / "two", *flags)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    one = train(voc_folder, tmp_path / "one", *flags)
    two = load_checkpoint(tmp_path / "two" / "last.pth")
    for part in ("loss", "cls", "reg", "quality"):
        assert float(rows(tmp_path / "two")[0][part]) == pytest.approx(float(rows(tmp_path / "one")[0][part]), rel=1e-4)
    assert all(torch.allclose(two["model"][name], value, rtol=1e-3, atol=1e-5) for name, value in one["model"].items())
    assert (tmp_path / "two" / "log.txt").read_text().count("6 pictures") == 1


def test_weights_of_another_run_bring_the_class_rows_of_the_same_name(unbroken, tmp_path, voc_maker):
    _, run, _ = unbroken
    folder = voc_maker(tmp_path / "other", classes=("cube", "disc"), seed=1)
    new = train(folder, tmp_path / "run", "--weights", run / "best.pth", "--max-steps", 1, "--lr", 0, "--channels", 64)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"weights of {run / 'best.pth'}; class rows taken over: disc; new: cube" in log
    assert f"the weights of {run / 'best.pth'} decide, not the flags or their defaults: fpn_channels 32" in log
    old = load_checkpoint(run / "best.pth")["model"]
    assert new["classes"] == ["cube", "disc"]
    rows_now, rows_then = new["training"]["model"]["head.cls_logits.weight"], old["head.cls_logits.weight"]
    assert torch.equal(rows_now[1], rows_then[0]) and not torch.equal(rows_now[0], rows_then[1])
    assert torch.equal(new["training"]["model"]["head.ltrb.weight"], old["head.ltrb.weight"])
    assert new["config"]["backbone_freeze"] == "early"


@pytest.fixture
def no_network(monkeypatch):
    def fail(*arguments, **options):
        raise URLError("Name or service not known")
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)


def test_imagenet_weights_that_cannot_be_had_end_the_run_if_asked_for_and_are_told_of_if_not(no_network, tmp_path, voc_folder, capsys):
    line = refusal(train_voc.main, words(voc_folder, tmp_path / "a", "--weights", "imagenet"), capsys)
    assert "regnet_x_400mf could not be downloaded" in line and "--weights none" in line and not (tmp_path / "a").exists()
    train(voc_folder, tmp_path / "b", "--weights", "auto", "--max-steps", 1)
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "note: training from nothing, because of" in log and "could not be downloaded" in log
    assert load_checkpoint(tmp_path / "b" / "last.pth")["config"]["backbone_freeze"] == "none"


def test_group_norms_in_the_backbone_start_from_nothing(tmp_path, voc_folder, capsys):
    assert "--backbone-norm gn has no ImageNet weights" in refused(capsys, voc_folder, tmp_path / "a", "--backbone-norm", "gn", "--weights", "imagenet")
    last = train(voc_folder, tmp_path / "b", "--backbone-norm", "gn", "--weights", "auto", "--max-steps", 1)
    assert (last["config"]["backbone_norm"], last["config"]["backbone_freeze"], last["flags"]["weights"]) == ("gn", "none", "none")


def test_coco_weights_that_cannot_be_had_end_the_run(no_network, tmp_path, voc_folder, capsys):
    line = refusal(train_voc.main, words(voc_folder, tmp_path / "run", "--weights", "coco"), capsys)
    assert "--weights coco: FCOS_ResNet50_FPN_Weights.COCO_V1 of torchvision could not be downloaded" in line


def test_coco_weights_are_a_whole_detector_that_decides_what_its_weights_mean(monkeypatch):
    theirs = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda weights, **options: theirs)
    flags, _ = train_voc.parse_flags("--weights coco --box-loss iou --center-radius 2".split())
    network, config, told = build_network(flags, ["nail", "dog"], None)
    assert (config["backbone"], config["fpn_channels"], config["distance"], config["location_offset"]) == ("resnet50", 256, "relu", 0.0)
    assert (config["box_loss"], config["center_sampling_radius"], config["backbone_freeze"], config["num_classes"]) == ("iou", 2.0, "early", 2)
    state = network.state_dict()
    assert torch.equal(state["head.ltrb.weight"], theirs["head.regression_head.bbox_reg.weight"])
    rows = theirs["head.classification_head.cls_logits.weight"]
    assert torch.equal(state["head.cls_logits.weight"][1], rows[18]) and not any(torch.equal(state["head.cls_logits.weight"][0], row) for row in rows)
    assert told[0] == "weights of coco; class rows taken over: dog; new: nail"
    assert told[1].startswith("the weights of coco decide, not the flags or their defaults: backbone resnet50, ") and "fpn_channels 256, " in told[1]


def test_the_file_of_another_repository_gives_a_run_its_class_rows_by_name(tmp_path):
    theirs = random_weights(next(case for case in CASES if case.family == "adelaidet"), channels=32)
    torch.save({"model": theirs, "iteration": 90000}, tmp_path / "theirs.pth")
    flags, _ = train_voc.parse_flags(["--weights", str(tmp_path / "theirs.pth")])
    network, config, told = build_network(flags, ["nail", "dog"], None)
    rows, their_rows = network.head.cls_logits.weight, theirs["proposal_generator.fcos_head.cls_logits.weight"]
    assert torch.equal(rows[1], their_rows[16]) and not any(torch.equal(rows[0], row) for row in their_rows)
    assert (config["pixel_order"], config["stride_in_1x1"], config["distance"], config["fpn_channels"]) == ("bgr", True, "relu", 32)
    assert told[0] == f"weights of {tmp_path / 'theirs.pth'}; class rows taken over: dog; new: nail"


def test_a_file_of_backbone_weights_starts_a_run_and_one_of_another_backbone_is_refused(tmp_path):
    theirs = torchvision.models.resnet18().state_dict()
    torch.save(theirs, tmp_path / "r18.pth")
    network, config, told = build_network(train_voc.parse_flags(["--weights", str(tmp_path / "r18.pth"), "--backbone", "resnet18"])[0], ["nail"], None)
    assert torch.equal(network.backbone.state_dict()["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])
    assert config["backbone_freeze"] == "early" and told == []
    with pytest.raises(ValueError, match="--weights .*r18.pth: "):
        build_network(train_voc.parse_flags(["--weights", str(tmp_path / "r18.pth"), "--backbone", "resnet34"])[0], ["nail"], None)


def test_weights_of_others_start_a_run_where_their_file_tells_all(tmp_path, voc_folder, capsys):
    weights = random_weights(next(case for case in CASES if case.family == "fcos"), channels=32)
    torch.save({"model": weights}, tmp_path / "fcos.pth")
    line = refusal(train_voc.main, words(voc_folder, tmp_path / "run", "--weights", tmp_path / "fcos.pth"), capsys)
    assert "fcos.pth: the variant of fcos is not named" in line and "tools/convert_weights.py" in line
    convert_weights.main([str(tmp_path / "fcos.pth"), str(tmp_path / "ours.pth"), "--variant", "plain"])
    end = train(voc_folder, tmp_path / "run", "--weights", tmp_path / "ours.pth", "--max-steps", 1)
    assert (end["config"]["pixel_order"], end["config"]["stride_in_1x1"], end["config"]["num_classes"]) == ("bgr", True, 2)
    assert "class rows taken over: none; new: disc, slab" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("freeze, norms_move, stem_moves, rest_moves", [
    ("none", True, True, True), ("norm", False, True, True), ("early", False, False, True), ("all", False, False, False)])
def test_what_is_frozen_stays(freeze, norms_move, stem_moves, rest_moves, tmp_path, voc_folder):
    flags = ("--val-split", "none", "--warmup", 0)
    train(voc_folder, tmp_path / "first", *flags, "--max-steps", 1)
    flags = (*flags, "--freeze", freeze, "--weights", tmp_path / "first" / "best.pth")
    start = train(voc_folder, tmp_path / "start", *flags, "--max-steps", 1, "--lr", 0)["training"]["model"]
    end = train(voc_folder, tmp_path / "end", *flags, "--max-steps", 2, "--lr", 1)["training"]["model"]

    def moved(*names):
        return any(not torch.equal(start[name], end[name]) for name in start if all(word in name for word in names) and "num_batches" not in name)

    assert moved("backbone.stem.0.weight") == stem_moves and moved("backbone.trunk_output.block4", ".0.weight") == rest_moves
    assert moved("backbone.", "running_mean") == norms_move and moved("head.")


def test_nothing_is_frozen_that_was_not_loaded(tmp_path, voc_folder, capsys):
    assert "--freeze early leaves layers of the backbone as they were loaded, but there are no weights" in refused(capsys, voc_folder, tmp_path / "run", "--freeze", "early")


def test_group_norms_have_nothing_to_keep(tmp_path, voc_folder, capsys):
    assert "--freeze norm: group norms" in refused(capsys, voc_folder, tmp_path / "run", "--backbone-norm", "gn", "--freeze", "norm")


def test_drops_that_drop_nothing_are_refused(tmp_path, voc_folder, capsys):
    assert "--drops 0.5: --schedule cosine has none" in refused(capsys, voc_folder, tmp_path / "run", "--schedule", "cosine", "--drops", 0.5)
    assert "--drops 0.9 0.5: must rise, from above 0 to below 1" in refused(capsys, voc_folder, tmp_path / "run", "--schedule", "step", "--drops", 0.9, 0.5)


def test_a_larger_min_size_on_the_command_line_is_not_held_back_by_a_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("min_size: [480]\nmax_size: 800\n")
    sizes = [train_voc.parse_flags(["--config", str(tmp_path / "recipe.yaml"), *more])[0].max_size
             for more in ([], ["--min-size", "960"], ["--min-size=960"], ["--min-size", "960", "--max-size", "1000"], ["--min-size", "96"])]
    assert sizes == [800, 1600, 1600, 1000, 800]
    run = tmp_path / "last.pth"
    save_checkpoint(run, {**load_checkpoint(real_checkpoint(run)), "training": {}, "flags": {"min_size": [320], "max_size": 500}})
    assert train_voc.parse_flags(["--resume", str(run), "--config", str(tmp_path / "recipe.yaml")])[0].max_size == 800
    (tmp_path / "recipe.yaml").write_text("min_size: [480]\n")
    assert train_voc.parse_flags(["--resume", str(run), "--config", str(tmp_path / "recipe.yaml")])[0].max_size == 800       # five thirds of 480, not the run's 500
    assert train_voc.parse_flags(["--resume", str(run)])[0].max_size == 500


def test_crops_of_pictures_that_are_judged_shrunk_are_told_of(voc_folder):
    notes = []
    for more in ((), ("--tile", "64"), ("--min-size", "90")):
        flags, _ = train_voc.parse_flags(["--data", str(voc_folder), "--crop", "64", "--min-size", "48", *more])
        notes.append([note for note in notes_on(train_voc.open_data(flags)[0], None, flags) if "trains at full resolution" in note])
    assert notes[1:] == [[], []] and "6 of 6 pictures are larger than --min-size" in notes[0][0] and "--tile 64" in notes[0][0]


def test_command_line_wins_over_config_and_config_over_the_resumed_run(tmp_path, voc_folder):
    train(voc_folder, tmp_path / "run", "--max-steps", 1, "--val-split", "none")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("epochs: 5\nlr: 1e-3\nmin-size: [64, 80]\nskip_bad: true\ncrop: null\n")
    flags, resumed = train_voc.parse_flags(["--resume", str(tmp_path / "run" / "last.pth"), "--config", str(recipe), "--epochs", "7"])
    assert (flags.epochs, flags.lr, flags.min_size, flags.skip_bad, flags.crop) == (7, 0.001, [64, 80], True, None)
    assert flags.channels == 32 and flags.max_steps is None
    assert resumed["training"]["step"] == 1


def test_a_config_may_say_off_and_infinity_as_yaml_does(tmp_path):
    (tmp_path / "recipe.yaml").write_text("amp: off\ncenter_radius: .inf\nzero_based: false\noutput: runs/a\n")
    flags, _ = train_voc.parse_flags(["--config", str(tmp_path / "recipe.yaml")])
    assert (flags.amp, flags.center_radius, flags.zero_based, flags.output) == ("off", float("inf"), False, "runs/a")


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_this_repository_hold_flags_that_there_are(recipe):
    train_voc.parse_flags(["--config", str(recipe)])


@pytest.mark.parametrize("flags, words_of_it", [
    (["--epochs", "0"], "--epochs: is 0, must be 1 or more"),
    (["--epochs", "abc"], "--epochs: invalid int value: 'abc'"),
    (["--batch-size", "0"], "--batch-size: is 0, must be 1 or more"),
    (["--flip", "1.5"], "--flip: is 1.5, must be in 0..1"),
    (["--mosaic", "nan"], "--mosaic: is nan, must be in 0..1"),
    (["--lr", "-1"], "--lr: is -1, must be 0 or more"),
    (["--channels", "100"], "--channels: is 100, must be a multiple of 32"),
    (["--zoom", "2", "1"], "--zoom is 2 1, LOW must not be above HIGH"),
    (["--schedule", "linear"], "--schedule: invalid choice: 'linear'"),
    (["--epoch", "3"], "unrecognized arguments: --epoch 3; did you mean --epochs?"),
    (["--min-size", "big"], "--min-size: is big, must be a size of 1 to 65535 px, or a range"),
    (["--min-size", "640-70000"], "--min-size: is 640-70000, must be a size of 1 to 65535 px, or a range"),
    (["--crop", "9999999999"], "--crop: is 9999999999, must be in 32..65535"),
    (["--backbone", "resnet19"], "backbone is 'resnet19', not one of"),
    (["--backbone", "resnet19", "--weights", "auto"], "error: backbone is 'resnet19', not one of"),
    (["--seed", "99999999999999999999999"], "--seed: is 99999999999999999999999, must be in 0.."),
    (["--weights", "nowhere.pth"], "--weights is 'nowhere.pth', neither auto, coco, imagenet, none nor an existing file"),
    (["--device", "tpu"], "--device is 'tpu'"),
    (["--train-split", "dev"], "no split 'dev', only"),
    (["--val-split", "dev"], "no split 'dev', only"),
    (["--config", "nowhere.yaml"], "nowhere.yaml: No such file"),
])
def test_a_wrong_flag_ends_in_one_sentence(flags, words_of_it, tmp_path, voc_folder, capsys):
    assert words_of_it in refused(capsys, voc_folder, tmp_path / "run", *flags)


@pytest.mark.parametrize("text, words_of_it", [
    ("epochs: abc", "--epochs: invalid int value: 'abc'"),
    ("epochs: [1, 2]", "unrecognized arguments: 2"),
    ("epoch: 3", "unrecognized arguments: --epoch=3"),
    ("schedule: linear", "--schedule: invalid choice: 'linear'"),
    ("zoom: 2", "--zoom: expected 2 arguments"),
    ("min_size: []", "--min-size: expected at least one argument"),
    ("skip_bad: maybe", "--skip-bad: ignored explicit argument 'maybe'"),
    ("- epochs", "must hold flags as 'name: value' lines"),
    ("", "must hold flags as 'name: value' lines"),
    ("a: [", "is not YAML"),
    ("resume: last.pth", "holds resume, which only the command line can say"),
    ("config: other.yaml", "holds config, which only the command line can say"),
])
def test_a_wrong_config_ends_in_one_sentence_that_names_it(text, words_of_it, tmp_path, voc_folder, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    line = refused(capsys, voc_folder, tmp_path / "run", "--config", recipe)
    assert str(recipe) in line and words_of_it in line


def break_xml(folder, xml, picture):
    xml.write_text("<annotation><object>")
    return f"{xml}: cannot be read as XML"


def box_outside(folder, xml, picture):
    xml.write_text(xml.read_text().replace("<xmin>", "<xmin>500").replace("<xmax>", "<xmax>500"))
    return f"{xml}: object 1"


def truncated(folder, xml, picture):
    picture.write_bytes(picture.read_bytes()[:-1500])
    return str(picture)


def missing_picture(folder, xml, picture):
    picture.unlink()
    return f"{xml}: must have one picture"


def empty_split(folder, xml, picture):
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n")
    return "train.txt: is empty"


def missing_folder(folder, xml, picture):
    shutil.rmtree(folder)
    return f"{folder}: no such folder"


def unknown_class(folder, xml, picture):
    xml = folder / "Annotations" / f"{(folder / 'ImageSets/Main/val.txt').read_text().split()[0]}.xml"
    xml.write_text(xml.read_text().replace("<name>disc", "<name>disk").replace("<name>slab", "<name>disk"))
    return f"{xml}: object 1 is 'disk', not one of disc, slab; did you mean 'disc'?"


def no_objects(folder, xml, picture):
    for path in (folder / "Annotations").glob("*.xml"):
        path.write_text("<annotation></annotation>")
    return "not one object in 6 pictures"


def nothing_but_zones(folder, xml, picture):
    for path in (folder / "Annotations").glob("*.xml"):
        path.write_text(path.read_text().replace("<name>", "<zone>ignore</zone><name>"))
    return "not one object in 6 pictures to train on"


@pytest.mark.parametrize("spoil", [break_xml, box_outside, truncated, missing_picture, empty_split, missing_folder, unknown_class, no_objects, nothing_but_zones])
def test_bad_data_ends_in_one_sentence_before_anything_is_written(spoil, tmp_path, voc_folder, capsys):
    name = (voc_folder / "ImageSets/Main/train.txt").read_text().split()[1]
    sentence = spoil(voc_folder, voc_folder / "Annotations" / f"{name}.xml", voc_folder / "JPEGImages" / f"{name}.jpg")
    assert sentence in refused(capsys, voc_folder, tmp_path / "run")


def test_with_skip_bad_it_is_left_out_and_named(tmp_path, voc_folder):
    name = (voc_folder / "ImageSets/Main/train.txt").read_text().split()[0]
    (voc_folder / "JPEGImages" / f"{name}.jpg").unlink()
    train(voc_folder, tmp_path / "run", "--skip-bad", "--max-steps", 1)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "5 pictures" in log and f"note: {voc_folder}/Annotations/{name}.xml: must have one picture" in log


@pytest.mark.parametrize("flag", ["--resume", "--weights"])
@pytest.mark.parametrize("kind", BAD_CHECKPOINTS)
def test_a_bad_checkpoint_ends_in_one_sentence(kind, flag, tmp_path, voc_folder, capsys):
    path = bad_checkpoint(kind, tmp_path / "some.pth")
    before = sorted(tmp_path.rglob("*"))
    assert path in refusal(train_voc.main, ["--data", voc_folder, *TINY, "--workers", 0, flag, path], capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_does_not_fit_changes_nothing(unbroken, tmp_path, voc_maker, capsys):
    _, run, _ = unbroken
    before = {path: path.read_bytes() for path in run.iterdir()}
    other = voc_maker(tmp_path / "other", classes=("cube", "disc"))
    last = run / "last.pth"
    assert "holds no optimizer state" in refusal(train_voc.main, ["--resume", run / "best.pth"], capsys)
    assert "was trained on the classes disc, slab, the data has" in refusal(train_voc.main, ["--resume", last, "--data", other], capsys)
    assert f"--channels is 64, but {last} was trained with 32" in refusal(train_voc.main, ["--resume", last, "--channels", 64], capsys)
    assert f"--ema is 0.0, but {last} was trained with 0.998" in refusal(train_voc.main, ["--resume", last, "--ema", 0], capsys)
    assert "goes on in its own folder" in refusal(train_voc.main, ["--resume", last, "--output", tmp_path / "x"], capsys)
    assert f"{run}: holds a run already" in refusal(train_voc.main, words(other, run), capsys)
    assert "steps an epoch, with this data and batch size they are" in refusal(train_voc.main, ["--resume", last, "--batch-size", 1], capsys)
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_a_new_run_replaces_no_file_of_somebody_else(tmp_path, voc_folder, capsys):
    (tmp_path / "run").mkdir()
    recipe = tmp_path / "run" / "config.yaml"
    recipe.write_text("lr: 0.02    # mine\n")
    told = refusal(train_voc.main, [*words(voc_folder, tmp_path / "run"), "--config", recipe], capsys)
    assert f"--output {tmp_path / 'run'}: holds config.yaml, which no run has left there" in told
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"] and recipe.read_text() == "lr: 0.02    # mine\n"


def test_a_folder_of_a_run_that_was_stopped_before_its_first_checkpoint_is_free(tmp_path, voc_folder):
    train(voc_folder, tmp_path / "run", "--max-steps", 1)
    for name in ("last.pth", "best.pth"):
        (tmp_path / "run" / name).unlink()
    train(voc_folder, tmp_path / "run", "--max-steps", 1)


def test_a_run_resumed_without_an_evaluation_keeps_its_best(tmp_path, voc_folder):
    train(voc_folder, tmp_path / "run", "--max-steps", 1)
    best = (tmp_path / "run" / "best.pth").read_bytes()
    train_voc.main(["--resume", str(tmp_path / "run" / "last.pth"), "--val-split", "none"])
    assert (tmp_path / "run" / "best.pth").read_bytes() == best


def test_ranks_with_other_data_are_refused(tmp_path, voc_folder, capsys, monkeypatch):
    monkeypatch.setattr("engine.distributed.of_first_rank", lambda data: (data[0] + 1, data[1]))
    assert "the training data of this process (6 pictures" in (line := refused(capsys, voc_folder, tmp_path / "run")) and "are not those of the first one" in line


def test_a_batch_of_more_pictures_than_there_are_is_told_of(voc_folder):
    flags, _ = train_voc.parse_flags(["--data", str(voc_folder), "--batch-size", "7"])
    assert "--batch-size 7 is more than the 6 pictures" in " ".join(notes_on(train_voc.open_data(flags)[0], None, flags))


def test_a_batch_that_the_processes_cannot_share_evenly_is_refused(tmp_path, voc_folder, monkeypatch, capsys):
    monkeypatch.setattr(engine.distributed, "world_size", lambda: 2)
    assert "--batch-size is 3, not a multiple of the 2 processes" in refused(capsys, voc_folder, tmp_path / "run")


def test_without_a_list_to_evaluate_on_there_is_still_a_best_checkpoint(tmp_path, voc_folder):
    last = train(voc_folder, tmp_path / "run", "--val-split", "none", "--max-steps", 1)
    assert rows(tmp_path / "run")[0]["mAP"] == "" and (tmp_path / "run" / "training.png").exists()
    assert all(torch.equal(value, last["model"][name]) for name, value in load_checkpoint(tmp_path / "run" / "best.pth")["model"].items())


def test_validation_merges_tiles_as_the_network_says(tmp_path, voc_folder, monkeypatch):
    predict, seen = engine.predict.predict, []
    monkeypatch.setattr(engine.predict, "predict", lambda *given, **named: seen.append(named) or predict(*given, **named))
    train(voc_folder, tmp_path / "run", "--tile", 64, "--max-steps", 1, "--nms-iou-threshold", 0.4)
    assert [named["nms_iou_threshold"] for named in seen] == [0.4]


def test_evaluating_on_pictures_that_are_trained_on_is_pointed_out(tmp_path, voc_folder):
    train(voc_folder, tmp_path / "a", "--train-split", "trainval", "--val-split", "val", "--max-steps", 1)
    assert "note: 3 of the 3 pictures to evaluate on are trained on too" in (tmp_path / "a" / "log.txt").read_text()
    shutil.rmtree(voc_folder / "ImageSets")
    train(voc_folder, tmp_path / "b", "--max-steps", 1)
    log = (tmp_path / "b" / "log.txt").read_text()
    assert "12 pictures" in log and "no list to evaluate on" in log
    assert f"note: there are no lists: all pictures are trained on, and none is left to judge the detector by; python tools/make_splits.py {voc_folder}" in log
    make_splits.main([str(voc_folder)])
    train(voc_folder, tmp_path / "c", "--max-steps", 1)
    assert "8 pictures" in (tmp_path / "c" / "log.txt").read_text() and "2 pictures of val to evaluate on" in (tmp_path / "c" / "log.txt").read_text()


def test_lists_without_train_are_never_passed_over(tmp_path, voc_folder, voc_maker, capsys):
    bare = voc_maker(tmp_path / "bare")
    (bare / "ImageSets" / "Main" / "train.txt").unlink()
    sentence = (f"{bare}: has no list 'train' in ImageSets (but test, trainval, val); "
                "name one with --train-split S, or take every XML file with --train-split all")
    assert sentence in refused(capsys, bare, tmp_path / "run")
    assert sentence in refused(capsys, voc_folder, tmp_path / "run", "--data", voc_folder, bare)
    shutil.rmtree(bare / "ImageSets")
    assert f"{bare}: has no list 'train' in ImageSets (but none at all)" in refused(capsys, voc_folder, tmp_path / "run", "--data", voc_folder, bare)
    flags = train_voc.parse_flags(["--data", str(voc_folder), str(bare), "--train-split", "all"])[0]
    assert len(train_voc.open_data(flags)[0]) == 24


def open_data(*flags):
    return train_voc.open_data(train_voc.parse_flags(list(map(str, flags)))[0])


def test_what_is_evaluated_on_is_never_what_was_asked_to_be_trained_on(tmp_path, voc_folder):
    assert [len(part) for part in open_data("--data", voc_folder)] == [6, 3]
    for split, count in (("trainval", 9), ("all", 12), ("test", 3)):
        train_set, val_set = open_data("--data", voc_folder, "--train-split", split)
        assert len(train_set) == count and val_set is None and any("no list is taken to evaluate on by itself" in note for note in train_set.notes)
    assert len(open_data("--data", voc_folder, "--train-split", "test", "--val-split", "val")[1]) == 3


def test_a_list_val_that_only_some_folders_have_is_told_of(tmp_path, voc_folder, voc_maker):
    other = voc_maker(tmp_path / "other")
    (other / "ImageSets" / "Main" / "val.txt").unlink()
    train_set, val_set = open_data("--data", voc_folder, other)
    assert val_set is None and any(f"only {voc_folder} has a list val" in note for note in train_set.notes)
    assert len(open_data("--data", voc_folder, other, "--val-data", voc_folder)[1]) == 3


def test_a_trainval_that_holds_more_than_train_and_val_is_pointed_out(tmp_path, voc_folder, voc_maker):
    folder = voc_maker(tmp_path / "more")
    with open(folder / "ImageSets" / "Main" / "trainval.txt", "a") as file:
        file.write("".join(f"{id}\n" for id in (folder / "ImageSets" / "Main" / "test.txt").read_text().split()))
    sentence = f"{folder}: trainval lists 3 pictures that neither train nor val does; --train-split trainval takes them"
    assert sentence in open_data("--data", folder)[0].notes
    assert not any("trainval" in note for flags in (["--data", voc_folder], ["--data", folder, "--train-split", "train"]) for note in open_data(*flags)[0].notes)


def test_each_folder_may_have_a_list_of_its_own(tmp_path, voc_folder, voc_maker, capsys):
    other = voc_maker(tmp_path / "other", n=8, seed=1)
    train_set, val_set = open_data("--data", voc_folder, other, "--train-split", "trainval", "train", "--val-data", other)
    assert [len(train_set), len(val_set)] == [9 + 4, 2] and not {*train_set.pictures} & {*val_set.pictures}
    assert len(open_data("--data", voc_folder, other, "--train-split", "all", "auto")[0]) == 12 + 4
    sentence = "--train-split names 2 lists for the 1 folders of --data; name one for all, or one for each"
    assert sentence in refused(capsys, voc_folder, tmp_path / "run", "--train-split", "train", "val")
    assert sentence in refused(capsys, voc_folder, tmp_path / "run", "--data", voc_folder, voc_folder, "--train-split", "train", "val")


def test_objects_longer_than_what_tiles_share_are_told_of(voc_folder):
    for tile, told in ((64, True), (128, False)):           # objects of up to 42 px in pictures of 128 x 96: one tile of 128 shows all of it
        flags = train_voc.parse_flags(["--data", str(voc_folder), "--tile", str(tile)])[0]
        assert any(f"longer than the {tile // 4} px that neighbouring tiles of {tile} px" in note for note in notes_on(train_voc.open_data(flags)[0], None, flags)) == told


def test_a_folder_for_each_split_with_xml_beside_the_pictures(tmp_path, voc_maker, capsys):
    for name, count in (("train", 6), ("valid", 4), ("test", 2)):
        made = voc_maker(tmp_path / "made" / name, n=count, seed=count)
        (tmp_path / "export" / name).mkdir(parents=True)
        for file in (*made.glob("Annotations/*"), *made.glob("JPEGImages/*")):
            file.rename(tmp_path / "export" / name / file.name)
    export = tmp_path / "export"
    train_set, val_set = open_data("--data", export / "train", "--val-data", export / "valid")
    assert len(train_set) == 6 and len(val_set) == 4 and not {*train_set.pictures} & {*val_set.pictures}
    assert f"below it are {export / 'test'}, {export / 'train'}, {export / 'valid'}: name what you mean" in refused(capsys, export, tmp_path / "run")
    last = train(export / "train", tmp_path / "run", "--val-data", export / "valid")
    assert last["flags"]["val_data"] == [str(export / "valid")] and last["metrics"]["mAP"] is not None


def test_the_longest_side_follows_the_shorter_one_unless_it_is_given(tmp_path):
    for flags, most in ((["--min-size", "960"], 1600), (["--min-size", "640-800", "500"], 1333), ([], 800), (["--min-size", "960", "--max-size", "900"], 900)):
        assert train_voc.parse_flags(flags)[0].max_size == most
    tiled = {"input": {"min_size": 480, "max_size": 800, "tile": 640}}
    for given, sizes in (({}, (480, 800, 640)), ({"min_size": 960}, (960, 1600, None)), ({"min_size": 300}, (300, 800, None)), ({"max_size": 600}, (480, 600, None)),
                         ({"tile": 320}, (480, 800, 320)), ({"min_size": 300, "max_size": 400, "tile": 320}, (300, 400, 320))):
        assert tuple(input_sizes(Namespace(**given), tiled).values()) == sizes


def test_what_is_odd_about_the_pictures_to_evaluate_on_is_told(tmp_path, voc_folder):
    val = voc_folder / "ImageSets" / "Main" / "val.txt"
    val.write_text(val.read_text() * 2)
    flags, _ = train_voc.parse_flags(["--data", str(voc_folder), "--batch-size", "4"])
    notes = notes_on(*train_voc.open_data(flags), flags)
    assert notes == [f"{val}: 3 ids are listed more than once and count once"]


@pytest.mark.parametrize("more, lost", [([], None), (["--min-size", "24"], 0.3), (["--min-size", "24", "--crop", "64"], None), (["--min-size", "24", "--model", "faster_rcnn"], None)])
def test_objects_too_small_for_any_location_are_told_of(voc_folder, xml_writer, more, lost):
    for xml in (voc_folder / "Annotations").iterdir():
        xml_writer(xml, (96, 128), [("disc", (1, 1, 32, 24)), ("slab", (1, 1, 96, 96))])         # a quarter: 8 x 6 px and 24 x 24 px of the input
    flags, _ = train_voc.parse_flags(["--data", str(voc_folder), *more])
    train_set, _ = train_voc.open_data(flags)
    notes = [note for note in notes_on(train_set, None, flags) if "so small" in note]
    assert notes == [] if lost is None else len(notes) == 1 and "about 2 of 12 objects" in notes[0] and "--crop 640" in notes[0]       # 6 x (1 - 6 / 8)


@pytest.mark.parametrize("more, objects, told", [
    ([], -1, True), ([], 0, False), (["--normalizer-floor", "8"], -1, False), (["--crop", "128"], -1, False), (["--model", "faster_rcnn"], -1, False)])
def test_where_labels_are_few_it_is_told_what_helps(voc_folder, monkeypatch, more, objects, told):
    flags, _ = train_voc.parse_flags(["--data", str(voc_folder), *more])
    train_set, _ = train_voc.open_data(flags)
    monkeypatch.setattr(train_set, "class_counts", lambda: {"disc": len(train_set) + objects})
    assert [note for note in notes_on(train_set, None, flags) if "--normalizer-floor 8" in note] == notes_on(train_set, None, flags)[-1:] * told


def test_started_by_a_user_it_trains_and_a_mistake_is_one_line_without_a_traceback(tmp_path, voc_folder):
    def start(*flags):
        command = [sys.executable, str(ROOT / "train_voc.py"), *words(os.path.relpath(voc_folder, tmp_path), "out", *flags)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=100)

    done = start("--max-steps", "1")
    assert done.returncode == 0 and "best.pth and last.pth are in out" in done.stdout, done.stderr
    assert yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["channels"] == 32
    again = start()
    assert again.returncode == 2 and again.stderr.startswith("error: --output out: holds a run already") and again.stderr.count("\n") == 1


def test_help_tells_each_flag_with_its_default_and_imports_nothing_heavy():
    parser = train_voc.build_parser()
    text = " ".join(parser.format_help().split())
    assert all(action.help for action in parser._actions) and "default: None" not in text and "default: False" not in text
    for words_of_it in ("(default: 480)", "(default: 1.0 1.0)", "the same seed repeats the run (default: 0)", "(default: foreign_object_dataset)"):
        assert words_of_it in text.replace(os.path.relpath(ROOT / "foreign_object_dataset"), "foreign_object_dataset")
    code = "import sys, train_voc; train_voc.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0


def network_of(*flags):
    return build_network(train_voc.parse_flags(["--weights", "none", "--channels", "32", "--head-convs", "1", *flags])[0], ["disc"], None)[1]


def test_the_flags_of_the_network_are_its_config_fields_with_the_same_choices_and_defaults():
    fields = {field: (default, kind) for field, default, kind, _ in MODEL_FLAGS.values()}
    config = RCNNConfig(num_classes=1).asdict() | FCOSConfig(num_classes=1).asdict()
    own = {"backbone": "efficientnet_lite0", "fpn_channels": 128,       # smaller than the paper's, for a CPU
           "nms_iou_threshold": None}                                   # not the same for all models
    assert {field: default for field, (default, _) in fields.items()} == {field: own.get(field, config[field]) for field in fields}
    of_the_weights = {"backbone_freeze", "stride_in_1x1", "pixel_order"}
    for field, choices in CHOICES.items():
        assert field in of_the_weights or fields[field][1] is (switch if set(choices) == {True, False} else choices), field
    assert not {field for preset in PRESETS.values() for field in preset} - {*fields}


def test_every_flag_of_the_network_reaches_its_config(tmp_path):
    flags = ("--p6-from c5 --head-norm bn --tower-bias on --shared-tower true --distance relu --distance-unit pixel --scale-distances off "
             "--quality none --quality-tower cls --range-ends open --location-offset 0 --strides-from-grid on --box-loss diou --box-weighting none "
             "--focal-alpha 0.5 --score-threshold 0.2 --threshold-on score --score-rule product --rank-by cls --top-k-scope picture "
             "--candidates argmax --nms-iou-threshold 0.5 --max-detections 7 --pre-nms-top-k 9").split()
    config = network_of(*flags)
    plain = FCOSConfig(num_classes=1).asdict()
    for name, value in zip(flags[::2], flags[1::2], strict=True):
        now = config[MODEL_FLAGS[name[2:].replace("-", "_")][0]]
        assert str(now) == {"on": "True", "true": "True", "off": "False", "0": "0.0"}.get(value, value)
        assert now != plain[MODEL_FLAGS[name[2:].replace("-", "_")][0]]
    assert network_of("--assignment", "atss")["assignment"] == "atss"


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "rcnn_small"])
def test_a_preset_fills_what_is_not_given_and_a_run_folder_repeats_it(preset, tmp_path):
    config = network_of("--preset", preset)
    assert all(config[field] == value for field, value in (PRESETS[preset] | {"fpn_channels": 32, "head_convs": 1}).items())
    assert config["backbone"] == PRESETS[preset].get("backbone", "efficientnet_lite0")
    flags, _ = train_voc.parse_flags(["--preset", preset, "--backbone", "resnet18", "--scale-distances", "on"])
    assert (flags.backbone, flags.scale_distances) == ("resnet18", True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({name: value for name, value in vars(flags).items() if name in MODEL_FLAGS}))
    again, _ = train_voc.parse_flags(["--config", str(tmp_path / "config.yaml")])
    assert {name: getattr(again, name) for name in MODEL_FLAGS} == {name: getattr(flags, name) for name in MODEL_FLAGS}


def test_a_running_mean_of_the_counts_changes_the_second_step_and_is_settled_for_a_resumed_run(tmp_path, voc_folder, capsys):
    flags = ("--val-split", "none", "--max-steps", 2, "--warmup", 0)
    plain = train(voc_folder, tmp_path / "plain", *flags)
    smooth = train(voc_folder, tmp_path / "smooth", *flags, "--normalizer-momentum", 0.9)
    assert smooth["training"]["counts"] is not None and not same_weights(plain, smooth)
    line = refusal(train_voc.main, ["--resume", tmp_path / "smooth/last.pth", "--normalizer-momentum", 0], capsys)
    assert "--normalizer-momentum is 0.0, but" in line


def test_a_floor_under_the_counts_makes_steps_small_whose_count_is_below_it(tmp_path, voc_folder):
    flags = ("--val-split", "none", "--max-steps", 1, "--warmup", 0)
    plain, low, high = (train(voc_folder, tmp_path / str(floor), *flags, "--normalizer-floor", floor) for floor in (0, 0.01, 1e9))
    assert same_weights(plain, low) and not same_weights(plain, high)
    with open(tmp_path / str(1e9) / "metrics.csv", newline="", encoding="utf-8") as file:
        assert float(next(csv.DictReader(file))["loss"]) < 1e-4


@pytest.mark.parametrize("flags, words_of_it", [
    (["--preset", "yolo"], "--preset: invalid choice: 'yolo'"), (["--scale-distances", "maybe"], "--scale-distances: is maybe, must be on or off"),
    (["--location-offset", "0.3"], "--location-offset: invalid choice: 0.3"), (["--head-norm-groups", "7"], "head_norm_groups is 7, which does not divide"),
    (["--head-norm", "frozen_bn"], "--head-norm frozen_bn keeps statistics that were measured")])
def test_a_wrong_flag_of_the_network_ends_in_one_sentence(flags, words_of_it, tmp_path, voc_folder, capsys):
    assert words_of_it in refused(capsys, voc_folder, tmp_path / "run", *flags)
