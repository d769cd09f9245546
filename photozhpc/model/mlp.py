"""The multilayer perceptron that every head is."""

from torch import nn


class MLP(nn.Sequential):
    """Linear layers with ReLU between them (none after the last)."""

    def __init__(self, n_in: int, widths: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(n_in, width), nn.ReLU(inplace=True)]
            n_in = width
        super().__init__(*layers[:-1])
