"""Checkpoints: dicts of tensors and plain types, loaded with weights_only=True, written so that a killed run leaves the old one whole.

What every checkpoint holds (last.pth has "training" too, with what an exact resume needs):

format           CHECKPOINT_FORMAT
config           plain dict for model.build_model
model            state dict for inference (the averaged weights where the run keeps them)
classes          names, in label order
input            {"min_size": px, "max_size": px, "tile": px or None}: how pictures are brought to the network
score_threshold  detect.py's default
versions, commit of what made it

and that of a run: metrics, the newest evaluation, {} before the first; flags, every flag.
"""
import argparse
import functools
import os
import pickle
import subprocess
from pathlib import Path

import torch
import torchvision

CHECKPOINT_FORMAT = 1
SHIPPED = "foreign_objects.pth"
_REQUIRED = ("format", "config", "model", "classes", "input", "score_threshold")


def save_checkpoint(path: Path, state: dict) -> None:
    """Written beside `path`, flushed, renamed: at every moment the file at `path` is whole. Its folder is made where there is none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    with open(temporary, "wb") as file:
        torch.save({"format": CHECKPOINT_FORMAT, "versions": versions(), "commit": commit(), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path) -> dict:
    """The dict of this module's docstring, on the CPU. Raises ValueError, naming the file, for anything that is not one of ours."""
    state = load_tensors(path)
    missing = [key for key in _REQUIRED if not isinstance(state, dict) or key not in state]
    if missing:
        raise ValueError(f"{path}: is not a checkpoint of this repository; it has no {missing[0]!r}")
    if state["format"] != CHECKPOINT_FORMAT:
        raise ValueError(f"{path}: has checkpoint format {state['format']}; this version reads {CHECKPOINT_FORMAT}")
    return state


def load_tensors(path: Path):
    """What anybody's torch.save wrote, on the CPU. Raises ValueError, naming the file, for what is more than tensors and plain types;
    a Namespace of flags, which torchvision's training script puts beside its weights, is one."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name {path / 'best.pth'}, or {path / 'last.pth'} to go on with a run")
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path}: holds more than tensors and plain values (or is damaged); "
                         "a checkpoint that could run code is not loaded") from None
    except (PermissionError, MemoryError):
        raise
    except Exception:           # the old format is a pickle, and unpickling a text raises whatever its letters happen to mean
        raise ValueError(f"{path}: is not a checkpoint, or is damaged") from None


def newest_checkpoint(folder: Path) -> Path:
    """The best.pth written last in a run folder of `folder`, or the shipped checkpoint there. Raises ValueError when there is neither."""
    folder = Path(folder)
    runs = sorted(folder.glob("*/best.pth"), key=lambda path: path.stat().st_mtime)
    shipped = folder / SHIPPED
    if runs:
        return runs[-1]
    if shipped.is_file():
        return shipped
    raise ValueError(f"{folder}: holds neither a run with a best.pth nor {SHIPPED}; train first (python train_voc.py) or name a --checkpoint")


def newest_run(folder: Path, flags) -> Path:
    """The last.pth written last in a run folder of `folder` whose config.yaml has no other than these `flags`, as the runs of one
    command have. Raises ValueError when there is none, and where a newer run was broken off before its first checkpoint."""
    def age(path):
        return path.stat().st_mtime
    configs = [path for path in folder.glob("*/config.yaml") if (known := _flags_of(path.parent)) and known <= {*flags}]
    runs = [path.with_name("last.pth") for path in configs if path.with_name("last.pth").exists()]
    if not runs:
        raise ValueError(f"{folder}: holds no run to resume (no */last.pth beside a config.yaml of this command)")
    run, newest = max(runs, key=age), max(configs, key=age)
    if age(newest) > age(run) and not newest.with_name("last.pth").exists():
        raise ValueError(f"{newest.parent}: is newer than {run.parent}, and has no checkpoint (yet); name the run that shall go on: --resume {run}")
    return run


def _flags_of(run: Path) -> set:
    """The names of the flags of a run; empty where it does not tell them."""
    import yaml
    try:
        return {*yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))}
    except (OSError, TypeError, UnicodeDecodeError, yaml.YAMLError):
        return set()


def versions() -> dict:
    return {"torch": str(torch.__version__), "torchvision": str(torchvision.__version__)}


@functools.cache
def commit() -> str:
    """The commit of the working tree this code runs from, with + if it was changed since; "" outside git."""
    def git(*words: str) -> str:
        answer = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
        return answer.stdout.strip() if answer.returncode == 0 else ""
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.TimeoutExpired):
        return ""
