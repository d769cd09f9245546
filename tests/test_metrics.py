"""Point metrics against their formulas, written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from photozhpc.metrics import point_metrics


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 500))
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
