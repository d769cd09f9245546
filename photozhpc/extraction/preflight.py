"""Refuses what cannot give a useful store, before any work: bands and positions that do not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import MosaicError, SourceListError
from photozhpc.extraction.assign import assign_tiles
from photozhpc.files.objects import AnyPath, list_files, location
from photozhpc.mosaic.footprint import Footprint
from photozhpc.sources.read import Sources
from photozhpc.survey import Survey

OFF_SHARE = 0.2  # of the sources on no tile, from which it is said
_EXAMPLES = 3


def check_bands(
    tiles: Mapping[str, Mapping[str, AnyPath]], mosaics: str | AnyPath, survey: Survey
) -> None:
    """Refuse a survey with a band that no tile has.

    Args:
        tiles: {tile_id: {band: path}}, from `find_mosaics`.

    Raises:
        MosaicError: there is one; with the files that could be its mosaics.
    """
    there = {band for bands in tiles.values() for band in bands}
    missing = [band for band in survey.band_names if band not in there]
    if not missing or not there <= set(survey.band_names):  # a file of all bands is read later
        return
    others = sorted(
        {band for file in list_files(location(mosaics)) if (band := survey.other_band(file.name))}
    )
    hint = ""
    if others:
        shown = ", ".join(others[:_EXAMPLES]) + (" ..." if len(others) > _EXAMPLES else "")
        hint = f"; files are there of bands that it does not know: {shown}"
    raise MosaicError(
        f"{mosaics}: no tile has a mosaic of {' or '.join(missing)} of survey "
        f"'{survey.name}'{hint}; correct the survey's bands or mosaic_pattern, or pass "
        f"--allow-missing-bands to leave them empty (a model that needs them gives no redshift)"
    )


def check_positions(
    sources: Sources, tile_N: NDArray[np.int64], footprints: Sequence[Footprint]
) -> list[str]:
    """Refuse sources none of which is on a mosaic; return a note if many are not.

    Args:
        tile_N: index of each source's tile; -1: none.

    Raises:
        SourceListError: with both ranges, and a guess at what is wrong.
    """
    on = int(np.count_nonzero(tile_N >= 0))
    if not len(sources):
        return []
    if on:
        off = len(sources) - on
        if off <= OFF_SHARE * len(sources):
            return []
        return [
            f"{off} of {len(sources)} sources are on no mosaic: {_range(sources.ra_N)} deg in RA, "
            f"{_range(sources.dec_N)} in Dec; {_mosaics_range(footprints)}"
        ]
    guess = ""
    for ra_N, dec_N, what in (
        (15 * sources.ra_N, sources.dec_N, "is RA in hours?"),
        (sources.dec_N % 360, sources.ra_N, "are RA and Dec swapped?"),
        (np.degrees(sources.ra_N), np.degrees(sources.dec_N), "are they in radians?"),
    ):
        known_N = np.isfinite(ra_N) & (np.abs(dec_N) <= 90)
        tried = replace(sources[known_N], ra_N=ra_N[known_N], dec_N=dec_N[known_N])
        if (assign_tiles(tried, footprints) >= 0).any():
            guess = f"; {what}"
    raise SourceListError(
        f"none of {len(sources)} sources is on a mosaic: their RA is {_range(sources.ra_N)} deg, "
        f"their Dec {_range(sources.dec_N)}; {_mosaics_range(footprints)}{guess}"
    )


def _mosaics_range(footprints: Sequence[Footprint]) -> str:
    corners = []
    for footprint in footprints:
        height, width = footprint.shape_HW
        y_5 = np.array([(height - 1) / 2, 0, 0, height - 1, height - 1])
        x_5 = np.array([(width - 1) / 2, 0, width - 1, 0, width - 1])
        corners.append(footprint.pixel_to_sky(y_5, x_5))
    ra_N, dec_N = (np.concatenate(values) for values in zip(*corners, strict=True))
    return f"the mosaics span {_range(ra_N)} in RA, {_range(dec_N)} in Dec"


def _range(degrees_N: NDArray) -> str:
    finite_N = degrees_N[np.isfinite(degrees_N)]
    return f"{finite_N.min():.5g} to {finite_N.max():.5g}" if len(finite_N) else "unknown"
