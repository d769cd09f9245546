"""Dimmed fluxes: fainter, and as noisy as a galaxy that is as faint."""

import pytest
import torch

from photozhpc.model.dimming import dimmed_fluxes, draw_factors, noise_to_add


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_factors_are_exponential_in_magnitudes() -> None:
    mag_N = -2.5 * draw_factors(200_000, 0.5, torch.Generator().manual_seed(1)).log10()
    assert mag_N.min() >= 0
    assert mag_N.mean().item() == pytest.approx(0.5, rel=0.01)
    assert mag_N.std().item() == pytest.approx(0.5, rel=0.02)


def test_nested_apertures_get_the_noise_that_a_fainter_galaxy_has() -> None:
    """Apertures of 1, 4 and 9 pixels of unit noise, in any order, have the covariance min(n, m)."""
    n_pix = torch.tensor([4.0, 1.0, 9.0])
    flux_NCR = torch.full((100_000, 1, 3), 50.0)
    err_NCR = n_pix.sqrt().expand(100_000, 1, 3).clone()
    factor_N = torch.full((100_000,), 0.6)
    dimmed_NCR = dimmed_fluxes(flux_NCR, err_NCR, factor_N, _generators(1))
    expected = torch.minimum(n_pix[:, None], n_pix) * noise_to_add(factor_N[:1]) ** 2
    assert dimmed_NCR.mean(0).flatten() == pytest.approx(torch.full((3,), 30.0), abs=0.05)
    torch.testing.assert_close(dimmed_NCR[:, 0].T.cov(), expected, rtol=0.03, atol=0.03)


def test_what_is_not_measured_stays_so_and_a_factor_of_1_changes_nothing() -> None:
    flux_NCR = torch.tensor([[[5.0, torch.nan], [3.0, 4.0]]]).repeat(2, 1, 1)
    err_NCR = torch.tensor([[[1.0, torch.nan], [torch.inf, 2.0]]]).repeat(2, 1, 1)
    same = dimmed_fluxes(flux_NCR, err_NCR, torch.ones(2), _generators(1, 2))
    torch.testing.assert_close(same, flux_NCR, equal_nan=True)
    half = dimmed_fluxes(flux_NCR, err_NCR, torch.full((2,), 0.5), _generators(1, 2))
    assert torch.equal(half.isnan(), flux_NCR.isnan())
    assert half[0, 1, 0].item() == 1.5  # no error: no noise
    assert half[0, 0, 0].item() != 2.5


def test_each_generator_has_its_share_of_the_sources() -> None:
    flux_NCR, err_NCR, factor_N = torch.zeros(4, 2, 3), torch.ones(4, 2, 3), torch.full((4,), 0.5)
    both = dimmed_fluxes(flux_NCR, err_NCR, factor_N, _generators(1, 2))
    second = dimmed_fluxes(flux_NCR[2:], err_NCR[2:], factor_N[2:], _generators(2))
    assert torch.equal(both[2:], second)
