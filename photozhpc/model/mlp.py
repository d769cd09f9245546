"""The multilayer perceptron of every head, and its training on fixed features."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers with ReLU, and dropout in training, between them (none after the last)."""

    def __init__(self, n_in: int, widths: tuple[int, ...], dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for n_out in widths:
            layers += [nn.Linear(n_in, n_out), nn.ReLU(inplace=True)]
            if dropout:
                layers.append(nn.Dropout(dropout))
            n_in = n_out
        super().__init__(*layers[: -2 if dropout else -1])


@dataclass(frozen=True)
class MLPTraining:
    """How `train_mlp` trains: AdamW, with a learning rate on a cosine from lr to min_lr.

    Attributes:
        input_dropout: share of the features that a step sees as zero.
        seed: of the order of the sources and of the dropout.
    """

    epochs: int = 300
    batch_size: int = 256
    lr: float = 1e-3
    min_lr: float = 0.0
    weight_decay: float = 1e-4
    input_dropout: float = 0.0
    seed: int = 0


def train_mlp(
    network: nn.Module,
    x_NF: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    training: MLPTraining,
    check: Callable[[nn.Module], float] | None = None,
    view: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> None:
    """Train a network on features, in place.

    Args:
        x_NF: scaled features, on the network's device.
        loss: of the network's output for some rows of x_NF, and these rows.
        view: returns the features of some rows that a step sees, drawn anew; None: those of x_NF.
        check: measures the network after every epoch; the weights with the lowest value are kept.
            None: the weights after the last epoch are kept.
    """
    generator = torch.Generator(x_NF.device).manual_seed(training.seed)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=training.lr, weight_decay=training.weight_decay
    )
    steps = training.epochs * math.ceil(len(x_NF) / training.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, training.min_lr)
    best, best_state = math.inf, network.state_dict()
    for _ in range(training.epochs):
        network.train()
        order_N = torch.randperm(len(x_NF), generator=generator, device=x_NF.device)
        for rows in order_N.split(training.batch_size):
            x_BF = x_NF[rows] if view is None else view(rows, generator)
            if training.input_dropout:
                u_BF = torch.rand(x_BF.shape, generator=generator, device=x_BF.device)
                kept_BF = u_BF >= training.input_dropout
                x_BF = x_BF * kept_BF / (1 - training.input_dropout)
            optimiser.zero_grad(set_to_none=True)
            loss(network(x_BF), rows).backward()
            optimiser.step()
            schedule.step()
        network.eval()
        if check is not None and (value := check(network)) < best:
            best = value
            best_state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if check is not None:
        network.load_state_dict(best_state)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch in the block, and restore its global random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
