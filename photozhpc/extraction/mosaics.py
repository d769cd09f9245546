"""Finds the mosaics of a survey, tile by tile, and checks that they suit it."""

import os
import re
from collections.abc import Collection
from dataclasses import replace
from itertools import takewhile

from photozhpc.errors import MosaicError
from photozhpc.files.objects import AnyPath, is_remote, list_files, location
from photozhpc.mosaic.duplicates import one_of_each
from photozhpc.mosaic.fits_siblings import without_siblings
from photozhpc.store.cutout_store import TILE_ID
from photozhpc.survey import Survey, names_of

OFF_TILE_ID = "off-tile"
ALL_BANDS = "*"
# The network sees sizes in pixels: mosaics of another scale would give wrong redshifts.
MAX_SCALE_ERROR = 0.02


def find_mosaics(
    where: str | AnyPath, survey: Survey, notes: list[str] | None = None
) -> dict[str, dict[str, AnyPath]]:
    """Return {tile_id: {band: path}} of the survey's mosaics in a folder or behind a glob.

    If the survey's pattern has no {band}, a tile is one file of all bands: {ALL_BANDS: path}.

    File names are matched with the survey's `mosaic_pattern`, whatever their case; files of bands
    that the survey does not use are ignored. Of several mosaics of one band of one tile the best
    by the survey's `prefer_mosaics` is used.

    Args:
        notes: receives lines about files that were not used.

    Raises:
        MosaicError: nothing matches, or two files are the same band of the same tile and the
            survey has no `prefer_mosaics`.
    """
    path = location(where)
    notes = [] if notes is None else notes
    try:
        files = list_files(path, notes)
    except ValueError as error:
        raise MosaicError(f"{where}: neither a folder nor a glob ({error})") from error
    claims: dict[str, dict[str, list[AnyPath]]] = {}
    matches = {file: match for file in files if (match := survey.match_mosaic(file.name))}
    mosaics = without_siblings(matches, survey)
    others = sorted(set(matches) - set(mosaics), key=str)
    if others:
        notes.append(
            f"{len(others)} files beside a mosaic are not mosaics (weights, masks, models ...), "
            f"such as {others[0].name}"
        )
    for file in mosaics:
        match = matches[file]
        if is_remote(file):
            file = file.with_size()
        elif not file.is_file():
            if file.is_symlink() and not file.exists():
                raise MosaicError(f"{file}: a broken link; repair or remove it")
            continue
        tile_id = match[0] or "tile"
        band = match[1].name if match[1] is not None else ALL_BANDS
        claimed = claims.setdefault(tile_id, {}).setdefault(band, [])
        if not is_remote(file) and any(os.path.samefile(file, str(path)) for path in claimed):
            notes.append(f"{file} is {claimed[0]} under another name; it is read once")
            continue
        if claimed and not survey.prefer_mosaics:
            raise MosaicError(
                f"{claimed[0]} and {file} are both band {band} of tile '{tile_id}'; remove one, or "
                f"set prefer_mosaics in the survey's YAML file"
            )
        claimed.append(file)
    tile_mosaics = one_of_each(claims, survey, notes)
    if OFF_TILE_ID in tile_mosaics:
        raise MosaicError(f"{where}: the tile name '{OFF_TILE_ID}' is reserved; rename its mosaics")
    for tile_id, bands in tile_mosaics.items():
        if not TILE_ID.fullmatch(tile_id):
            raise MosaicError(
                f"{next(iter(bands.values()))}: the tile's name '{tile_id}' becomes a folder name; "
                f"use letters, digits, . _ + -"
            )
    if not tile_mosaics:
        if not files:
            raise MosaicError(f"{where}: no such folder or files; give --mosaics DIR_OR_GLOB")
        raise MosaicError(
            f"{where}: none of {len(files)} file names matches survey '{survey.name}' "
            f"({' or '.join(names_of(survey.mosaic_pattern))}, bands "
            f"{' '.join(survey.band_names)}); choose another --survey, or correct "
            f"mosaic_pattern{_suggestion([file.name for file in without_siblings(files)], survey)}"
        )
    return tile_mosaics


def _suggestion(names: list[str], survey: Survey) -> str:
    """Return ': "PATTERN" would match N files' for names with a band in them; "" if none fits.

    Where the names differ, but for the band, is the tile.
    """
    bands = sorted([*survey.band_names, *survey.band_aliases], key=len, reverse=True)
    band = re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, bands))})(?![^\W_])", re.IGNORECASE)
    masked = {band.sub("{band}", name) for name in names if len(band.findall(name)) == 1}
    if not masked:
        return ""
    start = _same(masked)
    end = _same([name[: len(start) - 1 : -1] if start else name[::-1] for name in masked])[::-1]
    pattern = start
    if len(masked) > 1:  # whole words: sim0020 and sim0021 differ by more than a digit
        start, end = re.sub(r"[^\W_]*$", "", start), re.sub(r"^[^\W_]*", "", end)
        pattern = f"{start}{{tile}}{end}"
    try:
        better = replace(survey, mosaic_pattern=pattern)
    except ValueError:
        return ""
    n = sum(better.match_mosaic(name) is not None for name in names)
    return f': "{pattern}" would match {n} of them' if n and pattern.count("{band}") == 1 else ""


def _same(names: Collection[str]) -> str:
    """Return with what all names begin."""
    places = takewhile(lambda place: len(set(place)) == 1, zip(*names, strict=False))
    return "".join(place[0] for place in places)


def check_pixel_scale(tile_id: str, pixel_scale_arcsec: float, survey: Survey) -> None:
    """Refuse a tile on another pixel scale than its survey's.

    Raises:
        MosaicError: with both.
    """
    ratio = pixel_scale_arcsec / survey.pixel_scale_arcsec
    if abs(ratio - 1) > MAX_SCALE_ERROR:
        raise MosaicError(
            f"tile '{tile_id}' has {pixel_scale_arcsec:.4g} arcsec per pixel, survey "
            f"'{survey.name}' has {survey.pixel_scale_arcsec:.4g}; correct pixel_scale_arcsec, or "
            f"resample the mosaics"
        )
