"""The picture that teaches: what a network's locations are assigned to, and how it is drawn."""
import json

import numpy as np
import pytest
import torch
from colour_network import real_checkpoint, refusal
from PIL import Image

from model import build_model
from model.config import FCOSConfig
from model.targets import BACKGROUND, IGNORED
from tools import show_targets
from tools.voc_to_coco import to_coco
from util.draw import class_colours

SMALL = ["--min-size", "64", "--max-size", "96", "--backbone", "resnet18", "--channels", "32", "--head-convs", "1", "--levels", "3", "--pictures", "2"]


def test_an_fcos_says_what_its_locations_answer_for():
    network = build_model(FCOSConfig(num_classes=1, fpn_channels=32, head_convs=1, levels=3).asdict())
    targets = {"boxes": torch.tensor([[[8.0, 8, 40, 40], [64, 0, 96, 32], [0, 0, 0, 0]]] * 2), "labels": torch.tensor([[0, 0, -1], [0, -1, -1]]),
               "ignore": torch.tensor([[False, True, False]] * 2), "weights": torch.ones(2, 3)}
    levels = network.assigned(torch.zeros(2, 3, 64, 96, dtype=torch.uint8), torch.tensor([[64, 96], [60, 90]]), targets)
    assert [(level["name"], *level["boxes"].shape) for level in levels] == [("P3", 2, 96, 4), ("P4", 2, 24, 4), ("P5", 2, 6, 4)]
    finest = levels[0]
    assert finest["boxes"][0, 0].tolist() == [0, 0, 8, 8] and levels[2]["boxes"][1, 5].tolist() == [64, 32, 96, 64]
    # centre (24, 24): of the locations at 4, 12, 20, ... those at 20 and 28 are less than 1.5 * 8 px away
    matched = finest["matched_gt"][0].reshape(8, 12)
    assert (matched == 0).nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    assert (matched[:4, 8:] == IGNORED).all() and (matched == IGNORED).sum() == 16 and (matched[4:] == BACKGROUND)[:, 6:].all()
    assert not (finest["matched_gt"][1] == IGNORED).any() and not levels[0]["boxes"].requires_grad


def test_cells_are_filled_with_the_colour_of_their_object_and_grey_where_ignored():
    y, x = torch.meshgrid(torch.arange(4) * 16.0, torch.arange(6) * 16.0, indexing="ij")
    cells = torch.stack([x, y, x + 16, y + 16], -1).reshape(-1, 4)
    matched = torch.full((24,), BACKGROUND)
    matched[7], matched[16] = 0, IGNORED
    level = np.asarray(show_targets.draw_level(Image.new("RGB", (96, 64), "white"), torch.tensor([[10.0, 10, 60, 60]]), cells, matched, class_colours(1)))
    assert np.abs(level[20, 20].astype(int) - (np.array(class_colours(1)[0]) * 120 + 255 * 135) / 255).max() <= 2
    assert np.ptp(level[40, 72]) == 0 and level[40, 72, 0] < 250 and (level[5, 5] == 255).all()


def test_anchors_are_outlines_and_ignored_ones_dots():
    anchors = torch.tensor([[10.0, 10, 50, 50], [12, 10, 52, 50], [40, 20, 90, 60]])
    level = np.asarray(show_targets.draw_level(Image.new("RGB", (96, 64), "white"), torch.tensor([[10.0, 10, 60, 60]]), anchors,
                                               torch.tensor([0, BACKGROUND, IGNORED]), class_colours(1)))
    assert (level[20, 10] == class_colours(1)[0]).all() and (level[20, 25] == 255).all() and level[40, 65, 0] < 200 and (level[30, 89] == 255).all()


@pytest.mark.parametrize("count", [0, 1, 40])
def test_a_sheet_of_any_number_of_objects_has_a_legend(count):
    boxes = torch.rand(count, 4) * 30 + torch.tensor([0.0, 0, 32, 32])
    levels = [{"name": "P3", "boxes": torch.tensor([[0.0, 0, 64, 64]]), "matched_gt": torch.tensor([count - 1])},
              {"name": "proposals", "boxes": torch.zeros(0, 4), "matched_gt": torch.zeros(0).long()}]
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    none = torch.zeros(count, dtype=torch.bool)
    sheet = show_targets.draw_targets(image, boxes, ["nail"] * count, none, none, levels)
    bare = show_targets.draw_targets(image, boxes, ["nail"] * count, none, none, [])
    assert sheet.width > (1 + bool(count)) * 600 and bare.height > 640


def test_the_legend_tells_regions_and_zones_from_objects_that_are_not_learnt(monkeypatch):
    lines = []
    monkeypatch.setattr(show_targets, "above_legend", lambda sheet, legend: lines.extend(text for _, text in legend))
    boxes, levels = torch.tensor([[0.0, 0, 32, 32]] * 4), [{"name": "P3", "boxes": torch.tensor([[0.0, 0, 64, 64]]), "matched_gt": torch.tensor([0])}]
    show_targets.draw_targets(torch.zeros(3, 64, 64, dtype=torch.uint8), boxes, ["nail"] * 4, torch.tensor([False, False, True, False]),
                              torch.tensor([False, False, False, True]), levels)
    assert lines[:4] == ["1 nail: P3 1", "2 nail: none", "3 nail: a region to leave out", "4 nail: a zone to ignore, where its class is left open"]


def test_samples_of_voc_and_coco_folders_are_drawn_with_the_flags_of_training(voc_folder, tmp_path):
    show_targets.main(["--data", str(voc_folder), "--output", str(tmp_path / "voc"), *SMALL, "--crop", "48", "--mosaic", "1"])
    drawn = sorted((tmp_path / "voc").glob("*.png"))
    assert len(drawn) == 2 and all(Image.open(file).width > 600 for file in drawn)
    from dataset.voc import VOCDataset
    contents = to_coco(VOCDataset(voc_folder, "train"), voc_folder / "JPEGImages")
    (tmp_path / "a.json").write_text(json.dumps(contents))
    show_targets.main(["--train-json", str(tmp_path / "a.json"), "--train-images", str(voc_folder / "JPEGImages"), "--output", str(tmp_path / "coco"),
                       *SMALL, "--assignment", "atss", "--pictures", "1"])
    assert len(list((tmp_path / "coco").glob("*.png"))) == 1


def test_a_run_with_pictures_of_its_own_to_evaluate_on_is_shown_too(voc_folder, tmp_path):
    show_targets.main(["--data", str(voc_folder), "--val-data", str(voc_folder), str(voc_folder), "--output", str(tmp_path), *SMALL])
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_anchors_and_proposals_of_two_stages_are_drawn(voc_folder, tmp_path):
    show_targets.main(["--data", str(voc_folder), "--output", str(tmp_path / "two"), "--model", "faster_rcnn", "--pyramid", "p3-p5", *SMALL[:6],
                       "--channels", "32", "--pictures", "1"])
    assert Image.open(*(tmp_path / "two").glob("*.png")).height > 600


def test_a_checkpoint_brings_its_network_and_its_flags(voc_folder, tmp_path):
    from engine.checkpoint import load_checkpoint, save_checkpoint
    file = tmp_path / "best.pth"
    real_checkpoint(file)
    flags = {"data": [str(voc_folder)], "train_split": "val", "min_size": [64], "max_size": 96, "val_split": "auto", "epochs": 7, "pictures": 1,
             "zoom": [1.0, 1.0], "crop": None, "schedule": "cosine", "drops": [0.67, 0.89], "zero_based": False, "resume": None, "config": "gone.yaml"}
    save_checkpoint(file, load_checkpoint(file) | {"flags": flags})
    show_targets.main(["--checkpoint", str(file), "--output", str(tmp_path / "out")])
    drawn, = (tmp_path / "out").glob("*.png")
    assert drawn.stem.split("_")[1] in (voc_folder / "ImageSets/Main/val.txt").read_text().split()
    assert show_targets.parse_flags(["--checkpoint", str(file), "--min-size", "300"])[0].max_size == 500        # not the 96 of the run's own --min-size


@pytest.mark.parametrize("words, sentence", [
    (["--train-json", "a.json"], "--train-json and --train-images go together"), (["--data", "nowhere"], "nowhere"),
    (["--checkpoint", "nowhere.pth"], "nowhere.pth"), (["--zoom", "2", "1"], "--zoom is 2 1")])
def test_mistakes_are_one_sentence(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(show_targets.main, words, capsys)
