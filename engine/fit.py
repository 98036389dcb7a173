"""The training loop: SGD with the rate set by hand, mixed precision, clipping, averaged weights, evaluation, checkpoints.

It knows a network that gives {name: (sum, count)} and nothing of what kind of network it is.
"""
import copy
import random
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from engine.checkpoint import save_checkpoint
from engine.distributed import RunningCounts, combine, rank, replicate, world_size
from engine.log import STEPS_A_ROW, Meter
from engine.predict import detect_batch
from engine.schedule import learning_rate

SAVE_EVERY = 600        # seconds: what a power cut can cost of a long epoch


@dataclass(frozen=True)
class FitOptions:
    """lr is that of the whole global batch; pretrained_lr multiplies it for parameters under "backbone."; 0 for a norm, a decay, normalizer_momentum
    (of the running mean of the counts that losses are divided by) or normalizer_floor (the least of these counts) is off. torch's random numbers
    at a step come from (seed, step, rank)."""

    epochs: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup_steps: int = 500
    schedule: str = "step"
    drops: tuple = (0.67, 0.89)
    pretrained_lr: float = 1.0
    clip_norm: float = 35.0
    ema_decay: float = 0.998
    normalizer_momentum: float = 0.0
    normalizer_floor: float = 0.0
    amp: torch.dtype | None = None
    evaluate_every: int = 1
    max_steps: int | None = None
    seed: int = 0


def fit(network: nn.Module, loader, evaluate, run, options: FitOptions, device: torch.device, checkpoint: dict,
        resume: dict | None = None, teacher=None, strong_view=None) -> dict:
    """Trains and returns the metrics of the best epoch ({} if none was evaluated).

    network     on any device; holds the trained weights afterwards (the averaged ones in best.pth and last.pth)
    loader      len(loader) batches an epoch, loader.batches(epoch, first) -> (batch, infos); sees only its rank's share
    evaluate    called with the network to be judged -> {"mAP": x, ...}, on rank 0; None: no evaluation. A "score_threshold"
                among its numbers becomes the checkpoint's
    run         engine.log.RunLog (folder, rows, messages)
    checkpoint  what every checkpoint shall hold beside the weights
    resume      a last.pth: the run goes on as if it had not been interrupted
    teacher     engine.teacher.Teacher: what its own network or the averaged one detects fills the holes of the labels; needs ema_decay
    strong_view (images, image_sizes) -> images, which the network is trained on, the teacher not

    Raises ValueError for a loss that is not finite (its batch is kept in the run folder), for a device whose memory is too small, and for a resumed run
    whose epochs had another number of steps; KeyboardInterrupt on a signal, and ValueError for a picture that cannot be read, both after last.pth was written (under torchrun: where the first rank meets it).
    """
    training = _Training(network, loader, evaluate, run, options, device, checkpoint, teacher, strong_view)
    if resume:
        training.restore(resume)
    with _stop_signals() as stop:
        while training.state["epoch"] < options.epochs and not training.finished:
            training.run_epoch(stop)
            training.close_epoch()
    training.bar.close()
    if not evaluate and not training.state["best"]:       # of a run that was resumed without an evaluation, the best so far stays
        training.save("best.pth", whole=False)
    return training.state["best"]


class _Training:
    """The parts of a run and its state: epoch, batch (next one in the epoch), step, best metrics, seconds."""

    def __init__(self, network, loader, evaluate, run, options, device, checkpoint, teacher, strong_view):
        self.network, self.loader, self.evaluate, self.run = network, loader, evaluate, run
        self.options, self.device, self.checkpoint = options, device, checkpoint
        self.teacher, self.strong_view = teacher, strong_view
        network.to(device, memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(network).requires_grad_(False) if options.ema_decay else network
        self.parallel = replicate(network, device, options.amp)
        self.optimizer = torch.optim.SGD(parameter_groups(network, options), lr=options.lr, momentum=options.momentum, nesterov=options.momentum > 0)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.amp is torch.float16)
        self.state = {"epoch": 0, "batch": 0, "step": 0, "best": {}, "seconds": 0.0, "steps_per_epoch": len(loader)}
        self.metrics, self.finished, self.stepping, self.saved = {}, False, False, time.perf_counter()
        self.meter, self.recent = Meter(), Meter()          # of the epoch, and of the steps since the last row of steps.csv
        self.closed = None              # the step that close_epoch was last through with
        self.counts = RunningCounts(options.normalizer_momentum, options.normalizer_floor)
        self.total_steps = options.epochs * len(loader)
        self.last_step = min(self.total_steps, options.max_steps or self.total_steps)
        self.bar = tqdm(total=self.last_step, unit="step", disable=rank() != 0, dynamic_ncols=True, smoothing=0.05)

    def run_epoch(self, stop) -> None:
        """The rest of the current epoch, or up to the last step. Stops, with a checkpoint, when all ranks know of a signal; what
        breaks off a step half-made leaves the checkpoint of before."""
        self.network.train()
        try:
            for batch, infos in self.loader.batches(self.state["epoch"], self.state["batch"]):
                if self.state["step"] >= self.last_step:
                    break
                self.meter.waited()
                self.stepping = True
                asked = self.step(batch, infos, stop.asked)
                self.stepping = False
                if asked:
                    raise KeyboardInterrupt
                if time.perf_counter() - self.saved > SAVE_EVERY:
                    self.save("last.pth", self.meter.elapsed())
        except (KeyboardInterrupt, ValueError):
            if not self.stepping:
                self.state["seconds"] += self.meter.elapsed()
                self.save("last.pth")
            self.bar.close()
            raise
        except torch.OutOfMemoryError:
            self.bar.close()
            raise ValueError(f"step {self.state['step']}: the memory of {self.device} is too small for a batch of {list(batch['images'].shape)}; take a smaller "
                             "--batch-size, --min-size or --crop") from None
        self.state["seconds"] += self.meter.elapsed()

    def step(self, batch: dict, infos: list, asked: bool) -> bool:
        """One update; True if any rank was asked to stop. On CUDA the loss is copied out beside the backward pass, so that
        looking at it stalls nothing."""
        rate = learning_rate(self.state["step"], self.total_steps, self.options.lr, self.options.warmup_steps, self.options.schedule, self.options.drops)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        torch.manual_seed(random.Random(f"{self.options.seed}/{self.state['step']}/{rank()}").getrandbits(63))
        on_device = {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}
        targets, added = self.taught(on_device)
        images, image_sizes = on_device["images"], on_device["image_sizes"]
        if self.strong_view:
            images = self.strong_view(images, image_sizes)
        if self.device.type == "cuda":                # DataParallel's copies of the weights have lost this layout, and follow the pictures
            images = images.contiguous(memory_format=torch.channels_last)
        losses = self.parallel(images, image_sizes, targets)
        loss, parts, asked = combine(losses, asked, self.counts)
        values = torch.stack([sum(parts.values()), *parts.values(), asked]).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if self.device.type == "cuda" else None
        if copied:
            copied.record()
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if copied:
            copied.synchronize()
        *numbers, asked = values.tolist()
        numbers = dict(zip(("loss", *parts), numbers, strict=True))
        if not torch.isfinite(values).all():
            self.keep_batch(numbers, batch, infos)
        self.scaler.unscale_(self.optimizer)
        if self.options.clip_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averaged is not self.network:
            update_average(self.averaged, self.network, self.options.ema_decay, self.state["step"])
        self.state["step"] += 1
        self.state["batch"] += 1
        for meter in (self.meter, self.recent):
            meter.add(numbers | added, len(infos) * world_size(), rate)
        if self.state["step"] % STEPS_A_ROW == 0:
            self.run.steps_row({"step": self.state["step"], "epoch": self.state["epoch"] + 1, **self.recent.means()})
            self.recent = Meter()
        self.bar.update(self.state["step"] - self.bar.n)
        self.bar.set_postfix_str(f"epoch {self.state['epoch'] + 1}/{self.options.epochs} lr {rate:.2g} {self.meter.text()}", refresh=False)
        return asked > 0

    def taught(self, batch: dict) -> tuple[dict, dict]:
        """The targets of a batch, with what the teacher adds to them, and numbers to log."""
        targets = {name: tensor for name, tensor in batch.items() if name not in ("images", "image_sizes")}
        progress = self.state["step"] / self.total_steps
        if not self.teacher:
            return targets, {}
        if not self.teacher.active(progress):
            return targets, {"pseudo": 0.0, "zones": 0.0}
        return self.teacher(detect_batch(self.teacher.network(self.averaged, progress), batch, self.device, self.options.amp), targets, progress)

    def close_epoch(self) -> None:
        """Evaluation, the epoch's row, checkpoints. Until the end `state` says that the epoch is still to be closed, so that
        a run which is broken off here evaluates again when it is resumed."""
        complete = self.state["batch"] >= len(self.loader)
        self.finished = self.state["step"] >= self.last_step
        epoch, now, averages = self.state["epoch"] + 1, {}, self.meter.averages()
        if self.evaluate and (self.finished or epoch % self.options.evaluate_every == 0):
            self.save("last.pth")
            if rank() == 0:
                self.metrics = now = self.evaluate(self.averaged)
                if (now["mAP"] or 0.0) >= (self.state["best"].get("mAP") or 0.0):
                    self.state["best"] = now
                    self.save("best.pth", whole=False)
        self.run.row({"epoch": epoch, "step": self.state["step"], "seconds": round(self.state["seconds"], 1),
                      **averages, **{name: now.get(name) for name in ("mAP", "mAP_50", "mAP_50_95")}})
        if complete:
            self.state["epoch"], self.state["batch"], self.meter = epoch, 0, Meter()
        self.closed = self.state["step"]
        self.save("last.pth")
        if dist.is_initialized():
            dist.barrier()

    def save(self, name: str, unbooked: float = 0.0, whole: bool = True) -> None:
        """`whole`: with all that an exact resume needs; `unbooked` seconds are not in the state yet."""
        self.saved = time.perf_counter()
        if rank() == 0:
            contents = {**self.checkpoint, "model": _to_cpu(self.averaged.state_dict()), "metrics": self.metrics,
                        "score_threshold": self.metrics.get("score_threshold") or self.checkpoint["score_threshold"]}
            if whole:
                contents["training"] = {
                    **self.state, "seconds": self.state["seconds"] + unbooked, "model": self.network.state_dict(), "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(), "counts": self.counts.mean, "teacher": self.teacher and self.teacher.state,
                    "meter": self.meter.state(), "recent": self.recent.state(), "closed": self.closed}
            save_checkpoint(self.run.folder / name, contents)

    def restore(self, last: dict) -> None:
        training = last["training"]
        check_steps(last, self.loader)
        self.averaged.load_state_dict(last["model"])
        self.network.load_state_dict(training["model"])
        self.optimizer.load_state_dict(training["optimizer"])
        if training["scaler"]:                   # {} where the run that is resumed needed no scaler
            self.scaler.load_state_dict(training["scaler"])
        self.counts.mean = training.get("counts")        # absent from runs of before there was a running mean
        if self.teacher:
            self.teacher.state.update(training["teacher"])       # runs of before its warnings had pauses of their own have less of it
        self.state = {name: training[name] for name in self.state}
        self.metrics = last["metrics"]
        self.meter, self.recent = Meter(training.get("meter")), Meter(training.get("recent"))        # absent from runs of before these went on
        self.state["seconds"] -= self.meter.elapsed()           # run_epoch adds those of the whole epoch
        self.finished = self.state["step"] >= self.last_step and (self.state["batch"] == 0 or training.get("closed") == self.state["step"])
        self.bar.update(self.state["step"])

    def keep_batch(self, numbers: dict, batch: dict, infos: list) -> None:
        file = self.run.folder / f"nonfinite_rank{rank()}.pth"
        save_checkpoint(file, {"batch": batch, "images": [info["image_id"] for info in infos], "losses": numbers,
                               "step": self.state["step"], "model": _to_cpu(self.network.state_dict())})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        raise ValueError(f"step {self.state['step']}: the loss is not finite ({shown}) on pictures "
                         f"{', '.join(info['image_id'] for info in infos)}; the batch and the weights before it are in {file}")


def check_steps(last: dict, loader) -> None:
    """Raises ValueError where the epochs of a run to resume had another number of steps than the loader gives."""
    then = last["training"]["steps_per_epoch"]
    if then != len(loader):
        raise ValueError(f"the run to resume had {then} steps an epoch, with this data and batch size they are {len(loader)}; "
                         "resume with the same, or start a new run from its weights")


@torch.no_grad()
def update_average(averaged: nn.Module, network: nn.Module, decay: float, updates: int) -> None:
    """Moves all floating-point weights and buffers of `averaged` towards those of `network`; counters are copied.

    The decay grows as (1 + updates) / (10 + updates) up to `decay`, so that a short run is not all beginning.
    """
    pairs = list(zip(averaged.state_dict().values(), network.state_dict().values(), strict=True))
    floating = [pair for pair in pairs if pair[0].is_floating_point()]
    torch._foreach_lerp_(*map(list, zip(*floating, strict=True)), 1 - min(decay, (1 + updates) / (10 + updates)))
    for mine, theirs in pairs:
        if not mine.is_floating_point():
            mine.copy_(theirs)


def parameter_groups(network: nn.Module, options: FitOptions) -> list[dict]:
    """Weights decay; biases, norms and learned scales do not. Parameters that need no gradient are left out."""
    groups = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
            scale = options.pretrained_lr if name.startswith("backbone.") else 1.0
            groups.setdefault((decay, scale), []).append(parameter)
    return [{"params": params, "weight_decay": decay, "lr_scale": scale} for (decay, scale), params in groups.items()]


def _to_cpu(state: dict) -> dict:
    return {name: tensor.detach().cpu() for name, tensor in state.items()}


@contextmanager
def _stop_signals():
    """Ctrl-C or a terminate signal asks the loop to stop after its step; a second Ctrl-C stops at once."""
    class Stop:
        asked = False

    def ask(number, frame):
        Stop.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:                       # not the main thread: signals are not ours to take
        previous = {}
    try:
        yield Stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
