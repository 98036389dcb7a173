import io
import json
import runpy
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dataset.coco import COCODataset
from dataset.pictures import Pictures, find_pictures, flat_name, natural_order, picture_size, read_picture, undecodable
from dataset.voc import VOCDataset

EXIF_EXAMPLES = Path(__file__).parents[1] / "../shared/data/exif_orientation"
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quadrants():
    """40 wide, 20 high: red and green above, blue and white below."""
    image = Image.new("RGB", (40, 20))
    for colour, corner in ((RED, (0, 0)), (GREEN, (20, 0)), (BLUE, (0, 10)), (WHITE, (20, 10))):
        image.paste(colour, (*corner, corner[0] + 20, corner[1] + 10))
    return image


def corner_colours(image):
    """The colours a quarter of a side away from the corners, each channel as 0 or 255."""
    height, width = image.shape[-2:]
    points = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return [tuple(255 * (image[:, y, x] > 127).int().tolist()[c] for c in range(3)) for y, x in points]


UNDO = {1: None, 2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
        7: "TRANSVERSE", 8: "ROTATE_270"}


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stored_in_any_exif_orientation_is_read_upright(tmp_path, orientation, suffix):
    stored, exif = quadrants(), Image.Exif()
    if UNDO[orientation]:
        stored = stored.transpose(getattr(Image.Transpose, UNDO[orientation]))
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif)
    image = read_picture(path)
    assert tuple(image.shape) == (3, 20, 40) and image.dtype == torch.uint8
    assert picture_size(path) == (20, 40)
    assert corner_colours(image) == [RED, GREEN, BLUE, WHITE]


def move_behind_pixels(path, kind):
    """Puts a PNG's chunks of one kind between its pixels and its end."""
    data, chunks, place = path.read_bytes(), [], 8
    while place < len(data):
        chunks.append(data[place : place + 12 + int.from_bytes(data[place : place + 4], "big")])
        place += len(chunks[-1])
    chunks.sort(key=lambda chunk: {kind: 1, b"IEND": 2}.get(chunk[4:8], 0))
    path.write_bytes(data[:8] + b"".join(chunks))


@pytest.mark.parametrize("writer", ["ImageMagick", "exiftool", "an animation's"])
def test_the_orientation_of_a_png_counts_behind_its_pixels_too_and_costs_no_decoding(tmp_path, writer, monkeypatch):
    stored, exif, xmp, path = quadrants().transpose(Image.Transpose.ROTATE_90), Image.Exif(), PngImagePlugin.PngInfo(), tmp_path / "a.png"
    exif[0x0112] = 6
    xmp.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    kind, options = {"ImageMagick": (b"eXIf", {"exif": exif}), "exiftool": (b"iTXt", {"pnginfo": xmp}),
                     "an animation's": (b"eXIf", {"exif": exif, "save_all": True, "append_images": [stored.convert("L").convert("RGB")]})}[writer]
    stored.save(path, **options)
    move_behind_pixels(path, kind)
    assert corner_colours(read_picture(path)) == [RED, GREEN, BLUE, WHITE]
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("pixels are decoded"))
    assert picture_size(path) == (20, 40)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_changes_nothing(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quadrants().save(tmp_path / "a.jpg", exif=exif)
    assert corner_colours(read_picture(tmp_path / "a.jpg")) == [RED, GREEN, BLUE, WHITE]


def test_an_orientation_of_65537_and_a_damaged_exif_block_change_nothing(tmp_path):
    entry = struct.pack("<HHII", 0x0112, 4, 1, 65537)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 0)
    for number, block in enumerate((exif, b"Exif\0\0" + b"\xff" * 20)):
        path = tmp_path / f"{number}.jpg"
        quadrants().save(path, exif=block)
        assert corner_colours(read_picture(path)) == [RED, GREEN, BLUE, WHITE]
        assert picture_size(path) == (20, 40)


@pytest.mark.skipif(not EXIF_EXAMPLES.is_dir(), reason="the EXIF example pictures are not beside this repository")
@pytest.mark.parametrize("shape", ["Landscape", "Portrait"])
def test_the_same_photograph_in_all_orientations_looks_alike(shape):
    first = read_picture(EXIF_EXAMPLES / f"{shape}_1.jpg").float()
    for orientation in range(9):
        image = read_picture(EXIF_EXAMPLES / f"{shape}_{orientation}.jpg").float()
        assert image.shape == first.shape
        assert (image - first).abs().mean() < 8


def test_every_mode_becomes_three_channels_of_the_right_colours(tmp_path):
    image, expected = quadrants(), [RED, GREEN, BLUE, WHITE]
    image.quantize(4).save(tmp_path / "palette.png")
    image.convert("RGBA").save(tmp_path / "alpha.png")
    image.convert("RGBA").save(tmp_path / "png_inside.jpg", format="PNG")
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.save(tmp_path / "UPPER.BMP")
    for path in tmp_path.iterdir():
        assert corner_colours(read_picture(path)) == expected, path
        assert picture_size(path) == (20, 40)


def test_grey_pictures_become_three_equal_channels(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    Image.fromarray(np.stack([ramp, np.full_like(ramp, 255)], axis=2)).save(tmp_path / "grey_alpha.png")
    Image.fromarray(ramp > 127).save(tmp_path / "one_bit.png")
    for name in ("grey.png", "grey_alpha.png"):
        assert torch.equal(read_picture(tmp_path / name), torch.from_numpy(ramp).expand(3, 16, 16))
    assert read_picture(tmp_path / "one_bit.png")[0].tolist() == (255 * (ramp > 127)).tolist()


def test_sixteen_bit_grey_is_scaled_and_not_saturated(tmp_path):
    Image.fromarray(np.array([[0, 257, 25700, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_picture(tmp_path / "deep.png")[:, 0].tolist() == [[0, 1, 100, 255]] * 3


def test_transparent_pixels_are_laid_on_white(tmp_path):
    Image.fromarray(np.array([[[10, 20, 30, 0], [10, 20, 30, 255]]], dtype=np.uint8)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png")[:, 0].T.tolist() == [[255, 255, 255], [10, 20, 30]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_picture(tmp_path / "p.png")[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_picture_is_refused_by_name_already_from_its_size(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    for read in (read_picture, picture_size):
        with pytest.raises(ValueError, match=f"cut.{suffix}.*truncated"):
            read(path)


def test_a_jpeg_with_zeros_for_its_lost_tail_is_refused(tmp_path):
    picture, thumbnail = (Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)) for side in (64, 16))
    small = io.BytesIO()
    thumbnail.save(small, "JPEG")
    for progressive in (False, True):
        picture.save(tmp_path / "a.jpg", progressive=progressive, comment=small.getvalue())        # a whole picture before the pixels
        data = (tmp_path / "a.jpg").read_bytes()
        (tmp_path / "a.jpg").write_bytes(data[:-1500] + bytes(1500))
        for read in (picture_size, read_picture):
            with pytest.raises(ValueError, match="a.jpg: cannot be read as a picture: it is truncated"):
                read(tmp_path / "a.jpg")
        assert "it is truncated" in undecodable([tmp_path / "a.jpg"])[tmp_path / "a.jpg"]
        (tmp_path / "a.jpg").write_bytes(data + small.getvalue()[:-2] + bytes(9))       # a telephone's film behind them
        assert picture_size(tmp_path / "a.jpg") == (64, 64)


def damage(path):
    """One wrong byte in the middle of a PNG's pixels: only decoding shows it."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))


def test_skip_bad_leaves_out_what_only_decoding_shows(tmp_path, voc_maker):
    folder = voc_maker(tmp_path / "voc")
    hurt = folder / "JPEGImages" / "0003.png"
    (folder / "JPEGImages" / "0003.jpg").unlink()
    damage(hurt)
    for file in folder.glob("Annotations/0003.xml"):
        file.write_text(file.read_text().replace("<width>128</width><height>96</height>", "<width>64</width><height>64</height>"))
    assert picture_size(hurt) == (64, 64) and list(undecodable([hurt, folder / "JPEGImages" / "0001.jpg"])) == [hurt]
    dataset = VOCDataset(folder, skip_bad=True)
    assert len(dataset) == 11 and len(dataset.skipped) == 1 and "0003.png: cannot be read" in dataset.skipped[0]
    images = [{"id": place, "file_name": name} for place, name in enumerate(["0001.jpg", "0003.png"])]
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    (tmp_path / "a.json").write_text(json.dumps({"images": images, "annotations": [box, {**box, "id": 2, "image_id": 0}],
                                                 "categories": [{"id": 1, "name": "disc"}]}))
    dataset = COCODataset(tmp_path / "a.json", folder / "JPEGImages", skip_bad=True)
    assert dataset.ids == ["0"] and len(dataset.target(0)["boxes"]) == 1 and "0003.png: cannot be read" in dataset.skipped[0]


def test_bytes_after_the_end_of_a_picture_do_no_harm(tmp_path):
    quadrants().save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"\0" * 100)
    assert picture_size(tmp_path / "a.jpg") == (20, 40)


def test_what_is_no_picture_is_refused_with_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name, kind in (("float.tif", np.float32), ("int32.tif", np.int32)):
        Image.fromarray(np.ones((4, 4), dtype=kind)).save(tmp_path / name)
    quadrants().save(tmp_path / "bomb.png")
    rules = {"text.jpg": "no picture of a known kind", "empty.png": "no picture of a known kind",
             "float.tif": "floating-point", "int32.tif": "signed or 32-bit", "nowhere.jpg": "no such picture"}
    for name, rule in rules.items():
        with pytest.raises(ValueError, match=f"{name}.*{rule}"):
            read_picture(tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*{rule}"):
            picture_size(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for read in (read_picture, picture_size):
        with pytest.raises(ValueError, match="bomb.png.*decompression bomb"):
            read(tmp_path / "bomb.png")


def test_a_large_picture_is_read_without_a_warning(tmp_path, monkeypatch):
    quadrants().save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)         # of its 800 pixels: Pillow warns from once, and raises from twice as many on
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fresh = runpy.run_path(str(Path(__file__).parents[1] / "dataset/pictures.py"))
        assert fresh["read_picture"](tmp_path / "large.png").shape == (3, 20, 40) and not told


def test_natural_order_counts():
    names = ["10.jpg", "b2", "9.jpg", "B10", "a²"]
    assert sorted(names, key=natural_order) == ["9.jpg", "10.jpg", "a²", "b2", "B10"]


def test_pictures_are_found_in_files_folders_and_globs_each_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("10.jpg", "9.JPG", "a.txt", "._9.jpg", "sub/b.WebP", "odd.dat"):
        quadrants().save(tmp_path / name, format="PNG")
    names = [path.name for path in find_pictures([tmp_path])]
    assert names == ["9.JPG", "10.jpg"]
    assert [path.name for path in find_pictures([f"{tmp_path}/**/*", tmp_path, tmp_path / "odd.dat"])] == [
        "9.JPG", "10.jpg", "b.WebP", "odd.dat"]
    (tmp_path / "folder.jpg").mkdir()
    assert tmp_path / "folder.jpg" not in find_pictures([str(tmp_path / "*")])
    with pytest.raises(ValueError, match="a PATH is empty"):
        find_pictures([""])
    with pytest.raises(ValueError, match="nothing.*no picture here"):
        find_pictures([tmp_path / "nothing"])


def test_pictures_without_annotations(tmp_path):
    quadrants().save(tmp_path / "good.png")
    pictures = Pictures([tmp_path])
    image, info = pictures[0]
    assert len(pictures) == 1
    assert info == {"image_id": (tmp_path / "good.png").as_posix(), "orig_size": (20, 40)}
    assert pictures.size(0) == (20, 40) and tuple(image.shape) == (3, 20, 40)
    (tmp_path / "bad.jpg").write_text("hello")
    with pytest.raises(ValueError, match="bad.jpg"):
        Pictures([tmp_path])


def test_an_id_is_one_file_name_on_every_system():
    assert [flat_name(id) for id in ("0001", "/data/VOC/a.b", "C:/data/1", "a\\b")] == ["0001", "data_VOC_a.b", "C__data_1", "a_b"]
    assert flat_name("/data/" + "ä" * 300 + "/7") == "ä" * 99 + "_7"         # 200 bytes; a file name may have 255
    assert flat_name("sub/b\udce4r") == "sub_br"                               # a name that is not UTF-8


def test_a_full_memory_is_not_the_pictures_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda path: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        read_picture(tmp_path / "a.png")
