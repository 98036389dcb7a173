import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dataset.check import check, main
from dataset.voc import VOCDataset

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data"


def findings(folder, **keywords):
    return {finding["id"]: finding for finding in check([folder], **keywords)["findings"]}


def test_a_clean_folder_is_counted_and_nothing_is_complained_about(voc_folder, capsys):
    report = check([voc_folder])
    assert report["findings"] == [] and set(report["splits"]) == {"train", "val", "test", "trainval"}
    assert report["splits"]["train"]["pictures"] == 6 and report["one_based"] in (True, None)
    assert report["splits"]["train"]["objects"] == VOCDataset(voc_folder, "train").class_counts()
    assert main([str(voc_folder)]) == 0
    assert "nothing to complain about" in capsys.readouterr().out


@pytest.fixture
def faulty(voc_folder, xml_writer):
    """break_it(kind): one fault of that kind in the folder, in picture 0001 of the list train."""
    xml, picture = voc_folder / "Annotations/0001.xml", voc_folder / "JPEGImages/0001.jpg"
    lists = voc_folder / "ImageSets/Main"

    def objects(*objects):
        xml_writer(xml, (96, 128), objects)

    def rotated():
        exif = Image.Exif()
        exif[0x0112] = 3
        Image.open(picture).save(picture, exif=exif)

    def append(name, id):
        with open(lists / f"{name}.txt", "a") as file:
            file.write(f"{id}\n")

    def copied():
        for part, suffix in (("Annotations", "xml"), ("JPEGImages", "jpg")):
            shutil.copy(voc_folder / part / f"0001.{suffix}", voc_folder / part / f"copy.{suffix}")

    def copied_to_val():
        copied()
        append("val", "copy")

    ways = {
        "unreadable-picture": lambda: picture.write_bytes(picture.read_bytes()[:-500]),
        "bad-xml": lambda: xml.write_text("<annotation>"),
        "size-mismatch": lambda: xml_writer(xml, (128, 96), []),
        "unreadable-object": lambda: objects(("disc", (1, 1, "x", 20))),
        "bad-box": lambda: objects(("disc", (20, 1, 10, 20))),
        "missing-file": lambda: append("train", "ghost"),
        "class-not-in-train": lambda: xml_writer(xml.with_name("0007.xml"), (96, 128), [("new", (1, 1, 20, 20))]),
        "empty-list": lambda: (lists / "spare.txt").write_text(""),
        "box-cut": lambda: objects(("disc", (1, 1, 140, 20))),
        "zero-based": lambda: objects(("disc", (0, 1, 10, 20))),
        "tiny-box": lambda: objects(("disc", (1, 1, 2, 20))),
        "duplicate-box": lambda: objects(*[("disc", (1, 1, 20, 20))] * 2),
        "exif-rotated": rotated,
        "picture-in-two-splits": copied_to_val,
        "id-in-two-splits": lambda: append("val", "0001"),
        "repeated-id": lambda: append("train", "0001"),
        "picture-without-xml": lambda: Image.new("RGB", (9, 9)).save(voc_folder / "JPEGImages/more.png"),
        "in-no-list": copied,
        "class-name-close": lambda: objects(("slap", (1, 1, 20, 20)), *[("slab", (1, 1, 20, 20 + n)) for n in range(10)]),
        "class-name-case": lambda: objects(("Disc", (1, 1, 20, 20))),
        "rare-class": lambda: objects(*[("slab", (1, 1, 20, 20 + n)) for n in range(70)] * 3, ("bar", (1, 1, 20, 20))),
        "picture-without-object": lambda: objects(),
    }
    return voc_folder, ways


ERRORS = ("unreadable-picture", "bad-xml", "size-mismatch", "unreadable-object", "bad-box", "missing-file")
OTHERS = ("class-not-in-train", "empty-list", "box-cut", "zero-based", "tiny-box", "duplicate-box", "exif-rotated",
          "picture-in-two-splits", "id-in-two-splits", "repeated-id", "picture-without-xml", "in-no-list", "class-name-close", "class-name-case",
          "rare-class", "picture-without-object")


@pytest.mark.parametrize("kind", ERRORS + OTHERS)
def test_the_doctor_finds(faulty, kind, capsys):
    folder, ways = faulty
    ways[kind]()
    finding = findings(folder)[kind]
    assert finding["count"] == len(finding["examples"]) or finding["count"] > 5
    assert finding["examples"] and finding["message"]
    assert (finding["severity"] == "error") == (kind in ERRORS + ("class-not-in-train", "empty-list"))
    assert main([str(folder)]) == int(finding["severity"] == "error")
    assert f"{finding['severity']}: {kind} ({finding['count']})" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ERRORS + OTHERS)
def test_an_error_is_what_the_data_set_refuses_and_a_warning_what_it_takes(faulty, kind):
    folder, ways = faulty
    ways[kind]()
    try:
        VOCDataset(folder, "train")
        refused = False
    except ValueError:
        refused = True
    assert refused == (kind in ERRORS)


def test_boxes_are_judged_as_training_reads_them(voc_folder, xml_writer, capsys):
    """The box is 1.3 px wide inside the picture for who counts from 1, 0.3 px for who counts from 0."""
    xml_writer(voc_folder / "Annotations/0001.xml", (96, 128), [("disc", (127.7, 10, 131, 20)), ("disc", (0, 1, 10, 20))])
    assert main([str(voc_folder)]) == 0 and len(VOCDataset(voc_folder)) == 12
    assert "run this again with it" in findings(voc_folder)["zero-based"]["message"] and "bad-box" not in findings(voc_folder)
    with pytest.raises(ValueError, match="0001.xml: object 1 .disc. lies outside"):
        VOCDataset(voc_folder, one_based=False)
    assert main([str(voc_folder), "--zero-based"]) == 1
    report = check([voc_folder], one_based=False)
    found = {finding["id"]: finding for finding in report["findings"]}
    assert "object 1 (disc) lies outside" in found["bad-box"]["examples"][0] and "zero-based" not in found and report["one_based"] is False


@pytest.mark.parametrize("boxes, verdict", [
    ([(1, 1, 10, 20)], True), ([(0, 1, 10, 20)], False), ([(2, 2, 128, 96)], None), ([(1, 2.5, 10, 20)], None),
    ([(0, 0, 9, 9)] + [(1, 1, 10 + n, 20) for n in range(9)], True), ([(0, 1, 10, 20), (5, 1, 10, 20)], None)])
def test_where_the_coordinates_start_is_what_most_boxes_say(tmp_path, xml_writer, boxes, verdict):
    Image.new("RGB", (128, 96)).save(tmp_path / "a.jpg")
    xml_writer(tmp_path / "a.xml", (96, 128), [("disc", box) for box in boxes])
    assert check([tmp_path])["one_based"] is verdict


def test_folders_train_and_valid_are_looked_at_as_lists_are(tmp_path, xml_writer):
    for folder, name in (("train", "disc"), ("valid", "slab")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (128, 96)).save(tmp_path / folder / "a.jpg")
        xml_writer(tmp_path / folder / "a.xml", (96, 128), [(name, (1, 1, 20, 20))])
    report = check([tmp_path / "train", tmp_path / "valid"], split="all")
    assert report["splits"] == {"train": {"pictures": 1, "objects": {"disc": 1}}, "val": {"pictures": 1, "objects": {"slab": 1}}}
    found = {finding["id"]: finding["examples"] for finding in report["findings"]}
    assert found["class-not-in-train"] == ["slab (in val)"] and len(found["picture-in-two-splits"]) == 1


def test_the_same_pixels_under_two_names_are_found_with_their_splits(faulty):
    folder, ways = faulty
    ways["picture-in-two-splits"]()
    found = findings(folder)
    assert found["duplicate-picture"]["count"] == 1
    group = found["picture-in-two-splits"]["examples"][0]
    assert "0001.jpg = " in group and "copy.jpg in " in group and "train and val" in group


def test_class_lists_and_trainval_may_overlap_train(voc_folder):
    lists = voc_folder / "ImageSets/Main"
    for split in ("train", "val", "trainval"):
        lines = (lists / f"{split}.txt").read_text().split()
        (lists / f"disc_{split}.txt").write_text("".join(f"{id}  1\n" for id in lines))
    assert check([voc_folder])["findings"] == []


def test_one_list_may_be_looked_at_alone(faulty):
    folder, ways = faulty
    ways["bad-box"]()
    assert check([folder], split="val")["findings"] == []
    assert "bad-box" in findings(folder, split="train")


def test_a_mistake_in_the_command_is_one_sentence_and_exit_code_two(tmp_path, capsys):
    for words, told in [([str(tmp_path / "nowhere")], f"{tmp_path / 'nowhere'}: no such folder"), (["--no-such-flag"], "unrecognized arguments: --no-such-flag")]:
        with pytest.raises(SystemExit) as raised:
            main(words)
        assert raised.value.code == 2
        assert capsys.readouterr().err.strip() == f"error: {told}"


@pytest.mark.parametrize("error, code", [(PermissionError(13, "Permission denied", "secret"), 2), (KeyboardInterrupt(), 130)])
def test_what_stops_the_doctor_is_no_traceback(error, code, monkeypatch, capsys):
    def stopped(*_):
        raise error
    monkeypatch.setattr("dataset.check.check", stopped)
    with pytest.raises(SystemExit) as raised:
        main(["data"])
    assert raised.value.code == code
    assert ("secret" if code == 2 else "interrupted") in capsys.readouterr().err


def test_a_file_name_of_another_encoding_is_told_in_escapes(voc_folder, capsys):
    shutil.copy(next((voc_folder / "JPEGImages").iterdir()), voc_folder / "JPEGImages" / os.fsdecode(b"caf\xe9.jpg"))
    assert main([str(voc_folder)]) == 0
    assert "caf\\udce9.jpg" in capsys.readouterr().out


def test_the_command_prints_json(voc_folder):
    for where in (["-m", "dataset.check"], ["dataset/check.py"]):
        done = subprocess.run([sys.executable, *where, voc_folder, "--json"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and json.loads(done.stdout)["splits"]["train"]["pictures"] == 6


@pytest.mark.skipif(os.name == "nt", reason="a shell's pipes")
def test_who_reads_no_further_than_a_line_sees_no_traceback(voc_folder):
    command = f"set -o pipefail; {sys.executable} -m dataset.check {voc_folder} {voc_folder} --json | sleep 0"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 141 and not done.stderr


@pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="the data set bccd is not beside this repository")
def test_the_doctor_finds_the_two_boxes_without_area_in_bccd():
    found = findings(SHARED / "bccd")
    assert found["bad-box"]["count"] == 2 and {each["severity"] for each in found.values()} == {"error"}
