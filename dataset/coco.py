"""Data in COCO layout: an instances json and a folder of pictures to targets, every odd entry read correctly or refused by name."""
import json
import math
import os
import posixpath
import unicodedata
from collections import Counter
from itertools import compress
from pathlib import Path

import torch

from dataset.annotated import AnnotatedPictures, read_origin
from dataset.pictures import natural_order, undecodable, upright_size
from dataset.sample import of_people
from dataset.voc import box_edges, overhang
from util.boxes import xywh_to_xyxy
from util.masks import decode_rle, encode_rle


def read_instances(path) -> dict:
    """The contents of an instances json: lists of dicts under "images", "annotations" and "categories", the ids of pictures and categories
    unique, names too, and without blanks at their ends, as VOC's; file names with / for Windows's separator, and without detours ("./a.jpg").

    Raises ValueError where it is no JSON or no such file; single bad annotations are COCODataset's affair.
    """
    try:
        contents = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None
    for part, needed in (("images", ("id", "file_name")), ("annotations", ("image_id", "category_id")), ("categories", ("id", "name"))):
        entries = contents.get(part) if isinstance(contents, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{path}: is no COCO instances file, it has no list '{part}'")
        for place, entry in enumerate(entries, start=1):
            missing = [key for key in needed if not isinstance(entry, dict) or key not in entry]
            if missing:
                raise ValueError(f"{path}: entry {place} of '{part}' must have {', '.join(needed)}, but has no {missing[0]}")
    for category in contents["categories"]:
        if isinstance(category["name"], str):
            category["name"] = " ".join(category["name"].split())
            if not category["name"] or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in category["name"]):
                raise ValueError(f"{path}: name {category['name']!r} in 'categories' must be a text that can be printed, and not empty")
    for image in contents["images"]:
        if not isinstance(image["file_name"], str) or not image["file_name"].strip():
            raise ValueError(f"{path}: image {image['id']}: file_name is {image['file_name']!r}, must be the name of a picture")
        image["file_name"] = posixpath.normpath(image["file_name"].replace("\\", "/"))
    for part, key in (("images", "id"), ("categories", "id"), ("categories", "name")):
        _refuse_repeats(path, part, key, [entry[key] for entry in contents[part]])
    return contents


def _refuse_repeats(path, part, key, values):
    seen = set()
    for value in values:
        if not isinstance(value, (int, str)) or str(value) in seen:
            rule = "is there more than once, it must be unique" if isinstance(value, (int, str)) else "must be a whole number or a text"
            raise ValueError(f"{path}: {key} {value!r} in '{part}' {rule}")
        seen.add(str(value))


def find_pairs(folder) -> dict[str, tuple[Path, Path]]:
    """{name: (json, folder of its pictures)} of a folder in the standard layout: annotations/instances_NAME.json, and the
    pictures in NAME, images/NAME or images: the first of these where there is none. Raises ValueError where there is no such json.
    """
    pairs = {}
    for path in sorted(Path(folder).glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        candidates = _picture_folders(folder, name)
        pairs[name] = path, next((place for place in candidates if place.is_dir()), candidates[0])
    if not pairs:
        told = ("holds no annotations/instances_*.json" if Path(folder).is_dir() else "is a file, must be a folder; a json is named with its pictures, by flags of their own"
                if Path(folder).is_file() else "no such folder")
        if below := sorted(map(str, Path(folder).glob("*/*.json")))[:3]:
            told += f"; name {', '.join(below)} and the folders of their pictures by the flags for json and images"
        raise ValueError(f"{folder}: {told}")
    return pairs


def _picture_folders(folder, name):
    return [Path(folder) / place for place in (name, f"images/{name}", "images")]


def choose_pair(folder, part):
    """The (json, folder of pictures) of `find_pairs` whose name is `part`, or begins with it; None where there is none.

    Raises ValueError where there are several, as train2014 and train2017, and where its pictures are not there.
    """
    pairs = find_pairs(folder)
    chosen = {part: pairs[part]} if part in pairs else {name: pair for name, pair in pairs.items() if name.startswith(part)}
    if len(chosen) > 1:
        raise ValueError(f"{folder}: holds several sets for {part} ({', '.join(chosen)}); name the json and its pictures instead of the folder")
    for name, (path, images) in chosen.items():
        if not images.is_dir():
            first, second, third = _picture_folders(folder, name)
            raise ValueError(f"{path}: its pictures must be in {first}, {second} or {third}, none of which is there")
    return next(iter(chosen.values()), None)


def picture_file(images, file_name, where: str) -> Path:
    """The file of a file_name, which must lie below the folder `images`. Raises ValueError, which begins with `where`, for one outside."""
    name = Path(os.path.normpath(file_name))
    if name.anchor or name.parts[:1] == ("..",):
        raise ValueError(f"{where}: file_name is '{file_name}', which lies outside {images}")
    return Path(images) / name


def good_pictures(path, images, entries, decode):
    """([(entry, its file, (h, w) upright, whether EXIF turns it unseen)], [a sentence for each bad one]) of the "images" of the json `path`, whose files must lie
    below the folder `images`. What only decoding shows is bad too with `decode`.
    """
    good, bad = [], []
    times = Counter(entry["file_name"] for entry in entries)
    for entry in entries:
        where = f"{path}: image {entry['id']}"
        try:
            said = (entry["height"], entry["width"]) if entry.get("height") and entry.get("width") else None
            if not all(isinstance(side, (int, float)) for side in said or ()):
                raise ValueError(f"{where}: height and width are {said[0]!r} and {said[1]!r}, must be numbers")
            picture = picture_file(images, entry["file_name"], where)
            if times[entry["file_name"]] > 1:
                raise ValueError(f"{where}: file_name is '{entry['file_name']}', as that of another image; all objects of a picture must have one image_id")
            good.append((entry, picture, *upright_size(picture, said, f"{where}: its size")))
        except ValueError as error:
            bad.append(str(error))
    undecoded = undecodable(picture for _, picture, *_ in good) if decode else {}
    return [each for each in good if each[1] not in undecoded], bad + [*undecoded.values()]


class COCODataset(AnnotatedPictures):
    """The pictures and objects of an instances json, see AnnotatedPictures; pictures without objects are kept.

    path        the json file;  images   the folder below which its file_names lie
    classes     names in the order of the labels; None takes all categories of the file, by rising id
    skip_bad    False: the first bad entry ends it with a ValueError; True: what is bad is left out
    with_masks  targets of [i] have "masks", see make_target; the segmentations of all objects are read, and judged, by __init__
    pseudo_weight   factor on the weight of pseudo labels

    Ids may have gaps, start at 0 or be texts; an image_id here is the text of the id, `.image_ids` leads back. A box is
    [x, y, w, h] in upright pixels, continuous edges. Where `iscrowd` or `ignore` is 1 the box is a region: left out of
    training (ignore), neither hit nor miss when evaluated (difficult). Where `difficult` is 1, a field which
    tools/voc_to_coco.py writes, it is VOC's difficult: trained on as any other, neither hit nor miss when evaluated.
    Pseudo labels are marked as dataset.annotated.read_origin says.
    """

    def __init__(self, path, images, classes=None, skip_bad=False, with_masks=False, pseudo_weight=1.0):
        super().__init__()
        self._rle_counts = [] if with_masks else None       # a text for each object
        contents = read_instances(path)
        names = {str(category["id"]): str(category["name"]) for category in contents["categories"]}
        objects_of, self._written = {str(image["id"]): [] for image in contents["images"]}, []
        self.without_mask = 0
        for place, annotation in enumerate(contents["annotations"], start=1):
            where = f"{path}: annotation {annotation.get('id', f'number {place}')}"
            image_id, name = str(annotation["image_id"]), names.get(str(annotation["category_id"]))
            if image_id not in objects_of:
                self.skipped.append(f"{where}: image_id is {image_id}, which is the id of no image")
            elif name is None:
                self.skipped.append(f"{where}: category_id is {annotation['category_id']}, not one of {', '.join(names)}")
            elif classes is not None and name not in classes:
                self._leave_out(f"{where}:", name, classes)
            else:
                objects_of[image_id].append((where, name, annotation))
        pictures, bad = good_pictures(path, images, contents["images"], decode=skip_bad)
        self.skipped += bad
        for image, picture, size, turned in pictures:
            self.turned += turned
            self._read(str(image["id"]), picture, size, objects_of[str(image["id"])])
        self._finish(path, [names[id] for id in sorted(names, key=natural_order)] if classes is None else classes, skip_bad, pseudo_weight)
        ids = [str(annotation["id"]) for annotation in contents["annotations"] if annotation.get("id") is not None]
        if repeated := len(ids) - len({*ids}):
            self.notes.append(f"{path}: {repeated} annotations have the id of another one; each counts as an object")
        if self.without_mask:
            self.notes.append(f"{path}: {self.without_mask} of {len(self._written)} objects have no segmentation; no mask is learnt from them")
        self._written = torch.tensor(self._written, dtype=torch.float64).reshape(-1, 5)
        category_ids = {str(category["name"]): category["id"] for category in contents["categories"]}
        self.category_ids = [category_ids.get(name) for name in self.classes]
        self.image_ids = {str(image["id"]): image["id"] for image in contents["images"]}

    def _read(self, id, picture, size, annotations):
        objects = []
        for where, name, annotation in annotations:
            try:
                bbox = annotation.get("bbox")
                edges, (x, y, w, h) = xywh_edges(bbox, size), bbox
                area, origin = annotation.get("area"), read_origin(annotation)
                if area is not None and not (isinstance(area, (int, float)) and 0 <= float(area) < math.inf):
                    raise ValueError(f"area is {area!r}, must be a number of 0 or more")
                region = is_set(annotation, "iscrowd") or is_set(annotation, "ignore")
                difficult = region or is_set(annotation, "difficult")
                if self._rle_counts is not None:
                    drawn = annotation.get("segmentation")
                    if origin.pseudo and drawn == [[0, 0]]:             # what Jmq14/FCOS writes where there is none
                        drawn = None
                    self._rle_counts.append(segmentation_rle(drawn, size)["counts"])
                    self.without_mask += not drawn
            except (TypeError, ValueError, OverflowError) as error:
                self.skipped.append(f"{where}: ({name}) {error}")
                continue
            self.objects_cut += overhang((x, y, x + w, y + h), size) > 1
            objects.append((name, edges, difficult, region, origin))
            self._written.append((x, y, w, h, w * h if area is None else area))
        self._add(id, picture, size, objects)

    def truth(self):
        """{image_id: ground truth}, as evaluation.coco_ap.evaluate takes it: boxes as written, not cut, the areas that the
        file gives, which are those of the masks, and, with_masks, the masks as RLE."""
        boxes, areas = xywh_to_xyxy(self._written[:, :4]), self._written[:, 4]
        truth = super().truth()
        for index, image_id in enumerate(self.ids):
            rows, kept = self._rows(index), of_people(self.target(index))
            truth[image_id] |= {"boxes": boxes[rows][kept], "areas": areas[rows][kept]}
            truth[image_id] |= {name: list(compress(rles, kept)) for name, rles in self._masks(index).items()}
        return truth

    def _masks(self, index):
        """{"masks": an RLE for each object}; nothing without masks."""
        if self._rle_counts is None:
            return {}
        return {"masks": [{"size": list(self._sizes[index]), "counts": counts} for counts in self._rle_counts[self._rows(index)]]}

    def __getitem__(self, index):
        image, target = super().__getitem__(index)
        for name, rles in self._masks(index).items():
            masks = [decode_rle(rle, target["orig_size"]) for rle in rles]
            target[name] = torch.stack(masks) if masks else torch.zeros(0, *target["orig_size"], dtype=torch.uint8)
        return image, target


def is_set(annotation, key):
    """Whether the 0 or 1 of an annotation is 1; 0 where it is absent. Raises ValueError for anything else: the text "0" is no 0."""
    value = annotation.get(key) or 0
    if value not in (0, 1):
        raise ValueError(f"{key} is {value!r}, must be 0 or 1")
    return value == 1


def segmentation_rle(segmentation, size):
    """The RLE of a COCO segmentation in a picture of `size` (h, w): of polygons [[x1, y1, x2, y2, ...], ...], in one of which a
    pixel has to lie, or of an RLE, packed or not. None and nothing give a mask of zeros.

    Raises ValueError with the rule for what is neither, or belongs to a picture of another size.
    """
    if not segmentation or segmentation == [[]]:
        return encode_rle(torch.zeros(1, *size))[0]
    if isinstance(segmentation, dict):
        return encode_rle(decode_rle(segmentation, size)[None])[0]
    for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
        if not is_polygon(polygon, size):
            shown = str(polygon) if len(str(polygon)) < 60 else f"{str(polygon)[:60]}..."
            raise ValueError(f"segmentation holds {shown}, must be an RLE, or polygons [x1, y1, x2, y2, x3, y3, ...] in the {size[1]}x{size[0]} "
                             "picture, or not further from it than its own sides are long")
    from pycocotools import mask
    rle = mask.merge(mask.frPyObjects(segmentation, *size))
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def is_polygon(polygon, size):
    """Whether it is one that pycocotools fills: it takes four numbers for a box, and walks along edges of any length."""
    return (isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
            and all(isinstance(value, (int, float)) and -side <= value <= 2 * side
                    for axis, side in ((0, size[1]), (1, size[0])) for value in polygon[axis::2]))


def xywh_edges(bbox, size):
    """Continuous edges (x1, y1, x2, y2) of the part of a COCO box inside a picture of `size` (h, w).

    Raises ValueError with the rule for what is not four numbers, a box of no area, or one outside the picture.
    """
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(value, (int, float)) and math.isfinite(value) for value in bbox)
    if not numbers or bbox[2] <= 0 or bbox[3] <= 0:
        raise ValueError(f"bbox is {bbox}, must be four numbers [x, y, width, height] with width and height above 0")
    x, y, w, h = bbox
    return box_edges((x, y, x + w, y + h), size, one_based=False)
