"""Far wings of the PSF: a source's light beyond its stamp, on a coarse grid."""

import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from photozhpc.sky.psf import STORED_SIZE_PIX, BandPsf
from photozhpc.sky.spectra import Floats

CELL_PIX = 16
PAD_CELLS = STORED_SIZE_PIX // (2 * CELL_PIX)


def add_wings(
    image_CHW: NDArray[np.float32],
    kernels: dict[int, Floats],
    y_N: Floats,
    x_N: Floats,
    flux_njy_NC: Floats,
    size_N: NDArray[np.int64],
) -> None:
    """Add to `image_CHW` (nJy per pixel) the PSF light beyond each source's stamp.

    Stamps end where the wings are below the noise, but together those wings hold 1 to 4% of
    the light. They are smooth, so cells of 16 pixels and linear interpolation suffice.

    Args:
        kernels: from `wing_kernel`, by stamp size.
        size_N: side of each source's stamp, pixels.
    """
    n_bands, height, width = image_CHW.shape
    cells_yx = [-(-n // CELL_PIX) + 2 * PAD_CELLS + 2 for n in (height, width)]
    shape = tuple(scipy.fft.next_fast_len(n + 2 * PAD_CELLS, real=True) for n in cells_yx)
    total_Cyx: NDArray[np.complex128] | float = 0.0
    for size, kernel_Cyx in kernels.items():
        chosen = size_N == size
        if not chosen.any():
            continue
        cells_Cyx = np.zeros((n_bands, *shape))
        # A kernel cell b lies at (b + 0.5 - 0.5 / CELL_PIX) cells from the source, less the pad.
        offset = PAD_CELLS + 0.5 - 0.5 / CELL_PIX
        _deposit(
            cells_Cyx,
            (y_N[chosen] + 0.5) / CELL_PIX - 0.5 + offset,
            (x_N[chosen] + 0.5) / CELL_PIX - 0.5 + offset,
            flux_njy_NC[chosen],
        )
        total_Cyx = total_Cyx + scipy.fft.rfft2(cells_Cyx) * scipy.fft.rfft2(kernel_Cyx, s=shape)
    if not isinstance(total_Cyx, float):
        wings_Cyx = scipy.fft.irfft2(total_Cyx, s=shape) / CELL_PIX**2
        _add_interpolated(image_CHW, wings_Cyx)


def wing_kernel(psf: BandPsf, size: int) -> Floats:
    """Return the PSF light outside a stamp of `size` pixels, in cells of CELL_PIX pixels."""
    sampled_HW = 4.0 * psf.fine_HW[::2, ::2]
    middle = STORED_SIZE_PIX // 2
    inside = slice(middle - size // 2, middle + size // 2)
    sampled_HW[inside, inside] = 0.0
    n = STORED_SIZE_PIX // CELL_PIX
    return sampled_HW.reshape(n, CELL_PIX, n, CELL_PIX).sum(axis=(1, 3))


@numba.njit(cache=True)
def _deposit(cells_Cyx, y_N, x_N, flux_NC):
    """Share each flux among the four nearest cells; what lies off the grid is dropped."""
    n_bands, height, width = cells_Cyx.shape
    for i in range(len(y_N)):
        y0, x0 = int(np.floor(y_N[i])), int(np.floor(x_N[i]))
        fy, fx = y_N[i] - y0, x_N[i] - x0
        if y0 < 0 or x0 < 0 or y0 + 1 >= height or x0 + 1 >= width:
            continue
        for c in range(n_bands):
            flux = flux_NC[i, c]
            cells_Cyx[c, y0, x0] += flux * (1 - fy) * (1 - fx)
            cells_Cyx[c, y0, x0 + 1] += flux * (1 - fy) * fx
            cells_Cyx[c, y0 + 1, x0] += flux * fy * (1 - fx)
            cells_Cyx[c, y0 + 1, x0 + 1] += flux * fy * fx


@numba.njit(cache=True, fastmath=True)
def _add_interpolated(image_CHW, wings_Cyx):
    """Add the coarse grid to the pixels, linear between cell centres.

    A cell of the convolution lies 2 PAD_CELLS further than the cell of the image: one pad of
    the grid, one of the kernel. Between two cell centres lie CELL_PIX pixels of a row.
    """
    n_bands, height, width = image_CHW.shape
    half = CELL_PIX // 2
    row_x = np.empty(wings_Cyx.shape[2], np.float32)
    for c in range(n_bands):
        for y in range(height):
            at = (y + 0.5) / CELL_PIX - 0.5 + 2 * PAD_CELLS
            low = int(at)
            rest = np.float32(at - low)
            for k in range(len(row_x)):
                row_x[k] = wings_Cyx[c, low, k] * (1 - rest) + wings_Cyx[c, low + 1, k] * rest
            for first in range(-half, width, CELL_PIX):
                k = (first + half) // CELL_PIX + 2 * PAD_CELLS - 1
                here, slope = row_x[k], (row_x[k + 1] - row_x[k]) / np.float32(CELL_PIX)
                for x in range(max(first, 0), min(first + CELL_PIX, width)):
                    image_CHW[c, y, x] += here + slope * np.float32(x - first + 0.5)
