"""Roman's effective PSF in each band, and its Fourier transform on a stamp."""

from dataclasses import dataclass
from functools import lru_cache

import galsim
import galsim.roman
import numpy as np
from numpy.typing import NDArray

from photozhpc.sky.sed import galsim_band_name, roman_bandpasses
from photozhpc.sky.spectra import Floats

PSF_DETECTOR = 7  # an SCA near the field centre
NATIVE_PIXEL_ARCSEC = galsim.roman.pixel_scale
STORED_SIZE_PIX = 512  # mosaic pixels over which the PSF is tabulated
NYQUIST = 0.5  # cycles per pixel


@dataclass(frozen=True)
class BandPsf:
    """One band's PSF, sampled at half a mosaic pixel.

    Attributes:
        fine_HW: flux per fine pixel, centred on index [512, 512]; sums to the light within the
            table.
        noise_area_pix: noise-equivalent area 1 / sum(P^2), mosaic pixels.
        aliased: whether the optics pass frequencies beyond the mosaic's Nyquist frequency.
    """

    fine_HW: NDArray[np.float64]
    noise_area_pix: float
    aliased: bool


def optics(band: str) -> galsim.GSObject:
    """Return GalSim's Roman PSF at a filter's effective wavelength: optics and pupil only.

    Raises:
        ConfigError: GalSim has no such Roman bandpass.
    """
    name = galsim_band_name(band)
    wavelength = roman_bandpasses()[band.upper()].effective_wavelength
    return galsim.roman.getPSF(PSF_DETECTOR, name, pupil_bin=8, wavelength=wavelength)


def effective_psf(band: str, pixel_scale_arcsec: float) -> galsim.GSObject:
    """Return the co-add's PSF: optics, native detector pixel, and the mosaic's own pixel.

    Drizzling with full-size drops gives it, averaged over dithers (Fruchter & Hook 2002). The image
    of a source is then the convolution sampled at pixel centres ("no_pixel").
    """
    return galsim.Convolve(
        optics(band), galsim.Pixel(NATIVE_PIXEL_ARCSEC), galsim.Pixel(pixel_scale_arcsec)
    )


@lru_cache(maxsize=16)
def band_psf(band: str, pixel_scale_arcsec: float) -> BandPsf:
    """Tabulate a band's effective PSF; takes a third of a second, cached for the process."""
    n = 2 * STORED_SIZE_PIX
    image = effective_psf(band, pixel_scale_arcsec).drawImage(
        nx=n, ny=n, scale=pixel_scale_arcsec / 2, method="no_pixel", offset=(0.5, 0.5), dtype=float
    )
    fine_HW = image.array
    sampled = 4.0 * fine_HW[::2, ::2]
    cutoff = optics(band).maxk / (2 * np.pi) * pixel_scale_arcsec
    return BandPsf(
        fine_HW=fine_HW,
        noise_area_pix=float(1.0 / np.sum(sampled**2)),
        aliased=bool(cutoff > NYQUIST),
    )


def psf_transform(psf: BandPsf, size: int) -> NDArray[np.complex64]:
    """Return the Fourier transform of the PSF cropped to a stamp, up to twice Nyquist.

    Cropping in real space, rather than sampling the transform coarsely, keeps the far wings
    from wrapping around the stamp.

    Returns:
        psf_A(size)(size/2+1): A = 0 the stamp's own frequencies (fy, fx); 1 to 3 those that
        fold onto them: fx - size; fy -+ size; both.
    """
    half = STORED_SIZE_PIX
    keep = min(size, STORED_SIZE_PIX)
    fine = np.zeros((2 * size, 2 * size))
    inner = psf.fine_HW[half - keep : half + keep, half - keep : half + keep]
    fine[size - keep : size + keep, size - keep : size + keep] = inner
    transform = np.fft.fft2(np.fft.ifftshift(fine))
    row = np.fft.fftfreq(size, 1.0 / size).astype(int)
    column = np.arange(size // 2 + 1)
    folded_row = np.where(row >= 0, row - size, row + size)
    out = [
        transform[np.ix_(rows % (2 * size), columns % (2 * size))]
        for rows in (row, folded_row)
        for columns in (column, column - size)
    ]
    return np.ascontiguousarray(np.stack(out), dtype=np.complex64)


def blur_field(
    rng: np.random.Generator, y_N: Floats, x_N: Floats, size: int, largest_arcsec: float
) -> Floats:
    """Draw what is added to the PSF over a tile: covariances (xx, xy, yy; arcsec2; N x 3).

    Width and ellipticity change linearly over the tile, in a random direction each. An exponential
    with this covariance is convolved with the PSF. GalSim's Roman PSFs of the 18 detectors differ
    by 0.8% in width and 0.01 to 0.03 in ellipticity; a blur of up to 0.02" does as much.
    """
    across_N2 = np.stack([x_N, y_N], axis=1) / size - 0.5
    angle_3 = rng.uniform(0.0, 2.0 * np.pi, 3)
    slope_23 = np.stack([np.cos(angle_3), np.sin(angle_3)])
    width_N, e1_N, e2_N = (across_N2 @ slope_23 / np.sqrt(2.0)).T  # within +-0.5 on the tile
    start_2 = rng.uniform(-0.3, 0.3, 2)
    e1_N, e2_N = np.clip(e1_N + start_2[0], -0.65, 0.65), np.clip(e2_N + start_2[1], -0.65, 0.65)
    variance_N = 0.5 * largest_arcsec**2 * np.clip(0.5 + width_N, 0.0, 1.0)
    return variance_N[:, None] * np.stack([1.0 + e1_N, e2_N, 1.0 - e1_N], axis=1)
