"""tools/shrink_checkpoint.py: half the size, the same detector, nothing of the machine that trained it."""
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load_checkpoint
from model import load_model
from tests.colour_network import real_checkpoint, refusal
from tools.shrink_checkpoint import halved, main


@pytest.fixture
def checkpoint(tmp_path):
    return Path(real_checkpoint(tmp_path / "best.pth"))


def test_half_the_bytes_and_the_same_outputs(checkpoint, tmp_path, capsys):
    out = tmp_path / "small.pth"
    main([str(checkpoint), str(out), "--tile", "640", "--score-threshold", "0.4"])
    assert out.stat().st_size < 0.55 * checkpoint.stat().st_size
    whole, small = load_checkpoint(checkpoint), load_checkpoint(out)
    assert small["input"] == whole["input"] | {"tile": 640} and small["score_threshold"] == 0.4
    assert "flags" not in small and "training" not in small and str(tmp_path) not in str({**small, "model": None})
    images = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    sizes = torch.tensor([[96, 96]])
    results = [load_model(each["config"] | {"score_threshold": 0.0}, each["model"])(images, sizes)[0] for each in (whole, small)]
    assert all(tensor.dtype == torch.float32 for tensor in (results[1]["boxes"], results[1]["scores"]))
    assert torch.allclose(results[0]["scores"], results[1]["scores"], atol=1e-3)
    assert "sha256" in capsys.readouterr().out
    name = next(name for name in whole["model"] if name.endswith("running_var"))
    assert halved(name, whole["model"][name]).dtype == torch.float16 and halved(name, torch.tensor([0.0, 2e-8])).dtype == torch.float32


def test_what_half_precision_cannot_hold_or_what_lies_there_already_is_refused(checkpoint, tmp_path, capsys):
    state = load_checkpoint(checkpoint)
    name = next(name for name, tensor in state["model"].items() if tensor.is_floating_point())
    state["model"][name] = state["model"][name] + 1e6
    torch.save(state, tmp_path / "large.pth")
    assert name in refusal(main, [tmp_path / "large.pth", tmp_path / "out.pth"], capsys)
    assert "is there already" in refusal(main, [checkpoint, checkpoint], capsys)
    assert not (tmp_path / "out.pth").exists()
