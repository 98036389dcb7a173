"""Data in COCO layout: an instances json and a folder of pictures to targets, every odd entry read correctly or refused by name."""
import json
import math
from pathlib import Path

import torch

from dataset.annotated import AnnotatedPictures, read_origin, unknown_class
from dataset.pictures import natural_order, upright_size
from dataset.sample import of_people
from dataset.voc import box_edges
from util.boxes import xywh_to_xyxy


def read_instances(path) -> dict:
    """The contents of an instances json: lists of dicts under "images", "annotations" and "categories", ids and names unique.

    Raises ValueError where it is no JSON or no such file; single bad annotations are COCODataset's affair.
    """
    try:
        contents = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    for part, needed in (("images", ("id", "file_name")), ("annotations", ("image_id", "category_id")), ("categories", ("id", "name"))):
        entries = contents.get(part) if isinstance(contents, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path}: is no COCO instances file, it has no list '{part}'")
        for place, entry in enumerate(entries, start=1):
            missing = [key for key in needed if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise ValueError(f"{path}: entry {place} of '{part}' must have {', '.join(needed)}, but has no {missing[0]}")
        for key in ("id", *needed[1:] * (part == "categories")):
            _refuse_repeats(path, part, key, [entry[key] for entry in entries if key in entry])
    return contents


def _refuse_repeats(path, part, key, values):
    seen = set()
    for value in values:
        if not isinstance(value, (int, str)) or str(value) in seen:
            rule = "is there more than once, it must be unique" if isinstance(value, (int, str)) else "must be a number or a text"
            raise ValueError(f"{path}: {key} {value!r} in '{part}' {rule}")
        seen.add(str(value))


def find_pairs(folder) -> dict[str, tuple[Path, Path]]:
    """{name: (json, folder of its pictures)} of a folder in the standard layout: annotations/instances_NAME.json, and the
    pictures in NAME, images/NAME or images. Raises ValueError where there is no such json, or no such folder for one.
    """
    pairs = {}
    for path in sorted(Path(folder).glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        candidates = [Path(folder) / place for place in (name, f"images/{name}", "images")]
        images = next((place for place in candidates if place.is_dir()), None)
        if images is None:
            raise ValueError(f"{path}: its pictures must be in {candidates[0]}, {candidates[1]} or {candidates[2]}, none of which is there")
        pairs[name] = path, images
    if not pairs:
        raise ValueError(f"{folder}: {'holds no annotations/instances_*.json' if Path(folder).is_dir() else 'no such folder'}")
    return pairs


def choose_pair(folder, part):
    """The (json, folder of pictures) of `find_pairs` whose name begins with `part`; None where there is none.

    Raises ValueError where there are several, as train2014 and train2017.
    """
    chosen = {name: pair for name, pair in find_pairs(folder).items() if name.startswith(part)}
    if len(chosen) > 1:
        raise ValueError(f"{folder}: holds several sets for {part} ({', '.join(chosen)}); name the json and its pictures instead of the folder")
    return next(iter(chosen.values()), None)


class COCODataset(AnnotatedPictures):
    """The pictures and objects of an instances json, see AnnotatedPictures; pictures without objects are kept.

    path        the json file;  images   the folder below which its file_names lie
    classes     names in the order of the labels; None takes all categories of the file, by rising id
    skip_bad    False: the first bad entry ends it with a ValueError; True: what is bad is left out
    pseudo_weight   factor on the weight of pseudo labels

    Ids may have gaps, start at 0 or be texts; an image_id here is the text of the id, `.image_ids` leads back. A box is
    [x, y, w, h] in upright pixels, continuous edges. Where `iscrowd` or `ignore` is 1 the box is a region: left out of
    training (ignore), neither hit nor miss when evaluated (difficult). Where `difficult` is 1, a field which
    tools/voc_to_coco.py writes, it is VOC's difficult: trained on as any other, neither hit nor miss when evaluated.
    Pseudo labels are marked as dataset.annotated.read_origin says.
    """

    def __init__(self, path, images, classes=None, skip_bad=False, pseudo_weight=1.0):
        super().__init__()
        contents = read_instances(path)
        names = {str(category["id"]): str(category["name"]) for category in contents["categories"]}
        objects_of, self._written = {str(image["id"]): [] for image in contents["images"]}, []
        self.objects_cut = 0
        for place, annotation in enumerate(contents["annotations"], start=1):
            where = f"{path}: annotation {annotation.get('id', f'number {place}')}"
            image_id, name = str(annotation["image_id"]), names.get(str(annotation["category_id"]))
            if image_id not in objects_of:
                self.skipped.append(f"{where}: image_id is {image_id}, which is the id of no image")
            elif name is None:
                self.skipped.append(f"{where}: category_id is {annotation['category_id']}, not one of {', '.join(names)}")
            elif classes is not None and name not in classes:
                self.skipped.append(f"{where}: {unknown_class(name, classes)}")
            else:
                objects_of[image_id].append((where, name, annotation))
        for image in contents["images"]:
            self._read(image, Path(images) / str(image["file_name"]), path, objects_of.pop(str(image["id"])))
        self._finish(path, [names[id] for id in sorted(names, key=natural_order)] if classes is None else classes, skip_bad, pseudo_weight)
        if self.objects_cut:
            self.notes.append(f"{path}: {self.objects_cut} boxes stick out of their picture by over 1 px; they are cut")
        self._written = torch.tensor(self._written, dtype=torch.float64).reshape(-1, 5)
        category_ids = {str(category["name"]): category["id"] for category in contents["categories"]}
        self.category_ids = [category_ids.get(name) for name in self.classes]
        self.image_ids = {str(image["id"]): image["id"] for image in contents["images"]}

    def _read(self, image, picture, path, annotations):
        try:
            said = (image["height"], image["width"]) if image.get("height") and image.get("width") else None
            size = upright_size(picture, said, f"{path}: image {image['id']}: its size")
        except ValueError as error:
            self.skipped.append(str(error))
            return
        objects = []
        for where, name, annotation in annotations:
            try:
                bbox = annotation.get("bbox")
                edges, (x, y, w, h) = xywh_edges(bbox, size), bbox
                area, origin = float(annotation.get("area", w * h)), read_origin(annotation)
            except (TypeError, ValueError) as error:
                self.skipped.append(f"{where}: ({name}) {error}")
                continue
            self.objects_cut += max(-x, -y, x + w - size[1], y + h - size[0]) > 1
            region = bool(annotation.get("iscrowd") or annotation.get("ignore"))
            objects.append((name, edges, region or bool(annotation.get("difficult")), region, origin))
            self._written.append((x, y, w, h, area))
        self._add(str(image["id"]), picture, size, objects)

    def truth(self):
        """{image_id: ground truth}, as evaluation.coco_ap.evaluate takes it: boxes as written, not cut, and the areas that
        the file gives, which are those of the masks."""
        boxes, areas = xywh_to_xyxy(self._written[:, :4]), self._written[:, 4]
        truth = super().truth()
        for index, image_id in enumerate(self.ids):
            rows, kept = self._rows(index), of_people(self.target(index))
            truth[image_id] |= {"boxes": boxes[rows][kept], "areas": areas[rows][kept]}
        return truth


def xywh_edges(bbox, size):
    """Continuous edges (x1, y1, x2, y2) of the part of a COCO box inside a picture of `size` (h, w).

    Raises ValueError with the rule for what is not four numbers, a box of no area, or one outside the picture.
    """
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in bbox)
    if not numbers or bbox[2] <= 0 or bbox[3] <= 0:
        raise ValueError(f"bbox is {bbox}, must be four numbers [x, y, width, height] with width and height above 0")
    x, y, w, h = bbox
    return box_edges((x, y, x + w, y + h), size, one_based=False)
