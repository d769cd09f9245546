"""Forced photometry of a tile: circles and Kron ellipses at given positions, in all bands."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from photozhpc.mosaic.ellipses import sum_ellipses
from photozhpc.mosaic.kron import kron_apertures
from photozhpc.mosaic.photometry import local_sky, sum_circles
from photozhpc.mosaic.tile import Tile
from photozhpc.survey import Survey

MIN_KRON_COVER = 0.5  # of an ellipse by usable pixels; with less, the sum is not that of the whole


@dataclass(frozen=True, eq=False)
class Photometry:
    """Aperture fluxes of N sources in C bands and R radii, and in Kron ellipses.

    Attributes:
        flux_NCR: float32, nJy, local sky subtracted if the survey has an annulus; NaN without
            a usable pixel.
        flux_err_NCR: float32, nJy: pixel errors and the error of the sky under the circle,
            sqrt(err^2 + (area * sky_err)^2).
        kron_flux_NC, kron_flux_err_NC: float32, nJy, the same in a Kron ellipse that all bands
            share (see `kron`); NaN where less than half of it has usable pixels.
        flags_NC: int32, `PhotFlag` bits of all apertures and the sky together.
        sky_NC: float32, nJy per pixel; 0 where the survey has no annulus.
    """

    flux_NCR: NDArray[np.float32]
    flux_err_NCR: NDArray[np.float32]
    kron_flux_NC: NDArray[np.float32]
    kron_flux_err_NC: NDArray[np.float32]
    flags_NC: NDArray[np.int32]
    sky_NC: NDArray[np.float32]


def forced_photometry(
    tile: Tile,
    y_N: ArrayLike,
    x_N: ArrayLike,
    survey: Survey,
    with_kron: bool = True,
    field_K: tuple[ArrayLike, ArrayLike] | None = None,
) -> Photometry:
    """Measure every source in every band at the same position and with the same apertures.

    Bad pixels are those of the band itself (NaN in its plane). The sky is subtracted for the part
    of the circle that was summed.

    A Kron ellipse reaches at most to the inner edge of the sky annulus, or, without one, to the
    edge of a cutout: light further out counts as sky.

    Args:
        y_N, x_N: pixels, zero-based with pixel centres on integers.
        survey: apertures and annulus in arcsec, converted by the tile's pixel scale.
        with_kron: False: Kron fluxes are NaN, for images without one noise and PSF.
        field_K: (y, x) of all sources of the field, which keep Kron ellipses from growing over
            their neighbours; default: the sources that are measured.
    """
    y, x = np.atleast_1d(y_N), np.atleast_1d(x_N)
    radius_pix = np.array(survey.aperture_radii_arcsec) / tile.pixel_scale_arcsec
    n_sources, n_bands = y.size, len(tile.band_names)
    flux_NCR = np.empty((n_sources, n_bands, radius_pix.size), np.float32)
    flux_err_NCR = np.empty_like(flux_NCR)
    flags_NC = np.empty((n_sources, n_bands), np.int32)
    sky_NC = np.zeros((n_sources, n_bands), np.float32)
    sky_err_NC = np.zeros((n_sources, n_bands), np.float32)
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
            sky_NC[:, c], sky_err_NC[:, c] = sky, sky_err
        flux_NCR[:, c], flux_err_NCR[:, c] = flux, flux_err

    if not with_kron:
        nothing_NC = np.full((n_sources, n_bands), np.nan, np.float32)
        return Photometry(flux_NCR, flux_err_NCR, nothing_NC, nothing_NC, flags_NC, sky_NC)
    weight_C = noise_weights(tile.err_CHW)
    if survey.sky_annulus_arcsec:
        max_radius_pix = survey.sky_annulus_arcsec[0] / tile.pixel_scale_arcsec
    else:
        max_radius_pix = survey.cutout_size / 2 - 1
    kron = kron_apertures(
        tile.image_CHW,
        weight_C,
        y,
        x,
        psf_sigma_arcsec(survey, weight_C) / tile.pixel_scale_arcsec,
        max_radius_pix,
        sky_NC,
        *((y, x) if field_K is None else field_K),
    )
    semi_axes = (kron.scale_N * kron.a_N, kron.scale_N * kron.b_N, kron.theta_N)
    kron_flux_NC, kron_err_NC, kron_flags_NC, area_NC = sum_ellipses(
        tile.image_CHW, y, x, *semi_axes, tile.err_CHW
    )
    whole_N = math.pi * semi_axes[0] * semi_axes[1]
    cut_NC = area_NC < MIN_KRON_COVER * whole_N[:, None]
    kron_flux_NC[cut_NC] = kron_err_NC[cut_NC] = np.nan
    return Photometry(
        flux_NCR=flux_NCR,
        flux_err_NCR=flux_err_NCR,
        kron_flux_NC=(kron_flux_NC - area_NC * sky_NC).astype(np.float32),
        kron_flux_err_NC=np.hypot(kron_err_NC, area_NC * sky_err_NC).astype(np.float32),
        flags_NC=flags_NC | kron_flags_NC | kron.flags_N[:, None],
        sky_NC=sky_NC,
    )


def noise_weights(err_CHW: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return weight_C: 1 / (median error)^2 of each band, from 512 x 512 pixels; 0 without any.

    The median is the noise of the sky, without the photon noise of sources.
    """
    weight_C = np.zeros(len(err_CHW))
    for c, err_HW in enumerate(err_CHW):
        step = max(1, min(err_HW.shape) // 512)
        sample = err_HW[::step, ::step]
        sample = sample[np.isfinite(sample) & (sample > 0)]
        if sample.size:
            weight_C[c] = float(np.median(sample)) ** -2
    return weight_C


def psf_sigma_arcsec(survey: Survey, weight_C: NDArray[np.float64]) -> float:
    """Return the rms width of the PSF of the weighted sum of bands, taken as a Gaussian."""
    weight_C = weight_C if weight_C.any() else np.ones(len(weight_C))
    fwhm2_C = np.array([band.psf_fwhm_arcsec**2 for band in survey.bands])
    return math.sqrt(np.average(fwhm2_C, weights=weight_C) / (8 * math.log(2)))
