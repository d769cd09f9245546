"""Writes the shards of one tile of a store, in order."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.sources.read import Sources
from photozhpc.store.schema import COLUMNS, Measurements

if TYPE_CHECKING:
    import zarr
    from zarr.core.array_spec import ArrayConfigLike

MAX_CHUNK_LEN = 64


def create_arrays(
    group: "zarr.Group", n_sources: int, shard_len: int, axes: dict[str, int]
) -> dict[str, "zarr.Array"]:
    """Make the arrays of a tile in its group, empty.

    Args:
        axes: lengths: of C bands, R aperture radii, S pixels a side.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    # Lossless on the bits; what makes it small is that the pixels were rounded (ingest.py).
    # Shuffled by bytes it is 8% larger than by bits, and decoded twice as fast
    # (docs/decisions.md). The checksum turns a flipped bit into an error where decompression
    # alone might not notice it.
    compressors = [BloscCodec(cname="lz4", clevel=9, shuffle="shuffle"), Crc32cCodec()]
    image = tuple(axes[axis] for axis in "CSS")
    chunk_len = next(n for n in range(MAX_CHUNK_LEN, 0, -1) if shard_len % n == 0)
    band = (axes["C"], _band_height(axes["S"]), axes["S"])
    # Else Zarr drops a file that holds only fill values: a missing file must mean damage.
    always_write: ArrayConfigLike = {"write_empty_chunks": True}
    arrays = {
        "cutout": group.create_array(
            "cutout",
            shape=(n_sources, *image),
            chunks=(chunk_len, *band),
            shards=(shard_len, *image),
            dtype="float32",
            fill_value=np.nan,
            compressors=compressors,
            dimension_names=("source", "band", "y", "x"),
            config=always_write,
        )
    }
    for name, (dtype, trailing) in COLUMNS.items():
        shape = tuple(axes[axis] for axis in trailing)
        column_chunk = max(1, min(n_sources, shard_len))
        arrays[name] = group.create_array(
            name,
            shape=(n_sources, *shape),
            chunks=(column_chunk, *shape),
            shards=(column_chunk * max(1, -(-n_sources // column_chunk)), *shape),
            dtype=dtype,
            compressors=compressors,
            config=always_write,
        )
    return arrays


class TileWriter:
    """Takes the shards of one tile in order."""

    def __init__(self, arrays: dict[str, "zarr.Array"], n_sources: int, shard_len: int) -> None:
        self._arrays = arrays
        self._n_sources = n_sources
        self._shard_len = shard_len
        self._written = 0
        self._columns: dict[str, list[NDArray]] = {name: [] for name in COLUMNS}

    def write_shard(
        self, cutout_NCSS: NDArray[np.float32], sources: Sources, measured: Measurements
    ) -> None:
        """Append one shard: shard_len sources, fewer only in the last one of the tile.

        Raises:
            StoreError: the shard has another length than is due.
        """
        due = min(self._shard_len, self._n_sources - self._written)
        if len(sources) != due or len(cutout_NCSS) != due:
            raise StoreError(f"a shard of {due} sources is due, got {len(sources)}")
        self._arrays["cutout"][self._written : self._written + due] = cutout_NCSS
        for name in COLUMNS:
            owner = sources if name in ("source_id", "ra", "dec", "z_spec", "ebv") else measured
            suffix = {"": "_N", "C": "_NC", "CR": "_NCR"}[COLUMNS[name][1]]
            values = getattr(owner, name + suffix)
            if values is None:  # Kron fluxes that were not measured
                values = np.full(measured.flags_NC.shape, np.nan, np.float32)
            self._columns[name].append(values)
        self._written += due

    def finish(self) -> None:
        """Write the columns.

        Raises:
            StoreError: fewer sources were written than were announced.
        """
        if self._written != self._n_sources:
            raise StoreError(f"{self._n_sources} sources were due, {self._written} were written")
        if self._n_sources:
            for name, parts in self._columns.items():
                self._arrays[name][:] = np.concatenate(parts)


def _band_height(size: int) -> int:
    """Return the lines of a cutout that are encoded together: a 5th to a 12th if one divides it.

    A network that sees the middle of the cutouts is spared the decoding of the rest.
    """
    return next((h for h in range(size // 5, size // 12, -1) if size % h == 0), size)
