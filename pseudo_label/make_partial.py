"""Drops labels from a complete data set, so that what is missing is known.

    python -m pseudo_label.make_partial full.json --keep 0.3 --output partial.json
    python -m pseudo_label.make_partial foreign_object_dataset --keep 0.3 --seed 1 --output partial       a VOC folder
    python -m pseudo_label.make_partial full.json --protocol keep1 --output partial.json

--protocol    what is kept, the rest is dropped
bernoulli     the share --keep of the boxes of each class, at least one
easy          all but one box of each picture that has two or more
hard          half of the boxes of each picture, rounded up
extreme       one box a picture
keep1         one box of each class in a picture
image         all boxes of the share --keep of the pictures, at least one; none of the others

Boxes are drawn by a number made of --seed and their id, so splits of one seed are nested (what 0.1 keeps, 0.3 keeps too), and
neither the order of a file nor the machine matters. --bias size draws them as people label, who skip what is small: the chance to be
drawn next grows with the side (the root of the area); what counts on labels that are missing at random is then wrong. Ids stay as they
are, so do pictures that are left without a box. Crowds and difficult objects are always kept. Beside the output, in *.dropped.json (of a
folder: dropped.json in it), stand the ids that were dropped and the SHA-256 of the full file. No published number of one protocol can be
compared with that of another.
"""
import hashlib
import math
from pathlib import Path

from pseudo_label.labels import add_place, is_neutral, read_labels, refuse_existing, write_json, write_labels
from util.command_line import Parser, number, one_sentence_errors


def share(n: int, keep: float) -> int:
    return max(1, int(n * keep + 0.5))


# (what a group of boxes has in common, how many of n are kept)
PROTOCOLS = {
    "bernoulli": (lambda box: box["category_id"], share),
    "easy": (lambda box: box["image_id"], lambda n, keep: max(1, n - 1)),
    "hard": (lambda box: box["image_id"], lambda n, keep: (n + 1) // 2),
    "extreme": (lambda box: box["image_id"], lambda n, keep: 1),
    "keep1": (lambda box: (box["image_id"], box["category_id"]), lambda n, keep: 1),
    "image": (None, share),         # of pictures
}


def draw(seed: int, id) -> str:
    """What an id draws: 64 digits, as good as random."""
    return hashlib.sha256(f"{seed}/{id}".encode()).hexdigest()


def turn(box: dict, seed: int, bias: str | None) -> float:
    """Boxes are drawn in the order of their turns: by chance alone, or each as likely to be next as its side is long."""
    chance = int(draw(seed, box["id"])[:13], 16) / 16**13
    return -math.log1p(-chance) / (math.sqrt(box["bbox"][2] * box["bbox"][3]) if bias else 1.0)


def refuse_bias(protocol: str, bias: str | None) -> None:
    if bias and protocol == "image":
        raise ValueError(f"--bias {bias}: chooses among boxes, but --protocol image keeps all of a picture")


def kept_ids(contents: dict, protocol: str, keep: float, seed: int, bias: str | None = None) -> set:
    """Of the annotations. Raises ValueError for a bias where no box is drawn."""
    refuse_bias(protocol, bias)
    (key, count), groups = PROTOCOLS[protocol], {}
    boxes = [each for each in contents["annotations"] if not is_neutral(each)]
    if protocol == "image":
        ids = sorted((image["id"] for image in contents["images"]), key=lambda id: draw(seed, f"image {id}"))
        labelled = {*ids[:count(len(ids), keep)]}
        return {each["id"] for each in boxes if each["image_id"] in labelled}
    for each in sorted(boxes, key=lambda each: turn(each, seed, bias)):
        groups.setdefault(key(each), []).append(each["id"])
    return {id for ids in groups.values() for id in ids[:count(len(ids), keep)]}


def make_partial(contents: dict, sha256: str, protocol: str = "bernoulli", keep: float = 0.5, seed: int = 0,
                 bias: str | None = None) -> tuple[dict, dict]:
    """(contents with some annotations dropped, what the sidecar says)"""
    kept = kept_ids(contents, protocol, keep, seed, bias)
    stays = [each["id"] in kept or is_neutral(each) for each in contents["annotations"]]
    dropped = [each["id"] for each, stay in zip(contents["annotations"], stays, strict=True) if not stay]
    numbers = [int(each["id"]) for each in contents["annotations"] if str(each["id"]).isdigit()]
    how = {"protocol": protocol, "keep": keep if PROTOCOLS[protocol][1] is share else None, "bias": bias, "seed": seed, "full_sha256": sha256,
           "kept": len(kept), "dropped": len(dropped)}
    partial = {**contents, "info": {**contents["info"], "partial": how | {"first_id": max(numbers, default=0) + 1}},
               "annotations": [each for each, stay in zip(contents["annotations"], stays, strict=True) if stay]}
    return partial, how | {"dropped_ids": dropped}


def sidecar_of(output) -> Path:
    output = Path(output)
    return output.with_suffix(".dropped.json") if output.suffix == ".json" else output / "dropped.json"


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="COCO json, or a folder in VOC layout")
    add("--protocol", default="bernoulli", choices=list(PROTOCOLS), help="which boxes are kept")
    add("--keep", type=number(float, 0, 1), default=0.5, metavar="X", help="share that bernoulli and image keep")
    add("--bias", choices=["size"], help="large boxes are kept rather than small ones")
    add("--seed", type=int, default=0, metavar="N", help="one seed, one choice")
    add("--output", required=True, metavar="PATH", help="a file *.json, or a folder in VOC layout to make")
    add_place(parser)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        refuse_existing(flags.output, flags.source)
        labels = read_labels(flags.source, flags.images, flags.split, flags.skip_bad)
        if any(each.get("ispseudo") for each in labels.contents["annotations"]):
            raise ValueError(f"{flags.source}: holds pseudo labels already; labels are dropped from a file of humans' labels")
        partial, how = make_partial(labels.contents, labels.sha256, flags.protocol, flags.keep, flags.seed, flags.bias)
        write_labels(partial, flags.output, labels.images, labels.split)
        write_json(sidecar_of(flags.output), how, indent=1)
        print(f"{how['kept']} boxes kept, {how['dropped']} dropped; {flags.output}, {sidecar_of(flags.output)}")


if __name__ == "__main__":
    main()
