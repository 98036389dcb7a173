"""What a person sees of a run. Imports nothing heavy, so that `--help` answers at once."""

import csv
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

STEPS_A_ROW = 50                    # of steps.csv
FIRST_FILE = "network.yaml"         # of a run, before any other
OTHER_FILES = ("config.yaml", "config_given.yaml", "log.txt", "metrics.csv", "steps.csv", "train_batch.jpg", "training.png")


class RunLog:
    """A run's folder and what is written there while it runs; silent on ranks other than 0.

    folder     Path: FIRST_FILE and OTHER_FILES, TensorBoard events (where tensorboard is installed), checkpoints
    Rows go to metrics.csv at once, a row an epoch, and to steps.csv, one every STEPS_A_ROW steps, so that a crash keeps them; a resumed run goes on below them.
    """

    def __init__(self, folder: Path, active: bool = True):
        self.folder, self.active, self._events = folder, active, None
        folder.mkdir(parents=True, exist_ok=True)       # on each machine: a rank that meets a loss that is not finite keeps its batch there
        if active:
            with suppress(Exception):           # not installed, or one that does not fit its protobuf or numpy
                from torch.utils.tensorboard import SummaryWriter
                self._events = SummaryWriter(str(folder))

    def say(self, text: str) -> None:
        """To the terminal and to log.txt."""
        if self.active:
            from tqdm import tqdm
            tqdm.write(text)
            with open(self.folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text + "\n")

    def settings(self, flags: dict, network: dict, given: str | None = None) -> None:
        """network.yaml, what the flags made of the network; config.yaml, which repeats the run; a copy of the `given` recipe."""
        import yaml
        if self.active:
            for name, values in ((FIRST_FILE, network), ("config.yaml", flags)):
                (self.folder / name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            if given and Path(given).resolve() not in [(self.folder / name).resolve() for name in ("config.yaml", "config_given.yaml")]:
                shutil.copyfile(given, self.folder / "config_given.yaml")

    def row(self, values: dict) -> None:
        """One epoch's numbers; None is an empty cell."""
        if self.active:
            numbers = self._write("metrics.csv", "epoch", values, "")
            self.say(f"epoch {values['epoch']} step {values['step']}  " + "  ".join(f"{k} {v:.4g}" for k, v in numbers.items()))

    def steps_row(self, values: dict) -> None:
        """The losses of the last STEPS_A_ROW steps in the mean, and the last one's learning rate."""
        if self.active:
            self._write("steps.csv", "step", values, "steps/")

    def _write(self, name: str, key: str, values: dict, tag: str) -> dict:
        """Adds a row below those of earlier epochs or steps (`key`); gives its numbers, which are TensorBoard's scalars tag + name too."""
        path, columns, rows = self.folder / name, [], []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                columns, rows = reader.fieldnames or [], [row for row in reader if int(row[key]) < values[key]]
        if not {*values} <= {*columns}:     # a run of before, resumed within its first evaluation, wrote a row without losses
            columns = [*values, *(name for name in columns if name not in values)]
        partial = path.with_suffix(".partial")
        with open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([*rows, values])
        os.replace(partial, path)
        numbers = {name: value for name, value in values.items() if value is not None and name not in ("epoch", "step")}
        if self._events:
            for column, value in numbers.items():
                self._events.add_scalar(tag + column, value, values["step"])
            self._events.flush()
        return numbers


def claim_run_folder(folder: Path) -> Path:
    """root/name-N, made; where another run has taken it in the meantime, the next number that is free."""
    while True:
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            folder = next_run_folder(folder.parent, folder.name.rsplit("-", 1)[0])


def next_run_folder(root: Path, name: str) -> Path:
    """root/name-1, root/name-2, ...: the first number after every one in use."""
    numbers = [int(path.name.rsplit("-", 1)[1]) for path in root.glob(f"{name}-*") if path.name.rsplit("-", 1)[1].isdecimal()]
    return root / f"{name}-{max(numbers, default=0) + 1}"


class Meter:
    """Means of an epoch, and the share of time spent waiting for data. `state` goes on from what state() was."""

    def __init__(self, state: tuple | None = None):
        self.sums, self.steps, self.images, self.waiting, self.rate, elapsed = state or ({}, 0, 0, 0.0, None, 0.0)
        self.mark = time.perf_counter()
        self.started = self.mark - elapsed

    def state(self) -> tuple:
        return {**self.sums}, self.steps, self.images, self.waiting, self.rate, self.elapsed()

    def waited(self) -> None:
        self.waiting += time.perf_counter() - self.mark

    def add(self, parts: dict, images: int, rate: float) -> None:
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.steps, self.images, self.mark, self.rate = self.steps + 1, self.images + images, time.perf_counter(), rate

    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def averages(self) -> dict:
        """Empty cells where no step was made."""
        speed = round(self.images / self.elapsed(), 2) if self.steps else None
        return {**self.means(), "images_per_s": speed, "waiting": round(self.waiting / self.elapsed(), 3)}

    def means(self) -> dict:
        return {"lr": self.rate, **{name: round(value / self.steps, 5) for name, value in self.sums.items()}}

    def text(self) -> str:
        return " ".join(f"{name} {value / self.steps:.3f}" for name, value in self.sums.items())
