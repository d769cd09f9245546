"""Maps of the density of a catalogue on the sky."""

from dataclasses import dataclass

import numpy as np
from astropy import units
from astropy.visualization.wcsaxes import CoordinateHelper, WCSAxes
from astropy.visualization.wcsaxes.frame import EllipticalFrame
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from photozhpc.evaluation.figure_style import WIDE_INCH, Theme, new_figure
from photozhpc.html_report.plot import with_minus
from photozhpc.html_report.sky_fields import SkyMap

_N_FINE = 2000  # points along the map, to compute how much of a bin is covered
_MIN_COVERED = 0.25
_MIN_COUNT = 10  # sources per bin, on average: a scatter of a third
_FEW_POINTS = 300
_POLAR_DEG = 80.0
_MARGIN = 0.03  # around a map, as a fraction of its longer side
_LEFT_INCH, _RIGHT_INCH, _BOTTOM_INCH, _TOP_INCH = 0.75, 0.95, 0.45, 0.1
_MIN_TALL_INCH, _MAX_TALL_INCH = 0.8, 4.6


@dataclass(frozen=True)
class Coverage:
    """The area that the tiles of a field cover.

    Attributes:
        outlines: points (x, y) on the map's grid, by tile, closed.
        fraction_YX: covered fraction of each bin; None if the outline of a tile is unknown, or no
            tile lies on the map.
    """

    outlines: dict[str, NDArray[np.float64]]
    fraction_YX: NDArray[np.float64] | None


def coverage_of(sky: SkyMap, outlines: dict[str, NDArray[np.float64]]) -> Coverage:
    """Return how much of each bin the tiles cover, overlaps once.

    Args:
        outlines: points (ra, dec), by tile.
    """
    on_grid = {
        tile_id: sky.wcs.wcs_world2pix(sky_K2, 0)
        for tile_id, sky_K2 in outlines.items()
        if tile_id in sky.tile_ids
    }
    height, width = sky.counts_YX.shape
    if not on_grid or set(on_grid) != set(sky.tile_ids):
        return Coverage(on_grid, None)
    fine = max(4, _N_FINE // max(height, width))
    offset = (np.arange(fine) + 0.5) / fine - 0.5
    y_F, x_F = (np.add.outer(np.arange(n), offset).ravel() for n in (height, width))
    covered_FF = np.zeros((len(y_F), len(x_F)), bool)
    for points_K2 in on_grid.values():
        (x0, y0), (x1, y1) = points_K2.min(axis=0), points_K2.max(axis=0)
        rows, columns = (
            slice(*np.searchsorted(axis, bounds))
            for axis, bounds in ((y_F, (y0, y1)), (x_F, (x0, x1)))
        )
        x_in, y_in = np.meshgrid(x_F[columns], y_F[rows])
        inside = Outline(points_K2).contains_points(np.column_stack([x_in.ravel(), y_in.ravel()]))
        covered_FF[rows, columns] |= inside.reshape(x_in.shape)
    fraction_YX = covered_FF.reshape(height, fine, width, fine).mean(axis=(1, 3))
    return Coverage(on_grid, fraction_YX if fraction_YX.any() else None)


def area_arcmin2(sky: SkyMap, coverage: Coverage) -> float:
    """Return the area of the tiles or, if unknown, of the bins that hold a source."""
    if coverage.fraction_YX is None:
        return sky.occupied_arcmin2
    return float(coverage.fraction_YX.sum() * sky.bin_arcmin2)


def density_map(sky: SkyMap, coverage: Coverage) -> NDArray[np.float64]:
    """Return sources per arcmin^2 of the covered part of each bin; NaN where it is unknown."""
    if coverage.fraction_YX is None:
        density_YX = sky.counts_YX / sky.bin_arcmin2
        return np.where(sky.counts_YX > 0, density_YX, np.nan)
    covered_YX = coverage.fraction_YX >= _MIN_COVERED
    area_YX = np.where(covered_YX, coverage.fraction_YX, 1) * sky.bin_arcmin2
    return np.where(covered_YX, sky.counts_YX / area_YX, np.nan)


def is_dense(sky: SkyMap) -> bool:
    """Whether the bins show more than the scatter of the counts in them."""
    return bool(sky.counts_YX[sky.counts_YX > 0].mean() >= _MIN_COUNT)


def plot_sky(
    sky: SkyMap, coverage: Coverage, points_N2: NDArray[np.float64], theme: Theme
) -> Figure:
    """Draw the density of sources, north up and east to the left, with the tiles' outlines.

    Args:
        points_N2: (ra, dec) of sources to draw as dots; empty: none.
    """
    height, width = sky.counts_YX.shape
    margin = 0 if sky.is_all_sky else _MARGIN * max(height, width)
    wide, tall = WIDE_INCH - _LEFT_INCH - _RIGHT_INCH, _MAX_TALL_INCH
    scale = min(wide / (width + 2 * margin), tall / (height + 2 * margin))
    wide = scale * (width + 2 * margin)
    tall = max(scale * (height + 2 * margin), _MIN_TALL_INCH)
    total = tall + _BOTTOM_INCH + _TOP_INCH
    left = (WIDE_INCH - _LEFT_INCH - _RIGHT_INCH - wide) / 2 + _LEFT_INCH
    figure = new_figure(total, WIDE_INCH, arranged=False)
    frame = {"frame_class": EllipticalFrame} if sky.is_all_sky else {}
    place = [left / WIDE_INCH, _BOTTOM_INCH / total, wide / WIDE_INCH, tall / total]
    axes = WCSAxes(figure, place, wcs=sky.wcs, **frame)
    figure.add_axes(axes)
    density = density_map(sky, coverage)
    shows_density = is_dense(sky) or not len(points_N2)
    image = axes.imshow(
        density if shows_density else np.full_like(density, np.nan),
        origin="lower",
        cmap=theme.density,
        interpolation="nearest",
        vmin=0,
    )
    if len(points_N2):
        x_N, y_N = sky.wcs.wcs_world2pix(points_N2, 0).T
        size = 1.6 if len(points_N2) > _FEW_POINTS else 3
        axes.plot(x_N, y_N, ".", markersize=size, markeredgewidth=0, color=theme.ink)
    for points_K2 in coverage.outlines.values():
        axes.plot(*points_K2.T, color=theme.ink, linewidth=0.8)
    if sky.is_all_sky and np.count_nonzero(sky.counts_YX) < _FEW_POINTS:
        y_K, x_K = np.nonzero(sky.counts_YX)  # single bins would be hard to see
        axes.scatter(
            x_K,
            y_K,
            c=sky.counts_YX[y_K, x_K] / sky.bin_arcmin2,
            s=14,
            cmap=image.cmap,
            norm=image.norm,
            edgecolors=theme.ink,
            linewidths=0.4,
            zorder=2.5,
        )
    axes.set_xlim(-0.5 - margin, width - 0.5 + margin)
    axes.set_ylim(-0.5 - margin, height - 0.5 + margin)
    _label(axes, sky, theme)
    if not shows_density:
        return figure
    bar = figure.add_axes(((left + wide + 0.12) / WIDE_INCH, place[1], 0.13 / WIDE_INCH, place[3]))
    figure.colorbar(image, cax=bar, label="sources per arcmin$^2$")
    return figure


def _label(axes: WCSAxes, sky: SkyMap, theme: Theme) -> None:
    ra, dec = axes.coords
    height_deg, width_deg = np.array(sky.counts_YX.shape) * np.sqrt(sky.bin_arcmin2) / 60
    highest_deg = abs(float(sky.wcs.wcs.crval[1])) + height_deg / 2
    spread_deg = width_deg / np.cos(np.radians(min(highest_deg, 89.9)))
    for axis, span_deg in ((ra, spread_deg), (dec, height_deg)):
        axis.set_ticks(color=theme.ink, size=3, width=0.6)
        axis.set_major_formatter(_form(span_deg))
        axis.set_ticklabel(color=theme.ink, exclude_overlapping=True)
    axes.coords.frame.set_color(theme.ink)
    axes.coords.frame.set_linewidth(0.6)
    if sky.is_all_sky:
        axes.coords.grid(color=theme.grey, linewidth=0.4, alpha=0.7)
        ra.set_ticks(spacing=60 * units.deg, color=theme.ink, size=0)
        dec.set_ticks(spacing=30 * units.deg, color=theme.ink, size=0)
        around = [withStroke(linewidth=2, foreground=theme.paper)]
        ra.set_ticklabel(color=theme.ink, path_effects=around)
        dec.set_ticklabel_visible(False)  # WCSAxes does not label circles that end on the ellipse
        for dec_deg in (-60, -30, 30, 60):
            left_deg = (sky.wcs.wcs.crval[0] + 179.99) % 360
            x, y = sky.wcs.wcs_world2pix(left_deg, dec_deg, 0)
            axes.text(x - 2, y, with_minus(f"{dec_deg}°"), ha="right", va="center")
        ra.set_axislabel("")
        dec.set_axislabel("")
        return
    if highest_deg > _POLAR_DEG:  # meridians converge, so that no side of the figure is an axis
        axes.coords.grid(color=theme.grey, linewidth=0.4, alpha=0.7)
    ra.set_ticklabel_position("b")
    ra.set_axislabel_position("b")
    dec.set_ticklabel_position("l")
    dec.set_axislabel_position("l")
    if highest_deg > 90:  # meridians cross every side, and circles none
        ra.set_ticks(spacing=45 * units.deg, color=theme.ink, size=3, width=0.6)
        ra.set_ticklabel_position("lb")
        ra.set_axislabel("right ascension; circles: declination (ICRS)", minpad=0.6)
        _label_circles(axes, dec, sky, height_deg, theme)
        return
    ra.set_axislabel("right ascension (ICRS)", minpad=0.6)
    dec.set_axislabel("declination (ICRS)", minpad=0.6)


def _label_circles(
    axes: WCSAxes, dec: CoordinateHelper, sky: SkyMap, height_deg: float, theme: Theme
) -> None:
    """Draw circles of declination about a pole, labelled with their values."""
    step = 10.0 ** np.floor(np.log10(height_deg / 2))
    step *= 2 if height_deg / 2 > 4 * step else 1
    dec.set_ticks(spacing=step * units.deg, color=theme.ink, size=0)
    dec.set_ticklabel_visible(False)
    dec.set_axislabel("")
    ra_deg, sign = 22.5, float(np.sign(sky.wcs.wcs.crval[1]))
    for at in range(1, 6):
        dec_deg = sign * (90 - at * step)
        x, y = sky.wcs.wcs_world2pix(ra_deg, dec_deg, 0)
        if -0.5 <= x < sky.counts_YX.shape[1] and -0.5 <= y < sky.counts_YX.shape[0]:
            axes.text(
                x,
                y,
                with_minus(f"{dec_deg:.{max(0, int(np.ceil(-np.log10(step))))}f}°"),
                fontsize=7,
                ha="center",
                va="center",
                path_effects=[withStroke(linewidth=2, foreground=theme.paper)],
            )


def _form(span_deg: float) -> str:
    """Return the format of ticks that are about a quarter of the span apart."""
    n_digits = int(np.clip(np.ceil(-np.log10(span_deg / 3)), 0, 5))
    return "d." + n_digits * "d" if n_digits else "d"
