"""The figures of an evaluation: one journal column wide, in colours that all can tell apart."""

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from photozhpc.evaluation.evaluate import Evaluation, Group
from photozhpc.evaluation.figure_style import Theme, new_figure
from photozhpc.evaluation.match import INTERVALS_PERCENT
from photozhpc.evaluation.zz import plot_zz
from photozhpc.metrics import point_metrics

_N_PIT_BINS = 20
_BAND = 0.95  # probability that a perfect catalogue lies within the grey bands
_ROWS = {
    "bias": ("bias", 1),
    "nmad": ("NMAD", 1),
    "outlier_fraction": ("outliers [%]", 100),
    "crps": ("CRPS", 1),
}


def figures_of(evaluation: Evaluation) -> dict[str, Callable[[Theme], Figure]]:
    """Return the functions that draw zz, metrics and, where there are intervals, pit and coverage.

    `figure_style.drawn` calls them with the settings of the theme.
    """
    matched = evaluation.matched
    z_ref_N, z_phot_N = matched.z_ref_N, matched.z_phot_N
    metrics = point_metrics(z_ref_N, z_phot_N)
    plots: dict[str, Callable[[Theme], Figure]] = {
        "zz": lambda theme: plot_zz(
            z_ref_N, z_phot_N, metrics, reference=evaluation.z_kind, theme=theme
        )
    }
    if evaluation.groups["magnitude"] or evaluation.groups["redshift"]:
        plots["metrics"] = lambda theme: plot_metrics(evaluation, theme)
    if evaluation.has_intervals:
        plots["pit"] = lambda theme: plot_pit(matched.pit_N, theme)
    if evaluation.has_intervals and evaluation.groups["magnitude"]:
        plots["coverage"] = lambda theme: plot_coverage(evaluation, theme)
    return plots


def plot_metrics(evaluation: Evaluation, theme: Theme) -> Figure:
    """Draw the point statistics, and the CRPS if there are intervals, in bins."""
    names = [name for name in _ROWS if name != "crps" or evaluation.has_intervals]
    kinds = [kind for kind in ("magnitude", "redshift") if evaluation.groups[kind]]
    figure = new_figure(0.5 + 1.15 * len(names))
    axes_RC = figure.subplots(len(names), len(kinds), sharex="col", sharey="row", squeeze=False)
    for row, name in enumerate(names):
        label, scale = _ROWS[name]
        axes_RC[row, 0].set_ylabel(label)
        for axes, kind in zip(axes_RC[row], kinds, strict=True):
            groups = evaluation.groups[kind]
            if name == "crps":
                _draw_bins(axes, groups, "crps_global_gaussian", theme.orange, "s", 1, "Gaussian")
            _draw_bins(axes, groups, name, theme.blue, "o", scale, label="catalogue")
            if name == "bias":
                axes.axhline(0, color=theme.grey, linewidth=0.6, zorder=0)
        if name != "bias":
            axes_RC[row, 0].set_ylim(bottom=0)  # last: it ends the autoscaling
    if "crps" in names:
        axes_RC[-1, 0].legend(handletextpad=0.2, borderaxespad=0.2)
    labels = _bin_labels(evaluation)
    for axes, kind in zip(axes_RC[-1], kinds, strict=True):
        axes.set_xlabel(labels[kind])
    figure.align_ylabels()
    return figure


def plot_coverage(evaluation: Evaluation, theme: Theme) -> Figure:
    """Draw the fraction of the sources in each interval against magnitude."""
    figure = new_figure(2.6)
    axes = figure.add_subplot()
    groups = evaluation.groups["magnitude"]
    colours = (theme.blue, theme.orange, theme.green)
    places = (0.35, 0.5, 0.65)  # beside each other, so that none is hidden
    styles = zip(INTERVALS_PERCENT, colours, "os^", places, strict=True)
    for percent, colour, marker, place in styles:
        axes.axhline(percent, color=colour, linewidth=0.7, linestyle="--", zorder=0)
        name, label = f"coverage{percent}", f"{percent} %"
        _draw_bins(axes, groups, name, colour, marker, 100, label, place)
    axes.set(xlabel=_bin_labels(evaluation)["magnitude"], ylabel="sources in the interval [%]")
    axes.set_ylim(top=102)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], names[::-1], loc="outside upper center", ncols=3, handletextpad=0.2
    )
    return figure


def plot_pit(pit_N: np.ndarray, theme: Theme) -> Figure:
    """Draw the histogram of the PIT, and the deviation of its distribution from uniform.

    In each bin and at each level, the bands contain 95% of perfect catalogues.
    """
    pit_N = np.sort(pit_N[np.isfinite(pit_N)])
    n = len(pit_N)
    figure = new_figure(3.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    from scipy.stats import binom  # slow to import

    tails = np.array([(1 - _BAND) / 2, (1 + _BAND) / 2])
    expected = n / _N_PIT_BINS
    counts, edges = np.histogram(pit_N, bins=_N_PIT_BINS, range=(0, 1))
    low, high = binom.ppf(tails, n, 1 / _N_PIT_BINS) / expected
    top.axhspan(low, high, color=theme.grey, alpha=0.35, linewidth=0)
    top.stairs(counts / expected, edges, baseline=None, color=theme.blue, linewidth=1.2)
    top.set(ylabel="sources / expected", xlim=(0, 1))
    top.set_ylim(bottom=0)
    level = np.linspace(0, 1, 201)
    low_level, high_level = binom.ppf(tails[:, None], n, level) / n - level
    bottom.fill_between(level, low_level, high_level, color=theme.grey, alpha=0.35, linewidth=0)
    observed = np.searchsorted(pit_N, level, side="right") / n
    bottom.plot(level, observed - level, color=theme.blue, linewidth=1.2)
    bottom.axhline(0, color=theme.grey, linewidth=0.6, zorder=0)
    bottom.set(xlabel="PIT, p", ylabel="fraction(PIT ≤ p) − p")
    figure.align_ylabels()
    return figure


def _draw_bins(
    axes: Axes,
    groups: list[Group],
    name: str,
    colour: str,
    marker: str,
    scale: float = 1,
    label: str | None = None,
    place: float = 0.5,
) -> None:
    """Draw a statistic across each bin, with its marker at `place` (0 to 1) in the bin."""
    low_G, high_G = np.array([[group.low, group.high] for group in groups], dtype=np.float64).T
    x_G = low_G + place * (high_G - low_G)
    estimates = [group.statistics[name] for group in groups]
    axes.errorbar(
        x_G,
        [scale * estimate.value for estimate in estimates],
        yerr=[scale * estimate.error for estimate in estimates],
        xerr=[x_G - low_G, high_G - x_G],
        fmt=marker,
        color=colour,
        markersize=3,
        linewidth=0.8,
        label=label,
        clip_on=False,  # a marker at 0 is drawn whole
    )


def _bin_labels(evaluation: Evaluation) -> dict[str, str]:
    return {
        "magnitude": f"{(evaluation.band or '').upper()} [AB mag]",
        "redshift": f"{evaluation.z_kind} redshift",
    }
