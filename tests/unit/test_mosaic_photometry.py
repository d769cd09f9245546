"""Aperture sums and the local sky against SEP and photutils."""

import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
import sep
from astropy.stats import SigmaClip
from hypothesis import given, settings
from hypothesis import strategies as st
from photutils.aperture import (
    ApertureStats,
    CircularAnnulus,
    CircularAperture,
    aperture_photometry,
)

from photozhpc.mosaic.photometry import PhotFlag, local_sky, sum_circles

SEEDS = st.integers(0, 2**32 - 1)


def make_image(seed: int, shape: tuple[int, int] = (60, 80)):
    rng = np.random.default_rng(seed)
    image = rng.normal(1, 2, shape).astype(np.float32)
    err = rng.uniform(0.5, 2, shape).astype(np.float32)
    y, x = rng.uniform(-6, shape[0] + 6, 30), rng.uniform(-6, shape[1] + 6, 30)
    y[:5], x[:5] = np.round(y[:5] * 2) / 2, np.round(x[:5] * 2) / 2  # on centres and on edges
    return image, err, y, x


def photutils_sums(image, y, x, radius, err=None, mask=None):
    table = aperture_photometry(
        image,
        CircularAperture(np.column_stack([x, y]), radius),
        error=err,
        mask=mask,
        method="exact",
    )
    sums = np.array(table["aperture_sum"])
    return sums, None if err is None else np.array(table["aperture_sum_err"])


@settings(deadline=None)
@given(seed=SEEDS, radius_pix=st.floats(1.5, 8.0))
def test_sum_circles_agrees_with_sep(seed, radius_pix):
    image, err, y, x = make_image(seed)
    flux, flux_err, flags = sum_circles(image, y, x, radius_pix, err)
    want, want_err, want_flags = sep.sum_circle(image, x, y, radius_pix, err=err, subpix=0)
    on = (flags & PhotFlag.NO_DATA) == 0
    np.testing.assert_allclose(flux[on], want[on], atol=1e-9)
    np.testing.assert_allclose(flux_err[on], want_err[on], rtol=1e-6, atol=1e-6)
    assert np.all(want[~on] == 0)
    assert np.isnan(flux[~on]).all()
    # SEP rounds towards zero and misses a circle that leaves the image by less than a pixel.
    edge = (flags & PhotFlag.EDGE) != 0
    assert np.all(edge[(want_flags & sep.APER_TRUNC) != 0])
    area, _, _ = sum_circles(np.ones_like(image), y, x, radius_pix)
    assert np.all(edge[on][area[on] < np.pi * radius_pix**2 - 1e-9])
    nearest = np.min([y + 0.5, x + 0.5, image.shape[0] - 0.5 - y, image.shape[1] - 0.5 - x], axis=0)
    assert not np.any(edge[nearest > radius_pix])


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, radius_pix=st.floats(0.05, 45.0))
def test_sum_circles_agrees_with_photutils_also_where_the_edge_cuts(seed, radius_pix):
    image, err, y, x = make_image(seed)
    flux, flux_err, _ = sum_circles(image, y, x, radius_pix, err)
    want, want_err = photutils_sums(image.astype(float), y, x, radius_pix, err.astype(float))
    both = np.isfinite(flux) & np.isfinite(want)
    assert both.any()
    np.testing.assert_allclose(flux[both], want[both], atol=1e-8)
    np.testing.assert_allclose(flux_err[both], want_err[both], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, radius_pix=st.floats(0.5, 12.0), fraction=st.sampled_from([0.01, 0.2, 0.95]))
def test_masked_and_non_finite_pixels_contribute_nothing(seed, radius_pix, fraction):
    image, err, y, x = make_image(seed)
    rng = np.random.default_rng(seed + 1)
    kind = np.where(rng.random(image.shape) < fraction, rng.integers(1, 5, image.shape), 0)
    mask, bad = kind == 1, kind > 0
    want, want_err = photutils_sums(
        np.where(bad, 0, image).astype(float), y, x, radius_pix, np.where(bad, 0, err).astype(float)
    )
    area, _ = photutils_sums((~bad).astype(float), y, x, radius_pix)
    image[kind == 2], image[kind == 3], err[kind == 4] = np.nan, -np.inf, np.nan
    flux, flux_err, flags = sum_circles(image, y, x, radius_pix, err, mask)
    image[mask | (kind == 4)] = np.nan  # the kernels without a mask or errors are other kernels
    alone, (_, with_err, _) = (
        sum_circles(image, y, x, radius_pix)[0],
        sum_circles(image, y, x, radius_pix, err),
    )
    np.testing.assert_allclose(alone, flux, atol=1e-9)
    np.testing.assert_allclose(with_err, flux_err, atol=1e-9)
    no_data = (flags & PhotFlag.NO_DATA) != 0
    assert np.array_equal(no_data, ~(np.nan_to_num(area) > 1e-9))
    assert np.isnan(flux[no_data]).all()
    np.testing.assert_allclose(flux[~no_data], want[~no_data], atol=1e-8)
    np.testing.assert_allclose(flux_err[~no_data], want_err[~no_data], atol=1e-5)
    for flag, of in ((PhotFlag.MASKED, mask), (PhotFlag.NON_FINITE, kind > 1)):
        touched, _ = photutils_sums(of.astype(float), y, x, radius_pix)
        assert np.array_equal((flags & flag) != 0, np.nan_to_num(touched) > 1e-9)


def test_radii_in_one_pass_are_the_same_as_one_by_one():
    image, err, y, x = make_image(3)
    image[20:25, 30:33] = np.nan
    radii = [7.0, 1.8, 29.1, 3.0, 14.5]
    together = sum_circles(image, y, x, radii, err)
    assert together[0].shape == (30, 5)
    for k, radius in enumerate(radii):
        for many, one in zip(together, sum_circles(image, y, x, radius, err), strict=True):
            assert np.array_equal(many[:, k], one, equal_nan=True)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", ">i2", "u1", "f2", "i8"])
def test_any_dtype_byte_order_and_layout(dtype):
    image, _, y, x = make_image(5)
    image = np.round(np.abs(image) * 10).astype(dtype)
    want, _, _ = sum_circles(image.astype(float), y, x, 4.0)
    wide = np.zeros((60, 160), dtype)
    wide[:, ::2] = image
    read_only = image.copy()
    read_only.flags.writeable = False
    for variant in (image, np.asfortranarray(image), wide[:, ::2], read_only):
        flux, flux_err, _ = sum_circles(variant, y, x, 4.0, mask_HW=np.zeros(image.shape, ">i4"))
        np.testing.assert_allclose(flux, want, rtol=1e-12)
        assert np.isnan(flux_err).all()


def test_positions_and_radii_at_their_limits():
    image = np.ones((20, 30), np.float32)
    flux, _, flags = sum_circles(
        image, [np.nan, 5, np.inf, 1e300, -9.0, -0.6], [5, np.nan, 5, 5, 5, 5], 2.0
    )
    lost = PhotFlag.OFF_TILE | PhotFlag.NO_DATA
    assert np.isnan(flux[:5]).all()
    assert np.all((flags & lost) == [lost] * 5 + [PhotFlag.OFF_TILE])
    assert 0 < flux[5] < 2 * np.pi
    for radius in (40.0, 1e4, 1e9, 1e300):
        flux, _, flags = sum_circles(image, 10, 10, radius)
        assert flux[0] == pytest.approx(600)
        assert flags[0] == PhotFlag.EDGE
    assert [a.shape for a in sum_circles(image, [], [], 2.0)] == [(0,)] * 3
    assert [a.shape for a in sum_circles(image, [], [], [2.0, 3.0])] == [(0, 2)] * 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"radius_pix": 0.0}, "radius_pix"),
        ({"radius_pix": []}, "radius_pix"),
        ({"radius_pix": [1.0, -1.0]}, "radius_pix"),
        ({"radius_pix": np.nan}, "radius_pix"),
        ({"image_HW": np.ones(3)}, "image_HW"),
        ({"image_HW": np.ones((3, 3), complex)}, "image_HW"),
        ({"err_HW": np.ones((3, 4))}, "err_HW"),
        ({"mask_HW": np.ones((4, 3))}, "mask_HW"),
        ({"y_N": [1.0, 2.0]}, "y_N"),
    ],
)
def test_a_bad_argument_is_named(change, words):
    good = {"image_HW": np.ones((3, 3)), "y_N": [1.0], "x_N": [1.0], "radius_pix": 1.0}
    with pytest.raises(ValueError, match=words):
        sum_circles(**{**good, **change})


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, r_in=st.floats(0, 12), width=st.floats(1.0, 10))
def test_local_sky_is_the_sigma_clipped_median_of_photutils(seed, r_in, width):
    image, _, y, x = make_image(seed, (50, 50))
    rng = np.random.default_rng(seed)
    image += (rng.random(image.shape) < 0.05) * rng.exponential(10.0 ** (seed % 9), image.shape)
    mask = rng.random(image.shape) < 0.1
    image[rng.random(image.shape) < 0.05] = np.nan
    inside = (y > 0) & (y < 49) & (x > 0) & (x < 49)
    y, x = y[inside] + 0.001, x[inside]  # off half pixels: whether r <= d is not ours to decide
    sky, sky_err, flags = local_sky(image, y, x, max(r_in, 1e-6), r_in + width, mask)
    annulus = CircularAnnulus(np.column_stack([x, y]), max(r_in, 1e-6), r_in + width)
    clip = SigmaClip(sigma=3.0, maxiters=10, cenfunc="median", stdfunc="std")
    bad = mask | ~np.isfinite(image)
    stats = ApertureStats(np.where(bad, 0, image).astype(float), annulus, mask=bad, sigma_clip=clip)
    found = (flags & PhotFlag.SKY_NO_DATA) == 0
    want, std = np.atleast_1d(stats.median)[found], np.atleast_1d(stats.std)[found]
    count = np.atleast_1d(stats.center_aper_area.value)[found]
    np.testing.assert_allclose(sky[found], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(
        sky_err[found], np.sqrt(np.pi / 2 / count) * std, rtol=1e-5, atol=1e-6
    )
    assert np.isnan(sky[~found]).all()


def test_local_sky_without_pixels_and_of_a_constant():
    image = np.full((40, 40), 7.0)
    sky, sky_err, flags = local_sky(image, [20.0, np.nan, 500.0], [20.0, 3.0, 3.0], 5, 8)
    assert (sky[0], sky_err[0], flags[0]) == (7.0, 0.0, 0)
    assert np.isnan(sky[1:]).all()
    assert np.all(flags[1:] & PhotFlag.SKY_NO_DATA)
    _, _, flags = local_sky(image, 20.0, 20.0, 0, 1.1)
    assert flags[0] == PhotFlag.SKY_FEW_PIXELS
    with pytest.raises(ValueError, match="r_in_pix"):
        local_sky(image, 20.0, 20.0, 5, 5)


def test_threads_give_the_same_and_may_call_at_once():
    image, err, _, _ = make_image(1, (400, 400))
    rng = np.random.default_rng(1)
    y, x = rng.uniform(0, 400, (2, 20_000))
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    want = sum_circles(image, y, x, 5.0, err)[0]
    numba.set_num_threads(threads)
    results = {}

    def work(k):
        results[k] = sum_circles(image, y, x, 5.0, err)[0]

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(results[k], want) for k in range(4))


def test_the_kernels_import_no_storage_and_no_config():
    code = (
        "import sys, photozhpc.mosaic.photometry, photozhpc.mosaic.cutouts\n"
        "bad = {'zarr', 'dask', 'click', 'pyarrow', 'photozhpc.config'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
