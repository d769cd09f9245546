"""PDFs, bands and magnitudes in the columns of a catalogue, for `evaluate` and `report`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS
from photozhpc.errors import CatalogError
from photozhpc.metrics import pit

QUANTILES = sorted(QUANTILE_LEVELS, key=QUANTILE_LEVELS.__getitem__)
LEVEL_Q = np.array([QUANTILE_LEVELS[name] for name in QUANTILES])
_APERTURE_ARCSEC = 0.4
_FLUX = re.compile(r"aper(\d+)_(.+)_flux")
_TOTAL_FLUX = re.compile(r"kron_(.+)_flux")


@dataclass(frozen=True)
class BandColumns:
    """Columns of a band: the aperture nearest to 0.4 arcsec, and the total flux, if any.

    Attributes:
        radius_arcsec: of the aperture; None: there are only total fluxes, and `flux` is one.
    """

    band: str
    radius_arcsec: float | None
    flux: str
    flux_err: str | None
    total: str | None

    @property
    def label(self) -> str:
        return self.band.upper()

    @property
    def magnitude_text(self) -> str:
        """The kind of magnitude, for a caption."""
        if self.radius_arcsec is None or self.total:
            return "Kron"
        return f"aperture of {self.radius_arcsec:g} arcsec radius"

    @property
    def flux_text(self) -> str:
        """The kind of flux, for a caption: "fluxes within 0.4 arcsec"."""
        if self.radius_arcsec is None:
            return "total fluxes"
        return f"fluxes within {self.radius_arcsec:g} arcsec"


def band_columns(names: Sequence[str]) -> list[BandColumns]:
    """Return the bands of a catalogue, in the order of its column names."""
    radii: dict[str, dict[float | None, str]] = {}
    for name in names:
        if match := _FLUX.fullmatch(name):
            radii.setdefault(match[2], {})[int(match[1]) / 10] = name
        elif match := _TOTAL_FLUX.fullmatch(name):
            radii.setdefault(match[1], {})[None] = name
    bands = []
    for band, columns in radii.items():
        apertures = [radius for radius in columns if radius is not None]
        radius = min(apertures, key=lambda r: abs(r - _APERTURE_ARCSEC), default=None)
        flux, total = columns[radius], columns.get(None) if apertures else None
        error = f"{flux}_err" if f"{flux}_err" in names else None
        bands.append(BandColumns(band, radius, flux, error, total))
    return bands


def floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column as float64; null is NaN."""
    column = table.column(name)
    if pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
    return np.asarray(column.to_numpy(), np.float64)


def quantiles(table: pa.Table) -> NDArray[np.float64]:
    """Return quantile_NQ at the levels LEVEL_Q; null is NaN."""
    return np.column_stack([floats(table, name) for name in QUANTILES])


def levels_of(
    z_N: NDArray[np.float64], quantile_NQ: NDArray[np.float64], part: Path
) -> NDArray[np.float64]:
    """Return the probability that each PDF gives to redshifts up to z, shape (N,).

    Raises:
        CatalogError: the quantiles of `part` do not ascend.
    """
    try:
        return pit(z_N, quantile_NQ, LEVEL_Q)
    except ValueError as error:
        raise CatalogError(
            f"{part}: {error}: photoz_low99 <= photoz_low90 <= ... <= photoz_high99 must hold; "
            f"make the catalogue anew"
        ) from error
