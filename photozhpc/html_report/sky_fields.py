"""The fields of a catalogue on the sky, found and mapped batch by batch.

A field is a group of tiles with less than half a degree between them. Every projection is of equal
area, so that a density is a count over the area of a bin: Lambert's azimuthal (ZEA) about the
centre of a field, Mollweide's (MOL) for the whole sky.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from astropy.wcs import WCS
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from photozhpc.evaluation.catalog_columns import floats
from photozhpc.extraction.mosaics import OFF_TILE_ID
from photozhpc.html_report.catalog_scan import read_batches
from photozhpc.mosaic.grid import unit_vectors

MAX_FIELDS = 6  # more fields, or wider ones, are shown on one map of the whole sky
_GAP_DEG = 0.5
_MAX_RADIUS_DEG = 60.0
_PER_BIN = 8  # mean number of sources, as far as _BINS allows
_BINS = (12, 120)  # along the longer side
_ALL_SKY_BIN_DEG = 1.0
_MARGIN = 0.015  # with more, the bins at the edges would be mostly empty
_MIN_SIDE_DEG = 10 / 3600


@dataclass
class _Extent:
    """The number of rows of a tile, and their bounding box in the plane about the first row."""

    origin: tuple[float, float]
    n: int = 0
    low: NDArray[np.float64] = field(default_factory=lambda: np.full(2, np.inf))
    high: NDArray[np.float64] = field(default_factory=lambda: np.full(2, -np.inf))

    def add(self, ra_N: NDArray[np.float64], dec_N: NDArray[np.float64]) -> None:
        offset_N2 = _plane(*self.origin).wcs_world2pix(np.column_stack([ra_N, dec_N]), 0)
        offset_N2 = offset_N2[np.isfinite(offset_N2).all(axis=1)]
        self.n += len(ra_N)
        self.low = np.minimum(self.low, offset_N2.min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, offset_N2.max(axis=0, initial=-np.inf))

    def corners(self) -> NDArray[np.float64]:
        """Return (ra, dec) of points along the box, shape (8, 2)."""
        middle = (self.low + self.high) / 2
        (x0, y0), (x1, y1), (xm, ym) = self.low, self.high, middle
        box = [(x0, y0), (xm, y0), (x1, y0), (x1, ym), (x1, y1), (xm, y1), (x0, y1), (x0, ym)]
        return _plane(*self.origin).wcs_pix2world(np.array(box), 0)


@dataclass
class SkyMap:
    """Counts of sources on an equal-area grid.

    Attributes:
        wcs: WCS of the grid.
        counts_YX: sources in each bin.
        bin_arcmin2: area of a bin.
        tile_ids: tiles of the field; empty: the map is of the whole sky.
    """

    wcs: WCS
    counts_YX: NDArray[np.int64]
    bin_arcmin2: float
    tile_ids: frozenset[str] = frozenset()

    @property
    def is_all_sky(self) -> bool:
        return not self.tile_ids

    @property
    def n(self) -> int:
        return int(self.counts_YX.sum())

    @property
    def occupied_arcmin2(self) -> float:
        """Area of the bins that hold a source."""
        return float(np.count_nonzero(self.counts_YX) * self.bin_arcmin2)

    def add(self, ra_N: NDArray[np.float64], dec_N: NDArray[np.float64]) -> None:
        x_N, y_N = self.wcs.wcs_world2pix(ra_N, dec_N, 0)
        height, width = self.counts_YX.shape
        finite_N = np.isfinite(x_N) & np.isfinite(y_N)
        x_N, y_N = (np.floor(v[finite_N] + 0.5).astype(np.int64) for v in (x_N, y_N))
        inside_N = (x_N >= 0) & (x_N < width) & (y_N >= 0) & (y_N < height)
        flat = y_N[inside_N] * width + x_N[inside_N]
        self.counts_YX += np.bincount(flat, minlength=height * width).reshape(height, width)


def map_sky(
    parts: Sequence[Path],
    outlines_of: Callable[[Collection[str]], dict[str, NDArray[np.float64]]] | None = None,
) -> list[SkyMap]:
    """Find the fields of a catalogue and count the sources on a map of each; largest first.

    It reads the positions twice; memory grows with the number of tiles, not of sources.

    Args:
        outlines_of: returns points (ra, dec), shape (21, 2), around those tiles whose outlines are
            known; a map then shows whole tiles, else only the area of their sources.

    Raises:
        CatalogError: a part is damaged.
    """
    has_tiles = "tile_id" in pq.read_schema(parts[0]).names
    extents = _extents(parts, has_tiles)
    maps = _fields(extents, {} if outlines_of is None else outlines_of(list(extents)))
    for _, ra_N, dec_N in _positions(parts, has_tiles):
        for sky in maps:
            sky.add(ra_N, dec_N)
    return sorted(maps, key=lambda sky: -sky.n)


def _positions(
    parts: Sequence[Path], has_tiles: bool
) -> Iterator[tuple[NDArray[np.object_], NDArray[np.float64], NDArray[np.float64]]]:
    for _, table in read_batches(parts, ["ra", "dec", *(["tile_id"] if has_tiles else [])]):
        ra_N, dec_N = floats(table, "ra"), floats(table, "dec")
        placed_N = np.isfinite(ra_N) & (np.abs(dec_N) <= 90)
        if placed_N.any():
            tile_N = np.full(len(ra_N), "", object)
            if has_tiles:
                tile_N = table.column("tile_id").to_numpy()
            yield tile_N[placed_N], ra_N[placed_N], dec_N[placed_N]


def _extents(parts: Sequence[Path], has_tiles: bool) -> dict[str, _Extent]:
    extents: dict[str, _Extent] = {}
    for tile_N, ra_N, dec_N in _positions(parts, has_tiles):
        # Rows are sorted by tile, so the runs of one name are long.
        changes_N = np.ones(len(tile_N), bool)
        changes_N[1:] = tile_N[1:] != tile_N[:-1]
        starts = np.flatnonzero(changes_N)
        for start, stop in zip(starts, [*starts[1:], len(tile_N)], strict=True):
            origin = (float(ra_N[start]), float(dec_N[start]))
            extent = extents.setdefault(str(tile_N[start]), _Extent(origin))
            extent.add(ra_N[start:stop], dec_N[start:stop])
    extents = {name: extent for name, extent in extents.items() if np.isfinite(extent.low).all()}
    if len(extents) > 1:
        extents.pop(OFF_TILE_ID, None)  # its sources lie anywhere
    return extents


def _fields(extents: dict[str, _Extent], outlines: dict[str, NDArray[np.float64]]) -> list[SkyMap]:
    if not extents:
        return []
    corners_T82 = np.array(
        [_around(extent, outlines.get(name)) for name, extent in extents.items()]
    )
    if not np.isfinite(corners_T82).all():
        return [_all_sky()]
    vector_T83 = unit_vectors(*np.moveaxis(corners_T82, -1, 0))
    centre_T3 = _normed(vector_T83.mean(axis=1))
    radius_T = np.degrees(np.arccos(np.clip((vector_T83 @ centre_T3[..., None])[..., 0], -1, 1)))
    radius = float(radius_T.max())
    if radius > _MAX_RADIUS_DEG:
        return [_all_sky(centre_T3)]
    reach = 2 * np.sin(np.radians(min(2 * radius + _GAP_DEG, 180)) / 2)
    pairs = cKDTree(centre_T3).query_pairs(reach, output_type="ndarray")
    linked = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(extents), len(extents)))
    n_fields, label_T = connected_components(linked, directed=False)
    if n_fields > MAX_FIELDS:
        return [_all_sky(centre_T3)]
    names, counts = list(extents), np.array([extent.n for extent in extents.values()])
    maps = []
    for label in range(n_fields):
        members = np.flatnonzero(label_T == label)
        sky = _field_map(vector_T83[members].reshape(-1, 3), int(counts[members].sum()))
        if sky is None:
            return [_all_sky(centre_T3)]
        sky.tile_ids = frozenset(names[at] for at in members)
        maps.append(sky)
    return maps


def _around(extent: _Extent, outline_K2: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return (ra, dec) of 8 points around a tile, or around its sources if they lie elsewhere."""
    corners_82 = extent.corners()
    if outline_K2 is None or not np.isfinite(corners_82).all():
        return corners_82
    edge_83 = unit_vectors(*outline_K2[[0, 2, 5, 7, 10, 12, 15, 17]].T)
    centre_3 = _normed(edge_83.mean(axis=0))
    middle_3 = _normed(unit_vectors(*corners_82.T).mean(axis=0))
    return _degrees(edge_83) if middle_3 @ centre_3 >= (edge_83 @ centre_3).min() else corners_82


def _field_map(vector_P3: NDArray[np.float64], n_sources: int) -> SkyMap | None:
    """Return an empty map around points; None if they spread too far for one map."""
    centre_3 = _normed(vector_P3.mean(axis=0))
    if np.degrees(np.arccos(np.clip((vector_P3 @ centre_3).min(), -1, 1))) > _MAX_RADIUS_DEG:
        return None
    ra, dec = _degrees(centre_3)
    offset_P2 = _plane(ra, dec).wcs_world2pix(_degrees(vector_P3), 0)
    low_2, high_2 = offset_P2.min(axis=0), offset_P2.max(axis=0)
    side_2 = np.maximum((high_2 - low_2) * (1 + 2 * _MARGIN), _MIN_SIDE_DEG)
    middle_2 = (low_2 + high_2) / 2
    longest = side_2.max()
    n_bins = np.sqrt(max(n_sources, 1) / _PER_BIN * longest**2 / side_2.prod())
    step = longest / np.clip(n_bins, *_BINS)
    width, height = (int(n) for n in np.maximum(np.ceil(side_2 / step), 1))
    wcs = _plane(ra, dec)
    wcs.wcs.cdelt = [-step, step]  # right ascension increases to the left
    # The x of _plane increases to the west too: its pixels are degrees along the axes of the map.
    wcs.wcs.crpix = [(width + 1) / 2 - middle_2[0] / step, (height + 1) / 2 - middle_2[1] / step]
    return SkyMap(wcs, np.zeros((height, width), np.int64), float((60 * step) ** 2))


def _all_sky(centre_T3: NDArray[np.float64] | None = None) -> SkyMap:
    """Return an empty map of the whole sky, centred so that its edge does not cut the fields."""
    ra = 180.0
    if centre_T3 is not None:
        ra = float(60 * np.round(_degrees(centre_T3.mean(axis=0))[0] / 60) % 360)
    wcs = _wcs("MOL", ra, 0.0)
    # Mollweide's ellipse is 2 sqrt(2) by sqrt(2) radians (in degrees) from the centre.
    half_2 = np.degrees(np.array([2 * np.sqrt(2), np.sqrt(2)]))
    width, height = (2 * int(np.ceil(half / _ALL_SKY_BIN_DEG)) for half in half_2)
    wcs.wcs.cdelt = [-_ALL_SKY_BIN_DEG, _ALL_SKY_BIN_DEG]
    wcs.wcs.crpix = [(width + 1) / 2, (height + 1) / 2]
    wcs.wcs.set()
    return SkyMap(wcs, np.zeros((height, width), np.int64), (60 * _ALL_SKY_BIN_DEG) ** 2)


def _plane(ra: float, dec: float) -> WCS:
    """Return ZEA about a point, with pixels of a degree; x increases to the west."""
    return _wcs("ZEA", ra, dec)


def _wcs(projection: str, ra: float, dec: float) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{projection}", f"DEC--{projection}"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [1.0, 1.0]
    wcs.wcs.cdelt = [-1.0, 1.0]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.set()
    return wcs


def _degrees(vector_3: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, z = np.moveaxis(vector_3, -1, 0)
    return np.stack(
        [np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arctan2(z, np.hypot(x, y)))], axis=-1
    )


def _normed(vector_3: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector_3 / np.linalg.norm(vector_3, axis=-1, keepdims=True)
