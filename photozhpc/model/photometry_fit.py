"""Training and calibration of a `PhotometryModel`: minutes, in one process, without images."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc import __version__
from photozhpc.errors import CheckpointError, StoreError, did_you_mean
from photozhpc.logs import LOG
from photozhpc.metrics import point_metrics
from photozhpc.model.checkpoint import Checkpoint, save_checkpoint
from photozhpc.model.conformal import Labels, effective_number
from photozhpc.model.density import cdf_at, cumulative, least_risk
from photozhpc.model.density_fit import fit_distance, selection_weights, set_levels
from photozhpc.model.flux_expert import fit_flux_expert
from photozhpc.model.photometry import (
    FluxInput,
    PhotometryConfig,
    PhotometryModel,
    TakesFluxes,
    enough_bands,
)
from photozhpc.model.store_note import KEY as NOTE_KEY
from photozhpc.model.store_note import note_store, noted
from photozhpc.model.train_config import TrainConfig
from photozhpc.model.train_photometry import is_finished
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.flux_table import FluxTable
from photozhpc.store.loader import hash_of
from photozhpc.survey import Survey, names_of

N_FOLDS = 5
MIN_LABELS = 50  # fewer do not tell one redshift from another, let alone calibrate an interval
MAX_SOURCES = 50_000  # a fair sample of so many represents the survey


@dataclass(frozen=True)
class FluxSample:
    """Sources with enough fluxes for a redshift: all labelled ones, and a fair sample of all.

    Attributes:
        n_labels: labels in the store, also of sources without enough fluxes.
        flux_NCR, flux_err_NCR: nJy, of the model's apertures.
        z_spec_N: NaN = unlabelled.
        sampled_N: in the fair sample; the others are included for their label.
    """

    n_labels: int
    source_id_N: NDArray[np.int64]
    flux_NCR: NDArray[np.float32]
    flux_err_NCR: NDArray[np.float32]
    ebv_N: NDArray[np.float32]
    z_spec_N: NDArray[np.float32]
    sampled_N: NDArray[np.bool_]

    @property
    def labelled_N(self) -> NDArray[np.bool_]:
        return np.isfinite(self.z_spec_N)

    def tensors(
        self, rows_N: NDArray | slice = slice(None)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return fluxes, errors and E(B-V) of some rows."""
        return (
            torch.from_numpy(self.flux_NCR[rows_N]),
            torch.from_numpy(self.flux_err_NCR[rows_N]),
            torch.from_numpy(self.ebv_N[rows_N]),
        )


def read_sample(
    store: CutoutStore | FluxTable, config: TakesFluxes, seed: int, label_fraction: float = 1.0
) -> FluxSample:
    """Read the sources that a model is fitted to and calibrated on, shard by shard.

    Args:
        label_fraction: share of the labels to use, by a hash of the identifier.
    """
    pick = FluxInput(config, store.survey)
    lengths = store.shard_lengths()
    share = min(1.0, MAX_SOURCES / max(sum(lengths.values()), 1))
    rng = np.random.default_rng(seed)
    parts, n_labels = [], 0
    for key, length in lengths.items():
        sources = store.read_sources(key)
        flux_NCR, err_NCR = pick(store.read_measurements(key))
        sampled_N = rng.random(length) < share
        z_spec_N = sources.z_spec_N.copy()
        z_spec_N[hash_of(sources.source_id_N, seed) >= label_fraction] = np.nan
        labelled_N = np.isfinite(z_spec_N)
        n_labels += int(labelled_N.sum())
        rows_N = (sampled_N | labelled_N) & enough_bands(flux_NCR)
        columns = (sources.source_id_N, flux_NCR, err_NCR, sources.ebv_N, z_spec_N, sampled_N)
        parts.append([column[rows_N] for column in columns])
    joined = (np.concatenate(column) for column in zip(*parts, strict=True))
    return FluxSample(n_labels, *joined)


def train_photometry(
    config: TrainConfig,
    store: CutoutStore | FluxTable,
    check: Callable[[], None],
) -> None:
    """Fit the networks to all labels, and their calibration; write config.out/model.safetensors.

    It uses the settings method, out, seed, label_fraction, density_steps, augment.dimming and
    photometry. The apertures are all those of the store, with total (Kron) fluxes where it has
    them.

    Args:
        check: see `disk.replacing`.

    Raises:
        CheckpointError: there is a model file or a run of another training.
        StoreError: too few labels.
    """
    path = Path(config.out) / "model.safetensors"
    if is_finished(path, config, store):
        return
    if isinstance(store, FluxTable):
        for note in store.notes():
            LOG.info(f"note: {note}")
    survey = store.survey
    model = PhotometryModel(_config_for(config, store))
    model.expert.features.extinction_r_C.copy_(
        torch.tensor([band.extinction_r for band in survey.bands])
    )
    sample = read_sample(store, model.config, config.seed, config.label_fraction)
    _require_labels(sample, store)
    for note in _notes(sample, model, survey):
        LOG.info(f"note: {note}")
    report = fit_photometry(
        model, sample, store, config.density_steps, config.seed, config.augment.dimming
    )
    training = {
        "photozhpc": __version__,
        "config": config.noted(),
        "store_sha256": store.fingerprint(),
        **report,
        NOTE_KEY: noted(note_store(store, 0)),
    }
    save_checkpoint(path, model, survey, training, check=check)
    metrics = report["cross_validation"]
    LOG.info(
        f"{config.photometry.networks} networks, {report['labels']} labels  cross-validated NMAD "
        f"{metrics['nmad']:.4f}  outliers {metrics['outlier_fraction']:.3f}"
    )


def _notes(sample: FluxSample, model: PhotometryModel, survey: Survey) -> list[str]:
    """Return lines about labels and bands that a model cannot make full use of."""
    z_max, notes = model.config.expert.z_max, []
    z_M = sample.z_spec_N[sample.labelled_N]
    if n_beyond := int(np.count_nonzero(z_M > z_max)):
        notes.append(
            f"{n_beyond} redshifts are above {z_max:g}, up to {z_M.max():.2f}, and count as "
            f"{z_max:g}; to estimate such redshifts, write photometry: {{z_max: ...}} into the "
            f"recipe"
        )
    measured_NCR = np.isfinite(sample.flux_NCR[sample.labelled_N])
    for c, name in enumerate(survey.band_names):
        if not measured_NCR[:, c].any():
            notes.append(f"no source with a redshift is measured in {name}, which is not used")
    return notes


def fit_photometry(
    model: PhotometryModel,
    sample: FluxSample,
    store: CutoutStore | FluxTable,
    steps: int,
    seed: int,
    dimming: float = 0.0,
) -> dict[str, Any]:
    """Fit a model and its calibration to a sample, in place.

    The labels are divided into folds by a hash of the identifier, at most as many as networks. The
    calibration uses the densities of every fold by networks that have not seen it: one fold shapes
    the smooth map, the others give the conformal quantiles.

    Returns:
        Facts for the model file: labels, and metrics of the same densities.

    Raises:
        StoreError: too few labels.
    """
    labelled_N = sample.labelled_N
    z_M = sample.z_spec_N[labelled_N]
    id_M = sample.source_id_N[labelled_N]
    n_folds = min(N_FOLDS, len(model.expert.networks))
    fold_M = (hash_of(id_M, seed + 1) * n_folds).astype(np.int64)
    density_MK = fit_flux_expert(
        model.expert,
        *sample.tensors(labelled_N),
        torch.from_numpy(z_M),
        torch.from_numpy(fold_M),
        steps=steps,
        dimming=dimming,
        seed=seed,
    )
    model.eval()
    fit_distance(model.calibration, _features(model, sample)[sample.sampled_N])
    position_M = model.calibration.position(torch.from_numpy(z_M))
    pit_M = cdf_at(cumulative(density_MK), position_M).double().numpy()
    n_effective = _set_levels(model, sample, pit_M, fold_M == 0, seed)
    if model.config.point_estimate == "median":
        z_phot_M = model.calibration.median(cumulative(density_MK))
    else:
        z_phot_M = least_risk(density_MK, model.config.expert.z_max)
    return {
        "labels": int(labelled_N.sum()),
        "effective_labels": round(n_effective, 1),
        "cross_validation": asdict(point_metrics(z_M, z_phot_M.numpy())),
    }


def calibrate_photometry(
    checkpoint: Checkpoint, model: PhotometryModel, store: CutoutStore | FluxTable
) -> dict[str, Any]:
    """Recalibrate a model on all labels of a store that it was not trained on, in place.

    Args:
        model: of the checkpoint.

    Returns:
        Facts on the calibration, for the model file.

    Raises:
        CheckpointError: it is the store that the model was trained on.
        StoreError: too few labels.
    """
    training, fingerprint = checkpoint.training, store.fingerprint()
    if training.get("store_sha256") == fingerprint:
        raise CheckpointError(
            f"{checkpoint.path}: was trained on {store.path}, and calibrated on it by "
            f"cross-validation; calibrate on labels that it has not seen"
        )
    seed = training.get("config", {}).get("seed", 0)
    sample = read_sample(store, model.config, seed)
    _require_labels(sample, store)
    labelled_N = sample.labelled_N
    z_M = torch.from_numpy(sample.z_spec_N[labelled_N])
    with torch.no_grad():
        density_MK = model.expert(*sample.tensors(labelled_N))
    pit_M = cdf_at(cumulative(density_MK), model.calibration.position(z_M)).double().numpy()
    shape_M = hash_of(sample.source_id_N[labelled_N], seed + 1) * N_FOLDS < 1
    n_effective = _set_levels(model, sample, pit_M, shape_M, seed)
    return {
        "store_sha256": fingerprint,
        "labels": int(labelled_N.sum()),
        "effective_labels": round(n_effective, 1),
    }


def _set_levels(
    model: PhotometryModel,
    sample: FluxSample,
    pit_M: NDArray[np.float64],
    shape_M: NDArray[np.bool_],
    seed: int,
) -> float:
    """Fit the levels to the labels of a sample; return the effective number of labels.

    Args:
        pit_M: of the labelled sources, by densities that have not seen them.
        shape_M: which of these shape the smooth map; the others give the conformal quantiles.
    """
    feature_NF, labelled_N = _features(model, sample), sample.labelled_N
    sampled_N = sample.sampled_N
    weight_M = selection_weights(
        feature_NF[sampled_N], labelled_N[sampled_N], feature_NF[labelled_N], seed
    )
    with torch.no_grad():
        brightness_N = model.brightness(*sample.tensors()[:2]).numpy()
    labels = Labels(pit_M, brightness_N[labelled_N].astype(np.float64), weight_M)
    set_levels(
        model.calibration, brightness_N[sampled_N], labels.take(shape_M), labels.take(~shape_M)
    )
    return effective_number(weight_M)


@torch.no_grad()
def _features(model: PhotometryModel, sample: FluxSample) -> NDArray[np.float32]:
    return model.expert.features(*sample.tensors()).numpy()


def _config_for(config: TrainConfig, store: CutoutStore | FluxTable) -> PhotometryConfig:
    """Return the model's configuration: with every flux that the store has."""
    survey = store.survey
    radii = survey.aperture_radii_arcsec
    if survey.has_flux_columns:
        total = survey.total_columns is not None
    else:  # a store that was imported may lack Kron fluxes
        total = any(
            np.isfinite(values).any()
            for key in store.shards()[:1]
            if (values := store.read_measurements(key).kron_flux_NC) is not None
        )
    expert = replace(config.photometry, n_bands=len(survey.bands), n_apertures=len(radii) + total)
    return PhotometryConfig(radii, total, expert, config.point_estimate)


def _require_labels(sample: FluxSample, store: CutoutStore | FluxTable) -> None:
    n = int(np.count_nonzero(sample.labelled_N))
    if n >= MIN_LABELS:
        return
    names = names_of(store.survey.source_columns.z_spec)
    where = ""
    if isinstance(store, FluxTable):
        where = f" in {' or '.join(map(repr, names))}"
        if names and not store.has_column(*names):
            raise StoreError(
                f"{store.path}: has no column{where}, which the survey names for redshifts"
                f"{did_you_mean(names[0], store.column_names)}; correct source_columns: z_spec in "
                "the survey's YAML file"
            )
    lost = sample.n_labels - n
    reason = f", and {lost} more without fluxes in two bands" if lost else ""
    raise StoreError(
        f"{store.path}: {n} sources have a redshift{where}{reason}; training and calibration need "
        f"{MIN_LABELS}. 99, -99 and the like are not redshifts"
    )
