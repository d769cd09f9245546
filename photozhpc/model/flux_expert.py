"""The density of redshift from forced fluxes alone: small networks, averaged."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photozhpc.model.density_fit import SMOOTHING_LOG1P, log_density, smoothed
from photozhpc.model.dimming import dimmed_fluxes, draw_factors
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
        noise: whether they see the errors of the fluxes. Where the depth hardly varies, errors
            repeat the fluxes, and make it easier to learn labels by heart.
        bins: of the density between z = 0 and z_max, equally wide in ln(1+z).
        z_max: upper end of the last bin; labels beyond it count as at it.
    """

    n_bands: int = 4
    n_apertures: int = 1
    widths: tuple[int, ...] = (128,) * 5
    networks: int = 5
    dropout: float = 0.1
    noise: bool = False
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
        self.features = FluxFeatures(config.n_bands, config.n_apertures, config.noise)
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
    fold_N: Tensor,
    *,
    steps: int = 1000,
    dimming: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Fit the features and the networks, in place, to labelled sources on the expert's device.

    Network i is trained on all folds but one, i modulo the number of folds, until that one has the
    highest density. Networks fitted again to all folds are worse: on 3 864 real galaxies they have
    13.7% outliers instead of 13.0% (benchmarks/real_photoz.py).

    Args:
        fold_N: numbers of folds from 0, -1 for sources that are never held out; or bool: whether
            a source is in the only fold.
        steps: of the schedule of a network, at least.
        dimming: mean number of magnitudes, see `dimming`.
        seed: of weights, order, dropout and dimming.

    Returns:
        density_MK of the sources that are in a fold, by networks that have not seen them: to
        weight, pool or calibrate with.

    Raises:
        ValueError: there are fewer networks than folds.
    """
    fold_N = fold_N.long() - 1 if fold_N.dtype == torch.bool else fold_N
    n_folds = int(fold_N.max()) + 1
    if n_folds > len(expert.networks):
        raise ValueError(f"{len(expert.networks)} networks are too few for {n_folds} folds")
    expert.features.fit(flux_NCR, flux_err_NCR, ebv_N)
    x_NF = expert.features(flux_NCR, flux_err_NCR, ebv_N)

    def dimmed(rows: Tensor, generator: torch.Generator) -> Tensor:
        factor_B = draw_factors(len(rows), dimming, generator)
        err_BCR = flux_err_NCR[rows]
        flux_BCR = dimmed_fluxes(flux_NCR[rows], err_BCR, factor_B, [generator])
        return expert.features(flux_BCR, err_BCR, ebv_N[rows])

    position_N = expert.position(z_N)
    sigma = SMOOTHING_LOG1P / math.log1p(expert.config.z_max)
    target_NK = smoothed(position_N, expert.config.bins, sigma)

    expert.networks.requires_grad_(True)
    density_NK = torch.zeros_like(target_NK)
    counts = [sum(i % n_folds == k for i in range(len(expert.networks))) for k in range(n_folds)]
    for number, network in enumerate(expert.networks):
        held_N = fold_N == number % n_folds
        fitted_M = (~held_N).nonzero().squeeze(1)
        _fit_network(
            network,
            (x_NF[fitted_M], target_NK[fitted_M]),
            (x_NF[held_N], position_N[held_N]),
            steps,
            seed + number,
            _of(fitted_M, dimmed) if dimming else None,
        )
        with torch.no_grad():
            density_NK[held_N] += network(x_NF[held_N]).softmax(dim=1) / counts[number % n_folds]
    expert.networks.requires_grad_(False)
    return density_NK[fold_N >= 0]


View = Callable[[Tensor, torch.Generator], Tensor]


def _of(row_M: Tensor, view: View) -> View:
    """Return the views of a sample of rows, which are numbered anew."""
    return lambda rows, generator: view(row_M[rows], generator)


def _fit_network(
    network: nn.Module,
    fitted: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    steps: int,
    seed: int,
    view: View | None,
) -> None:
    """Fit a network from new weights; keep those that give held-out labels the highest density.

    Args:
        fitted: features and smoothed densities of labels.
        held: features and positions (`FluxExpert.position`).
        view: of the fitted labels, see `train_mlp`.
    """
    x_NF, target_NK = fitted
    held_MF, position_M = held

    @torch.no_grad()
    def check(network: nn.Module) -> float:
        return -log_density(network(held_MF).softmax(dim=1), position_M).mean().item()

    epochs = max(MIN_EPOCHS, math.ceil(steps / math.ceil(len(x_NF) / TRAINING.batch_size)))
    with seeded(seed):
        for layer in network.children():
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        train_mlp(
            network,
            x_NF,
            lambda logit_BK, rows: F.cross_entropy(logit_BK, target_NK[rows]),
            replace(TRAINING, epochs=epochs, seed=seed),
            check,
            view,
        )
