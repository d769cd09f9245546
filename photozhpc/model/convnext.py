"""A ConvNeXt rearranged for inference: the same function of the image, in fewer and larger steps.

From the stem on, pixels are rows and channels are columns, so that every 1 x 1 and every strided
convolution is one matrix product, whatever the size of the map. The affine half of each LayerNorm
is folded into the matrix after it, the layer scale into the matrix before it. A depthwise kernel
is cut to the taps that can reach a pixel: on a 2 x 2 map to 3 x 3 of 7 x 7.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photozhpc.model.autocast import Autocast
from photozhpc.model.timm_convnext import (
    GELU,
    ConvNeXt,
    LayerNorm,
    LayerNorm2d,
    Mlp,
    NormMlpClassifierHead,
)

_NORMS = (LayerNorm, LayerNorm2d)


def for_inference(encoder: nn.Module, side_pix: int, dtype: torch.dtype) -> nn.Module:
    """Return an encoder from image_BCHW to feature_BF (float32), which computes in `dtype`.

    Args:
        encoder: a ConvNeXt of timm; its weights are copied. It is rearranged only if it has the
            parts of the ConvNeXt of Liu et al. 2022 (arXiv 2201.03545).
        side_pix: H and W of the images.
    """
    if _is_plain(encoder):
        return InferenceConvNeXt(encoder, side_pix, dtype)
    return Autocast(encoder, dtype)


class InferenceConvNeXt(nn.Module):
    """The rearranged encoder; `for_inference` makes it."""

    def __init__(self, encoder: Any, side_pix: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        conv, norm = encoder.stem
        self.stem = _copy(conv).to(dtype).to(memory_format=torch.channels_last)
        self.stem_norm = _Norm(norm)
        steps: list[nn.Module] = []
        side = (side_pix - conv.kernel_size[0]) // conv.stride[0] + 1
        for stage in encoder.stages:
            if isinstance(stage.downsample, nn.Sequential):
                steps.append(_Downsample(stage.downsample[0], stage.downsample[1], dtype))
                side //= 2
            steps += [_Block(block, side, dtype) for block in stage.blocks]
        self.steps = nn.Sequential(*steps)
        self.norm = _Norm(encoder.head.norm)
        self.fc = _copy(encoder.head.fc)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return feature_BF, float32."""
        image_BCHW = image_BCHW.to(self.dtype, memory_format=torch.channels_last)
        x_BHWC = self.stem_norm(self.stem(image_BCHW).permute(0, 2, 3, 1)).to(self.dtype)
        pooled_BC = self.steps(x_BHWC).float().mean(dim=(1, 2))
        return self.fc(self.norm(pooled_BC))


class _Norm(nn.Module):
    """A LayerNorm over the last axis, in float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = _parameter(norm.weight), _parameter(norm.bias)
        self.eps = norm.eps

    def forward(self, x_BHWC: Tensor) -> Tensor:
        return F.layer_norm(x_BHWC.float(), self.weight.shape, self.weight, self.bias, self.eps)


class _Downsample(nn.Module):
    """LayerNorm, then a 2 x 2 convolution with stride 2."""

    def __init__(self, norm: Any, conv: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = norm.eps
        weight_OYXC = conv.weight.detach().permute(0, 2, 3, 1)
        bias_O = conv.bias.detach() + (weight_OYXC @ norm.bias.detach()).sum(dim=(1, 2))
        self.weight = _parameter((weight_OYXC * norm.weight.detach()).flatten(1), dtype)
        self.bias = _parameter(bias_O, dtype)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        n, height, width, n_channels = x_BHWC.shape
        height, width = height // 2, width // 2  # an odd row or column is left out
        x_BHWC = F.layer_norm(x_BHWC, (n_channels,), eps=self.eps)
        x_BHWC = x_BHWC[:, : 2 * height, : 2 * width]
        patch = x_BHWC.reshape(n, height, 2, width, 2, n_channels).permute(0, 1, 3, 2, 4, 5)
        return F.linear(patch.reshape(n, height, width, 4 * n_channels), self.weight, self.bias)


class _Block(nn.Module):
    """Depthwise convolution, LayerNorm, two linear layers with GELU between, residual sum."""

    def __init__(self, block: Any, side_pix: int, dtype: torch.dtype) -> None:
        super().__init__()
        conv, mlp = block.conv_dw, block.mlp
        whole = conv.kernel_size[0] // 2
        self.reach = min(whole, side_pix - 1)  # no pixel is further away
        kept = slice(whole - self.reach, whole + self.reach + 1)
        kernel_C1KK = conv.weight.detach()[:, :, kept, kept]
        self.kernel = _parameter(kernel_C1KK if self.reach else kernel_C1KK.flatten(), dtype)
        self.kernel_bias = _parameter(conv.bias, dtype)
        self.eps = block.norm.eps
        into, out_of = (layer.weight.detach().flatten(1) for layer in (mlp.fc1, mlp.fc2))
        self.weight_in = _parameter(into * block.norm.weight.detach(), dtype)
        self.bias_in = _parameter(mlp.fc1.bias.detach() + into @ block.norm.bias.detach(), dtype)
        scale = torch.ones_like(mlp.fc2.bias) if block.gamma is None else block.gamma.detach()
        self.weight_out = _parameter(out_of * scale[:, None], dtype)
        self.bias_out = _parameter(mlp.fc2.bias.detach() * scale, dtype)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        n_channels = x_BHWC.shape[-1]
        if self.reach:
            x_BCHW, padding = x_BHWC.permute(0, 3, 1, 2), self.reach
            y_BCHW = F.conv2d(x_BCHW, self.kernel, self.kernel_bias, 1, padding, 1, n_channels)
            y_BHWC = y_BCHW.permute(0, 2, 3, 1)
        else:
            y_BHWC = torch.addcmul(self.kernel_bias, x_BHWC, self.kernel)
        y_BHWC = F.layer_norm(y_BHWC, (n_channels,), eps=self.eps)
        y_BHWC = F.gelu(F.linear(y_BHWC, self.weight_in, self.bias_in))
        return x_BHWC + F.linear(y_BHWC, self.weight_out, self.bias_out)


def _is_plain(encoder: Any) -> bool:
    if not (
        isinstance(encoder, ConvNeXt)
        and isinstance(encoder.stem, nn.Sequential)
        and len(encoder.stem) == 2
        and isinstance(encoder.norm_pre, nn.Identity)
        and isinstance(encoder.head, NormMlpClassifierHead)
        and isinstance(encoder.head.pre_logits, nn.Identity)
    ):
        return False
    norms = [encoder.stem[1], encoder.head.norm]
    stages: Any = encoder.stages
    for stage in stages:
        norms += [block.norm for block in stage.blocks]
        if isinstance(stage.downsample, nn.Sequential):
            norms.append(stage.downsample[0])
            if stage.downsample[1].kernel_size != (2, 2):
                return False
        if not all(type(b.mlp) is Mlp and type(b.mlp.act) in (GELU, nn.GELU) for b in stage.blocks):
            return False
    return all(isinstance(norm, _NORMS) for norm in norms)


def _parameter(values: Tensor, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(values.detach().to(dtype).clone(), requires_grad=False)


def _copy(layer: Any) -> Any:
    return copy.deepcopy(layer).requires_grad_(False)
