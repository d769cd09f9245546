"""A tile, one area of sky in all bands of a survey, read from FITS or ASDF by read_tile()."""

import contextlib
import itertools
import math
import os
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.utils.exceptions import AstropyWarning
from numpy.typing import ArrayLike, NDArray

from photozhpc.errors import MosaicError
from photozhpc.files.fits_length import unzipped
from photozhpc.files.objects import AnyPath, PathLike, location
from photozhpc.mosaic import grid
from photozhpc.mosaic.asdf_mosaic import open_asdf
from photozhpc.mosaic.band_image import BandPlane
from photozhpc.mosaic.blank import BLANK, mark_blank, noise, quantum, sections
from photozhpc.mosaic.fits_mosaic import open_fits
from photozhpc.mosaic.fits_siblings import without_siblings
from photozhpc.mosaic.grid import FloatN
from photozhpc.survey import Band, Survey

MAX_MEMORY_BYTES = 512 << 20  # larger tiles are kept in a scratch file
_MAX_GRID_OFFSET_PIX = 0.05
_MANY_ZEROS = 0.1  # share of zeros taken as data, above which a note says so
_COARSE = 3.0  # steps between repeated values, below which the MAD is rounded
_SAME_ERROR = 0.01  # a new estimate that differs by less is not used


@dataclass(frozen=True, eq=False)
class Tile:
    """One area of sky in all bands of a survey, on one grid.

    Attributes:
        tile_id: the name of the tile, from its files.
        band_names: the C bands, in the survey's order.
        image_CHW: float32, nJy per pixel; NaN where a band has no (good) data.
        err_CHW: float32, 1-sigma, nJy per pixel; NaN where image_CHW is.
        mask_HW: True where any band that has a mosaic is bad.
        wcs: astropy WCS or gwcs; None where the file has none.
        pixel_area_arcsec2: in the middle of the tile, from the WCS, or else from the survey.
        missing_bands: bands of the survey without a mosaic; their planes are NaN.
        notes: what a user should know of the input, e.g. that an error was estimated.
    """

    tile_id: str
    band_names: tuple[str, ...]
    image_CHW: NDArray[np.float32]
    err_CHW: NDArray[np.float32]
    mask_HW: NDArray[np.bool_]
    wcs: Any
    pixel_area_arcsec2: float
    missing_bands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def shape_HW(self) -> tuple[int, int]:
        height, width = self.mask_HW.shape
        return height, width

    @property
    def pixel_scale_arcsec(self) -> float:
        return math.sqrt(self.pixel_area_arcsec2)

    def sky_to_pixel(self, ra_N: ArrayLike, dec_N: ArrayLike) -> tuple[FloatN, FloatN]:
        """Return pixel positions (y_N, x_N), zero-based with pixel centres on integers.

        NaN where a position cannot be projected; positions off the tile are not NaN.

        Args:
            ra_N, dec_N: ICRS degrees.

        Raises:
            MosaicError: the mosaic has no WCS.
        """
        return grid.sky_to_pixel(self._need_wcs(), self.shape_HW, ra_N, dec_N)

    def pixel_to_sky(self, y_N: ArrayLike, x_N: ArrayLike) -> tuple[FloatN, FloatN]:
        """Return sky positions (ra_N, dec_N), ICRS degrees.

        Args:
            y_N, x_N: pixels, zero-based with pixel centres on integers.

        Raises:
            MosaicError: the mosaic has no WCS.
        """
        return grid.pixel_to_sky(self._need_wcs(), y_N, x_N)

    def _need_wcs(self) -> Any:
        if self.wcs is None:
            raise MosaicError(
                f"tile '{self.tile_id}': its mosaic has no WCS, which sky positions need; give "
                "pixel positions, or add a WCS to the header"
            )
        return self.wcs


def read_tile(
    paths: PathLike | Sequence[PathLike] | Mapping[str, PathLike], survey: Survey
) -> Tile:
    """Read the mosaics of one tile and calibrate them to nJy per pixel.

    Memory: the planes of a tile above `MAX_MEMORY_BYTES` go to an unlinked scratch file in
    TMPDIR; files are read in sections (a compressed ASDF block as a whole).

    Args:
        paths: {band: path}; or a sequence of paths, whose bands follow from their metadata or
            names; or one path, with one band or several (extensions or a cube).
        survey: the bands, their order and zero points. A band without a mosaic is NaN and listed
            in `Tile.missing_bands`.

    Raises:
        MosaicError: a file is missing, truncated, damaged or uncalibrated, the bands are on
            different grids, or two files are of one band.
        ConfigError: the survey does not have the band of a file.
    """
    files = _files(paths, survey)
    planes: dict[str, BandPlane] = {}
    with contextlib.ExitStack() as stack, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", AstropyWarning)
        for path, band in files:
            for plane in stack.enter_context(open_planes(path, survey, band)):
                if plane.band in planes:
                    raise MosaicError(
                        f"{planes[plane.band].path} and {plane.path} are both {plane.band}; "
                        "give one mosaic per band"
                    )
                planes[plane.band] = plane
        first = next(iter(planes.values()))
        for plane in planes.values():
            _check_grid(first, plane)
        return _fill(planes, survey, _tile_id([path for path, _ in files], survey))


def _files(
    paths: PathLike | Sequence[PathLike] | Mapping[str, PathLike], survey: Survey
) -> list[tuple[AnyPath, Band | None]]:
    files: list[tuple[AnyPath, Band | None]]
    if isinstance(paths, Mapping):
        files = [(location(path), survey.band(name)) for name, path in paths.items()]
    else:
        if isinstance(paths, str) or not isinstance(paths, Iterable):
            paths = [paths]
        mosaics = without_siblings([location(path) for path in paths], survey)
        files = [(path, None) for path in mosaics]
    if not files:
        raise MosaicError("no mosaic given: read_tile needs at least one path")
    return files


@contextlib.contextmanager
def open_planes(path: AnyPath, survey: Survey, band: Band | None) -> Iterator[list[BandPlane]]:
    """Open the bands of a mosaic file; `band`: the one to take; None: all it has.

    Raises:
        MosaicError, ConfigError: as `read_tile`.
    """
    with unzipped(path) as plain:
        with open(plain, "rb") as stream:
            start = stream.read(8)
        if start.startswith(b"#ASDF"):
            opened = open_asdf(path, plain, survey, band)
        elif start.startswith(b"SIMPLE"):
            opened = open_fits(path, plain, survey, band)
        elif not start:
            raise MosaicError(f"{path}: empty file; copy or download it again")
        else:
            raise MosaicError(
                f"{path}: neither FITS nor ASDF (it begins with {start!r}); give a mosaic"
            )
        with opened as planes:
            yield planes


def _check_grid(first: BandPlane, other: BandPlane) -> None:
    names = f"{first.path} ({first.band}) and {other.path} ({other.band})"
    difference = ""
    if first.shape_HW != other.shape_HW:
        difference = f"shapes {first.shape_HW} and {other.shape_HW}"
    elif (first.wcs is None) != (other.wcs is None):
        raise MosaicError(f"{names}: only one of them has a WCS; add it to the other")
    elif first.wcs is not None and other is not first:
        offset_pix = grid.grid_offset_pix(first.wcs, other.wcs, first.shape_HW)
        if not offset_pix <= _MAX_GRID_OFFSET_PIX:
            difference = f"their WCS differ by {offset_pix:.3g} pixels"
    if difference:
        raise MosaicError(
            f"{names} are on different grids: {difference}; resample them to one grid first"
        )


def _tile_id(paths: list[AnyPath], survey: Survey) -> str:
    """Return the {tile} of the survey's file names; else the beginning that the names share."""
    tiles = {match[0] for path in paths if (match := survey.match_mosaic(path.name)) is not None}
    if len(tiles) == 1 and (tile := tiles.pop()):
        return tile
    letters_of_names = zip(*(path.name for path in paths), strict=False)
    shared = itertools.takewhile(lambda letters: len(set(letters)) == 1, letters_of_names)
    stem = "".join(letters[0] for letters in shared)
    stem = re.sub(r"\.(fits?|asdf)(\.gz|\.fz)?$", "", stem, flags=re.IGNORECASE).rstrip("._-")
    return stem or paths[0].stem


def _fill(planes: dict[str, BandPlane], survey: Survey, tile_id: str) -> Tile:
    first = next(iter(planes.values()))
    image_CHW, err_CHW, mask_HW = _allocate((len(survey.bands), *first.shape_HW))
    notes: list[str] = []
    for c, name in enumerate(survey.band_names):
        for section in sections(first.shape_HW):
            if name in planes:
                _fill_rows(planes[name], section, image_CHW[c], err_CHW[c], mask_HW)
            else:
                image_CHW[c, section] = np.nan
                err_CHW[c, section] = np.nan
        if name in planes:
            notes += planes[name].notes
            notes += _blank(planes[name], image_CHW[c], err_CHW[c], mask_HW, survey.zero_is_blank)
    area_arcsec2 = survey.pixel_scale_arcsec**2
    if first.wcs is not None:
        area_arcsec2 = grid.pixel_area_arcsec2(first.wcs, first.shape_HW)
    return Tile(
        tile_id=tile_id,
        band_names=survey.band_names,
        image_CHW=image_CHW,
        err_CHW=err_CHW,
        mask_HW=mask_HW,
        wcs=first.wcs,
        pixel_area_arcsec2=area_arcsec2,
        missing_bands=tuple(name for name in survey.band_names if name not in planes),
        notes=tuple(notes),
    )


def _fill_rows(
    plane: BandPlane,
    section: slice,
    image_HW: NDArray[np.float32],
    err_HW: NDArray[np.float32],
    mask_HW: NDArray[np.bool_],
) -> None:
    rows, err, bad = plane.read_rows(section.start, section.stop)
    scale = np.float32(plane.njy_per_unit)
    image, sigma = image_HW[section], err_HW[section]
    with np.errstate(all="ignore"):
        np.multiply(rows, scale, out=image, casting="unsafe")
        if err is None:
            sigma[:] = np.nan
        else:
            np.multiply(err, scale, out=sigma, casting="unsafe")
    if plane.one_error is not None and not plane.one_error > 0:
        sigma[:] = 1  # until `_blank` measures it
    # An error of zero means 'no data' in files; as a weight it would outweigh all others.
    lost = ~(np.isfinite(image) & np.isfinite(sigma) & (sigma > 0))
    if bad is not None:
        lost |= bad
    image[lost] = np.nan
    sigma[lost] = np.nan
    mask_HW[section] |= lost


def _blank(
    plane: BandPlane,
    image_HW: NDArray[np.float32],
    err_HW: NDArray[np.float32],
    mask_HW: NDArray[np.bool_],
    zero_is_blank: bool | None,
) -> list[str]:
    """Remove blank pixels, and measure the error again if they spoiled it; return notes."""
    step = max(1, min(err_HW.shape) // 256)
    sample = err_HW[::step, ::step]
    sample = sample[np.isfinite(sample)]
    is_constant = plane.one_error is not None or not sample.size or sample.min() == sample.max()
    n_blank, n_zeros, meaning = mark_blank(image_HW, err_HW, is_constant, zero_is_blank)
    notes = []
    if n_blank:
        for rows in sections(image_HW.shape):
            mask_HW[rows] |= np.isnan(image_HW[rows])
        notes.append(
            f"{plane.band}: {100 * n_blank / image_HW.size:.3g}% of the pixels are blank by their "
            "value (zero_is_blank in the survey's YAML file says what zeros mean)"
        )
    if n_zeros > _MANY_ZEROS * image_HW.size and zero_is_blank is None:
        notes.append(
            f"{plane.band}: {100 * n_zeros / image_HW.size:.3g}% of the pixels are exact zeros, "
            "taken as data (sparse photons, or an image without noise); if they are blank, set "
            "zero_is_blank: true in the survey's YAML file"
        )
    if plane.one_error is None:
        return notes
    before = plane.one_error * plane.njy_per_unit
    if before > 0 and meaning in (None, BLANK):
        sample = image_HW[::step, ::step]
        if before > _COARSE * quantum(sample[np.isfinite(sample)]):
            return notes
    sigma = noise(image_HW)
    if before > 0 and abs(sigma - before) < _SAME_ERROR * before:
        return notes
    for rows in sections(image_HW.shape):
        err_HW[rows][np.isfinite(image_HW[rows])] = sigma
    if sigma > 0:
        notes.append(
            f"{plane.band}: values repeat, or most are 0, so that their MAD is not the noise: one "
            f"error of {sigma:.3g} nJy for all pixels, from their clipped standard deviation"
        )
    return notes


def _allocate(
    shape: tuple[int, int, int],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return image, error and mask, in memory or in a scratch file that vanishes with them."""
    n_pixels = math.prod(shape)
    if n_pixels * 8 <= MAX_MEMORY_BYTES:
        image_CHW, err_CHW = (np.empty(shape, np.float32) for _ in range(2))
        return image_CHW, err_CHW, np.zeros(shape[1:], np.bool_)
    n_bytes = n_pixels * 8 + shape[1] * shape[2]
    try:
        with tempfile.TemporaryFile(prefix="photozhpc-tile-") as file:
            os.posix_fallocate(file.fileno(), 0, n_bytes)  # a full disk is an error here, no crash
            scratch = np.memmap(file, np.uint8, "r+", shape=(n_bytes,))
    except OSError as error:
        raise MosaicError(
            f"no room for {n_bytes / 1e9:.1f} GB of scratch in {tempfile.gettempdir()} "
            f"({error.strerror}); set TMPDIR to a larger disk"
        ) from error
    planes = np.asarray(scratch[: n_pixels * 8]).view(np.float32).reshape(2, *shape)
    mask = np.asarray(scratch[n_pixels * 8 :]).view(np.bool_).reshape(shape[1:])
    return planes[0], planes[1], mask
