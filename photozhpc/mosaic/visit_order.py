"""In which order, and on how many threads, the kernels visit the sources.

Plain threads over kernels that release the GIL, and not a `prange`: Numba's fallback threading
layer may not be entered from two threads, its OpenMP layer not after a fork; Dask workers do
both. `numba.set_num_threads` and NUMBA_NUM_THREADS hold here too.
"""

import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

_MIN_CHUNK_NS = 200_000  # less than this is not worth a thread
_CHUNKS_PER_THREAD = 4


def positions(y_N: ArrayLike, x_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as contiguous float64 (N,).

    Raises:
        ValueError: they are not alike or have more than one axis.
    """
    y = np.ascontiguousarray(np.atleast_1d(np.asarray(y_N, dtype=np.float64)))
    x = np.ascontiguousarray(np.atleast_1d(np.asarray(x_N, dtype=np.float64)))
    if y.ndim != 1 or y.shape != x.shape:
        raise ValueError(f"y_N and x_N must be (N,) alike, got {np.shape(y_N)}, {np.shape(x_N)}")
    return y, x


def run_chunks(chunk: Callable[[int, int], None], n_sources: int, ns_per_source: float) -> None:
    """Run chunk(start, stop) over all sources, on threads where there is work enough."""
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
    """Order of the sources by blocks of the image (a counting sort), so that caches serve.

    In a list without order, most of the time of a small circle is spent waiting for memory.
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
