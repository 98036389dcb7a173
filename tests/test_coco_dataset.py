"""COCO json as it is found: ids with gaps, crowds, empty pictures, EXIF, and what is refused in one sentence."""
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.augment import Augment, show
from dataset.coco import COCODataset, choose_pair, find_pairs, read_instances, xywh_edges
from dataset.loader import TrainLoader
from dataset.sample import check_target, make_target

TINY = Path(__file__).parents[1] / "../shared/data/coco_tiny"


def contents():
    """Two pictures of 100 x 50, the first with an object and a crowd; ids from 0 and with gaps, categories out of order."""
    return {"images": [{"id": 0, "file_name": "a.jpg", "width": 100, "height": 50}, {"id": 7, "file_name": "sub/b.jpg"}],
            "annotations": [{"id": 0, "image_id": 0, "category_id": 90, "bbox": [10, 20, 30, 20.5], "area": 123.5, "iscrowd": 0},
                            {"id": 5, "image_id": 0, "category_id": 0, "bbox": [0, 0, 100, 50], "iscrowd": 1}],
            "categories": [{"id": 90, "name": "nail"}, {"id": 0, "name": "clip"}, {"id": 8, "name": "unused"}]}


@pytest.fixture
def write(tmp_path):
    """write(contents) -> the json's path; its pictures are beside it."""
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.jpg"):
        Image.new("RGB", (100, 50)).save(tmp_path / name)

    def write(values):
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(values))
        return path
    return write


def test_pictures_targets_and_classes(write, tmp_path):
    dataset = COCODataset(write(contents()), tmp_path)
    assert dataset.classes == ["clip", "unused", "nail"] and dataset.category_ids == [0, 8, 90]
    assert dataset.ids == ["0", "7"] and dataset.image_ids == {"0": 0, "7": 7} and not dataset.skipped and not dataset.notes
    image, target = dataset[0]
    check_target(target, image.shape[-2:], 3, "a")
    assert target["boxes"].tolist() == [[10, 20, 40, 40.5], [0, 0, 100, 50]] and target["labels"].tolist() == [2, 0]
    assert target["difficult"].tolist() == target["ignore"].tolist() == [False, True] and target["orig_size"] == (50, 100)
    assert dataset[1][1]["boxes"].shape == (0, 4) and dataset.size(1) == (50, 100)
    assert dataset.class_counts() == {"clip": 0, "unused": 0, "nail": 1}


def test_classes_of_a_checkpoint_are_found_by_name_and_one_that_the_file_lacks_has_no_id(write, tmp_path):
    dataset = COCODataset(write(contents()), tmp_path, classes=["nail", "bolt", "clip"])
    assert dataset.target(0)["labels"].tolist() == [0, 2] and dataset.category_ids == [90, None, 0]


def test_a_difficult_object_is_trained_on_and_an_ignored_one_is_a_region(write, tmp_path):
    values = contents()
    values["annotations"][0]["difficult"], values["annotations"][1] = 1, {**values["annotations"][0], "id": 1, "ignore": 1}
    target = COCODataset(write(values), tmp_path).target(0)
    assert target["difficult"].tolist() == [True, True] and target["ignore"].tolist() == [False, True]


def test_what_the_file_leaves_open_is_0_and_the_area_that_of_the_box(write, tmp_path):
    values = contents()
    values["annotations"] = [{**values["annotations"][0], "iscrowd": None, "ignore": False, "area": None}]
    dataset = COCODataset(write(values), tmp_path)
    assert dataset.target(0)["ignore"].tolist() == [False] and dataset.truth()["0"]["areas"].tolist() == [30 * 20.5]


def test_ground_truth_is_as_written_though_the_target_is_cut(write, tmp_path):
    values = contents()
    values["annotations"][0]["bbox"] = [-5.25, 20, 30, 40]
    dataset = COCODataset(write(values), tmp_path)
    assert dataset.target(0)["boxes"][0].tolist() == [0, 20, 24.75, 50]
    truth = dataset.truth()
    assert truth["0"]["boxes"][0].tolist() == [-5.25, 20, 24.75, 60] and truth["0"]["boxes"].dtype == torch.float64
    assert truth["0"]["areas"].tolist() == [123.5, 5000] and truth["7"]["boxes"].shape == (0, 4)
    assert "1 boxes stick out" in dataset.notes[0]


def test_crowds_reach_the_batch_as_ignored_regions(write, tmp_path):
    dataset = COCODataset(write(contents()), tmp_path)
    loader = TrainLoader(dataset, Augment(flip=0, jitter=0, rotate=0), batch_size=2, min_sizes=[50], max_size=100)
    batch, infos = next(iter(loader.batches(0)))
    row = [info["image_id"] for info in infos].index("0")
    assert batch["ignore"][row].tolist() == [False, True] and batch["labels"][1 - row].tolist() == [-1, -1]
    assert not batch["ignore"][1 - row].any()


def test_a_window_keeps_whatever_it_shows_of_a_region(write, tmp_path):
    target = make_target([[0, 0, 100, 50]] * 2, [0, 0], [False, True], "x", (50, 100), ignore=[False, True])
    _, shown = show(torch.zeros(3, 50, 100, dtype=torch.uint8), target, (0, 0, 10, 10), (10, 10))
    assert shown["boxes"].tolist() == [[0, 0, 10, 10]] and shown["ignore"].tolist() == [True]


def test_a_mosaic_of_crowds_keeps_every_field_alike(write, tmp_path):
    dataset = COCODataset(write(contents()), tmp_path)
    for seed in range(5):
        image, target = Augment(mosaic=1.0)(dataset, 0, 50, 100, random.Random(seed))
        check_target(target, image.shape[-2:], 3, "mosaic")


def test_a_detour_that_stays_in_the_folder_is_a_picture_like_any_other(write, tmp_path):
    values = contents()
    values["images"][0]["file_name"] = "sub/../a.jpg"
    assert len(COCODataset(write(values), tmp_path).target(0)["boxes"]) == 2


@pytest.mark.parametrize("change, sentence", [
    (lambda v: v["annotations"][0].update(bbox=[10, 20, 0, 5]), "annotation 0: (nail) bbox is [10, 20, 0, 5], must be four numbers"),
    (lambda v: v["annotations"][0].update(bbox=[10, 20, 5]), "annotation 0: (nail) bbox is [10, 20, 5], must be four numbers"),
    (lambda v: v["annotations"][0].pop("bbox"), "annotation 0: (nail) bbox is None, must be four numbers"),
    (lambda v: v["annotations"][0].update(bbox=[10, 20, 5, float("nan")]), "must be four numbers"),
    (lambda v: v["annotations"][0].update(bbox=[101, 20, 5, 5]), "annotation 0: (nail) lies outside the 100x50 picture"),
    (lambda v: v["annotations"][1].update(iscrowd="0"), "annotation 5: (clip) iscrowd is '0', must be 0 or 1"),
    (lambda v: v["annotations"][0].update(difficult=2), "annotation 0: (nail) difficult is 2, must be 0 or 1"),
    (lambda v: v["annotations"][0].update(area="big"), "annotation 0: (nail) area is 'big', must be a number"),
    (lambda v: v["annotations"][0].update(area=-1), "annotation 0: (nail) area is -1, must be a number of 0 or more"),
    (lambda v: v["annotations"][0].update(weight=1e39), "annotation 0: (nail) weight is 1e+39, must be a number of 0 or more"),
    (lambda v: v["annotations"][0].update(area=10 ** 400), "annotation 0: (nail) int too large to convert to float"),
    (lambda v: v["annotations"][0].update(bbox=[10, 20, 5, 10 ** 400]), "annotation 0: (nail) int too large to convert to float"),
    (lambda v: v["images"][0].update(width="100", height="50"), "image 0: height and width are '50' and '100', must be numbers"),
    (lambda v: v["annotations"][1].update(category_id=3), "annotation 5: category_id is 3, not one of 90, 0, 8"),
    (lambda v: v["annotations"][1].update(image_id=3), "annotation 5: image_id is 3, which is the id of no image"),
    (lambda v: v["images"][0].update(width=50, height=100), "image 0: its size is 50x100, width and height exchanged, but"),
    (lambda v: v["images"][0].update(file_name="c.jpg"), "c.jpg: no such picture"),
    (lambda v: v["images"][0].update(file_name="../a.jpg"), "image 0: file_name is '../a.jpg', which lies outside"),
    (lambda v: v["images"][0].update(file_name="sub/../../a.jpg"), "image 0: file_name is '../a.jpg', which lies outside"),
    (lambda v: v["images"][0].update(file_name="..\\a.jpg"), "image 0: file_name is '../a.jpg', which lies outside"),
    (lambda v: v["images"][0].update(file_name="/a.jpg"), "image 0: file_name is '/a.jpg', which lies outside"),
])
def test_what_is_bad_is_named_and_left_out_if_asked(change, sentence, write, tmp_path):
    values = contents()
    change(values)
    path = write(values)
    with pytest.raises(ValueError, match="--skip-bad leaves out") as error:
        COCODataset(path, tmp_path)
    assert sentence in str(error.value) and str(path if "c.jpg" not in sentence else tmp_path) in str(error.value)
    dataset = COCODataset(path, tmp_path, skip_bad=True)
    assert len(dataset.skipped) == 1
    assert sum(len(dataset.target(index)["boxes"]) for index in range(len(dataset))) == (0 if "image 0" in sentence or "c.jpg" in sentence else 1)
    assert len(dataset._written) == sum(len(truth["areas"]) for truth in dataset.truth().values())


@pytest.mark.parametrize("change, sentence", [
    (lambda v: v["images"].append(v["images"][0]), "id 0 in 'images' is there more than once"),
    (lambda v: v["categories"].append({"id": 1, "name": " nail "}), "name 'nail' in 'categories' is there more than once"),
    (lambda v: v["categories"][0].pop("name"), "entry 1 of 'categories' must have id, name, but has no name"),
    (lambda v: v["images"][1].pop("file_name"), "entry 2 of 'images' must have id, file_name, but has no file_name"),
    (lambda v: v["images"][0].update(file_name=["a.jpg"]), "image 0: file_name is ['a.jpg'], must be the name of a picture"),
    (lambda v: v["images"][0].update(file_name=" "), "image 0: file_name is ' ', must be the name of a picture"),
    (lambda v: v["categories"][0].update(name=" \t"), "name '' in 'categories' must be a text that can be printed, and not empty"),
    (lambda v: v["categories"][0].update(name="na\x07il"), "name 'na\\x07il' in 'categories' must be a text"),
    (lambda v: v["images"][1].update(id=[1]), "id [1] in 'images' must be a whole number or a text"),
    (lambda v: v["images"][1].update(id=7.0), "id 7.0 in 'images' must be a whole number or a text"),
    (lambda v: v.pop("annotations"), "is no COCO instances file, it has no list 'annotations'"),
])
def test_a_file_that_contradicts_itself_is_refused(change, sentence, write):
    values = contents()
    change(values)
    path = write(values)
    with pytest.raises(ValueError) as error:
        read_instances(path)
    assert str(error.value).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("text, sentence", [(b"{", "cannot be read as JSON"), (b"\xff\xfe\x00", "cannot be read as JSON"),
                                            (b"[" * 10 ** 5, "cannot be read as JSON"),
                                            (b"[]", "is no COCO instances file"), (None, "no such file")])
def test_what_is_no_json_is_refused(text, sentence, tmp_path):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=f"a.json: {sentence}"):
        read_instances(path)


def test_pictures_that_share_a_file_are_refused_and_annotations_that_share_an_id_mentioned(write, tmp_path):
    values = contents()
    values["annotations"].append({**values["annotations"][0], "bbox": [1, 2, 30, 40]})
    dataset = COCODataset(write(values), tmp_path)
    assert "1 annotations have the id of another one" in dataset.notes[0] and len(dataset.target(0)["boxes"]) == 3
    values["images"].append({**values["images"][0], "id": 77, "file_name": "./a.jpg"})
    with pytest.raises(ValueError, match="image 0: file_name is 'a.jpg', as that of another image; .*1 more faults"):
        COCODataset(write(values), tmp_path)


def test_empty_lists_are_refused_where_nothing_is_left(write, tmp_path):
    with pytest.raises(ValueError, match="instances.json: lists no picture"):
        COCODataset(write({"images": [], "annotations": [], "categories": []}), tmp_path)
    dataset = COCODataset(write({**contents(), "annotations": []}), tmp_path)
    assert len(dataset) == 2 and "not one object in 2 pictures" in dataset.notes[0] and len(dataset.truth()["0"]["boxes"]) == 0


def test_a_file_name_as_windows_writes_it(write, tmp_path):
    values = contents()
    values["images"][1]["file_name"] = ".\\sub\\b.jpg"
    assert COCODataset(write(values), tmp_path).pictures[1] == tmp_path / "sub" / "b.jpg"
    assert [image["file_name"] for image in read_instances(write(values))["images"]] == ["a.jpg", "sub/b.jpg"]


def test_names_of_other_scripts_are_names(write):
    values = contents()
    values["categories"][0]["name"] = "\u0645\u06cc\u200c\u062e \U0001f529"                # with a joiner that has no width
    assert read_instances(write(values))["categories"][0] == values["categories"][0]


def test_weights_of_people_and_objects_of_other_classes_are_told_of_once(write, tmp_path):
    values = contents()
    values["annotations"][0]["weight"] = 350                    # somebody's grams
    assert any("1 human labels weigh 350 to 350 in the losses" in note for note in COCODataset(write(values), tmp_path).notes)
    values["annotations"] = [{**values["annotations"][0], "id": id} for id in range(100, 103)]
    dataset = COCODataset(write(values), tmp_path, classes=["zebra"], skip_bad=True)
    assert len(dataset.skipped) == 1 and dataset.of_other_classes == {"nail": 3} and "2 more objects are 'nail'" in " ".join(dataset.notes)


def test_an_exif_rotated_picture_has_its_boxes_in_upright_pixels(write, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 100)).save(tmp_path / "a.jpg", exif=exif)         # upright 100 x 50, as the json says
    assert COCODataset(write(contents()), tmp_path)[0][0].shape == (3, 50, 100)


@given(st.lists(st.floats(-200, 400), min_size=4, max_size=4))
def test_whatever_the_numbers_a_box_is_good_or_refused(bbox):
    try:
        edges = xywh_edges(bbox, (50, 100))
    except ValueError:
        return
    check_target(make_target([edges], [0], [False], "x", (50, 100)), (50, 100), 1, "x")


def test_the_standard_layout_is_found_in_its_variants(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(ValueError, match="holds no annotations/instances_"):
        find_pairs(tmp_path)
    with pytest.raises(ValueError, match="no such folder"):
        find_pairs(tmp_path / "nowhere")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="a.json: is a file, must be a folder"):
        find_pairs(tmp_path / "a.json")
    for name in ("train2017", "val2017"):
        (tmp_path / f"annotations/instances_{name}.json").write_text("{}")
    (tmp_path / "val2017").mkdir()
    assert choose_pair(tmp_path, "val") == (tmp_path / "annotations/instances_val2017.json", tmp_path / "val2017")    # the other's may miss
    with pytest.raises(ValueError, match="its pictures must be in .*train2017"):
        choose_pair(tmp_path, "train")
    (tmp_path / "train2017").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images/val2017")
    assert choose_pair(tmp_path, "train") == (tmp_path / "annotations/instances_train2017.json", tmp_path / "train2017")
    assert choose_pair(tmp_path, "val")[1] == tmp_path / "images/val2017" and choose_pair(tmp_path, "test") is None
    (tmp_path / "annotations/instances_train2014.json").write_text("{}")
    with pytest.raises(ValueError, match="several sets for train .train2014, train2017."):
        choose_pair(tmp_path, "train")
    (tmp_path / "annotations/instances_train.json").write_text("{}")
    assert choose_pair(tmp_path, "train")[0].name == "instances_train.json"


@pytest.mark.skipif(not TINY.is_dir(), reason=f"{TINY} is not here")
def test_coco_tiny_loads():
    dataset = COCODataset(*choose_pair(TINY, "train"))
    assert len(dataset) == 50 and len(dataset.classes) == 80 and dataset.classes[0] == "person" and dataset.category_ids[-1] == 90
    assert sum(dataset.class_counts().values()) == 465 and int(dataset._ignore.sum()) == 5


def test_classes_come_by_rising_id_and_9_is_below_10(write, tmp_path):
    values = {**contents(), "annotations": [], "categories": [{"id": id, "name": f"class {id}"} for id in (10, 9, 100)]}
    assert COCODataset(write(values), tmp_path).category_ids == [9, 10, 100]


def test_an_area_of_0_is_an_area(write, tmp_path):
    values = contents()
    values["annotations"][0]["area"] = 0
    assert COCODataset(write(values), tmp_path).truth()["0"]["areas"].tolist() == [0, 5000]
