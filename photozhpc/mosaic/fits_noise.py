"""The errors of a FITS mosaic, from its error, variance or weight plane."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.mosaic.band_image import robust_sigma, sigma_from_weight
from photozhpc.mosaic.blank import noise_of
from photozhpc.mosaic.calibration import njy_of_noise, number
from photozhpc.mosaic.fits_plane import FitsPlane
from photozhpc.mosaic.fits_roles import NOISE_ROLES, PART_OF_VARIANCE
from photozhpc.survey import Band

# The scatter of pixels over the sigma of their weights; outside this range a note says so.
# Resampling makes the scatter up to 3 times smaller (drizzle: Casertano et al. 2000, appendix A).
_SCATTER_RANGE = (0.2, 2.5)
_SPARSE = 0.8  # share of exposed pixels with light, below which zeros are data


def noise_role(planes: dict[str, FitsPlane]) -> str | None:
    """Return the role of the plane that errors are read from; parts of a variance come last."""
    has_parts = any(role.startswith(PART_OF_VARIANCE) for role in planes)
    return next((role for role in NOISE_ROLES if role in planes), "variance" if has_parts else None)


def sigma_and_bad(
    role: str, values: NDArray[Any], factor: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the 1-sigma error and the bad pixels of rows of a noise plane."""
    with np.errstate(all="ignore"):
        if role in ("err", "variance"):
            sigma = values if role == "err" else np.sqrt(values)
            return sigma if factor == 1 else sigma * factor, ~(values > 0)
    return sigma_from_weight(values, factor), ~(values > 0)


def noise_unit(role: str, plane: FitsPlane, unit: Any, pixel_area_arcsec2: float) -> float:
    """Return image units per unit of the error, where both planes state a flux density."""
    power = {"err": 1.0, "variance": 2.0}.get(role, -2.0)
    stated = plane.hdu.header.get("BUNIT")
    of_noise = njy_of_noise(str(stated or ""), power, pixel_area_arcsec2)
    of_image = njy_of_noise(str(unit or ""), 1.0, pixel_area_arcsec2)
    if of_noise is None or of_image is None or math.isclose(of_noise, of_image, rel_tol=1e-6):
        return 1.0
    return of_noise / of_image


def note_on_weights(band: Band, scatter: float) -> list[str]:
    """Return a note where weights are not 1 / sigma^2; SWarp's may be relative.

    Args:
        scatter: of the image times the square root of the weights; 1 for true weights.
    """
    low, high = _SCATTER_RANGE
    if not 0 < scatter < math.inf or low < scatter < high:
        return []
    return [
        f"{band.name}: the weights, taken as 1 / sigma^2, give an error {1 / scatter:.2g} times "
        "the scatter of the image; scale them if they are relative"
    ]


def is_exposure(weight: FitsPlane, lookup: Any) -> bool:
    """Whether a weight map is exposure time and not inverse variance.

    The header decides if it can (WHTTYPE, or seconds as BUNIT). Otherwise a map is exposure time
    if it holds only 0 and 1, or if its typical weight is within a factor 3 of EXPTIME.
    """
    header = weight.hdu.header
    stated = str(header.get("WHTTYPE") or header.get("WHT_TYPE") or lookup("WHTTYPE") or "")
    if stated.strip():
        return stated.strip().upper().startswith("EXP")
    if str(header.get("BUNIT", "")).strip().lower() in ("s", "sec", "second", "seconds"):
        return True
    seconds = number(lookup("EXPTIME"))
    values = weight.sample()
    values = values[values > 0]
    if values.size and (values == 1).all():
        return True
    if seconds is None or not values.size:
        return False
    return bool(1 / 3 < np.median(values) / seconds < 3)


def noise_scale(image: FitsPlane, weight: FitsPlane | None) -> float:
    """Return the clipped MAD of the image, or of the image times sqrt(weight)."""
    sample = image.sample().astype(np.float64)
    if weight is None:
        return robust_sigma(sample)
    root = np.sqrt(np.maximum(weight.sample(), 0))
    exposed = (root > 0) & np.isfinite(sample)
    light = sample[exposed & (sample != 0)]
    sky = np.median(light) if light.size else 0.0
    sigma = robust_sigma((sample - sky) * root)
    is_sparse = light.size < _SPARSE * np.count_nonzero(exposed) and light.min(initial=0) >= 0
    if is_sparse or not sigma > 0:
        return noise_of(sample[exposed] * root[exposed])  # counts exposed pixels without a photon
    return sigma
