"""The configuration of a training. The defaults are the paper's (arXiv 2602.10207, section 3)."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from photozhpc.config import to_mapping
from photozhpc.model.flux_expert import FluxExpertConfig
from photozhpc.model.pita_config import PITAConfig
from photozhpc.printable import printable

# Settings that do not change what a run computes.
_INCIDENTAL = {"out": "", "store": "", "survey": "", "checkpoint_minutes": 0.0, "device": "auto"}
OTHER_OUT = "choose another 'out', or pass --restart to begin anew"
Method = Literal[
    "pita", "supervised", "self-supervised", "fine-tuned", "photometry", "photometry-mlp"
]


@dataclass(frozen=True)
class AugmentConfig:
    """Random views. See `augment.random_view`.

    Attributes:
        rotation: by any angle (the paper), or by quarter turns, which need no interpolation.
        jitter_pix: largest shift of the centre, pixels, in each direction.
        noise: standard deviation of added Gaussian noise, in units of each band's noise.
        dimming: mean number of magnitudes by which a step makes images and fluxes fainter, see
            `dimming`. It also applies to the networks on fluxes alone.
    """

    rotation: Literal["any", "quarter"] = "any"
    jitter_pix: int = 4
    noise: float = 1.0
    dimming: float = 0.0

    def __post_init__(self) -> None:
        if self.jitter_pix < 0 or not 0 <= self.noise < 1e3 or not 0 <= self.dimming < 10:
            raise ValueError(
                f"augment: jitter_pix and noise must not be negative, and dimming must be 0 to 10 "
                f"mag; got {self.jitter_pix}, {self.noise} and {self.dimming}"
            )


@dataclass(frozen=True)
class LossConfig:
    """Weights and constants of the three losses. A method without a task has weight 0 for it.

    The redshift loss is the Huber loss (the paper), or with model.redshift_task "density" the
    cross-entropy of smoothed labels.

    Attributes:
        contrastive_weight, colour_weight, redshift_weight: weight of each loss in the sum.
        temperature: of the contrastive loss (InfoNCE).
        queue_len: number of keys of earlier images that serve as negatives (MoCo).
        momentum: of the moving average of the weights that computes the keys (MoCo).
        huber_delta: error at which the redshift loss changes from quadratic to linear.
        smoothing: standard deviation in ln(1+z) of the Gaussian by which a label counts in nearby
            bins of the density.
    """

    contrastive_weight: float = 0.0025
    colour_weight: float = 1.0
    redshift_weight: float = 1.0
    temperature: float = 0.1
    queue_len: int = 60_000
    momentum: float = 0.999
    huber_delta: float = 0.15
    smoothing: float = 0.01


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam with decoupled weight decay, linear warm-up, then a cosine down to min_lr.

    Attributes:
        lr: learning rate after the warm-up.
        min_lr: learning rate at the end of the run.
        weight_decay: of all weights, decoupled from the gradient.
        warmup_steps: steps over which the learning rate rises from 0.
        clip_norm: largest norm of the gradient; 0: no limit.
    """

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
        store: folder of the cutout store, or for "photometry" also a photometric catalogue;
            `--store` takes precedence.
        survey: name or YAML file of the survey that says what the catalogue's columns are;
            `--survey` takes precedence. A store has its own.
        method: "pita": contrastive and colour loss on every image, redshift loss on labelled ones;
            "supervised": only the redshift loss, on the labelled images; "self-supervised": only
            the contrastive loss; "fine-tuned": as supervised, from the weights of
            `initial_checkpoint` with new redshift heads; "photometry": without images, from all
            fluxes of a store or a photometric catalogue, see `photometry_fit.train_photometry`;
            "photometry-mlp": the paper's baseline, see `train_photometry.train_photometry_mlp`.
        initial_checkpoint: a self-supervised model file, for "fine-tuned".
        model: the network.
        photometry: the networks of "photometry"; the store gives n_bands and n_apertures.
        point_estimate: of "photometry", see `photometry.PhotometryConfig`.
        augment: random views of the images.
        loss: weights and constants of the losses.
        optimiser: learning rate and its schedule.
        batch_size: sources in a step, over all ranks.
        lanes: streams that an epoch is divided into (see TrainingLoader); a multiple of the number
            of ranks. The result does not depend on the number of ranks.
        shuffle_len: sources that are shuffled together, over all ranks.
        epochs: passes over the store.
        seed: random seed of weights, order and views.
        label_repeat: how often each labelled source is used in an epoch (see TrainingLoader).
        label_fraction: fraction of the training labels to use.
        labels: "train": those of the training split; "all": those of every split, so that none is
            left to choose the best epoch (the last is kept), or to calibrate: intervals and p(z)
            come from `photozhpc calibrate` with the labels of another store.
        refit_steps: steps at the end that train only the redshift heads, on the features of the
            finished encoder (see `refit.refit_redshift_heads`).
        density_steps: the same for the density heads (with model.density_bins; see
            `calibrate.fit_uncertainty`), or 0 to keep those that trained jointly (redshift_task
            "density"); for "photometry", steps of each network.
        expert_steps: steps of each network of the second expert (model.fluxes.expert_networks).
        feature_aperture_arcsec: radius of the aperture whose fluxes the colour loss and the
            photometry-MLP use.
        average_weights: save the moving average of the weights (KeyEncoder.model) in checkpoints.
        checkpoint_minutes: longest time between saves of the state within an epoch.
        device: "auto": a GPU if there is one.
        precision: of the encoder; "auto": bfloat16 if the device supports it natively.
        compile: compile the encoder with torch.compile.
    """

    out: str
    store: str = ""
    survey: str = ""
    method: Method = "pita"
    initial_checkpoint: str = ""
    model: PITAConfig = field(default_factory=PITAConfig)
    photometry: FluxExpertConfig = field(default_factory=FluxExpertConfig)
    point_estimate: Literal["median", "least_risk"] = "least_risk"
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    batch_size: int = 256
    lanes: int = 8
    shuffle_len: int = 8192
    epochs: int = 100
    seed: int = 0
    label_repeat: int = 1
    label_fraction: float = 1.0
    labels: Literal["train", "all"] = "train"
    refit_steps: int = 0
    density_steps: int = 2000
    expert_steps: int = 1000
    feature_aperture_arcsec: float = 0.4
    average_weights: bool = True
    checkpoint_minutes: float = 10.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "lanes", "shuffle_len", "epochs", "label_repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "refit_steps", "density_steps", "expert_steps", "checkpoint_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.batch_size % self.lanes:
            raise ValueError(
                f"batch_size must be a multiple of lanes, got {self.batch_size} and {self.lanes}"
            )
        if not 0 < self.label_fraction <= 1:
            raise ValueError(
                f"label_fraction must be above 0 and at most 1, got {self.label_fraction}"
            )
        if self.refit_steps and (self.model.redshift_task == "density" or self.labels == "all"):
            raise ValueError(
                "refit_steps needs redshift_task 'point', which has heads to refit, and labels "
                "'train', which leaves some to check them: set refit_steps to 0"
            )
        if (
            self.labels == "all"
            and self.model.density_bins
            and (self.model.redshift_task == "point" or self.density_steps)
        ):
            raise ValueError(
                "labels 'all' leaves none to stop the density heads: it needs redshift_task "
                "'density' and density_steps 0"
            )
        if not 0 < self.loss.smoothing < 1:
            raise ValueError(
                f"loss.smoothing must be above 0 and below 1, got {self.loss.smoothing}"
            )
        if self.loss.queue_len < 1:
            raise ValueError(f"loss.queue_len must be at least 1, got {self.loss.queue_len}")
        if self.method == "photometry" and self.photometry.networks < 2:
            raise ValueError(
                "photometry.networks must be 2 or more: each is calibrated on labels that only the "
                "others have seen"
            )
        if (self.method == "fine-tuned") != bool(self.initial_checkpoint):
            raise ValueError(
                "initial_checkpoint is required by method 'fine-tuned' and allowed by no other"
            )

    def identity(self) -> str:
        """Return the settings that make two runs the same run, as text."""
        return json.dumps(to_mapping(replace(self, **_INCIDENTAL)))  # type: ignore[arg-type]

    def noted(self) -> dict[str, Any]:
        """Return the configuration for a model file, without passwords in the store's URL."""
        return {**to_mapping(self), "store": printable(self.store)}

    @property
    def labelled_only(self) -> bool:
        return self.method in ("supervised", "fine-tuned") or self.without_images

    @property
    def without_images(self) -> bool:
        return self.method in ("photometry", "photometry-mlp")

    @property
    def contrastive_weight(self) -> float:
        return 0.0 if self.labelled_only else self.loss.contrastive_weight

    @property
    def colour_weight(self) -> float:
        return self.loss.colour_weight if self.method == "pita" else 0.0

    @property
    def redshift_weight(self) -> float:
        return 0.0 if self.method == "self-supervised" else self.loss.redshift_weight
