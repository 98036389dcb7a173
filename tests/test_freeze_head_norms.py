"""tools/freeze_head_norms.py: group norms of a head become batch norms with the statistics of training samples."""
import pytest
import torch

from dataset.augment import Augment
from dataset.loader import TrainLoader
from dataset.voc import VOCDataset
from engine.checkpoint import load_checkpoint, save_checkpoint
from model import build_model, load_model
from model.config import FCOSConfig
from tests.colour_network import refusal
from tools.freeze_head_norms import main, measure

SEEN = {"crop": 96, "zoom": [0.8, 1.2], "mosaic": 0.5, "flip": 0.5, "vertical_flip": 0.0, "jitter": 0.3, "rotate": 5.0}


@pytest.fixture
def run(voc_folder, tmp_path):
    """A file of a detector with a head of random norms, and the training samples of its run: those of its first epoch, one by one, and the first of the next."""
    torch.manual_seed(0)
    data = VOCDataset(voc_folder, "train")
    config = FCOSConfig(num_classes=len(data.classes), backbone="resnet18", fpn_channels=32, head_convs=2, levels=3).asdict()
    state = build_model(config).state_dict()
    state |= {name: torch.rand_like(tensor) + 0.5 for name, tensor in state.items() if "_tower.1." in name or "_tower.4." in name}
    file = tmp_path / "best.pth"
    flags = {"data": [str(voc_folder)], "train_split": ["train"], "min_size": [96], "max_size": 160, "seed": 3, **SEEN}
    save_checkpoint(file, {"config": config, "model": state, "classes": data.classes, "score_threshold": 0.3, "metrics": {}, "flags": flags,
                           "input": {"min_size": 96, "max_size": 160, "tile": None}})
    loader = TrainLoader(data, Augment(**SEEN), 1, [96], 160, seed=3)
    return file, [*(batch for batch, _ in loader.batches(0)), next(batch for batch, _ in loader.batches(1))]


def outputs(file, batch):
    checkpoint = load_checkpoint(file)
    with torch.inference_mode():
        return load_model(checkpoint["config"], checkpoint["model"]).look(batch["images"], batch["image_sizes"])[0]


def test_the_picture_that_was_measured_comes_out_as_before(run, tmp_path, capsys):
    file, samples = run
    main([str(file), str(tmp_path / "frozen.pth"), "--samples", "1"])
    frozen = load_checkpoint(tmp_path / "frozen.pth")
    assert frozen["config"] == load_checkpoint(file)["config"] | {"head_norm": "frozen_bn"} and "flags" not in frozen
    before, after = outputs(file, samples[0]), outputs(tmp_path / "frozen.pth", samples[0])
    for name in before:
        assert torch.allclose(before[name], after[name], rtol=1e-4, atol=1e-5), name
    assert "4 norms" in capsys.readouterr().out
    others = [(outputs(file, batch), outputs(tmp_path / "frozen.pth", batch)) for batch in samples[1:]]
    assert any(not torch.allclose(before["ltrb"], after["ltrb"], rtol=1e-2) for before, after in others)


def test_several_samples_are_pooled_by_hand(run, tmp_path):
    file, samples = run
    main([str(file), str(tmp_path / "frozen.pth"), "--samples", "2"])
    frozen, (first, second) = load_checkpoint(tmp_path / "frozen.pth")["model"], samples[:2]
    network = load_model(load_checkpoint(file)["config"], load_checkpoint(file)["model"])
    got = []
    network.head.cls_tower[1].register_forward_pre_hook(lambda norm, inputs: got.append(inputs[0][0].reshape(16, 2, -1).flatten(1)))   # 32 channels in 16 groups
    with torch.inference_mode():
        for batch in (first, second):
            network.look(batch["images"], batch["image_sizes"])
    for level in range(3):
        pooled = torch.cat([got[level], got[3 + level]], 1)
        name = f"head.cls_tower.1.{level}.running_"
        assert torch.allclose(frozen[name + "mean"], pooled.mean(1).repeat_interleave(2), rtol=1e-4, atol=1e-5)
        assert torch.allclose(frozen[name + "var"], pooled.var(1, correction=0).repeat_interleave(2), rtol=1e-4, atol=1e-6)


def test_more_samples_than_an_epoch_has_are_those_of_the_next_one(run, tmp_path):
    file, samples = run
    main([str(file), str(tmp_path / "frozen.pth"), "--samples", str(len(samples))])
    checkpoint, frozen = load_checkpoint(file), load_checkpoint(tmp_path / "frozen.pth")["model"]
    moments = measure(load_model(checkpoint["config"], checkpoint["model"]), samples)
    assert len(moments) == 4
    for name, of_levels in moments.items():
        for level in range(3):
            assert torch.allclose(frozen[f"{name}.{level}.running_mean"], of_levels[level, 0].float().repeat_interleave(2), atol=1e-6)


def test_training_goes_on_with_the_same_statistics(run, tmp_path):
    file, (batch, *_) = run
    main([str(file), str(tmp_path / "frozen.pth"), "--samples", "1"])
    frozen = load_checkpoint(tmp_path / "frozen.pth")
    network = build_model(frozen["config"])
    network.load_state_dict(frozen["model"])
    losses = network.train()(batch["images"], batch["image_sizes"], {name: tensor for name, tensor in batch.items() if name not in ("images", "image_sizes")})
    sum(loss.sum() for loss in losses.values() if loss.requires_grad).backward()
    norm = network.head.cls_tower[1][0]
    assert torch.equal(norm.running_mean, frozen["model"]["head.cls_tower.1.0.running_mean"]) and norm.weight.grad.abs().sum() > 0


def test_what_has_no_group_norms_what_lies_there_and_unknown_flags_are_refused(run, tmp_path, capsys):
    file, _ = run
    out = tmp_path / "out.pth"
    save_checkpoint(tmp_path / "bn.pth", load_checkpoint(file) | {"config": load_checkpoint(file)["config"] | {"head_norm": "bn"}})
    assert "the norms of its head are bn, not gn" in refusal(main, [tmp_path / "bn.pth", out], capsys)
    assert "is there already" in refusal(main, [file, file], capsys)
    assert "unrecognized arguments: --sample" in refusal(main, [file, out, "--sample", "3"], capsys)
    assert "nowhere" in refusal(main, [file, out, "--data", str(tmp_path / "nowhere")], capsys)
    assert not out.exists()
