"""The best of several mosaics, or source lists, of one tile: the deepest and latest."""

import gzip
import warnings
from typing import Any

from photozhpc.errors import MosaicError
from photozhpc.files.disk import read_fault
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.band_image import DAMAGED
from photozhpc.survey import Survey


def one_of_each(
    claims: dict[str, dict[str, list[AnyPath]]], survey: Survey, notes: list[str]
) -> dict[str, dict[str, AnyPath]]:
    """Return {tile_id: {band: path}} of {tile_id: {band: paths}}, with a note on the others."""
    tiles: dict[str, dict[str, AnyPath]] = {}
    passed_over = []
    for tile_id, bands in claims.items():
        tiles[tile_id] = {}
        for band, paths in bands.items():
            best = _best_mosaic(paths, survey)
            tiles[tile_id][band] = best
            passed_over += [(path, best) for path in paths if path != best]
    if passed_over:
        notes.append(note_on("mosaics", passed_over))
    return tiles


def note_on(kind: str, passed_over: list[tuple[AnyPath, AnyPath]]) -> str:
    """Return a note on pairs of (path that was passed over, path that is used instead)."""
    path, best = passed_over[0]
    return (
        f"{len(passed_over)} {kind} passed over for a better one of the same tile, such as "
        f"{path.name} for {best.name}"
    )


def _best_mosaic(paths: list[AnyPath], survey: Survey) -> AnyPath:
    """Return the best of several mosaics of one band of one tile.

    That is the first by `Survey.prefer_mosaics`; among equals the one with the longest exposure
    in its header (0 if it states none), then the last by name.

    Raises:
        MosaicError, StorageError: a file whose header is needed is missing or out of reach.
    """
    first = min(survey.preference(path.name) for path in paths)
    best = [path for path in paths if survey.preference(path.name) == first]
    if len(best) == 1:
        return best[0]
    return max(best, key=lambda path: (exposure_time_s(path), path.name, str(path)))


def exposure_time_s(path: AnyPath) -> float:
    """Return the exposure time that a mosaic states: L3's coadd_info, or EXPTIME; 0: none.

    A damaged file states none: the error comes when its pixels are read.

    Raises:
        MosaicError, StorageError: it is missing or out of reach, or the disk fails.
    """
    # Headers alone: many visits of a delivery on a server are never fetched. Without a buffer:
    # asdf reads past it.
    try:
        with warnings.catch_warnings(), path.open("rb", buffering=0) as packed:
            warnings.simplefilter("ignore")
            start = packed.read(2)
            packed.seek(0)
            stream: Any = gzip.GzipFile(fileobj=packed) if start == b"\x1f\x8b" else packed
            is_asdf = stream.read(5) == b"#ASDF"
            stream.seek(0)
            return max(float(_of_asdf(stream) if is_asdf else _of_fits(stream)), 0.0)
    except FileNotFoundError as error:
        raise MosaicError(f"{path}: no such file") from error
    except DAMAGED as error:
        fault = read_fault(path, error)
        if fault is not None:
            raise MosaicError(fault) from error
        return 0.0


def _of_asdf(stream: Any) -> float:
    from asdf.util import load_yaml

    meta = load_yaml(stream)["roman"]["meta"]
    info = meta.get("coadd_info") or meta.get("basic") or {}
    return info.get("exposure_time", info.get("mean_exposure_time", 0.0))


def _of_fits(stream: Any) -> float:
    from astropy.io import fits

    with fits.open(stream, memmap=False, lazy_load_hdus=True) as hdus:
        for index in (0, 1):
            header = hdus[index].header  # IndexError, which is DAMAGED: there is no second HDU
            for key in ("TEXPTIME", "EXPTIME"):
                if key in header:
                    return header[key]
    return 0.0
