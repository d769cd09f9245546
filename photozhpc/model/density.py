"""Redshift densities with calibrated quantiles, and a score of unusual images.

A head gives the probability of K bins, equally wide in ln(1+z) (Pasquet et al. 2019,
arXiv 1806.06607, section 4); several heads are averaged. The density of a network is rarely as wide
as its errors, so a quantile is not read at its nominal level, but at the level that was measured
to have this share of the labels below it (see model/calibrate.py).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from photozhpc.model.mlp import MLP

# The ends of the central intervals of 68, 90, 95 and 99%, and the median.
LEVEL_Q = (0.005, 0.025, 0.05, 0.16, 0.5, 0.84, 0.95, 0.975, 0.995)
FIRST_LEVEL_Q = (0.005, 0.05, 0.16, 0.84, 0.95, 0.995)  # of model files that have only these
N_KNOTS = 24  # brightnesses at which the calibration is tabulated
# Probability that is spread evenly over all redshifts: a cumulative distribution that increases
# everywhere can be inverted, also in its tails.
FLOOR = 1e-3
_EDGE = 1e-9  # levels are at least this far from 0 and 1, where probits are infinite
RISK_WIDTH = 0.15  # of `least_risk`, from which errors count as outliers


class Calibration(nn.Module):
    """The calibration of a density's quantiles, and the distance to the training sources.

    Until it is fitted every quantile and distance is NaN.

    Args:
        n_latent: length of the features in which the distance is measured.
        n_bins: bins of a density between z = 0 and z_max.
    """

    knot_G: Tensor
    level_GQ: Tensor
    nominal_L: Tensor
    latent_mean_D: Tensor
    whitening_DD: Tensor
    usual_distance: Tensor

    def __init__(self, n_latent: int, n_bins: int, z_max: float) -> None:
        super().__init__()
        self.n_bins = n_bins
        self.log1p_max = math.log1p(z_max)
        self.register_buffer("knot_G", torch.linspace(0, 1, N_KNOTS))
        self.register_buffer("level_GQ", torch.full((N_KNOTS, len(LEVEL_Q)), torch.nan))
        # On the CPU even for a model on the device "meta", because no file contains it.
        nominal_L = torch.tensor([0.0, *LEVEL_Q, 1.0], device="cpu")
        self.register_buffer("nominal_L", nominal_L, persistent=False)
        self.register_buffer("latent_mean_D", torch.zeros(n_latent))
        self.register_buffer("whitening_DD", torch.eye(n_latent))
        self.register_buffer("usual_distance", torch.tensor(torch.nan))

    @property
    def is_fitted(self) -> bool:
        return bool(self.usual_distance.isfinite())

    def quantiles(self, cdf_BE: Tensor, brightness_B: Tensor) -> Tensor:
        """Return quantile_BQ: redshifts with the calibrated probabilities LEVEL_Q below them."""
        level_BQ = interpolate(brightness_B, self.knot_G, self.level_GQ)
        quantile_BQ = torch.expm1(inverse_cdf(cdf_BE, level_BQ) * self.log1p_max)
        return quantile_BQ.cummax(dim=1).values  # expm1 need not be monotonic to the last bit

    def mean(self, cdf_BE: Tensor, brightness_B: Tensor) -> Tensor:
        """Return the mean redshift (B,) of the calibrated density."""
        level_BQ = interpolate(brightness_B, self.knot_G, self.level_GQ)
        level_BL = F.pad(F.pad(level_BQ, (1, 0)), (0, 1), value=1.0)
        mass_BK = calibrated(cdf_BE, level_BL, self.nominal_L).diff(dim=1)
        position_K = (torch.arange(self.n_bins, device=cdf_BE.device) + 0.5) / self.n_bins
        return mass_BK @ torch.expm1(position_K * self.log1p_max)

    def mode(self, density_BK: Tensor) -> Tensor:
        """Return the redshift (B,) where the density per unit of redshift is highest.

        It is that of the uncalibrated density: the calibration has steps at its levels.
        """
        position_K = (torch.arange(self.n_bins, device=density_BK.device) + 0.5) / self.n_bins
        per_z_BK = density_BK * torch.exp(-position_K * self.log1p_max)
        at_B1 = per_z_BK.argmax(dim=1, keepdim=True).clamp(1, self.n_bins - 2)
        position_B = (at_B1 + 0.5 + vertex(per_z_BK, at_B1)).squeeze(1) / self.n_bins
        return torch.expm1(position_B * self.log1p_max)

    def median(self, cdf_BE: Tensor) -> Tensor:
        """Return the median redshift (B,) of the uncalibrated density."""
        half_B1 = torch.full_like(cdf_BE[:, :1], 0.5)
        return torch.expm1(inverse_cdf(cdf_BE, half_B1).squeeze(1) * self.log1p_max)

    def position(self, z_B: Tensor) -> Tensor:
        """Return the positions of redshifts along the bins: 0 at z = 0, 1 at z_max and beyond."""
        return (torch.log1p(z_B) / self.log1p_max).clamp(0, 1).float()

    def ood(self, latent_BD: Tensor) -> Tensor:
        """Return ood_B: Mahalanobis distance to the training sources, 1 = their 99th percentile.

        Lee et al. 2018 (arXiv 1807.03888), with one class.
        """
        distance_B = ((latent_BD - self.latent_mean_D) @ self.whitening_DD).norm(dim=1)
        return distance_B / self.usual_distance

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        key = f"{prefix}level_GQ"
        level_GQ = state_dict.get(key)
        if level_GQ is not None and level_GQ.shape[1:] == (len(FIRST_LEVEL_Q),):
            levels = levels_between(level_GQ.cpu().double().numpy(), FIRST_LEVEL_Q, LEVEL_Q)
            state_dict[key] = torch.from_numpy(levels).to(level_GQ)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Uncertainty(Calibration):
    """Density heads with their calibration.

    With redshift_task "density" the heads train with the network. Otherwise
    `calibrate.fit_uncertainty` fits them on the features of the finished network.

    Args:
        n_input: length of `PITA.redshift_input`.
        n_latent: length of the latent.
        widths: of the hidden layers of a head.
        n_heads: heads whose densities are averaged.
        n_bins: bins of a density between z = 0 and z_max.
    """

    mean_F: Tensor
    std_F: Tensor

    def __init__(
        self,
        n_input: int,
        n_latent: int,
        widths: tuple[int, ...],
        n_heads: int,
        n_bins: int,
        z_max: float,
    ) -> None:
        super().__init__(n_latent, n_bins, z_max)
        self.heads = nn.ModuleList(MLP(n_input, (*widths, n_bins)) for _ in range(n_heads))
        # DDP and the joint optimiser must not wait for their gradients.
        self.heads.requires_grad_(False)
        self.register_buffer("mean_F", torch.zeros(n_input))
        self.register_buffer("std_F", torch.ones(n_input))

    def logits(self, input_BF: Tensor, keep_BU: Tensor | None = None) -> Tensor:
        """Return logit_BHK of the bins, of each head.

        Args:
            keep_BU: factors of the hidden units of all heads, for dropout; None: 1.
        """
        scaled_BF = (input_BF - self.mean_F) / self.std_F
        if keep_BU is None:
            return torch.stack([head(scaled_BF) for head in self.heads], dim=1)
        keeps = keep_BU.chunk(len(self.heads), dim=1)
        pairs = zip(self.heads, keeps, strict=True)
        return torch.stack([_dropped(head, scaled_BF, keep) for head, keep in pairs], dim=1)

    def density(self, input_BF: Tensor) -> Tensor:
        """Return density_BK, the probabilities of the bins, averaged over the heads."""
        scaled_BF = (input_BF - self.mean_F) / self.std_F
        return torch.stack([head(scaled_BF).softmax(dim=1) for head in self.heads]).mean(0)

    def cdf(self, input_BF: Tensor) -> Tensor:
        """Return cdf_BE at the K+1 edges of the bins, from 0 at z = 0 to 1 at z_max."""
        return cumulative(self.density(input_BF))


def _dropped(head: nn.Module, x_BF: Tensor, keep_BU: Tensor) -> Tensor:
    """Return the output of an MLP whose hidden units are multiplied by factors."""
    first = 0
    for layer in head.children():
        x_BF = layer(x_BF)
        if isinstance(layer, nn.ReLU):
            x_BF = x_BF * keep_BU[:, first : first + x_BF.shape[1]]
            first += x_BF.shape[1]
    return x_BF


def least_risk(density_BK: Tensor, z_max: float) -> Tensor:
    """Return the redshift (B,) of least expected loss 1 - 1 / (1 + (dz / RISK_WIDTH)^2).

    dz = (z - z_phot) / (1 + z). Where a density has several peaks, it is in the most probable one,
    while a median may lie between them. The loss is that of Tanaka et al. 2018 (arXiv 1704.05988).
    """
    n_bins, log1p_max = density_BK.shape[1], math.log1p(z_max)
    position_K = (torch.arange(n_bins, device=density_BK.device) + 0.5) / n_bins
    z_K = torch.expm1(position_K.double() * log1p_max)
    dz_KG = (z_K[:, None] - z_K) / (1 + z_K[:, None])
    loss_KG = 1 - 1 / (1 + (dz_KG / RISK_WIDTH).square())
    risk_BG = density_BK.double() @ loss_KG
    at_B1 = risk_BG.argmin(dim=1, keepdim=True).clamp(1, n_bins - 2)
    shift_B1 = vertex(-risk_BG, at_B1)
    return torch.expm1((at_B1 + 0.5 + shift_B1).squeeze(1) / n_bins * log1p_max).float()


def vertex(value_BK: Tensor, at_B1: Tensor) -> Tensor:
    """Return where the parabola through a value and its neighbours is highest, -1 to 1 bins."""
    left_B1, best_B1, right_B1 = (value_BK.gather(1, at_B1 + step) for step in (-1, 0, 1))
    bend_B1 = (2 * best_B1 - left_B1 - right_B1).clamp(min=1e-12)
    return ((right_B1 - left_B1) / (2 * bend_B1)).clamp(-1, 1)


def pooled(density_BK: Tensor, expert_BK: Tensor, share: Tensor | float) -> Tensor:
    """Return the geometric mean of two densities with weights 1 - share and share, of sum 1.

    A logarithmic opinion pool (Genest & Zidek 1986, Statistical Science 1, 114).
    """
    log_BK = (1 - share) * floored(density_BK).log() + share * floored(expert_BK).log()
    return log_BK.softmax(dim=1)


def floored(density_BK: Tensor) -> Tensor:
    """Return the probabilities of K bins with FLOOR spread over them."""
    return (1 - FLOOR) * density_BK + FLOOR / density_BK.shape[1]


def cumulative(density_BK: Tensor) -> Tensor:
    """Return cdf_BE at the edges of K bins of given probability, after adding FLOOR."""
    cdf_BE = F.pad(floored(density_BK).double().cumsum(dim=1), (1, 0))
    return (cdf_BE / cdf_BE[:, -1:]).float()


def cdf_at(cdf_BE: Tensor, position_B: Tensor) -> Tensor:
    """Return the cumulative distribution (B,) at positions, 0 to 1 along the K bins.

    Linear within a bin.
    """
    n_bins = cdf_BE.shape[1] - 1
    place_B = position_B * n_bins
    bin_B1 = place_B.floor().long().clamp(max=n_bins - 1)[:, None]
    low_B, high_B = (cdf_BE.gather(1, bin_B1 + step).squeeze(1) for step in (0, 1))
    return low_B + (place_B - bin_B1.squeeze(1)) * (high_B - low_B)


def inverse_cdf(cdf_BE: Tensor, level_BQ: Tensor) -> Tensor:
    """Return position_BQ, 0 to 1 along the K bins, where the distribution reaches levels."""
    n_bins = cdf_BE.shape[1] - 1
    bin_BQ = torch.searchsorted(cdf_BE, level_BQ.contiguous(), right=True) - 1
    bin_BQ = bin_BQ.clamp(0, n_bins - 1)
    low_BQ, high_BQ = cdf_BE.gather(1, bin_BQ), cdf_BE.gather(1, bin_BQ + 1)
    return (bin_BQ + ((level_BQ - low_BQ) / (high_BQ - low_BQ)).clamp(0, 1)) / n_bins


def calibrated(cdf_BE: Tensor, level_BL: Tensor, nominal_L: Tensor) -> Tensor:
    """Return the calibrated cumulative distribution (B, E) where the raw one is cdf_BE.

    Args:
        level_BL: levels of the raw distribution at which the calibrated one is nominal_L, 0 to 1;
            it is linear between them.
    """
    right_BE = torch.searchsorted(level_BL.contiguous(), cdf_BE, right=True)
    right_BE = right_BE.clamp(1, level_BL.shape[1] - 1)
    low_BE, high_BE = level_BL.gather(1, right_BE - 1), level_BL.gather(1, right_BE)
    share_BE = ((cdf_BE - low_BE) / (high_BE - low_BE).clamp(min=1e-12)).clamp(0, 1)
    left_BE = nominal_L[right_BE - 1]
    cdf_BE = left_BE + share_BE * (nominal_L[right_BE] - left_BE)
    # The whole distribution lies between the first and the last, also where a level is 0 or 1.
    first_B1, last_B1 = torch.zeros_like(cdf_BE[:, :1]), torch.ones_like(cdf_BE[:, :1])
    return torch.cat([first_B1, cdf_BE[:, 1:-1], last_B1], dim=1).cummax(dim=1).values


def levels_between(
    level_GQ: NDArray[np.float64], nominal_Q: Sequence[float], nominal_P: Sequence[float]
) -> NDArray[np.float64]:
    """Return level_GP, the raw levels of nominal_P, from those of nominal_Q.

    Linear in probits, like `conformal.SmoothMap`, which shaped them; at nominal_Q they are
    level_GQ.
    """
    probit_P, probit_Q = ndtri(nominal_P), ndtri(nominal_Q)
    raw_GQ = ndtri(np.clip(level_GQ, _EDGE, 1 - _EDGE))
    level_GP = ndtr(np.array([np.interp(probit_P, probit_Q, raw_Q) for raw_Q in raw_GQ]))
    level_GP[:, np.searchsorted(nominal_P, nominal_Q)] = level_GQ
    return level_GP


def interpolate(x_B: Tensor, knot_G: Tensor, value_GQ: Tensor) -> Tensor:
    """Return value_BQ, linear between knots (which increase) and constant beyond them."""
    right_B = torch.searchsorted(knot_G, x_B.contiguous()).clamp(1, len(knot_G) - 1)
    left_G, right_G = knot_G[right_B - 1], knot_G[right_B]
    share_B1 = ((x_B - left_G) / (right_G - left_G)).clamp(0, 1)[:, None]
    return value_GQ[right_B - 1] * (1 - share_B1) + value_GQ[right_B] * share_B1
