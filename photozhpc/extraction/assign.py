"""Assigns each source to the tile on which it is measured."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from photozhpc.mosaic.footprint import Footprint
from photozhpc.mosaic.grid import unit_vectors
from photozhpc.sources.read import Sources


def assign_tiles(sources: Sources, footprints: Sequence[Footprint]) -> NDArray[np.int64]:
    """Return (N,): index of the tile on which each source lies furthest from an edge; -1: none."""
    tile_N = np.full(len(sources), -1)
    best_N = np.full(len(sources), -np.inf)
    usable_N = np.flatnonzero(np.isfinite(sources.ra_N) & np.isfinite(sources.dec_N))
    if not len(usable_N):
        return tile_N
    for index, near_M, depth_M in depths_on_tiles(
        sources.ra_N[usable_N], sources.dec_N[usable_N], footprints
    ):
        near_M = usable_N[near_M]
        better_M = (depth_M >= 0) & (depth_M > best_N[near_M])
        tile_N[near_M[better_M]] = index
        best_N[near_M[better_M]] = depth_M[better_M]
    return tile_N


def depths_on_tiles(
    ra_N: NDArray, dec_N: NDArray, footprints: Sequence[Footprint]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.float64]]]:
    """Yield each tile's index, the rows near it, and their distance inside its edge, pixels."""
    tree = cKDTree(unit_vectors(ra_N, dec_N))
    for index, footprint in enumerate(footprints):
        height, width = footprint.shape_HW
        y_5 = np.array([(height - 1) / 2, -0.5, -0.5, height - 0.5, height - 0.5])
        x_5 = np.array([(width - 1) / 2, -0.5, width - 0.5, -0.5, width - 0.5])
        corners_53 = unit_vectors(*footprint.pixel_to_sky(y_5, x_5))
        radius = np.linalg.norm(corners_53[1:] - corners_53[0], axis=1).max() * 1.05
        near_M = np.array(tree.query_ball_point(corners_53[0], radius), dtype=np.int64)
        y_M, x_M = footprint.sky_to_pixel(ra_N[near_M], dec_N[near_M])
        edges_4M = [y_M + 0.5, height - 0.5 - y_M, x_M + 0.5, width - 0.5 - x_M]
        yield index, near_M, np.minimum.reduce(edges_4M)
