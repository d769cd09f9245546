"""Converts columns by their stated units: positions to degrees, fluxes to nJy, and so on."""

import re

import numpy as np
from numpy.typing import NDArray

# How tables write 'no unit'.
_NO_UNIT = re.compile(r"(none|null|unitless|dimensionless|redshift|z|n/?a|-*)?", re.I)
_DEGREES = re.compile(
    r"(decimal[ _])?(deg(rees?)?|°)([ _]?[(\[,].*|_?(icrs|j2000|east|north))?", re.I
)
_MAGNITUDES = re.compile(r"mag(nitudes?|s)?", re.I)
_AB = re.compile(r"mag ?\(?(AB|lupt?)\)?|AB ?mag|lupt(itudes?)?", re.I)
_NANOMAGGY = re.compile(r"nmgy|nanomagg(y|ies)", re.I)
_WORDS_OF_FLUX = {
    **dict.fromkeys(("njy", "nanojansky"), "nJy"),
    **dict.fromkeys(("ujy", "microjansky", "microjy", "µjy", "μjy"), "uJy"),
}
# Words that astropy's units lack, or take for a time.
_WORDS = {
    **dict.fromkeys(("radian", "radians", "rads"), "rad"),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours", "hourangle", "hour angle"), "hourangle"),
    **dict.fromkeys(("arcsecs", "arcsecond", "arcseconds", "asec", '"'), "arcsec"),
    **dict.fromkeys(("arcmins", "arcminute", "arcminutes", "amin", "'"), "arcmin"),
    **dict.fromkeys(("milliarcsec", "milliarcsecond", "milliarcseconds"), "mas"),
}


def is_degrees(unit: str) -> bool:
    """Return whether a unit is degrees or is not stated."""
    return bool(_NO_UNIT.fullmatch(unit.strip()) or _DEGREES.fullmatch(unit.strip()))


def is_angle(word: str) -> bool:
    """Return whether a word is a usual name of an angular unit."""
    return bool(_DEGREES.fullmatch(word)) or word.lower() in {*_WORDS, *_WORDS.values()}


def to_degrees(value_N: NDArray[np.float64], unit: str, *, hours: bool) -> NDArray[np.float64]:
    """Return angles in degrees; without a unit they are degrees already.

    Args:
        hours: whether the unit may be hours, as of a right ascension.

    Raises:
        ValueError: the unit is unknown or not angular.
    """
    if is_degrees(unit):
        return value_N
    unit = unit.strip()
    word = _WORDS.get(unit.lower(), unit)
    if word == "hourangle" and not hours:
        raise ValueError("a declination cannot be in hours")
    return value_N * _factor(word, "deg")


def to_magnitudes(value_N: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
    """Return colours or extinctions in magnitudes; without a unit they are magnitudes already.

    Raises:
        ValueError: the unit is unknown or is not one of magnitudes.
    """
    unit = unit.strip()
    if _NO_UNIT.fullmatch(unit) or _MAGNITUDES.fullmatch(unit):
        return value_N
    return value_N * _factor(unit, "mag")


def to_redshifts(value_N: NDArray[np.float64], unit: str) -> NDArray[np.float64]:
    """Return redshifts, which have no unit.

    Raises:
        ValueError: the column states a unit such as km/s.
    """
    unit = unit.strip()
    if not _NO_UNIT.fullmatch(unit) and _factor(unit, "") != 1:
        raise ValueError(f"'{unit[:40]}' is not a unit of redshifts")
    return value_N


def is_unstated(unit: str) -> bool:
    """Return whether no unit is stated."""
    return bool(_NO_UNIT.fullmatch(unit.strip()))


def is_magnitudes(unit: str) -> bool:
    """Return whether a unit is magnitudes, AB if anything, or is not stated."""
    unit = unit.strip()
    return is_unstated(unit) or bool(_MAGNITUDES.fullmatch(unit) or _AB.fullmatch(unit))


def to_nanojansky(unit: str) -> float:
    """Return one unit of flux density in nJy.

    Raises:
        ValueError: the unit is unknown or not one of a flux density per frequency.
    """
    unit = unit.strip()
    if _NANOMAGGY.fullmatch(unit):
        return 3630.7805477  # AB 22.5: the magnitudes' zero point of 3631 Jy, times 1e-9
    return _factor(_WORDS_OF_FLUX.get(unit.lower(), unit), "nJy")


def _factor(unit: str, to: str) -> float:
    from astropy import units

    for spelling in dict.fromkeys((unit, unit.lower())):
        try:
            return float(units.Unit(spelling).to(units.Unit(to)))
        except (ValueError, TypeError, units.UnitConversionError):
            continue
    raise ValueError(f"'{unit[:40]}' cannot be converted to {to or 'a redshift'}")
