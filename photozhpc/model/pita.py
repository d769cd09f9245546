"""PITA: Photo-z Inference with a Triple-task Algorithm (arXiv 2602.10207, section 3).

One encoder, three tasks: a projection for the contrastive loss, colours, and the redshift. Beyond
the paper, the heads of the redshift may see the store's forced photometry, and a second expert,
which sees nothing else, may be pooled with them.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photozhpc.model.density import LEVEL_Q, Uncertainty, cumulative, least_risk, pooled
from photozhpc.model.depthwise import quicken
from photozhpc.model.flux_expert import FluxExpert, FluxExpertConfig
from photozhpc.model.flux_features import FluxFeatures
from photozhpc.model.mlp import MLP
from photozhpc.model.pdf import CalibratedPdf
from photozhpc.model.pita_config import RESNET, PITAConfig, PointEstimate
from photozhpc.model.resnet import LaneNorm, ResNet

BRIGHTNESS_RADIUS_PIX = 7.0  # of the circle for the brightness on which the calibration depends


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
        mean_B, mode_B: of the density, see `Calibration`.
        quantile_BQ: redshifts below which the truth lies with probability density.LEVEL_Q.
        ood_B: distance to the training images, 1 = their 99th percentile.
    """

    z_phot_B: Tensor
    mean_B: Tensor
    mode_B: Tensor
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
    def point_estimate(self) -> PointEstimate:
        """What is reported as the redshift: the heads' until the density is fitted."""
        if self.config.redshift_task == "density":
            return self.config.point_estimate
        fitted = self.uncertainty is not None and self.uncertainty.is_fitted
        return self.config.point_estimate if fitted else "heads"

    def estimate_from(
        self,
        feature_BF: Tensor,
        linear_BCHW: Tensor,
        point_estimate: PointEstimate,
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
                return Estimate(self.redshift(input_BF), nan_B, nan_B, nan_BQ, nan_B), None
            density_BK = self.density(input_BF, self.expert_density(fluxes))
            cdf_BE, brightness_B = cumulative(density_BK), self.brightness(linear_BCHW)
            estimate = Estimate(
                self.redshift(input_BF)
                if point_estimate == "heads"
                else self.point(density_BK, cdf_BE, point_estimate),
                self.uncertainty.mean(cdf_BE, brightness_B),
                self.uncertainty.mode(density_BK),
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
        point_estimate: PointEstimate,
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
    from photozhpc.model import timm_convnext  # slow to import

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
