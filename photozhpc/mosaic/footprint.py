"""The footprint of a tile: its grid, read without its pixels."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import ArrayLike

from photozhpc.errors import MosaicError
from photozhpc.files.objects import AnyPath, is_remote, read_heads
from photozhpc.mosaic import grid
from photozhpc.mosaic.asdf_mosaic import asdf_grid
from photozhpc.mosaic.fits_mosaic import fits_grid
from photozhpc.mosaic.grid import FloatN
from photozhpc.mosaic.tile import open_planes
from photozhpc.survey import Survey

_HEADS_AT_A_TIME = 64


@dataclass(frozen=True)
class Footprint:
    """Shape and WCS of a tile."""

    shape_HW: tuple[int, int]
    wcs: Any

    def sky_to_pixel(self, ra_N: ArrayLike, dec_N: ArrayLike) -> tuple[FloatN, FloatN]:
        """Return (y_N, x_N) of positions in degrees, as Tile.sky_to_pixel."""
        return grid.sky_to_pixel(self.wcs, self.shape_HW, ra_N, dec_N)

    def pixel_to_sky(self, y_N: ArrayLike, x_N: ArrayLike) -> tuple[FloatN, FloatN]:
        """Return (ra_N, dec_N) in degrees, as Tile.pixel_to_sky."""
        return grid.pixel_to_sky(self.wcs, y_N, x_N)


def read_footprints(
    tiles: Mapping[str, Mapping[str, AnyPath]], survey: Survey
) -> dict[str, Footprint]:
    """Read the grids of tiles, {tile_id: {band: path}}; remote headers are read concurrently.

    Raises:
        PhotozError: as `read_footprint`.
    """
    footprints: dict[str, Footprint] = {}
    first = {name: next(iter(bands.values())) for name, bands in tiles.items()}
    names = list(tiles)
    for start in range(0, len(names), _HEADS_AT_A_TIME):
        batch = names[start : start + _HEADS_AT_A_TIME]
        heads = read_heads(first[name] for name in batch)
        for name in batch:
            footprints[name] = read_footprint(tiles[name], survey, heads.get(first[name], b""))
    return footprints


def read_footprint(paths: Mapping[str, AnyPath], survey: Survey, head: bytes = b"") -> Footprint:
    """Read the grid of a tile from the first of its mosaics, {band: path}.

    A name that is not a band's ("*") means a file of several bands. Of a remote file only the
    headers are requested, unless it is a gzip file.

    Args:
        head: the first bytes of a remote file, if they have been read.

    Raises:
        MosaicError: the file is missing or damaged, or has no WCS.
    """
    band, path = next(iter(paths.items()))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", AstropyWarning)
        grid_of_tile = _remote_grid(path, survey, band, head)
        if grid_of_tile is None:
            with open_planes(path, survey, survey.find_band(band)) as planes:
                grid_of_tile = planes[0].shape_HW, planes[0].wcs
    shape_HW, wcs = grid_of_tile
    if wcs is None:
        raise MosaicError(
            f"{path}: has no WCS, which sky positions need; give pixel positions, or add a WCS"
        )
    return Footprint(shape_HW, wcs)


def _remote_grid(
    path: AnyPath, survey: Survey, band: str, head: bytes
) -> tuple[tuple[int, int], Any] | None:
    """Return shape and WCS from the headers of a remote file; None: the whole file is needed."""
    if not is_remote(path):
        return None
    try:
        with path.open(head=head) as stream:
            start = stream.read(8)
            stream.seek(0)
            if start.startswith(b"#ASDF"):
                return asdf_grid(path, stream)
            if start.startswith(b"SIMPLE"):
                return fits_grid(path, stream, survey, survey.find_band(band))
    except FileNotFoundError as error:
        raise MosaicError(f"{path}: no such object") from error
    return None
