"""Mosaics -> a source list, if there is no catalogue: every source once, with a stable id."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc import __version__
from photozhpc.errors import ConfigError, RunError, SourceListError
from photozhpc.extraction.assign import depths_on_tiles
from photozhpc.extraction.extract import mosaics_stamp
from photozhpc.extraction.mosaics import ALL_BANDS, check_pixel_scale, find_mosaics
from photozhpc.files.disk import remove_stale_partials, write_durably
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.detect import REPEAT_PIX, detect_sources, first_sightings
from photozhpc.mosaic.footprint import Footprint, read_footprints
from photozhpc.mosaic.grid import unit_vectors
from photozhpc.mosaic.tile import read_tile
from photozhpc.survey import Survey, names_of
from photozhpc.workers.pool import run_jobs

_STAMP_KEY = b"photozhpc.detection"
_NUMBER_BITS = 24  # 16 million sources per tile; 39 bits remain for the tile's name


@dataclass(frozen=True)
class DetectSummary:
    """The result of a detection.

    Attributes:
        tiles, sources: in the list.
        repeats: further detections of sources that overlapping tiles share.
        present: whether the list already existed, made in the same way from the same mosaics.
        notes: remarks about the mosaics for the user.
    """

    tiles: int
    sources: int
    repeats: int
    present: bool
    notes: tuple[str, ...] = ()


def make_source_list(
    survey: Survey,
    mosaics: str | AnyPath,
    out: str | Path,
    threshold: float | None = None,
    min_area_pix: int = 5,
    workers: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> DetectSummary:
    """Detect the sources of every tile and write one list, with the survey's column names.

    A source in the overlap of tiles is taken from the tile on which it lies furthest from the
    edge, as in `assign_tiles`. Its identifier consists of the tile's name and its number there: it
    does not depend on the processes, the run, or the other tiles. If a run is stopped, the searched
    tiles stay in a hidden folder beside `out` until the list is written.

    Args:
        threshold, min_area_pix: see `detect_sources`.
        workers: processes; default: one per core, at most one per tile.
        progress: called with (tiles done, all tiles).

    Raises:
        PhotozError: the mosaics are faulty, hold no source, or `out` is another list.
    """
    out = Path(out)
    if out.suffix.lower() not in (".parquet", ".pq"):
        raise ConfigError(f"{out}: the source list is a Parquet file; name it *.parquet")
    if not (0 < (1.0 if threshold is None else threshold) < np.inf and min_area_pix > 0):
        raise ConfigError(
            f"threshold and min_area_pix must be positive, got {threshold}, {min_area_pix}"
        )
    notes: list[str] = []
    tile_mosaics = find_mosaics(mosaics, survey, notes)
    check_names(tile_mosaics)
    made_from = [
        {
            "tile": tile_id,
            "mosaics": mosaics_stamp(bands),
            "survey": repr(survey),
            "threshold": threshold,
            "min_area_pix": min_area_pix,
            "version": __version__,
        }
        for tile_id, bands in tile_mosaics.items()
    ]
    stamps = [_digest(inputs) for inputs in made_from]
    list_stamp = _digest(stamps)
    if out.exists():
        if _read_stamp(out) != list_stamp:
            raise SourceListError(
                f"{out}: exists, but was made from other mosaics or in another way; choose another "
                f"--out or delete that file"
            )
        return _present(out, len(tile_mosaics))

    folder = out.with_name(f".{out.name}.tiles")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror})") from error
    remove_stale_partials(folder)
    parts = [folder / f"{tile_id}.parquet" for tile_id in tile_mosaics]
    jobs = [
        (survey, bands, part, stamp, threshold, min_area_pix)
        for bands, part, stamp in zip(tile_mosaics.values(), parts, stamps, strict=True)
        if not part.exists() or _read_stamp(part) != stamp
    ]
    try:
        notes += _detect_all(jobs, len(tile_mosaics), workers, progress, out)
        table, repeats = _join(survey, tile_mosaics, parts)
    except (OSError, RunError):
        if _read_stamp(out) == list_stamp:  # the same command elsewhere finished, and tidied up
            return _present(out, len(tile_mosaics))
        raise
    if not len(table):
        raise SourceListError(
            f"{mosaics}: no source has {min_area_pix} px above the threshold; lower --threshold or "
            f"--min-area"
        )
    _write(table, out, list_stamp)
    shutil.rmtree(folder, ignore_errors=True)
    return DetectSummary(len(tile_mosaics), len(table), repeats, False, tuple(sorted(notes)))


def _present(out: Path, n_tiles: int) -> DetectSummary:
    return DetectSummary(n_tiles, pq.read_metadata(out).num_rows, 0, present=True)


def tile_number(tile_id: str) -> int:
    """Return the upper 39 bits of a tile's source identifiers, from a hash of its name."""
    return int.from_bytes(hashlib.sha256(tile_id.encode()).digest()[:8]) >> (_NUMBER_BITS + 1)


def check_names(tile_mosaics: dict[str, Any]) -> None:
    """Check that no two tiles share a number.

    Raises:
        SourceListError: two do; for 100 000 tiles the probability is 1%.
    """
    numbered = sorted((tile_number(tile_id), tile_id) for tile_id in tile_mosaics)
    for (number, tile_id), (next_number, next_id) in pairwise(numbered):
        if number == next_number:
            raise SourceListError(
                f"the names of tiles '{tile_id}' and '{next_id}' give the same identifiers; "
                f"rename the mosaics of one of them"
            )


def _detect_all(
    jobs: list[tuple[Any, ...]],
    n_tiles: int,
    workers: int | None,
    progress: Callable[[int, int], None],
    out: Path,
) -> list[str]:
    """Search the remaining tiles in parallel; return notes on their mosaics."""
    notes: list[str] = []
    done = n_tiles - len(jobs)
    progress(done, n_tiles)

    def finished(_: int, tile_notes: list[str]) -> None:
        nonlocal done
        notes.extend(tile_notes)
        done += 1
        progress(done, n_tiles)

    run_jobs(_detect_tile, jobs, workers, f"detecting sources for {out}", finished)
    return notes


def _detect_tile(
    survey: Survey,
    bands: dict[str, AnyPath],
    part: Path,
    stamp: str,
    threshold: float | None,
    min_area_pix: int,
) -> list[str]:
    """Search one tile, write its sources, and return notes on its mosaics."""
    tile = read_tile(bands.get(ALL_BANDS, bands), survey)
    check_pixel_scale(tile.tile_id, tile.pixel_scale_arcsec, survey)
    detected = detect_sources(tile, survey, threshold, min_area_pix)
    if len(detected.y_N) >= 1 << _NUMBER_BITS:
        raise SourceListError(
            f"tile '{part.stem}' has {len(detected.y_N)} sources, but only "
            f"{(1 << _NUMBER_BITS) - 1} can be numbered; divide its mosaics"
        )
    ra_N, dec_N = tile.pixel_to_sky(detected.y_N, detected.x_N)
    columns = {
        "y": detected.y_N,
        "x": detected.x_N,
        "ra": ra_N,
        "dec": dec_N,
        "flags": detected.flags_N,
    }
    _write(pa.table(columns), part, stamp)
    missing = [f"no mosaic of band {band}" for band in tile.missing_bands]
    return [f"tile '{part.stem}': {note}" for note in (*missing, *tile.notes)]


def _join(
    survey: Survey, tile_mosaics: dict[str, dict[str, AnyPath]], parts: list[Path]
) -> tuple[pa.Table, int]:
    """Return the list of all tiles, each source once, and the number of repeats left out."""
    footprints = list(read_footprints(tile_mosaics, survey).values())
    tables = [pq.read_table(part) for part in parts]
    tile_N = np.repeat(np.arange(len(parts)), [len(table) for table in tables])
    joined = pa.concat_tables(tables)
    ra_N, dec_N = joined["ra"].to_numpy(), joined["dec"].to_numpy()
    number_N = np.concatenate([np.arange(len(table)) for table in tables])
    names = list(tile_mosaics)
    id_T = np.array([tile_number(name) << _NUMBER_BITS for name in names], np.int64)
    keep_N = _kept_once(ra_N, dec_N, tile_N, footprints, survey.pixel_scale_arcsec)
    columns = survey.source_columns
    named = {
        (names_of(columns.source_id) or ("source_id",))[0]: id_T[tile_N] + number_N,
        columns.ra: ra_N,
        columns.dec: dec_N,
    }
    extra = {
        "tile_id": pa.DictionaryArray.from_arrays(pa.array(tile_N, pa.int32()), names),
        "detect_flags": joined["flags"],
    }
    table = pa.table(named | {name: extra[name] for name in extra if name not in named})
    return table.filter(keep_N), int(np.count_nonzero(~keep_N))


def _kept_once(
    ra_N: NDArray[np.float64],
    dec_N: NDArray[np.float64],
    tile_N: NDArray[np.integer],
    footprints: list[Footprint],
    pixel_scale_arcsec: float,
) -> NDArray[np.bool_]:
    """Return which detections to keep: those on the tile on which they lie deepest.

    Near the line where two tiles are equally deep, their detections are compared: positions that
    differ by a fraction of a pixel could make both tiles drop the source, or both keep it.
    """
    own_N, other_N = np.full(len(ra_N), -np.inf), np.full(len(ra_N), -np.inf)
    if not len(ra_N):
        return np.empty(0, np.bool_)
    for index, near_M, depth_M in depths_on_tiles(ra_N, dec_N, footprints):
        is_own_M = tile_N[near_M] == index
        own_N[near_M[is_own_M]] = depth_M[is_own_M]
        others_M = near_M[~is_own_M]
        other_N[others_M] = np.fmax(other_N[others_M], depth_M[~is_own_M])
    keep_N = own_N >= other_N - 2 * REPEAT_PIX
    rows_M = np.flatnonzero(keep_N & (np.abs(own_N - other_N) <= 4 * REPEAT_PIX))
    keep_N[rows_M] = first_sightings(
        unit_vectors(ra_N[rows_M], dec_N[rows_M]),
        tile_N[rows_M],
        own_N[rows_M],
        np.radians(REPEAT_PIX * pixel_scale_arcsec / 3600),
    )
    return keep_N


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _read_stamp(path: Path) -> str | None:
    """Return the stamp of a list or a part; None for another or a damaged file."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, ValueError, pa.ArrowException):
        return None
    stamp = metadata.get(_STAMP_KEY)
    return None if stamp is None else stamp.decode(errors="replace")


def _write(table: pa.Table, path: Path, stamp: str) -> None:
    buffer = pa.BufferOutputStream()
    stamped = table.replace_schema_metadata({_STAMP_KEY: stamp})
    pq.write_table(stamped, buffer, compression="zstd", write_page_checksum=True)
    write_durably(path, memoryview(buffer.getvalue()))
