"""Densities and their calibration: against slow oracles, and where the truth is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from photozhpc.model.conformal import (
    TAIL_LABELS,
    WINDOW_LABELS,
    WINDOW_SHARE,
    Labels,
    conformal_level,
    effective_number,
    fit_smooth_map,
    level_table,
)
from photozhpc.model.density import (
    FIRST_LEVEL_Q,
    FLOOR,
    LEVEL_Q,
    N_KNOTS,
    Uncertainty,
    cdf_at,
    cumulative,
    interpolate,
    inverse_cdf,
    least_risk,
    pooled,
)
from photozhpc.model.density_fit import (
    fit_distance,
    fit_heads,
    log_density,
    selection_weights,
    smoothed,
)


def random_density(n: int, n_bins: int, seed: int, sharpness: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharpness * torch.randn(n, n_bins, generator=generator)).softmax(dim=1)


@given(seed=st.integers(0, 2**32 - 1), sharpness=st.floats(0, 60), n_bins=st.integers(2, 300))
@settings(max_examples=40, deadline=None)
def test_cdf_and_its_inverse_are_linear_between_the_edges(seed, sharpness, n_bins) -> None:
    density = random_density(4, n_bins, seed, sharpness)
    cdf = cumulative(density)
    assert cdf.shape == (4, n_bins + 1)
    rng = np.random.default_rng(seed)
    place, level = rng.random(4).astype(np.float32), rng.random((4, 3)).astype(np.float32)
    edge = np.linspace(0, 1, n_bins + 1)
    exact = (1 - FLOOR) * density.double().numpy() + FLOOR / n_bins
    exact = np.pad(np.cumsum(exact, axis=1), ((0, 0), (1, 0)))
    found = cdf_at(cdf, torch.from_numpy(place)).numpy()
    inverse = inverse_cdf(cdf, torch.from_numpy(level)).numpy()
    rounding = 1e-6 + 2e-7 * n_bins  # of a place, where one bin holds all
    for row in range(4):
        expected = np.interp(place[row], edge, exact[row])
        np.testing.assert_allclose(found[row], expected, atol=rounding)
        # Where the density is at its floor, a rounding error of the level moves the place.
        back = np.interp(inverse[row], edge, exact[row])
        np.testing.assert_allclose(back, level[row], atol=rounding)
    ends = inverse_cdf(cdf, torch.tensor([[0.0, 1.0]]).expand(4, 2))
    assert torch.equal(ends, torch.tensor([[0.0, 1.0]]).expand(4, 2))


def test_interpolation_is_numpys() -> None:
    rng = np.random.default_rng(0)
    knot, value = np.sort(rng.normal(size=N_KNOTS)), rng.normal(size=(N_KNOTS, 3))
    x = np.concatenate([rng.normal(0, 2, 200), knot])
    found = interpolate(*(torch.from_numpy(a) for a in (x, knot, value))).numpy()
    for column in range(3):
        np.testing.assert_allclose(found[:, column], np.interp(x, knot, value[:, column]))


@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0, 1e3),
    brightness=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_quantiles_ascend_whatever_the_network_says(seed, scale, brightness) -> None:
    torch.manual_seed(seed)
    uncertainty = Uncertainty(5, 3, (8,), 2, 50, 6.0)
    level = torch.rand(N_KNOTS, len(LEVEL_Q)).sort(dim=1).values
    level[torch.rand(level.shape) < 0.2] = float(torch.randint(0, 2, ()))
    uncertainty.level_GQ.copy_(level.sort(dim=1).values)
    uncertainty.knot_G.copy_((10 * torch.randn(N_KNOTS)).sort().values + torch.arange(N_KNOTS))
    inputs = scale * torch.randn(len(brightness), 5)
    with torch.inference_mode():
        quantile = uncertainty.quantiles(uncertainty.cdf(inputs), torch.tensor(brightness))
    assert (quantile.diff(dim=1) >= 0).all()
    assert (quantile >= 0).all()
    assert (quantile <= 6.0 + 1e-5).all()


def test_nothing_is_said_before_the_calibration() -> None:
    uncertainty = Uncertainty(5, 3, (8,), 2, 50, 6.0)
    assert not uncertainty.is_fitted
    cdf = uncertainty.cdf(torch.randn(2, 5))
    assert uncertainty.quantiles(cdf, torch.zeros(2)).isnan().all()
    assert uncertainty.ood(torch.randn(2, 3)).isnan().all()
    assert not any(parameter.requires_grad for parameter in uncertainty.parameters())


def test_smoothed_labels_are_a_gaussian_of_the_wanted_width() -> None:
    target = smoothed(torch.tensor([0.3, 0.0, 1.0]), 400, 0.02)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(3))
    centre = (torch.arange(400) + 0.5) / 400
    mean = target[0] @ centre
    assert mean == pytest.approx(0.3, abs=1e-4)
    assert (target[0] @ (centre - mean) ** 2).sqrt() == pytest.approx(0.02, rel=0.01)
    density = random_density(3, 7, 0)
    found = log_density(density, torch.tensor([0.0, 0.5, 1.0])).exp()
    expected = [(1 - FLOOR) * density[row, b] + FLOOR / 7 for row, b in enumerate((0, 3, 6))]
    torch.testing.assert_close(found, torch.stack(expected))


def slow_upper_level(pit: np.ndarray, weight: np.ndarray, level: float) -> float:
    """The smallest PIT, or 1, that holds `level` of the weight, a new source lying above it."""
    total = weight.sum() + weight.mean()
    below = 0.0
    for candidate, its_weight in sorted(zip(pit, weight, strict=True)):
        below += its_weight
        if below / total >= level:
            return candidate
    return 1.0


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 6000), q=st.sampled_from(LEVEL_Q))
@settings(max_examples=40, deadline=None)
def test_conformal_levels_are_weighted_quantiles_of_the_nearest_labels(seed, n, q) -> None:
    rng = np.random.default_rng(seed)
    labels = Labels(rng.random(n), rng.normal(size=n), rng.exponential(size=n))
    window = max(WINDOW_LABELS, round(n * WINDOW_SHARE), round(TAIL_LABELS / min(q, 1 - q)))
    near = np.argsort(np.abs(labels.brightness_N - 0.3))[:window]
    pit, weight = labels.pit_N[near], labels.weight_N[near]
    if q >= 0.5:
        expected = slow_upper_level(pit, weight, q)
    else:
        expected = 1 - slow_upper_level(1 - pit, weight, 1 - q)
    assert conformal_level(labels, 0.3, q) == pytest.approx(expected)


def test_a_few_labels_give_intervals_that_are_too_wide_not_too_narrow() -> None:
    """The guarantee of conformal prediction holds on average over samples, at any size."""
    rng = np.random.default_rng(0)
    for n in (5, 30, 150):
        above = []
        for _ in range(400):
            labels = Labels(rng.random(n) ** 2, np.zeros(n), np.ones(n))
            above.append([conformal_level(labels, 0.0, q) for q in LEVEL_Q])
        share = np.sqrt(np.array(above)).mean(axis=0)  # P(PIT < level) of PIT = u^2
        assert (share[:4] <= np.array(LEVEL_Q[:4]) + 0.004).all()
        assert (share[4:] >= np.array(LEVEL_Q[4:]) - 0.004).all()
    alone = level_table(*[Labels(np.array([0.4]), np.array([1.0]), np.ones(1))] * 2,
                        np.arange(3.0), LEVEL_Q)  # fmt: skip
    assert (alone[:, :4] == 0).all()
    assert (alone[:, 5:] == 1).all()
    assert ((alone[:, 4] > 0) & (alone[:, 4] < 1)).all()


def test_the_smooth_map_finds_the_distortion_it_is_made_of() -> None:
    rng = np.random.default_rng(1)
    brightness = rng.uniform(0, 4, 20_000)
    truth = rng.standard_normal(20_000)  # probit of the calibrated PIT
    probit = (truth - (0.3 - 0.2 * brightness)) / np.exp(0.1 * brightness - 0.4)
    labels = Labels(norm.cdf(probit), brightness, np.ones(20_000))
    smooth = fit_smooth_map(labels)
    np.testing.assert_allclose(
        norm.ppf(smooth.apply(labels.pit_N, brightness)), truth, rtol=0.05, atol=0.05
    )
    level = rng.random(20_000)
    np.testing.assert_allclose(
        smooth.invert(smooth.apply(level, brightness), brightness), level, atol=1e-9
    )
    few = fit_smooth_map(Labels(np.array([0.9, 0.99]), np.array([1.0, 2.0]), np.ones(2)))
    assert max(map(abs, (*few.shift, *few.stretch))) < 0.5  # held by the prior


def coverage(pit: np.ndarray, level_NQ: np.ndarray) -> np.ndarray:
    return np.array(
        [np.mean((pit > level_NQ[:, q]) & (pit < level_NQ[:, -1 - q])) for q in (3, 2, 0)]
    )


def at_knots(table: np.ndarray, knot: np.ndarray, brightness: np.ndarray) -> np.ndarray:
    return np.stack(
        [np.interp(brightness, knot, table[:, q]) for q in range(table.shape[1])], axis=1
    )


def test_weights_undo_the_selection_of_the_labels() -> None:
    """A feature that doubles the errors also makes labels rare: only weights can know."""
    rng = np.random.default_rng(2)
    n = 12_000
    feature = rng.normal(size=(n, 3)).astype(np.float32)
    brightness = feature[:, 0].astype(np.float64)
    labelled = rng.random(n) < 1 / (1 + np.exp(2 * feature[:, 1]))
    error = np.where(feature[:, 1] > 0, 2.0, 0.7) * rng.standard_normal(n)
    pit = norm.cdf(error)  # of a density that thinks every error is 1
    knot = np.quantile(brightness, np.linspace(0.02, 0.98, 24))
    weight = selection_weights(feature, labelled, feature, seed=0)
    rows = np.flatnonzero(labelled)
    deviation = {}
    for name, weights in (("weighted", weight), ("equal", np.ones(n))):
        shape, conformal = (
            Labels(pit[r], brightness[r], weights[r]) for r in (rows[::4], rows[rows % 4 != 0])
        )
        table = level_table(shape, conformal, knot, LEVEL_Q)
        found = coverage(pit[~labelled], at_knots(table, knot, brightness[~labelled]))
        everyone = coverage(pit, at_knots(table, knot, brightness))
        deviation[name] = everyone - [0.68, 0.90, 0.99]
        assert found[0] < everyone[0]
    assert np.abs(deviation["weighted"]).max() < 0.025
    assert deviation["equal"][0] < -0.07
    share = effective_number(weight[rows]) / len(rows)
    assert 0.2 < share < 0.9
    truth = 1 + np.exp(2 * feature[rows, 1].astype(np.float64))
    inner = np.abs(feature[rows, 1]) < 1.5
    assert np.median(np.abs(weight[rows] / truth - 1)[inner]) < 0.15


def test_all_labelled_means_no_weights() -> None:
    feature = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    assert (selection_weights(feature, np.ones(50, bool), feature, 0) == 1).all()


def draw(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Features and redshifts: scatter grows with feature 0, two solutions where feature 2 > 0."""
    x = rng.uniform(-1, 1, size=(n, 3)).astype(np.float32)
    second = (x[:, 2] > 0) & (rng.random(n) < 0.35)
    scatter = 0.02 + 0.08 * (x[:, 0] + 1)
    log1p = 0.6 + 0.3 * x[:, 1] + np.where(second, 0.5, 0.0) + scatter * rng.standard_normal(n)
    return x, np.expm1(np.maximum(log1p, 1e-3))


@pytest.fixture(scope="module")
def synthetic() -> tuple[Uncertainty, dict[str, np.ndarray]]:
    """Heads fitted to 1500 selected labels; what is known of 6000 others; a fair sample."""
    rng = np.random.default_rng(3)
    x, z = draw(30_000, rng)
    chosen = rng.random(len(x)) < 1 / (1 + np.exp(3 * x[:, 0]))  # where scatter is small
    labels, others = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    uncertainty = Uncertainty(3, 3, (48,), 2, 64, 6.0)
    fit, check, shape = np.split(labels[:3000], [1500, 2000])
    fit_heads(uncertainty, x[fit], z[fit], x[check], z[check], 450, seed=0)
    conformal = labels[3000:9000]
    assert len(conformal) == 6000
    images = np.concatenate([labels[3000:], others])
    weight = selection_weights(x[images], np.isin(images, labels), x, seed=0)
    x_new, z_new = draw(20_000, rng)
    with torch.no_grad():
        pit, pit_new = (
            cdf_at(uncertainty.cdf(torch.from_numpy(a)), uncertainty.position(torch.from_numpy(b)))
            .numpy()
            .astype(np.float64)
            for a, b in ((x, z), (x_new, z_new))
        )
    known = {"x": x, "pit": pit, "weight": weight, "shape": shape, "conformal": conformal}
    return uncertainty, {**known, "x_new": x_new, "z_new": z_new, "pit_new": pit_new}


def test_intervals_hold_their_share_in_every_bin_where_raw_ones_do_not(synthetic) -> None:
    uncertainty, known = synthetic
    brightness = -known["x"][:, 0].astype(np.float64)
    sets = (
        Labels(known["pit"][r], brightness[r], known["weight"][r])
        for r in (known["shape"], known["conformal"])
    )
    knot = np.quantile(brightness, (np.arange(N_KNOTS) + 0.5) / N_KNOTS)
    uncertainty.knot_G.copy_(torch.from_numpy(knot))
    uncertainty.level_GQ.copy_(torch.from_numpy(level_table(*sets, knot, LEVEL_Q)))
    new = -known["x_new"][:, 0]
    with torch.no_grad():
        cdf = uncertainty.cdf(torch.from_numpy(known["x_new"]))
        quantile = uncertainty.quantiles(cdf, torch.from_numpy(new)).numpy()
    raw = np.tile(LEVEL_Q, (len(new), 1))
    nominal, worst_raw = np.array([0.68, 0.90, 0.99]), 0.0
    inside = [
        (known["z_new"] >= quantile[:, q]) & (known["z_new"] <= quantile[:, -1 - q])
        for q in (3, 2, 0)
    ]
    assert np.abs(np.mean(inside, axis=1) - nominal).max() < 0.02
    for low in np.arange(-1, 1, 0.25):
        rows = (new >= low) & (new < low + 0.25)
        assert rows.sum() > 2000
        found = np.array([i[rows].mean() for i in inside])
        assert np.abs(found - nominal).max() < 0.045
        off = coverage(known["pit_new"][rows], raw[rows]) - nominal
        worst_raw = max(worst_raw, np.abs(off).max())
    assert worst_raw > 0.06


def test_a_density_has_two_peaks_where_the_truth_has(synthetic) -> None:
    uncertainty, _ = synthetic
    x = torch.tensor([[-0.5, 0.0, 0.5], [-0.5, 0.0, -0.5]])
    with torch.no_grad():
        cdf = uncertainty.cdf(x)
    edge = torch.linspace(0, 1, 65) * uncertainty.log1p_max
    between = [cdf[:, (edge - at).abs().argmin()] for at in (0.85, 1.3)]
    second = between[1] - between[0]
    assert second[0] == pytest.approx(0.35, abs=0.12)
    assert second[1] < 0.5 * second[0]


def test_fitting_is_repeatable_and_leaves_torchs_random_state_alone() -> None:
    rng = np.random.default_rng(0)
    x, z = draw(300, rng)
    heads = []
    for _ in range(2):
        uncertainty = Uncertainty(3, 3, (16,), 2, 20, 6.0)
        before = torch.get_rng_state()
        fit_heads(uncertainty, x[:200], z[:200], x[200:], z[200:], 3, seed=5)
        selection_weights(x, z > 1, x, seed=5)
        assert torch.equal(before, torch.get_rng_state())
        heads.append(uncertainty.state_dict())
    for name, tensor in heads[0].items():
        torch.testing.assert_close(tensor, heads[1][name], rtol=0, atol=0, equal_nan=True)
    first, second = (heads[0][f"heads.{n}.0.weight"] for n in (0, 1))
    assert not torch.equal(first, second)


def test_distances_are_mahalanobis_and_scaled_to_the_training_images() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(4, 4))
    latent = (rng.normal(size=(20_000, 4)) @ mixing + 5).astype(np.float32)
    uncertainty = Uncertainty(4, 4, (8,), 1, 10, 6.0)
    fit_distance(uncertainty, latent)
    ood = uncertainty.ood(torch.from_numpy(latent)).numpy()
    assert np.mean(ood > 1) == pytest.approx(0.01, abs=2e-4)
    offset = latent.astype(np.float64) - latent.mean(axis=0)
    inverse = np.linalg.inv(np.cov(latent.astype(np.float64), rowvar=False))
    exact = np.sqrt(np.einsum("nd,de,ne->n", offset, inverse, offset))
    np.testing.assert_allclose(ood, exact / np.quantile(exact, 0.99), rtol=0.05)


def test_a_pool_is_the_geometric_mean_with_weights() -> None:
    one, other = random_density(5, 12, seed=0), random_density(5, 12, seed=1)
    floor = [(1 - FLOOR) * d.double().numpy() + FLOOR / 12 for d in (one, other)]
    product = floor[0] ** 0.7 * floor[1] ** 0.3
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pooled(one, other, 0.3), expected, rtol=1e-4)
    np.testing.assert_allclose(pooled(one, other, 0.0), floor[0], rtol=1e-4)
    np.testing.assert_allclose(pooled(one, other, torch.tensor(1.0)), floor[1], rtol=1e-4)


def test_least_risk_is_in_the_most_probable_peak() -> None:
    """Compared with a search over 4000 redshifts."""
    z_max, n_bins = 4.0, 256
    middle_K = np.expm1((np.arange(n_bins) + 0.5) / n_bins * np.log1p(z_max))
    peaks_K = 0.6 * norm.pdf(middle_K, 0.5, 0.05) + 0.4 * norm.pdf(middle_K, 2.5, 0.1)
    random_BK = np.random.default_rng(0).dirichlet(np.full(n_bins, 0.02), 6)
    density_BK = np.vstack([peaks_K / peaks_K.sum(), random_BK])
    found_B = least_risk(torch.from_numpy(density_BK).float(), z_max).numpy()
    guess_G = np.expm1(np.linspace(0.003, 1, 4000) * np.log1p(z_max))
    dz_KG = (middle_K[:, None] - guess_G) / (1 + middle_K[:, None])
    risk_BG = density_BK @ (1 - 1 / (1 + (dz_KG / 0.15) ** 2))
    least_B = risk_BG.min(axis=1)
    dz_KB = (middle_K[:, None] - found_B) / (1 + middle_K[:, None])
    risk_B = (density_BK.T * (1 - 1 / (1 + (dz_KB / 0.15) ** 2))).sum(axis=0)
    np.testing.assert_allclose(risk_B, least_B, rtol=2e-3)
    assert abs(found_B[0] - 0.5) < 0.05


def test_a_model_file_with_fewer_levels_keeps_its_intervals() -> None:
    """Of the intervals that were calibrated, none changes; the others are between them."""
    first = [LEVEL_Q.index(level) for level in FIRST_LEVEL_Q]
    old = {name: t.clone() for name, t in Uncertainty(5, 3, (8,), 2, 50, 6.0).state_dict().items()}
    old["level_GQ"] = torch.rand(N_KNOTS, len(FIRST_LEVEL_Q)).sort(dim=1).values
    uncertainty = Uncertainty(5, 3, (8,), 2, 50, 6.0)
    uncertainty.load_state_dict(dict(old))
    assert torch.equal(uncertainty.level_GQ[:, first], old["level_GQ"])
    assert (uncertainty.level_GQ.diff(dim=1) >= 0).all()
    even = torch.tensor(FIRST_LEVEL_Q).expand(N_KNOTS, -1)
    uncertainty.load_state_dict(old | {"level_GQ": even})
    torch.testing.assert_close(uncertainty.level_GQ, torch.tensor(LEVEL_Q).expand(N_KNOTS, -1))
    uncertainty.load_state_dict(old | {"level_GQ": even * torch.nan})
    assert uncertainty.level_GQ.isnan().all()
