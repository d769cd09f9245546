"""The figures of the page: n(z), photometry, throughput; one or two columns wide, in any Theme.

`figure_style.drawn` calls these functions, with the settings of the theme.
"""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray

from photozhpc.catalog.throughput import Throughput
from photozhpc.evaluation.catalog_columns import floats
from photozhpc.evaluation.figure_style import WIDE_INCH, Theme, new_figure
from photozhpc.html_report.catalog_scan import MAG_WIDTH, N_SAMPLE, CatalogScan, Density, rebin

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_FEW_PER_BIN = 15
_FEW_POINTS = 300
_SHOWN_SHARE = 0.9995  # of the redshifts: an outlier must not squeeze the others
_SHOWN_STACK = 0.995  # of the PDFs, whose tails are long
COUNT_BINS = 5  # bins of 0.1 mag per bin of the number counts


def redshift_bins(
    scan: CatalogScan, z_ref_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """Return the edges of the plotted bins of n(z), and how many of the scan's bins each has."""
    z_ref_Z = np.histogram(z_ref_N, scan.z_edges)[0]
    top = 1
    for counts_Z, shown in (
        (scan.z_Z, _SHOWN_SHARE),
        (z_ref_Z, _SHOWN_SHARE),
        (scan.stack_Z, _SHOWN_STACK),
    ):
        total = float(counts_Z.sum())
        if total:
            top = max(top, int(np.searchsorted(np.cumsum(counts_Z), shown * total)) + 1)
    merge = 2 if scan.n_photoz / max(int((scan.z_Z > 0).sum()), 1) < _FEW_PER_BIN else 1
    top += -top % merge
    return scan.z_edges[: top + 1 : merge], merge


def plot_nz(scan: CatalogScan, z_ref_N: NDArray[np.float64], z_kind: str, theme: Theme) -> Figure:
    """Draw the normalised n(z): point estimates, stacked PDFs with their 1-sigma band, truth."""
    edges, merge = redshift_bins(scan, z_ref_N)
    width = edges[1] - edges[0]
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    counts = rebin(scan.z_Z, merge)[: len(edges) - 1] / (scan.n_photoz * width)
    axes.stairs(counts, edges, color=theme.grey, fill=True, alpha=0.35, linewidth=0)
    axes.stairs(counts, edges, color=theme.grey, label=f"point estimates ({scan.n_photoz:,})")
    if scan.n_stacked:
        mean, sigma = (values / (scan.n_stacked * width) for values in stacked_nz(scan, merge))
        mean, sigma = mean[: len(counts)], sigma[: len(counts)]
        axes.stairs(
            mean + sigma, edges, baseline=mean - sigma, fill=True, color=theme.blue, alpha=0.35
        )
        axes.stairs(
            mean,
            edges,
            baseline=None,
            color=theme.blue,
            linewidth=1.3,
            label=f"stacked PDFs ± 1σ ({scan.n_stacked:,})",
        )
    if len(z_ref_N):
        shape = np.histogram(z_ref_N, edges)[0] / (len(z_ref_N) * width)
        axes.stairs(
            shape,
            edges,
            baseline=None,
            color=theme.orange,
            linestyle="--",
            linewidth=1.2,
            label=f"{z_kind} redshifts ({len(z_ref_N):,})",
        )
    axes.set(xlim=(0, edges[-1]), xlabel="redshift z", ylabel="(1/N) dN/dz")
    axes.set_ylim(bottom=0, top=1.3 * axes.get_ylim()[1])  # room for the legend
    axes.legend(loc="upper right", borderaxespad=0.3)
    return figure


def stacked_nz(
    scan: CatalogScan, merge: int = 1
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the stack, `merge` of the scan's bins in each, and its standard deviation.

    The latter is the scatter if each redshift were drawn independently from its own PDF:
    sqrt(sum p (1 - p)), scaled from the stacked sources to all that have a PDF. The p of merged
    bins are treated as independent, which slightly overestimates it.
    """
    mean, variance = rebin(scan.stack_Z, merge), rebin(scan.stack_var_Z, merge)
    return mean, np.sqrt(variance * scan.n_stacked / max(scan.n_intervals, 1))


def plot_counts(scan: CatalogScan, area_arcmin2: float | None, theme: Theme) -> Figure:
    """Draw the number counts of each band, per magnitude and arcmin^2 if the area is known."""
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    scale = 1 / (COUNT_BINS * MAG_WIDTH * (area_arcmin2 or 1))
    filled_counts: list[int] = []
    for at, band in enumerate(scan.bands):
        counts = rebin(band.mag_M, COUNT_BINS)
        edges = band.mag_edges[::COUNT_BINS][: len(counts) + 1]
        middle, filled = (edges[1:] + edges[:-1]) / 2, counts > 0
        filled_counts += counts[filled].tolist()
        colour = theme.data_colours[at % len(theme.data_colours)]
        axes.errorbar(
            middle[filled],
            scale * counts[filled],
            yerr=scale * np.sqrt(counts[filled]) * np.array([[0.999], [1]]),
            color=colour,
            marker=_MARKERS[at % len(_MARKERS)],
            markersize=3,
            linestyle=_LINES[at % len(_LINES)],
            linewidth=0.9,
            elinewidth=0.6,
            label=band.columns.label,
        )
        if np.isfinite(band.depth_mag):
            axes.axvline(band.depth_mag, 0, 0.05, color=colour, linewidth=1.4)
    axes.set_yscale("log")
    # Two decades or more: a shorter axis has hardly a tick with a number.
    lowest = 0.5 * scale * min(filled_counts, default=1)
    axes.set_ylim(bottom=min(lowest, axes.get_ylim()[1] / 100))
    unit = "mag$^{-1}$ arcmin$^{-2}$" if area_arcmin2 else "mag$^{-1}$"
    axes.set(xlabel="AB magnitude", ylabel=f"sources [{unit}]")
    figure.legend(loc="outside upper center", ncols=min(len(scan.bands), 4), columnspacing=1)
    return figure


def plot_colour(scan: CatalogScan, density: Density, kind: str, theme: Theme) -> Figure:
    """Draw the colour of the first and the last band against magnitude or redshift.

    Args:
        kind: "mag" or "photoz".
    """
    first, last = scan.bands[0].columns.label, scan.bands[-1].columns.label
    figure = new_figure(2.9)
    axes = figure.add_subplot()
    if scan.n_rows <= N_SAMPLE and scan.sample is not None:
        colour_N, mag_N = scan.colours(scan.sample)
        x_N = mag_N if kind == "mag" else floats(scan.sample, kind)
        (points,) = axes.plot(x_N, colour_N, ".", color=theme.blue, rasterized=True)
        size = 3.2 if len(colour_N) > _FEW_POINTS else 5
        points.set(markersize=size, alpha=0.6, markeredgewidth=0)
    else:
        image = _draw_density(axes, density, theme)
        figure.colorbar(image, ax=axes, label="sources per bin", format="%g")
    axes.set_ylabel(f"{first} − {last} [AB mag]")
    axes.set_xlabel(f"{last} [AB mag]" if kind == "mag" else "photometric redshift")
    if kind != "mag":
        axes.set_xlim(left=0)
    return figure


def _draw_density(axes: Axes, density: Density, theme: Theme) -> matplotlib.cm.ScalarMappable:
    """Draw log counts, cropped to where nearly all of them are."""
    counts_XY = density.counts_XY
    edges = []
    slices = []
    for axis, bounds in ((1, density.x_edges), (0, density.y_edges)):
        share = np.cumsum(counts_XY.sum(axis=axis)) / max(counts_XY.sum(), 1)
        low = int(np.searchsorted(share, 5e-4))
        high = min(int(np.searchsorted(share, 1 - 5e-4)) + 1, len(bounds) - 1)
        slices.append(slice(low, high))
        edges.append(bounds[low : high + 1])
    shown = counts_XY[tuple(slices)].T.astype(float)
    return axes.pcolormesh(
        *edges,
        np.where(shown > 0, shown, np.nan),
        norm=LogNorm(1, max(float(shown.max(initial=0)), 2.0)),
        cmap=theme.density,
        rasterized=True,
    )


def plot_throughput(rate: Throughput, theme: Theme) -> Figure:
    """Draw sources per second, and the share of sources done, against the time at work."""
    unit, seconds = _time_unit(rate.edges[-1])
    figure = new_figure(2.7, WIDE_INCH)
    axes = figure.add_subplot()
    edges = rate.edges / seconds
    axes.stairs(rate.sources_per_s, edges, fill=True, color=theme.blue, alpha=0.3, linewidth=0)
    axes.stairs(rate.sources_per_s, edges, color=theme.blue, linewidth=1, label="sources/s")
    axes.set(xlim=(0, edges[-1]), xlabel=f"time at work [{unit}]", ylabel="sources/s")
    axes.set_ylim(bottom=0, top=1.15 * max(float(rate.sources_per_s.max()), 1e-9))
    share = axes.twinx()
    share.plot(edges, 100 * rate.done_share, color=theme.orange, linestyle="--", label="done")
    share.set(ylabel="sources done [%]", ylim=(0, 103))
    marks = _event_marks(axes, rate, seconds, theme)
    handles = [*axes.get_legend_handles_labels()[0], *share.get_legend_handles_labels()[0]]
    figure.legend(
        handles=[*handles, *marks], loc="outside upper center", ncols=5, handletextpad=0.4
    )
    return figure


def _event_marks(axes: Axes, rate: Throughput, seconds: float, theme: Theme) -> Sequence:
    """Draw events at the top of the axes, one marker per kind; return them for the legend."""
    markers = {
        "begun again": ("|", theme.ink),
        "stopped": ("s", theme.purple),
        "worker lost": ("v", theme.orange),
        "set aside": ("X", theme.purple),
    }
    marks = []
    for kind, (marker, colour) in markers.items():
        times = [at / seconds for at, event in rate.marks if event == kind]
        if times:
            marks += axes.plot(
                times,
                np.full(len(times), 0.95),
                linestyle="none",
                marker=marker,
                markersize=5,
                color=colour,
                label=kind,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
    return marks


def _time_unit(seconds: float) -> tuple[str, float]:
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 3 * length:
            return unit, length
    return "s", 1.0
