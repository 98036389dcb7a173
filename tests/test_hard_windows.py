"""tools/hard_windows.py: windows around false alarms, by hand, then from a whole folder."""
import json

import numpy as np
import pytest
import torch
from colour_network import refusal
from conftest import write_xml
from PIL import Image

from dataset.sample import make_target
from dataset.voc import VOCDataset
from tools.hard_windows import false_alarms, main, windows_around


def test_windows_by_hand():
    assert windows_around([(90, 40, 110, 60)], (100, 200), (40, 60)) == [(70, 30, 130, 70)]
    assert windows_around([(0, 0, 10, 10), (190, 95, 200, 100)], (100, 200), (40, 60)) == [(0, 0, 60, 40), (140, 60, 200, 100)]
    assert windows_around([(0, 0, 10, 10), (50, 30, 60, 40), (50, 30, 61, 40)], (100, 200), (40, 60)) == [(0, 0, 60, 40), (26, 15, 86, 55)]
    assert windows_around([(3, 4, 5, 6)], (30, 50), (40, 60)) == [(0, 0, 50, 30)]
    assert windows_around([], (30, 50), (40, 60)) == []


def target(boxes, labels, difficult=None):
    difficult = torch.tensor(difficult or [False] * len(boxes))
    return make_target(torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(labels).long(), difficult, "a", (100, 200))


def found(*rows):
    return [{"bbox": list(bbox), "score": score, "label": label} for bbox, score, label in rows]


def test_false_alarms_are_what_hits_nothing():
    truth = target([[10, 10, 30, 30], [100, 10, 120, 30]], [0, 1], [False, True])
    alarms = false_alarms(found(((10, 10, 20, 20), 0.9, 0),         # the hit
                                ((11, 10, 20, 20), 0.8, 0),         # a double
                                ((10, 10, 20, 20), 0.95, 1),        # another class
                                ((100, 10, 20, 20), 0.7, 1),        # a difficult object
                                ((110, 20, 20, 20), 0.7, 0),        # touches it
                                ((60, 60, 10, 10), 0.4, 0)), truth)
    assert alarms == [[10, 10, 30, 30], [11, 10, 31, 30], [60, 60, 70, 70]]
    assert false_alarms(found(((1, 2, 3, 4), 0.5, 3)), target([], [])) == [[1, 2, 4, 6]]
    assert false_alarms([], truth) == []


@pytest.fixture
def evaluated(tmp_path):
    """A folder as eval_voc.py writes it, on three pictures of 200x100: false alarms in two of them, none in the third."""
    folder, output = tmp_path / "voc", tmp_path / "found"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    output.mkdir()
    ramp = np.arange(200, dtype=np.uint8)[None, :, None].repeat(100, 0).repeat(3, 2)
    for id in "abc":
        Image.fromarray(ramp).save(folder / f"JPEGImages/{id}.png")
        write_xml(folder / f"Annotations/{id}.xml", (100, 200), [("nail", (81, 41, 100, 50)), ("clip", (129, 31, 138, 40))])
    (folder / "ImageSets/Main/all3.txt").write_text("a\nb\nc\n")
    rows = [("a", (90, 40, 20, 20), 0.6, 2), ("a", (80, 40, 20, 10), 0.9, 2), ("b", (10, 10, 5, 5), 0.3, 1), ("c", (50, 50, 9, 9), 0.2, 1)]
    results = [{"image_id": id, "bbox": bbox, "score": score, "category_id": category} for id, bbox, score, category in rows]
    (output / "detections.json").write_text(json.dumps(results))
    metrics = {"data": [str(folder)], "split": "all3", "per_class": {"clip": {}, "nail": {}}, "skipped": 0, "zero_based": False}
    (output / "metrics.json").write_text(json.dumps(metrics))
    return output


def test_a_folder_of_windows_that_a_data_set_reads(evaluated, tmp_path, capsys):
    main([str(evaluated), "--output", str(tmp_path / "hard"), "--size", "60", "40", "--score-threshold", "0.3"])
    assert "2 windows of 2 pictures" in capsys.readouterr().out
    windows = VOCDataset(tmp_path / "hard", "train", ["clip", "nail"])
    assert windows.ids == ["a_0", "b_0"]
    image, seen = windows[0]                                        # the window (70, 30, 130, 70)
    assert seen["orig_size"] == (40, 60) and seen["labels"].tolist() == [1] and seen["boxes"].tolist() == [[10, 10, 30, 20]]
    assert (image[0].int() - torch.arange(70, 130)).abs().max() <= 2 and windows.target(1)["boxes"].shape == (0, 4)


def test_windows_of_pictures_to_judge_by_are_told_of(evaluated, tmp_path, capsys):
    metrics = json.loads((evaluated / "metrics.json").read_text())
    (evaluated / "metrics.json").write_text(json.dumps(metrics | {"split": "all"}))
    main([str(evaluated), "--output", str(tmp_path / "one")])
    assert "note" not in capsys.readouterr().out
    (tmp_path / "voc/ImageSets/Main/test.txt").write_text("c\n")
    main([str(evaluated), "--output", str(tmp_path / "two")])
    assert "note: windows of the pictures of test are among them" in capsys.readouterr().out


def test_windows_of_zero_based_data_are_zero_based_too(evaluated, tmp_path, capsys):
    (evaluated / "metrics.json").write_text(json.dumps(json.loads((evaluated / "metrics.json").read_text()) | {"zero_based": True}))
    main([str(evaluated), "--output", str(tmp_path / "hard"), "--size", "60", "40", "--score-threshold", "0.3"])
    assert capsys.readouterr().out.rstrip().endswith("--zero-based")
    windows = VOCDataset(tmp_path / "hard", "train", ["clip", "nail"], one_based=False)
    assert windows.target(0)["boxes"].tolist() == [[11, 11, 30, 20]]            # (81, 41, 100, 50) in the window (70, 30, 130, 70)


def test_pictures_whose_paths_make_one_name_keep_their_windows(evaluated, tmp_path, monkeypatch):
    monkeypatch.setattr("dataset.pictures.flat_name", lambda id: "same")        # as a/b_c and a_b/c
    main([str(evaluated), "--output", str(tmp_path / "hard")])
    assert VOCDataset(tmp_path / "hard", "train", ["clip", "nail"]).ids == ["same_0", "same__0"]


def test_what_a_person_can_get_wrong(evaluated, tmp_path, capsys):
    assert "is there already" in refusal(main, [evaluated, "--output", tmp_path], capsys)
    assert "metrics.json" in refusal(main, [tmp_path, "--output", tmp_path / "x"], capsys)
    assert "no false alarm of score 0.95 or more in 3 pictures" in refusal(main, [evaluated, "--output", tmp_path / "x", "--score-threshold", "0.95"], capsys)
    (evaluated / "detections.json").write_text(json.dumps([{"image_id": "z", "bbox": [1, 2, 3, 4], "score": 1, "category_id": 1}]))
    assert "'z'" in refusal(main, [evaluated, "--output", tmp_path / "x"], capsys)
    for strange in ({"a": 1}, [1], [{"image_id": "a"}]):
        (evaluated / "detections.json").write_text(json.dumps(strange))
        assert "detections.json is none of eval_voc.py" in refusal(main, [evaluated, "--output", tmp_path / "x"], capsys)
    (evaluated / "metrics.json").write_text("{x")
    assert "metrics.json: cannot be read as JSON" in refusal(main, [evaluated, "--output", tmp_path / "x"], capsys)
    for strange in ("{}", "[]"):
        (evaluated / "metrics.json").write_text(strange)
        assert "none of eval_voc.py as it is now" in refusal(main, [evaluated, "--output", tmp_path / "x"], capsys)
    assert not (tmp_path / "x").exists()
