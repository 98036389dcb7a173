"""Data in PASCAL VOC layout: XML files and pictures to targets, every odd file read correctly or refused by name; and targets to XML."""
import codecs
import math
import re
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize
from xml.etree import ElementTree

import numpy as np
import torch

from dataset.annotated import BOOLEANS, ORIGIN_KEYS, AnnotatedPictures, Origin, read_choice, read_origin
from dataset.pictures import SUFFIXES, is_picture, natural_order, undecodable, upright_size

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


class Member(NamedTuple):
    id: str  # as in the list, or the path of the XML below its folder, without suffix
    xml: Path
    picture: Path


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
    if not (np.float32(xmin) < np.float32(xmax) and np.float32(ymin) < np.float32(ymax)):  # as the target will hold them
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


def find_layout(folder):
    """(folder of the XML files, folder of the pictures): Annotations and JPEGImages, or the folder itself for both."""
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder}: is a file, must be a folder in VOC layout; COCO json goes to train_coco.py and eval_coco.py, or through tools/voc_to_coco.py --to voc")
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    if (folder / "Annotations").is_dir():
        if not (folder / "JPEGImages").is_dir():
            raise ValueError(f"{folder}: has a folder Annotations but no folder JPEGImages beside it")
        return folder / "Annotations", folder / "JPEGImages"
    if any(child.suffix.lower() == ".xml" for child in folder.iterdir()):
        return folder, folder
    below = sorted({str(child.parent) for pattern in ("*/Annotations", "*/*.xml") for child in folder.glob(pattern)})
    hint = f"; below it are {', '.join(below)}: name what you mean" if below else ""
    if odd := [path for path in below if Path(path).name.casefold().startswith(("annot", "label", "xml"))]:
        hint = f"; call {odd[0]} Annotations, and the folder of the pictures beside it JPEGImages"
    if (folder.parent / "Annotations").is_dir():
        hint = f"; {folder.parent} has"
    raise ValueError(f"{folder}: is no VOC folder, it has neither a folder Annotations nor XML files{hint}")


def find_splits(folder) -> dict[str, Path]:
    """Name of each split -> its list file, from the first of ImageSets/Main, Segmentation and ImageSets itself that has it; may be empty."""
    found = {}
    for part in ("Main", "Segmentation", ""):
        for path in sorted((Path(folder) / "ImageSets" / part).glob("*.txt"), key=natural_order):
            if not path.name.startswith("."):       # macOS's ._train.txt
                found.setdefault(path.stem, path)
    return found


def training_split(folders, asked):
    """The list of each folder, None for every XML file. asked: the names of --train-split, one for all folders or one for each; what auto
    stands for is train, or all where no folder has lists. Raises ValueError for a folder with other lists, and for another number of names."""
    if len(asked) > 1:
        if not len(asked) == len(folders) == len({*map(Path, folders)}):
            raise ValueError(f"--train-split names {len(asked)} lists for the {len({*map(Path, folders)})} folders of --data; name one for all, or one for each")
        return [training_split([folder], [name])[0] for folder, name in zip(folders, asked, strict=True)]
    asked, = asked
    lists = {folder: find_splits(folder) for folder in folders} if asked == "auto" else {}
    without = [folder for folder, splits in lists.items() if "train" not in splits]
    if without and any(lists.values()):
        raise ValueError(f"{without[0]}: has no list 'train' in ImageSets (but {', '.join(lists[without[0]]) or 'none at all'}); name one with "
                         "--train-split S, or take every XML file with --train-split all")
    return [{"auto": None if without else "train", "all": None}.get(asked, asked)] * len(folders)


def read_split(path, known=()):
    """The ids of a list file in its order, repeats included. A last column of +1/-1/0 flags is taken off, a picture's
    suffix too, unless the line as it stands is one of the `known` ids. Raises ValueError for what is neither UTF-8 nor, by its
    first bytes, UTF-16."""
    data, ids = Path(path).read_bytes(), []
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        lines = normalize("NFC", data.decode(encoding)).splitlines()
    except UnicodeDecodeError as error:
        kind = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise ValueError(f"{path}: is not {kind}, byte {error.start + 1} is 0x{data[error.start]:02x}; save it as UTF-8") from None
    for line in lines:
        line = line if line in known else line.strip()
        if line and line not in known:
            line = re.sub(r"\s+[+-]?[01]$", "", line)
            line = line[: -len(Path(line).suffix)] if is_picture(Path(line)) else line
        if line:
            ids.append(line)
    return ids


def in_no_list(splits, xmls, pictures) -> set:
    """The ids with XML and picture that none of the lists {name: file} has. Lists of one class, aeroplane_train, are parts of others."""
    whole = [path for name, path in splits.items() if not any(name.endswith(f"_{other}") for other in splits)]
    return (xmls.keys() & pictures.keys()) - {id for path in whole for id in read_split(path, known=xmls)}


def list_text(ids):
    """What a list file of these ids holds. Raises ValueError for an id that it cannot hold."""
    for id in ids:
        if len(id.splitlines()) != 1 or any("\ud800" <= letter <= "\udfff" for letter in id):
            raise ValueError(f"the name {id!r} is not UTF-8 or has several lines, no list in ImageSets can hold it; give the files another name")
    return "".join(f"{id}\n" for id in ids)


def index_layout(folder):
    """(XML files, pictures) of a folder, each as {id: [files]}; the id is the path without suffix below Annotations or
    JPEGImages, sub-folders included, or the name where XML files and pictures lie side by side."""
    annotations, pictures = find_layout(folder)
    pattern = "*" if annotations == pictures else "**/*"
    return (_by_id(annotations, pattern, lambda path: path.suffix.lower() == ".xml"),
            _by_id(pictures, pattern, is_picture))


def _by_id(folder, pattern, wanted):
    found = {}
    for path in sorted(folder.glob(pattern)):
        name = path.relative_to(folder)
        if wanted(path) and not any(part.startswith(".") for part in name.parts):       # of macOS, Jupyter, ...
            found.setdefault(normalize("NFC", name.with_suffix("").as_posix()), []).append(path)     # macOS takes an umlaut apart
    return found


def list_members(folder, split=None):
    """(members, problems, notes) of one folder: which pictures and XML files belong to a split, or to no split at all.

    problems: a sentence for each id without XML, without picture, or with two; notes: sentences on harmless oddities.
    Without a split: all XML files. Raises ValueError for a folder of another layout, a missing or an empty split.
    """
    annotations, pictures_folder = find_layout(folder)
    xmls, pictures = index_layout(folder)
    problems, notes = [], []
    if split is None:
        where, ids = annotations, sorted(xmls, key=natural_order)
        if len(unlabelled := pictures.keys() - xmls.keys()):
            example = min(unlabelled, key=natural_order)
            notes.append(f"{folder}: {len(unlabelled)} pictures have no XML and are left out, {example} for example")
    else:
        splits = find_splits(folder)
        if split not in splits:
            there = f"only {', '.join(splits)}" if splits else "no list in ImageSets at all; the split 'all' takes every XML file"
            raise ValueError(f"{folder}: has no split '{split}', {there}")
        where, listed = splits[split], read_split(splits[split], known=xmls)
        ids = list(dict.fromkeys(listed))
        if nowhere := in_no_list(splits, xmls, pictures):
            notes.append(f"{folder}: {len(nowhere)} pictures with XML are in no list of ImageSets, and so neither trained on nor judged")
        if len(ids) < len(listed):
            notes.append(f"{where}: {len(listed) - len(ids)} ids are listed more than once and count once")
    if not ids:
        raise ValueError(f"{where}: {'is empty' if split else 'holds no XML file'}, there must be at least one picture")
    members = []
    for id in ids:
        if len(xmls.get(id, ())) != 1:
            problems.append(f"{where}: '{id}' must have one XML file in {annotations}, not {len(xmls.get(id, ()))}")
        elif len(pictures.get(id, ())) != 1:
            names = ", ".join(path.name for path in pictures.get(id, ())) or "none"
            problems.append(f"{xmls[id][0]}: must have one picture {id}.* in {pictures_folder} ({' '.join(SUFFIXES)}), not {names}")
        else:
            members.append(Member(id, xmls[id][0], pictures[id][0]))
    return members, problems, notes


class VOCDataset(AnnotatedPictures):
    """The pictures and objects of one or several VOC folders, see AnnotatedPictures.

    folders     a folder or a list of them; with several, ids read FOLDER/ID
    split       the name of a list in ImageSets; None takes every XML file; a list of these: one for each folder
    classes     names in the order of the labels; None takes those of the data, sorted
    one_based   VOC's 1-based inclusive pixels; False: the numbers are 0-based edges already
    skip_bad    False: the first bad file or object ends it with a ValueError; True: what is bad is left out
    pseudo_weight   factor on the weight of pseudo labels
    """

    def __init__(self, folders, split=None, classes=None, one_based=True, skip_bad=False, pseudo_weight=1.0):
        super().__init__()
        folders = [Path(folder) for folder in ([folders] if isinstance(folders, (str, Path)) else folders)]
        splits = dict(zip(folders, split if isinstance(split, list) else [split] * len(folders), strict=True))
        self.objects_at_zero = 0
        for folder, name in splits.items():
            members, problems, notes = list_members(folder, name)
            self.skipped += problems
            self.notes += notes
            bad = undecodable(member.picture for member in members) if skip_bad else {}
            self.skipped += bad.values()
            for member in members:
                if member.picture not in bad:
                    self._read(member, f"{folder.as_posix()}/{member.id}" if len(folders) > 1 else member.id, classes, one_based)
        named = dict.fromkeys(filter(None, splits.values()))
        where = " ".join(map(str, folders)) + (f" (split {' '.join(named)})" if named else "")
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
