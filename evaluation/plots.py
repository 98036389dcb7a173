"""Pictures of a detector's quality, as PNG: precision over recall, the confusion matrix, a training run."""

import csv
import math
from pathlib import Path

import numpy as np

from evaluation.matching import confusion_matrix, find_partners
from evaluation.voc_ap import area_ap, best_threshold, class_curves, falling
from util.draw import class_colours, lettering

# matplotlib is imported where it is used, and as Figure objects: no window system, no global state, nothing left open


def line_colours(count: int) -> list[tuple]:
    """Class colours dark enough for lines on white, as matplotlib wants them: 0..1."""
    return [tuple(value / 255 for value in colour) for colour in class_colours(count, lightness=(0.4, 0.74))]


def as_written(classes: list[str]) -> tuple[list[str], list[str]]:
    """(class names that matplotlib takes for a text, the font families that have their letters): no formula between $, not left out of
    legends for a leading _, and in letters that matplotlib's font lacks as util.draw.lettering has them: in a font of the system, or as numbers."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font
    families = ["DejaVu Sans"]                  # comes with matplotlib
    if not {ord(letter) for name in classes for letter in name} <= FT2Font(font_manager.findfont(families[0])).get_charmap().keys():
        font, spelled = lettering(tuple(classes), 12)
        classes = [spelled[name] for name in classes]
        if isinstance(font.path, str):
            font_manager.fontManager.addfont(font.path)
            families.append(font_manager.FontProperties(fname=font.path).get_name())
    return [("\u200b" * name.startswith("_") + name).replace("$", r"\$") for name in classes], families


def plain_axes(axes, title: str, xlabel: str, ylabel: str):
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def save(figure, path, families=("DejaVu Sans",)):
    from matplotlib.text import Text
    for text in figure.findobj(Text):
        text.set_fontfamily(families)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, facecolor="white", format="png")


def plot_precision_recall(detections: dict, ground_truth: dict, classes: list[str], path):
    """Writes the precision-recall curve of each class at IoU 0.5, made falling as the area AP has it, so that the AP in
    the legend is the area below it, and the point of best F1.

    Arguments as for report.evaluate. Classes without objects are named in the legend and have no curve.
    """
    from matplotlib.figure import Figure

    curves = class_curves(find_partners(detections, ground_truth, len(classes)), len(classes), 0.5)
    classes, families = as_written(classes)
    aps = {name: area_ap(curve.precision, curve.recall) for name, curve in zip(classes, curves, strict=True) if curve}
    columns = -(-len(classes) // 24)
    figure = Figure(figsize=(7.6 + 2.4 * columns, 6.4), layout="constrained")
    axes = figure.subplots()
    for name, curve, colour in zip(classes, curves, line_colours(len(classes)), strict=True):
        if curve is None:
            axes.plot([], [], color="0.8", label=f"{name}  no objects")
            continue
        rises = np.diff(curve.recall, prepend=0) > 0
        recall, precision = curve.recall[rises], falling(curve.precision)[rises]
        axes.step(np.concatenate([0 * recall[:1], recall]), np.concatenate([precision[:1], precision]), where="pre",
                  color=colour, linewidth=1.8, label=f"{name}  {aps[name]:.3f}")
        point = best_threshold([curve])
        if point["threshold"] is not None:
            axes.plot(point["recall"], point["precision"], "o", color=colour, markersize=6, markeredgecolor="white",
                      clip_on=False)
    mean = f"mAP {np.mean(list(aps.values())):.3f}" if aps else "no objects"
    plain_axes(axes, f"Precision over recall at IoU ≥ 0.5, {mean}", "recall", "precision")
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02))
    if classes:
        figure.legend(*axes.get_legend_handles_labels(), title="class  AP (area); dot: best F1", ncols=columns,
                      loc="outside right upper", frameon=False, fontsize=9, title_fontsize=9)
    save(figure, path, families)


def plot_confusion_matrix(detections: dict, ground_truth: dict, classes: list[str], path,
                          score_threshold: float | None = None):
    """Writes matching.confusion_matrix at IoU 0.5: a row for what is there, a column for what it was found as.

    A cell has its count and its share of the row, which is also its colour. The last row, false alarms, has counts only
    and is coloured by the share of the column: how much of what was called so is nothing. Of over 100 classes, the 60 with the most
    errors.
    score_threshold: detections below it do not exist; None keeps all, metrics["score_threshold"] is the sensible one.
    """
    from matplotlib.figure import Figure

    classes, families = as_written(classes)
    counts = confusion_matrix(detections, ground_truth, len(classes), score_threshold)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares[-1] = counts[-1] / np.maximum(counts.sum(axis=0), 1)
    part = ""
    if len(classes) > 100:
        errors = (counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal())[:-1]
        kept, part = np.sort(np.argsort(-errors, kind="stable")[:60]), f"the 60 of {len(classes)} classes with the most errors, "
        classes, kept = [classes[label] for label in kept], np.append(kept, len(classes))
        counts, shares = counts[np.ix_(kept, kept)], shares[np.ix_(kept, kept)]
    size = len(classes) + 1
    cell = max(0.36, min(0.95, 14 / size))  # inches
    names_fit = cell > 0.8 and max(map(len, classes), default=0) < 10
    figure = Figure(figsize=(max(5.5, size * cell + 2.8), size * cell + 2.6), layout="constrained")
    axes = figure.subplots()
    in_last_row = np.broadcast_to(np.arange(size)[:, None] == size - 1, shares.shape)
    axes.imshow(np.ma.masked_array(shares, in_last_row), cmap="Blues", vmin=0, vmax=1)
    axes.imshow(np.ma.masked_array(shares, ~in_last_row), cmap="Oranges", vmin=0, vmax=1)
    for row, column in np.argwhere(counts):
        count, share = counts[row, column], shares[row, column]
        text = f"{count}" if row == size - 1 or cell < 0.5 else f"{share:.0%}\n({count})"
        axes.text(column, row, text, ha="center", va="center", fontsize=min(11, max(6.5, 14 * cell)), linespacing=1.15,
                  color="white" if share > 0.55 else "0.15")
    axes.set_xticks(range(size), [*classes, "missed"], rotation=0 if names_fit else 60,
                    ha="center" if names_fit else "right", rotation_mode="anchor")
    axes.set_yticks(range(size), [*classes, "background"])
    axes.set_xticks(np.arange(size) - 0.5, minor=True)
    axes.set_yticks(np.arange(size) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.axhline(size - 1.5, color="white", linewidth=5)
    axes.axvline(size - 1.5, color="white", linewidth=5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("detected as")
    axes.set_ylabel("ground truth")
    meaning = "share of the row (count)" if cell >= 0.5 else "colour: share of the row, number: count"
    scores = "every score" if score_threshold is None else f"score ≥ {score_threshold:.2f}"
    axes.set_title(f"Confusion matrix, {part}{scores}, IoU ≥ 0.5\n{meaning}", loc="left", fontsize=11)
    save(figure, path, families)


def plot_training(metrics_csv_path, png_path):
    """Writes the curves of a run from its metrics.csv: losses, learning rate, AP, and each other numeric column.

    The x axis is the column epoch, else the number of the row. Blank cells and columns with text are left out.
    Raises ValueError for a file without a row of numbers.
    """
    from matplotlib.figure import Figure

    with open(metrics_csv_path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: numbers([row[name] for row in rows]) for name in (rows[0] if rows else ()) if name}
    columns = {name: values for name, values in columns.items() if values is not None}
    epochs = columns.pop("epoch", np.arange(1, len(rows) + 1))
    panels = {"losses": {}, "average precision": {}, "learning rate": {}}
    for name, values in columns.items():
        if name not in ("step", "seconds"):
            panels.setdefault(panel_of(name), {})[name] = values
    panels = {title: curves for title, curves in panels.items() if curves}
    if not panels:
        raise ValueError(f"{metrics_csv_path}: {len(rows)} rows and no column of numbers, nothing to plot")
    across = math.ceil(math.sqrt(len(panels)))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(5.2 * across, 3.9 * down), layout="constrained")
    all_axes = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for axes, (title, curves) in zip(all_axes, panels.items(), strict=False):
        for (name, values), colour in zip(curves.items(), line_colours(len(curves)), strict=True):
            known = np.isfinite(values) & np.isfinite(epochs)
            axes.plot(epochs[known], values[known], color=colour, label=name, linewidth=1.8,
                      marker="o" if known.sum() < 40 else None, markersize=3.5)
        plain_axes(axes, title, "epoch", "")
        axes.tick_params(labelbottom=True)
        axes.set_ylim(0, 1.05 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else None)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(curves) > 1:
            axes.legend(frameon=False, fontsize=9)
    for axes in all_axes[len(panels):]:
        axes.set_visible(False)
    save(figure, png_path)


def numbers(cells: list) -> np.ndarray | None:
    """The cells of a column, NaN where blank; None where one is not a number, or all are blank."""
    try:
        values = np.array([float(cell) if cell and cell.strip() else np.nan for cell in cells])
    except ValueError:
        return None
    return values if np.isfinite(values).any() else None


def panel_of(column: str) -> str:
    if "loss" in column or column in ("cls", "reg", "quality", "objectness", "rpn_reg", "mask"):
        return "losses"
    if column == "lr":
        return "learning rate"
    return "average precision" if column.lower().startswith(("map", "ap")) else column
