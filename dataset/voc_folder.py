"""Folders in PASCAL VOC layout: where XML files and pictures lie, and which of them the lists in ImageSets name."""
import codecs
import os
import re
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from dataset.pictures import SUFFIXES, is_picture, natural_order


FLAG = r"\s+[+-]?[01]$"


class Member(NamedTuple):
    id: str  # as in the list, or the path of the XML below its folder, without suffix
    xml: Path
    picture: Path


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


def wider_trainval(folder):
    """A sentence where the list trainval of a folder holds more than its lists train and val, else None."""
    splits = find_splits(folder)
    train, val, trainval = ({*read_split(splits[name])} if name in splits else set() for name in ("train", "val", "trainval"))
    more = len(trainval - train - val)
    return f"{folder}: trainval lists {more} pictures that neither train nor val does; --train-split trainval takes them" if more and train else None


def has_flags(lines):
    """Whether every line that is not blank ends in a column of +1/-1/0, as those of VOC's lists of one class do: "photo 1" alone is a name."""
    rows = [line.strip() for line in lines if line.strip()]
    return bool(rows) and all(re.search(FLAG, row) for row in rows)


def read_split(path, known=()):
    """The ids of a list file in its order, repeats included. A last column of +1/-1/0 flags is taken off where every line has one, a
    picture's suffix too, unless the line as it stands is one of the `known` ids. Raises ValueError for what is neither UTF-8 nor, by
    its first bytes, UTF-16."""
    data, ids = Path(path).read_bytes(), []
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        lines = normalize("NFC", data.decode(encoding)).splitlines()
    except UnicodeDecodeError as error:
        kind = "UTF-16" if encoding == "utf-16" else "UTF-8"
        raise ValueError(f"{path}: is not {kind}, byte {error.start + 1} is 0x{data[error.start]:02x}; save it as UTF-8") from None
    flagged = has_flags(lines)
    for line in lines:
        line = line if line in known else line.strip()
        if line and line not in known:
            line = re.sub(FLAG, "", line) if flagged else line
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
    deep = annotations != pictures
    return (_by_id(annotations, deep, lambda path: path.suffix.lower() == ".xml"),
            _by_id(pictures, deep, is_picture))


def _by_id(folder, deep, wanted):
    found = {}
    for path in sorted(filter(wanted, _files(folder, deep))):
        id = path.relative_to(folder).with_suffix("").as_posix()
        found.setdefault(normalize("NFC", id), []).append(path)     # macOS takes an umlaut apart
    return found


def _files(folder, deep, above=()):
    """The files of a folder, and with `deep` of those below it, but for hidden ones (of macOS, Jupyter, ...). Links are followed, except
    to a folder that is one of those `above`, where they would never end."""
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield Path(entry.path)
            elif deep and os.path.realpath(entry.path) not in above:
                yield from _files(entry.path, deep, above)


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
        if unlabelled := pictures.keys() - xmls.keys():
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
            notes.append(f"{folder}: {len(nowhere)} pictures with XML are in no list of ImageSets, and so neither trained on nor judged"
                         + ("; tools/make_splits.py --add divides them" if "train" in splits else ""))
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
