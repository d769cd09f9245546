"""Reads rows of Zarr v3 arrays without the Zarr package, whose calls cost more than the reading.

It takes just the encoding that cutout_store.py writes: chunks of whole rows, encoded as bytes,
Blosc and CRC32C, alone in a file or as the inner chunks of a shard (Zarr v3 core specification
and ZEP 2). Zarr writes the arrays, and in the tests it is what these reads must agree with.
"""

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import DTypeLike, NDArray

_ENCODING = ["bytes", "blosc", "crc32c"]
_CRC_BYTES = 4
_ENTRY_BYTES = 16  # of the index of a shard: offset and length, uint64 each


def read_layout(folder: Path, dtype: DTypeLike) -> "ArrayLayout":
    """Read an array's zarr.json, or remember it if it has not changed.

    Raises:
        OSError, ValueError, KeyError, TypeError, IndexError: it is missing, damaged, or of an
            array that this package did not write.
    """
    found = (folder / "zarr.json").stat()
    return _read_layout(folder, np.dtype(dtype), found.st_size, found.st_mtime_ns)


@dataclass(frozen=True)
class ArrayLayout:
    """Where the rows of an array are.

    Attributes:
        folder: of the array.
        shape: of the array; rows come first.
        file_len: rows of a file.
        chunk_len: rows that are encoded together; file_len where a file is not a shard.
        is_sharded: whether a file is a shard.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    file_len: int
    chunk_len: int
    is_sharded: bool

    def read_rows(
        self, start: int, stop: int, out: NDArray[Any], centre: slice = slice(None)
    ) -> None:
        """Read rows [start, stop), which are in one file, into `out`.

        Args:
            centre: of the last two axes, what is wanted.

        Raises:
            OSError, ValueError, RuntimeError: the file is missing, truncated or altered.
        """
        if stop <= start:
            return
        number = start // self.file_len
        path = self.folder / "c" / "/".join([str(number), *["0"] * (len(self.shape) - 1)])
        row_shape = self.shape[1:]
        first_row = number * self.file_len
        with open(path, "rb", buffering=0) as stream:
            places = self._places(stream.fileno())
            scratch: NDArray[Any] | None = None
            for chunk in range(
                (start - first_row) // self.chunk_len, -(-(stop - first_row) // self.chunk_len)
            ):
                low = first_row + chunk * self.chunk_len
                high = low + self.chunk_len
                a, b = max(start, low), min(stop, high)
                target = out[a - start : b - start]
                encoded = _read_checked(stream.fileno(), *places[chunk])
                if (a, b) == (low, high) and target.shape[1:] == row_shape and _is_plain(target):
                    _decode(encoded, target)
                    continue
                if scratch is None:
                    scratch = np.empty((self.chunk_len, *row_shape), self.dtype)
                _decode(encoded, scratch)
                wanted = scratch[a - low : b - low]
                target[...] = wanted if centre == slice(None) else wanted[..., centre, centre]

    def _places(self, file: int) -> list[tuple[int, int]]:
        """Return offset and length of every chunk of a file."""
        size = os.fstat(file).st_size
        places = [(0, size)]
        if self.is_sharded:
            n_chunks = self.file_len // self.chunk_len
            index_bytes = n_chunks * _ENTRY_BYTES + _CRC_BYTES
            if size < index_bytes:
                raise ValueError(f"truncated: {size} bytes, fewer than the index of a shard has")
            index = _read_checked(file, size - index_bytes, index_bytes)
            entries = np.frombuffer(index, "<u8").tolist()
            places = list(zip(entries[::2], entries[1::2], strict=True))
        return places


def _read_checked(file: int, offset: int, length: int) -> bytes:
    """Return a range of a file without the checksum at its end, which must be right."""
    # Chunks beyond the end of the array are not there, and have an offset of 2^64 - 1.
    if length <= _CRC_BYTES or offset + length > os.fstat(file).st_size:
        raise ValueError("truncated: a chunk is missing")
    content = os.pread(file, length - _CRC_BYTES, offset)
    checksum = os.pread(file, _CRC_BYTES, offset + length - _CRC_BYTES)
    if len(content) + len(checksum) != length:
        raise ValueError(f"truncated: {len(content) + len(checksum)} of {length} bytes are there")
    if google_crc32c.value(content) != int.from_bytes(checksum, "little"):
        raise ValueError("the checksum is wrong: the bytes were altered")
    return content


def _decode(encoded: bytes, target: NDArray[Any]) -> None:
    # Blosc's header: the decoded size at byte 4. It must fill the target to the last byte.
    size = int.from_bytes(encoded[4:8], "little")
    if len(encoded) < 16 or size != target.nbytes:
        raise ValueError(f"a chunk of {size} bytes where {target.nbytes} are due")
    blosc.decompress(encoded, target)


def _is_plain(target: NDArray[Any]) -> bool:
    return target.flags.c_contiguous and target.flags.writeable


@lru_cache(maxsize=256)
def _read_layout(folder: Path, dtype: np.dtype[Any], _size: int, _mtime_ns: int) -> ArrayLayout:
    about = json.loads((folder / "zarr.json").read_bytes())
    shape, outer = tuple(about["shape"]), about["chunk_grid"]["configuration"]["chunk_shape"]
    codecs = about["codecs"]
    is_sharded = codecs[0]["name"] == "sharding_indexed"
    inner = outer
    if is_sharded:
        sharding = codecs[0]["configuration"]
        inner, codecs = sharding["chunk_shape"], sharding["codecs"]
        if sharding.get("index_location", "end") != "end":
            raise ValueError("the index of a shard is not at its end")
    for expected, found in (
        (_ENCODING, [codec["name"] for codec in codecs]),
        (dtype.name, about["data_type"]),
        (list(shape[1:]), list(outer[1:])),
        (list(shape[1:]), list(inner[1:])),
    ):
        if found != expected:
            raise ValueError(f"zarr.json has {found} where {expected} is due")
    counts = (*shape, outer[0], inner[0])
    if not all(type(n) is int and 0 <= n < 1 << 40 for n in counts) or inner[0] < 1:
        raise ValueError(f"zarr.json has the sizes {counts}")
    if outer[0] < 1 or outer[0] % inner[0]:
        raise ValueError(f"zarr.json has shards of {outer[0]} and chunks of {inner[0]} rows")
    return ArrayLayout(folder, shape, dtype, outer[0], inner[0], is_sharded)
