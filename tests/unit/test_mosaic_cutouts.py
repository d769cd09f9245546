"""Cutouts against slices of a padded array."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from photozhpc.mosaic.cutouts import count_finite, extract_cutouts


def padded_slices(image_CHW, y_N, x_N, size):
    pad = 3 * size + 400
    padded = np.pad(
        np.asarray(image_CHW, np.float32), ((0, 0), (pad, pad), (pad, pad)), constant_values=np.nan
    )
    cutouts = np.full((len(y_N), len(image_CHW), size, size), np.nan, np.float32)
    for n, (y, x) in enumerate(zip(y_N, x_N, strict=True)):
        if np.isfinite(y) and np.isfinite(x):
            i, j = int(np.floor(y + 0.5)) - size // 2, int(np.floor(x + 0.5)) - size // 2
            cutouts[n] = padded[:, i + pad : i + pad + size, j + pad : j + pad + size]
    return cutouts


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 70),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 50), st.integers(1, 90)),
    dtype=st.sampled_from(["<f4", ">f4", "<f8", ">f8", ">i2", "u1"]),
)
def test_cutouts_are_padded_slices(seed, size, shape, dtype):
    rng = np.random.default_rng(seed)
    image = (rng.normal(50, 20, shape) % 100).astype(dtype)
    y, x = rng.uniform(-100, 200, (2, 20))
    y[:4], x[:4] = rng.integers(-2, 90, (2, 4)) / 2  # centres and edges of pixels
    y[4], x[5], y[6] = np.nan, np.inf, -np.inf
    cutouts = extract_cutouts(image, y, x, size)
    assert cutouts.dtype == np.float32
    assert np.array_equal(cutouts, padded_slices(image, y, x, size), equal_nan=True)


def test_the_pixel_of_the_source_is_in_the_middle():
    image = np.arange(2 * 30 * 40, dtype=np.float32).reshape(2, 30, 40)
    for size in (7, 8):
        cutouts = extract_cutouts(image, [10.4, 10.5, 9.5], [20.0, 20.0, 20.0], size)
        assert cutouts[:, 1, size // 2, size // 2].tolist() == image[1, [10, 11, 10], 20].tolist()


def test_far_off_positions_are_nan_and_no_sources_are_no_cutouts():
    image = np.ones((1, 9, 9))
    far = [1e300, -1e300, 2.0**63, -(2.0**63), np.inf, 1e9]
    assert np.isnan(extract_cutouts(image, far, [4.0] * 6, 5)).all()
    assert extract_cutouts(image, [], [], 5).shape == (0, 1, 5, 5)
    assert extract_cutouts(image, 4.0, 4.0, 5).shape == (1, 1, 5, 5)


def test_many_sources_into_a_given_array_from_any_layout():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 300, 320)).astype(np.float32)
    y, x = rng.uniform(0, 300, (2, 3000))
    want = padded_slices(image, y, x, 16)
    out = np.zeros_like(want)
    assert extract_cutouts(image, y, x, 16, out=out) is out
    assert np.array_equal(out, want, equal_nan=True)
    views = [np.asfortranarray(image), np.repeat(image, 2, axis=2)[:, :, ::2], image.copy()]
    views[2].flags.writeable = False
    for view in views:
        assert np.array_equal(extract_cutouts(view, y, x, 16), want, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_CHW": np.ones((5, 5))}, r"image_CHW.*\(5, 5\)"),
        ({"image_CHW": np.ones((1, 5, 5), complex)}, "complex"),
        ({"size": 0}, "size"),
        ({"size": 2.5}, "size"),
        ({"x_N": [1.0, 2.0]}, "x_N"),
        ({"out": np.zeros((1, 1, 3, 4), np.float32)}, "out"),
        ({"out": np.zeros((1, 1, 3, 3))}, "out"),
    ],
)
def test_a_bad_argument_is_named(change, words):
    good = {"image_CHW": np.ones((1, 5, 5)), "y_N": [1.0], "x_N": [1.0], "size": 3}
    with pytest.raises(ValueError, match=words):
        extract_cutouts(**{**good, **change})


@pytest.mark.parametrize("side", [1, 2, 5, 32, 33])
def test_finite_pixels_are_counted_in_the_middle(side: int) -> None:
    rng = np.random.default_rng(0)
    cutout = rng.normal(size=(9, 3, 33, 33)).astype(np.float32)
    cutout[rng.random(cutout.shape) < 0.1] = np.nan
    cutout[rng.random(cutout.shape) < 0.1] = -np.inf
    first = 33 // 2 - side // 2
    seen = cutout[:, :, first : first + side, first : first + side]
    expected = np.isfinite(seen).sum(axis=(2, 3))
    np.testing.assert_array_equal(count_finite(cutout, side), expected)
    np.testing.assert_array_equal(count_finite(seen, side), expected)  # not contiguous
    np.testing.assert_array_equal(count_finite(seen.copy(), side), expected)
    with pytest.raises(ValueError, match="have no central"):
        count_finite(cutout, 34)
