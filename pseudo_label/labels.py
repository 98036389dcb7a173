"""The one door of the stages: COCO json or a folder in VOC layout in, and the same out. Inside there is only the contents of an
instances json (a dict with "info", "images", "annotations", "categories"), whichever it came from.

What a pseudo label has beside what every annotation has, as keys in json and as tags of the same names in a VOC <object>:

ispseudo   true; a human's label has no such key
score      the detection's
p_real     the estimated probability that an object is there (policy precision)
weight     in the losses; absent: 1
zone       "positive", or "ignore": neither object nor background for its class; absent: positive
teacher    the beginning of the SHA-256 of the checkpoint that found it
"""
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

INFO = "info.json"                  # in a VOC folder: what has no place in XML
TAGS = {"id": int, "ispseudo": lambda text: text.lower() in ("1", "true"), "score": float, "p_real": float, "weight": float,
        "zone": str, "teacher": str}


class Labels(NamedTuple):
    contents: dict          # of an instances json; every annotation has an id of its own and a box with an area
    images: Path | None     # the folder below which the file_names lie; None where a json came without --images
    split: str              # the list of a VOC folder
    sha256: str             # of the json, or of the XML files one after another


def add_place(parser) -> None:
    """The flags that say more about a json or a VOC folder."""
    add = parser.add_argument
    add("--images", metavar="DIR", help="the pictures of a json; a VOC folder has its own")
    add("--split", default="auto", metavar="S", help="list in ImageSets of a VOC folder; all: every XML file; auto: train, or all "
        "where there is none")
    add("--skip-bad", action="store_true", help="leave out what cannot be read instead of stopping")


def read_labels(source, images=None, split="auto", skip_bad=False, need_images=False) -> Labels:
    """Raises ValueError, naming file and annotation, for what the data room refuses too, for ids that clash or miss, and for
    boxes without an area."""
    source = Path(source)
    labels = _read_voc(source, split, skip_bad) if source.is_dir() else _read_json(source, images, split)
    if need_images and labels.images is None:
        raise ValueError(f"{source}: a json needs --images DIR, the folder of its pictures")
    contents, seen, good = labels.contents, set(), []
    image_ids, category_ids = ({each["id"] for each in contents[part]} for part in ("images", "categories"))
    for place, annotation in enumerate(contents["annotations"], start=1):
        id, where = annotation.get("id"), f"{source}: annotation {annotation.get('id', f'number {place}')}"
        if id is None or id in seen:
            what = "another one has that" if id in seen else "it has none"
            raise ValueError(f"{where} must have an id of its own, by which the stages know it; {what}")
        seen.add(id)
        trouble = _trouble(annotation, image_ids, category_ids)
        if trouble and not skip_bad:
            raise ValueError(f"{where}: {trouble}; --skip-bad leaves out what is bad and goes on")
        good += [annotation] * (not trouble)
    return labels._replace(contents={"info": {}, **contents, "annotations": good})


def _trouble(annotation, image_ids, category_ids) -> str | None:
    bbox = annotation.get("bbox")
    if annotation["image_id"] not in image_ids:
        return f"image_id is {annotation['image_id']!r}, which is the id of no image"
    if annotation["category_id"] not in category_ids:
        return f"category_id is {annotation['category_id']!r}, which is the id of no category"
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in bbox)
    return None if numbers and bbox[2] > 0 and bbox[3] > 0 else f"bbox is {bbox}, must be four numbers [x, y, width, height] with an area"


def _read_json(path: Path, images, split: str) -> Labels:
    from dataset.coco import read_instances
    return Labels(read_instances(path), Path(images) if images else None, "train" if split == "auto" else split, file_digest(path))


def _read_voc(folder: Path, split: str, skip_bad: bool) -> Labels:
    """Numbers its annotations, unless they have <id>s, which then are theirs."""
    from dataset.voc import VOCDataset, find_layout, find_splits, index_layout
    from tools.voc_to_coco import to_coco
    if split == "auto":
        split = "train" if "train" in find_splits(folder) else "all"
    dataset = VOCDataset(folder, None if split == "all" else split, skip_bad=skip_bad)
    images, xmls = find_layout(folder)[1], index_layout(folder)[0]
    contents, digest = to_coco(dataset, images), hashlib.sha256()
    for id, annotations in zip(dataset.ids, by_image(contents).values(), strict=True):
        data = xmls[id][0].read_bytes()
        digest.update(data)
        elements = ElementTree.fromstring(data).findall("object")
        for element, annotation in zip(elements, annotations, strict=True) if len(elements) == len(annotations) else ():
            annotation |= {tag: read(element.findtext(tag).strip()) for tag, read in TAGS.items() if element.findtext(tag)}
    if (folder / INFO).is_file():
        contents["info"] = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return Labels(contents, images, split, digest.hexdigest())


def write_labels(contents: dict, output, images, split: str) -> None:
    """To a file *.json, or else to a folder in VOC layout with copies of the pictures, which lie below `images`."""
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.suffix == ".json":
        write_json(output, contents)
        return
    if images is None:
        raise ValueError(f"--output {output}: a folder in VOC layout gets copies of the pictures, for which a json needs --images DIR")
    from dataset.coco import COCODataset
    from tools.voc_to_coco import to_voc
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "labels.json"
        path.write_text(json.dumps(contents), encoding="utf-8")
        to_voc(COCODataset(path, images), Path(images), output, split)
    annotations_of = by_image(contents)
    for image in contents["images"]:
        xml = (output / "Annotations" / image["file_name"]).with_suffix(".xml")
        tree = ElementTree.parse(xml)
        for element, annotation in zip(tree.findall("object"), annotations_of[image["id"]], strict=True):
            for tag in (tag for tag in TAGS if tag in annotation):
                for written in element.findall(tag):
                    element.remove(written)
                ElementTree.SubElement(element, tag).text = "1" if annotation[tag] is True else str(annotation[tag])
        ElementTree.indent(tree)
        tree.write(xml, encoding="unicode")
    write_json(output / INFO, contents.get("info", {}), indent=1)


def write_json(path, value, indent=None) -> None:
    """Renamed into place when it is whole, so that a file that is there can be relied on."""
    path = Path(path)
    part = path.with_name(path.name + ".partial")
    part.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    os.replace(part, path)


def refuse_existing(output, source) -> None:
    """A folder that is there would be mixed with what is written; a json is replaced, unless it is the source."""
    if Path(output).exists() and Path(source).exists() and Path(output).samefile(source):
        raise ValueError(f"--output {output}: is the source itself, which it would replace; name another file or folder")
    if Path(output).suffix != ".json" and Path(output).exists():
        raise ValueError(f"--output {output}: is there already; name another folder, or a file *.json")


def file_digest(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def by_image(contents: dict) -> dict:
    """{image id: [its annotations]}, every picture, in the order of the file."""
    found = {image["id"]: [] for image in contents["images"]}
    for annotation in contents["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return found


def is_neutral(annotation: dict) -> bool:
    """Crowds, and VOC's difficult: never dropped, never missing, never background."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore") or annotation.get("difficult"))


def human(contents: dict) -> list:
    return [each for each in contents["annotations"] if not each.get("ispseudo")]


def missing_labels(part: dict, full: dict, name, full_name) -> list:
    """The annotations of `full` that `part` has no longer; those of `part` that are pseudo labels are none of its own.

    Raises ValueError where a human's label in `part` is not in `full` as it is, or a pseudo label has the id of one in `full`.
    """
    pictures = {each["id"]: each["file_name"] for each in full["images"]}
    classes, own_classes = ({each["id"]: each["name"] for each in contents["categories"]} for contents in (full, part))
    for image in part["images"]:
        if pictures.get(image["id"]) != image["file_name"]:
            raise ValueError(f"{name}: image {image['id']} is {image['file_name']}, but in {full_name} it is "
                             f"{pictures.get(image['id'], 'not there')}")
    in_full = {each["id"]: each for each in full["annotations"]}
    for each in part["annotations"]:
        other = in_full.get(each["id"])
        if each.get("ispseudo"):
            if other:
                raise ValueError(f"{name}: pseudo label {each['id']} has the id of an annotation in {full_name}; generate it with --first-id")
        elif not other or (other["image_id"], classes[other["category_id"]], other["bbox"]) != (
                each["image_id"], own_classes[each["category_id"]], each["bbox"]):
            raise ValueError(f"{name}: annotation {each['id']} is not in {full_name}{' as it is here' if other else ''}; "
                             "what people labelled must be a part of it")
    kept, shown = {each["id"] for each in human(part)}, {image["id"] for image in part["images"]}
    return [each for each in full["annotations"] if each["id"] not in kept and each["image_id"] in shown]
