"""Our FCOS against torchvision's: the same network, the same weights, the same pictures, in one run on one CPU.

    python benchmarks/speed.py                                    all parts, ResNet-18, 128 channels
    python benchmarks/speed.py --backbone resnet50 --channels 256 --size 800 1088 --batch-size 2 --threads 8
    python benchmarks/speed.py --parts loss --boxes 10 100 500
    python benchmarks/speed.py --parts two_stage --size 800 1088 --batch-size 1

inference   a picture of random pixels to boxes. Ours starts from uint8 and runs channels_last, as engine.predict does;
            torchvision's starts from floats in 0..1, and its resizing is switched off, since ours is the loader's. What
            passes a score threshold means nothing in a network that was never trained, so there are two rows: no
            candidate passes (threshold 1), and all do (0), which leaves 1000 a level to NMS. A trained one lies between
training    forward, backward and SGD step
loss        assignment and loss alone, with the gradient at the head's outputs, for several numbers of boxes a picture
two_stage   a picture of random pixels to boxes by Faster R-CNN, always torchvision's ResNet-50 with its random weights; the same two rows
help        what `--help` of the three commands takes, beside an empty Python

The two take turns, changing who goes first, so that the machine's moods fall on both; each number is a median, and
behind each ratio stand its quartiles. torchvision's network gets our weights; the class logits of both are compared.
"""
import argparse
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.torchvision_fcos import build_torchvision_fcos, command, machine, versions  # noqa: E402
from engine.distributed import combine  # noqa: E402
from engine.predict import detect_batch  # noqa: E402
from model import build_model, load_model  # noqa: E402
from model.backbone import BACKBONES  # noqa: E402
from model.config import FCOSConfig  # noqa: E402
from model.foreign_weights import convert  # noqa: E402
from model.locations import pyramid_locations  # noqa: E402
from model.loss import FCOSLoss  # noqa: E402
from model.postprocess import FCOSDetection  # noqa: E402
from model.targets import assign  # noqa: E402
from util.command_line import HelpFormatter, number, one_sentence_errors  # noqa: E402

PARTS = ("inference", "training", "loss", "two_stage", "help")
COMMANDS = ("train_voc.py", "eval_voc.py", "detect.py")
WARM_UP = 2
THEIR_NAMES = (
    (r"^backbone\.", "backbone.body."),
    (r"^fpn\.lateral\.(\d)", r"backbone.fpn.inner_blocks.\1.0"),
    (r"^fpn\.output\.(\d)", r"backbone.fpn.layer_blocks.\1.0"),
    (r"^fpn\.extra\.0", "backbone.fpn.extra_blocks.p6"),
    (r"^fpn\.extra\.1", "backbone.fpn.extra_blocks.p7"),
    (r"^head\.(cls_logits)", r"head.classification_head.\1"),
    (r"^head\.cls_tower", "head.classification_head.conv"),
    (r"^head\.reg_tower", "head.regression_head.conv"),
    (r"^head\.ltrb", "head.regression_head.bbox_reg"),
    (r"^head\.quality", "head.regression_head.bbox_ctrness"),
)


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what to measure")
    add("--backbone", default="resnet18", choices=list(BACKBONES))
    add("--channels", type=number(int, 128), default=128, metavar="N",
        help="of pyramid and head, a multiple of 32; below 128 our group norms have fewer groups than torchvision's")
    add("--classes", type=number(int, 1), default=20)
    add("--batch-size", type=number(int, 1), default=4, help="pictures at a time")
    add("--size", nargs=2, type=number(int, 32), default=[480, 640], metavar=("H", "W"),
        help="of the pictures, multiples of 32 px")
    add("--boxes", nargs="+", type=number(int, 1), default=[10, 100, 500], metavar="M",
        help="boxes a picture in the part loss")
    add("--training-boxes", type=number(int, 1), default=10, metavar="M", help="boxes a picture in the part training")
    add("--repeats", type=number(int, 2), default=20, metavar="N", help=f"after {WARM_UP} that do not count")
    add("--threads", type=number(int, 1), default=torch.get_num_threads(), metavar="N", help="for both")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def build_pair(flags):
    """(ours, torchvision's): one architecture, one set of weights, both with the settings of a user's inference."""
    ours = build_model(FCOSConfig(flags.classes, backbone=flags.backbone, fpn_channels=flags.channels).asdict())
    theirs = build_torchvision_fcos(flags.classes, flags.backbone, flags.channels, [min(flags.size)], max(flags.size))
    theirs.transform.resize = lambda image, target: (image, target)
    give_weights(ours, theirs)
    return ours.to(memory_format=torch.channels_last), theirs


def give_weights(ours, theirs):
    """torchvision's network becomes ours. It alone has biases before its group norms, which stay zero, and no learned
    scales, which are 1. Its distances are relu(x) strides, ours exp(x): a bias of 1 makes them alike near x = 0.
    """
    renamed = {}
    for name, value in ours.state_dict().items():
        for pattern, replacement in THEIR_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    missing, unexpected = theirs.load_state_dict(renamed, strict=False)
    assert unexpected == ["head.scales"] and all(re.search(r"_head\.conv\.\d+\.bias$", name) for name in missing)
    torch.nn.init.ones_(theirs.head.regression_head.bbox_reg.bias)


def random_batch(flags, boxes_per_picture):
    """A training batch as our loader gives it, and the same as torchvision wants it: (batch, pictures, targets)."""
    height, width = flags.size
    shape = (flags.batch_size, boxes_per_picture)
    limit = torch.tensor([width, height])
    sides = 8 * (limit / 16) ** torch.rand(*shape, 2)                                     # 8 px to half the picture
    corner = torch.rand(*shape, 2) * (limit - sides)
    batch = {"images": torch.randint(0, 256, (flags.batch_size, 3, height, width), dtype=torch.uint8),
             "image_sizes": torch.tensor([flags.size] * flags.batch_size),
             "boxes": torch.cat([corner, corner + sides], dim=-1), "labels": torch.randint(0, flags.classes, shape),
             "weights": torch.ones(shape), "ignore": torch.zeros(shape, dtype=torch.bool)}
    rows = zip(batch["boxes"], batch["labels"], strict=True)
    targets = [{"boxes": boxes, "labels": labels} for boxes, labels in rows]
    return batch, list(batch["images"].float() / 255), targets


def race(name, ours, theirs, repeats, per=1):
    """A row of the table: both called in turn; ms / `per`. The ratio is that of neighbours in time: theirs / ours."""
    seconds = {ours: [], theirs: []}
    for repeat in tqdm(range(-WARM_UP, repeats), desc=name, leave=False, dynamic_ncols=True):
        for call in (ours, theirs) if repeat % 2 else (theirs, ours):
            started = time.perf_counter()
            call()
            if repeat >= 0:
                seconds[call].append(time.perf_counter() - started)
    ratios = [b / a for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    a, b = (1000 * statistics.median(values) / per for values in seconds.values())
    return f"| {name} | {a:.1f} | {b:.1f} | {ratio:.2f} ({low:.2f} to {high:.2f}) |"


def inference_rows(flags, ours, theirs):
    def set_threshold(threshold):
        ours.detection = FCOSDetection(dataclasses.replace(ours.config, score_threshold=threshold))
        theirs.score_thresh = threshold

    yield from race_to_boxes(flags, ours, theirs, set_threshold)


def two_stage_rows(flags):
    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=flags.classes + 1)
    theirs.transform.resize = lambda image, target: (image, target)
    _, config, state, _ = convert(theirs.state_dict(), variant="trained")
    ours = load_model(config, state)

    def set_threshold(threshold):
        ours.box_head.config = dataclasses.replace(ours.config, score_threshold=threshold)
        theirs.roi_heads.score_thresh = threshold

    yield from race_to_boxes(flags, ours, theirs, set_threshold)


def race_to_boxes(flags, ours, theirs, set_threshold):
    batch, pictures, _ = random_batch(flags, 1)
    cpu = torch.device("cpu")
    ours.eval(), theirs.eval()
    for threshold, candidates in ((1.0, "no candidates"), (0.0, "all candidates")):
        set_threshold(threshold)

        def detect_ours():
            return detect_batch(ours, batch, cpu)

        @torch.inference_mode()
        def detect_theirs():
            return theirs(pictures)

        counts = [len(found["boxes"]) for found in (*detect_ours(), *detect_theirs())]
        assert len(set(counts)) == 1, counts
        yield race(f"inference, {candidates}, ms a picture", detect_ours, detect_theirs, flags.repeats,
                   flags.batch_size)


def training_rows(flags, ours, theirs):
    batch, pictures, targets = random_batch(flags, flags.training_boxes)
    ours.train(), theirs.train()
    # a rate too small to change anything: every step costs the same
    optimizers = [torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
                  for network in (ours, theirs)]

    def step(loss, optimizer):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def step_ours():
        step(combine(ours(batch["images"], batch["image_sizes"], batch))[0], optimizers[0])

    def step_theirs():
        step(sum(theirs(pictures, targets).values()), optimizers[1])

    yield race(f"training step, {flags.training_boxes} boxes a picture, ms a picture", step_ours, step_theirs,
               flags.repeats, flags.batch_size)


def loss_rows(flags, ours, theirs):
    config, criterion = ours.config, FCOSLoss(ours.config)
    for count in flags.boxes:
        batch, pictures, targets = random_batch(flags, count)
        with torch.no_grad():
            pyramid = ours.fpn(ours.backbone(ours.normalize(batch["images"], batch["image_sizes"])))
            outputs, their_outputs = ours.head(pyramid), theirs.head(pyramid)
        sizes = [tuple(feature.shape[-2:]) for feature in pyramid]
        locations, strides = pyramid_locations(sizes, config.strides)
        images = ImageList(torch.stack(pictures), [tuple(flags.size)] * flags.batch_size)
        anchors = theirs.anchor_generator(images, pyramid)
        for leaf in (*outputs.values(), *their_outputs.values()):
            leaf.requires_grad_()

        def loss_ours():
            matched_gt = assign(batch["boxes"], batch["labels"], batch["ignore"], sizes, config.strides,
                                config.ranges, config.center_sampling_radius)
            loss = combine(criterion(outputs, locations, strides, matched_gt, batch))[0]
            torch.autograd.grad(loss, list(outputs.values()))

        def loss_theirs():
            losses = theirs.compute_loss(targets, their_outputs, anchors, [h * w for h, w in sizes])
            torch.autograd.grad(sum(losses.values()), list(their_outputs.values()))

        yield race(f"assignment and loss, {count} boxes a picture, ms a batch", loss_ours, loss_theirs, flags.repeats)


def help_rows(repeats):
    for name in COMMANDS:
        seconds = {"help": [], "empty": []}
        for _ in range(repeats):
            for kind, words in (("help", [str(ROOT / name), "--help"]), ("empty", ["-c", "pass"])):
                started = time.perf_counter()
                subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
                seconds[kind].append(time.perf_counter() - started)
        told, empty = (1000 * statistics.median(values) for values in seconds.values())
        yield f"| `{name} --help` | {told:.0f} | {empty:.0f} |"


def logits_differ_by(ours, theirs, flags):
    """The largest difference of a class logit between the two, on one batch."""
    batch, pictures, _ = random_batch(flags, 1)
    ours.eval(), theirs.eval()
    with torch.inference_mode():
        logits = ours.head(ours.fpn(ours.backbone(ours.normalize(batch["images"], batch["image_sizes"]))))["cls_logits"]
        features = theirs.backbone(theirs.transform(pictures)[0].tensors)
        return float((logits - theirs.head(list(features.values()))["cls_logits"]).abs().max())


def run(flags):
    """Measures and prints; returns the lines printed."""
    if any(side % 32 for side in flags.size):
        raise ValueError(f"--size is {flags.size[0]} {flags.size[1]}, both must be multiples of 32")
    torch.manual_seed(flags.seed)
    torch.set_num_threads(flags.threads)
    load = os.getloadavg()[0]
    lines = [f"`{command()}`", "", f"{machine()}; {', '.join(f'{name} {text}' for name, text in versions().items())}; "
             f"load before the run {load:.1f}; seed {flags.seed}, {flags.repeats} repeats.", ""]
    head = "| what | ours | torchvision | torchvision / ours (quartiles) |"
    if {*flags.parts} - {"two_stage", "help"}:
        ours, theirs = build_pair(flags)
        lines += [f"FCOS {flags.backbone}, {flags.channels} channels, {flags.classes} classes, {flags.batch_size} "
                  f"pictures of {flags.size[0]}x{flags.size[1]} (h, w). The class logits of the two differ by "
                  f"{logits_differ_by(ours, theirs, flags):.1e} at most.", "",
                  head, "|---|---|---|---|"]
        rows = {"inference": inference_rows, "training": training_rows, "loss": loss_rows}
        lines += [line for part in rows if part in flags.parts for line in rows[part](flags, ours, theirs)] + [""]
    if "two_stage" in flags.parts:
        lines += [f"Faster R-CNN resnet50, {flags.classes} classes, {flags.batch_size} pictures of {flags.size[0]}x{flags.size[1]} (h, w).", "",
                  head, "|---|---|---|---|", *two_stage_rows(flags), ""]
    if "help" in flags.parts:
        lines += ["| command | ms | empty Python, ms |", "|---|---|---|", *help_rows(flags.repeats), ""]
    print("\n".join(lines))
    return lines


def main(argv=None):
    flags = parse_flags(argv)
    with one_sentence_errors():
        return run(flags)


if __name__ == "__main__":
    main()
