"""What a sample of a store's sources shows: how noisy it is, and what its point sources look like.

A model file notes its training store. Inference compares the store that it gets: where the noise
is one that the model has not seen, its redshifts and intervals are not to be trusted.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.config import from_mapping, to_mapping
from photozhpc.errors import ConfigError, SourceListError, StoreError
from photozhpc.model.checkpoint import Checkpoint
from photozhpc.model.pita import PITA
from photozhpc.model.stars import PointSources, find_point_sources
from photozhpc.mosaic.defects import find_defects
from photozhpc.store import CutoutStore, FluxTable, Measurements
from photozhpc.survey import Survey

KEY = "store_note"  # of Checkpoint.training
PERCENTILES = (5.0, 50.0, 95.0)
MAX_SHARDS, MAX_IMAGES = 64, 4096  # of the sample
# Noise beyond the lowest and highest of the training images by this factor is another noise.
STORE_FACTOR, SOURCE_FACTOR = 1.1, 1.5
# An older model file has the median of the noise alone; depths within a survey scatter.
UNKNOWN_SPREAD = 1.5

Range = tuple[float, float, float]


@dataclass(frozen=True)
class StoreNote:
    """What a sample of a store shows.

    Attributes:
        noise_njy: percentiles 5, 50 and 95 of the noise of a pixel, measured in the images, of
            every band; empty without images. NaN: not measured.
        flux_err_njy: the same of the stated errors of fluxes in the smallest aperture (or
            of the total fluxes, if there are no others).
        point_sources: None: none were found.
    """

    noise_njy: tuple[Range, ...] = ()
    flux_err_njy: tuple[Range, ...] = ()
    point_sources: PointSources | None = None

    @property
    def noise_limits_2C(self) -> NDArray[np.float64] | None:
        """Noise below and above which that of an image is another; None: unknown."""
        if not self.noise_njy:
            return None
        noise_C3 = np.array(self.noise_njy)
        return np.stack([noise_C3[:, 0] / SOURCE_FACTOR, noise_C3[:, 2] * SOURCE_FACTOR])


def note_store(store: CutoutStore | FluxTable, side: int) -> StoreNote:
    """Look at a sample of a store, the same whenever it is taken.

    Damaged shards are left out: whoever needs them reports them.

    Args:
        side: of the part of the images that the model sees, pixels; 0: none.
    """
    keys = store.shards()
    keys = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, MAX_SHARDS).astype(int))]
    side = min(side, store.cutout_size)
    measured: list[Measurements] = []
    noise: list[NDArray] = []
    for key in keys:
        try:
            measured.append(store.read_measurements(key))
            if side and isinstance(store, CutoutStore):
                rows = slice(0, max(1, MAX_IMAGES // len(keys)))
                cutout_NCSS = store.read_cutouts(key, rows, side)
                widths_C = psf_widths(store.survey)
                noise.append(find_defects(cutout_NCSS, side, widths_C).noise_NC)
        except (StoreError, SourceListError):
            continue
    if not measured:
        return StoreNote()
    flux_NCR, err_NCR = (
        np.concatenate([getattr(m, name) for m in measured])
        for name in ("flux_NCR", "flux_err_NCR")
    )
    order_R = np.argsort(store.survey.aperture_radii_arcsec)
    flux_NCR, err_NCR = flux_NCR[:, :, order_R], err_NCR[:, :, order_R]
    if flux_NCR.shape[2]:
        smallest_NC = err_NCR[:, :, 0]
    else:
        smallest_NC = np.concatenate(
            [m.kron_flux_err_NC for m in measured if m.kron_flux_err_NC is not None]
        )
    return StoreNote(
        _ranges(np.concatenate(noise)) if noise else (),
        _ranges(smallest_NC),
        find_point_sources(flux_NCR, err_NCR),
    )


def training_note(checkpoint: Checkpoint) -> StoreNote | None:
    """Return what a model file notes of its training store; None: nothing.

    Of a model file from before there were notes, the typical noise with which it scales images is
    known, and taken to have varied by UNKNOWN_SPREAD.
    """
    training, model = checkpoint.training, checkpoint.model
    if KEY in training:
        try:
            return from_mapping(StoreNote, training[KEY], f"{checkpoint.path}: {KEY}")
        except ConfigError:  # of a later version
            return None
    if not isinstance(model, PITA) or "store_sha256" not in training:
        return None
    survey = checkpoint.survey
    radius_pix = min(survey.aperture_radii_arcsec, default=0) / survey.pixel_scale_arcsec

    def ranges(scale: float) -> tuple[Range, ...]:
        median_C = scale * model.noise_C.double().cpu().numpy()
        return tuple((m / UNKNOWN_SPREAD, m, m * UNKNOWN_SPREAD) for m in median_C.tolist())

    return StoreNote(ranges(1.0), ranges(math.sqrt(math.pi) * radius_pix))


def noted(note: StoreNote) -> dict[str, Any]:
    """Return a note as JSON can hold it, for `Checkpoint.training`."""
    mapping: dict[str, Any] = to_mapping(note)
    return mapping


def noise_warning(training: StoreNote, store: StoreNote, survey: Survey) -> str | None:
    """Return a line that says in which bands the noise differs from all training; None: in none.

    The noise measured in the images counts, and that of the stated errors of the fluxes.
    """
    kinds = (
        ("pixels", training.noise_njy, store.noise_njy),
        ("stated errors", training.flux_err_njy, store.flux_err_njy),
    )
    texts = []
    for kind, seen, found in kinds:
        bands = []
        for band, (low, median, high), (_, here, _) in zip(survey.bands, seen, found, strict=False):
            if here > high * STORE_FACTOR or here < low / STORE_FACTOR:
                bands.append(f"{band.name} {here / median:.2g}")
        if bands:
            texts.append(f"{kind}: {', '.join(bands)}")
    if not texts:
        return None
    return (
        f"the noise is not that of the training sky, but so many times it ({'; '.join(texts)}): "
        f"redshifts may be biased and their intervals too narrow or too wide; calibrate the model "
        f"on labels of this store ('photozhpc calibrate'), or train on one as deep"
    )


def psf_widths(survey: Survey) -> NDArray[np.float64]:
    """Return psf_fwhm_pix_C of the survey's mosaics."""
    return np.array([band.psf_fwhm_arcsec / survey.pixel_scale_arcsec for band in survey.bands])


def _ranges(value_NC: NDArray) -> tuple[Range, ...]:
    """Return the percentiles of every band's finite, positive values; NaN where there is none."""
    ranges = []
    for value_N in value_NC.T:
        value_N = value_N[np.isfinite(value_N) & (value_N > 0)]
        found = np.percentile(value_N, PERCENTILES) if len(value_N) else np.full(3, np.nan)
        ranges.append((float(found[0]), float(found[1]), float(found[2])))
    return tuple(ranges)
