"""Each loss against a loop written from its formula."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from photozhpc.model.losses import (
    colour_loss,
    contrastive_loss,
    density_loss,
    redshift_loss,
)


def _unit(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.07, 0.1, 1.0]))
def test_contrastive_loss_is_infonce_as_a_loop(seed: int, temperature: float) -> None:
    g = torch.Generator().manual_seed(seed)
    query, key, queue = _unit(g, 6, 8), _unit(g, 6, 8), _unit(g, 11, 8)
    total = 0.0
    for b in range(6):
        positive = math.exp(
            sum(float(q * k) for q, k in zip(query[b], key[b], strict=True)) / temperature
        )
        negatives = [
            math.exp(
                sum(float(q * k) for q, k in zip(query[b], queue[j], strict=True)) / temperature
            )
            for j in range(11)
        ]
        total += -math.log(positive / (positive + sum(negatives)))
    assert contrastive_loss(query, key, queue, temperature).item() == pytest.approx(
        total / 6, rel=1e-4
    )


def test_contrastive_loss_falls_when_the_query_nears_its_key() -> None:
    g = torch.Generator().manual_seed(0)
    key, queue = _unit(g, 4, 16), _unit(g, 50, 16)
    assert contrastive_loss(key, key, queue, 0.1) < contrastive_loss(-key, key, queue, 0.1)


def _huber(error: float, delta: float) -> float:
    return 0.5 * error**2 if abs(error) <= delta else delta * (abs(error) - 0.5 * delta)


@pytest.mark.parametrize("scale", ["z", "log1p"])
def test_redshift_loss_is_huber_over_the_labelled(scale: str) -> None:
    z_phot = torch.tensor([0.5, 1.0, 2.0, 0.1, 0.7])
    z_spec = torch.tensor([0.55, math.nan, 1.0, 0.1, math.nan])
    errors = [-0.05, 1.0, 0.0]
    if scale == "log1p":
        errors = [math.log(1.5 / 1.55), math.log(3.0 / 2.0), 0.0]
    expected = sum(_huber(e, 0.15) for e in errors) / 3
    assert redshift_loss(z_phot, z_spec, 0.15, scale).item() == pytest.approx(expected, rel=1e-5)
    count = 6
    assert redshift_loss(z_phot, z_spec, 0.15, scale, count).item() == pytest.approx(
        expected / 2, rel=1e-5
    )


@pytest.mark.parametrize("scale", ["z", "log1p"])
def test_a_batch_without_labels_gives_an_exact_zero_and_zero_gradients(scale: str) -> None:
    z_phot = torch.tensor([0.5, -3.0, 2.0], requires_grad=True)
    loss = redshift_loss(z_phot, torch.full((3,), math.nan), 0.15, scale)
    loss.backward()
    assert loss.item() == 0.0
    assert z_phot.grad is not None
    assert (z_phot.grad == 0).all()


def test_colour_loss_is_the_mean_square_over_measured_sources() -> None:
    predicted = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    colour = torch.tensor([[1.5, 2.0], [math.nan, 4.0], [1.0, 2.0]])
    expected = ((0.5**2 + 0) / 2 + (1 + 4) / 2) / 2
    loss = colour_loss(predicted, colour)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert predicted.grad is not None
    assert (predicted.grad[1] == 0).all()
    assert colour_loss(predicted, torch.full((3, 2), math.nan)).item() == 0.0


def test_density_loss_is_the_cross_entropy_with_a_smoothed_label() -> None:
    torch.manual_seed(0)
    logit, sigma = torch.randn(4, 2, 10), 0.05
    position = torch.tensor([0.31, math.nan, 0.0, 1.0])
    total = 0.0
    for b in (0, 2, 3):
        mass = [
            NormalDist(float(position[b]), sigma).cdf((k + 1) / 10)
            - NormalDist(float(position[b]), sigma).cdf(k / 10)
            for k in range(10)
        ]
        for h in range(2):
            norm = sum(math.exp(x) for x in logit[b, h].tolist())
            for k in range(10):
                log_p = math.log(math.exp(float(logit[b, h, k])) / norm)
                total -= mass[k] / sum(mass) * log_p / 2
    assert density_loss(logit, position, sigma).item() == pytest.approx(total / 3, rel=1e-4)
    assert density_loss(logit, position, sigma, 6).item() == pytest.approx(total / 6, rel=1e-4)
    none = torch.full((4,), math.nan)
    assert density_loss(logit.requires_grad_(), none, sigma).item() == 0
