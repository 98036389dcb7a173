"""checkpoint/foreign_objects.pth is what its card says, and finds things the moment a person has cloned."""
import hashlib
from pathlib import Path

import torch

from dataset.loader import eval_loader
from dataset.pictures import Pictures
from dataset.voc import VOCDataset
from engine.checkpoint import SHIPPED, load_checkpoint
from engine.predict import predict
from model import load_model
from util.boxes import box_iou

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "checkpoint" / SHIPPED


def test_the_card_has_its_checksum_and_it_is_small_and_tells_nothing_of_a_machine():
    assert hashlib.sha256(FILE.read_bytes()).hexdigest() in (FILE.parent / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert FILE.stat().st_size < 30e6
    checkpoint = load_checkpoint(FILE)
    assert "flags" not in checkpoint and checkpoint["classes"] == ["L_stick", "clip_B", "clip_Y", "nail"]
    assert checkpoint["input"]["tile"] == 2560


def test_it_finds_the_things_in_the_test_images():
    checkpoint = load_checkpoint(FILE)
    network = load_model(checkpoint["config"], checkpoint["model"])
    data = VOCDataset([ROOT / "foreign_object_dataset"], "test")
    pictures = Pictures([ROOT / "test_images"])
    found = predict(network, eval_loader(pictures, **checkpoint["input"], batch_size=4), torch.device("cpu"), progress=False)
    hits, things, alarms = 0, 0, 0
    for name, detections in found.items():
        target = data.target(data.ids.index(Path(name).stem))
        sure = detections["scores"] >= checkpoint["score_threshold"]
        boxes, labels = detections["boxes"][sure], detections["labels"][sure]
        same = (box_iou(boxes, target["boxes"]) >= 0.5) & (labels[:, None] == target["labels"])
        hits, things, alarms = hits + int(same.any(0).sum()), things + len(target["labels"]), alarms + int((~same.any(1)).sum())
    assert things >= 20 and hits >= 0.75 * things and alarms <= 0.5 * things
