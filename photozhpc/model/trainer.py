"""One rank of a training: the network, its optimiser, a step, and the state to resume from.

Random views, shuffling and drop-path are functions of seed, epoch, step and lane. So there is no
random state to save, and a run does not depend on the number of ranks.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from photozhpc.errors import CheckpointError, ConfigError, RunError, StoreError
from photozhpc.files.code_cache import keep_torch_code
from photozhpc.files.disk import read_fault, write_durably
from photozhpc.metrics import PointMetrics, point_metrics
from photozhpc.model.augment import calibrate, random_view, stretch
from photozhpc.model.checkpoint import Checkpoint, load_checkpoint
from photozhpc.model.colours import colour_features
from photozhpc.model.density import cumulative
from photozhpc.model.density_fit import log_density
from photozhpc.model.dimming import dimmed_fluxes, draw_factors, noise_to_add
from photozhpc.model.encode import encode_block
from photozhpc.model.engine import Engine, native_precision, usable
from photozhpc.model.losses import colour_loss, contrastive_loss, density_loss, redshift_loss
from photozhpc.model.photometry import FluxInput, check_measured
from photozhpc.model.photometry_fit import read_sample
from photozhpc.model.pita import PITA, KeyEncoder, statistics
from photozhpc.model.ranks import Ranks
from photozhpc.model.resnet import LaneNorm
from photozhpc.model.torch_file import load_torch_file
from photozhpc.model.train_config import OTHER_OUT, OptimiserConfig, TrainConfig
from photozhpc.model.train_photometry import aperture_index
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.loader import Block, Sampling, TrainingLoader, typical_noise
from photozhpc.workers.memory import keep_freed_memory

LOSSES = ("total", "contrastive", "colour", "redshift")
# What a step's random numbers are for; 0 and 1 are the views.
_DROPOUT, _DIMMING, _FLUX_NOISE = 2, 3, 4


@dataclass(frozen=True)
class Validation:
    """Results on a labelled sample.

    Attributes:
        nll: mean -ln of the density in ln(1+z), up to a constant; None: redshift_task "point".
    """

    metrics: PointMetrics
    nll: float | None

    @property
    def score(self) -> float:
        """What the best epoch has least of."""
        return self.metrics.nmad if self.nll is None else self.nll


class Trainer:
    """The state of a run: model, key encoder, optimiser, step. It saves and resumes itself."""

    def __init__(self, config: TrainConfig, store: CutoutStore, ranks: Ranks | None = None) -> None:
        keep_freed_memory()
        self.config = config
        self.store = store
        self.index = store.index()  # of the store as it is now: tiles may be added
        self.ranks = ranks or Ranks()
        self.device = self.ranks.device
        self.aperture = _check_fit(config, store)
        sampling = Sampling(
            batch_size=config.batch_size,
            seed=config.seed,
            aperture=self.aperture,
            labelled_only=config.labelled_only,
            label_repeat=config.label_repeat,
            label_fraction=config.label_fraction,
            labels=config.labels,
            lanes=config.lanes,
            shuffle_len=config.shuffle_len,
        )
        self.loader = TrainingLoader(store, sampling, self.ranks.rank, self.ranks.world)
        torch.manual_seed(config.seed)
        noise_C, self.softening_C = typical_noise(store, self.aperture)
        self.extinction_r_C = np.array([band.extinction_r for band in store.survey.bands])
        self.model = PITA(config.model)
        self.model.noise_C.copy_(torch.from_numpy(noise_C))
        self.model.extinction_r_C.copy_(torch.from_numpy(self.extinction_r_C))
        self.fluxes: FluxInput | None = None
        if config.model.fluxes.n_apertures:
            self.fluxes = FluxInput(config.model.fluxes, store.survey)
            _fit_flux_features(self.model, store, config.seed)
        if config.initial_checkpoint:
            _take_encoder(self.model, load_checkpoint(config.initial_checkpoint), store)
        self.keys = KeyEncoder(self.model, config.loss.queue_len, config.loss.momentum)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.keys.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._freeze_idle_heads()
        for module in self.model.modules():
            if isinstance(module, LaneNorm):
                module.lane_batch = self.loader.lane_batch
        self.generators = [torch.Generator(self.device) for _ in self.loader.lanes]
        self.precision = {
            "auto": native_precision(self.device),
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
        }[config.precision]
        if config.compile:
            keep_torch_code()
            self.model.encoder.compile()
            self.keys.model.encoder.compile()
        elif self.device.type == "cuda":
            self._record()
        self.network: nn.Module = self.model
        if self.ranks.world > 1:
            with warnings.catch_warnings():  # torch 2.9 does not have the option's new name
                warnings.simplefilter("ignore", FutureWarning)
                self.network = nn.parallel.DistributedDataParallel(
                    self.model, broadcast_buffers=False
                )
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.trained,
            lr=config.optimiser.lr,
            weight_decay=config.optimiser.weight_decay,
            fused=True,
        )
        self.step = 0
        self.loss_sums = torch.zeros(len(LOSSES), device=self.device)  # of this epoch so far
        self.best_score = math.inf

    @property
    def total_steps(self) -> int:
        return self.config.epochs * self.loader.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return self.step // self.loader.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the run is between two epochs."""
        return self.step % self.loader.steps_per_epoch == 0

    def batches(self) -> Iterator[list[Block]]:
        """Yield the remaining batches of the epoch."""
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
            torch.nn.utils.clip_grad_norm_(self.trained, self.config.optimiser.clip_norm)
        self.optimiser.step()
        # In the first steps the average would keep the random start too long: forget it faster.
        momentum = min(self.config.loss.momentum, (1 + self.step) / (10 + self.step))
        self.keys.update(self.model, momentum)
        if key_BP is not None:
            self.keys.enqueue(self.ranks.gather(key_BP))
        self.step += 1
        return losses.detach()

    def losses(self, lanes: list[Block]) -> tuple[Tensor, Tensor | None]:
        """Return LOSSES of this rank's lanes, and the new keys.

        The mean over ranks is the loss of the whole batch: each rank divides its sums over
        labelled sources by their number on all ranks.
        """
        config, device = self.config, self.device
        shape = (sum(map(len, lanes)), *lanes[0].cutout_NCSS.shape[1:])
        cutout_BCSS = torch.empty(shape, pin_memory=device.type == "cuda")
        batch = Block.join(lanes, cutout_BCSS.numpy())
        colour_BM = torch.from_numpy(
            colour_features(
                batch.flux_NCR[:, :, self.aperture],
                self.softening_C,
                batch.ebv_N,
                self.extinction_r_C,
            )
        )
        z_spec_B = torch.from_numpy(batch.z_spec_N)
        labelled_B = z_spec_B.isfinite()
        counts = [int(labelled_B.sum()), int(colour_BM.isfinite().all(dim=1).sum())]
        n_labels, n_colours = (total / self.ranks.world for total in self.ranks.sum(counts))
        ebv_B = self._send(torch.from_numpy(batch.ebv_N))
        image_BCSS = calibrate(
            self._send(cutout_BCSS), ebv_B, self.model.extinction_r_C, self.model.noise_C
        )
        factor_B = self._draw_factors()
        if factor_B is not None:
            image_BCSS *= factor_B[:, None, None, None]
        seen = self._seen_by_heads(batch, ebv_B, factor_B)
        if self.keys.training or not self.model.training:  # setting the mode visits all modules
            self.model.train()
            self.keys.eval()
        key_BP = None
        with self._autocast():
            output = self.network(self._view(image_BCSS, factor_B, 0), *seen)
            if config.contrastive_weight > 0:
                key_BP = self.keys(self._view(image_BCSS, factor_B, 1))
        contrastive = colour = redshift = torch.zeros((), device=device)
        if key_BP is not None:
            contrastive = contrastive_loss(
                output.projection_BP, key_BP, self.keys.queue_KP, config.loss.temperature
            )
        if config.colour_weight > 0:
            colour = colour_loss(output.colour_BM, self._send(colour_BM), n_colours)
        if config.redshift_weight > 0 and config.model.redshift_task == "density":
            log1p_max = math.log1p(config.model.density_z_max)
            position_B = (torch.log1p(self._send(z_spec_B)) / log1p_max).clamp(0, 1)
            redshift = density_loss(
                output.logit_BHK,
                position_B,
                config.loss.smoothing / log1p_max,
                n_labels,
            )
        elif config.redshift_weight > 0:
            redshift = redshift_loss(
                output.z_phot_B,
                self._send(z_spec_B),
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

    def _draw_factors(self) -> Tensor | None:
        """Return the factors by which this step dims its images, or None if it does not."""
        mean_mag = self.config.augment.dimming
        if not mean_mag:
            return None
        self._seed(_DIMMING)
        n = self.loader.lane_batch
        return torch.cat([draw_factors(n, mean_mag, each) for each in self.generators])

    def _seen_by_heads(
        self, batch: Block, ebv_B: Tensor, factor_B: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the features of fluxes that the heads see, and the factors of their dropout."""
        flux_BF = ebv_B.new_zeros(len(ebv_B), 0)
        if self.fluxes is not None and self.model.flux_features is not None:
            flux_BCR, err_BCR = (self._send(torch.from_numpy(v)) for v in self.fluxes(batch))
            if factor_B is not None:
                self._seed(_FLUX_NOISE)
                flux_BCR = dimmed_fluxes(flux_BCR, err_BCR, factor_B, self.generators)
            flux_BF = self.model.flux_features(flux_BCR, err_BCR, ebv_B)
        dropout = self.config.model.dropout
        if not dropout:
            return (flux_BF,) if flux_BF.shape[1] else ()
        self._seed(_DROPOUT)
        shape = (self.loader.lane_batch, _n_hidden(self.config))
        draws = [torch.rand(shape, generator=each, device=self.device) for each in self.generators]
        return flux_BF, (torch.cat(draws) >= dropout) / (1 - dropout)

    def _seed(self, purpose: int) -> None:
        """Seed the random numbers of every lane in this step, for one purpose."""
        for generator, lane in zip(self.generators, self.loader.lanes, strict=True):
            generator.manual_seed(_seed_of(self.config.seed, self.step, lane, purpose))

    def _send(self, values: Tensor) -> Tensor:
        """Return values on the device; a GPU copies pinned memory while it computes."""
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def _view(self, image_BCSS: Tensor, factor_B: Tensor | None, number: int) -> Tensor:
        """Return a random view of every image, the first (0) or the second (1)."""
        self._seed(number)
        added = self.config.augment.noise
        noise: float | Tensor = added
        if factor_B is not None:
            noise = torch.sqrt(noise_to_add(factor_B) ** 2 + added**2)
        view_BCHW = random_view(
            image_BCSS,
            self.config.model.crop,
            self.config.augment.rotation,
            self.config.augment.jitter_pix,
            noise,
            self.generators,
        )
        view_BCHW = stretch(view_BCHW, self.config.model.stretch)
        return view_BCHW.contiguous(memory_format=torch.channels_last)

    def _record(self) -> None:
        """Record the passes of the networks as CUDA graphs, which later steps replay.

        A step of a small network on small images is about a thousand kernels of microseconds:
        launching them one by one takes several times as long as running them.
        """
        config = self.config
        shape = (self.loader.lane_batch * len(self.loader.lanes), config.model.n_bands)
        view_BCHW = torch.zeros(*shape, config.model.crop, config.model.crop, device=self.device)
        view_BCHW = view_BCHW.contiguous(memory_format=torch.channels_last)
        networks: list[nn.Module] = [self.model.train()]
        # Each has its own view: the gradients are taken after both passes.
        features = self.model.flux_features
        widths = [0 if features is None else features.n_features]
        widths += [_n_hidden(config)] if config.model.dropout else []
        seen = [view_BCHW.new_zeros(shape[0], width) for width in widths if any(widths)]
        inputs: list[tuple[Tensor, ...]] = [(view_BCHW.clone(), *seen)]
        if config.contrastive_weight > 0:
            networks.append(self.keys.eval())
            inputs.append((view_BCHW.clone(),))
        with self._autocast():
            torch.cuda.make_graphed_callables(
                tuple(networks), tuple(inputs), allow_unused_input=True
            )
        # torch 2.10 warns that gradients are recorded on one stream and summed on another.
        set_warn = "set_warn_on_accumulate_grad_stream_mismatch"
        getattr(torch.autograd.graph, set_warn, lambda _: None)(False)

    def _autocast(self) -> torch.autocast:
        """The precision of the networks. Nothing is cast twice, so casts need no cache."""
        reduced = self.precision != torch.float32
        return torch.autocast(
            self.device.type, dtype=self.precision, enabled=reduced, cache_enabled=False
        )

    def _freeze_idle_heads(self) -> None:
        """Freeze heads without a task: DDP waits for the gradient of every trainable parameter."""
        for weight, head in (
            (self.config.contrastive_weight, self.model.projection_mlp),
            (self.config.colour_weight, self.model.colour_mlp),
            (self.config.redshift_weight, self.model.redshift_mlp),
        ):
            head.requires_grad_(weight > 0)
        if self.model.uncertainty is not None and self.config.model.redshift_task == "density":
            self.model.uncertainty.heads.requires_grad_(self.config.redshift_weight > 0)

    def share_statistics(self) -> None:
        """Give all ranks the same running statistics: the mean, for each has seen its lanes alone.

        They are linear in those of each step, so it does not matter how often this is done.
        """
        shared = [*statistics(self.model), *statistics(self.keys.model)]
        if self.ranks.world == 1 or not shared:
            return
        sums = self.ranks.sum(torch.cat(shared).tolist())
        mean = torch.tensor(sums, dtype=torch.float64) / self.ranks.world
        for values, part in zip(shared, mean.split([len(v) for v in shared]), strict=True):
            values.copy_(part)

    def mean_losses(self) -> dict[str, float]:
        """Return the means of LOSSES over ranks and the epoch so far.

        Raises:
            RunError: one is not finite.
        """
        steps = self.step % self.loader.steps_per_epoch or self.loader.steps_per_epoch
        sums = self.ranks.sum(self.loss_sums.tolist())
        means = [total / self.ranks.world / steps for total in sums]
        if not all(map(math.isfinite, means)):
            raise RunError(
                f"the loss is no longer finite (step {self.step}); lower optimiser.lr or set "
                f"optimiser.clip_norm, then resume from the last checkpoint"
            )
        return dict(zip(LOSSES, means, strict=True))

    def result(self) -> PITA:
        """Return the model that inference should use."""
        return self.keys.model if self.config.average_weights else self.model

    def validate(self, block: Block) -> Validation:
        """Return the results on a whole labelled sample, as of inference."""
        model = self.result().eval()
        share = block.take(slice(self.ranks.rank, None, self.ranks.world))
        if self.config.model.redshift_task == "density":
            columns = self._densities(model, share)
        else:
            checkpoint = Checkpoint(Path(), model, self.store.survey, {}, "")
            engine = Engine(checkpoint, str(self.device))
            z_phot_N = engine.predict(share.cutout_NCSS, share.ebv_N, share).z_phot_N
            columns = [share.z_spec_N.tolist(), z_phot_N.tolist()]
        pairs = self.ranks.gather_plain(columns)
        z_spec_N, z_phot_N, *log_N = map(np.concatenate, zip(*pairs, strict=True))
        nll = -float(np.mean(log_N[0])) if log_N else None
        return Validation(point_metrics(z_spec_N, z_phot_N), nll)

    @torch.no_grad()
    def _densities(self, model: PITA, share: Block) -> list[list[float]]:
        """Return labels, redshifts, and ln of the densities at the labels."""
        uncertainty = model.uncertainty
        assert uncertainty is not None
        usable_N = usable(share.cutout_NCSS, model.config.crop)
        share = share.take(usable_N)
        if not len(share):
            return [[], [], []]
        input_NF = torch.from_numpy(encode_block(model, share, self.store.survey).input_NF)
        density_NK = model.density(input_NF.to(self.device))
        z_phot_N = model.point(density_NK, cumulative(density_NK), model.point_estimate)
        position_N = uncertainty.position(torch.from_numpy(share.z_spec_N).to(self.device))
        log_N = log_density(density_NK, position_N) + math.log(uncertainty.n_bins)
        return [share.z_spec_N.tolist(), z_phot_N.tolist(), log_N.tolist()]

    def save_state(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        """Write everything that a resumed run needs (temporary name, fsync, rename).

        All ranks call it and the first one writes: they differ only in their losses.

        Args:
            check: see `disk.replacing`.

        Raises:
            RunError: the disk is full, or cannot be written.
        """
        self.mean_losses()  # raises, so that no state with NaN replaces a finite one
        self.share_statistics()
        sums = self.ranks.gather_plain(self.loss_sums.tolist())
        if not self.ranks.is_first:
            return
        state = {
            "config": self.config.identity(),
            "store": self.index.fingerprint,
            "model": self.model.state_dict(),
            "keys": self.keys.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "loss_sums": sums,
            "best_score": self.best_score,
        }
        # Not written by torch.save: on a full disk it only reports an unexpected file position.
        content = io.BytesIO()
        torch.save(state, content)
        write_durably(path, content.getbuffer(), check=check)

    def load_state(self, path: Path) -> None:
        """Continue a run from a saved state.

        Raises:
            CheckpointError: the file is damaged, or of another configuration or store.
        """
        damaged = f"{path}: is damaged, so the run cannot go on; --restart begins anew"
        try:
            state = load_torch_file(path)
            config, store = state["config"], state["store"]
        except Exception as error:  # PyTorch's unpickler raises errors of any type
            raise CheckpointError(read_fault(path, error) or damaged) from error
        if config != self.config.identity():
            raise CheckpointError(
                f"{path}: belongs to a run with another configuration; {OTHER_OUT}"
            )
        if store != self.index.fingerprint:
            raise CheckpointError(f"{path}: belongs to a run on another store; {OTHER_OUT}")
        try:
            self.model.load_state_dict(state["model"])
            self.keys.load_state_dict(state["keys"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.loss_sums.copy_(self._own_loss_sums(state["loss_sums"]))
            self.step, self.best_score = state["step"], float(state["best_score"])
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

    def _own_loss_sums(self, loss_sums: list[Any]) -> Tensor:
        """Return this rank's sums of losses; if the number of ranks has changed, their mean."""
        sums_RL = torch.tensor(loss_sums, dtype=torch.float64).reshape(-1, len(LOSSES))
        if len(sums_RL) == self.ranks.world:
            return sums_RL[self.ranks.rank]
        return sums_RL.mean(dim=0)


def _check_fit(config: TrainConfig, store: CutoutStore) -> int:
    """Check that the store suits the configuration; return the index of the aperture."""
    survey = store.survey
    aperture = aperture_index(config, store)
    if config.model.n_bands != len(survey.bands) or config.model.n_colours != len(survey.bands):
        raise ConfigError(
            f"model.n_bands and model.n_colours must be {len(survey.bands)}, the number of bands "
            f"in the store"
        )
    min_size = config.model.crop + 2 * config.augment.jitter_pix
    if store.cutout_size < min_size:
        raise ConfigError(
            f"cutouts of {store.cutout_size} px are too small for a crop of "
            f"{config.model.crop} px with a jitter of {config.augment.jitter_pix} px; extract "
            f"with --size {min_size} or more"
        )
    return aperture


def _n_hidden(config: TrainConfig) -> int:
    """Return the number of hidden units of the redshift heads."""
    return config.model.redshift_heads * sum(config.model.redshift_mlp)


def _fit_flux_features(model: PITA, store: CutoutStore, seed: int) -> None:
    """Set the scaling of the features that the heads see, in place, by a sample of the store.

    Raises:
        StoreError: fluxes that the model takes are missing.
    """
    check_measured(model.config.fluxes, store)
    if model.flux_features is None:
        return
    model.flux_features.extinction_r_C.copy_(model.extinction_r_C)
    sample = read_sample(store, model.config.fluxes, seed, label_fraction=0.0)
    try:
        model.flux_features.fit(*sample.tensors())
    except ValueError as error:
        names = " ".join(store.survey.band_names)
        raise StoreError(f"{store.path}: {error} (bands {names}, numbered from 0)") from error


def _take_encoder(model: PITA, initial: Checkpoint, store: CutoutStore) -> None:
    """Take everything from a checkpoint except the redshift heads."""
    initial.check_store(store.survey, store.cutout_size)
    own, initial_weights = (
        {k: v for k, v in pita.state_dict().items() if not k.startswith("redshift_")}
        for pita in (model, initial.pita)
    )
    for name, weights in own.items():
        if name not in initial_weights or initial_weights[name].shape != weights.shape:
            raise CheckpointError(
                f"{initial.path}: '{name}' does not fit the configuration's model; the encoder "
                f"and heads must be those of the run that made it"
            )
    model.load_state_dict(initial_weights, strict=False)


def _seed_of(*numbers: int) -> int:
    """Return a seed for a generator, different for every tuple of numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def _learning_rate(config: OptimiserConfig, step: int, total_steps: int) -> float:
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(total_steps - config.warmup_steps, 1)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
