"""Turns folders in VOC layout into COCO json, or COCO json into a folder in VOC layout.

    python tools/voc_to_coco.py VOC2007 VOC2012 --split trainval --output trainval.json
    python tools/voc_to_coco.py instances.json --to voc --images pictures --split train --output folder

The json refers to the pictures where they are; what it needs as --images is said at the end. A folder gets copies of the
pictures, and with --split the list ImageSets/Main/SPLIT.txt; another call may add another split to it. Without, tools/make_splits.py draws lists.

Boxes are the same edges in both: xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1. A difficult object keeps its flag in a
field `difficult` that dataset/coco.py reads and other tools pass over (iscrowd would make it a region that is not trained
on); a crowd becomes an object with <iscrowd>1</iscrowd>, which other tools take for an ordinary one, and <difficult>1</difficult>.
A pseudo label keeps its ispseudo, weight and zone, but not score and p_real, which training does not use.
So a set and its conversion have the same targets, there and back; what VOC has no place for is lost: masks and their areas,
ids, and categories without an object. Bad files and boxes end it as they end training; --skip-bad leaves them out.
"""
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.class_names import read_class_names  # noqa: E402
from util.command_line import Parser, one_sentence_errors  # noqa: E402


def to_coco(dataset, images: Path) -> dict:
    """The instances json of any data set with objects, whose pictures lie below the folder `images`."""
    from dataset.voc import TARGET_FIELDS, origin_marks, readable
    contents = {"images": [], "annotations": [], "categories": [{"id": number, "name": name} for number, name in enumerate(dataset.classes, start=1)]}
    for index, picture in enumerate(dataset.pictures):
        target, number = dataset.target(index), index + 1
        height, width = target["orig_size"]
        contents["images"].append({"id": number, "file_name": Path(os.path.relpath(picture, images)).as_posix(), "width": width, "height": height})
        for box, label, difficult, crowd, *marks in zip(*(target[field] for field in TARGET_FIELDS), strict=True):
            x1, y1, x2, y2 = box.tolist()
            bbox = readable([x1, y1, x2 - x1, y2 - y1], lambda x, y, w, h: [x, y, x + w, y + h], box)
            contents["annotations"].append({
                "id": len(contents["annotations"]) + 1, "image_id": number, "category_id": int(label) + 1, "bbox": bbox,
                "area": round(bbox[2] * bbox[3], 4), "iscrowd": int(crowd), "difficult": int(difficult), **origin_marks(*marks)})
    return contents


def to_voc(dataset, images: Path, folder: Path, split: str) -> None:
    """Writes XML files, copies of the pictures and the list, none for "all". Raises ValueError before anything is written where two pictures would
    need the same XML file, also one of another split, where the list is there already, or a box is too thin for VOC's numbers."""
    from dataset.pictures import SUFFIXES, is_picture
    from dataset.voc import annotation
    from dataset.voc_folder import list_text
    names = [Path(os.path.relpath(picture, images)) for picture in dataset.pictures]
    ids = [name.with_suffix("").as_posix() for name in names]
    times, text = Counter(ids), list_text(ids)
    for name, id in zip(names, ids, strict=True):
        if not is_picture(name):
            raise ValueError(f"{images / name}: has a suffix by which it is no picture in VOC layout ({' '.join(SUFFIXES)})")
        if times[id] > 1:
            raise ValueError(f"{images / name}: shares its name with another picture; in VOC layout it can have no XML file of its own")
    listed = folder / "ImageSets" / "Main" / f"{split}.txt" if split != "all" else None
    if listed and listed.exists():
        raise ValueError(f"--split {split}: {listed} is there already; name another split or another --output")
    written = [(folder / "Annotations" / f"{id}.xml", folder / "JPEGImages" / name) for name, id in zip(names, ids, strict=True)]
    for index, paths in enumerate(written):
        if there := next((path for path in paths if path.exists()), None):
            raise ValueError(f"{there}: is there already, of another split or another set; pictures of one name need an --output each")
        boxes = dataset.target(index)["boxes"]
        for x1, y1, x2, y2 in boxes[(boxes[:, 2:] - boxes[:, :2] <= 1).any(1)].tolist():
            raise ValueError(f"{dataset.pictures[index]}: its object at ({x1:g}, {y1:g}) is {x2 - x1:g} x {y2 - y1:g} px; VOC's whole pixels, "
                             "of which the first and the last are named, can say no side of 1 px or less")
    for index, (name, (xml, picture)) in enumerate(zip(names, written, strict=True)):
        for path in filter(None, (xml, picture, listed)):
            path.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(annotation(dataset.target(index), name.name, dataset.classes), encoding="utf-8")
        shutil.copyfile(dataset.pictures[index], picture)
    if listed:
        listed.write_text(text, encoding="utf-8")


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", nargs="+", metavar="SOURCE", help="folders in VOC layout; with --to voc a json file")
    add("--to", default="coco", choices=["coco", "voc"], help="what to make of it")
    add("--output", required=True, metavar="PATH", help="json file to write, which must not be there yet; with --to voc the folder")
    add("--split", default="all", metavar="S", help="list in ImageSets to convert, all: every XML file; with --to voc the list to write, all: none")
    add("--images", metavar="DIR", help="with --to voc: the pictures of the json")
    add("--zero-based", action="store_true", help="VOC coordinates start at 0 (VOC's own start at 1)")
    add("--classes", metavar="A,B,C|FILE", help="categories in the order of their ids, or a file with one a line, where several lists must agree (default: those of the pictures that are converted, sorted)")
    add("--skip-bad", action="store_true", help="leave out what is bad instead of stopping")
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        convert(flags)


def convert(flags) -> None:
    from dataset.coco import COCODataset
    from dataset.voc import VOCDataset
    output = Path(flags.output)
    if flags.to == "voc":
        if len(flags.source) != 1 or not flags.images or flags.zero_based or flags.classes:
            raise ValueError("--to voc takes one json file and --images DIR, keeps the names, and writes coordinates that start at 1")
        dataset, images = COCODataset(flags.source[0], flags.images, skip_bad=flags.skip_bad), Path(flags.images)
        to_voc(dataset, images, output, flags.split)
    else:
        if output.exists():
            raise ValueError(f"--output {output}: is there already; name another file")
        dataset = VOCDataset(flags.source, None if flags.split == "all" else flags.split, read_class_names(flags.classes) or None, one_based=not flags.zero_based, skip_bad=flags.skip_bad)
        images = Path(os.path.commonpath([os.path.abspath(picture.parent) for picture in dataset.pictures]))
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(to_coco(dataset, images), indent=1), encoding="utf-8")
    for note in (*dataset.notes, *dataset.skipped):
        print(f"note: {note}")
    if flags.split.startswith(("val", "test")):
        told = f"eval_{flags.to}.py " + (f"--data {output} --split {flags.split}" if flags.to == "voc" else f"--json {output} --images {images}")
    else:
        told = f"train_{flags.to}.py " + (f"--data {output} --train-split {flags.split}" if flags.to == "voc" else f"--train-json {output} --train-images {images}")
    print(f"{len(dataset)} pictures, {sum(dataset.class_counts().values())} objects: {told}")


if __name__ == "__main__":
    main()
