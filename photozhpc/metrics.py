"""Statistics of photometric redshifts and of their intervals, always of the whole sample.

Conventions follow the PITA paper (arXiv 2602.10207) and its code, but statistics are never means
of batch statistics: dz = (z_ref - z_phot) / (1 + z_ref).

Six quantiles represent a redshift PDF. Between them z is linear in the probit of the level
(exact for a Gaussian); beyond them the outermost lines continue. Probability below z = 0 is moved
to z = 0. PIT and CRPS are exact for this PDF.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]

OUTLIER_THRESHOLD = 0.15

MAX_DRAWS = 2000  # sources per bootstrap resample: limits the cost, not the sample
_DRAWS_AT_ONCE = 500_000
_MIN_SLOPE = 1e-9  # of z against probit: the slope of intervals without width
_MAX_PROBIT = 40.0  # beyond it a float64 level is 0 or 1


@dataclass(frozen=True)
class PointMetrics:
    """Point statistics of a sample.

    Attributes:
        bias: mean of dz.
        nmad: 1.4826 median(|dz - median(dz)|).
        outlier_fraction: fraction of sources with |dz| > 0.15.
        n: number of sources with finite z_ref and z_phot; the statistics are of these.
    """

    bias: float
    nmad: float
    outlier_fraction: float
    n: int


@dataclass(frozen=True)
class GlobalGaussian:
    """N(z_phot + shift (1 + z_phot), sigma (1 + z_phot)): one shift and width for all sources."""

    sigma: float
    shift: float


def normalised_residual(z_ref: ArrayLike, z_phot: ArrayLike) -> Floats:
    """Return dz = (z_ref - z_phot) / (1 + z_ref), shape (N,); NaN where either is not finite.

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
        z_phot: photometric redshifts, shape (N,). Pairs with a NaN are left out; `n` counts the
            others.

    Raises:
        ValueError: the shapes differ, or a reference redshift is -1 or less.
    """
    dz_N = normalised_residual(z_ref, z_phot)
    dz_N = dz_N[np.isfinite(dz_N)]
    if dz_N.size == 0:
        return PointMetrics(bias=np.nan, nmad=np.nan, outlier_fraction=np.nan, n=0)
    statistics = {name: float(value) for name, value in sample_statistics(dz_N).items()}
    return PointMetrics(**statistics, n=dz_N.size)


def interval_coverage(z_ref: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Return the fraction of sources with low <= z_ref <= high; rows with a NaN are left out."""
    return float(_mean(inside_interval(z_ref, low, high)))


def inside_interval(z_ref: ArrayLike, low: ArrayLike, high: ArrayLike) -> Floats:
    """Return 1 where low <= z_ref <= high, 0 elsewhere, NaN where one is not finite; shape (N,)."""
    z_N, low_N, high_N = (np.asarray(x, np.float64) for x in (z_ref, low, high))
    finite_N = np.isfinite(z_N) & np.isfinite(low_N) & np.isfinite(high_N)
    return np.where(finite_N, (low_N <= z_N) & (z_N <= high_N), np.nan)


def pit(z_ref: ArrayLike, quantile_NQ: ArrayLike, level_Q: ArrayLike) -> Floats:
    """Return the probability integral transform F(z_ref), shape (N,); NaN rows give NaN.

    Where the CDF jumps (intervals without width, the mass at z = 0), it is the middle of the jump.

    Args:
        z_ref: reference redshifts, shape (N,).
        quantile_NQ: quantiles of each PDF, ascending.
        level_Q: their levels, strictly ascending, between 0 and 1.

    Raises:
        ValueError: the shapes do not fit, or quantiles or levels do not ascend.
    """
    z_N, knot_NQ, probit_Q = _checked(z_ref, quantile_NQ, level_Q)
    below_N = _probit_at(z_N, knot_NQ, probit_Q, side="left")
    upto_N = _probit_at(z_N, knot_NQ, probit_Q, side="right")
    below_N[z_N <= 0] = -np.inf
    upto_N[z_N < 0] = -np.inf
    return (ndtr(below_N) + ndtr(upto_N)) / 2


def crps(z_ref: ArrayLike, quantile_NQ: ArrayLike, level_Q: ArrayLike) -> Floats:
    """Return the continuous ranked probability score, shape (N,), in redshift; NaN rows give NaN.

    It is the integral of (F(z) - 1{z >= z_ref})^2 over z (Gneiting & Raftery 2007). In each piece
    of the PDF, where z = a + b t and F = Phi(t), it is b times that of Phi(t)^2 or Phi(-t)^2.

    Args and raises: as `pit`.
    """
    z_N, knot_NQ, probit_Q = _checked(z_ref, quantile_NQ, level_Q)
    slope_NS = np.maximum(np.diff(knot_NQ) / np.diff(probit_Q), _MIN_SLOPE)
    slope_NP = np.concatenate([slope_NS[:, :1], slope_NS, slope_NS[:, -1:]], axis=1)
    anchor_P = np.maximum(np.arange(len(probit_Q) + 1) - 1, 0)
    end_N1 = np.full((len(z_N), 1), np.inf)
    low_NP = np.maximum(np.concatenate([-end_N1, knot_NQ], axis=1), 0)
    high_NP = np.maximum(np.concatenate([knot_NQ, end_N1], axis=1), 0)

    def probit(z_NP: Floats) -> Floats:
        return probit_Q[anchor_P] + (z_NP - knot_NQ[:, anchor_P]) / slope_NP

    z_N1 = z_N[:, None]
    below_NP = _phi_squared(probit(np.minimum(high_NP, z_N1))) - _phi_squared(
        probit(np.minimum(low_NP, z_N1))
    )
    above_NP = _phi_squared(-probit(np.maximum(low_NP, z_N1))) - _phi_squared(
        -probit(np.maximum(high_NP, z_N1))
    )
    return np.sum(slope_NP * (below_NP + above_NP), axis=1) + np.maximum(-z_N, 0)


def crps_of_gaussian(z_ref: ArrayLike, z_phot: ArrayLike, gaussian: GlobalGaussian) -> Floats:
    """Return the CRPS of point estimates with one relative width, shape (N,), in redshift.

    The closed form of Gneiting et al. (2005), with the mass below z = 0 moved to z = 0 as in
    `crps`. Pairs with a NaN give NaN.
    """
    ref_N, phot_N = np.asarray(z_ref, np.float64), np.asarray(z_phot, np.float64)
    sigma_N = gaussian.sigma * (1 + phot_N)
    mean_N = phot_N + gaussian.shift * (1 + phot_N)
    return sigma_N * (_unit_crps((ref_N - mean_N) / sigma_N) - _phi_squared(-mean_N / sigma_N))


def fit_global_gaussian(
    z_ref: ArrayLike, z_phot: ArrayLike, *, with_shift: bool = False
) -> GlobalGaussian:
    """Return the Gaussian with the best mean CRPS on a sample; a shift removes the bias too.

    It is fitted to the truth of the sample: no calibration with one width for all sources scores
    better. The score is jointly convex in shift and sigma, so its minimum is unique.

    Raises:
        ValueError: no pair is finite.
    """
    ref_N, phot_N = np.asarray(z_ref, np.float64), np.asarray(z_phot, np.float64)
    finite_N = np.isfinite(ref_N) & np.isfinite(phot_N)
    if not finite_N.any():
        raise ValueError("no source has both redshifts")
    weight_N = 1 + phot_N[finite_N]
    residual_N = (ref_N - phot_N)[finite_N] / weight_N
    scale = max(float(np.median(np.abs(residual_N))), 1e-6)
    weight_N /= weight_N.sum()
    residual_N /= scale

    def score(sigma_shift: Floats) -> tuple[float, Floats]:
        sigma, shift = sigma_shift
        w_N = (residual_N - shift) / sigma
        by_sigma = weight_N @ (2 * _normal(w_N) - 1 / np.sqrt(np.pi))
        by_shift = weight_N @ (1 - 2 * ndtr(w_N))
        return sigma * float(weight_N @ _unit_crps(w_N)), np.array([by_sigma, by_shift])

    from scipy.optimize import minimize  # slow to import

    fit = minimize(
        score,
        np.array([1.5, float(np.median(residual_N)) if with_shift else 0.0]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(1e-6, None), (None, None) if with_shift else (0, 0)],
        options={"ftol": 1e-12, "gtol": 1e-8},
    )
    return GlobalGaussian(sigma=float(fit.x[0]) * scale, shift=float(fit.x[1]) * scale)


def ks_uniform(pit_N: Floats) -> Floats:
    """Return the Kolmogorov-Smirnov distance to the uniform distribution, over the last axis.

    NaN are left out. For N perfect PDFs it is 0.87 / sqrt(N) on average.
    """
    u_N = np.sort(pit_N, axis=-1)  # NaN last
    n = np.count_nonzero(np.isfinite(u_N), axis=-1, keepdims=True)
    rank_N = np.arange(u_N.shape[-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        gap_N = np.maximum((rank_N + 1) / n - u_N, u_N - rank_N / n)
    distance = np.where(rank_N < n, gap_N, -np.inf).max(axis=-1, initial=-np.inf)
    return np.where(n[..., 0] > 0, distance, np.nan)


def sample_statistics(
    dz_N: Floats,
    pit_N: Floats | None = None,
    means: Mapping[str, Floats] | None = None,
) -> dict[str, Floats]:
    """Return bias, nmad, outlier_fraction, pit_ks, and the mean of each array in `means`.

    All are over the last axis. NaN in `pit_N` and `means` are left out, NaN in `dz_N` are not.
    """
    median_N1 = np.median(dz_N, axis=-1, keepdims=True)
    statistics = {
        "bias": np.mean(dz_N, axis=-1),
        "nmad": 1.4826 * np.median(np.abs(dz_N - median_N1), axis=-1),
        "outlier_fraction": np.mean(np.abs(dz_N) > OUTLIER_THRESHOLD, axis=-1),
    }
    if pit_N is not None:
        statistics["pit_ks"] = ks_uniform(pit_N)
    return statistics | {name: _mean(value_N) for name, value_N in (means or {}).items()}


def bootstrap_errors(
    dz_N: Floats,
    pit_N: Floats | None = None,
    means: Mapping[str, Floats] | None = None,
    *,
    n_resamples: int,
    rng: np.random.Generator,
) -> dict[str, float]:
    """Return the standard errors of `sample_statistics`, by the bootstrap.

    Of more than MAX_DRAWS sources only that many are drawn, and the error is scaled by
    sqrt(drawn / N): the m-out-of-n bootstrap (Bickel, Götze & van Zwet 1997). N must be at least 1.
    An error is NaN where all resamples agree, for instance on an outlier fraction of 0.
    """
    n = len(dz_N)
    n_draws = min(n, MAX_DRAWS)
    n_at_once = max(1, _DRAWS_AT_ONCE // n_draws)
    batches = []
    for start in range(0, n_resamples, n_at_once):
        row_BD = rng.integers(n, size=(min(n_at_once, n_resamples - start), n_draws))
        batches.append(
            sample_statistics(
                dz_N[row_BD],
                None if pit_N is None else pit_N[row_BD],
                {name: value_N[row_BD] for name, value_N in (means or {}).items()},
            )
        )
    scale = np.sqrt(n_draws / n)
    errors = {}
    for name in batches[0]:
        value_R = np.concatenate([batch[name] for batch in batches])
        agree = value_R.min() == value_R.max()
        errors[name] = np.nan if agree else float(scale * np.std(value_R, ddof=1))
    return errors


def _checked(
    z_ref: ArrayLike, quantile_NQ: ArrayLike, level_Q: ArrayLike
) -> tuple[Floats, Floats, Floats]:
    """Return z_ref, quantiles (rows with a missing value are all NaN) and probits of the levels."""
    z_N, knot_NQ = np.array(z_ref, np.float64), np.array(quantile_NQ, np.float64)
    levels = np.asarray(level_Q, np.float64)
    if z_N.ndim != 1 or levels.ndim != 1 or knot_NQ.shape != (len(z_N), len(levels)):
        shapes = f"{z_N.shape}, {knot_NQ.shape}, {levels.shape}"
        raise ValueError(f"the shapes of z_ref, quantile_NQ and level_Q do not fit: {shapes}")
    if len(levels) < 2 or not (np.diff(levels, prepend=0, append=1) > 0).all():
        raise ValueError(
            f"there must be two or more levels, ascending between 0 and 1, got {levels}"
        )
    missing_N = ~(np.isfinite(z_N) & np.isfinite(knot_NQ).all(axis=1))
    z_N[missing_N], knot_NQ[missing_N] = np.nan, np.nan
    if (np.diff(knot_NQ, axis=1) < 0).any():
        raise ValueError("quantiles must ascend along a row")
    return z_N, knot_NQ, ndtri(levels)


def _probit_at(z_N: Floats, knot_NQ: Floats, probit_Q: Floats, side: str) -> Floats:
    """Return t of F(z) = Phi(t): side "right" as F(z), side "left" as its limit from below."""
    passed_NQ = knot_NQ < z_N[:, None] if side == "left" else knot_NQ <= z_N[:, None]
    piece_N = np.clip(passed_NQ.sum(axis=1), 1, knot_NQ.shape[1] - 1)
    rows_N = np.arange(len(z_N))
    low_N, high_N = knot_NQ[rows_N, piece_N - 1], knot_NQ[rows_N, piece_N]
    with np.errstate(divide="ignore", invalid="ignore"):
        part_N = (z_N - low_N) / (high_N - low_N)
    # 0 / 0: z is on an outermost piece of no width, that is on a jump down to 0 or up to 1.
    on_jump_N = np.isnan(part_N) & np.isfinite(z_N)
    part_N[on_jump_N] = -np.inf if side == "left" else np.inf
    return probit_Q[piece_N - 1] + part_N * (probit_Q[piece_N] - probit_Q[piece_N - 1])


def _mean(values_N: Floats) -> Floats:
    """Return the mean over the last axis without NaN; NaN where all are NaN."""
    present_N = ~np.isnan(values_N)
    n = np.count_nonzero(present_N, axis=-1)
    total = np.sum(values_N, axis=-1, where=present_N)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)


def _normal(t: Floats) -> Floats:
    return np.exp(-0.5 * t**2) / np.sqrt(2 * np.pi)


def _unit_crps(w_N: Floats) -> Floats:
    """Return the CRPS of a standard Gaussian at w (Gneiting et al. 2005, equation 5)."""
    return w_N * (2 * ndtr(w_N) - 1) + 2 * _normal(w_N) - 1 / np.sqrt(np.pi)


def _phi_squared(t: Floats) -> Floats:
    """Return the integral of Phi^2 from minus infinity to t."""
    t = np.maximum(t, -_MAX_PROBIT)
    phi = ndtr(t)
    return t * phi**2 + 2 * phi * _normal(t) - ndtr(np.sqrt(2) * t) / np.sqrt(np.pi)
