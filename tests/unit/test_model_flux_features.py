import numpy as np
import pytest
import torch

from photozhpc.model.flux_expert import FluxExpert, FluxExpertConfig, fit_flux_expert
from photozhpc.model.flux_features import FluxFeatures

N_BANDS, N_APERTURES = 4, 2
R_C = np.array([2.5, 1.5, 0.7, 0.5])


def _fluxes(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    flux_NCR = 10 ** rng.normal(1, 1, (n, N_BANDS, N_APERTURES)) + rng.normal(
        0, 3, (n, N_BANDS, N_APERTURES)
    )
    return flux_NCR, rng.uniform(1, 5, flux_NCR.shape), rng.uniform(0, 0.2, n)


def _fitted(*columns: np.ndarray) -> FluxFeatures:
    features = FluxFeatures(N_BANDS, N_APERTURES, noise=True).double()
    features.extinction_r_C.copy_(torch.from_numpy(R_C))
    features.fit(*map(torch.from_numpy, columns))
    return features


def _slow(flux_NCR: np.ndarray, err_NCR: np.ndarray, ebv_N: np.ndarray) -> np.ndarray:
    """The features before scaling, source by source, in NumPy."""
    used_NCR = np.isfinite(flux_NCR) & np.isfinite(err_NCR) & (err_NCR > 0)
    rows = []
    for flux_CR, err_CR, ebv in zip(flux_NCR, err_NCR, ebv_N, strict=True):
        colours, noises, flags = [], [], []
        for r in range(N_APERTURES):
            soft_C = [
                np.sort(err_NCR[used_NCR[:, c, r], c, r])[(used_NCR[:, c, r].sum() - 1) // 2]
                for c in range(N_BANDS)
            ]
            gain_C = 10 ** (0.4 * ebv * R_C)
            log_C = np.arcsinh(flux_CR[:, r] * gain_C / 2 / soft_C) / np.log(10) + np.log10(soft_C)
            known_C = np.isfinite(log_C)
            if known_C.any():
                log_C = np.interp(np.arange(N_BANDS), np.flatnonzero(known_C), log_C[known_C])
            colours.append([*(log_C[:-1] - log_C[1:]), log_C[-1]])
            bad_C = ~known_C | ~(err_CR[:, r] > 0)
            err_C = np.where(bad_C, np.nan, err_CR[:, r])
            noises.append(np.log10(err_C * gain_C / soft_C))
            flags.append(known_C.astype(float))
        rows.append(np.concatenate([np.array(x).T for x in (colours, flags, noises)]).ravel())
    return np.array(rows)


def test_features_agree_with_a_loop_over_the_formulas() -> None:
    flux_NCR, err_NCR, ebv_N = _fluxes(200)
    rng = np.random.default_rng(1)
    flux_NCR[rng.random(flux_NCR.shape) < 0.2] = np.nan
    err_NCR[rng.random(flux_NCR.shape) < 0.1] = 0
    flux_NCR[3] = np.nan
    features = _fitted(flux_NCR, err_NCR, ebv_N)
    tensors = list(map(torch.from_numpy, (flux_NCR, err_NCR, ebv_N)))
    expected_NF = _slow(flux_NCR, err_NCR, ebv_N)
    np.testing.assert_allclose(features.raw(*tensors), expected_NF, rtol=1e-6)
    feature_NF = features(*tensors).numpy()
    scaled_NF = (expected_NF - np.nanmean(expected_NF, 0)) / np.nanstd(expected_NF, 0)
    np.testing.assert_allclose(feature_NF, np.nan_to_num(scaled_NF), atol=1e-5)
    assert feature_NF[3, :2].tolist() == [0, 0]


def test_bands_that_no_training_source_lacks_do_not_upset_a_prediction() -> None:
    columns = _fluxes(300)
    features = _fitted(*columns)
    one = [torch.from_numpy(column[:1].copy()) for column in columns]
    one[0][0, 1] = torch.nan
    feature_F = features(*one)[0]
    assert feature_F.abs().max() < 10
    n = N_BANDS * N_APERTURES
    assert (feature_F[n : 2 * n] == 0).all()


@pytest.mark.parametrize("faint_cut", [False, True])
def test_errors_that_are_not_given_follow_from_the_fluxes(faint_cut: bool) -> None:
    rng = np.random.default_rng(0)
    flux_NCR = 10 ** rng.normal(0.5, 1, (3000, N_BANDS, N_APERTURES))
    flux_NCR += rng.normal(0, 2, flux_NCR.shape)
    if faint_cut:
        flux_NCR = np.where(flux_NCR > 10, flux_NCR, np.nan)
    unknown_NCR = np.full_like(flux_NCR, np.nan)
    features = FluxFeatures(N_BANDS, N_APERTURES).double()
    columns = tuple(map(torch.from_numpy, (flux_NCR, unknown_NCR, np.zeros(3000))))
    features.fit(*columns)
    np.testing.assert_allclose(features.softening_CR, 2, rtol=0.25)
    assert features(*columns).std(dim=0).max() < 1.1
    snr_NCR = features.snr(*columns[:2]).numpy()
    np.testing.assert_allclose(snr_NCR, flux_NCR / features.softening_CR.numpy())


def test_a_band_that_no_training_source_has_is_not_used() -> None:
    flux_NCR, err_NCR, ebv_N = _fluxes(50)
    complete = [torch.from_numpy(column[:1].copy()) for column in (flux_NCR, err_NCR, ebv_N)]
    flux_NCR[:, 2] = np.nan
    features = _fitted(flux_NCR, err_NCR, ebv_N)
    without = [column.clone() for column in complete]
    without[0][:, 2] = torch.nan
    assert torch.equal(features(*complete), features(*without))
    assert features(*complete).isfinite().all()


def test_the_expert_learns_redshifts_and_returns_what_it_said_of_those_it_had_not_seen() -> None:
    rng = np.random.default_rng(0)
    z_N = rng.uniform(0, 2, 400)
    flux_NC = 100 * np.stack([np.ones(400), 1 + z_N, 1 + z_N**2, 2 + z_N], 1)
    flux_NCR = torch.from_numpy((flux_NC + rng.normal(0, 1, flux_NC.shape))[:, :, None]).float()
    columns = flux_NCR, torch.ones_like(flux_NCR), torch.zeros(400), torch.from_numpy(z_N)
    held_out_N = torch.arange(400) % 8 == 0
    config = FluxExpertConfig(widths=(64,), networks=2, bins=64, dropout=0.1)

    def densities() -> tuple[torch.Tensor, torch.Tensor]:
        expert = FluxExpert(config)
        held_out_MK = fit_flux_expert(expert, *columns, held_out_N, steps=200, seed=3)
        with torch.no_grad():
            return held_out_MK, expert.eval()(*columns[:3])

    held_out_MK, density_NK = densities()
    edge_E = np.expm1(np.linspace(0, np.log(5), 65))
    median_N = edge_E[(density_NK.cumsum(1) < 0.5).sum(1)]
    assert np.median(np.abs(median_N - z_N)) < 0.15  # 0.5 without fluxes
    assert held_out_MK.shape == (50, 64)
    assert torch.equal(held_out_MK, density_NK[held_out_N])  # one fold, which no network has seen
    again = densities()
    assert torch.equal(again[0], held_out_MK)
    assert torch.equal(again[1], density_NK)
