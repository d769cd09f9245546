"""Training on a store: one process, or several that torchrun started (plain DDP).

Random views, shuffling and drop-path are functions of seed, epoch, step and lane: there is no
random state to save, and a run does not depend on the number of ranks.
"""

import json
import math
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from photozhpc import __version__
from photozhpc.config import to_mapping
from photozhpc.disk import replacing
from photozhpc.errors import CheckpointError, ConfigError, Preempted, RunError
from photozhpc.logs import LOG
from photozhpc.memory import keep_freed_memory
from photozhpc.metrics import PointMetrics, point_metrics
from photozhpc.model.augment import calibrate, random_view, stretch
from photozhpc.model.calibrate import fit_uncertainty
from photozhpc.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model.colours import colour_features
from photozhpc.model.engine import Engine, native_precision
from photozhpc.model.losses import colour_loss, contrastive_loss, redshift_loss
from photozhpc.model.pita import PITA, KeyEncoder
from photozhpc.model.ranks import Ranks, joined_ranks
from photozhpc.model.refit import refit_redshift_heads
from photozhpc.model.torch_file import load_torch_file
from photozhpc.model.train_config import OptimiserConfig, TrainConfig
from photozhpc.model.train_log import TrainLog
from photozhpc.model.train_photometry import aperture_index, train_photometry_mlp
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.loader import Block, TrainingLoader, read_labelled, typical_noise

LOSSES = ("total", "contrastive", "colour", "redshift")
# Settings that do not change what a run computes.
_INCIDENTAL = {"out": "", "store": "", "checkpoint_minutes": 0.0, "device": "auto"}


class Trainer:
    """The state of a run: model, key encoder, optimiser, step. It saves and resumes itself."""

    def __init__(self, config: TrainConfig, store: CutoutStore, ranks: Ranks | None = None) -> None:
        keep_freed_memory()
        self.config = config
        self.store = store
        self.ranks = ranks or Ranks()
        self.device = self.ranks.device
        self.aperture = _check_fit(config, store)
        self.loader = TrainingLoader(
            store,
            config.batch_size,
            config.seed,
            self.aperture,
            config.labelled_only,
            config.label_repeat,
            config.label_fraction,
            config.lanes,
            self.ranks.rank,
            self.ranks.world,
            config.shuffle_len,
        )
        torch.manual_seed(config.seed)
        noise_C, self.softening_C = typical_noise(store, self.aperture)
        self.extinction_r_C = np.array([band.extinction_r for band in store.survey.bands])
        self.model = PITA(config.model)
        self.model.noise_C.copy_(torch.from_numpy(noise_C))
        self.model.extinction_r_C.copy_(torch.from_numpy(self.extinction_r_C))
        if config.initial_checkpoint:
            _take_encoder(self.model, load_checkpoint(config.initial_checkpoint), store)
        self.keys = KeyEncoder(self.model, config.loss.queue_len, config.loss.momentum)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.keys.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._freeze_idle_heads()
        if config.compile:
            self.model.encoder.compile()
            self.keys.model.encoder.compile()
        self.network: nn.Module = self.model
        if self.ranks.world > 1:
            with warnings.catch_warnings():  # the option's new name is not in torch 2.9 yet
                warnings.simplefilter("ignore", FutureWarning)
                self.network = nn.parallel.DistributedDataParallel(
                    self.model, broadcast_buffers=False
                )
        self.optimiser = torch.optim.AdamW(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=config.optimiser.lr,
            weight_decay=config.optimiser.weight_decay,
            fused=True,
        )
        self.generator = torch.Generator(self.device)
        self.precision = {
            "auto": native_precision(self.device),
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
        }[config.precision]
        self.step = 0
        self.loss_sums = torch.zeros(len(LOSSES), device=self.device)  # of this epoch so far
        self.best_nmad = math.inf

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.loader.steps_per_epoch

    @property
    def epoch(self) -> int:
        """How many epochs are finished."""
        return self.step // self.loader.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the run is between two epochs."""
        return self.step % self.loader.steps_per_epoch == 0

    def batches(self) -> Iterator[list[Block]]:
        """Yield what is left of the epoch, from the step at which the run is."""
        return self.loader.epoch(self.epoch, self.step % self.loader.steps_per_epoch)

    def train_step(self, lanes: list[Block]) -> Tensor:
        """Make one step on this rank's lanes of a batch; return its LOSSES, before the step."""
        for group in self.optimiser.param_groups:
            group["lr"] = _learning_rate(self.config.optimiser, self.step, self.total_steps)
        if self.config.model.drop_path > 0:
            torch.manual_seed(_seed_of(self.config.seed, self.step, self.ranks.rank))
        losses, key_BP = self.losses(lanes)
        self.optimiser.zero_grad(set_to_none=True)
        losses[0].backward()
        if self.config.optimiser.clip_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimiser.clip_norm)
        self.optimiser.step()
        # In the first steps the average would hold on to the random start: forget it faster.
        momentum = min(self.config.loss.momentum, (1 + self.step) / (10 + self.step))
        self.keys.update(self.model, momentum)
        if key_BP is not None:
            self.keys.enqueue(self.ranks.gather(key_BP))
        self.step += 1
        return losses.detach()

    def losses(self, lanes: list[Block]) -> tuple[Tensor, Tensor | None]:
        """Return LOSSES of this rank's lanes, and the new keys.

        The mean over ranks is the loss of the whole batch: each divides its sums over labelled
        sources by the number of these on all ranks.
        """
        config, device = self.config, self.device
        batch = Block.join(lanes)
        colour_BM = torch.from_numpy(
            colour_features(batch.flux_NC, self.softening_C, batch.ebv_N, self.extinction_r_C)
        )
        z_spec_B = torch.from_numpy(batch.z_spec_N)
        n_labels, n_colours = (
            total / self.ranks.world
            for total in self.ranks.sum(
                [int(torch.isfinite(z_spec_B).sum()), int(colour_BM.isfinite().all(dim=1).sum())]
            )
        )
        image_BCSS = calibrate(
            torch.from_numpy(batch.cutout_NCSS).to(device),
            torch.from_numpy(batch.ebv_N).to(device),
            self.model.extinction_r_C,
            self.model.noise_C,
        )
        self.model.train()
        self.keys.eval()
        key_BP = None
        reduced = self.precision != torch.float32
        with torch.autocast(device.type, dtype=self.precision, enabled=reduced):
            output = self.network(self._view(image_BCSS, 0))
            if config.contrastive_weight > 0:
                key_BP = self.keys(self._view(image_BCSS, 1))
        zero = torch.zeros((), device=device)
        contrastive = colour = redshift = zero
        if key_BP is not None:
            contrastive = contrastive_loss(
                output.projection_BP, key_BP, self.keys.queue_KP, config.loss.temperature
            )
        if config.colour_weight > 0:
            colour = colour_loss(output.colour_BM, colour_BM.to(device), n_colours)
        if config.redshift_weight > 0:
            redshift = redshift_loss(
                output.z_phot_B,
                z_spec_B.to(device),
                config.loss.huber_delta,
                config.model.redshift_scale,
                n_labels,
            )
        total = (
            config.contrastive_weight * contrastive
            + config.colour_weight * colour
            + config.redshift_weight * redshift
        )
        return torch.stack([total, contrastive, colour, redshift]), key_BP

    def _view(self, image_BCSS: Tensor, number: int) -> Tensor:
        """One random view of every image; each lane has its own random numbers."""
        augment, views = self.config.augment, []
        for lane, image_LCSS in zip(
            self.loader.lanes, image_BCSS.split(self.loader.lane_batch), strict=True
        ):
            self.generator.manual_seed(_seed_of(self.config.seed, self.step, lane, number))
            view_LCHW = random_view(
                image_LCSS,
                self.config.model.crop,
                augment.rotation,
                augment.jitter_pix,
                augment.noise,
                self.generator,
            )
            views.append(stretch(view_LCHW, self.config.model.stretch))
        return torch.cat(views).contiguous(memory_format=torch.channels_last)

    def _freeze_idle_heads(self) -> None:
        """DDP waits for the gradient of every parameter, so what has no task must want none."""
        for weight, head in (
            (self.config.contrastive_weight, self.model.projection_mlp),
            (self.config.colour_weight, self.model.colour_mlp),
            (self.config.redshift_weight, self.model.redshift_mlp),
        ):
            head.requires_grad_(weight > 0)

    def mean_losses(self) -> dict[str, float]:
        """Return the means, over ranks and the epoch so far, of LOSSES.

        Raises:
            RunError: one is not finite.
        """
        steps = self.step % self.loader.steps_per_epoch or self.loader.steps_per_epoch
        sums = self.ranks.sum(self.loss_sums.tolist())
        means = [total / self.ranks.world / steps for total in sums]
        if not all(map(math.isfinite, means)):
            raise RunError(
                f"the loss is not finite any more (step {self.step}); lower optimiser.lr or set "
                f"optimiser.clip_norm, then resume from the last checkpoint"
            )
        return dict(zip(LOSSES, means, strict=True))

    def result(self) -> PITA:
        """Return the model that inference should use."""
        return self.keys.model if self.config.average_weights else self.model

    def validate(self, block: Block) -> PointMetrics:
        """Return metrics of a whole labelled sample, as inference would measure it."""
        checkpoint = Checkpoint(Path(), self.result().eval(), self.store.survey, {}, "")
        engine = Engine(checkpoint, str(self.device))
        mine = block.take(slice(self.ranks.rank, None, self.ranks.world))
        z_phot_N = engine.predict(mine.cutout_NCSS, mine.ebv_N).z_phot_N
        pairs = self.ranks.gather_objects((mine.z_spec_N, z_phot_N))
        return point_metrics(*(np.concatenate(column) for column in zip(*pairs, strict=True)))

    def save_state(self, path: Path) -> None:
        """Write everything that a resumed run needs (temporary name, fsync, rename).

        All ranks call it; the first one writes: they differ in nothing but their losses.
        """
        self.mean_losses()  # a state that is not finite must not replace one that is
        sums = self.ranks.sum(self.loss_sums.tolist())
        if not self.ranks.is_first:
            return
        state = {
            "config": self._identity(),
            "store": self.store.fingerprint(),
            "model": self.model.state_dict(),
            "keys": self.keys.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "loss_sums": [total / self.ranks.world for total in sums],
            "best_nmad": self.best_nmad,
        }
        with replacing(path) as partial:
            torch.save(state, partial)

    def load_state(self, path: Path) -> None:
        """Take a run up where it was saved.

        Raises:
            CheckpointError: the file is damaged, or of another configuration or store.
        """
        damaged = f"{path}: cannot be resumed from, it is damaged; delete it to begin anew"
        try:
            state = load_torch_file(path)
            config, store = state["config"], state["store"]
        except Exception as error:  # PyTorch's reader of pickles raises whatever it runs into
            raise CheckpointError(damaged) from error
        if config != self._identity():
            raise CheckpointError(
                f"{path}: belongs to a run with another configuration; choose another 'out'"
            )
        if store != self.store.fingerprint():
            raise CheckpointError(
                f"{path}: belongs to a run on another store; choose another 'out'"
            )
        try:
            self.model.load_state_dict(state["model"])
            self.keys.load_state_dict(state["keys"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.loss_sums.copy_(torch.tensor(state["loss_sums"]))
            self.step, self.best_nmad = state["step"], float(state["best_nmad"])
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise CheckpointError(damaged) from error
        if type(self.step) is not int or not 0 <= self.step <= self.total_steps:
            raise CheckpointError(damaged)

    def _identity(self) -> str:
        return json.dumps(to_mapping(replace(self.config, **_INCIDENTAL)))  # type: ignore[arg-type]


def train(config: TrainConfig, resume: bool = False) -> Path:
    """Train as configured; return the path of the model file to use.

    Writes into config.out: last.safetensors and best.safetensors (by validation NMAD; without a
    redshift loss, the last) after every epoch, state.pt (to resume from), log.jsonl with one line
    of losses and metrics an epoch, tensorboard/, and in the end model.safetensors: the best with
    its redshift heads refitted and its uncertainty fitted, as configured. A photometry-MLP leaves
    model.safetensors alone.

    Started by torchrun, every rank calls it. On SIGTERM or SIGUSR1 all ranks finish the step,
    save the state, and raise Preempted.

    Raises:
        Preempted: it was asked to stop, and saved its state.
        PhotozError: a fault in the store, the configuration, or the state to resume from.
    """
    store = CutoutStore.open(config.store)
    store.check_complete()
    if config.method == "photometry-mlp":
        return train_photometry_mlp(config, store, resume)
    out = Path(config.out)
    state = out / "state.pt"
    if state.exists() and not resume:
        raise CheckpointError(f"{out}: holds a run already; pass --resume or choose another 'out'")
    out.mkdir(parents=True, exist_ok=True)
    with joined_ranks(config.device) as ranks, _stop_signals() as stop:
        trainer = Trainer(config, store, ranks)
        LOG.debug("train: rank %d of %d, %d sources", ranks.rank, ranks.world, len(store))
        validation = None
        if config.redshift_weight > 0:
            validation = read_labelled(store, "validation", config.seed, trainer.aperture)
        if resume and state.exists():
            trainer.load_state(state)
            if trainer.epoch >= config.epochs and (out / "model.safetensors").exists():
                return out / "model.safetensors"  # a catalogue may have been begun with it
        log = TrainLog(out, trainer.step, trainer.total_steps) if ranks.is_first else None
        while trainer.epoch < config.epochs:
            stopped = _train_epoch(trainer, log, stop, state)
            if trainer.at_epoch_end:
                _end_epoch(trainer, validation, log, out)
            trainer.save_state(state)
            if stopped and trainer.epoch < config.epochs:
                raise Preempted(
                    f"stopped at step {trainer.step} of {trainer.total_steps}; the state is in "
                    f"{state}: go on with --resume"
                )
        if log is not None:
            log.close()
        if ranks.is_first:
            _finish(trainer, validation, out)
        return out / "model.safetensors"


def _train_epoch(trainer: Trainer, log: TrainLog | None, stop: list[int], state: Path) -> bool:
    """Make the steps that are left of the epoch, saving the state now and then; return whether
    it was told to stop, on any rank."""
    ranks = trainer.ranks
    saved = time.monotonic()
    if trainer.at_epoch_end:
        trainer.loss_sums.zero_()
    for lanes in trainer.batches():
        trainer.loss_sums += trainer.train_step(lanes)
        if log is not None:
            log.progress(trainer.step, trainer.config.batch_size)
        due = ranks.is_first and time.monotonic() - saved > 60 * trainer.config.checkpoint_minutes
        n_stop, n_due = ranks.sum([len(stop), due])
        if n_stop:
            return True
        if n_due and not trainer.at_epoch_end:
            trainer.save_state(state)
            saved = time.monotonic()
    return False


def _end_epoch(trainer: Trainer, validation: Block | None, log: TrainLog | None, out: Path) -> None:
    """Validate, write the log and the model files."""
    metrics = None if validation is None else trainer.validate(validation)
    losses = trainer.mean_losses()
    is_best = metrics is None or metrics.nmad < trainer.best_nmad
    if metrics is not None and is_best:
        trainer.best_nmad = metrics.nmad
    if log is None:
        return
    record: dict[str, Any] = {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "lr": trainer.optimiser.param_groups[0]["lr"],
        **{f"loss_{name}": value for name, value in losses.items()},
    }
    text = f"epoch {trainer.epoch}/{trainer.config.epochs}  loss {losses['total']:.4f}"
    if metrics is not None:
        record |= {f"validation_{name}": value for name, value in asdict(metrics).items()}
        text += f"  validation NMAD {metrics.nmad:.4f}  outliers {metrics.outlier_fraction:.3f}"
    training = {
        "photozhpc": __version__,
        "config": to_mapping(trainer.config),
        "store_sha256": trainer.store.fingerprint(),
        "last_epoch": record,
    }
    for name in ("last", "best") if is_best else ("last",):
        save_checkpoint(
            out / f"{name}.safetensors", trainer.result(), trainer.store.survey, training
        )
    log.epoch(record, text)


def _finish(trainer: Trainer, validation: Block | None, out: Path) -> None:
    """Make the model file of the best epoch: refit its heads, fit its uncertainty, write it."""
    config, store = trainer.config, trainer.store
    checkpoint = load_checkpoint(out / "best.safetensors")
    training = dict(checkpoint.training)
    model = checkpoint.pita.to(trainer.device)
    if validation is not None and config.refit_steps:
        labels = read_labelled(store, "train", config.seed, trainer.aperture, config.label_fraction)
        metrics = refit_redshift_heads(
            model, labels, validation, config.refit_steps, config.loss.huber_delta, config.seed
        )
        training["refit_validation"] = {name: asdict(m) for name, m in metrics.items()}
    if validation is not None and config.model.density_bins:
        fit_uncertainty(
            model,
            store,
            config.seed,
            trainer.aperture,
            config.density_steps,
            config.label_fraction,
        )
    save_checkpoint(out / "model.safetensors", model, store.survey, training)


def _check_fit(config: TrainConfig, store: CutoutStore) -> int:
    """Check that the store is what the configuration needs; return the index of the aperture."""
    survey = store.survey
    aperture = aperture_index(config, store)
    if config.model.n_bands != len(survey.bands) or config.model.n_colours != len(survey.bands):
        raise ConfigError(
            f"model.n_bands and model.n_colours must be {len(survey.bands)}, "
            f"the number of the store's bands"
        )
    needed = config.model.crop + 2 * config.augment.jitter_pix
    if store.cutout_size < needed:
        raise ConfigError(
            f"cutouts of {store.cutout_size} px are too small for a crop of "
            f"{config.model.crop} px with a jitter of {config.augment.jitter_pix} px; extract "
            f"with --size {needed} or more"
        )
    return aperture


def _take_encoder(model: PITA, initial: Checkpoint, store: CutoutStore) -> None:
    """Take everything from a checkpoint but the redshift heads."""
    initial.check_store(store.survey, store.cutout_size)
    mine = model.state_dict()
    theirs = initial.pita.state_dict()
    kept = {k: v for k, v in theirs.items() if not k.startswith("redshift_")}
    wanted = [name for name in mine if not name.startswith("redshift_")]
    unlike = [k for k in wanted if k not in kept or kept[k].shape != mine[k].shape]
    if unlike:
        raise CheckpointError(
            f"{initial.path}: '{unlike[0]}' does not fit the configuration's model; the encoder "
            f"and heads must be those of the run that made it"
        )
    model.load_state_dict(kept, strict=False)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGUSR1 instead of dying of them."""
    received: list[int] = []
    previous = {
        number: signal.signal(number, lambda signum, frame: received.append(signum))
        for number in (signal.SIGTERM, signal.SIGUSR1)
    }
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _seed_of(*numbers: int) -> int:
    """A seed for a generator, different for every tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _learning_rate(config: OptimiserConfig, step: int, total_steps: int) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
