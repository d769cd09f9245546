"""Small networks and their checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm

from builders.stores import SIZE
from photozhpc.model import PITA, PITAConfig, load_checkpoint, save_checkpoint
from photozhpc.model.density import LEVEL_Q
from photozhpc.model.pita_config import FluxesConfig
from photozhpc.survey import load_survey

TINY = PITAConfig(
    encoder="convnext_atto",
    encoder_out=0,
    encoder_mlp=(32, 16),
    projection_mlp=(16, 8),
    redshift_mlp=(32,),
    colour_mlp=(32,),
    layer_scale=0.1,
    crop=32,
    stretch="asinh",
    aperture_radii_pix=(3.6, 7.3),
    redshift_scale="log1p",
)


# Pixels and fluxes: density heads that train with the encoder, and an expert.
TINY_RESNET = replace(
    TINY,
    encoder="resnet",
    encoder_widths=(8, 12),
    crop=24,
    dropout=0.2,
    aperture_radii_pix=(),
    redshift_task="density",
    density_bins=32,
    point_estimate="median",
    fluxes=FluxesConfig((0.1, 0.4, 1.6), True, True, 2, (16,)),
)


def make_checkpoint(path: Path, seed: int = 0, survey_name: str = "roman-sim") -> Path:

    torch.manual_seed(seed)
    survey = load_survey(survey_name)
    small = PITAConfig(
        len(survey.bands),
        encoder="convnext_atto",
        encoder_out=0,
        crop=SIZE,
        layer_scale=1.0,
        density_bins=32,
    )
    model = PITA(small)
    model.uncertainty.level_GQ.copy_(torch.tensor(LEVEL_Q).expand_as(model.uncertainty.level_GQ))
    model.uncertainty.usual_distance.fill_(2.0)
    return save_checkpoint(path, model, survey)


def tiny_checkpoint(path: Path, survey_name: str = "roman-sim", **changes) -> Path:
    """TINY, with changes, as it is before training."""
    torch.manual_seed(0)
    model = PITA(replace(TINY, **changes))
    return save_checkpoint(path, model, load_survey(survey_name))


def calibrated_checkpoint(path: Path) -> Path:
    """A small model whose calibration depends on brightness, as a fitted one's does."""
    checkpoint = load_checkpoint(make_checkpoint(path))
    uncertainty = checkpoint.pita.uncertainty
    t_G1 = np.linspace(-1, 1, len(uncertainty.knot_G))[:, None]
    level_GQ = norm.cdf(norm.ppf(LEVEL_Q) * np.exp(0.2 * t_G1) + 0.3 * t_G1)
    uncertainty.level_GQ.copy_(torch.from_numpy(level_GQ))
    uncertainty.knot_G.copy_(torch.linspace(-1, 5, len(uncertainty.knot_G)))
    for head in uncertainty.heads:  # untrained heads are nearly flat
        for parameter in head.parameters():
            parameter.mul_(4)
    return save_checkpoint(path, checkpoint.pita, checkpoint.survey)


def noise_images() -> tuple[np.ndarray, np.ndarray]:
    """Cutouts of 150 sources, of which number 7 has no data, and their E(B-V)."""
    rng = np.random.default_rng(0)
    cutout = rng.normal(0, 0.3, (150, 4, 40, 40)).astype(np.float32)
    cutout[7] = np.nan
    return cutout, rng.uniform(0, 0.1, 150).astype(np.float32)
