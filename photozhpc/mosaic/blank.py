"""Blank pixels that no plane of a file marks, and the noise of an image without an error plane.

SWarp, Montage, reproject and drizzle fill unobserved pixels with exact zeros, and compression may
keep them (SUBTRACTIVE_DITHER_2, FITS standard 4.0, section 10.2.1). But zeros are data in images
of sparse photons (GALEX, X-rays), in integers, and where the sky was clipped. The image itself
shows which they are: see `meaning_of_zeros`.
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
_SINGLE = 0.05  # share of pixels with light between two zeros, from which light is in single pixels
_SOME = 0.01  # share of pixels of the rarer sign, from which the sky was subtracted
_FADED = 0.1  # light at its edges over typical light, and faint over bright light, of fading light
_REPEATED = 2.5e-5  # share of pixels with one value: about one chance in an aperture of 100 px
_LEVELS = 250_000  # pixels in which repeated values are counted
_CHANCE = 1e-3  # that noise makes one region as large, anywhere in the image
_FAINTEST = 4.0  # a part of the field may have this many times fewer pixels with light (vignetting)
_CELL = 8  # pixels along a side of the cells in which the share of zeros is measured
_EMPTY = 0.05  # share of empty cells, from which the light may be in sources
_SPARSE = 0.6  # share of zeros, above which they are not a sky clipped at 0
_NO_FLUX = 1e20  # a repeated value above it is not a flux (1e30, 1.6e38: INDEF of IRAF)


def mark_blank(
    image_HW: NDArray[np.float32],
    err_HW: NDArray[np.float32],
    with_regions: bool,
    zero_is_blank: bool | None,
) -> tuple[int, int, str | None]:
    """Set the blank pixels of an image, in place, and their errors to NaN.

    Args:
        err_HW: NaN where the image is bad or NaN.
        with_regions: whether to look for blank regions where single zeros are data; False where
            an error or weight map shows what was observed.
        zero_is_blank: the survey's setting for exact zeros; None: decided by the image.

    Returns:
        The number of blank pixels, the number of zeros left, and what zeros mean (None: there
        were none).
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
        meaning = meaning_of_zeros(image_HW)
    else:
        meaning = BLANK if zero_is_blank else SKY
    if meaning == BLANK:
        for rows in sections(image_HW.shape):
            err_HW[rows][image_HW[rows] == 0] = np.nan
    elif meaning == REGIONS and with_regions:
        for part, blank in _regions(image_HW):
            err_HW[part][blank] = np.nan  # the image stays: the next part overlaps this one
    n_lost = _lose(image_HW, err_HW)
    return n_blank + n_lost, n_zeros - n_lost, meaning


def _lose(image_HW: NDArray[np.float32], err_HW: NDArray[np.float32]) -> int:
    """Set the image to NaN where its error is NaN; return how many pixels changed."""
    count = 0
    for rows in sections(image_HW.shape):
        lost = np.isnan(err_HW[rows]) & ~np.isnan(image_HW[rows])
        image_HW[rows][lost] = np.nan
        count += int(lost.sum())
    return count


def meaning_of_zeros(image_HW: NDArray[np.float32]) -> str:
    """Return what exact zeros are: BLANK, SKY (data), or REGIONS (data, except large regions).

    - The noise of a subtracted sky has both signs and hardly ever repeats a value: every zero is
      blank, even a single one.
    - Light over many magnitudes that fades to zero: a simulated image without noise; sky.
    - A sky many sigma above zero: a zero is blank, unless much of the light is in single pixels,
      as with sparse photons.
    - Otherwise (photons, integers, a clipped sky) noise makes zeros, and only regions larger than
      such noise makes are blank.
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
    """Return the step between values where values repeat; 0 where they are continuous."""
    sample = values[:: max(1, values.size // _LEVELS)]
    levels, counts = np.unique(sample, return_counts=True)
    if counts.max(initial=0) < max(5, _REPEATED * sample.size):
        return 0.0
    steps = np.diff(np.union1d(levels[counts > 1], [0.0]).astype(np.float64))
    return float(np.percentile(steps, 10)) if steps.size else 0.0


def fill_values(image_HW: NDArray[np.float32]) -> list[float]:
    """Return the values other than 0 that fill blank pixels, such as -999, -32768 and -1e30.

    A fill is a repeated lowest value far below all others, or a repeated highest value that
    cannot be a flux.
    """
    step = max(1, min(image_HW.shape) // 512)
    sample = image_HW[::step, ::step]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return []
    fills = []
    for fill, is_highest in ((sample.min(), False), (sample.max(), True)):
        is_fill = sample == fill
        n_fill = np.count_nonzero(is_fill)
        if fill == 0 or n_fill < max(10, sample.size // 1000) or (is_highest and fill < _NO_FLUX):
            continue
        values = sample[~is_fill & (sample != 0)].astype(np.float64)
        if values.size:
            sigma = max(_sigma_or_zero(values), quantum(values))
            nearest = np.abs(values - fill).min()
            if not (nearest > sigma and abs(np.median(values) - fill) > _FAR_SIGMA * sigma):
                continue
        fills.append(float(fill))
    return fills


def noise(image_HW: NDArray[np.float32]) -> float:
    """Return the noise of an image in which zeros are data and values may repeat; NaN without any.

    Where values repeat, because levels are coarse or light is sparse, the MAD is 0 or a whole
    step: there the noise is the clipped standard deviation, and for coarse levels at least their
    rounding, step / sqrt(12) (photons are not rounded). Elsewhere it is the clipped MAD.
    """
    rows = sample_rows(*image_HW.shape)
    values = image_HW[rows].astype(np.float64)
    return noise_of(values[np.isfinite(values)])


def noise_of(values: NDArray[np.float64]) -> float:
    """Return the noise of finite values, as `noise` does."""
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
    """Return the standard deviation, clipped at 4 sigma but beyond the levels next to `centre`."""
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
    """Yield the rows of an image, a few million pixels at a time."""
    step = max(1, SECTION_PIXELS // shape[1])
    for i0 in range(0, shape[0], step):
        yield slice(i0, min(i0 + step, shape[0]))


def _regions(
    image_HW: NDArray[np.float32],
) -> Iterator[tuple[slice | tuple[slice, slice], NDArray[np.bool_]]]:
    """Yield (part, mask) of squares and runs with more zeros than noise makes."""
    height, width = image_HW.shape
    area = _least_area(image_HW)
    side = math.ceil(math.sqrt(area)) | 1  # odd: a window is centred on a pixel
    run = area | 1
    inside = {"mode": "constant", "cval": 0}
    for rows in sections(image_HW.shape):
        i0, i1 = max(0, rows.start - side), min(height, rows.stop + side)
        zero = (image_HW[i0:i1] == 0).view(np.uint8)
        part = slice(rows.start - i0, rows.stop - i0)
        blank = np.zeros_like(zero[part])
        if side <= min(height, width):
            blank |= maximum_filter(minimum_filter(zero, side, **inside), side, **inside)[part]
        if run <= width:
            blank |= _runs(zero[part], run, 1)
        yield rows, blank.view(np.bool_)
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
    """Return the least number of adjoining zeros that noise does not make.

    It follows from the share of zeros outside blank regions, which depend on it in turn: iterated
    in cells, from all pixels on, until nothing changes.
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
        if (1 - lit) ** _CELL**2 > _EMPTY:  # light in sources: take the share between them
            n_empty = max(1, int(empty[data].sum()))
            lit = min(lit, math.log(n_data / n_empty) / _CELL**2)
        trials = 3 * image_HW.size / _CHANCE
        area = math.ceil(math.log(trials) / -math.log1p(-max(lit, 1e-9) / _FAINTEST))
        side = math.ceil(math.sqrt(area) / _CELL) + 1
        blank = np.zeros_like(empty)
        if side <= min(empty.shape):
            eroded = minimum_filter(empty, side, mode="constant", cval=0)
            # Wider than the window by a cell on each side: cells at the edge are partly blank.
            blank = maximum_filter(eroded, side + 3)
        data = blank == 0
    return area


def _in_cells(part: NDArray[np.bool_]) -> NDArray[np.int64]:
    rows = np.add.reduceat(part, np.arange(0, part.shape[0], _CELL), axis=0, dtype=np.int64)
    return np.add.reduceat(rows, np.arange(0, part.shape[1], _CELL), axis=1)
