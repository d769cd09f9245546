"""Writes the shards of one tile of a store, in order."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.sources.read import Sources
from photozhpc.store.schema import COLUMNS, SOURCE_COLUMNS, Measurements

if TYPE_CHECKING:
    import zarr
    from zarr.core.array_spec import ArrayConfigLike

MAX_CHUNK_LEN = 64


def create_arrays(
    group: "zarr.Group", n_sources: int, shard_len: int, axes: dict[str, int]
) -> dict[str, "zarr.Array"]:
    """Create the empty arrays of a tile in its group.

    Args:
        axes: lengths of the axes C (bands), R (aperture radii) and S (pixels).
    """
    from zarr.codecs import BloscCodec, Crc32cCodec

    # Lossless; it compresses because the pixels are rounded (rounding.py). Shuffled by bytes it is
    # 8% larger than by bits, but decodes twice as fast (docs/decisions.md). The checksum turns a
    # flipped bit into an error where decompression alone might not notice it.
    compressors = [BloscCodec(cname="lz4", clevel=9, shuffle="shuffle"), Crc32cCodec()]
    image = tuple(axes[axis] for axis in "CSS")
    chunk_len = next(n for n in range(MAX_CHUNK_LEN, 0, -1) if shard_len % n == 0)
    strip = (axes["C"], _strip_height(axes["S"]), axes["S"])
    # Zarr would otherwise skip a file of fill values only: a missing file must mean damage.
    always_write: ArrayConfigLike = {"write_empty_chunks": True}
    arrays = {
        "cutout": group.create_array(
            "cutout",
            shape=(n_sources, *image),
            chunks=(chunk_len, *strip),
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
    """Takes the shards of one tile in order.

    Attributes:
        attributes: of the tile, in addition to those that were known when it was begun.
    """

    def __init__(self, arrays: dict[str, "zarr.Array"], n_sources: int, shard_len: int) -> None:
        self.attributes: dict[str, Any] = {}
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
            StoreError: the shard has a wrong length.
        """
        n = min(self._shard_len, self._n_sources - self._written)
        if len(sources) != n or len(cutout_NCSS) != n:
            raise StoreError(f"the next shard must have {n} sources, got {len(sources)}")
        self._arrays["cutout"][self._written : self._written + n] = cutout_NCSS
        for name, (_, trailing) in COLUMNS.items():
            values = getattr(sources if name in SOURCE_COLUMNS else measured, f"{name}_N{trailing}")
            if values is None:  # Kron fluxes that were not measured
                values = np.full(measured.flags_NC.shape, np.nan, np.float32)
            self._columns[name].append(values)
        self._written += n

    def finish(self) -> None:
        """Write the columns.

        Raises:
            StoreError: fewer sources were written than were announced.
        """
        if self._written != self._n_sources:
            raise StoreError(f"{self._written} of {self._n_sources} sources were written")
        if self._n_sources:
            for name, parts in self._columns.items():
                self._arrays[name][:] = np.concatenate(parts)


def _strip_height(size: int) -> int:
    """Return how many lines of a cutout are encoded together: a 5th to a 12th if one divides it.

    A network that sees only the middle of the cutouts need not decode the rest.
    """
    return next((h for h in range(size // 5, size // 12, -1) if size % h == 0), size)
