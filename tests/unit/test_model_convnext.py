"""The rearranged encoder is the encoder."""

import pytest
import timm
import torch
from torch import nn

from photozhpc.model.convnext import InferenceConvNeXt, for_inference


def encoder(name: str, n_out: int, bands: int = 4) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=bands, num_classes=n_out, ls_init_value=0.3).eval()
    with torch.no_grad():  # else the affine half of a norm and the biases do nothing
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", ["convnext_atto", "convnext_tiny", "convnext_pico"])
@pytest.mark.parametrize(("side", "n_out"), [(32, 0), (64, 7), (72, 0), (41, 5)])
@torch.inference_mode()
def test_in_float32_it_gives_the_same(name: str, side: int, n_out: int) -> None:
    model = encoder(name, n_out)
    fast = for_inference(model, side, torch.float32)
    assert isinstance(fast, InferenceConvNeXt)
    image = torch.randn(3, 4, side, side)
    torch.testing.assert_close(fast(image), model(image), rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_in_bfloat16_it_is_as_exact_as_autocast() -> None:
    model = encoder("convnext_atto", 0)
    image = 5 * torch.randn(64, 4, 32, 32)
    exact = model(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        usual = model(image).float()
    error = (for_inference(model, 32, torch.bfloat16)(image) - exact).std()
    assert 0 < error < 3 * (usual - exact).std()


@pytest.mark.parametrize("name", ["convnext_zepto_rms", "convnext_atto_ols", "convnextv2_atto"])
@torch.inference_mode()
def test_other_designs_are_left_as_they_are(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, in_chans=4, num_classes=0).eval()
    same = for_inference(model, 32, torch.float32)
    assert not isinstance(same, InferenceConvNeXt)
    image = torch.randn(2, 4, 32, 32)
    assert torch.equal(same(image), model(image.contiguous(memory_format=torch.channels_last)))


def test_the_weights_are_copies() -> None:
    model = encoder("convnext_atto", 0)
    fast = for_inference(model, 32, torch.float32)
    ours = {parameter.data_ptr() for parameter in fast.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(parameter.requires_grad for parameter in fast.parameters())
