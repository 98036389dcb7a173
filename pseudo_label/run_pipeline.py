"""From a complete data set to the table of what its missing labels cost, and what each cure gives back: one command.

    python -m pseudo_label.run_pipeline foreign_object_dataset --keep 0.3 --keep-rate 0.3 --output checkpoint/holes \\
        -- --config configs/incomplete_labels.yaml --min-size 144 162 180 --max-size 320 --epochs 10
    python -m pseudo_label.run_pipeline train.json --images pictures --test test.json --test-images pictures --keep 0.5 \\
        --seeds 0 1 2 --output checkpoint/holes-50 -- --backbone resnet50 --normalizer-floor 8

What follows -- are flags of train_coco.py, the same for every arm; those that make an arm what it is are refused. All arms see the
same pictures for as many steps, from the same weights on, and are judged by their last checkpoint; teachers make as many steps, too.
The labels that were dropped are looked at by F and by the measures alone.

    arm  labels                                             how
    A    kept                                               as the flags say, weights not averaged
    A+   kept                                               strong views, averaged weights; so do all that follow
    B    kept and pseudo, policy seed, weight 0.5           teacher: A+, which trained on these very pictures
    C    kept and pseudo, policy precision, zones ignored   --folds teachers, each picture by one that did not train on it
    D    kept                                               boxes are added at each step: by A+, then by the averaged network (--teacher)
    F    all

Several GPUs of one machine are used as train_coco.py uses them without torchrun.

The output holds train.json, test.json, and for each seed partial.json, a run folder for each arm and teacher, detections,
pseudo labels, their quality, and drawn pictures; results.json and table.md for all. Begun anew it goes on where it stopped, also with
more --arms or --seeds, named beside the earlier ones. What the columns mean: pseudo_label/compare_arms.py.
"""
import argparse
import csv
import hashlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

import train_coco
from pseudo_label.labels import Labels, add_place, missing_labels, read_json, read_labels, write_json, write_labels
from pseudo_label.make_folds import make_folds, write_folds
from pseudo_label.make_partial import PROTOCOLS, make_partial, refuse_bias, sidecar_of
from util.command_line import Parser, number, one_sentence_errors

STRONG = ["--strong-view", "on"]
OWN_FLAGS = ("data", "train_json", "train_images", "val_json", "val_images", "output", "resume", "seed", "strong_view", "teacher",
             "pseudo_weight", "keep_rate")              # of train_coco.py that an experiment sets
PLACES = ("source", "images", "test", "test_images")       # where the data is; which it is the digest of its labels says
ANYWHERE = ("config", "workers", "device")              # and those that may differ when it goes on: what a --config says is in the others


class Arm(NamedTuple):
    what: str
    flags: list         # of train_coco.py, beside those of all arms
    teachers: tuple = ()


ARMS = {
    "A": Arm("kept labels", ["--ema", "0"]),
    "A+": Arm("kept labels, strong views, averaged weights", STRONG),
    "B": Arm("pseudo labels as Jmq14/FCOS made them", [*STRONG, "--pseudo-weight", "0.5"], ("A+",)),
    "C": Arm("pseudo labels of cross-fitted teachers, by precision, with zones", [*STRONG, "--pseudo-weight", "1"]),
    "D": Arm("pseudo boxes at each step, of A+ and then of the averaged network", STRONG, ("A+",)),
    "F": Arm("all labels", STRONG),
}


class Experiment:
    """One seed: its folder, and how a run or a file in it is made unless it is there already."""

    def __init__(self, folder: Path, images: Path, test: tuple, seed: int, flags: argparse.Namespace, words: list):
        self.folder, self.images, self.test, self.seed, self.flags, self.words = folder, images, test, seed, flags, words
        self.settings = train_coco.parse_flags(words)[0]
        folder.mkdir(parents=True, exist_ok=True)

    def train(self, labels: Path, name: str, extra: list) -> Path:
        """The last checkpoint of the run `name` on a json; a run that was broken off goes on."""
        run = self.folder / name
        if (run / "best.pth").exists():         # written last of all
            print(f"{run}: is complete")
        elif (run / "last.pth").exists():
            stop = ["--max-steps", str(self.settings.max_steps)] if self.settings.max_steps else []     # no run takes it from its checkpoint
            where = ["--device", self.settings.device, "--workers", str(self.settings.workers)]     # which may be others by now
            train_coco.run(["--resume", str(run / "last.pth"), *where, *stop])
        else:
            train_coco.run([*self.words, "--train-json", str(labels), "--train-images", str(self.images), "--val-json", "none",
                              "--seed", str(self.seed), *extra, "--output", str(run)])
        return run / "last.pth"

    def arm(self, name: str) -> Path:
        labels = {"B": self.seed_labels, "C": self.precise_labels, "F": lambda: self.folder.parent / "train.json"}.get(name, self.partial)
        told = ["--keep-rate", str(self.flags.keep_rate)] if self.flags.keep_rate else []
        extra = ["--teacher", str(self.arm("A+")), *told] if name == "D" else []
        return self.train(labels(), name, [*ARMS[name].flags, *extra])

    def partial(self) -> Path:
        path = self.folder / "partial.json"

        def drop():
            full = read_labels(self.folder.parent / "train.json")
            partial, how = make_partial(full.contents, full.sha256, self.flags.protocol, self.flags.keep, self.seed, self.flags.bias)
            write_json(sidecar_of(path), how, indent=1)
            write_labels(partial, path, self.images, self.flags.split)
        return self.once(path, drop)

    def seed_labels(self) -> Path:
        return self.pseudo_labels("B", "seed", [self.arm("A+")])

    def precise_labels(self) -> Path:
        contents, folds = read_labels(self.partial()).contents, self.folder / "folds"
        self.once(folds / "folds.json", lambda: write_folds(contents, make_folds(contents, self.flags.folds, self.seed), folds))
        epochs = round(self.settings.epochs * self.flags.folds / (self.flags.folds - 1))        # of fewer pictures: as many steps, or nearly
        teachers = [self.train(folds / f"train-{fold}.json", f"teacher-{fold}", [*STRONG, "--epochs", str(epochs)])
                    for fold in range(self.flags.folds)]
        return self.pseudo_labels("C", "precision", teachers, folds / "folds.json")

    def pseudo_labels(self, name: str, policy: str, teachers: list, folds=None) -> Path:
        """Predicted, chosen, judged and drawn."""
        from pseudo_label.evaluate_pseudo_labels import evaluate, format_quality
        from pseudo_label.extract_features import extract, teachers_of, write_found
        from pseudo_label.generate_pseudo_labels import generate, read_detections, told
        from pseudo_label.policies import Options
        from pseudo_label.visualize_pseudo_labels import draw_pictures
        contents, full = (read_labels(path).contents for path in (self.partial(), self.folder.parent / "train.json"))
        found, path = self.folder / f"found-{name}", self.folder / f"pseudo-{name}.json"
        device, batch_size, workers = (getattr(self.settings, name) for name in ("device", "batch_size", "workers"))
        self.once(found / "detections.json", lambda: write_found(*extract(
            contents, self.images, teachers_of(contents, teachers, folds), device, batch_size, workers, features=False), found, features=False))

        def choose():
            detections = read_detections(found / "detections.json", contents)
            result = generate(contents, detections, policy, Options(keep_rate=self.flags.keep_rate))
            quality = evaluate(result, full)
            print(told(result, path), format_quality(quality), sep="\n")
            write_json(self.folder / f"quality-{name}.json", quality, indent=1)
            draw_pictures(result, missing_labels(result, full, path, "train.json"), self.images, self.folder / f"drawn-{name}", 12, replace=True)
            write_labels(result, path, self.images, self.flags.split)
        return self.once(path, choose)

    def once(self, path: Path, make) -> Path:
        """The file, which make() writes last of what it writes."""
        if not path.exists():
            make()
        return path

    def detections(self, name: str) -> dict:
        """{image id: boxes, scores, labels} of an arm on the test pictures; predicted once."""
        import torch

        from util.boxes import xywh_to_xyxy
        dataset, path = self.test, self.folder / name / "test_detections.json"
        checkpoint = self.arm(name)
        self.once(path, lambda: write_json(path, predict_test(checkpoint, dataset, self.settings)))
        found = {id: [] for id in dataset.ids}
        for each in json.loads(path.read_text(encoding="utf-8")):
            found[str(each["image_id"])].append((*each["bbox"], each["score"], dataset.category_ids.index(each["category_id"])))
        rows = {id: torch.tensor(own, dtype=torch.float64).reshape(-1, 6) for id, own in found.items()}
        return {id: {"boxes": xywh_to_xyxy(own[:, :4]), "scores": own[:, 4], "labels": own[:, 5].long()} for id, own in rows.items()}

    def cost(self, name: str) -> tuple[int, float]:
        """(steps, seconds of training with teachers) of an arm."""
        teachers = [f"teacher-{fold}" for fold in range(self.flags.folds)] if name == "C" else ARMS[name].teachers
        last = {run: last_row(self.folder / run / "metrics.csv") for run in (name, *teachers)}
        return int(last[name]["step"]), sum(float(row["seconds"]) for row in last.values())


def last_row(path: Path) -> dict:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))[-1]


def predict_test(file: Path, dataset, settings: argparse.Namespace) -> list:
    """COCO results of a checkpoint on a data set."""
    from dataset.loader import eval_loader
    from engine.checkpoint import load_checkpoint
    from engine.distributed import select_device
    from engine.predict import predict
    from evaluation.report import coco_results
    from model import load_model
    checkpoint, device = load_checkpoint(file), select_device(settings.device)
    network = load_model(checkpoint["config"], checkpoint["model"], device)
    loader = eval_loader(dataset, **checkpoint["input"], batch_size=settings.batch_size, workers=settings.workers,
                         pin_memory=device.type == "cuda")
    found = predict(network, loader, device, nms_iou_threshold=network.config.nms_iou_threshold)
    found = {id: {name: values for name, values in each.items() if name != "masks"} for id, each in found.items()}      # boxes are what is compared
    return coco_results(found, dataset.category_ids, dataset.image_ids)


def refuse_own_flags(settings: argparse.Namespace, arms: list) -> None:
    """Raises ValueError for a flag of training, also one of its --config, that the arms or the experiment set themselves or cannot do with."""
    defaults = train_coco.parse_flags([])[0]
    for name in OWN_FLAGS:
        if getattr(settings, name) != getattr(defaults, name):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(settings, name)}: is set by the experiment itself; it must not stand "
                             "after --, nor in the --config that is named there")
    if not settings.ema:
        raise ValueError("--ema 0: all arms but A average their weights; it must not stand after --, nor in the --config that is named there")
    if settings.tile and {"B", "C"} & {*arms}:
        raise ValueError(f"--tile {settings.tile}: the teachers of B and C see whole pictures (--crop without --min-size means tiles too); add --min-size "
                         "after --, or leave these arms out: --arms A A+ D F")


def doubts(settings: argparse.Namespace) -> list[str]:
    """What in the flags of training makes the arms hard to compare."""
    windows = [f"--{name}" for name, laid in (("crop", settings.crop), ("mosaic", settings.mosaic), ("zoom", settings.zoom[1] > 1)) if laid]
    found = [f"{', '.join(windows)}: windows are mostly laid around labelled objects, so that arms see what others do not, and D little of what "
             "is missing; whole pictures (--min-size alone) are fair"] * bool(windows)
    if settings.weights == "coco" or Path(settings.weights).is_file():
        found.append(f"--weights {settings.weights}: where this is a detector that has learnt these classes, little is left to lose or to gain")
    return found


def digest(labels) -> str:
    """Of the labels and of which pictures they belong to."""
    names = [each["file_name"] for each in labels.contents["images"]]
    return hashlib.sha256(json.dumps([labels.sha256, names]).encode()).hexdigest()


def settle(output: Path, settings: dict, defaults: dict) -> None:
    """Keeps the settings beside the results; a flag that there was not yet when an earlier call kept them had its default. Raises ValueError where the folder holds an experiment with others, or files of somebody else."""
    path, settings = output / "pipeline.json", json.loads(json.dumps(settings))
    for name in () if path.exists() else ("train.json", "test.json", "results.json", "table.md"):
        if (output / name).exists():
            raise ValueError(f"--output {output}: holds {name}, which no experiment has left there, and would be replaced; name another folder")
    before = read_json(path) if path.exists() else settings
    if not isinstance(before, dict):
        raise ValueError(f"{path}: is none of an experiment; name another --output")
    for name, value in settings.items():
        if (then := before.get(name, defaults.get(name))) != value:
            raise ValueError(f"--output {output}: holds an experiment with {name} {then}, not {value}; name another folder")
    output.mkdir(parents=True, exist_ok=True)
    write_json(path, settings, indent=1)


def refuse_shared_pictures(full: Labels, test: Labels) -> None:
    train, judged = ({(labels.images / each["file_name"]).resolve() for each in labels.contents["images"]} for labels in (full, test))
    if shared := train & judged:
        raise ValueError(f"{len(shared)} of the {len(judged)} pictures to judge on are trained on too, {min(shared)} for example; "
                         "name other lists with --split and --test-split, or others with --test")


def refuse_fewer(output: Path, flags: argparse.Namespace) -> None:
    """The table is of what a call names: raises ValueError where an earlier one has more, which would be lost."""
    path = output / "results.json"
    before = read_json(path) if path.exists() else {"arms": {}, "seeds": []}
    if not isinstance(before, dict) or not isinstance(before.get("arms"), dict) or not isinstance(before.get("seeds"), list):
        raise ValueError(f"{path}: is none of an experiment, and would be replaced; name another --output")
    for name, there in (("arms", list(before["arms"])), ("seeds", before["seeds"])):
        if not {*there} <= {*getattr(flags, name)}:
            words = " ".join(map(str, dict.fromkeys([*there, *getattr(flags, name)])))
            raise ValueError(f"--output {output}: its table has the {name} {' '.join(map(str, there))}, which a table without them would replace; "
                             f"--{name} {words} has all (what is there is not trained again)")


def run(flags: argparse.Namespace, words: list) -> dict:
    """The rows of the table, by arm. Raises ValueError, after the others are through, for an arm that cannot be trained."""
    words = [*words, "--skip-bad"] if flags.skip_bad else words
    flags.arms, flags.seeds = (list(dict.fromkeys(part)) for part in (flags.arms, flags.seeds))
    refuse_bias(flags.protocol, flags.bias)
    settings = train_coco.parse_flags(words)[0]
    refuse_own_flags(settings, flags.arms)
    for doubt in doubts(settings):
        print(f"note: {doubt}")
    test_source, test_images = (flags.test, flags.test_images) if flags.test else (flags.source, flags.images)
    if not flags.test and Path(flags.source).is_file():
        raise ValueError(f"{flags.source}: a json needs another one to judge on: --test FILE --test-images DIR")
    output = Path(flags.output)
    full = read_labels(flags.source, flags.images, flags.split, flags.skip_bad, need_images=True)
    test = read_labels(test_source, test_images, flags.test_split, flags.skip_bad, need_images=True)
    refuse_shared_pictures(full, test)
    refuse_fewer(output, flags)
    settle(output, {name: value for name, value in vars(flags).items() if name not in ("arms", "output", "seeds", *PLACES)}
           | {f"sha256 of the labels to {what}": digest(labels) for what, labels in (("train on", full), ("judge on", test))}
           | {f"training {name}": value for name, value in vars(settings).items() if name not in (*OWN_FLAGS, *ANYWHERE)},
           {f"training {name}": value for name, value in vars(train_coco.parse_flags([])[0]).items()})
    for labels, name in ((full, "train"), (test, "test")):
        write_labels(labels.contents, output / f"{name}.json", labels.images, labels.split)

    from dataset.coco import COCODataset
    from pseudo_label.compare_arms import compare, format_arms, measure, resamples
    classes = COCODataset(output / "train.json", full.images, skip_bad=flags.skip_bad).classes
    test_set = COCODataset(output / "test.json", test.images, classes=classes, skip_bad=flags.skip_bad)
    if test_set.skipped:
        print(f"note: {output / 'test.json'}: {len(test_set.skipped)} entries are bad and left out; the first: {test_set.skipped[0]}")
    truth, counts = test_set.truth(), resamples(len(test_set))
    measured, costs, failed = {name: [] for name in flags.arms}, {name: [] for name in flags.arms}, {}
    for seed in flags.seeds:
        experiment = Experiment(output / f"seed-{seed}", full.images, test_set, seed, flags, words)
        for name in [name for name in flags.arms if name not in failed]:
            try:
                measured[name].append(measure(experiment.detections(name), truth, len(test_set.classes), counts))
                costs[name].append(experiment.cost(name))
            except ValueError as error:             # an arm without a pseudo label must not cost the others
                print(failed.setdefault(name, f"arm {name}, seed {seed}: {error}"))
    measured, costs = ({name: each for name, each in part.items() if name not in failed} for part in (measured, costs))
    if not measured:
        raise ValueError("; ".join(failed.values()))
    if len(steps := {step for each in costs.values() for step, _ in each}) > 1:
        raise ValueError(f"--output {output}: the arms made {' and '.join(map(str, sorted(steps)))} steps, must be as many in each")
    minutes = {name: sum(seconds for _, seconds in each) / 60 / len(each) for name, each in costs.items()}
    rows = {name: {**row, "what": ARMS[name].what, "steps": costs[name][0][0], "minutes": minutes[name]}
            for name, row in compare(measured).items()}
    table = format_arms(rows)
    write_json(output / "results.json", {"seeds": flags.seeds, "arms": rows}, indent=1)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n{table}\n\n{len(test_set)} test pictures, {len(flags.seeds)} seeds; {output}")
    if failed:
        raise ValueError("; ".join(failed.values()))
    return rows


def main(argv: list | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    cut = argv.index("--") if "--" in argv else len(argv)
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", metavar="SOURCE", help="complete labels to train on: COCO json, or a folder in VOC layout")
    add("--test", metavar="SOURCE", help="to judge on, likewise (default: SOURCE, where it is a folder)")
    add("--test-images", metavar="DIR", help="the pictures of a json given with --test")
    add("--test-split", default="test", metavar="S", help="list to judge on in a VOC folder")
    add("--keep", type=number(float, 0, 1), default=0.3, metavar="X", help="share of the boxes of each class that is kept")
    add("--protocol", default="bernoulli", choices=list(PROTOCOLS), help="what is kept, as make_partial says")
    add("--bias", choices=["size"], help="large boxes are kept rather than small ones")
    add("--keep-rate", type=number(float, 0.01, 1), metavar="X", help="what C and D are told of the share "
        "that is kept (default: they estimate it)")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="what is dropped, and every run, once for each")
    add("--folds", type=number(int, 2), default=2, metavar="K", help="teachers of C")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="which of A A+ B C D F")
    add("--output", required=True, metavar="DIR", help="folder of the experiment")
    add_place(parser)
    flags, words = parser.parse_args(argv[:cut]), argv[cut + 1:]
    with one_sentence_errors():
        run(flags, words)


if __name__ == "__main__":
    main()
