"""Point statistics of photometric redshifts, always of the whole sample.

Conventions as in the PITA paper (arXiv 2602.10207) and its code, except that statistics are
never means of batch statistics: dz = (z_ref - z_phot) / (1 + z_ref).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

OUTLIER_THRESHOLD = 0.15


@dataclass(frozen=True)
class PointMetrics:
    """Point statistics of a sample.

    Attributes:
        bias: mean of dz.
        nmad: 1.4826 median(|dz - median(dz)|).
        outlier_fraction: fraction of sources with |dz| > 0.15.
        n: number of sources with a finite z_ref and z_phot, on which the rest is computed.
    """

    bias: float
    nmad: float
    outlier_fraction: float
    n: int


def normalised_residual(z_ref: ArrayLike, z_phot: ArrayLike) -> NDArray[np.float64]:
    """Return dz = (z_ref - z_phot) / (1 + z_ref), shape (N,), NaN where either is not finite.

    Raises:
        ValueError: the shapes differ, or a reference redshift is -1 or less.
    """
    ref_N = np.asarray(z_ref, dtype=np.float64)
    phot_N = np.asarray(z_phot, dtype=np.float64)
    if ref_N.shape != phot_N.shape:
        raise ValueError(f"z_ref and z_phot differ in shape: {ref_N.shape} and {phot_N.shape}")
    if np.any(ref_N <= -1):
        raise ValueError(f"z_ref must be above -1, got {np.nanmin(ref_N)}")
    finite_N = np.isfinite(ref_N) & np.isfinite(phot_N)
    dz_N = np.full(ref_N.shape, np.nan)
    dz_N[finite_N] = (ref_N[finite_N] - phot_N[finite_N]) / (1 + ref_N[finite_N])
    return dz_N


def point_metrics(z_ref: ArrayLike, z_phot: ArrayLike) -> PointMetrics:
    """Return bias, NMAD and outlier fraction of a sample; all NaN where no pair is finite.

    Args:
        z_ref: reference redshifts, shape (N,).
        z_phot: photometric redshifts, shape (N,). Pairs with a NaN are left out; `n` says how
            many were used.

    Raises:
        ValueError: the shapes differ, or a reference redshift is -1 or less.
    """
    dz_N = normalised_residual(z_ref, z_phot)
    dz_N = dz_N[np.isfinite(dz_N)]
    if dz_N.size == 0:
        return PointMetrics(bias=np.nan, nmad=np.nan, outlier_fraction=np.nan, n=0)
    return PointMetrics(
        bias=float(np.mean(dz_N)),
        nmad=float(1.4826 * np.median(np.abs(dz_N - np.median(dz_N)))),
        outlier_fraction=float(np.mean(np.abs(dz_N) > OUTLIER_THRESHOLD)),
        n=int(dz_N.size),
    )
