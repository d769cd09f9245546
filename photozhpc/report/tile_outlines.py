"""The outlines of a store's tiles on the sky, from the WCS that it keeps."""

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
from photozhpc.store import CutoutStore, ShardKey

MAX_OUTLINES = 300
_ON_A_SIDE = 5


def tile_outlines(store: CutoutStore, tile_ids: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Return points (ra, dec) around each tile, closed, shape (21, 2), degrees.

    It is the tile's own edge; in a store made before November 2026, which knows no shape of a tile
    whose WCS does not tell it (FITS), the box around its sources. Tiles without a WCS, or that are
    gone, are left out.
    """
    outlines = {}
    n_sources = store.tiles()
    for tile_id in sorted(tile_ids):
        try:
            attributes = store.tile_attributes(tile_id)
            text = attributes.get("wcs")
            if not isinstance(text, dict):
                continue
            wcs = _wcs_of(text)
            box = _edge(wcs, attributes.get("shape_HW"))
            if box is None:
                box = _box_of_sources(store, tile_id, n_sources.get(tile_id, 0))
            if box is None:
                continue
            y_K, x_K = _around(box)
            ra_K, dec_K = grid.pixel_to_sky(wcs, y_K, x_K)
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
    except Exception as error:  # asdf and astropy raise anything on a damaged text
        raise MosaicError(f"a WCS of the store is damaged ({type(error).__name__})") from error


def _edge(wcs: Any, shape_HW: Any) -> tuple[float, float, float, float] | None:
    """Return (x0, x1, y0, y1) of a tile of known shape, or of a gwcs that knows its image's."""
    if isinstance(shape_HW, list) and len(shape_HW) == 2 and all(map(is_count, shape_HW)):
        return -0.5, shape_HW[1] - 0.5, -0.5, shape_HW[0] - 0.5
    bounds = getattr(wcs, "bounding_box", None)
    if bounds is None:
        return None
    (x0, x1), (y0, y1) = bounds.bounding_box(order="F")
    return float(x0), float(x1), float(y0), float(y1)


def _box_of_sources(
    store: CutoutStore, tile_id: str, n_sources: int
) -> tuple[float, float, float, float] | None:
    """Return (x0, x1, y0, y1) around the sources of a tile."""
    if not n_sources:
        return None
    lows, highs = [], []
    for index in range(-(-n_sources // store.shard_len)):
        measured = store.read_measurements(ShardKey(tile_id, index))
        lows.append([np.nanmin(measured.x_N), np.nanmin(measured.y_N)])
        highs.append([np.nanmax(measured.x_N), np.nanmax(measured.y_N)])
    (x0, y0), (x1, y1) = np.min(lows, axis=0), np.max(highs, axis=0)
    return float(x0), float(x1), float(y0), float(y1)


def _around(
    box: tuple[float, float, float, float],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (y, x) of points around a box; its sides may be curved on the sky."""
    x0, x1, y0, y1 = box
    up = np.linspace(0, 1, _ON_A_SIDE, endpoint=False)
    flat = np.zeros(_ON_A_SIDE)
    x_K = np.concatenate([up, flat + 1, 1 - up, flat, [0.0]])
    y_K = np.concatenate([flat, up, flat + 1, 1 - up, [0.0]])
    return y0 + y_K * (y1 - y0), x0 + x_K * (x1 - x0)
