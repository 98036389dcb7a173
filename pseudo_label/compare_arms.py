"""What the arms of an experiment gave on the same test pictures: the table of run_pipeline, with intervals.

AP50 is the area under precision over recall at IoU 0.5, AP its mean over IoU 0.5 to 0.95; R@.5 the share of the objects that a
detection of score 0.5 or more finds (missing labels lower scores before they lower AP); all three are means over classes, and over
seeds. Gap closed is (X - A+) / (F - A+) in AP50. An interval holds 95 % of 1000 resamples of the test pictures, the same for all
arms, and of the seeds.
"""
import numpy as np

from evaluation.matching import find_partners, match
from evaluation.report import mean_of_known
from evaluation.voc_ap import IOU_THRESHOLDS, area_ap, class_curves

FIXED_SCORE = 0.5
RESAMPLES = 1000


def measure(detections: dict, truth: dict, num_classes: int, counts: np.ndarray) -> dict:
    """{"ap50": [R], "ap": x, "recall": x} of one arm and seed. counts [R, pictures]: how often each picture, in the order of the
    sorted ids, is in each resample; arguments otherwise as evaluation.report.evaluate."""
    partners = find_partners(detections, truth, num_classes)
    curves = [class_curves(partners, num_classes, threshold) for threshold in IOU_THRESHOLDS]
    aps = [[area_ap(curve.precision, curve.recall) if curve else None for curve in each] for each in curves]
    recalls = [float(curve.recall[curve.scores >= FIXED_SCORE].max(initial=0)) if curve else None for curve in curves[0]]
    return {"ap50": resampled_ap50(partners, num_classes, counts), "ap": mean_of_known([mean_of_known(each) for each in aps]),
            "recall": mean_of_known(recalls)}


def resampled_ap50(partners, num_classes: int, counts: np.ndarray) -> np.ndarray:
    """[R]: mean AP50 where picture i is there counts[r, i] times; classes that a resample has no object of are left out of its mean."""
    hit, neither = match(partners, 0.5)
    result = []
    for label in range(num_classes):
        own = (partners.labels == label) & ~neither
        pictures = partners.gt_pictures[(partners.gt_labels == label) & ~partners.gt_difficult]
        objects = counts[:, pictures].sum(1)
        times = counts[:, partners.pictures[own]]
        hits = np.cumsum(times * hit[own], axis=1)
        recall = hits / np.maximum(objects, 1)[:, None]
        precision = hits / np.maximum(np.cumsum(times, axis=1), 1)
        falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        result.append(np.where(objects > 0, (np.diff(recall, axis=1, prepend=0) * falling).sum(1), np.nan))
    known = ~np.isnan(result)
    return np.where(known, result, 0).sum(0) / np.maximum(known.sum(0), 1)


def resamples(size: int, seed: int = 0) -> np.ndarray:
    """int64 [1 + RESAMPLES, size]: how often each of `size` things is drawn; the first row has each once."""
    drawn = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    return np.concatenate([np.ones((1, size), dtype=np.int64), drawn])


def compare(measured: dict) -> dict:
    """{arm: row} from {arm: [what `measure` gave for each seed]}; every arm has the same seeds.

    row  "ap50", "ap50_interval", "ap", "recall", "gap_closed", "gap_closed_interval", "over_b", "over_b_interval"; None where the
         arms it takes are not there
    """
    weights = resamples(len(next(iter(measured.values()))), seed=1)
    ap50 = {arm: (np.stack([each["ap50"] for each in seeds], 1) * weights).sum(1) / weights.sum(1) for arm, seeds in measured.items()}

    def with_interval(name, values):
        # the first is the estimate itself; a gap of no width closes nothing
        known = values[np.isfinite(values)] if values is not None else ()
        return {name: float(values[0]) if len(known) and np.isfinite(values[0]) else None,
                f"{name}_interval": np.percentile(known[1:], [2.5, 97.5]).tolist() if len(known) > 1 else None}
    rows = {}
    for arm, values in ap50.items():
        gap = None
        if {"A+", "F"} <= ap50.keys() and arm not in ("A+", "F"):
            with np.errstate(divide="ignore", invalid="ignore"):
                gap = (values - ap50["A+"]) / (ap50["F"] - ap50["A+"])
        over_b = values - ap50["B"] if "B" in ap50 and arm != "B" else None
        rows[arm] = {**with_interval("ap50", values), **with_interval("gap_closed", gap), **with_interval("over_b", over_b),
                     **{key: mean_of_known([each[key] for each in measured[arm]]) for key in ("ap", "recall")}}
    return rows


def format_arms(rows: dict) -> str:
    """The table as Markdown, which reads well in a terminal too. A row may have "what", "steps" and "minutes" besides."""
    def text(row, name, form=".3f"):
        value, interval = row.get(name), row.get(f"{name}_interval")
        return "-" if value is None else format(value, form) + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")
    lines = [["arm", "trained on", "AP50 [95 %]", "AP", "R@.5", "gap closed [95 %]", "AP50 over B [95 %]", "steps", "minutes with teachers"]]
    for arm, row in rows.items():
        lines.append([arm, row.get("what", ""), text(row, "ap50"), text(row, "ap"), text(row, "recall"), text(row, "gap_closed", ".0%"),
                      text(row, "over_b", "+.3f"), text(row, "steps", "d"), text(row, "minutes", ".1f")])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])
