"""Which bits of a mask or data-quality plane mean that a pixel is bad.

LSST and HSC name their bits in MP_ cards (lsst.images and SPHEREx: MSKNnnnn), and most of them are
no fault (DETECTED, BRIGHT_OBJECT, INTRP: repaired): pipelines.lsst.io, afw.image.Mask. Pan-STARRS:
outerspace.stsci.edu, 'PS1 Pixel flags in Image Table Data'. JWST and Roman: bit 0 is DO_NOT_USE.
HST: the Data Handbooks of ACS and WFC3. DES: pixcorrect's mask_bits.h. Gemini: DRAGONS' astrodata.
Legacy Surveys: legacysurvey.org, 'bitmasks'. NOIRLab's Community Pipeline has codes, not bits. ESO:
HDUCLAS3 of the Science Data Products Standard.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import MosaicError
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.band_image import sample_rows

DO_NOT_USE = 1  # of JWST and Roman
ZERO = "ZERO"  # of `bad_mask_bits`: 0 is bad, and all else good


def _numbered(names: str) -> dict[str, int]:
    return {name: 1 << bit for bit, name in enumerate(names.split())}


_BAD_NAMES = _numbered(
    "BAD SAT SATURATED NO_DATA EDGE UNMASKEDNAN DEAD HOT COLD NONFUNC MISSING_DATA OVERFLOW BADPIX"
).keys()


_PAN_STARRS = _numbered(
    "DETECTOR FLAT DARK BLANK CTE SAT LOW SUSPECT CR SPIKE GHOST STREAK STARCORE CONV.BAD CONV.POOR"
)
_PAN_STARRS_GOOD = ("SUSPECT", "SPIKE", "CONV.POOR")
_HST_GOOD = 32 | 64  # tails of charge transfer and warm pixels, which calibration corrects
_DES = _numbered("BPM SATURATE INTERP LOW CRAY STAR TRAIL EDGEBLEED SSXTALK EDGE STREAK FIX")
_DES_GOOD = ("INTERP", "STAR", "SSXTALK", "FIX")
_GEMINI = _numbered("BAD_PIXEL NON_LINEAR SATURATED COSMIC_RAY NO_DATA OVERLAP UNILLUMINATED")
_GEMINI_GOOD = ("NON_LINEAR", "OVERLAP")
# JWST's and Roman's pipelines, dqflags; what has no name here has a number.
_JWST = _numbered(
    "DO_NOT_USE SATURATED JUMP_DET DROPOUT OUTLIER PERSISTENCE AD_FLOOR CHARGELOSS"
) | {"NON_SCIENCE": 1 << 9, "DEAD": 1 << 10, "HOT": 1 << 11, "WARM": 1 << 12}
_LEGACY = _numbered(
    "NPRIMARY BRIGHT SATUR_G SATUR_R SATUR_Z ALLMASK_G ALLMASK_R ALLMASK_Z WISEM1 WISEM2 BAILOUT "
    "MEDIUM GALAXY CLUSTER SATUR_I ALLMASK_I"
)
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
            return rows != 0
        bad = (rows.astype(np.int64) & self._bits) != 0
        return bad | (rows == 0) if self._zero_is_bad else bad


def bits_of_roman(wanted: Sequence[str | int], path: AnyPath) -> int:
    """Return the bits that `bad_mask_bits` means of a Roman DQ plane.

    Raises:
        MosaicError: one has a name that is not known.
    """
    return _bits_of(wanted, _JWST, path)


def bad_bits(
    path: AnyPath,
    plane: Any,
    role: str,
    headers: Sequence[Any],
    image: Any,
    band: str,
    wanted: Sequence[str | int] | None,
) -> BadBits:
    """Return which values of a mask plane mean a bad pixel.

    Args:
        plane, image: have `shape` and `rows(first, last + 1)`.
        role: "mask" or "dq".
        headers: of the plane, the image and the file.
        wanted: the survey's `bad_mask_bits`.

    Raises:
        MosaicError: a bit is not known, or nothing says what is bad.
    """
    known = known_bits(path, role, headers, band, wanted)
    if known is not None:
        return known
    advice = "set bad_mask_bits in the survey's YAML file"
    if role == "dq":
        note = f"bit 0 of the DQ plane alone means a bad pixel, as JWST writes it; else {advice}"
        is_used = _values(plane) - {0, 1}
        return BadBits(DO_NOT_USE, note=note if is_used else "")
    return _any_value(path, plane, image, advice)


def known_bits(
    path: AnyPath,
    role: str,
    headers: Sequence[Any],
    band: str,
    wanted: Sequence[str | int] | None,
) -> BadBits | None:
    """Return what the survey, the headers or the telescope say is bad; None: they do not.

    Args, raises: as `bad_bits`.
    """
    own = headers[0]
    named = _named_bits(own)
    words = set(
        re.split(r"[^A-Z0-9]+", f"{own.get('EXTNAME', '')} {own.get('EXTTYPE', '')}".upper())
    )
    telescope, observatory = _first(headers, "TELESCOP"), _first(headers, "OBSERVAT")
    names, bad = named, sum({value for name, value in named.items() if name in _BAD_NAMES})
    if "MASK.VALUE" in named:  # Pan-STARRS' own sum of the bad ones
        bad = named["MASK.VALUE"] & ~named.get("MARK.VALUE", 0)
    elif telescope in ("PS1", "PS2") and role == "mask":
        names = {**_PAN_STARRS, **named}
        bad = sum(value for name, value in names.items() if name not in _PAN_STARRS_GOOD)
    elif not named:
        if "MASKBITS" in words or "NPRIMARY" in own:
            names, bad = _LEGACY, _LEGACY.get(f"ALLMASK_{band.upper()}", 0)
        elif "MSK" in words:
            names, bad = _DES, sum(v for name, v in _DES.items() if name not in _DES_GOOD)
        elif role == "dq" and (observatory or telescope).startswith("GEMINI"):
            names, bad = _GEMINI, sum(v for name, v in _GEMINI.items() if name not in _GEMINI_GOOD)
        elif role == "dq" and telescope == "HST":
            bad = _ALL_BITS & ~_HST_GOOD
        elif role == "dq" and telescope in ("JWST", "ROMAN"):
            names, bad = _JWST, DO_NOT_USE
    if wanted is not None:
        zero = any(isinstance(bit, str) and bit.upper() == ZERO for bit in wanted)
        bits = _bits_of([bit for bit in wanted if str(bit).upper() != ZERO], names, path)
        return BadBits(bits, zero)
    if _first(headers[:1], "HDUCLAS3") == "MASKONE":
        return BadBits(0, True)
    if _first(headers, "PRODTYPE") == "DQMASK":
        return BadBits(None)
    if names and not bad:
        raise MosaicError(
            f"{path}: none of its mask's bits ({', '.join(names)}) is known to be bad; set "
            "bad_mask_bits in the survey's YAML file"
        )
    good = [name for name, value in named.items() if not value & bad and "." not in name]
    note = ""
    if good:
        faults = [name for name, value in named.items() if value & bad and "." not in name]
        note = f"bad in the mask are {', '.join(faults)}, not {', '.join(good)} (bad_mask_bits)"
    return BadBits(bad, note=note) if bad or names else None


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
            return BadBits(0, True, "the mask is 0 where there are no data: 0 means bad")
        raise MosaicError(
            f"{path}: its mask is not 0 on {100 * share:.0f}% of the pixels with data; if not all "
            f"of them are bad, {advice}: numbers from 0, [{ZERO}] if 0 is bad, [] for no mask"
        )
    # More than one bit may be more than one meaning.
    bits = {value for value in values if value}
    note = f"any value of the mask but 0 means a bad pixel; else {advice}"
    return BadBits(None, note=note if len(bits) > 1 and share > 0 else "")


def _values(plane: Any) -> set[int]:
    return {v for i in sample_rows(*plane.shape) for v in np.unique(plane.rows(i, i + 1)).tolist()}


def _named_bits(header: Any) -> dict[str, int]:
    """Return {name: value} of the bits that a header names.

    MP_name = bit (LSST, HSC), MSKNnnnn = name and MSKMnnnn = value (lsst.images, SPHEREx), MSKNAMnn
    and MSKVALnn (Pan-STARRS).
    """
    found: dict[str, int] = {}
    for card, text in header.items():
        key, value = card.upper(), None
        if key.startswith("MP_") and type(text) is int and 0 <= text < 62:
            key, value = key[3:], 1 << text
        elif place := re.fullmatch(r"MSKN(\d{4})", key):
            key, value = str(text), header.get(f"MSKM{place[1]}", 1 << min(int(place[1]), 61))
        elif place := re.fullmatch(r"MSKNAM(\d+)", key):
            key, value = str(text), header.get(f"MSKVAL{place[1]}")
        if type(value) is int and 0 < value <= _ALL_BITS:
            found[key.strip().upper()] = value
    return found


def _first(headers: Sequence[Any], key: str) -> str:
    """The first value of a card, in capitals, or nothing."""
    return next((str(value) for h in headers if (value := h.get(key))), "").strip().upper()


def _bits_of(wanted: Sequence[str | int], names: dict[str, int], path: AnyPath) -> int:
    bits = 0
    for bit in wanted:
        value = (
            1 << bit if isinstance(bit, int) else names.get(bit.strip().upper().removeprefix("MP_"))
        )
        if value is None:
            known = ", ".join(names) or "none: give numbers from 0"
            raise MosaicError(
                f"{path}: bad_mask_bits has '{bit}', and the mask's header names {known}"
            )
        bits |= value
    return bits
