"""How likely a source is a star, from how much of its flux lies within the smallest aperture.

Of a point source, the smallest aperture holds a share q of the flux in the next one, the same for
all in a band. Of a galaxy it holds q (1 - k) with k between 0 and 1. All bands together estimate k,
with an error; a star has k = 0. Without labels of stars, q, its scatter and the share of stars
follow from a sample of the store: its bright point sources crowd at the sharp end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

MIN_SNR = 20.0  # of the sources that show the ratio, in the larger aperture of every band
MIN_POINT_SOURCES = 10
HALF_WIDTH = 0.04  # of the crowd, in ln of the ratio
MIN_SCATTER = 0.01
BLENDED, BLEND_SCATTER = 0.1, 0.1  # share of the stars; their scatter in k
# Without stars in sight (no crowd) their share is not known either.
_SHARES = (1e-3, 0.9)


@dataclass(frozen=True)
class PointSources:
    """What point sources of a store look like.

    Attributes:
        ratio: of every band: flux of a point source in the smallest aperture over that in the next.
        scatter: of k between point sources beyond the errors of their fluxes.
        share: of all sources that are stars.
    """

    ratio: tuple[float, ...]
    scatter: float
    share: float


def find_point_sources(flux_NCR: NDArray, flux_err_NCR: NDArray) -> PointSources | None:
    """Find the ratio of fluxes at which bright point sources crowd; None: there is no crowd.

    Args:
        flux_NCR, flux_err_NCR: in apertures of ascending radius, in any unit.
    """
    if flux_NCR.shape[2] < 2 or not len(flux_NCR):
        return None
    inner_NC, outer_NC = flux_NCR[:, :, 0].astype(float), flux_NCR[:, :, 1].astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        bright_NC = (outer_NC > MIN_SNR * flux_err_NCR[:, :, 1]) & (inner_NC > 0)
        log_NC = np.log(inner_NC / outer_NC)
    bright_N = bright_NC.all(axis=1) & np.isfinite(log_NC).all(axis=1)
    log_NC = log_NC[bright_N]
    mean_N = np.sort(log_NC.mean(axis=1))

    def count(low: NDArray, high: NDArray) -> NDArray[np.intp]:
        return np.searchsorted(mean_N, high) - np.searchsorted(mean_N, low)

    h = HALF_WIDTH
    n_in, n_below, n_above = (
        count(mean_N + low * h, mean_N + high * h) for low, high in ((-1, 1), (-3, -1), (1, 3))
    )
    score_N = (n_in - n_below) / np.sqrt(n_in + n_below + 1.0)
    score_N[(n_in < MIN_POINT_SOURCES) | (n_above > 0.2 * n_in) | (score_N < 3.0)] = -np.inf
    if not np.isfinite(score_N).any():
        return None
    centre = np.median(mean_N[score_N == score_N.max()])
    crowd_NC = log_NC[abs(log_NC.mean(axis=1) - centre) < h]
    ratio_C = np.exp(np.median(crowd_NC, axis=0))
    off_N = crowd_NC.mean(axis=1) - np.log(ratio_C).mean()
    scatter = max(1.4826 * float(np.median(abs(off_N))), MIN_SCATTER)
    found = PointSources(tuple(ratio_C.tolist()), scatter, 0.1)
    k_N, error_N = extension(flux_NCR, flux_err_NCR, found)
    share = 0.1
    measured_N = np.isfinite(k_N)
    if not measured_N.any():
        return None
    for _ in range(100):  # expectation maximisation
        p_N = _probability(k_N[measured_N], error_N[measured_N], share)
        share = float(np.clip(p_N.mean(), *_SHARES))
    return PointSources(found.ratio, scatter, share)


def extension(
    flux_NCR: NDArray, flux_err_NCR: NDArray, point_sources: PointSources
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return k_N (0: a point source; near 1: very extended) and its error; NaN: not measured."""
    flux_NCR, err_NCR = flux_NCR[:, :, :2].astype(float), flux_err_NCR[:, :, :2].astype(float)
    q_C = np.array(point_sources.ratio)
    inner_NC, expected_NC = flux_NCR[:, :, 0], q_C * np.maximum(flux_NCR[:, :, 1], 0.0)
    variance_NC = (1 - q_C) ** 2 * err_NCR[:, :, 0] ** 2 + q_C**2 * np.maximum(
        err_NCR[:, :, 1] ** 2 - err_NCR[:, :, 0] ** 2, 0.0
    )
    usable_NC = np.isfinite(flux_NCR).all(axis=2) & np.isfinite(variance_NC) & (variance_NC > 0)
    weight_NC = np.divide(1.0, variance_NC, out=np.zeros_like(variance_NC), where=usable_NC)
    inner_NC, expected_NC = (np.where(usable_NC, v, 0.0) for v in (inner_NC, expected_NC))
    total_N = (weight_NC * expected_NC**2).sum(axis=1)
    missing = (weight_NC * expected_NC * (expected_NC - inner_NC)).sum(axis=1)
    k_N, error_N = np.full((2, len(total_N)), np.nan)
    bright_N = total_N > 0
    k_N[bright_N] = missing[bright_N] / total_N[bright_N]
    error_N[bright_N] = np.sqrt(1.0 / total_N[bright_N] + point_sources.scatter**2)
    return k_N, error_N


def star_probability(
    flux_NCR: NDArray, flux_err_NCR: NDArray, point_sources: PointSources | None
) -> NDArray[np.float32]:
    """Return the probability (N,) that a source is a star, or another point source; NaN: unknown.

    Args:
        flux_NCR, flux_err_NCR: as in `find_point_sources`.
        point_sources: of the store; None: unknown.
    """
    if point_sources is None:
        return np.full(len(flux_NCR), np.nan, np.float32)
    k_N, error_N = extension(flux_NCR, flux_err_NCR, point_sources)
    return _probability(k_N, error_N, point_sources.share).astype(np.float32)


def _probability(k_N: NDArray, error_N: NDArray, share: float) -> NDArray[np.float64]:
    """Return the probability of a star, where galaxies have the density 2 k from 0 to 1.

    Few are almost as small as points: half have k above 0.7. The density is convolved with the
    error of k. Some stars are blended with a neighbour, lack a pixel or lie beside their position.
    """
    k_N = np.maximum(k_N, 0.0)  # a source sharper than a point is as likely a star as a point
    gauss_N = _normal(k_N, 0.0, error_N)
    galaxy_N = 2.0 * (
        k_N * (ndtr(k_N / error_N) - ndtr((k_N - 1.0) / error_N))
        + error_N**2 * (gauss_N - _normal(k_N, 1.0, error_N))
    )
    blended_N = _normal(k_N, 0.0, np.hypot(error_N, BLEND_SCATTER))
    star_N = (1.0 - BLENDED) * gauss_N + BLENDED * blended_N
    odds_N = share * star_N / np.maximum((1.0 - share) * galaxy_N, 1e-300)
    p_N: NDArray[np.float64] = odds_N / (1.0 + odds_N)
    return p_N


def _normal(x_N: NDArray, mean: float, sigma_N: NDArray) -> NDArray[np.float64]:
    """Return the density of a normal distribution. (scipy.stats takes 0.6 s to import.)"""
    return np.exp(-0.5 * ((x_N - mean) / sigma_N) ** 2) / (sigma_N * np.sqrt(2 * np.pi))
