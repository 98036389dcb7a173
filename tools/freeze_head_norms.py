"""Gives a detector a head whose norms do not depend on the picture: for one that was trained on squares, and looks at whole pictures.

    python tools/freeze_head_norms.py checkpoint/voc-1/best.pth frozen.pth
    python tools/freeze_head_norms.py shrunk.pth frozen.pth --config configs/foreign_objects.yaml --data NEAR FRAMES

Group norms take mean and variance from all that the network sees at a time. In training on squares (--crop) around objects that is
mostly object, in a whole picture mostly background, and in a batch the padding too: one and the same object comes out differently. Here
they become batch norms, one for each level, whose statistics are measured once, on training samples, and stay, also in a training
that goes on from the file (head_norm: frozen_bn in its config). Samples are those of the run that the checkpoint is of; flags of
train_voc.py or train_coco.py, as --data, say otherwise, and for a file without a run (of tools/shrink_checkpoint.py) all of them.
What it gains depends on the detector: judge both files.
"""
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, number, one_sentence_errors  # noqa: E402


def main(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="best.pth of a run, or another detector whose head has group norms")
    add("out", metavar="OUT", help="file to write")
    add("--samples", type=number(int, 1), default=900, metavar="N", help="training samples to measure on")
    own, of_training = parser.parse_known_args(argv)
    with one_sentence_errors():
        freeze(own, of_training)


def freeze(own, of_training: list) -> None:
    from tqdm import tqdm

    from dataset.augment import Augment
    from dataset.loader import TrainLoader
    from engine.checkpoint import save_checkpoint
    from flags import augmentation, every_size
    from model import load_model, parse_config
    from tools.show_targets import open_data, parse_flags
    if Path(own.out).exists():
        raise ValueError(f"{own.out}: is there already; name another file")
    flags, whole = parse_flags(["--checkpoint", own.checkpoint, *of_training])
    if (norm := getattr(parse_config(whole["config"]), "head_norm", "none")) != "gn":
        raise ValueError(f"{own.checkpoint}: the norms of its head are {norm}, not gn; group norms alone can be frozen")
    loader = TrainLoader(open_data(flags, whole["classes"]), Augment(**augmentation(flags)), 1, every_size(flags.min_size), flags.max_size, seed=flags.seed)
    samples = islice((batch for epoch in range(own.samples) for batch, _ in loader.batches(epoch)), own.samples)
    moments = measure(load_model(whole["config"], whole["model"]), tqdm(samples, total=own.samples, unit="sample", dynamic_ncols=True))
    kept = {name: whole[name] for name in ("classes", "score_threshold", "input")}
    save_checkpoint(own.out, {**kept, "config": {**whole["config"], "head_norm": "frozen_bn"}, "model": with_statistics(whole["model"], moments)})
    print(f"{own.out}: {len(moments)} norms of the head of {own.checkpoint}, measured on {own.samples} training samples")


def measure(network, batches) -> dict:
    """{name of a group norm of an FCOS's head: float64 [levels, 2, groups]}, the means over all pictures of the mean and of the mean square of
    what the groups get on each level."""
    import torch
    from torch import nn
    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.GroupNorm) and name.startswith("head.")}
    seen = {name: [] for name in names.values()}

    def listen(norm, inputs):               # a norm is called level by level
        groups = inputs[0].double().unflatten(1, (norm.num_groups, -1)).flatten(2)
        seen[names[norm]].append(torch.stack([groups.mean(2), groups.square().mean(2)], 1).mean(0))
    hooks = [norm.register_forward_pre_hook(listen) for norm in names]
    with torch.inference_mode():
        for batch in batches:
            network.look(batch["images"].contiguous(memory_format=torch.channels_last), batch["image_sizes"])
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(calls).unflatten(0, (-1, network.config.levels)).mean(0) for name, calls in seen.items()}


def with_statistics(state: dict, moments: dict) -> dict:
    """The state dict of the same network with frozen batch norms; moments as `measure` gives them."""
    import torch
    state = dict(state)
    for name, of_levels in moments.items():
        affine = {part: state.pop(f"{name}.{part}") for part in ("weight", "bias")}
        channels = len(affine["weight"]) // of_levels.shape[-1]
        for level, (mean, square) in enumerate(of_levels.repeat_interleave(channels, 2)):
            parts = {**affine, "running_mean": mean.float(), "running_var": (square - mean.square()).float(), "num_batches_tracked": torch.tensor(0)}
            state |= {f"{name}.{level}.{part}": tensor for part, tensor in parts.items()}
    return state


if __name__ == "__main__":
    main()
