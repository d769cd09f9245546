"""Figures of single sources, for notebooks: cutouts and p(z)."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from photozhpc.catalog import read_catalog, read_pdf
from photozhpc.errors import CatalogError, ConfigError
from photozhpc.evaluation.figure_style import WIDE_INCH, Theme, drawn, figure_file, new_figure
from photozhpc.figures.composites import channels, composites, read_sources_of
from photozhpc.files.objects import PathLike, location
from photozhpc.store import CutoutStore

MAX_SOURCES = 48
_COLUMNS = 6
_POINTS = 200  # of a curve: each is the mean of the density around it


class Picture:
    """A figure that a notebook shows.

    Attributes:
        figure: Matplotlib's, to be changed or saved.
    """

    def __init__(self, figure: Figure) -> None:
        self.figure = figure

    def _repr_png_(self) -> bytes:
        return figure_file(self.figure, "png")

    def save(self, path: str | Path) -> None:
        """Write a file; its suffix says in which format."""
        self.figure.savefig(path)


def plot_pdf(
    catalog: str | os.PathLike[str], source_id: int | Sequence[int], z_max: float | None = None
) -> Picture:
    """Draw p(z) of one or more sources, with photoz and the 68% interval.

        photozhpc.plot_pdf("out/roman-sim", 8705950384128)

    Args:
        catalog: the --out folder of `photozhpc infer --pdf`.
        z_max: end of the axis; default: that of p(z).

    Raises:
        CatalogError: the catalogue has no p(z), or not these sources.
        ConfigError: there are more than MAX_SOURCES.
    """
    ids = _ids(source_id)
    curves: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for part in read_pdf(os.fspath(catalog)):
        rows = np.flatnonzero(np.isin(part.source_id_N, ids))
        if len(rows):
            z_P = np.linspace(0, part.z_max, _POINTS)
            density_NP = part.take(rows).density(z_P)
            for i, density_P in zip(part.source_id_N[rows], density_NP, strict=True):
                curves[int(i)] = z_P, density_P
        if len(curves) == len(ids):
            break
    missing = [i for i in ids if i not in curves]
    if missing:
        raise CatalogError(f"{os.fspath(catalog)}: has no p(z) of source {missing[0]}")
    estimates = _estimates(catalog, ids)

    def draw(theme: Theme) -> Figure:
        figure, axes = _grid(len(ids), 1.5)
        for ax, i in zip(axes, ids, strict=True):
            z_P, density_P = curves[i]
            ax.plot(z_P, density_P, color=theme.blue)
            row = estimates[i]
            if row["photoz"] is not None:
                ax.axvline(row["photoz"], color=theme.orange)
                ax.axvspan(row["photoz_low68"], row["photoz_high68"], color=theme.grey, alpha=0.25)
            # What lies at the ends of the axis, or beyond, is one tall point there.
            top = 1.05 * density_P[1:-1].max(initial=0.0) or None
            ax.set(xlim=(0, z_max or z_P[-1]), ylim=(0, top), xlabel="z", title=str(i))
            ax.set_yticks([])
        axes[0].set_ylabel("p(z)")
        return figure

    return Picture(drawn(draw))


def plot_cutouts(
    store: PathLike | CutoutStore,
    source_id: int | Sequence[int],
    catalog: str | os.PathLike[str] | None = None,
) -> Picture:
    """Draw colour composites of sources, all with the same scale.

        photozhpc.plot_cutouts("out/roman-sim/store", [8705950384128, 8705950384129])

    Args:
        catalog: whose redshifts are written beside the images.

    Raises:
        StoreError: the store has none of these sources.
        ConfigError: there are more than MAX_SOURCES.
    """
    ids = _ids(source_id)
    opened = store if isinstance(store, CutoutStore) else CutoutStore.open(location(store))
    images = composites(read_sources_of(opened, ids))
    estimates = {} if catalog is None else _estimates(catalog, ids)
    colours, _ = channels(opened.survey.band_names)

    def draw(theme: Theme) -> Figure:
        figure, axes = _grid(len(ids), 1.35)
        for ax, i in zip(axes, ids, strict=True):
            ax.axis("off")
            if i in images:
                ax.imshow(images[i])
            z = estimates.get(i, {}).get("photoz")
            ax.set_title(str(i) if z is None else f"{i}\nz = {z:.2f}", fontsize=6)
        figure.suptitle(colours, fontsize=7)
        return figure

    return Picture(drawn(draw))


def _ids(source_id: int | Sequence[int]) -> list[int]:
    given = np.atleast_1d(np.asarray(source_id)).tolist()
    if not 0 < len(given) <= MAX_SOURCES:
        raise ConfigError(f"1 to {MAX_SOURCES} sources fit into a figure, not {len(given)}")
    return list(dict.fromkeys(int(i) for i in given))


def _estimates(catalog: str | os.PathLike[str], ids: list[int]) -> dict[int, dict[str, Any]]:
    columns = ["source_id", "photoz", "photoz_low68", "photoz_high68"]
    table = read_catalog(os.fspath(catalog), columns)
    rows = table.filter(pc.is_in(table["source_id"], pa.array(ids, pa.int64()))).to_pylist()
    estimates = {row["source_id"]: row for row in rows}
    missing = [i for i in ids if i not in estimates]
    if missing:
        raise CatalogError(f"{os.fspath(catalog)}: has no source {missing[0]}")
    return estimates


def _grid(n: int, height_inch: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with n axes, row by row."""
    n_columns = min(n, _COLUMNS)
    n_rows = -(-n // n_columns)
    figure = new_figure(n_rows * height_inch + 0.2, WIDE_INCH * n_columns / _COLUMNS)
    axes = figure.subplots(n_rows, n_columns, squeeze=False).ravel().tolist()
    for ax in axes[n:]:
        ax.remove()
    return figure, axes[:n]
