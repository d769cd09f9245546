"""Which bits of a mask or data-quality plane mean that a pixel is bad.

LSST and HSC name their bits in MP_ cards, and most of them are no fault (DETECTED, BRIGHT_OBJECT,
INTRP: repaired): pipelines.lsst.io, afw.image.Mask. Pan-STARRS: outerspace.stsci.edu, 'PS1 Pixel
flags in Image Table Data'. JWST and Roman: bit 0 is DO_NOT_USE. HST: the Data Handbooks of ACS and
WFC3, 'data quality flags'.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import MosaicError
from photozhpc.mosaic.plane import sample_rows
from photozhpc.object_storage import AnyPath

DO_NOT_USE = 1  # of JWST and Roman
_LSST_BAD = ("BAD", "SAT", "NO_DATA", "EDGE", "UNMASKEDNAN")
_PAN_STARRS_NAMES = (
    "DETECTOR FLAT DARK BLANK CTE SAT LOW SUSPECT CR SPIKE GHOST STREAK STARCORE CONV.BAD CONV.POOR"
)
_PAN_STARRS = {name: 1 << bit for bit, name in enumerate(_PAN_STARRS_NAMES.split())}
_PAN_STARRS_GOOD = ("SUSPECT", "SPIKE", "CONV.POOR")
# Hot, warm and trap pixels, which HST's calibration corrects; all other bits are faults.
_HST_GOOD = 16 | 32 | 64 | 1024
_ALL_BITS = (1 << 62) - 1
_LIKELY_WRONG = 0.5  # of the pixels with data; a mask that says more of them are bad means 'good'


class BadBits:
    """Tells bad pixels by the values of a mask plane.

    Attributes:
        note: what was assumed, or empty.
    """

    def __init__(self, bits: int | None, zero_is_bad: bool = False, note: str = "") -> None:
        """`bits`: any of them makes a pixel bad; None: any value but 0 does."""
        self._bits = bits
        self._zero_is_bad = zero_is_bad
        self.note = note

    def of(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which pixels are bad, of values of the plane."""
        if self._bits is None:
            return (rows == 0) if self._zero_is_bad else (rows != 0)
        return (rows.astype(np.int64) & self._bits) != 0


def bits_of_numbers(wanted: Sequence[str | int], path: AnyPath) -> int:
    """Return the bits of a plane whose header names none.

    Raises:
        MosaicError: one is given by a name.
    """
    return _bits_of(wanted, {}, path)


def bad_bits(
    path: AnyPath,
    plane: Any,
    role: str,
    headers: Sequence[Any],
    image: Any,
    wanted: Sequence[str | int] | None,
) -> BadBits:
    """Return which values of a mask plane mean a bad pixel.

    Args:
        plane, image: have `header` (the plane), `shape` and `rows(first, last + 1)`.
        role: "mask" or "dq".
        headers: of the plane, the image and the file.
        wanted: the survey's `bad_mask_bits`.

    Raises:
        MosaicError: a bit is not known, or 1 seems to mean good.
    """
    names = _named_bits(headers)
    if wanted is not None:
        return BadBits(_bits_of(wanted, names, path))
    advice = "set bad_mask_bits in the survey's YAML file"
    if any(_is_pan_starrs(header) for header in headers) or names.keys() & {"CONV.BAD"}:
        bits = {**_PAN_STARRS, **names}
        return BadBits(sum(value for name, value in bits.items() if name not in _PAN_STARRS_GOOD))
    if names:
        bad = [name for name in _LSST_BAD if name in names]
        note = (
            "" if bad else f"none of the mask's bits ({', '.join(names)}) is taken as bad; {advice}"
        )
        return BadBits(sum(names[name] for name in bad), note=note)
    if role == "dq":
        telescope = next((str(t) for h in headers if (t := h.get("TELESCOP"))), "").strip().upper()
        if telescope == "HST":
            return BadBits(_ALL_BITS & ~_HST_GOOD)
        if telescope in ("JWST", "ROMAN"):
            return BadBits(DO_NOT_USE)
        note = f"bit 0 of the DQ plane alone means a bad pixel, as JWST writes it; else {advice}"
        is_used = _values(plane) - {0, 1}
        return BadBits(DO_NOT_USE, note=note if is_used else "")
    return _any_value(path, plane, image, advice)


def _any_value(path: AnyPath, plane: Any, image: Any, advice: str) -> BadBits:
    """Any value but 0 is bad, if that leaves the image its pixels."""
    flagged, has_data, values = [], [], set()
    for i in sample_rows(*image.shape):
        mask, pixels = plane.rows(i, i + 1), image.rows(i, i + 1)
        flagged.append(mask != 0)
        has_data.append(np.isfinite(pixels) & (pixels != 0))
        values |= set(np.unique(mask).tolist())
    flagged_N, has_data_N = np.concatenate(flagged).ravel(), np.concatenate(has_data).ravel()
    share = float(flagged_N[has_data_N].mean()) if has_data_N.any() else 0.0
    if share > _LIKELY_WRONG:
        in_zeros = has_data_N[~flagged_N]
        if len(values) == 2 and in_zeros.size and in_zeros.mean() < 0.01:
            return BadBits(None, True, "the mask is 0 where there are no data: 0 means bad")
        raise MosaicError(
            f"{path}: its mask is not 0 on {100 * share:.0f}% of the pixels with data; if not all "
            f"of them are bad, {advice} (numbers from 0; [] passes the mask over)"
        )
    # More than one bit may be more than one meaning.
    bits = {value for value in values if value}
    note = f"any value of the mask but 0 means a bad pixel; else {advice}"
    return BadBits(None, note=note if len(bits) > 1 and share > 0 else "")


def _values(plane: Any) -> set[int]:
    return {v for i in sample_rows(*plane.shape) for v in np.unique(plane.rows(i, i + 1)).tolist()}


def _named_bits(headers: Sequence[Any]) -> dict[str, int]:
    """Return {name: value} of the bits that a header names: MP_ cards, or MSKNAMnn and MSKVALnn."""
    for header in headers:
        found = {
            key[3:].upper(): 1 << value
            for key, value in header.items()
            if key.upper().startswith("MP_") and type(value) is int and 0 <= value < 62
        }
        for key, name in header.items():
            number = re.fullmatch(r"MSKNAM(\d+)", key.upper())
            value = header.get(f"MSKVAL{number[1]}") if number else None
            if type(value) is int and 0 < value <= _ALL_BITS:
                found[str(name).strip().upper()] = value
        if found:
            return found
    return {}


def _is_pan_starrs(header: Any) -> bool:
    return str(header.get("TELESCOP", "")).strip().upper() in ("PS1", "PS2") or "FPA.ZP" in header


def _bits_of(wanted: Sequence[str | int], names: dict[str, int], path: AnyPath) -> int:
    bits = 0
    for bit in wanted:
        value = 1 << bit if isinstance(bit, int) else names.get(bit.upper())
        if value is None:
            known = ", ".join(names) or "none: give numbers from 0"
            raise MosaicError(
                f"{path}: bad_mask_bits has '{bit}', and the mask's header names {known}"
            )
        bits |= value
    return bits
