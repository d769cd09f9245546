"""From a mosaic's unit to nJy per pixel: units, zero points, header keywords."""

import math
import re
from collections.abc import Callable
from typing import Any

from photozhpc.survey import AB_ZERO_POINT_NJY, Band

SR_PER_ARCSEC2 = (math.pi / (180 * 3600)) ** 2

_FLUX_UNITS_NJY = {"njy": 1.0, "ujy": 1e3, "mjy": 1e6, "jy": 1e9}
_PER_SECOND = re.compile(r"/\s*s|s\s*(\*\*|\^)?\s*\(?-1|s-1|cps|per sec", re.IGNORECASE)
_ZERO_POINT_KEYS = ("ABZP", "ZPAB", "ZP_AB", "MAGZERO", "MAGZPT", "MAGZP", "ZEROPT", "ZP")


def njy_per_unit(
    unit: str | None,
    band: Band,
    pixel_area_arcsec2: float,
    lookup: Callable[[str], Any] = lambda key: None,
) -> float | None:
    """Return the nJy per pixel of one unit of the image; None where nothing tells.

    In this order: an absolute unit (MJy/sr and its kin, Jy and its kin), the survey's zero
    point, PHOTFLAM with PHOTPLAM, PHOTFNU, a zero point in the header (MAGZERO and its kin).
    The zero point of counts that are not per second holds for the whole exposure; PHOTFLAM and
    PHOTFNU hold per second, and EXPTIME is divided out.

    Args:
        unit: BUNIT or its like.
        lookup: header keyword -> value or None.
    """
    absolute = _absolute(unit, pixel_area_arcsec2)
    if absolute is not None:
        return absolute
    if band.zero_point_ab is not None:
        return _from_zero_point(band.zero_point_ab)
    flam, plam, fnu = (_number(lookup(k)) for k in ("PHOTFLAM", "PHOTPLAM", "PHOTFNU"))
    seconds = 1.0
    if unit and not _PER_SECOND.search(unit):
        seconds = _number(lookup("EXPTIME")) or _number(lookup("TEXPTIME")) or 1.0
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


def _absolute(unit: str | None, pixel_area_arcsec2: float) -> float | None:
    text = re.sub(r"[\s*^()]|-?1$", "", (unit or "").strip()).replace("µ", "u").replace("μ", "u")
    text = re.sub(r"\.?sr-?1?$", "/sr", text.replace("/sr", "sr").replace(".", ""))
    text = re.sub(r"/?(pixel|pix|beam)-?1?$", "", text, flags=re.IGNORECASE)
    # Case tells mega from milli.
    if text in ("MJy/sr", "MJY/SR", "mjy/sr"):
        return 1e15 * pixel_area_arcsec2 * SR_PER_ARCSEC2
    if text.lower().endswith("/sr") and text[:-3].lower() in _FLUX_UNITS_NJY:
        return _FLUX_UNITS_NJY[text[:-3].lower()] * pixel_area_arcsec2 * SR_PER_ARCSEC2
    if text == "MJy":
        return 1e15
    return _FLUX_UNITS_NJY.get(text.lower())


def _from_zero_point(zero_point_ab: float) -> float:
    return 10 ** (0.4 * (AB_ZERO_POINT_NJY - zero_point_ab))


def _number(value: Any) -> float | None:
    """A positive, finite header value, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None
