"""Features of forced fluxes: colours, a magnitude and the noise of every aperture."""

import math

import torch
from torch import Tensor, nn

_MIN_STD = 1e-6


class FluxFeatures(nn.Module):
    """Fluxes of C bands in R apertures (Kron counts as one) -> standardised features.

    For each aperture: the C-1 colours of neighbouring bands and the magnitude of the last, all
    dereddened asinh magnitudes divided by -2.5 (see model/colours.py); whether each band was
    measured; and, with `noise`, log10 of each band's error in units of the usual one, which with
    the magnitude gives the signal-to-noise ratio.

    A missing flux is NaN. Its magnitude is interpolated between the nearest measured bands of its
    aperture; other features that are missing are 0, the mean. An upper limit is a flux of 0 with
    its error. Features that are the same in all training sources are 0.

    The usual errors and the scaling of the features are kept with the weights.
    """

    extinction_r_C: Tensor
    softening_CR: Tensor
    mean_F: Tensor
    scale_F: Tensor

    def __init__(self, n_bands: int, n_apertures: int, noise: bool = False) -> None:
        super().__init__()
        self.noise = noise
        self.n_features = (3 if noise else 2) * n_bands * n_apertures
        self.register_buffer("extinction_r_C", torch.zeros(n_bands))
        self.register_buffer("softening_CR", torch.ones(n_bands, n_apertures))
        self.register_buffer("mean_F", torch.zeros(self.n_features))
        self.register_buffer("scale_F", torch.ones(self.n_features))

    @torch.no_grad()
    def fit(self, flux_NCR: Tensor, flux_err_NCR: Tensor, ebv_N: Tensor) -> None:
        """Set the usual errors and the scaling from training sources, labelled or not.

        Where a band has no errors in an aperture, its fluxes give the usual one (`_error_of`);
        where it has no fluxes, that is infinite, and fluxes of other sources count as missing.
        """
        err_NCR = _valid_error(flux_NCR, flux_err_NCR)
        usual_CR = err_NCR.nanmedian(dim=0).values
        for band, aperture in (~usual_CR.isfinite()).nonzero().tolist():
            usual_CR[band, aperture] = _error_of(flux_NCR[:, band, aperture])
        self.softening_CR.copy_(usual_CR)
        raw_NF = self.raw(flux_NCR, flux_err_NCR, ebv_N).double()
        mean_F = raw_NF.nanmean(dim=0)
        std_F = (raw_NF - mean_F).square().nanmean(dim=0).sqrt()
        self.mean_F.copy_(mean_F)
        self.scale_F.copy_(torch.where(std_F > _MIN_STD, 1 / std_F, 0.0).nan_to_num(0.0))
        self.mean_F.nan_to_num_(0.0)

    def forward(self, flux_BCR: Tensor, flux_err_BCR: Tensor, ebv_B: Tensor) -> Tensor:
        """Return feature_BF: finite, of mean 0 and standard deviation 1 in training.

        Args:
            flux_BCR, flux_err_BCR: nJy; not finite where not measured.
            ebv_B: Galactic E(B-V), magnitudes.
        """
        raw_BF = self.raw(flux_BCR, flux_err_BCR, ebv_B)
        return ((raw_BF - self.mean_F) * self.scale_F).nan_to_num(0.0)

    def raw(self, flux_BCR: Tensor, flux_err_BCR: Tensor, ebv_B: Tensor) -> Tensor:
        """Return the features (B, F) before scaling, NaN where they are missing."""
        measured_BCR = flux_BCR.isfinite() & self.softening_CR.isfinite()
        flux_BCR = flux_BCR.where(measured_BCR, torch.nan)
        gain_BC1 = (10 ** (0.4 * ebv_B[:, None] * self.extinction_r_C))[:, :, None]
        soft_CR = self.softening_CR
        log_BCR = torch.asinh(flux_BCR * gain_BC1 / (2 * soft_CR)) / math.log(10) + soft_CR.log10()
        log_BCR = _bridged(log_BCR)
        parts = [log_BCR[:, :-1] - log_BCR[:, 1:], log_BCR[:, -1:], measured_BCR.to(log_BCR)]
        if self.noise:
            parts.append((_valid_error(flux_BCR, flux_err_BCR) * gain_BC1 / soft_CR).log10())
        return torch.cat(parts, dim=1).flatten(1)

    def lacks_usual(self, flux_BCR: Tensor) -> Tensor:
        """Return (B,): whether a flux is missing that no training source lacks."""
        n = self.softening_CR.numel()
        always_F = (self.mean_F[n : 2 * n] == 1) & (self.scale_F[n : 2 * n] == 0)
        return (~flux_BCR.isfinite() & always_F.view_as(self.softening_CR)).flatten(1).any(dim=1)

    def snr(self, flux_BCR: Tensor, flux_err_BCR: Tensor) -> Tensor:
        """Return snr_BCR: flux over error; over the usual error where there is none."""
        err_BCR = _valid_error(flux_BCR, flux_err_BCR)
        return flux_BCR / err_BCR.where(err_BCR.isfinite(), self.softening_CR)


def _error_of(flux_N: Tensor) -> float:
    """Return an error that fluxes without errors may have; infinite if there is no flux.

    It is the root mean square of the negative fluxes, if 1% are: they are noise. Otherwise faint
    sources were cut, and it is a fifth of the flux that 5% do not reach, as at a limit of 5 sigma.
    """
    flux_N = flux_N[flux_N.isfinite()].double()
    negative_M = flux_N[flux_N < 0]
    if len(negative_M) > 0.01 * len(flux_N):
        return negative_M.square().mean().sqrt().item()
    positive_M = flux_N[flux_N > 0]
    if not len(positive_M):
        return math.inf
    return 0.2 * positive_M.kthvalue(max(1, len(positive_M) // 20)).values.item()


def _valid_error(flux_BCR: Tensor, flux_err_BCR: Tensor) -> Tensor:
    valid_BCR = flux_BCR.isfinite() & flux_err_BCR.isfinite() & (flux_err_BCR > 0)
    return flux_err_BCR.where(valid_BCR, torch.nan)


def _bridged(value_BCR: Tensor) -> Tensor:
    """Return the values with gaps between bands filled: linearly, at the ends by the nearest."""
    n_bands = value_BCR.shape[1]
    index_C = torch.arange(n_bands, device=value_BCR.device)[None, :, None].expand_as(value_BCR)
    known_BCR = value_BCR.isfinite()
    left_BCR = index_C.where(known_BCR, -1).cummax(dim=1).values
    right_BCR = index_C.where(known_BCR, n_bands).flip(1).cummin(dim=1).values.flip(1)
    has_left_BCR, has_right_BCR = left_BCR >= 0, right_BCR < n_bands
    left_BCR = left_BCR.where(has_left_BCR, right_BCR).clamp(0, n_bands - 1)
    right_BCR = right_BCR.where(has_right_BCR, left_BCR).clamp(0, n_bands - 1)
    span_BCR = (right_BCR - left_BCR).clamp(min=1)
    share_BCR = (index_C - left_BCR) / span_BCR * (has_left_BCR & has_right_BCR)
    low_BCR, high_BCR = value_BCR.gather(1, left_BCR), value_BCR.gather(1, right_BCR)
    return low_BCR + share_BCR * (high_BCR - low_BCR)
