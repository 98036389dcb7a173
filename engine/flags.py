"""Flags that the commands have in common. Imports nothing heavy, so that `--help` answers at once."""

import argparse
import os
from pathlib import Path

INPUT_FLAGS = ("min_size", "max_size", "tile")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The module docstring as it is, and each flag with its default, unless that is nothing or its help tells it."""

    def _get_help_string(self, action):
        default = action.default
        if default is None or default is False or default is argparse.SUPPRESS:
            return action.help
        text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
        return f"{action.help} (default: {text.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """A wrong flag ends in one sentence, without the usage, and in exit code 2."""

    source = ""  # "FILE: " while the words of a file are parsed

    def __init__(self, manual):
        super().__init__(description=manual, allow_abbrev=False, formatter_class=HelpFormatter)

    def error(self, message):
        self.exit(2, f"error: {self.source}{message}\n")


def file_words(parser, values, source):
    """The {flag: value} of a file as words of a command line, for which they are then judged like typed ones: unknown
    names, types, ranges and choices. None stands for the flag's default; lists are flags with several values.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{source}: must hold flags as 'name: value' lines")
    switches = {name for name, default in vars(parser.parse_args([])).items() if default is False}
    words = []
    for name, value in values.items():
        name = str(name).replace("-", "_")
        flag = f"--{name.replace('_', '-')}"
        if name in switches and isinstance(value, bool):
            words += [flag] * value
        elif isinstance(value, list):
            words += [flag, *map(str, value)]
        elif value is not None:
            words.append(f"{flag}={'off' if value is False else value}")  # YAML reads a bare off as false
    parser.source = f"{source}: "
    parser.parse_args(words)
    parser.source = Parser.source
    return words


def number(kind, low, high=float("inf"), step=None):
    """A `type` for argparse: an int or float (`kind`) in low..high, and a multiple of `step`."""

    def read(text):
        value = kind(text)
        if not low <= value <= high:
            rule = f"{low} or more" if high == float("inf") else f"in {low}..{high}"
            raise argparse.ArgumentTypeError(f"is {text}, must be {rule}")
        if step and value % step:
            raise argparse.ArgumentTypeError(f"is {text}, must be a multiple of {step}")
        return value

    read.__name__ = kind.__name__  # argparse says "invalid int value"
    return read


def prediction_parser(manual, batch_size):
    """A parser with the flags of every command that runs a trained network. Flags whose default lies in the checkpoint
    are absent from what is parsed unless given: `chosen_checkpoint` and `input_sizes` read them.
    """
    parser = Parser(manual)
    add, pixels = parser.add_argument, {"metavar": "PX", "default": argparse.SUPPRESS}
    add("--checkpoint", metavar="FILE", default=argparse.SUPPRESS,
        help="weights to use (default: the best.pth written last below checkpoint/, else the shipped one)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--batch-size", type=number(int, 1), default=batch_size, metavar="N",
        help="pictures, frames or tiles at a time")
    add("--min-size", type=number(int, 1), **pixels,
        help="shorter side of the network's input (default: the checkpoint's)")
    add("--max-size", type=number(int, 1), **pixels, help="longest allowed longer side (default: the checkpoint's)")
    add("--tile", type=number(int, 0), **pixels,
        help="side of overlapping tiles at full resolution; 0: whole pictures (default: the checkpoint's)")
    add("--overlap", type=number(float, 0, 0.9), default=0.25, metavar="X", help="share of a tile common to neighbours")
    return parser


def chosen_checkpoint(args, folder):
    """(path, contents) of --checkpoint, or of the newest in `folder`. Raises ValueError as engine.checkpoint does."""
    from engine.checkpoint import load_checkpoint, newest_checkpoint

    path = Path(args.checkpoint) if "checkpoint" in args else Path(os.path.relpath(newest_checkpoint(folder)))
    return path, load_checkpoint(path)


def input_sizes(args, checkpoint):
    """{"min_size", "max_size", "tile"} in px: the checkpoint's, where the flags say nothing else."""
    return checkpoint["input"] | {name: vars(args)[name] for name in INPUT_FLAGS if name in args}
