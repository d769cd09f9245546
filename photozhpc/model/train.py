"""Training PITA on a store: one process, on the CPU or one GPU."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from photozhpc import __version__
from photozhpc.config import to_mapping
from photozhpc.disk import replacing
from photozhpc.errors import CheckpointError, ConfigError, StoreError
from photozhpc.metrics import PointMetrics, point_metrics
from photozhpc.model.augment import calibrate, random_view, stretch
from photozhpc.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model.colours import colour_features
from photozhpc.model.engine import Engine, native_precision
from photozhpc.model.losses import colour_loss, contrastive_loss, redshift_loss
from photozhpc.model.pita import PITA, KeyEncoder, PITAConfig
from photozhpc.model.refit import refit_redshift_heads
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.loader import Block, TrainingLoader, read_labelled, typical_noise


@dataclass(frozen=True)
class AugmentConfig:
    """Random views; the defaults are the paper's. See `augment.random_view`."""

    rotation: Literal["any", "quarter"] = "any"
    jitter_pix: int = 4
    noise: float = 1.0


@dataclass(frozen=True)
class LossConfig:
    """Weights and constants of the three losses; the defaults are the paper's."""

    contrastive_weight: float = 0.0025
    colour_weight: float = 1.0
    redshift_weight: float = 1.0
    temperature: float = 0.1
    queue_len: int = 60_000
    momentum: float = 0.999
    huber_delta: float = 0.15


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam with decoupled weight decay, linear warm-up, then a cosine down to min_lr."""

    lr: float = 1e-3
    min_lr: float = 1e-6
    weight_decay: float = 1e-5
    warmup_steps: int = 0
    clip_norm: float = 0.0


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        out: folder for checkpoints and the log.
        store: folder of the cutout store; `--store` takes precedence.
        labelled_only: train on sources with a label only (the fully supervised method).
        label_repeat: how often a labelled source comes in an epoch (see TrainingLoader).
        refit_epochs: passes over the labels in which, at the end, the redshift heads alone are
            trained on the features of the finished encoder (see `refit.refit_redshift_heads`).
        feature_aperture_arcsec: radius of the aperture behind the colour loss.
        average_weights: checkpoints hold the moving average of the weights (KeyEncoder.model).
    """

    out: str
    store: str = ""
    model: PITAConfig = field(default_factory=PITAConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    batch_size: int = 256
    epochs: int = 100
    seed: int = 0
    labelled_only: bool = False
    label_repeat: int = 1
    refit_epochs: int = 0
    feature_aperture_arcsec: float = 0.4
    average_weights: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "label_repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "refit_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.loss.queue_len < 1 or self.augment.jitter_pix < 0:
            raise ValueError(
                f"loss.queue_len must be at least 1 and augment.jitter_pix not negative, got "
                f"{self.loss.queue_len} and {self.augment.jitter_pix}"
            )


class Trainer:
    """The state of a run: model, key encoder, optimiser, step. It saves and resumes itself."""

    def __init__(self, config: TrainConfig, store: CutoutStore) -> None:
        survey = store.survey
        if config.feature_aperture_arcsec not in survey.aperture_radii_arcsec:
            raise ConfigError(
                f"feature_aperture_arcsec {config.feature_aperture_arcsec} is not among the "
                f"store's apertures {survey.aperture_radii_arcsec}"
            )
        if config.model.n_bands != len(survey.bands) or config.model.n_colours != len(survey.bands):
            raise ConfigError(
                f"model.n_bands and model.n_colours must be {len(survey.bands)}, "
                f"the number of the store's bands"
            )
        if store.cutout_size < config.model.crop + 2 * config.augment.jitter_pix:
            raise ConfigError(
                f"cutouts of {store.cutout_size} px are too small for a crop of "
                f"{config.model.crop} px with a jitter of {config.augment.jitter_pix} px; extract "
                f"with --size {config.model.crop + 2 * config.augment.jitter_pix} or more"
            )
        self.config = config
        self.store = store
        self.device = torch.device(_pick_device(config.device))
        self.aperture = survey.aperture_radii_arcsec.index(config.feature_aperture_arcsec)
        self.loader = TrainingLoader(
            store,
            config.batch_size,
            config.seed,
            self.aperture,
            config.labelled_only,
            config.label_repeat,
        )
        torch.manual_seed(config.seed)
        self.model = PITA(config.model)
        noise_C, self.softening_C = typical_noise(store, self.aperture)
        self.extinction_r_C = np.array([band.extinction_r for band in survey.bands])
        self.model.noise_C.copy_(torch.from_numpy(noise_C))
        self.model.extinction_r_C.copy_(torch.from_numpy(self.extinction_r_C))
        self.keys = KeyEncoder(self.model, config.loss.queue_len, config.loss.momentum)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.keys.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=config.optimiser.lr,
            weight_decay=config.optimiser.weight_decay,
            fused=True,
        )
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.precision = native_precision(self.device)
        self.epoch = 0
        self.step = 0
        self.best_nmad = math.inf

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.loader.steps_per_epoch

    def train_epoch(self, report: Callable[[int], None]) -> dict[str, float]:
        """Run one epoch; return the mean of each loss. `report` is called with images done."""
        sums: dict[str, float] = {}
        for batch in self.loader.epoch(self.epoch):
            for name, value in self.train_step(batch).items():
                sums[name] = sums.get(name, 0.0) + value.item()
            report(len(batch))
        self.epoch += 1
        return {name: value / self.loader.steps_per_epoch for name, value in sums.items()}

    def train_step(self, batch: Block) -> dict[str, Tensor]:
        """Make one step on a batch; return the losses before it."""
        for group in self.optimiser.param_groups:
            group["lr"] = _learning_rate(self.config.optimiser, self.step, self.total_steps)
        losses = self.losses(batch)
        weights = self.config.loss
        total = (
            weights.contrastive_weight * losses["contrastive"]
            + weights.colour_weight * losses["colour"]
            + weights.redshift_weight * losses["redshift"]
        )
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        if self.config.optimiser.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimiser.clip_norm)
        self.optimiser.step()
        # In the first steps the average would hold on to the random start: forget it faster.
        momentum = min(self.config.loss.momentum, (1 + self.step) / (10 + self.step))
        self.keys.update(self.model, momentum)
        if self._pending_keys is not None:
            self.keys.enqueue(self._pending_keys)
        self.step += 1
        return {"total": total.detach(), **{k: v.detach() for k, v in losses.items()}}

    def losses(self, batch: Block) -> dict[str, Tensor]:
        """Return the three losses of a batch, unweighted."""
        config, device = self.config, self.device
        image_BCSS = calibrate(
            torch.from_numpy(batch.cutout_NCSS).to(device),
            torch.from_numpy(batch.ebv_N).to(device),
            self.model.extinction_r_C,
            self.model.noise_C,
        )
        z_spec_B = torch.from_numpy(batch.z_spec_N).to(device)
        colour_BM = torch.from_numpy(
            colour_features(batch.flux_NC, self.softening_C, batch.ebv_N, self.extinction_r_C)
        ).to(device)
        self.model.train()
        self.keys.eval()
        self._pending_keys: Tensor | None = None
        contrastive = torch.zeros((), device=device)
        with torch.autocast(
            device.type, dtype=self.precision, enabled=self.precision != torch.float32
        ):
            output = self.model(self._view(image_BCSS))
            if config.loss.contrastive_weight > 0:
                self._pending_keys = self.keys(self._view(image_BCSS))
        if self._pending_keys is not None:
            contrastive = contrastive_loss(
                output.projection_BP,
                self._pending_keys,
                self.keys.queue_KP,
                config.loss.temperature,
            )
        return {
            "contrastive": contrastive,
            "colour": colour_loss(output.colour_BM, colour_BM),
            "redshift": redshift_loss(
                output.z_phot_B, z_spec_B, config.loss.huber_delta, config.model.redshift_scale
            ),
        }

    def _view(self, image_BCSS: Tensor) -> Tensor:
        augment = self.config.augment
        view_BCHW = random_view(
            image_BCSS,
            self.config.model.crop,
            augment.rotation,
            augment.jitter_pix,
            augment.noise,
            self.generator,
        )
        view_BCHW = stretch(view_BCHW, self.config.model.stretch)
        return view_BCHW.contiguous(memory_format=torch.channels_last)

    def result(self) -> PITA:
        """Return the model that inference should use."""
        return self.keys.model if self.config.average_weights else self.model

    def validate(self, block: Block, model: PITA | None = None) -> PointMetrics:
        """Return metrics of a labelled sample, as inference would measure it."""
        model = (model or self.result()).eval()
        checkpoint = Checkpoint(Path(), model, self.store.survey, {}, "")
        engine = Engine(checkpoint, str(self.device))
        z_phot_N = engine.predict(block.cutout_NCSS, block.ebv_N)
        return point_metrics(block.z_spec_N, z_phot_N)

    def save_state(self, path: Path) -> None:
        """Write everything that a resumed run needs (temporary name, fsync, rename)."""
        state = {
            "config": json.dumps(to_mapping(replace(self.config, out="", store=""))),
            "store": self.store.fingerprint(),
            "model": self.model.state_dict(),
            "keys": self.keys.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "rng": torch.get_rng_state(),
            "epoch": self.epoch,
            "step": self.step,
            "best_nmad": self.best_nmad,
        }
        with replacing(path) as partial:
            torch.save(state, partial)

    def load_state(self, path: Path) -> None:
        """Take a run up where it was saved.

        Raises:
            CheckpointError: the file is damaged, or of another configuration or store.
        """
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: cannot be resumed from, it is damaged") from error
        if state["config"] != json.dumps(to_mapping(replace(self.config, out="", store=""))):
            raise CheckpointError(
                f"{path}: belongs to a run with another configuration; choose another 'out'"
            )
        if state["store"] != self.store.fingerprint():
            raise CheckpointError(
                f"{path}: belongs to a run on another store; choose another 'out'"
            )
        self.model.load_state_dict(state["model"])
        self.keys.load_state_dict(state["keys"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.best_nmad = state["best_nmad"]


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train as configured; return the path of the best checkpoint (by validation NMAD).

    Writes into config.out: best.safetensors and last.safetensors, state.pt (to resume from),
    and log.jsonl with one line of losses and metrics an epoch.

    Raises:
        PhotozError: a fault in the store, the configuration, or the state to resume from.
    """
    store = CutoutStore.open(config.store)
    store.check_complete()
    out = Path(config.out)
    state = out / "state.pt"
    if state.exists() and not resume:
        raise CheckpointError(f"{out}: holds a run already; pass --resume or choose another 'out'")
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, store)
    if resume and state.exists():
        trainer.load_state(state)
    validation = read_labelled(store, "validation", config.seed, trainer.aperture)
    if not len(validation):
        raise StoreError(f"{store.path}: no labelled source for validation")
    progress = _Progress(trainer)
    while trainer.epoch < config.epochs:
        started = time.monotonic()
        losses = trainer.train_epoch(progress.add)
        metrics = trainer.validate(validation)
        record: dict[str, Any] = {
            "epoch": trainer.epoch,
            "step": trainer.step,
            "lr": trainer.optimiser.param_groups[0]["lr"],
            **{f"loss_{name}": value for name, value in losses.items()},
            **{f"validation_{name}": value for name, value in asdict(metrics).items()},
            "seconds": time.monotonic() - started,
        }
        with open(out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")
        training = {
            "photozhpc": __version__,
            "config": to_mapping(config),
            "store_sha256": store.fingerprint(),
            "last_epoch": record,
        }
        save_checkpoint(out / "last.safetensors", trainer.result(), store.survey, training)
        if metrics.nmad < trainer.best_nmad:
            trainer.best_nmad = metrics.nmad
            save_checkpoint(out / "best.safetensors", trainer.result(), store.survey, training)
        trainer.save_state(state)
        progress.epoch_done(record)
    best = out / "best.safetensors"
    if config.refit_epochs:
        best = _refit(trainer, best, validation)
    return best


def _refit(trainer: Trainer, best: Path, validation: Block) -> Path:
    """Refit the redshift heads of the best checkpoint; return the path of the new one."""
    checkpoint = load_checkpoint(best)
    labels = read_labelled(trainer.store, "train", trainer.config.seed, trainer.aperture)
    refit_redshift_heads(
        checkpoint.model.to(trainer.device),
        labels,
        validation,
        trainer.config.refit_epochs,
        trainer.config.loss.huber_delta,
        trainer.config.seed,
    )
    metrics = asdict(trainer.validate(validation, checkpoint.model))
    print(
        f"redshift heads refitted  validation NMAD {metrics['nmad']:.4f}  "
        f"outliers {metrics['outlier_fraction']:.3f}",
        file=sys.stderr,
    )
    training = {**checkpoint.training, "refit_validation": metrics}
    refitted = best.with_name("refitted.safetensors")
    return save_checkpoint(refitted, checkpoint.model, trainer.store.survey, training)


class _Progress:
    """One line an epoch, and at most one a minute in between, to stderr."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._first_step = trainer.step
        self._started = self._last = time.monotonic()
        self._images = 0

    def add(self, images: int) -> None:
        self._images += images
        if time.monotonic() - self._last > 60:
            self._print(f"step {self._trainer.step}/{self._trainer.total_steps}")

    def epoch_done(self, record: dict[str, Any]) -> None:
        self._print(
            f"epoch {record['epoch']}/{self._trainer.config.epochs}  "
            f"loss {record['loss_total']:.4f}  validation NMAD {record['validation_nmad']:.4f}  "
            f"outliers {record['validation_outlier_fraction']:.3f}"
        )

    def _print(self, text: str) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._started
        steps = self._trainer.step - self._first_step
        left = elapsed / max(steps, 1) * (self._trainer.total_steps - self._trainer.step)
        rate = self._images / elapsed
        print(f"{text}  {rate:.0f} images/s  {left / 60:.1f} min left", file=sys.stderr, flush=True)


def _learning_rate(config: OptimiserConfig, step: int, total_steps: int) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device")
    return device
