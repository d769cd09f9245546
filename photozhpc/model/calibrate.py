"""Calibrated intervals for a finished network, from labels and images of a store.

The labels of the training split fit the density heads. Those of the validation split stop that
training, and shape the smooth map of the calibration. Those of the calibration split give the
conformal quantiles. Splits are hashes of the identifier (`label_split`), so no source has two
roles. The images, labelled or not, show how the labels were selected and what is usual in latent
space.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc.errors import CheckpointError, StoreError
from photozhpc.files.code_cache import keep_torch_code
from photozhpc.files.disk import disk_errors, remove_stale_partials
from photozhpc.files.lock import is_held, locked
from photozhpc.model.checkpoint import load_checkpoint, save_checkpoint
from photozhpc.model.conformal import Labels, effective_number
from photozhpc.model.density import cdf_at, cumulative
from photozhpc.model.density_fit import fit_distance, fit_heads, selection_weights, set_levels
from photozhpc.model.encode import N_VIEWS, encode, view_inputs
from photozhpc.model.engine import usable
from photozhpc.model.photometry import FluxInput, PhotometryModel, check_measured
from photozhpc.model.photometry_fit import calibrate_photometry
from photozhpc.model.pita import PITA
from photozhpc.model.pooling import fit_expert, fit_share
from photozhpc.model.store_note import KEY as NOTE_KEY
from photozhpc.model.store_note import note_store, noted
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.flux_table import FluxTable
from photozhpc.store.loader import label_split, read_labelled, read_labels

_COMMAND = "photozhpc calibrate"
MAX_IMAGES = 50_000  # a fair sample of so many represents the survey


@dataclass(frozen=True)
class Roles:
    """Identifiers of the labelled sources, by what they were used for."""

    fit_N: NDArray[np.int64]
    shape_N: NDArray[np.int64]
    conformal_N: NDArray[np.int64]


@dataclass(frozen=True)
class _Images:
    """Images of a store, encoded by the network.

    Attributes:
        z_spec_N: NaN = unlabelled.
        sampled_N: in the fair sample; the others are included for their label.
    """

    source_id_N: NDArray[np.int64]
    z_spec_N: NDArray[np.float32]
    sampled_N: NDArray[np.bool_]
    input_NF: NDArray[np.float32]
    latent_ND: NDArray[np.float32]
    brightness_N: NDArray[np.float32]
    expert_NK: NDArray[np.float32]

    @property
    def labelled_N(self) -> NDArray[np.bool_]:
        return np.isfinite(self.z_spec_N)

    def take(self, rows_N: NDArray[np.bool_]) -> "_Images":
        return _Images(*(getattr(self, field.name)[rows_N] for field in fields(self)))


def fit_uncertainty(
    model: PITA,
    store: CutoutStore,
    seed: int,
    steps: int,
    label_fraction: float = 1.0,
    expert_steps: int = 1000,
    dimming: float = 0.0,
    split: Literal["train", "all"] = "train",
) -> Roles:
    """Fit density heads, the expert, their calibration and the distance to the images, in place.

    Args:
        model: with density_bins, trained on `store`; its encoder does not change.
        seed: of the label split, and of everything random here.
        label_fraction: as in `read_labelled`.
        steps: to train each density head; 0: they are trained.
        expert_steps, dimming: to train each network of the expert, if there is one.
        split: whose labels the model has seen. After "all" none is left to calibrate with.

    Raises:
        CheckpointError: the model has no density heads.
        StoreError: a split contains no label.
    """
    uncertainty = model.uncertainty
    if uncertainty is None:
        raise CheckpointError(
            "the model has no density heads; train with model.density_bins above 0"
        )
    model.eval()
    if model.expert is not None:
        fit_expert(model, store, split, seed, label_fraction, expert_steps, dimming)
    images = _read_images(model, store, seed)
    fit_distance(uncertainty, images.latent_ND[images.sampled_N])
    if split == "all":
        none = np.empty(0, np.int64)
        return Roles(read_labels(store, split, seed, label_fraction), none, none)
    split_N = label_split(images.source_id_N, seed)
    check_N = images.labelled_N & (split_N == "validation")
    conformal_N = images.labelled_N & (split_N == "calibration")
    _require(store, check_N, "validation")
    _require(store, conformal_N, "calibration")
    fit_id_N = read_labels(store, "train", seed, label_fraction)
    if steps:
        labels = read_labelled(store, "train", seed, label_fraction)
        usable_N = usable(labels.cutout_NCSS, model.config.crop)
        _require(store, usable_N, "training")
        labels = labels.take(usable_N)
        fit_id_N = labels.source_id_N
        fit_heads(
            uncertainty,
            view_inputs(model, labels, store.survey, seed),
            np.tile(labels.z_spec_N, N_VIEWS),
            images.input_NF[check_N],
            images.z_spec_N[check_N],
            steps,
            seed,
        )
    _calibrate(model, images, _weights(images, seed), check_N, conformal_N)
    return Roles(fit_id_N, images.source_id_N[check_N], images.source_id_N[conformal_N])


def calibrate(
    checkpoint_path: str | Path,
    store: CutoutStore | FluxTable,
    out: str | Path,
    compact: bool = False,
) -> Path:
    """Recalibrate a model's intervals on the labels of a store; write the model to `out`.

    On the model's training store the validation and calibration splits are used, as in training.
    On any other store all labels are used: a tenth to shape the smooth map and to set the second
    expert's share, the rest for the conformal quantiles. `compact` as in `save_checkpoint`. A model
    of fluxes is calibrated on its training store by cross-validation, so it takes another one.

    Raises:
        CheckpointError: the model has no density heads, or does not fit the store; another process
            is writing to `out`, or to its folder if that is a training's.
        StoreError: too few labels.
        RunError: the disk is full, or cannot be written.
    """
    with suppress(OSError):
        keep_torch_code()  # as in `train`
    checkpoint = load_checkpoint(checkpoint_path)
    checkpoint.check_store(store.survey, store.cutout_size)
    if isinstance(checkpoint.model, PhotometryModel):
        with _held(Path(out)) as check:
            note = calibrate_photometry(checkpoint, checkpoint.model, store)
            training = {
                **checkpoint.training,
                "calibration": note,
                NOTE_KEY: noted(note_store(store, 0)),
            }
            return save_checkpoint(out, checkpoint.model, checkpoint.survey, training, check=check)
    model = checkpoint.pita
    assert isinstance(store, CutoutStore)  # check_store refuses catalogues for a model of images
    if model.uncertainty is None or not model.uncertainty.is_fitted:
        raise CheckpointError(
            f"{checkpoint.path}: the model has no fitted density heads to calibrate; train with "
            f"model.density_bins above 0"
        )
    check_measured(model.config.fluxes, store)
    training, fingerprint = checkpoint.training, store.fingerprint()
    config = training.get("config", {})
    seed = config.get("seed", 0)
    if training.get("store_sha256") == fingerprint and config.get("labels") == "all":
        raise CheckpointError(
            f"{checkpoint.path}: was trained on every label of {store.path}; calibrate it on "
            f"labels that it has not seen"
        )
    with _held(Path(out)) as check:
        images = _read_images(model, store, seed)
        split_N = label_split(images.source_id_N, seed)
        shape_N = images.labelled_N & (split_N == "validation")
        conformal_N = images.labelled_N & ~shape_N
        if training.get("store_sha256") == fingerprint:
            conformal_N &= split_N == "calibration"
        _require(store, shape_N, "validation")
        _require(store, conformal_N, "calibration")
        weight_N = _weights(images, seed)
        _calibrate(model, images, weight_N, shape_N, conformal_N)
        provenance = {
            "store_sha256": fingerprint,
            "labels": int(conformal_N.sum()),
            "effective_labels": round(effective_number(weight_N[conformal_N]), 1),
        }
        training = {
            **training,
            "calibration": provenance,
            NOTE_KEY: noted(note_store(store, model.config.crop)),
        }
        return save_checkpoint(
            out, model, checkpoint.survey, training, compact=compact, check=check
        )


@contextmanager
def _held(out: Path) -> Iterator[Callable[[], None]]:
    """Keep other processes from writing to a model file, and trainings from its folder."""
    folder = out.parent
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        if (folder / "log.jsonl").exists() or is_held(folder / ".lock"):
            locks.enter_context(locked(folder / ".lock", _COMMAND, CheckpointError))
        file = folder / f".{out.name}.lock"
        lock = locks.enter_context(locked(file, _COMMAND, CheckpointError, out))
        remove_stale_partials(folder, out.name)
        yield lock.check


def _require(store: CutoutStore, label_N: NDArray[np.bool_], split: str) -> None:
    if not label_N.any():
        raise StoreError(
            f"{store.path}: no usable source with a z_spec falls into the {split} split; "
            f"label more sources"
        )


@torch.no_grad()
def _calibrate(
    model: PITA,
    images: _Images,
    weight_N: NDArray[np.float64],
    shape_N: NDArray[np.bool_],
    conformal_N: NDArray[np.bool_],
) -> None:
    """Set the expert's share, and the table of calibrated levels, by two sets of labels."""
    uncertainty = model.uncertainty
    assert uncertainty is not None
    if model.expert is not None:
        shape = images.take(shape_N)
        fit_share(model, shape.input_NF, shape.expert_NK, shape.z_spec_N)

    def labels(rows_N: NDArray[np.bool_]) -> Labels:
        rows = images.take(rows_N)
        device = uncertainty.mean_F.device
        input_NF, expert_NK, z_N = (
            torch.from_numpy(values).to(device)
            for values in (rows.input_NF, rows.expert_NK, rows.z_spec_N)
        )
        density_NK = model.density(input_NF, None if model.expert is None else expert_NK)
        pit_N = cdf_at(cumulative(density_NK), uncertainty.position(z_N))
        return Labels(
            pit_N.double().cpu().numpy(), rows.brightness_N.astype(np.float64), weight_N[rows_N]
        )

    brightness_N = images.brightness_N[images.sampled_N]
    set_levels(uncertainty, brightness_N, labels(shape_N), labels(conformal_N))


def _weights(images: _Images, seed: int) -> NDArray[np.float64]:
    """Return how many sources of the survey each image would represent if it were labelled."""
    sampled_N = images.sampled_N
    return selection_weights(
        images.input_NF[sampled_N], images.labelled_N[sampled_N], images.input_NF, seed
    )


def _read_images(model: PITA, store: CutoutStore, seed: int) -> _Images:
    """Pass every labelled source and a fair sample of all through the network."""
    lengths = store.shard_lengths()
    share = min(1.0, MAX_IMAGES / max(sum(lengths.values()), 1))
    rng = np.random.default_rng(seed)
    config = model.config.fluxes
    pick = FluxInput(config, store.survey) if config.n_apertures else None
    parts = []
    for key, length in lengths.items():
        sources = store.read_sources(key)
        sampled_N = rng.random(length) < share
        selected_N = sampled_N | np.isfinite(sources.z_spec_N)
        if not selected_N.any():
            continue
        cutout_NCSS = store.read_cutouts(key)
        selected_N &= usable(cutout_NCSS, model.config.crop)
        if selected_N.any():
            fluxes = None
            if pick is not None:
                fluxes = pick(store.read_measurements(key).take(selected_N))
            encoded = encode(model, cutout_NCSS[selected_N], sources.ebv_N[selected_N], fluxes)
            columns = (sources.source_id_N, sources.z_spec_N, sampled_N)
            parts.append((*(column[selected_N] for column in columns), *encoded))
    if not parts:
        raise StoreError(
            f"{store.path}: no source has data in every band; extract mosaics of all bands"
        )
    return _Images(*(np.concatenate(column) for column in zip(*parts, strict=True)))
