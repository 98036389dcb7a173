"""The commands with --model faster_rcnn and mask_rcnn: training, resuming, evaluation, detection, refusals; and it learns."""
import json

import pytest
import torch
import torchvision
from colour_network import refusal
from test_detect import draw_picture
from test_masks import of_all_kinds  # noqa: F401

import detect
import eval_coco
import eval_voc
import train_coco
import train_voc
from benchmarks import compare_models, speed
from dataset.augment import Augment
from dataset.loader import TrainLoader, eval_loader
from dataset.voc import VOCDataset
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.fit import FitOptions, fit
from engine.log import RunLog
from engine.predict import predict
from evaluation import coco_ap
from evaluation.report import evaluate
from model import build_model
from model.export import onnx_model
from training import build_network
from util.masks import decode_rle, encode_rle

ROWS = ("--backbone regnet_x_400mf --channels 32 --min-size 64 --max-size 96 --weights none --device cpu --batch-size 3").split()
TINY = [*ROWS, *"--model faster_rcnn --pyramid p3-p5 --box-channels 32 --proposals 50 --training-proposals 50".split()]


def words(folder, output, *flags):
    return ["--data", str(folder), "--output", str(output), *TINY, "--workers", "0", *map(str, flags)]


def test_it_is_trained_resumed_evaluated_and_detects(tmp_path, voc_folder, capsys):
    run = tmp_path / "run"
    train_voc.main(words(voc_folder, run, "--epochs", 2, "--val-split", "none"))
    last = load_checkpoint(run / "last.pth")
    assert (last["config"]["model"], last["config"]["pyramid"], last["config"]["nms_iou_threshold"]) == ("faster_rcnn", "p3-p5", 0.5)
    assert "faster_rcnn regnet_x_400mf" in (run / "log.txt").read_text()
    assert {"objectness", "rpn_reg", "cls", "reg"} <= {*(run / "metrics.csv").read_text().splitlines()[0].split(",")}

    train_voc.main(words(voc_folder, tmp_path / "broken", "--epochs", 2, "--val-split", "none", "--max-steps", 3))
    train_voc.main(["--resume", str(tmp_path / "broken" / "last.pth"), "--workers", "0"])
    again = load_checkpoint(tmp_path / "broken" / "last.pth")
    assert all(torch.equal(value, again["training"]["model"][name]) for name, value in last["training"]["model"].items())

    best = ["--checkpoint", str(run / "best.pth"), "--device", "cpu"]
    metrics = eval_voc.main(["--data", str(voc_folder), "--workers", "0", *best])
    assert set(metrics["ap"]) == {"disc", "slab"}
    entries = detect.main([str(voc_folder / "JPEGImages"), "--output", str(tmp_path / "found"), "--score-threshold", "0.01", *best])
    assert len(entries) == 12 and json.loads((tmp_path / "found" / "detections.json").read_text())


def test_a_mask_rcnn_is_trained_from_json_and_the_body_of_an_fcos_evaluated_and_drawn(tmp_path):
    images, annotations, boxes = [], [], ((16, 8, 56, 48), (64, 32, 120, 88), (0, 60, 40, 96))
    for number in range(3):                                     # a polygon and an RLE, all three with a crowd, nothing
        shown = boxes[:(2, 3, 0)[number]]
        draw_picture(tmp_path / "in" / f"{number}.png", *shown)
        images.append({"id": number, "file_name": f"{number}.png"})
        for row, (x1, y1, x2, y2) in enumerate(shown):
            mask = torch.zeros(1, 96, 128)
            mask[:, y1:y2, x1:x2] = 1
            annotations.append({"id": len(annotations), "image_id": number, "category_id": row % 2, "iscrowd": int(row == 2), "bbox": [x1, y1, x2 - x1, y2 - y1],
                                "segmentation": encode_rle(mask)[0] if row else [[x1, y1, x2, y1, x2, y2, x1, y2]]})
    data = tmp_path / "a.json"
    data.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "disc"}, {"id": 1, "name": "slab"}]}))
    flags = [*TINY, "--model", "mask_rcnn", "--workers", "0", "--max-steps", "2", "--lr", "0.01", "--mosaic", "0.5", "--vertical-flip", "0.5", "--strong-view", "on"]
    fcos = build_model({"num_classes": 2, "backbone": "regnet_x_400mf", "fpn_channels": 32, "levels": 3, "head_convs": 1})
    save_checkpoint(tmp_path / "fcos.pth", {"config": fcos.config.asdict(), "model": fcos.state_dict(), "classes": ["disc", "slab"], "input": {}, "score_threshold": 0.3})
    run, pair = tmp_path / "run", [str(data), "--train-images", str(tmp_path / "in")]
    train_coco.main(["--train-json", *pair, "--val-json", str(data), "--val-images", pair[-1], "--output", str(run), *flags,
                     "--channels", "64", "--weights", str(tmp_path / "fcos.pth")])
    assert f"note: weights of {tmp_path / 'fcos.pth'} (fcos): backbone, P3, P4, P5 are taken over; the rest of the mask_rcnn is new\n" in (run / "log.txt").read_text()
    header, *lines = (run / "metrics.csv").read_text().splitlines()
    assert {"objectness", "rpn_reg", "cls", "reg", "mask"} <= {*header.split(",")} and "nan" not in lines[-1]
    best = ["--checkpoint", str(run / "best.pth"), "--device", "cpu"]
    metrics = eval_coco.main(["--json", str(data), "--images", pair[-1], "--workers", "0", *best])
    assert {"AP", "AP50", "APs"} <= {*metrics["segm"]} and len(list((run / "eval" / "pictures").glob("*.jpg"))) == 3
    assert all(set(result["segmentation"]) == {"size", "counts"} for result in json.loads((run / "eval" / "detections.json").read_text()))
    entries = detect.main([pair[-1], "--output", str(tmp_path / "found"), "--score-threshold", "0.01", *best])
    masks = [decode_rle(found["segmentation"], (96, 128)) for entry in entries for found in entry["detections"]]
    assert len(entries) == 3 and masks and any(mask.any() for mask in masks)


def started_from(file, state, config, *flags):
    """(state dict, sentences) of a network for the class disc that starts from such a checkpoint."""
    save_checkpoint(file, {"config": config, "model": state, "classes": ["disc", "slab"], "input": {}, "score_threshold": 0.3})
    network, _, told = build_network(train_voc.parse_flags(["--weights", str(file), *flags])[0], ["disc"], None)
    return network.state_dict(), told


@pytest.mark.parametrize("config, flags, shift, levels", [
    ({"levels": 3}, ["--model", "faster_rcnn", "--pyramid", "p3-p5"], 0, "P3, P4, P5"),
    ({"levels": 5}, ["--model", "faster_rcnn"], 1, "P3, P4, P5"),
    ({"model": "faster_rcnn"}, [], -1, "P3, P4, P5"), ({"model": "faster_rcnn"}, ["--model", "mask_rcnn"], 0, "P2, P3, P4, P5")])
def test_backbone_and_pyramid_of_another_model_are_a_start(config, flags, shift, levels, tmp_path):
    torch.manual_seed(0)
    config = build_model({"num_classes": 2, "backbone": "regnet_x_400mf", "fpn_channels": 32, **config}).config.asdict()
    theirs = {key: 99 + torch.randn_like(value) if value.is_floating_point() else value for key, value in build_model(config).state_dict().items()}
    ours, told = started_from(tmp_path / "theirs.pth", theirs, config, *flags)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items() if key.startswith("backbone."))
    common = [(f"fpn.{part}.{place}.{kind}", f"fpn.{part}.{place + shift}.{kind}")
              for part in ("lateral", "output") for kind in ("weight", "bias") for place in range(4) if 0 <= place + shift]
    same = [torch.equal(theirs[key], ours[other]) for key, other in common if key in theirs and other in ours]
    assert all(same) and len(same) == 4 * len(levels.split())
    rest = [key for key in ours if key.endswith("weight") and not key.startswith("backbone.") and key not in [other for _, other in common]]
    assert rest and all(ours[key].max() < 50 for key in rest)                               # as they were initialised
    assert told[0].endswith(f"theirs.pth ({config['model']}): backbone, {levels} are taken over; the rest of the {(*flags, 'fcos')[1 if flags else 0]} is new")
    assert told[1].endswith("decide, not the flags or their defaults: backbone regnet_x_400mf, pixel_mean (123.675, 116.28, 103.53), "
                            "pixel_std (58.395, 57.12, 57.375), fpn_channels 32")


def test_a_start_without_a_part_of_the_backbone_is_refused_by_file_and_key(tmp_path):
    network = build_model({"num_classes": 2, "backbone": "regnet_x_400mf", "fpn_channels": 32, "levels": 3})
    whole, key = network.state_dict(), "backbone.stem.0.weight"
    for state, first in (({name: value for name, value in whole.items() if name != key}, key), ({**whole, "fpn.output.0.weight": torch.zeros(1)}, "fpn.output.1.weight")):
        with pytest.raises(ValueError, match=f"theirs.pth: pre-trained weights: 1 keys are missing, unknown or of another shape; first: {first}$"):
            started_from(tmp_path / "theirs.pth", state, network.config.asdict(), "--model", "faster_rcnn")


@pytest.mark.parametrize("flags, sentence", [
    (["--head-norm", "bn"], "--head-norm is given, but is none of --model faster_rcnn"),
    (["--preset", "keras_fcos"], "--preset keras_fcos is of another model than --model faster_rcnn, which has no p6_from"),
    (["--model", "fcos"], "--pyramid is given, but is none of --model fcos"),
    (["--pyramid", "p1-p2"], "--pyramid: invalid choice: 'p1-p2'"), (["--proposals", "0"], "--proposals: is 0, must be 1 or more"),
    (["--model", "mask_rcnn"], "--model mask_rcnn learns from masks"), (["--model", "fast_rcnn"], "--model: invalid choice: 'fast_rcnn'")])
def test_a_flag_that_the_model_has_no_use_for_ends_in_one_sentence(flags, sentence, tmp_path, voc_folder, capsys):
    assert sentence in refusal(train_voc.main, words(voc_folder, tmp_path / "run", *flags), capsys)
    assert not (tmp_path / "run").exists()


def test_flags_and_the_small_preset_reach_the_config():
    def config(*words):
        return build_network(train_voc.parse_flags(["--weights", "none", *words])[0], ["disc"], None)[1]
    assert config("--model", "mask_rcnn", "--channels", "32", "--box-channels", "8")["model"] == "mask_rcnn"
    small = config("--model", "faster_rcnn", "--preset", "rcnn_small", "--box-refinement", "on", "--anchor-scale", "4")
    assert (small["backbone"], small["pyramid"], small["roi_levels"], small["box_refinement"], small["anchor_scale"]) == ("regnet_x_400mf", "p3-p5", "own", True, 4)


def test_it_is_not_exported():
    with pytest.raises(ValueError, match="^the model is a faster_rcnn; only fcos can be exported$"):
        onnx_model(build_model({"num_classes": 1, "model": "faster_rcnn", "fpn_channels": 8, "box_channels": 8}), False, 18)


def test_coco_weights_are_torchvisions_faster_rcnn_with_its_class_rows(monkeypatch):
    with torch.device("meta"):
        theirs = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    theirs = {key: torch.zeros(value.shape) for key, value in theirs.items()}
    theirs["roi_heads.box_predictor.cls_score.bias"] = torch.arange(91.0)
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda weights, **options: theirs)
    network, config, told = build_network(train_voc.parse_flags("--model faster_rcnn --weights coco".split())[0], ["nail", "dog"], None)
    assert (config["backbone"], config["fpn_channels"], config["norm_eps"], config["num_classes"]) == ("resnet50", 256, 0.0, 2)
    assert network.state_dict()["box_head.cls_logits.bias"].tolist() == [0, 18, 0]          # new, COCO's dog, background
    assert told[0] == "weights of coco; class rows taken over: dog; new: nail"


def test_a_tiny_one_learns_a_picture_by_heart(tmp_path, voc_maker):
    data, sizes = VOCDataset(voc_maker(tmp_path / "voc", n=1)), (96, 128)
    torch.manual_seed(0)
    network = build_model({"num_classes": 2, "model": "faster_rcnn", "backbone": "regnet_x_400mf", "fpn_channels": 32, "pyramid": "p3-p5",
                           "anchor_scale": 4.0, "box_channels": 128, "proposals": 50, "training_proposals": 50,
                           "rpn_samples": 64, "roi_samples": 16, "roi_positives": 0.5})
    loader = TrainLoader(data, Augment(flip=0, jitter=0, rotate=0), 1, sizes[:1], sizes[1])
    checkpoint = {"config": {}, "classes": data.classes, "input": {}, "score_threshold": 0.3, "flags": {}}
    fit(network, loader, None, RunLog(tmp_path / "run"), FitOptions(epochs=50, lr=0.01, warmup_steps=5, schedule="cosine", ema_decay=0.9),
        torch.device("cpu"), checkpoint)
    found = predict(network, eval_loader(data, *sizes, batch_size=2), "cpu", progress=False)
    metrics = evaluate(found, {id: data.target(index) for index, id in enumerate(data.ids)}, data.classes)
    assert metrics["mAP"] == 1 and metrics["mAP_50_95"] > 0.5


def test_a_tiny_mask_rcnn_learns_outlines_by_heart(tmp_path, of_all_kinds):  # noqa: F811
    torch.manual_seed(0)
    network = build_model({"num_classes": 3, "model": "mask_rcnn", "backbone": "regnet_x_400mf", "fpn_channels": 32, "pyramid": "p3-p5",
                           "anchor_scale": 4.0, "box_channels": 128, "proposals": 50, "training_proposals": 50,
                           "rpn_samples": 64, "roi_samples": 16, "roi_positives": 0.5, "mask_convs": 2, "mask_channels": 32})
    loader = TrainLoader(of_all_kinds, Augment(flip=0, jitter=0, rotate=0), 1, (96,), 160)
    checkpoint = {"config": {}, "classes": of_all_kinds.classes, "input": {}, "score_threshold": 0.3, "flags": {}}
    fit(network, loader, None, RunLog(tmp_path / "run"), FitOptions(epochs=60, lr=0.01, warmup_steps=5, schedule="cosine", ema_decay=0.9),
        torch.device("cpu"), checkpoint)
    found = predict(network, eval_loader(of_all_kinds, 96, 160), "cpu", progress=False)
    metrics = coco_ap.evaluate(found, of_all_kinds.truth(), of_all_kinds.classes)
    assert metrics["segm"]["AP50"] > 0.99 and metrics["segm"]["AP"] > 0.4 and metrics["mAP"] > 0.3


def test_models_are_compared_by_one_command(tmp_path, voc_folder, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        compare_models.main(["--data", str(voc_folder), "--output", str(tmp_path / "bad"), "--models", "yolo"])
    assert stopped.value.code == 2 and "train_voc.py" in (line := capsys.readouterr().err) and "--model: invalid choice: 'yolo'" in line

    commands = {"train_voc.py": train_voc.main, "eval_voc.py": eval_voc.main}              # in this process, which is quicker
    monkeypatch.setattr(compare_models, "start", lambda script, *words: commands[script]([*map(str, words)]))
    rows = ["fcos --head-convs 1", "faster_rcnn --pyramid p3-p5 --proposals 50"]
    flags = ["--data", str(voc_folder), "--output", str(tmp_path / "out"), "--models", *rows, *ROWS, "--max-steps", "1", "--workers", "0"]
    lines = compare_models.main(flags)
    assert lines[-4].startswith("| model | disc | slab | AP50 | AP50-95 | parameters |") and (tmp_path / "out" / "table.md").read_text().endswith(f"{lines[-1]}\n")
    assert [line.split(" | ")[0] for line in lines[-2:]] == [f"| {row}" for row in rows] and " M | 0." in lines[-1]


def test_its_speed_is_measured_beside_torchvisions(monkeypatch, capsys):
    monkeypatch.setattr(speed, "WARM_UP", 0)
    speed.main(["--parts", "two_stage", "--size", "64", "96", "--batch-size", "1", "--classes", "3", "--repeats", "2"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| inference")]
    assert len(rows) == 2 and all(" to " in row for row in rows)
