"""Refitting the redshift head on the latents of a finished encoder.

The joint training sees each label a few dozen times before the compute is spent; on fixed
latents a head sees it thousands of times in a minute. The encoder does not change.
"""

import copy
import math

import torch
from torch import Tensor

from photozhpc.metrics import point_metrics
from photozhpc.model.augment import calibrate, prepare, random_view, stretch
from photozhpc.model.losses import redshift_loss
from photozhpc.model.pita import PITA
from photozhpc.store.loader import Block

N_VIEWS = 8
BATCH_SIZE = 512
LR = 5e-4
WEIGHT_DECAY = 1e-3


def refit_redshift_head(
    model: PITA, labels: Block, validation: Block, epochs: int, huber_delta: float, seed: int
) -> None:
    """Train model.redshift_mlp, in place, on the latents of several quarter-turn views.

    It starts from the head that is there, and ends with the state of the epoch that is best in
    NMAD on the validation sample, which may be the start.
    """
    model.eval()
    generator = torch.Generator(model.noise_C.device).manual_seed(seed)
    views = [_latents(model, labels, generator) for _ in range(N_VIEWS)]
    latent_ND = torch.cat(views)
    z_spec_N = torch.from_numpy(labels.z_spec_N).to(latent_ND.device).repeat(N_VIEWS)
    check_ND = _latents(model, validation, None)
    head, scale = model.redshift_mlp, model.config.redshift_scale
    optimiser = torch.optim.AdamW(head.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, epochs * math.ceil(len(latent_ND) / BATCH_SIZE)
    )
    best, best_state = math.inf, copy.deepcopy(head.state_dict())
    for epoch in range(epochs + 1):
        with torch.inference_mode():
            nmad = point_metrics(validation.z_spec_N, model.redshift(check_ND).cpu()).nmad
        if nmad < best:
            best, best_state = nmad, copy.deepcopy(head.state_dict())
        if epoch == epochs:
            break
        order_N = torch.randperm(len(latent_ND), generator=generator, device=latent_ND.device)
        for rows in order_N.split(BATCH_SIZE):
            z_phot_B = model.redshift(latent_ND[rows])
            loss = redshift_loss(z_phot_B, z_spec_N[rows], huber_delta, scale)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
    head.load_state_dict(best_state)


@torch.no_grad()
def _latents(model: PITA, block: Block, generator: torch.Generator | None) -> Tensor:
    """Latents of a block: of a random quarter-turn view each, or as inference sees them."""
    config, device = model.config, model.noise_C.device
    latents = []
    for start in range(0, len(block), 256):
        part = block.take(slice(start, start + 256))
        cutout_BCSS = torch.from_numpy(part.cutout_NCSS).to(device)
        ebv_B = torch.from_numpy(part.ebv_N).to(device)
        constants = (model.extinction_r_C, model.noise_C)
        if generator is None:
            image_BCHW = prepare(cutout_BCSS, ebv_B, *constants, config.crop, config.stretch)
        else:
            calibrated_BCSS = calibrate(cutout_BCSS, ebv_B, *constants)
            view_BCHW = random_view(calibrated_BCSS, config.crop, "quarter", 0, 0.0, generator)
            image_BCHW = stretch(view_BCHW, config.stretch)
        latents.append(model.encode(image_BCHW.contiguous(memory_format=torch.channels_last)))
    return torch.cat(latents)
