"""A small residual network for images of a few hundred pixels.

ConvNeXt's stem cuts an image into patches of 4 x 4 pixels, a good part of a galaxy. Here the stem
is a convolution of stride 2 whose windows overlap, and the last map is not averaged but flattened:
the source is always in the middle, so each of its places has a meaning of its own.

Blocks are residual with the activation first (He et al. 2016, arXiv 1603.05027). There is no
normalisation: that of a batch would depend on the number of ranks, that of a layer divides the
brightness out. Instead the last kernel of each branch begins at 0, so that the network begins as
its skip connections (Zhang et al. 2019, arXiv 1901.09321).
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

STEM_KERNEL = 5


class ResNet(nn.Module):
    """Stem and stages; each stage after the first halves the map.

    Args:
        widths: channels of the stages.
        n_out: of a linear layer after the last map; 0: none.
    """

    def __init__(
        self, n_bands: int, widths: tuple[int, ...], side_pix: int, n_out: int = 0
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(n_bands, widths[0], STEM_KERNEL, 2, STEM_KERNEL // 2)
        side = -(-side_pix // 2)
        blocks: list[nn.Module] = [Block(widths[0], widths[0])]
        for n_in, n_stage in pairwise(widths):
            blocks += [Block(n_in, n_stage, 2), Block(n_stage, n_stage)]
            side = -(-side // 2)
        self.blocks = nn.Sequential(*blocks)
        self.num_features = n_out or widths[-1] * side**2
        self.fc = nn.Linear(widths[-1] * side**2, n_out) if n_out else nn.Identity()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return feature_BF."""
        return self.fc(F.relu(self.blocks(self.stem(image_BCHW))).flatten(1))


class Block(nn.Module):
    """x + conv(relu(conv(relu(x)))), on a map that is half as wide with stride 2."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = F.relu(x_BCHW)
        if self.stride == 2:
            x_BCHW = F.avg_pool2d(x_BCHW, 2, ceil_mode=True)
        branch_BCHW = self.conv2(F.relu(self.conv1(active_BCHW)))
        return self.skip(x_BCHW) + branch_BCHW
