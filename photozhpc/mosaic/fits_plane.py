"""One image of a FITS file, read by rows: an HDU, or one layer of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from photozhpc.errors import MosaicError
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.band_image import sample_rows
from photozhpc.mosaic.calibration import number

_ASINH_MAG = 2.5 * math.log10(math.e)  # unit of the pixels of Pan-STARRS' stacks, a factor e
_MIN_UNPACKED_PIXELS = 1 << 17  # of a compressed plane, at a time
_MAX_KEPT_BYTES = 16 << 20  # of a compressed plane that was read to its end


@dataclass
class FitsPlane:
    """An image HDU, or one layer of it."""

    hdu: Any
    layer: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)
    asinh: tuple[float, float] | None = None  # BSOFTEN, BOFFSET; None: pixels are linear
    _first: int = field(default=0, init=False)
    _unpacked: NDArray[Any] | None = field(default=None, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.hdu.shape[-2:]
        return int(height), int(width)

    def rows(self, i0: int, i1: int) -> NDArray[Any]:
        """Read rows [i0, i1), scaled and linear."""
        rows = self._stored_rows(i0, i1)
        if self.asinh is None:
            return rows
        softening, offset = self.asinh
        with np.errstate(over="ignore"):
            return offset + 2 * softening * np.sinh(rows.astype(np.float64) / _ASINH_MAG)

    def sample(self) -> NDArray[Any]:
        """Read rows spread over the plane, for estimates from a part of it."""
        return np.stack([self.rows(i, i + 1)[0] for i in sample_rows(*self.shape)])

    def _stored_rows(self, i0: int, i1: int) -> NDArray[Any]:
        if not isinstance(self.hdu, fits.CompImageHDU):
            return self._section(i0, i1)
        # Tiles are unpacked as a whole and kept for the next rows. Low tiles are unpacked many at a
        # time: a request for a row takes longer than to unpack it.
        tile_height = self.hdu.tile_shape[-2]
        tile_height *= max(1, _MIN_UNPACKED_PIXELS // (self.shape[1] * tile_height))
        kept = self._unpacked
        if kept is None or not self._first <= i0 <= i1 <= self._first + len(kept):
            self._unpacked = kept = None  # frees the memory for the next tiles
            self._first = i0 // tile_height * tile_height
            stop = min(-(-i1 // tile_height) * tile_height, self.shape[0])
            kept = self._section(self._first, stop)
        rows = kept[i0 - self._first : i1 - self._first]
        is_done = i1 == self.shape[0] and kept.nbytes > _MAX_KEPT_BYTES
        self._unpacked = None if is_done else kept
        return rows

    def _section(self, i0: int, i1: int) -> NDArray[Any]:
        return np.asarray(self.hdu.section[(*self.layer, slice(i0, i1), slice(None))])


def flat_plane(path: AnyPath, hdu: Any) -> FitsPlane:
    """Take the one image of an HDU, or the first layer of a single stack (IMCOM: science)."""
    leading = tuple(hdu.shape[:-2])
    if math.prod(leading) != 1 and (len(leading) < 2 or leading[0] != 1):
        raise MosaicError(
            f"{path}: shape {tuple(hdu.shape)} is neither one image nor one for each band; write "
            "one image per file"
        )
    return FitsPlane(hdu, (0,) * len(leading))


def asinh_scale(path: AnyPath, headers: Sequence[fits.Header]) -> tuple[float, float] | None:
    """Return BSOFTEN and BOFFSET of a Pan-STARRS stack, whose pixels are asinh magnitudes.

    flux = BOFFSET + BSOFTEN * 2 sinh(pixel / 2.5 log10(e)) (MAST, PS1 Stack images).

    Raises:
        MosaicError: one of them is missing, or not a number.
    """
    for header in headers:
        stated, offset = header.get("BSOFTEN"), header.get("BOFFSET")
        if stated is None and offset is None:
            continue
        softening = number(stated)
        if softening is None or not isinstance(offset, int | float) or not math.isfinite(offset):
            raise MosaicError(
                f"{path}: pixels on an asinh scale, with BSOFTEN {stated} and BOFFSET {offset}; "
                "convert them to a linear scale first"
            )
        return softening, float(offset)
    return None
