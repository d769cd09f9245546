"""Training on a store: one process, or several that torchrun started (plain DDP)."""

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from photozhpc import __version__
from photozhpc.errors import CheckpointError, ConfigError, Preempted
from photozhpc.files.code_cache import keep_torch_code
from photozhpc.files.disk import disk_errors, remove_stale_partials
from photozhpc.files.lock import locked
from photozhpc.logs import LOG
from photozhpc.model.calibrate import fit_uncertainty
from photozhpc.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model.engine import Engine
from photozhpc.model.photometry_fit import train_photometry
from photozhpc.model.ranks import Ranks, joined_ranks
from photozhpc.model.refit import refit_redshift_heads
from photozhpc.model.store_note import KEY as NOTE_KEY
from photozhpc.model.store_note import note_store, noted
from photozhpc.model.train_config import OTHER_OUT, TrainConfig
from photozhpc.model.train_log import TrainLog
from photozhpc.model.train_photometry import train_photometry_mlp
from photozhpc.model.trainer import Trainer
from photozhpc.model.verdict import verdict
from photozhpc.store import CutoutStore, FluxTable, open_store
from photozhpc.store.loader import Block, read_labelled
from photozhpc.survey import load_survey

Check = Callable[[], None]


def train(config: TrainConfig, restart: bool = False) -> Path:
    """Train as configured; return the path of the model file to use.

    A run that is in config.out already goes on where it stopped, or if it is finished stays as it
    is. With `restart` it is deleted first.

    Writes into config.out: last.safetensors and best.safetensors (by validation NMAD, or the
    likelihood of the validation labels where the joint training estimates densities; without
    validation, the last) after every epoch; state.pt (to resume from); log.jsonl with one line
    of losses and metrics per epoch; tensorboard/; and in the end model.safetensors: the best with
    its redshift heads refitted and its uncertainty fitted, as configured. Without images,
    only model.safetensors is written.

    Under torchrun every rank calls it. Only one training at a time writes into the folder. On
    SIGTERM, SIGUSR1 or Ctrl-C all ranks finish the step, save the state, and raise.

    Raises:
        Preempted: it was asked to stop by SIGTERM or SIGUSR1, and saved its state.
        KeyboardInterrupt: the same after Ctrl-C.
        PhotozError: a fault in the store, the configuration, or the state to resume from; the
            folder is in use; the disk is full.
    """
    with suppress(OSError):
        keep_torch_code()  # optimisers import torch's compiler, which would make a folder in TMPDIR
    store = open_store(config.store, load_survey(config.survey) if config.survey else None)
    store.check_complete()
    out = Path(config.out)
    with (
        joined_ranks("cpu" if config.without_images else config.device) as ranks,
        _folder_held(out, ranks) as check,
    ):
        # Not before the configuration is known to suit the store.
        trainer = None
        if not config.without_images:
            trainer = Trainer(config, _cutouts(config, store), ranks)
        with ranks.together():
            if restart and ranks.is_first:
                _delete_run(out)
        if trainer is not None:
            _train(trainer, out, check)
        elif config.method == "photometry":
            with ranks.together():
                if ranks.is_first:
                    train_photometry(config, store, check)
        else:
            with ranks.together():
                if ranks.is_first:
                    train_photometry_mlp(config, _cutouts(config, store), check)
    return out / "model.safetensors"


def _cutouts(config: TrainConfig, store: CutoutStore | FluxTable) -> CutoutStore:
    if isinstance(store, FluxTable):
        raise ConfigError(
            f"{store.path}: is a photometric catalogue, which only method 'photometry' can "
            f"train on; method '{config.method}' needs a store"
        )
    return store


@dataclass(frozen=True)
class _Run:
    """A training of images in its folder.

    Attributes:
        check: see `disk.replacing`.
        validation: labelled sample; None: there is no redshift loss.
        log: of the first rank; None on the others.
    """

    trainer: Trainer
    out: Path
    check: Check
    validation: Block | None
    log: TrainLog | None

    def save_state(self) -> None:
        with self.trainer.ranks.together():
            self.trainer.save_state(self.out / "state.pt", self.check)


def _train(trainer: Trainer, out: Path, check: Check) -> None:
    config, ranks = trainer.config, trainer.ranks
    state = out / "state.pt"
    LOG.debug(f"train: rank {ranks.rank} of {ranks.world}, {trainer.index.n_sources} sources")
    with ranks.together():
        if ranks.is_first:
            _check_unused(out)
    validation = None
    if config.redshift_weight > 0 and config.labels == "train":
        validation = read_labelled(trainer.store, "validation", config.seed)
    if state.exists():
        trainer.load_state(state)
        if trainer.epoch >= config.epochs and (out / "model.safetensors").exists():
            if ranks.is_first:
                LOG.info(f"{out}: finished before; --restart trains anew")
            return  # a catalogue may already use that file
    log = None
    with ranks.together():
        if ranks.is_first:
            _say_what_begins(trainer, validation)
            log = TrainLog(out, trainer.step, trainer.total_steps)
    run = _Run(trainer, out, check, validation, log)
    with _stop_signals() as stop:
        while trainer.epoch < config.epochs:
            stopped = _train_epoch(run, stop)
            if trainer.at_epoch_end:
                _end_epoch(run)
            run.save_state()
            if stopped and trainer.epoch < config.epochs:
                at = f"at step {trainer.step} of {trainer.total_steps}"
                _raise_stopped(stop, f"stopped {at}", state)
    if log is None:
        return
    log.close()
    if stop:
        _raise_stopped(stop, "stopped before the end", state)
    # From here on a signal stops the process at once, like Ctrl-C: there is no new state to save.
    _finish(run)


def _say_what_begins(trainer: Trainer, validation: Block | None) -> None:
    config, world = trainer.config, trainer.ranks.world
    batches = trainer.loader.steps_per_epoch
    what = "labelled sources" if config.labelled_only else "sources"
    text = f"{batches * config.batch_size} {what}, {config.epochs} epochs of {batches} steps"
    if validation is not None:
        text += f", {len(validation)} validation labels"
    text += f", on {trainer.device.type}" + (f" in {world} processes" if world > 1 else "")
    LOG.info(text + (f"; going on at step {trainer.step}" if trainer.step else ""))
    if config.redshift_weight > 0 and not config.model.density_bins:
        LOG.info("note: this recipe gives no intervals and no p(z); model.density_bins: 256 does")


@contextmanager
def _folder_held(out: Path, ranks: Ranks) -> Iterator[Check]:
    """Let the first rank lock the folder, and delete partial files of killed runs there.

    Raises:
        CheckpointError: another process is writing there.
        RunError: the folder cannot be made.
    """
    with ExitStack() as stack:
        check: Check = lambda: None  # noqa: E731
        with ranks.together():
            if ranks.is_first:
                with disk_errors(out):
                    out.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, out)
                file = out / ".lock"
                check = stack.enter_context(locked(file, "photozhpc train", CheckpointError)).check
                remove_stale_partials(out, foreign_seconds=0)
        yield check


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _raise_stopped(stop: list[int], what: str, state: Path) -> NoReturn:
    if signal.SIGINT in stop:
        LOG.info(f"{what}; the state is in {state}")
        raise KeyboardInterrupt
    raise Preempted(f"{what}; the state is in {state}: run the same command again to go on")


def _delete_run(out: Path) -> None:
    """Delete the files of an earlier run; the state first, so that a half of them is no run."""
    files = ("state.pt", "model.safetensors", "best.safetensors", "last.safetensors", "log.jsonl")
    with disk_errors(out):
        for name in files:
            (out / name).unlink(missing_ok=True)
        if (out / "tensorboard").exists():
            shutil.rmtree(out / "tensorboard")


def _check_unused(out: Path) -> None:
    if not (out / "state.pt").exists() and (out / "model.safetensors").exists():
        raise CheckpointError(
            f"{out}: contains a model.safetensors, but no state.pt of the run that made it; "
            f"{OTHER_OUT}"
        )


def _train_epoch(run: _Run, stop: list[int]) -> bool:
    """Make the remaining steps of the epoch, saving the state every checkpoint_minutes.

    Returns:
        Whether a signal stopped it, on any rank.
    """
    trainer, ranks = run.trainer, run.trainer.ranks
    saved = time.monotonic()
    if trainer.at_epoch_end:
        trainer.loss_sums.zero_()
    for lanes in trainer.batches():
        trainer.loss_sums += trainer.train_step(lanes)
        if run.log is not None:
            run.log.progress(trainer.step, trainer.config.batch_size)
        is_late = time.monotonic() - saved > 60 * trainer.config.checkpoint_minutes
        n_stop, n_save = ranks.sum([len(stop), ranks.is_first and is_late])
        if n_stop:
            return True
        if n_save and not trainer.at_epoch_end:
            run.save_state()
            saved = time.monotonic()
    return False


def _end_epoch(run: _Run) -> None:
    """Validate, write the log and the model files."""
    trainer = run.trainer
    trainer.share_statistics()
    found = None if run.validation is None else trainer.validate(run.validation)
    losses = trainer.mean_losses()
    is_best = found is None or found.score < trainer.best_score
    if found is not None and is_best:
        trainer.best_score = found.score
    record: dict[str, Any] = {
        "epoch": trainer.epoch,
        "step": trainer.step,
        "lr": trainer.optimiser.param_groups[0]["lr"],
        **{f"loss_{name}": value for name, value in losses.items()},
    }
    text = f"epoch {trainer.epoch}/{trainer.config.epochs}  loss {losses['total']:.4f}"
    if found is not None:
        metrics = found.metrics
        record |= {f"validation_{name}": value for name, value in asdict(metrics).items()}
        text += f"  validation NMAD {metrics.nmad:.4f}  outliers {metrics.outlier_fraction:.3f}"
        if found.nll is not None:
            record["validation_nll"] = found.nll
            text += f"  NLL {found.nll:.3f}"
    with trainer.ranks.together():
        if run.log is None:
            return
        training = {
            "photozhpc": __version__,
            "config": trainer.config.noted(),
            "store_sha256": trainer.index.fingerprint,
            "last_epoch": record,
        }
        survey = trainer.store.survey
        for name in ("last", "best") if is_best else ("last",):
            path = run.out / f"{name}.safetensors"
            save_checkpoint(path, trainer.result(), survey, training, check=run.check)
        run.log.epoch(record, text)


def _finish(run: _Run) -> None:
    """Refit the heads of the best epoch, fit its uncertainty, and write the model file."""
    trainer, validation = run.trainer, run.validation
    config, store = trainer.config, trainer.store
    checkpoint = load_checkpoint(run.out / "best.safetensors")
    training = dict(checkpoint.training)
    model = checkpoint.pita.to(trainer.device)
    if validation is not None and config.refit_steps:
        labels = read_labelled(store, "train", config.seed, config.label_fraction)
        metrics = refit_redshift_heads(
            model,
            labels,
            validation,
            store.survey,
            config.refit_steps,
            config.loss.huber_delta,
            config.seed,
        )
        training["refit_validation"] = {name: asdict(m) for name, m in metrics.items()}
    if config.redshift_weight > 0 and config.model.density_bins:
        fit_uncertainty(
            model,
            store,
            config.seed,
            config.density_steps,
            config.label_fraction,
            config.expert_steps,
            config.augment.dimming,
            config.labels,
        )
    if validation is not None:
        engine = Engine(Checkpoint(Path(), model, store.survey, {}, ""), str(trainer.device))
        z_phot_N = engine.predict(validation.cutout_NCSS, validation.ebv_N, validation).z_phot_N
        for line in verdict(validation.z_spec_N, z_phot_N, run.out / "log.jsonl"):
            LOG.info(line)
    training[NOTE_KEY] = noted(note_store(store, model.config.crop))
    path = run.out / "model.safetensors"
    save_checkpoint(path, model, store.survey, training, check=run.check)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGTERM, SIGUSR1 and the first Ctrl-C instead of ending on them."""
    received: list[int] = []
    numbers = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background jobs
        numbers.append(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may set handlers

    def collect(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, collect) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
