"""The z-z plot: estimated against reference redshift."""

import matplotlib
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from photozhpc.evaluation.figure_style import PAPER, Theme, new_figure
from photozhpc.metrics import OUTLIER_THRESHOLD, PointMetrics

_FEW = 1000  # fewer sources than this are drawn as points, more as a density
_N_BINS = 80
_AXIS_QUANTILE = 0.998


def plot_zz(
    z_ref: ArrayLike,
    z_phot: ArrayLike,
    metrics: PointMetrics,
    *,
    reference: str = "reference",
    theme: Theme = PAPER,
) -> Figure:
    """Draw z_phot against z_ref, with the 1:1 line and the bounds of an outlier.

    Args:
        z_ref, z_phot: shape (N,); pairs with a NaN are left out.
        metrics: printed in the figure.
        reference: the kind of z_ref, for the axis label.
    """
    ref_N, phot_N = np.asarray(z_ref, np.float64), np.asarray(z_phot, np.float64)
    finite_N = np.isfinite(ref_N) & np.isfinite(phot_N)
    ref_N, phot_N = ref_N[finite_N], phot_N[finite_N]
    top = _axis_top(ref_N, phot_N)
    with matplotlib.rc_context(theme.rc):
        figure = new_figure(2.8)
        axes = figure.add_subplot(aspect="equal")
        # Sources beyond the axes are drawn on their edge: outliers must not vanish.
        x_N, y_N = np.clip(ref_N, 0, top), np.clip(phot_N, 0, top)
        if len(x_N) < _FEW:
            axes.plot(x_N, y_N, ".", markersize=4, color=theme.blue, alpha=0.6, markeredgewidth=0)
        else:
            edges = np.linspace(0, top, _N_BINS + 1)
            image = axes.hist2d(
                x_N, y_N, bins=[edges, edges], norm=LogNorm(), cmap=theme.density, rasterized=True
            )[3]
            figure.colorbar(image, ax=axes, label="sources per bin", shrink=0.8, format="%g")
        line = np.array([0.0, top])
        axes.plot(line, line, color=theme.ink, linewidth=0.8)
        for sign in (-1, 1):
            bound = line + sign * OUTLIER_THRESHOLD * (1 + line)
            axes.plot(line, bound, color=theme.ink, linewidth=0.6, linestyle="--")
        axes.set(xlim=(0, top), ylim=(0, top), xlabel=f"{reference} redshift")
        axes.set_ylabel("photometric redshift")
        axes.text(
            0.03,
            0.97,
            f"N = {metrics.n}\nbias = {metrics.bias:+.4f}\nNMAD = {metrics.nmad:.4f}\n"
            f"outliers = {100 * metrics.outlier_fraction:.1f} %",
            transform=axes.transAxes,
            verticalalignment="top",
            fontsize=7,
            bbox={"facecolor": theme.paper, "alpha": 0.85, "edgecolor": "none", "pad": 1.5},
        )
    return figure


def point_text(bias: float, nmad: float, outlier_fraction: float) -> str:
    """Return the point statistics as part of a sentence."""
    return f"bias {bias:+.4f}, NMAD {nmad:.4f}, outliers {100 * outlier_fraction:.2f} %"


def _axis_top(ref_N: np.ndarray, phot_N: np.ndarray) -> float:
    if not len(ref_N):
        return 1.0
    highest = max(np.quantile(z_N, _AXIS_QUANTILE) for z_N in (ref_N, phot_N))
    return float(np.ceil(10 * max(highest, 0.5)) / 10)
