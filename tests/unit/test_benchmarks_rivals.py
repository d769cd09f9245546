"""What the comparisons with other methods rest on (benchmarks/rivals.py)."""

from pathlib import Path

import numpy as np
import pytest
from rivals import Grid, Result, chosen, geometric_mean, kept, on_grid, paired, scores, stacked

GRID = Grid(64, 4.0)


def result(z_N: np.ndarray, width: float, seed: int, shift: float = 0.0) -> Result:
    """Gaussian densities that are as wide as their errors."""
    error_N = np.random.default_rng(seed).normal(0, width, len(z_N))
    density_NK = GRID.kernels(np.expm1((np.log1p(z_N) + error_N + shift).clip(0)), width)
    return Result(density_NK, GRID.median(density_NK), density_NK, {"width": width}, 1.0)


@pytest.fixture(scope="module")
def z_N() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.3, 2.5, 1500)


def test_scores_of_gaussians_are_those_of_gaussians(z_N: np.ndarray) -> None:
    row = scores(GRID, result(z_N, 0.05, 1), z_N)
    assert row["nmad"] == pytest.approx(0.05, abs=4 * row["nmad_err"])
    assert row["bias"] == pytest.approx(0, abs=0.006)
    assert row["coverage_68"] == pytest.approx(68, abs=4)
    assert row["pit_ks"] < 0.04
    # Of a Gaussian: sigma / sqrt(pi), here with sigma = 0.05 (1 + z).
    assert row["crps"] == pytest.approx(0.05 * (1 + z_N).mean() / np.sqrt(np.pi), rel=0.05)


def test_paired_differences_are_of_the_same_galaxies(z_N: np.ndarray) -> None:
    ours, other = result(z_N, 0.05, 1), result(z_N, 0.06, 1)
    found = paired(GRID, [other, other], [ours, ours], z_N)
    separate = [scores(GRID, r, z_N) for r in (other, ours)]
    assert found["nmad"]["difference"] == pytest.approx(separate[0]["nmad"] - separate[1]["nmad"])
    # The errors of the two go together, and cancel.
    assert found["crps"]["error"] < 0.5 * separate[0]["crps_err"]
    assert found["nmad"]["better_percent"] > 99
    same = paired(GRID, [ours], [ours], z_N)["nmad"]
    assert (same["difference"], same["error"], same["better_percent"]) == (0, 0, 0)


def test_a_stack_of_independent_errors_is_better_than_each(z_N: np.ndarray) -> None:
    a, b = result(z_N, 0.06, 1), result(z_N, 0.06, 2)
    pool = stacked(a, b, z_N, GRID)
    assert 0.3 <= pool.settings["share"] <= 0.7
    assert GRID.crps(pool.density_MK, z_N).mean() < 0.9 * GRID.crps(a.density_MK, z_N).mean()
    useless = result(z_N, 0.06, 3, shift=0.5)
    assert stacked(a, useless, z_N, GRID).settings["share"] >= 0.9
    np.testing.assert_allclose(geometric_mean([a.density_MK], [1.0]), a.density_MK, atol=2e-3)


def test_the_labels_choose_the_setting(z_N: np.ndarray) -> None:
    good, bad = result(z_N, 0.05, 1), result(z_N, 0.2, 2)
    trials = [({"n": i}, r.labels_NK, lambda r=r: r.density_MK) for i, r in enumerate((bad, good))]
    found = chosen(trials, z_N, GRID, 0.0)
    assert found.settings["n"] == 1
    np.testing.assert_array_equal(found.density_MK, good.density_MK)


def test_a_result_is_made_once(z_N: np.ndarray, tmp_path: Path) -> None:
    made = []

    def make() -> Result:
        made.append(1)
        return result(z_N, 0.05, 1)

    path = tmp_path / "folder" / "r.npz"
    first, again = kept(path, make), kept(path, make)
    assert len(made) == 1
    assert first.settings == again.settings == {"width": 0.05}
    np.testing.assert_array_equal(first.density_MK, again.density_MK)
    np.testing.assert_allclose(first.density_MK, make().density_MK, atol=1e-3)
    assert first.quantile_MQ.size == 0


def test_a_density_on_an_even_grid_keeps_its_mean() -> None:
    z_P = np.linspace(0, 4, 401)
    mean_N = np.array([0.5, 1.7])
    pdf_NP = np.exp(-(((z_P - mean_N[:, None]) / 0.1) ** 2) / 2)
    pdf_NP /= np.trapezoid(pdf_NP, z_P)[:, None]
    density_NK = on_grid(GRID, pdf_NP, z_P)
    np.testing.assert_allclose(density_NK.sum(axis=1), 1, atol=1e-5)
    middle_K = (GRID.edge_E[1:] + GRID.edge_E[:-1]) / 2
    np.testing.assert_allclose(density_NK @ middle_K, mean_N, atol=0.005)
