"""What a training run tells people: of its data, what of it makes training hard, its first batch, its best numbers."""
import argparse

from engine.log import RunLog
from flags import TILE_OVERLAP, every_size

FINEST_STRIDE = 8       # px between the locations of P3


def describe_data(train_set, val_set, flags: argparse.Namespace) -> str:
    """What is trained on, and what is evaluated how."""
    counts = {name: count for name, count in train_set.class_counts().items() if count}
    return (f"{train_set.counted()}, {sum(counts.values())} objects ({', '.join(f'{n} {c}' for n, c in counts.items())}); "
            + (f"{val_set.counted()} to evaluate on, " if val_set else "no list to evaluate on, detection ")
            + (f"in tiles of {flags.tile} px" if flags.tile else f"whole at {max(every_size(flags.min_size))} px, at most {flags.max_size}"))


def describe_devices(device, amp) -> str:
    """"cpu", "cuda:1, bfloat16", "4 cuda devices, float16"; device, amp: a torch.device, and a torch.dtype or None"""
    from engine.distributed import count_devices
    count = count_devices(device)
    where = f"{count} {device.type} devices" if count > 1 else str(device)
    return f"{where}, {str(amp).removeprefix('torch.')}" if amp else where


def notes_on(train_set, val_set, flags: argparse.Namespace) -> list[str]:
    """Sentences on what was left out, looks odd, or makes training hard."""
    from dataset.preprocess import resized_size
    notes = [*dict.fromkeys(note for part in (train_set, val_set) if part for note in (*part.notes, *part.skipped))]
    if val_set and (shared := {*train_set.pictures} & {*val_set.pictures}):
        notes.append(f"{len(shared)} of the {len(val_set)} pictures to evaluate on are trained on too; the measure flatters")
    if flags.batch_size > len(train_set):
        notes.append(f"--batch-size {flags.batch_size} is more than the {len(train_set)} pictures, of which each step then has some more than once")
    objects = sum(train_set.class_counts().values())
    if flags.model == "fcos" and objects:
        sides = train_set.input_sides(None if flags.crop else max(every_size(flags.min_size)), flags.max_size)
        lost = float((1 - (sides / FINEST_STRIDE).clamp(max=1).prod(1)).sum())
        if lost > objects / 100:
            notes.append(f"about {lost:.0f} of {objects} objects are so small in what the network sees that they lie between its locations, "
                         f"{FINEST_STRIDE} px apart, and are not learnt; {'a larger --zoom' if flags.crop else 'a larger --min-size, or --crop 640'} shows them larger")
    if flags.crop and not flags.tile:
        shrunk = sum(resized_size(*size, max(every_size(flags.min_size)), flags.max_size)[0] < 0.8 * size[0] for size in map(train_set.size, range(len(train_set))))
        if shrunk:
            notes.append(f"--crop {flags.crop} trains at full resolution, but {shrunk} of {len(train_set)} pictures are larger than --min-size, to which whole ones are shrunk for "
                         f"evaluation and detection; --tile {flags.crop} looks at them as they are trained on")
    if flags.tile:
        shared = int(flags.tile * TILE_OVERLAP)
        tiled = [train_set.target(index)["boxes"] for index in range(len(train_set)) if max(train_set.size(index)) > flags.tile]
        long = sum(int(((boxes[:, 2:] - boxes[:, :2]).amax(1) > shared).sum()) for boxes in tiled)
        if long > objects / 100:
            notes.append(f"{long} of {objects} objects are longer than the {shared} px that neighbouring tiles of {flags.tile} px have in common: one that no tile "
                         "shows whole may be found in two pieces; a larger --tile, or --overlap of eval_*.py and detect.py, keeps it whole")
    if flags.model == "fcos" and objects < len(train_set) and not (flags.crop or flags.mosaic or flags.normalizer_floor):
        notes.append(f"{objects} objects in {len(train_set)} pictures: many a step holds few, and its losses, divided by their count, are as large "
                     "as those of others; a run can go astray, from which --normalizer-floor 8 keeps it")
    return notes


def save_sample(loader, classes: list, run: RunLog) -> None:
    """train_batch.jpg: the first batch as the network sees it, with its boxes, and masks if it learns them; dashed what is to be ignored."""
    if not run.active:
        return
    from util.draw import draw_detections, grid
    from util.masks import unpack_bits
    batch, _ = next(iter(loader.batches(0)))
    pictures = []
    for row, labels in enumerate(batch["labels"][:12]):
        picture, left_out = batch["images"][row], batch["ignore"][row] | batch["zone_ignore"][row]
        for shown, dashed in (((labels >= 0) & left_out, True), ((labels >= 0) & ~left_out, False)):
            boxes, masks = (batch[name][row][shown] if name in batch else None for name in ("boxes", "masks"))
            picture = draw_detections(picture, boxes, [classes[label] for label in labels[shown]], classes=classes, masks=None if masks is None else unpack_bits(masks), dashed=dashed)
        pictures.append(picture)
    grid(pictures, columns=4, side=max(batch["images"].shape[-2:])).save(run.folder / "train_batch.jpg", quality=88)


def show_training(run: RunLog, best: dict) -> None:
    """The table of the best metrics, where there are any, and training.png."""
    from evaluation.plots import plot_training
    from evaluation.report import format_table
    if best:
        run.say(format_table(best))
    plot_training(run.folder / "metrics.csv", run.folder / "training.png")
