"""Sums over ellipses with exact pixel overlaps, in Numba."""

import math

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from photozhpc.mosaic.photometry import (
    _FASTMATH,
    _MIN_OVERLAP,
    EDGE,
    MASKED,
    NO_DATA,
    NON_FINITE,
    OFF_TILE,
    _bad_pixels,
    _finite,
    _first_last,
    _plane,
)
from photozhpc.mosaic.visit_order import positions, run_chunks, visiting_order


def sum_ellipses(
    image_CHW: ArrayLike,
    y_N: ArrayLike,
    x_N: ArrayLike,
    a_N: ArrayLike,
    b_N: ArrayLike,
    theta_N: ArrayLike,
    err_CHW: ArrayLike | None = None,
    mask_HW: ArrayLike | None = None,
) -> tuple[
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.int32],
    NDArray[np.float64],
]:
    """Sum images of one grid in ellipses, each pixel weighted by the exact area it shares.

    As in `sum_circles`, masked pixels, pixels whose value or error is not finite, and the part of
    an ellipse off the image contribute nothing and set a flag. The overlaps of an ellipse are
    computed once for all images.

    Args:
        image_CHW: C images of one grid, or one (H, W); not changed.
        y_N, x_N: centres, pixels, zero-based with pixel centres on integers.
        a_N, b_N: semi-major and semi-minor axis, pixels; not finite or not positive: no aperture.
        theta_N: position angle of the major axis, radians from +x towards +y (as SEP).
        err_CHW: 1-sigma error per pixel, in the images' unit.
        mask_HW: pixels that are bad in all images, where not zero.

    Returns:
        flux (float64, image unit; NaN where no pixel is usable), its error (sqrt(sum overlap *
        err^2), pixels taken as independent; NaN without `err_CHW`), `PhotFlag` bits (int32),
        and the area that was summed, pixels; each (N, C), or (N,) for one (H, W).

    Raises:
        ValueError: shapes do not match.
    """
    images = _planes(image_CHW, "image_CHW")
    errors = None if err_CHW is None else _planes(err_CHW, "err_CHW", np.shape(image_CHW))
    mask = None if mask_HW is None else _bad_pixels(mask_HW, images.shape[1:])
    y, x = positions(y_N, x_N)
    axes_N3 = np.stack(
        [np.broadcast_to(np.asarray(v, np.float64), y.shape) for v in (a_N, b_N, theta_N)], axis=1
    )
    shape = (y.size, images.shape[0])
    flux, flux_err, area = np.empty(shape), np.empty(shape), np.empty(shape)
    flags = np.empty(shape, np.int32)
    order = visiting_order(y, x, *images.shape[1:])

    def chunk(start: int, stop: int) -> None:
        _sum_ellipses(
            images, errors, mask, y, x, order, axes_N3, start, stop, flux, flux_err, flags, area
        )

    # The cost of a typical ellipse: a few hundred pixels, of which the edge crosses 60.
    run_chunks(chunk, y.size, 10_000.0 + 500 * shape[1])
    if np.ndim(image_CHW) == 2:
        return flux[:, 0], flux_err[:, 0], flags[:, 0], area[:, 0]
    return flux, flux_err, flags, area


def _planes(
    planes: ArrayLike, name: str, shape: tuple[int, ...] | None = None
) -> NDArray[np.floating]:
    """Return native, C-contiguous, read-only floats (C, H, W), copied only where necessary."""
    array = np.asarray(planes)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have axes (C, H, W) or (H, W), got shape {array.shape}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the images' shape {shape}, got {array.shape}")
    n_bands = array.shape[0] if array.ndim == 3 else 1
    height, width = array.shape[-2:]
    flat = _plane(array.reshape(n_bands * height, width), name)
    view = flat.reshape(n_bands, height, width)
    view.flags.writeable = False
    return view


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _sector(px, py, qx, qy):
    """Signed area of the unit circle between the directions of p and q."""
    return 0.5 * math.atan2(px * qy - py * qx, px * qx + py * qy)


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _edge_area(px, py, qx, qy):
    """Signed area that the unit circle shares with the triangle (0, p, q)."""
    dx, dy = qx - px, qy - py
    dd = dx * dx + dy * dy
    pd = px * dx + py * dy
    disc = pd * pd - dd * (px * px + py * py - 1.0)
    if disc <= 0 or dd == 0:
        return _sector(px, py, qx, qy)
    root = math.sqrt(disc)
    t0, t1 = (-pd - root) / dd, (-pd + root) / dd
    if t0 >= 1 or t1 <= 0:
        return _sector(px, py, qx, qy)
    area = 0.0
    ux, uy, vx, vy = px, py, qx, qy
    if t0 > 0:
        ux, uy = px + t0 * dx, py + t0 * dy
        area += _sector(px, py, ux, uy)
    if t1 < 1:
        vx, vy = px + t1 * dx, py + t1 * dy
        area += _sector(vx, vy, qx, qy)
    return area + 0.5 * (ux * vy - uy * vx)


@numba.njit(nogil=True, cache=True, fastmath=_FASTMATH)
def _sum_ellipses(
    images,
    errors,
    mask,
    y_N,
    x_N,
    order_N,
    axes_N3,
    start,
    stop,
    flux_NC,
    flux_err_NC,
    flags_NC,
    area_NC,
):
    """Fill rows `order_N[start:stop]` of the outputs.

    Rotated and divided by its axes, an ellipse is the unit circle and a pixel a parallelogram. The
    parallelogram is inside or outside if its circumscribed circle is; otherwise the sum over its
    four edges gives the shared area.
    """
    n_bands, height, width = images.shape
    weight_W = np.empty(width)
    n_good_C = np.empty(n_bands, np.int64)
    for n in order_N[start:stop]:
        yc, xc = y_N[n], x_N[n]
        a, b, theta = axes_N3[n, 0], axes_N3[n, 1], axes_N3[n, 2]
        on_tile = -0.5 <= yc < height - 0.5 and -0.5 <= xc < width - 0.5
        flux_NC[n] = 0.0
        flux_err_NC[n] = 0.0
        flags_NC[n] = 0 if on_tile else OFF_TILE
        area_NC[n] = 0.0
        n_good_C[:] = 0
        sound = a > 0 and b > 0 and _finite(a) and _finite(b) and _finite(theta)
        if sound and _finite(yc) and _finite(xc):
            cos, sin = math.cos(theta), math.sin(theta)
            reach_y = math.sqrt((a * sin) ** 2 + (b * cos) ** 2)
            reach_x = math.sqrt((a * cos) ** 2 + (b * sin) ** 2)
            if (
                yc - reach_y < -0.5
                or xc - reach_x < -0.5
                or yc + reach_y > height - 0.5
                or xc + reach_x > width - 0.5
            ):
                flags_NC[n] |= EDGE
            # One pixel's step in x and in y, in units of the axes.
            xu, xv, yu, yv = cos / a, -sin / b, sin / a, cos / b
            half = 0.5 * math.sqrt(
                max((xu + yu) ** 2 + (xv + yv) ** 2, (xu - yu) ** 2 + (xv - yv) ** 2)
            )
            inside = max(1.0 - half, 0.0) ** 2 if half < 1 else -1.0
            outside = (1.0 + half) ** 2
            i0, i1 = _first_last(yc, reach_y, height)
            j0, j1 = _first_last(xc, reach_x, width)
            for i in range(i0, i1):
                first, last = j1, j0
                for j in range(j0, j1):
                    dy, dx = i - yc, j - xc
                    u, v = dx * xu + dy * yu, dx * xv + dy * yv
                    r2 = u * u + v * v
                    if r2 <= inside:
                        weight = 1.0
                    elif r2 >= outside:
                        weight = 0.0
                    else:
                        pu, pv = u - 0.5 * (xu + yu), v - 0.5 * (xv + yv)
                        qu, qv = pu + xu, pv + xv
                        weight = (a * b) * (
                            _edge_area(pu, pv, qu, qv)
                            + _edge_area(qu, qv, qu + yu, qv + yv)
                            + _edge_area(qu + yu, qv + yv, pu + yu, pv + yv)
                            + _edge_area(pu + yu, pv + yv, pu, pv)
                        )
                        if weight <= _MIN_OVERLAP:
                            weight = 0.0
                    weight_W[j] = weight
                    if weight > 0:
                        first = min(first, j)
                        last = j + 1
                for c in range(n_bands):
                    total, variance, area, found = 0.0, 0.0, 0.0, 0
                    for j in range(first, last):
                        weight = weight_W[j]
                        if weight == 0:
                            continue
                        value = np.float64(images[c, i, j])
                        square = 0.0
                        if errors is not None:
                            square = np.float64(errors[c, i, j])
                            square *= square
                        bad = 0
                        if mask is not None and mask[i, j] != 0:
                            bad = MASKED
                        if not (_finite(value) and _finite(square)):
                            bad |= NON_FINITE
                        if bad:
                            found |= bad
                            continue
                        n_good_C[c] += 1
                        total += weight * value
                        variance += weight * square
                        area += weight
                    flux_NC[n, c] += total
                    flux_err_NC[n, c] += variance
                    area_NC[n, c] += area
                    flags_NC[n, c] |= found
        for c in range(n_bands):
            if n_good_C[c] == 0:
                flags_NC[n, c] |= NO_DATA
                flux_NC[n, c] = np.nan
                flux_err_NC[n, c] = np.nan
            elif errors is None:
                flux_err_NC[n, c] = np.nan
            else:
                flux_err_NC[n, c] = math.sqrt(max(flux_err_NC[n, c], 0.0))
