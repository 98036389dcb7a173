"""Makes the file that one gives away out of a run's: the weights in half precision, what detect.py and eval_*.py need beside them, no more.

    python tools/shrink_checkpoint.py checkpoint/voc-1/best.pth my_detector.pth --tile 1280 --score-threshold 0.4

The optimizer's state, paths and all other flags of the run stay behind. Half the digits of the weights go, which moves
scores by less than a thousandth; computing stays in float32. The file's sha256 is printed for its model card.
"""
import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, number, one_sentence_errors  # noqa: E402


def main(argv=None):
    parser = Parser(__doc__)
    add, unsaid = parser.add_argument, {"default": argparse.SUPPRESS}
    add("checkpoint", metavar="CHECKPOINT", help="best.pth or last.pth of a run")
    add("out", metavar="OUT", help="file to write")
    add("--min-size", type=number(int, 1), metavar="PX", help="detect at this shorter side, in whole pictures (default: the checkpoint's)", **unsaid)
    add("--max-size", type=number(int, 1), metavar="PX", help="longest allowed longer side, of whole pictures (default: the checkpoint's, or five thirds of a larger --min-size)", **unsaid)
    add("--tile", type=number(int, 0), metavar="PX", help="detect in tiles at full resolution; 0: whole pictures (default: the checkpoint's, or 0 where a side is given)", **unsaid)
    add("--score-threshold", type=number(float, 0, 1), metavar="X", help="lowest score that detect.py reports (default: the checkpoint's)", **unsaid)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        shrink(flags)


def halved(name, tensor):
    """In half precision, but for integers, and for variances that would be zero there, by whose root the network divides."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return tensor if name.endswith("running_var") and bool(((half == 0) & (tensor > 0)).any()) else half


def shrink(flags) -> None:
    from engine.checkpoint import load_checkpoint, save_checkpoint
    from flags import input_sizes
    if Path(flags.out).exists():
        raise ValueError(f"{flags.out}: is there already; name another file")
    whole = load_checkpoint(flags.checkpoint)
    kept = {name: whole[name] for name in ("config", "classes", "score_threshold")}
    kept["input"] = input_sizes(flags, whole)
    kept["score_threshold"] = getattr(flags, "score_threshold", kept["score_threshold"])
    kept["model"] = {name: halved(name, tensor) for name, tensor in whole["model"].items()}
    too_large = [name for name, tensor in kept["model"].items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if too_large:
        raise ValueError(f"{flags.checkpoint}: {too_large[0]} holds values beyond half precision's 65,504")
    save_checkpoint(flags.out, kept)
    content = Path(flags.out).read_bytes()
    print(f"{flags.out}: {len(content) / 1e6:.1f} MB, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
