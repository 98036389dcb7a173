"""The COCO numbers: published ones, pycocotools used plainly, and what it does silently wrong."""
import contextlib
import copy
import io
import json
from pathlib import Path

import pytest
import torch
from test_voc_ap import NOWHERE, A, B, C, found, random_case
from test_voc_ap import objects as voc_objects

from dataset.coco import read_instances
from evaluation.coco_ap import NUMBERS, evaluate
from evaluation.matching import confusion_matrix
from evaluation.report import coco_results, format_table
from util.boxes import xywh_to_xyxy

FAKEBOX100 = Path(__file__).parents[1] / "../shared/data/eval_fixtures/coco_fakebox100"
CLASSES = ["nail", "clip"]


def objects(*rows, crowds=()):
    """Rows (x1, y1, x2, y2, label, difficult); crowds: places of the rows that are regions."""
    truth = voc_objects(*rows)
    truth["ignore"] = torch.tensor([place in crowds for place in range(len(rows))], dtype=torch.bool)
    truth["difficult"] |= truth["ignore"]
    return truth


def test_whatever_lies_in_a_crowd_is_no_false_alarm_in_any_number_of_the_table():
    truth = {"x": objects((0, 0, 10, 10, 0, False), (20, 0, 120, 100, 0, False), crowds=[1])}
    inside, beside = (30, 10, 40, 20, 0), (115, 90, 135, 110, 0)        # all of it in the crowd; an eighth of it
    numbers = evaluate({"x": found((0, 0, 10, 10, 0, 0.5), (*inside, 0.9), (*beside, 0.4))}, truth, CLASSES[:1])
    row = numbers["all"]
    assert (row["precision"], row["recall"], row["threshold"]) == (1, 1, 0.5) and numbers["mAP_50"] == pytest.approx(1)
    matrix = confusion_matrix({"x": found((*inside, 0.9), (*beside, 0.4))}, truth, 1)
    assert matrix.tolist() == [[0, 1], [1, 0]]
    # what reaches an object counts for it, though it lies in a crowd as well
    truth = {"x": objects((30, 10, 40, 20, 0, False), (20, 0, 120, 100, 0, False), crowds=[1])}
    assert evaluate({"x": found((*inside, 0.9))}, truth, CLASSES[:1])["all"]["recall"] == 1


def plain_coco(detections, ground_truth, num_classes):
    """The twelve numbers as pycocotools gives them to who walks around its traps: ids from 1, iscrowd, something detected."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    annotations = []
    for image_id, truth in ground_truth.items():
        for (x1, y1, x2, y2), label, crowd in zip(truth["boxes"].tolist(), truth["labels"].tolist(), truth["ignore"].tolist(), strict=True):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": label, "iscrowd": int(crowd),
                                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [{"id": image_id} for image_id in ground_truth], "annotations": annotations,
                         "categories": [{"id": label} for label in range(num_classes)]}
        truth.createIndex()
        results = coco_results(detections, list(range(num_classes)), {id: id for id in detections})
        judge = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


@pytest.mark.skipif(not FAKEBOX100.is_dir(), reason=f"{FAKEBOX100} is not here")
def test_the_twelve_published_numbers_of_the_fake_boxes():
    contents = read_instances(FAKEBOX100 / "instances_val2014_100.json")
    results = json.loads((FAKEBOX100 / "instances_val2014_fakebbox100_results.json").read_text())
    label_of = {category["id"]: label for label, category in enumerate(contents["categories"])}

    def grouped(entries, **columns):
        table = {image["id"]: [] for image in contents["images"]}
        for entry in entries:
            table[entry["image_id"]].append(entry)
        return {image_id: {"boxes": xywh_to_xyxy(torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)),
                           "labels": torch.tensor([label_of[row["category_id"]] for row in rows], dtype=torch.int64),
                           **{name: torch.tensor([row[key] for row in rows], dtype=dtype) for name, (key, dtype) in columns.items()}}
                for image_id, rows in table.items()}

    truth = grouped(contents["annotations"], areas=("area", torch.float64), difficult=("iscrowd", torch.bool), ignore=("iscrowd", torch.bool))
    metrics = evaluate(grouped(results, scores=("score", torch.float64)), truth, [category["name"] for category in contents["categories"]])
    published = [.505, .697, .573, .586, .519, .501, .387, .594, .595, .640, .566, .564]
    assert [round(value, 3) for value in metrics["coco"].values()] == published
    assert list(metrics["coco"]) == list(NUMBERS) and metrics["mAP"] == metrics["coco"]["AP"]


@pytest.mark.parametrize("seed", range(6))
def test_random_cases_with_crowds_agree_with_pycocotools_used_plainly(seed):
    detections, truth = random_case(seed, pictures=8, num_classes=3)
    for each in truth.values():         # small, medium and large ones, a fifth of them crowds
        each["boxes"], each["ignore"] = each["boxes"] * 30, each["difficult"]
    for each in detections.values():
        each["boxes"] = each["boxes"] * 30
    metrics = evaluate(detections, truth, ["a", "b", "c"])
    expected = plain_coco({int(id): each for id, each in detections.items()}, {int(id): each for id, each in truth.items()}, 3)
    assert [-1 if value is None else value for value in metrics["coco"].values()] == pytest.approx(expected, abs=1e-12)


def test_a_perfect_result_is_1_though_the_first_annotation_would_have_id_0():
    truth = {"1": objects((*A, 0, 0), (*B, 0, 0))}
    metrics = evaluate({"1": found((*A, 0, 0.9), (*B, 0, 0.8))}, truth, CLASSES)
    assert (metrics["mAP"], metrics["mAP_50"], metrics["all"]["AR100"]) == pytest.approx((1, 1, 1)) and metrics["score_threshold"] == 0.8


def test_iou_072_reaches_five_of_ten_thresholds():
    metrics = evaluate({"1": found((0, 0, 10, 7.2, 0, 0.9))}, {"1": objects((*A, 0, 0))}, CLASSES)
    assert metrics["mAP"] == pytest.approx(0.5) and metrics["coco"]["AP50"] == pytest.approx(1) and metrics["coco"]["AP75"] == 0
    assert metrics["ap"] == {"nail": pytest.approx(0.5), "clip": None} and metrics["per_class"]["clip"]["AP"] is None


@pytest.mark.parametrize("detections, truth, expected", [
    ({}, {"1": objects((*A, 0, 0))}, 0), ({"1": found()}, {"1": objects((*A, 0, 0))}, 0), ({}, {"1": objects()}, None),
    ({"1": found((*A, 0, 0.9))}, {"1": objects()}, None), ({}, {}, None)])
def test_empty_cases_give_json_and_a_table(detections, truth, expected):
    metrics = evaluate(detections, truth, CLASSES)
    assert metrics["mAP"] == expected and json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    assert "AP75" in format_table(metrics).splitlines()[0] and "AR100" in format_table(metrics).splitlines()[-1]


def test_a_difficult_object_is_neither_hit_nor_miss():
    truth = {"1": objects((*A, 0, 0), (*B, 0, 1))}
    for detections in ({"1": found((*A, 0, 0.9))}, {"1": found((*A, 0, 0.9), (*B, 0, 0.95))}):
        assert evaluate(detections, truth, CLASSES)["mAP"] == pytest.approx(1)
    # an ordinary overlap is asked for: a small part of it is a false alarm, which inside a crowd it is not
    part = (B[0], B[1], B[0] + 2, B[1] + 2)
    detections = {"1": found((*A, 0, 0.9), (*part, 0, 0.95))}
    assert evaluate(detections, truth, CLASSES)["mAP"] == pytest.approx(0.5)
    assert evaluate(detections, {"1": objects((*A, 0, 0), (*B, 0, 0), crowds=(1,))}, CLASSES)["mAP"] == pytest.approx(1)


def test_the_areas_of_the_file_decide_what_is_small():
    truth = {"1": objects((0, 0, 100, 100, 0, 0))}
    found_it = {"1": found((0, 0, 100, 100, 0, 0.9))}
    assert evaluate(found_it, truth, CLASSES)["coco"]["APl"] == pytest.approx(1)
    truth["1"]["areas"] = torch.tensor([900.0])
    numbers = evaluate(found_it, truth, CLASSES)["coco"]
    assert numbers["APs"] == pytest.approx(1) and numbers["APl"] is None


def test_recall_counts_the_best_1_10_and_100_of_a_picture_and_class():
    truth = {"1": objects((*A, 0, 0), (*C, 0, 0))}
    numbers = evaluate({"1": found((*A, 0, 0.9), (*NOWHERE, 0, 0.8), (*C, 0, 0.7))}, truth, CLASSES)["coco"]
    assert (numbers["AR1"], numbers["AR10"], numbers["AR100"]) == (0.5, 1, 1)
