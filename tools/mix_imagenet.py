"""Moves a detector's backbone part of the way back to the ImageNet weights that its training began with.

    python tools/mix_imagenet.py checkpoint/voc-1/best.pth mixed.pth --share 0.3

For a detector that learned from pictures unlike those it will see, rendered ones or those of one studio, and sees photographs:
training forgets part of what a network had learned from photographs, and a mean of the weights before and after it can have more of
both (Wortsman et al., Robust fine-tuning of zero-shot models, 2109.01903). Pyramid and head stay as they were trained. What it costs on
pictures like those of the training, eval_voc.py tells. The file is one for detect.py, eval_*.py and --weights, without the state to resume a run.
"""
import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.command_line import Parser, number, one_sentence_errors  # noqa: E402


def main(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="best.pth or last.pth of a run that began with ImageNet's weights, or a shrunk one")
    add("out", metavar="OUT", help="file to write")
    add("--share", type=number(float, 0, 1), default=argparse.SUPPRESS, required=True, metavar="X",
        help="of ImageNet's weights in the mean: 0 leaves the backbone as it is, 1 takes it back whole")
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        mix(flags)


def began_elsewhere(whole: dict, start: dict) -> bool:
    """Whether a detector cannot have begun with the backbone `start`: by its flags, its pixels, or a first layer that stayed as it was loaded."""
    import torch

    from model.backbone import pixel_statistics
    config, first = whole["config"], next(iter(start))
    frozen = config["backbone_freeze"] in ("early", "all")
    return (whole.get("flags", {}).get("weights") == "none" or config["stride_in_1x1"]
            or any([*config[name]] != [*value] for name, value in pixel_statistics(config["backbone"]).items())
            or frozen and not torch.allclose(whole["model"][first].float(), start[first], rtol=2e-3, atol=1e-4))


def mix(flags) -> None:
    from engine.checkpoint import load_checkpoint, save_checkpoint
    from engine.pretrained import imagenet_state
    from model import build_model
    from model.foreign_weights import load_backbone
    if Path(flags.out).exists():
        raise ValueError(f"{flags.out}: is there already; name another file")
    whole = load_checkpoint(flags.checkpoint)
    config = whole["config"]
    backbone = build_model(config).backbone
    load_backbone(backbone, *imagenet_state(config["backbone"]))
    if began_elsewhere(whole, backbone.state_dict(prefix="backbone.")):
        raise ValueError(f"{flags.checkpoint}: did not start from these ImageNet weights; a mean with others makes no network")
    kept = {name: whole[name] for name in ("config", "classes", "score_threshold", "input")}
    kept["model"] = dict(whole["model"])
    for name, start in backbone.state_dict(prefix="backbone.").items():
        if start.is_floating_point():
            trained = whole["model"][name]
            kept["model"][name] = trained.float().lerp(start, flags.share).to(trained.dtype)
    save_checkpoint(flags.out, kept)
    print(f"{flags.out}: the backbone is {1 - flags.share:g} of {flags.checkpoint} and {flags.share:g} of ImageNet's weights")


if __name__ == "__main__":
    main()
