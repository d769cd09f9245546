"""PITA's three losses as pure functions (arXiv 2602.10207, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from photozhpc.model.density_fit import smoothed


def contrastive_loss(
    query_BP: Tensor, key_BP: Tensor, queue_KP: Tensor, temperature: float
) -> Tensor:
    """Return InfoNCE: the mean of -log(e^(q.k/T) / (e^(q.k/T) + sum_j e^(q.k_j/T))).

    The positive of each query is its own key, the negatives are the queue's (He et al. 2020,
    equation 1). All vectors have unit length.
    """
    query_BP = query_BP / temperature  # cheaper than dividing all products
    positive_B1 = (query_BP * key_BP).sum(dim=1, keepdim=True)
    logit_BL = torch.cat([positive_B1, query_BP @ queue_KP.T], dim=1)
    return F.cross_entropy(
        logit_BL, torch.zeros(len(logit_BL), dtype=torch.long, device=query_BP.device)
    )


def colour_loss(predicted_BM: Tensor, colour_BM: Tensor, count: float | None = None) -> Tensor:
    """Return the mean squared error over sources whose colours are all finite.

    Args:
        count: divisor instead of this batch's number of such sources, for a mean over several
            ranks. Without any source the loss and its gradients are exactly zero.
    """
    valid_B = torch.isfinite(colour_BM).all(dim=1)
    error_BM = torch.where(valid_B[:, None], predicted_BM - colour_BM.nan_to_num(), 0.0)
    n = torch.clamp(valid_B.sum(), min=1) if count is None else (count or 1.0)
    return error_BM.square().mean(dim=1).sum() / n


def redshift_loss(
    z_phot_B: Tensor, z_spec_B: Tensor, delta: float, scale: str = "z", count: float | None = None
) -> Tensor:
    """Return the Huber loss over labelled sources (those whose z_spec is finite).

    0.5 e^2 for |e| <= delta, delta (|e| - 0.5 delta) beyond, with e = z_phot - z_spec, or
    e = ln(1+z_phot) - ln(1+z_spec) for scale "log1p", which weighs errors as the metrics do.

    Args:
        count: divisor instead of this batch's number of labels, for a mean over several ranks.
            Without any label the loss and its gradients are exactly zero, so that no rank skips a
            collective operation.
    """
    labelled_B = torch.isfinite(z_spec_B)
    target_B = torch.where(labelled_B, z_spec_B, 0.0)
    estimate_B = torch.where(labelled_B, z_phot_B, 0.0)
    if scale == "log1p":
        target_B, estimate_B = torch.log1p(target_B), torch.log1p(estimate_B)
    total = F.huber_loss(estimate_B, target_B, delta=delta, reduction="sum")
    n = torch.clamp(labelled_B.sum(), min=1) if count is None else (count or 1.0)
    return total / n


def density_loss(
    logit_BHK: Tensor,
    position_B: Tensor,
    sigma: float,
    count: float | None = None,
) -> Tensor:
    """Return the cross-entropy of smoothed labels, a mean over labelled sources and heads.

    Args:
        position_B: of the labels along the bins, 0 to 1; NaN = unlabelled.
        sigma: of the Gaussian by which a label counts in nearby bins, on the same scale.
        count: as in `redshift_loss`.
    """
    labelled_B = torch.isfinite(position_B)
    target_BK = smoothed(position_B.nan_to_num(), logit_BHK.shape[2], sigma)
    entropy_BH = -(target_BK[:, None] * logit_BHK.log_softmax(dim=2)).sum(dim=2)
    total = torch.where(labelled_B, entropy_BH.mean(dim=1), 0.0).sum()
    n = torch.clamp(labelled_B.sum(), min=1) if count is None else (count or 1.0)
    return total / n
