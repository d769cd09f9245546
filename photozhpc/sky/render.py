"""Fast renderer: bulge + disk galaxies and stars onto a mosaic, in Fourier space.

A galaxy's Fourier transform is the same in every band but for the fluxes of its components, so
it is evaluated once and multiplied by each band's PSF. Tested against GalSim's own drawing.
"""

from functools import lru_cache

import galsim
import numba
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from photozhpc.sky.population import BULGE_TRUNCATION, Floats, Population
from photozhpc.sky.psf import band_psf, psf_transform

STAMP_SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
DISK_EXTENT = 5.5  # half-light radii: 99.8% of an exponential's light
DISK_SCALE = 1.6783469900166605  # half-light radius of an exponential over its scale length
LOG_K_MIN, LOG_K_MAX, N_K = -7.0, 9.0, 8192
PSF_EXTENT_PIX = 14


@lru_cache(maxsize=1)
def bulge_transform() -> NDArray[np.float64]:
    """Fourier amplitude of a de Vaucouleurs profile over ln(k r), r the half-light radius.

    The profile ends at BULGE_TRUNCATION half-light radii, as SDSS's does; unit flux.
    """
    profile = galsim.Sersic(4.0, half_light_radius=1.0, trunc=BULGE_TRUNCATION)
    k = np.exp(np.linspace(LOG_K_MIN, LOG_K_MAX, N_K))
    return np.array([profile.kValue(value, 0.0).real for value in k])


class Renderer:
    """Draws populations onto mosaics of one set of bands and one pixel scale.

    Attributes:
        noise_area_C: noise-equivalent area of each band's PSF, mosaic pixels.
    """

    def __init__(self, bands: tuple[str, ...], pixel_scale_arcsec: float):
        self.bands = bands
        self.pixel_scale_arcsec = pixel_scale_arcsec
        self._psfs = [band_psf(band, pixel_scale_arcsec) for band in bands]
        self._transforms: dict[int, tuple[NDArray[np.complex64], NDArray[np.int64]]] = {}
        self.noise_area_C = np.array([psf.noise_area_pix for psf in self._psfs])

    def psf_CAyx(self, size: int) -> tuple[NDArray[np.complex64], NDArray[np.int64]]:
        """PSF transforms on a stamp (see `psf_transform`), and the number of folds per band."""
        if size not in self._transforms:
            stack = np.stack([psf_transform(psf, size) for psf in self._psfs])
            folds_C = np.array([4 if psf.aliased else 1 for psf in self._psfs])
            self._transforms[size] = (stack, folds_C)
        return self._transforms[size]

    def stamp_sizes(
        self, sources: Population, sky_sigma_njy_C: Floats, smallest_N: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Side of each source's stamp: holds the galaxy, and the PSF's wings above the noise.

        Roman's PSF falls as r^-3; the wings of a bright source are drawn out to where they
        reach 2% of the sky noise.
        """
        disk_N = np.where(sources.disk_njy_NC.any(axis=1), sources.disk_radius_arcsec_N, 0.0)
        extent_N = np.maximum(DISK_EXTENT * disk_N, BULGE_TRUNCATION * sources.bulge_radius_arcsec_N)
        half_N = extent_N / self.pixel_scale_arcsec + PSF_EXTENT_PIX
        contrast_N = (sources.flux_njy_NC / sky_sigma_njy_C).max(axis=1)
        wings_N = (1e-3 * contrast_N) ** (1.0 / 3.0) / self.pixel_scale_arcsec
        wanted_N = np.maximum(np.maximum(2 * half_N, 2 * wings_N), smallest_N)
        index_N = np.minimum(np.searchsorted(STAMP_SIZES, wanted_N), len(STAMP_SIZES) - 1)
        return np.array(STAMP_SIZES)[index_N]

    def stamp(
        self, sources: Population, i: int, size: int, dy: float, dx: float, fold: bool = True
    ) -> NDArray[np.float32]:
        """Image of source `i` (C x size x size, nJy per pixel), centre at size // 2 + (dy, dx).

        fold: add the frequencies beyond the mosaic's Nyquist limit, where the optics pass them.
        """
        psf_CAyx, folds_C = self.psf_CAyx(size)
        out_Cyx = np.empty((len(self.bands), size, size // 2 + 1), np.complex64)
        _source_transform(
            out_Cyx,
            psf_CAyx,
            folds_C if fold else np.ones_like(folds_C),
            bulge_transform(),
            sources.bulge_njy_NC[i],
            sources.disk_njy_NC[i],
            _quadratic_form(
                sources.bulge_radius_arcsec_N[i],
                sources.bulge_axis_ratio_N[i],
                sources.angle_rad_N[i],
                size * self.pixel_scale_arcsec,
            ),
            _quadratic_form(
                sources.disk_radius_arcsec_N[i] / DISK_SCALE,
                sources.disk_axis_ratio_N[i],
                sources.angle_rad_N[i],
                size * self.pixel_scale_arcsec,
            ),
            dy,
            dx,
        )
        return scipy.fft.irfft2(out_Cyx, s=(size, size), workers=1, overwrite_x=True)

    def draw(
        self,
        image_CHW: NDArray[np.float32],
        sources: Population,
        y_N: Floats,
        x_N: Floats,
        sky_sigma_njy_C: Floats,
        smallest_N: NDArray[np.int64],
    ) -> None:
        """Add the sources to `image_CHW` (nJy per pixel) at pixel positions (y, x).

        smallest_N: least stamp side of each source, pixels.
        """
        size_N = self.stamp_sizes(sources, sky_sigma_njy_C, smallest_N)
        fold_N = (sources.flux_njy_NC / sky_sigma_njy_C).max(axis=1) > FOLD_CONTRAST
        height, width = image_CHW.shape[1:]
        for i in range(len(sources)):
            size = int(size_N[i])
            y0, x0 = int(np.floor(y_N[i] + 0.5)), int(np.floor(x_N[i] + 0.5))
            top, left = y0 - size // 2, x0 - size // 2
            a, b = max(top, 0), min(top + size, height)
            c, d = max(left, 0), min(left + size, width)
            if a >= b or c >= d:
                continue
            stamp = self.stamp(sources, i, size, y_N[i] - y0, x_N[i] - x0, bool(fold_N[i]))
            image_CHW[:, a:b, c:d] += stamp[:, a - top : b - top, c - left : d - left]


FOLD_CONTRAST = 100.0  # flux over the pixel noise, below which folded frequencies do not matter


def _quadratic_form(
    radius_arcsec: float, axis_ratio: float, angle_rad: float, stamp_arcsec: float
) -> NDArray[np.float64]:
    """(xx, xy, yy) of (k r)^2 as a quadratic form in integer stamp frequencies."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    q2 = axis_ratio**2
    scale = (2.0 * np.pi * radius_arcsec / stamp_arcsec) ** 2
    return scale * np.array([
        cosine**2 + q2 * sine**2, 2.0 * cosine * sine * (1.0 - q2), sine**2 + q2 * cosine**2
    ])  # fmt: skip


@numba.njit(cache=True, fastmath=True)
def _source_transform(
    out_Cyx, psf_CAyx, folds_C, bulge_table, bulge_C, disk_C, bulge_form, disk_form, dy, dx
):
    """Fourier transform of a source seen in every band; written into `out_Cyx`."""
    n_bands, size, half = out_Cyx.shape
    n_folds = folds_C.max()
    step = (LOG_K_MAX - LOG_K_MIN) / (N_K - 1)
    has_bulge = bulge_form[0] + bulge_form[2] > 0.0
    for fold in range(n_folds):
        shift_x = -size if fold % 2 == 1 else 0
        for iy in range(size):
            fy = iy if iy < size // 2 else iy - size
            if fold >= 2:
                fy = fy - size if fy >= 0 else fy + size
            phase_y = -2.0 * np.pi * fy * (0.5 + dy / size)
            phase_x = -2.0 * np.pi * (0.5 + dx / size)
            first = phase_y + phase_x * shift_x
            turn_r, turn_i = np.cos(phase_x), np.sin(phase_x)
            cr, ci = np.cos(first), np.sin(first)
            for ix in range(half):
                fx = ix + shift_x
                u = disk_form[0] * fx * fx + disk_form[1] * fx * fy + disk_form[2] * fy * fy
                disk = 1.0 / ((1.0 + u) * np.sqrt(1.0 + u))
                bulge = 1.0
                if has_bulge:
                    v = bulge_form[0] * fx * fx + bulge_form[1] * fx * fy + bulge_form[2] * fy * fy
                    if v > 0.0:
                        at = (0.5 * np.log(v) - LOG_K_MIN) / step
                        if at >= N_K - 1:
                            bulge = 0.0
                        elif at > 0.0:
                            low = int(at)
                            rest = at - low
                            bulge = bulge_table[low] * (1.0 - rest) + bulge_table[low + 1] * rest
                for c in range(n_bands):
                    if fold >= folds_C[c]:
                        continue
                    value = bulge_C[c] * bulge + disk_C[c] * disk
                    psf = psf_CAyx[c, fold, iy, ix]
                    real = value * (psf.real * cr - psf.imag * ci)
                    imag = value * (psf.real * ci + psf.imag * cr)
                    if fold == 0:
                        out_Cyx[c, iy, ix] = complex(real, imag)
                    else:
                        out_Cyx[c, iy, ix] += complex(real, imag)
                cr, ci = cr * turn_r - ci * turn_i, cr * turn_i + ci * turn_r
