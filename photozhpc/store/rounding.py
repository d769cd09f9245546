"""Rounds pixels by at most 1% of the noise, so that a store compresses."""

import numpy as np
from numpy.typing import NDArray

ROUNDING = 0.01  # of the noise of a pixel


def rounding_step(err_CHW: NDArray) -> NDArray[np.float32]:
    """Return step_C, nJy: pixels are rounded to multiples of this power of two.

    A pixel's error is at most half a step: at most 1% of the noise where the noise is low (5th
    percentile), where a rounding error would matter most. 0: unknown noise, no rounding.
    """
    step_C = np.zeros(len(err_CHW), dtype=np.float32)
    for c, err_HW in enumerate(err_CHW):
        sample = err_HW[::8, ::8]
        sample = sample[np.isfinite(sample) & (sample > 0)]
        if sample.size:
            step_C[c] = 2.0 ** np.floor(np.log2(2 * ROUNDING * np.percentile(sample, 5)))
    return step_C


def round_pixels(cutout_NCSS: NDArray[np.float32], step_C: NDArray[np.float32]) -> None:
    """Round each band in place to multiples of its step."""
    for c in np.flatnonzero(step_C):
        plane_NSS = cutout_NCSS[:, c]
        np.multiply(plane_NSS, 1 / step_C[c], out=plane_NSS)
        np.rint(plane_NSS, out=plane_NSS)
        np.multiply(plane_NSS, step_C[c], out=plane_NSS)
