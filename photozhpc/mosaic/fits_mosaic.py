"""Mosaics in FITS: one file a band, an extension a band, or a cube; .gz and .fz too."""

import contextlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, MosaicError, did_you_mean
from photozhpc.mosaic.blank import noise_of
from photozhpc.mosaic.calibration import njy_per_unit
from photozhpc.mosaic.fits_length import check_length, unzipped
from photozhpc.mosaic.grid import check_frame, pixel_area_arcsec2
from photozhpc.mosaic.plane import (
    DAMAGED,
    BandPlane,
    Rows,
    naming,
    robust_sigma,
    sample_rows,
    sigma_from_weight,
)
from photozhpc.object_storage import AnyPath
from photozhpc.survey import Band, Survey

_DO_NOT_USE = 1  # bit 0 of DQ
_SPARSE = 0.8  # of the exposed pixels have light: fewer, and their zeros are data

# Words of EXTNAME -> what the plane is. Words that are not here and are no band name a plane
# that is not needed (context map, segmentation, PSF).
_ROLES = {
    **dict.fromkeys(("SCI", "SCIENCE", "DATA", "IMAGE", "PRIMARY"), "image"),
    **dict.fromkeys(("ERR", "ERROR", "RMS", "SIGMA", "UNC", "STD"), "err"),
    **dict.fromkeys(("VAR", "VARIANCE", "STAT"), "variance"),
    **dict.fromkeys(("IVM", "IVAR", "INVVAR", "INVVARIANCE"), "inverse_variance"),
    **dict.fromkeys(("WHT", "WEIGHT", "WT"), "weight"),
    **dict.fromkeys(("MASK", "BPM", "FLAG", "FLAGS"), "mask"),
    "DQ": "dq",
}
_NOISE_ROLES = ("err", "variance", "inverse_variance", "weight")
_BAND_KEYS = ("FILTER", "FILTER1", "FILTER2", "FILTNAM1", "FILTNAM2", "PUPIL", "BAND")
_NO_FILTER = re.compile(r"CLEAR\w*|N/?A|NONE|OPEN|", re.IGNORECASE)
_SIBLINGS = {
    "weight": ("wht", "weight"),
    "err": ("rms", "err"),
    "inverse_variance": ("ivm", "ivar"),
}


@dataclass
class _Plane:
    """An image HDU, or one layer of it."""

    hdu: Any
    layer: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.hdu.shape[-2:]
        return int(height), int(width)

    def rows(self, i0: int, i1: int) -> NDArray[Any]:
        return np.asarray(self.hdu.section[(*self.layer, slice(i0, i1), slice(None))])


def sibling_paths(path: AnyPath) -> dict[str, AnyPath]:
    """Weight and error files that lie beside a science file, by role."""
    name = re.fullmatch(r"(.+?)([._-])(drz|drc|sci|i2d)(\.fits?)(\.gz|\.fz)?", path.name, re.I)
    found: dict[str, AnyPath] = {}
    if name is not None:
        for role, words in _SIBLINGS.items():
            for word in words:
                for end in dict.fromkeys((name[5] or "", "", ".gz", ".fz")):
                    sibling = path.with_name(f"{name[1]}{name[2]}{word}{name[4]}{end}")
                    if role not in found and sibling.is_file():
                        found[role] = sibling
    return found


@contextlib.contextmanager
def open_fits(
    path: AnyPath, plain: Path, survey: Survey, band: Band | None
) -> Iterator[list[BandPlane]]:
    """Open every band of the survey that a FITS file holds.

    Args:
        path: to show in errors and to find siblings by.
        plain: the file, unpacked if need be.
        band: the band to take from it; None: all it has, as names of extensions, headers and
            the file's name say.

    Raises:
        MosaicError: truncated, damaged, uncalibrated, or no mosaic.
        ConfigError: of a band that the survey does not have.
    """
    with contextlib.ExitStack() as stack:
        hdus = _open(path, plain, stack)
        try:
            groups = _groups(path, hdus, survey, band)
            if any(not set(_NOISE_ROLES) & set(planes) for planes in groups.values()):
                _add_siblings(path, groups, stack)
            planes = [
                _band_plane(path, hdus, survey, survey.band(name), planes)
                for name, planes in groups.items()
            ]
        except DAMAGED as error:
            raise _damaged(path, error) from error
        yield planes


def fits_grid(
    path: AnyPath, stream: io.RawIOBase, survey: Survey, band: Band | None
) -> tuple[tuple[int, int], WCS | None]:
    """Read shape and WCS of a mosaic, of which no more is requested than the headers.

    Raises:
        MosaicError, ConfigError: as `open_fits`.
    """
    try:
        with fits.open(stream, memmap=False, lazy_load_hdus=True) as hdus:
            len(hdus)
            image = next(iter(_groups(path, hdus, survey, band).values()))["image"]
            wcs = _wcs(path, hdus, image.hdu)
    except DAMAGED as error:
        raise _damaged(path, error) from error
    if wcs is not None:
        with naming(path):
            check_frame(wcs)
    return image.shape, wcs


def _open(path: AnyPath, plain: Path, stack: contextlib.ExitStack) -> Any:
    check_length(plain, path)
    try:
        hdus = stack.enter_context(fits.open(plain, memmap=False))
        len(hdus)  # reads every header now; `section` reads rows, and scales them
    except DAMAGED as error:
        raise _damaged(path, error) from error
    return hdus


def _add_siblings(
    path: AnyPath, groups: dict[str, dict[str, _Plane]], stack: contextlib.ExitStack
) -> None:
    if len(groups) > 1:
        return
    (planes,) = groups.values()
    for role, sibling in sibling_paths(path).items():
        plain = stack.enter_context(unzipped(sibling))
        images = [hdu for hdu in _open(sibling, plain, stack) if _is_image(hdu)]
        if images and not set(_NOISE_ROLES) & set(planes):
            planes[role] = _flat(sibling, images[0])


def _is_image(hdu: Any) -> bool:
    kinds = (fits.PrimaryHDU, fits.ImageHDU, fits.CompImageHDU)
    return isinstance(hdu, kinds) and len(hdu.shape) >= 2 and 0 not in hdu.shape


def _groups(
    path: AnyPath, hdus: Any, survey: Survey, band: Band | None
) -> dict[str, dict[str, _Plane]]:
    """Sort the image planes of a file: band name -> role -> plane."""
    images = [hdu for hdu in hdus if _is_image(hdu)]
    if not images:
        raise MosaicError(f"{path}: holds no image")
    if survey.layer is not None:
        return _layer(path, hdus, images[0], survey, band)
    groups: dict[tuple[str | None, int], dict[str, Any]] = {}
    for hdu in images:
        role, name = _role_and_band(hdu, survey)
        if len(images) == 1 and role is None:
            role = "image"
        if role is not None:
            groups.setdefault((name, hdu.ver), {}).setdefault(role, hdu)
    _merge_parts(groups)
    named = {name: planes for (name, _), planes in groups.items() if name and "image" in planes}
    if named:
        if band is not None:
            if band.name not in named:
                raise MosaicError(f"{path}: has no {band.name}; it has {', '.join(named)}")
            named = {band.name: named[band.name]}
    else:
        unnamed = [planes for planes in groups.values() if "image" in planes]
        if not unnamed:
            names = [hdu.name for hdu in images if hdu.name]
            raise ConfigError(
                f"{path}: no extension is a band of the survey '{survey.name}' "
                f"(it has {', '.join(names) or 'none with a name'})"
                f"{did_you_mean(names[0] if names else '', survey.band_names)}"
            )
        if len(unnamed) > 1:
            raise MosaicError(
                f"{path}: {len(unnamed)} science images and none says its band; name the "
                f"extensions by band ({', '.join(survey.band_names)})"
            )
        cube = _cube(unnamed[0]["image"], survey)
        if cube is not None and (band is None or len(survey.bands) > 1):
            return {
                b.name: {
                    role: _Plane(hdu, (c,)) for role, hdu in unnamed[0].items() if hdu.shape == cube
                }
                for c, b in enumerate(survey.bands)
                if band is None or b.name == band.name
            }
        headers = (unnamed[0]["image"].header, hdus[0].header)
        if band is None:
            band = _band_of_file(path, survey, *headers)
        for _, text in _header_bands(*headers):
            stated = survey.find_band(text)
            if stated is not None and stated.name != band.name:
                raise MosaicError(f"{path}: is given as {band.name} and says it is {stated.name}")
        named = {band.name: unnamed[0]}
    return {
        name: {role: _flat(path, hdu) for role, hdu in planes.items()}
        for name, planes in named.items()
    }


def _layer(
    path: AnyPath, hdus: Any, hdu: Any, survey: Survey, band: Band | None
) -> dict[str, dict[str, _Plane]]:
    """Take the survey's layer of a stack; its other layers and extensions are no error planes."""
    assert survey.layer is not None
    n_layers = hdu.shape[-3] if len(hdu.shape) > 2 else 1
    if survey.layer >= n_layers or math.prod(hdu.shape[:-3]) != 1:
        raise MosaicError(
            f"{path}: shape {tuple(hdu.shape)} has no layer {survey.layer}, which survey "
            f"'{survey.name}' says is the science image"
        )
    if band is None:
        band = _band_of_file(path, survey, hdu.header, hdus[0].header)
    index = (0,) * (len(hdu.shape) - 3) + (survey.layer,) * (len(hdu.shape) > 2)
    return {band.name: {"image": _Plane(hdu, index)}}


def _cube(hdu: Any, survey: Survey) -> tuple[int, ...] | None:
    """The shape, where the image is a plane for each band of the survey."""
    shape = tuple(hdu.shape)
    return shape if len(shape) == 3 and shape[0] == len(survey.bands) > 1 else None


def _flat(path: AnyPath, hdu: Any) -> _Plane:
    """Take the one image of an HDU, or the first layer of a single stack (IMCOM: science)."""
    leading = tuple(hdu.shape[:-2])
    if len(leading) >= 2 and leading[0] == 1:
        return _Plane(hdu, (0,) * len(leading))
    if math.prod(leading) != 1:
        raise MosaicError(
            f"{path}: shape {tuple(hdu.shape)} is neither one image nor one for each band"
        )
    return _Plane(hdu, (0,) * len(leading))


def _merge_parts(groups: dict[tuple[str | None, int], dict[str, Any]]) -> None:
    """Give error planes without a band of their own to the science image they belong to."""
    for key in [key for key, planes in groups.items() if "image" not in planes]:
        homes = [k for k, planes in groups.items() if "image" in planes]
        same = [k for k in homes if k[1] == key[1]]
        home = same if len(same) == 1 else homes
        if len(home) == 1 and key[0] in (None, home[0][0]):
            parts = groups.pop(key)
            groups[home[0]] = {**parts, **groups[home[0]]}


def _role_and_band(hdu: Any, survey: Survey) -> tuple[str | None, str | None]:
    """What an extension is and of which band: by its name, or the FILTER of its own header."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", hdu.name) if word]
    whole = survey.find_band(hdu.name) if hdu.name else None
    if whole is not None:
        return "image", whole.name
    roles = [_ROLES[word.upper()] for word in words if word.upper() in _ROLES]
    bands = [found.name for word in words if (found := survey.find_band(word)) is not None]
    if isinstance(hdu, fits.PrimaryHDU):
        return (roles[0] if roles else "image"), None  # its FILTER is of the whole file
    band = bands[0] if bands else None
    if band is None:
        for _, name in _header_bands(hdu.header):
            found = survey.find_band(name)
            band = band or (found.name if found else None)
    if roles:
        return roles[-1], band
    if bands or not words:
        return "image", band
    return None, None


def _header_bands(*headers: Any) -> list[tuple[str, str]]:
    """(keyword, value) of the keywords that may name a band."""
    return [
        (key, text)
        for header in headers
        for key in _BAND_KEYS
        for text in [str(header.get(key, "")).strip()]
        if not _NO_FILTER.fullmatch(text) and not text.isdigit()
    ]


def _band_of_file(path: AnyPath, survey: Survey, *headers: Any) -> Band:
    stated = _header_bands(*headers)
    for _, name in stated:
        found = survey.find_band(name)
        if found is not None:
            return found
    match = survey.match_mosaic(path.name)
    if match is not None and match[1] is not None:
        return match[1]
    words = re.split(r"[^A-Za-z0-9]+", path.name)
    in_name = {found.name for word in words if (found := survey.find_band(word)) is not None}
    if len(in_name) == 1:
        return survey.band(in_name.pop())
    if stated:
        key, name = stated[0]
        raise ConfigError(
            f"{path}: {key} is '{name}', and the survey '{survey.name}' has no such band"
            f"{did_you_mean(name, survey.band_names)}"
        )
    raise ConfigError(
        f"{path}: neither its header nor its name says its band; give read_tile a mapping "
        f"{{band: path}}, or name the band. Known: {', '.join(survey.band_names)}"
    )


def _wcs(path: AnyPath, hdus: Any, image: Any) -> WCS | None:
    """The celestial WCS of a science image (of the primary header, where it has none)."""
    for header in (image.header, hdus[0].header):
        if "CTYPE1" not in header:
            continue
        # Drizzled mosaics (CANDELS) keep the coefficients of an exposure's distortion, which their
        # pixels no longer have; astropy applies them. The SIP standard wants -SIP in CTYPE.
        if not str(header["CTYPE1"]).strip().upper().endswith("-SIP"):
            header = header.copy()
            for key in ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"):
                header.remove(key, ignore_missing=True)
        wcs = WCS(header, fobj=hdus, naxis=2)
        if wcs.has_celestial:
            return wcs
    return None


def _band_plane(
    path: AnyPath, hdus: Any, survey: Survey, band: Band, planes: dict[str, _Plane]
) -> BandPlane:
    image = planes["image"]
    wcs = _wcs(path, hdus, image.hdu)
    area_arcsec2 = survey.pixel_scale_arcsec**2
    if wcs is not None:
        with naming(path):
            check_frame(wcs)
            area_arcsec2 = pixel_area_arcsec2(wcs, image.shape)
    if not 0 < area_arcsec2 < 1e8:
        raise MosaicError(f"{path}: the WCS gives a pixel of {area_arcsec2} arcsec2")

    def lookup(key: str) -> Any:
        return image.hdu.header.get(key, hdus[0].header.get(key))

    unit = lookup("BUNIT")
    with naming(path):
        scale = njy_per_unit(None if unit is None else str(unit), band, area_arcsec2, lookup)
    if scale is None:
        raise MosaicError(
            f"{path}: no zero point (BUNIT '{unit}', no PHOTFLAM with PHOTPLAM, no MAGZERO); "
            f"set zero_point_ab of {band.name} in the survey '{survey.name}'"
        )
    for role, plane in planes.items():
        if plane.shape != image.shape:
            raise MosaicError(
                f"{path}: the {role} plane has shape {plane.shape}, the image {image.shape}"
            )
    noise = next((role for role in _NOISE_ROLES if role in planes), None)
    factor, notes = 1.0, []
    if noise is None or (noise == "weight" and _is_exposure(planes["weight"], lookup)):
        factor = _noise_scale(image, planes.get("weight"))
        what = "no error plane: one error for all pixels" if noise is None else "exposure weights"
        notes.append(f"{band.name}: {what}; scaled to the clipped MAD of the image")

    def read_rows(i0: int, i1: int) -> Rows:
        try:
            rows = image.rows(i0, i1)
            bad = np.zeros(rows.shape, np.bool_)
            if noise is None:
                err = np.full(rows.shape, factor, np.float32)
            else:
                err, bad = _sigma(noise, planes[noise].rows(i0, i1), factor)
            if "mask" in planes:
                bad |= planes["mask"].rows(i0, i1) != 0
            if "dq" in planes:
                bad |= (planes["dq"].rows(i0, i1).astype(np.int64) & _DO_NOT_USE) != 0
        except DAMAGED as error:
            raise _damaged(path, error) from error
        return rows, err, bad

    one_error = factor if noise is None else None
    return BandPlane(path, band.name, image.shape, wcs, scale, read_rows, tuple(notes), one_error)


def _sigma(
    role: str, values: NDArray[Any], factor: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """1-sigma error and bad pixels of a noise plane."""
    with np.errstate(all="ignore"):
        if role == "err":
            return values, ~(values > 0)
        if role == "variance":
            return np.sqrt(values), ~(values > 0)
    return sigma_from_weight(values, factor), ~(values > 0)


def _is_exposure(weight: _Plane, lookup: Any) -> bool:
    """Whether a weight map is exposure time and not inverse variance.

    The header decides if it says (WHTTYPE, or seconds as BUNIT); else a map whose typical
    weight is within a factor 3 of EXPTIME is taken for exposure time.
    """
    header = weight.hdu.header
    stated = str(header.get("WHTTYPE") or header.get("WHT_TYPE") or lookup("WHTTYPE") or "")
    if stated.strip():
        return stated.strip().upper().startswith("EXP")
    if str(header.get("BUNIT", "")).strip().lower() in ("s", "sec", "second", "seconds"):
        return True
    seconds = lookup("EXPTIME")
    values = np.concatenate([weight.rows(i, i + 1)[0] for i in sample_rows(*weight.shape)])
    values = values[values > 0]
    if not isinstance(seconds, int | float) or not seconds > 0 or not values.size:
        return False
    return bool(1 / 3 < np.median(values) / seconds < 3)


def _noise_scale(image: _Plane, weight: _Plane | None) -> float:
    """Clipped MAD of the image, or of the image times sqrt(weight)."""
    rows = sample_rows(*image.shape)
    sample = np.stack([image.rows(i, i + 1)[0] for i in rows]).astype(np.float64)
    if weight is None:
        return robust_sigma(sample)
    root = np.sqrt(np.stack([np.maximum(weight.rows(i, i + 1)[0], 0) for i in rows]))
    seen = (root > 0) & np.isfinite(sample)
    light = sample[seen & (sample != 0)]
    sky = np.median(light) if light.size else 0.0
    sigma = robust_sigma((sample - sky) * root)
    photons = light.size < _SPARSE * np.count_nonzero(seen) and light.min(initial=0) >= 0
    if photons or not sigma > 0:
        return noise_of(sample[seen] * root[seen])  # photons: exposed pixels without one count too
    return sigma


def _damaged(path: AnyPath, error: BaseException) -> MosaicError:
    detail = " ".join(str(error).split())[:160] or type(error).__name__
    return MosaicError(f"{path}: damaged or not a FITS mosaic ({detail}); copy it again")
