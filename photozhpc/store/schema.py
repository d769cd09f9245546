"""The layout of a store: its arrays by name, type and shape, and their division into shards.

STORE/zarr.json                     attributes: format, survey, cutout_size, shard_len
STORE/TILE/zarr.json                attributes: tile_id, WCS, missing bands
STORE/TILE/cutout                   float32 (N, C, S, S) nJy, NaN where there is no pixel;
                                    one shard file per shard_len sources, in chunks of some
                                    sources and a strip of lines
STORE/TILE/{source_id,ra,dec,y,x,ebv,z_spec}            (N,)
STORE/TILE/{flux,flux_err}          float32 (N, C, R) nJy;  flags uint16 (N, C)
STORE/TILE/{kron_flux,kron_flux_err}                    float32 (N, C) nJy
                                    these: one file each, in chunks of shard_len sources
STORE/.manifests/TILE.json          size and SHA-256 of every file of the tile, CRC32C of its chunks
STORE/plan.json                     the tiles that an extraction is going to write
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 2


@dataclass(frozen=True, order=True)
class ShardKey:
    """One shard of one tile: the unit of reading and of inference.

    Attributes:
        tile_id: the shard's tile.
        index: its number on that tile, from 0.
    """

    tile_id: str
    index: int

    def __str__(self) -> str:
        return f"{self.tile_id}/{self.index:05d}"


@dataclass(frozen=True)
class Measurements:
    """Measurements of each source of a shard.

    Attributes:
        y_N, x_N: pixel position on the tile, float64.
        flux_NCR, flux_err_NCR: forced aperture fluxes and errors, nJy, float32.
        flags_NC: photozhpc.mosaic.photometry.PhotFlag bits, uint16.
        kron_flux_NC, kron_flux_err_NC: flux and error in the Kron ellipse, nJy, float32; None
            (only when writing): not measured; it is read back as NaN.
    """

    y_N: NDArray[np.float64]
    x_N: NDArray[np.float64]
    flux_NCR: NDArray[np.float32]
    flux_err_NCR: NDArray[np.float32]
    flags_NC: NDArray[np.uint16]
    kron_flux_NC: NDArray[np.float32] | None = None
    kron_flux_err_NC: NDArray[np.float32] | None = None

    def take(self, rows_N: NDArray | slice) -> "Measurements":
        """Return some rows."""
        taken: dict[str, Any] = {k: None if v is None else v[rows_N] for k, v in vars(self).items()}
        return Measurements(**taken)


@dataclass(frozen=True)
class StoreIndex:
    """A summary of a store's manifests.

    Attributes:
        tiles: number of sources by tile_id, sorted.
        shard_len: sources per shard; the last one of a tile may have fewer.
        fingerprint: equal if and only if all content is equal.
        plans: SHA-256 of the plan of each tile's extraction, by tile_id; None: there was no plan.
    """

    tiles: dict[str, int]
    shard_len: int
    fingerprint: str
    plans: dict[str, str | None]

    @property
    def n_sources(self) -> int:
        return sum(self.tiles.values())

    def shard_lengths(self) -> dict[ShardKey, int]:
        """Return the number of sources of every shard, sorted by tile and index."""
        return {
            ShardKey(tile_id, index): min(self.shard_len, n - index * self.shard_len)
            for tile_id, n in self.tiles.items()
            for index in range(-(-n // self.shard_len))
        }


SOURCE_COLUMNS = ("source_id", "ra", "dec", "z_spec", "ebv")  # as in Sources; then Measurements
# array name -> (dtype, trailing axes); N is always first
COLUMNS: dict[str, tuple[str, str]] = {
    "source_id": ("int64", ""),
    "ra": ("float64", ""),
    "dec": ("float64", ""),
    "z_spec": ("float32", ""),
    "ebv": ("float32", ""),
    "y": ("float64", ""),
    "x": ("float64", ""),
    "flux": ("float32", "CR"),
    "flux_err": ("float32", "CR"),
    "flags": ("uint16", "C"),
    "kron_flux": ("float32", "C"),
    "kron_flux_err": ("float32", "C"),
}
