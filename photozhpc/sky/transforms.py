"""Numba kernels: the Fourier transforms of sources on their stamps, in every band."""

import numba
import numpy as np

BULGE_STEP, N_K = 0.005, 8192  # table of the bulge's transform over the square root of k r


@numba.njit(cache=True, fastmath=True)
def source_transform(
    out_Cyx2, psf_2CAyx, spans_CAy2, bulge_table, bulge_C, disk_C, bulge_form, disk_form, blur_form,
    dy, dx,
):  # fmt: skip
    """Fourier transform of a source in every band, real and imaginary parts in the last axis.

    spans_CAy2: columns [start, stop) of each row where the PSF's transform is not negligible.
    """
    n_bands, size, half = out_Cyx2.shape[:3]
    n_folds = spans_CAy2.shape[1]
    out_Cyx2[...] = 0.0
    bulge_x = np.ones(half, np.float32)
    disk_x = np.empty(half, np.float32)
    phase_x = np.empty((2, half), np.float32)
    cos_x = np.empty(half, np.float32)
    sin_x = np.empty(half, np.float32)
    has_bulge = bulge_form[0] + bulge_form[2] > 0.0
    has_blur = blur_form[0] + blur_form[2] > 0.0
    bulge_xx, bulge_xy, bulge_yy = bulge_form[0], bulge_form[1], bulge_form[2]
    disk_xx, disk_xy, disk_yy = disk_form[0], disk_form[1], disk_form[2]
    per_step, last = np.float32(1.0 / BULGE_STEP), np.float32(N_K - 2)
    per_y = -2.0 * np.pi * (0.5 + dy / size)
    per_x = -2.0 * np.pi * (0.5 + dx / size)
    for fold in range(n_folds):
        shift_x = -size if fold % 2 == 1 else 0
        for ix in range(half):
            phase_x[0, ix] = np.cos(per_x * (ix + shift_x))
            phase_x[1, ix] = np.sin(per_x * (ix + shift_x))
        for iy in range(size):
            start, stop = half, 0
            for c in range(n_bands):
                if spans_CAy2[c, fold, iy, 1] > spans_CAy2[c, fold, iy, 0]:
                    start = min(start, spans_CAy2[c, fold, iy, 0])
                    stop = max(stop, spans_CAy2[c, fold, iy, 1])
            if start >= stop:
                continue
            fy = iy if iy < size // 2 else iy - size
            if fold >= 2:
                fy = fy - size if fy >= 0 else fy + size
            fy32 = np.float32(fy)
            phase_r, phase_i = np.float32(np.cos(per_y * fy)), np.float32(np.sin(per_y * fy))
            # (k r)^2 = form_xx fx^2 + form_xy fx fy + form_yy fy^2, in single precision
            for ix in range(start, stop):
                fx = np.float32(ix + shift_x)
                u = np.float32(1.0) + fx * (disk_xx * fx + disk_xy * fy32) + disk_yy * fy32 * fy32
                disk_x[ix] = np.float32(1.0) / (u * np.sqrt(u))
                cos_x[ix] = phase_r * phase_x[0, ix] - phase_i * phase_x[1, ix]
                sin_x[ix] = phase_r * phase_x[1, ix] + phase_i * phase_x[0, ix]
            if has_blur:
                _blur_row(cos_x, sin_x, blur_form, fy32, shift_x, start, stop)
            if has_bulge:
                for ix in range(start, stop):
                    fx = np.float32(ix + shift_x)
                    v = fx * (bulge_xx * fx + bulge_xy * fy32) + bulge_yy * fy32 * fy32
                    at = np.sqrt(np.sqrt(max(v, np.float32(0.0)))) * per_step
                    at = min(at, last)
                    low = np.int32(at)
                    rest = at - np.float32(low)
                    here = bulge_table[low]
                    bulge_x[ix] = here + rest * (bulge_table[low + 1] - here)
            for c in range(n_bands):
                flux_b, flux_d = np.float32(bulge_C[c]), np.float32(disk_C[c])
                for ix in range(spans_CAy2[c, fold, iy, 0], spans_CAy2[c, fold, iy, 1]):
                    value = flux_b * bulge_x[ix] + flux_d * disk_x[ix]
                    real = psf_2CAyx[0, c, fold, iy, ix]
                    imag = psf_2CAyx[1, c, fold, iy, ix]
                    out_Cyx2[c, iy, ix, 0] += value * (real * cos_x[ix] - imag * sin_x[ix])
                    out_Cyx2[c, iy, ix, 1] += value * (real * sin_x[ix] + imag * cos_x[ix])


@numba.njit(cache=True, fastmath=True)
def add_knots(out_Cyx2, psf_2CAyx, spans_CAy2, flux_C, knots_K3, knot_form, blur_form, dy, dx):
    """Add the transform of knots, exponentials of one shape at (y, x, share) from the centre."""
    n_bands, size, half = out_Cyx2.shape[:3]
    n_folds = spans_CAy2.shape[1]
    n_knots = len(knots_K3)
    phase_Kx = np.empty((2, n_knots, half), np.float32)
    real_x = np.empty(half, np.float32)
    imag_x = np.empty(half, np.float32)
    has_blur = blur_form[0] + blur_form[2] > 0.0
    form_xx, form_xy, form_yy = knot_form[0], knot_form[1], knot_form[2]
    for fold in range(n_folds):
        shift_x = -size if fold % 2 == 1 else 0
        for k in range(n_knots):
            per_x = -2.0 * np.pi * (0.5 + (dx + knots_K3[k, 1]) / size)
            for ix in range(half):
                phase_Kx[0, k, ix] = np.cos(per_x * (ix + shift_x))
                phase_Kx[1, k, ix] = np.sin(per_x * (ix + shift_x))
        for iy in range(size):
            start, stop = half, 0
            for c in range(n_bands):
                if spans_CAy2[c, fold, iy, 1] > spans_CAy2[c, fold, iy, 0]:
                    start = min(start, spans_CAy2[c, fold, iy, 0])
                    stop = max(stop, spans_CAy2[c, fold, iy, 1])
            if start >= stop:
                continue
            fy = iy if iy < size // 2 else iy - size
            if fold >= 2:
                fy = fy - size if fy >= 0 else fy + size
            fy32 = np.float32(fy)
            real_x[start:stop] = 0.0
            imag_x[start:stop] = 0.0
            for k in range(n_knots):
                turn = -2.0 * np.pi * (0.5 + (dy + knots_K3[k, 0]) / size) * fy
                phase_r = np.float32(np.cos(turn) * knots_K3[k, 2])
                phase_i = np.float32(np.sin(turn) * knots_K3[k, 2])
                for ix in range(start, stop):
                    real_x[ix] += phase_r * phase_Kx[0, k, ix] - phase_i * phase_Kx[1, k, ix]
                    imag_x[ix] += phase_r * phase_Kx[1, k, ix] + phase_i * phase_Kx[0, k, ix]
            for ix in range(start, stop):
                fx = np.float32(ix + shift_x)
                u = np.float32(1.0) + fx * (form_xx * fx + form_xy * fy32) + form_yy * fy32 * fy32
                amplitude = np.float32(1.0) / (u * np.sqrt(u))
                real_x[ix] *= amplitude
                imag_x[ix] *= amplitude
            if has_blur:
                _blur_row(real_x, imag_x, blur_form, fy32, shift_x, start, stop)
            for c in range(n_bands):
                flux = np.float32(flux_C[c])
                for ix in range(spans_CAy2[c, fold, iy, 0], spans_CAy2[c, fold, iy, 1]):
                    real = flux * psf_2CAyx[0, c, fold, iy, ix]
                    imag = flux * psf_2CAyx[1, c, fold, iy, ix]
                    out_Cyx2[c, iy, ix, 0] += real * real_x[ix] - imag * imag_x[ix]
                    out_Cyx2[c, iy, ix, 1] += real * imag_x[ix] + imag * real_x[ix]


@numba.njit(cache=True, fastmath=True, inline="always")
def _blur_row(real_x, imag_x, blur_form, fy32, shift_x, start, stop):
    """Multiply a row of a transform by that of the blur, an exponential."""
    for ix in range(start, stop):
        fx = np.float32(ix + shift_x)
        u = np.float32(1.0) + fx * (blur_form[0] * fx + blur_form[1] * fy32)
        u += blur_form[2] * fy32 * fy32
        factor = np.float32(1.0) / (u * np.sqrt(u))
        real_x[ix] *= factor
        imag_x[ix] *= factor
