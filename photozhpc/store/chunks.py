"""Reads rows of Zarr v3 arrays without the Zarr package, whose calls cost more than the reading.

It supports only the encoding that writer.py chooses: chunks of whole rows, encoded as bytes, Blosc
and CRC32C, alone in a file or as the inner chunks of a shard (Zarr v3 core specification and ZEP
2). Zarr writes the arrays, and the tests compare these reads with Zarr's.
"""

import hashlib
import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import DTypeLike, NDArray

from photozhpc.files.disk import parse_json
from photozhpc.files.objects import AnyPath, version_of
from photozhpc.store.manifest import FileNote
from photozhpc.store.shard_file import ShardFile, open_shard

_ENCODING = ["bytes", "blosc", "crc32c"]
_CRC_BYTES = 4
_ENTRY_BYTES = 16  # per chunk in the index of a shard: offset and length, uint64 each

# Offset and length of a chunk, and its CRC32C in the manifest, where that is needed.
_Place = tuple[int, int, bytes | None]


def read_layout(folder: AnyPath, dtype: DTypeLike) -> "ArrayLayout":
    """Return the layout in an array's zarr.json, cached until that changes (if remote, for good).

    Raises:
        OSError, ValueError, KeyError, TypeError, IndexError: it is missing, damaged, or belongs to
            an array that this package did not write.
    """
    return _read_layout(folder, np.dtype(dtype), version_of(folder / "zarr.json"))


@dataclass(frozen=True)
class ArrayLayout:
    """How the rows of an array are stored.

    Attributes:
        folder: of the array.
        shape: of the array; rows come first.
        file_len: rows per file.
        chunk_shape: of a unit of encoding: some rows, and of images a strip of lines.
        is_sharded: whether a file is a shard; if not, it is one chunk.
        sha256: of zarr.json.
    """

    folder: AnyPath
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file_len: int
    chunk_shape: tuple[int, ...]
    is_sharded: bool
    sha256: str

    def file_name(self, row: int) -> str:
        """Return the name, in the array's folder, of the file that holds a row."""
        return "/".join(["c", str(row // self.file_len), *["0"] * (len(self.shape) - 1)])

    def read_rows(
        self,
        start: int,
        stop: int,
        out: NDArray[Any],
        note: FileNote,
        centre: slice | None = None,
    ) -> None:
        """Read rows [start, stop), at least one and all in the same file, into `out`.

        Args:
            note: the manifest's entry of the file.
            centre: of images (N, C, S, S), the lines and columns to read; None: all.

        Raises:
            OSError, ValueError, RuntimeError: the file is missing, truncated or altered, or is
                not the one in the manifest.
        """
        file_start = start // self.file_len * self.file_len
        chunk_len = self.chunk_shape[0]
        chunks = range((start - file_start) // chunk_len, -(-(stop - file_start) // chunk_len))
        with open_shard(self.folder / self.file_name(start), note.n_bytes) as file:
            if file.size != note.n_bytes:
                raise ValueError(f"it has {file.size} bytes, the manifest says {note.n_bytes}")
            if note.crc32c is None:
                raise ValueError("the manifest has no checksums of its chunks")
            places = self._places(file, note.crc32c)
            file.expect(*self._span(places, chunks, centre))
            for chunk in chunks:
                low = file_start + chunk * chunk_len
                a, b = max(start, low), min(stop, low + chunk_len)
                rows, target = slice(a - low, b - low), out[a - start : b - start]
                strips = places[chunk * self._n_strips : (chunk + 1) * self._n_strips]
                self._read_strips(file, strips, rows, target, centre)

    def _span(self, places: list[_Place], chunks: range, centre: slice | None) -> tuple[int, int]:
        """Return the byte range of a file that holds the lines of the centre in all `chunks`."""
        strips = range(self._n_strips)
        if centre is not None and len(self.shape) == 4:
            height = self.chunk_shape[2]
            strips = range(centre.start // height, -(-centre.stop // height))
        needed = [places[chunk * self._n_strips + strip] for chunk in chunks for strip in strips]
        return min(at for at, *_ in needed), max(at + length for at, length, _ in needed)

    def _read_strips(
        self,
        file: ShardFile,
        places: list[_Place],
        rows: slice,
        target: NDArray[Any],
        centre: slice | None,
    ) -> None:
        """Read some rows of the chunks that hold all strips of the same rows."""
        if len(places) == 1 and target.shape == self.chunk_shape and target.flags.c_contiguous:
            _decode(_read_checked(file, *places[0]), target)
            return
        strip: NDArray[Any] | None = None
        if len(self.shape) != 4 or centre is None:
            centre = slice(0, self.shape[-1])
        height = self.chunk_shape[2] if len(self.shape) == 4 else 0
        for number, place in enumerate(places):
            top = number * height
            first, last = max(centre.start, top), min(centre.stop, top + height)
            if height and first >= last:
                continue
            encoded = _read_checked(file, *place)
            if strip is None:  # allocated only after a chunk is as large as zarr.json says
                _check_size(encoded, math.prod(self.chunk_shape) * self.dtype.itemsize)
                strip = _scratch(self.chunk_shape, self.dtype)
            _decode(encoded, strip)
            if height:
                target[:, :, first - centre.start : last - centre.start] = strip[
                    rows, :, first - top : last - top, centre
                ]
            else:
                target[...] = strip[rows]

    @property
    def _n_strips(self) -> int:
        return self.shape[2] // self.chunk_shape[2] if len(self.shape) == 4 else 1

    def crc32c(self, row: int) -> bytes:
        """Return the CRC32C at the end of each chunk of a file; zeros for a missing chunk."""
        with open_shard(self.folder / self.file_name(row)) as file:
            return b"".join(
                file.read(at + length - _CRC_BYTES, _CRC_BYTES)
                if at + length <= file.size
                else bytes(_CRC_BYTES)
                for at, length, _ in self._places(file)
            )

    def _places(self, file: ShardFile, crc32c: bytes | None = None) -> list[_Place]:
        """Return where every chunk of a file is.

        Args:
            crc32c: of all chunks, from the manifest.
        """
        n_chunks = self.file_len // self.chunk_shape[0] * self._n_strips if self.is_sharded else 1
        checksums: list[bytes | None] = [None] * n_chunks
        if crc32c is not None:
            checksums = [crc32c[at : at + _CRC_BYTES] for at in range(0, len(crc32c), _CRC_BYTES)]
        if len(checksums) != n_chunks:
            raise ValueError(f"it has {n_chunks} chunks, the manifest {len(checksums)}")
        if not self.is_sharded:
            return [(0, file.size, checksums[0])]
        index_bytes = n_chunks * _ENTRY_BYTES + _CRC_BYTES
        if file.size < index_bytes:
            raise ValueError(f"truncated: {file.size} bytes, the index alone has {index_bytes}")
        index = _read_checked(file, file.size - index_bytes, index_bytes)
        entries = np.frombuffer(index, "<u8").tolist()
        return list(zip(entries[::2], entries[1::2], checksums, strict=True))


_threads = threading.local()


def _scratch(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array to decode into; this thread's next call returns the same one."""
    array: NDArray[Any] | None = getattr(_threads, "array", None)
    if array is None or array.shape != shape or array.dtype != dtype:
        array = _threads.array = np.empty(shape, dtype)
    return array


def _read_checked(
    file: ShardFile, offset: int, length: int, expected: bytes | None = None
) -> bytes:
    """Return a range of a file without the checksum at its end, which must be right.

    Args:
        expected: the checksum in the manifest.
    """
    # Chunks beyond the end of the array do not exist and have an offset of 2^64 - 1.
    if length <= _CRC_BYTES or offset + length > file.size:
        raise ValueError("truncated: a chunk is missing")
    content = file.read(offset, length - _CRC_BYTES)
    checksum = file.read(offset + length - _CRC_BYTES, _CRC_BYTES)
    if len(content) + len(checksum) != length:
        raise ValueError(f"truncated: {len(content) + len(checksum)} of {length} bytes")
    if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
        raise ValueError("the checksum is wrong: the bytes were altered")
    if expected is not None and checksum != expected:
        raise ValueError("a chunk is not the manifest's: the file belongs elsewhere")
    return content


def _decode(encoded: bytes, target: NDArray[Any]) -> None:
    _check_size(encoded, target.nbytes)
    blosc.decompress(encoded, target)


def _check_size(encoded: bytes, expected: int) -> None:
    # Blosc's header has the decoded size at byte 4. It must fill the target to the last byte.
    size = int.from_bytes(encoded[4:8], "little")
    if len(encoded) < 16 or size != expected:
        raise ValueError(f"a chunk has {size} bytes, expected {expected}")


def forget_layouts() -> None:
    """Empty the cache of layouts."""
    _read_layout.cache_clear()


@lru_cache(maxsize=256)
def _read_layout(
    folder: AnyPath, dtype: np.dtype[Any], _version: tuple[int | None, int | str | None]
) -> ArrayLayout:
    text = (folder / "zarr.json").read_bytes()
    metadata = parse_json(text)
    shape, outer = tuple(metadata["shape"]), metadata["chunk_grid"]["configuration"]["chunk_shape"]
    codecs = metadata["codecs"]
    is_sharded = codecs[0]["name"] == "sharding_indexed"
    inner = outer
    if is_sharded:
        sharding = codecs[0]["configuration"]
        inner, codecs = sharding["chunk_shape"], sharding["codecs"]
        if sharding.get("index_location", "end") != "end":
            raise ValueError("the index of a shard is not at its end")
    strip = [*shape[1:]]
    if is_sharded and len(shape) == 4 and type(inner[2]) is int and inner[2] > 0:
        strip[1] = inner[2]
    for expected, stated in (
        (_ENCODING, [codec["name"] for codec in codecs]),
        (dtype.name, metadata["data_type"]),
        ([*shape[1:]], [*outer[1:]]),
        (strip, [*inner[1:]]),
    ):
        if stated != expected:
            raise ValueError(f"zarr.json has {stated}, expected {expected}")
    counts = (*shape, outer[0], *inner)
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in counts):
        raise ValueError(f"zarr.json has the sizes {counts}")
    if (
        min(outer[0], *inner) < 1
        or outer[0] % inner[0]
        or (len(shape) == 4 and shape[2] % inner[2])
    ):
        raise ValueError(f"zarr.json has shards of {outer} and chunks of {inner}")
    digest = hashlib.sha256(text).hexdigest()
    return ArrayLayout(folder, shape, dtype, outer[0], tuple(inner), is_sharded, digest)
