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
import re
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

INFO = "info.json"                  # in a VOC folder: what has no place in XML, "info" and the ids of pictures and categories
IDS = ("image_ids", "category_ids")
TAGS = {"id": lambda text: int(text) if re.fullmatch("0|-?[1-9][0-9]*", text) else text, "ispseudo": lambda text: text.lower() in ("1", "true"),
        "score": float, "p_real": float, "weight": float, "zone": str, "teacher": str}
SAME = 0.01                         # px between the edges of one box, written in two formats


class Labels(NamedTuple):
    contents: dict          # of an instances json; every annotation has an id of its own and a box with an area
    images: Path | None     # the folder below which the file_names lie; None where a json came without --images
    split: str              # the list to write, of a VOC folder
    sha256: str             # of the json, or of the XML files one after another


def add_place(parser) -> None:
    """The flags that say more about a json or a VOC folder."""
    add = parser.add_argument
    add("--images", metavar="DIR", help="the pictures of a json; a VOC folder has its own")
    add("--split", default="auto", metavar="S", help="list in ImageSets of a VOC folder; all: every XML file; auto: train, or all "
        "where there is none; its pixels count from 1: of a folder that counts from 0 tools/voc_to_coco.py --zero-based makes a json")
    add("--skip-bad", action="store_true", help="leave out what cannot be read instead of stopping")


def read_labels(source, images=None, split="auto", skip_bad=False, need_images=False) -> Labels:
    """Raises ValueError, naming file and annotation, for what the data room refuses too, for ids that clash or miss, and for
    boxes without an area."""
    source = Path(source)
    labels = _read_voc(source, split, skip_bad) if source.is_dir() else _read_json(source, images, split, skip_bad)
    if need_images and labels.images is None:
        raise ValueError(f"{source}: a json needs --images DIR, the folder of its pictures")
    contents, seen, good, bad = labels.contents, set(), [], []
    image_ids, category_ids = ({each["id"] for each in contents[part]} for part in ("images", "categories"))
    for part, ids in (("image_id", image_ids), ("category_id", category_ids)):      # 7 and "7" are one id, as in training
        as_written = {str(id): id for id in ids}
        for annotation in contents["annotations"]:
            annotation[part] = as_written.get(str(annotation[part]), annotation[part])
    sizes = {each["id"]: (each["height"], each["width"]) for each in contents["images"] if each.get("height") and each.get("width")}
    for place, annotation in enumerate(contents["annotations"], start=1):
        id, where = annotation.get("id"), f"{source}: annotation {annotation.get('id', f'number {place}')}"
        if id is None or str(id) in seen:
            what = "another one has that" if str(id) in seen else "it has none"
            raise ValueError(f"{where} must have an id of its own, by which the stages know it; {what}")
        seen.add(str(id))
        trouble = trouble_with(annotation, image_ids, category_ids) or refused(annotation, sizes)
        if trouble and not skip_bad:
            raise ValueError(f"{where}: {trouble}; --skip-bad leaves out what is bad and goes on")
        if trouble:
            bad.append(f"{where}: {trouble}")
        else:
            good.append(annotation)
    if bad:
        print(f"note: {len(bad)} of {len(contents['annotations'])} annotations are bad and left out, as training does; the first: {bad[0]}")
    info = contents.get("info")
    return labels._replace(contents={**contents, "info": info if isinstance(info, dict) else {}, "annotations": good})


def trouble_with(annotation, image_ids, category_ids) -> str | None:
    """What is wrong with ids and box of an annotation or a detection."""
    bbox = annotation.get("bbox")
    for part, ids in (("image", image_ids), ("category", category_ids)):
        id = annotation[f"{part}_id"]
        if not isinstance(id, (int, str)) or id not in ids:
            return f"{part}_id is {id!r}, which is the id of no {part}"
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, (int, float)) and abs(value) < 1e300 for value in bbox)
    return None if numbers and bbox[2] > 0 and bbox[3] > 0 else f"bbox is {bbox}, must be four numbers [x, y, width, height] with an area"


def refused(annotation, sizes) -> str | None:
    """What training would refuse: marks, and a box that its picture, of a size (h, w) in `sizes`, does not show. The marks are plain afterwards,
    as training reads them: `ispseudo` a bool, `zone` in small letters, numbers no texts, and none is None."""
    from dataset.annotated import ORIGIN_KEYS, read_origin
    from dataset.coco import is_set, xywh_edges
    try:
        for key in ("iscrowd", "ignore", "difficult"):
            is_set(annotation, key)
        origin = read_origin(annotation)
        plain = {"ispseudo": origin.pseudo, "zone": "ignore" if origin.zone_ignore else "positive"}
        for key in ORIGIN_KEYS:
            if (value := annotation.pop(key, None)) is not None:
                annotation[key] = plain[key] if key in plain else float(value) if isinstance(value, str) else value
        if annotation["image_id"] in sizes:
            xywh_edges(annotation["bbox"], sizes[annotation["image_id"]])
    except (TypeError, ValueError) as error:
        return str(error)


def _read_json(path: Path, images, split: str, skip_bad: bool) -> Labels:
    """With skip_bad, and a folder of the pictures, without those that training would leave out."""
    from dataset.coco import picture_file, read_instances
    contents = read_instances(path)
    if not skip_bad and (twice := [name for name, times in Counter(each["file_name"] for each in contents["images"]).items() if times > 1]):
        raise ValueError(f"{path}: file_name is {twice[0]!r} of several images; all objects of a picture must have one image_id")
    if images and skip_bad:
        contents["images"] = _good_pictures(path, contents["images"], Path(images))
    elif images:
        for entry in contents["images"]:
            picture_file(images, entry["file_name"], f"{path}: image {entry['id']}")
    return Labels(contents, Path(images) if images else None, "train" if split == "auto" else split, file_digest(path))


def _good_pictures(path: Path, entries: list, images: Path) -> list:
    from dataset.coco import good_pictures
    good, bad = good_pictures(path, images, entries, decode=True)
    if entries and not good:
        raise ValueError(f"{path}: no picture is left, {len(bad)} are bad; the first: {bad[0]}")
    if bad:
        print(f"note: {path}: {len(bad)} of {len(entries)} pictures are bad and left out, as training does; the first: {bad[0]}")
    return [entry for entry, *_ in good]


def _read_voc(folder: Path, split: str, skip_bad: bool) -> Labels:
    """Numbers its annotations, unless the folder is one that write_labels made: its <id>s are theirs."""
    from dataset.voc import VOCDataset
    from dataset.voc_folder import find_layout, find_splits, index_layout
    from tools.voc_to_coco import to_coco
    if split == "auto":
        splits = find_splits(folder)
        if splits and "train" not in splits:
            raise ValueError(f"{folder}: has no list 'train' in ImageSets (but {', '.join(splits)}); name one with --split S, or take every XML file with --split all")
        split = "train" if splits else "all"
    dataset = VOCDataset(folder, None if split == "all" else split, skip_bad=skip_bad)
    if dataset.skipped:
        print(f"note: {folder}: {len(dataset.skipped)} files or objects are bad and left out, as training does; the first: {dataset.skipped[0]}")
    images, xmls, info = find_layout(folder)[1], index_layout(folder)[0], _read_info(folder / INFO)
    contents, digest, tags = to_coco(dataset, images), hashlib.sha256(), {tag: read for tag, read in TAGS.items() if tag != "id" or info}
    numbers = iter(dataset.numbers)
    for id, annotations in zip(dataset.ids, by_image(contents).values(), strict=True):
        data = xmls[id][0].read_bytes()
        digest.update(data)
        elements = ElementTree.fromstring(data).findall("object")
        for annotation in annotations:
            element = elements[next(numbers) - 1]       # a bad one is left out
            found = {tag: read(element.findtext(tag).strip()) for tag, read in tags.items() if element.findtext(tag)}
            annotation |= found if "id" in found or not info else found | {"id": None}
    number_new(contents["annotations"], info)
    if dataset.objects_at_zero:
        print(f"note: {folder}: {dataset.objects_at_zero} boxes start at coordinate 0, but pixels are counted from 1 here; if this folder counts "
              f"from 0, make a json of it: tools/voc_to_coco.py {folder} --zero-based --output FILE.json")
    image_ids, category_ids = (info.pop(part, {}) for part in IDS)
    written = "train" if split == "all" else split      # a list of that name is what training and the next stage take
    return Labels(with_ids(contents | {"info": info}, image_ids, category_ids), images, written, digest.hexdigest())


def number_new(annotations: list, info: dict) -> None:
    """Gives those whose id is None, objects that somebody has added, numbers beyond all that are or were there."""
    beyond = count(first_free(info, [each["id"] for each in annotations if isinstance(each["id"], int)]))
    for each in annotations:
        if each["id"] is None:
            each["id"] = next(beyond)


def first_free(info: dict, used: list) -> int:
    """The first id beyond those `used`, and beyond those of the full file, which make_partial keeps in "info"."""
    partial = info.get("partial")
    told = partial.get("first_id") if isinstance(partial, dict) else None
    return max([told if isinstance(told, int) else 1, *(id + 1 for id in used)])


def _read_info(path: Path) -> dict:
    """What write_labels left there; {} for no file, and for a person's own of that name."""
    info = read_json(path) if path.is_file() else {}
    return info if isinstance(info, dict) and all(isinstance(info.get(part), dict) for part in IDS) else {}


def read_json(path):
    """Raises ValueError, naming the file, for what is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None


def with_ids(contents: dict, image_ids: dict | None, category_ids: dict) -> dict:
    """The contents with the ids {file_name: id} and {class name: id}; what these do not know gets numbers beyond theirs. None
    leaves the ids of the pictures as they are."""
    def translation(part, key, known):
        beyond = count(max((id for id in known.values() if isinstance(id, int)), default=0) + 1)
        return {each["id"]: known[each[key]] if each[key] in known else next(beyond) for each in contents[part]}
    categories = translation("categories", "name", category_ids)
    images = {each["id"]: each["id"] for each in contents["images"]} if image_ids is None else translation("images", "file_name", image_ids)
    return {**contents, "images": [{**each, "id": images[each["id"]]} for each in contents["images"]],
            "categories": [{**each, "id": categories[each["id"]]} for each in contents["categories"]],
            "annotations": [{**each, "image_id": images[each["image_id"]], "category_id": categories[each["category_id"]]}
                            for each in contents["annotations"]]}


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
            for tag in (tag for tag in TAGS if annotation.get(tag) is not None):
                for written in element.findall(tag):
                    element.remove(written)
                ElementTree.SubElement(element, tag).text = "1" if annotation[tag] is True else str(annotation[tag])
        ElementTree.indent(tree)
        tree.write(xml, encoding="unicode")
    ids = [{each[key]: each["id"] for each in contents[part]} for part, key in (("images", "file_name"), ("categories", "name"))]
    write_json(output / INFO, {**contents.get("info", {}), **dict(zip(IDS, ids, strict=True))}, indent=1)


def write_json(path, value, indent=None) -> None:
    """Renamed into place when it is whole, so that a file that is there can be relied on."""
    path = Path(path)
    part = path.with_name(path.name + ".partial")
    part.write_text(json.dumps(value, indent=indent), encoding="utf-8")
    os.replace(part, path)


def refuse_inputs(output, *inputs) -> None:
    """What a command reads, files or None, must not be what it writes."""
    for source in filter(None, inputs):
        if Path(output).exists() and Path(source).exists() and Path(output).samefile(source):
            raise ValueError(f"--output {output}: is what is read, which it would replace; name another file or folder")


def refuse_plot(output, *inputs) -> None:
    """What is no PNG by its name, and what is read, is not drawn over."""
    if Path(output).suffix.lower() != ".png":
        raise ValueError(f"--output {output}: must end in .png")
    refuse_inputs(output, *inputs)


def refuse_existing(output, *inputs) -> None:
    """A folder that is there would be mixed with what is written; a json is replaced, unless it is one of the inputs."""
    refuse_inputs(output, *inputs)
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


def is_crowd(annotation: dict) -> bool:
    """A region of objects, of which a detection finds a part."""
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


def is_neutral(annotation: dict) -> bool:
    """Crowds, VOC's difficult, and zones to leave out: never dropped, never missing, never background."""
    return is_crowd(annotation) or bool(annotation.get("difficult")) or annotation.get("zone") == "ignore"


def human(contents: dict) -> list:
    return [each for each in contents["annotations"] if not each.get("ispseudo")]


def missing_labels(part: dict, full: dict, name, full_name) -> list:
    """The annotations of `full`, of the classes of `part`, that `part` has no longer; those of `part` that are pseudo labels are none of its own.

    Says how many are of other classes. Raises ValueError where a human's label in `part` is not in `full` as it is.
    """
    pictures = {each["id"]: each["file_name"] for each in full["images"]}
    classes, own_classes = ({each["id"]: each["name"] for each in contents["categories"]} for contents in (full, part))
    for image in part["images"]:
        if pictures.get(image["id"]) != image["file_name"]:
            raise ValueError(f"{name}: image {image['id']} is {image['file_name']}, but in {full_name} it is "
                             f"{pictures.get(image['id'], 'not there')}")
    in_full, sizes = ({str(each["id"]): each for each in entries} for entries in (full["annotations"], part["images"]))
    for each in human(part):
        other = in_full.get(str(each["id"]))
        if not other or (other["image_id"], classes[other["category_id"]]) != (each["image_id"], own_classes[each["category_id"]]) or (
                not same_box(other["bbox"], each["bbox"], sizes[str(each["image_id"])])):
            raise ValueError(f"{name}: annotation {each['id']} is not in {full_name}{' as it is here' if other else ''}; "
                             "what people labelled must be a part of it")
    kept, shown = {str(each["id"]) for each in human(part)}, {image["id"] for image in part["images"]}
    missing = [each for each in full["annotations"] if str(each["id"]) not in kept and each["image_id"] in shown]
    others = Counter(classes[each["category_id"]] for each in missing if classes[each["category_id"]] not in own_classes.values())
    if others:
        print(f"note: {full_name}: {sum(others.values())} boxes of {', '.join(sorted(others))} are left out, classes that {name} does not have")
    return [each for each in missing if classes[each["category_id"]] not in others]


def same_box(bbox: list, other: list, image: dict) -> bool:
    """Whether two boxes are one, also where one of them went through VOC, which cuts what sticks out of the picture and rounds."""
    width, height = (image.get(side) or math.inf for side in ("width", "height"))
    edges = [[min(max(x, 0), width), min(max(y, 0), height), min(max(x + w, 0), width), min(max(y + h, 0), height)]
             for x, y, w, h in (bbox, other)]
    return all(abs(one - two) <= SAME for one, two in zip(*edges, strict=True))
