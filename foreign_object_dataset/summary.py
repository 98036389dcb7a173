"""Prints, as Markdown, what a set in VOC layout holds: pictures and objects by split, side lengths by class.

python foreign_object_dataset/summary.py foreign_object_dataset
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from camera import REFERENCE_WIDTH
from objects import CLASSES

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from dataset.voc_folder import read_split  # noqa: E402
from util.command_line import Parser  # noqa: E402

EDGES = (0, 25, 50, 75, 100, 125, 150, 200, np.inf)  # of the longer side, pixels in a picture 2560 wide


def read_objects(file):
    """[(class, width, height, truncated, difficult)] of one XML, of the four classes, sides in pixels of a picture REFERENCE_WIDTH wide."""
    root = ElementTree.parse(file).getroot()
    unit = REFERENCE_WIDTH / int(root.findtext("size/width"))
    rows = []
    for thing in root.iter("object"):
        if thing.findtext("name") not in CLASSES:
            continue
        x1, y1, x2, y2 = (float(thing.findtext(f"bndbox/{tag}")) for tag in ("xmin", "ymin", "xmax", "ymax"))
        flags = thing.findtext("truncated") == "1", thing.findtext("difficult") == "1"
        rows.append((thing.findtext("name"), unit * (x2 - x1 + 1), unit * (y2 - y1 + 1), *flags))
    return rows


def counts_table(folder):
    lines = [f"| split | pictures | {' | '.join(CLASSES)} | truncated | difficult |", "|---" * (len(CLASSES) + 4) + "|"]
    for split in ("train", "val", "test"):
        file = folder / f"ImageSets/Main/{split}.txt"
        if not file.exists():
            continue
        names = read_split(file)
        rows = [row for name in names for row in read_objects(folder / f"Annotations/{name}.xml")]
        count = Counter(row[0] for row in rows)
        cells = [
            split,
            len(names),
            *(count[name] for name in CLASSES),
            sum(row[3] for row in rows),
            sum(row[4] for row in rows),
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def sizes_table(folder):
    rows = [row for file in sorted((folder / "Annotations").glob("*.xml")) for row in read_objects(file)]
    spans = [
        f"{low}-{high}" if np.isfinite(high) else f"{low}+" for low, high in zip(EDGES[:-1], EDGES[1:], strict=True)
    ]
    lines = [f"| longer side | {' | '.join(spans)} | sides 2 / 25 / 50 / 75 / 98 % |", "|---" * (len(spans) + 2) + "|"]
    for name in CLASSES:
        sides = np.array([row[1:3] for row in rows if row[0] == name]).reshape(-1, 2)
        histogram = np.histogram(sides.max(1, initial=0), EDGES)[0]
        spread = (
            " / ".join(f"{value:.0f}" for value in np.percentile(sides, (2, 25, 50, 75, 98))) if len(sides) else "-"
        )
        lines.append(f"| {name} | {' | '.join(map(str, histogram))} | {spread} |")
    return "\n".join(lines)


def main(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="a set in VOC layout")
    folder = parser.parse_args(arguments).folder
    try:
        print(f"{counts_table(folder)}\n\n{sizes_table(folder)}")
    except (OSError, ValueError, TypeError, ZeroDivisionError, ElementTree.ParseError) as error:
        parser.error(f"{folder}: {error}")


if __name__ == "__main__":
    main()
