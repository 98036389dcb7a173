"""Splits pictures into folds, so that each is predicted by a teacher that did not train on it.

    python -m pseudo_label.make_folds partial.json --folds 2 --output folds
    python train_coco.py --train-json folds/train-0.json --train-images pictures --val-json none --strong-view on --normalizer-floor 8 \\
        --epochs 60 --output teacher-0                      and 1; twice the epochs, of half the pictures
    python -m pseudo_label.extract_features partial.json --images pictures --checkpoint teacher-0/last.pth teacher-1/last.pth \\
        --folds folds/folds.json --output found

train-K.json holds all pictures but those of fold K. folds.json says which pictures these are: {"folds": [[image id, ...], ...]}.
A teacher learnt that what is missing in its own pictures is background, so there it cannot find it, nor tell how much is missing.
"""
import re
from pathlib import Path

from pseudo_label.labels import add_place, read_json, read_labels, refuse_inputs, write_json
from pseudo_label.make_partial import draw
from util.command_line import Parser, number, one_sentence_errors

WRITTEN = re.compile(r"train-\d+\.json")


def make_folds(contents: dict, count: int, seed: int = 0) -> list:
    """[[image ids]] of `count` folds of equal size, or nearly. Raises ValueError where there are fewer pictures than folds."""
    ids = sorted((image["id"] for image in contents["images"]), key=lambda id: draw(seed, f"image {id}"))
    if len(ids) < count:
        raise ValueError(f"--folds is {count}, but there are only {len(ids)} pictures")
    return [ids[start::count] for start in range(count)]


def without_images(contents: dict, ids: list) -> dict:
    gone = {*ids}
    return {**contents, "images": [each for each in contents["images"] if each["id"] not in gone],
            "annotations": [each for each in contents["annotations"] if each["image_id"] not in gone]}


def files_of_earlier(output: Path, count: int) -> list:
    """The train-K.json of an earlier call, which may have had more folds, as many as folds.json has. Raises ValueError where another file
    lies in the way of one of `count` folds."""
    folds = read_json(output / "folds.json") if (output / "folds.json").exists() else {"folds": []}
    if not isinstance(folds, dict) or not isinstance(folds.get("folds"), list):
        raise ValueError(f"--output {output}: holds a folds.json that is none of make_folds, and would be replaced; name another folder")
    earlier = [output / f"train-{place}.json" for place in range(len(folds["folds"]))]
    for path in [output / f"train-{place}.json" for place in range(len(earlier), count)]:
        if path.exists():
            raise ValueError(f"--output {output}: holds {path.name}, which no earlier call has left there, as folds.json would tell; name another folder, or move it away")
    return earlier


def write_folds(contents: dict, folds: list, output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    for place, ids in enumerate(folds):
        write_json(output / f"train-{place}.json", without_images(contents, ids))
    write_json(output / "folds.json", {"folds": folds})


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="COCO json, or a folder in VOC layout")
    add("--folds", type=number(int, 2), default=2, metavar="K", help="teachers")
    add("--seed", type=int, default=0, metavar="N", help="one seed, one choice")
    add("--output", required=True, metavar="DIR", help="where folds.json and train-K.json go")
    add_place(parser)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        if WRITTEN.fullmatch(Path(flags.source).name):
            refuse_inputs(Path(flags.output) / Path(flags.source).name, flags.source)
        contents = read_labels(flags.source, flags.images, flags.split, flags.skip_bad).contents
        folds = make_folds(contents, flags.folds, flags.seed)
        for earlier in files_of_earlier(Path(flags.output), flags.folds):
            earlier.unlink(missing_ok=True)
        write_folds(contents, folds, Path(flags.output))
        print(f"{len(folds)} folds of {len(folds[-1])} pictures or one more; {flags.output}")


if __name__ == "__main__":
    main()
