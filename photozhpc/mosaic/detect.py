"""Source detection on a tile: SEP's Background and extract on the sum of all bands."""

from dataclasses import dataclass

import numpy as np
import sep
from numpy.typing import NDArray
from scipy.ndimage import convolve, maximum_filter
from scipy.spatial import cKDTree

from photozhpc.errors import MosaicError, one_line
from photozhpc.mosaic.measure import noise_weights, psf_sigma_arcsec
from photozhpc.mosaic.tile import Tile
from photozhpc.survey import Survey

# A tile is searched in blocks, so that memory does not grow with it. Blocks and margins are whole
# meshes of the background, so that neighbouring blocks see the same meshes.
MESH_PIX = 64
BLOCK_PIX = 32 * MESH_PIX
MARGIN_PIX = 4 * MESH_PIX
FILTERED_SIGMA = 4.0  # the default threshold for any PSF, in sigma of the filtered noise
_MIN_SIGMA_PIX = 0.6  # of the filter, FWHM 1.4 px: a sharper one would not smooth noise
# Two detections of one source, in two blocks or on two tiles, are no further apart than this.
REPEAT_PIX = 3.0
# The correlation of the noise is measured in windows along each axis of a tile.
_WINDOWS, _WINDOW_PIX, _MIN_PIXELS = 3, 512, 10_000
_PIXEL_STACK = 4_000_000
_SUB_OBJECTS = 65_536


@dataclass(frozen=True, eq=False)
class Detections:
    """Sources found on a tile, ordered by row.

    Attributes:
        y_N, x_N: isophotal barycentres, pixels.
        flags_N: SEP's extraction flags (1: blended, 2: cut by the edge or by bad pixels ...).
    """

    y_N: NDArray[np.float64]
    x_N: NDArray[np.float64]
    flags_N: NDArray[np.int16]


def detect_sources(
    tile: Tile, survey: Survey, threshold: float | None, min_area_pix: int
) -> Detections:
    """Find the sources of a tile.

    The detection image is sum w I over its error, w = 1 / noise^2 of a band, over the bands that
    have a pixel there: the signal-to-noise ratio of a pixel for a source of flat f_nu. SEP
    measures the background of each band, and rescales the noise where the errors are wrong
    (meshes of 64 px). The filter is the PSF of the sum, of FWHM 1.4 px or more.

    Args:
        threshold: for the filtered image, in standard deviations of the unfiltered one, as
            SExtractor's DETECT_THRESH; raised where filtered noise is noisier than white noise
            would be. None: FILTERED_SIGMA standard deviations of the filtered image.
        min_area_pix: the number of adjoining pixels that must exceed the threshold.

    Raises:
        MosaicError: more pixels are above the threshold than SEP can hold.
    """
    weight_C = noise_weights(tile.err_CHW)
    sigma_pix = psf_sigma_arcsec(survey, weight_C) / tile.pixel_scale_arcsec
    kernel = _gaussian(max(sigma_pix, _MIN_SIGMA_PIX))
    height, width = tile.shape_HW
    parts, depths, blocks = [], [], []
    corners = [(i, j) for i in range(0, height, BLOCK_PIX) for j in range(0, width, BLOCK_PIX)]
    if threshold is None:
        threshold = FILTERED_SIGMA * float(np.sqrt(np.sum(kernel**2)))
    threshold *= _correlation(tile, weight_C, kernel)
    for block, (i, j) in enumerate(corners):
        i0, j0 = max(i - MARGIN_PIX, 0), max(j - MARGIN_PIX, 0)
        rows = slice(i0, min(i + BLOCK_PIX + MARGIN_PIX, height))
        columns = slice(j0, min(j + BLOCK_PIX + MARGIN_PIX, width))
        source_N3 = _detect_block(tile, weight_C, rows, columns, kernel, threshold, min_area_pix)
        source_N3[:, :2] += i0, j0
        # How far inside the block without its margin; the edges of the tile do not count.
        last_i = np.inf if i + BLOCK_PIX >= height else i + BLOCK_PIX - 0.5
        last_j = np.inf if j + BLOCK_PIX >= width else j + BLOCK_PIX - 0.5
        first_i, first_j = i - 0.5 if i else -np.inf, j - 0.5 if j else -np.inf
        y_N, x_N = source_N3[:, 0], source_N3[:, 1]
        depth_N = np.minimum.reduce([y_N - first_i, last_i - y_N, x_N - first_j, last_j - x_N])
        near_N = depth_N > -REPEAT_PIX
        parts.append(source_N3[near_N])
        depths.append(depth_N[near_N])
        blocks.append(np.full(near_N.sum(), block))
    source_N3 = np.concatenate(parts)
    source_N3 = source_N3[
        first_sightings(
            source_N3[:, :2], np.concatenate(blocks), np.concatenate(depths), REPEAT_PIX
        )
    ]
    y_N, x_N, flags_N = source_N3[np.lexsort((source_N3[:, 1], source_N3[:, 0]))].T
    return Detections(y_N, x_N, flags_N.astype(np.int16))


def first_sightings(
    place_ND: NDArray[np.float64],
    group_N: NDArray[np.integer],
    depth_N: NDArray[np.float64],
    radius: float,
) -> NDArray[np.bool_]:
    """Return keep_N: which detections to keep so that no source is there from two groups.

    Of two detections of different groups within `radius`, the one with the larger depth is kept;
    at equal depth, the one of the first group.
    """
    keep_N = np.ones(len(place_ND), dtype=np.bool_)
    if not len(place_ND):
        return keep_N
    pairs_P2 = cKDTree(place_ND).query_pairs(radius, output_type="ndarray")
    pairs_P2 = pairs_P2[group_N[pairs_P2[:, 0]] != group_N[pairs_P2[:, 1]]]
    left_P, right_P = pairs_P2.T
    left_wins_P = np.where(
        depth_N[left_P] != depth_N[right_P],
        depth_N[left_P] > depth_N[right_P],
        group_N[left_P] < group_N[right_P],
    )
    keep_N[np.where(left_wins_P, right_P, left_P)] = False
    return keep_N


def _detect_block(
    tile: Tile,
    weight_C: NDArray[np.float64],
    rows: slice,
    columns: slice,
    kernel: NDArray[np.float32],
    threshold: float,
    min_area_pix: int,
) -> NDArray[np.float64]:
    """Return source_N3: y, x in the block, and flags."""
    snr, bad = _significance(tile, weight_C, rows, columns)
    if bad.all():
        return np.empty((0, 3))
    noise = sep.Background(snr, mask=bad, bw=MESH_PIX, bh=MESH_PIX).rms(dtype=np.float32)
    bad |= ~(noise > 0)  # a mesh without a usable pixel
    snr[bad] = 0
    noise[bad] = 1
    sep.set_extract_pixstack(_PIXEL_STACK)
    sep.set_sub_object_limit(_SUB_OBJECTS)
    try:
        # filter_type "matched" divides by the noise of the filtered image: the same threshold
        # would be four times lower, and CLEAN then removes what it finds near bright sources.
        sources = sep.extract(
            snr,
            threshold,
            err=noise,
            mask=bad,
            minarea=min_area_pix,
            filter_kernel=kernel,
            filter_type="conv",
        )
    except Exception as error:  # SEP raises no other class
        raise MosaicError(
            f"tile '{tile.tile_id}': SEP gave up ({one_line(error, 120)}); check that the mosaic's "
            "background is subtracted, or pass a higher --threshold"
        ) from error
    return np.stack([sources["y"], sources["x"], sources["flag"].astype(np.float64)], axis=1)


def _significance(
    tile: Tile, weight_C: NDArray[np.float64], rows: slice, columns: slice
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return sum w (I - background) over its error, and where no band has a pixel."""
    total = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.float32)
    variance = np.zeros_like(total)
    for c in np.flatnonzero(weight_C):
        weight = np.float32(weight_C[c])
        plane = np.ascontiguousarray(tile.image_CHW[c, rows, columns], np.float32)
        err = tile.err_CHW[c, rows, columns]
        lost = ~(np.isfinite(plane) & (err > 0) & np.isfinite(err))
        if lost.all():
            continue
        background = sep.Background(plane, mask=lost, bw=MESH_PIX, bh=MESH_PIX)
        plane = np.where(lost, 0, plane - background.back(dtype=np.float32))
        total += weight * plane
        variance += np.where(lost, 0, weight * err) ** 2
    bad = variance == 0
    np.divide(total, np.sqrt(variance), out=total, where=~bad)
    return total, bad


def _correlation(tile: Tile, weight_C: NDArray[np.float64], kernel: NDArray[np.float32]) -> float:
    """Return the noise of the filtered sum over that of filtered white noise; at least 1.

    Resampling shares noise among neighbours, which a filter then does not average away. Noise is
    measured below the median, where there are no sources, in windows over the tile.
    """
    height, width = tile.shape_HW
    side = min(_WINDOW_PIX, height, width)
    ratios = []
    for i in np.unique(np.linspace(0, height - side, _WINDOWS).astype(int)):
        for j in np.unique(np.linspace(0, width - side, _WINDOWS).astype(int)):
            snr, bad = _significance(tile, weight_C, slice(i, i + side), slice(j, j + side))
            whole = ~maximum_filter(bad, size=kernel.shape)
            if np.count_nonzero(whole) < _MIN_PIXELS:
                continue
            noises = [_below_median(plane[whole]) for plane in (snr, convolve(snr, kernel))]
            if noises[0] > 0:
                ratios.append(noises[1] / noises[0] / np.sqrt(np.sum(kernel**2)))
    return max(1.0, float(np.median(ratios))) if ratios else 1.0


def _below_median(values: NDArray[np.float32]) -> float:
    low, middle = np.percentile(values, [15.87, 50])
    return float(middle - low)


def _gaussian(sigma_pix: float) -> NDArray[np.float32]:
    half = max(1, int(3 * sigma_pix))
    line = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma_pix) ** 2)
    return np.ascontiguousarray(np.outer(line, line) / line.sum() ** 2, np.float32)
