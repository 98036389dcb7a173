"""A network that finds the coloured shapes of conftest.py exactly, and checkpoints, for tests of the commands."""
from types import SimpleNamespace

import torch
from conftest import COLOURS
from torch import nn

from engine.checkpoint import save_checkpoint


class ColourNetwork(nn.Module):
    """One box, of score 0.9, around all pixels of each colour: what is one object each must be found exactly."""

    def __init__(self, config):
        super().__init__()
        self.config = SimpleNamespace(**config)

    def forward(self, images, image_sizes):
        sizes = image_sizes.tolist()
        return [self.find(image[:, :h, :w]) for image, (h, w) in zip(images, sizes, strict=True)]

    def find(self, image):
        boxes, labels = [], []
        for label in range(self.config.num_classes):
            colour = torch.tensor(COLOURS[label])[:, None, None]
            y, x = ((image.int() - colour).abs() < 60).all(0).nonzero(as_tuple=True)
            if len(x):
                boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                labels.append(label)
        return {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                "scores": torch.full((len(labels),), 0.9), "labels": torch.tensor(labels, dtype=torch.int64)}


def colour_checkpoint(path, monkeypatch, classes=("disc", "slab"), min_size=96, tile=None):
    """Writes a checkpoint for which the commands, in this process, build a ColourNetwork; returns its path as str."""
    monkeypatch.setattr("model.build_model", ColourNetwork)
    config = {"num_classes": len(classes), "score_threshold": 0.05, "nms_iou_threshold": 0.6, "max_detections": 100}
    save_checkpoint(path, {"config": config, "model": {}, "classes": list(classes), "score_threshold": 0.3, "metrics": {},
                           "input": {"min_size": min_size, "max_size": 1000, "tile": tile}})
    return str(path)


def real_checkpoint(path, classes=("disc", "slab")):
    """Writes a checkpoint of a small untrained FCOS; returns its path as str."""
    from model import build_model
    from model.config import FCOSConfig

    config = FCOSConfig(num_classes=len(classes), fpn_channels=32, head_convs=1).asdict()
    state = build_model(config).state_dict()
    save_checkpoint(path, {"config": config, "model": state, "classes": list(classes), "score_threshold": 0.3,
                           "metrics": {}, "input": {"min_size": 96, "max_size": 200, "tile": None}})
    return str(path)


class RunsCode:
    """Its pickle would print, were it loaded."""

    def __reduce__(self):
        return print, ("code in the checkpoint ran",)


def bad_checkpoint(kind, path):
    """A checkpoint file of this `kind` of badness; returns its path as str."""
    contents = {"another kind": {"state_dict": torch.zeros(2)}, "with code": {"model": RunsCode()}}
    if kind == "no checkpoint at all":
        path.write_bytes(b"not a checkpoint")
    elif kind != "missing":
        torch.save(contents[kind], path)
    return str(path)


BAD_CHECKPOINTS = ("missing", "no checkpoint at all", "another kind", "with code")


def refusal(main, argv, capsys):
    """The one line on stderr with which main(argv) ends in exit code 2."""
    capsys.readouterr()
    try:
        main([str(word) for word in argv])
    except SystemExit as stop:
        printed = capsys.readouterr()
        lines = printed.err.strip().splitlines()
        assert stop.code == 2 and len(lines) == 1, printed.err
        assert "code in the checkpoint ran" not in printed.out
        return lines[0]
    raise AssertionError("it went through")
