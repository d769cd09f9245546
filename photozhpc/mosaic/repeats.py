"""One mosaic, or one source list, of several of the same tile: the deepest and latest."""

import warnings
from pathlib import Path

from astropy.utils.exceptions import AstropyWarning

from photozhpc.mosaic.fits_length import unzipped
from photozhpc.mosaic.plane import DAMAGED
from photozhpc.object_storage import AnyPath
from photozhpc.survey import Survey


def one_of_each(
    claims: dict[str, dict[str, list[AnyPath]]], survey: Survey, notes: list[str]
) -> dict[str, dict[str, AnyPath]]:
    """Return {tile_id: {band: path}} of {tile_id: {band: paths}}, with a note on the others."""
    found: dict[str, dict[str, AnyPath]] = {}
    passed_over = []
    for tile_id, bands in claims.items():
        found[tile_id] = {}
        for band, paths in bands.items():
            best = paths[0] if len(paths) == 1 else best_mosaic(paths, survey)
            found[tile_id][band] = best
            passed_over += [(path, best) for path in paths if path != best]
    if passed_over:
        notes.append(note_on("mosaics", passed_over))
    return found


def note_on(what: str, passed_over: list[tuple[AnyPath, AnyPath]]) -> str:
    """Return a note on (what was passed over, what was taken in its place)."""
    path, best = passed_over[0]
    return (
        f"{len(passed_over)} {what} of a tile that has a better one passed over, such as "
        f"{path.name} for {best.name}"
    )


def best_mosaic(paths: list[AnyPath], survey: Survey) -> AnyPath:
    """Return the best of several mosaics of one band of one tile.

    That is the first by `Survey.prefer_mosaics`; of equals the one of the longest exposure, as
    their headers say (0 where they do not), and then the last by name.

    Raises:
        MosaicError: a file that has to be looked into is missing or cut short.
    """
    first = min(survey.preference(path.name) for path in paths)
    best = [path for path in paths if survey.preference(path.name) == first]
    if len(best) == 1:
        return best[0]
    return max(best, key=lambda path: (exposure_time_s(path), path.name, str(path)))


def exposure_time_s(path: AnyPath) -> float:
    """Return the exposure time that a mosaic states: L3's coadd_info, or EXPTIME; 0: none.

    A file too damaged to tell states none: whoever reads its pixels says what is wrong.
    """
    with warnings.catch_warnings(), unzipped(path) as plain:
        warnings.simplefilter("ignore")
        try:
            with open(plain, "rb") as stream:
                is_asdf = stream.read(5) == b"#ASDF"
            stated = _of_asdf(plain) if is_asdf else _of_fits(plain)
            return max(float(stated), 0.0)
        except DAMAGED:
            return 0.0


def _of_asdf(path: Path) -> float:
    import asdf

    with asdf.open(path, lazy_load=True) as file:
        meta = file["roman"]["meta"]
        info = meta.get("coadd_info") or meta.get("basic") or {}
        return info.get("exposure_time", info.get("mean_exposure_time", 0.0))


def _of_fits(path: Path) -> float:
    from astropy.io import fits

    warnings.simplefilter("ignore", AstropyWarning)
    with fits.open(path, memmap=False) as hdus:
        for hdu in hdus[:2]:
            for key in ("TEXPTIME", "EXPTIME"):
                if key in hdu.header:
                    return hdu.header[key]
    return 0.0
