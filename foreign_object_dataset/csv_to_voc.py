"""Turns a table of boxes into VOC XML, one file a picture.

    python foreign_object_dataset/csv_to_voc.py BOXES.csv --images my_pictures/JPEGImages --output my_pictures
    python foreign_object_dataset/csv_to_voc.py BOXES.csv --size 2560x1440 --output DIR         # all of one size, not at hand

The table has the columns image, class, xmin, ymin, xmax, ymax, and may have split; one box a row, in pixels. Or it has no header and six columns,
image, xmin, ymin, xmax, ymax, class, as keras-retinanet reads them. A row of a picture without class and corners makes a picture without objects.
The pixels' convention is kept: 1-based inclusive ones go in and come out (--zero-based adds 1 to every corner). An image may be named with its
suffix or without, and with --images by its path below that folder. DIR receives Annotations/IMAGE.xml and, for the splits named in the table,
ImageSets/Main/SPLIT.txt.
"""

import csv
import sys
from pathlib import Path, PurePosixPath

from render import annotation, picture_size

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from dataset import pictures as files  # noqa: E402
from util.command_line import Parser  # noqa: E402

COLUMNS = ("image", "class", "xmin", "ymin", "xmax", "ymax")
WITHOUT_HEADER = ("image", "xmin", "ymin", "xmax", "ymax", "class")


def read_rows(path):
    """[(line number, {column: text})] of the rows that are not empty. Raises ValueError on a missing column."""
    with open(path, newline="", encoding="utf-8-sig") as lines:
        table = csv.reader(lines)
        rows = [(table.line_num, row) for cells in table if any(row := [cell.strip() for cell in cells])]
    header = rows[0][1] if rows else []
    if len(header) == len(WITHOUT_HEADER) and not {*header} & {*COLUMNS}:
        header = list(WITHOUT_HEADER)
    else:
        rows = rows[1:]
    if missing := [column for column in COLUMNS if column not in header]:
        raise ValueError(f"{path}: no column {', '.join(missing)}, its header must name {', '.join(COLUMNS)}, or be absent of six columns {', '.join(WITHOUT_HEADER)}")
    return [(line, dict.fromkeys([*COLUMNS, "split"], "") | dict(zip(header, row, strict=False))) for line, row in rows]


def read_table(path, size_of, zero_based=False, folders=False):
    """({image: (its file's name, (width, height), objects as `annotation` takes them)}, {split: sorted images}).

    size_of: an image's name -> (width, height). folders: it may lie in one.

    Raises ValueError on a missing column, a name that is no file's, a picture in two splits, a box that is not whole numbers, is not
    two pixels wide and high or leaves the picture, two files of one name but for the suffix, or no row at all; csv.Error for what is no table.
    """
    pictures, splits, split_of, name_of = {}, {}, {}, {}
    for line, row in read_rows(path):
        where = f"{path}: line {line}"
        empty = bool(row["image"]) and not any(row[column] for column in COLUMNS[1:])
        for column in ("image", "class"):
            if not row[column] and not empty:
                raise ValueError(f"{where}: has no {column}")
        inner = PurePosixPath(row["image"])
        if (inner.is_absolute() or ".." in inner.parts or "\\" in row["image"]) if folders else inner.name != row["image"]:
            raise ValueError(f"{where}: image is '{row['image']}', must be a {'path below --images' if folders else 'name without folders'}")
        if row["split"] and Path(row["split"]).name != row["split"]:
            raise ValueError(f"{where}: split is '{row['split']}', must be a name without folders")
        image, filename = (str(inner.with_suffix("")), inner.name) if files.is_picture(inner) else (str(inner), None)
        if row["split"] and (other := split_of.setdefault(image, row["split"])) != row["split"]:
            raise ValueError(f"{where}: {image} is in {row['split']}, but was in {other}")
        if filename and (other := name_of.setdefault(image, filename)) != filename:
            raise ValueError(f"{where}: image is {filename}, but was {other}")
        if image not in pictures:
            pictures[image] = size_of(row["image"]), []
        if row["split"]:
            splits.setdefault(row["split"], set()).add(image)
        if empty:
            continue
        (width, height), objects = pictures[image]
        try:
            x1, y1, x2, y2 = (int(row[column]) + zero_based for column in COLUMNS[2:])
        except ValueError:
            raise ValueError(f"{where}: the corners are not four whole numbers") from None
        if not (1 <= x1 < x2 <= width and 1 <= y1 < y2 <= height):
            raise ValueError(f"{where}: box {x1},{y1},{x2},{y2} must be two pixels or more wide and high, inside {width}x{height}"
                             f", counted from 1{'; a table that counts from 0 takes --zero-based' * (not zero_based and 0 in (x1, y1))}")
        objects.append({"name": row["class"], "box": (x1 - 1, y1 - 1, x2, y2), "truncated": False, "difficult": False})
    if not pictures:
        raise ValueError(f"{path}: holds no box")
    named = {image: (name_of.get(image, f"{PurePosixPath(image).name}.jpg"), *known) for image, known in pictures.items()}
    return named, {split: sorted(images) for split, images in splits.items()}


def size_below(folder):
    """A picture's path below the folder, with its suffix or without -> its (width, height), upright. Raises ValueError where no or more than one file has it."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if files.is_picture(path) and path.is_file()):
        inner = path.relative_to(folder)
        for name in (inner, inner.with_suffix("")):
            found.setdefault(name.as_posix(), []).append(path)

    def size_of(name):
        if len(paths := found.get(str(PurePosixPath(name)), [])) != 1:
            raise ValueError(f"{folder}: must have one picture {name}, not {len(paths)}")
        return files.picture_size(paths[0])[::-1]
    return size_of


def main(arguments=None):
    parser = Parser(__doc__)
    parser.add_argument("table", type=Path, metavar="BOXES.csv")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of the pictures, of which the sizes are read")
    source.add_argument("--size", type=picture_size, default="2560x1440", metavar="WIDTHxHEIGHT", help="of all pictures in px, without --images")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder that receives Annotations/ and ImageSets/")
    parser.add_argument("--zero-based", action="store_true", help="the table counts pixels from 0")
    flags = parser.parse_args(arguments)
    try:
        size_of = size_below(flags.images) if flags.images else lambda name: flags.size
        pictures, splits = read_table(flags.table, size_of, flags.zero_based, folders=bool(flags.images))
        texts = {f"Annotations/{image}.xml": annotation(filename, *size, objects) for image, (filename, size, objects) in pictures.items()}
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
