"""Units of the reference code `pita-z`: the counts of its images, and its colour features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.survey import Survey, flux_of_ab

NJY_PER_UJY = 1000.0
# AB magnitude of one electron per second in the CANDELS mosaics: the ACS values of the CANDELS
# catalogues (e.g. Guo et al. 2013) and WFC3's of STScI. What 'candels' mosaics state in their
# headers agrees to 0.02 mag.
CANDELS_ZERO_POINT_AB = {"F606W": 26.49, "F814W": 25.94, "F125W": 26.2303, "F160W": 25.9463}


@dataclass(frozen=True)
class FluxFeatures:
    """Definition of the reference's colour features: C-1 log10 flux ratios, one log10 flux (uJy).

    The authors' script divides the redder band by the bluer; `colours.colour_features` divides the
    bluer by the redder. The flux is that of F160W (the last band) in the paper (section 3), of
    F814W in the script.

    Attributes:
        red_over_blue: whether the ratios are those of each band to its bluer neighbour.
        flux_band: index of the band of the last feature.
    """

    red_over_blue: bool = True
    flux_band: int = -1

    def to_flux(self, feature_NC: NDArray) -> NDArray[np.float64]:
        """Return flux_NC, nJy, dereddened if the features were; NaN where they are not finite."""
        step_NK = np.asarray(feature_NC[:, :-1], np.float64) * (1 if self.red_over_blue else -1)
        log_NC = np.concatenate(
            [np.zeros((len(step_NK), 1)), np.cumsum(step_NK, axis=1)], axis=1
        )  # relative to the first band
        log_flux_N = np.asarray(feature_NC[:, -1], np.float64)
        log_NC += (log_flux_N - log_NC[:, self.flux_band])[:, None]
        with np.errstate(invalid="ignore", over="ignore"):
            return NJY_PER_UJY * 10**log_NC

    def from_flux(self, flux_NC: NDArray) -> NDArray[np.float64]:
        """Return the features of fluxes in nJy; NaN where a flux is not positive."""
        with np.errstate(invalid="ignore", divide="ignore"):
            log_NC = np.log10(np.where(flux_NC > 0, flux_NC, np.nan) / NJY_PER_UJY)
        ratio_NK = np.diff(log_NC, axis=1) * (1 if self.red_over_blue else -1)
        return np.concatenate([ratio_NK, log_NC[:, self.flux_band][:, None]], axis=1)


def njy_per_count(
    survey: Survey, zero_point_ab_C: Sequence[float] | None = None
) -> NDArray[np.float32]:
    """Return (C,) nJy per unit of the reference's images.

    No publication states that unit. It is assumed to be electrons per second: the images are
    cutouts of the CANDELS mosaics, and no step of the published code rescales them. The unit
    cancels if a checkpoint and a catalogue are imported with the same zero points.

    Args:
        zero_point_ab_C: AB magnitude of one count; default: the survey's `zero_point_ab`, or
            `CANDELS_ZERO_POINT_AB` for those bands.

    Raises:
        StoreError: a band has no known zero point, or their number is wrong.
    """
    if zero_point_ab_C is None:
        zero_point_ab = CANDELS_ZERO_POINT_AB | {
            b.name: b.zero_point_ab for b in survey.bands if b.zero_point_ab is not None
        }
        if missing := [name for name in survey.band_names if name not in zero_point_ab]:
            raise StoreError(
                f"survey '{survey.name}' has no zero point for {' '.join(missing)}; pass "
                f"--zero-point for each band, or set zero_point_ab in the survey's YAML file"
            )
        zero_point_ab_C = [zero_point_ab[name] for name in survey.band_names]
    if len(zero_point_ab_C) != len(survey.bands) or not np.isfinite(zero_point_ab_C).all():
        raise StoreError(
            f"{len(survey.bands)} zero points are needed ({' '.join(survey.band_names)}), got "
            f"{list(zero_point_ab_C)}"
        )
    return flux_of_ab(np.asarray(zero_point_ab_C)).astype(np.float32)
