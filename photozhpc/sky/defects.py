"""Cosmic rays and hot pixels that the pipeline did not reject, in one band of a tile."""

import numpy as np
from numpy.typing import NDArray

from photozhpc.sky.sky_config import Ingredients
from photozhpc.sky.spectra import Floats

DROP_PIX = 2.0  # a native pixel, in mosaic pixels
PEAK_SNR = (5.0, 500.0)  # in a mosaic pixel; log-uniform (assumed)
MEAN_TRACK = 3.0  # native pixels that a cosmic ray crosses (assumed)
ALONG_DEX = 0.3  # scatter of the charge along a track
REACH = 2  # mosaic pixels around a drop's centre that it can touch


def draw_defects(
    rng: np.random.Generator, size: int, area_arcmin2: float, config: Ingredients
) -> Floats:
    """Draw the native pixels that are hit: rows of (y, x, peak S/N) on a tile of size^2 pixels."""
    rays = rng.poisson(config.cosmic_rays_arcmin2 * area_arcmin2)
    hot = rng.poisson(config.hot_pixels_arcmin2 * area_arcmin2)
    length_N = np.append(rng.geometric(1.0 / MEAN_TRACK, rays), np.ones(hot, int))
    low, high = np.log10(PEAK_SNR)
    tracks = [np.empty((0, 3))]
    for length, peak in zip(length_N, 10.0 ** rng.uniform(low, high, rays + hot), strict=True):
        angle = rng.uniform(0.0, 2.0 * np.pi)
        along_2 = np.array([np.sin(angle), np.cos(angle)]) / max(
            abs(np.sin(angle)), abs(np.cos(angle))
        )
        step_L2 = DROP_PIX * np.rint(np.arange(length)[:, None] * along_2)
        charge_L = 10.0 ** rng.normal(0.0, ALONG_DEX, length)
        tracks.append(
            np.column_stack([rng.uniform(0, size, 2) + step_L2, peak * charge_L / charge_L.max()])
        )
    return np.concatenate(tracks)


def add_defects(
    data_HW: NDArray[np.float32], err_HW: NDArray[np.float32], defects_D3: Floats
) -> None:
    """Add defects to the data, in place: drops of native pixels, as drizzling leaves them."""
    size = data_HW.shape[0]
    noise = float(np.nanmedian(err_HW[::16, ::16]))
    for y, x, snr in defects_D3:
        top, left = round(y) - REACH, round(x) - REACH
        rows, columns = np.arange(top, top + 2 * REACH + 1), np.arange(left, left + 2 * REACH + 1)
        covered_yx = np.outer(_covered(rows - y), _covered(columns - x))
        rows_in, columns_in = (v[(v >= 0) & (v < size)] for v in (rows, columns))
        if len(rows_in) and len(columns_in):
            covered_yx = covered_yx[rows_in[0] - top :, columns_in[0] - left :]
            covered_yx = covered_yx[: len(rows_in), : len(columns_in)]
            data_HW[np.ix_(rows_in, columns_in)] += (snr * noise * covered_yx).astype(np.float32)


def strongest_defect(defects_D3: Floats, y_N: Floats, x_N: Floats, radius_pix: float) -> Floats:
    """Return the highest peak S/N of the defects within a radius of each source; 0 without one."""
    if not len(defects_D3):
        return np.zeros(len(y_N))
    distance_ND = np.hypot(y_N[:, None] - defects_D3[:, 0], x_N[:, None] - defects_D3[:, 1])
    return np.where(distance_ND < radius_pix, defects_D3[:, 2], 0.0).max(axis=1)


def _covered(offset: Floats) -> Floats:
    """Return which part of a pixel, at an offset from its centre, a drop covers along an axis."""
    half = 0.5 * DROP_PIX
    return np.clip(np.minimum(offset + 0.5, half) - np.maximum(offset - 0.5, -half), 0.0, 1.0)
