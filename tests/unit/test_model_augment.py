"""Views against NumPy's own flips, turns and slices; prepare against its formula."""

import math

import numpy as np
import pytest
import torch

from photozhpc.model.augment import calibrate, centre_crop, prepare, random_view, stretch


def _image(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 2, size, size, generator=torch.Generator().manual_seed(seed))


def test_prepare_is_deredden_scale_stretch_of_the_centre() -> None:
    cutout = _image(3, 12)
    cutout[0, 0, 6, 6] = math.nan
    ebv, r, noise = (
        torch.tensor([0.0, 0.1, 0.2]),
        torch.tensor([2.0, 0.5]),
        torch.tensor([0.5, 2.0]),
    )
    image = prepare(cutout, ebv, r, noise, 8, "asinh")
    expected = cutout.numpy()[:, :, 2:10, 2:10].copy()
    expected[0, 0, 4, 4] = 0
    for b in range(3):
        for c in range(2):
            expected[b, c] = np.arcsinh(
                expected[b, c] * 10 ** (0.4 * r[c].item() * ebv[b].item()) / noise[c].item()
            )
    np.testing.assert_allclose(image.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_the_centre_pixel_stays_the_centre() -> None:
    for size, crop in [(12, 8), (13, 8), (12, 7), (8, 8)]:
        image = torch.zeros(1, 1, size, size)
        image[..., size // 2, size // 2] = 1
        assert centre_crop(image, crop)[0, 0, crop // 2, crop // 2] == 1
    with pytest.raises(ValueError, match="cannot be cropped"):
        centre_crop(torch.zeros(1, 1, 6, 6), 8)


def _all_dihedral(image: np.ndarray, crop: int) -> list[np.ndarray]:
    """The eight flips and turns of a (C, S, S) image about pixel S//2, by NumPy."""
    half = crop // 2
    middle = image.shape[-1] // 2
    odd = image[:, middle - half : middle + half + 1, middle - half : middle + half + 1]
    views = [np.rot90(f, k, axes=(1, 2)) for f in (odd, odd[:, :, ::-1]) for k in range(4)]
    return [view[:, :crop, :crop] for view in views]


def test_quarter_views_are_exactly_the_eight_flips_and_turns() -> None:
    image, crop = _image(200, 12), 8
    views = random_view(image, crop, "quarter", 0, 0.0, [torch.Generator().manual_seed(1)])
    seen = set()
    for b in range(len(image)):
        matches = [
            k
            for k, expected in enumerate(_all_dihedral(image[b].numpy(), crop))
            if np.array_equal(views[b].numpy(), expected)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(range(8))


@pytest.mark.parametrize("rotation", ["any", "quarter"])
def test_jitter_moves_the_centre_by_whole_pixels_each_image_by_its_own(rotation: str) -> None:
    image = torch.zeros(300, 1, 21, 21)
    image[..., 10, 10] = 1
    views = random_view(image, 11, rotation, 2, 0.0, [torch.Generator().manual_seed(0)])
    where = [tuple(np.unravel_index(v[0].argmax().item(), (11, 11))) for v in views]
    offsets = {(int(y) - 5, int(x) - 5) for y, x in where}
    assert max(max(abs(y), abs(x)) for y, x in offsets) <= 3
    assert len(offsets) > 15


def test_any_rotation_keeps_a_round_source_and_its_flux() -> None:
    y, x = np.mgrid[:61, :61] - 30
    blob = torch.from_numpy(np.exp(-(y**2 + x**2) / (2 * 4.0**2))).float().expand(20, 1, 61, 61)
    views = random_view(blob, 41, "any", 0, 0.0, [torch.Generator().manual_seed(3)])
    reference = centre_crop(blob, 41)
    assert (views - reference).abs().max() < 0.02
    torch.testing.assert_close(views.sum((1, 2, 3)), reference.sum((1, 2, 3)), rtol=2e-3, atol=0)


def test_noise_has_the_given_size_and_views_follow_the_generator() -> None:
    image = torch.zeros(50, 4, 20, 20)
    views = [
        random_view(image, 16, "quarter", 0, 0.3, [torch.Generator().manual_seed(s)])
        for s in (1, 1, 2)
    ]
    assert views[0].std().item() == pytest.approx(0.3, rel=0.02)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_calibrate_does_not_clip() -> None:
    bright = torch.full((1, 1, 4, 4), 1e30)
    out = calibrate(bright, torch.zeros(1), torch.ones(1), torch.ones(1))
    assert torch.equal(out, bright)


def test_the_quick_asinh_is_asinh() -> None:
    size = torch.cat([torch.zeros(1), torch.logspace(-30, 38, 2000, dtype=torch.float64).float()])
    x = torch.cat([-size, size])
    exact = torch.asinh(x.double())
    found = stretch(x, "asinh").double()
    torch.testing.assert_close(found, exact, rtol=5e-7, atol=1e-30)
    infinite = stretch(torch.tensor([float("inf"), float("-inf")]), "asinh")
    assert infinite.tolist() == [float("inf"), float("-inf")]
