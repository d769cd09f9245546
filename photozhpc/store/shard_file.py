"""Reads ranges of a store's file: from disk, or from an object store in few, large requests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from photozhpc.files.objects import AnyPath, ObjectPath, is_remote, read_ranges, size_of

# The first request reads all of a small object, and the end of a large one, where its index is.
_WHOLE_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16
_PIECE_BYTES = 16 << 20


class ShardFile:
    """A file that is open for reading; `size` is its length in bytes."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Return a range, or less at the end of the file."""
        raise NotImplementedError

    def expect(self, start: int, stop: int) -> None:
        """Prepare for reads within [start, stop)."""


class _LocalFile(ShardFile):
    def __init__(self, file: int) -> None:
        self._file = file
        self.size = os.fstat(file).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, length, offset)


class _RemoteFile(ShardFile):
    def __init__(self, path: ObjectPath, size: int) -> None:
        self._path = path
        self.size = size
        self._tail_at = 0 if size <= _WHOLE_BYTES else size - _TAIL_BYTES
        self._span = (0, b"")

    def read(self, offset: int, length: int) -> bytes:
        if offset >= self._tail_at:
            tail = _read_tail(self._path, self._tail_at, self.size)
            return tail[offset - self._tail_at : offset - self._tail_at + length]
        start, content = self._span
        if not start <= offset <= offset + length <= start + len(content):
            self.expect(offset, offset + length)
            start, content = self._span
        return content[offset - start : offset - start + length]

    def expect(self, start: int, stop: int) -> None:
        stop = min(stop, self.size)
        if self._tail_at <= start or start >= stop:
            return
        edges = range(start, stop, _PIECE_BYTES)
        pieces = [(self._path, at, min(at + _PIECE_BYTES, stop)) for at in edges]
        self._span = (start, b"".join(read_ranges(pieces)))


@contextmanager
def open_shard(path: AnyPath, size: int | None = None) -> Iterator[ShardFile]:
    """Open a file of a store.

    Args:
        size: of a remote file, from its manifest.

    Raises:
        OSError: it is missing.
    """
    if is_remote(path):
        yield _RemoteFile(path, size_of(path) if size is None else size)
    else:
        with open(path, "rb", buffering=0) as stream:
            yield _LocalFile(stream.fileno())


def forget_objects() -> None:
    """Empty the cache of objects, which may have been replaced."""
    _read_tail.cache_clear()


@lru_cache(maxsize=64)
def _read_tail(path: ObjectPath, start: int, stop: int) -> bytes:
    return path.read_range(start, stop)
