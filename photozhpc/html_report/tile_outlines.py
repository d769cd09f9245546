"""The outlines of a store's tiles on the sky, from the WCS in the store."""

import io
import warnings
from collections.abc import Iterable
from typing import Any

import asdf
import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning
from astropy.wcs import WCS
from numpy.typing import NDArray

from photozhpc.errors import MosaicError, StoreError
from photozhpc.files.disk import is_count
from photozhpc.mosaic import grid
from photozhpc.mosaic.asdf_mosaic import check_outside
from photozhpc.store import CutoutStore

MAX_OUTLINES = 300
_ON_A_SIDE = 5


def tile_outlines(store: CutoutStore, tile_ids: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Return points (ra, dec) around each tile, closed, shape (21, 2), degrees.

    The points lie on the tile's edge. Tiles that are missing or lack a WCS or shape are left out.
    """
    outlines = {}
    for tile_id in sorted(tile_ids):
        try:
            attributes = store.tile_attributes(tile_id)
            text, shape_HW = attributes.get("wcs"), attributes.get("shape_HW")
            if not (isinstance(text, dict) and isinstance(shape_HW, list) and len(shape_HW) == 2):
                continue
            if not all(map(is_count, shape_HW)):
                continue
            y_K, x_K = _around(*shape_HW)
            ra_K, dec_K = grid.pixel_to_sky(_wcs_of(text), y_K, x_K)
        except (StoreError, MosaicError):
            continue
        if np.isfinite(ra_K).all() and np.isfinite(dec_K).all():
            outlines[tile_id] = np.column_stack([ra_K, dec_K])
    return outlines


def _wcs_of(text: dict[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            if "fits_header" in text:
                return WCS(fits.Header.fromstring(text["fits_header"]))
            stream = io.BytesIO(text["asdf"].encode())
            check_outside("a WCS of the store", stream)
            stream.seek(0)
            with asdf.open(stream) as file:
                return file["wcs"]
    except Exception as error:  # asdf and astropy raise any type on a damaged text
        raise MosaicError(f"a WCS of the store is damaged ({type(error).__name__})") from error


def _around(height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (y, x) of points around an image, whose sides may be curved on the sky."""
    up = np.linspace(0, 1, _ON_A_SIDE, endpoint=False)
    flat = np.zeros(_ON_A_SIDE)
    x_K = np.concatenate([up, flat + 1, 1 - up, flat, [0.0]])
    y_K = np.concatenate([flat, up, flat + 1, 1 - up, [0.0]])
    return y_K * height - 0.5, x_K * width - 0.5
