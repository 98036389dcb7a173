"""Data in PASCAL VOC layout: XML files and pictures to targets, every odd file read correctly or refused by name; and targets to XML."""
import math
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import torch

from dataset.annotated import BOOLEANS, ORIGIN_KEYS, AnnotatedPictures, Origin, read_choice, read_origin
from dataset.pictures import undecodable, upright_size
from dataset.voc_folder import list_members

try:
    from defusedxml.ElementTree import fromstring
except ImportError:
    from xml.etree.ElementTree import fromstring

VOC_BOOLEANS = BOOLEANS | {"unspecified": False}  # as many scripts write it
TARGET_FIELDS = ("boxes", "labels", "difficult", "ignore", "pseudo", "weights", "zone_ignore")


class VocObject(NamedTuple):
    number: int  # the place in the file, from 1
    name: str
    corners: tuple[float, float, float, float]  # xmin, ymin, xmax, ymax as written
    difficult: bool
    crowd: bool  # a region of objects, which VOC itself does not know: tools/voc_to_coco.py writes it as <iscrowd>
    origin: Origin  # a pseudo label's, which VOC does not know either: tags of the names of ORIGIN_KEYS


class Annotation(NamedTuple):
    size: tuple[int, int] | None  # (h, w); None where the file gives none, or 0
    objects: list[VocObject]
    problems: list[str]  # one sentence for each object that cannot be read


def read_annotation(path) -> Annotation:
    """What a VOC XML file says. Only `object/bndbox` counts, not the boxes of parts; `difficult` and `size` may miss.

    Raises ValueError where the file does not parse, is no VOC annotation or has a <size> that cannot be read.
    """
    data, cure = b"", ""
    try:
        data = Path(path).read_bytes()
        if b"<!ENTITY" in data.replace(b"\0", b""):           # UTF-16 too
            raise ValueError("it defines entities, which no annotation needs")
        root = fromstring(data)
    except (OSError, ElementTree.ParseError, LookupError, ValueError) as error:
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            cure = "; save it as UTF-8"
        raise ValueError(f"{path}: cannot be read as XML: {error}{cure}") from None
    if root.tag != "annotation":
        raise ValueError(f"{path}: is no VOC annotation, its outermost element is <{root.tag}>, not <annotation>")
    written = {side: (root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")}
    for side, text in written.items():
        if text and not _number(text) >= 0:
            raise ValueError(f"{path}: <size> has {side} '{text}', must be a number of 0 or more")
    size = tuple(round(_number(text or 0)) for text in written.values())
    objects, problems = [], []
    for number, element in enumerate(root.findall("object"), start=1):
        name = " ".join((element.findtext("name") or "").split())
        texts = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        corners = tuple(map(_number, texts))
        boxes = len(element.findall("bndbox"))
        if not name:
            problems.append(f"{path}: object {number} has no name")
        elif any(map(math.isnan, corners)):
            problems.append(f"{path}: object {number} ({name}) must have four numbers in bndbox, not {texts}")
        elif boxes > 1:
            problems.append(f"{path}: object {number} ({name}) has {boxes} bndbox, must have one; another object is one more <object>")
        else:
            try:
                difficult, crowd = (read_choice(tag, (element.findtext(tag) or "").strip() or None, VOC_BOOLEANS) for tag in ("difficult", "iscrowd"))
                origin = read_origin({key: element.findtext(key) for key in ORIGIN_KEYS})
                objects.append(VocObject(number, name, corners, difficult or crowd, crowd, origin))
            except ValueError as error:
                problems.append(f"{path}: object {number} ({name}) {error}")
    if not objects and not problems and any(each.tag.lower().endswith("bndbox") for each in root.iter()):
        raise ValueError(f"{path}: is no VOC annotation, it has a bndbox, but no <object> directly within <annotation>")
    return Annotation(size if all(size) else None, objects, problems)


def _number(text):
    """The finite number a text holds, else NaN."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


def box_edges(corners, size, one_based=True):
    """Continuous edges (x1, y1, x2, y2) of the part of a VOC box inside a picture of `size` (h, w).

    1-based inclusive pixels: xmin - 1, ymin - 1, xmax, ymax, so that a full-picture box is (0, 0, w, h).
    With one_based=False the numbers are edges already. What sticks out of the picture is cut off.
    Raises ValueError with the rule, without file and object, for a box of no area or outside the picture.
    """
    xmin, ymin, xmax, ymax = corners
    written = f"(xmin {xmin:g}, ymin {ymin:g}, xmax {xmax:g}, ymax {ymax:g})"
    with np.errstate(over="ignore"):
        as_held = np.array(corners, dtype=np.float64).astype(np.float32)  # by the target
    if not (as_held[:2] < as_held[2:]).all():
        raise ValueError(f"must have xmin < xmax and ymin < ymax, not {written}")
    height, width = size
    x1, y1 = max(xmin - one_based, 0.0), max(ymin - one_based, 0.0)
    x2, y2 = min(xmax, float(width)), min(ymax, float(height))
    if x2 - x1 < min(1, xmax - xmin) or y2 - y1 < min(1, ymax - ymin):
        raise ValueError(f"lies outside the {width}x{height} picture {written}")
    return x1, y1, x2, y2


def overhang(corners, size):
    """By how many px a box as written sticks out of a picture of `size` (h, w); 0 if it does not."""
    xmin, ymin, xmax, ymax = corners
    return max(0.0, -xmin, -ymin, xmax - size[1], ymax - size[0])


class VOCDataset(AnnotatedPictures):
    """The pictures and objects of one or several VOC folders, see AnnotatedPictures.

    folders     a folder or a list of them; with several, ids read FOLDER/ID
    split       the name of a list in ImageSets; None takes every XML file; a list of these: one for each folder
    classes     names in the order of the labels; None takes those of the data, sorted
    one_based   VOC's 1-based inclusive pixels; False: the numbers are 0-based edges already
    skip_bad    False: the first bad file or object ends it with a ValueError; True: what is bad is left out
    pseudo_weight   factor on the weight of pseudo labels

    .numbers    the place of each object in its file, from 1, all pictures one after another
    """

    def __init__(self, folders, split=None, classes=None, one_based=True, skip_bad=False, pseudo_weight=1.0):
        super().__init__()
        folders = [Path(folder) for folder in ([folders] if isinstance(folders, (str, Path)) else folders)]
        splits = dict(zip(folders, split if isinstance(split, list) else [split] * len(folders), strict=True))
        self.objects_at_zero, self.numbers = 0, []
        for folder, name in splits.items():
            members, problems, notes = list_members(folder, name)
            self.skipped += problems
            self.notes += notes
            bad = undecodable(member.picture for member in members) if skip_bad else {}
            self.skipped += bad.values()
            for member in members:
                if member.picture not in bad:
                    self._read(member, f"{folder.as_posix()}/{member.id}" if len(folders) > 1 else member.id, classes, one_based)
        self.lists = [*dict.fromkeys(filter(None, splits.values()))]
        where = " ".join(map(str, folders)) + (f" (split {' '.join(self.lists)})" if self.lists else "")
        self._finish(where, classes, skip_bad, pseudo_weight)
        if self.objects_at_zero and one_based:
            self.notes.append(f"{where}: {self.objects_at_zero} boxes start at coordinate 0, which 1-based files never "
                              "have; --zero-based reads the numbers as 0-based")

    def _read(self, member, id, classes, one_based):
        try:
            annotation = read_annotation(member.xml)
            size, turned = upright_size(member.picture, annotation.size, f"{member.xml}: <size>")
        except ValueError as error:
            self.skipped.append(str(error))
            return
        self.skipped += annotation.problems
        self.turned += turned
        objects = []
        for number, name, corners, difficult, crowd, origin in annotation.objects:
            self.objects_at_zero += 0 in corners[:2]
            self.objects_cut += overhang(corners, size) > 1
            if classes is not None and name not in classes:
                self._leave_out(f"{member.xml}: object {number}", name, classes)
                continue
            try:
                objects.append((name, box_edges(corners, size, one_based), difficult, crowd, origin))
                self.numbers.append(number)
            except ValueError as error:
                self.skipped.append(f"{member.xml}: object {number} ({name}) {error}")
        self._add(id, member.picture, size, objects)


def readable(numbers: list, edges_of, box) -> list:
    """The numbers with four decimals, whole ones as int, where edges_of(numbers) still is the float32 `box`; else as they are."""
    short = [round(value, 4) for value in numbers]
    kept = short if torch.equal(torch.tensor(edges_of(*short)), box) else numbers
    return [int(value) if value == int(value) else value for value in kept]


def origin_marks(pseudo, weight, zone_ignore) -> dict:
    """The keys or tags that mark what is not an ordinary label of a person; {} for one that is."""
    marks = {"ispseudo": (True, bool(pseudo)), "weight": (float(weight), weight != 1), "zone": ("ignore", bool(zone_ignore))}
    return {key: value for key, (value, differs) in marks.items() if differs}


def annotation(target: dict, filename: str, classes: list, one_based: bool = True) -> str:
    """The XML of one picture, in 1-based inclusive pixels, or, not `one_based`, in edges, as `box_edges` reads them."""
    root = ElementTree.Element("annotation")

    def add(parent, tag, value=""):
        child = ElementTree.SubElement(parent, tag)
        child.text = str(value)
        return child

    add(root, "filename", filename)
    size = add(root, "size")
    for tag, value in zip(("height", "width", "depth"), (*target["orig_size"], 3), strict=True):
        add(size, tag, value)
    for box, label, difficult, crowd, *marks in zip(*(target[field] for field in TARGET_FIELDS), strict=True):
        each = add(root, "object")
        add(each, "name", classes[label])
        add(each, "difficult", int(difficult))
        if crowd:
            add(each, "iscrowd", 1)
        for tag, value in origin_marks(*marks).items():
            add(each, tag, value)
        x1, y1, x2, y2 = box.tolist()
        corners = readable([x1 + one_based, y1 + one_based, x2, y2], lambda xmin, ymin, xmax, ymax: [xmin - one_based, ymin - one_based, xmax, ymax], box)
        bndbox = add(each, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True):
            add(bndbox, tag, value)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
