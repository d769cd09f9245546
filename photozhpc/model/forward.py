"""The forward pass of inference: one function of cutouts, eager or compiled, on any device."""

import copy

import torch
from torch import Tensor, nn

from photozhpc.model.augment import calibrate, centre_crop, stretch
from photozhpc.model.autocast import Autocast
from photozhpc.model.pdf import CalibratedPdf, PdfForm
from photozhpc.model.pita import PITA, Fluxes
from photozhpc.model.pita_config import RESNET, PITAConfig


class Forward(nn.Module):
    """From cutouts to redshifts: `prepare` and `PITA.estimate` with less work.

    Args:
        model: copied, with its encoder rearranged (model/convnext.py).
        dtype: of the encoder's arithmetic; the heads always compute in float32.
        pdf: also give p(z), in this form; the model's density must be fitted.
    """

    def __init__(self, model: PITA, dtype: torch.dtype, pdf: PdfForm | None = None) -> None:
        super().__init__()
        encoder = _for_inference(model.encoder, model.config, dtype)
        # Copied without its encoder, by far its largest part.
        self.model = copy.deepcopy(model, {id(model.encoder): encoder}).requires_grad_(False)
        self.point_estimate = model.point_estimate
        self.pdf: CalibratedPdf | None = None
        if pdf is not None and model.uncertainty is not None:
            self.pdf = CalibratedPdf(model.uncertainty, pdf)

    def forward(
        self,
        cutout_BCSS: Tensor,
        ebv_B: Tensor,
        flux_BCR: Tensor | None = None,
        flux_err_BCR: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the fields of an `Estimate`, and p(z) if asked for.

        Args:
            cutout_BCSS, ebv_B: as in `encode`.
            flux_BCR, flux_err_BCR: as in `Fluxes`; None: the model takes none.
        """
        fluxes = None
        if flux_BCR is not None and flux_err_BCR is not None:
            fluxes = Fluxes(flux_BCR, flux_err_BCR, ebv_B)
        feature_BF, linear_BCHW = self.encode(cutout_BCSS, ebv_B)
        estimate, pdf_BP = self.model.estimate_from(
            feature_BF, linear_BCHW, self.point_estimate, fluxes, self.pdf
        )
        return tuple(estimate) if pdf_BP is None else (*estimate, pdf_BP)

    def encode(self, cutout_BCSS: Tensor, ebv_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the encoder's feature_BF, and the images in units of the noise, linear_BCHW.

        Args:
            cutout_BCSS: nJy per pixel.
            ebv_B: E(B-V), magnitudes.
        """
        model, config = self.model, self.model.config
        crop_BCHW = centre_crop(cutout_BCSS, config.crop)
        linear_BCHW = calibrate(crop_BCHW, ebv_B, model.extinction_r_C, model.noise_C)
        return model.encoder(stretch(linear_BCHW, config.stretch)), linear_BCHW


def _for_inference(encoder: nn.Module, config: PITAConfig, dtype: torch.dtype) -> nn.Module:
    if config.encoder == RESNET:
        return Autocast(encoder, dtype)
    from photozhpc.model.convnext import for_inference  # imports timm, which is slow

    return for_inference(encoder, config.crop, dtype)
