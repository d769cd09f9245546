"""Metrics against their formulas, written out, and against brute-force integrals."""

import math
import time
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import kstest, norm

from photozhpc import metrics
from photozhpc.metrics import (
    GlobalGaussian,
    bootstrap_errors,
    crps,
    crps_of_gaussian,
    fit_global_gaussian,
    interval_coverage,
    ks_uniform,
    normalised_residual,
    pit,
    point_metrics,
    sample_statistics,
)

LEVEL_Q = np.array([0.005, 0.05, 0.16, 0.84, 0.95, 0.995])
NORMAL = NormalDist()
SLOW_PROBITS = [NORMAL.inv_cdf(level) for level in LEVEL_Q]
SEEDS = st.integers(0, 2**32 - 1)


@given(seed=SEEDS, n=st.integers(1, 500))
def test_metrics_are_the_formulas_of_the_whole_sample(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    z_ref = rng.uniform(0, 3, n)
    z_phot = z_ref + rng.standard_t(2, n) * 0.1
    dz = [(r - p) / (1 + r) for r, p in zip(z_ref, z_phot, strict=True)]
    middle = float(np.median(dz))
    metrics = point_metrics(z_ref, z_phot)
    assert metrics.bias == pytest.approx(sum(dz) / n, abs=1e-12)
    assert metrics.nmad == pytest.approx(1.4826 * np.median([abs(d - middle) for d in dz]))
    assert metrics.outlier_fraction == pytest.approx(sum(abs(d) > 0.15 for d in dz) / n)
    assert metrics.n == n


def test_the_sign_and_the_median_are_those_of_the_design() -> None:
    metrics = point_metrics([1.0, 1.0], [0.0, 1.0])  # dz = 0.5, 0.0
    assert metrics.bias == 0.25
    assert metrics.nmad == pytest.approx(1.4826 * 0.25)  # NumPy's median, 0.25, not torch's 0.0
    assert metrics.outlier_fraction == 0.5


def test_pairs_without_a_value_are_left_out_and_counted() -> None:
    metrics = point_metrics([1, np.nan, 2, 3], [1, 1, np.inf, 3])
    assert (metrics.n, metrics.bias) == (2, 0.0)
    empty = point_metrics([], [])
    assert empty.n == 0
    assert np.isnan(empty.nmad)


def test_faulty_input_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        point_metrics([1, 2], [1])
    with pytest.raises(ValueError, match="above -1"):
        point_metrics([-1.0], [0.5])


def gaussian_quantiles(mean, sigma):
    return np.asarray(mean)[:, None] + np.asarray(sigma)[:, None] * norm.ppf(LEVEL_Q)


def slow_cdf(x: float, knots) -> float:
    """F(x) of the PDF that quantiles stand for, one number at a time."""
    if x < 0:
        return 0.0
    t = SLOW_PROBITS
    if x >= knots[-1]:
        i = len(knots) - 1
    else:
        i = max(1, sum(knot <= x for knot in knots))
    width = knots[i] - knots[i - 1]
    if width == 0:
        return 0.0 if x < knots[i] else 1.0
    return NORMAL.cdf(t[i - 1] + (x - knots[i - 1]) / width * (t[i] - t[i - 1]))


def slow_crps(z: float, knots) -> float:
    """The integral of (F - step)^2 by the trapezoid rule, between all kinks and far beyond."""
    reach = 12 * (knots[-1] - knots[0] + 0.05)
    kinks = sorted({0.0, z, *np.maximum(knots, 0), max(z, knots[-1]) + reach})
    total = 0.0
    for low, high in pairwise(kinks):
        x_G = np.linspace(low, high, 2001)
        x_G[0], x_G[-1] = np.nextafter(low, high), np.nextafter(high, low)  # within the piece
        gap_G = np.array([slow_cdf(x, knots) for x in x_G]) - (low >= z)
        total += trapezoid(gap_G**2, x_G)
    return total


KNOTS = {
    "bimodal": [0.30, 0.41, 0.52, 1.83, 2.01, 2.40],
    "skewed": [0.90, 0.95, 1.00, 1.20, 1.60, 3.10],
    "below zero": [-0.31, -0.12, 0.02, 0.31, 0.44, 0.62],
    "a tie inside": [0.30, 0.40, 0.90, 0.90, 1.20, 1.50],
    "ties at the ends": [0.50, 0.50, 0.80, 1.00, 1.30, 1.30],
    "no width": [0.7, 0.7, 0.7, 0.7, 0.7, 0.7],
}


@pytest.mark.parametrize("kind", KNOTS)
def test_pit_and_crps_are_those_of_the_cdf_integrated_by_brute_force(kind: str) -> None:
    knots = KNOTS[kind]
    z_N = np.array([0.004, 0.2, 0.5, 0.7, 0.9, 1.0, 1.3, 1.7, 2.6, 5.0])
    quantile_NQ = np.tile(knots, (len(z_N), 1))
    tiny = 1e-12
    expected = [(slow_cdf(z - tiny, knots) + slow_cdf(z + tiny, knots)) / 2 for z in z_N]
    np.testing.assert_allclose(pit(z_N, quantile_NQ, LEVEL_Q), expected, atol=1e-7)
    some = slice(1, None, 3)
    expected = [slow_crps(z, knots) for z in z_N[some]]
    found_N = crps(z_N[some], quantile_NQ[some], LEVEL_Q)
    np.testing.assert_allclose(found_N, expected, rtol=2e-5, atol=1e-7)


def test_crps_is_twice_the_pinball_loss_over_all_levels() -> None:
    """Gneiting & Raftery 2007: the same score from the quantile function instead of the CDF."""
    q_G = (np.arange(2_000_000) + 0.5) / 2_000_000
    t_Q, t_G = norm.ppf(LEVEL_Q), norm.ppf(q_G)
    for kind in ("bimodal", "below zero"):
        knots = np.array(KNOTS[kind])
        slopes = np.diff(knots) / np.diff(t_Q)
        z_G = np.interp(t_G, t_Q, knots)
        z_G = np.where(t_G < t_Q[0], knots[0] + slopes[0] * (t_G - t_Q[0]), z_G)
        z_G = np.where(t_G > t_Q[-1], knots[-1] + slopes[-1] * (t_G - t_Q[-1]), z_G)
        z_G = np.maximum(z_G, 0)
        for z in (0.1, 0.6, 2.2):
            loss = np.mean(2 * ((z <= z_G) - q_G) * (z_G - z))
            assert crps([z], [knots], LEVEL_Q)[0] == pytest.approx(loss, rel=1e-5)


@given(seed=SEEDS)
@settings(max_examples=30)
def test_a_gaussian_has_its_closed_forms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean_N, sigma_N = rng.uniform(2, 3, 50), rng.uniform(0.01, 0.2, 50)  # none of it below 0
    z_N = mean_N + sigma_N * rng.standard_t(3, 50).clip(-9, 9)
    quantile_NQ = gaussian_quantiles(mean_N, sigma_N)
    w_N = (z_N - mean_N) / sigma_N
    phi_N = np.array([0.5 * (1 + math.erf(w / math.sqrt(2))) for w in w_N])
    density_N = np.exp(-(w_N**2) / 2) / math.sqrt(2 * math.pi)
    closed_N = sigma_N * (w_N * (2 * phi_N - 1) + 2 * density_N - 1 / math.sqrt(math.pi))
    np.testing.assert_allclose(pit(z_N, quantile_NQ, LEVEL_Q), phi_N, atol=1e-12)
    np.testing.assert_allclose(crps(z_N, quantile_NQ, LEVEL_Q), closed_N, rtol=1e-9, atol=1e-13)
    one = GlobalGaussian(sigma=0.05, shift=0.01)
    expected_N = crps(
        z_N, gaussian_quantiles(mean_N + 0.01 * (1 + mean_N), 0.05 * (1 + mean_N)), LEVEL_Q
    )
    np.testing.assert_allclose(crps_of_gaussian(z_N, mean_N, one), expected_N, rtol=1e-9)


def test_a_gaussian_that_reaches_below_zero_is_folded_in_both_forms() -> None:
    z_phot_N = np.array([0.02, 0.1, 0.3])
    one = GlobalGaussian(sigma=0.2, shift=-0.05)
    quantile_NQ = gaussian_quantiles(z_phot_N - 0.05 * (1 + z_phot_N), 0.2 * (1 + z_phot_N))
    z_N = np.array([0.1, 0.01, 0.9])
    expected_N = crps(z_N, quantile_NQ, LEVEL_Q)
    np.testing.assert_allclose(crps_of_gaussian(z_N, z_phot_N, one), expected_N, rtol=1e-9)
    assert pit([0.0], quantile_NQ[:1], LEVEL_Q)[0] == pytest.approx(
        slow_cdf(0.0, quantile_NQ[0]) / 2  # the middle of the jump at 0
    )


def test_a_calibrated_gaussian_covers_what_it_says() -> None:
    rng = np.random.default_rng(5)
    n = 40_000
    mean_N, sigma_N = rng.uniform(1, 3, n), rng.uniform(0.02, 0.2, n)
    z_N = rng.normal(mean_N, sigma_N)
    quantile_NQ = gaussian_quantiles(mean_N, sigma_N)
    for low, high, level in ((2, 3, 0.68), (1, 4, 0.90), (0, 5, 0.99)):
        found = interval_coverage(z_N, quantile_NQ[:, low], quantile_NQ[:, high])
        assert abs(found - level) < 4 * math.sqrt(level * (1 - level) / n)
    assert ks_uniform(pit(z_N, quantile_NQ, LEVEL_Q)) < 2 / math.sqrt(n)  # exceeded by 0.07%
    expected = float(np.mean(sigma_N)) / math.sqrt(math.pi)  # mean CRPS of a perfect Gaussian
    assert np.mean(crps(z_N, quantile_NQ, LEVEL_Q)) == pytest.approx(expected, rel=0.02)


def test_rows_that_miss_something_are_left_out() -> None:
    assert interval_coverage([1, 1, np.nan, 1], [0, 2, 0, np.nan], [1, 3, 2, 2]) == 0.5
    assert np.isnan(interval_coverage([], [], []))
    quantile_NQ = np.tile(KNOTS["bimodal"], (3, 1))
    quantile_NQ[1, 2] = np.nan
    for score in (pit, crps):
        found_N = score([1.0, 1.0, np.nan], quantile_NQ, LEVEL_Q)
        assert np.isfinite(found_N).tolist() == [True, False, False]


def test_faulty_quantiles_are_refused() -> None:
    with pytest.raises(ValueError, match="quantiles must ascend"):
        pit([1.0], [[1, 2, 3, 2.9, 4, 5]], LEVEL_Q)
    with pytest.raises(ValueError, match="two or more levels"):
        crps([1.0], [[1, 2]], [0.5, 0.5])
    with pytest.raises(ValueError, match="do not fit"):
        crps([1.0, 2.0], [[1, 2]], [0.2, 0.5])


@given(seed=SEEDS, n=st.integers(1, 200))
def test_ks_is_scipys(seed: int, n: int) -> None:
    u_N = np.random.default_rng(seed).beta(1, 1.3, n).round(2)  # with ties
    expected = kstest(u_N, "uniform").statistic
    assert ks_uniform(u_N) == pytest.approx(expected, abs=1e-12)
    with_nan_BN = np.array([np.append(u_N, [np.nan, np.nan]), np.full(n + 2, np.nan)])
    found_B = ks_uniform(with_nan_BN)
    assert found_B[0] == pytest.approx(expected, abs=1e-12)
    assert np.isnan(found_B[1])


@pytest.mark.parametrize("tail", [1.5, 3, 50])
def test_the_global_gaussian_has_the_best_score(tail: float) -> None:
    rng = np.random.default_rng(3)
    z_ref_N = rng.uniform(2, 4, 800)
    z_phot_N = z_ref_N + (0.02 + 0.03 * rng.standard_t(tail, 800).clip(-15, 15)) * (1 + z_ref_N)
    z_phot_N = z_phot_N.clip(0.5)

    def score(sigma: float, shift: float) -> float:
        s_N, m_N = sigma * (1 + z_phot_N), z_phot_N + shift * (1 + z_phot_N)
        w_N = (z_ref_N - m_N) / s_N
        closed_N = w_N * (2 * norm.cdf(w_N) - 1) + 2 * norm.pdf(w_N) - 1 / math.sqrt(math.pi)
        return float(np.mean(s_N * closed_N))

    found = fit_global_gaussian(z_ref_N, z_phot_N)
    best = minimize_scalar(lambda s: score(s, 0), bounds=(1e-4, 1), options={"xatol": 1e-9})
    assert found.shift == 0
    assert found.sigma == pytest.approx(best.x, rel=1e-4)
    found = fit_global_gaussian(z_ref_N, z_phot_N, with_shift=True)
    slow = minimize(
        lambda x: score(math.exp(x[0]), x[1]),
        [-3, 0],
        method="Nelder-Mead",
        options={"xatol": 1e-8},
    )
    assert found.sigma == pytest.approx(math.exp(slow.x[0]), rel=1e-3)
    assert found.shift == pytest.approx(slow.x[1], abs=1e-5)
    assert score(found.sigma, found.shift) <= slow.fun + 1e-12


def test_the_global_gaussian_of_odd_samples() -> None:
    perfect = fit_global_gaussian([1.0, 2.0, np.nan], [1.0, 2.0, 1.0], with_shift=True)
    assert 0 < perfect.sigma < 1e-6
    with pytest.raises(ValueError, match="no source has both"):
        fit_global_gaussian([np.nan], [1.0])


def sample(n: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    z_ref_N = rng.uniform(0, 3, n)
    dz_N = normalised_residual(z_ref_N, z_ref_N + 0.1 * rng.standard_t(3, n))
    inside_N = np.where(rng.random(n) < 0.9, rng.random(n) < 0.68, np.nan)
    return dz_N, rng.beta(1.2, 1, n), {"coverage68": inside_N, "crps": rng.exponential(1, n)}


def test_bootstrap_errors_are_those_of_a_loop_over_resamples(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "_DRAWS_AT_ONCE", 700)  # several batches
    dz_N, pit_N, means = sample(301)
    errors = bootstrap_errors(dz_N, pit_N, means, n_resamples=40, rng=np.random.default_rng(9))
    rng = np.random.default_rng(9)
    slow: dict[str, list[float]] = {name: [] for name in errors}
    for start in range(0, 40, 2):
        for row_D in rng.integers(301, size=(min(2, 40 - start), 301)):
            dz_D = dz_N[row_D]
            slow["bias"].append(np.mean(dz_D))
            slow["nmad"].append(1.4826 * np.median(np.abs(dz_D - np.median(dz_D))))
            slow["outlier_fraction"].append(np.mean(np.abs(dz_D) > 0.15))
            slow["pit_ks"].append(kstest(pit_N[row_D], "uniform").statistic)
            slow["coverage68"].append(np.nanmean(means["coverage68"][row_D]))
            slow["crps"].append(np.mean(means["crps"][row_D]))
    assert errors == pytest.approx({name: np.std(s, ddof=1) for name, s in slow.items()})


@pytest.mark.parametrize("n", [1500, 20_000])  # the second above MAX_DRAWS
def test_bootstrap_errors_are_the_known_ones(n: int) -> None:
    dz_N, pit_N, means = sample(n)
    errors = bootstrap_errors(dz_N, pit_N, means, n_resamples=800, rng=np.random.default_rng(0))
    outliers = np.mean(np.abs(dz_N) > 0.15)
    assert errors["bias"] == pytest.approx(np.std(dz_N) / math.sqrt(n), rel=0.1)
    expected = math.sqrt(outliers * (1 - outliers) / n)
    assert errors["outlier_fraction"] == pytest.approx(expected, rel=0.1)
    assert errors["coverage68"] == pytest.approx(math.sqrt(0.68 * 0.32 / (0.9 * n)), rel=0.1)
    anew = [sample_statistics(sample(n, seed)[0])["nmad"] for seed in range(100, 250)]
    assert errors["nmad"] == pytest.approx(np.std(anew), rel=0.25)


def test_resamples_that_agree_tell_no_error() -> None:
    errors = bootstrap_errors(np.full(30, 0.1), n_resamples=10, rng=np.random.default_rng(0))
    assert np.isnan(list(errors.values())).all()


def test_five_hundred_resamples_of_six_thousand_sources_are_quick(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "MAX_DRAWS", 6000)
    dz_N, pit_N, means = sample(6000)
    started = time.process_time()
    bootstrap_errors(dz_N, pit_N, means, n_resamples=500, rng=np.random.default_rng(0))
    assert time.process_time() - started < 2
