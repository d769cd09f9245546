"""Forced photometry of a tile: the survey's apertures at given positions, in all bands."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from photozhpc.mosaic.photometry import local_sky, sum_circles
from photozhpc.mosaic.tile import Tile
from photozhpc.survey import Survey


@dataclass(frozen=True, eq=False)
class Photometry:
    """Aperture fluxes of N sources in C bands and R radii.

    Attributes:
        flux_NCR: float32, nJy, local sky subtracted if the survey has an annulus; NaN without
            a usable pixel.
        flux_err_NCR: float32, nJy: pixel errors and the error of the sky under the circle,
            sqrt(err^2 + (area * sky_err)^2).
        flags_NC: int32, `PhotFlag` bits, of all radii and the sky together.
        sky_NC: float32, nJy per pixel; 0 where the survey has no annulus.
    """

    flux_NCR: NDArray[np.float32]
    flux_err_NCR: NDArray[np.float32]
    flags_NC: NDArray[np.int32]
    sky_NC: NDArray[np.float32]


def forced_photometry(tile: Tile, y_N: ArrayLike, x_N: ArrayLike, survey: Survey) -> Photometry:
    """Measure every source in every band at the same position and with the same apertures.

    Bad pixels are a band's own (NaN in its plane), not those of the other bands. The sky is
    taken off the part of the circle that was summed.

    Args:
        y_N, x_N: pixels, zero-based with pixel centres on integers.
        survey: apertures and annulus in arcsec; pixels follow from the tile's pixel scale.
    """
    y, x = np.atleast_1d(y_N), np.atleast_1d(x_N)
    radius_pix = np.array(survey.aperture_radii_arcsec) / tile.pixel_scale_arcsec
    n_sources, n_bands = y.size, len(tile.band_names)
    flux_NCR = np.empty((n_sources, n_bands, radius_pix.size), np.float32)
    flux_err_NCR = np.empty_like(flux_NCR)
    flags_NC = np.empty((n_sources, n_bands), np.int32)
    sky_NC = np.zeros((n_sources, n_bands), np.float32)
    for c in range(n_bands):
        image_HW, err_HW = tile.image_CHW[c], tile.err_CHW[c]
        flux, flux_err, flags = sum_circles(image_HW, y, x, radius_pix, err_HW)
        flags_NC[:, c] = np.bitwise_or.reduce(flags, axis=1)
        if survey.sky_annulus_arcsec:
            r_in, r_out = np.array(survey.sky_annulus_arcsec) / tile.pixel_scale_arcsec
            sky, sky_err, sky_flags = local_sky(image_HW, y, x, r_in, r_out)
            usable = np.isfinite(image_HW) & np.isfinite(err_HW)
            area, _, _ = sum_circles(usable, y, x, radius_pix)
            flux -= area * sky[:, None]
            flux_err = np.hypot(flux_err, area * sky_err[:, None])
            flags_NC[:, c] |= sky_flags
            sky_NC[:, c] = sky
        flux_NCR[:, c], flux_err_NCR[:, c] = flux, flux_err
    return Photometry(flux_NCR, flux_err_NCR, flags_NC, sky_NC)
