import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from benchmarks import speed, torchvision_fcos

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--size", "64", "96", "--batch-size", "2", "--classes", "3"]


def train_flags(folder, *more):
    return ["--data", str(folder), "--channels", "64", "--min-size", "64", "--max-size", "96", "--batch-size", "2",
            "--workers", "0", "--device", "cpu", "--max-steps", "2", *more]


def test_torchvisions_fcos_is_trained_and_judged_on_the_same_pictures(voc_folder, tmp_path):
    words = [sys.executable, ROOT / "benchmarks" / "torchvision_fcos.py", *train_flags(voc_folder, "--output", "out")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "AP50" in done.stdout and "step/s" in done.stderr
    assert metrics["all"]["pictures"] == 3 and set(metrics["ap"]) == {"disc", "slab"} and metrics["steps"] == 2
    assert metrics["training_seconds"] > 0 and metrics["versions"]["torch"] == torch.__version__
    assert metrics["command"].startswith("python ") and "--max-steps 2" in metrics["command"]


def test_a_loss_that_is_not_finite_ends_in_a_sentence(voc_folder, tmp_path, capsys):
    flags = train_flags(voc_folder, "--output", str(tmp_path), "--lr", "1e38", "--epochs", "9", "--max-steps", "9")
    with pytest.raises(SystemExit) as stopped:
        torchvision_fcos.main(flags)
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and "torchvision's loss is" in sentence and "--lr below 1e+38" in sentence


def test_channels_that_torchvisions_heads_cannot_group_are_refused(voc_folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        torchvision_fcos.main(train_flags(voc_folder, "--channels", "80"))
    assert stopped.value.code == 2 and "--channels is 80, must be a multiple of 32" in capsys.readouterr().err


class Recorder(nn.Module):
    """Keeps what torchvision's network would be given; answers one box of the background row and one of row 2."""

    def forward(self, pictures, targets=None):
        self.pictures, self.targets = pictures, targets
        boxes = torch.tensor([[0.0, 0, 1, 1], [1, 2, 3, 4]])
        return [{"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([0, 2])} for _ in pictures]


def test_labels_start_at_one_inside_and_at_zero_outside_and_padding_goes():
    network = torchvision_fcos.AsOurs(Recorder())
    images, sizes = torch.full((1, 3, 32, 64), 255, dtype=torch.uint8), torch.tensor([[20, 40]])
    targets = {"boxes": torch.tensor([[[1.0, 2, 3, 4], [0, 0, 0, 0]]]), "labels": torch.tensor([[1, -1]])}
    network(images, sizes, targets)
    picture, target = network.network.pictures[0], network.network.targets[0]
    assert picture.shape == (3, 20, 40) and picture.max() == 1
    assert target["labels"].tolist() == [2] and target["boxes"].tolist() == [[1, 2, 3, 4]]
    found = network(images, sizes)[0]
    assert found["labels"].tolist() == [1] and found["boxes"].tolist() == [[1, 2, 3, 4]]
    assert found["scores"].tolist() == pytest.approx([0.8])


def test_with_imagenet_weights_the_early_layers_and_all_batch_norms_stay():
    state = torchvision.models.resnet18().state_dict()
    network = torchvision_fcos.build_torchvision_fcos(3, "resnet18", 32, [64], 96, imagenet=("torchvision", state))
    trained = {name for name, parameter in network.backbone.body.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith(("layer2", "layer3", "layer4")) and not re.search(r"bn|downsample.1", name) for name in trained)
    assert torch.equal(network.backbone.body.conv1.weight, state["conv1.weight"])


def table(printed):
    """The rows of a Markdown table, without its head."""
    lines = [line for line in printed.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


def test_the_speed_of_the_two_is_told_as_a_markdown_table(capsys):
    speed.main([*SMALL, "--parts", "inference", "training", "loss", "--repeats", "2", "--boxes", "2", "5"])
    rows = table(capsys.readouterr().out)
    jobs = [row[0].split(",")[0] for row in rows]
    assert jobs == ["inference", "inference", "training step", "assignment and loss", "assignment and loss"]
    assert all(float(ours) > 0 and float(theirs) > 0 and " to " in ratio for _, ours, theirs, ratio in rows)


def test_the_script_itself_times_the_help_of_the_three_commands():
    words = [sys.executable, ROOT / "benchmarks" / "speed.py", "--parts", "help", "--repeats", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert [row[0] for row in table(done.stdout)] == [f"`{name} --help`" for name in speed.COMMANDS]


def test_the_two_networks_of_the_speed_table_are_one():
    flags = speed.parse_flags(SMALL)
    assert speed.logits_differ_by(*speed.build_pair(flags), flags) < 1e-4


def test_a_job_twice_as_long_has_the_ratio_two(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def call():
            now[0] += seconds
        return call

    row = speed.race("job", takes(0.25), takes(0.5), repeats=3, per=2)
    assert row == "| job | 125.0 | 250.0 | 2.00 (2.00 to 2.00) |"
