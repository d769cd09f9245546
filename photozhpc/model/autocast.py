"""An encoder as it is, in reduced precision."""

import torch
from torch import Tensor, nn


class Autocast(nn.Module):
    """An encoder that is not rearranged."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder = encoder
        self.dtype = dtype

    def forward(self, image_BCHW: Tensor) -> Tensor:
        image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
        reduced = self.dtype != torch.float32
        with torch.autocast(image_BCHW.device.type, dtype=self.dtype, enabled=reduced):
            return self.encoder(image_BCHW).float()
