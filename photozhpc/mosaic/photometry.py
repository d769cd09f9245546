"""Forced aperture photometry: exact circle sums and a robust local sky, in Numba.

The kernels release the GIL; see `visit_order` for how they are spread over threads.
"""

import enum
import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from photozhpc.mosaic.visit_order import positions, run_chunks, visiting_order

EDGE = 1
MASKED = 2
NON_FINITE = 4
OFF_TILE = 8
NO_DATA = 16
SKY_FEW_PIXELS = 32
SKY_NO_DATA = 64
KRON_MINIMUM = 128
KRON_LIMITED = 256

# Neither `nnan` nor `ninf`: NaN and infinity have a meaning. `reassoc` still takes v - v for 0, by
# which Numba's isfinite works: the kernels have their own.
_FASTMATH = {"reassoc", "contract", "nsz"}
_MIN_OVERLAP = 1e-10  # smaller overlaps are the rounding error of zero
_MAX_RADIUS_PIX = 1e9  # covers any image; column numbers stay integers
_MIN_SKY_PIXELS = 10
_SKY_CLIP_SIGMA = 3.0
_SKY_CLIP_ROUNDS = 10
# Annuli whose pixels are sorted together: so many that calls cost nothing, and that fit a cache.
_SKY_BLOCK, _SKY_BLOCK_BYTES = 64, 1e6


class PhotFlag(enum.IntFlag):
    """What happened to an aperture; 0: nothing.

    Attributes:
        EDGE: the aperture leaves the image; the flux is that of the part on it.
        MASKED: a masked pixel lies inside; it contributes nothing.
        NON_FINITE: a pixel inside has a value or error that is not finite; it contributes nothing.
        OFF_TILE: the centre is not on the image, or not finite.
        NO_DATA: there is no usable pixel inside; the flux is NaN.
        SKY_FEW_PIXELS: fewer than 10 pixels determine the local sky.
        SKY_NO_DATA: there is no usable pixel in the annulus; the sky is NaN.
        KRON_MINIMUM: no shape could be measured; the Kron aperture is that of a point source.
        KRON_LIMITED: the Kron aperture exceeded the largest one allowed and was reduced.
    """

    EDGE = EDGE
    MASKED = MASKED
    NON_FINITE = NON_FINITE
    OFF_TILE = OFF_TILE
    NO_DATA = NO_DATA
    SKY_FEW_PIXELS = SKY_FEW_PIXELS
    SKY_NO_DATA = SKY_NO_DATA
    KRON_MINIMUM = KRON_MINIMUM
    KRON_LIMITED = KRON_LIMITED


def sum_circles(
    image_HW: ArrayLike,
    y_N: ArrayLike,
    x_N: ArrayLike,
    radius_pix: float | Sequence[float] | NDArray[Any],
    err_HW: ArrayLike | None = None,
    mask_HW: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Sum an image in circles, each pixel weighted by the exact area it shares with the circle.

    Masked pixels, pixels whose value or error is not finite, and the part of a circle off the
    image contribute nothing and set a flag. The sum is not scaled up for them (as in photutils;
    SEP scales masked apertures up by the lost area).

    Args:
        image_HW: any real dtype, byte order and layout; not changed.
        y_N, x_N: centres, pixels, zero-based with pixel centres on integers; scalars are N = 1.
        radius_pix: one radius, or R radii, for which the outputs are (N, R) and the sources are
            visited once.
        err_HW: 1-sigma error per pixel, in the image's unit.
        mask_HW: pixels that are bad, where not zero.

    Returns:
        flux (float64, image unit; NaN where no pixel is usable), its error (float64,
        sqrt(sum overlap * err^2), pixels taken as independent; NaN without `err_HW`), and
        `PhotFlag` bits (int32); each (N,), or (N, R).

    Raises:
        ValueError: shapes do not match, or a radius is not positive and finite.
    """
    image = _plane(image_HW, "image_HW")
    err = None if err_HW is None else _plane(err_HW, "err_HW", image.shape)
    mask = None if mask_HW is None else _bad_pixels(mask_HW, image.shape)
    y, x = positions(y_N, x_N)
    radius = np.atleast_1d(np.asarray(radius_pix, dtype=np.float64))
    if radius.ndim != 1 or not radius.size or not np.all((radius > 0) & np.isfinite(radius)):
        raise ValueError(f"radius_pix must be positive and finite, got {radius_pix}")
    radius = np.minimum(radius, _MAX_RADIUS_PIX)
    shape = (y.size, radius.size)
    flux, flux_err = np.empty(shape), np.empty(shape)
    flags = np.empty(shape, np.int32)
    order = visiting_order(y, x, *image.shape)

    def chunk(start: int, stop: int) -> None:
        _sum_circles(image, err, mask, y, x, order, radius, start, stop, flux, flux_err, flags)

    run_chunks(chunk, y.size, float(np.sum(100 + 20 * radius + radius**2)))
    if np.ndim(radius_pix) == 0:
        return flux[:, 0], flux_err[:, 0], flags[:, 0]
    return flux, flux_err, flags


def local_sky(
    image_HW: ArrayLike,
    y_N: ArrayLike,
    x_N: ArrayLike,
    r_in_pix: float,
    r_out_pix: float,
    mask_HW: ArrayLike | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32]]:
    """Estimate the sky level per pixel in an annulus around each source.

    The median of the usable pixels whose centres are in the annulus (r_in <= d < r_out), after
    clipping at 3 standard deviations from the median until nothing changes (10 rounds at most).

    Returns:
        Sky per pixel (float64, image unit; NaN where there is no pixel), the standard error of
        that median, sqrt(pi / 2) * std / sqrt(n) (pixels taken as independent), and `PhotFlag`
        bits (int32: EDGE, MASKED, NON_FINITE, OFF_TILE, SKY_FEW_PIXELS, SKY_NO_DATA).

    Raises:
        ValueError: shapes do not match, or radii are not 0 <= r_in < r_out.
    """
    image = _plane(image_HW, "image_HW")
    mask = None if mask_HW is None else _bad_pixels(mask_HW, image.shape)
    y, x = positions(y_N, x_N)
    if not 0 <= r_in_pix < r_out_pix or not math.isfinite(r_out_pix):
        raise ValueError(f"radii must be 0 <= r_in_pix < r_out_pix, got {r_in_pix}, {r_out_pix}")
    r_in, r_out = (min(float(r), _MAX_RADIUS_PIX) for r in (r_in_pix, r_out_pix))
    sky, sky_err = np.empty(y.size), np.empty(y.size)
    flags = np.empty(y.size, np.int32)
    order = visiting_order(y, x, *image.shape)

    n_pixels = min(math.pi * ((r_out + 2) ** 2 - max(r_in - 2, 0) ** 2), float(image.size)) + 1
    n_block = max(1, min(_SKY_BLOCK, int(_SKY_BLOCK_BYTES / (n_pixels * image.itemsize))))

    def chunk(start: int, stop: int) -> None:
        value_BP = np.empty((n_block, int(n_pixels)), image.dtype)
        count_B = np.empty(n_block, np.int64)
        for first in range(start, stop, n_block):
            rows = order[first : min(first + n_block, stop)]
            _gather(image, mask, y, x, rows, r_in, r_out, value_BP, count_B, flags)
            value_BP[: len(rows), : count_B[: len(rows)].max()].sort(axis=1)  # numpy's is SIMD
            _clip(value_BP, count_B, rows, sky, sky_err, flags)

    run_chunks(chunk, y.size, 100 + 20 * r_out + 60 * (r_out**2 - r_in**2))
    return sky, sky_err, flags


def _plane(
    plane: ArrayLike, name: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.floating]:
    """Return native, C-contiguous, read-only float32 or float64, copied only where necessary."""
    array = np.asarray(plane)
    if array.ndim != 2:
        raise ValueError(f"{name} must have two axes (H, W), got shape {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the image's shape {shape}, got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold real numbers, got {array.dtype}")
    dtype = np.result_type(array.dtype.newbyteorder("="), np.float32)
    if dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    view = np.ascontiguousarray(array, dtype=dtype).view()
    view.flags.writeable = False  # one compiled variant for writeable and read-only inputs
    return view


def _bad_pixels(mask: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    array = np.asarray(mask)
    if array.shape != shape:
        raise ValueError(f"mask_HW must have the image's shape {shape}, got {array.shape}")
    if array.dtype not in (np.bool_, np.uint8):
        array = array != 0
    view = np.ascontiguousarray(array).view(np.uint8)
    view.flags.writeable = False
    return view


@numba.njit(nogil=True, cache=True)
def _finite(value):
    return abs(value) < np.inf


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _first_last(centre, radius, length):
    """First and one past the last pixel of the image that overlaps centre +- radius."""
    first = math.floor(min(max(centre - radius + 0.5, 0.0), float(length)))
    last = math.ceil(max(min(centre + radius - 0.5, length - 1.0), -1.0))
    return int(first), int(last) + 1


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _quarter_strip(t, radius):
    """Area under the circle from 0 to t in the first quadrant: integral of sqrt(r^2 - s^2)."""
    if t >= radius:
        return 0.25 * math.pi * radius * radius
    height = math.sqrt((radius - t) * (radius + t))  # not r^2 - t^2: never negative
    # Near t = r, asin(t / r) magnifies the rounding of t / r: take the other angle there.
    if t < height:
        angle = math.asin(t / radius)
    else:
        angle = 0.5 * math.pi - math.asin(height / radius)
    return 0.5 * (t * height + radius * radius * angle)


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _sum_circles(
    image, err, mask, y_N, x_N, order_N, radius_R, start, stop, flux_NR, flux_err_NR, flags_NR
):
    height, width = image.shape
    widest = int(min(float(width), 2 * np.max(radius_R) + 3)) + 2
    edges = np.empty((widest, 4))
    for n in order_N[start:stop]:
        yc, xc = y_N[n], x_N[n]
        on_tile = -0.5 <= yc < height - 0.5 and -0.5 <= xc < width - 0.5
        for k in range(radius_R.size - 1, -1, -1):
            radius = radius_R[k]
            flux_NR[n, k] = np.nan
            flux_err_NR[n, k] = np.nan
            flags = 0 if on_tile else OFF_TILE
            if not (_finite(yc) and _finite(xc)):
                flags_NR[n, k] = flags | NO_DATA
                continue
            if (
                yc - radius < -0.5
                or xc - radius < -0.5
                or yc + radius > height - 0.5
                or xc + radius > width - 0.5
            ):
                flags |= EDGE
            total, variance, found = _sum_circle(image, err, mask, None, yc, xc, radius, edges)
            if found & MASKED or not (on_tile and _finite(total + variance)):
                # A bad pixel, or perhaps no pixel: look at every one.
                total, variance, found = _sum_circle(image, err, mask, True, yc, xc, radius, edges)
            flags_NR[n, k] = flags | found
            if found & NO_DATA:
                continue
            flux_NR[n, k] = total
            if err is not None:
                flux_err_NR[n, k] = math.sqrt(max(variance, 0.0))


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _sum_circle(image, err, mask, careful, yc, xc, radius, edges):
    """Sum one circle: (flux, variance, flags).

    With Q(x, y) the area of the circle inside the rectangle from its centre to (x, y), which is
    x y for a corner inside the circle and else g(x) + g(y) - pi r^2 / 4 (g: `_quarter_strip`),
    a pixel's overlap is the second difference of Q over its corners: one root and one arcsine
    for every row and column edge, not for every pixel. Pixels inside the circle are a plain sum.

    Args:
        careful: None: every pixel is taken as good, MASKED means that one is masked, and a bad
            value shows in the sums. True: bad pixels are left out and flagged. (None is known
            at compile time: two kernels from one source.)
        edges: scratch, (at least the number of column edges, 4).
    """
    i0, i1 = _first_last(yc, radius, image.shape[0])
    j0, j1 = _first_last(xc, radius, image.shape[1])
    if i1 <= i0 or j1 <= j0:
        return np.nan, np.nan, NO_DATA
    r2 = radius * radius
    quarter = 0.25 * math.pi * r2
    for e in range(j1 - j0 + 1):
        t = j0 + e - 0.5 - xc
        sign = 1.0 if t >= 0 else -1.0
        a = min(abs(t), radius)
        edges[e, 0] = sign * a
        edges[e, 1] = a * a
        edges[e, 2] = sign
        edges[e, 3] = sign * _quarter_strip(a, radius)

    total = 0.0
    variance = 0.0
    found = 0
    n_good = 0
    y1, sign1, half1, rest1 = 0.0, 0.0, 0.0, 0.0
    for i in range(i0 - 1, i1):
        y0, sign0, half0, rest0 = y1, sign1, half1, rest1
        t = i + 0.5 - yc
        sign1 = 1.0 if t >= 0 else -1.0
        a = min(abs(t), radius)
        y1 = sign1 * a
        half1 = math.sqrt((radius - a) * (radius + a))  # not r2 - a^2: never negative
        rest1 = _quarter_strip(a, radius) - quarter
        if i < i0:
            continue
        # Columns that touch the circle, [first, last), and those inside it, [inner, outer).
        widest = radius if y0 < 0 < y1 else max(half0, half1)
        narrowest = min(half0, half1)
        first = max(j0, math.floor(xc - widest + 0.5))
        last = min(j1, math.ceil(xc + widest - 0.5) + 1)
        if first >= last:
            continue
        inner = min(max(first, math.ceil(xc - narrowest + 0.5)), last)
        outer = max(min(last, math.floor(xc + narrowest - 0.5) + 1), inner)
        limit0, limit1 = half0 * half0, half1 * half1
        begin, end = first, inner
        for _ in range(2):
            left = 0.0
            for e in range(begin - j0, end - j0 + 1):
                j = j0 + e - 1
                x, x2, strip, sign = edges[e, 0], edges[e, 1], edges[e, 3], edges[e, 2]
                inside1, outside1 = x * y1, sign1 * (strip + sign * rest1)
                inside0, outside0 = x * y0, sign0 * (strip + sign * rest0)
                right = (inside1 if x2 < limit1 else outside1) - (
                    inside0 if x2 < limit0 else outside0
                )
                weight = right - left
                left = right
                if j < begin:
                    continue
                value = np.float64(image[i, j])
                square = 0.0
                if err is not None:
                    square = np.float64(err[i, j])
                    square *= square
                if careful is not None:
                    if weight <= _MIN_OVERLAP:
                        continue
                    bad = 0
                    if mask is not None and mask[i, j] != 0:
                        bad = MASKED
                    if not (_finite(value) and _finite(square)):
                        bad |= NON_FINITE
                    if bad:
                        found |= bad
                        continue
                    n_good += 1
                elif mask is not None and mask[i, j] != 0:
                    found = MASKED
                total += weight * value
                variance += weight * square
            begin, end = outer, last
        if careful is None:
            image_J = image[i, inner:outer]
            for j in range(image_J.size):
                total += image_J[j]
            if err is not None:
                err_J = err[i, inner:outer]
                for j in range(err_J.size):
                    sigma = np.float64(err_J[j])
                    variance += sigma * sigma
            if mask is not None:
                mask_J = mask[i, inner:outer]
                n_masked = 0
                for j in range(mask_J.size):
                    n_masked += mask_J[j] != 0
                if n_masked:
                    found = MASKED
        else:
            for j in range(inner, outer):
                value = np.float64(image[i, j])
                square = 0.0
                if err is not None:
                    square = np.float64(err[i, j])
                    square *= square
                bad = 0
                if mask is not None and mask[i, j] != 0:
                    bad = MASKED
                if not (_finite(value) and _finite(square)):
                    bad |= NON_FINITE
                found |= bad
                if not bad:
                    n_good += 1
                    total += value
                    variance += square
    if careful is not None and n_good == 0:
        found |= NO_DATA
    return total, variance, found


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _moments(values, pivot):
    """Return the sums of the values less a pivot, and of their squares."""
    total = square = 0.0
    for value in values:
        off = value - pivot
        total += off
        square += off * off
    return total, square


@numba.njit(nogil=True, cache=True)
def _trimmed(start, stop, centre, square):
    """Return the part of pixels start to stop whose distance from the centre is small enough.

    Args:
        square: of the distance that is too large.
    """
    while start < stop and (start - centre) ** 2 >= square:
        start += 1
    while start < stop and (stop - 1 - centre) ** 2 >= square:
        stop -= 1
    return start, stop


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _finite_first(values, count):
    """Move the finite ones of values[:count] to the front; return their number."""
    n_finite = 0
    for value in values[:count]:
        n_finite += _finite(np.float64(value))
    if n_finite < count:
        kept = 0
        for i in range(count):
            if _finite(np.float64(values[i])):
                values[kept] = values[i]
                kept += 1
    return n_finite


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _gather(image, mask, y_N, x_N, rows_B, r_in, r_out, value_BP, count_B, flags_N):
    """Copy the usable pixels of some annuli, count them, and set the flags.

    A row of pixels ends with infinities.
    """
    height, width = image.shape
    for b in range(rows_B.size):
        n, count, flags, value_P = rows_B[b], 0, 0, value_BP[b]
        yc, xc = y_N[n], x_N[n]
        if not (-0.5 <= yc < height - 0.5 and -0.5 <= xc < width - 0.5):
            flags = OFF_TILE
        if _finite(yc) and _finite(xc):
            if yc < r_out or xc < r_out or yc + r_out > height - 1 or xc + r_out > width - 1:
                flags |= EDGE
            i0, i1 = _first_last(yc, r_out, height)
            for i in range(i0, i1):
                dy2 = (i - yc) ** 2
                if dy2 > r_out * r_out:
                    continue
                half = math.sqrt(r_out * r_out - dy2)
                j0, j1 = _first_last(xc, half + 1.0, width)
                j0, j1 = _trimmed(j0, j1, xc, r_out * r_out - dy2)
                hole = math.sqrt(max(r_in * r_in - dy2, 0.0))
                h0, h1 = _first_last(xc, hole + 1.0, width)
                h0, h1 = _trimmed(max(h0, j0), min(h1, j1), xc, r_in * r_in - dy2)
                h0, h1 = min(h0, j1), max(h1, j0)
                h1 = max(h0, h1)
                if mask is None:
                    for j in range(j0, h0):
                        value_P[count + j - j0] = image[i, j]
                    count += max(h0 - j0, 0)
                    for j in range(h1, j1):
                        value_P[count + j - h1] = image[i, j]
                    count += max(j1 - h1, 0)
                    continue
                for j in range(j0, j1):
                    if j < h0 or j >= h1:
                        value_P[count] = image[i, j]
                        masked = mask[i, j] != 0
                        count += not masked
                        flags |= MASKED * masked
        count_B[b] = _finite_first(value_P, count)
        value_P[count_B[b] :] = np.inf
        flags_N[n] = flags | (NON_FINITE if count_B[b] < count else 0)


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _clip(value_BP, count_B, rows_B, sky_N, sky_err_N, flags_N):
    """Set the median of sorted pixels and its error, clipped at _SKY_CLIP_SIGMA."""
    for b in range(rows_B.size):
        n, count = rows_B[b], count_B[b]
        if count == 0:
            sky_N[n] = sky_err_N[n] = np.nan
            flags_N[n] |= SKY_NO_DATA
            continue
        value_P, first, end = value_BP[b], 0, count
        pivot, removed = np.float64(value_P[count // 2]), 0.0
        total, square = _moments(value_P[:count], pivot)
        for turn in range(_SKY_CLIP_ROUNDS + 1):
            count = end - first
            median = 0.5 * (
                np.float64(value_P[first + (count - 1) // 2]) + value_P[first + count // 2]
            )
            std = math.sqrt(max(square / count - (total / count) ** 2, 0.0))
            if turn == _SKY_CLIP_ROUNDS:
                break
            low, high = median - _SKY_CLIP_SIGMA * std, median + _SKY_CLIP_SIGMA * std
            while value_P[first] < low or value_P[end - 1] > high:
                if value_P[first] < low:
                    off = value_P[first] - pivot
                    first += 1
                else:
                    off = value_P[end - 1] - pivot
                    end -= 1
                total -= off
                square -= off * off
                removed += off * off
            if end - first == count:
                break
            if removed > 1e6 * square:  # the sums have lost digits
                total, square = _moments(value_P[first:end], pivot)
                removed = 0.0
        if count < _MIN_SKY_PIXELS:
            flags_N[n] |= SKY_FEW_PIXELS
        sky_N[n], sky_err_N[n] = median, math.sqrt(0.5 * math.pi / count) * std
