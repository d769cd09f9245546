"""Training of the photometry-MLP on a store: minutes, in one process, without the images."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc import __version__
from photozhpc.config import from_mapping
from photozhpc.errors import CheckpointError, ConfigError, StoreError
from photozhpc.logs import LOG
from photozhpc.metrics import point_metrics
from photozhpc.model.checkpoint import load_checkpoint, save_checkpoint
from photozhpc.model.photometry_mlp import (
    MLPFitConfig,
    PhotometryMLP,
    PhotometryMLPConfig,
    fit_mlps,
)
from photozhpc.model.store_note import KEY as NOTE_KEY
from photozhpc.model.store_note import note_store, noted
from photozhpc.model.train_config import OTHER_OUT, TrainConfig
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.flux_table import FluxTable
from photozhpc.store.loader import Split, in_split, typical_noise


def train_photometry_mlp(
    config: TrainConfig, store: CutoutStore, check: Callable[[], None]
) -> None:
    """Fit the networks to the training labels; write config.out/model.safetensors.

    It uses the settings method, out, epochs, batch_size, seed, label_fraction,
    feature_aperture_arcsec, optimiser.{lr, min_lr, weight_decay}, loss.huber_delta and
    model.{redshift_mlp, redshift_heads, redshift_scale}.

    Args:
        check: see `disk.replacing`.

    Raises:
        CheckpointError: there is a model file, or a run of another method.
        ConfigError: the store has no such aperture.
        StoreError: too few labels.
    """
    path = Path(config.out) / "model.safetensors"
    index = store.index()
    if is_finished(path, config, store):
        return
    if not index.n_sources:
        raise StoreError(f"{store.path}: holds no sources; run 'photozhpc extract' first")
    aperture = aperture_index(config, store)
    survey = store.survey
    model = PhotometryMLP(
        PhotometryMLPConfig(
            n_bands=len(survey.bands),
            aperture_radius_arcsec=config.feature_aperture_arcsec,
            widths=config.model.redshift_mlp,
            networks=config.model.redshift_heads,
            redshift_scale=config.model.redshift_scale,
        )
    )
    model.softening_C.copy_(torch.from_numpy(typical_noise(store, aperture)[1]))
    model.extinction_r_C.copy_(torch.tensor([band.extinction_r for band in survey.bands]))
    labels = _read_labelled_fluxes(store, aperture)
    fit = labels.of_split(store, "train", config.seed, config.label_fraction)
    validation = labels.of_split(store, "validation", config.seed)
    mean_F, std_F = fit_mlps(
        model.networks,
        model.features(fit.flux_NC, fit.ebv_N),
        fit.z_spec_N,
        model.features(validation.flux_NC, validation.ebv_N),
        validation.z_spec_N,
        MLPFitConfig(
            widths=model.config.widths,
            epochs=config.epochs,
            batch_size=config.batch_size,
            lr=config.optimiser.lr,
            min_lr=config.optimiser.min_lr,
            weight_decay=config.optimiser.weight_decay,
            huber_delta=config.loss.huber_delta,
            redshift_scale=model.config.redshift_scale,
            seed=100 * config.seed,
        ),
    )
    model.feature_mean_F.copy_(torch.from_numpy(mean_F))
    model.feature_std_F.copy_(torch.from_numpy(std_F))
    metrics = point_metrics(
        validation.z_spec_N, model.predict(validation.flux_NC, validation.ebv_N)
    )
    training = {
        "photozhpc": __version__,
        "config": config.noted(),
        "store_sha256": index.fingerprint,
        "labels": len(fit.z_spec_N),
        "validation": asdict(metrics),
        NOTE_KEY: noted(note_store(store, 0)),
    }
    save_checkpoint(path, model, survey, training, check=check)
    LOG.info(
        f"{config.model.redshift_heads} networks, {len(fit.z_spec_N)} labels  "
        f"validation NMAD {metrics.nmad:.4f}  outliers {metrics.outlier_fraction:.3f}"
    )


def is_finished(path: Path, config: TrainConfig, store: CutoutStore | FluxTable) -> bool:
    """Return whether this training has written its model file already.

    Raises:
        CheckpointError: there is one of another configuration or store; or there is a run of a
            method that uses images.
    """
    if path.with_name("state.pt").exists():
        raise CheckpointError(f"{config.out}: contains a run of another method; {OTHER_OUT}")
    if not path.exists():
        return False
    checkpoint = load_checkpoint(path)
    document = checkpoint.training.get("config")
    made_by = from_mapping(TrainConfig, document or {"out": ""}, f"{path}: config")
    if made_by.identity() != config.identity():
        raise CheckpointError(f"{path}: belongs to a run with another configuration; {OTHER_OUT}")
    made_on = checkpoint.training.get("store_sha256"), checkpoint.survey
    if made_on != (store.fingerprint(), store.survey):
        raise CheckpointError(f"{path}: belongs to a run on another store; {OTHER_OUT}")
    LOG.info(f"{path}: finished before; --restart trains anew")
    return True


def aperture_index(config: TrainConfig, store: CutoutStore) -> int:
    """Return the index, in the store, of the aperture whose fluxes are the features.

    Raises:
        ConfigError: the store has no such aperture.
    """
    radii = store.survey.aperture_radii_arcsec
    if config.feature_aperture_arcsec not in radii:
        raise ConfigError(
            f"feature_aperture_arcsec {config.feature_aperture_arcsec} is not among the "
            f"store's apertures {radii}; choose one of these"
        )
    return radii.index(config.feature_aperture_arcsec)


@dataclass(frozen=True)
class _Labels:
    """Sources with a z_spec; flux_NC (nJy, finite) is in the feature aperture."""

    source_id_N: NDArray[np.int64]
    flux_NC: NDArray[np.float32]
    ebv_N: NDArray[np.float32]
    z_spec_N: NDArray[np.float32]

    def of_split(
        self, store: CutoutStore, split: Split, seed: int, label_fraction: float = 1.0
    ) -> "_Labels":
        in_split_N = in_split(self.source_id_N, split, seed, label_fraction)
        if not in_split_N.any():
            raise StoreError(
                f"{store.path}: no source with a z_spec and fluxes in every band falls into the "
                f"{split} split; label more sources"
            )
        return _Labels(*(getattr(self, name)[in_split_N] for name in self.__dataclass_fields__))


def _read_labelled_fluxes(store: CutoutStore, aperture: int) -> _Labels:
    """Read every source that has a label and fluxes in all bands, shard by shard."""
    shards: list[tuple[NDArray, ...]] = []
    for key in store.shards():
        sources = store.read_sources(key)
        flux_NC = store.read_measurements(key).flux_NCR[:, :, aperture]
        rows_N = np.isfinite(sources.z_spec_N) & np.isfinite(flux_NC).all(axis=1)
        columns = (sources.source_id_N, flux_NC, sources.ebv_N, sources.z_spec_N)
        shards.append(tuple(column[rows_N] for column in columns))
    return _Labels(*(np.concatenate(parts) for parts in zip(*shards, strict=True)))
