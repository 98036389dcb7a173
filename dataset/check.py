"""The dataset doctor: what is wrong, or only odd, in folders of VOC layout.

    python -m dataset.check [DIR ...] [--split S] [--zero-based] [--json]

Every XML file is parsed and every picture decoded. An error is what training would stop at (or, with --skip-bad, leave
out); a warning is what it would go on with, and should be looked at. Exit code 1 where there is an error, 2 for a
mistake in the command or a file that the system refuses, 130 after Ctrl-C, else 0.
"""
import difflib
import hashlib
import itertools
import json
import os
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))         # as a file too: python dataset/check.py DIR

from util.command_line import Parser, from_here, one_sentence_errors  # noqa: E402

TINY = 3  # px of a side
NEARLY_BLACK = 32  # of 255
RARE = 0.01  # of the objects of the most frequent class
EXAMPLES = 5
FOLDER_SPLITS = {"train": "train", "val": "val", "valid": "val", "test": "test"}

KINDS = {
    "unreadable-picture": ("error", "pictures that cannot be read: truncated, of an unknown kind, or too large"),
    "bad-xml": ("error", "XML files that do not parse, are no VOC annotation, or have a <size> that cannot be read"),
    "size-mismatch": ("error", "XML files whose <size> is not that of the upright picture"),
    "unreadable-object": ("error", "objects without a name, without four numbers, or with a tag (difficult, ispseudo, ...) that cannot be read"),
    "bad-box": ("error", "boxes without area, with corners exchanged, or outside their picture"),
    "missing-file": ("error", "ids without exactly one XML file and one picture"),
    "class-not-in-train": ("error", "classes that val or test has and train has not"),
    "empty-list": ("error", "lists in ImageSets without a single id"),
    "box-cut": ("warning", "boxes that stick out of their picture by more than 1 px; they are cut"),
    "zero-based": ("warning", "boxes that start at coordinate 0, which 1-based files never have; where most do, train with --zero-based, and run this again with it"),
    "tiny-box": ("warning", f"boxes with a side under {TINY} px"),
    "duplicate-box": ("warning", "objects with the class and the box of another one in the same picture"),
    "nearly-black": ("warning", f"pictures without a value of {NEARLY_BLACK} or more, of 255; 10- and 12-bit pixels in 16-bit files are read so: scale them up"),
    "exif-rotated": ("warning", "pictures that EXIF turns or mirrors; boxes are taken to be in upright pixels"),
    "duplicate-picture": ("warning", "groups of files with the same pixels"),
    "picture-in-two-splits": ("warning", "groups of files with the same pixels in lists that should not overlap"),
    "id-in-two-splits": ("warning", "ids in two lists that should not overlap"),
    "repeated-id": ("warning", "ids more than once in one list; they count once"),
    "picture-without-xml": ("warning", "pictures without XML; they are left out"),
    "in-no-list": ("warning", "pictures with XML in no list of ImageSets; they are neither trained on nor judged"),
    "class-name-close": ("warning", "classes of one or two objects, with a name close to that of another: misspelt?"),
    "class-name-case": ("warning", "class names that differ only in upper and lower case"),
    "rare-class": ("warning", f"classes with less than {RARE:.0%} of the objects of the most frequent one"),
    "picture-without-object": ("note", "pictures without any object; they train the background"),
}


class Examined(NamedTuple):
    member: object  # a dataset.voc_folder.Member
    annotation: object  # a dataset.voc.Annotation, or None
    size: tuple[int, int] | None  # (h, w) upright; None where the picture or the XML cannot be used
    digest: str | None  # of the upright pixels
    faults: list[tuple[str, str]]  # (kind, sentence)


def examine(member, one_based) -> Examined:
    """Everything that one picture and its XML can say by themselves."""
    from PIL import Image

    from dataset.pictures import exif_orientation, read_picture, upright_size
    from dataset.voc import read_annotation
    annotation, size, digest, faults = None, None, None, []
    try:
        image = read_picture(member.picture)
        pixels = image.permute(1, 2, 0).numpy()
        digest = hashlib.sha256(repr(pixels.shape).encode())
        digest.update(pixels)
        digest = digest.hexdigest()
        if image.max() < NEARLY_BLACK:
            faults.append(("nearly-black", str(member.picture)))
    except ValueError as error:
        faults.append(("unreadable-picture", str(error)))
    try:
        annotation = read_annotation(member.xml)
    except ValueError as error:
        faults.append(("bad-xml", str(error)))
    if annotation and digest:
        try:
            size, _ = upright_size(member.picture, annotation.size, f"{member.xml}: <size>")
        except ValueError as error:
            faults.append(("size-mismatch", str(error)))
        with Image.open(member.picture) as opened:
            orientation = exif_orientation(opened)
        if orientation != 1:
            faults.append(("exif-rotated", f"{member.picture}: orientation {orientation}"))
    if size:
        faults += _object_faults(member, annotation, size, one_based)
    return Examined(member, annotation, size, digest, faults)


def _object_faults(member, annotation, size, one_based):
    from dataset.voc import box_edges, overhang
    for sentence in annotation.problems:
        yield "unreadable-object", sentence
    if not annotation.objects:
        yield "picture-without-object", str(member.xml)
    seen = set()
    for number, name, corners, *_ in annotation.objects:
        where = f"{member.xml}: object {number} ({name})"
        try:
            x1, y1, x2, y2 = box_edges(corners, size, one_based)
        except ValueError as error:
            yield "bad-box", f"{where} {error}"
            continue
        if overhang(corners, size) > 1:
            yield "box-cut", f"{where} by {overhang(corners, size):g} px"
        if 0 in corners[:2]:
            yield "zero-based", where
        if min(x2 - x1, y2 - y1) < TINY:
            yield "tiny-box", f"{where} is {x2 - x1:g}x{y2 - y1:g}"
        if (name, corners) in seen:
            yield "duplicate-box", where
        seen.add((name, corners))


def check(folders, split=None, one_based=True):
    """The doctor's report, plain and JSON-able.

    {"folders": [...], "splits": {name: {"pictures": n, "objects": {class: n}}}, "one_based": True, False or None (no
    sign), "findings": [{"id", "severity" error/warning/note, "message", "count", "examples" (sentences or paths)}]}
    split: look at the pictures of this list only. one_based: judge the boxes as VOCDataset reads them so.
    Raises ValueError for a folder that is no VOC folder.
    """
    from tqdm import tqdm

    from dataset.voc_folder import list_members
    faults, examined, lists = defaultdict(list), {}, defaultdict(set)
    split = None if split == "all" else split
    for folder in dict.fromkeys(map(Path, folders)):
        _check_files(folder, split, faults, lists)
        members, problems, _ = list_members(folder, split)
        faults["missing-file"] += problems
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside the interpreter's lock
            each_of = tqdm(pool.map(lambda member: examine(member, one_based), members), folder.name, len(members), unit="picture", disable=None, leave=False)
            examined |= {(folder, each.member.id): each for each in each_of}
    for each in examined.values():
        for kind, sentence in each.faults:
            faults[kind].append(sentence)
    names = {folder: folder.resolve().name for folder in map(Path, folders)}
    if {*names.values()} <= FOLDER_SPLITS.keys() and not lists:         # train beside valid, as many tools export them: folders in place of lists
        for folder, id in examined:
            lists[FOLDER_SPLITS[names[folder]]].add((folder, id))
    splits = {name: [examined[key] for key in sorted(keys & examined.keys())] for name, keys in lists.items()}
    splits = splits or {"all": list(examined.values())}
    counts = {name: _count(members) for name, members in splits.items()}
    _check_classes(_count(examined.values())["objects"], counts, faults)
    _check_overlap(lists, examined, faults)
    return {
        "folders": [str(folder) for folder in folders],
        "splits": counts,
        "one_based": _one_based(examined.values()),
        "findings": [{"id": kind, "severity": severity, "message": message, "count": len(faults[kind]),
                      "examples": [str(example) for example in faults[kind][:EXAMPLES]]}
                     for kind, (severity, message) in KINDS.items() if faults[kind] and (one_based or kind != "zero-based")],
    }


def _check_files(folder, split, faults, lists):
    from dataset.pictures import natural_order
    from dataset.voc_folder import find_splits, in_no_list, index_layout, read_split
    xmls, pictures = index_layout(folder)
    unlabelled = sorted(pictures.keys() - xmls.keys(), key=natural_order)
    faults["picture-without-xml"] += [pictures[id][0] for id in unlabelled]
    splits = find_splits(folder)
    if splits and split is None:
        faults["in-no-list"] += [xmls[id][0] for id in sorted(in_no_list(splits, xmls, pictures), key=natural_order)]
    for name, path in splits.items():
        if split in (None, name):
            ids = read_split(path, known=xmls)
            lists[name] |= {(folder, id) for id in ids}
            faults["repeated-id"] += [f"{path}: {id}" for id, times in Counter(ids).items() if times > 1]
            if not ids:
                faults["empty-list"].append(path)
            if split is None:
                lost = [id for id in dict.fromkeys(ids) if id not in xmls]
                faults["missing-file"] += [f"{path}: '{id}' has no XML file" for id in lost]


def _count(members):
    names = Counter(each.name for member in members if member.size for each in member.annotation.objects)
    return {"pictures": len(members), "objects": dict(sorted(names.items()))}


def _check_classes(total, counts, faults):
    from dataset.annotated import same_but_for_case
    faults["class-name-case"] += same_but_for_case(total)
    for name, number in total.items():
        others = [other for other, count in total.items() if count >= 10 * number and other.casefold() != name.casefold()]
        if number <= 2 and (close := difflib.get_close_matches(name, others, n=1, cutoff=0.7)):
            faults["class-name-close"].append(f"{name} ({number} objects), others are {close[0]} ({total[close[0]]} objects)")
    most = max(total.values(), default=0)
    faults["rare-class"] += [f"{name}: {count}, others have up to {most}" for name, count in total.items()
                             if count < RARE * most]
    for split in ("val", "test"):
        if "train" in counts and split in counts:
            strange = counts[split]["objects"].keys() - counts["train"]["objects"].keys()
            faults["class-not-in-train"] += [f"{name} (in {split})" for name in sorted(strange)]


def _check_overlap(lists, examined, faults):
    """Lists named like aeroplane_train are parts of train, and trainval is train and val: these may overlap."""
    names = [name for name in lists if not any(name.endswith(f"_{other}") for other in lists)]
    pairs = [(a, b) for a, b in itertools.combinations(names, 2) if a not in b and b not in a]
    for a, b in pairs:
        faults["id-in-two-splits"] += [f"{folder}: {id} in {a} and {b}" for folder, id in sorted(lists[a] & lists[b])]
    same = defaultdict(list)
    for key, each in examined.items():
        if each.digest:
            same[each.digest].append(key)
    for keys in same.values():
        if len(keys) > 1:
            group = " = ".join(str(examined[key].member.picture) for key in keys)
            faults["duplicate-picture"].append(group)
            within = {name: lists[name].intersection(keys) for name in names}
            both = [f"{a} and {b}" for a, b in pairs if within[a] and within[b] and len(within[a] | within[b]) > 1]
            faults["picture-in-two-splits"] += [f"{group} in {', '.join(both)}"] if both else []


def _one_based(members):
    """False where more boxes start at 0 than at 1; True where more start at 1, and none has a fraction, as edges have; None: no sign."""
    corners = [each.corners for member in members if member.size for each in member.annotation.objects]
    at_zero, at_one = (sum(start == min(x, y) for x, y, *_ in corners) for start in (0, 1))
    if at_zero > at_one:
        return False
    return True if at_one > at_zero and all(value == int(value) for box in corners for value in box) else None


def format_report(report):
    """The report as text: a table of objects by split and class, then the findings, errors first."""
    splits = report["splits"]
    classes = sorted({name for split in splits.values() for name in split["objects"]})
    rows = [["", *splits], ["pictures", *(split["pictures"] for split in splits.values())]]
    rows += [[name, *(split["objects"].get(name, 0) for split in splits.values())] for name in classes]
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{'>' if column else '<'}{widths[column]}}" for column, cell in enumerate(row))
             for row in rows]
    looks = {True: "1-based, as VOC's are", False: "0-based, as --zero-based reads them", None: "0-based or 1-based: no sign"}
    lines += ["", f"coordinates look {looks[report['one_based']]}"]
    for finding in report["findings"]:
        lines += ["", f"{finding['severity']}: {finding['id']} ({finding['count']}): {finding['message']}"]
        lines += [f"    {example}" for example in finding["examples"]]
        lines += ["    ..."] if finding["count"] > len(finding["examples"]) else []
    return "\n".join(lines if report["findings"] else [*lines, "", "nothing to complain about"])


def main(arguments=None):
    parser = Parser(__doc__)
    parser.prog = "python -m dataset.check"
    parser.add_argument("folders", nargs="*", metavar="DIR", default=[from_here(Path(__file__).resolve().parent.parent / "foreign_object_dataset")], help="folders in VOC layout")
    parser.add_argument("--split", help="look at the pictures of this list in ImageSets only (default: all)")
    parser.add_argument("--zero-based", action="store_true", help="judge the boxes as training with --zero-based does")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    flags = parser.parse_args(arguments)
    with one_sentence_errors():
        report = check(flags.folders, flags.split, not flags.zero_based)
        print(json.dumps(report, indent=2) if flags.json else format_report(report))
    return 1 if any(finding["severity"] == "error" for finding in report["findings"]) else 0


if __name__ == "__main__":
    sys.exit(main())
