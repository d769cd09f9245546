"""Features from the encoder of a finished network, on which its heads and densities are fitted.

The network is used as trained; inference rearranges it (model/forward.py), with other last bits.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc.model.augment import calibrate, prepare, random_view, stretch
from photozhpc.model.engine import native_precision
from photozhpc.model.photometry import FluxInput
from photozhpc.model.pita import PITA, Fluxes
from photozhpc.store.loader import Block
from photozhpc.survey import Survey

BATCH_SIZE = 256
N_VIEWS = 4


class Encoded(NamedTuple):
    """N encoded cutouts.

    Attributes:
        input_NF: input of the redshift heads, `PITA.redshift_input`.
        brightness_N: `PITA.brightness`; NaN from a model without density heads.
        expert_NK: density of the expert; no bins if there is none.
    """

    input_NF: NDArray[np.float32]
    latent_ND: NDArray[np.float32]
    brightness_N: NDArray[np.float32]
    expert_NK: NDArray[np.float32]


@torch.no_grad()
def encode(
    model: PITA,
    cutout_NCSS: NDArray[np.float32],
    ebv_N: NDArray,
    fluxes: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None,
    generator: torch.Generator | None = None,
) -> Encoded:
    """Pass cutouts through the encoder, at the precision of inference, on the model's device.

    Args:
        cutout_NCSS: nJy per pixel, NaN where there is no pixel; at least one cutout.
        ebv_N: Galactic E(B-V), magnitudes.
        fluxes: flux_NCR and flux_err_NCR as the model takes them (`FluxInput`); None: it takes
            none.
        generator: draws one quarter-turn view of each cutout; None: the image as in inference.
    """
    config, device = model.config, model.noise_C.device
    constants = (model.extinction_r_C, model.noise_C)
    precision = native_precision(device)
    batches = []
    for start in range(0, len(cutout_NCSS), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        cutout_BCSS = torch.from_numpy(cutout_NCSS[rows]).to(device)
        ebv_B = torch.from_numpy(np.asarray(ebv_N[rows], dtype=np.float32)).to(device)
        seen = None
        if fluxes is not None:
            flux_BCR, err_BCR = (torch.from_numpy(v[rows]).to(device) for v in fluxes)
            seen = Fluxes(flux_BCR, err_BCR, ebv_B)
        if generator is None:
            image_BCHW = prepare(cutout_BCSS, ebv_B, *constants, config.crop, config.stretch)
        else:
            calibrated_BCSS = calibrate(cutout_BCSS, ebv_B, *constants)
            view_BCHW = random_view(calibrated_BCSS, config.crop, "quarter", 0, 0.0, [generator])
            image_BCHW = stretch(view_BCHW, config.stretch)
        with torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            image_BCHW = image_BCHW.contiguous(memory_format=torch.channels_last)
            feature_BF = model.encoder(image_BCHW)
        latent_BD, signal_BA = model.latent(feature_BF, model.unstretch(image_BCHW))
        if model.uncertainty is None:
            brightness_B = torch.full_like(latent_BD[:, 0], torch.nan)
        else:
            brightness_B = model.brightness(model.unstretch(image_BCHW))
        input_BF = model.redshift_input(latent_BD, signal_BA, model.flux_input(seen))
        expert_BK = model.expert_density(seen)
        if expert_BK is None:
            expert_BK = latent_BD[:, :0]
        columns = (input_BF, latent_BD, brightness_B, expert_BK)
        batches.append([column.cpu().numpy() for column in columns])
    return Encoded(*(np.concatenate(column) for column in zip(*batches, strict=True)))


def encode_block(
    model: PITA, block: Block, survey: Survey, generator: torch.Generator | None = None
) -> Encoded:
    """Return what `encode` does, of a block of a store of this survey."""
    fluxes = None
    if model.config.fluxes.n_apertures:
        fluxes = FluxInput(model.config.fluxes, survey)(block)
    return encode(model, block.cutout_NCSS, block.ebv_N, fluxes, generator)


def view_inputs(model: PITA, block: Block, survey: Survey, seed: int) -> NDArray[np.float32]:
    """Return `input_NF` of N_VIEWS random views of a block: all first views, then all second."""
    generator = torch.Generator(model.noise_C.device).manual_seed(seed)
    views = [encode_block(model, block, survey, generator) for _ in range(N_VIEWS)]
    return np.concatenate([view.input_NF for view in views])
