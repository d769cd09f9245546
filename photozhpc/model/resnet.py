"""A small residual network for images of a few hundred pixels.

ConvNeXt's stem cuts an image into patches of 4 x 4 pixels, a good part of a galaxy. Here the stem
is a convolution of stride 2 whose windows overlap, and the last map is not averaged but flattened:
the source is always in the middle, so each of its places has a meaning of its own.

Blocks are residual with normalisation and activation first (He et al. 2016, arXiv 1603.05027). The
normalisation is that of a batch, which keeps differences of brightness; that of a layer, as
ConvNeXt's, divides them out.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_KERNEL = 5
MOMENTUM = 0.1  # of the running statistics


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
        self.norm = LaneNorm(widths[-1])
        self.num_features = n_out or widths[-1] * side**2
        self.fc = nn.Linear(widths[-1] * side**2, n_out) if n_out else nn.Identity()

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return feature_BF."""
        return self.fc(F.relu(self.norm(self.blocks(self.stem(image_BCHW)))).flatten(1))


class Block(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))), on a map that is half as wide with stride 2."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.norm1, self.norm2 = LaneNorm(n_in), LaneNorm(n_out)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)  # the network begins as its skip connections

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = F.relu(self.norm1(x_BCHW))
        if self.stride == 2:
            x_BCHW = F.avg_pool2d(x_BCHW, 2, ceil_mode=True)
        return self.skip(x_BCHW) + self.conv2(F.relu(self.norm2(self.conv1(active_BCHW))))


class LaneNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of each lane of a training's batch.

    A step thus does not depend on how lanes are shared among ranks, as it would with the statistics
    of a rank's batch. (Hoffer et al. 2017, arXiv 1705.08741, propose smaller batches than those of
    a step for another reason: they regularise.)

    Attributes:
        lane_batch: images of each lane, which follow one another; None: all are one lane.
    """

    running_mean: Tensor
    running_var: Tensor
    lane_batch: int | None = None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BCHW)
        lanes = x_BCHW.split(self.lane_batch or len(x_BCHW))
        means, variances, normal = [], [], []
        for lane_BCHW in lanes:
            mean_C, var_C = torch.zeros_like(self.running_mean), torch.ones_like(self.running_var)
            normal.append(
                F.batch_norm(lane_BCHW, mean_C, var_C, self.weight, self.bias, True, 1.0, self.eps)
            )
            means.append(mean_C)
            variances.append(var_C)
        with torch.no_grad():
            self.running_mean.lerp_(torch.stack(means).mean(dim=0), MOMENTUM)
            self.running_var.lerp_(torch.stack(variances).mean(dim=0), MOMENTUM)
        return torch.cat(normal) if len(normal) > 1 else normal[0]
