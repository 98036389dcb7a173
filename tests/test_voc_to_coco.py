"""VOC folders to COCO json and back: the same targets, and a training that cannot tell them apart."""
import json
from pathlib import Path

import pytest
import torch
from colour_network import refusal
from conftest import make_voc, write_xml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_train_voc import TINY, rows, same_weights

import train_coco
import train_voc
from dataset.coco import COCODataset, xywh_edges
from dataset.voc import VOCDataset, readable
from engine.checkpoint import load_checkpoint
from tools import voc_to_coco

SHARED = Path(__file__).parents[1] / "../shared/data"


def assert_same(first, second):
    assert first.classes == second.classes and len(first) == len(second)
    for index in range(len(first)):
        a, b = first.target(index), second.target(index)
        assert first.pictures[index].read_bytes() == second.pictures[index].read_bytes() and a["orig_size"] == b["orig_size"]
        assert all(torch.equal(a[field], b[field]) for field in ("boxes", "labels", "difficult", "ignore", "weights"))


def convert(*words):
    voc_to_coco.main([str(word) for word in words])


@pytest.fixture
def folder(tmp_path):
    """A VOC folder with decimals, a difficult object, a crowd, a picture without objects and one in a sub-folder."""
    folder = make_voc(tmp_path / "voc", n=6)
    write_xml(folder / "Annotations/0000.xml", (96, 128), [("disc", (1, 1, 128, 96)), ("slab", (1.0001, 7.3, 20.123456, 30.7))])
    write_xml(folder / "Annotations/0001.xml", (96, 128), [])
    for name, tag in (("0002", "difficult"), ("0003", "iscrowd")):
        xml = folder / "Annotations" / f"{name}.xml"
        xml.write_text(xml.read_text().replace("<difficult>0</difficult>", f"<{tag}>1</{tag}>", 1))
    for part, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
        (folder / part / "sub").mkdir()
        (folder / part / f"0004.{suffix}").rename(folder / part / "sub" / f"0004.{suffix}")
    return folder


def test_there_and_back_every_target_is_the_same(folder, tmp_path, capsys):
    convert(folder, "--output", tmp_path / "all.json")
    assert f"--train-json {tmp_path / 'all.json'} --train-images {folder / 'JPEGImages'}" in capsys.readouterr().out
    voc, coco = VOCDataset(folder), COCODataset(tmp_path / "all.json", folder / "JPEGImages")
    assert_same(voc, coco)
    assert sum(int(voc.target(index)["difficult"].sum()) for index in range(6)) == 2 and int(voc.target(3)["ignore"].sum()) == 1

    convert(tmp_path / "all.json", "--to", "voc", "--images", folder / "JPEGImages", "--split", "train", "--output", tmp_path / "back")
    assert_same(VOCDataset(tmp_path / "back", "train"), voc)
    assert f": train_voc.py --data {tmp_path / 'back'} --train-split train\n" in capsys.readouterr().out
    convert(tmp_path / "all.json", "--to", "voc", "--images", folder / "JPEGImages", "--output", tmp_path / "whole")
    assert not (tmp_path / "whole/ImageSets").exists() and f"{tmp_path / 'whole'} --train-split all\n" in capsys.readouterr().out
    assert_same(VOCDataset(tmp_path / "whole"), voc)
    convert(tmp_path / "all.json", "--to", "voc", "--images", folder / "JPEGImages", "--split", "val2", "--output", tmp_path / "val")
    assert f": eval_voc.py --data {tmp_path / 'val'} --split val2\n" in capsys.readouterr().out
    convert(tmp_path / "back", "--split", "train", "--output", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "all.json").read_text())


def test_lists_of_one_set_may_agree_on_their_category_ids(folder, tmp_path, capsys):
    convert(folder, "--classes", "slab, ant,disc", "--output", tmp_path / "a.json")
    assert [each["name"] for each in json.loads((tmp_path / "a.json").read_text())["categories"]] == ["slab", "ant", "disc"]
    assert "a.json: is there already" in refusal(voc_to_coco.main, [folder, "--output", tmp_path / "a.json"], capsys)


def test_the_json_by_hand(tmp_path):
    Image.new("RGB", (100, 50)).save(tmp_path / "a.png")
    write_xml(tmp_path / "a.xml", (50, 100), [("nail", (11, 21, 30, 40))])
    convert(tmp_path, "--output", tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}], "categories": [{"id": 1, "name": "nail"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 20, 20], "area": 400, "iscrowd": 0, "difficult": 0}]}


@settings(max_examples=200, deadline=None)
@given(st.tuples(*[st.floats(0, 99, width=32, allow_subnormal=False)] * 2), st.tuples(*[st.floats(1 / 128, 50, width=32)] * 2))
def test_any_box_keeps_its_edges_to_the_last_bit(corner, sides):
    box = torch.tensor([*corner, corner[0] + sides[0], corner[1] + sides[1]])
    x1, y1, x2, y2 = box.tolist()
    if not (x1 < x2 and y1 < y2):
        return
    bbox = readable([x1, y1, x2 - x1, y2 - y1], lambda x, y, w, h: [x, y, x + w, y + h], box)
    assert torch.equal(torch.tensor(xywh_edges(bbox, (1000, 1000))), box)


@pytest.mark.parametrize("name, one_based", [("bccd", True), ("voc2007_small", True), ("fod_a", False)])
def test_real_sets_keep_every_bit(name, one_based, tmp_path):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the data set {name} is not beside this repository")
    convert(SHARED / name, "--split", "val", "--output", tmp_path / "val.json", "--skip-bad", *["--zero-based"] * (not one_based))
    voc = VOCDataset(SHARED / name, "val", one_based=one_based, skip_bad=True)
    assert_same(voc, COCODataset(tmp_path / "val.json", SHARED / name / "JPEGImages"))


def test_coco_tiny_goes_to_voc_with_its_crowds(tmp_path):
    if not (SHARED / "coco_tiny").is_dir():
        pytest.skip("the data set coco_tiny is not beside this repository")
    images = SHARED / "coco_tiny/val2017"
    convert(SHARED / "coco_tiny/annotations/instances_val2017.json", "--to", "voc", "--images", images, "--split", "val", "--output", tmp_path)
    coco = COCODataset(SHARED / "coco_tiny/annotations/instances_val2017.json", images)
    classes = coco.classes
    assert_same(VOCDataset(tmp_path, "val", classes=classes), coco)
    assert "<iscrowd>1</iscrowd>" in "".join(path.read_text() for path in (tmp_path / "Annotations").glob("*.xml"))


def test_a_set_and_its_conversion_train_to_the_same_losses_bit_for_bit(folder, tmp_path):
    for split in ("train", "val"):
        names = ["0000", "0001", "0002", "0003"] if split == "train" else ["sub/0004", "0005"]
        (folder / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names))
        convert(folder, "--split", split, "--output", tmp_path / f"{split}.json")
    flags = [*TINY, "--workers", "0", "--batch-size", "2", "--mosaic", "0.5", "--zoom", "0.8", "1.5"]
    train_voc.main(["--data", str(folder), "--output", str(tmp_path / "a"), *flags])
    pairs = [word for part in ("train", "val") for word in (f"--{part}-json", tmp_path / f"{part}.json", f"--{part}-images", folder / "JPEGImages")]
    train_coco.main([*map(str, pairs), "--output", str(tmp_path / "b"), *flags])
    assert same_weights(load_checkpoint(tmp_path / "a/last.pth"), load_checkpoint(tmp_path / "b/last.pth"))
    for one, other in zip(rows(tmp_path / "a"), rows(tmp_path / "b"), strict=True):
        assert [one[key] for key in ("step", "loss", "cls", "reg", "quality")] == [other[key] for key in ("step", "loss", "cls", "reg", "quality")]


def test_what_has_no_place_in_the_other_layout_is_refused_before_anything_is_written(folder, tmp_path, capsys):
    convert(folder, "--output", tmp_path / "all.json")
    contents = json.loads((tmp_path / "all.json").read_text())

    def refused(*words):
        return refusal(voc_to_coco.main, [*words, "--output", tmp_path / "out"], capsys)

    back = (tmp_path / "all.json", "--to", "voc", "--images")
    assert "--to voc takes one json file and --images DIR" in refused(tmp_path / "all.json", "--to", "voc")
    (tmp_path / "outside.json").write_text((tmp_path / "all.json").read_text().replace('"file_name": "', '"file_name": "../JPEGImages/'))
    assert "lies outside" in refused(tmp_path / "outside.json", *back[1:], folder / "Annotations")
    (folder / "JPEGImages/0000.png").write_bytes((folder / "JPEGImages/0000.jpg").read_bytes())
    (folder / "JPEGImages/more.gif").write_bytes((folder / "JPEGImages/0000.jpg").read_bytes())
    contents["images"].append({"id": 99, "file_name": "more.gif"})
    (tmp_path / "all.json").write_text(json.dumps(contents))
    assert "more.gif: has a suffix by which it is no picture in VOC layout" in refused(*back, folder / "JPEGImages")
    contents["images"][-1]["file_name"] = "0000.png"
    (tmp_path / "all.json").write_text(json.dumps(contents))
    assert "0000.jpg: shares its name with another picture" in refused(*back, folder / "JPEGImages")
    assert "no such folder" in refused(tmp_path / "nowhere")
    contents["images"].pop()
    contents["annotations"][0]["bbox"] = [10, 20, 1, 5]
    (tmp_path / "all.json").write_text(json.dumps(contents))
    assert "its object at (10, 20) is 1 x 5 px" in refused(*back, folder / "JPEGImages")
    assert not (tmp_path / "out").exists()


def test_pictures_of_another_split_are_never_replaced(folder, tmp_path, capsys):
    contents, out = {}, tmp_path / "out"
    for split, ids in (("train", (1, 2)), ("val", (3,)), ("test", (2, 3))):
        (tmp_path / "all.json").unlink(missing_ok=True)
        convert(folder, "--output", tmp_path / "all.json")
        contents = json.loads((tmp_path / "all.json").read_text())
        contents["images"] = [image for image in contents["images"] if image["id"] in ids]
        contents["annotations"] = [each for each in contents["annotations"] if each["image_id"] in ids]
        (tmp_path / f"{split}.json").write_text(json.dumps(contents))
    for split in ("train", "val"):
        convert(tmp_path / f"{split}.json", "--to", "voc", "--images", folder / "JPEGImages", "--split", split, "--output", out)
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    words = (tmp_path / "test.json", "--to", "voc", "--images", folder / "JPEGImages", "--split", "test", "--output", out)
    assert "0001.xml: is there already, of another split" in refusal(voc_to_coco.main, words, capsys)
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before and len(VOCDataset(out, "train")) == 2 and len(VOCDataset(out, "val")) == 1
