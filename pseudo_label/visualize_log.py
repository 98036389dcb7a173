"""The loss curves of several runs, one behind the other as the stages followed each other.

    python -m pseudo_label.visualize_log checkpoint/stage-1 checkpoint/stage-2 checkpoint/stage-3 --output stages.png

Each run is a run folder, or its metrics.csv or steps.csv; of a folder the finer one is taken. Every column of a loss has a panel; steps count on from run to run.
"""
import csv
from pathlib import Path

from pseudo_label.labels import refuse_plot
from util.command_line import Parser, one_sentence_errors

NO_LOSS = ("epoch", "step", "seconds", "lr", "images_per_s", "waiting", "pseudo", "zones")


def short_names(folders: list) -> list:
    """The last parts of each folder's path, as many as tell all of them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len({*names}) == len({*parts}):
            break
    return names


def file_of(run) -> Path:
    path = Path(run)
    return next((path / name for name in ("steps.csv", "metrics.csv") if (path / name).is_file()), path / "metrics.csv") if path.is_dir() else path


def read_run(run) -> tuple[Path, list, dict]:
    """(folder, steps, {loss: values}) of a run. Raises ValueError, naming the file, where there is none or it holds no row."""
    from evaluation.plots import numbers
    file = file_of(run)
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
    except OSError:
        raise ValueError(f"{file}: no such file; a run is a folder with metrics.csv, or that file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: cannot be read as CSV: {error}") from None
    columns = {name: numbers([row[name] for row in rows]) for name in (rows[0] if rows else ()) if name}
    losses = {name: values for name, values in columns.items() if values is not None and name not in NO_LOSS and not name.startswith("mAP")}
    if columns.get("step") is None or not losses:
        raise ValueError(f"{file}: has {len(rows)} rows and no column of a loss beside 'step'; it must be a metrics.csv of training")
    return file.parent, columns["step"], losses


def plot_stages(runs: list, path) -> None:
    """runs: of read_run, in the order of the stages."""
    import numpy as np
    from matplotlib.figure import Figure

    from evaluation.plots import as_written, line_colours, plain_axes, save
    names = list(dict.fromkeys(name for _, _, losses in runs for name in losses))
    figure = Figure(figsize=(1.6 + 3.2 * max(2, len(runs)), 2.6 * len(names) + 0.6), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    start = 0
    labels, families = as_written(short_names([folder for folder, _, _ in runs]))
    for run, (_, steps, losses), colour in zip(labels, runs, line_colours(len(runs)), strict=True):
        for axes, name in zip(panels, names, strict=True):
            if name in losses:
                known = np.isfinite(losses[name])
                axes.plot(start + steps[known], losses[name][known], color=colour, linewidth=1.8,
                          marker="o" if known.sum() < 40 else None, markersize=3, label=run)
            if start:
                axes.axvline(start, color="0.7", linewidth=1, linestyle=":")
        start += steps[-1]
    for axes, name in zip(panels, names, strict=True):
        plain_axes(axes, name, "", "")
        axes.set_ylim(0, 1.05 * axes.dataLim.y1 if axes.dataLim.y1 > 0 else None)
    panels[-1].set_xlabel("steps, all stages")
    handles = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper right", ncols=len(handles), frameon=False)
    save(figure, path, families)


def main(argv: list | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, in the order of the stages")
    parser.add_argument("--output", required=True, metavar="PNG", help="where to write")
    flags = parser.parse_args(argv)
    with one_sentence_errors():
        refuse_plot(flags.output, *map(file_of, flags.runs))
        plot_stages([read_run(run) for run in flags.runs], flags.output)
        print(flags.output)


if __name__ == "__main__":
    main()
