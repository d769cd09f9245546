"""Cutout extraction: all bands of many sources in one pass, in Numba without the GIL."""

import operator

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from photozhpc.mosaic.visit_order import positions, run_chunks, visiting_order


def extract_cutouts(
    image_CHW: ArrayLike,
    y_N: ArrayLike,
    x_N: ArrayLike,
    size: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Copy one size x size cutout per source and band; pixels off the tile are NaN.

    The cutout of (y, x) starts at row floor(y + 0.5) - size // 2 and column
    floor(x + 0.5) - size // 2: the pixel that holds the source is [size // 2, size // 2].

    Args:
        image_CHW: any real dtype, byte order and layout; not changed.
        y_N, x_N: pixels, zero-based with pixel centres on integers; scalars are N = 1. A
            position that is not finite gives a cutout of NaN.
        out: filled instead of a new array: (N, C, size, size), float32, C-contiguous.

    Returns:
        cutout_NCSS, float32, in the image's unit.

    Raises:
        ValueError: shapes do not match, or size is not a positive integer.
    """
    image = np.asarray(image_CHW)
    if image.ndim != 3:
        raise ValueError(f"image_CHW must have three axes (C, H, W), got shape {image.shape}")
    if image.dtype.kind not in "fiub":
        raise ValueError(f"image_CHW must hold real numbers, got {image.dtype}")
    try:
        size = operator.index(size)
    except TypeError:
        raise ValueError(f"size must be a positive integer, got {size!r}") from None
    if size < 1:
        raise ValueError(f"size must be a positive integer, got {size}")
    y, x = positions(y_N, x_N)
    shape = (y.size, image.shape[0], size, size)
    if out is None:
        cutout = np.empty(shape, np.float32)
    elif out.shape == shape and out.dtype == np.float32 and out.flags.c_contiguous:
        cutout = out
    else:
        raise ValueError(
            f"out must be float32, C-contiguous and {shape}, got {out.dtype} {out.shape}"
        )
    if not cutout.size:
        return cutout
    if image.dtype in (np.float32, np.float64) and image.dtype.isnative:
        _copy(image, y, x, 0, cutout)
    else:
        for c in range(image.shape[0]):  # convert one band at a time: memory for one, not all
            _copy(image[c : c + 1].astype(np.float32), y, x, c, cutout)
    return cutout


def _copy(
    image: NDArray[np.floating],
    y: NDArray[np.float64],
    x: NDArray[np.float64],
    first_band: int,
    cutout: NDArray[np.float32],
) -> None:
    view = image.view()
    view.flags.writeable = False  # one compiled variant for writeable and read-only inputs
    order = visiting_order(y, x, *image.shape[1:])

    def chunk(start: int, stop: int) -> None:
        _copy_cutouts(view, y, x, order, first_band, start, stop, cutout)

    run_chunks(chunk, y.size, 0.25 * image.shape[0] * cutout[0, 0].nbytes)


@numba.njit(nogil=True, cache=True)
def _copy_cutouts(image_CHW, y_N, x_N, order_N, first_band, start, stop, cutout_NCSS):
    n_bands, height, width = image_CHW.shape
    size = cutout_NCSS.shape[2]
    for n in order_N[start:stop]:
        yc, xc = np.floor(y_N[n] + 0.5), np.floor(x_N[n] + 0.5)
        # Compared as floats: the integer of a NaN, or of 1e300, is not defined.
        if not (-size <= yc <= height + size and -size <= xc <= width + size):
            cutout_NCSS[n, first_band : first_band + n_bands] = np.nan
            continue
        top, left = int(yc) - size // 2, int(xc) - size // 2
        j0, j1 = min(max(0, -left), size), max(min(size, width - left), 0)
        for c in range(n_bands):
            for i in range(size):
                row = cutout_NCSS[n, first_band + c, i]
                if not 0 <= top + i < height or j0 >= j1:
                    row[:] = np.nan
                    continue
                row[:j0] = np.nan
                tile_row = image_CHW[c, top + i, left + j0 : left + j1]
                cutout_row = row[j0:j1]
                for j in range(tile_row.size):  # vectorised; a slice assignment is not
                    cutout_row[j] = tile_row[j]
                row[j1:] = np.nan


def count_finite(cutout_NCSS: NDArray[np.float32], side: int) -> NDArray[np.int64]:
    """Return n_finite_NC: finite pixels in the central side x side pixels of every band.

    The centre of a square of S pixels is pixel S // 2, as in `extract_cutouts`.

    Raises:
        ValueError: the cutouts are smaller than `side`.
    """
    size = cutout_NCSS.shape[-1]
    if not 0 < side <= size:
        raise ValueError(f"cutouts of {size} pixels have no central {side}")
    n_finite_NC = np.empty(cutout_NCSS.shape[:2], np.int64)
    first = size // 2 - side // 2
    rows, columns = (first, first + side), (first, first + side)
    if side == size and cutout_NCSS.flags.c_contiguous:  # a band is one long row
        cutout_NCSS = cutout_NCSS.reshape(*n_finite_NC.shape, 1, size**2)
        rows, columns = (0, 1), (0, size**2)
    _count_finite(cutout_NCSS, *rows, *columns, n_finite_NC)
    return n_finite_NC


@numba.njit(nogil=True, cache=True)
def _count_finite(cutout_NCHW, i0, i1, j0, j1, n_finite_NC):
    for n in range(cutout_NCHW.shape[0]):
        for c in range(cutout_NCHW.shape[1]):
            count = 0
            for i in range(i0, i1):
                row = cutout_NCHW[n, c, i, j0:j1]
                for j in range(row.size):
                    count += abs(row[j]) < np.inf
            n_finite_NC[n, c] = count
