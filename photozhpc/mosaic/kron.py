"""Kron apertures (Kron 1980; SExtractor's FLUX_AUTO) at given positions, in Numba.

The aperture is found once, on the sum of all bands weighted by the inverse variance of their
noise, and is the same in every band, as in SExtractor's dual-image mode: colours describe the
same part of the galaxy, and noise does not set the aperture in a band where the galaxy is faint.
The sum is made for one source at a time and never as an image.

SExtractor takes the ellipse from the second moments of the isophotal pixels of its own detection.
A forced list has no isophotes: the ellipse comes from adaptive moments, whose Gaussian weight
follows the source (Bernstein & Jarvis 2002, sec. 3; the shapes of SDSS and GalSim's HSM). They
converge without a threshold, and a neighbour more than four sigma away hardly changes them.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from photozhpc.mosaic.ellipses import _planes
from photozhpc.mosaic.photometry import (
    _FASTMATH,
    KRON_LIMITED,
    KRON_MINIMUM,
    OFF_TILE,
    _finite,
)
from photozhpc.mosaic.visit_order import positions, run_chunks, visiting_order

# SExtractor's PHOT_AUTOPARAMS 2.5, 3.5 and KRON_NSIG 6.
KRON_FACTOR = 2.5
MIN_SCALE = 3.5
MEASURED_SCALE = 6.0
_WINDOW_SIGMA = 4.0  # moments are summed out to here
_MIN_SNR = 5.0  # of the moments; below it the shape is that of the noise
_MAX_ROUNDS = 50
_CONVERGED = 1e-4
_NEIGHBOURS = 8  # the nearest ones; pixels behind them are theirs anyway
_FAR_PIX = 1e9
_SAME_PIX = 0.5  # a neighbour nearer than this is the source itself, listed again
_ROUND, _TOO_LARGE, _LOST = 0, 1, 2


@dataclass(frozen=True, eq=False)
class KronApertures:
    """Kron apertures of N sources, pixels.

    Attributes:
        a_N, b_N: rms along the axes (adaptive moments), at least the PSF's; the aperture's
            semi-axes are scale_N times these. NaN off the images.
        theta_N: radians from +x towards +y.
        kron_radius_N: first moment r_k = sum r I / sum I inside MEASURED_SCALE (a, b), in
            units of a; NaN where none could be measured.
        scale_N: max(2.5 r_k, 3.5), smaller where the aperture was limited.
        flags_N: `PhotFlag` KRON_MINIMUM, KRON_LIMITED, OFF_TILE.
    """

    a_N: NDArray[np.float64]
    b_N: NDArray[np.float64]
    theta_N: NDArray[np.float64]
    kron_radius_N: NDArray[np.float64]
    scale_N: NDArray[np.float64]
    flags_N: NDArray[np.int32]


def kron_apertures(
    image_CHW: ArrayLike,
    weight_C: ArrayLike,
    y_N: ArrayLike,
    x_N: ArrayLike,
    psf_sigma_pix: float,
    max_radius_pix: float,
    sky_NC: ArrayLike | None = None,
    y_K: ArrayLike = (),
    x_K: ArrayLike = (),
) -> KronApertures:
    """Find the Kron aperture of every source on the weighted sum of all bands.

    The sum is sum w (I - sky) / sum w over the bands that have a pixel there. A source without a
    shape (adaptive moments that do not converge, that are less than half the PSF's, or with a
    signal-to-noise ratio below 5) gets a circle of 3.5 psf_sigma_pix and KRON_MINIMUM. Pixels
    beyond max_radius_pix are not used.

    Args:
        image_CHW: C images of one grid; pixels that are not finite are left out.
        weight_C: 1 / noise^2 per pixel of each band, one number for a tile: weights that include
            the source's photon noise would flatten its profile. 0 or NaN: the band is not used.
        psf_sigma_pix: rms width of the PSF on the sum.
        max_radius_pix: longest semi-major axis of an aperture; not below 3.5 psf_sigma_pix.
        sky_NC: sky per pixel; where it is NaN the band is not used for that source.
        y_K, x_K: all sources of the field, including the N. A pixel nearer to another source is
            replaced by the one opposite to it, as in SExtractor (MASK_TYPE CORRECT).

    Raises:
        ValueError: shapes do not match, or sizes are not positive and finite.
    """
    images = _planes(image_CHW, "image_CHW")
    y, x = positions(y_N, x_N)
    weights = np.asarray(weight_C, np.float64)
    if weights.shape != images.shape[:1]:
        raise ValueError(f"weight_C must have a weight for each band, got shape {weights.shape}")
    for name, value in (("psf_sigma_pix", psf_sigma_pix), ("max_radius_pix", max_radius_pix)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    sky = np.zeros((y.size, weights.size)) if sky_NC is None else np.asarray(sky_NC, np.float64)
    if sky.shape != (y.size, weights.size):
        raise ValueError(f"sky_NC must have shape {(y.size, weights.size)}, got {sky.shape}")
    weights = np.where(np.isfinite(weights) & (weights > 0), weights, 0.0)
    limit = min(max(max_radius_pix, MIN_SCALE * psf_sigma_pix), float(sum(images.shape[1:])))
    near_NM2 = _neighbours(y, x, *positions(y_K, x_K), 2 * limit)
    found_N5 = np.full((y.size, 5), np.nan)
    flags = np.zeros(y.size, np.int32)
    order = visiting_order(y, x, *images.shape[1:])

    def chunk(start: int, stop: int) -> None:
        field = (images, weights, sky, near_NM2)
        _kron(*field, y, x, order, psf_sigma_pix, limit, start, stop, found_N5, flags)

    run_chunks(chunk, y.size, 50_000.0)
    a_N, b_N, theta_N, kron_radius_N, scale_N = np.ascontiguousarray(found_N5.T)
    return KronApertures(a_N, b_N, theta_N, kron_radius_N, scale_N, flags)


def _neighbours(
    y_N: NDArray, x_N: NDArray, y_K: NDArray, x_K: NDArray, radius: float
) -> NDArray[np.float64]:
    """Return near_NM2: y, x of the nearest neighbours within radius, filled up with far places."""
    source_N2, field_K2 = np.column_stack([y_N, x_N]), np.column_stack([y_K, x_K])
    finite_N = np.isfinite(source_N2).all(axis=1)
    field_K2 = field_K2[np.isfinite(field_K2).all(axis=1)]
    near_NM2 = np.full((len(source_N2), _NEIGHBOURS + 1, 2), _FAR_PIX)
    if len(field_K2) and finite_N.any():
        distance_NM, row_NM = cKDTree(field_K2).query(
            source_N2[finite_N], _NEIGHBOURS + 1, distance_upper_bound=radius
        )
        is_itself_NM = distance_NM < _SAME_PIX
        row_NM[is_itself_NM] = len(field_K2)  # as a row that was not found, and after the others
        order_NM = np.argsort(is_itself_NM, axis=1, kind="stable")
        row_NM = np.take_along_axis(row_NM, order_NM, axis=1)
        near_NM2[finite_N] = np.append(field_K2, [[_FAR_PIX, _FAR_PIX]], axis=0)[row_NM]
    return near_NM2


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _kron(
    images,
    weight_C,
    sky_NC,
    near_NM2,
    y_N,
    x_N,
    order_N,
    psf_sigma,
    limit,
    start,
    stop,
    found_N5,
    flags_N,
):
    _, height, width = images.shape
    reach = int(limit) + 1
    stamp = np.empty((2 * reach + 1, 2 * reach + 1))
    for n in order_N[start:stop]:
        yc, xc = y_N[n], x_N[n]
        if not (-0.5 <= yc < height - 0.5 and -0.5 <= xc < width - 0.5):
            flags_N[n] = OFF_TILE
            continue
        i, j = math.floor(yc + 0.5), math.floor(xc + 0.5)
        y, x = yc - i, xc - j  # from the middle of the stamp
        near = near_NM2[n] - np.array([i, j])
        filled = _fill(images, weight_C, sky_NC[n], i, j, y, x, near, stamp, -1, min(reach, 8))
        a2, b2, theta = psf_sigma**2, psf_sigma**2, 0.0
        mxx, mxy, myy = a2, 0.0, a2
        outcome = _LOST
        for _ in range(_MAX_ROUNDS):
            need = int(_WINDOW_SIGMA * math.sqrt(max(mxx, myy))) + 1
            if need > filled and filled < reach:
                filled = _fill(
                    images, weight_C, sky_NC[n], i, j, y, x, near, stamp, filled, min(reach, need)
                )
            nxx, nxy, nyy, snr = _moments(stamp, reach, filled, y, x, mxx, mxy, myy, weight_C)
            if not nxx > 0:
                outcome = _LOST
                break
            change = max(abs(nxx - mxx), abs(nyy - myy), abs(nxy - mxy))
            mxx, mxy, myy = nxx, nxy, nyy
            middle, spread = 0.5 * (mxx + myy), math.hypot(0.5 * (mxx - myy), mxy)
            a2, b2 = middle + spread, middle - spread
            if b2 < 0.25 * psf_sigma**2:
                outcome = _LOST
                break
            theta = 0.5 * math.atan2(2 * mxy, mxx - myy)
            if MIN_SCALE**2 * a2 > limit * limit:
                outcome = _TOO_LARGE
                break
            if change < _CONVERGED * (mxx + myy):
                outcome = _ROUND if snr >= _MIN_SNR else _LOST
                break
        if outcome == _LOST:
            found_N5[n, 0], found_N5[n, 1], found_N5[n, 2] = psf_sigma, psf_sigma, 0.0
            found_N5[n, 4] = MIN_SCALE
            flags_N[n] = KRON_MINIMUM
            continue
        # Nothing on the sky is sharper than the PSF.
        a, b = max(math.sqrt(a2), psf_sigma), max(math.sqrt(b2), psf_sigma)
        if outcome == _TOO_LARGE:
            shrink = limit / (MIN_SCALE * a)
            a, b = a * shrink, max(b * shrink, psf_sigma)
            flags_N[n] = KRON_LIMITED
        need = int(min(MEASURED_SCALE * a, limit)) + 1
        if need > filled:
            filled = _fill(
                images, weight_C, sky_NC[n], i, j, y, x, near, stamp, filled, min(reach, need)
            )
        measured = min(MEASURED_SCALE, limit / a)
        kron_radius = _first_moment(stamp, reach, filled, y, x, a, b, theta, measured)
        scale = MIN_SCALE
        if kron_radius > 0:
            scale = max(KRON_FACTOR * kron_radius, MIN_SCALE)
        if scale * a > limit * (1 + 1e-12):
            scale = limit / a
            flags_N[n] |= KRON_LIMITED
        found_N5[n, 0], found_N5[n, 1], found_N5[n, 2] = a, b, theta
        found_N5[n, 3], found_N5[n, 4] = kron_radius, scale


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _fill(images, weight_C, sky_C, i0, j0, y, x, near_M2, stamp, done, half):
    """Sum the bands on a square ring of the stamp, done < max(|di|, |dj|) <= half; return half.

    A neighbour's pixel gets the value opposite to it, or NaN where that is a neighbour's too.
    """
    n_bands, height, width = images.shape
    reach = stamp.shape[0] // 2
    # Within half the distance to the nearest neighbour, no pixel is a neighbour's.
    own2 = ((near_M2[0, 0] - y) ** 2 + (near_M2[0, 1] - x) ** 2) / 4
    for di in range(-half, half + 1):
        dj = -half
        while dj <= half:
            if abs(di) <= done and -done <= dj <= done:
                dj = done + 1
                continue
            i, j = i0 + di, j0 + dj
            if (di - y) ** 2 + (dj - x) ** 2 >= own2 and _is_anothers(di, dj, y, x, near_M2):
                oi, oj = math.floor(2 * y - di + 0.5), math.floor(2 * x - dj + 0.5)
                i, j = i0 + oi, j0 + oj
                if _is_anothers(oi, oj, y, x, near_M2):
                    i = -1  # as off the tile
            total, weights = 0.0, 0.0
            if 0 <= i < height and 0 <= j < width:
                for c in range(n_bands):
                    value = np.float64(images[c, i, j]) - sky_C[c]
                    if weight_C[c] > 0 and _finite(value):
                        total += weight_C[c] * value
                        weights += weight_C[c]
            stamp[reach + di, reach + dj] = total / weights if weights > 0 else np.nan
            dj += 1
    return half


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _is_anothers(i, j, y, x, near_M2):
    away2 = (i - y) ** 2 + (j - x) ** 2
    for m in range(near_M2.shape[0]):
        # Within half the distance to a neighbour, no pixel is nearer to it or to those after it.
        if 4 * away2 < (near_M2[m, 0] - y) ** 2 + (near_M2[m, 1] - x) ** 2:
            return False
        if (i - near_M2[m, 0]) ** 2 + (j - near_M2[m, 1]) ** 2 < away2:
            return True
    return False


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _moments(stamp, reach, filled, y, x, mxx, mxy, myy, weight_C):
    """One step towards M = 2 C(M), C the second moments under the Gaussian of covariance M.

    For a Gaussian source of covariance V, C^-1 = M^-1 + V^-1: the step goes to (C^-1 - M^-1)^-1,
    or, where that is not a covariance, to 2 C, which converges more slowly.

    Returns:
        The new M (0 where there is none) and the signal-to-noise ratio of the weighted flux.
    """
    det = mxx * myy - mxy * mxy
    ixx, ixy, iyy = myy / det, -mxy / det, mxx / det
    window = _WINDOW_SIGMA * _WINDOW_SIGMA
    half_y = _WINDOW_SIGMA * math.sqrt(myy)
    total, sxx, sxy, syy, squares = 0.0, 0.0, 0.0, 0.0, 0.0
    for di in range(max(-filled, math.ceil(y - half_y)), min(filled, math.floor(y + half_y)) + 1):
        dy = di - y
        # Where the row is in the window: ixx dx^2 + 2 ixy dx dy + iyy dy^2 <= window.
        disc = ixy * ixy * dy * dy - ixx * (iyy * dy * dy - window)
        if disc < 0:
            continue
        centre, half = x - ixy * dy / ixx, math.sqrt(disc) / ixx
        for dj in range(
            max(-filled, math.ceil(centre - half)), min(filled, math.floor(centre + half)) + 1
        ):
            value = stamp[reach + di, reach + dj]
            if not _finite(value):
                continue
            dx = dj - x
            weight = math.exp(-0.5 * (ixx * dx * dx + 2 * ixy * dx * dy + iyy * dy * dy))
            squares += weight * weight
            weight *= value
            total += weight
            sxx += weight * dx * dx
            sxy += weight * dx * dy
            syy += weight * dy * dy
    if not total > 0:
        return 0.0, 0.0, 0.0, 0.0
    snr = total / math.sqrt(squares / np.sum(weight_C))
    cxx, cxy, cyy = sxx / total, sxy / total, syy / total
    cdet = cxx * cyy - cxy * cxy
    if not (cxx > 0 and cyy > 0 and cdet > 1e-12 * cxx * cyy):
        return 0.0, 0.0, 0.0, snr
    pxx, pxy, pyy = cyy / cdet - ixx, -cxy / cdet - ixy, cxx / cdet - iyy
    pdet = pxx * pyy - pxy * pxy
    if pxx > 0 and pyy > 0 and pdet > 0 and pxx + pyy < 4 * pdet * (mxx + myy):
        return pyy / pdet, -pxy / pdet, pxx / pdet, snr
    return 2 * cxx, 2 * cxy, 2 * cyy, snr


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _first_moment(stamp, reach, filled, y, x, a, b, theta, scale):
    """sum r I / sum I over pixels whose centre is in the ellipse; NaN unless both are positive.

    r is the elliptical radius in units of a (SExtractor's manual, "Kron apertures").
    """
    cos, sin = math.cos(theta), math.sin(theta)
    half_y = scale * math.sqrt((a * sin) ** 2 + (b * cos) ** 2)
    half_x = scale * math.sqrt((a * cos) ** 2 + (b * sin) ** 2)
    total, first = 0.0, 0.0
    for di in range(max(-filled, math.ceil(y - half_y)), min(filled, math.floor(y + half_y)) + 1):
        dy = di - y
        for dj in range(
            max(-filled, math.ceil(x - half_x)), min(filled, math.floor(x + half_x)) + 1
        ):
            dx = dj - x
            r2 = ((dx * cos + dy * sin) / a) ** 2 + ((dy * cos - dx * sin) / b) ** 2
            value = stamp[reach + di, reach + dj]
            if r2 <= scale * scale and _finite(value):
                total += value
                first += math.sqrt(r2) * value
    return first / total if total > 0 and first > 0 else np.nan
