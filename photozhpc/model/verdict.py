"""What a finished training is worth, in words."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from photozhpc.metrics import point_metrics

_MIN_EPOCHS = 10  # fewer have no trend
_GAIN = 0.02  # of the NMAD, between the last two fifths of a run: it has not converged


def verdict(z_spec_N: NDArray[np.float32], z_phot_N: NDArray, log: Path) -> list[str]:
    """Return lines that say whether a model has learnt anything, and whether it still does.

    Args:
        z_spec_N: validation labels.
        z_phot_N: what the model says of these sources; NaN where it says nothing.
        log: log.jsonl of the run.
    """
    z_spec_N = z_spec_N[np.isfinite(z_phot_N)]
    z_phot_N = z_phot_N[np.isfinite(z_phot_N)]
    if not len(z_spec_N):
        return ["warning: the model gives none of the validation labels a redshift"]
    outliers = point_metrics(z_spec_N, z_phot_N).outlier_fraction
    constant = np.full(len(z_spec_N), np.median(z_spec_N))
    without = point_metrics(z_spec_N, constant).outlier_fraction
    numbers = (
        f"outliers {100 * outliers:.1f}%, against {100 * without:.1f}% with one redshift for all, "
        f"of {len(z_spec_N)} validation labels"
    )
    error = np.sqrt(without * (1 - without) / len(z_spec_N))
    if outliers < without - 2 * error:
        lines = [f"verdict: {numbers}"]
    else:
        lines = [f"warning: the model is hardly better than no model: {numbers}"]
    if _improves(log):
        lines.append("verdict: it was still improving at the end; more epochs would help")
    return lines


def _improves(log: Path) -> bool:
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    nmad_E = np.array([record.get("validation_nmad", np.nan) for record in records])
    if len(nmad_E) < _MIN_EPOCHS:
        return False
    fifth = len(nmad_E) // 5
    last, before = nmad_E[-fifth:].mean(), nmad_E[-2 * fifth : -fifth].mean()
    return bool(last < before * (1 - _GAIN))
