"""One device, several in one process (DataParallel), or one process a device (DDP under torchrun): the gradient is the same.

A network returns each loss as (sum, count). The pairs of all replicas and ranks are added and divided once, so that a
picture weighs the same wherever it was computed. But each process pads its pictures to the largest of its own, and group norms see the padding.
"""
import atexit
import ctypes
import os
import re
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn


def select_device(name: str = "auto") -> torch.device:
    """"auto" is CUDA where there is one, else the CPU. Raises ValueError for "cuda" where there is none, and for any other kind of device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:(0|[1-9][0-9]{0,2}))?", name):
        raise ValueError(f"--device is {name!r}, not one of auto, cpu, cuda, cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch {torch.__version__} sees no CUDA device on this machine")
    if "LOCAL_RANK" in os.environ and name.startswith("cuda"):
        if name != "cuda":
            raise ValueError(f"--device {name}: under torchrun each process takes the GPU of its own rank; say cuda or auto")
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name.startswith("cuda:") and int(name[5:]) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0")
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def keep_freed_memory() -> bool:
    """Large blocks that are freed stay with the process; False where the C library is not glibc, and nothing changes.

    glibc hands them back to the system at once, and gets them back page by page when the next layer asks. A network as large as
    a 2560x1440 picture spends half of its time on that; the memory that it holds grows by a fifth, and by a half where
    inputs have many sizes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_mmap_max = -1, -4       # their numbers in malloc.h
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, -1))


def start_process_group(device: torch.device) -> None:
    """Joins the other ranks when torchrun started this process, and waits for them; does nothing otherwise."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        on_gpu = device.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=2),
                                device_id=torch.device("cuda", torch.cuda.current_device()) if on_gpu else None)
        atexit.register(_end_at_once)
        dist.barrier()


def leave_process_group() -> None:
    """At the end of what all ranks do together."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_at_once() -> None:
    """A process that has not left its group has failed, and ends with exit code 1. To leave the group now would wait for ranks that wait
    for this one; torchrun stops them within half a minute."""
    if dist.is_initialized():
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(1)


def of_first_rank(value):
    """What rank 0 gives, on all ranks; any picklable thing."""
    given = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(given)
    return given[0]


def everywhere(yes: bool) -> bool:
    """Whether it is so on all ranks."""
    said = [yes] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(said, yes)
    return all(said)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def count_devices(device: torch.device) -> int:
    """How many share a step: the ranks', or all visible GPUs where none is named."""
    if dist.is_initialized():
        return world_size()
    return torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1


class Autocast(nn.Module):
    """A network under autocast. Inside what is replicated, because DataParallel's threads do not inherit the type."""

    def __init__(self, network: nn.Module, device_type: str, dtype: torch.dtype):
        super().__init__()
        self.network, self.device_type, self.dtype = network, device_type, dtype

    def forward(self, *inputs):
        with torch.autocast(self.device_type, dtype=self.dtype):
            return self.network(*inputs)


def replicate(network: nn.Module, device: torch.device, amp: torch.dtype | None = None) -> nn.Module:
    """The network as training calls it: in DDP on several ranks, in DataParallel on several visible GPUs, else itself."""
    if amp is not None:
        network = Autocast(network, device.type, amp)
    if dist.is_initialized():
        return nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)
    return nn.DataParallel(network) if count_devices(device) > 1 else network


class RunningCounts:
    """Counts to divide by -> their running mean, this batch's included (AdelaiDet's "moving_fg"), and no less than `floor`.

    momentum 0: no mean. A floor is for batches with few labels: what these say is noisy, and divided by their count as loud as a full batch.
    """

    def __init__(self, momentum: float, floor: float = 0.0):
        self.momentum, self.floor, self.mean = momentum, floor, None

    def __call__(self, counts: Tensor) -> Tensor:
        self.mean = counts if self.mean is None else counts.lerp(self.mean.to(counts.device), self.momentum)
        return self.mean.clamp(min=self.floor)


def combine(losses: dict[str, Tensor], asked: bool = False, smooth=lambda counts: counts) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The loss to call backward on, the parts to print (detached, each already divided), and how many ranks `asked`.

    losses  name -> [R, 2] float32, (sum, count) of each replica of this process
    asked   any yes or no that all ranks must learn of at the same step; it travels with the sums
    smooth  counts [K] over all -> those to divide by, e.g. RunningCounts

    part = sum over all replicas and ranks / max(smooth(count over all), 1). DDP averages gradients over the ranks, so this
    rank's share is multiplied with their number. Law: the gradient does not depend on how a batch of one padded size was split.
    """
    local = torch.stack([pairs.sum(0) for pairs in losses.values()])                      # [K, 2]
    everywhere = torch.cat([local.detach(), local.new_full((1, 2), float(asked))])
    if dist.is_initialized():
        dist.all_reduce(everywhere)
    counts = smooth(everywhere[:-1, 1]).clamp(min=1)
    parts = dict(zip(losses, (everywhere[:-1, 0] / counts).unbind(), strict=True))
    return (local[:, 0] / counts).sum() * world_size(), parts, everywhere[-1, 0]
