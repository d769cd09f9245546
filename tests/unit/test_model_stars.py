"""The probability of a star, on fluxes of stars and galaxies with known ratios."""

import numpy as np
import pytest

from photozhpc.model.stars import (
    MIN_SCATTER,
    PointSources,
    extension,
    find_point_sources,
    star_probability,
)

RATIO = np.array([0.74, 0.68, 0.65])


def fluxes(n_stars, n_galaxies, seed=0):
    """flux_NCR and flux_err_NCR in two apertures; the stars come first."""
    rng = np.random.default_rng(seed)
    n = n_stars + n_galaxies
    k_N = np.append(np.zeros(n_stars), rng.uniform(0.15, 0.8, n_galaxies))
    outer_NC = 10 ** rng.uniform(0.7, 4, (n, 1)) * rng.uniform(0.5, 2, (n, 3))
    flux_NCR = np.stack([outer_NC * RATIO * (1 - k_N[:, None]), outer_NC], axis=2)
    ring = rng.standard_normal(outer_NC.shape)
    inner = rng.standard_normal(outer_NC.shape)
    flux_NCR += np.stack([inner, inner + np.sqrt(3) * ring], axis=2)
    err_NCR = np.broadcast_to([1.0, 2.0], flux_NCR.shape)
    return flux_NCR.astype(np.float32), err_NCR.astype(np.float32)


def test_stars_are_found_without_labels():
    flux_NCR, err_NCR = fluxes(200, 3000)
    found = find_point_sources(flux_NCR, err_NCR)
    np.testing.assert_allclose(found.ratio, RATIO, rtol=0.01)
    assert found.scatter == pytest.approx(MIN_SCATTER, abs=0.01)
    assert found.share == pytest.approx(200 / 3200, rel=0.2)
    p_N = star_probability(flux_NCR, err_NCR, found)
    assert p_N.sum() == pytest.approx(200, rel=0.2)
    bright_N = (flux_NCR[:, :, 1] > 100).all(axis=1)
    assert p_N[:200][bright_N[:200]].min() > 0.9
    assert p_N[200:][bright_N[200:]].max() < 0.1


def test_a_store_without_a_crowd_of_stars_gives_none():
    assert find_point_sources(*fluxes(0, 3000)) is None
    assert find_point_sources(*fluxes(5, 0)) is None
    flux_NCR, err_NCR = fluxes(100, 500)
    assert find_point_sources(flux_NCR[:, :, :1], err_NCR[:, :, :1]) is None
    assert np.isnan(star_probability(flux_NCR, err_NCR, None)).all()


def test_fluxes_without_errors_give_no_crowd():
    flux_NCR, err_NCR = fluxes(400, 2000)[:2]
    assert find_point_sources(flux_NCR, np.zeros_like(err_NCR)) is None


def test_a_faint_source_has_the_share_of_stars_and_an_unmeasured_one_has_none():
    known = PointSources(tuple(RATIO), MIN_SCATTER, 0.05)
    flux_NCR, err_NCR = fluxes(4, 0)
    flux_NCR[0] = np.nan
    flux_NCR[1, :2] = np.nan  # one band remains
    flux_NCR[2] = [0.01, 0.02]
    flux_NCR[3] = -1.0
    p_N = star_probability(flux_NCR, err_NCR, known)
    assert np.isnan(p_N[0])
    assert p_N[1] > 0.3
    assert 0.01 < p_N[2] < 0.2
    assert np.isnan(p_N[3])


def test_a_saturated_or_sharp_source_has_a_probability():
    known = PointSources(tuple(RATIO), MIN_SCATTER, 0.05)
    flux_NCR = np.array([[[3e5, 1e6]] * 3, [[0.0, 1e6]] * 3, [[9e5, 1e6]] * 3], np.float32)
    err_NCR = np.full_like(flux_NCR, 10.0)
    p_N = star_probability(flux_NCR, err_NCR, known)
    assert np.isfinite(p_N).all()
    assert (p_N >= 0).all()
    assert (p_N <= 1).all()
    assert p_N[0] < 0.01
    assert p_N[1] < 0.01
    assert p_N[2] > 0.9  # sharper than the PSF: a cosmic ray, or a star


def test_the_extension_is_estimated_with_its_error():
    known = PointSources(tuple(RATIO), MIN_SCATTER, 0.05)
    flux_NCR, err_NCR = fluxes(4000, 0, seed=1)
    k_N, error_N = extension(flux_NCR, err_NCR, known)
    good_N = error_N < 0.2
    pull_N = k_N[good_N] / np.sqrt(error_N[good_N] ** 2 - MIN_SCATTER**2)
    assert np.std(pull_N) == pytest.approx(1, abs=0.1)
