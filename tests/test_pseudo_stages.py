"""The stages of pseudo_label/: what is dropped, chosen and measured, by hand numbers and laws; Jmq14/FCOS's way beside ours."""
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_network import refusal
from conftest import make_voc
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.coco import COCODataset
from dataset.voc import VOCDataset
from evaluation.matching import find_partners
from evaluation.report import evaluate as evaluate_detections
from evaluation.voc_ap import class_curves
from pseudo_label import (compare_arms, evaluate_pseudo_labels, generate_pseudo_labels, make_folds, make_partial, policies, query_nearest_neighbors,
                          visualize_label_quality, visualize_log, visualize_pseudo_labels)
from pseudo_label.labels import human, is_neutral, missing_labels, read_labels, with_ids, write_labels

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("make_partial", "make_folds", "extract_features", "generate_pseudo_labels", "evaluate_pseudo_labels", "query_nearest_neighbors",
          "visualize_log", "visualize_label_quality", "visualize_pseudo_labels", "run_pipeline")


def instances(boxes, images=(1, 2), categories=(10, 30)):
    """Contents of an instances json of pictures of 200x200 px; boxes [(id, image id, category id, [x, y, w, h], further keys)]."""
    return {"info": {}, "images": [{"id": id, "file_name": f"{id}.jpg", "width": 200, "height": 200} for id in images],
            "categories": [{"id": id, "name": f"class {id}"} for id in categories],
            "annotations": [{"id": id, "image_id": image, "category_id": category, "bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": 0, **dict(*more)}
                            for id, image, category, bbox, *more in boxes]}


def found(image, category, bbox, score, **more):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score, **more}


def many(count, seed=0, images=range(1, 41), categories=(10, 30)):
    rng = random.Random(seed)
    return instances([(id, rng.choice(images), rng.choice(categories), [rng.randrange(150), rng.randrange(150), 20 + rng.randrange(20), 20])
                      for id in range(1, count + 1)], images, categories)


def written(tmp_path, name, contents):
    path = tmp_path / name
    path.write_text(json.dumps(contents))
    return path


def pseudo(id, image, category, bbox, score=None, **more):
    return id, image, category, bbox, {"ispseudo": True, **({"score": score} if score is not None else {}), **more}


# ---- the stages as commands

def test_help_is_the_manual_and_imports_nothing_heavy():
    code = ("import sys, dataset.check\n" + "".join(f"import pseudo_label.{stage} as {stage}\n" for stage in STAGES)
            + "heavy = {'torch', 'numpy', 'matplotlib', 'faiss'} & {*sys.modules}\nassert not heavy, heavy\n"
            + "".join(f"assert 'python -m pseudo_label.{stage} ' in {stage}.__doc__\n" for stage in STAGES))
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_no_room_imports_the_stages():
    for room in ("engine", "dataset", "model", "evaluation", "util", "tools"):
        assert not [path for path in (ROOT / room).glob("*.py") if "pseudo_label" in path.read_text(encoding="utf-8")], room


# ---- the door

def test_a_voc_folder_and_a_json_say_the_same_and_come_back_with_every_key(tmp_path):
    folder = make_voc(tmp_path / "voc", n=4)
    full = read_labels(folder)
    assert full.split == "train" and len(full.contents["images"]) == 2 and full.images == folder / "JPEGImages"
    digest = hashlib.sha256(b"".join((folder / "Annotations" / f"{id}.xml").read_bytes() for id in ("0000", "0001"))).hexdigest()
    assert full.sha256 == digest
    contents = {**full.contents, "info": {"partial": {"keep": 0.5}}, "annotations": [
        *full.contents["annotations"][1:], {**full.contents["annotations"][0], "id": 77, "ispseudo": True, "score": 0.625, "p_real": 0.5, "weight": 0.25,
                                            "zone": "ignore", "teacher": "12ab"}]}
    write_labels(contents, tmp_path / "a.json", full.images, "train")
    write_labels(contents, tmp_path / "out", full.images, "train")
    from_json, from_voc = read_labels(tmp_path / "a.json").contents, read_labels(tmp_path / "out").contents
    assert from_json["annotations"] == contents["annotations"]
    for dataset in (COCODataset(tmp_path / "a.json", full.images), VOCDataset(tmp_path / "out", "train")):        # as training reads it
        target = dataset.target(0)
        assert target["pseudo"].tolist() == target["zone_ignore"].tolist() and target["pseudo"].sum() == 1
        assert target["weights"][target["pseudo"]].tolist() == [0.25] and (target["weights"][~target["pseudo"]] == 1).all()
    plain = {each["id"]: each for each in contents["annotations"]}
    names = {each["id"]: each["name"] for each in contents["categories"]}
    other_names = {each["id"]: each["name"] for each in from_voc["categories"]}
    assert from_voc["info"] == contents["info"] and {each["id"] for each in from_voc["annotations"]} == {*plain}
    for each in from_voc["annotations"]:
        expected = plain[each["id"]]
        assert other_names[each["category_id"]] == names[expected["category_id"]]
        keys = ("bbox", "image_id", "ispseudo", "score", "p_real", "weight", "zone", "teacher")
        assert {key: each.get(key) for key in keys} == {key: expected.get(key) for key in keys}


@pytest.mark.parametrize("change, told", [
    ({"id": 2}, "annotation 2 must have an id of its own"),
    ({"id": None}, "must have an id of its own"), ({"bbox": [1, 2, 0, 5]}, "with an area"), ({"bbox": [1, 2, 3]}, "four numbers"), ({"bbox": [300, 0, 9, 9]}, "lies outside the 200x200 picture"),
    ({"image_id": 9}, "the id of no image"), ({"category_id": 9}, "the id of no category"), ({"iscrowd": "0"}, "iscrowd is '0', must be 0 or 1"),
    ({"zone": "ignored"}, "zone is 'ignored', must be one of"), ({"weight": -3}, "weight is -3, must be a number of 0 or more")])
def test_the_door_refuses_by_name(tmp_path, change, told):
    contents = instances([(1, 1, 10, [0, 0, 10, 10]), (2, 1, 10, [0, 0, 10, 10])])
    contents["annotations"][0] |= change
    path = written(tmp_path, "a.json", contents)
    with pytest.raises(ValueError, match=told):
        read_labels(path)
    if "id" in change:
        del contents["annotations"][0]["id"]
        with pytest.raises(ValueError, match="annotation number 1 must have an id of its own"):
            read_labels(written(tmp_path, "a.json", contents))
    else:
        assert [each["id"] for each in read_labels(path, skip_bad=True).contents["annotations"]] == [2]


def test_the_door_reads_whose_a_label_is_as_training_does(tmp_path):
    contents = instances([(id, 1, 10, [0, 0, 10, 10]) for id in (1, 2, 3)])
    contents["annotations"][0]["ispseudo"], contents["annotations"][1]["ispseudo"] = "false", "true"
    assert [each["id"] for each in human(read_labels(written(tmp_path, "a.json", contents)).contents)] == [1, 3]
    contents["annotations"][0] |= {"zone": "Ignore", "score": "0.5", "p_real": None, "weight": None}
    first, *_ = read_labels(written(tmp_path, "a.json", contents)).contents["annotations"]
    assert is_neutral(first) and first["zone"] == "ignore" and first["score"] == 0.5 and not {"p_real", "weight"} & first.keys()


def test_a_picture_keeps_what_its_objects_say_also_where_one_of_them_is_bad(tmp_path):
    folder = tmp_path / "photos"
    photographs(tmp_path, ["1.jpg"])
    boxes = ((10, 20, "<id>7</id><ispseudo>1</ispseudo><score>0.5</score>"), (300, 310, "<id>8</id>"), (30, 40, "<id>9</id><p_real>0.25</p_real>"))
    objects = "".join(f"<object><name>a</name>{more}<bndbox><xmin>{x1}</xmin><ymin>5</ymin><xmax>{x2}</xmax><ymax>9</ymax></bndbox></object>" for x1, x2, more in boxes)
    (folder / "1.xml").write_text(f"<annotation>{objects}</annotation>")
    written(folder, "info.json", {"image_ids": {"1.jpg": 4}, "category_ids": {"a": 2}})
    first, other = read_labels(folder, skip_bad=True).contents["annotations"]
    assert (first["id"], first["score"], first["ispseudo"], other["id"], other["p_real"]) == (7, 0.5, True, 9, 0.25) and "score" not in other
    written(folder, "info.json", {"year": 2017})            # a person's
    labels = read_labels(folder, skip_bad=True).contents
    assert [each["id"] for each in labels["annotations"]] == [1, 2] and labels["info"] == {}


def test_one_picture_has_one_name_and_a_list_all_is_none(tmp_path):
    contents = instances([(1, 1, 10, [0, 0, 10, 10])], images=(1,))
    contents["images"][0]["file_name"] = ".\\sub\\..\\1.jpg"
    labels = read_labels(written(tmp_path, "a.json", contents), photographs(tmp_path, ["1.jpg"]), split="all")
    assert labels.contents["images"][0]["file_name"] == "1.jpg"
    write_labels(labels.contents, tmp_path / "out", labels.images, labels.split)
    assert read_labels(tmp_path / "out").contents["images"] == labels.contents["images"] and not (tmp_path / "out/ImageSets").exists()


def test_a_zone_to_leave_out_is_no_object_for_any_stage():
    contents = instances([(1, 1, 10, [0, 0, 40, 40]), (2, 1, 10, [100, 100, 40, 40], {"zone": "ignore"})])
    detections = [found(1, 10, [0, 0, 40, 40], 0.9), found(1, 10, [100, 100, 40, 40], 0.8)]
    assert policies.compare(contents, detections).tolist() == [policies.HIT, policies.DOUBLE]
    assert policies.kept_counts(contents) == {10: 1, 30: 0}
    partial, how = make_partial.make_partial(contents, "", "extreme")
    assert {each["id"] for each in partial["annotations"]} == {1, 2} and not how["dropped_ids"]


@pytest.mark.parametrize("info", [None, "", [], {"year": 2017}, {"partial": True}])
def test_an_info_that_holds_nothing_is_no_obstacle(tmp_path, info):
    path = written(tmp_path, "a.json", {**instances([(1, 1, 10, [0, 0, 10, 10])]), "info": info})
    make_partial.main([str(path), "--output", str(tmp_path / "p.json")])
    assert read_labels(path).contents["info"] == (info or {}) and read_labels(tmp_path / "p.json").contents["info"]["partial"]["kept"] == 1


def photographs(tmp_path, names):
    from PIL import Image
    (tmp_path / "photos").mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (200, 200), (90, 90, 90)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_a_json_that_went_through_voc_can_be_compared_with_itself(tmp_path):
    contents = instances([("a1", 139, 10, [-3, 0, 50.5, 50]), ("12", 139, 30, [100.123456789, 100, 33.3333333, 110]), ("b", 285, 10, [5, 5, 50, 50]),
                          ("007", 7, 30, [1, 1, 9, 9])], images=(139, 285, 7))
    contents["images"][1]["id"] = contents["annotations"][2]["image_id"] = "two"
    path, images = written(tmp_path, "text.json", contents), photographs(tmp_path, ["139.jpg", "285.jpg", "7.jpg"])
    for protocol in ("keep1", "extreme"):
        make_partial.main([str(path), "--protocol", protocol, "--images", str(images), "--output", str(tmp_path / protocol)])
        how, partial = json.loads((tmp_path / protocol / "dropped.json").read_text()), read_labels(tmp_path / protocol).contents
        assert [each["id"] for each in missing_labels(partial, read_labels(path).contents, "p", "full")] == how["dropped_ids"]
        assert {each["id"]: each["file_name"] for each in partial["images"]} == {139: "139.jpg", "two": "285.jpg", 7: "7.jpg"}
        assert partial["info"] == {"partial": {**{key: how[key] for key in how if key != "dropped_ids"}, "first_id": 13}}
    assert len(how["dropped_ids"]) == 1
    moved = read_labels(tmp_path / "keep1").contents
    moved["annotations"][0]["bbox"][1] += 0.1
    with pytest.raises(ValueError, match="is not in full as it is here"):
        missing_labels(moved, contents, "p", "full")


def test_a_folder_that_lost_a_class_or_has_no_list_is_read_as_before_by_what_follows(tmp_path):
    folder = make_voc(tmp_path / "voc", n=6, classes=("ant", "bee", "cow"), max_objects=1)
    shutil.rmtree(folder / "ImageSets")
    full = read_labels(folder).contents
    ids = {each["name"]: each["id"] for each in full["categories"]}
    write_labels({**full, "annotations": [each for each in full["annotations"] if each["category_id"] != ids["ant"]]}, tmp_path / "less",
                 folder / "JPEGImages", read_labels(folder).split)
    less = read_labels(tmp_path / "less").contents
    assert {each["name"]: each["id"] for each in less["categories"]} == {name: id for name, id in ids.items() if name != "ant"}
    assert less["images"] == full["images"] and len(VOCDataset(tmp_path / "less", "train")) == 6        # the list that training takes


def test_ids_of_somebody_elses_tool_are_not_ours_and_objects_added_by_hand_get_new_ones(tmp_path, capsys):
    photographs(tmp_path, ("1.jpg", "2.jpg"))
    kept = instances([(4, 1, 10, [0, 0, 10, 10]), (7, 2, 30, [5, 5, 10, 10])])
    write_labels({**kept, "info": {"partial": {"first_id": 100}}}, tmp_path / "folder", tmp_path / "photos", "train")
    xml = next(path for path in (tmp_path / "folder/Annotations").iterdir() if path.stem == kept["images"][0]["file_name"].split(".")[0])
    added = "<object><name>class 10</name><bndbox><xmin>50</xmin><ymin>50</ymin><xmax>60</xmax><ymax>60</ymax></bndbox></object></annotation>"
    xml.write_text(xml.read_text().replace("</annotation>", added))
    assert sorted(each["id"] for each in read_labels(tmp_path / "folder").contents["annotations"]) == [4, 7, 100]
    (tmp_path / "folder/info.json").unlink()
    assert sorted(each["id"] for each in read_labels(tmp_path / "folder").contents["annotations"]) == [1, 2, 3]
    xml.write_text("<annotation>")
    assert len(read_labels(tmp_path / "folder", skip_bad=True).contents["annotations"]) == 1
    assert "1 files or objects are bad and left out, as training does; the first: " in capsys.readouterr().out


def test_a_folder_that_counts_from_0_is_noted(tmp_path, capsys):
    folder = make_voc(tmp_path / "voc", n=2, max_objects=1)
    assert not read_labels(folder, split="all").contents["info"] and "note" not in capsys.readouterr().out
    xml = folder / "Annotations/0000.xml"
    xml.write_text(re.sub("<xmin>.*?</xmin>", "<xmin>0</xmin>", xml.read_text()))
    read_labels(folder, split="all")
    assert "1 boxes start at coordinate 0, but pixels are counted from 1 here" in capsys.readouterr().out


def test_a_picture_that_training_leaves_out_is_left_out(tmp_path, capsys):
    path, images = written(tmp_path, "a.json", instances([(1, 1, 10, [0, 0, 9, 9]), (2, 2, 10, [0, 0, 9, 9])])), photographs(tmp_path, ["1.jpg"])
    labels = read_labels(path, images, skip_bad=True, need_images=True).contents
    assert [each["id"] for each in labels["images"]] == [each["id"] for each in labels["annotations"]] == [1]
    assert COCODataset(path, images, skip_bad=True).ids == ["1"] and "1 of 2 pictures are bad and left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no picture is left, 2 are bad"):
        read_labels(path, tmp_path / "none", skip_bad=True)


def test_no_stage_reads_a_picture_outside_the_folder(tmp_path):
    path = written(tmp_path, "a.json", {**instances([]), "images": [{"id": 1, "file_name": "../1.jpg", "width": 20, "height": 20}]})
    with pytest.raises(ValueError, match="a.json: image 1: file_name is '../1.jpg', which lies outside"):
        read_labels(path, tmp_path)
    assert read_labels(path).contents["images"]          # nothing is read of what has no folder


# ---- what is dropped

def test_protocols_keep_what_they_say():
    boxes = [(1, 1, 10, [0, 0, 9, 9]), (2, 1, 10, [20, 0, 9, 9]), (3, 1, 30, [40, 0, 9, 9]), (4, 1, 30, [60, 0, 9, 9]), (5, 1, 30, [80, 0, 9, 9]),
             (6, 2, 10, [0, 0, 9, 9]), (7, 2, 30, [0, 0, 99, 99], {"iscrowd": 1}), (8, 2, 30, [0, 0, 9, 9], {"difficult": 1})]
    contents = instances(boxes)

    def kept(protocol, keep=0.5):
        partial, how = make_partial.make_partial(contents, "", protocol, keep)
        ids = [each["id"] for each in partial["annotations"]]
        assert {7, 8} <= {*ids} and partial["images"] == contents["images"] and how["kept"] + how["dropped"] == 6
        assert sorted([*ids, *how["dropped_ids"]]) == list(range(1, 9)) and partial["info"]["partial"]["first_id"] == 9
        return {*ids} - {7, 8}
    easy, hard, extreme, keep1 = (kept(name) for name in ("easy", "hard", "extreme", "keep1"))
    assert [len(ids & {1, 2, 3, 4, 5}) for ids in (easy, hard, extreme, keep1)] == [4, 3, 1, 2] and 6 in easy & hard & extreme & keep1
    assert extreme < hard < easy and len(keep1 & {1, 2}) == len(keep1 & {3, 4, 5}) == 1
    assert len(kept("bernoulli", 0.34) & {1, 2, 6}) == 1 and kept("bernoulli", 1) == {1, 2, 3, 4, 5, 6}
    assert kept("image") in ({6}, {1, 2, 3, 4, 5}) and kept("image", 1) == {1, 2, 3, 4, 5, 6}
    assert len(kept("bernoulli", 0)) == 2                     # one of each class: a network must know what it looks for


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.floats(0, 1), st.floats(0, 1), st.integers(1, 60))
def test_splits_of_one_seed_are_nested_and_do_not_depend_on_the_order(seed, one, other, count):
    contents = many(count, seed)
    less, more = ({each["id"] for each in make_partial.make_partial(contents, "", "bernoulli", keep, seed)[0]["annotations"]}
                  for keep in sorted((one, other)))
    assert less <= more
    shuffled = {**contents, "annotations": random.Random(1).sample(contents["annotations"], count)}
    for protocol, bias in (("bernoulli", None), ("bernoulli", "size"), ("image", None)):
        one_kept, other_kept, again = (make_partial.kept_ids(each, protocol, keep, seed, bias) for each, keep in ((contents, one), (contents, other), (shuffled, one)))
        assert one_kept == again and (one_kept <= other_kept or other_kept <= one_kept)
    for category in (10, 30):
        own = {each["id"] for each in contents["annotations"] if each["category_id"] == category}
        assert not own or len(own & more) == max(1, int(len(own) * max(one, other) + 0.5))


def test_a_bias_keeps_large_boxes_rather_than_small_ones_and_as_many():
    boxes = [(id, id % 40 + 1, 10, [0, 0, *([60, 60] if id % 2 else [20, 20])]) for id in range(1, 2001)]
    contents = instances(boxes, range(1, 41))
    plain, biased = (make_partial.make_partial(contents, "", "bernoulli", 0.1, 0, bias) for bias in (None, "size"))
    large = [sum(each["id"] % 2 for each in partial["annotations"]) / 200 for partial, how in (plain, biased)]
    assert large == pytest.approx([0.5, 0.75], abs=0.08) and plain[1]["kept"] == biased[1]["kept"] == 200       # sides 3 : 1
    assert (plain[1]["bias"], biased[1]["bias"], biased[0]["info"]["partial"]["bias"]) == (None, "size", "size")
    with pytest.raises(ValueError, match="--bias size: chooses among boxes, but --protocol image keeps all of a picture"):
        make_partial.make_partial(contents, "", "image", 0.1, 0, "size")


def test_the_command_writes_the_sidecar_and_refuses_to_drop_from_pseudo_labels(tmp_path, capsys):
    path = written(tmp_path, "full.json", many(30))
    make_partial.main([str(path), "--keep", "0.3", "--output", str(tmp_path / "p.json")])
    how = json.loads((tmp_path / "p.dropped.json").read_text())
    partial = read_labels(tmp_path / "p.json").contents
    assert how["full_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() == partial["info"]["partial"]["full_sha256"]
    missing = missing_labels(partial, read_labels(path).contents, "p", "full")
    assert [each["id"] for each in missing] == how["dropped_ids"] and len(partial["images"]) == 40      # emptied pictures stay
    marked = written(tmp_path, "marked.json", instances([pseudo(1, 1, 10, [0, 0, 9, 9])]))
    assert "holds pseudo labels already" in refusal(make_partial.main, [marked, "--output", tmp_path / "q.json"], capsys)
    assert "no such file" in refusal(make_partial.main, [tmp_path / "none.json", "--output", tmp_path / "q.json"], capsys)
    before = path.read_text()
    assert "is what is read" in refusal(make_partial.main, [path, "--output", tmp_path / "full.json"], capsys) and path.read_text() == before
    (tmp_path / "there").mkdir()
    assert "is there already" in refusal(make_partial.main, [path, "--output", tmp_path / "there"], capsys)


def test_folds_hold_each_picture_once_and_no_teacher_trains_on_its_own(tmp_path, capsys):
    path = written(tmp_path, "a.json", many(60))
    make_folds.main([str(path), "--folds", "3", "--output", str(tmp_path / "folds")])
    folds = json.loads((tmp_path / "folds/folds.json").read_text())["folds"]
    assert sorted(id for fold in folds for id in fold) == list(range(1, 41)) and {len(fold) for fold in folds} == {13, 14}
    for place, fold in enumerate(folds):
        train = read_labels(tmp_path / f"folds/train-{place}.json").contents
        assert not {each["id"] for each in train["images"]} & {*fold} and len(train["images"]) == 40 - len(fold)
        assert not {each["image_id"] for each in train["annotations"]} & {*fold}
    assert "only 40 pictures" in refusal(make_folds.main, [path, "--folds", 41, "--output", tmp_path / "more"], capsys)
    make_folds.main([str(path), "--folds", "2", "--output", str(tmp_path / "folds")])
    assert sorted(file.name for file in (tmp_path / "folds").iterdir()) == ["folds.json", "train-0.json", "train-1.json"]
    assert "is what is read" in refusal(make_folds.main, [tmp_path / "folds/train-1.json", "--output", tmp_path / "folds"], capsys)
    make_folds.main([str(path), "--output", str(tmp_path)])             # beside the labels
    assert path.exists() and (tmp_path / "train-1.json").exists()


def test_folds_leave_files_of_others_alone(tmp_path, capsys):
    path, folds = written(tmp_path, "a.json", many(60)), tmp_path / "folds"
    folds.mkdir()
    words = [path, "--output", folds]
    for name in ("train-0.json", "train-2017.json"):
        (folds / name).write_text("mine")
    assert "holds train-0.json, which no earlier call has left there" in refusal(make_folds.main, words, capsys)
    (folds / "train-0.json").rename(folds / "train-2.json")
    make_folds.main([str(word) for word in words])
    make_folds.main([str(word) for word in words])
    assert "holds train-2.json" in refusal(make_folds.main, [*words, "--folds", 3], capsys)
    assert (folds / "train-2.json").read_text() == (folds / "train-2017.json").read_text() == "mine"
    for strange in ("[]", "{}", "[1"):
        (folds / "folds.json").write_text(strange)
        assert "folds.json" in refusal(make_folds.main, words, capsys) and (folds / "folds.json").read_text() == strange


# ---- what is chosen

KEPT = instances([(1, 1, 10, [0, 0, 100, 100])], images=(5, 1, 2))
FOUND = [found(1, 30, [0, 0, 100, 90], 0.9),        # IoU 0.9 with the kept box, of another class
         found(1, 10, [0, 0, 100, 60], 0.8),        # IoU 0.6, of its class
         found(1, 10, [10, 10, 30, 30], 0.7),       # a part of it
         found(1, 30, [10, 10, 30, 30], 0.6),       # inside it, of another class
         found(2, 30, [50, 50, 20, 20], 0.5),       # where no label is
         found(2, 30, [90, 50, 20, 20], 0.49)]


def chosen(contents):
    return [each["bbox"] for each in contents["annotations"] if each.get("ispseudo")]


def test_policy_seed_drops_one_box_for_each_kept_one_whatever_its_class_and_stores_no_score():
    result = generate_pseudo_labels.generate(KEPT, FOUND, "seed", policies.Options())
    assert chosen(result) == [FOUND[row]["bbox"] for row in (1, 2, 3, 4)]             # the second box on the kept one stays: its known defect
    assert result["annotations"][0] == KEPT["annotations"][0]
    assert result["annotations"][1] == {"id": 2, "image_id": 1, "category_id": 10, "bbox": [0, 0, 100, 60], "segmentation": [], "area": 6000,
                                        "iscrowd": 0, "ispseudo": True}
    assert result["annotations"][-1]["category_id"] == 30                             # an id of the file, not the network's label
    below = [found(1, 10, [0, 0, 100, 49], 0.9)]                                      # IoU 0.49
    assert len(chosen(generate_pseudo_labels.generate(KEPT, below, "seed", policies.Options()))) == 1


def test_policy_fixed_drops_every_double_but_not_what_lies_inside_another_class():
    result = generate_pseudo_labels.generate(KEPT, FOUND, "fixed", policies.Options())
    assert chosen(result) == [FOUND[3]["bbox"], FOUND[4]["bbox"]]
    assert [(each["score"], each["zone"]) for each in result["annotations"][1:]] == [(0.6, "positive"), (0.5, "positive")]
    again = generate_pseudo_labels.generate(result, FOUND, "fixed", policies.Options(confidence=0.6))
    assert chosen(again) == [FOUND[3]["bbox"]] and again["annotations"][0] == KEPT["annotations"][0]       # a second round begins with people's


def test_a_kept_box_has_one_hit_and_what_is_neutral_says_nothing():
    contents = instances([(1, 1, 10, [0, 0, 50, 50]), (2, 1, 10, [100, 0, 50, 50], {"difficult": 1}), (3, 1, 30, [0, 100, 100, 100], {"iscrowd": 1})])
    state = policies.compare(contents, [
        found(1, 10, [0, 0, 50, 40], 0.6), found(1, 10, [0, 0, 50, 48], 0.7),         # IoU 0.8, and 0.96 with the better score
        found(1, 10, [100, 0, 50, 50], 0.9), found(1, 30, [10, 110, 20, 20], 0.9), found(1, 10, [10, 110, 20, 20], 0.9), found(2, 10, [0, 0, 50, 50], 0.9)])
    hit, double, left = policies.HIT, policies.DOUBLE, policies.LEFT
    assert state.tolist() == [double, hit, double, double, left, left]
    assert policies.compare(contents, []).tolist() == []


def test_what_lies_on_a_surer_detection_is_no_second_object_where_no_label_is():
    detections = [found(2, 10, [0, 0, 100, 100], 0.6), found(2, 10, [0, 0, 100, 51], 0.5), found(2, 10, [0, 0, 100, 50], 0.4),    # IoU 0.51; 0.5 (0.98)
                  found(2, 30, [0, 0, 100, 76], 0.3), found(2, 30, [0, 0, 100, 74], 0.7), found(1, 10, [0, 0, 100, 100], 0.9)]    # another class: IoU 0.76, 0.74
    hit, double, left = policies.HIT, policies.DOUBLE, policies.LEFT
    # the third lies on the second, which is no object itself, and not enough on the first
    assert policies.compare(KEPT, detections).tolist() == [left, double, left, double, left, hit]


def test_policy_count_takes_as_many_as_are_missing_of_each_class():
    contents = instances([(1, 1, 10, [0, 0, 10, 10]), (2, 2, 10, [0, 0, 10, 10]), (3, 1, 30, [180, 180, 10, 10])])
    detections = [found(1, 10, [20 * place, 50, 10, 10], 0.9 - place / 10) for place in range(1, 7)] + [found(2, 30, [50, 50, 10, 10], 0.1)]
    result = generate_pseudo_labels.generate(contents, detections, "count", policies.Options(keep_rate=1 / 3))
    zones = [(each["category_id"], each["score"], each["zone"]) for each in result["annotations"][3:]]
    # 2 kept of class 10: 4 missing, of which 2 positive; 1 kept of class 30: 2 missing, 1 there
    assert [(category, round(score, 1), zone) for category, score, zone in zones] == [
        (10, 0.8, "positive"), (10, 0.7, "positive"), (10, 0.6, "ignore"), (10, 0.5, "ignore"), (30, 0.1, "positive")]


def test_the_probability_of_what_is_left_by_hand():
    # of 4 detections of one score 2 hit kept boxes. At a keep rate of 0.8 these stand for 2.5 objects: half an object is among the 2 left
    hit, left, double = policies.HIT, policies.LEFT, policies.DOUBLE
    detections, state = [found(1, 10, [0, 0, 1, 1], 0.5)] * 5000, np.array([hit, hit, left, left, double] * 1000)
    assert policies.real_probabilities(detections, state, 0.8) == pytest.approx([0.25, 0.25, 0.25, 0.25, 0] * 1000, abs=2e-3)
    assert policies.real_probabilities(detections, state, 0.4)[:5] == pytest.approx([1, 1, 1, 1, 0], abs=0.02)      # 5 objects among 4
    assert policies.real_probabilities(detections, state, 1.0).tolist() == [0] * 5000                 # complete labels
    assert policies.real_probabilities([], np.array([]), 0.5).tolist() == []
    # nothing to learn from: the score is the probability that a detection is real, and of those the half is labelled
    assert policies.real_probabilities([found(1, 10, [0, 0, 1, 1], 0.5)], np.array([left]), 0.5)[0] == pytest.approx(1 / 3, abs=0.03)
    assert policies.left_over(np.array([0, 0.625, 1]), 0.8) == pytest.approx([0, 0.25, 1])


def test_what_a_score_means_is_each_teachers_own_affair():
    contents, detections, real = world(0.3)
    state = policies.compare(contents, detections)
    halves = np.array([each["image_id"] % 4 < 2 for each in detections])

    def low(score):                                     # a teacher that says the same, less sure of everything
        return float(1 / (1 + np.exp(2 - np.log(score / (1 - score)))))
    mixed = [{**each, "teacher": "a"} if first else {**each, "teacher": "b", "score": low(each["score"])}
             for each, first in zip(detections, halves, strict=True)]
    chance, left = policies.real_probabilities(mixed, state, 0.3), state == policies.LEFT
    for own in (halves, ~halves):
        sure = left & own & (chance >= 0.6)
        assert real[sure].mean() > 0.9 and (real & sure).sum() / (real & left & own).sum() > 0.65


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.sampled_from([10, 30])), min_size=1, max_size=60), st.floats(0.02, 0.98))
def test_the_probability_rises_with_the_score_within_a_class_and_is_finite(points, keep_rate):
    detections = [found(1, category, [0, 0, 1, 1], score) for score, _, category in points]
    state = np.array([policies.HIT if hit else policies.LEFT for _, hit, _ in points])
    chances = policies.real_probabilities(detections, state, keep_rate)
    assert np.isfinite(chances).all() and (chances >= 0).all() and (chances <= 1).all()
    for category in (10, 30):
        own = sorted((each["score"], chance) for each, chance in zip(detections, chances, strict=True) if each["category_id"] == category)
        assert all(low <= high + 1e-9 for (_, low), (_, high) in zip(own, own[1:], strict=False))


def world(keep, objects=1500, seed=0, in_sample=False):
    """(contents with the kept boxes, detections, whether each is real): two classes of which one is found with lower scores; as many
    false detections as real ones. in_sample: the teacher has learnt that what is missing is background."""
    rng = np.random.default_rng(seed)
    boxes, detections, real = [], [], []
    for id in range(1, objects + 1):
        category, kept = (10, 30)[id % 2], rng.random() < keep
        bbox = [10 * (id % 4), 0, 8, 8]
        if kept:
            boxes.append((id, id, category, bbox))
        logit = rng.normal(2.0 if category == 10 else 0.5) - (1.5 if in_sample and not kept else 0)
        detections.append(found(id, category, bbox, float(1 / (1 + np.exp(-logit)))))
        detections.append(found(id, category, [100, 100, 8, 8], float(1 / (1 + np.exp(2 - rng.normal())))))
        real += [True, False]
    return instances(boxes, range(1, objects + 1)), detections, np.array(real)


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5])
def test_precision_knows_without_a_dropped_label_how_much_is_missing_and_what_is_real(keep):
    contents, detections, real = world(keep)
    state = policies.compare(contents, detections)
    assert policies.estimated_keep_rate(contents, detections, state) == pytest.approx(keep, abs=0.08)
    chance, left = policies.real_probabilities(detections, state, keep), state == policies.LEFT
    assert chance[left].sum() == pytest.approx((real & left).sum(), rel=0.12)
    for low, high in ((0.2, 0.5), (0.5, 0.8), (0.8, 1.01)):
        inside = left & (chance >= low) & (chance < high)
        assert inside.sum() < 30 or real[inside].mean() == pytest.approx(chance[inside].mean(), abs=0.17)
    sure = left & (chance >= 0.8)
    assert real[sure].mean() > 0.85


def test_a_teacher_that_trained_on_the_same_pictures_hides_what_is_missing():
    contents, detections, _ = world(0.3, in_sample=True)
    assert policies.estimated_keep_rate(contents, detections, policies.compare(contents, detections)) > 0.5


def test_policy_precision_has_three_zones_a_weight_and_says_the_rate():
    contents, detections, real = world(0.3)
    result = generate_pseudo_labels.generate(contents, detections, "precision", policies.Options(keep_rate=0.3))
    own = [each for each in result["annotations"] if each.get("ispseudo")]
    assert {each["zone"] for each in own} == {"positive", "ignore"} and result["info"]["pseudo"]["keep_rate"] == 0.3
    assert all(each["weight"] == each["p_real"] and (each["zone"] == "positive") == (each["p_real"] >= 0.6) and each["p_real"] >= 0.2 for each in own)


def test_a_weak_teacher_leaves_zones_alone(tmp_path):
    contents = instances([(id, id, 10, [0, 0, 8, 8]) for id in range(1, 31)], range(1, 101))
    detections = [found(id, 10, [0, 0, 8, 8], 0.3) for id in range(1, 101)]         # of one score: 30 hit, of the others less than half is real
    result = generate_pseudo_labels.generate(contents, detections, "precision", policies.Options(keep_rate=0.6))
    assert {each["zone"] for each in result["annotations"] if each.get("ispseudo")} == {"ignore"}
    assert evaluate_pseudo_labels.evaluate(result, contents)["by_class"]["iou_0.5"]["all"]["f1"] is None
    assert "30 labels, 0 pseudo labels, 70 ignored boxes" in generate_pseudo_labels.told(result, "x.json")


def test_crowds_and_difficult_objects_are_told_of_as_labels_but_mean_nothing_missing():
    contents = instances([(id, id, 10, [0, 0, 8, 8]) for id in range(1, 31)], range(1, 31))
    for place, key in enumerate(["iscrowd"] * 6 + ["ignore"] * 4 + ["difficult"] * 8):
        contents["annotations"][place][key] = 1
    contents["annotations"].append({**contents["annotations"][-1], "id": 31, "ispseudo": True})
    contents["info"] = {"pseudo": {"policy": "count", "keep_rate": 0.4}}
    # 30 labels, of which 12 could have been dropped: 12 * (1 / 0.4 - 1) = 18
    assert generate_pseudo_labels.told(contents, "x.json") == (
        "30 labels, 1 pseudo labels, 0 ignored boxes by policy count; at a keep rate of 0.400 about 18 are missing; x.json")


def test_a_pseudo_label_inside_a_crowd_is_not_false():
    full = instances([(1, 1, 10, [0, 0, 50, 50]), (2, 1, 10, [100, 100, 90, 90], {"iscrowd": 1})])
    pseudo = [{**full["annotations"][0], "id": 3, "ispseudo": True, "score": 0.9, "p_real": 0.9}]
    pseudo.append({**pseudo[0], "id": 4, "score": 0.95, "p_real": 0.95, "bbox": [120, 120, 20, 20]})
    result = evaluate_pseudo_labels.evaluate({**full, "annotations": [full["annotations"][1], *pseudo]}, full)
    assert result["by_class"]["iou_0.5"]["all"]["precision"] == result["ap50"] == 1.0 and result["calibration_error"] == pytest.approx(0.1)


def test_generating_refuses_in_one_sentence(tmp_path, capsys):
    partial, detections = written(tmp_path, "p.json", KEPT), written(tmp_path, "d.json", FOUND)
    words = [partial, "--detections", detections, "--output", tmp_path / "out.json"]
    assert "not one pseudo label of 6 detections" in refusal(generate_pseudo_labels.main, [*words, "--policy", "seed", "--confidence", 0.95], capsys)
    assert "keep rate cannot be estimated" in refusal(
        generate_pseudo_labels.main, [written(tmp_path, "e.json", instances([])), *words[1:]], capsys)
    for change, told in (({"image_id": 9}, "image_id is 9, which is the id of no image"), ({"image_id": [2]}, "image_id is [2], which"),
                         ({"category_id": 9}, "category_id is 9"), ({"bbox": None}, "bbox is None, must be four numbers"), ({"bbox": [1, 2, 3]}, "bbox is [1"), ({"bbox": [10 ** 400, 1, 2, 3]}, "must be four numbers"),
                         ({"bbox": [1, 2, 0, 3]}, "with an area"), ({"bbox": [500, 0, 9, 9]}, "in 2.jpg it lies outside the 200x200 picture"),
                         ({"bbox": [-20, 0, 20.4, 9]}, "in 2.jpg it lies outside the 200x200 picture"),
                         ({"score": None}, "score is None, must be a number in 0..1"), ({"score": "0.9"}, "score is '0.9'"), ({"score": 3.5}, "score is 3.5")):
        entries = [FOUND[0], found(2, 10, [0, 0, 1, 1], 1) | change]
        said = refusal(generate_pseudo_labels.main, [partial, "--detections", written(tmp_path, "o.json", entries), *words[3:]], capsys)
        assert f"o.json: detection 2: {told}" in said or told in said and "o.json: detection 2: " in said
    assert "entry 1 must be a detection" in refusal(
        generate_pseudo_labels.main, [partial, "--detections", written(tmp_path, "b.json", [{"box": 1}]), *words[3:]], capsys)
    assert "annotation 1 is there already" in refusal(generate_pseudo_labels.main, [*words, "--policy", "fixed", "--first-id", 1], capsys)
    assert "must not be above" in refusal(generate_pseudo_labels.main, [*words, "--ignore", 0.9], capsys)
    for source in (partial, detections):
        assert "is what is read, which it would replace" in refusal(generate_pseudo_labels.main, [*words[:3], "--output", source], capsys)
    assert not (tmp_path / "out.json").exists()
    generate_pseudo_labels.main([str(word) for word in (*words, "--policy", "fixed", "--first-id", 500)])
    assert [each["id"] for each in read_labels(tmp_path / "out.json").contents["annotations"]] == [1, 500, 501]
    assert "1 labels, 2 pseudo labels, 0 ignored boxes by policy fixed" in capsys.readouterr().out


def test_pseudo_labels_get_ids_beyond_those_of_the_full_file():
    full = instances([(1, 1, 10, [0, 0, 100, 100]), (900, 2, 30, [50, 50, 20, 20])])
    partial = {**full, "annotations": full["annotations"][:1], "info": {"partial": {"first_id": 901}}}
    result = generate_pseudo_labels.generate(partial, FOUND[:5], "fixed", policies.Options())
    assert [each["id"] for each in result["annotations"]] == [1, 901, 902]


# ---- how good they are

FULL = instances([(1, 1, 10, [0, 0, 50, 50]),                                                   # kept
                  (2, 1, 10, [100, 0, 50, 50]), (3, 1, 30, [0, 100, 20, 20]), (4, 2, 30, [0, 0, 100, 100]),      # missing
                  (5, 2, 10, [150, 150, 40, 40], {"difficult": 1})])
MARKED = {**FULL, "annotations": [FULL["annotations"][0], FULL["annotations"][4], *instances([
    pseudo(11, 1, 30, [100, 0, 50, 40], 0.9, p_real=0.9),                   # IoU 0.8 with 2, of another class
    pseudo(12, 1, 10, [100, 0, 50, 30], 0.8, p_real=0.9),                   # IoU 0.6 with 2
    pseudo(13, 1, 10, [0, 0, 50, 45], 0.7, p_real=0.9),                     # a double of 1
    pseudo(14, 2, 10, [150, 150, 40, 40], 0.6, p_real=0.9),                 # on a difficult object
    pseudo(15, 2, 30, [0, 0, 100, 100], 0.5, p_real=0.5, zone="ignore")])["annotations"]]}


def test_quality_by_hand():
    result = evaluate_pseudo_labels.evaluate(MARKED, FULL)
    # classes ignored, in the order of the file: 2 takes the first pseudo label; a difficult object is unknown to the seed
    assert result["as_seed"] == {"missing": 3, "pseudo": 4, "tp": 1, "fp": 3, "fn": 2, "precision": 0.25, "recall": 1 / 3, "f1": 2 / 7,
                                 "mean_iou": pytest.approx(0.8), "pq": pytest.approx(0.8 / 3.5)}
    half, strict = (result["by_class"][f"iou_{threshold}"] for threshold in (0.5, 0.75))
    assert half["all"] == {"missing": 3, "pseudo": 3, "tp": 1, "fp": 2, "fn": 2, "precision": pytest.approx(1 / 3), "recall": pytest.approx(1 / 3),
                           "f1": pytest.approx(1 / 3), "mean_iou": pytest.approx(0.6), "pq": pytest.approx(0.2)}
    assert [half["classes"]["class 10"][key] for key in ("tp", "fp", "fn")] == [1, 1, 0]
    assert [half["classes"]["class 30"][key] for key in ("tp", "fp", "fn")] == [0, 1, 2]
    assert [[half["sizes"][size][key] for key in ("tp", "fp", "fn")] for size in ("small", "medium", "large")] == [[0, 0, 1], [1, 2, 0], [0, 0, 1]]
    assert strict["all"]["tp"] == 0 and strict["all"]["mean_iou"] is None and strict["all"]["pq"] == 0     # no hit is no division by zero
    assert result["ignored"] == {"boxes": 1, "real": 1.0, "recall_with_positives": pytest.approx(2 / 3)} and result["doubles"] == 1
    # without the one on the difficult object: three of 0.9 with one hit, one of 0.5 that hits
    assert result["calibration_error"] == pytest.approx((abs(1 - 2.7) + abs(1 - 0.5)) / 4)
    assert "as seed counts" in evaluate_pseudo_labels.format_quality(result) and json.dumps(result)
    unranked = {**MARKED, "annotations": [{key: value for key, value in each.items() if key != "score"} for each in MARKED["annotations"]]}
    assert result["ap50"] is not None and evaluate_pseudo_labels.evaluate(unranked, FULL)["ap50"] is None


def test_the_seed_gives_a_pseudo_label_to_one_missing_box_only():
    missing = instances([(1, 1, 10, [0, 0, 10, 10]), (2, 1, 10, [0, 0, 10, 9])])["annotations"]
    own = instances([pseudo(3, 1, 30, [0, 0, 10, 10])])["annotations"]
    result = evaluate_pseudo_labels.seed_quality(own, missing, [{"id": 1}])
    assert (result["tp"], result["fp"], result["fn"], result["pq"]) == (1, 0, 1, 1 / 1.5)
    nothing = evaluate_pseudo_labels.seed_quality([], [], [{"id": 1}])
    assert nothing["pq"] is None and nothing["mean_iou"] is None


def test_measuring_refuses_in_one_sentence(tmp_path, capsys):
    full = written(tmp_path, "full.json", FULL)

    def told(contents):
        return refusal(evaluate_pseudo_labels.main, [written(tmp_path, "a.json", contents), "--full", full], capsys)
    assert "holds no pseudo label" in told(FULL)
    assert "is what is read" in refusal(evaluate_pseudo_labels.main, [written(tmp_path, "a.json", MARKED), "--full", full, "--output", full], capsys)
    other = json.loads(json.dumps(MARKED))
    other["annotations"][0]["bbox"][0] = 3
    assert "annotation 1 is not in" in told(other) and "as it is here" in told(other)
    other["annotations"][0] = MARKED["annotations"][0] | {"id": 99}
    assert "annotation 99 is not in" in told(other)
    other["annotations"][0], other["images"][0]["file_name"] = MARKED["annotations"][0], "x.jpg"
    assert "image 1 is x.jpg" in told(other)
    strange = {**MARKED, "categories": [*MARKED["categories"], {"id": 40, "name": "cup"}]}
    strange["annotations"] = [*MARKED["annotations"], *instances([pseudo(99, 1, 40, [0, 0, 9, 9])])["annotations"]]
    assert "pseudo label 99 is of the class 'cup', which" in told(strange)
    evaluate_pseudo_labels.main([str(written(tmp_path, "b.json", MARKED)), "--full", str(full), "--output", str(tmp_path / "q.json")])
    assert json.loads((tmp_path / "q.json").read_text())["doubles"] == 1 and "class 30" in capsys.readouterr().out
    unknown = {**MARKED, "annotations": [{**each, "score": None, "p_real": None} for each in MARKED["annotations"]]}
    evaluate_pseudo_labels.main([str(written(tmp_path, "b.json", unknown)), "--full", str(full), "--output", str(tmp_path / "q.json")])
    assert json.loads((tmp_path / "q.json").read_text())["ap50"] is None


def test_what_is_missing_is_of_the_classes_of_the_part_and_not_told_by_the_ids_of_pseudo_labels(tmp_path, capsys):
    more = instances([(1, 1, 10, [0, 0, 9, 9]), (2, 1, 10, [20, 0, 9, 9]), (3, 1, 30, [40, 0, 9, 9])])
    part = {**more, "categories": [each for each in more["categories"] if each["id"] == 10],
            "annotations": [more["annotations"][0], *instances([pseudo(2, 1, 10, [60, 0, 9, 9])])["annotations"]]}
    assert [each["id"] for each in missing_labels(part, more, "part.json", "full.json")] == [2]
    assert capsys.readouterr().out == "note: full.json: 1 boxes of class 30 are left out, classes that part.json does not have\n"


# ---- neighbours

def arrays(teachers=("a", "a", "b"), kept_teachers=("a", "b", "a", "b")):
    rng = np.random.default_rng(0)
    detections, kept = (rng.normal(size=(count, 8)) for count in (len(teachers), len(kept_teachers)))
    return {"detections": (detections / np.linalg.norm(detections, axis=1, keepdims=True)).astype(np.float16),
            "kept": (kept / np.linalg.norm(kept, axis=1, keepdims=True)).astype(np.float16), "detection_teachers": np.array(teachers),
            "kept_teachers": np.array(kept_teachers), "kept_ids": np.array([11, 22, 33, 44]), "kept_category_ids": np.array([10, 10, 30, 30])}


def test_neighbours_are_those_of_the_same_teacher_by_annotation_id_and_exact():
    pytest.importorskip("faiss")
    given_arrays = arrays()
    result = query_nearest_neighbors.neighbors([found(1, 10, [0, 0, 1, 1], 0.5, teacher=name) for name in "aab"], given_arrays, k=5)
    for place, each in enumerate(result):
        own = [row for row in range(4) if given_arrays["kept_teachers"][row] == "aab"[place]]
        distance = 1 - given_arrays["kept"][own].astype(float) @ given_arrays["detections"][place].astype(float)
        order = np.argsort(distance)
        assert each["nn_ids"] == given_arrays["kept_ids"][own][order].tolist() and each["nn_distances"] == pytest.approx(distance[order], abs=1e-3)
    lonely = query_nearest_neighbors.neighbors([found(1, 10, [0, 0, 1, 1], 0.5, teacher="c")], arrays(("c",)))
    assert lonely[0]["nn_ids"] == []


def test_features_of_another_checkpoint_and_a_missing_library_are_refused(tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "features.npz", **arrays())
    written(tmp_path, "detections.json", [found(1, 10, [0, 0, 1, 1], 0.5, teacher=name) for name in "aac"])
    words = [tmp_path, "--output", tmp_path / "n.json"]
    for name in ("features.npz", "detections.json"):
        assert "is what is read" in refusal(query_nearest_neighbors.main, [tmp_path, "--output", tmp_path / name], capsys)
    assert "features of checkpoint a, b, detections.json 3 detections of a, c" in refusal(query_nearest_neighbors.main, words, capsys)
    assert "must hold detections.json and features.npz" in refusal(query_nearest_neighbors.main, [tmp_path / "none", *words[1:]], capsys)
    written(tmp_path, "detections.json", {"a": 1})
    assert "detections.json is no list" in refusal(query_nearest_neighbors.main, words, capsys)
    written(tmp_path, "detections.json", [found(1, 10, [0, 0, 1, 1], 0.5, teacher=name) for name in "aab"])
    whole = (tmp_path / "features.npz").read_bytes()
    for broken in (whole[:len(whole) // 2], b"", b"no archive"):
        (tmp_path / "features.npz").write_bytes(broken)
        assert "must hold detections.json and features.npz" in refusal(query_nearest_neighbors.main, words, capsys)
    np.savez(tmp_path / "features.npz", x=np.zeros(3))
    assert "features.npz has no detections" in refusal(query_nearest_neighbors.main, words, capsys)
    np.save(tmp_path / "x.npy", np.zeros(3))
    (tmp_path / "x.npy").replace(tmp_path / "features.npz")
    assert "must hold detections.json and features.npz" in refusal(query_nearest_neighbors.main, words, capsys)
    (tmp_path / "features.npz").write_bytes(whole)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "pip install faiss-cpu" in refusal(query_nearest_neighbors.main, words, capsys)


# ---- pictures

def test_the_log_has_every_stage_one_behind_the_other(tmp_path, capsys):
    for name, losses in (("one", (3, 2)), ("two", (1, 0.5))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("epoch,step,seconds,lr,loss,cls,waiting,pseudo,zones,mAP\n" + "".join(
            f"{epoch},{epoch * 5},1,0.1,{loss},{loss / 2},0.1,2,3,\n" for epoch, loss in enumerate(losses, start=1)))
    folder, steps, losses = visualize_log.read_run(tmp_path / "one")
    assert folder == tmp_path / "one" and steps.tolist() == [5, 10] and {key: values.tolist() for key, values in losses.items()} == {"loss": [3, 2], "cls": [1.5, 1]}
    (tmp_path / "two/steps.csv").write_text("step,epoch,lr,loss\n50,1,0.1,3\n100,1,0.1,2\n")
    assert visualize_log.read_run(tmp_path / "two")[1].tolist() == [50, 100]
    visualize_log.main([str(tmp_path / "one"), str(tmp_path / "two/metrics.csv"), "--output", str(tmp_path / "log.png")])
    assert (tmp_path / "log.png").read_bytes().startswith(b"\x89PNG")
    folders = [Path(name) for name in ("a/seed-0/D", "a/seed-1/D", "a/seed-1/F")]
    assert visualize_log.short_names(folders) == ["seed-0/D", "seed-1/D", "seed-1/F"] and visualize_log.short_names(folders[1:]) == ["D", "F"]
    assert visualize_log.short_names([Path("a/D")] * 2) == ["D", "D"]
    assert "no such file" in refusal(visualize_log.main, [tmp_path / "three", "--output", tmp_path / "x.png"], capsys)
    (tmp_path / "empty.csv").write_text("epoch,step\n")
    assert "no column of a loss" in refusal(visualize_log.main, [tmp_path / "empty.csv", "--output", tmp_path / "x.png"], capsys)
    (tmp_path / "wide.csv").write_bytes("epoch,step,löss\n".encode("latin-1"))
    assert "wide.csv: cannot be read as CSV" in refusal(visualize_log.main, [tmp_path / "wide.csv", "--output", tmp_path / "x.png"], capsys)
    before = (tmp_path / "one/metrics.csv").read_bytes()
    assert "metrics.csv: must end in .png" in refusal(visualize_log.main, [tmp_path / "one", "--output", tmp_path / "one/metrics.csv"], capsys)
    (tmp_path / "one/metrics.csv").rename(tmp_path / "log.png")
    assert "is what is read" in refusal(visualize_log.main, [tmp_path / "log.png", "--output", tmp_path / "log.png"], capsys)
    assert (tmp_path / "log.png").read_bytes() == before


def test_the_scatter_has_every_picture_also_the_last(tmp_path, capsys):
    neighbors = [found(1, 10, [0, 0, 50, 25], 0.9, nn_distances=[0.1]), found(1, 30, [100, 0, 50, 50], 0.8, nn_distances=[0.2]),
                 found(2, 30, [0, 0, 100, 100], 0.7, nn_distances=[0.3]), found(2, 30, [0, 0, 100, 100], 0.6, nn_distances=[])]
    iou, distance, score, same = visualize_label_quality.overlap_and_distance(neighbors, FULL)
    assert (iou.tolist(), distance.tolist(), score.tolist(), same.tolist()) == ([0.5, 1, 1], [0.1, 0.2, 0.3], [0.9, 0.8, 0.7], [1, 0, 1])
    far = visualize_label_quality.overlap_and_distance([found(1, 10, [180, 180, 9, 9], 0.9, nn_distances=[0.3])], FULL)
    assert far.tolist() == [[0], [0.3], [0.9], [0]]                     # it overlaps no box: of no class
    words = [written(tmp_path, "full.json", FULL), "--neighbors", written(tmp_path, "n.json", neighbors), "--output", tmp_path / "q.png"]
    visualize_label_quality.main([str(word) for word in words])
    assert (tmp_path / "q.png").read_bytes().startswith(b"\x89PNG")
    written(tmp_path, "n.json", [found(1, 10, [0, 0, 50, 25], 0.9)])
    assert "nn_distances" in refusal(visualize_label_quality.main, words, capsys)
    for strange in (5, ["a"]):
        written(tmp_path, "n.json", [found(1, 10, [0, 0, 50, 25], 0.9, nn_distances=strange)])
        assert "must hold detections with nn_distances" in refusal(visualize_label_quality.main, words, capsys)
    assert "n.json: must end in .png" in refusal(visualize_label_quality.main, [*words[:4], tmp_path / "n.json"], capsys)


def test_ties_share_the_mean_of_their_ranks_in_any_order():
    iou, distance = [0, 0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4, 0.05]
    for order in ([0, 1, 2, 3, 4], [3, 2, 1, 0, 4], [4, 1, 3, 0, 2]):
        assert visualize_label_quality.rank_correlation(*([values[row] for row in order] for values in (iou, distance))) == pytest.approx(-math.sqrt(0.5))
    assert math.isnan(visualize_label_quality.rank_correlation([0, 0, 0], [1, 2, 3]))


def test_pictures_show_each_kind_in_its_colour_and_count_them(tmp_path, capsys):
    from PIL import Image
    for id in (1, 2):
        Image.new("RGB", (200, 200), (90, 90, 90)).save(tmp_path / f"{id}.jpg")
    marked = {**MARKED, "annotations": [each for each in MARKED["annotations"] if each["id"] not in (13, 14)]}
    kinds = visualize_pseudo_labels.kinds_of([each for each in marked["annotations"] if each["image_id"] == 1], FULL["annotations"][1:3])
    assert {kind: [each["id"] for each in own] for kind, own in kinds.items()} == {"kept": [1], "pseudo": [11, 12], "ignored": [], "missing": [3]}
    words = [written(tmp_path, "a.json", marked), "--images", tmp_path, "--full", written(tmp_path, "full.json", FULL), "--output", tmp_path / "drawn"]
    visualize_pseudo_labels.main([str(word) for word in words])
    drawn = {path.stem: Image.open(path) for path in (tmp_path / "drawn").glob("*.png")}
    assert {*drawn} == {"1", "2"} and drawn["1"].height > 200
    colours = {name: {colour for _, colour in picture.crop((0, 0, 200, 200)).getcolors(99999)} for name, picture in drawn.items()}
    own = visualize_pseudo_labels.COLOURS
    assert {own["kept"], own["pseudo"], own["missing"]} <= colours["1"] and own["ignored"] not in colours["1"]
    assert {own["kept"], own["ignored"]} <= colours["2"] and own["pseudo"] not in colours["2"]
    assert {*own.values()} <= {colour for _, colour in drawn["2"].crop((0, 200, 200, drawn["2"].height)).getcolors(99999)}
    renamed = with_ids(FULL, None, {"class 30": 10, "class 10": 30})             # another file's ids for the same classes
    visualize_pseudo_labels.main([*map(str, words[:3]), "--full", str(written(tmp_path, "renamed.json", renamed)), "--output", str(tmp_path / "again")])
    assert all((tmp_path / f"again/{id}.png").read_bytes() == (tmp_path / f"drawn/{id}.png").read_bytes() for id in (1, 2))
    before = (tmp_path / "drawn/1.png").read_bytes()
    assert "drawn/1.png is there already" in refusal(visualize_pseudo_labels.main, words, capsys) and (tmp_path / "drawn/1.png").read_bytes() == before
    assert "nothing to draw" in refusal(visualize_pseudo_labels.main, [words[4], *words[1:3], "--output", tmp_path / "x"], capsys)
    assert "is a folder of the pictures" in refusal(visualize_pseudo_labels.main, [*words[:5], "--output", tmp_path], capsys)
    assert "needs --images DIR" in refusal(visualize_pseudo_labels.main, [words[4], "--output", tmp_path / "x"], capsys)


# ---- the table

def detections_of(seed, pictures=6, noise=0.3):
    """(detections, truth) of a detector that finds most objects, with doubles and false alarms."""
    rng = np.random.default_rng(seed)
    truth, results = {}, {}
    for picture in range(pictures):
        corners = rng.uniform(0, 100, (4, 2))
        boxes = torch.tensor(np.concatenate([corners, corners + 20], 1))
        truth[str(picture)] = {"boxes": boxes, "labels": torch.tensor([0, 1, 0, 1]), "difficult": torch.tensor([False, False, False, picture == 0])}
        some = torch.cat([boxes + torch.tensor(rng.normal(0, 3, (4, 4))), boxes[:2] + 50])
        results[str(picture)] = {"boxes": some, "scores": torch.tensor(rng.uniform(0.3, 1, 6)), "labels": torch.tensor([0, 1, 0, 1, 0, 1])}
    return results, truth


def test_resampled_ap_is_that_of_the_evaluation_and_counts_a_picture_as_often_as_it_is_drawn():
    results, truth = detections_of(0)
    partners = find_partners(results, truth, 2)
    once, drawn = np.ones((1, 6), dtype=int), np.array([[2, 0, 1, 1, 0, 3]])
    assert compare_arms.resampled(partners, 2, once, 0.5)[0] == pytest.approx(evaluate_detections(results, truth, ["a", "b"])["mAP"])
    several = [(f"{id}-{copy}", id) for id, times in zip(sorted(truth), drawn[0], strict=True) for copy in range(times)]
    repeated = {new: results[id] for new, id in several}, {new: truth[id] for new, id in several}
    both = compare_arms.resampled(partners, 2, drawn, 0.5)
    assert both[0] == pytest.approx(evaluate_detections(*repeated, ["a", "b"])["mAP"])
    curves = class_curves(find_partners(*repeated, 2), 2, 0.5)
    assert both[1] == pytest.approx(np.mean([curve.recall[curve.scores >= 0.5].max() for curve in curves]))
    assert compare_arms.resampled(find_partners({}, truth, 2), 2, once, 0.5) == (0, 0)
    measured = compare_arms.measure(results, truth, 2, once)
    assert measured["ap"] == pytest.approx(evaluate_detections(results, truth, ["a", "b"])["mAP_50_95"])
    assert compare_arms.measure({}, truth, 2, once)["recall"] == 0


def seeds(*values):
    """What `measure` gives for seeds whose test pictures are all alike."""
    return [{"ap50": np.full(1001, value), "ap": np.full(1001, value / 2), "recall": np.full(1001, value)} for value in values]


def test_the_gap_and_its_intervals_by_hand():
    rows = compare_arms.compare({"A+": seeds(0.4, 0.4), "B": seeds(0.5, 0.5), "D": seeds(0.55, 0.65), "F": seeds(0.8, 0.8)})
    assert rows["B"]["gap_closed"] == pytest.approx(0.25) and rows["B"]["gap_closed_interval"] == pytest.approx([0.25, 0.25])
    assert rows["D"]["ap50"] == pytest.approx(0.6) and rows["D"]["over_b"] == pytest.approx(0.1) and rows["F"]["gap_closed"] is None and rows["A+"]["over_b"] == pytest.approx(-0.1)
    alone = compare_arms.compare({"A": seeds(0.4)})["A"]
    assert alone["gap_closed"] is None and alone["over_b"] is None and alone["ap"] == pytest.approx(0.2) and alone["recall_interval"] == pytest.approx([0.4, 0.4])
    text = compare_arms.format_arms(rows)
    assert "25% [25%, 25%]" in text and "-0.100 [-0.100, -0.100]" in text
    for full in (0.4, 0.3):
        none = compare_arms.compare({"A+": seeds(0.4), "C": seeds(0.4), "F": seeds(full)})["C"]
        assert none["gap_closed"] is None and none["gap_closed_interval"] is None


def test_a_few_seeds_have_the_interval_of_student():
    # 1, 2, 3 times .1: the mean .2 has the standard error .1 / sqrt(3), and 97.5 % of a t distribution of 2 degrees of freedom lie below 4.303
    half = 4.303 * 0.1 / 3 ** 0.5
    rows = compare_arms.compare({"A+": seeds(0.0, 0.0, 0.0), "B": seeds(0.1, 0.1, 0.1), "D": seeds(0.1, 0.2, 0.3), "F": seeds(1.0, 1.0, 1.0)})
    assert rows["D"]["ap50_interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=0.05 * half)      # as near as 20000 draws come
    assert rows["D"]["gap_closed_interval"] == pytest.approx(rows["D"]["ap50_interval"])
    assert rows["D"]["over_b_interval"] == pytest.approx([end - 0.1 for end in rows["D"]["ap50_interval"]])
    assert rows["B"]["ap50_interval"] == pytest.approx([0.1, 0.1])
    moved = compare_arms.compare({"B": seeds(0.4, 0.5, 0.6), "D": seeds(0.45, 0.55, 0.65)})["D"]       # what moves all arms of a seed alike
    assert moved["over_b_interval"] == pytest.approx([0.05, 0.05])


@pytest.mark.parametrize("picture_spread, seed_spread", [(0.0, 0.02), (0.02, 0.02)])
def test_an_interval_over_three_seeds_and_the_pictures_holds_the_truth_as_often_as_it_says(picture_spread, seed_spread):
    rng, counts, held = np.random.default_rng(0), compare_arms.resamples(100), 0
    for _ in range(200):
        pictures = 0.5 + rng.normal(0, picture_spread * 10, 100)            # a measure that is a mean over 100 pictures
        values = counts @ pictures / 100
        one = {"A": [dict.fromkeys(compare_arms.MEASURES, values + rng.normal(0, seed_spread)) for _ in range(3)]}
        low, high = compare_arms.compare(one)["A"]["ap50_interval"]
        held += low <= 0.5 <= high
    assert 0.91 < held / 200 < 0.995


def test_a_gap_that_may_be_none_has_no_interval():
    spread = np.array([-0.02, 0, 0.02])
    near = compare_arms.compare({"A+": seeds(*0.60 + spread), "C": seeds(*0.62 - spread), "F": seeds(*0.63 + spread[[1, 0, 2]])})
    assert near["C"]["gap_closed"] == pytest.approx(2 / 3) and near["C"]["gap_closed_interval"] is None
    assert near["C"]["ap50_interval"] is not None and "67% [-] " in compare_arms.format_arms(near)
    # by the pictures alone: F is no better than A+ in 24 or in 25 of 1000 resamples
    plain = {"ap": np.zeros(1001), "recall": np.zeros(1001)}
    arms = {name: [{**plain, "ap50": np.full(1001, value)}] for name, value in (("A+", 0.4), ("C", 0.5), ("F", 0.6))}
    arms["F"][0]["ap50"][1:25] = 0.9            # resamples are turned about the estimate: 0.3
    assert compare_arms.compare(arms)["C"]["gap_closed_interval"] == pytest.approx([0.5, 0.5])
    arms["F"][0]["ap50"][25] = 0.8
    row = compare_arms.compare(arms)["C"]
    assert row["gap_closed"] == pytest.approx(0.5) and row["gap_closed_interval"] is None
