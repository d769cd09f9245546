"""The residual network for small images: its shapes and its start."""

import pytest
import torch
import torch.nn.functional as F

from photozhpc.model.resnet import MOMENTUM, LaneNorm, ResNet


@pytest.mark.parametrize("side", [8, 24, 25, 32])
def test_it_knows_the_number_of_its_features(side: int) -> None:
    image = torch.randn(2, 3, side, side)
    for n_out in (0, 7):
        network = ResNet(3, (4, 6, 8), side, n_out)
        assert network(image).shape == (2, network.num_features)
    assert network.num_features == 7
    assert network.fc.in_features == 8 * (-(-side // 8)) ** 2


def test_it_begins_as_its_skip_connections() -> None:
    torch.manual_seed(0)
    network = ResNet(3, (4, 6), 16)
    image = torch.randn(2, 3, 16, 16)
    down = network.blocks[1].skip
    halved = F.avg_pool2d(F.conv2d(image, network.stem.weight, network.stem.bias, 2, 2), 2)
    expected = F.batch_norm(F.conv2d(halved, down.weight, down.bias), None, None, training=True)
    expected = F.relu(expected).flatten(1)
    torch.testing.assert_close(network(image), expected)
    network(image).sum().backward()
    assert network.blocks[0].conv2.weight.grad.abs().sum() > 0  # and can leave that start


def test_every_lane_is_normalised_by_itself() -> None:
    torch.manual_seed(1)
    norm = LaneNorm(3)
    norm.lane_batch = 4
    image = 5 + torch.randn(12, 3, 6, 6) * torch.arange(1, 13)[:, None, None, None]
    lanes = image.unflatten(0, (3, 4))
    mean = lanes.mean(dim=(1, 3, 4), keepdim=True)
    deviation = lanes.std(dim=(1, 3, 4), keepdim=True, correction=0)
    torch.testing.assert_close(norm(image), ((lanes - mean) / deviation).flatten(0, 1))
    torch.testing.assert_close(norm.running_mean, MOMENTUM * mean.mean(dim=0).flatten())
    variance = lanes.var(dim=(1, 3, 4)).mean(dim=0)
    torch.testing.assert_close(norm.running_var, 1 - MOMENTUM + MOMENTUM * variance)
    expected = F.batch_norm(image, norm.running_mean, norm.running_var)
    torch.testing.assert_close(norm.eval()(image), expected)
