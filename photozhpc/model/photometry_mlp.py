"""The photometry-MLP: redshifts from forced fluxes alone, PITA's opponent in the paper.

Input: the features of PITA's colour loss (three colours and one magnitude), or those of every
aperture; network and loss: PITA's redshift head.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from photozhpc.metrics import point_metrics
from photozhpc.model.losses import redshift_loss
from photozhpc.model.pita import MLP


@dataclass(frozen=True)
class PhotometryMLPConfig:
    """How the MLP is trained. It stops at the epoch with the best validation NMAD."""

    widths: tuple[int, ...] = (128, 128, 128, 128, 128, 64)
    epochs: int = 300
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-4
    huber_delta: float = 0.15
    redshift_scale: str = "log1p"
    seed: int = 0


class PhotometryMLP:
    """A trained photometry-MLP; make it with `fit`."""

    def __init__(
        self, network: nn.Module, mean_F: NDArray, std_F: NDArray, redshift_scale: str
    ) -> None:
        self.network = network
        self.mean_F = mean_F
        self.std_F = std_F
        self._redshift_scale = redshift_scale

    @classmethod
    def fit(
        cls,
        feature_NF: NDArray,
        z_spec_N: NDArray,
        validation_feature_NF: NDArray,
        validation_z_N: NDArray,
        config: PhotometryMLPConfig,
    ) -> "PhotometryMLP":
        """Train on labelled features; all arrays finite."""
        generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        network = MLP(feature_NF.shape[1], (*config.widths, 1))
        model = cls(network, feature_NF.mean(axis=0), feature_NF.std(axis=0), config.redshift_scale)
        x_NF = model._scaled(feature_NF)
        z_N = torch.from_numpy(np.asarray(z_spec_N, dtype=np.float32))
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=config.lr, weight_decay=config.weight_decay
        )
        batch = min(config.batch_size, len(x_NF))
        total = config.epochs * math.ceil(len(x_NF) / batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
        best, best_state = math.inf, network.state_dict()
        for _ in range(config.epochs):
            network.train()
            for rows in torch.randperm(len(x_NF), generator=generator).split(batch):
                loss = redshift_loss(
                    model._redshift(x_NF[rows]),
                    z_N[rows],
                    config.huber_delta,
                    config.redshift_scale,
                )
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                schedule.step()
            nmad = point_metrics(validation_z_N, model.predict(validation_feature_NF)).nmad
            if nmad < best:
                best = nmad
                best_state = {k: v.clone() for k, v in network.state_dict().items()}
        network.load_state_dict(best_state)
        return model

    @torch.inference_mode()
    def predict(self, feature_NF: NDArray) -> NDArray[np.float32]:
        """Return z_phot_N; NaN where a feature is not finite."""
        self.network.eval()
        z_phot_N = self._redshift(self._scaled(np.nan_to_num(feature_NF))).numpy().copy()
        z_phot_N[~np.isfinite(feature_NF).all(axis=1)] = np.nan
        return z_phot_N

    def _scaled(self, feature_NF: NDArray) -> torch.Tensor:
        return torch.from_numpy(((feature_NF - self.mean_F) / self.std_F).astype(np.float32))

    def _redshift(self, x_NF: torch.Tensor) -> torch.Tensor:
        raw_N = self.network(x_NF).squeeze(1)
        return torch.expm1(raw_N) if self._redshift_scale == "log1p" else raw_N
