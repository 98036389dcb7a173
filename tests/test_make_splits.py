"""tools/make_splits.py: lists for a folder that has none; copies stay together, train knows every class."""
from collections import Counter

import pytest
from PIL import Image

from dataset.voc_folder import find_splits, list_text, read_split
from tests.colour_network import refusal
from tools.make_splits import add_to_lists, divide, main

XML = "<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"


def folder(tmp_path, classes, beside=False):
    """A picture a class name, each of another colour but for the last two, which are copies."""
    annotations, pictures = (tmp_path, tmp_path) if beside else (tmp_path / "Annotations", tmp_path / "JPEGImages")
    for number, name in enumerate(classes):
        for part in (annotations, pictures):
            part.mkdir(exist_ok=True)
        (annotations / f"p{number}.xml").write_text(XML.format(name))
        Image.new("RGB", (8, 8), (min(number, len(classes) - 2), 0, 0)).save(pictures / f"p{number}.png")
    return tmp_path


def test_each_list_comes_as_near_to_its_share_as_whole_groups_allow():
    groups = [([f"a{k}"], {"disc"}) for k in range(10)] + [(["b0", "b1", "b2"], {"disc"})]
    for seed in range(20):
        lists = divide(groups, {"val": 0.2, "test": 0.2}, seed)
        assert sorted(id for ids in lists.values() for id in ids) == sorted(id for ids, _ in groups for id in ids)
        assert all(abs(len(lists[name]) - 0.2 * 13) <= 1.5 for name in ("val", "test"))     # half of the largest group
        assert max(sum(id[0] == "b" for id in ids) for ids in lists.values()) == 3
    assert divide(groups, {"val": 0.2}, 1) == divide(groups, {"val": 0.2}, 1) != divide(groups, {"val": 0.2}, 2)


def test_train_has_a_picture_of_each_class_however_rare():
    groups = [([f"p{k}"], {"disc"} if k % 9 else {"disc", f"rare{k}"}) for k in range(40)]
    for seed in range(20):
        train = {*divide(groups, {"val": 0.3, "test": 0.3}, seed)["train"]}
        assert {"p0", "p9", "p18", "p27", "p36"} <= train and len(train) == 16


@pytest.mark.parametrize("beside", [False, True])
def test_lists_of_a_folder_hold_each_picture_once_and_copies_together(tmp_path, capsys, beside):
    data = folder(tmp_path, ["disc"] * 19 + ["slab"], beside)
    main([str(data)])
    lists = {name: read_split(path) for name, path in find_splits(data).items()}
    assert {name: len(ids) for name, ids in lists.items()} == {"train": 14, "val": 3, "test": 3}
    assert {*Counter(id for ids in lists.values() for id in ids).values()} == {1}
    assert any({"p18", "p19"} <= {*ids} for ids in lists.values())
    told = capsys.readouterr().out
    assert "train 14, val 3, test 3" in told and "1 pictures are copies" in told
    before = {name: path.read_bytes() for name, path in find_splits(data).items()}
    assert "already (test, train, val)" in refusal(main, [data, "--seed", "1"], capsys)
    assert {name: path.read_bytes() for name, path in find_splits(data).items()} == before


def test_new_pictures_are_added_and_what_is_listed_stays(tmp_path, capsys):
    data = folder(tmp_path, ["disc"] * 20)
    assert "has no list 'train' with pictures in ImageSets to --add to" in refusal(main, [data, "--add"], capsys)
    main([str(data), "--val", "0.2", "--test", "0.1"])
    before = {name: read_split(path) for name, path in find_splits(data).items()}
    assert "--val and --test do not go with it" in refusal(main, [data, "--add", "--val", "0.2"], capsys)
    lists = data / "ImageSets" / "Main"
    (lists / "trainval.txt").write_text(list_text(before["train"] + before["val"]))
    folder(tmp_path, ["disc"] * 20 + ["slab"] * 20)                         # p18 is another picture now, and p38 and p39 are copies
    for copy, of in (("p20", before["test"][0]), ("p21", before["val"][0])):
        (data / "JPEGImages" / f"{copy}.png").write_bytes((data / "JPEGImages" / f"{of}.png").read_bytes())
    (lists / "dev.txt").write_text("p22\n")
    main([str(data), "--add"])
    after = {name: read_split(path) for name, path in find_splits(data).items()}
    assert all(after[name][:len(ids)] == ids for name, ids in before.items()) and after["dev"] == ["p22"]
    assert "p20" in after["test"] and "p21" in after["val"]
    assert sorted(after["train"] + after["val"] + after["test"], key=lambda id: int(id[1:])) == [f"p{number}" for number in range(40) if number != 22]
    assert {name: len(ids) for name, ids in after.items()} == {"train": 27, "val": 8, "test": 4, "trainval": 35, "dev": 1}
    assert {*after["trainval"]} == {*after["train"], *after["val"]}
    assert "train +13, val +4, test +2, trainval +17" in capsys.readouterr().out
    main([str(data), "--add"])
    assert {name: read_split(path) for name, path in find_splits(data).items()} == after and "train +0" in capsys.readouterr().out


@pytest.mark.parametrize("code", ["utf-8", "utf-8-sig", "utf-16"])
def test_what_a_list_holds_stays_byte_for_byte(code, tmp_path):
    data = folder(tmp_path, ["disc"] * 12)
    lists = data / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    before = {"train": "\r\n".join(["p0.png", "p1", "gone", *(f"p{k}" for k in range(2, 6))]), "val": "p6\r\n\r\np6\r\n", "disc_train": "p7\r\n"}
    for name, text in before.items():
        (lists / f"{name}.txt").write_bytes(text.encode(code))
    main([str(data), "--add"])
    now = {name: (lists / f"{name}.txt").read_bytes() for name in before}
    assert all(now[name].startswith(text.encode(code)) for name, text in before.items()) and now["disc_train"] == before["disc_train"].encode(code)
    assert b"\n" in now["train"] and all("\n" not in now[name].decode(code).replace("\r\n", "") for name in before)
    after = [id for name in ("train", "val") for id in read_split(lists / f"{name}.txt")]
    assert sorted({*after} - {"gone"}, key=lambda id: int(id[1:])) == [f"p{k}" for k in range(12)] and len(after) == 14
    (data / "Annotations" / "p6.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match="'p6' is in the list 'val', but its XML or picture cannot be read"):
        add_to_lists(data, 0)
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text("")
    with pytest.raises(ValueError, match="no list 'train' with pictures"):
        add_to_lists(data, 0)


def test_a_list_with_a_column_of_flags_keeps_it_and_no_failure_costs_what_it_holds(tmp_path, monkeypatch):
    data = folder(tmp_path, ["disc"] * 12)
    path = data / "ImageSets" / "Main" / "train.txt"
    path.parent.mkdir(parents=True)
    path.write_text("p0  1\np1 -1\n")
    monkeypatch.setattr("pathlib.Path.write_bytes", None)       # with which a list would be empty for a moment
    main([str(data), "--add"])
    assert path.read_text().startswith("p0  1\np1 -1\np2  1\n") and read_split(path) == [f"p{k}" for k in range(12)]


def test_copies_of_what_another_list_holds_are_not_divided(tmp_path, capsys):
    data = folder(tmp_path, ["disc"] * 12)                                  # p10 and p11 are copies
    lists = data / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p0\np1\np2\n")
    (lists / "dev.txt").write_text("p10\n")
    main([str(data), "--add"])
    assert read_split(lists / "train.txt") == [f"p{k}" for k in range(10)]
    assert "1 pictures are copies of some that only other lists have, and are not divided, p11 for example" in capsys.readouterr().out


def test_a_class_that_only_new_pictures_show_goes_to_train_first(tmp_path):
    data = folder(tmp_path, ["disc"] * 10)
    main([str(data), "--val", "0.4", "--test", "0"])
    (data / "JPEGImages" / "new.png").write_bytes((data / "JPEGImages" / "p0.png").read_bytes() + b" ")
    (data / "Annotations" / "new.xml").write_text(XML.format("slab"))
    main([str(data), "--add"])
    assert "new" in read_split(data / "ImageSets" / "Main" / "train.txt")


def test_no_list_for_a_share_of_nothing(tmp_path):
    main([str(folder(tmp_path, ["disc"] * 10)), "--test", "0", "--val", "0.2"])
    assert {name: len(read_split(path)) for name, path in find_splits(tmp_path).items()} == {"train": 8, "val": 2}


def test_what_is_no_whole_pair_is_left_out_and_told_of(tmp_path, capsys):
    data = folder(tmp_path, ["disc"] * 10)
    (data / "JPEGImages" / "p0.png").unlink()
    (data / "Annotations" / "p1.xml").write_text("<annotation>")
    main([str(data)])
    told = capsys.readouterr().out
    assert "must have one picture p0" in told and "p1.xml: cannot be read as XML" in told and "python -m dataset.check" in told and "1 pictures are copies" in told
    assert sorted(id for path in find_splits(data).values() for id in read_split(path)) == [f"p{number}" for number in range(2, 10)]


def test_what_cannot_be_divided_is_refused_and_nothing_written(tmp_path, capsys):
    data = folder(tmp_path, ["disc", "slab"])
    assert "2 pictures are too few for a list 'val'" in refusal(main, [data], capsys)
    assert "--val and --test are 1" in refusal(main, [data, "--val", "0.5", "--test", "0.5"], capsys)
    with pytest.raises(ValueError, match=r"the name 'caf\\udce9' is not UTF-8"):
        list_text(["a", "caf\udce9"])
    assert not (data / "ImageSets").exists()
