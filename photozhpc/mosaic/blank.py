"""Blank pixels that no plane of a file tells of, and the noise of an image without an error plane.

SWarp, Montage, reproject and drizzle fill what was not observed with exact zeros, and
compression may keep them (SUBTRACTIVE_DITHER_2, FITS standard 4.0, section 10.2.1). But zeros
are data in images of sparse photons (GALEX, X-rays), in integers, and where a sky was clipped.
The image itself tells which: see `zeros_mean`.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, maximum_filter1d, minimum_filter, minimum_filter1d

from photozhpc.mosaic.band_image import robust_sigma, sample_rows

SECTION_PIXELS = 4_000_000
BLANK, REGIONS, SKY = "blank", "regions", "sky"

_FAR_SIGMA = 5.0  # Poisson noise 5 sigma above 0 has a mean of 25, and P(0) = 1e-11
_SINGLE = 0.05  # of the pixels with light have zeros on both sides
_SOME = 0.01  # of the pixels with light have the rarer sign: the sky was subtracted
_FADED = 0.1  # of the typical light is where it ends, and of the bright where it is faint
_REPEATED = 2.5e-5  # of the pixels share a value: about the chance of one in an aperture's 100 px
_LEVELS = 250_000  # pixels in which repeated values are counted
_CHANCE = 1e-3  # that noise makes one region as large, anywhere in the image
_FAINTEST = 4.0  # a part of the field may have so many times fewer pixels with light (vignetting)
_CELL = 8  # pixels along a side of the cells in which the share of zeros is measured
_EMPTY = 0.05  # of the cells of sparse photons have none
_SPARSE = 0.6  # of the pixels are 0: more than clipping at the sky makes
_NO_FLUX = 1e20  # above it a repeated value is no flux (1e30, 1.6e38: INDEF of IRAF)


def mark_blank(
    image_HW: NDArray[np.float32],
    err_HW: NDArray[np.float32],
    with_regions: bool,
    zero_is_blank: bool | None,
) -> tuple[int, int, str | None]:
    """Set the blank pixels of an image, in place, and their errors to NaN.

    Args:
        err_HW: NaN where the image is known to be bad, or is NaN.
        with_regions: whether regions of zeros are looked for where single zeros are data; False
            where an error or weight map knows the image.
        zero_is_blank: what the survey says of exact zeros; None: the image tells.

    Returns:
        How many pixels were blank, how many zeros are left, and what zeros are (None: there were
        none).
    """
    n_blank = 0
    if fills := fill_values(image_HW):
        for rows in sections(image_HW.shape):
            err_HW[rows][np.isin(image_HW[rows], np.array(fills, image_HW.dtype))] = np.nan
        n_blank += _lose(image_HW, err_HW)
    n_zeros = sum(int((image_HW[rows] == 0).sum()) for rows in sections(image_HW.shape))
    if not n_zeros:
        return n_blank, 0, None
    if zero_is_blank is None:
        meaning = zeros_mean(image_HW)
    else:
        meaning = BLANK if zero_is_blank else SKY
    if meaning == BLANK:
        for rows in sections(image_HW.shape):
            err_HW[rows][image_HW[rows] == 0] = np.nan
    elif meaning == REGIONS and with_regions:
        for part, blank in _regions(image_HW):
            err_HW[part][blank] = np.nan  # the image stays: the next part looks at this one too
    n_lost = _lose(image_HW, err_HW)
    return n_blank + n_lost, n_zeros - n_lost, meaning


def _lose(image_HW: NDArray[np.float32], err_HW: NDArray[np.float32]) -> int:
    """Set the image to NaN where its error is; return how many pixels that was new to."""
    count = 0
    for rows in sections(image_HW.shape):
        lost = np.isnan(err_HW[rows]) & ~np.isnan(image_HW[rows])
        image_HW[rows][lost] = np.nan
        count += int(lost.sum())
    return count


def zeros_mean(image_HW: NDArray[np.float32]) -> str:
    """Tell what exact zeros are: BLANK, SKY (data), or REGIONS (data, but for large regions).

    - Noise of a subtracted sky has both signs and hardly ever repeats a value: a zero is blank,
      also a single one.
    - Light over many magnitudes that fades until it is zero: a simulated image without noise; sky.
    - A sky far above zero, for its noise: a zero is blank, unless much of the light is in
      single pixels, as of sparse photons.
    - Else (photons, integers, a clipped sky) noise makes zeros. Only a region is blank that is
      larger than such noise makes.
    """
    sample_R2W = _sample(image_HW)
    zero_RW = sample_R2W[:, 0] == 0
    light_RW = np.isfinite(sample_R2W[:, 0]) & ~zero_RW
    values = sample_R2W[:, 0][light_RW]
    if not values.size:
        return BLANK
    left_RW, right_RW = np.zeros_like(zero_RW), np.zeros_like(zero_RW)
    left_RW[:, 1:], right_RW[:, :-1] = zero_RW[:, :-1], zero_RW[:, 1:]
    single = np.count_nonzero(light_RW & left_RW & right_RW) > _SINGLE * values.size
    negative = np.count_nonzero(values < 0) / values.size
    both_signs = _SOME < negative < 1 - _SOME
    step = quantum(values)
    if both_signs and not step:
        return BLANK
    ends_RW = light_RW & (left_RW | right_RW | (sample_R2W[:, 1] == 0))
    if not (both_signs or single) and ends_RW.any():
        faint, typical, bright = np.percentile(values, [16, 50, 84])
        if bright > faint / _FADED and np.median(sample_R2W[:, 0][ends_RW]) < _FADED * typical:
            return SKY
    sigma = max(_sigma_or_zero(values), step)
    if abs(np.median(values)) > _FAR_SIGMA * sigma and not single:
        return BLANK
    return REGIONS


def quantum(values: NDArray[np.floating]) -> float:
    """Return the distance between the values of an image of repeated values; 0: of any value."""
    some = values[:: max(1, values.size // _LEVELS)]
    levels, counts = np.unique(some, return_counts=True)
    if counts.max(initial=0) < max(5, _REPEATED * some.size):
        return 0.0
    steps = np.diff(np.union1d(levels[counts > 1], [0.0]).astype(np.float64))
    return float(np.percentile(steps, 10)) if steps.size else 0.0


def fill_values(image_HW: NDArray[np.float32]) -> list[float]:
    """Return what else than 0 fills blank pixels: a repeated lowest value far below all others.

    (-999, -32768, -1e30; a repeated highest value only where it can be no flux.)
    """
    step = max(1, min(image_HW.shape) // 512)
    sample = image_HW[::step, ::step]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return []
    found = []
    for fill, high in ((sample.min(), False), (sample.max(), True)):
        is_fill = sample == fill
        n_fill = np.count_nonzero(is_fill)
        if fill == 0 or n_fill < max(10, sample.size // 1000) or (high and fill < _NO_FLUX):
            continue
        values = sample[~is_fill & (sample != 0)].astype(np.float64)
        if not values.size:
            found.append(float(fill))
            continue
        sigma = max(_sigma_or_zero(values), quantum(values))
        nearest = np.abs(values - fill).min()
        if nearest > sigma and abs(np.median(values) - fill) > _FAR_SIGMA * sigma:
            found.append(float(fill))
    return found


def noise(image_HW: NDArray[np.float32]) -> float:
    """Return the noise of an image in which zeros are data and values may repeat; NaN without any.

    The clipped standard deviation where values repeat, from coarse levels (then at least the
    rounding of the levels, step / sqrt(12), but photons are not rounded) or in sparse light;
    the clipped MAD else. The MAD of such values is 0, or a whole step.
    """
    rows = sample_rows(*image_HW.shape)
    values = image_HW[rows].astype(np.float64)
    return noise_of(values[np.isfinite(values)])


def noise_of(values: NDArray[np.float64]) -> float:
    """Return the noise of finite values, as `noise`."""
    if not values.size:
        return math.nan
    light = values[values != 0]
    rounding = float(np.finfo(np.float32).eps) * np.abs(values).max()
    if values.min() == 0 and light.size:  # photons, a clipped sky, or no noise at all
        sigma = max(_clipped_std(values, 0.0), rounding)
        sparse = values.size - light.size > _SPARSE * values.size
        return sigma if sparse else max(sigma, _sigma_or_zero(light))
    if not light.size or not (step := quantum(light)):
        sigma = _sigma_or_zero(values)
        return sigma or max(_clipped_std(values, float(np.median(values))), rounding)
    if (sigma := robust_sigma(light)) > 3 * step:
        return sigma
    return max(_clipped_std(values, float(np.median(values))), step / math.sqrt(12))


def _clipped_std(values: NDArray[np.float64], centre: float) -> float:
    """Clip at 4 standard deviations, but not the nearest levels beside the centre."""
    others = np.abs(values - centre)
    others = others[others > 0]
    if not others.size:
        return math.nan
    low = high = 2.5 * float(np.percentile(others, 5))
    sigma = 0.0
    for _ in range(20):
        kept = values[(values >= centre - low) & (values <= centre + high)]
        before, sigma = sigma, float(kept.std())
        centre = float(kept.mean())
        low, high = max(low, 4 * sigma), max(high, 4 * sigma)
        if sigma <= before * 1.001:
            break
    return sigma


def _sigma_or_zero(values: NDArray[np.floating]) -> float:
    sigma = robust_sigma(values)
    return sigma if math.isfinite(sigma) else 0.0


def _sample(image_HW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return sample_R2W: pairs of adjoining rows, enough for `quantum`, from rows with light."""
    height, width = image_HW.shape
    lit = np.zeros(height, np.bool_)
    for rows in sections(image_HW.shape):
        part = image_HW[rows]
        lit[rows] = np.any(np.isfinite(part) & (part != 0), axis=1)
    (lit_R,) = np.nonzero(lit)
    if not lit_R.size:
        return np.empty((0, 2, width), np.float32)
    first_R = lit_R[sample_rows(lit_R.size, width, _LEVELS)]
    return image_HW[np.stack([first_R, np.where(first_R + 1 < height, first_R + 1, first_R)], 1)]


def sections(shape: tuple[int, ...]) -> Iterator[slice]:
    """Rows of an image, a few million pixels at a time."""
    step = max(1, SECTION_PIXELS // shape[1])
    for i0 in range(0, shape[0], step):
        yield slice(i0, min(i0 + step, shape[0]))


def _regions(
    image_HW: NDArray[np.float32],
) -> Iterator[tuple[slice | tuple[slice, slice], NDArray[np.bool_]]]:
    """Squares, and runs along rows and columns, of so many zeros that noise does not make them."""
    height, width = image_HW.shape
    area = _least_area(image_HW)
    side = math.ceil(math.sqrt(area)) | 1  # odd: a window is centred on a pixel
    run = area | 1
    inside = {"mode": "constant", "cval": 0}
    for rows in sections(image_HW.shape):
        i0, i1 = max(0, rows.start - side), min(height, rows.stop + side)
        zero = (image_HW[i0:i1] == 0).view(np.uint8)
        part = slice(rows.start - i0, rows.stop - i0)
        found = np.zeros_like(zero[part])
        if side <= min(height, width):
            found |= maximum_filter(minimum_filter(zero, side, **inside), side, **inside)[part]
        if run <= width:
            found |= _runs(zero[part], run, 1)
        yield rows, found.view(np.bool_)
    if run <= height:
        step = max(1, SECTION_PIXELS // height)
        for j0 in range(0, width, step):
            columns = (slice(None), slice(j0, min(j0 + step, width)))
            zero = np.ascontiguousarray(image_HW[columns] == 0).view(np.uint8)
            yield columns, _runs(zero, run, 0).view(np.bool_)


def _runs(zero: NDArray[np.uint8], run: int, axis: int) -> NDArray[np.uint8]:
    eroded = minimum_filter1d(zero, run, axis, mode="constant", cval=0)
    return maximum_filter1d(eroded, run, axis, mode="constant", cval=0)


def _least_area(image_HW: NDArray[np.float32]) -> int:
    """Return how many adjoining zeros noise does not make, from the share of zeros in the data.

    The data are what is outside the regions, which the share decides: from all pixels on, in
    cells, until it stays as it is.
    """
    cells_h, cells_w = (max(1, n // _CELL) for n in image_HW.shape)
    n_zeros = np.zeros((cells_h, cells_w))
    n_pixels = np.zeros((cells_h, cells_w))
    step = _CELL * max(1, SECTION_PIXELS // (_CELL * image_HW.shape[1]))
    for i0 in range(0, min(image_HW.shape[0], cells_h * _CELL), step):
        part = image_HW[i0 : min(i0 + step, cells_h * _CELL), : cells_w * _CELL]
        rows = slice(i0 // _CELL, i0 // _CELL + max(1, part.shape[0] // _CELL))
        n_zeros[rows], n_pixels[rows] = _in_cells(part == 0), _in_cells(np.isfinite(part))
    empty = ((n_zeros == n_pixels) & (n_pixels > 0)).view(np.uint8)
    n_data, data = 0, np.ones_like(empty, np.bool_)
    area = 1
    while int(data.sum()) != n_data:
        n_data = int(data.sum())
        if not n_data or not n_pixels[data].sum():
            break
        lit = 1 - float(n_zeros[data].sum() / n_pixels[data].sum())
        if (1 - lit) ** _CELL**2 > _EMPTY:  # the light may be in sources: how much is elsewhere?
            n_empty = max(1, int(empty[data].sum()))
            lit = min(lit, math.log(n_data / n_empty) / _CELL**2)
        trials = 3 * image_HW.size / _CHANCE
        area = math.ceil(math.log(trials) / -math.log1p(-max(lit, 1e-9) / _FAINTEST))
        side = math.ceil(math.sqrt(area) / _CELL) + 1
        blank = np.zeros_like(empty)
        if side <= min(empty.shape):
            eroded = minimum_filter(empty, side, mode="constant", cval=0)
            # As wide again as the window and a cell: its edges are partly blank.
            blank = maximum_filter(eroded, side + 3)
        data = blank == 0
    return area


def _in_cells(part: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = np.add.reduceat(part, np.arange(0, part.shape[0], _CELL), axis=0, dtype=np.int64)
    return np.add.reduceat(rows, np.arange(0, part.shape[1], _CELL), axis=1)
