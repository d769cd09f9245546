"""The photometry-MLP: redshifts from forced fluxes alone, PITA's baseline in the paper.

Input: the features of PITA's colour loss (three colours and one magnitude). Network and loss:
PITA's redshift head. `fit_mlp` fits one network to any features; `PhotometryMLP` is the method.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from photozhpc.metrics import point_metrics
from photozhpc.model.colours import colour_features
from photozhpc.model.losses import redshift_loss
from photozhpc.model.mlp import MLP, MLPTraining, seeded, train_mlp

MAX_WIDTH = 8192  # a larger value is a typo, or from a damaged file


@dataclass(frozen=True)
class PhotometryMLPConfig:
    """Shape of the networks. The defaults are the paper's.

    Attributes:
        n_bands: and number of features: colours of neighbouring bands and one magnitude.
        aperture_radius_arcsec: of the circle whose fluxes are the input.
        widths: of the hidden layers.
        networks: the redshift is the mean of this many.
        redshift_scale: what a network estimates: "z" (the paper) or "log1p", ln(1+z).
    """

    n_bands: int = 4
    aperture_radius_arcsec: float = 0.4
    widths: tuple[int, ...] = (128, 128, 128, 128, 128, 64)
    networks: int = 1
    redshift_scale: Literal["z", "log1p"] = "z"

    def __post_init__(self) -> None:
        if not 1 <= self.n_bands <= MAX_WIDTH:
            raise ValueError(f"n_bands must be 1 to {MAX_WIDTH}, got {self.n_bands}")
        if not 0 < self.aperture_radius_arcsec < math.inf:
            raise ValueError(
                f"aperture_radius_arcsec must be positive, got {self.aperture_radius_arcsec}"
            )
        if not all(0 < width <= MAX_WIDTH for width in self.widths):
            raise ValueError(f"widths must be from 1 to {MAX_WIDTH}, got {self.widths}")
        if not 1 <= self.networks <= 64:
            raise ValueError(f"networks must be 1 to 64, got {self.networks}")


class PhotometryMLP(nn.Module):
    """Networks on the colours and the magnitude of one aperture.

    `softening_C` (nJy) and `extinction_r_C` turn fluxes into features; they and the scaling of the
    features are kept with the weights.
    """

    extinction_r_C: Tensor
    softening_C: Tensor
    feature_mean_F: Tensor
    feature_std_F: Tensor

    def __init__(self, config: PhotometryMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.networks = nn.ModuleList(
            MLP(config.n_bands, (*config.widths, 1)) for _ in range(config.networks)
        )
        self.register_buffer("extinction_r_C", torch.zeros(config.n_bands))
        self.register_buffer("softening_C", torch.ones(config.n_bands))
        self.register_buffer("feature_mean_F", torch.zeros(config.n_bands))
        self.register_buffer("feature_std_F", torch.ones(config.n_bands))

    def forward(self, feature_NF: Tensor) -> Tensor:
        """Return z_phot_N of finite features."""
        scaled_NF = (feature_NF - self.feature_mean_F) / self.feature_std_F
        raw_N = torch.stack([network(scaled_NF) for network in self.networks]).mean(0).squeeze(1)
        return _redshift(raw_N, self.config.redshift_scale)

    def features(self, flux_NC: NDArray, ebv_N: NDArray) -> NDArray[np.float32]:
        """Return feature_NF of fluxes (nJy) in the aperture; see `colour_features`."""
        return colour_features(
            flux_NC, self.softening_C.numpy(), ebv_N, self.extinction_r_C.numpy()
        )

    @torch.inference_mode()
    def predict(self, flux_NC: NDArray, ebv_N: NDArray) -> NDArray[np.float32]:
        """Return z_phot_N; NaN where a flux (nJy, in the aperture) is not finite."""
        feature_NF = self.features(flux_NC, ebv_N)
        z_phot_N = self(torch.from_numpy(np.nan_to_num(feature_NF))).numpy().copy()
        z_phot_N[~np.isfinite(feature_NF).all(axis=1)] = np.nan
        return z_phot_N


@dataclass(frozen=True)
class MLPFitConfig(MLPTraining):
    """The network and the training of `fit_mlp`."""

    widths: tuple[int, ...] = (128, 128, 128, 128, 128, 64)
    huber_delta: float = 0.15
    redshift_scale: str = "log1p"


@dataclass(frozen=True)
class FittedMLP:
    """A network, with the mean and standard deviation of the features that it was fitted to."""

    network: MLP
    mean_F: NDArray
    std_F: NDArray
    redshift_scale: str

    @torch.inference_mode()
    def predict(self, feature_NF: NDArray) -> NDArray[np.float32]:
        """Return z_phot_N; NaN where a feature is not finite."""
        raw_N1 = self.network(self.scaled(np.nan_to_num(feature_NF)))
        z_phot_N = _redshift(raw_N1.squeeze(1), self.redshift_scale).numpy().copy()
        z_phot_N[~np.isfinite(feature_NF).all(axis=1)] = np.nan
        return z_phot_N

    def scaled(self, feature_NF: NDArray) -> Tensor:
        return torch.from_numpy(((feature_NF - self.mean_F) / self.std_F).astype(np.float32))


def fit_mlp(
    feature_NF: NDArray,
    z_spec_N: NDArray,
    validation_feature_NF: NDArray,
    validation_z_N: NDArray,
    config: MLPFitConfig,
) -> FittedMLP:
    """Fit one network to labelled features; keep the epoch with the best validation NMAD.

    All arrays are finite.
    """
    with seeded(config.seed):
        network = MLP(feature_NF.shape[1], (*config.widths, 1))
    scale = config.redshift_scale
    fitted = FittedMLP(network, feature_NF.mean(axis=0), feature_NF.std(axis=0), scale)
    z_N = torch.from_numpy(np.asarray(z_spec_N, dtype=np.float32))

    def loss(raw_B1: Tensor, rows: Tensor) -> Tensor:
        z_phot_B = _redshift(raw_B1.squeeze(1), scale)
        return redshift_loss(z_phot_B, z_N[rows], config.huber_delta, scale)

    def nmad(_: nn.Module) -> float:
        return point_metrics(validation_z_N, fitted.predict(validation_feature_NF)).nmad

    train_mlp(network, fitted.scaled(feature_NF), loss, config, nmad)
    return fitted


def fit_mlps(
    networks: nn.ModuleList,
    feature_NF: NDArray,
    z_spec_N: NDArray,
    validation_feature_NF: NDArray,
    validation_z_N: NDArray,
    config: MLPFitConfig,
) -> tuple[NDArray, NDArray]:
    """Fit networks as `fit_mlp` does, in place, each from its own seed.

    Returns:
        Mean and standard deviation of the features, for scaling them.
    """
    samples = (feature_NF, z_spec_N, validation_feature_NF, validation_z_N)
    for number, network in enumerate(networks):
        fitted = fit_mlp(*samples, replace(config, seed=config.seed + number))
        network.load_state_dict(fitted.network.state_dict())
    return fitted.mean_F, fitted.std_F


def _redshift(raw_N: Tensor, scale: str) -> Tensor:
    return torch.expm1(raw_N) if scale == "log1p" else raw_N
