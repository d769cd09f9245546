"""One band of a mosaic file, opened and calibrated but not yet read."""

import binascii
import contextlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import asdf.exceptions
import numpy as np
import yaml
from astropy.io.fits import VerifyError
from astropy.io.fits.hdu.compressed._compression import CfitsioException  # no public name
from numpy.typing import NDArray

from photozhpc.errors import MosaicError, one_line
from photozhpc.files.disk import read_fault
from photozhpc.files.objects import AnyPath

# What astropy, asdf, gwcs and zlib raise on damaged files; every one becomes a MosaicError.
DAMAGED: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    ImportError,
    MemoryError,
    VerifyError,
    CfitsioException,
    yaml.YAMLError,
    asdf.exceptions.ValidationError,
    zlib.error,
    binascii.Error,
    struct.error,
)
with contextlib.suppress(ImportError):  # only an ASDF file compressed by it needs lz4
    from lz4.block import LZ4BlockError

    DAMAGED = (*DAMAGED, LZ4BlockError)

Rows = tuple[NDArray[Any], NDArray[Any] | None, NDArray[np.bool_] | None]


@dataclass(frozen=True)
class BandPlane:
    """One band, open for reading.

    Attributes:
        njy_per_unit: nJy per pixel of one unit of the file's image.
        calibrated_by: what stated that.
        read_rows: (first, last + 1) -> image and 1-sigma error in the file's unit, and bad
            pixels; None for what the file does not have.
        notes: what a user should know: an estimated error, a skipped plane.
        one_error: the error, where it is one number estimated from a part of the image (not
            above 0: the estimate failed); None where the file has errors.
        roles: what the planes that are read hold, in the file and in files beside it.
    """

    path: AnyPath
    band: str
    shape_HW: tuple[int, int]
    wcs: Any
    njy_per_unit: float
    read_rows: Callable[[int, int], Rows]
    notes: tuple[str, ...] = ()
    one_error: float | None = None
    roles: tuple[str, ...] = ()
    calibrated_by: str = ""


@contextlib.contextmanager
def naming(path: AnyPath) -> Iterator[None]:
    """Put the path before the message of a MosaicError that lacks it."""
    try:
        yield
    except MosaicError as error:
        raise MosaicError(f"{path}: {error}") from error


def damaged(path: AnyPath, kind: str, error: BaseException) -> MosaicError:
    """Return what to raise for one of DAMAGED: the system's fault, or the file's, as a `kind`."""
    return MosaicError(
        read_fault(path, error)
        or f"{path}: damaged or not a {kind} mosaic ({one_line(error)}); copy it again"
    )


def sample_rows(n_rows: int, n_columns: int, n_pixels: int = 1_000_000) -> list[int]:
    """Return rows, spread over an image, that hold about `n_pixels`, for estimates from a part."""
    count = min(n_rows, max(16, n_pixels // max(1, n_columns)))
    return np.unique(np.linspace(0, n_rows - 1, count).astype(int)).tolist()


def robust_sigma(values: NDArray[Any]) -> float:
    """Return 1.4826 times the median absolute deviation, clipped at 4 sigma; NaN without values.

    Exact zeros do not count: they are the blank part of a mosaic.
    """
    values = values[np.isfinite(values) & (values != 0)]
    sigma = float("nan")
    for _ in range(5):
        if values.size == 0:
            break
        median = np.median(values)
        sigma = 1.4826 * float(np.median(np.abs(values - median)))
        kept = values[np.abs(values - median) <= 4 * sigma]
        if kept.size == values.size:
            break
        values = kept
    return sigma


def sigma_from_weight(weight: NDArray[Any], scale: float = 1.0) -> NDArray[np.float32]:
    """Return scale / sqrt(weight); NaN where the weight is not positive."""
    with np.errstate(all="ignore"):
        sigma = scale / np.sqrt(weight.astype(np.float32))
    return np.where(weight > 0, sigma, np.nan).astype(np.float32)
