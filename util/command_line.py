"""What a command line is made of here: errors of one sentence, a parser that makes them too, and types of flags that name their rule."""
import argparse
import difflib
import os
import sys
from contextlib import contextmanager


@contextmanager
def one_sentence_errors():
    """Around a script's main(): a person's mistake (ValueError, a file the system refuses, too little memory) becomes one sentence on stderr
    and exit code 2, Ctrl-C exit code 130. Anything else is our own bug and keeps its traceback;
    `python -X dev` shows every traceback.
    """
    if hasattr(sys.stdout, "reconfigure"):          # what stdout cannot say, as a file name of another encoding, goes there in escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:                         # of `| head`: who reads no further wants no more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError) as error:
        if sys.flags.dev_mode:
            raise
        told = f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else error
        print(f"error: {told}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        if sys.flags.dev_mode or not is_full(error):
            raise
        print("error: the memory is too small; a smaller --batch-size, --min-size, --crop, --tile or network takes less "
              f"({' '.join(str(error).split())[:160]})", file=sys.stderr)
        sys.exit(2)


def is_full(error: Exception) -> bool:
    """Whether it is the memory's, of the CPU or a GPU, as Python or torch says it."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def from_here(path) -> str:
    """The path as seen from the working folder; the whole one where Windows has them on two drives."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return os.path.abspath(path)


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
        if message.startswith("unrecognized arguments: --"):
            word = message.split()[2].partition("=")[0]
            if close := difflib.get_close_matches(word, self._option_string_actions, n=1):
                message += f"; did you mean {close[0]}?"
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


def number(kind, low, high=float("inf"), step=None, finite=True):
    """A `type` for argparse: an int or float (`kind`) in low..high, and a multiple of `step`."""

    def read(text):
        value = kind(text)
        if not low <= value <= high or finite and value == float("inf"):
            rule = f"{low} or more" if high == float("inf") else f"in {low}..{high}"
            raise argparse.ArgumentTypeError(f"is {text}, must be {rule}")
        if step and value % step:
            raise argparse.ArgumentTypeError(f"is {text}, must be a multiple of {step}")
        return value

    read.__name__ = kind.__name__  # argparse says "invalid int value"
    return read


def switch(text):
    """A `type` for argparse: on or off, and true or false as YAML says it."""
    if text.lower() not in ("on", "off", "true", "false"):
        raise argparse.ArgumentTypeError(f"is {text}, must be on or off")
    return text.lower() in ("on", "true")
