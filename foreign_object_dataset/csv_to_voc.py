"""Turns a table of boxes into VOC XML, one file a picture.

    python foreign_object_dataset/csv_to_voc.py BOXES.csv --size 2560x1440 --output DIR

The table has the columns image, split, class, xmin, ymin, xmax, ymax, one box a row, in pixels. Their convention is
kept: 1-based inclusive pixels go in and come out (--zero-based adds 1 to every corner). An image may be named with its
suffix or without. DIR receives Annotations/IMAGE.xml and, for the splits named in the table, ImageSets/Main/SPLIT.txt.
"""

import csv
import sys
from pathlib import Path

from render import annotation, picture_size

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from dataset.pictures import is_picture  # noqa: E402
from util.command_line import Parser  # noqa: E402

COLUMNS = ("image", "split", "class", "xmin", "ymin", "xmax", "ymax")


def read_table(path, width, height, zero_based=False):
    """({image: (its file's name, objects as `annotation` takes them)}, {split: sorted images}).

    Raises ValueError on a missing column, a name that is no file's, a picture in two splits, a box that is not whole numbers, is not
    two pixels wide and high or leaves the picture, two files of one name but for the suffix, or no box at all; csv.Error for what is no table.
    """
    pictures, splits, split_of, name_of = {}, {}, {}, {}
    with open(path, newline="", encoding="utf-8-sig") as lines:
        table = csv.DictReader(lines, restval="")
        table.fieldnames = [name.strip() for name in table.fieldnames or []]
        missing = [column for column in COLUMNS if column not in table.fieldnames]
        if missing:
            raise ValueError(f"{path}: no column {', '.join(missing)}, its header must name {', '.join(COLUMNS)}")
        for row in table:
            row = {column: row[column].strip() for column in COLUMNS}
            if not any(row.values()):
                continue
            try:
                x1, y1, x2, y2 = (int(row[column]) + zero_based for column in COLUMNS[3:])
            except ValueError:
                raise ValueError(f"{path}: line {table.line_num}: the corners are not four whole numbers") from None
            if not (1 <= x1 < x2 <= width and 1 <= y1 < y2 <= height):
                raise ValueError(f"{path}: line {table.line_num}: box {x1},{y1},{x2},{y2} must be two pixels or more wide and high, inside {width}x{height}"
                                 f", counted from 1{'; a table that counts from 0 takes --zero-based' * (not zero_based and 0 in (x1, y1))}")
            for column in ("image", "class"):
                if not row[column]:
                    raise ValueError(f"{path}: line {table.line_num}: has no {column}")
            for column in ("image", "split"):
                if row[column] and Path(row[column]).name != row[column]:
                    raise ValueError(f"{path}: line {table.line_num}: {column} is '{row[column]}', must be a name without folders")
            file = Path(row["image"])
            image, filename = (file.stem, file.name) if is_picture(file) else (file.name, None)
            if row["split"] and (other := split_of.setdefault(image, row["split"])) != row["split"]:
                raise ValueError(f"{path}: line {table.line_num}: {image} is in {row['split']}, but was in {other}")
            if filename and (other := name_of.setdefault(image, filename)) != filename:
                raise ValueError(f"{path}: line {table.line_num}: image is {filename}, but was {other}")
            pictures.setdefault(image, []).append(
                {"name": row["class"], "box": (x1 - 1, y1 - 1, x2, y2), "truncated": False, "difficult": False}
            )
            if row["split"]:
                splits.setdefault(row["split"], set()).add(image)
    if not pictures:
        raise ValueError(f"{path}: holds no box")
    named = {image: (name_of.get(image, f"{image}.jpg"), objects) for image, objects in pictures.items()}
    return named, {split: sorted(images) for split, images in splits.items()}


def main(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("table", type=Path, metavar="BOXES.csv")
    parser.add_argument("--size", type=picture_size, default="2560x1440", metavar="WIDTHxHEIGHT", help="of the pictures in px")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder that receives Annotations/ and ImageSets/")
    parser.add_argument("--zero-based", action="store_true", help="the table counts pixels from 0")
    flags = parser.parse_args(arguments)
    try:
        pictures, splits = read_table(flags.table, *flags.size, flags.zero_based)
        texts = {f"Annotations/{image}.xml": annotation(filename, *flags.size, objects) for image, (filename, objects) in pictures.items()}
        texts |= {f"ImageSets/Main/{split}.txt": "".join(f"{image}\n" for image in images) for split, images in splits.items()}
        for name in texts:
            if (flags.output / name).exists():
                raise ValueError(f"--output {flags.output}: {name} is there already; name another folder")
        for name, text in texts.items():
            (flags.output / name).parent.mkdir(parents=True, exist_ok=True)
            (flags.output / name).write_text(text, encoding="utf-8")
    except (csv.Error, UnicodeError) as error:
        parser.error(f"{flags.table}: is no table in UTF-8: {error}")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
