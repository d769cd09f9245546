"""How this process and, by their environment, workers allocate memory."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_BYTES = 1 << 30
_MAX_MMAP_THRESHOLD = 32 << 20  # what every glibc takes

WORKER_ENVIRONMENT = {
    # One heap for all threads and libraries: otherwise each of them keeps freed memory.
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # As `keep_freed_memory`.
    "MALLOC_TRIM_THRESHOLD_": str(_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(_MAX_MMAP_THRESHOLD),
}


def keep_freed_memory() -> None:
    """Keep freed memory for the next array, instead of returning it to the system.

    Every training step allocates the same arrays, and fresh pages are slow (docs/decisions.md). The
    peak does not change. Without glibc this does nothing.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        if not libc.mallopt(_M_MMAP_THRESHOLD, _BYTES):
            libc.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _BYTES)
