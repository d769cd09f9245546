"""Which bits of a mask or data-quality plane mean that a pixel is bad.

LSST and HSC name their bits in MP_ cards (lsst.images and SPHEREx: MSKNnnnn), and most of them are
not faults (DETECTED, BRIGHT_OBJECT, INTRP: repaired): pipelines.lsst.io, afw.image.Mask; PS1:
outerspace.stsci.edu, 'PS1 Pixel flags in Image Table Data'. JWST and Roman: bit 0 is DO_NOT_USE.
HST: the Data Handbooks of ACS and WFC3. DES: pixcorrect's mask_bits.h. Gemini: DRAGONS' astrodata.
Legacy Surveys: legacysurvey.org, 'bitmasks'. NOIRLab's Community Pipeline has codes, not bits. ESO:
HDUCLAS3 of the Science Data Products Standard.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import MosaicError
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.band_image import sample_rows

DO_NOT_USE = 1  # of JWST and Roman
ZERO = "ZERO"  # in `bad_mask_bits`: 0 is bad


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
# JWST's and Roman's pipelines, dqflags; bits without a name here can be given by number.
_JWST = _numbered(
    "DO_NOT_USE SATURATED JUMP_DET DROPOUT OUTLIER PERSISTENCE AD_FLOOR CHARGELOSS"
) | {"NON_SCIENCE": 1 << 9, "DEAD": 1 << 10, "HOT": 1 << 11, "WARM": 1 << 12}
_LEGACY = _numbered(
    "NPRIMARY BRIGHT SATUR_G SATUR_R SATUR_Z ALLMASK_G ALLMASK_R ALLMASK_Z WISEM1 WISEM2 BAILOUT "
    "MEDIUM GALAXY CLUSTER SATUR_I ALLMASK_I"
)
_ALL_BITS = (1 << 62) - 1
_ADVICE = "set bad_mask_bits in the survey's YAML file"
_LIKELY_WRONG = 0.5  # of the pixels with data; a mask that is not 0 on more of them may mean 'good'


@dataclass(frozen=True)
class BadBits:
    """Which values of a mask plane mean a bad pixel.

    Attributes:
        bits: any of them makes a pixel bad; None: any value but 0 does.
        note: what was assumed, or empty.
    """

    bits: int | None
    zero_is_bad: bool = False
    note: str = ""

    def of(self, rows: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which pixels are bad, from rows of the plane."""
        if self.bits is None:
            return rows != 0
        bad = (rows.astype(np.int64) & self.bits) != 0
        return bad | (rows == 0) if self.zero_is_bad else bad


def bits_of_roman(bad_mask_bits: Sequence[str | int], path: AnyPath) -> int:
    """Return the bits of a Roman DQ plane that the survey's `bad_mask_bits` name.

    Raises:
        MosaicError: one of the names is unknown.
    """
    return _bits_of(bad_mask_bits, _JWST, path)


def bad_bits(
    path: AnyPath,
    plane: Any,
    role: str,
    headers: Sequence[Any],
    image: Any,
    band: str,
    bad_mask_bits: Sequence[str | int] | None,
) -> BadBits:
    """Return which values of a mask plane mean a bad pixel.

    Args:
        plane, image: a `FitsPlane` each.
        role: "mask" or "dq".
        headers: of the plane, the image and the file.
        bad_mask_bits: the survey's.

    Raises:
        MosaicError: a bit is unknown, or nothing says what is bad.
    """
    known = known_bits(path, role, headers, band, bad_mask_bits)
    if known is not None:
        return known
    if role != "dq":
        return _any_value(path, plane, image)
    if np.isin(plane.sample(), (0, DO_NOT_USE)).all():
        return BadBits(DO_NOT_USE)
    note = f"only bit 0 of the DQ plane was taken for bad, as in JWST; if that is wrong, {_ADVICE}"
    return BadBits(DO_NOT_USE, note=note)


def known_bits(
    path: AnyPath,
    role: str,
    headers: Sequence[Any],
    band: str,
    bad_mask_bits: Sequence[str | int] | None,
) -> BadBits | None:
    """Return what is bad by the survey, the headers or the telescope; None: they do not say.

    Args, raises: as `bad_bits`.
    """
    header = headers[0]
    named = _named_bits(header)
    name = f"{header.get('EXTNAME', '')} {header.get('EXTTYPE', '')}"
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    telescope, observatory = _first(headers, "TELESCOP"), _first(headers, "OBSERVAT")
    names, bad = named, sum({value for name, value in named.items() if name in _BAD_NAMES})
    if "MASK.VALUE" in named:  # Pan-STARRS' own sum of the bad ones
        bad = named["MASK.VALUE"] & ~named.get("MARK.VALUE", 0)
    elif telescope in ("PS1", "PS2") and role == "mask":
        names = {**_PAN_STARRS, **named}
        bad = sum(value for name, value in names.items() if name not in _PAN_STARRS_GOOD)
    elif not named:
        if "MASKBITS" in words or "NPRIMARY" in header:
            names, bad = _LEGACY, _LEGACY.get(f"ALLMASK_{band.upper()}", 0)
        elif "MSK" in words:
            names, bad = _DES, sum(v for name, v in _DES.items() if name not in _DES_GOOD)
        elif role == "dq" and (observatory or telescope).startswith("GEMINI"):
            names, bad = _GEMINI, sum(v for name, v in _GEMINI.items() if name not in _GEMINI_GOOD)
        elif role == "dq" and telescope == "HST":
            bad = _ALL_BITS & ~_HST_GOOD
        elif role == "dq" and telescope in ("JWST", "ROMAN"):
            names, bad = _JWST, DO_NOT_USE
    if bad_mask_bits is not None:
        bits = [bit for bit in bad_mask_bits if str(bit).upper() != ZERO]
        return BadBits(_bits_of(bits, names, path), len(bits) < len(bad_mask_bits))
    if _first(headers[:1], "HDUCLAS3") == "MASKONE":
        return BadBits(0, True)
    if _first(headers, "PRODTYPE") == "DQMASK":
        return BadBits(None)
    if names and not bad:
        raise MosaicError(
            f"{path}: none of its mask's bits ({', '.join(names)}) is known to be bad; {_ADVICE}"
        )
    good = [name for name, value in named.items() if not value & bad and "." not in name]
    note = ""
    if good:
        faults = [name for name, value in named.items() if value & bad and "." not in name]
        note = f"bad in the mask are {', '.join(faults)}, not {', '.join(good)} (bad_mask_bits)"
    return BadBits(bad, note=note) if bad or names else None


def _any_value(path: AnyPath, plane: Any, image: Any) -> BadBits:
    """Take any value but 0 for bad, if that leaves most of the image's pixels."""
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
            return BadBits(0, True, "the mask is 0 where there are no data: 0 was taken for bad")
        raise MosaicError(
            f"{path}: its mask is not 0 on {100 * share:.0f}% of the pixels with data; if not all "
            f"of them are bad, {_ADVICE}: numbers from 0, [{ZERO}] if 0 is bad, [] for no mask"
        )
    # Several values may have several meanings.
    note = f"any value of the mask but 0 was taken for bad; if that is wrong, {_ADVICE}"
    return BadBits(None, note=note if len(values - {0}) > 1 and share > 0 else "")


def _named_bits(header: Any) -> dict[str, int]:
    """Return {name: value} of the bits that a header names.

    MP_name = bit (LSST, HSC), MSKNnnnn = name and MSKMnnnn = value (lsst.images, SPHEREx), MSKNAMnn
    and MSKVALnn (Pan-STARRS).
    """
    values: dict[str, int] = {}
    for card, content in header.items():
        name, value = card.upper(), None
        if name.startswith("MP_") and type(content) is int and 0 <= content < 62:
            name, value = name[3:], 1 << content
        elif number := re.fullmatch(r"MSKN(\d{4})", name):
            name = str(content)
            value = header.get(f"MSKM{number[1]}", 1 << min(int(number[1]), 61))
        elif number := re.fullmatch(r"MSKNAM(\d+)", name):
            name, value = str(content), header.get(f"MSKVAL{number[1]}")
        if type(value) is int and 0 < value <= _ALL_BITS:
            values[name.strip().upper()] = value
    return values


def _first(headers: Sequence[Any], key: str) -> str:
    """Return the first value of a card that is not empty, in capitals, or an empty text."""
    return next((str(value) for h in headers if (value := h.get(key))), "").strip().upper()


def _bits_of(bad_mask_bits: Sequence[str | int], names: dict[str, int], path: AnyPath) -> int:
    bits = 0
    for bit in bad_mask_bits:
        name = str(bit).strip().upper().removeprefix("MP_")
        value = 1 << bit if isinstance(bit, int) else names.get(name)
        if value is None:
            known = ", ".join(names) or "none: give numbers from 0"
            raise MosaicError(
                f"{path}: bad_mask_bits has '{bit}', but the mask's header names {known}"
            )
        bits |= value
    return bits
