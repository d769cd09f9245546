"""Fits on the features of a finished encoder: densities, propensities, distances."""

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from photozhpc.model.conformal import Labels, level_table
from photozhpc.model.density import LEVEL_Q, N_KNOTS, Calibration, Uncertainty, floored
from photozhpc.model.mlp import MLP, MLPTraining, seeded, train_mlp

TRAINING = MLPTraining(batch_size=512, lr=1e-3, weight_decay=1e-2)
SMOOTHING_LOG1P = 0.01  # sigma in ln(1+z) of the Gaussian by which a label counts in nearby bins
INPUT_DROPOUT = 0.1
PROPENSITY_WIDTHS = (64, 1)
PROPENSITY_EPOCHS = 10
MAX_WEIGHT = 10.0  # of a label, relative to the average
SHRINKAGE = 1e-4
USUAL_QUANTILE = 0.99
_MIN_KNOT_STEP = 1e-4  # a minimum, so that any table can be interpolated


def fit_heads(
    uncertainty: Uncertainty,
    input_NF: NDArray[np.float32],
    z_N: NDArray,
    check_NF: NDArray[np.float32],
    check_z_N: NDArray,
    steps: int,
    seed: int,
    input_dropout: float = INPUT_DROPOUT,
) -> None:
    """Fit the density heads, in place, each from its own seed, in at least `steps` steps.

    The loss is the cross-entropy with smoothed labels. Each head keeps the weights of the epoch
    that gives the check sample's redshifts the highest density. (On an unseen simulated sky, the
    CRPS as loss gives a CRPS 7% higher, labels weighted against their selection 5% higher.)
    """
    device = uncertainty.mean_F.device
    mean_F, std_F = input_NF.mean(axis=0), np.maximum(input_NF.std(axis=0), 1e-6)
    uncertainty.mean_F.copy_(torch.from_numpy(mean_F))
    uncertainty.std_F.copy_(torch.from_numpy(std_F))
    x_NF, check_x_NF = (
        torch.from_numpy((inputs - mean_F) / std_F).to(device) for inputs in (input_NF, check_NF)
    )
    position_N = uncertainty.position(torch.as_tensor(z_N, device=device))
    check_position_N = uncertainty.position(torch.as_tensor(check_z_N, device=device))
    smoothing = SMOOTHING_LOG1P / uncertainty.log1p_max
    epochs = math.ceil(steps / math.ceil(len(x_NF) / TRAINING.batch_size))

    def loss(logit_BK: Tensor, rows: Tensor) -> Tensor:
        return F.cross_entropy(logit_BK, smoothed(position_N[rows], logit_BK.shape[1], smoothing))

    @torch.no_grad()
    def check(head: nn.Module) -> float:
        density_NK = head(check_x_NF).softmax(dim=1)
        return -log_density(density_NK, check_position_N).mean().item()

    training = replace(TRAINING, epochs=epochs, input_dropout=input_dropout)
    for number, head in enumerate(uncertainty.heads):
        with seeded(seed + number):
            for layer in head.children():
                if isinstance(layer, nn.Linear):
                    layer.reset_parameters()
        head.requires_grad_(True)
        train_mlp(head, x_NF, loss, replace(training, seed=seed + number), check)
        head.requires_grad_(False)


def smoothed(position_B: Tensor, n_bins: int, sigma: float) -> Tensor:
    """Return target_BK: a Gaussian at each position, integrated over the bins, of sum 1."""
    edge_E = torch.linspace(0, 1, n_bins + 1, device=position_B.device)
    mass_BK = torch.special.ndtr((edge_E - position_B[:, None]) / sigma).diff(dim=1)
    return mass_BK / mass_BK.sum(dim=1, keepdim=True)


def log_density(density_BK: Tensor, position_B: Tensor) -> Tensor:
    """Return ln of the density per bin, with FLOOR, at positions, (B,)."""
    n_bins = density_BK.shape[1]
    bin_B1 = (position_B * n_bins).long().clamp(0, n_bins - 1)[:, None]
    return floored(density_BK).gather(1, bin_B1).squeeze(1).log()


def selection_weights(
    input_NF: NDArray[np.float32], labelled_N: NDArray[np.bool_], of_NF: NDArray, seed: int
) -> NDArray[np.float64]:
    """Return weights that undo the selection of the labels: 1 / P(labelled | features).

    Args:
        input_NF: features of a fair sample of the survey, labelled or not.
        of_NF: features of the sources to weight.
    """
    if labelled_N.all():
        return np.ones(len(of_NF))
    mean_F, std_F = input_NF.mean(axis=0), np.maximum(input_NF.std(axis=0), 1e-6)
    x_NF = torch.from_numpy((input_NF - mean_F) / std_F)
    y_N = torch.from_numpy(labelled_N.astype(np.float32))
    with seeded(seed):
        network = MLP(x_NF.shape[1], PROPENSITY_WIDTHS)

    def loss(logit_B1: Tensor, rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logit_B1.squeeze(1), y_N[rows])

    training = replace(TRAINING, epochs=PROPENSITY_EPOCHS, lr=3 * TRAINING.lr, seed=seed)
    train_mlp(network, x_NF, loss, training)
    with torch.no_grad():
        logit_N = network(torch.from_numpy((of_NF - mean_F) / std_F)).squeeze(1)
    min_probability = labelled_N.mean() / MAX_WEIGHT
    return 1 / np.maximum(logit_N.sigmoid().double().numpy(), min_probability)


def fit_distance(calibration: Calibration, latent_ND: NDArray[np.float32]) -> None:
    """Set mean, covariance and usual distance of `Calibration.ood` from training sources."""
    latent_ND = latent_ND.astype(np.float64)
    mean_D = latent_ND.mean(axis=0)
    covariance_DD = np.cov(latent_ND, rowvar=False)
    n_latent = len(mean_D)
    typical = np.trace(covariance_DD) / n_latent
    covariance_DD = (1 - SHRINKAGE) * covariance_DD + SHRINKAGE * typical * np.eye(n_latent)
    whitening_DD = np.linalg.inv(np.linalg.cholesky(covariance_DD)).T
    distance_N = np.linalg.norm((latent_ND - mean_D) @ whitening_DD, axis=1)
    calibration.latent_mean_D.copy_(torch.from_numpy(mean_D))
    calibration.whitening_DD.copy_(torch.from_numpy(whitening_DD))
    calibration.usual_distance.fill_(np.quantile(distance_N, USUAL_QUANTILE))


def set_levels(
    calibration: Calibration, brightness_N: NDArray[np.float32], shape: Labels, conformal: Labels
) -> None:
    """Fit the table of calibrated levels, in place, to two sets of labels (see `level_table`).

    Args:
        brightness_N: of a fair sample of the survey: the knots follow it, not the labels.
    """
    level_G = (np.arange(N_KNOTS) + 0.5) / N_KNOTS
    knot_G = np.quantile(brightness_N.astype(np.float64), level_G)
    knot_G += _MIN_KNOT_STEP * np.arange(N_KNOTS)
    level_GQ = level_table(shape, conformal, knot_G, LEVEL_Q)
    calibration.knot_G.copy_(torch.from_numpy(knot_G))
    calibration.level_GQ.copy_(torch.from_numpy(level_GQ))
