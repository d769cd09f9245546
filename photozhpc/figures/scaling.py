"""Accuracy against the number of redshift labels: the paper's figure 7 (arXiv 2602.10207).

A results file holds one record per training run:

    {"runs": [{"method": "PITA", "n_labels": 2000, "seed": 1,
               "metrics": {"bias": 0.001, "nmad": 0.05, "outlier_fraction": 0.08},
               "history": [{"epoch": 1, "step": 160, "validation_nmad": 0.2}, ...]}, ...]}

`history` is optional: the records of the run's log.jsonl, for the learning curves.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import NDArray

from photozhpc.errors import ConfigError
from photozhpc.evaluation.figure_style import PAPER, WIDE_INCH, new_figure, save_png_and_pdf
from photozhpc.files.disk import write_durably

METRICS = ("bias", "nmad", "outlier_fraction")
_LABELS = ("bias", "NMAD", "outlier fraction (%)")
_FACTORS = np.array([1, 1, 100])  # from METRICS to the values shown
_DIGITS = (4, 4, 2)
_COLOURS = (*PAPER.data_colours[:4], PAPER.ink, "#56B4E9", PAPER.grey)
_MARKERS = "osD^vPX"  # distinguish methods in grey print
_DODGE = 1.07  # factor of n_labels between neighbouring methods


@dataclass(frozen=True)
class _Curve:
    """A method's METRICS, as shown, for the seeds S of each number of labels L.

    Attributes:
        n_labels_L: ascending.
        std_L3: with S - 1 degrees of freedom; NaN for a single seed.
    """

    method: str
    n_labels_L: NDArray[np.int64]
    metrics_LS3: list[NDArray[np.float64]]
    mean_L3: NDArray[np.float64]
    std_L3: NDArray[np.float64]


def report_scaling(results_path: str | Path, out: str | Path) -> str:
    """Write OUT/scaling.png, .pdf and .md, and learning_curves.png and .pdf if runs have a history;
    return the lines to show.

    Raises:
        ConfigError: the results are missing, damaged or incomplete.
        RunError: the disk is full.
    """
    results = read_results(results_path)
    table = scaling_table(results)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plot_scaling(results, out / "scaling.png")
    write_durably(out / "scaling.md", table.encode())
    lines = [table, f"figure: {out / 'scaling.png'}, table: {out / 'scaling.md'}"]
    histories = [record for record in results if record.get("history")]
    if histories:
        plot_learning_curves(histories, out / "learning_curves.png")
        lines.append(f"learning curves: {out / 'learning_curves.png'}")
    return "\n".join(lines)


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Read the runs of a results file.

    Raises:
        ConfigError: missing, not JSON, or without a list "runs".
    """
    try:
        document = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the results cannot be read ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("runs"), list):
        raise ConfigError(f'{path}: the results have no list "runs"; see photozhpc.figures.scaling')
    return document["runs"]


def plot_scaling(results: Sequence[Mapping[str, Any]], path: str | Path) -> Figure:
    """Write a PNG, and a PDF beside it, of the metrics against the number of training labels.

    Means over seeds have standard deviations as error bars; every seed is a faint point. Methods
    are drawn slightly apart in n_labels, so that their error bars do not overlap.

    Args:
        results: the runs of a results file; methods are drawn in their order.

    Raises:
        ConfigError: a record lacks something, or appears twice.
        RunError: the disk is full, or cannot be written.
    """
    curves = _curves(results)
    with matplotlib.rc_context(PAPER.rc):
        figure = new_figure(2.6, WIDE_INCH)
        panels = figure.subplots(1, 3)
        for metric, axes in enumerate(panels):
            for number, curve in enumerate(curves):
                dodge = _DODGE ** (number - (len(curves) - 1) / 2)
                _plot_curve(axes, curve, metric, number, dodge)
            _label_axis(axes, np.unique(np.concatenate([c.n_labels_L for c in curves])))
            axes.set_ylabel(_LABELS[metric])
        panels[0].axhline(0, color="0.6", linewidth=0.6, zorder=0)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
    save_png_and_pdf(figure, Path(path))
    return figure


def scaling_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table of the mean metrics ± their standard deviation over seeds.

    Raises:
        ConfigError: a record lacks something, or appears twice.
    """
    lines = [f"| method | labels | seeds | {' | '.join(_LABELS)} |", "|:--|--:|--:|--:|--:|--:|"]
    for curve in _curves(results):
        rows = zip(curve.n_labels_L, curve.metrics_LS3, curve.mean_L3, curve.std_L3, strict=True)
        for n_labels, metrics_S3, mean_3, std_3 in rows:
            cells = map(_cell, mean_3, std_3, _DIGITS)
            lines.append(
                f"| {curve.method} | {n_labels} | {len(metrics_S3)} | {' | '.join(cells)} |"
            )
    return "\n".join(lines) + "\n"


def plot_learning_curves(histories: Sequence[Mapping[str, Any]], path: str | Path) -> Figure:
    """Write a PNG, and a PDF beside it, of the validation NMAD of each run during training.

    One panel per method, one colour per number of labels, one line per seed; against optimiser
    steps if every record of every history has them, otherwise against epochs.

    Args:
        histories: runs of a results file that have a history.

    Raises:
        ConfigError: a run lacks something.
        RunError: the disk is full, or cannot be written.
    """
    runs = [_history(record) for record in histories]
    if not runs:
        raise ConfigError("no run has a history, which learning curves need; add log.jsonl records")
    key = "step" if all("step" in point for _, _, history in runs for point in history) else "epoch"
    methods = list(dict.fromkeys(method for method, _, _ in runs))
    counts = np.array([n_labels for _, n_labels, _ in runs])
    # Margins, so that a single count has the middle colour.
    norm = LogNorm(counts.min() / 1.2, counts.max() * 1.2)
    with matplotlib.rc_context(PAPER.rc):
        figure = new_figure(2.6, min(WIDE_INCH, 2.0 * len(methods) + 1.2))
        panels = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
        colours = ScalarMappable(norm, "viridis")
        for method, axes in zip(methods, panels, strict=True):
            for _, n_labels, history in (run for run in runs if run[0] == method):
                x, nmad = zip(*((p[key], p["validation_nmad"]) for p in history), strict=True)
                axes.plot(x, nmad, linewidth=0.9, color=colours.to_rgba(np.array(n_labels)))
            axes.set_title(method)
            axes.set_xlabel("optimiser step" if key == "step" else "epoch")
        panels[0].set_ylabel("validation NMAD")
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_locator(NullLocator())
        bar = figure.colorbar(colours, ax=panels, label="training labels", aspect=25, pad=0.02)
        bar.set_ticks(_thinned(np.unique(counts)))
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.ax.set_yticklabels([f"{n}" for n in _thinned(np.unique(counts))])
    save_png_and_pdf(figure, Path(path))
    return figure


def _history(record: Mapping[str, Any]) -> tuple[str, int, list[Mapping[str, Any]]]:
    """Return method, number of labels and history of a run."""
    method, n_labels, _ = _identity(record)
    points = record.get("history") or []
    if not points or not all(
        isinstance(point, Mapping) and "validation_nmad" in point and "epoch" in point
        for point in points
    ):
        raise ConfigError(
            f"run of {method}, {n_labels} labels: the history must be a list of records with "
            f"epoch and validation_nmad (the lines of log.jsonl)"
        )
    return method, n_labels, list(points)


def _curves(results: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    runs: dict[str, dict[int, dict[int, list[float]]]] = {}
    for record in results:
        method, n_labels, seed = _identity(record)
        seeds = runs.setdefault(method, {}).setdefault(n_labels, {})
        if seed in seeds:
            raise ConfigError(
                f"the run of {method}, {n_labels} labels, seed {seed} appears twice; remove one"
            )
        seeds[seed] = _metrics(record)
    if not runs:
        raise ConfigError('the results contain no runs; add some to the list "runs"')
    return [_curve(method, by_count) for method, by_count in runs.items()]


def _curve(method: str, by_count: dict[int, dict[int, list[float]]]) -> _Curve:
    counts = sorted(by_count)
    metrics_LS3 = [_FACTORS * np.array(list(by_count[count].values())) for count in counts]
    std_L3 = [m.std(axis=0, ddof=1) if len(m) > 1 else np.full(3, np.nan) for m in metrics_LS3]
    mean_L3 = [m.mean(axis=0) for m in metrics_LS3]
    return _Curve(method, np.array(counts), metrics_LS3, np.array(mean_L3), np.array(std_L3))


def _identity(record: Mapping[str, Any]) -> tuple[str, int, int]:
    if not isinstance(record, Mapping):
        raise ConfigError(f"a run of the results must be a record, got {str(record)[:80]}")
    for name, kind in (("method", str), ("n_labels", int), ("seed", int)):
        if not isinstance(record.get(name), kind):
            raise ConfigError(
                f"a run of the results needs {name} ({kind.__name__}), "
                f"got {record.get(name)!r} in {str(dict(record))[:120]}"
            )
    if record["n_labels"] < 1:
        raise ConfigError(f"n_labels must be positive, got {record['n_labels']}")
    return record["method"], record["n_labels"], record["seed"]


def _metrics(record: Mapping[str, Any]) -> list[float]:
    metrics = record.get("metrics")
    values = [metrics.get(name) if isinstance(metrics, Mapping) else None for name in METRICS]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise ConfigError(
            f"the run of {record['method']}, {record['n_labels']} labels, seed {record['seed']} "
            f"needs metrics {', '.join(METRICS)}, all finite; got {metrics!r}"
        )
    return [float(value) for value in values]  # type: ignore[arg-type]


def _plot_curve(axes: Axes, curve: _Curve, metric: int, number: int, dodge: float) -> None:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    x_L = curve.n_labels_L * dodge
    for x, metrics_S3 in zip(x_L, curve.metrics_LS3, strict=True):
        y_S = metrics_S3[:, metric]
        axes.plot(np.full(len(y_S), x), y_S, "o", color=colour, alpha=0.4, markersize=2.5, mew=0)
    axes.errorbar(
        x_L,
        curve.mean_L3[:, metric],
        # NaN, the value of a single seed, draws no bar.
        yerr=curve.std_L3[:, metric],
        color=colour,
        marker=marker,
        markersize=3.5,
        linewidth=0.9,
        elinewidth=0.6,
        capsize=1.5,
        label=curve.method,
    )


def _label_axis(axes: Axes, counts: NDArray[np.int64]) -> None:
    axes.set_xscale("log")
    ticks = _thinned(counts)
    axes.set_xticks(ticks, [f"{n}" for n in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("training labels")


def _thinned(counts: NDArray[np.int64]) -> list[int]:
    """Return counts that are a factor of 1.8 or more apart, chosen from the largest down."""
    kept: list[int] = []
    for count in counts[::-1]:
        if not kept or kept[-1] >= 1.8 * count:
            kept.append(int(count))
    return kept[::-1]


def _cell(mean: float, std: float, digits: int) -> str:
    error = f" ± {std:.{digits}f}" if math.isfinite(std) else ""
    return f"{mean:.{digits}f}{error}"
