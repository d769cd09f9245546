"""From a mosaic's unit to nJy per pixel: units, zero points, header keywords."""

import math
import re
import warnings
from collections.abc import Callable
from typing import Any

from astropy import units as u

from photozhpc.errors import MosaicError
from photozhpc.survey import AB_ZERO_POINT_NJY, Band

SR_PER_ARCSEC2 = (math.pi / (180 * 3600)) ** 2

_ZERO_POINT_KEYS = ("ABZP", "ZPAB", "ZP_AB", "MAGZERO", "MAGZPT", "MAGZP", "ZEROPT", "ZP")
_MAX_UNIT_LENGTH = 68  # of a FITS card; longer is damage, and the parser is slow on it

_COUNTS = "ct cts count counts electron electrons e e- dn adu photon photons"
# Words as headers spell them, in lower case -> as astropy does; an Ångström's, a siemens' and
# mega's case are lost to headers in capitals.
_WORDS = {
    **dict.fromkeys(_COUNTS.split(), "ct"),
    **dict.fromkeys(["s", "sec", "secs", "second", "seconds"], "s"),
    **dict.fromkeys(["pix", "pixel", "pixels"], "pix"),
    **dict.fromkeys(["nanomaggy", "nanomaggies", "nmgy"], "nmgy"),
    "cps": "ct/s",
    "per": "/",
    "sr": "sr",
    "steradian": "sr",
    "arcsec": "arcsec",
    "njy": "nJy",
    "ujy": "uJy",
    "jy": "Jy",
}
_WORD = re.compile(r"(?<![0-9])(?<![0-9]\.)(e-(?![0-9])|[A-Za-z]+)")  # not the e of 1e-9


def njy_per_unit(
    unit: str | None,
    band: Band,
    pixel_area_arcsec2: float,
    lookup: Callable[[str], Any] = lambda key: None,
) -> float | None:
    """Return the nJy per pixel of one unit of the image; None where nothing tells.

    In this order: an absolute unit (MJy/sr and its kin, Jy and its kin, nanomaggies), the
    survey's zero point, PHOTFLAM with PHOTPLAM, PHOTFNU, a zero point in the header (MAGZERO and
    its kin). Those of the header are for counts only, and a unit that is not stated is counts
    per second. The zero point of counts that are not per second holds for the whole exposure;
    PHOTFLAM and PHOTFNU hold per second, and EXPTIME is divided out.

    Args:
        unit: BUNIT or its like.
        lookup: header keyword -> value or None.

    Raises:
        MosaicError: the unit is neither absolute nor counts, and the survey has no zero point.
    """
    parsed = _parse(unit)
    absolute = None if parsed is None else _absolute(parsed, pixel_area_arcsec2)
    if absolute is not None:
        return absolute
    if band.zero_point_ab is not None:
        return _from_zero_point(band.zero_point_ab)
    stated = " ".join((unit or "").split())
    seconds = 1.0
    if stated and not _is_one(parsed, u.ct / u.s):
        if not _is_one(parsed, u.ct):
            raise MosaicError(
                f"BUNIT '{stated[:_MAX_UNIT_LENGTH]}' is neither a flux density nor counts; "
                f"correct it, or set zero_point_ab of {band.name} in the survey's YAML file"
            )
        seconds = _number(lookup("EXPTIME")) or _number(lookup("TEXPTIME")) or 1.0
    flam, plam, fnu = (_number(lookup(k)) for k in ("PHOTFLAM", "PHOTPLAM", "PHOTFNU"))
    if flam and plam:
        zero_point = -2.5 * math.log10(flam) - 5 * math.log10(plam) - 2.408
        return _from_zero_point(zero_point) / seconds
    if fnu:
        return fnu * 1e9 / seconds
    for key in _ZERO_POINT_KEYS:
        zero_point_header = _number(lookup(key))
        if zero_point_header:
            return _from_zero_point(zero_point_header)
    return None


def _parse(text: str | None) -> u.UnitBase | None:
    """Read a unit in any spelling; a count of any kind is a ct, and per pixel goes away."""
    text = (text or "").strip().replace("µ", "u").replace("μ", "u")
    if re.fullmatch(r"\([^()]*\)|\[[^\[\]]*\]", text):
        text = text[1:-1]
    if not text or len(text) > _MAX_UNIT_LENGTH:
        return None
    # Case tells mega from milli, but for a surface brightness in capitals.
    text = re.sub(r"^(MJY|mjy)(?=\W*[sS][rR])", "MJy", text)
    text = _WORD.sub(_spelling, text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", u.UnitsWarning)
            unit = u.Unit(text)
            return unit * u.pix if u.pix in unit.bases else unit
    except (ValueError, TypeError, ArithmeticError, RecursionError):
        return None


def _spelling(word: re.Match[str]) -> str:
    text = word[0]
    if text.lower() == "mjy":
        return "MJy" if text == "MJy" else "mJy"
    return _WORDS.get(text.lower(), text)


def _absolute(unit: u.UnitBase, pixel_area_arcsec2: float) -> float | None:
    """nJy per pixel of a flux density or a surface brightness; None of any other unit."""
    maggy = u.zero_point_flux(3631 * u.Jy)
    for target, factor in ((u.nJy, 1.0), (u.nJy / u.sr, pixel_area_arcsec2 * SR_PER_ARCSEC2)):
        if unit.is_equivalent(target, equivalencies=maggy):
            return _number(float(unit.to(target, equivalencies=maggy)) * factor)
    return None


def _is_one(unit: u.UnitBase | None, target: u.UnitBase) -> bool:
    return unit is not None and unit.is_equivalent(target) and math.isclose(unit.to(target), 1)


def _from_zero_point(zero_point_ab: float) -> float:
    return 10 ** (0.4 * (AB_ZERO_POINT_NJY - zero_point_ab))


def _number(value: Any) -> float | None:
    """A positive, finite header value, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None
