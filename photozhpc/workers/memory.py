"""How processes ask the system for memory: this one, and workers, by their environment."""

import ctypes
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_BYTES = 1 << 30
_MAX_MMAP_THRESHOLD = 32 << 20  # what every glibc takes

WORKER_ENVIRONMENT = {
    # One heap for all threads and libraries: else each of them holds on to memory of its own.
    "MALLOC_ARENA_MAX": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    # What `keep_freed_memory` does.
    "MALLOC_TRIM_THRESHOLD_": str(_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(_MAX_MMAP_THRESHOLD),
}


def keep_freed_memory() -> None:
    """Keep freed memory for the next array, instead of handing it back to the system.

    A step of training needs the same arrays again and again, and fresh pages cost more than they
    look like (docs/decisions.md). The peak is as it was. Does nothing where the C library is not
    glibc.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        if not libc.mallopt(_M_MMAP_THRESHOLD, _BYTES):
            libc.mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, _BYTES)
