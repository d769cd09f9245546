"""Sharp defects in images of point sources and galaxies; the filters against their definitions."""

import numpy as np
import pytest
from scipy.ndimage import correlate

from photozhpc.mosaic.defects import RIM, find_defects, sharpness_filter

FWHM_PIX = np.array([2.2, 2.2, 2.5, 2.8])
SIZE = 24


def gaussian(y, x, fwhm_pix):
    at = np.arange(SIZE) - SIZE // 2
    sigma = fwhm_pix / 2.3548
    return np.exp(-0.5 * ((at[:, None] - y) ** 2 + (at - x) ** 2) / sigma**2)


@pytest.fixture
def sky():
    """300 galaxies and stars, of one colour each, with unit noise: (N, 4, SIZE, SIZE)."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((300, 4, SIZE, SIZE))
    for n in range(300):
        y, x = rng.uniform(-2, 2, 2)
        blur = rng.choice([0.0, 2.0, 4.0])
        peak = 10 ** rng.uniform(0, 2.5)
        for c, ratio in enumerate(np.cumprod(rng.uniform(0.7, 1.5, 4))):
            fwhm = np.hypot(FWHM_PIX[c], blur)
            image[n, c] += peak * ratio * (FWHM_PIX[c] / fwhm) ** 2 * gaussian(y, x, fwhm)
    return image.astype(np.float32)


@pytest.mark.parametrize("fwhm_pix", [1.2, 2.2, 2.8, 4.0])
def test_no_blurred_image_looks_sharp(fwhm_pix):
    centre, edge, corner = sharpness_filter(fwhm_pix)
    assert centre**2 + 4 * edge**2 + 4 * corner**2 == pytest.approx(1)
    weight = np.array([[corner, edge, corner], [edge, centre, edge], [corner, edge, corner]])
    for y in np.arange(-1.5, 1.6, 0.1):
        for blur in (1.0, 1.2, 1.7, 3.0):
            stamp = gaussian(y, 0.3, blur * fwhm_pix)
            inner = correlate(stamp, weight)[1:-1, 1:-1]
            assert inner.max() < 0.01 * stamp.max()
    assert centre > 0.5 or fwhm_pix < 2  # an undersampled PSF is as sharp as a hot pixel


def test_a_sky_of_sources_has_few_false_alarms_and_the_noise_is_measured(sky):
    found_N, noise_NC = find_defects(sky, SIZE, FWHM_PIX)
    assert found_N.mean() <= 0.01
    assert np.median(noise_NC) == pytest.approx(1, abs=0.15)
    assert np.quantile(noise_NC, 0.99) < 1.6  # neither do bright galaxies look noisy
    tripled = find_defects(3 * sky, SIZE, FWHM_PIX)
    np.testing.assert_array_equal(tripled.found_N, found_N)
    np.testing.assert_allclose(tripled.noise_NC, 3 * noise_NC, rtol=1e-4)


@pytest.mark.parametrize("band", range(4))
@pytest.mark.parametrize(
    "hit",
    [
        pytest.param(np.full((1, 1), 30.0), id="pixel"),
        pytest.param(np.full((2, 2), 30.0), id="drizzled"),
        pytest.param(np.full((2, 9), 30.0), id="track"),
    ],
)
def test_a_hit_in_one_band_is_found(sky, band, hit):
    faint = np.flatnonzero(sky.max(axis=(1, 2, 3)) < 40)
    image = sky[faint].copy()
    image[:, band, 9 : 9 + hit.shape[0], 8 : 8 + hit.shape[1]] += hit
    assert find_defects(image, SIZE, FWHM_PIX).found_N.mean() > 0.95


def test_a_psf_that_is_narrower_than_the_survey_says_is_no_defect(sky):
    image = sky.copy()
    for c, fwhm_pix in enumerate(FWHM_PIX):
        image[:, c] += (100 * gaussian(1.2, -2.3, 0.8 * fwhm_pix)).astype(np.float32)
    assert find_defects(image, SIZE, FWHM_PIX).found_N.mean() < 0.02


def test_a_dead_band_is_found_and_missing_pixels_are_none(sky):
    image = sky[~find_defects(sky, SIZE, FWHM_PIX).found_N][:50].copy()
    image[:20, 2] = 7.5
    image[20:30, 1] = np.nan
    image[30:40, 0, 10, 10] = np.nan
    found_N, noise_NC = find_defects(image, SIZE, FWHM_PIX)
    assert found_N[:20].all()
    assert not found_N[20:].any()
    assert np.isnan(noise_NC[20:30, 1]).all()
    assert np.isfinite(noise_NC[30:]).all()


def test_only_the_middle_is_looked_at_and_one_band_alone_has_no_colour(sky):
    image = sky[:20].copy()
    image[:, 0, :4] += 1000  # the middle of 16 begins at row 4, and its rim is not looked at
    np.testing.assert_array_equal(
        find_defects(image, 16, FWHM_PIX).found_N, find_defects(sky[:20], 16, FWHM_PIX).found_N
    )
    alone = sky[:20, :1].copy()
    assert not find_defects(alone, SIZE, FWHM_PIX[:1]).found_N.any()
    alone[:, 0, 12, 15] += 200
    assert find_defects(alone, SIZE, FWHM_PIX[:1]).found_N.mean() > 0.9
    too_small = find_defects(sky[:3, :, :4, :4], 2 * RIM, FWHM_PIX)
    assert not too_small.found_N.any()
    assert np.isnan(too_small.noise_NC).all()
