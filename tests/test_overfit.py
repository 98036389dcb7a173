"""The whole chain learns: loader, network, loss, loop, prediction and evaluation bring a tiny network to AP 1."""
import torch

from dataset.augment import Augment
from dataset.loader import TrainLoader, eval_loader
from dataset.voc import VOCDataset
from engine.fit import FitOptions, fit
from engine.log import RunLog
from engine.predict import predict
from evaluation.report import evaluate
from model import build_model

SIZES = 96, 128         # of the pictures: nothing is resized


def test_a_tiny_network_learns_four_pictures_by_heart(tmp_path, voc_maker):
    data = VOCDataset(voc_maker(tmp_path / "voc", n=4))
    torch.manual_seed(0)
    network = build_model({"num_classes": 2, "backbone": "regnet_x_400mf", "fpn_channels": 32, "head_convs": 1, "levels": 3})
    loader = TrainLoader(data, Augment(flip=0, jitter=0, rotate=0), 2, SIZES[:1], SIZES[1])
    checkpoint = {"config": {}, "classes": data.classes, "input": {}, "score_threshold": 0.3, "flags": {}}
    options = FitOptions(epochs=40, lr=0.02, warmup_steps=5, schedule="cosine", ema_decay=0.9)

    def measure(network):
        found = predict(network, eval_loader(data, *SIZES, batch_size=4), "cpu", progress=False)
        return evaluate(found, {id: data.target(index) for index, id in enumerate(data.ids)}, data.classes)

    assert (measure(network)["mAP"] or 0) < 0.1
    fit(network, loader, None, RunLog(tmp_path / "run"), options, torch.device("cpu"), checkpoint)
    metrics = measure(network)
    assert metrics["mAP"] == metrics["voc07"]["mAP"] == 1 and metrics["mAP_50_95"] > 0.6
