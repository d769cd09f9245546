"""The UMAP planes of models' latents: tiled with images, and coloured by properties of the sources.

After the paper's figures 4 and 6 (arXiv 2602.10207).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from astropy.visualization import make_lupton_rgb
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from photozhpc.evaluation.figure_style import COLUMN_WIDTH_INCH, PAPER, new_figure, save_png_and_pdf
from photozhpc.figures.latents import Latents, magnitudes
from photozhpc.figures.latents_smoothness import N_NEIGHBOURS, Smoothness, nmad_and_rms

_HEIGHT_INCH = 9.0
_N_CELLS = 22  # images per side
_N_HEXAGONS = 38
_FEW = 800  # fewer sources than this are drawn as points, more as medians in hexagons
_RANGE = (0.02, 0.98)  # quantiles at the ends of a colour bar
_MARGIN = 0.03
_STRETCH, _SOFTENING = 3.0, 8.0  # of the images, chosen by eye
_BAR: dict[str, Any] = {"aspect": 22, "shrink": 0.92, "pad": 0.03}

Extent = tuple[float, float, float, float]  # x from, x to, y from, y to


@dataclass(frozen=True)
class LatentMap:
    """A model's latents and the quantities that are drawn with them.

    Attributes:
        name: of the model, for titles.
        plane_N2: UMAP coordinates.
        z_ref_N: reference redshifts; NaN where unknown.
        size_N, size_label: a measure of size, and its label.
    """

    name: str
    latents: Latents
    plane_N2: NDArray[np.float32]
    z_ref_N: NDArray[np.float64]
    size_N: NDArray[np.float64]
    size_label: str
    of_latents: Smoothness
    of_plane: Smoothness


@dataclass(frozen=True)
class _Quantity:
    """The quantity that colours a panel, for each model, and the range that the models share."""

    label: str
    cmap: str
    values: list[NDArray[np.float64]]
    low: float
    high: float


def plot_latents(maps: Sequence[LatentMap], path: str | Path) -> Figure:
    """Write a PNG, and a PDF beside it, with one column per model; return the figure.

    On top are images of sources on the UMAP plane, one in each cell of a grid. Below, the plane is
    coloured by magnitude, colour, size, reference redshift and photometric redshift, with colour
    ranges that the models share.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    with matplotlib.rc_context(PAPER.rc):
        figure = new_figure(_HEIGHT_INCH, COLUMN_WIDTH_INCH * len(maps))
        columns = figure.subfigures(1, len(maps), squeeze=False)[0]
        quantities = _quantities(maps)
        for number, (model, column) in enumerate(zip(maps, columns, strict=True)):
            _plot_model(column, model, quantities, number)
    save_png_and_pdf(figure, Path(path))
    return figure


def nearest_to_cells(point_G2: NDArray, extent: Extent, n_cells: int) -> NDArray[np.intp]:
    """Return row_YX: for each cell of a grid, the point in it that is nearest to its centre.

    Args:
        extent: of the grid; no point lies beyond it.
        n_cells: per side.

    Returns:
        (n_cells, n_cells); -1 where no point lies in the cell.
    """
    low_2, high_2 = np.array(extent[::2]), np.array(extent[1::2])
    scaled_G2 = (point_G2 - low_2) / (high_2 - low_2) * n_cells
    cell_G2 = np.clip(scaled_G2.astype(int), 0, n_cells - 1)
    distance_G = np.hypot(*(scaled_G2 - cell_G2 - 0.5).T)
    row_YX = np.full((n_cells, n_cells), -1)
    farthest_first_G = np.argsort(-distance_G)
    x_G, y_G = cell_G2[farthest_first_G].T
    row_YX[y_G, x_G] = farthest_first_G  # of several points, the last assigned stays
    return row_YX


def _quantities(maps: Sequence[LatentMap]) -> list[_Quantity]:
    bands = maps[0].latents.survey.band_names
    mags = [magnitudes(model.latents) for model in maps]
    last_mag = [mag_NC[:, -1] for mag_NC in mags]
    colour = [mag_NC[:, 0] - mag_NC[:, -1] for mag_NC in mags]
    z_ref = [model.z_ref_N for model in maps]
    z_phot = [model.latents.z_phot_N.astype(float) for model in maps]
    size = [model.size_N for model in maps]
    return [
        _Quantity(f"{bands[-1]} magnitude (AB)", "cividis", last_mag, *_range(last_mag)),
        _Quantity(f"{bands[0]} − {bands[-1]} (mag)", "plasma", colour, *_range(colour)),
        _Quantity("reference redshift", "viridis", z_ref, *_range(z_ref)),
        _Quantity("photometric redshift", "viridis", z_phot, *_range(z_ref)),
        _Quantity(maps[0].size_label, "magma", size, *_range(size)),
    ]


def _range(values: list[NDArray]) -> tuple[float, float]:
    low, high = np.nanquantile(np.concatenate(values), _RANGE)
    return float(low), float(high)


def _plot_model(
    column: SubFigure, model: LatentMap, quantities: list[_Quantity], number: int
) -> None:
    grid = column.add_gridspec(4, 2, height_ratios=[2, 1.1, 1.1, 1.1])
    extent = _extent(model.plane_N2)
    top = column.add_subplot(grid[0, :])
    _plot_images(top, model, extent)
    top.set_title(f"{model.name}  (N = {len(model.latents)})", fontweight="bold")
    top.set(xlabel="UMAP 1", ylabel="UMAP 2")
    for place, quantity in enumerate(quantities):
        axes = column.add_subplot(grid[1 + place // 2, place % 2])
        _plot_quantity(axes, model.plane_N2, quantity, number, extent)
    _write_numbers(column.add_subplot(grid[3, 1]), model)


def _extent(plane_N2: NDArray) -> Extent:
    (x_low, y_low), (x_high, y_high) = plane_N2.min(axis=0), plane_N2.max(axis=0)
    dx, dy = _MARGIN * (x_high - x_low), _MARGIN * (y_high - y_low)
    return float(x_low - dx), float(x_high + dx), float(y_low - dy), float(y_high + dy)


def _plot_images(axes: Axes, model: LatentMap, extent: Extent) -> None:
    image_G3HW = np.nan_to_num(model.latents.image_G3HW)
    row_YX = nearest_to_cells(model.plane_N2[model.latents.image_row_G], extent, _N_CELLS)
    side = image_G3HW.shape[-1]
    sheet_3YX = image_G3HW[row_YX].transpose(2, 0, 3, 1, 4).reshape(3, _N_CELLS * side, -1)
    empty_YX = np.repeat(np.repeat(row_YX < 0, side, axis=0), side, axis=1)
    gain_3, stretch = _colour_balance(image_G3HW)
    with np.errstate(invalid="ignore", divide="ignore"):  # astropy divides pixels of exactly 0
        rgb_YX3 = make_lupton_rgb(
            *(gain_3[:, None, None] * sheet_3YX), stretch=stretch, Q=_SOFTENING
        )
    rgb_YX3[empty_YX] = 255
    _dress(axes, extent)
    axes.imshow(rgb_YX3, origin="lower", extent=extent, aspect="auto")


def _colour_balance(image_G3HW: NDArray) -> tuple[NDArray[np.float64], float]:
    """Return a gain for each of the three bands, and the stretch of Lupton et al. (2004)."""
    pixel_3K = image_G3HW.swapaxes(0, 1).reshape(3, -1)
    bright_3 = np.quantile(pixel_3K, 0.95, axis=1)
    # Galaxies are red: remove half of their typical colour, in magnitudes.
    gain_3 = np.sqrt(bright_3[0] / bright_3) if (bright_3 > 0).all() else np.ones(3)
    # Most of an image is sky, so the median |pixel| is noise; linear up to a few times that.
    noise_3 = gain_3 * 1.4826 * np.median(np.abs(pixel_3K), axis=1)
    return gain_3, _STRETCH * max(float(noise_3.mean()), 1e-30)


def _plot_quantity(
    axes: Axes, plane_N2: NDArray, quantity: _Quantity, number: int, extent: Extent
) -> None:
    value_N = quantity.values[number]
    finite_N = np.isfinite(value_N)
    x_N, y_N = plane_N2[finite_N].T
    norm = Normalize(quantity.low, quantity.high)
    _dress(axes, extent)
    if not finite_N.all():
        axes.plot(*plane_N2[~finite_N].T, ".", markersize=1, color="0.8", zorder=0)
    drawn: ScalarMappable
    if len(x_N) < _FEW:
        drawn = axes.scatter(
            x_N, y_N, c=value_N[finite_N], s=6, linewidth=0, cmap=quantity.cmap, norm=norm
        )
    else:
        drawn = axes.hexbin(
            x_N,
            y_N,
            C=value_N[finite_N],
            reduce_C_function=np.median,
            gridsize=_N_HEXAGONS,
            extent=extent,
            linewidths=0.1,
            cmap=quantity.cmap,
            norm=norm,
        )
    bar = axes.figure.colorbar(drawn, ax=axes, location="bottom", extend="both", **_BAR)
    bar.set_label(quantity.label, labelpad=1)


def _dress(axes: Axes, extent: Extent) -> None:
    axes.set(xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[], box_aspect=1)


def _write_numbers(axes: Axes, model: LatentMap) -> None:
    """Write the smoothness: errors of redshifts from neighbours, and the model's own."""
    axes.set_axis_off()
    axes.set_box_aspect(1)
    own_nmad, own_rms = nmad_and_rms(model.z_ref_N, model.latents.z_phot_N)
    near, plane = model.of_latents, model.of_plane
    lines = [
        ("neighbours in", "NMAD", "RMS"),
        (f"  {model.latents.latent_ND.shape[1]} latents", f"{near.nmad:.3f}", f"{near.rms:.3f}"),
        ("  UMAP plane", f"{plane.nmad:.3f}", f"{plane.rms:.3f}"),
        ("  shuffled", f"{near.nmad_shuffled:.3f}", f"{near.rms_shuffled:.3f}"),
        ("the model", f"{own_nmad:.3f}", f"{own_rms:.3f}"),
    ]
    axes.text(0, 1.0, "redshift error dz by", va="top", fontweight="bold")
    for number, cells in enumerate(lines):
        y = 0.84 - 0.14 * number
        for x, cell, side in zip((0, 0.80, 1.06), cells, ("left", "right", "right"), strict=True):
            axes.text(x, y, cell, va="top", ha=side)
    axes.text(0, 0.1, f"{N_NEIGHBOURS} neighbours, N = {near.n}", va="top")
