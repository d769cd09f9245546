"""PITA: Photo-z Inference with a Triple-task Algorithm (arXiv 2602.10207, section 3).

One encoder, three tasks: a projection for the contrastive loss, colours, and the redshift. Beyond
the paper, the heads of the redshift may see the store's forced photometry, and a second expert,
which sees nothing else, may be pooled with them.
"""

import copy
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photozhpc.model import timm_convnext
from photozhpc.model.density import LEVEL_Q, Uncertainty, cumulative, least_risk, pooled
from photozhpc.model.depthwise import quicken
from photozhpc.model.flux_expert import FluxExpert, FluxExpertConfig
from photozhpc.model.flux_features import FluxFeatures
from photozhpc.model.mlp import MLP
from photozhpc.model.pdf import CalibratedPdf
from photozhpc.model.resnet import LaneNorm, ResNet

MAX_WIDTH, MAX_LAYERS = 8192, 64  # larger values are typos, or from a damaged file
MIN_CROP_CONVNEXT = 32  # smaller maps vanish in its four stages
RESNET = "resnet"
BRIGHTNESS_RADIUS_PIX = 7.0  # of the circle for the brightness on which the calibration depends


@dataclass(frozen=True)
class FluxesConfig:
    """What PITA takes of the store's forced photometry; by default (the paper) nothing.

    Attributes:
        aperture_radii_arcsec: of the circles whose fluxes and errors it takes.
        total: whether it takes Kron fluxes too.
        seen_by_heads: the redshift heads see `FluxFeatures` of them as well as the latent.
        expert_networks: networks of a second expert, a `FluxExpert`, whose density is pooled with
            that of the heads; 0: none.
        expert_mlp: widths of the hidden layers of each.
    """

    aperture_radii_arcsec: tuple[float, ...] = ()
    total: bool = False
    seen_by_heads: bool = False
    expert_networks: int = 0
    expert_mlp: tuple[int, ...] = (128, 128, 128)

    def __post_init__(self) -> None:
        if len(self.aperture_radii_arcsec) > MAX_LAYERS:
            raise ValueError(f"fluxes.aperture_radii_arcsec must have at most {MAX_LAYERS} radii")
        if (self.seen_by_heads or self.expert_networks) != bool(self.n_apertures):
            raise ValueError(
                "fluxes must be named (aperture_radii_arcsec or total) if and only if something "
                "takes them (seen_by_heads or expert_networks)"
            )

    @property
    def n_apertures(self) -> int:
        """The number of fluxes a band; Kron counts as an aperture."""
        return len(self.aperture_radii_arcsec) + self.total


@dataclass(frozen=True)
class PITAConfig:
    """Shape of the network. The defaults are the paper's.

    Attributes:
        n_bands: channels of the images, C.
        encoder: a ConvNeXt of timm, or "resnet" (model/resnet.py).
        encoder_widths: channels of the stages of "resnet".
        encoder_out: width of a linear layer after the encoder's last map (the paper keeps the
            1000 outputs of the ImageNet head); 0: its features themselves.
        encoder_mlp, projection_mlp, redshift_mlp, colour_mlp: widths of the linear layers.
            The last is the output (D, P); for redshift and colours an output layer (1, M) follows.
        n_colours: M, what the colour loss compares: colours of neighbouring bands and a log10 flux.
        layer_scale: initial scale of every residual branch.
        drop_path: probability of skipping a residual branch in training.
        dropout: share of the hidden units of the density heads that a joint training step sees
            as zero.
        crop: side of the image that the network sees, pixels.
        stretch: "none": pixels in units of the noise; "asinh": asinh of that, which is linear
            in the noise and logarithmic in bright cores.
        aperture_radii_pix: radii of circles around the centre whose fluxes go to the encoder's
            MLP along with the pooled features; empty (the paper): none.
        redshift_heads: the redshift is the mean of this many heads.
        redshift_sees_apertures: the redshift heads see the colours of the aperture fluxes as well
            as the latent.
        redshift_scale: what the redshift head estimates: "z" (the paper) or "log1p", ln(1+z).
        redshift_task: what the redshift heads of the joint training estimate: a "point" (the
            paper), or the "density", and then there are no other heads.
        density_bins: bins of the redshift's density, equally wide in ln(1+z), which give the
            intervals; as many heads as redshift_heads, with the widths of redshift_mlp. 0 (the
            paper): no intervals and no score of unusual images.
        density_z_max: upper end of the last bin; labels beyond it count as at it.
        point_estimate: what is reported as the redshift: "heads", the mean of the redshift heads
            (the paper), "median", the median of the density, or "least_risk", see
            `density.least_risk`.
        fluxes: what it takes of the store's forced photometry.
    """

    n_bands: int = 4
    encoder: str = "convnext_tiny"
    encoder_widths: tuple[int, ...] = (24, 48, 96)
    encoder_out: int = 1000
    encoder_mlp: tuple[int, ...] = (512, 128)
    projection_mlp: tuple[int, ...] = (128, 64)
    redshift_mlp: tuple[int, ...] = (128, 128, 128, 128, 128, 64)
    colour_mlp: tuple[int, ...] = (128, 128, 128, 128, 128, 64)
    n_colours: int = 4
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    dropout: float = 0.0
    crop: int = 64
    stretch: Literal["none", "asinh"] = "none"
    aperture_radii_pix: tuple[float, ...] = ()
    redshift_heads: int = 1
    redshift_sees_apertures: bool = False
    redshift_scale: Literal["z", "log1p"] = "z"
    redshift_task: Literal["point", "density"] = "point"
    density_bins: int = 0
    density_z_max: float = 4.0
    point_estimate: Literal["heads", "median", "least_risk"] = "heads"
    fluxes: FluxesConfig = field(default_factory=FluxesConfig)

    def __post_init__(self) -> None:
        if self.point_estimate != "heads" and not self.density_bins:
            raise ValueError(f"point_estimate '{self.point_estimate}' needs density_bins above 0")
        if self.redshift_task == "density" and self.point_estimate == "heads":
            raise ValueError(
                "redshift_task 'density' needs point_estimate 'median' or 'least_risk'"
            )
        if self.fluxes.expert_networks and not self.density_bins:
            raise ValueError("fluxes.expert_networks needs density_bins above 0")
        min_crop = MIN_CROP_CONVNEXT
        if self.encoder == RESNET:
            min_crop = 2 ** len(self.encoder_widths)
            if not 1 <= len(self.encoder_widths) <= 6 or not all(
                0 < width <= MAX_WIDTH for width in self.encoder_widths
            ):
                raise ValueError(f"encoder_widths must be 1 to 6 widths from 1 to {MAX_WIDTH}")
        elif not self.encoder.startswith("convnext") or not timm_convnext.is_model(self.encoder):
            names = ", ".join(timm_convnext.list_models("convnext_*")[:8])
            raise ValueError(
                f"encoder must be {RESNET} or a ConvNeXt of timm ({names}...), got {self.encoder}"
            )
        if self.crop < min_crop:
            raise ValueError(f"crop must be at least {min_crop}, got {self.crop}")
        if self.dropout and self.redshift_task == "point":
            raise ValueError("dropout needs redshift_task 'density'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, got {self.dropout}")
        if self.n_bands < 1:
            raise ValueError(f"n_bands must be at least 1, got {self.n_bands}")
        if not self.encoder_mlp or not self.projection_mlp:
            raise ValueError("encoder_mlp and projection_mlp need at least one layer")
        if not 1 <= self.redshift_heads <= 64:
            raise ValueError(f"redshift_heads must be 1 to 64, got {self.redshift_heads}")
        if self.redshift_sees_apertures and not self.aperture_radii_pix:
            raise ValueError("redshift_sees_apertures needs aperture_radii_pix")
        if not (self.density_bins == 0 or 2 <= self.density_bins <= MAX_WIDTH):
            raise ValueError(
                f"density_bins must be 0, or 2 to {MAX_WIDTH}, got {self.density_bins}"
            )
        if not 0 < self.density_z_max <= 100:
            raise ValueError(
                f"density_z_max must be above 0 and at most 100, got {self.density_z_max}"
            )
        for name in ("encoder_mlp", "projection_mlp", "redshift_mlp", "colour_mlp"):
            if not all(0 < width <= MAX_WIDTH for width in getattr(self, name)):
                raise ValueError(f"{name} must have widths from 1 to {MAX_WIDTH}")
            if len(getattr(self, name)) > MAX_LAYERS:
                raise ValueError(f"{name} must have at most {MAX_LAYERS} widths")
        if len(self.aperture_radii_pix) > MAX_LAYERS:
            raise ValueError(f"aperture_radii_pix must have at most {MAX_LAYERS} radii")
        if not 0 <= self.encoder_out <= MAX_WIDTH or self.crop > MAX_WIDTH:
            raise ValueError(f"encoder_out and crop must not exceed {MAX_WIDTH}")


class PITAOutput(NamedTuple):
    """The outputs of PITA for B images.

    Attributes:
        projection_BP: of the latent, unit length.
        z_phot_B: of the redshift heads; 0 with redshift_task "density".
        colour_BM: log10 flux ratios of neighbouring bands, then one log10 flux.
        logit_BHK: of the bins, of each head; no bins with redshift_task "point".
    """

    latent_BD: Tensor
    projection_BP: Tensor
    z_phot_B: Tensor
    colour_BM: Tensor
    logit_BHK: Tensor


class Fluxes(NamedTuple):
    """Forced photometry of B sources, as `FluxesConfig` asks for it.

    Attributes:
        flux_BCR, flux_err_BCR: nJy; not finite where not measured.
        ebv_B: Galactic E(B-V), magnitudes.
    """

    flux_BCR: Tensor
    flux_err_BCR: Tensor
    ebv_B: Tensor


class Estimate(NamedTuple):
    """The results of inference for B images; NaN where the model does not give them.

    Attributes:
        quantile_BQ: redshifts below which the truth lies with probability density.LEVEL_Q.
        ood_B: distance to the training images, 1 = their 99th percentile.
    """

    z_phot_B: Tensor
    quantile_BQ: Tensor
    ood_B: Tensor


class PITA(nn.Module):
    """The encoder and its three heads; with density_bins, an `Uncertainty` beside them.

    `extinction_r_C` and `noise_C` (see model/augment.py) are kept with the weights: the network
    cannot interpret an image without them.
    """

    extinction_r_C: Tensor
    noise_C: Tensor
    aperture_RHW: Tensor
    brightness_RHW: Tensor
    redshift_mean_F: Tensor
    redshift_std_F: Tensor
    expert_share: Tensor

    def __init__(self, config: PITAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _make_encoder(config)
        width = config.encoder_out or int(self.encoder.num_features)  # type: ignore[arg-type]
        n_latent = config.encoder_mlp[-1]
        n_signals = config.n_bands * len(config.aperture_radii_pix)
        self.encoder_mlp = MLP(width + n_signals, config.encoder_mlp)
        self.aperture_skip = nn.Linear(n_signals, n_latent) if n_signals else None
        self.projection_mlp = MLP(n_latent, config.projection_mlp)
        n_redshift = n_latent + (n_signals if config.redshift_sees_apertures else 0)
        self.flux_features: FluxFeatures | None = None
        if config.fluxes.seen_by_heads:
            self.flux_features = FluxFeatures(config.n_bands, config.fluxes.n_apertures)
            n_redshift += self.flux_features.n_features
        self.redshift_mlp = nn.ModuleList(
            MLP(n_redshift, (*config.redshift_mlp, 1))
            for _ in range(config.redshift_heads if config.redshift_task == "point" else 0)
        )
        self.register_buffer("redshift_mean_F", torch.zeros(n_redshift))
        self.register_buffer("redshift_std_F", torch.ones(n_redshift))
        self.colour_mlp = MLP(n_latent, (*config.colour_mlp, config.n_colours))
        self.register_buffer("extinction_r_C", torch.zeros(config.n_bands))
        self.register_buffer("noise_C", torch.ones(config.n_bands))
        self.register_buffer(
            "aperture_RHW", _soft_circles(config.aperture_radii_pix, config.crop), persistent=False
        )
        self.uncertainty: Uncertainty | None = None
        if config.density_bins:
            self.uncertainty = Uncertainty(
                n_redshift,
                n_latent,
                config.redshift_mlp,
                config.redshift_heads,
                config.density_bins,
                config.density_z_max,
            )
            self.register_buffer(
                "brightness_RHW",
                _soft_circles((BRIGHTNESS_RADIUS_PIX,), config.crop),
                persistent=False,
            )

        self.expert: FluxExpert | None = None
        if config.fluxes.expert_networks:
            self.expert = FluxExpert(
                FluxExpertConfig(
                    n_bands=config.n_bands,
                    n_apertures=config.fluxes.n_apertures,
                    widths=config.fluxes.expert_mlp,
                    networks=config.fluxes.expert_networks,
                    bins=config.density_bins,
                    z_max=config.density_z_max,
                )
            )
            self.register_buffer("expert_share", torch.zeros(()))

    def forward(
        self, image_BCHW: Tensor, flux_BF: Tensor | None = None, keep_BU: Tensor | None = None
    ) -> PITAOutput:
        """Return latents, projections, redshifts and colours of prepared images.

        Args:
            image_BCHW: from `augment.prepare` or a random view, H = W = config.crop.
            flux_BF: features of the fluxes that the heads see; None: they see none.
            keep_BU: as in `Uncertainty.logits`.
        """
        latent_BD, signal_BA = self.features(image_BCHW)
        with torch.autocast(image_BCHW.device.type, enabled=False):
            input_BF = self.redshift_input(latent_BD, signal_BA, flux_BF)
            z_phot_B, logit_BHK = latent_BD.new_zeros(len(latent_BD)), latent_BD[:, :0, None]
            if self.config.redshift_task == "point":
                z_phot_B = self.redshift(input_BF)
            elif self.uncertainty is not None:
                logit_BHK = self.uncertainty.logits(input_BF, keep_BU)
            return PITAOutput(
                latent_BD=latent_BD,
                projection_BP=self.project(latent_BD),
                z_phot_B=z_phot_B,
                colour_BM=self.colour_mlp(latent_BD),
                logit_BHK=logit_BHK,
            )

    def estimate(self, image_BCHW: Tensor, fluxes: Fluxes | None = None) -> Estimate:
        """Return redshifts, their quantiles and the score of unusual images."""
        feature_BF, linear_BCHW = self.encoder(image_BCHW), self.unstretch(image_BCHW)
        return self.estimate_from(feature_BF, linear_BCHW, self.point_estimate, fluxes)[0]

    @property
    def point_estimate(self) -> Literal["heads", "median", "least_risk"]:
        """What is reported as the redshift: the heads' until the density is fitted."""
        if self.config.redshift_task == "density":
            return self.config.point_estimate
        fitted = self.uncertainty is not None and self.uncertainty.is_fitted
        return self.config.point_estimate if fitted else "heads"

    def estimate_from(
        self,
        feature_BF: Tensor,
        linear_BCHW: Tensor,
        point_estimate: Literal["heads", "median", "least_risk"],
        fluxes: Fluxes | None = None,
        pdf: CalibratedPdf | None = None,
    ) -> tuple[Estimate, Tensor | None]:
        """Return what `estimate` does, and p(z), from the encoder's output and unstretched images.

        Args:
            pdf: turns the density into pdf_BP; None: no p(z).
        """
        with torch.autocast(feature_BF.device.type, enabled=False):
            latent_BD, signal_BA = self.latent(feature_BF, linear_BCHW)
            input_BF = self.redshift_input(latent_BD, signal_BA, self.flux_input(fluxes))
            if self.uncertainty is None:
                nan_B = torch.full_like(latent_BD[:, 0], torch.nan)
                nan_BQ = nan_B[:, None].expand(-1, len(LEVEL_Q))
                return Estimate(self.redshift(input_BF), nan_BQ, nan_B), None
            density_BK = self.density(input_BF, self.expert_density(fluxes))
            cdf_BE, brightness_B = cumulative(density_BK), self.brightness(linear_BCHW)
            estimate = Estimate(
                self.redshift(input_BF)
                if point_estimate == "heads"
                else self.point(density_BK, cdf_BE, point_estimate),
                self.uncertainty.quantiles(cdf_BE, brightness_B),
                self.uncertainty.ood(latent_BD),
            )
            return estimate, None if pdf is None else pdf(cdf_BE, brightness_B)

    def density(self, input_BF: Tensor, expert_BK: Tensor | None = None) -> Tensor:
        """Return density_BK, the probabilities of the bins, pooled with those of the expert."""
        assert self.uncertainty is not None
        density_BK = self.uncertainty.density(input_BF)
        if expert_BK is None:
            return density_BK
        return pooled(density_BK, expert_BK, self.expert_share)

    def point(
        self,
        density_BK: Tensor,
        cdf_BE: Tensor,
        point_estimate: Literal["heads", "median", "least_risk"],
    ) -> Tensor:
        """Return z_phot_B of a density."""
        assert self.uncertainty is not None
        if point_estimate == "median":
            return self.uncertainty.median(cdf_BE)
        return least_risk(density_BK, self.config.density_z_max)

    def flux_input(self, fluxes: Fluxes | None) -> Tensor | None:
        """Return flux_BF that the heads see; None: they see none."""
        if self.flux_features is None or fluxes is None:
            return None
        return self.flux_features(*fluxes)

    def expert_density(self, fluxes: Fluxes | None) -> Tensor | None:
        """Return density_BK of the expert; None: there is none."""
        return None if self.expert is None or fluxes is None else self.expert(*fluxes)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Return latent_BD of prepared images."""
        return self.features(image_BCHW)[0]

    def features(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent_BD and the aperture signals (B, A) of prepared images; A may be 0."""
        feature_BF = self.encoder(image_BCHW)
        # The rest in float32: a percent of flux is a percent of redshift, and the cost is small.
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return self.latent(feature_BF, self.unstretch(image_BCHW))

    def latent(self, feature_BF: Tensor, linear_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `features` does, from the encoder's output and images before the stretch."""
        signal_BA = self.aperture_signal(linear_BCHW)
        latent_BD = self.encoder_mlp(torch.cat([feature_BF.float(), signal_BA], dim=1))
        if self.aperture_skip is not None:
            latent_BD = latent_BD + self.aperture_skip(signal_BA)
        return latent_BD, signal_BA

    def project(self, latent_BD: Tensor) -> Tensor:
        """Return projection_BP, unit length."""
        with torch.autocast(latent_BD.device.type, enabled=False):
            return F.normalize(self.projection_mlp(latent_BD), dim=1)

    def redshift_input(
        self, latent_BD: Tensor, signal_BA: Tensor, flux_BF: Tensor | None = None
    ) -> Tensor:
        """Return the input of the redshift heads: latents, and what they see of the photometry.

        Args:
            signal_BA: of the image's own apertures.
            flux_BF: from `flux_input`.
        """
        parts = [latent_BD]
        if self.config.redshift_task == "density":  # heads that train jointly need a common scale
            parts = [F.layer_norm(latent_BD, latent_BD.shape[1:])]
        if self.config.redshift_sees_apertures:
            signal_BCR = signal_BA.unflatten(1, (self.config.n_bands, -1))
            ratio_BCR = signal_BCR[:, :-1] - signal_BCR[:, 1:]
            parts.append(torch.cat([ratio_BCR, signal_BCR[:, -1:]], dim=1).flatten(1))
        if flux_BF is not None:
            parts.append(flux_BF)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def redshift(self, input_BF: Tensor) -> Tensor:
        """Return z_phot_B, the mean of the heads, from `redshift_input`."""
        scaled_BF = (input_BF - self.redshift_mean_F) / self.redshift_std_F
        redshift_B = torch.stack([head(scaled_BF) for head in self.redshift_mlp]).mean(0).squeeze(1)
        return torch.expm1(redshift_B) if self.config.redshift_scale == "log1p" else redshift_B

    def unstretch(self, image_BCHW: Tensor) -> Tensor:
        """Return prepared images in units of the noise."""
        return torch.sinh(image_BCHW.float()) if self.config.stretch == "asinh" else image_BCHW

    def aperture_signal(self, linear_BCHW: Tensor) -> Tensor:
        """Return asinh of the signal-to-noise ratio in circles round the centre, (B, C*R).

        A ConvNeXt's LayerNorm divides brightness out, and pooling mixes the source with its
        neighbours; these few numbers hand the network the photometry that its pixels hold. They
        are shifted and scaled by constants to be of order one for sources worth measuring.
        """
        if self.aperture_skip is None:
            return linear_BCHW.new_zeros(len(linear_BCHW), 0, dtype=torch.float32)
        return (_asinh_snr(linear_BCHW, self.aperture_RHW).flatten(1) - 4) / 2

    def brightness(self, linear_BCHW: Tensor) -> Tensor:
        """Return brightness_B: asinh of the last band's signal-to-noise ratio in one circle."""
        return _asinh_snr(linear_BCHW[:, -1:], self.brightness_RHW).flatten()


def _asinh_snr(linear_BCHW: Tensor, weight_RHW: Tensor) -> Tensor:
    flux_BCR = torch.einsum("bchw,rhw->bcr", linear_BCHW.float(), weight_RHW)
    noise_R = weight_RHW.square().sum(dim=(1, 2)).sqrt()
    return torch.asinh(flux_BCR / noise_R)


def statistics(model: PITA) -> list[Tensor]:
    """Return the running statistics of the encoder's batch norms; empty without any."""
    norms = [module for module in model.modules() if isinstance(module, LaneNorm)]
    return [values for norm in norms for values in (norm.running_mean, norm.running_var)]


class KeyEncoder(nn.Module):
    """The momentum copy of PITA that makes the keys, and the queue of past keys (MoCo).

    He et al. 2020 (arXiv 1911.05722), as in the paper, section 3.2. The copy includes the heads,
    so it is also the moving average of the weights that inference uses.
    """

    queue_KP: Tensor
    pointer: Tensor

    def __init__(self, model: PITA, queue_len: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer(
            "queue_KP", F.normalize(torch.randn(queue_len, model.config.projection_mlp[-1]), dim=1)
        )
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return key_BP, unit length."""
        return self.model.project(self.model.encode(image_BCHW))

    @torch.no_grad()
    def update(self, model: PITA, momentum: float | None = None) -> None:
        """Move the copy towards the model: theta_k = m theta_k + (1 - m) theta_q."""
        m = self.momentum if momentum is None else momentum
        pairs = zip(self.model.parameters(), model.parameters(), strict=True)
        trained = [(key, query) for key, query in pairs if query.requires_grad]
        keys, queries = map(list, zip(*trained, strict=True))
        torch._foreach_mul_(keys, m)
        torch._foreach_add_(keys, queries, alpha=1 - m)
        for key, query in zip(statistics(self.model), statistics(model), strict=True):
            key.lerp_(query, 1 - m)

    @torch.no_grad()
    def enqueue(self, key_BP: Tensor) -> None:
        """Replace the oldest keys. Call it after the loss: otherwise a key would also be a
        negative of its own query."""
        n_queue = len(self.queue_KP)
        key_BP = key_BP[-n_queue:].to(self.queue_KP.dtype)
        slot_B = (self.pointer + torch.arange(len(key_BP), device=key_BP.device)) % n_queue
        self.queue_KP[slot_B] = key_BP
        self.pointer.copy_((self.pointer + len(key_BP)) % n_queue)


def _make_encoder(config: PITAConfig) -> nn.Module:
    if config.encoder == RESNET:
        return ResNet(config.n_bands, config.encoder_widths, config.crop, config.encoder_out)
    encoder = timm_convnext.create_model(
        config.encoder,
        pretrained=False,
        in_chans=config.n_bands,
        num_classes=config.encoder_out,
        ls_init_value=config.layer_scale,
        drop_path_rate=config.drop_path,
    )
    quicken(encoder)
    return encoder


def _soft_circles(radii_pix: tuple[float, ...], crop: int) -> Tensor:
    """Return weight_RHW: circles with a rim one pixel wide around the pixel (crop//2, crop//2).

    They are on the CPU even for a model on the device "meta", because no file contains them.
    """
    offset_S = torch.arange(crop, device="cpu") - crop // 2
    distance_HW = torch.hypot(offset_S[:, None].float(), offset_S[None, :].float())
    circles = [torch.clamp(radius + 0.5 - distance_HW, 0, 1) for radius in radii_pix]
    return torch.stack(circles) if circles else torch.empty(0, crop, crop, device="cpu")
