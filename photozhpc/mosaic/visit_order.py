"""In which order, and on how many threads, the kernels visit the sources.

The threads are Python's, over kernels that release the GIL, and not a `prange`: Numba's fallback
threading layer must not be entered from two threads, nor its OpenMP layer after a fork, and Dask
workers do both. `numba.set_num_threads` and NUMBA_NUM_THREADS apply here too.
"""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

_MIN_CHUNK_NS = 200_000  # less work is not worth a thread
_CHUNKS_PER_THREAD = 4


def positions(y_N: ArrayLike, x_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as contiguous float64 (N,).

    Raises:
        ValueError: their shapes differ or have more than one axis.
    """
    y, x = (np.ascontiguousarray(np.atleast_1d(v), dtype=np.float64) for v in (y_N, x_N))
    if y.ndim != 1 or y.shape != x.shape:
        raise ValueError(f"y_N and x_N must both be (N,), got {np.shape(y_N)}, {np.shape(x_N)}")
    return y, x


def run_chunks(chunk: Callable[[int, int], None], n_sources: int, ns_per_source: float) -> None:
    """Run chunk(start, stop) over all sources, on threads where there is enough work."""
    n_threads = min(
        numba.get_num_threads(), n_sources, math.ceil(n_sources * ns_per_source / _MIN_CHUNK_NS)
    )
    if n_threads <= 1:
        chunk(0, n_sources)
        return
    edges = np.linspace(0, n_sources, _CHUNKS_PER_THREAD * n_threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(n_threads) as pool:
        for future in [pool.submit(chunk, *pair) for pair in itertools.pairwise(edges)]:
            future.result()


@numba.njit(nogil=True, cache=True)
def visiting_order(y_N, x_N, height, width):
    """Return the sources ordered by blocks of the image (a counting sort), for the caches.

    In an unordered list, a small circle spends most of its time waiting for memory.
    """
    n_sources = y_N.size
    side = max(32, int(math.sqrt(height * width / (n_sources + 1.0))))
    n_columns = width // side + 1
    n_blocks = (height // side + 1) * n_columns
    block_N = np.empty(n_sources, np.int64)
    first_B = np.zeros(n_blocks + 1, np.int64)
    for n in range(n_sources):
        y, x = y_N[n], x_N[n]
        block = 0
        if 0 <= y < height and 0 <= x < width:
            block = (int(y) // side) * n_columns + int(x) // side
        block_N[n] = block
        first_B[block + 1] += 1
    for b in range(n_blocks):
        first_B[b + 1] += first_B[b]
    order_N = np.empty(n_sources, np.int64)
    for n in range(n_sources):
        b = block_N[n]
        order_N[first_B[b]] = n
        first_B[b] += 1
    return order_N
