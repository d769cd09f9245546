"""Turns a noiseless sky into an observation: noise, errors, weights, bad pixels."""

from dataclasses import dataclass

import galsim.roman
import numba
import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, did_you_mean
from photozhpc.sky.sed import roman_bandpasses
from photozhpc.sky.sky_config import SkyConfig
from photozhpc.sky.spectra import Floats
from photozhpc.survey import AB_ZERO_POINT_NJY, flux_of_ab

Plane = NDArray[np.float32]
# Mantissa bits kept in the smooth planes, so that they compress: rounding to 0.4% and 1.6%.
ERR_BITS, VARIANCE_BITS = 7, 5
# Drops of two mosaic pixels (the native pixel), dithered at random: noise in pixels 0, 1 and 2
# apart has covariances 5/3 : 1 : 1/6 along each axis, which these three weights reproduce. Their
# squared sum over the sum of squares is the ratio of 2.4 between the noise of large areas and of
# pixels of Fruchter & Hook (2002): r / (1 - 1 / (3 r)) with r = 2.
DRIZZLE_WEIGHTS = np.array([1.0, 3.0 - np.sqrt(3.0), 2.0 - np.sqrt(3.0)])
DRIZZLE_RATIO = 2.4
DETECTOR_ARCSEC, GAP_ARCSEC = 450.0, 20.0  # 4088 native pixels; gaps assumed


@dataclass(frozen=True)
class Observed:
    """One band of a tile, nJy per pixel; `weight_HW` in seconds. NaN marks bad pixels."""

    data_HW: Plane
    err_HW: Plane
    weight_HW: Plane
    var_poisson_HW: Plane
    var_rnoise_HW: Plane


def sky_sigma_njy(bands: tuple[str, ...], config: SkyConfig, noise_area_C: Floats) -> Floats:
    """Return each band's sky noise per mosaic pixel (nJy) from its 5 sigma point-source depth.

    Optimal extraction has sigma_flux = sigma_pixel sqrt(noise area), so
    sigma_pixel = 10^(-0.4 (m5 - 31.4)) / 5 / sqrt(noise area).

    Raises:
        ConfigError: the configuration states no depth for a band.
    """
    for band in bands:
        if band not in config.depth_ab:
            hint = did_you_mean(band, config.depth_ab)
            raise ConfigError(f"depth_ab has no depth for band '{band}'{hint}")
    depth_C = np.array([config.depth_ab[band] for band in bands])
    return flux_of_ab(depth_C) / 5.0 / np.sqrt(noise_area_C)


def electrons_per_njy(band: str, exposure_time_s: float) -> float:
    """Return the detected photons per nJy in the exposure, from GalSim's Roman zero points."""
    zero_point = roman_bandpasses()[band.upper()].zeropoint  # one photon per second per cm2
    rate = 10.0 ** (-0.4 * (AB_ZERO_POINT_NJY - zero_point)) * galsim.roman.collecting_area
    return float(rate * exposure_time_s)


def coverage_map(rng: np.random.Generator, size: int, scatter: float) -> Plane:
    """Draw the relative exposure over a tile: a smooth surface around 1, as dithering makes it."""
    t = np.linspace(0.0, 2.0 * np.pi, size)
    phase, turns = rng.random(4) * 2.0 * np.pi, rng.uniform(0.4, 1.6, 4)
    rows = np.sin(turns[0] * t + phase[0]) + 0.5 * np.sin(2.0 * turns[1] * t + phase[1])
    columns = np.sin(turns[2] * t + phase[2]) + 0.5 * np.sin(2.0 * turns[3] * t + phase[3])
    return (1.0 + scatter / 1.5 * 0.5 * (rows[:, None] + columns)).astype(np.float32)


def exposure_share(
    rng: np.random.Generator, size: int, pixel_scale_arcsec: float, exposures: int
) -> Plane:
    """Draw which share of the exposures covers each pixel (size x size), given detector gaps.

    Every exposure is offset at random; its gaps run along rows and columns.
    """
    at = pixel_scale_arcsec * np.arange(size)
    period = DETECTOR_ARCSEC + GAP_ARCSEC
    gaps_2EP = (at - rng.uniform(0.0, period, (2, exposures, 1))) % period < GAP_ARCSEC
    rows_EP, columns_EP = gaps_2EP.astype(np.float32) / np.float32(np.sqrt(exposures))
    share_HW = rows_EP.T @ columns_EP  # what is lost twice
    share_HW -= (rows_EP.sum(axis=0) / np.float32(np.sqrt(exposures)))[:, None]
    share_HW -= columns_EP.sum(axis=0) / np.float32(np.sqrt(exposures))
    share_HW += np.float32(1.0)
    return np.maximum(share_HW, np.float32(1.0 / exposures), out=share_HW)


def drizzled(noise_HW: Plane) -> Plane:
    """Return unit white noise correlated as by drizzling, of unit variance; edges wrap around."""
    weights = (DRIZZLE_WEIGHTS / np.sqrt((DRIZZLE_WEIGHTS**2).sum())).astype(np.float32)
    out_HW = np.empty_like(noise_HW)
    _filter_both_axes(noise_HW, weights, out_HW)
    return out_HW


def observe(
    rng: np.random.Generator,
    image_HW: Plane,
    band: str,
    sigma_njy: float,
    coverage_HW: Plane,
    bad_HW: NDArray[np.bool_],
    config: SkyConfig,
) -> Observed:
    """Add noise to one noiseless band (nJy per pixel, changed in place) and return its errors.

    Noise is Gaussian and independent from pixel to pixel: the sky's, less where the exposure is
    longer, plus the photon noise of the sources. A tenth of the sky variance counts as read
    noise. A small constant remains in the data, as it does after sky matching.

    Drizzled noise is correlated instead. Each pixel then has less of it, and `err` says so: the
    noise of large areas is the same.
    """
    noise_HW = rng.standard_normal(image_HW.shape, dtype=np.float32)
    variance_ratio = 1.0
    if config.ingredients.drizzled_noise:
        noise_HW, variance_ratio = drizzled(noise_HW), DRIZZLE_RATIO**2
    err_HW, weight_HW = np.empty_like(image_HW), np.empty_like(image_HW)
    var_poisson_HW, var_rnoise_HW = np.empty_like(image_HW), np.empty_like(image_HW)
    _observe_pixels(
        image_HW, noise_HW, coverage_HW, err_HW, weight_HW, var_poisson_HW, var_rnoise_HW,
        np.float32(sigma_njy**2 / variance_ratio),
        np.float32(1.0 / electrons_per_njy(band, config.exposure_time_s) / variance_ratio),
        np.float32(rng.normal(0.0, 0.05) * sigma_njy),
        np.float32(config.exposure_time_s),
    )  # fmt: skip
    for plane_HW, bits in (
        (err_HW, ERR_BITS),
        (weight_HW, ERR_BITS),
        (var_poisson_HW, VARIANCE_BITS),
        (var_rnoise_HW, VARIANCE_BITS),
    ):
        _round_mantissa(plane_HW.reshape(-1).view(np.uint32), bits)
    bad = np.flatnonzero(bad_HW)
    for plane_HW in (image_HW, err_HW, var_poisson_HW, var_rnoise_HW):
        plane_HW.reshape(-1)[bad] = np.nan
    weight_HW.reshape(-1)[bad] = 0.0
    return Observed(image_HW, err_HW, weight_HW, var_poisson_HW, var_rnoise_HW)


def bad_pixels(rng: np.random.Generator, size: int, config: SkyConfig) -> NDArray[np.bool_]:
    """Draw isolated bad pixels, on average one short bad column per three bands, and the border."""
    bad_HW = np.zeros((size, size), bool)
    count = rng.poisson(config.bad_pixel_fraction * size**2)
    bad_HW[rng.integers(0, size, count), rng.integers(0, size, count)] = True
    if config.bad_pixel_fraction > 0 and rng.random() < 1.0 / 3.0:
        top, length = rng.integers(0, size), rng.integers(20, 200)
        bad_HW[top : top + length, rng.integers(0, size)] = True
    if border := config.border_pix:
        bad_HW[:border] = bad_HW[-border:] = True
        bad_HW[:, :border] = bad_HW[:, -border:] = True
    return bad_HW


@numba.njit(cache=True, fastmath=True)
def _observe_pixels(
    image_HW, noise_HW, coverage_HW, err_HW, weight_HW, var_poisson_HW, var_rnoise_HW,
    sky_variance, njy_per_electron, pedestal, exposure_time_s,
):  # fmt: skip
    """Noise and its planes, pixel by pixel; arguments as in `observe`, fluxes in nJy."""
    height, width = image_HW.shape
    for y in range(height):
        for x in range(width):
            longer = np.float32(1.0) / coverage_HW[y, x]
            sky = sky_variance * longer
            total = sky + max(image_HW[y, x], np.float32(0.0)) * njy_per_electron * longer
            sigma = np.sqrt(total)
            err_HW[y, x] = sigma
            var_rnoise_HW[y, x] = np.float32(0.1) * sky
            var_poisson_HW[y, x] = total - np.float32(0.1) * sky
            weight_HW[y, x] = exposure_time_s * coverage_HW[y, x]
            image_HW[y, x] += sigma * noise_HW[y, x] + pedestal


@numba.njit(cache=True, fastmath=True)
def _filter_both_axes(noise_HW, weights, out_HW):
    """Convolve with three weights along both axes; edges wrap around."""
    height, width = noise_HW.shape
    a, b, c = weights[0], weights[1], weights[2]
    mixed_x = np.empty(width, np.float32)
    for y in range(height):
        one, two = (y + 1) % height, (y + 2) % height
        for x in range(width):
            mixed_x[x] = a * noise_HW[y, x] + b * noise_HW[one, x] + c * noise_HW[two, x]
        for x in range(width - 2):
            out_HW[y, x] = a * mixed_x[x] + b * mixed_x[x + 1] + c * mixed_x[x + 2]
        for x in range(width - 2, width):
            out_HW[y, x] = (
                a * mixed_x[x] + b * mixed_x[(x + 1) % width] + c * mixed_x[(x + 2) % width]
            )


@numba.njit(cache=True)
def _round_mantissa(bits_P, keep_bits):
    """Round float32, given as its bits, to `keep_bits` bits of mantissa, in place."""
    half = np.uint32(1 << (22 - keep_bits))
    keep = np.uint32(0xFFFFFFFF ^ ((1 << (23 - keep_bits)) - 1))
    for i in range(len(bits_P)):
        bits_P[i] = (bits_P[i] + half) & keep
