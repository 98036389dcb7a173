"""Trains torchvision's own FCOS on pictures in VOC layout and judges it as eval_voc.py judges ours.

    python benchmarks/torchvision_fcos.py --data bccd --train-split train --test-split test
    python benchmarks/torchvision_fcos.py --data fod_a --test-split val --min-size 300 --max-size 300 --lr 0.02

The network is torchvision.models.detection.FCOS as fcos_resnet50_fpn builds it (P3..P7, group norm heads, centre
sampling of 1.5 strides, its own resizing), on our module of the backbone that the flags say. The recipe is
that of its references/detection for FCOS: SGD with momentum 0.9 and weight decay 1e-4, rate 0.01 for 16 pictures a
step, linear warm-up in the first epoch, x 0.1 at 16/26 and 22/26 of the run, horizontal mirrors, no clipping. Three
things differ from it:

    the score threshold is 0.05 and not 0.2, like ours, so that its AP is not cut short
    pictures are shuffled freely and not grouped by aspect ratio
    ImageNet weights are those that train_voc.py takes for the same backbone; as in torchvision they freeze the batch
    norms and the layers up to stride 4, and from nothing all is trained

It is judged once, after the last epoch. --output gets metrics.json: all numbers, the command, seconds and versions.
"""
import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision.models.detection import FCOS
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dataset.augment import mirror  # noqa: E402
from dataset.loader import TrainLoader, eval_loader  # noqa: E402
from dataset.voc import VOCDataset  # noqa: E402
from engine.distributed import select_device  # noqa: E402
from engine.log import next_run_folder  # noqa: E402
from engine.predict import predict  # noqa: E402
from engine.pretrained import imagenet_state  # noqa: E402
from engine.schedule import learning_rate  # noqa: E402
from evaluation.report import evaluate, format_table  # noqa: E402
from model.backbone import BACKBONES, build_backbone, pixel_statistics  # noqa: E402
from model.foreign_weights import load_backbone  # noqa: E402
from util.command_line import HelpFormatter, number, one_sentence_errors  # noqa: E402

DROPS = (16 / 26, 22 / 26)
WHOLE_PICTURE = 10 ** 6     # px: a tile larger than any picture, which our loader shows at full resolution


def parse_flags(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False)
    add, pixels = parser.add_argument, {"type": number(int, 1), "metavar": "PX"}
    add("--data", nargs="+", required=True, metavar="DIR", help="folders in VOC layout")
    add("--train-split", default="train", metavar="S", help="list to train on")
    add("--test-split", default="test", metavar="S", help="list to evaluate on")
    add("--backbone", default="resnet18", choices=list(BACKBONES))
    add("--channels", type=number(int, 64), default=128, metavar="N", help="of pyramid and head, a multiple of 32")
    add("--weights", default="none", choices=["imagenet", "none"], help="of the backbone")
    add("--min-size", nargs="+", default=[480], **pixels, help="shorter side; several: one is drawn for each picture")
    add("--max-size", default=800, **pixels, help="longest side")
    add("--epochs", type=number(int, 1), default=26)
    add("--batch-size", type=number(int, 1), default=8, help="pictures a step")
    add("--lr", type=number(float, 0), default=0.01, metavar="X",
        help="learning rate for 16 pictures a step; scaled to --batch-size")
    add("--seed", type=int, default=0)
    add("--output", metavar="DIR", default=argparse.SUPPRESS,
        help="where to write (default: checkpoint/torchvision-fcos-N)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--workers", type=number(int, 0), default=1, metavar="N", help="loading processes; 0: the main one loads")
    add("--zero-based", action="store_true", help="coordinates start at 0 (VOC's own start at 1)")
    add("--skip-bad", action="store_true", help="leave out what cannot be read instead of stopping")
    add("--max-steps", type=number(int, 1), metavar="N", help="stop after so many steps")
    return parser.parse_args(argv)


def build_torchvision_fcos(rows, backbone, channels, min_size, max_size, imagenet=None):
    """torchvision's FCOS with `rows` outputs for classes; by its convention no object has the label 0.

    backbone   a name of model.backbone, the same module that ours has
    imagenet   (kind, state dict) as imagenet_state gives, which then keeps its batch norms and its layers up to stride 4;
               None: random weights, all of them trained
    """
    if channels % 32:
        raise ValueError(f"--channels is {channels}, must be a multiple of 32: torchvision's group norm has 32 groups")
    body = build_backbone(backbone, "early" if imagenet else "none")
    if imagenet:
        load_backbone(body, *imagenet)
    mean, std = ([value / 255 for value in values] for values in pixel_statistics(backbone).values())
    return FCOS(BodyWithFPN(body, channels), rows, min_size=tuple(sorted(min_size)), max_size=max_size, image_mean=mean,
                image_std=std, score_thresh=0.05, nms_thresh=0.6, detections_per_img=100, topk_candidates=1000)


class BodyWithFPN(nn.Module):
    """A backbone of ours under torchvision's pyramid, P3..P7."""

    def __init__(self, body, channels):
        super().__init__()
        self.body, self.out_channels = body, channels
        self.fpn = FeaturePyramidNetwork(body.channels[1:], channels, LastLevelP6P7(channels, channels))

    def forward(self, images):
        return self.fpn({str(level): feature for level, feature in enumerate(self.body(images)[1:])})


class AsOurs(nn.Module):
    """torchvision's detector behind the interface of our networks; labels are translated here: 0..C-1 is its 1..C.

    images    uint8 [B, 3, H, W] at original size, padded right and bottom;  image_sizes int64 [B, 2] (h, w)
    targets   boxes float32 [B, M, 4], labels int64 [B, M] (-1: padding row); with them its own losses come back
    """

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images, image_sizes, targets=None):
        pictures = [image[:, :h, :w] / 255 for image, (h, w) in zip(images, image_sizes.tolist(), strict=True)]
        if targets is not None:
            rows = zip(targets["boxes"], targets["labels"], strict=True)
            return self.network(pictures, [{"boxes": boxes[labels >= 0], "labels": labels[labels >= 0] + 1}
                                           for boxes, labels in rows])
        found = [{name: values[each["labels"] > 0] for name, values in each.items()} for each in self.network(pictures)]
        return [{**each, "labels": each["labels"] - 1} for each in found]


def mirror_half(dataset, index, min_size, max_size, rng):
    """All that torchvision's FCOS recipe does to a picture before its network resizes it."""
    image, target = dataset[index]
    return mirror(image, target) if rng.random() < 0.5 else (image, target)


def train(network, loader, flags, device):
    """Trains in place; returns the number of steps. Raises ValueError at a loss that is not finite."""
    total = flags.epochs * len(loader)
    last = min(total, flags.max_steps or total)
    base, warmup = flags.lr * flags.batch_size / 16, min(1000, len(loader) - 1)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=base, momentum=0.9, weight_decay=1e-4)
    network.train()
    batches = (batch for epoch in range(flags.epochs) for batch in loader.batches(epoch))
    with tqdm(total=last, unit="step", dynamic_ncols=True, smoothing=0.05) as bar:
        for step, (batch, infos) in zip(range(last), batches):
            rate = optimizer.param_groups[0]["lr"] = learning_rate(step, total, base, warmup, "step", DROPS)
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            losses = network(on_device["images"], on_device["image_sizes"], on_device)
            loss = sum(losses.values())
            if not loss.isfinite():
                names = ", ".join(info["image_id"] for info in infos)
                raise ValueError(f"step {step}: torchvision's loss is {loss:g} on the pictures {names}; "
                                 f"try an --lr below {flags.lr}")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.set_postfix_str(f"epoch {step // len(loader) + 1}/{flags.epochs} lr {rate:.2g} loss {loss:.3f}",
                                refresh=False)
            bar.update()
    return last


def run(flags):
    """Trains, evaluates, prints the table, writes metrics.json and returns the metrics."""
    torch.manual_seed(flags.seed)
    device = select_device(flags.device)
    options = {"one_based": not flags.zero_based, "skip_bad": flags.skip_bad}
    train_set = VOCDataset(flags.data, flags.train_split, **options)
    test_set = VOCDataset(flags.data, flags.test_split, classes=train_set.classes, **options)
    imagenet = imagenet_state(flags.backbone) if flags.weights == "imagenet" else None
    network = AsOurs(build_torchvision_fcos(len(train_set.classes) + 1, flags.backbone, flags.channels, flags.min_size,
                                            flags.max_size, imagenet)).to(device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"torchvision FCOS {flags.backbone}, {parameters / 1e6:.1f} M parameters, on {device}; {len(train_set)} "
          f"pictures to train on, {len(test_set)} to evaluate on; learning rate "
          f"{flags.lr * flags.batch_size / 16:.4g} for {flags.batch_size} pictures a step")

    loader = TrainLoader(train_set, mirror_half, flags.batch_size, flags.min_size, flags.max_size, flags.seed,
                         flags.workers, pin_memory=device.type == "cuda")
    started = time.perf_counter()
    steps = train(network, loader, flags, device)
    trained = time.perf_counter()
    shown = eval_loader(test_set, max(flags.min_size), flags.max_size, tile=WHOLE_PICTURE, batch_size=flags.batch_size,
                        workers=flags.workers, pin_memory=device.type == "cuda")
    detections = predict(network, shown, device)
    predicted = time.perf_counter()
    metrics = evaluate(detections, test_set.truth(), train_set.classes) | {
        "network": f"torchvision FCOS {flags.backbone}", "flags": vars(flags), "command": command(),
        "machine": machine(), "versions": versions(), "parameters": parameters, "steps": steps,
        "training_seconds": round(trained - started, 1),
        "seconds_per_picture": round((predicted - trained) / len(test_set), 4)}
    print(format_table(metrics))
    output = Path(flags.output) if "output" in flags else next_run_folder(ROOT / "checkpoint", "torchvision-fcos")
    output.mkdir(parents=True, exist_ok=True)
    (output / "metrics.json").write_text(json.dumps(metrics, indent=1), encoding="utf-8")
    print(f"trained in {(trained - started) / 60:.1f} minutes, {metrics['seconds_per_picture']:.3f} s a picture; "
          f"metrics.json is in {output}")
    return metrics


def command():
    return f"python {shlex.join([os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])}"


def machine():
    """Processor, cores and threads in use, as a line of a table says it."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    processor = names[0] if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"


def versions():
    return {"python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__}


def main(argv=None):
    flags = parse_flags(argv)
    with one_sentence_errors():
        return run(flags)


if __name__ == "__main__":
    main()
