"""A synthetic VOC folder for all tests: coloured rectangles and ellipses on grey noise, with exact boxes."""
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

COLOURS = ((220, 30, 30), (30, 200, 30), (40, 60, 230), (230, 220, 30), (220, 40, 220), (30, 220, 220))


def write_xml(path, size, objects, extra=""):
    """size (h, w) or None; objects [(name, (xmin, ymin, xmax, ymax))], the numbers written as given."""
    lines = ["<annotation>"]
    if size:
        lines.append(f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>")
    for name, corners in objects:
        keys = ("xmin", "ymin", "xmax", "ymax")
        numbers = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
        lines.append(f"<object><name>{name}</name><difficult>0</difficult><bndbox>{numbers}</bndbox></object>")
    Path(path).write_text("\n".join([*lines, extra, "</annotation>"]))


def make_voc(folder, n=12, size=(96, 128), classes=("disc", "slab"), seed=0, max_objects=3):
    """A VOC folder of n pictures of `size` (h, w), its lists train (half), val and test (a quarter each); its Path.

    Class k has colour COLOURS[k]; even classes are ellipses, odd ones rectangles, both filling their boxes, which do
    not overlap. Each picture has 1..max_objects objects. VOC pixels: 1-based, inclusive.
    """
    folder, rng = Path(folder), random.Random(seed)
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    height, width = size
    ids = [f"{number:04d}" for number in range(n)]
    for id in ids:
        noise = np.random.default_rng(rng.randrange(2**32)).integers(90, 140, (height, width, 1), dtype=np.uint8)
        image, objects, taken = Image.fromarray(noise.repeat(3, axis=2)), [], []
        for _ in range(rng.randint(1, max_objects)):
            w, h = rng.randint(width // 6, width // 3), rng.randint(height // 6, height // 3)
            x, y = rng.randint(0, width - w), rng.randint(0, height - h)
            if any(x < X + W and X < x + w and y < Y + H and Y < y + h for X, Y, W, H in taken):
                continue
            taken.append((x, y, w, h))
            label = rng.randrange(len(classes))
            draw = ImageDraw.Draw(image)
            (draw.rectangle if label % 2 else draw.ellipse)((x, y, x + w - 1, y + h - 1), fill=COLOURS[label])
            objects.append((classes[label], (x + 1, y + 1, x + w, y + h)))
        image.save(folder / "JPEGImages" / f"{id}.jpg", quality=95, subsampling=0)
        write_xml(folder / "Annotations" / f"{id}.xml", size, objects)
    half, most = n // 2, 3 * n // 4
    parts = {"train": ids[:half], "val": ids[half:most], "test": ids[most:], "trainval": ids[:most]}
    for split, members in parts.items():
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{id}\n" for id in members))
    return folder


@pytest.fixture
def voc_folder(tmp_path):
    return make_voc(tmp_path / "voc")


@pytest.fixture
def voc_maker():
    """The function make_voc(folder, n, size, classes, seed, max_objects) -> Path."""
    return make_voc


@pytest.fixture
def xml_writer():
    """The function write_xml(path, size, objects, extra)."""
    return write_xml
