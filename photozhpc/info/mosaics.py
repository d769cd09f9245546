"""Describes a mosaic, or a FITS table, from its headers and WCS, without reading an image."""

import gzip
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from asdf.exceptions import AsdfWarning
from astropy.io import fits
from astropy.utils.exceptions import AstropyWarning

from photozhpc.errors import MosaicError, PhotozError, one_line
from photozhpc.extraction.mosaics import MAX_SCALE_ERROR
from photozhpc.files.disk import read_fault
from photozhpc.files.fits_length import check_length, unzipped
from photozhpc.mosaic import grid
from photozhpc.mosaic.asdf_mosaic import opened_tree
from photozhpc.mosaic.band_image import DAMAGED
from photozhpc.mosaic.fits_roles import header_bands, is_image
from photozhpc.mosaic.fits_siblings import sibling_paths
from photozhpc.mosaic.fits_wcs import celestial_wcs
from photozhpc.mosaic.tile import open_planes
from photozhpc.survey import Survey, load_survey, survey_names

_MAX_PACKED_BYTES = 256 << 20  # of gzip; a larger file is not unpacked
_EXPOSURE_KEYS = ("EXPTIME", "TEXPTIME", "XPOSURE")
_MAX_EXTENSIONS = 200


def about_fits_or_asdf(path: Path, survey: Survey | None = None) -> dict[str, Any]:
    """Describe a mosaic by its headers and, if it fits a survey, as `extract` reads it.

    Args:
        survey: the survey of the mosaic; None: the first bundled one that fits.

    Raises:
        MosaicError: it is damaged, or neither FITS nor ASDF; with `survey`, it does not fit.
    """
    packed_bytes = path.stat().st_size
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", AstropyWarning)
        warnings.simplefilter("ignore", AsdfWarning)
        if packed_bytes > _MAX_PACKED_BYTES and _magic(path)[:2] == b"\x1f\x8b":
            return _primary_of_gzip(path)
        with unzipped(path) as plain:
            magic = _magic(plain)
            try:
                if magic.startswith(b"#ASDF"):
                    facts, wcs, shape_HW = _about_asdf(path, plain)
                elif magic.startswith(b"SIMPLE"):
                    facts, wcs, shape_HW = _about_fits(path, plain)
                else:
                    raise MosaicError(f"{path}: neither FITS nor ASDF (it begins with {magic!r})")
            except DAMAGED as error:
                raise MosaicError(
                    read_fault(path, error) or f"{path}: damaged ({one_line(error)}); copy it again"
                ) from error
            facts["bytes"] = packed_bytes
            if facts["kind"] == "mosaic":
                facts |= _calibrated(path, survey, wcs, shape_HW)
            return facts


def _magic(path: Path) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(8)


def _primary_of_gzip(path: Path) -> dict[str, Any]:
    """Describe a large packed file by its first header, without unpacking the rest."""
    try:
        with gzip.open(path, "rb") as stream:
            header = fits.Header.fromfile(stream)
    except DAMAGED as error:
        raise MosaicError(
            read_fault(path, error) or f"{path}: has no FITS header, or is damaged ({error})"
        ) from error
    return {
        "kind": "mosaic",
        "path": str(path),
        "format": "FITS, gzip",
        "shape": [header.get(f"NAXIS{i}") for i in range(header.get("NAXIS", 0), 0, -1)],
        "unit": header.get("BUNIT"),
        "filter": next((text for _, text in header_bands(header)), None),
        "bytes": path.stat().st_size,
        "note": "a large packed file: info reads only its first header; gunzip it for more",
    }


def _about_fits(path: Path, plain: Path) -> tuple[dict[str, Any], Any, tuple[int, int] | None]:
    check_length(plain, path)
    with fits.open(plain, memmap=False) as hdus:
        images = [hdu for hdu in hdus[:_MAX_EXTENSIONS] if is_image(hdu)]
        tables = [hdu for hdu in hdus[:_MAX_EXTENSIONS] if isinstance(hdu, fits.BinTableHDU)]
        if not images:
            tables = [hdu for hdu in tables if not isinstance(hdu, fits.CompImageHDU)]
            if not tables:
                raise MosaicError(f"{path}: holds no image and no table")
            return _about_table(path, tables[0]), None, None
        first = images[0]
        wcs = celestial_wcs(path, hdus, first)
        headers = (first.header, hdus[0].header)
        height, width = (int(n) for n in first.shape[-2:])
        facts = {
            "kind": "mosaic",
            "path": str(path),
            "format": "FITS",
            "shape": list(first.shape),
            "planes": {hdu.name or "PRIMARY": " x ".join(map(str, hdu.shape)) for hdu in images},
            "unit": next((str(h["BUNIT"]) for h in headers if h.get("BUNIT")), None),
            "filter": next((text for _, text in header_bands(*headers)), None),
            "exposure_s": next((time for h in headers if (time := _exposure(h))), None),
            "files_beside": {role: p.name for role, p in sibling_paths(path).items()},
        }
        return facts, wcs, (height, width)


def _exposure(header: Any) -> Any:
    values = (header[key] for key in _EXPOSURE_KEYS if header.get(key) not in (None, ""))
    value = next(values, None)
    return value if isinstance(value, str | int | float) else None


def _about_table(path: Path, hdu: Any) -> dict[str, Any]:
    header = hdu.header
    columns = range(1, int(header.get("TFIELDS", 0)) + 1)
    return {
        "kind": "table (FITS)",
        "path": str(path),
        "rows": header.get("NAXIS2"),
        "columns": {
            str(header.get(f"TTYPE{i}", i)): str(
                header.get(f"TUNIT{i}") or header.get(f"TFORM{i}", "")
            )
            for i in columns
        },
    }


def _about_asdf(path: Path, plain: Path) -> tuple[dict[str, Any], Any, tuple[int, int] | None]:
    with opened_tree(path, plain) as tree:
        roman = tree.get("roman", tree)
        if not isinstance(roman, Mapping) or "data" not in roman:
            keys = ", ".join(str(key)[:40] for key in list(roman)[:8])
            raise MosaicError(f"{path}: is ASDF, but has no 'data' or 'roman.data' ({keys})")
        meta = roman.get("meta", {})
        arrays = {name: getattr(node, "shape", None) for name, node in roman.items()}
        shapes = {str(n): " x ".join(map(str, shape)) for n, shape in arrays.items() if shape}
        shape = tuple(int(n) for n in arrays["data"] or ())
        if len(shape) < 2 or 0 in shape:
            raise MosaicError(f"{path}: 'data' must have two axes, got shape {shape}")
        wcs = meta.get("wcs")
        instrument, coadd = meta.get("instrument", {}), meta.get("coadd_info", {})
        facts = {
            "kind": "mosaic",
            "path": str(path),
            "format": "ASDF (Roman)" if "roman" in tree else "ASDF",
            "shape": list(shape),
            "planes": shapes,
            "unit": str(getattr(roman["data"], "unit", None) or "MJy/sr"),
            "filter": instrument.get("optical_element") or instrument.get("filter"),
            "exposure_s": coadd.get("exposure_time"),
        }
        usable = wcs is not None and not isinstance(wcs, Mapping | str) and len(shape) == 2
        return facts, wcs if usable else None, (shape[-2], shape[-1])


def _calibrated(
    path: Path, survey: Survey | None, wcs: Any, shape_HW: tuple[int, int] | None
) -> dict[str, Any]:
    """Return how `extract` reads the mosaic: bands, nJy per unit, notes, and where it lies."""
    facts: dict[str, Any] = {}
    candidates = [survey] if survey else [load_survey(name) for name in survey_names()]
    # First the surveys whose file names it has.
    candidates.sort(key=lambda candidate: candidate.match_mosaic(path.name) is None)
    reasons: list[str] = []
    for candidate in candidates:
        try:
            with open_planes(path, candidate, None) as planes:
                facts = {
                    "survey": candidate.name,
                    "survey_guessed": None if survey else _basis(candidate, path, candidates),
                    "bands": [plane.band for plane in planes],
                    "roles": {plane.band: list(plane.roles) for plane in planes},
                    "has_errors": all(plane.one_error is None for plane in planes),
                    "njy_per_unit": {p.band: float(p.njy_per_unit) for p in planes},
                    "calibrated_by": {p.band: p.calibrated_by for p in planes},
                    "notes": [note for plane in planes for note in plane.notes],
                }
                wcs, shape_HW = planes[0].wcs, planes[0].shape_HW
            break
        except PhotozError as error:
            if survey is not None:
                raise
            reasons.append(f"{candidate.name}: {error}")
    else:
        facts["note"] = f"no survey that comes with photozhpc fits ({reasons[0]})"
    sky = _sky(wcs, shape_HW)
    ratio = sky.get("pixel_scale_arcsec", 0.0) / candidate.pixel_scale_arcsec
    if "survey" in facts and ratio and abs(ratio - 1) > MAX_SCALE_ERROR:
        facts["note"] = (
            f"survey '{candidate.name}' has {candidate.pixel_scale_arcsec} arcsec per pixel: "
            f"extract would refuse this mosaic"
        )
    return facts | sky


def _basis(survey: Survey, path: Path, candidates: list[Survey]) -> str:
    """Return what a survey was guessed by."""
    if survey.match_mosaic(path.name) is None:
        return "by the band that the file names; pass --survey to choose"
    others = [
        other.name
        for other in candidates
        if other is not survey and other.match_mosaic(path.name) is not None
    ]
    return "by its name" + (f", which also fits {', '.join(others)}" if others else "")


def _sky(wcs: Any, shape_HW: tuple[int, int] | None) -> dict[str, Any]:
    if wcs is None or shape_HW is None:
        return {"wcs": "none"}
    height, width = shape_HW
    y = np.array([(height - 1) / 2, 0, 0, height - 1, height - 1])
    x = np.array([(width - 1) / 2, 0, width - 1, width - 1, 0])
    try:
        ra, dec = grid.pixel_to_sky(wcs, y, x)
        scale_arcsec = float(np.sqrt(grid.pixel_area_arcsec2(wcs, shape_HW)))
    except PhotozError as error:
        return {"wcs": str(error)}
    places = [[round(float(r), 7), round(float(d), 7)] for r, d in zip(ra, dec, strict=True)]
    return {
        "pixel_scale_arcsec": scale_arcsec,
        "side_arcmin": [height * scale_arcsec / 60, width * scale_arcsec / 60],
        "centre_deg": places[0],
        "corners_deg": places[1:],
    }
