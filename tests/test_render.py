"""The rendered world: boxes are the objects' own pixels, sets are whole, the number of processes changes nothing."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2", reason="rendering needs OpenCV and its libGL", exc_type=ImportError)

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "foreign_object_dataset"
sys.path.insert(0, str(SHIPPED))

import bicycles  # noqa: E402
import clutter  # noqa: E402
import csv_to_voc  # noqa: E402
import gadgets  # noqa: E402
import people  # noqa: E402
import prints  # noqa: E402
import raster  # noqa: E402
import render  # noqa: E402
import scene  # noqa: E402
import sensor  # noqa: E402
import summary  # noqa: E402
import without  # noqa: E402
from camera import make_camera, make_light  # noqa: E402
from objects import CLASSES, MAKERS  # noqa: E402
from shapes import Material, blob, box, tube  # noqa: E402
from styles import STYLES  # noqa: E402

from dataset.voc import VOCDataset  # noqa: E402

WIDTH, HEIGHT = 320, 180


def read_boxes(file):
    """[(name, (x1, y1, x2, y2) continuous edges)] and (width, height) of a VOC file."""
    root = ElementTree.parse(file).getroot()
    boxes = [
        (
            thing.findtext("name"),
            tuple(
                int(thing.findtext(f"bndbox/{tag}")) - shift
                for tag, shift in (("xmin", 1), ("ymin", 1), ("xmax", 0), ("ymax", 0))
            ),
        )
        for thing in root.iter("object")
    ]
    return boxes, (int(root.findtext("size/width")), int(root.findtext("size/height")))


@pytest.fixture(scope="module")
def pictures():
    return [scene.render(3, index, WIDTH, HEIGHT, style) for index, style in enumerate(["default"] * 5 + ["other"])]


def test_a_single_pixel_has_a_box_of_size_one():
    mask = np.zeros((10, 12), bool)
    mask[5, 3] = True
    assert scene.mask_box(mask) == (3, 5, 4, 6)


def test_every_box_is_the_extent_of_its_own_visible_pixels(pictures):
    objects = 0
    for picture in pictures:
        assert picture.image.shape == (HEIGHT, WIDTH, 3) and picture.image.dtype == np.uint8
        owners = sorted(set(np.unique(picture.owner)) - {0})
        assert len(owners) == len(picture.objects)
        for owner, thing in zip(owners, picture.objects, strict=True):
            rows, columns = np.nonzero(picture.owner == owner)
            assert thing["box"] == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            objects += 1
    assert objects >= 8


def test_the_mask_lies_on_the_object_and_not_on_its_shadow(monkeypatch):
    """Without any shadow the objects own the same pixels."""
    kept = scene.render(3, 1, WIDTH, HEIGHT).owner
    monkeypatch.setattr(scene, "cast", lambda *_: None)
    monkeypatch.setattr(scene, "occlude", lambda *_: None)
    assert np.array_equal(scene.render(3, 1, WIDTH, HEIGHT).owner, kept)


def test_the_camera_projects_the_ground_point_behind_a_pixel_onto_that_pixel():
    camera = make_camera(np.random.default_rng(0), 640, 360, STYLES["default"])
    pixels = np.array([[0.0, 0.0], [320.0, 180.0], [600.0, 20.0]])
    ground = np.c_[camera.on_ground(pixels), np.zeros(3)]
    np.testing.assert_allclose(camera.project(ground)[0], pixels, atol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_a_drawn_object_fills_the_extent_of_its_projected_points(name):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        camera, light = make_camera(rng, 1280, 720, STYLES["default"]), make_light(rng, STYLES["default"])
        mesh = MAKERS[name](rng)
        picture = np.zeros((720, 1280, 3), np.float32)
        (x1, y1, _, _), cover = raster.draw(
            picture, mesh, camera, light, np.full(3, 0.1), np.ones((720, 1280), np.float32)
        )
        box = np.array(scene.mask_box(cover > raster.DRAWN)) + [x1, y1, x1, y1]
        points, _ = camera.project(mesh.points)
        np.testing.assert_allclose(box, [*points.min(0), *points.max(0)], atol=1.6)


@pytest.mark.parametrize("name", CLASSES)
def test_objects_are_a_few_centimetres_long_and_rest_on_the_ground(name):
    for seed in range(20):
        points = MAKERS[name](np.random.default_rng(seed)).points
        assert np.isfinite(points).all()
        assert -0.5 <= points[:, 2].min() <= 0
        assert 10 < np.ptp(points, axis=0).max() < 130


def test_xml_holds_one_based_inclusive_pixels_and_reads_back(tmp_path):
    thing = {"name": "nail", "box": (0, 4, 10, 180), "truncated": True, "difficult": False}
    text = render.annotation("a.jpg", 320, 180, [thing])
    file = tmp_path / "a.xml"
    file.write_text(text, encoding="utf-8")
    corners = ElementTree.fromstring(text).find("object/bndbox")
    assert [corners.findtext(tag) for tag in ("xmin", "ymin", "xmax", "ymax")] == ["1", "5", "10", "180"]
    assert read_boxes(file) == ([("nail", thing["box"])], (320, 180))


def test_boxes_with_a_margin_stay_inside_the_picture(tmp_path):
    assert render.widened([10, 20, 30, 40], 4, 320, 180) == [6, 16, 34, 44]
    assert render.widened([1, 0, 318, 180], 4, 320, 180) == [0, 0, 320, 180]
    boxes = []
    for margin in (0, 5):
        folder = tmp_path / str(margin)
        render.main(["--images", "1", "--size", "160x96", "--seed", "5", "--workers", "1", "--margin", str(margin), "--output", str(folder)])
        boxes.append(read_boxes(folder / "Annotations" / "000000.xml")[0])
    assert boxes[0] and boxes[1] == [(name, tuple(render.widened(box, 5, 160, 96))) for name, box in boxes[0]]


def test_the_split_keeps_the_photographs_proportions():
    lists = render.split_names([f"{i:06d}" for i in range(622)], seed=0)
    assert {split: len(names) for split, names in lists.items()} == {
        "train": 375,
        "val": 97,
        "test": 150,
        "trainval": 472,
    }
    assert not set(lists["test"]) & set(lists["trainval"])


def test_the_script_starts_and_the_number_of_processes_changes_nothing(tmp_path):
    files = {}
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        subprocess.run(
            [
                sys.executable,
                SHIPPED / "render.py",
                "--images",
                "3",
                "--size",
                "160x96",
                "--output",
                folder,
                "--seed",
                "5",
                "--workers",
                str(workers),
            ],
            check=True,
            capture_output=True,
        )
        files[workers] = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files[1] == files[2]
    assert len(files[1]) == 3 + 3 + 3                  # train, trainval and test: val would be empty


@pytest.mark.parametrize(
    "flags", [["--size", "12"], ["--images", "0"], ["--style", "moon"], ["--quality", "101"], ["--seed", "-1"]]
)
def test_a_bad_flag_ends_in_one_sentence_and_code_2(flags, capsys, tmp_path):
    with pytest.raises(SystemExit) as end:
        render.parse_arguments(["--output", str(tmp_path), *flags])
    assert end.value.code == 2
    assert flags[0] in capsys.readouterr().err.splitlines()[-1]


def test_an_output_that_is_a_file_is_refused(capsys, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit, match="2"):
        render.main(["--output", str(tmp_path / "taken"), "--images", "1"])
    assert "taken" in capsys.readouterr().err


def test_a_folder_that_holds_a_set_is_refused_and_stays_as_it_is(capsys, tmp_path):
    flags = ["--images", "1", "--size", "64x48", "--workers", "1", "--output", str(tmp_path)]
    render.main(flags)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit, match="2"):
        render.main([*flags, "--seed", "1"])
    assert "is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_picture_that_cannot_be_written_ends_it(capsys, tmp_path, monkeypatch):
    def write(file, content):
        raise OSError(28, "No space left on device")               # as a full disk says it, without the file
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(SystemExit, match="2"):
        render.main(["--images", "1", "--size", "64x48", "--workers", "1", "--output", str(tmp_path)])
    assert "No space left on device" in capsys.readouterr().err and not list(tmp_path.rglob("*.txt"))


def test_boxes_that_training_would_refuse_are_told_of(capsys, tmp_path):
    flags = ["--images", "2", "--size", "64x48", "--workers", "1", "--output"]
    render.main([*flags, str(tmp_path / "thin")])
    assert "boxes of one pixel's width or height" in capsys.readouterr().out
    render.main([*flags, str(tmp_path / "wider"), "--margin", "1"])
    assert "one pixel" not in capsys.readouterr().out
    for folder, bad in (("thin", True), ("wider", False)):
        boxes = [box for file in (tmp_path / folder / "Annotations").iterdir() for _, box in read_boxes(file)[0]]
        assert any(min(x2 - x1, y2 - y1) < 2 for x1, y1, x2, y2 in boxes) == bad


@pytest.mark.parametrize("rows, sentence", [
    ("../7,train,nail,1,2,30,40", "line 2: image is '../7', must be a name without folders"),
    ("7,../../up,nail,1,2,30,40", "line 2: split is '../../up', must be a name without folders"),
    (",train,nail,1,2,30,40", "line 2: has no image"),
    ("7,train,,1,2,30,40", "line 2: has no class"),
    ("7,train,nail,1,2,30,40\n7.jpg,test,nail,1,2,30,40", "line 3: 7 is in test, but was in train"),
    ("7,train,nail,5,5,5,9", "line 2: box 5,5,5,9 must be two pixels or more wide and high, inside 64x48, counted from 1\n"),
    ("7,train,nail,0,5,5,9", "inside 64x48, counted from 1; a table that counts from 0 takes --zero-based\n"),
    ("7,train,nail,1,2,30", "line 2: the corners are not four whole numbers"),
    ("7,train,nail,1,2,30,\"" + "4" * 140000, "boxes.csv: is no table in UTF-8: field larger than field limit"),
    ("", "boxes.csv: holds no box"),
    ("7,train,nail,1,2,30,40\n7.jpg,train,nail,1,2,30,40\n7.png,train,nail,1,2,30,40", "line 4: image is 7.png, but was 7.jpg"),
])
def test_a_table_that_would_write_elsewhere_or_twice_is_refused(rows, sentence, tmp_path, capsys):
    (tmp_path / "boxes.csv").write_text(f"image,split,class,xmin,ymin,xmax,ymax\n{rows}\n")
    with pytest.raises(SystemExit):
        csv_to_voc.main([str(tmp_path / "boxes.csv"), "--size", "64x48", "--output", str(tmp_path / "out")])
    assert sentence in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_table_of_boxes_becomes_voc_xml(tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text(
        "image,split,class, xmin,ymin,xmax,ymax\n"
        "7,train,nail,1,2,30,40\n7.PNG,train ,clip_B,5, 5,6,6\nIMG 8.JPG,test,L_stick,9,9,64,48\n,,,,,,\n"
    )
    csv_to_voc.main([str(table), "--size", "64x48", "--output", str(tmp_path / "out")])
    assert read_boxes(tmp_path / "out/Annotations/7.xml") == (
        [("nail", (0, 1, 30, 40)), ("clip_B", (4, 4, 6, 6))],
        (64, 48),
    )
    assert (tmp_path / "out/ImageSets/Main/test.txt").read_text() == "IMG 8\n"
    assert "<filename>7.PNG</filename>" in (tmp_path / "out/Annotations/7.xml").read_text()
    assert "<filename>IMG 8.JPG</filename>" in (tmp_path / "out/Annotations/IMG 8.xml").read_text()


def test_a_table_without_header_takes_sizes_from_the_pictures_and_empty_rows_as_pictures_without_objects(tmp_path, capsys):
    folder, table = tmp_path / "JPEGImages", tmp_path / "boxes.csv"
    (folder / "sub").mkdir(parents=True)
    for name, size in (("a.png", (64, 48)), ("sub/b.jpg", (30, 20))):
        Image.new("RGB", size).save(folder / name)
    table.write_text("a.png,0,1,30,40,nail\nsub/b.jpg,,,,,\na.png,5,5,63,47,clip\n")
    words = [str(table), "--images", str(folder), "--zero-based", "--output", str(tmp_path)]
    csv_to_voc.main(words)
    assert read_boxes(tmp_path / "Annotations/a.xml") == ([("nail", (0, 1, 31, 41)), ("clip", (5, 5, 64, 48))], (64, 48))
    assert read_boxes(tmp_path / "Annotations/sub/b.xml") == ([], (30, 20))
    dataset = VOCDataset(tmp_path)
    assert len(dataset) == 2 and dataset.classes == ["clip", "nail"]
    for row, sentence in (("sub/b.jpg,0,0,30,5,nail", "inside 30x20"), ("c.png,1,1,5,5,nail", f"{folder}: must have one picture c.png, not 0"),
                          ("../a.png,1,1,5,5,nail", "must be a path below --images"), ("a.png,1,1,5,5,", "line 1: has no class")):
        table.write_text(row + "\n")
        with pytest.raises(SystemExit):
            csv_to_voc.main(words)
        assert sentence in capsys.readouterr().err


def test_the_summary_counts_the_four_classes_of_the_lists_that_are_there(tmp_path, capsys):
    for folder in ("Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    things = [{"name": name, "box": (0, 0, 30, 20), "truncated": True, "difficult": False} for name in ("nail", "truck")]
    (tmp_path / "Annotations/a b.xml").write_text(render.annotation("a b.jpg", 2560, 1440, things).replace(">30<", ">30.5<"))
    (tmp_path / "ImageSets/Main/train.txt").write_text("a b  1\n", encoding="utf-8-sig")
    summary.main([str(tmp_path)])
    told = capsys.readouterr().out
    assert "| train | 1 | 1 | 0 | 0 | 0 | 1 | 0 |" in told and "val" not in told and "| nail | 0 | 1 |" in told


def test_a_box_that_leaves_the_picture_is_refused_with_its_line(tmp_path, capsys):
    table = tmp_path / "boxes.csv"
    table.write_text("image,split,class,xmin,ymin,xmax,ymax\n7,train,nail,1,2,65,40\n")
    with pytest.raises(SystemExit) as end:
        csv_to_voc.main([str(table), "--size", "64x48", "--output", str(tmp_path / "out")])
    assert end.value.code == 2 and "line 2" in capsys.readouterr().err


def test_the_shipped_set_is_whole():
    lists = {
        split: (SHIPPED / f"ImageSets/Main/{split}.txt").read_text().split()
        for split in ("train", "val", "trainval", "test")
    }
    everything = lists["train"] + lists["val"] + lists["test"]
    assert len(set(everything)) == len(everything)
    assert sorted(lists["train"] + lists["val"]) == lists["trainval"]
    for folder, ending in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        assert sorted(path.stem for path in (SHIPPED / folder).iterdir()) == sorted(everything)
        assert all(path.suffix == ending for path in (SHIPPED / folder).iterdir())
    names = {split: set() for split in lists}
    for split, stems in lists.items():
        for stem in stems:
            boxes, (width, height) = read_boxes(SHIPPED / f"Annotations/{stem}.xml")
            names[split].update(name for name, _ in boxes)
            assert all(0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height for _, (x1, y1, x2, y2) in boxes)
    assert all(found == set(CLASSES) for found in names.values())
    assert sum(path.stat().st_size for path in (SHIPPED / "JPEGImages").iterdir()) < 25e6


@pytest.mark.parametrize("index", [0, 199])
def test_the_shipped_set_is_what_the_program_draws(index, tmp_path):
    """By the command of its README; to a pixel, since another processor rounds otherwise."""
    for folder in ("JPEGImages", "Annotations"):
        (tmp_path / folder).mkdir()
    name, _ = render.write_picture(index, 0, 960, 540, "default", 2, 72, 0, tmp_path)
    drawn, kept = (read_boxes(folder / f"Annotations/{name}.xml") for folder in (tmp_path, SHIPPED))
    assert [box[0] for box in drawn[0]] == [box[0] for box in kept[0]] and drawn[1] == kept[1]
    assert all(np.abs(np.subtract(a[1], b[1])).max() <= 1 for a, b in zip(drawn[0], kept[0], strict=True))
    pictures = [render.cv2.imread(str(folder / f"JPEGImages/{name}.jpg")).astype(int) for folder in (tmp_path, SHIPPED)]
    assert np.abs(pictures[0] - pictures[1]).mean() < 1


def test_a_close_picture_is_a_window_of_the_frame_and_not_a_nearer_camera():
    frame, window = (make_camera(np.random.default_rng(1), width, width * 9 // 16, STYLES["default"], magnification)
                     for width, magnification in ((2560, 1), (640, 4)))
    np.testing.assert_allclose(frame.position, window.position)
    assert (frame.focal, frame.scale) == (window.focal, window.scale)
    points = np.array([[0.0, 0, 0], [50, 20, 0], [-40, 60, 90]])
    np.testing.assert_allclose(frame.project(points)[0] - [1280, 720], window.project(points)[0] - [320, 180], atol=1e-6)


def test_magnified_pictures_show_larger_things_and_any_magnification_renders():
    def sides(magnification):
        return [max(x2 - x1, y2 - y1) for index in range(6) for x1, y1, x2, y2 in
                (thing["box"] for thing in scene.render(5, index, 320, 180, magnification=magnification).objects)]
    assert np.median(sides(4)) > 1.5 * np.median(sides(1.5))
    scene.render(5, 0, 160, 90, magnification=10)


def edge_width(width, magnification):
    """Columns in which a sharp edge down the middle of a picture rises from a tenth to nine tenths."""
    linear = np.full((48, width, 3), 0.1, np.float32)
    linear[:, width // 2 :] = 0.5
    style = {**STYLES["default"], "noise": 0.0, "sharpen": (0, 0), "blur": (2, 2)}
    image = sensor.lens(np.random.default_rng(0), linear, style, width * magnification / 2560)
    row = image.mean((0, 2))[width // 2 - 12 : width // 2 + 12]
    share = (row - row.min()) / np.ptp(row)
    return ((share > 0.1) & (share < 0.9)).sum()


def test_a_close_picture_is_as_sharp_as_the_frame_it_is_a_window_of():
    assert edge_width(640, 4) == edge_width(2560, 1) > edge_width(640, 1)


def test_a_close_picture_shows_the_part_of_the_texts_that_its_window_meets():
    shown = []
    for seed in range(60):
        image = np.full((90, 160, 3), 128, np.uint8)
        sensor.stamp(np.random.default_rng(seed), image, 4)
        assert set(np.unique(image)) <= {0, 128, 255}
        shown.append((image != 128).any())
    assert 8 < sum(shown) < 50
    whole = np.full((180, 320, 3), 128, np.uint8)
    sensor.stamp(np.random.default_rng(0), whole, 1)
    assert (whole[:40] != 128).any()


def rendered_files(script, folder, *before):
    flags = ["--images", "2", "--size", "320x180", "--seed", "3", "--workers", "2", "--output", folder]
    subprocess.run([sys.executable, SHIPPED / script, *before, *flags], check=True, capture_output=True)
    return {kind: [path.read_bytes() for path in sorted((folder / kind).iterdir())] for kind in ("JPEGImages", "Annotations")}


def test_a_set_without_an_ingredient_differs_by_that_alone(tmp_path):
    whole = rendered_files("render.py", tmp_path / "whole")
    for ingredient in without.INGREDIENTS:
        left = rendered_files("without.py", tmp_path / ingredient, ingredient)
        assert left["JPEGImages"] != whole["JPEGImages"], ingredient
        if ingredient in ("camera", "shadows"):  # nothing that lies there moved
            assert left["Annotations"] == whole["Annotations"]


def test_an_ingredient_that_is_none_is_named_with_those_that_are(capsys):
    assert without.main(["rain", "--output", "nowhere"]) == 2
    assert "rain" in (said := capsys.readouterr().err) and all(name in said for name in without.INGREDIENTS)


def test_gadgets_are_solid_and_about_as_large_as_asked():
    for seed in range(40):
        points = gadgets.gadget(np.random.default_rng(seed), 100, 5).points
        assert np.isfinite(points).all() and 20 < np.ptp(points, axis=0).max() < 250


def test_springs_grips_gratings_and_telephones_have_the_size_that_they_say():
    rng, steel = np.random.default_rng(0), gadgets.Material((0.5, 0.5, 0.5))
    extent = np.ptp(gadgets.spring(80, 10, 2, steel).points, axis=0)
    assert 80 <= extent[0] < 85 and np.allclose(extent[1:], 2 * (10 + 2), atol=0.6)
    x, y, z = gadgets.grip(100, 15, 8, steel).points.T
    assert (x.min(), x.max()) == (0, 100)
    assert set(np.hypot(y, z).round(1)) == {0.0, 11.7, 15.0}  # the middle of its ends, grooves, ribs
    assert np.allclose(np.ptp(gadgets.grating(rng, [95, 80, 20], steel).points, axis=0), [115, 90, 20], atol=11)
    for _ in range(20):
        long, wide, thick = np.ptp(people.telephone(rng).points, axis=0)
        assert 124 <= long <= 164 and 62 <= wide <= 80 and thick < 13


def test_prints_lie_where_the_thing_is_and_nowhere_else():
    rng = np.random.default_rng(0)
    camera = make_camera(rng, WIDTH, HEIGHT, STYLES["default"])
    assert (prints.prints(rng, np.array([[-50.0, 20.0], [WIDTH + 1, 5]]), camera) == 1).all()
    factors = np.stack([prints.prints(rng, np.array([[40.0, 90.0]]), camera) for _ in range(20)])
    beyond = int(40 + 180 * camera.scale) + 2  # 1.5 times the longest print
    assert (factors[:, :, beyond:] == 1).all() and factors.min() > 0
    changed = (factors != 1).any((1, 2))
    assert changed.sum() > 15


def test_prints_are_drawn_where_they_lie():
    """A black square print in the middle of a box that begins far from the picture's corner."""
    rng = np.random.default_rng(0)
    camera, light = make_camera(rng, 640, 360, STYLES["default"]), make_light(rng, STYLES["default"])
    thing, grain = box([300, 200, 5], Material((0.8, 0.8, 0.8))), np.ones((360, 640), np.float32)
    grain[170:190, 310:330] = 0
    pictures = [np.zeros((360, 640, 3), np.float32) for _ in range(2)]
    for picture, factor in zip(pictures, (None, grain), strict=True):
        raster.draw(picture, thing, camera, light, np.full(3, 0.1), np.ones((360, 640), np.float32), factor)
    changed = (pictures[0] != pictures[1]).any(-1)
    assert scene.mask_box(changed) == (310, 170, 330, 190) and changed.sum() == 400


def test_a_curved_surface_has_its_own_normals_at_the_corners_and_a_box_those_of_its_sides():
    pipe = tube(np.linspace([0, 0, 0], [100, 0, 0], 3), 10, 16, Material((0.5, 0.5, 0.5)))
    around = pipe.points * [0, 0.1, 0.1]
    corners = raster._corner_normals(pipe.faces, raster._faces(pipe, make_camera(np.random.default_rng(0), 640, 360, STYLES["default"]))[0])
    sides = slice(0, 32)  # then come the caps, whose edge is a crease
    assert np.abs(corners[sides] - around[pipe.faces[sides]]).max() < 1e-6
    assert np.allclose(corners[32:48], [-1, 0, 0]) and np.allclose(corners[48:], [1, 0, 0])


def test_only_curved_faces_are_cut_and_the_pieces_cover_them():
    corners = np.array([[[0, 0, 0], [40, 0, 0], [40, 20, 0], [0, 20, 0]]], float)
    up = np.tile([0.0, 0, 1], (1, 4, 1))
    pieces, normals, origin = raster._pieces(corners, up, corners[..., :2])
    assert np.array_equal(pieces, corners) and np.allclose(normals, [[0, 0, 1]]) and origin.tolist() == [0]
    tilted = up.copy()
    tilted[:, 1:3] = [np.sin(0.3), 0, np.cos(0.3)]  # bends along x, by 17 degrees: nine pieces, of 4.4 pixels each
    pieces, normals, origin = raster._pieces(corners, tilted, corners[..., :2])
    assert len(pieces) == 9 and origin.tolist() == [0] * 9 and np.all(np.diff(normals[:, 0]) > 0)
    assert np.ptp(pieces[..., 0], axis=1) == pytest.approx(40 / 9) and np.ptp(pieces[..., 1], axis=1) == pytest.approx(20)


def test_a_coarse_ball_is_drawn_without_facets():
    camera, light = (make(np.random.default_rng(0), *rest, STYLES["default"]) for make, rest in ((make_camera, (640, 360)), (make_light, ())))
    picture = np.zeros((360, 640, 3), np.float32)
    ball = blob([150, 150, 150], Material((0.5, 0.5, 0.5), sheen=0.0), 16, 24).dropped()
    raster.draw(picture, ball, camera, light, np.full(3, 0.1), np.zeros((360, 640), np.float32))
    row = picture[picture[..., 1].any(1)][:, :, 1]
    row = row[len(row) // 2]
    inside = row[row > 0][8:-8]
    assert len(inside) > 40 and np.abs(np.diff(inside)).max() < 0.1 * np.ptp(inside)


def test_hair_is_a_head_of_strands_from_the_crown_down():
    head = people.hair(np.random.default_rng(0))
    assert np.all(np.abs(np.ptp(head.points, axis=0) - [200, 156, 230]) < 25)
    tone = head.albedo[:, 1].reshape(59, 180)
    along, around = np.abs(np.diff(np.log(tone), axis=0)).mean(), np.abs(np.diff(np.log(tone), axis=1)).mean()
    assert around > 2 * along


def test_of_two_that_stand_there_the_nearer_is_drawn_last():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        camera = make_camera(rng, WIDTH, HEIGHT, STYLES["default"])
        away = [np.linalg.norm(mesh.points.mean(0) - camera.position) for mesh in scene._bystanders(rng, camera, 1200)]
        assert away == sorted(away, reverse=True)


def test_what_a_text_covers_is_not_seen_of_an_object(monkeypatch):
    whole = scene.render(3, 1, WIDTH, HEIGHT)
    x1, y1, x2, y2 = whole.objects[0]["box"]
    middle = (x1 + x2 + 1) // 2

    def stamp(rng, image, magnification):
        covered = np.zeros(image.shape[:2], bool)
        covered[:, :middle] = True
        return covered

    monkeypatch.setattr(sensor, "stamp", stamp)
    halved = next(thing for thing in scene.render(3, 1, WIDTH, HEIGHT).objects if thing["box"][2:] == (x2, y2) or thing["box"][0] == middle)
    assert halved["box"][0] >= middle and halved["truncated"]


def test_hooks_are_bent_wire_on_the_ground():
    for seed in range(60):
        points = clutter.hook(np.random.default_rng(seed)).points
        assert np.isfinite(points).all() and 10 < np.ptp(points, axis=0).max() < 200 and -0.3 < points[:, 2].min() <= 0


def test_stands_reach_the_ground_or_are_folded():
    steel = Material((0.5, 0.5, 0.5))
    for seed in range(60):
        points = bicycles.stand(np.random.default_rng(seed), 300, steel, steel).points
        assert np.isfinite(points).all() and 150 < np.ptp(points, axis=0).max() < 550 and points[:, 2].min() > -420


def test_what_is_wished_at_an_edge_lies_there_and_anywhere_where_nothing_stands():
    rng, hidden = np.random.default_rng(0), np.zeros((HEIGHT, WIDTH), np.float32)
    camera = make_camera(rng, WIDTH, HEIGHT, STYLES["default"])
    assert len({tuple(scene._edge_wish(rng, camera, hidden)) for _ in range(5)}) == 5
    hidden[:, 160:] = 1
    assert all(144 <= scene._edge_wish(rng, camera, hidden)[0] <= 168 for _ in range(20))


def test_one_leg_of_most_hex_keys_flashes_while_the_other_is_dull():
    ratios = []
    for seed in range(60):
        tones = MAKERS["L_stick"](np.random.default_rng(seed)).albedo[:, 1]
        assert tones.min() > 0
        ratios.append(tones.max() / tones.min())
    assert np.mean(np.array(ratios) > 1.5) > 0.6 and min(ratios) < 1.5


def test_what_is_over_exposed_turns_white_and_what_is_not_keeps_its_colour():
    linear = np.full((64, 64, 3), 0.2, np.float32)
    linear[:8], linear[-8:] = (0.2, 0.2, 0.02), (4, 4, 0.02)
    shown = [sensor.expose(np.random.default_rng(seed), linear.copy(), STYLES["default"]) for seed in range(20)]
    dim, bright = np.mean([[image[0, 0], image[-1, 0]] for image in shown], axis=0)
    assert dim[2] < dim[0] - 40 and bright[2] > dim[2] + 60 and bright[0] > 240


@pytest.mark.parametrize("road", [250, 128, 3])
def test_what_nobody_could_tell_from_the_road_is_not_labelled(road):
    """A box on the ground, as bright as the road; then a tenth of it, and a little more, is yellowish."""
    camera = make_camera(np.random.default_rng(0), 640, 360, STYLES["default"])
    thing = box([100, 50, 5], Material((0.5, 0.5, 0.5)))
    x1, y1 = np.round(camera.project(thing.points)[0].min(0)).astype(int)
    owner, image = np.zeros((360, 640), np.int16), np.full((360, 640, 3), road, np.uint8)
    owner[y1:y1 + 20, x1:x1 + 40] = 1
    assert scene._objects(image, owner.copy(), [("nail", thing, 800)], camera) == []
    image[y1:y1 + 20, x1:x1 + 10, 2] = 60 if road > 60 else 80
    found = scene._objects(image, owner, [("nail", thing, 800)], camera)
    assert [each["box"] for each in found] == [(x1, y1, x1 + 40, y1 + 20)] and (owner == 1).any()


def test_a_shadow_falls_away_from_the_sun():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        camera, light = make_camera(rng, 640, 360, STYLES["default"], 4), make_light(rng, STYLES["default"])
        sunlit, post = np.ones((360, 640), np.float32), box([6, 6, 40], Material((0.5, 0.5, 0.5))).dropped()
        raster.cast(sunlit, post, camera, light)
        rows, columns = np.nonzero(sunlit < 0.5 + 0.5 * sunlit.min())
        middle = camera.on_ground(np.stack([columns, rows], 1)).mean(0)
        assert middle @ light.direction[:2] < -0.9 * np.linalg.norm(middle) * np.linalg.norm(light.direction[:2])


def test_metal_in_the_shade_mirrors_a_shaded_road_and_a_low_side_away_from_the_sun_its_own_shadow():
    camera, light = make_camera(np.random.default_rng(0), 640, 360, STYLES["default"]), make_light(np.random.default_rng(0), STYLES["default"])
    light = replace(light, direction=np.array([0.6, 0, 0.8]), sun=np.ones(3), sky=np.full(3, 0.2), lobes=np.zeros((1, 5)))
    steel, down_and_away = box([10, 10, 10], Material((0.8, 0.8, 0.8), 1.0)), np.array([[-0.8, 0.0, -0.6]])
    steel = replace(steel, albedo=steel.albedo[:1], surface=steel.surface[:1])

    def shade(height, light):
        return [side.mean() for side in raster.shade(steel, np.array([[0.0, 0, height]]), down_and_away, camera, light, np.full(3, 0.3))]

    low, high = shade(2.0, light), shade(400.0, light)
    assert high[0] > 3 * low[0]
    assert shade(400.0, replace(light, sun=np.zeros(3))) == pytest.approx([high[1]] * 2)


def test_shoes_rest_on_the_ground_whatever_their_soles():
    for seed in range(20):
        body = people.shoe(np.random.default_rng(seed), people.Material((0.1, 0.1, 0.1)), people.Material((0.7, 0.7, 0.7)))
        length, width, height = np.ptp(body.points, axis=0)
        assert 245 <= length <= 310 and 90 <= width <= 175 and height < 110 and body.points[:, 2].min() > -1
