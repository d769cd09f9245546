"""Sharp defects in cutouts: cosmic rays, hot pixels, dead bands. And the noise of each cutout.

Two tests find light that is not from the sky, in one band at one place.

Sharpness: a filter of 3 x 3 pixels to which no image that the PSF has blurred gives a positive
answer. A pixel minus its best fit by point sources of positive flux is such a filter (Moreau's
decomposition of a vector by a convex cone), and the one in which a lone bright pixel stands out
most. Drizzling spreads a native pixel over several pixels of the mosaic, as wide as the PSF.

Colour: 3 x 3 pixels above their surroundings, by more than MAX_COLOUR times the light in any other
band. No galaxy or star is so much brighter in one band than in all others, except where only
one band lies beyond a break.

Cosmic rays that several exposures did not reject are found in single images in a like way by
L.A.Cosmic (van Dokkum 2001, PASP 113, 1420), from their sharp edges.
"""

from functools import lru_cache
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

MIN_SNR = 5.2  # of what is sharp
MIN_EXCESS = 2.3  # of what no colour explains, in units of its error
MAX_COLOUR = 2.1  # flux in one band over that of every other; 0.8 magnitudes
# A galaxy's core may be peaked in one band and flat in another: there its light counts as well.
SMOOTH_SHARE = 0.1
# The sharpest PSF is that much narrower than the survey's: Gaussians approximate it.
NARROWER = 0.92
_WIDTHS = (1.0, 1.3, 2.0)
RIM = 2  # pixels that the filters need around a pixel
# The mean size of the noise of the quietest fifth of the columns, in units of its sigma.
QUIET = 0.65
_FAST = {"contract", "reassoc", "nsz"}


class Defects(NamedTuple):
    """What `find_defects` returns.

    Attributes:
        found_N: whether the image has a sharp defect.
        noise_NC: noise of a pixel, in the image's unit; NaN where it cannot be measured. Where
            neighbouring pixels' noise is correlated, it is lower than their scatter.
    """

    found_N: NDArray[np.bool_]
    noise_NC: NDArray[np.float32]


@lru_cache(maxsize=64)
def sharpness_filter(psf_fwhm_pix: float) -> tuple[float, float, float]:
    """Return the weights of a pixel, of its four neighbours and of the four at the corners.

    Their squares (1, 4 and 4 times) add up to 1.
    """
    at = np.arange(-1, 2)
    sources = np.arange(-3, 3.01, 0.25)
    columns = []
    for width in _WIDTHS:
        sigma = NARROWER * width * psf_fwhm_pix / 2.3548
        profile_S3 = np.exp(-0.5 * ((at - sources[:, None]) / sigma) ** 2)
        stamps = profile_S3[:, None, :, None] * profile_S3[None, :, None, :]
        columns.append(stamps.reshape(-1, 9))
    stamp_S9 = np.concatenate(columns)
    norm_S = np.linalg.norm(stamp_S9, axis=1)
    cone_9S = (stamp_S9[norm_S > 1e-6] / norm_S[norm_S > 1e-6, None]).T
    pixel_9 = np.zeros(9)
    pixel_9[4] = 1.0
    weight_9 = pixel_9 - cone_9S @ nnls(cone_9S, pixel_9)[0]
    weight_9 /= np.linalg.norm(weight_9)
    return (
        float(weight_9[4]),
        float(weight_9[[1, 3, 5, 7]].mean()),
        float(weight_9[::2][[0, 1, 3, 4]].mean()),
    )


def find_defects(
    cutout_NCSS: NDArray[np.float32], side: int, psf_fwhm_pix_C: NDArray[np.floating]
) -> Defects:
    """Look for sharp defects in the middle of every cutout, and measure the noise there.

    Args:
        cutout_NCSS: any unit; NaN where there is no pixel.
        side: of the part that the network sees, pixels. Defects are looked for in
            all of it but the outermost RIM pixels.
        psf_fwhm_pix_C: full width of each band's PSF at half maximum.
    """
    n, n_bands, size, _ = cutout_NCSS.shape
    side = min(side, size)
    inner = side - 2 * RIM
    weight_C3 = np.array([sharpness_filter(float(f)) for f in psf_fwhm_pix_C], np.float32)
    found_N, noise_NC = np.zeros(n, np.bool_), np.full((n, n_bands), np.nan, np.float32)
    if inner > 0:
        first = size // 2 - inner // 2
        _find(cutout_NCSS, first, inner, weight_C3, found_N, noise_NC)
    return Defects(found_N, noise_NC)


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _find(cutout_NCSS, first, inner, weight_C3, found_N, noise_NC):
    n_bands = cutout_NCSS.shape[1]
    sharp_CHW = np.empty((n_bands, inner, inner), np.float32)
    peak_CHW = np.empty((n_bands, inner, inner), np.float32)
    sharp_top_CW, peak_top_CW = np.empty((2, n_bands, inner), np.float32)
    fine_HW = np.empty((inner, inner), np.float32)
    fine_size_W, peak_size_W = np.empty((2, inner), np.float32)
    sums_2W = np.empty((2, inner + 2 * RIM), np.float32)
    sharp_noise_C, peak_noise_C, sky_C = np.empty((3, n_bands), np.float32)
    for n in range(cutout_NCSS.shape[0]):
        dead = False
        for c in range(n_bands):
            # Rows of a whole image are contiguous, and those loops are vectorised.
            image_SS = cutout_NCSS[n, c]
            _filter(image_SS, first, weight_C3[c], sums_2W, sharp_CHW[c], fine_HW, peak_CHW[c])
            _by_column(fine_HW, sharp_CHW[c], fine_size_W, sharp_top_CW[c])
            _by_column(peak_CHW[c], peak_CHW[c], peak_size_W, peak_top_CW[c])
            # Few columns hold the source or a defect; those with little light show the noise.
            centre, edge, corner = weight_C3[c]
            white = np.sqrt(1 - (centre + 4 * edge + 4 * corner) ** 2 / 9)  # its noise
            sharp_noise_C[c] = _rank(fine_size_W, 0.2) / (np.float32(QUIET) * white)
            peak_noise_C[c] = _rank(peak_size_W, 0.2) / np.float32(QUIET)
            sky_C[c] = _sky(image_SS[first : first + inner, first : first + inner])
            noise_NC[n, c] = sharp_noise_C[c]
            # Constant but for the rounding of the sums: a dead band.
            dead |= sharp_noise_C[c] <= np.float32(1e-5) * abs(sky_C[c])
        found_N[n] = dead or _stands_out(
            cutout_NCSS[n], first, weight_C3, sharp_CHW, peak_CHW, sharp_top_CW, peak_top_CW,
            sharp_noise_C, peak_noise_C, sky_C,
        )  # fmt: skip


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _filter(image_SS, first, weight_3, sums_2W, sharp_HW, fine_HW, peak_HW):
    """Filter an image: sharpness, with and without the mean; 3 x 3 pixels less their rim."""
    centre, edge, corner = weight_3
    mean = (centre + 4 * edge + 4 * corner) * np.float32(1 / 9)
    inner = sharp_HW.shape[0]
    three_W, five_W = sums_2W  # of as many pixels above each other
    in_mean, in_rim = np.float32(1 / 9), np.float32(1 / 16)
    left, right = first - RIM, first + inner + RIM
    for i in range(inner):
        y = first + i
        a, b = image_SS[y - 2, left:right], image_SS[y - 1, left:right]
        d, e = image_SS[y + 1, left:right], image_SS[y + 2, left:right]
        m, sharp_W, peak_W = image_SS[y, left:right], sharp_HW[i], peak_HW[i]
        for j in range(inner + 2 * RIM):
            three_W[j] = b[j] + m[j] + d[j]
        for j in range(inner + 2 * RIM):
            five_W[j] = three_W[j] + a[j] + e[j]
        for j in range(inner):
            nine = three_W[j + 1] + three_W[j + 2] + three_W[j + 3]
            all_25 = five_W[j] + five_W[j + 1] + five_W[j + 2] + five_W[j + 3] + five_W[j + 4]
            peak_W[j] = nine * (in_mean + in_rim) - all_25 * in_rim
        for j in range(inner):
            nine = three_W[j + 1] + three_W[j + 2] + three_W[j + 3]
            cross = three_W[j + 2] + m[j + 1] + m[j + 3]  # with the pixel itself
            sharp_W[j] = (centre - edge) * m[j + 2] + (edge - corner) * cross + corner * nine
        fine_W = fine_HW[i]
        for j in range(inner):
            nine = three_W[j + 1] + three_W[j + 2] + three_W[j + 3]
            fine_W[j] = sharp_W[j] - mean * nine


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _by_column(size_HW, top_HW, mean_size_W, top_W):
    """Mean size, and highest value, of each column; the mean is NaN if a pixel is not finite."""
    mean_size_W[:] = 0
    top_W[:] = -np.inf
    share = np.float32(1 / size_HW.shape[0])
    for i in range(size_HW.shape[0]):
        row_W, value_W = size_HW[i], top_HW[i]
        for j in range(row_W.size):
            mean_size_W[j] += abs(row_W[j]) * share
        for j in range(row_W.size):
            top_W[j] = value_W[j] if value_W[j] > top_W[j] else top_W[j]


@numba.njit(nogil=True, cache=True)
def _sky(image_HW):
    """Return the second lowest mean of the four edges' halves; 0 where all lack a pixel."""
    size = image_HW.shape[0]
    half, last = size // 2, size - 1
    mean_8 = np.zeros(8, np.float32)
    for j in range(half):
        mean_8[0] += image_HW[0, j]
        mean_8[1] += image_HW[0, last - j]
        mean_8[2] += image_HW[last, j]
        mean_8[3] += image_HW[last, last - j]
        mean_8[4] += image_HW[j, 0]
        mean_8[5] += image_HW[last - j, 0]
        mean_8[6] += image_HW[j, last]
        mean_8[7] += image_HW[last - j, last]
    sky = _rank(mean_8, 0.15) / np.float32(half)
    return sky if sky == sky else np.float32(0)


@numba.njit(nogil=True, cache=True, fastmath=_FAST)
def _rank(value_W, share):
    """Return the value below which this share of the finite ones lies; NaN if few are finite."""
    infinite = np.float32(np.inf)
    count = np.float32(0)
    for j in range(value_W.size):
        count += np.float32(1) if abs(value_W[j]) < infinite else np.float32(0)
    if 4 * count < value_W.size:
        return np.float32(np.nan)
    found = -infinite
    for _ in range(int(share * count) + 1):
        lowest = infinite  # of those above the last one; without branches, unlike a sort
        for j in range(value_W.size):
            value = value_W[j]
            lowest = value if (value > found) & (value < lowest) else lowest
        if not lowest < infinite:
            break  # many are equal
        found = lowest
    return found


@numba.njit(nogil=True, cache=True)
def _stands_out(
    image_CSS, first, weight_C3, sharp_CHW, peak_CHW, sharp_top_CW, peak_top_CW,
    sharp_noise_C, peak_noise_C, sky_C,
):  # fmt: skip
    """Whether a pixel of one band is too sharp, or too bright for the other bands."""
    n_bands, inner, _ = sharp_CHW.shape
    for c in range(n_bands):
        centre, edge, corner = weight_C3[c]
        # A sky below zero looks sharp; one above zero may be the source's own light.
        below = min(sky_C[c], np.float32(0)) * (centre + 4 * edge + 4 * corner)
        min_sharp = MIN_SNR * sharp_noise_C[c] + below
        min_peak = MIN_SNR * peak_noise_C[c]
        for j in range(inner):
            if not (sharp_top_CW[c, j] > min_sharp or peak_top_CW[c, j] > min_peak):
                continue
            for i in range(inner):
                if (
                    sharp_CHW[c, i, j] > min_sharp
                    and _is_alone(sharp_CHW, c, i, j)
                    and sharp_CHW[c, i, j]
                    > min_sharp + SMOOTH_SHARE * (_level(image_CSS[c], first, i, j) - sky_C[c])
                ):
                    return True
                if peak_CHW[c, i, j] > min_peak and _has_no_colour(
                    image_CSS, first, peak_CHW, peak_noise_C, sky_C, c, i, j
                ):
                    return True
    return False


@numba.njit(nogil=True, cache=True)
def _is_alone(sharp_CHW, c, i, j):
    """Whether no other band is nearly as sharp there, as all are where the PSF is narrower."""
    for k in range(sharp_CHW.shape[0]):
        if k != c and MAX_COLOUR * sharp_CHW[k, i, j] > sharp_CHW[c, i, j]:
            return False
    return True


@numba.njit(nogil=True, cache=True)
def _has_no_colour(image_CSS, first, peak_CHW, noise_C, sky_C, c, i, j):
    """Whether the other bands, one at least, have too little light there for any source."""
    n_others = 0
    for k in range(peak_CHW.shape[0]):
        peak = peak_CHW[k, i, j]
        if k == c or not (abs(peak) < np.inf and noise_C[k] > 0):
            continue
        n_others += 1
        noise = np.sqrt(noise_C[c] ** 2 + (MAX_COLOUR * noise_C[k]) ** 2)
        excess = peak_CHW[c, i, j] - MIN_EXCESS * noise
        if not excess > MAX_COLOUR * peak:
            return False
        level = _level(image_CSS[k], first, i, j) - sky_C[k]
        if not excess > MAX_COLOUR * SMOOTH_SHARE * level:
            return False
    return n_others > 0


@numba.njit(nogil=True, cache=True)
def _level(image_SS, first, i, j):
    """Return the mean of 3 x 3 pixels."""
    total = np.float32(0)
    for y in range(first + i - 1, first + i + 2):
        for x in range(first + j - 1, first + j + 2):
            total += image_SS[y, x]
    return total / np.float32(9)
