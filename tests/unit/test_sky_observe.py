"""Noise, depth and defects of a simulated tile."""

import numpy as np
import pytest

from builders.skies import only
from photozhpc.sky.defects import add_defects, draw_defects, strongest_defect
from photozhpc.sky.observe import DRIZZLE_RATIO, drizzled, exposure_share, observe
from photozhpc.sky.sky_config import SkyConfig

SIZE = 512


def white(seed=0):
    return np.random.default_rng(seed).standard_normal((SIZE, SIZE), dtype=np.float32)


def test_drizzled_noise_is_the_average_over_random_dithers():
    """Covariances of drops two pixels wide at every phase: 5/3, 1 and 1/6 along an axis."""
    phase = (np.arange(4000) + 0.5) / 4000
    covered = np.stack([1.0 - phase, np.ones_like(phase), phase])
    lags = [(covered[k:] * covered[: 3 - k]).sum(axis=0).mean() for k in range(3)]
    noise_HW = drizzled(white())
    assert noise_HW.std() == pytest.approx(1.0, abs=0.02)
    for dy in range(3):
        for dx in range(3):
            found = np.mean(noise_HW * np.roll(noise_HW, (dy, dx), (0, 1)))
            assert found == pytest.approx(lags[dy] * lags[dx] / lags[0] ** 2, abs=0.02)
    assert abs(np.mean(noise_HW * np.roll(noise_HW, 3, 1))) < 0.02


def test_the_noise_of_large_areas_is_that_of_fruchter_and_hook():
    """r / (1 - 1 / (3 r)) times that of independent pixels, with drops of r = 2 pixels."""
    noise_HW = drizzled(white(1))
    blocks = noise_HW.reshape(16, 32, 16, 32).sum(axis=(1, 3)) / 32
    edges = (32 - 2 * 0.6 / 2.2) / 32  # pixels at the edge of a block lack some neighbours
    assert pytest.approx(2.0 / (1.0 - 1.0 / 6.0)) == DRIZZLE_RATIO
    assert blocks.std() == pytest.approx(DRIZZLE_RATIO * edges, rel=0.12)


def test_drizzled_noise_keeps_the_depth_and_err_is_that_of_a_pixel():
    none_HW = np.zeros((SIZE, SIZE), bool)
    observed = {}
    for on in (False, True):
        config = SkyConfig(ingredients=only(drizzled_noise=on))
        observed[on] = observe(
            np.random.default_rng(3), np.full((SIZE, SIZE), 0.0, np.float32), "F158", 2.0,
            np.ones((SIZE, SIZE), np.float32), none_HW, config,
        )  # fmt: skip
        data_HW = observed[on].data_HW - observed[on].data_HW.mean()
        assert data_HW.std() == pytest.approx(observed[on].err_HW.mean(), rel=0.02)
    blocks = [
        observed[on].data_HW.reshape(16, 32, 16, 32).mean(axis=(1, 3)).std() for on in (False, True)
    ]
    assert blocks[1] == pytest.approx(blocks[0], rel=0.1)
    ratio = observed[False].err_HW.mean() / observed[True].err_HW.mean()
    assert ratio == pytest.approx(DRIZZLE_RATIO, rel=0.01)


def test_detector_gaps_leave_whole_exposures_out():
    shares = [exposure_share(np.random.default_rng(seed), 256, 0.44, 8) for seed in range(40)]
    assert np.allclose(np.array(shares) * 8, np.rint(np.array(shares) * 8), atol=1e-4)
    assert np.min(shares) >= 1 / 8
    covered = (450.0 / 470.0) ** 2
    assert np.mean(shares) == pytest.approx(covered, abs=0.02)
    assert exposure_share(np.random.default_rng(0), 64, 0.055, 1).min() == 1.0


def test_defects_are_as_many_and_as_strong_as_asked_for():
    config = only(cosmic_rays_arcmin2=30.0, hot_pixels_arcmin2=20.0)
    counts = []
    for seed in range(30):
        hits_D3 = draw_defects(np.random.default_rng(seed), SIZE, 4.0, config)
        counts.append(len(hits_D3))
        assert hits_D3[:, 2].max() <= 500.0
    # tracks cross three native pixels on average; hot pixels are one
    assert np.mean(counts) == pytest.approx(4.0 * (30 * 3 + 20), rel=0.05)
    assert draw_defects(np.random.default_rng(0), SIZE, 4.0, only()).shape == (0, 3)


def test_a_defect_is_a_native_pixel_of_the_stated_strength():
    data_HW, err_HW = np.zeros((64, 64), np.float32), np.full((64, 64), 0.5, np.float32)
    add_defects(data_HW, err_HW, np.array([[20.0, 30.3, 40.0]]))
    assert data_HW.max() == pytest.approx(40.0 * 0.5)
    assert data_HW.sum() == pytest.approx(40.0 * 0.5 * 4.0)  # the area of a drop
    y, x = np.indices(data_HW.shape)
    assert (data_HW * y).sum() / data_HW.sum() == pytest.approx(20.0, abs=1e-5)
    assert (data_HW * x).sum() / data_HW.sum() == pytest.approx(30.3, abs=1e-5)
    at_the_edge = np.zeros((64, 64), np.float32)
    add_defects(at_the_edge, err_HW, np.array([[0.2, 63.4, 40.0], [-9.0, 5.0, 40.0]]))
    assert at_the_edge[:3, -3:].sum() == at_the_edge.sum() > 0


def test_the_strongest_defect_near_a_source_is_recorded():
    hits_D3 = np.array([[10.0, 10.0, 7.0], [12.0, 10.0, 99.0], [40.0, 40.0, 20.0]])
    y, x = np.array([11.0, 40.0, 60.0]), np.array([10.0, 45.0, 60.0])
    assert np.array_equal(strongest_defect(hits_D3, y, x, 5.5), [99.0, 20.0, 0.0])
    assert np.array_equal(strongest_defect(hits_D3[:0], y, x, 5.5), np.zeros(3))
