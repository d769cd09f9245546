"""The shape of PITA's network, and what it takes of the store."""

from dataclasses import dataclass, field
from typing import Literal

MAX_WIDTH, MAX_LAYERS = 8192, 64  # larger values are typos, or from a damaged file
MIN_CROP_CONVNEXT = 32  # smaller maps vanish in its four stages
RESNET = "resnet"
PointEstimate = Literal["heads", "median", "least_risk"]


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
    expert_mlp: tuple[int, ...] = (128,) * 5

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
    point_estimate: PointEstimate = "heads"
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
        else:
            _check_convnext(self.encoder)
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


def _check_convnext(encoder: str) -> None:
    from photozhpc.model import timm_convnext  # slow to import

    if not encoder.startswith("convnext") or not timm_convnext.is_model(encoder):
        names = ", ".join(timm_convnext.list_models("convnext_*")[:8])
        raise ValueError(
            f"encoder must be {RESNET} or a ConvNeXt of timm ({names}...), got {encoder}"
        )
