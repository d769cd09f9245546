"""From cutouts to the input of the network: one way for inference, random views for training.

calibrate: nJy -> dereddened, in units of the survey's noise, NaN -> 0
random_view: flip, rotation, jitter, crop, noise, drawn per image, on its device
stretch: linear or asinh
prepare = stretch(calibrate(centre_crop)): for inference
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Images = TypeVar("Images", Tensor, NDArray[np.float32])


def calibrate(
    cutout_BCSS: Tensor, ebv_B: Tensor, extinction_r_C: Tensor, noise_C: Tensor
) -> Tensor:
    """Return dereddened images in units of the noise; pixels without data become 0.

    Args:
        cutout_BCSS: nJy per pixel, NaN where there is no pixel.
        ebv_B: Galactic E(B-V), magnitudes.
        extinction_r_C: R of A = R E(B-V).
        noise_C: typical noise of a pixel in the training store, nJy.
    """
    gain_BC = torch.pow(10.0, 0.4 * ebv_B[:, None] * extinction_r_C) / noise_C
    # Contiguous first: nan_to_num is several times slower on a crop.
    return torch.nan_to_num(cutout_BCSS.contiguous(), nan=0.0) * gain_BC[:, :, None, None]


def stretch(image_BCHW: Tensor, kind: Literal["none", "asinh"]) -> Tensor:
    """Return the image on the scale that the network was trained on."""
    return _asinh(image_BCHW) if kind == "asinh" else image_BCHW


def _asinh(x: Tensor) -> Tensor:
    """torch.asinh to the last bits, from vectorised functions: 7 times as fast on a CPU.

    log1p(x + x^2 / (1 + sqrt(1 + x^2))) for positive x, written with 1/x because x^2 could
    overflow; infinite above 1.7e38.
    """
    size = x.abs()
    inverse = 1 / size
    quotient = size / (inverse + torch.sqrt(1 + inverse * inverse))
    return torch.copysign(torch.log1p(size + quotient), x)


def centre_crop(image_BCSS: Images, crop: int) -> Images:
    """Return the central crop x crop pixels; pixel S//2 becomes pixel crop//2.

    Raises:
        ValueError: the image is smaller than the crop.
    """
    size = image_BCSS.shape[-1]
    if size < crop:
        raise ValueError(f"images of {size} pixels cannot be cropped to {crop}")
    start = size // 2 - crop // 2
    return image_BCSS[..., start : start + crop, start : start + crop]


def prepare(
    cutout_BCSS: Tensor,
    ebv_B: Tensor,
    extinction_r_C: Tensor,
    noise_C: Tensor,
    crop: int,
    kind: Literal["none", "asinh"],
) -> Tensor:
    """Return image_BCHW for inference from cutouts in nJy."""
    cropped_BCHW = centre_crop(cutout_BCSS, crop)
    return stretch(calibrate(cropped_BCHW, ebv_B, extinction_r_C, noise_C), kind)


def random_view(
    image_BCSS: Tensor,
    crop: int,
    rotation: Literal["any", "quarter"],
    jitter_pix: int,
    noise: float | Tensor,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Return one random view of each calibrated image, crop x crop pixels.

    Args:
        rotation: "any" angle, in one bilinear resampling together with flip, jitter and crop;
            or "quarter" turns, which copy pixels and so keep their noise as inference sees it.
        jitter_pix: the crop is off-centre by up to this many whole pixels on each axis.
        noise: standard deviation of the Gaussian noise to add, in units of the survey's; or noise_B
            of each image.
        generators: on the image's device; each draws for an equal share of the images, in order.

    Raises:
        ValueError: the number of images is not a multiple of the number of generators.
    """
    if len(image_BCSS) % len(generators):
        raise ValueError(
            f"{len(image_BCSS)} images cannot be divided among {len(generators)} generators"
        )
    # Draw everything first, then process all images at once: on a GPU each launch costs time.
    n, device = len(image_BCSS) // len(generators), image_BCSS.device
    shape = (n, image_BCSS.shape[1], crop, crop)
    noise_B = torch.as_tensor(noise, dtype=image_BCSS.dtype, device=device).expand(len(image_BCSS))
    noisy = isinstance(noise, Tensor) or noise > 0
    flips, shifts, turns, noises = [], [], [], []
    for generator in generators:
        flips.append(torch.randint(0, 2, (n,), generator=generator, device=device))
        shifts.append(
            torch.randint(-jitter_pix, jitter_pix + 1, (n, 2), generator=generator, device=device)
        )
        if rotation == "any":
            turns.append(torch.rand(n, generator=generator, device=device))
        else:
            turns.append(torch.randint(0, 4, (n,), generator=generator, device=device))
        if noisy:
            noises.append(
                torch.randn(shape, generator=generator, device=device, dtype=image_BCSS.dtype)
            )
    flip_B, shift_B2, turn_B = (torch.cat(draws) for draws in (flips, shifts, turns))
    if rotation == "any":
        angle_B = turn_B * (2 * math.pi)
        cos_B, sin_B, sample = torch.cos(angle_B), torch.sin(angle_B), _resample
    else:
        odd_B = turn_B % 2
        cos_B = (1 - turn_B) * (1 - odd_B)  # 1, 0, -1, 0
        sin_B, sample = (2 - turn_B) * odd_B, _copy  # 0, 1, 0, -1
    cos_B, sin_B = cos_B[:, None, None], sin_B[:, None, None]
    offset_S = torch.arange(crop, device=device) - crop // 2
    dy_HW, dx_HW = torch.meshgrid(offset_S, offset_S, indexing="ij")
    dx_BHW = dx_HW * (1 - 2 * flip_B)[:, None, None]
    centre = image_BCSS.shape[-1] // 2
    y_BHW = centre + cos_B * dy_HW + sin_B * dx_BHW + shift_B2[:, 0, None, None]
    x_BHW = centre - sin_B * dy_HW + cos_B * dx_BHW + shift_B2[:, 1, None, None]
    view_BCHW = sample(image_BCSS, y_BHW, x_BHW)
    return view_BCHW + noise_B[:, None, None, None] * torch.cat(noises) if noisy else view_BCHW


def _copy(image_BCSS: Tensor, y_BHW: Tensor, x_BHW: Tensor) -> Tensor:
    """Return the pixels at integer positions; 0 outside the image."""
    size = image_BCSS.shape[-1]
    inside_BHW = (y_BHW >= 0) & (y_BHW < size) & (x_BHW >= 0) & (x_BHW < size)
    index_BL = (y_BHW.clamp(0, size - 1) * size + x_BHW.clamp(0, size - 1)).flatten(1)
    flat_BCL = image_BCSS.flatten(2)
    picked_BCL = flat_BCL.gather(2, index_BL[:, None].expand(-1, flat_BCL.shape[1], -1))
    return picked_BCL.unflatten(2, y_BHW.shape[1:]) * inside_BHW[:, None]


def _resample(image_BCSS: Tensor, y_BHW: Tensor, x_BHW: Tensor) -> Tensor:
    """Return the image at any positions, by bilinear interpolation; 0 outside the image."""
    # grid_sample takes (x, y) in [-1, 1], with the centres of the outermost pixels at the ends.
    grid_BHW2 = torch.stack([x_BHW, y_BHW], dim=-1) * (2 / (image_BCSS.shape[-1] - 1)) - 1
    return F.grid_sample(
        image_BCSS, grid_BHW2.to(image_BCSS.dtype), padding_mode="zeros", align_corners=True
    )
