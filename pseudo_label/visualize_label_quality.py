"""How good detections are, over how much they look like a label: IoU with the full labels against the distance of the nearest neighbour.

    python -m pseudo_label.visualize_label_quality full.json --neighbors found/neighbors.json --output quality.png

A dot is a detection: right, where it overlaps a box of the full file (of any class: a cross is one whose most overlapped box has
another); low, where its feature is near that of a label; bright, where its score is high. neighbors.json is what
query_nearest_neighbors wrote. If nearness told right from wrong, the dots would run from the left top to the right bottom: their
rank correlation stands in the title.
"""
from pathlib import Path

from pseudo_label.labels import add_place, by_image, read_labels, refuse_plot
from util.command_line import Parser, one_sentence_errors


def overlap_and_distance(found: list, full: dict):
    """Of each detection with a neighbour: greatest IoU with a full box [n], distance of the nearest neighbour [n], score [n],
    whether that box is of its class [n]. Every picture counts."""
    import numpy as np

    from pseudo_label.policies import boxes_of
    from util.boxes import box_iou
    boxes_in, rows = by_image(full), []
    for image_id, own in by_image({**full, "annotations": [each for each in found if each["nn_distances"]]}).items():
        truth = boxes_in[image_id]
        iou, best = box_iou(boxes_of(own), boxes_of(truth)).max(1) if truth else (np.zeros(len(own)), None)
        for place, each in enumerate(own):
            same = iou[place] > 0 and truth[int(best[place])]["category_id"] == each["category_id"]
            rows.append((float(iou[place]), each["nn_distances"][0], each["score"], same))
    return np.array(rows, dtype=float).reshape(-1, 4).T


def rank_correlation(one, other) -> float:
    """Spearman's: ties share the mean of their ranks. NaN for less than three values, or where all are one."""
    import numpy as np
    ranks = []
    for values in (one, other):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    return float(np.corrcoef(*ranks)[0, 1]) if len(one) > 2 and np.ptp(one) and np.ptp(other) else float("nan")


def plot_quality(iou, distance, score, same, path) -> None:
    from matplotlib.figure import Figure

    from evaluation.plots import plain_axes, save
    correlation = rank_correlation(iou, distance)
    figure = Figure(figsize=(7.6, 6), layout="constrained")
    axes = figure.subplots()
    for which, marker, name in ((same > 0, "o", "class of the box it overlaps most"), (same == 0, "X", "another class, or no box")):
        dots = axes.scatter(iou[which], distance[which], c=score[which], cmap="viridis", vmin=0, vmax=1, s=22, marker=marker, alpha=0.8,
                            linewidths=0.3, edgecolors="white", label=f"{name} ({which.sum()})")
    figure.colorbar(dots, ax=axes, label="score")
    plain_axes(axes, f"{len(iou)} detections, rank correlation {correlation:.2f}", "IoU with the full labels",
               "distance of the nearest label (1 - cosine)")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(bottom=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    save(figure, path)


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("full", metavar="SOURCE", help="the full labels: COCO json, or a folder in VOC layout")
    add("--neighbors", required=True, metavar="FILE", help="neighbors.json of query_nearest_neighbors")
    add("--output", required=True, metavar="PNG", help="where to write")
    add_place(parser)
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        refuse_plot(flags.output, flags.full, flags.neighbors)
        full = read_labels(flags.full, flags.images, flags.split, flags.skip_bad).contents
        from pseudo_label.generate_pseudo_labels import read_detections
        found = read_detections(flags.neighbors, full)
        distances = [each.get("nn_distances") for each in found]
        if not any(distances) or not all(isinstance(each, list) and all(isinstance(value, (int, float)) for value in each) for each in distances):
            raise ValueError(f"{flags.neighbors}: must hold detections with nn_distances, as query_nearest_neighbors writes them")
        plot_quality(*overlap_and_distance(found, full), Path(flags.output))
        print(flags.output)


if __name__ == "__main__":
    main()
