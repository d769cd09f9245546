"""The density of redshift from forced fluxes alone: small networks, averaged."""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photozhpc.model.density_fit import SMOOTHING_LOG1P, log_density, smoothed
from photozhpc.model.flux_features import FluxFeatures
from photozhpc.model.mlp import MLP, MLPTraining, seeded, train_mlp

MAX_WIDTH = 8192  # a larger value is a typo, or from a damaged file
TRAINING = MLPTraining(batch_size=256, lr=1e-3, weight_decay=5e-2)
MIN_EPOCHS = 40


@dataclass(frozen=True)
class FluxExpertConfig:
    """Shape of the networks.

    Attributes:
        n_bands, n_apertures: of the fluxes; Kron counts as an aperture.
        widths: of the hidden layers.
        networks: whose densities are averaged.
        dropout: share of the hidden units that a training step sees as zero.
        bins: of the density between z = 0 and z_max, equally wide in ln(1+z).
    """

    n_bands: int = 4
    n_apertures: int = 1
    widths: tuple[int, ...] = (256, 256, 256)
    networks: int = 5
    dropout: float = 0.2
    bins: int = 256
    z_max: float = 4.0

    def __post_init__(self) -> None:
        for name in ("n_bands", "n_apertures", "networks"):
            if not 1 <= getattr(self, name) <= 64:
                raise ValueError(f"{name} must be 1 to 64, got {getattr(self, name)}")
        if not all(0 < width <= MAX_WIDTH for width in self.widths):
            raise ValueError(f"widths must be from 1 to {MAX_WIDTH}, got {self.widths}")
        if not 2 <= self.bins <= MAX_WIDTH:
            raise ValueError(f"bins must be 2 to {MAX_WIDTH}, got {self.bins}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if not 0 < self.z_max <= 100:
            raise ValueError(f"z_max must be above 0 and at most 100, got {self.z_max}")


class FluxExpert(nn.Module):
    """Features of fluxes, and networks on them."""

    def __init__(self, config: FluxExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.features = FluxFeatures(config.n_bands, config.n_apertures)
        widths = (*config.widths, config.bins)
        self.networks = nn.ModuleList(
            MLP(self.features.n_features, widths, config.dropout) for _ in range(config.networks)
        )
        self.networks.requires_grad_(False)  # they do not train with a model that contains them

    def forward(self, flux_BCR: Tensor, flux_err_BCR: Tensor, ebv_B: Tensor) -> Tensor:
        """Return density_BK: the probabilities of the bins.

        Args:
            flux_BCR, flux_err_BCR: nJy; not finite where not measured.
            ebv_B: Galactic E(B-V), magnitudes.
        """
        return self.density(self.features(flux_BCR, flux_err_BCR, ebv_B))

    def density(self, feature_BF: Tensor) -> Tensor:
        """Return density_BK from `features`."""
        return torch.stack([net(feature_BF).softmax(dim=1) for net in self.networks]).mean(0)

    def position(self, z_B: Tensor) -> Tensor:
        """Return the positions of redshifts along the bins: 0 at z = 0, 1 at z_max and beyond."""
        return (torch.log1p(z_B) / math.log1p(self.config.z_max)).clamp(0, 1).float()


def fit_flux_expert(
    expert: FluxExpert,
    flux_NCR: Tensor,
    flux_err_NCR: Tensor,
    ebv_N: Tensor,
    z_N: Tensor,
    held_out_N: Tensor,
    *,
    steps: int = 2000,
    seed: int = 0,
    refit: bool = True,
) -> Tensor:
    """Fit the features and the networks, in place, to labelled sources on the expert's device.

    Each network is trained on the sources that are not held out, until these have the highest
    density; with `refit`, then again from the start on all sources, for as many epochs.

    Args:
        held_out_N: bool.
        steps: of the schedule of a network, at least.
        seed: of weights, order and dropout.

    Returns:
        density_MK of the held-out sources by networks that have not seen them: to weight, pool or
        calibrate with.
    """
    expert.features.fit(flux_NCR, flux_err_NCR, ebv_N)
    x_NF = expert.features(flux_NCR, flux_err_NCR, ebv_N)
    position_N = expert.position(z_N)
    sigma = SMOOTHING_LOG1P / math.log1p(expert.config.z_max)
    target_NK = smoothed(position_N, expert.config.bins, sigma)
    kept_NF, kept_NK = x_NF[~held_out_N], target_NK[~held_out_N]
    check_MF, check_M = x_NF[held_out_N], position_N[held_out_N]

    @torch.no_grad()
    def check(network: nn.Module) -> float:
        return -log_density(network(check_MF).softmax(dim=1), check_M).mean().item()

    def fit(network: nn.Module, seed: int, stop_after: int | None = None) -> int:
        everything = stop_after is not None
        inputs_NF, outputs_NK = (x_NF, target_NK) if everything else (kept_NF, kept_NK)
        epochs = max(MIN_EPOCHS, math.ceil(steps / math.ceil(len(kept_NF) / TRAINING.batch_size)))
        with seeded(seed):
            for layer in network.children():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
            return train_mlp(
                network,
                inputs_NF,
                lambda logit_BK, rows: F.cross_entropy(logit_BK, outputs_NK[rows]),
                replace(TRAINING, epochs=epochs, seed=seed),
                None if everything else check,
                stop_after,
            )

    expert.networks.requires_grad_(True)
    epochs = [fit(network, seed + n) for n, network in enumerate(expert.networks)]
    with torch.no_grad():
        density_MK = expert.density(check_MF)
    if refit:
        for n, network in enumerate(expert.networks):
            fit(network, seed + n, epochs[n])
    expert.networks.requires_grad_(False)
    return density_MK
