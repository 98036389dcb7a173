"""Batches: a dict of tensors in the network's pixels, and beside it what each picture is (see `collate`).

What a training sample looks like depends on (seed, epoch, index) alone: not on workers, ranks or where an epoch began.
"""
import multiprocessing
import os
import random
import signal
import threading
from multiprocessing import resource_tracker

import torch
from torch.utils.data import DataLoader

from dataset.preprocess import resize_picture, resized_size, tile_windows
from dataset.sample import check_target
from util.masks import pack_bits

SIZE_MULTIPLE = 32
MOST_PIXELS = 8_000_000             # that a network sees at a time, so that large pictures do not take all memory
_SIGNALS_CAN_WAIT = hasattr(signal, "sigwaitinfo")  # not on macOS


def collate(samples):
    """[(uint8 [3, h, w], target or info)] -> (batch, infos).

    batch["images"]        uint8 [B, 3, H, W]   padded right and bottom with zeros; H and W are multiples of 32
    batch["image_sizes"]   int64 [B, 2]         (h, w) before padding
    and, where the samples are targets (they have boxes), M >= 1 being the largest number of objects:
    batch["boxes"]         float32 [B, M, 4]    xyxy, input pixels; 0 in padding rows
    batch["labels"]        int64 [B, M]         -1 in padding rows
    batch["weights"]       float32 [B, M]       0 in padding rows
    batch["ignore"]        bool [B, M]          True: a region to leave out, as COCO's crowds; False in padding rows, and for
                                                VOC's difficult objects, which are trained on as any other
    batch["zone_ignore"]   bool [B, M]          True: no object, its class alone is left open there; False in padding rows
    batch["uncounted"]     bool [B, M]          True: labelled, or in view, whatever other labels are missing: a difficult object, or one that the
                                                window was laid around (sought, dataset.augment); False in padding rows
    batch["masks"]         uint8 [B, M, H, W / 8]   where the targets have them: padded like the images, as util.masks.pack_bits; a batch of COCO
                                                would be a gigabyte otherwise
    infos                  [{"image_id", "orig_size" (h, w), "window" (x1, y1, x2, y2)}], the window in original pixels
    """
    images, targets = zip(*samples, strict=True)
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in sizes.amax(0).tolist())
    batch = {"images": torch.zeros(len(images), 3, height, width, dtype=torch.uint8), "image_sizes": sizes}
    for row, image in zip(batch["images"], images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    if "boxes" in targets[0]:
        shape = len(images), max(1, *(len(target["boxes"]) for target in targets))
        batch |= {"boxes": torch.zeros(*shape, 4), "labels": torch.full(shape, -1), "weights": torch.zeros(shape),
                  **{field: torch.zeros(shape, dtype=torch.bool) for field in ("ignore", "zone_ignore", "uncounted")}}
        for row, target in enumerate(targets):
            for field in ("boxes", "labels", "weights", "ignore", "zone_ignore"):
                batch[field][row, : len(target[field])] = target[field]
            batch["uncounted"][row, : len(target["boxes"])] = target["difficult"] | target["sought"]
    if "masks" in targets[0]:
        batch["masks"] = torch.zeros(*batch["labels"].shape, height, width // 8, dtype=torch.uint8)
        for row, (target, (h, w)) in enumerate(zip(targets, sizes.tolist(), strict=True)):
            batch["masks"][row, : len(target["masks"]), :h, : -(-w // 8)] = pack_bits(target["masks"])
    whole = [(0, 0, target["orig_size"][1], target["orig_size"][0]) for target in targets]
    infos = [{"image_id": target["image_id"], "orig_size": target["orig_size"], "window": target.get("window", full)}
             for target, full in zip(targets, whole, strict=True)]
    return batch, infos


class _Loaded:
    """What a worker hands over: a collated batch, or the sentence on a bad file."""

    def __init__(self, batch=None, infos=None, complaint=None):
        self.batch, self.infos, self.complaint = batch, infos, complaint

    def pin_memory(self):  # the DataLoader's own way would turn the tuples in infos into lists
        if self.batch:
            self.batch = {name: tensor.pin_memory() for name, tensor in self.batch.items()}
        return self


class _Batches:
    """What a worker holds: the way from a job to a batch; `samples(job)` is the subclass's."""

    def __getitem__(self, job):
        try:
            return _Loaded(*collate(self.samples(job)))
        except ValueError as error:  # raised in a worker it would arrive as a traceback's text
            return _Loaded(complaint=str(error))


class _TrainBatches(_Batches):
    def __init__(self, dataset, augment, max_size, seed):
        self.dataset, self.augment, self.max_size, self.seed = dataset, augment, max_size, seed

    def samples(self, job):
        epoch, min_size, entries = job
        return [self._sample(epoch, min_size, index, turn) for index, turn in entries]

    def _sample(self, epoch, min_size, index, turn):
        rng = random.Random(f"{self.seed}/{epoch}/{index}/{turn}")
        image, target = self.augment(self.dataset, index, min_size, self.max_size, rng)
        check_target(target, image.shape[-2:], len(self.dataset.classes), target["image_id"])
        return image, target


class _EvalBatches(_Batches):
    def __init__(self, dataset, min_size, max_size):
        self.dataset, self.min_size, self.max_size = dataset, min_size, max_size
        self.held = None, None  # the last picture: its tiles follow each other, also over several batches

    def samples(self, job):
        samples = []
        for index, window in job:
            if self.held[0] != index:
                self.held = index, self.dataset[index]
            image, target = self.held[1]
            info = {"image_id": target["image_id"], "orig_size": target["orig_size"]}
            if window:
                x1, y1, x2, y2 = window
                samples.append((image[:, y1:y2, x1:x2], {**info, "window": window}))
            else:
                size = resized_size(*image.shape[-2:], self.min_size, self.max_size)
                samples.append((resize_picture(image, size), info))
        return samples


def _as_it_is(loaded):
    return loaded


def _obey_the_main_process(worker):
    """Terminals and schedulers signal all processes at once; how to end is the main one's affair, which also says so
    with SIGTERM. The workers are born with both signals held back (see _started), but for those of a fork server that was there before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if _SIGNALS_CAN_WAIT:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        threading.Thread(target=_end_when_told_by_the_main_process, daemon=True).start()


def _end_when_told_by_the_main_process():
    sender, main = None, multiprocessing.parent_process().pid       # with a fork server that is not getppid()
    while sender != main:
        sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
    os._exit(0)


def _data_loader(batches, jobs, workers, pin_memory):
    return DataLoader(batches, batch_size=None, sampler=jobs, collate_fn=_as_it_is, num_workers=workers,
                      worker_init_fn=_obey_the_main_process, persistent_workers=workers > 0, pin_memory=pin_memory,
                      generator=torch.Generator())


def _started(data_loader):
    """iter(data_loader); a signal that comes while its workers start waits for them, and for this process."""
    if not _SIGNALS_CAN_WAIT:
        return iter(data_loader)
    if multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()           # would open both signals again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return iter(data_loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unpacked(data_loader):
    for loaded in _started(data_loader):
        if loaded.complaint:
            raise ValueError(loaded.complaint)
        yield loaded.batch, loaded.infos


class TrainLoader:
    """`for batch, infos in loader.batches(epoch, first=0)`; len(loader) batches an epoch, the same on every rank.

    batches(epoch, first=k) equals the tail of batches(epoch), for any number of workers. Batch k of all ranks together
    is what one process with batch_size * world_size would see. Each batch has one min_size, drawn from min_sizes.
    A last incomplete batch is dropped; a data set smaller than one batch is repeated until it fills one.
    pin_memory: batches lie in page-locked memory, from where copies to a GPU can overlap.
    Raises ValueError for a file that has become unreadable.
    """

    def __init__(self, dataset, augment, batch_size, min_sizes, max_size, seed=0, workers=0, rank=0, world_size=1,
                 pin_memory=False):
        self.dataset, self.seed, self.min_sizes = dataset, seed, tuple(min_sizes)
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._jobs = []
        # the DataLoader keeps this very list, filled anew for each epoch; its workers live on
        self._loader = _data_loader(_TrainBatches(dataset, augment, max_size, seed), self._jobs, workers, pin_memory)

    def __len__(self):
        return max(1, len(self.dataset) // (self.batch_size * self.world_size))

    def batches(self, epoch, first=0):
        self._jobs[:] = [self._job(epoch, number, order) for order in [self._order(epoch)]
                         for number in range(first, len(self))]
        return _unpacked(self._loader)

    def _order(self, epoch):
        order = list(range(len(self.dataset)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order

    def _job(self, epoch, number, order):
        min_size = random.Random(f"{self.seed}/{epoch}/size/{number}").choice(self.min_sizes)
        start = (number * self.world_size + self.rank) * self.batch_size
        turns_and_places = (divmod(place, len(order)) for place in range(start, start + self.batch_size))
        return epoch, min_size, [(order[place], turn) for turn, place in turns_and_places]


class _EvalLoader:
    def __init__(self, batches, jobs, workers, pin_memory):
        self._jobs, self._loader = jobs, _data_loader(batches, jobs, workers, pin_memory)

    def __len__(self):
        return len(self._jobs)

    def __iter__(self):
        return _unpacked(self._loader)


def eval_loader(dataset, min_size, max_size, tile=None, overlap=0.25, batch_size=8, workers=0, pin_memory=False):
    """An iterable, of known len, of (batch, infos), without targets: each picture once, or once for each of its tiles.

    tile         px, or None for whole pictures; a tile is shown at full resolution, min_size and max_size are not used
    overlap      share of a tile that neighbours have in common, at least
    batch_size   pictures or tiles at a time; fewer where so many are over MOST_PIXELS together
    Pictures of like shape share batches, so the order is not the data set's; ids in infos say which is which.
    """
    if tile:
        pieces = [(index, window) for index in range(len(dataset))
                  for window in tile_windows(*dataset.size(index), tile, overlap)]
        areas = [(x2 - x1) * (y2 - y1) for _, (x1, y1, x2, y2) in pieces]
    else:
        shapes = [resized_size(*dataset.size(index), min_size, max_size) for index in range(len(dataset))]
        pieces = [(index, None) for index in sorted(range(len(dataset)), key=shapes.__getitem__)]
        areas = [height * width for height, width in sorted(shapes)]
    jobs, room = [], 0
    for piece, area in zip(pieces, areas, strict=True):
        if not jobs or len(jobs[-1]) == batch_size or area > room:
            jobs.append([])
            room = MOST_PIXELS
        jobs[-1].append(piece)
        room -= area
    return _EvalLoader(_EvalBatches(dataset, min_size, max_size), jobs, workers, pin_memory)
