"""Divides a folder in VOC layout that has no lists into train, val and test, and writes ImageSets/Main/{train,val,test}.txt.

    python tools/make_splits.py my_pictures
    python tools/make_splits.py my_pictures --val 0.2 --test 0

Nothing else is touched, and where there is any list already, nothing at all. Copies of one picture (files that are equal byte by byte)
go into the same list, and train gets at least one picture of each class. Pictures that are alike without being equal, as frames of
one video are, only you can tell apart: write the lists by hand where there are any, a name without suffix a line.
"""
import hashlib
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, number, one_sentence_errors  # noqa: E402


def divide(groups: list, shares: dict, seed: int) -> dict:
    """{name of a list: ids, sorted as the groups are}; "train" gets what no share takes.

    groups   [(ids that must stay together, their classes)];  shares   {name: share of the ids, 0..1}
    The groups come in random order. The first to show a class goes to train; a list takes a group if that brings it nearer to its share.
    """
    order = random.Random(seed).sample(range(len(groups)), len(groups))
    total, known, place, free = sum(len(ids) for ids, _ in groups), set(), {}, []
    for index in order:
        new = set(groups[index][1]) - known
        known |= new
        if new:
            place[index] = "train"
        else:
            free.append(index)
    for name, share in shares.items():
        taken = 0
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
    add("--val", type=number(float, 0, 0.9), default=0.15, metavar="SHARE", help="of the pictures, to choose the best epoch and the threshold by; 0: no such list")
    add("--test", type=number(float, 0, 0.9), default=0.15, metavar="SHARE", help="of the pictures, for the last word; 0: no such list")
    add("--seed", type=number(int, 0), default=0, metavar="N", help="another one draws others")
    flags = parser.parse_args(argv)
    if not 0 < flags.val + flags.test < 1:
        parser.error(f"--val and --test are {flags.val + flags.test:g} together, must be more than 0 and leave something to train on")
    with one_sentence_errors():
        write_lists(Path(flags.folder), {name: share for name, share in (("val", flags.val), ("test", flags.test)) if share}, flags.seed)


def write_lists(folder: Path, shares: dict, seed: int) -> None:
    """Raises ValueError, before anything is written, where there are lists, a list would stay empty or cannot hold a name."""
    from dataset.voc import read_annotation
    from dataset.voc_folder import find_splits, list_members, list_text
    if splits := find_splits(folder):
        raise ValueError(f"{folder}: has lists in ImageSets already ({', '.join(splits)}); they stay as they are; without the folder ImageSets they are drawn anew")
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
    lists = divide(list(groups.values()), shares, seed)
    if empty := [name for name, ids in lists.items() if not ids]:
        raise ValueError(f"{folder}: its {len(members)} pictures are too few for a list '{empty[0]}'")
    target, texts = folder / "ImageSets" / "Main", {name: list_text(ids) for name, ids in lists.items()}
    target.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (target / f"{name}.txt").write_text(text, encoding="utf-8")
    for note in notes:
        print(f"note: {note}")
    if copies := sum(map(len, lists.values())) - len(groups):
        print(f"note: {copies} pictures are copies of others, and stay with them")
    print(f"{target}: {', '.join(f'{name} {len(ids)}' for name, ids in lists.items())} pictures; is anything wrong with them? python -m dataset.check {folder}")


if __name__ == "__main__":
    main()
