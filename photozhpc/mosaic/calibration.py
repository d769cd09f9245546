"""From a mosaic's unit to nJy per pixel: units, zero points, header keywords."""

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from astropy import units as u
from astropy.io import fits

from photozhpc.errors import MosaicError
from photozhpc.survey import Band, flux_of_ab

SR_PER_ARCSEC2 = (math.pi / (180 * 3600)) ** 2

# Keywords for the magnitude of one unit of the image. In most archives MAGZP, PHOTZP and MAGZEROP
# are Vega (2MASS, WISE, ESO), in some AB (ZTF, MegaPipe, Euclid): used where the header says AB.
_AB_KEYS = ("ABZP", "ZPAB", "ZP_AB")
_ZERO_POINT_KEYS = ("MAGZERO", "MAGZPT", "ZEROPT", "ZP")
_KEYS_IF_AB = ("MAGZP", "PHOTZP", "MAGZEROP")
_KEYS = (*_AB_KEYS, *_ZERO_POINT_KEYS, *_KEYS_IF_AB)
_ZERO_POINT_RANGE = (8.0, 40.0)  # one jansky is 8.9; other numbers are not zero points
_MAX_DISAGREEMENT_MAG = 0.05
_SYSTEM_KEYS = ("PHOTSYS", "MAGSYS", "ZPSYS", "MAGZSYS", "PHOTSYST")
_ORIGIN_KEYS = ("TELESCOP", "INSTRUME", "ORIGIN", "SURVEY", "CAMERA")
# Pipelines with Vega zero points: IRSA's 2MASS and WISE, unWISE (Lang 2014), CASU's WFCAM and
# VIRCAM (which write NUMZPT), NOIRLab's NEWFIRM; and pipelines whose MAGZP or PHOTZP is AB.
_VEGA_ORIGINS = re.compile(
    r"2mass|(?<![a-z])(un|neo|all)?wise|ukidss|wfcam|vircam|vista|newfirm|denis", re.IGNORECASE
)
_AB_ORIGINS = re.compile(r"(?<![a-z])ztf|megaprime|megapipe|euclid", re.IGNORECASE)
_EXPOSURE_KEYS = ("EXPTIME", "TEXPTIME", "EXPOSURE", "XPOSURE")
_NOT_LINEAR = re.compile(r"\W*(log(10)?|ln|sqrt|asinh|arcsinh|dex)\b", re.IGNORECASE)
_MAX_UNIT_LENGTH = 68  # of a FITS card; longer is damage, and slow to parse

_COUNTS = "ct cts count counts electron electrons e e- dn adu photon photons"
# Words as headers spell them, in lower case -> as astropy does. Headers in capitals lose the case
# that sets apart Ångström, siemens and mega.
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
    headers: Sequence[fits.Header] = (),
    origin: list[str] | None = None,
) -> float | None:
    """Return the nJy per pixel of one unit of the image; None where nothing states it.

    In this order: an absolute unit (MJy/sr, Jy, nanomaggies and the like), the survey's zero
    point, PHOTFLAM with PHOTPLAM, PHOTFNU, a zero point in the header (MAGZERO and the like,
    FLUXMAG0). Those of the header apply to counts only; without a unit the pixels are counts per
    second. The zero point of plain counts holds for the whole exposure; PHOTFLAM, PHOTFNU and the
    zero point of Pan-STARRS (FPA.ZP) hold per second, and EXPTIME is divided out. A number in
    quotes is a number.

    Args:
        unit: BUNIT or its equivalent.
        headers: of the image, and of the file; the first that has a keyword counts.
        origin: receives what stated it, as in "MAGZERO 25".

    Raises:
        MosaicError: the survey has no zero point, and the unit is neither absolute nor counts,
            the zero points disagree or are not AB, or an exposure time is needed and missing; or
            the pixels are not on a linear scale.
    """
    origin = [] if origin is None else origin
    stated = " ".join((unit or "").split())
    if _NOT_LINEAR.match(stated):
        raise MosaicError(
            f"BUNIT '{stated[:_MAX_UNIT_LENGTH]}' is not a linear scale; convert the pixels first"
        )
    parsed = _parse(unit)
    absolute = None if parsed is None else _absolute(parsed, pixel_area_arcsec2)
    if absolute is not None:
        # A nanomaggy depends on the system of magnitudes: unWISE's are Vega.
        why_not_ab = None if _is_flux(parsed) else _not_ab(headers, ("BUNIT", *_KEYS))
        if why_not_ab is None:
            origin.append(f"unit {stated}")
            return absolute
        if band.zero_point_ab is None:
            raise MosaicError(
                f"BUNIT '{stated}' is based on magnitudes that are not AB ({why_not_ab}); "
                + _advice(band)
            )
    if band.zero_point_ab is not None:
        origin.append(f"the survey's zero_point_ab {band.zero_point_ab:g}")
        return flux_of_ab(band.zero_point_ab)
    is_rate = not stated or is_count_rate(unit)
    if not is_rate and not _is_one(parsed, u.ct):
        raise MosaicError(
            f"BUNIT '{stated[:_MAX_UNIT_LENGTH]}' is neither a flux density nor counts; "
            f"correct it, or {_advice(band)}"
        )
    flam, plam, fnu = (_number_in(headers, key) for key in ("PHOTFLAM", "PHOTPLAM", "PHOTFNU"))
    if flam and plam:
        origin.append("PHOTFLAM and PHOTPLAM")
        zero_point = -2.5 * math.log10(flam) - 5 * math.log10(plam) - 2.408
        return flux_of_ab(zero_point) / (1.0 if is_rate else _seconds(headers, band))
    if fnu:
        origin.append("PHOTFNU")
        return fnu * 1e9 / (1.0 if is_rate else _seconds(headers, band))
    return _from_header(headers, band, origin)


def njy_of_noise(unit: str | None, power: float, pixel_area_arcsec2: float) -> float | None:
    """Return the nJy per pixel of an error whose plane is in `unit`; None: not a flux density.

    Args:
        power: of the error that the plane holds: 1, 2 (variance) or -2 (inverse variance).
    """
    parsed = _parse(unit)
    return None if parsed is None else _absolute(parsed ** (1 / power), pixel_area_arcsec2)


def is_count_rate(unit: str | None) -> bool:
    """Whether a unit is one count, electron or DN per second, in any spelling."""
    return _is_one(_parse(unit), u.ct / u.s)


def number(value: Any) -> float | None:
    """Return a positive, finite number of a header, quoted or not; None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value.strip().upper().replace("D", "E"))
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and value > 0 else None


def _number_in(headers: Sequence[fits.Header], *keys: str) -> float | None:
    """Return the first positive number under the keywords, by keyword and then by header."""
    numbers = (number(header.get(key)) for key in keys for header in headers)
    return next((value for value in numbers if value is not None), None)


def _seconds(headers: Sequence[fits.Header], band: Band) -> float:
    seconds = _number_in(headers, *_EXPOSURE_KEYS)
    if seconds is None:
        raise MosaicError(
            "its pixels are counts, its calibration is per second, and it has no exposure time "
            f"({', '.join(_EXPOSURE_KEYS)}); add EXPTIME, or {_advice(band)}"
        )
    return seconds


def _from_header(headers: Sequence[fits.Header], band: Band, origin: list[str]) -> float | None:
    """Return the nJy of a count by the zero points in the headers, which must agree and be AB."""
    low, high = _ZERO_POINT_RANGE
    stated = {key: _number_in(headers, key) for key in _KEYS}
    zero_points = {k: z for k, z in stated.items() if z is not None and low <= z <= high}
    counts_of_zero = _number_in(headers, "FLUXMAG0")  # LSST, HSC: counts of AB magnitude 0
    if counts_of_zero is not None:
        zero_points["FLUXMAG0"] = 2.5 * math.log10(counts_of_zero)
    # Stacks of Pan-STARRS have 25 and counts of EXPTIME (MAST, PS1 Stack images); warps do not.
    per_second = _number_in(headers, "FPA.ZP")
    if per_second == 25.0:
        zero_points["FPA.ZP"] = per_second + 2.5 * math.log10(_seconds(headers, band))
    if "MAGZERO" in zero_points:  # NOIRLab's MAGZPT is that of a count per second
        zero_points.pop("MAGZPT", None)
    if not zero_points:
        return None
    shown = ", ".join(f"{key} {value:.6g}" for key, value in zero_points.items())
    if max(zero_points.values()) - min(zero_points.values()) > _MAX_DISAGREEMENT_MAG:
        raise MosaicError(f"its zero points disagree ({shown}); {_advice(band)}")
    key, zero_point = next(iter(zero_points.items()))
    if key not in _AB_KEYS:
        why_not_ab = _not_ab(headers, zero_points)
        needs_ab = set(zero_points) <= set(_KEYS_IF_AB)
        if why_not_ab is None and needs_ab and not _says_ab(headers, zero_points):
            why_not_ab = "the header does not state the system"
        if why_not_ab is not None:
            raise MosaicError(
                f"its zero point ({shown}) may not be AB: {why_not_ab}; {_advice(band)}"
            )
    origin.append(shown)
    return flux_of_ab(zero_point)


def _not_ab(headers: Sequence[fits.Header], keys: Iterable[str]) -> str | None:
    """Return what says that magnitudes are not AB; None: nothing does."""
    systems = _systems(headers)
    for key, system in systems.items():
        if not re.match(r"\s*AB(MAG|\b)", system, re.IGNORECASE):
            return f"{key} is '{system[:20]}'"
    if systems or _comments_match(headers, keys, r"\bAB\b"):
        return None
    if _comments_match(headers, keys, r"(?i)vega"):
        return "its comment says Vega"
    for header in headers:
        for key in _ORIGIN_KEYS:
            if _VEGA_ORIGINS.search(str(header.get(key, ""))):
                return f"{key} '{str(header[key])[:30]}' has Vega magnitudes"
        if "NUMZPT" in header:
            return "NUMZPT is a card of CASU's pipelines, which have Vega magnitudes"
        for card in ("COMMENT", "HISTORY"):
            if any(re.search(r"\bvega", str(t), re.IGNORECASE) for t in header.get(card, ())):
                return f"a {card} card mentions Vega"
    return None


def _says_ab(headers: Sequence[fits.Header], keys: Iterable[str]) -> bool:
    origins = (str(header.get(key, "")) for header in headers for key in _ORIGIN_KEYS)
    return bool(
        _systems(headers)
        or _comments_match(headers, keys, r"\bAB\b")
        or any(_AB_ORIGINS.search(origin) for origin in origins)
    )


def _systems(headers: Sequence[fits.Header]) -> dict[str, str]:
    """Return {keyword: system} of the keywords that state the system of magnitudes."""
    return {
        key: system
        for header in reversed(headers)
        for key in _SYSTEM_KEYS
        if isinstance(system := header.get(key), str)
        and system.strip().upper() not in ("", "N/A", "NONE", "UNKNOWN")
    }


def _comments_match(headers: Sequence[fits.Header], keys: Iterable[str], pattern: str) -> bool:
    return any(
        re.search(pattern, header.comments[key])
        for header in headers
        for key in keys
        if key in header
    )


def _advice(band: Band) -> str:
    return f"set zero_point_ab of {band.name} in the survey's YAML file"


def _parse(text: str | None) -> u.UnitBase | None:
    """Read a unit in any spelling; every kind of count is a ct, and "per pixel" is dropped."""
    text = (text or "").strip().replace("µ", "u").replace("μ", "u")
    if re.fullmatch(r"\([^()]*\)|\[[^\[\]]*\]", text):
        text = text[1:-1]
    if not text or len(text) > _MAX_UNIT_LENGTH:
        return None
    # Case sets mega apart from milli, but MJY/SR in one case is always mega.
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
    """Return the nJy per pixel of a flux density or surface brightness; None for other units."""
    maggy = u.zero_point_flux(3631 * u.Jy)
    for target, factor in ((u.nJy, 1.0), (u.nJy / u.sr, pixel_area_arcsec2 * SR_PER_ARCSEC2)):
        if unit.is_equivalent(target, equivalencies=maggy):
            return number(float(unit.to(target, equivalencies=maggy)) * factor)
    return None


def _is_flux(unit: u.UnitBase | None) -> bool:
    """Whether a unit is a flux by itself, and not through the zero point of magnitudes."""
    return unit is not None and any(unit.is_equivalent(t) for t in (u.nJy, u.nJy / u.sr))


def _is_one(unit: u.UnitBase | None, target: u.UnitBase) -> bool:
    return unit is not None and unit.is_equivalent(target) and math.isclose(unit.to(target), 1)
