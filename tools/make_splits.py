"""Divides a folder in VOC layout that has no lists into train, val and test, and writes ImageSets/Main/{train,val,test}.txt.

    python tools/make_splits.py my_pictures
    python tools/make_splits.py my_pictures --val 0.2 --test 0
    python tools/make_splits.py my_pictures --add           new pictures came: divides those that no list has

Nothing else is touched, and where there is any list already, nothing at all. With --add each list gets new names at its end and keeps its
share; what is in a list stays there, so that a detector of before can still be judged on val and test. Copies of one picture (files that are equal byte by byte)
go into the same list, and train gets at least one picture of each class. Pictures that are alike without being equal, as frames of
one video are, only you can tell apart: write the lists by hand where there are any, a name without suffix a line.
"""
import codecs
import hashlib
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, number, one_sentence_errors  # noqa: E402


def divide(groups: list, shares: dict, seed: int, place: dict | None = None) -> dict:
    """{name of a list: ids, sorted as the groups are}; "train" gets what no share takes.

    groups   [(ids that must stay together, their classes)];  shares   {name: share of the ids, 0..1}
    place    {index of a group: list that it is in already}
    The groups come in random order. The first to show a class goes to train; a list takes a group if that brings it nearer to its share.
    """
    order = random.Random(seed).sample(range(len(groups)), len(groups))
    total, place, free = sum(len(ids) for ids, _ in groups), dict(place or {}), []
    known = {name for index, there in place.items() if there == "train" for name in groups[index][1]}
    for index in order:
        if index in place:
            continue
        new = set(groups[index][1]) - known
        known |= new
        if new:
            place[index] = "train"
        else:
            free.append(index)
    for name, share in shares.items():
        taken = sum(len(groups[index][0]) for index, there in place.items() if there == name)
        for index in [index for index in free if index not in place]:
            size = len(groups[index][0])
            if abs(taken + size - share * total) < abs(taken - share * total):
                place[index] = name
                taken += size
    return {name: [id for index, (ids, _) in enumerate(groups) if place.get(index, "train") == name for id in ids] for name in ("train", *shares)}


def main(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("folder", metavar="DIR", help="Annotations and JPEGImages, or XML files beside their pictures")
    add("--val", type=number(float, 0, 0.9), metavar="SHARE", help="of the pictures, to choose the best epoch and the threshold by; 0: no such list (default: 0.15)")
    add("--test", type=number(float, 0, 0.9), metavar="SHARE", help="of the pictures, for the last word; 0: no such list (default: 0.15)")
    add("--add", action="store_true", help="divide what no list has among those that are there, which keep their names and shares")
    add("--seed", type=number(int, 0), default=0, metavar="N", help="another one draws others")
    flags = parser.parse_args(argv)
    shares = {"val": flags.val, "test": flags.test}
    if flags.add and shares != {"val": None, "test": None}:
        parser.error("--add keeps the shares of the lists as they are; --val and --test do not go with it")
    shares = {name: 0.15 if share is None else share for name, share in shares.items()}
    if not 0 < sum(shares.values()) < 1:
        parser.error(f"--val and --test are {sum(shares.values()):g} together, must be more than 0 and leave something to train on")
    with one_sentence_errors():
        if flags.add:
            add_to_lists(Path(flags.folder), flags.seed)
        else:
            draw_lists(Path(flags.folder), {name: share for name, share in shares.items() if share}, flags.seed)


def find_groups(folder: Path) -> tuple[list, list]:
    """([(ids of equal pictures, their classes)], notes: what is left out)"""
    from dataset.voc import read_annotation
    from dataset.voc_folder import list_members
    members, problems, notes = list_members(folder)
    notes += problems               # in no list, as XML that cannot be read, they are in nobody's way
    groups = {}
    for member in members:
        try:
            found = {each.name for each in read_annotation(member.xml).objects}
        except ValueError as error:
            notes.append(str(error))
            continue
        ids, classes = groups.setdefault(hashlib.sha256(member.picture.read_bytes()).digest(), ([], set()))
        ids.append(member.id)
        classes |= found
    return list(groups.values()), notes


def draw_lists(folder: Path, shares: dict, seed: int) -> None:
    """Raises ValueError, before anything is written, where there are lists, a list would stay empty or cannot hold a name."""
    from dataset.voc_folder import find_splits, list_text
    if splits := find_splits(folder):
        raise ValueError(f"{folder}: has lists in ImageSets already ({', '.join(splits)}); they stay as they are; --add divides the pictures that none of them has; "
                         "without the folder ImageSets all are drawn anew")
    groups, notes = find_groups(folder)
    lists = divide(groups, shares, seed)
    if empty := [name for name, ids in lists.items() if not ids]:
        raise ValueError(f"{folder}: its {sum(map(len, lists.values()))} pictures are too few for a list '{empty[0]}'")
    target, texts = folder / "ImageSets" / "Main", {name: list_text(ids) for name, ids in lists.items()}
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (target / f"{name}.txt").write_text(text, encoding="utf-8")
    if copies := sum(map(len, lists.values())) - len(groups):
        notes.append(f"{copies} pictures are copies of others, and stay with them")
    tell(folder, notes, f"{target}: {', '.join(f'{name} {len(ids)}' for name, ids in lists.items())} pictures")


def add_to_lists(folder: Path, seed: int) -> None:
    """Raises ValueError, before anything is written, where no list train has pictures, a listed one cannot be read, or a list cannot hold a name."""
    from dataset.voc_folder import find_splits, in_no_list, index_layout, list_text, read_split
    splits, (xmls, pictures) = find_splits(folder), index_layout(folder)
    ours = {id: name for name in ("test", "val", "train") if name in splits for id in read_split(splits[name], known=xmls)}
    if "train" not in ours.values():
        raise ValueError(f"{folder}: has no list 'train' with pictures in ImageSets to --add to")
    groups, notes = find_groups(folder)
    if lost := ours.keys() & xmls.keys() - {id for ids, _ in groups for id in ids}:
        raise ValueError(f"{folder}: {min(lost)!r} is in the list '{ours[min(lost)]}', but its XML or picture cannot be read, and what is a copy of it cannot be told; "
                         "mend it, or take it off the list")
    new = in_no_list(splits, xmls, pictures)
    free = [(ids, classes) for ids, classes in groups if {*ids} <= new | ours.keys()]
    if held := new & {id for ids, _ in groups for id in ids} - {id for ids, _ in free for id in ids}:
        notes.append(f"{len(held)} pictures are copies of some that only other lists have, and are not divided, {min(held)} for example")
    place = {index: next(ours[id] for id in ids if id in ours) for index, (ids, _) in enumerate(free) if not ours.keys().isdisjoint(ids)}
    shares = {name: sum(there == name for there in ours.values()) / len(ours) for name in ("val", "test") if name in splits}
    added = {name: [id for id in ids if id not in ours] for name, ids in divide(free, shares, seed, place).items()}
    if "trainval" in splits:
        added["trainval"] = added["train"] + added.get("val", [])
    texts = {splits[name]: list_text(ids) for name, ids in added.items() if ids}
    for path, text in texts.items():
        append(path, text)
    tell(folder, notes, f"{splits['train'].parent}: {', '.join(f'{name} +{len(ids)}' for name, ids in added.items())} pictures")


def append(path: Path, text: str) -> None:
    """Ids, one a line, to a list of UTF-8 or UTF-16, as its lines are ended, and with a column of flags where it has one; what is there stays
    byte for byte."""
    from dataset.voc_folder import has_flags
    there = path.read_bytes()
    code = "utf-16-le" if there.startswith(codecs.BOM_UTF16_LE) else "utf-16-be" if there.startswith(codecs.BOM_UTF16_BE) else "utf-8"
    lines = there.decode(code)
    between = "" if not lines.strip("\ufeff") or lines.endswith("\n") else "\n"
    if has_flags(lines.splitlines()):
        text = text.replace("\n", "  1\n")
    text = between + text
    with open(path, "ab") as file:          # a full disk must not cost what is there
        file.write((text.replace("\n", "\r\n") if "\r\n" in lines else text).encode(code))


def tell(folder: Path, notes: list, done: str) -> None:
    for note in notes:
        print(f"note: {note}")
    print(f"{done}; is anything wrong with them? python -m dataset.check {folder}")


if __name__ == "__main__":
    main()
