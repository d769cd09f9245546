"""The model of a photometric catalogue: densities from fluxes alone, with calibrated intervals."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from photozhpc.errors import CheckpointError, StoreError
from photozhpc.model.density import Calibration, cumulative, least_risk
from photozhpc.model.flux_expert import FluxExpert, FluxExpertConfig
from photozhpc.model.pdf import CalibratedPdf
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.flux_table import FluxTable
from photozhpc.store.loader import Block
from photozhpc.store.schema import Measurements
from photozhpc.survey import Survey

PointEstimate = Literal["median", "least_risk"]
UNUSUAL_OOD = 10.0  # at least, of a source without a flux that every training source has
MIN_BANDS = 2  # a source with fewer measured bands has no colour, and gets no redshift


@dataclass(frozen=True)
class PhotometryConfig:
    """Which fluxes the model takes, and the shape of its networks.

    Attributes:
        aperture_radii_arcsec: of the circles whose fluxes it takes.
        total: whether it takes Kron (or other total) fluxes too.
        expert: n_apertures is the number of these fluxes.
        point_estimate: what is reported as the redshift: the median of the density, or
            "least_risk", see `density.least_risk`.
    """

    aperture_radii_arcsec: tuple[float, ...] = ()
    total: bool = True
    expert: FluxExpertConfig = field(default_factory=FluxExpertConfig)
    point_estimate: PointEstimate = "least_risk"

    def __post_init__(self) -> None:
        n = len(self.aperture_radii_arcsec) + self.total
        if self.expert.n_apertures != n:
            raise ValueError(f"n_apertures must be {n}, got {self.expert.n_apertures}")

    @property
    def n_bands(self) -> int:
        return self.expert.n_bands


class PhotometryModel(nn.Module):
    """A `FluxExpert` with its `Calibration`, ready for the fluxes of a store or a catalogue."""

    def __init__(self, config: PhotometryConfig) -> None:
        super().__init__()
        self.config = config
        self.expert = FluxExpert(config.expert)
        n_features = self.expert.features.n_features
        self.calibration = Calibration(n_features, config.expert.bins, config.expert.z_max)

    def forward(
        self,
        flux_BCR: Tensor,
        flux_err_BCR: Tensor,
        ebv_B: Tensor,
        pdf: CalibratedPdf | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Return z_phot_B, mean_B, mode_B, quantile_BQ, ood_B (see `pita.Estimate`) and p(z).

        Of a source that lacks a flux which every training source has, ood_B is at least
        UNUSUAL_OOD: its interval is not to be trusted.

        Args:
            flux_BCR, flux_err_BCR: nJy, of the config's apertures; not finite: not measured.
            ebv_B: Galactic E(B-V), magnitudes.
            pdf: turns the density into pdf_BP; None: no p(z).
        """
        feature_BF = self.expert.features(flux_BCR, flux_err_BCR, ebv_B)
        density_BK = self.expert.density(feature_BF)
        cdf_BE = cumulative(density_BK)
        brightness_B = self.brightness(flux_BCR, flux_err_BCR)
        if self.config.point_estimate == "median":
            z_phot_B = self.calibration.median(cdf_BE)
        else:
            z_phot_B = least_risk(density_BK, self.config.expert.z_max)
        ood_B = self.calibration.ood(feature_BF)
        lacks_B = self.expert.features.lacks_usual(flux_BCR)
        return (
            z_phot_B,
            self.calibration.mean(cdf_BE, brightness_B),
            self.calibration.mode(density_BK),
            self.calibration.quantiles(cdf_BE, brightness_B),
            ood_B.where(~lacks_B, ood_B.clamp(min=UNUSUAL_OOD)),
            None if pdf is None else pdf(cdf_BE, brightness_B),
        )

    def brightness(self, flux_BCR: Tensor, flux_err_BCR: Tensor) -> Tensor:
        """Return brightness_B: asinh of the signal-to-noise ratio, averaged over all fluxes."""
        snr_BF = torch.asinh(self.expert.features.snr(flux_BCR, flux_err_BCR)).flatten(1)
        return snr_BF.nanmean(dim=1).nan_to_num(0.0)


class TakesFluxes(Protocol):
    """A configuration that says which fluxes a model takes, such as `PhotometryConfig`."""

    @property
    def aperture_radii_arcsec(self) -> tuple[float, ...]: ...

    @property
    def total(self) -> bool: ...


class FluxInput:
    """Picks the fluxes that a model takes from those of a store or a catalogue.

    Args:
        survey: of the store.

    Raises:
        CheckpointError: the store lacks some of them.
    """

    def __init__(self, config: TakesFluxes, survey: Survey) -> None:
        radii = survey.aperture_radii_arcsec
        missing = [radius for radius in config.aperture_radii_arcsec if radius not in radii]
        if missing:
            raise CheckpointError(
                f"the model needs fluxes in apertures of {_list(config.aperture_radii_arcsec)} "
                f"arcsec, but survey '{survey.name}' has {_list(radii) or 'none'}; use a model "
                f"that was trained on such fluxes"
            )
        if config.total and survey.has_flux_columns and survey.total_columns is None:
            raise CheckpointError(
                f"the model needs total fluxes, but survey '{survey.name}' names none; give its "
                f"total_columns"
            )
        self.columns = [radii.index(radius) for radius in config.aperture_radii_arcsec]
        self.total = config.total

    def __call__(
        self, measured: Measurements | Block
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return flux_NCR and flux_err_NCR, nJy: the chosen apertures, then the total flux."""
        flux_NCR = measured.flux_NCR[:, :, self.columns]
        err_NCR = measured.flux_err_NCR[:, :, self.columns]
        if not self.total:
            return flux_NCR, err_NCR
        totals = measured.kron_flux_NC, measured.kron_flux_err_NC
        total_NC, total_err_NC = (
            np.full(flux_NCR.shape[:2], np.nan, np.float32) if values is None else values
            for values in totals
        )
        return (
            np.concatenate([flux_NCR, total_NC[:, :, None]], axis=2),
            np.concatenate([err_NCR, total_err_NC[:, :, None]], axis=2),
        )


def check_measured(config: TakesFluxes, store: CutoutStore | FluxTable) -> None:
    """Check that a store with the right apertures has fluxes in them.

    Raises:
        StoreError: one of them was measured for no source, as Kron fluxes in some imported stores.
    """
    pick = FluxInput(config, store.survey)
    names = [f'{radius:g}" fluxes' for radius in config.aperture_radii_arcsec]
    names += ["Kron fluxes"] if config.total else []
    missing = set(names)
    for key in store.shards():
        flux_NCR, _ = pick(store.read_measurements(key))
        missing -= {name for r, name in enumerate(names) if np.isfinite(flux_NCR[:, :, r]).any()}
        if not missing:
            return
    if missing and len(store):
        raise StoreError(
            f"{store.path}: has no {' and no '.join(sorted(missing))}, which the model takes; "
            f"extract the store from mosaics, or use a model that does not take them"
        )


def enough_bands(flux_NCR: NDArray) -> NDArray[np.bool_]:
    """Return (N,): whether so many bands were measured that a redshift can be estimated."""
    n_bands = flux_NCR.shape[1]
    return np.isfinite(flux_NCR).any(axis=2).sum(axis=1) >= min(MIN_BANDS, n_bands)


def _list(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
