"""What the arms of an experiment gave on the same test pictures: the table of run_pipeline, with intervals.

AP50 is the area under precision over recall at IoU 0.5, AP its mean over IoU 0.5 to 0.95; R@.5 the share of the objects that a
detection of score 0.5 or more finds (missing labels lower scores before they lower AP); all three are means over classes, and over
seeds. Over B is the difference to arm B. Gap closed is (X - A+) / (F - A+) in AP50; where 2.5 % or more of the resamples have F no
better than A+, its interval would say nothing, and is "-". An interval is a basic bootstrap's: 95 % of 1000 resamples of the test pictures, the same
for all arms, turned about the estimate; near 0 and 1 it may reach beyond them. With n > 1 seeds each of these is moved by draws from what the seeds say about their mean: a t distribution of n - 1
degrees of freedom, times their standard deviation / sqrt(n). (Resampling three seeds themselves gives intervals far too narrow.)
"""
import numpy as np

from evaluation.matching import find_partners, match
from evaluation.voc_ap import IOU_THRESHOLDS

MEASURES = "ap50", "ap", "recall"
FIXED_SCORE = 0.5
RESAMPLES = 1000
SEED_DRAWS = 20             # for each of them: with two or three seeds the t distribution has long tails


def measure(detections: dict, truth: dict, num_classes: int, counts: np.ndarray) -> dict:
    """{"ap50": [R], "ap": [R], "recall": [R]} of one arm and seed. counts [R, pictures]: how often each picture, in the order of the
    sorted ids, is in each resample; arguments otherwise as evaluation.report.evaluate."""
    partners = find_partners(detections, truth, num_classes)
    aps, recalls = zip(*(resampled(partners, num_classes, counts, threshold) for threshold in IOU_THRESHOLDS), strict=True)
    return {"ap50": aps[0], "ap": np.mean(aps, axis=0), "recall": recalls[0]}


def resampled(partners, num_classes: int, counts: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """[R] each: mean AP, and mean recall at the fixed score, where picture i is there counts[r, i] times; classes that a resample has
    no object of are left out of its mean."""
    hit, neither = match(partners, threshold)
    result = []
    for label in range(num_classes):
        own = np.flatnonzero((partners.labels == label) & ~neither)
        objects = counts[:, partners.gt_pictures[(partners.gt_labels == label) & ~partners.gt_difficult]].sum(1)
        # precision has its peaks where a hit is, so that only there it is looked at: [R, hits] and not [R, detections]
        places = np.flatnonzero(hit[own])
        seen = np.searchsorted(places, np.arange(len(own))) * counts.shape[1] + partners.pictures[own]
        seen = np.bincount(seen, minlength=(len(places) + 1) * counts.shape[1]).reshape(-1, counts.shape[1])[:-1].cumsum(0)    # [hits, pictures]
        hits = np.cumsum(counts[:, partners.pictures[own[places]]], axis=1)
        recall = np.pad(hits, ((0, 0), (1, 0))) / np.maximum(objects, 1)[:, None]
        precision = hits / np.maximum(counts.astype(float) @ seen.T.astype(float), 1)
        falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        both = (np.diff(recall, axis=1) * falling).sum(1), recall[:, (partners.scores[own[places]] >= FIXED_SCORE).sum()]
        result.append(np.where(objects > 0, both, np.nan))
    known = ~np.isnan(result)
    return tuple(np.where(known, result, 0).sum(0) / np.maximum(known.sum(0), 1))


def resamples(size: int) -> np.ndarray:
    """int64 [1 + RESAMPLES, size]: how often each of `size` things is drawn; the first row has each once."""
    drawn = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    return np.concatenate([np.ones((1, size), dtype=np.int64), drawn])


def seed_draws(size: int) -> np.ndarray:
    """float [1 + SEED_DRAWS * RESAMPLES, size], u: where x are the values of `size` seeds, u @ x has the t distribution of size - 1 degrees of
    freedom, times standard deviation(x) / sqrt(size), so that mean(x) + u @ x has Student's interval; all arms' x share the draws. The
    first row is 0, as all are for one seed, which does not say how far seeds lie apart."""
    drawn = np.zeros((1 + SEED_DRAWS * RESAMPLES, size))
    if size > 1:
        rng = np.random.default_rng(1)
        normal = rng.standard_normal((len(drawn) - 1, size))
        drawn[1:] = (normal - normal.mean(1, keepdims=True)) / np.sqrt(rng.chisquare(size - 1, (len(normal), 1)) * size)
    return drawn


def compare(measured: dict) -> dict:
    """{arm: row} from {arm: [what `measure` gave for each seed]}; every arm has the same seeds.

    row  "ap50", "ap", "recall", "gap_closed", "over_b", and of each "..._interval"; None where the arms it takes are not there, where
         F is no better than A+, and for the interval of a gap where 2.5 % or more of the resamples have it so
    """
    draws = seed_draws(len(next(iter(measured.values()))))

    def over_seeds(seeds, name):
        # the first of the 1 + RESAMPLES values is the estimate itself, and stays it
        estimates, means = np.array([each[name][0] for each in seeds]), np.mean([each[name] for each in seeds], axis=0)
        # turned about the estimate (the basic bootstrap): AP of a resample is too high by about as much as the estimate itself
        return np.append(means[0], np.tile(2 * means[0] - means[1:], SEED_DRAWS)) + draws @ estimates
    ap50 = {arm: over_seeds(seeds, "ap50") for arm, seeds in measured.items()}

    def with_interval(name, values):
        known = values is not None and np.isfinite(values[0])
        interval = np.percentile(values[1:], [2.5, 97.5]).tolist() if known and np.isinf(values[1:]).mean() < 0.025 else None
        return {name: float(values[0]) if known else None, f"{name}_interval": interval}
    rows = {}
    for arm, values in ap50.items():
        gap = None
        if {"A+", "F"} <= ap50.keys() and arm not in ("A+", "F"):
            gained, width = values - ap50["A+"], ap50["F"] - ap50["A+"]
            gap = np.divide(gained, width, out=np.copysign(np.inf, gained), where=width > 0)      # no width: beyond every number
        over_b = values - ap50["B"] if "B" in ap50 and arm != "B" else None
        columns = {name: over_seeds(measured[arm], name) for name in MEASURES} | {"gap_closed": gap, "over_b": over_b}
        rows[arm] = {key: value for name, column in columns.items() for key, value in with_interval(name, column).items()}
    return rows


def format_arms(rows: dict) -> str:
    """The table as Markdown, which reads well in a terminal too. A row may have "what", "steps" and "minutes" besides."""
    def text(row, name, form=".3f"):
        value, interval = row.get(name), row.get(f"{name}_interval", ())
        within = " [-]" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
        return "-" if value is None else format(value, form) + within
    lines = [["arm", "trained on", "AP50 [95 %]", "AP [95 %]", "R@.5 [95 %]", "gap closed [95 %]", "AP50 over B [95 %]", "steps",
              "minutes with teachers"]]
    for arm, row in rows.items():
        lines.append([arm, row.get("what", ""), text(row, "ap50"), text(row, "ap"), text(row, "recall"), text(row, "gap_closed", ".0%"),
                      text(row, "over_b", "+.3f"), text(row, "steps", "d"), text(row, "minutes", ".1f")])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    padded = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])
