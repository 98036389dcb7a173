"""Renders pictures of four small foreign objects on asphalt in PASCAL VOC layout.

    python foreign_object_dataset/render.py --images 622 --size 2560x1440 --output DIR

Writes JPEGImages/NAME.jpg, Annotations/NAME.xml (1-based inclusive pixels) and
ImageSets/Main/{train,val,trainval,test}.txt. Picture number i depends on (seed, i, size, style, magnification, quality, margin) alone,
but for a few grey levels, and rarely a place, that change with the version of OpenCV and with the processor. The number of processes changes nothing, and a larger
set begins with the smaller one's pictures; its lists are drawn anew, and an empty list is not written.
"""

import argparse
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from tqdm import tqdm

from scene import render
from styles import STYLES

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from util.command_line import Parser, number, one_sentence_errors  # noqa: E402

SPLIT = {"train": 375, "val": 97, "test": 150}  # the photographs' proportions


def picture_size(text):
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not all(32 <= int(side) <= 16384 for side in found.groups()):
        raise argparse.ArgumentTypeError(f"'{text}' is not WIDTHxHEIGHT with both in 32..16384, such as 2560x1440")
    return int(found[1]), int(found[2])


def jpeg_file(text):
    if not re.search(r"\.jpe?g$", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"'{text}' is no .jpg")
    return Path(text)


def annotation(filename, width, height, objects):
    """VOC XML of one picture; boxes go from continuous edges [x1, y1, x2, y2] to 1-based inclusive pixels."""
    root = ElementTree.Element("annotation")
    for tag, text in (("folder", "foreign_object_dataset"), ("filename", filename)):
        ElementTree.SubElement(root, tag).text = text
    size = ElementTree.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, tag).text = str(value)
    ElementTree.SubElement(root, "segmented").text = "0"
    for thing in objects:
        node = ElementTree.SubElement(root, "object")
        for tag, value in (
            ("name", thing["name"]),
            ("pose", "Unspecified"),
            ("truncated", int(thing["truncated"])),
            ("difficult", int(thing["difficult"])),
        ):
            ElementTree.SubElement(node, tag).text = str(value)
        x1, y1, x2, y2 = thing["box"]
        corners = ElementTree.SubElement(node, "bndbox")
        for tag, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(corners, tag).text = str(value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def widened(box, margin, width, height):
    """The box [x1, y1, x2, y2] with `margin` px more on each side, as far as the picture goes."""
    x1, y1, x2, y2 = box
    return [max(0, x1 - margin), max(0, y1 - margin), min(width, x2 + margin), min(height, y2 + margin)]


def write_jpeg(file, image, quality):
    """cv2.imwrite knows no letters beyond ASCII in a path on Windows, and is silent about a full disk."""
    file.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def write_picture(index, seed, width, height, style, magnification, quality, margin, output):
    """(its name, how many of its boxes are only one pixel wide or high)"""
    cv2.setNumThreads(1)
    name = f"{index:06d}"
    picture = render(seed, index, width, height, style, magnification)
    write_jpeg(output / "JPEGImages" / f"{name}.jpg", picture.image[..., ::-1], quality)
    objects = [{**thing, "box": widened(thing["box"], margin, width, height)} for thing in picture.objects]
    (output / "Annotations" / f"{name}.xml").write_text(annotation(f"{name}.jpg", width, height, objects), encoding="utf-8")
    return name, sum(min(x2 - x1, y2 - y1) < 2 for x1, y1, x2, y2 in (thing["box"] for thing in objects))


def split_names(names, seed):
    """{split: sorted names}, train, val and test disjoint in the photographs' proportions, trainval their union."""
    shuffled = [names[i] for i in np.random.default_rng([seed, len(names)]).permutation(len(names))]
    whole = sum(SPLIT.values())
    val, test = round(len(names) * SPLIT["val"] / whole), round(len(names) * SPLIT["test"] / whole)
    lists = {"val": shuffled[:val], "test": shuffled[val : val + test], "train": shuffled[val + test :]}
    lists["trainval"] = lists["train"] + lists["val"]
    return {split: sorted(chosen) for split, chosen in lists.items()}


def contact_sheet(folder, file, columns=6, rows=4, width=320):
    """The first pictures of a set with their boxes, side by side."""
    tiles = []
    for path in sorted((folder / "JPEGImages").iterdir())[: columns * rows]:
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
        for corners in ElementTree.parse(folder / "Annotations" / f"{path.stem}.xml").iter("bndbox"):
            x1, y1, x2, y2 = (int(corners.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
            cv2.rectangle(image, (x1 - 1, y1 - 1), (x2 - 1, y2 - 1), (60, 60, 255), max(image.shape[1] // 400, 1))
        tiles.append(
            cv2.resize(image, (width, round(width * image.shape[0] / image.shape[1])), interpolation=cv2.INTER_AREA)
        )
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    sheet = np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
    write_jpeg(file, sheet, 85)


def parse_arguments(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("--images", type=number(int, 1), default=622, metavar="N", help="how many pictures")
    parser.add_argument("--size", type=picture_size, default="2560x1440", metavar="WIDTHxHEIGHT", help="of the pictures in px")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder that receives the VOC layout")
    parser.add_argument("--seed", type=number(int, 0), default=0, metavar="N", help="of all that is drawn by chance")
    parser.add_argument("--style", choices=sorted(STYLES), default="default", help="which world; other is for testing only")
    parser.add_argument("--magnification", type=number(float, 0.2, 10), default=1.0, metavar="TIMES", help="how much larger things are than in the photographs")
    parser.add_argument("--workers", type=number(int, 1), default=os.cpu_count(), metavar="N", help="processes")
    parser.add_argument("--quality", type=number(int, 1, 100), default=90, metavar="1..100", help="of the JPEG files")
    parser.add_argument("--margin", type=number(int, 0), default=0, metavar="PX", help="that boxes are wider on each side than what shows of a thing, "
                        "as people draw them")
    parser.add_argument("--contact-sheet", type=jpeg_file, metavar="FILE", help="also writes an overview of the first 24 pictures, with boxes, to this .jpg")
    return parser.parse_args(arguments)


def main(arguments=None):
    flags = parse_arguments(arguments)
    with one_sentence_errors():
        write_set(flags)


def write_set(flags):
    """Raises FileExistsError where --output holds pictures, boxes or lists already: a mixture of two sets would look whole."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (flags.output / folder).mkdir(parents=True, exist_ok=True)
        if there := next((flags.output / folder).iterdir(), None):
            raise FileExistsError(0, "is there already; name another folder, or empty it", str(there))
    if flags.contact_sheet:
        flags.contact_sheet.parent.mkdir(parents=True, exist_ok=True)
    job = partial(
        write_picture,
        seed=flags.seed,
        width=flags.size[0],
        height=flags.size[1],
        style=flags.style,
        magnification=flags.magnification,
        quality=flags.quality,
        margin=flags.margin,
        output=flags.output,
    )
    if flags.workers == 1:
        written = [job(index) for index in tqdm(range(flags.images), unit="picture")]
    else:
        with ProcessPoolExecutor(min(flags.workers, flags.images, 61)) as pool:        # Windows takes no more
            written = list(tqdm(pool.map(job, range(flags.images)), total=flags.images, unit="picture"))
    names, thin = zip(*written)
    for split, chosen in split_names(names, flags.seed).items():
        if chosen:
            (flags.output / "ImageSets/Main" / f"{split}.txt").write_text(
                "".join(f"{name}\n" for name in chosen), encoding="utf-8"
            )
    if sum(thin):
        print(f"boxes of one pixel's width or height, which training refuses: {sum(thin)}; render larger pictures, or with --margin 1")
    if flags.contact_sheet:
        contact_sheet(flags.output, flags.contact_sheet)


if __name__ == "__main__":
    main()
