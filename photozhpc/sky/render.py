"""Draws bulge + disk galaxies and stars onto a mosaic, in Fourier space.

A galaxy's Fourier transform is the same in every band except for the fluxes of its components, so
it is evaluated once and multiplied by each band's PSF. Tested against GalSim's own drawing.
"""

from functools import lru_cache

import galsim
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from photozhpc.sky.population import BULGE_TRUNCATION, Population
from photozhpc.sky.psf import STORED_SIZE_PIX, band_psf, psf_transform
from photozhpc.sky.spectra import Floats
from photozhpc.sky.transforms import BULGE_STEP, N_K, add_knots, source_transform
from photozhpc.sky.wings import add_wings, wing_kernel

Floats32 = NDArray[np.float32]
STAMP_SIZES = (64, 96, 128, 192, 256, 384, 512, 768, 1024)
DISK_EXTENT = 6.0  # half-light radii: 99.95% of an exponential's light
DISK_SCALE = 1.6783469900166605  # half-light radius of an exponential / its scale length
PSF_EXTENT_PIX = 14
NO_BLUR = np.zeros(3)
# Accuracy by brightness: (least flux over pixel noise, fraction of the PSF's transform that is
# neglected, how many of the four sets of folded frequencies are summed).
LEVELS = ((0.0, 1e-5, 1), (100.0, 3e-6, 4), (3000.0, 1e-9, 4))


@lru_cache(maxsize=1)
def bulge_transform() -> Floats32:
    """Return a de Vaucouleurs profile's Fourier amplitude over sqrt(k r), r: half-light radius.

    The profile ends at BULGE_TRUNCATION half-light radii, as in SDSS, and has unit flux.
    """
    profile = galsim.Sersic(4.0, half_light_radius=1.0, trunc=BULGE_TRUNCATION)
    k = (BULGE_STEP * np.arange(N_K)) ** 2
    return np.array([profile.kValue(value, 0.0).real for value in k], np.float32)


class Renderer:
    """Draws populations onto mosaics of one set of bands and one pixel scale.

    Attributes:
        noise_area_C: noise-equivalent area of each band's PSF, mosaic pixels.
    """

    def __init__(self, bands: tuple[str, ...], pixel_scale_arcsec: float):
        self.bands = bands
        self.pixel_scale_arcsec = pixel_scale_arcsec
        self._psfs = [band_psf(band, pixel_scale_arcsec) for band in bands]
        self._transforms: dict[int, tuple[Floats32, list[NDArray[np.int64]]]] = {}
        self._wing_kernels = {
            size: np.stack([wing_kernel(psf, size) for psf in self._psfs])
            for size in STAMP_SIZES
            if size < STORED_SIZE_PIX
        }
        self.noise_area_C = np.array([psf.noise_area_pix for psf in self._psfs])

    def psf_transforms(self, size: int) -> tuple[Floats32, list[NDArray[np.int64]]]:
        """Return PSF transforms on a stamp, (2, C, A, y, x), and their spans at each level.

        The first axis is real and imaginary part, A the folds (see `psf_transform`). The spans
        (C, A, y, 2) are the columns [start, stop) of each row that are not negligible.
        """
        if size not in self._transforms:
            stack_CAyx = np.stack([psf_transform(psf, size) for psf in self._psfs])
            # Beyond the optics' cutoff there is only GalSim's interpolation noise.
            stack_CAyx[[not psf.aliased for psf in self._psfs], 1:] = 0.0
            spans = []
            for _, negligible, folds in LEVELS:
                large = np.abs(stack_CAyx[:, :folds]) > negligible
                has_large = large.any(axis=-1)
                start = np.where(has_large, large.argmax(axis=-1), 0)
                stop = np.where(has_large, size // 2 + 1 - large[..., ::-1].argmax(axis=-1), 0)
                spans.append(np.stack([start, stop], axis=-1))
            parts_2CAyx = np.stack([stack_CAyx.real, stack_CAyx.imag])
            self._transforms[size] = (parts_2CAyx, spans)
        return self._transforms[size]

    def stamp_sizes(
        self, sources: Population, sky_sigma_njy_C: Floats, smallest_N: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the side of each source's stamp: it holds the galaxy and the PSF's wings.

        Roman's PSF falls as r^-3; the wings of a bright source are drawn out to where they average
        0.5% of the sky noise (the diffraction spikes are brighter).
        """
        disk_N = np.where(sources.disk_njy_NC.any(axis=1), sources.disk_radius_arcsec_N, 0.0)
        extent_N = np.maximum(
            DISK_EXTENT * disk_N, BULGE_TRUNCATION * sources.bulge_radius_arcsec_N
        )
        half_N = extent_N / self.pixel_scale_arcsec + PSF_EXTENT_PIX
        contrast_N = (sources.flux_njy_NC / sky_sigma_njy_C).max(axis=1)
        wings_N = (4e-3 * contrast_N) ** (1.0 / 3.0) / self.pixel_scale_arcsec
        side_N = np.maximum(np.maximum(2 * half_N, 2 * wings_N), smallest_N)
        index_N = np.minimum(np.searchsorted(STAMP_SIZES, side_N), len(STAMP_SIZES) - 1)
        return np.array(STAMP_SIZES)[index_N]

    def stamp(
        self,
        sources: Population,
        i: int,
        size: int,
        dy: float,
        dx: float,
        level: int = -1,
        blur_arcsec2_3: Floats = NO_BLUR,
    ) -> Floats32:
        """Return the image of source `i` (C x size x size, nJy per pixel).

        Its centre is at size // 2 + (dy, dx).

        level: index into LEVELS; the last is the most accurate.
        blur_arcsec2_3: covariance (xx, xy, yy) of what is added to the PSF, see `psf.blur_field`.
        """
        psf_2CAyx, spans = self.psf_transforms(size)
        out_Cyx2 = np.empty((len(self.bands), size, size // 2 + 1, 2), np.float32)
        stamp_arcsec = size * self.pixel_scale_arcsec
        disk_njy_C = sources.disk_njy_NC[i]
        groups = [
            (knots.place_NK3[i], knots.share_NC[i] * disk_njy_C, knots.size_N[i])
            for knots in (sources.structure.clumps, sources.structure.arms)
            if knots.place_NK3[i, :, 2].any()
        ]
        smooth_njy_C = disk_njy_C - sum(in_knots_C for _, in_knots_C, _ in groups)
        disk_form = _quadratic_form(
            sources.disk_radius_arcsec_N[i] / DISK_SCALE,
            sources.disk_axis_ratio_N[i],
            sources.angle_rad_N[i],
            stamp_arcsec,
        )
        # An exponential of scale h has the variance 3 h^2 per axis.
        blur_form = (blur_arcsec2_3 * (1.0, 2.0, 1.0) / 3.0) * (2.0 * np.pi / stamp_arcsec) ** 2
        blur_form = blur_form.astype(np.float32)
        source_transform(
            out_Cyx2,
            psf_2CAyx,
            spans[level],
            bulge_transform(),
            sources.bulge_njy_NC[i],
            smooth_njy_C,
            _quadratic_form(
                sources.bulge_radius_arcsec_N[i],
                sources.bulge_axis_ratio_N[i],
                sources.angle_rad_N[i],
                stamp_arcsec,
            ),
            disk_form,
            blur_form,
            dy,
            dx,
        )
        for place_K3, in_knots_C, knot_size in groups:
            add_knots(
                out_Cyx2,
                psf_2CAyx,
                spans[level],
                in_knots_C,
                _projected(sources, i, place_K3, self.pixel_scale_arcsec),
                disk_form * np.float32(knot_size**2),
                blur_form,
                dy,
                dx,
            )
        out_Cyx = out_Cyx2.view(np.complex64)[..., 0]
        return scipy.fft.irfft2(out_Cyx, s=(size, size), workers=1, overwrite_x=True)

    def draw(
        self,
        image_CHW: NDArray[np.float32],
        sources: Population,
        y_N: Floats,
        x_N: Floats,
        sky_sigma_njy_C: Floats,
        smallest_N: NDArray[np.int64],
        blur_arcsec2_N3: Floats | None = None,
    ) -> None:
        """Add the sources to `image_CHW` (nJy per pixel) at pixel positions (y, x).

        smallest_N: least stamp side of each source, pixels.
        blur_arcsec2_N3: what is added to the PSF at each source, see `psf.blur_field`.
        """
        if blur_arcsec2_N3 is None:
            blur_arcsec2_N3 = np.broadcast_to(NO_BLUR, (len(sources), 3))
        size_N = self.stamp_sizes(sources, sky_sigma_njy_C, smallest_N)
        contrast_N = (sources.flux_njy_NC / sky_sigma_njy_C).max(axis=1)
        level_N = np.searchsorted([start for start, _, _ in LEVELS], contrast_N, "right") - 1
        height, width = image_CHW.shape[1:]
        for i in np.argsort(size_N, kind="stable"):  # by size: the PSF stays in the CPU's cache
            size = int(size_N[i])
            y0, x0 = int(np.floor(y_N[i] + 0.5)), int(np.floor(x_N[i] + 0.5))
            top, left = y0 - size // 2, x0 - size // 2
            a, b = max(top, 0), min(top + size, height)
            c, d = max(left, 0), min(left + size, width)
            if a >= b or c >= d:
                continue
            stamp = self.stamp(
                sources, i, size, y_N[i] - y0, x_N[i] - x0, int(level_N[i]), blur_arcsec2_N3[i]
            )
            image_CHW[:, a:b, c:d] += stamp[:, a - top : b - top, c - left : d - left]
        add_wings(image_CHW, self._wing_kernels, y_N, x_N, sources.flux_njy_NC, size_N)


def _quadratic_form(
    radius_arcsec: float, axis_ratio: float, angle_rad: float, stamp_arcsec: float
) -> Floats32:
    """Return (xx, xy, yy) of (k r)^2 as a quadratic form in integer stamp frequencies."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    q2 = axis_ratio**2
    scale = (2.0 * np.pi * radius_arcsec / stamp_arcsec) ** 2
    xx = cosine**2 + q2 * sine**2
    yy = sine**2 + q2 * cosine**2
    xy = 2.0 * cosine * sine * (1.0 - q2)
    return np.array([scale * xx, scale * xy, scale * yy], np.float32)


def _projected(sources: Population, i: int, place_K3: Floats, pixel_scale_arcsec: float) -> Floats:
    """Return the knots of source `i` as (y, x, share), pixels from its centre on the sky."""
    knots_K3 = place_K3[place_K3[:, 2] > 0.0]
    radius_pix = sources.disk_radius_arcsec_N[i] / pixel_scale_arcsec
    along_K, across_K = knots_K3[:, 0], knots_K3[:, 1] * sources.disk_axis_ratio_N[i]
    cosine, sine = np.cos(sources.angle_rad_N[i]), np.sin(sources.angle_rad_N[i])
    y_K = radius_pix * (along_K * sine + across_K * cosine)
    x_K = radius_pix * (along_K * cosine - across_K * sine)
    return np.stack([y_K, x_K, knots_K3[:, 2]], axis=1)
