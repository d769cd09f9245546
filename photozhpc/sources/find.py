"""Which source lists, and which of their sources, a store is made of."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, SourceListError
from photozhpc.files.disk import files_below
from photozhpc.files.objects import AnyPath, is_glob, is_remote, list_objects, location
from photozhpc.mosaic.duplicates import note_on
from photozhpc.sources.read import JoinedLists, read_source_lists
from photozhpc.survey import Survey, names_of

_MAX_ROUNDING_PIX = 0.05  # of a position, as of two grids that are taken for the same


def find_source_lists(
    where: str | AnyPath, survey: Survey, notes: list[str] | None = None
) -> list[AnyPath]:
    """Return the source lists beside the mosaics, by the survey's `source_pattern`.

    Of several lists of one tile one is taken: the first by the order of the patterns, then by
    `prefer_mosaics`, then the last by name.

    Args:
        notes: gets lines on what was passed over.

    Raises:
        SourceListError: there is none.
    """
    path = location(where)
    folder: AnyPath
    if is_remote(path):
        folder = path.parent if is_glob(path) or path.is_file() else path
        if is_glob(folder):
            raise SourceListError(f"{where}: which source lists are meant? Pass --sources")
    else:
        folder = path if path.is_dir() else path.parent

    def below(pattern: str) -> list[AnyPath]:
        below_folder: Sequence[AnyPath]
        below_folder = list_objects(folder) if is_remote(folder) else files_below(folder)
        return [file for file in below_folder if file.match(pattern)]

    patterns = names_of(survey.source_pattern)
    of_tile: dict[str, list[tuple[int, int, AnyPath]]] = {}
    others: list[AnyPath] = []
    files: list[AnyPath] = []
    if any("{tile" in pattern for pattern in patterns):
        files = below("*")
    for file in files:
        match = survey.match_source_list(file.name)
        if match is not None and match[1] is not None and file.is_file():
            ranked = (match[0], survey.preference(file.name), file)
            of_tile.setdefault(match[1].lower(), []).append(ranked)
    try:
        for pattern in patterns:
            if "{tile" not in pattern:
                files = below(pattern)
                others += [file for file in files if file not in others]
    except ValueError as error:
        raise ConfigError(
            f"survey '{survey.name}': source_pattern '{pattern}' is not a glob ({error})"
        ) from error
    notes = [] if notes is None else notes
    if of_tile:
        return _one_of_each(of_tile, others, notes)
    if not others:
        raise SourceListError(
            f"{folder}: no source list there ({', '.join(patterns)}); pass --sources FILE, or "
            f"make one with 'photozhpc detect'"
        )
    return others


def _one_of_each(
    of_tile: dict[str, list[tuple[int, int, AnyPath]]], others: list[AnyPath], notes: list[str]
) -> list[AnyPath]:
    lists, passed_over = [], []
    for ranked in of_tile.values():
        first = min(entry[:2] for entry in ranked)
        best = max((e[2] for e in ranked if e[:2] == first), key=lambda p: (p.name, str(p)))
        lists.append(best)
        passed_over += [(entry[2], best) for entry in ranked if entry[2] != best]
    known = {entry[2] for ranked in of_tile.values() for entry in ranked}
    unused = [file for file in others if file not in known]
    if passed_over:
        notes.append(note_on("source lists", passed_over))
    if unused:
        notes.append(
            f"{len(unused)} source lists that are of no tile passed over, such as {unused[0].name}"
        )
    return sorted(lists)


def _rounded_positions(
    ra_N: NDArray[np.float64], dec_N: NDArray[np.float64], survey: Survey
) -> list[str]:
    """Return a note if all positions have the 24 bits of a float32, which is too coarse."""
    ra_M, dec_M = (values[np.isfinite(ra_N + dec_N)] for values in (ra_N, dec_N))
    if not ra_M.size or any((v != v.astype(np.float32)).any() for v in (ra_M, dec_M)):
        return []
    step_deg = max(float(np.spacing(np.float32(np.abs(v).max()))) for v in (ra_M, dec_M))
    error_pix = step_deg * 3600 / 2 / survey.pixel_scale_arcsec
    if error_pix < _MAX_ROUNDING_PIX:
        return []
    return [
        f"positions of the source lists are in single precision: off by up to {error_pix:.2g} "
        "pixels; write ra and dec in double precision"
    ]


def read_survey_lists(lists: Sequence[str | AnyPath], survey: Survey) -> JoinedLists:
    """Read and join lists with the survey's columns; a list is called as its tile, or its file."""

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

    Where tiles overlap, so do their lists, and a source stands in several of them under several
    names. It is taken from the list of the tile on which it is measured; a list's sources that lie
    further inside another tile, which has a list too, are that list's.

    Args:
        tile_N: index in `tile_ids` of the tile on which a source is measured; -1: none.
        notes: gets lines on labels and on what was left out.
    """
    number = {tile_id.lower(): index for index, tile_id in enumerate(tile_ids)}
    matches = [survey.match_source_list(location(path).name) for path in lists]
    tile_L = np.array(
        [-1 if m is None or m[1] is None else number.get(m[1].lower(), -1) for m in matches]
    )
    own_N = tile_L[joined.list_N]
    listed_N = np.isin(tile_N, tile_L[tile_L >= 0]) & (tile_N >= 0)
    elsewhere_N = (own_N >= 0) & listed_N & (tile_N != own_N)
    kept_N = ~elsewhere_N
    if elsewhere_N.any():
        notes.append(
            f"{np.count_nonzero(elsewhere_N)} sources where tiles overlap left to the list of the "
            "tile on which they lie further inside"
        )
    if not survey.keep_off_tile:
        off_N = kept_N & (tile_N < 0)
        kept_N &= tile_N >= 0
        if off_N.any():
            notes.append(f"{np.count_nonzero(off_N)} sources on no tile left out")
    notes += _rounded_positions(joined.sources.ra_N, joined.sources.dec_N, survey)
    if len(joined.labels) > 1 and any(joined.labels.values()):
        counts = ", ".join(f"{count} from {name}" for name, count in joined.labels.items())
        notes.append(f"labels of the source lists: {counts}")
    return np.flatnonzero(kept_N)
