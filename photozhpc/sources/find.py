"""Selects the source lists, and the sources in them, that a store is made of."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, SourceListError
from photozhpc.files.disk import files_below
from photozhpc.files.objects import AnyPath, is_glob, is_remote, list_objects, location
from photozhpc.mosaic.duplicates import note_on
from photozhpc.sources.read import JoinedLists, read_source_lists
from photozhpc.survey import Survey, names_of

_MAX_ROUNDING_PIX = 0.05  # of a position; two grids that agree this well count as the same


def find_source_lists(
    where: str | AnyPath, survey: Survey, notes: list[str] | None = None
) -> list[AnyPath]:
    """Return the source lists beside the mosaics, by the survey's `source_pattern`.

    Of several lists of one tile one is used: the first by the order of the patterns, then by
    `prefer_mosaics`, then the last by name.

    Args:
        notes: receives lines about the lists that were not used.

    Raises:
        SourceListError: there is none.
    """
    path = location(where)
    folder: AnyPath
    if is_remote(path):
        folder = path.parent if is_glob(path) or path.is_file() else path
        if is_glob(folder):
            raise SourceListError(f"{where}: the glob spans several folders; pass --sources FILE")
    else:
        folder = path if path.is_dir() else path.parent

    files: Sequence[AnyPath] = list_objects(folder) if is_remote(folder) else files_below(folder)
    patterns = names_of(survey.source_pattern)
    ranked_lists: dict[str, list[tuple[int, int, AnyPath]]] = {}
    others: list[AnyPath] = []
    for file in files:
        match = survey.match_source_list(file.name)
        if match is not None and match[1] is not None and file.is_file():
            ranked = (match[0], survey.preference(file.name), file)
            ranked_lists.setdefault(match[1].lower(), []).append(ranked)
    try:
        for pattern in patterns:
            if "{tile" not in pattern:
                others += [f for f in files if f.match(pattern) and f not in others]
    except ValueError as error:
        raise ConfigError(
            f"survey '{survey.name}': source_pattern '{pattern}' is not a glob ({error})"
        ) from error
    if ranked_lists:
        return _one_per_tile(list(ranked_lists.values()), others, [] if notes is None else notes)
    if not others:
        raise SourceListError(
            f"{folder}: no source list there ({', '.join(patterns)}); pass --sources FILE, or "
            f"make one with 'photozhpc detect'"
        )
    return others


def _one_per_tile(
    ranked_lists: list[list[tuple[int, int, AnyPath]]], others: list[AnyPath], notes: list[str]
) -> list[AnyPath]:
    lists, passed_over = [], []
    for ranked in ranked_lists:
        first = min(entry[:2] for entry in ranked)
        best = max((e[2] for e in ranked if e[:2] == first), key=lambda p: (p.name, str(p)))
        lists.append(best)
        passed_over += [(entry[2], best) for entry in ranked if entry[2] != best]
    if passed_over:
        notes.append(note_on("source lists", passed_over))
    with_tile = {entry[2] for ranked in ranked_lists for entry in ranked}
    if unused := [file for file in others if file not in with_tile]:
        notes.append(
            f"{len(unused)} source lists without a tile were not used, such as {unused[0].name}"
        )
    return sorted(lists)


def _rounded_positions(
    ra_N: NDArray[np.float64], dec_N: NDArray[np.float64], survey: Survey
) -> list[str]:
    """Return a note if all positions are float32 numbers and that is too coarse."""
    ra_M, dec_M = (values[np.isfinite(ra_N + dec_N)] for values in (ra_N, dec_N))
    if not ra_M.size or any((v != v.astype(np.float32)).any() for v in (ra_M, dec_M)):
        return []
    step_deg = max(float(np.spacing(np.float32(np.abs(v).max()))) for v in (ra_M, dec_M))
    error_pix = step_deg * 3600 / 2 / survey.pixel_scale_arcsec
    if error_pix < _MAX_ROUNDING_PIX:
        return []
    return [
        f"the source lists have positions in single precision, wrong by up to {error_pix:.2g} "
        "pixels; write ra and dec in double precision"
    ]


def read_survey_lists(lists: Sequence[str | AnyPath], survey: Survey) -> JoinedLists:
    """Read and join lists with the survey's columns; a list has the name of its tile or file."""

    def name(path: AnyPath) -> str:
        match = survey.match_source_list(path.name)
        return path.stem if match is None or match[1] is None else match[1]

    return read_source_lists(lists, survey.source_columns, name, survey.z_spec_max)


def sources_to_measure(
    joined: JoinedLists,
    lists: Sequence[str | AnyPath],
    tile_N: NDArray[np.int64],
    tile_ids: Sequence[str],
    survey: Survey,
    notes: list[str],
) -> NDArray[np.intp]:
    """Return the rows to measure.

    Where tiles overlap, so do their lists, and several of them hold a source under different
    identifiers. It is taken from the list of the tile on which it is measured: a list's sources
    that lie further inside another tile with a list of its own are left to that one.

    Args:
        tile_N: index in `tile_ids` of the tile on which a source is measured; -1: none.
        notes: receives lines about labels and about sources that were left out.
    """
    number = {tile_id.lower(): index for index, tile_id in enumerate(tile_ids)}
    matches = [survey.match_source_list(location(path).name) for path in lists]
    tile_L = np.array(
        [-1 if m is None or m[1] is None else number.get(m[1].lower(), -1) for m in matches]
    )
    list_tile_N = tile_L[joined.list_N]
    has_list_N = np.isin(tile_N, tile_L[tile_L >= 0]) & (tile_N >= 0)
    elsewhere_N = (list_tile_N >= 0) & has_list_N & (tile_N != list_tile_N)
    kept_N = ~elsewhere_N
    if elsewhere_N.any():
        notes.append(
            f"{np.count_nonzero(elsewhere_N)} sources where tiles overlap are taken from the list "
            "of the tile on which they lie further inside"
        )
    if not survey.keep_off_tile:
        off_N = kept_N & (tile_N < 0)
        kept_N &= tile_N >= 0
        if off_N.any():
            notes.append(f"{np.count_nonzero(off_N)} sources on no tile were left out")
    notes += _rounded_positions(joined.sources.ra_N, joined.sources.dec_N, survey)
    if len(joined.labels) > 1 and any(joined.labels.values()):
        counts = ", ".join(f"{count} from {name}" for name, count in joined.labels.items())
        notes.append(f"labels in the source lists: {counts}")
    return np.flatnonzero(kept_N)
