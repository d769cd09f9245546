"""Faster depthwise convolutions for training a ConvNeXt on small images.

On a GPU a kernel is cut to the taps that can reach a pixel: on a 1 x 1 map to the central one, for
which cuDNN launches one kernel per channel (1922 in a step of ConvNeXt-Atto on 32 px, two thirds
of the time that the GPU is busy).

On a CPU oneDNN spends more time on the gradients of these convolutions than on the rest of a
training step, although they are a few percent of its arithmetic. On the small maps of a cutout
both gradients are cheap in other ways. The gradient of the input is the same convolution with the
kernel rotated by 180 degrees. The gradient of the kernel follows from matrix products: either
(pixels out x images) (images x pixels in) per channel, summed over the pairs of pixels that share
a tap, or (columns out x rows and images) (rows and images x columns in) per channel and row of the
kernel.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PIXELS = 1024  # beyond this side x side the matrices cost more than they save
_MAX_PIXELS_IN_PAIRS = 64


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution with an odd kernel, stride 1, and output of the same size."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if x_BCHW.device.type != "cpu":
            return cut_convolution(x_BCHW, self.weight, self.bias)
        quick = (
            torch.is_grad_enabled()
            and self.weight.requires_grad
            and x_BCHW.shape[2] * x_BCHW.shape[3] <= MAX_PIXELS
        )
        if not quick:
            return super().forward(x_BCHW)
        if torch.is_autocast_enabled("cpu"):
            x_BCHW = x_BCHW.to(torch.get_autocast_dtype("cpu"))
        return _Depthwise.apply(x_BCHW, self.weight, self.bias)


def quicken(module: nn.Module) -> None:
    """Turn the depthwise convolutions of a module into `DepthwiseConv2d`, in place."""
    for conv in module.modules():
        if type(conv) is nn.Conv2d and 1 < conv.groups == conv.in_channels == conv.out_channels:
            side = conv.kernel_size[0]
            plain = conv.kernel_size == (side, side) and side % 2 == 1 and conv.stride == (1, 1)
            if plain and conv.dilation == (1, 1) and conv.padding in ("same", (side // 2,) * 2):
                conv.__class__ = DepthwiseConv2d


def cut_convolution(x_BCHW: Tensor, weight_C1KK: Tensor, bias_C: Tensor | None) -> Tensor:
    """Return the depthwise convolution, of the same size, without taps that reach no pixel."""
    half = weight_C1KK.shape[-1] // 2
    reach = min(half, max(x_BCHW.shape[2:]) - 1)
    kept = slice(half - reach, half + reach + 1)
    weight_C1KK = weight_C1KK[:, :, kept, kept]
    if reach:
        return F.conv2d(x_BCHW, weight_C1KK, bias_C, padding=reach, groups=x_BCHW.shape[1])
    y_BCHW = x_BCHW * weight_C1KK.flatten()[:, None, None]
    return y_BCHW if bias_C is None else y_BCHW + bias_C[:, None, None]


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C1KK: Tensor, bias_C: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BCHW, weight_C1KK)
        ctx.has_bias = bias_C is not None
        dtype = x_BCHW.dtype
        return F.conv2d(
            x_BCHW,
            weight_C1KK.to(dtype),
            None if bias_C is None else bias_C.to(dtype),
            padding=weight_C1KK.shape[-1] // 2,
            groups=x_BCHW.shape[1],
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (grad_BCHW,) = gradients
        x_BCHW, weight_C1KK = ctx.saved_tensors
        n_channels, height, width = x_BCHW.shape[1:]
        side = weight_C1KK.shape[-1]
        flipped_C1KK = weight_C1KK.flip(2, 3).to(grad_BCHW.dtype)
        grad_x_BCHW = F.conv2d(grad_BCHW, flipped_C1KK, padding=side // 2, groups=n_channels)
        by_pairs = height * width <= _MAX_PIXELS_IN_PAIRS
        grad_kernel = _grad_kernel_by_pairs if by_pairs else _grad_kernel_by_rows
        grad_weight_C1KK = grad_kernel(grad_BCHW, x_BCHW, side)[:, None]
        grad_bias_C = grad_BCHW.float().sum(dim=(0, 2, 3)) if ctx.has_bias else None
        return grad_x_BCHW, grad_weight_C1KK, grad_bias_C


def _grad_kernel_by_pairs(grad_BCHW: Tensor, x_BCHW: Tensor, side: int) -> Tensor:
    """Return the gradient of the kernel, (C, side, side), from all pairs of pixels."""
    n_images, n_channels, height, width = x_BCHW.shape
    grad_CBI = grad_BCHW.permute(1, 0, 2, 3).reshape(n_channels, n_images, -1)
    x_CBI = x_BCHW.permute(1, 0, 2, 3).reshape(n_channels, n_images, -1)
    pair_CII = torch.bmm(grad_CBI.transpose(1, 2), x_CBI).float()
    tap_CK = pair_CII.new_zeros(n_channels, side * side + 1)
    tap_CK.index_add_(1, _taps(height, width, side), pair_CII.flatten(1))
    return tap_CK[:, :-1].reshape(n_channels, side, side)


def _grad_kernel_by_rows(grad_BCHW: Tensor, x_BCHW: Tensor, side: int) -> Tensor:
    """Return the gradient of the kernel, (C, side, side), one row at a time."""
    n_images, n_channels, height, width = x_BCHW.shape
    half = min(side // 2, height - 1)  # no two rows are further apart
    grad_CRW = grad_BCHW.permute(1, 2, 0, 3).reshape(n_channels, -1, width)
    x_CHBW = F.pad(x_BCHW.permute(1, 2, 0, 3), (0, 0, 0, 0, half, half))
    x_CRW = x_CHBW.reshape(n_channels, -1, width)
    n_rows = height * n_images
    pair_CDWW = torch.stack(
        [
            torch.bmm(grad_CRW.mT, x_CRW[:, dy * n_images : dy * n_images + n_rows])
            for dy in range(2 * half + 1)
        ],
        dim=1,
    ).float()
    offset_WW = torch.arange(width) - torch.arange(width)[:, None] + side // 2
    tap_WWK = (offset_WW[..., None] == torch.arange(side)).float()
    kernel_CDK = pair_CDWW.flatten(2) @ tap_WWK.flatten(0, 1)
    missing = side // 2 - half
    return F.pad(kernel_CDK, (0, 0, missing, missing))


@lru_cache(maxsize=64)
def _taps(height: int, width: int, side: int) -> Tensor:
    """The kernel tap that links each output pixel to each input pixel; side**2 if none does."""
    y_I = torch.arange(height).repeat_interleave(width)
    x_I = torch.arange(width).repeat(height)
    dy_II = y_I[None, :] - y_I[:, None] + side // 2
    dx_II = x_I[None, :] - x_I[:, None] + side // 2
    inside_II = (dy_II >= 0) & (dy_II < side) & (dx_II >= 0) & (dx_II < side)
    return torch.where(inside_II, dy_II * side + dx_II, side * side).flatten()
