"""One stage or two? Trains several models on the same pictures with the same backbone, epochs and sizes, and prints one table.

    python benchmarks/compare_models.py --data foreign_object_dataset --epochs 20 --backbone regnet_x_400mf --weights imagenet
    python benchmarks/compare_models.py --data fod_a --test-split val --models fcos "faster_rcnn --pyramid p3-p5" --epochs 12
    python benchmarks/compare_models.py --data my_pictures --models faster_rcnn "faster_rcnn --box-refinement off" --epochs 30

Each of --models is the value of --model, with flags for it alone behind it in the same quotes; flags that are not named below go to
`train_voc.py` for all of them. A row is trained by it without a look at the test list (--val-split none) and judged once, by
`eval_voc.py` on the weights after the last epoch. --output gets a run folder for each row, and table.md.
"""
import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.torchvision_fcos import command, machine, versions  # noqa: E402
from engine.checkpoint import load_checkpoint  # noqa: E402
from engine.log import next_run_folder  # noqa: E402
from model import build_model  # noqa: E402
from util.command_line import HelpFormatter, one_sentence_errors  # noqa: E402


def parse_flags(argv):
    """(flags, words for train_voc.py)"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--data", nargs="+", required=True, metavar="DIR", help="folders in VOC layout")
    add("--train-split", default="train", metavar="S", help="list to train on")
    add("--test-split", default="test", metavar="S", help="list to judge on")
    add("--models", nargs="+", default=["fcos", "faster_rcnn", "faster_rcnn --box-refinement off"], metavar="MODEL", help="a row of the table each")
    add("--skip-bad", action="store_true", help="leave out what cannot be read instead of stopping")
    add("--zero-based", action="store_true", help="coordinates start at 0 (VOC's own start at 1)")
    add("--output", metavar="DIR", default=argparse.SUPPRESS, help="where to write (default: checkpoint/compare-N)")
    return parser.parse_known_args(argv)


def start(script, *words):
    """Runs a command of this repository. Raises ValueError with its last line where it fails."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{script} {shlex.join(map(str, words))}: "
                         + (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1].removeprefix("error: "))


def measure(model, folder, flags, common):
    """The numbers of one row: metrics of eval_voc.py, with parameters and training_minutes."""
    data = ["--data", *flags.data, *["--skip-bad"] * flags.skip_bad, *["--zero-based"] * flags.zero_based]
    started = time.perf_counter()
    start("train_voc.py", *data, "--train-split", flags.train_split, "--val-split", "none", "--output", folder, *common, "--model", *shlex.split(model))
    trained = time.perf_counter()
    start("eval_voc.py", *data, "--split", flags.test_split, "--checkpoint", folder / "last.pth", "--output", folder / "test")
    network = build_model(load_checkpoint(folder / "last.pth")["config"])
    return json.loads((folder / "test" / "metrics.json").read_text(encoding="utf-8")) | {
        "parameters": sum(parameter.numel() for parameter in network.parameters()), "training_minutes": (trained - started) / 60}


def table(rows):
    """Lines of Markdown for {model: metrics}."""
    classes = list(next(iter(rows.values()))["ap"])
    def shown(ap):
        return "-" if ap is None else f"{ap:.3f}".removeprefix("0")
    return [f"| model | {' | '.join(classes)} | AP50 | AP50-95 | parameters | s a picture | training |", "|---" * (len(classes) + 6) + "|",
            *(f"| {model} | {' | '.join(shown(metrics['ap'][name]) for name in classes)} | {shown(metrics['mAP'])} | {shown(metrics['mAP_50_95'])} "
              f"| {metrics['parameters'] / 1e6:.1f} M | {metrics['seconds_per_picture']:.3f} | {metrics['training_minutes']:.1f} min |"
              for model, metrics in rows.items())]


def run(flags, common):
    """Trains, judges, writes and prints the table; returns its lines."""
    output = Path(flags.output) if "output" in flags else next_run_folder(ROOT / "checkpoint", "compare")
    rows = {}
    for model in flags.models:
        print(f"{model} ...", flush=True)
        rows[model] = measure(model, output / model.replace(" ", "_"), flags, common)
        lines = [f"`{command()}`", "", f"{machine()}; {', '.join(f'{name} {text}' for name, text in versions().items())}.", "", *table(rows)]
        (output / "table.md").write_text("\n".join([*lines, ""]), encoding="utf-8")         # after each: the next may fail
    print("\n".join(lines))
    return lines


def main(argv=None):
    flags, common = parse_flags(argv)
    with one_sentence_errors():
        return run(flags, common)


if __name__ == "__main__":
    main()
