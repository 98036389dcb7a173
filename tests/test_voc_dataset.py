import os
from pathlib import Path

import pytest
import torch
from conftest import write_xml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset.sample import check_target, keep_objects, make_target
from dataset.voc import VOCDataset, box_edges, read_annotation
from dataset.voc_folder import find_splits

SHARED = Path(__file__).parents[1] / "../shared/data"


def shared(name):
    return pytest.mark.skipif(not (SHARED / name).is_dir(), reason=f"the data set {name} is not beside this repository")


@pytest.fixture
def beside(tmp_path, xml_writer):
    """add(id, objects, size=(50, 100), suffix=".jpg"): a picture 100 wide, 50 high, and its XML, in one folder."""
    def add(id, objects=(), size=(50, 100), suffix=".jpg", **keywords):
        Image.new("RGB", (100, 50)).save(tmp_path / f"{id}{suffix}")
        xml_writer(tmp_path / f"{id}.xml", size, objects, **keywords)
        return tmp_path
    return add


def test_one_based_inclusive_pixels_become_edges():
    assert box_edges((1, 1, 100, 50), (50, 100)) == (0, 0, 100, 50)
    assert box_edges((11, 21, 30, 40), (50, 100)) == (10, 20, 30, 40)
    assert box_edges((11, 21, 30, 40), (50, 100), one_based=False) == (11, 21, 30, 40)
    assert box_edges((138.25, 0, 151.5, 50), (50, 200), one_based=False) == (138.25, 0, 151.5, 50)


def test_what_sticks_out_of_the_picture_is_cut_off():
    assert box_edges((0, 0, 30, 40), (50, 100)) == (0, 0, 30, 40)
    assert box_edges((-20, 10, 130, 60), (50, 100)) == (0, 9, 100, 50)


@pytest.mark.parametrize("corners", [(10, 10, 10, 20), (10, 10, 20, 10), (20, 10, 10, 20), (10, 20, 20, 10)])
def test_a_box_without_area_or_with_exchanged_corners_is_refused(corners):
    with pytest.raises(ValueError, match="must have xmin < xmax and ymin < ymax, not"):
        box_edges(corners, (50, 100))


@pytest.mark.parametrize("corners", [(101, 10, 120, 20), (-20, 10, 0, 20), (10, 60, 20, 70), (99.9, 10, 120, 20)])
def test_a_box_outside_the_picture_is_refused(corners):
    with pytest.raises(ValueError, match="lies outside the 100x50 picture"):
        box_edges(corners, (50, 100), one_based=False)


@given(st.tuples(*[st.integers(-200, 400)] * 4), st.booleans())
def test_whatever_the_numbers_a_box_is_good_or_refused(corners, one_based):
    try:
        edges = box_edges(corners, (50, 100), one_based)
    except ValueError:
        return
    check_target(make_target([edges], [0], [False], "x", (50, 100)), (50, 100), 1, "x")


def test_a_voc_folder_gives_pictures_targets_and_classes(voc_folder):
    dataset = VOCDataset(voc_folder, "train")
    assert dataset.classes == ["disc", "slab"] and len(dataset) == 6 and dataset.ids[0] == "0000"
    assert not dataset.skipped and not dataset.notes
    for index in range(len(dataset)):
        image, target = dataset[index]
        check_target(target, image.shape[-2:], 2, dataset.ids[index])
        assert target["orig_size"] == dataset.size(index) == tuple(image.shape[-2:]) == (96, 128)
        for box, label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            colour = image[:, (box[1] + box[3]) // 2, (box[0] + box[2]) // 2].int()
            assert (colour - torch.tensor([[220, 30, 30], [30, 200, 30]][label])).abs().max() < 12
    assert sum(dataset.class_counts().values()) == sum(len(dataset.target(i)["boxes"]) for i in range(6))


def test_without_a_split_all_xml_files_count_in_natural_order(beside):
    for id in ("10", "9", "x.y"):
        folder = beside(id, [("nail", (1, 1, 10, 10))])
    assert VOCDataset(folder).ids == ["9", "10", "x.y"]


def test_an_umlaut_is_one_letter_however_it_is_written(beside):
    folder = beside("Ra\u0308der", [("nail", (1, 1, 10, 10))])
    next(folder.glob("*.xml")).rename(folder / "R\u00e4der.xml")
    assert VOCDataset(folder).ids == ["R\u00e4der"]


def test_hidden_folders_are_no_data(voc_folder):
    (voc_folder / "Annotations" / ".ipynb_checkpoints").mkdir()
    (voc_folder / "Annotations" / ".ipynb_checkpoints" / "1-checkpoint.xml").write_text("<annotation></annotation>")
    assert len(VOCDataset(voc_folder)) == 12


def test_several_folders_may_use_the_same_ids(tmp_path, voc_maker):
    first, second = voc_maker(tmp_path / "a", 4), voc_maker(tmp_path / "b", 4, classes=("disc", "bar"), seed=1)
    dataset = VOCDataset([first, second, first], "trainval")
    assert len(dataset) == len(set(dataset.ids)) == 6
    assert dataset.ids[0] == f"{first.as_posix()}/0000" and dataset.classes == ["bar", "disc", "slab"]
    assert len(VOCDataset([first, second])) == 8


def test_a_picture_without_objects_has_an_empty_target(beside):
    dataset = VOCDataset(beside("a"), classes=["nail"])
    image, target = dataset[0]
    assert target["boxes"].shape == (0, 4) and target["labels"].dtype == torch.int64
    check_target(target, (50, 100), 1, "a")
    assert "not one object" in dataset.notes[0]


def test_optional_tags_may_miss_and_boxes_of_parts_do_not_count(tmp_path, beside):
    folder = beside("a")
    box = "<bndbox><xmax>40.5</xmax><xmin> 11 </xmin><ymin>11</ymin><ymax>20</ymax></bndbox>"
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    (tmp_path / "a.xml").write_text(
        f"<annotation><filename>../../etc/passwd</filename><size><depth/></size><object>{part}<name> L \n stick </name>"
        f"{box}</object><object><name>nail</name><difficult>1</difficult>{box}</object></annotation>")
    dataset = VOCDataset(folder)
    target = dataset.target(0)
    assert dataset.classes == ["L stick", "nail"]
    assert target["boxes"].tolist() == [[10, 10, 40.5, 20]] * 2
    assert target["difficult"].tolist() == [False, True] and target["orig_size"] == (50, 100)


def test_a_size_of_zero_counts_as_none_and_a_wrong_one_is_refused(beside):
    folder = beside("a", size=(0, 0))
    assert VOCDataset(folder).size(0) == (50, 100)
    beside("a", size=(50, 101))
    with pytest.raises(ValueError, match=r"a.xml: <size> is 101x50 but .*a.jpg is 100x50 upright"):
        VOCDataset(folder)


def test_xml_written_for_the_picture_before_its_exif_rotation_is_refused(beside):
    folder, exif = beside("a", size=(50, 100)), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(folder / "a.jpg", exif=exif)
    with pytest.raises(ValueError, match="a.xml: <size> is 100x50, its size before the EXIF rotation, but .* 50x100"):
        VOCDataset(folder)
    Image.new("RGB", (50, 100)).save(folder / "a.jpg", exif=exif)
    assert VOCDataset(folder).size(0) == (50, 100)


@pytest.mark.parametrize("orientation, told", [(1, False), (2, True), (3, True), (6, False)])
def test_a_turn_that_the_size_does_not_show_is_mentioned(beside, orientation, told):
    folder, exif = beside("a", size=(100, 50) if orientation == 6 else (50, 100)), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (100, 50)).save(folder / "a.jpg", exif=exif)
    assert any("EXIF turns or mirrors 1 pictures" in note for note in VOCDataset(folder).notes) == told


def test_xml_with_width_and_height_exchanged_is_told_so(beside):
    with pytest.raises(ValueError, match="a.xml: <size> is 50x100, width and height exchanged, but .*a.jpg is 100x50 upright"):
        VOCDataset(beside("a", size=(100, 50)))


def test_lists_may_have_crlf_a_byte_order_mark_flags_suffixes_and_repeats(voc_folder):
    path = voc_folder / "ImageSets/Main/odd.txt"
    path.write_bytes(b"\xef\xbb\xbf0003  1\r\n0001 -1\r\n\r\n0003  1\r\n0000.jpg 0\r\n")
    dataset = VOCDataset(voc_folder, "odd")
    assert dataset.ids == ["0003", "0001", "0000"]
    assert "1 ids are listed more than once" in dataset.notes[0]


def test_lists_may_be_utf16_and_what_is_no_text_is_refused_by_name(voc_folder):
    lists = voc_folder / "ImageSets/Main"
    (lists / "._train.txt").write_bytes(b"\x00\x05\x16\x07\xff")
    (lists / "wide.txt").write_text("0003\r\n0001\r\n", encoding="utf-16")
    assert "._train" not in find_splits(voc_folder) and VOCDataset(voc_folder, "wide").ids == ["0003", "0001"]
    (lists / "latin.txt").write_bytes("0003\nBär\n".encode("latin-1"))
    with pytest.raises(ValueError, match="latin.txt: is not UTF-8, byte 7 is 0xe4; save it as UTF-8"):
        VOCDataset(voc_folder, "latin")


def test_an_id_may_contain_blanks_and_end_in_a_flag(beside):
    folder = beside("photo 1", [("nail", (1, 1, 10, 10))])
    os.makedirs(folder / "ImageSets/Main")
    beside("IMG 3 ", [("nail", (1, 1, 10, 10))])
    (folder / "ImageSets/Main/train.txt").write_text("photo 1\nIMG 3 \n")
    assert VOCDataset(folder, "train").ids == ["photo 1", "IMG 3 "]
    beside("photo", [("nail", (1, 1, 10, 10))])
    (folder / "photo 1.xml").unlink()                   # which is no reason to take another one
    with pytest.raises(ValueError, match="'photo 1' must have one XML file"):
        VOCDataset(folder, "train")


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_folders_that_are_links_are_read_also_where_they_lead_in_circles(voc_folder, tmp_path):
    for part in ("Annotations", "JPEGImages"):
        (voc_folder / part).rename(tmp_path / part)
        (voc_folder / part).mkdir()
        (voc_folder / part / "sub").symlink_to(tmp_path / part)
        (tmp_path / part / "again").symlink_to(voc_folder / part)
    assert VOCDataset(voc_folder).ids == [f"sub/{number:04d}" for number in range(12)]


def test_lists_of_the_segmentation_folder_count_where_main_has_none(voc_folder):
    os.makedirs(voc_folder / "ImageSets/Segmentation")
    for name in ("train", "seg"):
        (voc_folder / f"ImageSets/Segmentation/{name}.txt").write_text("0001\n")
    assert len(VOCDataset(voc_folder, "seg")) == 1 and len(VOCDataset(voc_folder, "train")) == 6
    assert set(find_splits(voc_folder)) == {"train", "val", "test", "trainval", "seg"}


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".jfif", ".Png", ".bmp", ".webp"])
def test_the_picture_is_found_by_its_stem_over_suffixes_of_any_case(beside, suffix):
    folder = beside("a", [("nail", (1, 1, 10, 10))], suffix=suffix)
    assert VOCDataset(folder).pictures == [folder / f"a{suffix}"]


def test_pictures_without_xml_are_left_out_and_mentioned(beside):
    folder = beside("a", [("nail", (1, 1, 10, 10))])
    Image.new("RGB", (9, 9)).save(folder / "b.png")
    dataset = VOCDataset(folder)
    assert dataset.ids == ["a"] and "1 pictures have no XML and are left out, b for example" in dataset.notes[0]


def test_boxes_at_coordinate_zero_and_boxes_cut_are_mentioned(beside):
    folder = beside("a", [("nail", (0, 5, 10, 10)), ("nail", (5, 5, 130, 10))])
    notes = "\n".join(VOCDataset(folder).notes)
    assert "1 boxes start at coordinate 0" in notes and "1 boxes stick out" in notes
    assert "coordinate 0" not in "\n".join(VOCDataset(folder, one_based=False).notes)


def test_classes_that_differ_only_in_case_are_mentioned_with_their_numbers_of_objects(beside):
    folder = beside("a", [(name, (1, 1, 10, 10)) for name in ("nail", "clip", "Nail", "nail")])
    dataset = VOCDataset(folder)
    assert dataset.classes == ["Nail", "clip", "nail"]
    assert dataset.notes == [f"{folder}: Nail (1 objects) / nail (2 objects) differ only in upper and lower case, and are classes of their own"]


@pytest.mark.parametrize("tag", ["difficult", "iscrowd"])
def test_a_flag_is_what_tools_write_for_0_and_1_and_anything_else_is_refused(beside, tag):
    def written(text):
        return f"<object><name>nail</name><{tag}>{text}</{tag}>{box}</object>"

    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax></bndbox>"
    folder = beside("a", extra="".join(map(written, ("1", " True\n", "0", "FALSE", "Unspecified", " ", ""))))
    assert VOCDataset(folder).target(0)["difficult"].tolist() == [True, True, False, False, False, False, False]
    for text in ("yes", "2", "1.0", "-1"):
        beside("a", [("nail", (1, 1, 10, 10))], extra=written(text))
        with pytest.raises(ValueError, match=rf"a.xml: object 2 \(nail\) {tag} is '{text}', must be one of true, false, 1, 0.*--skip-bad"):
            VOCDataset(folder)
        assert len(VOCDataset(folder, skip_bad=True).target(0)["boxes"]) == 1


BAD_FILES = {
    "a.xml: cannot be read as XML": lambda f: (f / "a.xml").write_text("<annotation><object>"),
    "a.xml: cannot be read as XML: .*entities": lambda f: (f / "a.xml").write_text(
        '<!DOCTYPE a [<!ENTITY x "ha">]><annotation>&x;</annotation>'),
    "a.xml: cannot be read as XML: ": lambda f: (f / "a.xml").write_bytes(b""),
    "a.xml: is no VOC annotation, its outermost element is <html>": lambda f: (f / "a.xml").write_text("<html/>"),
    "a.xml: <size> has width 'abc', must be a number of 0 or more": lambda f: write_xml(f / "a.xml", (50, "abc"), []),
    "a.xml: <size> has height '-50', must be a number of 0 or more": lambda f: write_xml(f / "a.xml", (-50, 0), []),
    "a.jpg: cannot be read as a picture: .*[Tt]runcated": lambda f: os.truncate(f / "a.jpg", 600),
    "a.jpg: is no picture of a known kind": lambda f: (f / "a.jpg").write_text("<html>"),
    "a.xml: must have one picture a.* not none": lambda f: (f / "a.jpg").unlink(),
    "a.xml: must have one picture a.* not a.jpg, a.png": lambda f: Image.new("RGB", (9, 9)).save(f / "a.png"),
}


@pytest.mark.parametrize("sentence", BAD_FILES)
def test_a_bad_file_is_refused_by_name_or_left_out_if_asked(beside, sentence):
    beside("b", [("nail", (1, 1, 10, 10))])
    folder = beside("a", [("nail", (1, 1, 10, 10))])
    BAD_FILES[sentence](folder)
    with pytest.raises(ValueError, match=sentence + ".*; --skip-bad leaves out") as raised:
        VOCDataset(folder)
    assert "\n" not in str(raised.value)
    dataset = VOCDataset(folder, skip_bad=True)
    assert dataset.ids == ["b"] and len(dataset.skipped) == 1


BAD_OBJECTS = {
    r"object 2 \(nail\) must have xmin < xmax": ("nail", (10, 10, 10, 20)),
    r"object 2 \(nail\) lies outside the 100x50 picture": ("nail", (300, 10, 310, 20)),
    r"object 2 \(nail\) must have four numbers": ("nail", (10, 10, "wide", 20)),
    r"object 2 \(nail\) must have four numbers in bndbox": ("nail", (10, 10, "nan", 20)),
    r"object 2 \(nail\) has 2 bndbox, must have one": ("nail", (10, 10, 20, "20</ymax></bndbox><bndbox><ymax>30")),
    "object 2 has no name": (" ", (10, 10, 20, 20)),
    "object 2 is 'Nail', not one of clip, nail; did you mean 'nail'": ("Nail", (10, 10, 20, 20)),
    "object 2 is 'clop', not one of clip, nail; did you mean 'clip'": ("clop", (10, 10, 20, 20)),
    "object 2 is 'zebra', not one of clip, nail;": ("zebra", (10, 10, 20, 20)),
}


@pytest.mark.parametrize("sentence", BAD_OBJECTS)
def test_a_bad_object_is_refused_by_file_number_and_rule_or_left_out_alone(beside, sentence):
    good = ("nail", (1, 1, 10, 10))
    folder = beside("a", [good, BAD_OBJECTS[sentence], good])
    with pytest.raises(ValueError, match="a.xml: " + sentence):
        VOCDataset(folder, classes=["clip", "nail"])
    dataset = VOCDataset(folder, classes=["clip", "nail"], skip_bad=True)
    assert dataset.target(0)["boxes"].tolist() == [[0, 0, 10, 10]] * 2 and len(dataset.skipped) == 1
    assert dataset.target(0)["labels"].tolist() == [1, 1]


def test_the_sentence_says_how_many_others_there_are(beside):
    folder = beside("a", [("nail", (5, 5, 5, 5))] * 4)
    with pytest.raises(ValueError, match="; 3 more faults; --skip-bad"):
        VOCDataset(folder)
    dataset = VOCDataset(folder, skip_bad=True)
    assert len(dataset.skipped) == 4 and dataset.notes[0].endswith(": 4 faults are left out; 1 pictures with 0 objects stay")


def test_mistakes_in_the_folders_are_one_sentence_each(tmp_path, voc_folder, beside):
    (voc_folder / "ImageSets/Main/none.txt").write_text("\n")
    (voc_folder / "ImageSets/Main/lost.txt").write_text("0001\n../../0002\nghost\n")
    mistakes = {
        (tmp_path / "nowhere", None): "nowhere: no such folder",
        (tmp_path, None): "is no VOC folder.*below it are .*/voc: name what you mean$",
        (voc_folder / "JPEGImages", None): "is no VOC folder.*; .*voc has$",
        (voc_folder / "ImageSets" / "Main" / "train.txt", None): "train.txt: is a file, must be a folder in VOC layout",
        (voc_folder, "dev"): "has no split 'dev', only lost, none, test, train, trainval, val$",
        (voc_folder, "none"): "none.txt: is empty",
        (voc_folder, "lost"): r"lost.txt: '../../0002' must have one XML file .* not 0; 1 more faults",
    }
    for (folder, split), sentence in mistakes.items():
        with pytest.raises(ValueError, match=sentence):
            VOCDataset(folder, split)
    folder = beside("a", [("nail", (1, 1, 1, 1))])
    with pytest.raises(ValueError, match="no list in ImageSets at all; the split 'all' takes"):
        VOCDataset(folder, "train")
    (folder / "a.jpg").unlink()
    with pytest.raises(ValueError, match="no picture is left, 1 are bad; the first: .*a.xml"):
        VOCDataset(folder, skip_bad=True)


def test_a_picture_that_changes_size_behind_our_back_is_refused(beside):
    folder = beside("a", [("nail", (1, 1, 10, 10))])
    dataset = VOCDataset(folder)
    Image.new("RGB", (60, 50)).save(folder / "a.jpg")
    with pytest.raises(ValueError, match="a.jpg: has changed"):
        dataset[0]


def test_check_target_names_the_object_and_the_rule():
    target = make_target([[0, 0, 10, 10], [5, 5, 9, 9]], [0, 1], [False, True], "x", (20, 20))
    check_target(target, (20, 20), 2, "x.xml")
    box = torch.tensor([[0.0, 0, 10, 10]])
    faults = {
        "must have x1 < x2": {"boxes": torch.cat([box, torch.tensor([[5.0, 5, 5, 9]])])},
        r"object 2 .* must lie in the 20x20 picture": {"boxes": torch.cat([box, torch.tensor([[5.0, 5, 21, 9]])])},
        r"must have a label in 0..1": {"labels": torch.tensor([0, 2])},
        "labels must be torch.int64": {"labels": torch.tensor([0.0, 1])},
        r"difficult must be torch.bool of shape \[2\], not torch.bool of shape \[1\]": {"difficult": torch.ones(1) > 0},
        "finite weight": {"weights": torch.tensor([1, float("nan")])},
        "x1 < x2 and": {"boxes": torch.cat([box, box * float("nan")])},
    }
    for sentence, change in faults.items():
        with pytest.raises(ValueError, match="x.xml: .*" + sentence):
            check_target({**target, **change}, (20, 20), 2, "x.xml")
    del target["weights"]
    with pytest.raises(ValueError, match="has no weights"):
        check_target(target, (20, 20), 2, "x.xml")


def test_leaving_objects_out_cuts_every_field_alike():
    target = make_target([[0, 0, 10, 10], [5, 5, 9, 9]], [0, 1], [False, True], "x", (20, 20))
    kept = keep_objects(target, torch.tensor([False, True]))
    assert kept["boxes"].tolist() == [[5, 5, 9, 9]] and kept["labels"].tolist() == [1]
    assert kept["difficult"].tolist() == [True] and len(kept["weights"]) == 1 and kept["image_id"] == "x"


@shared("bccd")
def test_bccd_loads_but_for_its_two_boxes_without_area():
    with pytest.raises(ValueError, match=r"BloodImage_00338.xml: object 13 \(RBC\) .* 1 more faults"):
        VOCDataset(SHARED / "bccd")
    dataset = VOCDataset(SHARED / "bccd", skip_bad=True)
    assert dataset.classes == ["Platelets", "RBC", "WBC"] and len(dataset) == 364 and len(dataset.skipped) == 2
    assert sum(dataset.class_counts().values()) == 4886
    lengths = [len(VOCDataset(SHARED / "bccd", split, skip_bad=True)) for split in ("train", "val", "test")]
    assert lengths == [205, 87, 72]


@shared("fod_a")
def test_fod_a_loads_with_its_zero_based_decimals():
    dataset = VOCDataset(SHARED / "fod_a", "val", one_based=False)
    assert len(dataset) == 372 and len(dataset.classes) == 31 and not dataset.skipped and not dataset.notes
    first = read_annotation(SHARED / "fod_a/Annotations/000007.xml").objects[0]
    assert first.corners == (138.3672, 107.625, 151.5859, 151.6889)
    assert "39 boxes start at coordinate 0" in VOCDataset(SHARED / "fod_a", "val").notes[0]


@shared("foreign_objects_real")
def test_xml_beside_large_photographs_is_read(tmp_path):
    for path in (SHARED / "foreign_objects_real").glob("*.xml"):
        annotation = read_annotation(path)
        assert annotation.size == (1440, 2560) and annotation.objects and not annotation.problems


def test_a_box_that_sticks_out_by_a_pixel_is_not_told_of(beside):
    folder = beside("a", [("nail", (5, 5, 101, 10)), ("nail", (5, 5, 10, 51))])
    assert VOCDataset(folder).target(0)["boxes"].tolist() == [[4, 4, 100, 10], [4, 4, 10, 50]] and not VOCDataset(folder).notes


def test_entities_are_refused_in_utf16_too(beside):
    folder = beside("a")
    text = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a [<!ENTITY x "nail">]><annotation><object><name>&x;</name></object></annotation>'
    (folder / "a.xml").write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match="a.xml: cannot be read as XML: .*entities"):
        VOCDataset(folder)


def test_an_object_where_none_is_looked_for_does_not_make_its_picture_background(beside):
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>10</xmax><ymax>10</ymax></bndbox>"
    for extra in (f"<objects><object><name>nail</name>{box}</object></objects>", f"<Object><name>nail</name>{box}</Object>"):
        with pytest.raises(ValueError, match="a.xml: is no VOC annotation, it has a bndbox, but no <object> directly within"):
            VOCDataset(beside("a", extra=extra))


@pytest.mark.filterwarnings("error")
def test_what_float32_cannot_hold_is_cut_like_anything_else():
    assert box_edges((1, 1, 1e39, 20), (50, 100)) == (0, 0, 100, 20)


def test_infinity_is_no_number(beside):
    with pytest.raises(ValueError, match=r"a.xml: object 1 \(nail\) must have four numbers in bndbox"):
        VOCDataset(beside("a", [("nail", (1, 1, "inf", 20))]))
    with pytest.raises(ValueError, match="a.xml: <size> has width 'inf', must be a number of 0 or more"):
        VOCDataset(beside("a", size=(50, "inf")))


def test_a_box_of_a_pixel_or_less_is_one():
    assert box_edges((5, 5, 6, 6), (50, 100), one_based=False) == (5, 5, 6, 6)
    assert box_edges((5, 5, 5.25, 9), (50, 100), one_based=False) == (5, 5, 5.25, 9)


def test_a_name_of_other_letters_is_recognised_in_capitals(beside):
    with pytest.raises(ValueError, match="object 1 is 'NAILS', not one of clip, nail; did you mean 'nail'"):
        VOCDataset(beside("a", [("NAILS", (1, 1, 10, 10))]), classes=["clip", "nail"])


def test_the_lists_of_one_class_have_flags_of_1_minus_1_and_0(voc_folder):
    (voc_folder / "ImageSets/Main/disc_train.txt").write_text("0003  1\n0001 -1\n0002  0\n0000 +1\n")
    assert VOCDataset(voc_folder, "disc_train").ids == ["0003", "0001", "0002", "0000"]


def test_two_xml_files_of_one_name_are_refused(voc_folder, xml_writer):
    xml_writer(voc_folder / "Annotations/0001.XML", (96, 128), [])
    with pytest.raises(ValueError, match="'0001' must have one XML file in .*Annotations, not 2"):
        VOCDataset(voc_folder, "train")


@pytest.mark.parametrize("change, sentence", [
    ({"boxes": torch.tensor([[0.0, 0, 10, 21]])}, "must lie in the 20x20 picture"), ({"boxes": torch.tensor([[0.0, -1, 10, 9]])}, "must lie in the 20x20 picture"),
    ({"boxes": torch.tensor([[0.0, 9, 10, 9]])}, "must have x1 < x2 and y1 < y2"), ({"labels": torch.tensor([-1])}, r"must have a label in 0..1"),
    ({"weights": torch.tensor([-0.5])}, "must have a finite weight of 0 or more")])
def test_check_target_looks_at_both_axes_and_both_ends(change, sentence):
    with pytest.raises(ValueError, match=f"x.xml: object 1 .*{sentence}"):
        check_target({**make_target([[0, 0, 10, 10]], [0], [False], "x", (20, 20)), **change}, (20, 20), 2, "x.xml")
