"""Divides a folder in VOC layout that has no lists into train, val and test, and writes ImageSets/Main/{train,val,test}.txt.

    python tools/make_splits.py my_pictures
    python tools/make_splits.py my_pictures --val 0.2 --test 0
    python tools/make_splits.py my_pictures --add           new pictures came: divides those that no list has

Nothing else is touched, and where there is any list already, nothing at all. With --add each list gets new names at its end and keeps its
share; what is in a list stays there, so that a detector of before can still be judged on val and test. Copies of one picture (files that are equal byte by byte)
go into the same list, and train gets at least one picture of each class. Pictures that are alike without being equal, as frames of
one video are, only you can tell apart: write the lists by hand where there are any, a name without suffix a line.
"""
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
    from dataset.voc_folder import find_splits
    if splits := find_splits(folder):
        raise ValueError(f"{folder}: has lists in ImageSets already ({', '.join(splits)}); they stay as they are; --add divides the pictures that none of them has; "
                         "without the folder ImageSets all are drawn anew")
    groups, notes = find_groups(folder)
    lists = divide(groups, shares, seed)
    if empty := [name for name, ids in lists.items() if not ids]:
        raise ValueError(f"{folder}: its {sum(map(len, lists.values()))} pictures are too few for a list '{empty[0]}'")
    write_lists({folder / "ImageSets" / "Main" / f"{name}.txt": ids for name, ids in lists.items()})
    if copies := sum(map(len, lists.values())) - len(groups):
        notes.append(f"{copies} pictures are copies of others, and stay with them")
    tell(folder, notes, f"{folder / 'ImageSets' / 'Main'}: {', '.join(f'{name} {len(ids)}' for name, ids in lists.items())} pictures")


def add_to_lists(folder: Path, seed: int) -> None:
    """Raises ValueError, before anything is written, where there is no list train, or a list cannot hold a name."""
    from dataset.voc_folder import find_splits, read_split
    splits = find_splits(folder)
    if "train" not in splits:
        raise ValueError(f"{folder}: has no list 'train' in ImageSets to --add to")
    groups, notes = find_groups(folder)
    known = {id for ids, _ in groups for id in ids}
    listed = {name: read_split(path, known) for name, path in splits.items()}
    ours = {id: name for name in ("train", "val", "test") for id in listed.get(name, ())}
    in_others = {id for ids in listed.values() for id in ids} - ours.keys()
    groups = [(ids, classes) for ids, classes in groups if in_others.isdisjoint(ids)]
    place = {index: next(ours[id] for id in ids if id in ours) for index, (ids, _) in enumerate(groups) if not ours.keys().isdisjoint(ids)}
    shares = {name: len(listed[name]) / len(ours) for name in ("val", "test") if name in listed}
    new = {name: [id for id in ids if id not in ours] for name, ids in divide(groups, shares, seed, place).items()}
    added = {**new, "trainval": new["train"] + new.get("val", [])} if "trainval" in splits else new
    write_lists({splits[name]: listed[name] + ids for name, ids in added.items() if ids})
    tell(folder, notes, f"{splits['train'].parent}: {', '.join(f'{name} {len(listed[name])} + {len(ids)}' for name, ids in added.items())} pictures")


def write_lists(lists: dict) -> None:
    """lists: {file: ids}"""
    from dataset.voc_folder import list_text
    texts = {path: list_text(ids) for path, ids in lists.items()}
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def tell(folder: Path, notes: list, done: str) -> None:
    for note in notes:
        print(f"note: {note}")
    print(f"{done}; is anything wrong with them? python -m dataset.check {folder}")


if __name__ == "__main__":
    main()
