import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_voc_ap import NOWHERE, A, B, C, found, objects, random_case

from evaluation import plots
from evaluation.plots import plot_confusion_matrix, plot_precision_recall, plot_training
from evaluation.report import coco_results, evaluate, format_table
from util import draw

CLASSES = ["nail", "clip"]


def small_case():
    ground_truth = {"1": objects((*A, 0, 0), (*B, 0, 1)), "2": objects((*C, 0, 0)), "3": objects()}
    detections = {"1": found((*A, 0, 0.9), (*B, 0, 0.95)), "3": found((*NOWHERE, 0, 0.2), (*NOWHERE, 1, 0.8))}
    return detections, ground_truth


def test_the_metrics_of_a_small_case_by_hand():
    metrics = evaluate(*small_case(), CLASSES)
    assert metrics["per_class"]["nail"] == pytest.approx({
        "pictures": 2, "objects": 2, "difficult": 1, "detections": 3, "precision": 1, "recall": 0.5, "f1": 2 / 3,
        "threshold": 0.9, "ap50": 0.5, "ap50_voc07": 6 / 11, "ap50_95": 0.5})
    assert metrics["all"] == pytest.approx({
        "pictures": 3, "objects": 2, "difficult": 1, "detections": 4, "precision": 1, "recall": 0.5, "f1": 2 / 3,
        "threshold": 0.9, "ap50": 0.5, "ap50_voc07": 6 / 11, "ap50_95": 0.5})
    assert (metrics["mAP"], metrics["mAP_50_95"], metrics["score_threshold"]) == pytest.approx((0.5, 0.5, 0.9))
    assert metrics["voc07"]["mAP"] == metrics["voc07"]["ap"]["nail"] == pytest.approx(6 / 11)
    assert metrics["area"] == {"mAP": metrics["mAP"], "ap": metrics["ap"]}


def test_a_class_without_objects_is_null_and_left_out_of_the_mean():
    metrics = evaluate(*small_case(), CLASSES)
    clip = metrics["per_class"]["clip"]
    assert (clip["pictures"], clip["objects"], clip["detections"]) == (0, 0, 1)
    assert {clip[key] for key in ("precision", "recall", "f1", "threshold", "ap50", "ap50_voc07", "ap50_95")} == {None}
    assert metrics["ap"] == {"nail": 0.5, "clip": None} and metrics["mAP"] == 0.5


def test_map_50_95_is_the_mean_area_over_ten_thresholds():
    # IoU .72 reaches .50 .55 .60 .65 .70
    metrics = evaluate({"1": found((0, 0, 10, 7.2, 0, 0.9))}, {"1": objects((*A, 0, 0))}, ["nail"])
    assert metrics["mAP_50_95"] == pytest.approx(0.5) and metrics["mAP"] == 1


@pytest.mark.parametrize("detections, ground_truth", [
    ({}, {}), ({}, {"1": objects()}), ({"1": found()}, {"1": objects()}), ({}, {"1": objects((*A, 0, 0))}),
    ({"1": found((*A, 0, 0.9))}, {"1": objects()}), ({"1": found((*A, 0, 0.9))}, {"1": objects((*A, 0, 1))}),
    ({"1": found((*NOWHERE, 0, 0.9))}, {"1": objects((*A, 0, 0))}), small_case()])
def test_empty_cases_give_json_a_table_and_plots(detections, ground_truth, tmp_path):
    metrics = evaluate(detections, ground_truth, CLASSES)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    reachable = any(bool((~target["difficult"]).any()) for target in ground_truth.values())
    assert (metrics["mAP"] is not None) == (metrics["voc07"]["mAP"] is not None) == reachable
    assert format_table(metrics).splitlines()[2].split()[0] == "all"
    plot_precision_recall(detections, ground_truth, CLASSES, tmp_path / "new" / "pr.png")
    plot_confusion_matrix(detections, ground_truth, CLASSES, tmp_path / "cm.png", metrics["score_threshold"])
    for path in (tmp_path / "new" / "pr.png", tmp_path / "cm.png"):
        assert min(Image.open(path).size) > 300


def test_of_many_classes_the_confusion_matrix_draws_those_with_the_most_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "save", lambda figure, path, families: drawn.append(figure.axes[0]))
    drawn = []
    there = {"1": objects(*((100 * k, 10, 100 * k + 50, 50, k, 0) for k in range(130)))}
    plot_confusion_matrix({"1": found(*((100 * k, 10, 100 * k + 50, 50, k + (k >= 100) * (k < 129), 0.9) for k in range(130)))}, there,
                          [f"class {k}" for k in range(130)], tmp_path / "cm.png")
    labels = [text.get_text() for text in drawn[0].get_yticklabels()]
    assert len(labels) == 61 and labels[-31:] == [*(f"class {k}" for k in range(100, 130)), "background"]
    assert "the 60 of 130 classes with the most errors" in drawn[0].get_title(loc="left")


def test_the_order_of_the_pictures_changes_nothing():
    detections, ground_truth = random_case(7, pictures=12)
    backwards = [dict(reversed(mapping.items())) for mapping in (detections, ground_truth)]
    assert evaluate(*backwards, CLASSES) == evaluate(detections, ground_truth, CLASSES)


def test_a_picture_left_out_of_the_detections_is_one_without_any():
    detections, ground_truth = random_case(8, pictures=12)
    without = {image_id: result for image_id, result in detections.items() if image_id != "3"}
    assert evaluate(without, ground_truth, CLASSES) == evaluate(without | {"3": found()}, ground_truth, CLASSES)


@pytest.mark.parametrize("detections, sentence", [
    ({"9": found((*A, 0, 0.9))}, "picture '9' is not among the 1 pictures"),
    ({"1": found((*A, 0, float("nan")))}, "picture '1': a score is nan"),
    ({"1": found((0, 0, float("inf"), 1, 0, 0.9))}, r"picture '1': a box is \[0.0, 0.0, inf, 1.0\]"),
    ({"1": found((*A, 2, 0.9))}, "labels run from 2 to 2, must lie in 0..1")])
def test_what_cannot_be_measured_is_refused_in_one_sentence(detections, sentence):
    with pytest.raises(ValueError, match=sentence):
        evaluate(detections, {"1": objects((*A, 0, 0))}, CLASSES)


def test_the_table_has_all_first_and_its_columns_aligned():
    lines = format_table(evaluate(*small_case(), CLASSES)).splitlines()
    header, _, *rows = lines[:5]
    assert [row.split()[0] for row in rows] == ["all", "nail", "clip"]
    assert len({len(line) for line in (header, *rows)}) == 1
    assert rows[1].split() == "nail 2 2 1 3 1.000 0.500 0.667 0.900 0.5000 0.5455 0.5000".split()
    assert rows[2].split() == ["clip", "0", "0", "0", "1"] + 7 * ["-"]


def test_coco_results_by_hand():
    results = coco_results({"a": found((1, 2, 5, 9, 1, 0.5)), "b": found()}, [1, 2], {"a": "a", "b": "b"})
    assert results == [{"image_id": "a", "category_id": 2, "bbox": [1, 2, 4, 7], "score": 0.5}]
    json.dumps(results, allow_nan=False)


def test_coco_results_refuse_what_json_cannot_hold():
    with pytest.raises(ValueError, match="picture 'a': box and score"):
        coco_results({"a": found((0, 0, 1, 1, 0, float("nan")))}, [1, 2], {"a": "a"})
    with pytest.raises(ValueError, match="picture 'a': label 2, must lie in 0..1"):
        coco_results({"a": found((0, 0, 1, 1, 2, 0.5))}, [1, 2], {"a": "a"})


def scattered_case(seed, pictures=40, num_classes=3):
    """Objects that do not overlap each other, so that VOC and COCO match alike."""
    rng = np.random.default_rng(seed)
    detections, ground_truth = {}, {}
    for number in range(1, pictures + 1):
        cells = rng.permutation(16)[:rng.integers(1, 9)]
        boxes = np.column_stack([cells % 4 * 100, cells // 4 * 100, cells % 4 * 100 + 60, cells // 4 * 100 + 50])
        labels = rng.integers(0, num_classes, len(cells))
        ground_truth[number] = objects(*np.column_stack([boxes, labels, np.zeros(len(cells))]).tolist())
        which = rng.integers(0, len(cells), 14)
        moved = boxes[which] + rng.normal(0, 6, (14, 4))
        its_labels = np.where(rng.random(14) < 0.8, labels[which], rng.integers(0, num_classes, 14))
        detections[number] = found(*np.column_stack([moved, its_labels, rng.random(14)]).tolist())
    return detections, ground_truth


def test_area_ap_agrees_with_coco_up_to_its_101_recall_points():
    pytest.importorskip("pycocotools", reason="pycocotools is not installed")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    detections, ground_truth = scattered_case(3)
    annotations = []
    for image_id, target in ground_truth.items():
        for (x1, y1, x2, y2), label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            # COCO takes annotation id 0 for "unmatched", so ids start at 1; iscrowd must be there
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1, "iscrowd": 0,
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    names = ["a", "b", "c"]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": image_id} for image_id in ground_truth], "annotations": annotations,
                         "categories": [{"id": label + 1, "name": name} for label, name in enumerate(names)]}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(coco_results(detections, [1, 2, 3], {id: id for id in detections})), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    metrics = evaluate(detections, ground_truth, names)
    assert 0.3 < metrics["mAP"] < 0.9
    # a mean over 101 recalls of a falling curve differs from its area by at most 1/101
    assert metrics["mAP"] == pytest.approx(judge.stats[1], abs=1 / 101)
    assert metrics["mAP_50_95"] == pytest.approx(judge.stats[0], abs=1 / 101)
    per_class = judge.eval["precision"][0, :, :, 0, 2].mean(axis=0)
    assert list(metrics["ap"].values()) == pytest.approx(per_class.tolist(), abs=1 / 101)


def test_plots_take_one_class_many_classes_and_scores_of_float32(tmp_path):
    for names in (["class"], ["$1_$", "_hidden", "a $ b"], [f"class {label}" for label in range(25)]):      # $ opens a formula, _ hides from legends
        count = len(names)
        detections, ground_truth = random_case(count, pictures=20, num_classes=count)
        detections = {image_id: {key: value.float() if key != "labels" else value for key, value in result.items()}
                      for image_id, result in detections.items()}
        plot_precision_recall(detections, ground_truth, names, tmp_path / "pr.png")
        plot_confusion_matrix(detections, ground_truth, names, tmp_path / "cm.png")
        assert Image.open(tmp_path / "cm.png").size[0] > 500


@pytest.mark.filterwarnings("error:Glyph")
@pytest.mark.parametrize("fonts, label", [(("fonts/ttf/STIXGeneral.ttf",), "\u1d81"), ((), r"\u1d81")])
def test_class_names_in_letters_that_matplotlib_lacks_are_in_a_font_of_the_system_or_as_numbers(fonts, label, tmp_path, monkeypatch):
    import matplotlib
    monkeypatch.setattr(draw, "SYSTEM_FONTS", [str(Path(matplotlib.get_data_path()) / name) for name in fonts])
    monkeypatch.setattr(plots, "lettering", draw.lettering.__wrapped__)
    drawn, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, *rest: [drawn.append(figure.axes[0]), save(figure, *rest)])
    plot_confusion_matrix({"1": found()}, {"1": objects((0, 0, 9, 9, 0, 0))}, ["\u1d81"], tmp_path / "cm.png")
    assert [text.get_text() for text in drawn[0].get_yticklabels()] == [label, "background"]
    plot_precision_recall({"1": found()}, {"1": objects((0, 0, 9, 9, 0, 0))}, ["\u1d81"], tmp_path / "pr.png")


def test_training_curves_take_numeric_columns_and_skip_blanks_and_text(tmp_path):
    table = tmp_path / "metrics.csv"
    table.write_text("epoch,step,seconds,lr,loss,cls,mAP,speed,note\n1,10,9.5,0.01,2.5,1.5,,30,start\n2,20,19,0.005,nan,1.0,0.4,31,\n")
    plot_training(table, tmp_path / "training.png")
    assert min(Image.open(tmp_path / "training.png").size) > 300
    table.write_text("epoch,loss\n")
    with pytest.raises(ValueError, match="metrics.csv: 0 rows and no column of numbers"):
        plot_training(table, tmp_path / "training.png")


def test_evaluate_takes_tensors_made_in_inference_mode():
    with torch.inference_mode():
        detections = {"1": found((*A, 0, 0.9))}
    assert evaluate(detections, {"1": objects((*A, 0, 0))}, CLASSES)["mAP"] == 1
