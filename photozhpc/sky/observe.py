"""From a noiseless sky to what an instrument hands over: noise, errors, weights, bad pixels."""

from dataclasses import dataclass

import galsim.roman
import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, did_you_mean
from photozhpc.sky.sed import Floats, roman_bandpasses
from photozhpc.sky.sky_config import SkyConfig

Plane = NDArray[np.float32]
MANTISSA_BITS = 8  # kept of the err and variance planes, which are smooth: they compress


@dataclass(frozen=True)
class Observed:
    """One band of a tile, nJy per pixel; `weight_HW` in seconds. NaN marks bad pixels."""

    data_HW: Plane
    err_HW: Plane
    weight_HW: Plane
    var_poisson_HW: Plane
    var_rnoise_HW: Plane


def sky_sigma_njy(bands: tuple[str, ...], config: SkyConfig, noise_area_C: Floats) -> Floats:
    """Sky noise per mosaic pixel (nJy) of each band from its 5 sigma point-source depth.

    Optimal extraction has sigma_flux = sigma_pixel sqrt(noise area), so
    sigma_pixel = 10^(-0.4 (m5 - 31.4)) / 5 / sqrt(noise area).

    Raises:
        ConfigError: the configuration states no depth for a band.
    """
    for band in bands:
        if band not in config.depth_ab:
            known = did_you_mean(band, config.depth_ab)
            raise ConfigError(f"depth_ab has no depth for band '{band}'{known}")
    depth_C = np.array([config.depth_ab[band] for band in bands])
    return 10.0 ** (-0.4 * (depth_C - 31.4)) / 5.0 / np.sqrt(noise_area_C)


def electrons_per_njy(band: str, exposure_time_s: float) -> float:
    """Detected photons per nJy in the exposure, from GalSim's Roman zero points."""
    zero_point = roman_bandpasses()[band.upper()].zeropoint  # one photon per second per cm2
    rate = 10.0 ** (-0.4 * (31.4 - zero_point)) * galsim.roman.collecting_area
    return float(rate * exposure_time_s)


def coverage_map(rng: np.random.Generator, size: int, scatter: float) -> Plane:
    """Relative exposure over a tile: a smooth surface around 1, as dithers leave it."""
    t = np.linspace(0.0, 2.0 * np.pi, size)
    phase, turns = rng.random(4) * 2.0 * np.pi, rng.uniform(0.4, 1.6, 4)
    rows = np.sin(turns[0] * t + phase[0]) + 0.5 * np.sin(2.0 * turns[1] * t + phase[1])
    columns = np.sin(turns[2] * t + phase[2]) + 0.5 * np.sin(2.0 * turns[3] * t + phase[3])
    return (1.0 + scatter / 1.5 * 0.5 * (rows[:, None] + columns)).astype(np.float32)


def observe(
    rng: np.random.Generator,
    image_HW: Plane,
    band: str,
    sigma_njy: float,
    coverage_HW: Plane,
    bad_HW: NDArray[np.bool_],
    config: SkyConfig,
) -> Observed:
    """Add noise to one noiseless band (nJy per pixel, changed in place) and state its errors.

    Noise is Gaussian and independent from pixel to pixel: the sky's, less where the exposure is
    longer, plus the photon noise of the sources. A tenth of the sky variance counts as read
    noise. A small constant is left in the data, as sky matching leaves it.
    """
    variance_HW = (sigma_njy**2 / coverage_HW).astype(np.float32)
    var_rnoise_HW = _rounded(0.1 * variance_HW)
    per_njy = electrons_per_njy(band, config.exposure_time_s)
    variance_HW += np.maximum(image_HW, 0.0) / (per_njy * coverage_HW)
    err_HW = _rounded(np.sqrt(variance_HW))
    var_poisson_HW = _rounded(np.maximum(err_HW**2 - var_rnoise_HW, 0.0))
    image_HW += err_HW * rng.standard_normal(image_HW.shape, dtype=np.float32)
    image_HW += np.float32(rng.normal(0.0, 0.05) * sigma_njy)
    weight_HW = _rounded(coverage_HW * np.float32(config.exposure_time_s))
    for plane_HW in (image_HW, err_HW, var_poisson_HW, var_rnoise_HW):
        plane_HW[bad_HW] = np.nan
    weight_HW[bad_HW] = 0.0
    return Observed(image_HW, err_HW, weight_HW, var_poisson_HW, var_rnoise_HW)


def bad_pixels(rng: np.random.Generator, size: int, config: SkyConfig) -> NDArray[np.bool_]:
    """Isolated bad pixels, one short bad column in three bands, and the border."""
    bad_HW = np.zeros((size, size), bool)
    count = rng.poisson(config.bad_pixel_fraction * size**2)
    bad_HW[rng.integers(0, size, count), rng.integers(0, size, count)] = True
    if config.bad_pixel_fraction > 0 and rng.random() < 1.0 / 3.0:
        top, length = rng.integers(0, size), rng.integers(20, 200)
        bad_HW[top : top + length, rng.integers(0, size)] = True
    if config.border_pix:
        border = config.border_pix
        bad_HW[:border] = bad_HW[-border:] = True
        bad_HW[:, :border] = bad_HW[:, -border:] = True
    return bad_HW


def _rounded(plane_HW: Plane) -> Plane:
    """Round float32 to MANTISSA_BITS bits (0.2%)."""
    drop = 23 - MANTISSA_BITS
    bits = np.ascontiguousarray(plane_HW, np.float32).view(np.uint32)
    half = np.uint32(1 << (drop - 1))
    keep = np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    return ((bits + half) & keep).view(np.float32)
