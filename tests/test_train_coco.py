"""The COCO commands from end to end, on a network of seconds: training, evaluation, detection, refusals."""
import contextlib
import copy
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from colour_network import colour_checkpoint, real_checkpoint, refusal
from conftest import make_voc
from PIL import Image
from test_train_voc import TINY, rows, same_weights

import detect
import eval_coco
import train_coco
from dataset.voc import VOCDataset
from engine.checkpoint import load_checkpoint
from tools.voc_to_coco import to_coco

ROOT = Path(__file__).resolve().parent.parent


def make_coco(folder, **keywords):
    """make_voc's pictures in the standard COCO layout: image ids from 0, category ids 10 and 30, and a category without objects."""
    voc = make_voc(folder / "voc", **keywords)
    (folder / "annotations").mkdir()
    for split, name in (("train", "train2017"), ("val", "val2017")):
        shutil.copytree(voc / "JPEGImages", folder / name)
        contents = to_coco(VOCDataset(voc, split, classes=["disc", "slab"]), voc / "JPEGImages")
        contents["categories"] = [{"id": 30, "name": "slab"}, {"id": 20, "name": "never"}, {"id": 10, "name": "disc"}]
        for image in contents["images"]:
            image["id"] = 3 * (image["id"] - 1)
        for number, annotation in enumerate(contents["annotations"]):
            annotation |= {"id": number, "image_id": 3 * (annotation["image_id"] - 1), "category_id": (10, 30)[annotation["category_id"] - 1]}
        (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(contents))
    shutil.rmtree(voc)
    return folder


def words(folder, output, *flags):
    return ["--data", str(folder), "--output", str(output), *TINY, "--workers", "0", *map(str, flags)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(COCO folder, run folder) of a run with a recipe and sizes of a range."""
    place = tmp_path_factory.mktemp("coco")
    folder = make_coco(place / "data")
    (place / "recipe.yaml").write_text("# mine\nmin_size: [48-64]\nlr: 0.05\n")
    tiny = " ".join(TINY).replace("--min-size 64 ", "").split()
    train_coco.main(["--data", str(folder), "--output", str(place / "run"), *tiny, "--workers", "0", "--config", str(place / "recipe.yaml")])
    return folder, place / "run"


def test_the_run_folder_holds_what_is_promised(trained):
    folder, run = trained
    promised = "config.yaml config_given.yaml network.yaml log.txt metrics.csv best.pth last.pth training.png train_batch.jpg"
    assert {*promised.split()} <= {*os.listdir(run)}
    assert (run / "config_given.yaml").read_text().startswith("# mine") and yaml.safe_load((run / "config.yaml").read_text())["min_size"] == ["48-64"]
    network = yaml.safe_load((run / "network.yaml").read_text())
    assert (network["num_classes"], network["levels"], network["fpn_channels"], network["pixel_std"][0]) == (3, 3, 32, 58.395)
    best = load_checkpoint(run / "best.pth")
    assert best["classes"] == ["disc", "never", "slab"] and best["input"] == {"min_size": 64, "max_size": 96, "tile": None}
    assert {"mAP", "mAP_50", "coco", "per_class"} <= best["metrics"].keys()
    assert all(0 <= float(row["mAP"]) <= float(row["mAP_50"]) <= 1 and row["mAP_50_95"] == "" for row in rows(run))
    assert "AP75" in (run / "log.txt").read_text()


def test_events_are_written_where_tensorboard_is_installed(trained):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    assert list(trained[1].glob("events.out.tfevents*"))


def test_the_config_of_a_run_repeats_it_and_a_broken_one_is_resumed(trained, tmp_path):
    folder, run = trained
    train_coco.main(["--config", str(run / "config.yaml"), "--output", str(tmp_path / "again"), "--max-steps", "3"])
    assert yaml.safe_load((tmp_path / "again/config.yaml").read_text()) | {"max_steps": None} == yaml.safe_load((run / "config.yaml").read_text())
    train_coco.main(["--resume", str(tmp_path / "again" / "last.pth")])
    assert same_weights(load_checkpoint(tmp_path / "again" / "last.pth"), load_checkpoint(run / "last.pth"))


def test_explicit_files_win_over_the_folder_and_val_may_be_none(trained, tmp_path):
    folder, _ = trained
    train_json, images = folder / "annotations/instances_train2017.json", folder / "train2017"
    flags, _ = train_coco.parse_flags(words(folder, tmp_path, "--val-json", train_json, "--val-images", images))
    train_set, val_set = train_coco.open_data(flags)
    assert train_set.pictures == val_set.pictures and flags.val_json == str(train_json)
    flags, _ = train_coco.parse_flags(["--train-json", str(train_json), "--train-images", str(images)])
    assert train_coco.open_data(flags)[1] is None
    flags, _ = train_coco.parse_flags(words(folder, tmp_path, "--val-json", "none"))
    assert train_coco.open_data(flags)[1] is None and flags.val_json == "none"


@pytest.mark.parametrize("flags, sentence", [
    (["--data", "{tmp}/nowhere"], "nowhere: no such folder"),
    (["--train-json", "{data}/annotations/instances_train2017.json"], "--train-json and --train-images go together, the second is missing"),
    (["--val-images", "{data}/val2017"], "--val-json and --val-images go together, the first is missing"),
    (["--min-size", "80-64"], "--min-size: is 80-64, must be a size of 1 to 65535 px, or a range LOW-HIGH of them"),
    (["--min-size", "big"], "--min-size: is big, must be a size of 1 to 65535 px"),
    (["--train-json", "{tmp}/recipe.yaml", "--train-images", "{data}/train2017"], "recipe.yaml: cannot be read as JSON"),
])
def test_a_mistake_ends_in_one_sentence(flags, sentence, trained, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("a: 1")
    told = [flag.format(data=trained[0], tmp=tmp_path) for flag in flags]
    assert sentence in refusal(train_coco.main, [*words(trained[0], tmp_path / "run"), *told], capsys) and not (tmp_path / "run").exists()


def test_without_data_it_says_what_to_give(tmp_path, capsys):
    assert "give --data DIR, or --train-json FILE" in refusal(train_coco.main, ["--output", tmp_path / "run"], capsys)
    checkpoint = real_checkpoint(tmp_path / "best.pth")
    assert "give --data DIR, or --json FILE" in refusal(eval_coco.main, ["--checkpoint", checkpoint], capsys)
    assert "give --data DIR, or --json FILE" in refusal(eval_coco.main, ["--checkpoint", checkpoint, "--json", "a.json"], capsys)


def test_eval_coco_writes_the_ids_of_the_file_and_pycocotools_agrees(trained, tmp_path, monkeypatch):
    folder, _ = trained
    checkpoint = colour_checkpoint(tmp_path / "best.pth", monkeypatch, classes=("disc", "slab"))
    metrics = eval_coco.main(["--checkpoint", checkpoint, "--data", str(folder), "--workers", "0", "--device", "cpu"])
    output = tmp_path / "eval"
    assert json.loads((output / "metrics.json").read_text()) == metrics and metrics["json"].endswith("instances_val2017.json")
    results = json.loads((output / "detections.json").read_text())
    assert {each["category_id"] for each in results} <= {10, 30} and 0 in {each["image_id"] for each in results}
    assert len(list((output / "pictures").glob("*.jpg"))) == 3
    Image.open(output / "precision_recall.png").verify()

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "annotations/instances_val2017.json"))
        for annotation in truth.dataset["annotations"]:
            annotation["id"] += 1                               # its own trap, which the file here falls into
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert [-1 if value is None else value for value in metrics["coco"].values()] == pytest.approx(judge.stats.tolist(), abs=1e-12)
    assert metrics["mAP_50"] > 0.5


def test_detect_takes_the_checkpoint_as_any_other(trained, tmp_path):
    folder, run = trained
    entries = detect.main([str(folder / "val2017"), "--checkpoint", str(run / "best.pth"), "--device", "cpu", "--score-threshold", "0.01",
                           "--output", str(tmp_path)])
    assert len(entries) == 12 and {found["label"] for entry in entries for found in entry["detections"]} <= {"disc", "never", "slab"}


def test_the_scripts_themselves_run_and_help_imports_nothing_heavy(trained, tmp_path):
    folder, run = trained
    for command in (["train_coco.py", *words(folder, tmp_path / "run", "--max-steps", 1)],
                    ["eval_coco.py", "--checkpoint", run / "last.pth", "--data", folder, "--device", "cpu", "--workers", "0",
                     "--output", tmp_path / "eval"]):
        done = subprocess.run([sys.executable, ROOT / command[0], *map(str, command[1:])], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "AP75" in done.stdout, done.stderr
    code = "import sys, train_coco, eval_coco; train_coco.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30).returncode == 0


@pytest.mark.parametrize("recipe", sorted((ROOT / "configs").glob("coco_*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_of_this_repository_hold_flags_that_there_are(recipe):
    train_coco.parse_flags(["--config", str(recipe)])
