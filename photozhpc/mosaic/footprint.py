"""Footprint: the grid of a tile, read without its pixels."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import ArrayLike

from photozhpc.errors import MosaicError
from photozhpc.mosaic import grid
from photozhpc.mosaic.grid import FloatN
from photozhpc.mosaic.tile import open_planes
from photozhpc.survey import Survey


@dataclass(frozen=True)
class Footprint:
    """Shape and WCS of a tile."""

    shape_HW: tuple[int, int]
    wcs: Any

    def sky_to_pixel(self, ra_N: ArrayLike, dec_N: ArrayLike) -> tuple[FloatN, FloatN]:
        """Return (y_N, x_N) of degrees, as Tile.sky_to_pixel."""
        return grid.sky_to_pixel(self.wcs, self.shape_HW, ra_N, dec_N)

    def pixel_to_sky(self, y_N: ArrayLike, x_N: ArrayLike) -> tuple[FloatN, FloatN]:
        """Return (ra_N, dec_N) in degrees, as Tile.pixel_to_sky."""
        return grid.pixel_to_sky(self.wcs, y_N, x_N)


def read_footprint(paths: Mapping[str, Path], survey: Survey) -> Footprint:
    """Read the grid of a tile from the first of its mosaics, {band: path}.

    A name that is no band's ("*") stands for a file of several bands.

    Raises:
        MosaicError: the file is missing or damaged, or has no WCS.
    """
    band, path = next(iter(paths.items()))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", AstropyWarning)
        with open_planes(path, survey, survey.find_band(band)) as planes:
            plane = planes[0]
    if plane.wcs is None:
        raise MosaicError(f"{path}: has no WCS, so the sources' sky positions mean nothing on it")
    return Footprint(plane.shape_HW, plane.wcs)
