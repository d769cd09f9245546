"""The second expert of a model of images: fitted to fluxes alone, then pooled with the first.

Each of the two errs where the other need not: the networks of the expert see few numbers, so that
they learn them well from few labels, while the pixels hold what no aperture does.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.model.density import pooled
from photozhpc.model.density_fit import log_density
from photozhpc.model.flux_expert import fit_flux_expert
from photozhpc.model.photometry_fit import N_FOLDS, read_sample
from photozhpc.model.pita import PITA
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.loader import Split, hash_of, in_split

DEFAULT_SHARE = 0.5
SHARES = np.linspace(0, 1, 41)


def fit_expert(
    model: PITA,
    store: CutoutStore,
    split: Split,
    seed: int,
    label_fraction: float,
    steps: int,
    dimming: float = 0.0,
) -> None:
    """Fit the expert to the labels of a split, in place, and give it half of the pool.

    Labels of the validation split stop its networks and are otherwise unseen. With split "all" each
    network is stopped by a part of the labels that the others see.

    Args:
        model: with an expert.
        label_fraction: as in `in_split`.
        steps: of each network.
        dimming: mean number of magnitudes, see `dimming`.

    Raises:
        StoreError: too few labels with fluxes.
    """
    assert model.expert is not None
    sample = read_sample(store, model.config.fluxes, seed)
    labelled_N, id_N = sample.labelled_N, sample.source_id_N
    fold_N = np.full(len(id_N), -1)
    if split == "all":
        n_folds = max(2, min(N_FOLDS, len(model.expert.networks)))
        fold_N = (hash_of(id_N, seed + 1) * n_folds).astype(np.int64)
        stop_N = np.zeros(len(id_N), bool)
    else:
        stop_N = in_split(id_N, "validation", seed)
        fold_N[stop_N] = 0
    rows_N = labelled_N & (in_split(id_N, split, seed, label_fraction) | stop_N)
    device = model.noise_C.device
    model.expert.features.extinction_r_C.copy_(model.extinction_r_C)
    flux_NCR, err_NCR, ebv_N = (values.to(device) for values in sample.tensors(rows_N))
    try:
        fit_flux_expert(
            model.expert,
            flux_NCR,
            err_NCR,
            ebv_N,
            torch.from_numpy(sample.z_spec_N[rows_N]).to(device),
            torch.from_numpy(fold_N[rows_N]).to(device),
            steps=steps,
            dimming=dimming,
            seed=seed,
        )
    except ValueError as error:
        raise StoreError(f"{store.path}: {error}; the second expert cannot be fitted") from error
    model.expert_share.fill_(DEFAULT_SHARE)


@torch.no_grad()
def fit_share(
    model: PITA, input_NF: NDArray[np.float32], expert_NK: NDArray[np.float32], z_N: NDArray
) -> None:
    """Set the expert's share in the pool, in place, to the most likely one of some labels.

    Args:
        input_NF, expert_NK: of labelled sources that neither expert has been fitted to; from
            `encode`.
    """
    uncertainty = model.uncertainty
    assert uncertainty is not None
    device = uncertainty.mean_F.device
    density_NK = uncertainty.density(torch.from_numpy(input_NF).to(device))
    expert = torch.from_numpy(expert_NK).to(device)
    position_N = uncertainty.position(torch.as_tensor(z_N, device=device))
    gains = [
        log_density(pooled(density_NK, expert, share), position_N).mean().item() for share in SHARES
    ]
    model.expert_share.fill_(SHARES[int(np.argmax(gains))])
