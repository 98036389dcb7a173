"""Train, evaluate, detect: the three commands one after the other, as a person would use them."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from colour_network import real_checkpoint

import detect
import eval_voc
import train_voc

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(VOC folder, best.pth) of a network that has seen a little: unsure boxes, but many."""
    from conftest import make_voc
    place = tmp_path_factory.mktemp("chain")
    folder = make_voc(place / "voc", n=8, max_objects=2)
    train_voc.main(["--data", str(folder), "--output", str(place / "run"), "--workers", "0", *(
        "--backbone regnet_x_400mf --channels 32 --head-convs 1 --levels 3 --min-size 96 --max-size 128 --weights none --device cpu "
        "--batch-size 2 --epochs 6 --lr 0.2 --ema 0.5 --flip 0 --jitter 0 --rotate 0 --val-split none").split()])
    return folder, place / "run" / "best.pth"


def test_eval_voc_and_detect_find_the_same_boxes(trained, tmp_path):
    folder, checkpoint = trained
    common = ["--checkpoint", str(checkpoint), "--device", "cpu"]
    eval_voc.main([*common, "--data", str(folder), "--split", "all", "--workers", "0", "--output", str(tmp_path / "eval")])
    threshold = 0.3             # below sqrt(0.05), detect.py would ask the network for more than eval_voc.py does
    entries = detect.main([*common, str(folder / "JPEGImages"), "--score-threshold", str(threshold), "--output", str(tmp_path / "found")])
    assert json.loads((tmp_path / "found" / "detections.json").read_text()) == entries and len(entries) == 8

    results = json.loads((tmp_path / "eval" / "detections.json").read_text())
    classes = ["disc", "slab"]
    for entry in entries:
        expected = [(classes[each["category_id"] - 1], each["score"], each["bbox"]) for each in results
                    if each["image_id"] == Path(entry["image"]).stem and each["score"] >= threshold]
        assert len(entry["detections"]) == len(expected)
        for found, (label, score, (x, y, w, h)) in zip(entry["detections"], expected, strict=True):
            assert found["label"] == label and found["score"] == pytest.approx(score, abs=1e-3)
            assert found["box"] == pytest.approx([x, y, x + w, y + h], abs=0.2)
    assert sum(len(entry["detections"]) for entry in entries) > 0


def hear_ctrl_c():
    """Tests that a shell runs in the background inherit deaf ears."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("script, flags", [("eval_voc.py", ["--data", "{voc}", "--split", "all", "--workers", "1"]),
                                           ("detect.py", ["{voc}/JPEGImages"])])
def test_ctrl_c_ends_a_command_with_130_and_without_a_traceback(script, flags, tmp_path, voc_maker):
    folder = voc_maker(tmp_path / "voc", n=120)
    checkpoint = real_checkpoint(tmp_path / "best.pth")
    command = [sys.executable, "-u", str(ROOT / script), "--checkpoint", checkpoint, "--device", "cpu", "--min-size", "480", "--max-size", "640",
               "--output", str(tmp_path / "out"), *(flag.format(voc=folder) for flag in flags)]
    with open(tmp_path / "stdout", "w") as out, open(tmp_path / "stderr", "w") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=tmp_path, start_new_session=True, preexec_fn=hear_ctrl_c)
        while "best.pth" not in (tmp_path / "stdout").read_text() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130, (tmp_path / "stderr").read_text()
    told = (tmp_path / "stderr").read_text()
    assert "Traceback" not in told and told.rstrip().endswith("interrupted")
