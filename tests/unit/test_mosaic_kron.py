"""Ellipse sums against SEP and photutils; Kron apertures against SEP and GalSim's HSM."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import galsim
import numpy as np
import pandas as pd
import pytest
import sep
from hypothesis import given, settings
from hypothesis import strategies as st
from photutils.aperture import EllipticalAperture, aperture_photometry

from photozhpc.errors import StoreError
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic.ellipses import sum_ellipses
from photozhpc.mosaic.kron import kron_apertures
from photozhpc.mosaic.measure import forced_photometry, noise_weights
from photozhpc.mosaic.photometry import PhotFlag, local_sky, sum_circles
from photozhpc.mosaic.tile import read_tile
from photozhpc.store import CutoutStore
from photozhpc.store.manifest import own_digest
from photozhpc.survey import load_survey

SEEDS = st.integers(0, 2**32 - 1)
SURVEY = load_survey("roman-sim")
PSF_SIGMA = 1.2
LIMIT = 43.6


def make_ellipses(seed: int, n: int = 20, shape: tuple[int, int] = (60, 80)):
    rng = np.random.default_rng(seed)
    image = rng.normal(1, 2, (2, *shape)).astype(np.float32)
    err = rng.uniform(0.5, 2, image.shape).astype(np.float32)
    y, x = rng.uniform(-6, shape[0] + 6, n), rng.uniform(-6, shape[1] + 6, n)
    y[:4], x[:4] = np.round(y[:4] * 2) / 2, np.round(x[:4] * 2) / 2  # on centres and on edges
    a = rng.uniform(0.2, 12, n)
    b = a * rng.uniform(0.05, 1, n)
    theta = rng.uniform(-np.pi / 2, np.pi / 2, n)
    b[4], theta[5], theta[6] = a[4], 0.0, np.pi / 2
    return image, err, y, x, a, b, theta


def photutils_sums(image, y, x, a, b, theta, err=None):
    """Exact sums, one ellipse at a time; 0 where one is off the image."""
    sums = []
    for row in zip(x, y, a, b, theta, strict=True):
        aperture = EllipticalAperture(row[:2], *row[2:4], theta=row[4])
        table = aperture_photometry(image, aperture, error=err, method="exact")
        sums.append([table[name][0] for name in table.colnames if name.startswith("aperture_sum")])
    return np.nan_to_num(np.array(sums).T)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_sum_ellipses_agrees_with_sep(seed):
    image, err, y, x, a, b, theta = make_ellipses(seed)
    flux, flux_err, flags, _ = sum_ellipses(image, y, x, a, b, theta, err)
    for c in range(2):
        want, want_err, _ = sep.sum_ellipse(image[c], x, y, a, b, theta, 1.0, err=err[c], subpix=0)
        on = (flags[:, c] & PhotFlag.NO_DATA) == 0
        # SEP 1.4 gives a thin ellipse on a pixel's very centre or corner up to 6% too much area
        # (an area of ones is not pi a b); those are for photutils, below.
        sound = ~((np.arange(len(b)) < 4) & (b < 0.71))
        on, want, want_err = on[sound], want[sound], want_err[sound]
        np.testing.assert_allclose(flux[sound, c][on], want[on], atol=1e-8)
        np.testing.assert_allclose(flux_err[sound, c][on], want_err[on], rtol=1e-6, atol=1e-6)
        assert np.isnan(flux[sound, c][~on]).all()
        assert np.allclose(want[~on], 0)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, fraction=st.sampled_from([0.0, 0.05, 0.9]))
def test_bad_pixels_and_edges_are_as_photutils_has_them_with_zeros(seed, fraction):
    image, err, y, x, a, b, theta = make_ellipses(seed)
    kind = np.random.default_rng(seed).choice(
        5, image.shape[1:], p=[1 - fraction, *[fraction / 4] * 4]
    )
    mask, bad = kind == 1, kind > 0
    shape = (y, x, a, b, theta)
    clean = np.where(bad, 0, image[0]).astype(float), np.where(bad, 0, err[0]).astype(float)
    want, want_err = photutils_sums(clean[0], *shape, clean[1])
    area = photutils_sums((~bad).astype(float), *shape)[0]
    image[:, kind == 2], image[:, kind == 3], err[:, kind == 4] = np.nan, np.inf, np.nan
    flux, flux_err, flags, summed = sum_ellipses(image[0], *shape, err[0], mask)
    lost = (flags & PhotFlag.NO_DATA) != 0
    assert np.array_equal(lost, ~(area > 1e-9))
    np.testing.assert_allclose(summed, area, atol=1e-8)
    np.testing.assert_allclose(flux[~lost], want[~lost], atol=1e-8)
    np.testing.assert_allclose(flux_err[~lost], want_err[~lost], atol=1e-5)
    for flag, of in ((PhotFlag.MASKED, mask), (PhotFlag.NON_FINITE, kind > 1)):
        touched = photutils_sums(of.astype(float), *shape)[0]
        assert np.array_equal((flags & flag) != 0, touched > 1e-9)
    whole = (flags & (PhotFlag.EDGE | PhotFlag.OFF_TILE)) == 0
    full = sum_ellipses(np.ones(image.shape[1:]), *shape)[0]
    np.testing.assert_allclose(full[whole], np.pi * a[whole] * b[whole], rtol=1e-12, atol=1e-12)
    assert np.all(np.nan_to_num(full[~whole]) < (np.pi * a * b)[~whole])


def test_a_circle_is_that_of_sum_circles_and_odd_ellipses_are_flagged():
    image, err, y, x, a, _, theta = make_ellipses(3)
    for n in range(20):
        ours = sum_ellipses(image[0], y[n], x[n], a[n], a[n], theta[n], err[0])
        for got, want in zip(ours, sum_circles(image[0], y[n], x[n], a[n], err[0]), strict=False):
            np.testing.assert_allclose(got, want, atol=1e-9)
    flux, _, flags, area = sum_ellipses(
        np.ones((20, 30)), [5, 5, np.nan, 500, 10], [5] * 5, [np.nan, 0, 2, 2, 1e6], 2, 0.3
    )
    assert np.isnan(flux[:4]).all()
    assert np.all(flags[:4] & PhotFlag.NO_DATA)
    assert np.all(flags[2:4] & PhotFlag.OFF_TILE)
    assert 0 < flux[4] == area[4] <= 600
    assert flags[4] == PhotFlag.EDGE
    with pytest.raises(ValueError, match="err_CHW must have"):
        sum_ellipses(np.ones((20, 30)), 5, 5, 2, 2, 0, np.ones((20, 31)))
    with pytest.raises(ValueError, match="axes"):
        sum_ellipses(np.ones(20), 5, 5, 2, 2, 0)


def galaxies(seed: int = 1, noise: float = 1.0):
    """36 galaxies in 3 bands, each alone on 100 px: (image_CHW, y, x, flux_NC)."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, noise, (3, 600, 600))
    middle = np.arange(6) * 100 + 50
    y = np.repeat(middle, 6) + rng.uniform(-0.5, 0.5, 36)
    x = np.tile(middle, 6) + rng.uniform(-0.5, 0.5, 36)
    flux = rng.uniform(2000, 20_000, (36, 3))
    for n in range(36):
        disk = galsim.Exponential(half_light_radius=rng.uniform(1, 5))
        shape = disk.shear(g1=rng.uniform(-0.3, 0.3), g2=rng.uniform(-0.3, 0.3))
        i, j = round(y[n]), round(x[n])
        stamp = galsim.Convolve(shape, galsim.Gaussian(sigma=PSF_SIGMA)).drawImage(
            nx=99, ny=99, scale=1, offset=(x[n] - j, y[n] - i)
        )
        image[:, i - 49 : i + 50, j - 49 : j + 50] += flux[n, :, None, None] * stamp.array
    return image.astype(np.float32), y, x, flux


@pytest.fixture(scope="module")
def scene():
    return galaxies()


WEIGHT_C = np.array([1.0, 2.0, 0.5])


def test_the_kron_radius_is_seps_on_the_weighted_sum(scene):
    image, y, x, _ = scene
    sky_NC = np.tile([0.3, -0.2, 0.1], (36, 1))
    found = kron_apertures(image, WEIGHT_C, y, x, PSF_SIGMA, LIMIT, sky_NC)
    summed = np.average(image - sky_NC[0][:, None, None], axis=0, weights=WEIGHT_C)
    shape = (found.a_N, found.b_N, found.theta_N)
    for n in range(36):
        reach = min(6.0, LIMIT / found.a_N[n])
        row = slice(n, n + 1)
        want, _ = sep.kron_radius(summed, x[row], y[row], *(v[row] for v in shape), reach)
        assert found.kron_radius_N[n] == pytest.approx(want[0], rel=1e-6)
    scale = np.maximum(2.5 * found.kron_radius_N, 3.5)
    np.testing.assert_allclose(found.scale_N, np.minimum(scale, LIMIT / found.a_N))
    limited = scale * found.a_N > LIMIT
    assert np.array_equal(found.flags_N, np.where(limited, int(PhotFlag.KRON_LIMITED), 0))


def test_the_ellipse_is_that_of_galsims_adaptive_moments(scene):
    image, y, x, _ = scene
    summed = np.average(image, axis=0, weights=WEIGHT_C)
    for n in range(0, 36, 5):
        i, j = round(y[n]), round(x[n])
        box = np.ascontiguousarray(summed[i - 49 : i + 50, j - 49 : j + 50])
        hsm = galsim.hsm.FindAdaptiveMom(
            galsim.Image(box, xmin=j - 49, ymin=i - 49),
            guess_centroid=galsim.PositionD(x[n], y[n]),
        )
        middle = hsm.moments_centroid
        found = kron_apertures(summed, [3.5], middle.y, middle.x, PSF_SIGMA, LIMIT)
        a, b, theta = found.a_N[0], found.b_N[0], found.theta_N[0]
        assert np.sqrt(a * b) == pytest.approx(hsm.moments_sigma, rel=1e-3)
        e = (a**2 - b**2) / (a**2 + b**2)
        assert e * np.cos(2 * theta) == pytest.approx(hsm.observed_shape.e1, abs=1e-3)
        assert e * np.sin(2 * theta) == pytest.approx(hsm.observed_shape.e2, abs=1e-3)


def test_kron_fluxes_hold_nearly_all_light_of_every_band(scene):
    image, y, x, flux = scene
    found = kron_apertures(image, WEIGHT_C, y, x, PSF_SIGMA, LIMIT)
    axes = (found.scale_N * found.a_N, found.scale_N * found.b_N, found.theta_N)
    kept = sum_ellipses(image, y, x, *axes)[0] / flux
    # Within 2.5 r_k lie 96% of an exponential disk (Kron 1980; Graham & Driver 2005, sec. 3.2).
    assert kept.min() > 0.94
    assert np.median(kept) == pytest.approx(0.965, abs=0.01)
    assert kept.max() < 1.01


def test_without_a_shape_the_aperture_is_a_point_sources(scene):
    image, y, x, _ = scene
    nothing = np.random.default_rng(0).normal(0, 1, image.shape)
    noise = kron_apertures(nothing, WEIGHT_C, y, x, PSF_SIGMA, LIMIT)
    empty = kron_apertures(np.full_like(image, np.nan), WEIGHT_C, y, x, PSF_SIGMA, LIMIT)
    unused = kron_apertures(image, np.zeros(3), y, x, PSF_SIGMA, LIMIT)
    spike = np.zeros((50, 50))
    spike[20, 20] = 1e4
    cosmic = kron_apertures(spike, [1.0], 20.0, 20.0, PSF_SIGMA, LIMIT)
    for found in (noise, empty, unused, cosmic):
        assert np.all(found.flags_N == PhotFlag.KRON_MINIMUM)
        assert np.all(found.a_N == PSF_SIGMA)
        assert np.all(found.b_N == PSF_SIGMA)
        assert np.all(found.scale_N == 3.5)
        assert np.isnan(found.kron_radius_N).all()
    off = kron_apertures(image, WEIGHT_C, [-3.0, np.nan], [5.0, 5.0], PSF_SIGMA, LIMIT)
    assert np.all(off.flags_N == PhotFlag.OFF_TILE)
    assert np.isnan(off.a_N).all()


def test_an_aperture_is_cut_at_the_limit(scene):
    image, y, x, _ = scene
    found = kron_apertures(image, WEIGHT_C, y, x, PSF_SIGMA, 9.0)
    assert np.all(found.scale_N * found.a_N <= 9.0 + 1e-9)
    assert np.all(found.b_N <= found.a_N + 1e-12)
    limited = found.flags_N == PhotFlag.KRON_LIMITED
    assert limited.sum() > 20
    np.testing.assert_allclose((found.scale_N * found.a_N)[limited], 9.0)


def test_a_neighbour_far_away_does_not_change_the_ellipse_and_bad_pixels_do_little(scene):
    image, y, x, _ = scene
    alone = kron_apertures(image, WEIGHT_C, y, x, PSF_SIGMA, LIMIT)
    ring = np.hypot(*(np.indices(image.shape[1:]) - np.array([y[7], x[7]])[:, None, None]))
    shaped = image.copy()
    shaped[:, (ring > 5.5 * alone.a_N[7]) & (ring < 30)] += 50
    beside = kron_apertures(shaped, WEIGHT_C, y[7], x[7], PSF_SIGMA, LIMIT)
    assert beside.a_N[0] == pytest.approx(alone.a_N[7], rel=1e-12)
    assert beside.kron_radius_N[0] > alone.kron_radius_N[7]  # as SExtractor's, were it not masked
    holes = image.copy()
    holes[1, np.random.default_rng(0).random(image.shape[1:]) < 0.05] = np.nan
    holed = kron_apertures(holes, WEIGHT_C, y, x, PSF_SIGMA, LIMIT)
    np.testing.assert_allclose(holed.scale_N * holed.a_N, alone.scale_N * alone.a_N, rtol=0.15)


def test_a_neighbours_pixels_are_those_that_lie_opposite(scene):
    """Against the image with these pixels put in by NumPy; SExtractor's MASK_TYPE CORRECT."""
    image, y, x, _ = scene
    y, x = np.round(y), np.round(x)
    rng = np.random.default_rng(1)
    others = np.stack([y[7] + rng.uniform(-25, 25, 6), x[7] + rng.uniform(-25, 25, 6)])
    i, j = np.indices(image.shape[1:])
    own = np.hypot(i - y[7], j - x[7])

    def anothers(i, j):
        away = np.hypot(i - others[0][:, None, None], j - others[1][:, None, None])
        return (away < np.hypot(i - y[7], j - x[7])).any(axis=0)

    near = np.s_[:, int(y[7]) - 45 : int(y[7]) + 46, int(x[7]) - 45 : int(x[7]) + 46]
    put = image[near].copy()
    lost = anothers(i, j)[near[1:]]
    assert 0.2 < lost[own[near[1:]] < 40].mean() < 0.9
    put[:, lost] = put[:, ::-1, ::-1][:, lost]
    put[:, lost & lost[::-1, ::-1]] = np.nan
    want = kron_apertures(put, WEIGHT_C, 45, 45, PSF_SIGMA, LIMIT)
    field = (np.append(others[0], [y[7], np.nan]), np.append(others[1], [x[7], 3]))
    found = kron_apertures(image, WEIGHT_C, y[7], x[7], PSF_SIGMA, LIMIT, None, *field)
    for name in vars(found):
        np.testing.assert_allclose(getattr(found, name), getattr(want, name), rtol=1e-9)
    alone = kron_apertures(image, WEIGHT_C, y[7], x[7], PSF_SIGMA, LIMIT, None, y[7], x[7])
    plain = kron_apertures(image, WEIGHT_C, y[7], x[7], PSF_SIGMA, LIMIT)
    assert alone.scale_N == plain.scale_N


def test_a_pair_that_is_listed_does_not_share_an_aperture():
    yy, xx = np.indices((120, 120))
    one, two = (np.exp(-np.hypot(yy - 60, xx - c) / 2.0) * 100 for c in (50.0, 63.0))
    y, x = [60.0, 60.0], [50.0, 63.0]
    alone = kron_apertures(one, [1.0], 60.0, 50.0, PSF_SIGMA, LIMIT)
    blind = kron_apertures(one + two, [1.0], y, x, PSF_SIGMA, LIMIT)
    listed = kron_apertures(one + two, [1.0], y, x, PSF_SIGMA, LIMIT, None, y, x)
    radius = alone.scale_N[0] * alone.a_N[0]
    assert np.all(blind.scale_N * blind.a_N > 1.4 * radius)
    np.testing.assert_allclose(listed.scale_N * listed.a_N, radius, rtol=0.1)


def test_forced_photometry_is_the_parts_put_together(small_sky: Path):
    tile = read_tile(find_mosaics(small_sky, SURVEY)["sim000005t0000"], SURVEY)
    listed = pd.read_parquet(small_sky / "sim000005t0000_cat.parquet")
    y, x = tile.sky_to_pixel(listed["ra"], listed["dec"])
    found = forced_photometry(tile, y, x, SURVEY)
    weight_C = noise_weights(tile.err_CHW)
    np.testing.assert_allclose(weight_C, np.nanmedian(tile.err_CHW, axis=(1, 2)) ** -2.0, rtol=0.02)
    fwhm = np.average([band.psf_fwhm_arcsec**2 for band in SURVEY.bands], weights=weight_C) ** 0.5
    r_in, r_out = np.array(SURVEY.sky_annulus_arcsec) / tile.pixel_scale_arcsec
    sigma = fwhm / 2.3548 / tile.pixel_scale_arcsec
    kron = kron_apertures(tile.image_CHW, weight_C, y, x, sigma, r_in, found.sky_NC, y, x)
    inside = np.flatnonzero(np.minimum.reduce([y, x, 699 - y, 699 - x]) > 60)
    for n in inside[:20]:
        for c in range(4):
            image, err = tile.image_CHW[c], tile.err_CHW[c]
            sky, sky_err, _ = local_sky(image, y[n], x[n], r_in, r_out)
            ellipse = (
                x[n : n + 1],
                y[n : n + 1],
                kron.a_N[n],
                kron.b_N[n],
                kron.theta_N[n],
                kron.scale_N[n],
            )
            bad = ~np.isfinite(image)
            sums = [
                sep.sum_ellipse(np.where(bad, 0, plane).astype(float), *ellipse, subpix=0)[0][0]
                for plane in (image, err**2, ~bad)
            ]
            assert found.kron_flux_NC[n, c] == pytest.approx(sums[0] - sums[2] * sky[0], abs=0.05)
            want_err = np.sqrt(sums[1] + (sums[2] * sky_err[0]) ** 2)
            assert found.kron_flux_err_NC[n, c] == pytest.approx(want_err, rel=1e-4)


def test_kron_fluxes_are_near_those_of_source_extractors_own_detection(small_sky: Path):
    """SEP in dual-image mode: isophotal ellipses of the weighted sum, its sky, F158."""
    tile = read_tile(find_mosaics(small_sky, SURVEY)["sim000005t0000"], SURVEY)
    weight_C = noise_weights(tile.err_CHW)
    image = np.ma.masked_invalid(tile.image_CHW)
    summed = np.ma.average(image, axis=0, weights=weight_C).filled(0).astype(np.float32)
    sky = sep.Background(summed)
    seen = sep.extract(summed - sky, 3.0, err=sky.globalrms)
    shape = (seen["x"], seen["y"], seen["a"], seen["b"], seen["theta"])
    scale = np.maximum(2.5 * sep.kron_radius(summed - sky, *shape, 6.0)[0], 3.5)
    f158 = image[3].filled(0)
    auto = sep.sum_ellipse(f158 - sep.Background(f158), *shape, scale, subpix=0)[0]
    # SEP does not mask neighbours.
    found = forced_photometry(tile, seen["y"], seen["x"], SURVEY, field_K=((), ()))
    inside = np.minimum.reduce([shape[1], shape[0], 699 - shape[1], 699 - shape[0]]) > 60
    bright = inside & (auto > 300) & ((found.flags_NC[:, 3] & PhotFlag.KRON_LIMITED) == 0)
    assert bright.sum() > 15
    ratio = found.kron_flux_NC[bright, 3] / auto[bright]
    assert np.median(ratio) == pytest.approx(1, abs=0.1)  # the skies differ
    assert np.mean(np.abs(ratio - np.median(ratio)) < 0.15) > 0.8


def test_kron_fluxes_of_a_store_and_stores_of_before(small_store: CutoutStore, tmp_path: Path):
    key = small_store.shards()[0]
    measured = small_store.read_measurements(key)
    assert np.isfinite(measured.kron_flux_NC).mean() > 0.95  # null at the edge
    assert np.all(measured.kron_flux_err_NC[np.isfinite(measured.kron_flux_NC)] > 0)
    old = tmp_path / "old"
    shutil.copytree(small_store.path, old)
    document = json.loads((old / "zarr.json").read_bytes())
    about = document["attributes"]["photozhpc"]
    del about["sha256"]
    about["format"] = 1
    about["sha256"] = own_digest(about)
    (old / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"format 1, .* extract it again"):
        CutoutStore.open(old)


def test_a_survey_without_an_annulus_limits_the_ellipse_by_the_cutout(small_sky: Path):
    survey = replace(SURVEY, sky_annulus_arcsec=(), cutout_size=16)
    tile = read_tile(find_mosaics(small_sky, SURVEY)["sim000005t0000"], survey)
    y, x = np.array([300.0, np.nan]), np.array([300.0, 5.0])
    found = forced_photometry(tile, y, x, survey)
    assert np.isfinite(found.kron_flux_NC[0]).all()
    assert np.isnan(found.kron_flux_NC[1]).all()
    assert (found.flags_NC[1] & PhotFlag.OFF_TILE).all()


def test_of_an_ellipse_that_is_mostly_lost_there_is_no_flux(small_sky: Path):
    """A wide galaxy whose left side, and more, is bad in one band."""
    tile = read_tile(find_mosaics(small_sky, SURVEY)["sim000005t0000"], SURVEY)
    listed = pd.read_parquet(small_sky / "sim000005t0000_cat.parquet")
    y, x = tile.sky_to_pixel(listed["ra"], listed["dec"])
    before = forced_photometry(tile, y, x, SURVEY)
    inside = np.minimum.reduce([y, x, 699 - y, 699 - x]) > 60
    n = np.argmax(np.where(inside, before.kron_flux_NC[:, 3], 0))
    for shift, is_there in ((-4, True), (1, False)):
        image_CHW = tile.image_CHW.copy()
        image_CHW[1, :, : int(x[n]) + shift] = np.nan
        found = forced_photometry(replace(tile, image_CHW=image_CHW), y[n], x[n], SURVEY)
        there = np.isfinite(found.kron_flux_NC[0])
        assert there.tolist() == [True, is_there, True, True]
        assert np.array_equal(there, np.isfinite(found.kron_flux_err_NC[0]))
        assert found.flags_NC[0, 1] & PhotFlag.NON_FINITE
        assert np.isfinite(found.flux_NCR[0, 1]).any()
