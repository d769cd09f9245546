"""PITA: Photo-z Inference with a Triple-task Algorithm (arXiv 2602.10207, section 3).

One encoder, three tasks: a projection for the contrastive loss, colours, and the redshift.
"""

import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photozhpc.model import timm_convnext
from photozhpc.model.density import LEVEL_Q, Uncertainty
from photozhpc.model.depthwise import quicken
from photozhpc.model.mlp import MLP
from photozhpc.model.pdf import CalibratedPdf

MAX_WIDTH, MAX_LAYERS = 8192, 64  # larger values are typos, or from a damaged file
BRIGHTNESS_RADIUS_PIX = 7.0  # of the circle for the brightness on which the calibration depends


@dataclass(frozen=True)
class PITAConfig:
    """Shape of the network. The defaults are the paper's.

    Attributes:
        n_bands: channels of the images, C.
        encoder: a ConvNeXt of timm.
        encoder_out: width of a linear layer after the encoder's pooling (the paper keeps the
            1000 outputs of the ImageNet head); 0: the pooled features themselves.
        encoder_mlp, projection_mlp, redshift_mlp, colour_mlp: widths of the linear layers.
            The last is the output (D, P); for redshift and colours an output layer (1, M) follows.
        n_colours: M, what the colour loss compares: colours of neighbouring bands and a log10 flux.
        layer_scale: initial scale of every residual branch.
        drop_path: probability of skipping a residual branch in training.
        crop: side of the image that the network sees, pixels.
        stretch: "none": pixels in units of the noise; "asinh": asinh of that, which is linear
            in the noise and logarithmic in bright cores.
        aperture_radii_pix: radii of circles around the centre whose fluxes go to the encoder's
            MLP along with the pooled features; empty (the paper): none.
        redshift_heads: the redshift is the mean of this many heads.
        redshift_sees_apertures: the redshift heads see the colours of the aperture fluxes as well
            as the latent.
        redshift_scale: what the redshift head estimates: "z" (the paper) or "log1p", ln(1+z).
        density_bins: bins of the redshift's density, equally wide in ln(1+z), which give the
            intervals; as many heads as redshift_heads, with the widths of redshift_mlp. 0 (the
            paper): no intervals and no score of unusual images.
        density_z_max: upper end of the last bin; labels beyond it count as at it.
        point_estimate: what is reported as the redshift: "heads", the mean of the redshift heads
            (the paper), or "median", the median of the density.
    """

    n_bands: int = 4
    encoder: str = "convnext_tiny"
    encoder_out: int = 1000
    encoder_mlp: tuple[int, ...] = (512, 128)
    projection_mlp: tuple[int, ...] = (128, 64)
    redshift_mlp: tuple[int, ...] = (128, 128, 128, 128, 128, 64)
    colour_mlp: tuple[int, ...] = (128, 128, 128, 128, 128, 64)
    n_colours: int = 4
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    crop: int = 64
    stretch: Literal["none", "asinh"] = "none"
    aperture_radii_pix: tuple[float, ...] = ()
    redshift_heads: int = 1
    redshift_sees_apertures: bool = False
    redshift_scale: Literal["z", "log1p"] = "z"
    density_bins: int = 0
    density_z_max: float = 4.0
    point_estimate: Literal["heads", "median"] = "heads"

    def __post_init__(self) -> None:
        if self.point_estimate == "median" and not self.density_bins:
            raise ValueError("point_estimate 'median' needs density_bins above 0")
        if not self.encoder.startswith("convnext") or not timm_convnext.is_model(self.encoder):
            names = ", ".join(timm_convnext.list_models("convnext_*")[:8])
            raise ValueError(f"encoder must be a ConvNeXt of timm ({names}...), got {self.encoder}")
        if self.crop < 32:
            raise ValueError(f"crop must be at least 32, got {self.crop}")
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
        colour_BM: log10 flux ratios of neighbouring bands, then one log10 flux.
    """

    latent_BD: Tensor
    projection_BP: Tensor
    z_phot_B: Tensor
    colour_BM: Tensor


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

    def __init__(self, config: PITAConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = timm_convnext.create_model(
            config.encoder,
            pretrained=False,
            in_chans=config.n_bands,
            num_classes=config.encoder_out,
            ls_init_value=config.layer_scale,
            drop_path_rate=config.drop_path,
        )
        quicken(self.encoder)
        width = config.encoder_out or int(self.encoder.num_features)
        n_latent = config.encoder_mlp[-1]
        n_signals = config.n_bands * len(config.aperture_radii_pix)
        self.encoder_mlp = MLP(width + n_signals, config.encoder_mlp)
        self.aperture_skip = nn.Linear(n_signals, n_latent) if n_signals else None
        self.projection_mlp = MLP(n_latent, config.projection_mlp)
        n_redshift = n_latent + (n_signals if config.redshift_sees_apertures else 0)
        self.redshift_mlp = nn.ModuleList(
            MLP(n_redshift, (*config.redshift_mlp, 1)) for _ in range(config.redshift_heads)
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

    def forward(self, image_BCHW: Tensor) -> PITAOutput:
        """Return latents, projections, redshifts and colours of prepared images.

        Args:
            image_BCHW: from `augment.prepare` or a random view, H = W = config.crop.
        """
        latent_BD, signal_BA = self.features(image_BCHW)
        with torch.autocast(image_BCHW.device.type, enabled=False):
            return PITAOutput(
                latent_BD=latent_BD,
                projection_BP=self.project(latent_BD),
                z_phot_B=self.redshift(self.redshift_input(latent_BD, signal_BA)),
                colour_BM=self.colour_mlp(latent_BD),
            )

    def estimate(self, image_BCHW: Tensor) -> Estimate:
        """Return redshifts, their quantiles and the score of unusual images."""
        feature_BF, linear_BCHW = self.encoder(image_BCHW), self.unstretch(image_BCHW)
        return self.estimate_from(feature_BF, linear_BCHW, self.reports_median)[0]

    @property
    def reports_median(self) -> bool:
        """Whether the redshift is the median of the density instead of the mean of the heads."""
        fitted = self.uncertainty is not None and self.uncertainty.is_fitted
        return fitted and self.config.point_estimate == "median"

    def estimate_from(
        self,
        feature_BF: Tensor,
        linear_BCHW: Tensor,
        reports_median: bool,
        pdf: CalibratedPdf | None = None,
    ) -> tuple[Estimate, Tensor | None]:
        """Return what `estimate` does, and p(z), from the encoder's output and unstretched images.

        Args:
            pdf: turns the density into pdf_BP; None: no p(z).
        """
        with torch.autocast(feature_BF.device.type, enabled=False):
            latent_BD, signal_BA = self.latent(feature_BF, linear_BCHW)
            input_BF = self.redshift_input(latent_BD, signal_BA)
            if self.uncertainty is None:
                nan_B = torch.full_like(latent_BD[:, 0], torch.nan)
                nan_BQ = nan_B[:, None].expand(-1, len(LEVEL_Q))
                return Estimate(self.redshift(input_BF), nan_BQ, nan_B), None
            cdf_BE, brightness_B = self.uncertainty.cdf(input_BF), self.brightness(linear_BCHW)
            estimate = Estimate(
                self.uncertainty.median(cdf_BE) if reports_median else self.redshift(input_BF),
                self.uncertainty.quantiles(cdf_BE, brightness_B),
                self.uncertainty.ood(latent_BD),
            )
            return estimate, None if pdf is None else pdf(cdf_BE, brightness_B)

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

    def redshift_input(self, latent_BD: Tensor, signal_BA: Tensor) -> Tensor:
        """Return the input of the redshift heads: latents, and the colours of the apertures."""
        if not self.config.redshift_sees_apertures:
            return latent_BD
        signal_BCR = signal_BA.unflatten(1, (self.config.n_bands, -1))
        colour_BCR = torch.cat([signal_BCR[:, :-1] - signal_BCR[:, 1:], signal_BCR[:, -1:]], dim=1)
        return torch.cat([latent_BD, colour_BCR.flatten(1)], dim=1)

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

    @torch.no_grad()
    def enqueue(self, key_BP: Tensor) -> None:
        """Replace the oldest keys. Call it after the loss: otherwise a key would also be a
        negative of its own query."""
        n_queue = len(self.queue_KP)
        key_BP = key_BP[-n_queue:].to(self.queue_KP.dtype)
        slot_B = (self.pointer + torch.arange(len(key_BP), device=key_BP.device)) % n_queue
        self.queue_KP[slot_B] = key_BP
        self.pointer.copy_((self.pointer + len(key_BP)) % n_queue)


def _soft_circles(radii_pix: tuple[float, ...], crop: int) -> Tensor:
    """Return weight_RHW: circles with a rim one pixel wide around the pixel (crop//2, crop//2).

    They are on the CPU even for a model on the device "meta", because no file contains them.
    """
    offset_S = torch.arange(crop, device="cpu") - crop // 2
    distance_HW = torch.hypot(offset_S[:, None].float(), offset_S[None, :].float())
    circles = [torch.clamp(radius + 0.5 - distance_HW, 0, 1) for radius in radii_pix]
    return torch.stack(circles) if circles else torch.empty(0, crop, crop, device="cpu")
