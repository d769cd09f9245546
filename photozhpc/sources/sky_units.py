"""Converts columns by their stated units: positions to degrees, E(B-V) to magnitudes."""

import re

import numpy as np
from numpy.typing import NDArray

# How tables write 'no unit'.
_NO_UNIT = re.compile(r"(none|null|unitless|dimensionless|redshift|z|n/?a|-*)?", re.I)
_DEGREES = re.compile(
    r"(decimal[ _])?(deg(rees?)?|°)([ _]?[(\[,].*|_?(icrs|j2000|east|north))?", re.I
)
_MAGNITUDES = re.compile(r"mag(nitudes?|s)?", re.I)
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


def _factor(unit: str, to: str) -> float:
    from astropy import units

    for spelling in dict.fromkeys((unit, unit.lower())):
        try:
            return float(units.Unit(spelling).to(units.Unit(to)))
        except (ValueError, TypeError, units.UnitConversionError):
            continue
    raise ValueError(f"'{unit[:40]}' cannot be converted to {to or 'a redshift'}")
