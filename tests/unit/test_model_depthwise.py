"""The quick depthwise convolutions and their gradients against autograd's own."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from photozhpc.model.depthwise import MAX_PIXELS, DepthwiseConv2d, cut_convolution, quicken


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (2, 2), (4, 4), (3, 5), (8, 8), (16, 16), (13, 9)]
)
@pytest.mark.parametrize("side", [3, 7])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_are_those_of_autograd(height: int, width: int, side: int, bias: bool) -> None:
    torch.manual_seed(height + side)
    slow = nn.Conv2d(6, 6, side, padding=side // 2, groups=6, bias=bias)
    fast = nn.Sequential(nn.Conv2d(6, 6, side, padding=side // 2, groups=6, bias=bias))
    quicken(fast)
    assert isinstance(fast[0], DepthwiseConv2d)
    fast[0].load_state_dict(slow.state_dict())
    results = []
    for conv in (slow, fast, lambda x: cut_convolution(x, fast[0].weight, fast[0].bias)):
        fast.zero_grad()
        x = torch.randn(
            5, 6, height, width, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        y = conv(x)
        (y.sin() * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
        parameters = (slow if conv is slow else fast).parameters()
        results.append([y, x.grad, *(p.grad.clone() for p in parameters)])
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_a_convnext_trains_the_same_with_it() -> None:
    image = torch.randn(8, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    gradients = []
    for quick in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("convnext_atto", in_chans=4, num_classes=3, ls_init_value=0.5)
        if quick:
            quicken(model)
            assert sum(isinstance(m, DepthwiseConv2d) for m in model.modules()) == 12
        F.mse_loss(model(image), torch.ones(8, 3)).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-6)


def test_other_convolutions_are_left_alone() -> None:
    others = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 4, stride=4, groups=4),
        nn.Conv2d(4, 8, 3, padding=1, groups=4),
    )
    quicken(others)
    assert all(type(conv) is nn.Conv2d for conv in others)


def test_large_maps_and_inference_go_the_usual_way() -> None:
    conv = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=2))
    quicken(conv)
    side = int(MAX_PIXELS**0.5) + 1
    assert "Depthwise" not in conv(torch.randn(1, 2, side, side)).grad_fn.name()
    assert "Depthwise" in conv(torch.randn(1, 2, 4, 4)).grad_fn.name()
    with torch.inference_mode():
        assert conv(torch.randn(1, 2, 4, 4)).shape == (1, 2, 4, 4)
