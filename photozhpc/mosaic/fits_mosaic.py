"""Mosaics in FITS: one file per band, one extension per band, or a cube; .gz and .fz too."""

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from photozhpc.errors import ConfigError, MosaicError, did_you_mean
from photozhpc.files.fits_length import check_length, unzipped
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.band_image import DAMAGED, BandPlane, Rows, damaged, naming
from photozhpc.mosaic.calibration import njy_per_unit
from photozhpc.mosaic.fits_cube import cube_layers
from photozhpc.mosaic.fits_noise import (
    is_exposure,
    noise_role,
    noise_scale,
    noise_unit,
    note_on_weights,
    sigma_and_bad,
)
from photozhpc.mosaic.fits_plane import FitsPlane, asinh_scale, flat_plane
from photozhpc.mosaic.fits_roles import (
    FILTER_NAME,
    MASK_ROLES,
    PART_OF_VARIANCE,
    header_bands,
    is_image,
    sort_planes,
)
from photozhpc.mosaic.fits_siblings import sibling_paths
from photozhpc.mosaic.fits_wcs import celestial_wcs
from photozhpc.mosaic.grid import check_frame, check_square, pixel_area_arcsec2
from photozhpc.mosaic.mask_bits import bad_bits, known_bits
from photozhpc.survey import Band, Survey


@contextlib.contextmanager
def open_fits(
    path: AnyPath, plain: Path, survey: Survey, band: Band | None
) -> Iterator[list[BandPlane]]:
    """Open every band of the survey that a FITS file holds.

    Args:
        path: the path that errors name, beside which siblings are looked for.
        plain: the file, unpacked if need be.
        band: the band to take from it; None: all its bands, by the names of extensions, the
            headers and the file's name.

    Raises:
        MosaicError: truncated, damaged, uncalibrated, or not a mosaic.
        ConfigError: the survey does not have its band.
    """
    with contextlib.ExitStack() as stack:
        hdus = _open(path, plain, stack)
        try:
            groups = _groups(path, hdus, survey, band)
            if len(groups) == 1:
                ((name, planes_of_one),) = groups.items()
                _add_siblings(path, name, planes_of_one, survey, stack)
            planes = [
                _band_plane(path, hdus, survey, survey.band(name), planes)
                for name, planes in groups.items()
            ]
        except DAMAGED as error:
            raise damaged(path, "FITS", error) from error
        yield planes


def fits_grid(
    path: AnyPath, stream: io.RawIOBase, survey: Survey, band: Band | None
) -> tuple[tuple[int, int], WCS | None]:
    """Read shape and WCS of a mosaic from its headers alone.

    Raises:
        MosaicError, ConfigError: as `open_fits`.
    """
    try:
        with fits.open(stream, memmap=False, lazy_load_hdus=True) as hdus:
            len(hdus)
            image = next(iter(_groups(path, hdus, survey, band).values()))["image"]
            wcs = celestial_wcs(path, hdus, image.hdu)
    except DAMAGED as error:
        raise damaged(path, "FITS", error) from error
    if wcs is not None:
        with naming(path):
            check_frame(wcs)
    return image.shape, wcs


def _open(path: AnyPath, plain: Path, stack: contextlib.ExitStack) -> Any:
    try:
        check_length(plain, path)
        hdus = stack.enter_context(fits.open(plain, memmap=False))
        len(hdus)  # reads every header
    except DAMAGED as error:
        raise damaged(path, "FITS", error) from error
    return hdus


def _add_siblings(
    path: AnyPath,
    band: str,
    planes: dict[str, FitsPlane],
    survey: Survey,
    stack: contextlib.ExitStack,
) -> None:
    """Take noise and mask from files beside the mosaic, where it has none itself."""
    has_mask = bool(set(MASK_ROLES) & set(planes))
    if noise_role(planes) is not None and has_mask:
        return  # without looking for files
    for role, sibling in sibling_paths(path, survey).items():
        if has_mask if role == "mask" else noise_role(planes) is not None:
            continue
        plain = stack.enter_context(unzipped(sibling))
        hdus = _open(sibling, plain, stack)
        images = [hdu for hdu in hdus if is_image(hdu)]
        if not images:
            continue
        if role == "mask":
            headers = (images[0].header, hdus[0].header, planes["image"].hdu.header)
            if known_bits(sibling, role, headers, band, survey.bad_mask_bits) is None:
                planes["image"].notes.append(
                    f"{sibling.name} is not used: nothing says which of its values mean a bad "
                    "pixel (bad_mask_bits)"
                )
                continue
        planes[role] = flat_plane(sibling, images[0])
        if planes[role].shape != planes["image"].shape:
            raise MosaicError(
                f"{sibling}: has shape {planes[role].shape}, the mosaic {path.name} "
                f"{planes['image'].shape}; resample it to the mosaic, or move it elsewhere"
            )


def _groups(
    path: AnyPath, hdus: Any, survey: Survey, band: Band | None
) -> dict[str, dict[str, FitsPlane]]:
    """Sort the image planes of a file: band name -> role -> plane."""
    images = [hdu for hdu in hdus if is_image(hdu)]
    if not images:
        raise MosaicError(f"{path}: holds no image; give a mosaic")
    if survey.layer is not None:
        return _layer(path, hdus, images[0], survey, band)
    groups, passed_over = sort_planes(path, hdus, survey)
    named: dict[str, dict[str, Any]] = {}
    for (name, ver), planes in groups.items():
        if name and "image" in planes:
            if name in named:
                raise MosaicError(
                    f"{path}: has two science images of {name} (one has EXTVER {ver}); write each "
                    "to a file of its own"
                )
            named[name] = planes
    if named:
        if band is not None:
            _check_has(path, band, named)
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
                f"{path}: {len(unnamed)} science images, and none states its band; name the "
                f"extensions by band ({', '.join(survey.band_names)})"
            )
        headers = (unnamed[0]["image"].header, hdus[0].header)
        shape = tuple(unnamed[0]["image"].shape)
        layers, note = cube_layers(path, shape, survey, headers)
        if layers:
            if band is not None:
                _check_has(path, band, layers)
            return {
                name: {
                    role: FitsPlane(hdu, (*(0,) * (len(shape) - 3), c), [note] if note else [])
                    for role, hdu in unnamed[0].items()
                    if tuple(hdu.shape) == shape
                }
                for name, c in layers.items()
                if band is None or name == band.name
            }
        if band is None:
            band = _band_of_file(path, survey, *headers)
        for _, text in header_bands(*headers):
            stated = survey.find_band(text)
            are_filters = FILTER_NAME.fullmatch(text) and FILTER_NAME.fullmatch(band.name)
            if (stated.name if stated else text.upper() if are_filters else band.name) != band.name:
                raise MosaicError(
                    f"{path}: is given as {band.name}, but says it is {text}; correct one of the "
                    "two"
                )
        named = {band.name: unnamed[0]}
    planes_of_band = {
        name: {role: flat_plane(path, hdu) for role, hdu in planes.items()}
        for name, planes in named.items()
    }
    for planes in planes_of_band.values():
        planes["image"].notes += [passed_over] if passed_over else []
    return planes_of_band


def _check_has(path: AnyPath, band: Band, bands: Iterable[str]) -> None:
    if band.name not in bands:
        raise MosaicError(f"{path}: has no {band.name}; it has {', '.join(bands)}")


def _layer(
    path: AnyPath, hdus: Any, hdu: Any, survey: Survey, band: Band | None
) -> dict[str, dict[str, FitsPlane]]:
    """Take the survey's layer of a stack; other layers and extensions are not error planes."""
    assert survey.layer is not None
    n_layers = hdu.shape[-3] if len(hdu.shape) > 2 else 1
    if survey.layer >= n_layers or math.prod(hdu.shape[:-3]) != 1:
        raise MosaicError(
            f"{path}: shape {tuple(hdu.shape)} has no layer {survey.layer}, which is the science "
            f"image of the survey '{survey.name}'; correct `layer` in its YAML file"
        )
    if band is None:
        band = _band_of_file(path, survey, hdu.header, hdus[0].header)
    index = (0,) * (len(hdu.shape) - 3) + (survey.layer,) * (len(hdu.shape) > 2)
    return {band.name: {"image": FitsPlane(hdu, index)}}


def _band_of_file(path: AnyPath, survey: Survey, *headers: Any) -> Band:
    stated = header_bands(*headers)
    for _, name in stated:
        band = survey.find_band(name)
        if band is not None:
            return band
    match = survey.match_mosaic(path.name)
    if match is not None and match[1] is not None:
        return match[1]
    words = re.split(r"[^A-Za-z0-9]+", path.name)
    in_name = {band.name for word in words if (band := survey.find_band(word)) is not None}
    if len(in_name) == 1:
        return survey.band(in_name.pop())
    if stated:
        key, name = stated[0]
        raise ConfigError(
            f"{path}: {key} is '{name}', which the survey '{survey.name}' does not have"
            f"{did_you_mean(name, survey.band_names)}"
        )
    raise ConfigError(
        f"{path}: neither its header nor its name says its band; give read_tile a mapping "
        f"{{band: path}}, or put the band in the name. Known: {', '.join(survey.band_names)}"
    )


def _band_plane(
    path: AnyPath, hdus: Any, survey: Survey, band: Band, planes: dict[str, FitsPlane]
) -> BandPlane:
    image = planes["image"]
    headers = (image.hdu.header, hdus[0].header)
    for plane in planes.values():
        plane.asinh = asinh_scale(path, headers if plane is image else (plane.hdu.header,))
    wcs = celestial_wcs(path, hdus, image.hdu)
    area_arcsec2 = survey.pixel_scale_arcsec**2

    def lookup(key: str) -> Any:
        return headers[0].get(key, headers[1].get(key))

    unit = lookup("BUNIT")
    origin: list[str] = []
    with naming(path):
        if wcs is not None:
            check_frame(wcs)
            area_arcsec2 = pixel_area_arcsec2(wcs, image.shape)
        if not 0 < area_arcsec2 < 1e8:
            raise MosaicError(f"a pixel has {area_arcsec2} arcsec2; correct the WCS")
        if wcs is not None:
            check_square(wcs, image.shape)
        text = None if unit is None else str(unit)
        scale = njy_per_unit(text, band, area_arcsec2, headers, origin)
    if scale is None:
        raise MosaicError(
            f"{path}: no zero point (BUNIT '{unit}', no PHOTFLAM with PHOTPLAM, no MAGZERO); "
            f"set zero_point_ab of {band.name} in the survey '{survey.name}'"
        )
    for role, plane in planes.items():
        if plane.shape != image.shape:
            raise MosaicError(
                f"{path}: the {role} plane has shape {plane.shape}, but the image has "
                f"{image.shape}; remove the plane, or resample it"
            )
    noise = noise_role(planes)
    noise_planes = [planes[noise]] if noise in planes else []
    if noise == "variance" and not noise_planes:
        noise_planes = [p for role, p in planes.items() if role.startswith(PART_OF_VARIANCE)]
    notes = [f"{band.name}: {note}" for note in image.notes]
    if image.asinh is not None:
        notes.append(f"{band.name}: pixels on an asinh scale (BSOFTEN, BOFFSET) made linear")
    if noise is None or (noise == "weight" and is_exposure(planes["weight"], lookup)):
        factor = noise_scale(image, planes.get("weight"))
        how = "no error plane: one error for all pixels" if noise is None else "exposure weights"
        notes.append(f"{band.name}: {how}; scaled to the clipped MAD of the image")
    else:
        factor = noise_unit(noise, noise_planes[0], unit, area_arcsec2)
        if noise == "weight":
            scatter = noise_scale(image, planes["weight"]) / factor
            notes += note_on_weights(band, scatter)
    masks = []
    for name, mask in planes.items():
        role = name.split()[0]
        if role in MASK_ROLES:
            mask_headers, bits = (mask.hdu.header, *headers), survey.bad_mask_bits
            masks.append((mask, bad_bits(path, mask, role, mask_headers, image, band.name, bits)))
    notes += [f"{band.name}: {bad.note}" for _, bad in masks if bad.note]

    def read_rows(i0: int, i1: int) -> Rows:
        try:
            rows = image.rows(i0, i1)
            bad = np.zeros(rows.shape, np.bool_)
            if noise is None:
                err = np.full(rows.shape, factor, np.float32)
            else:
                first, *others = (plane.rows(i0, i1) for plane in noise_planes)
                err, bad = sigma_and_bad(noise, sum(others, first), factor)
            for mask, bad_values in masks:
                bad |= bad_values.of(mask.rows(i0, i1))
        except DAMAGED as error:
            raise damaged(path, "FITS", error) from error
        return rows, err, bad

    one_error = factor if noise is None else None
    used_planes = [image, *noise_planes, *(mask for mask, _ in masks)]
    roles = tuple(r for r, plane in planes.items() if any(plane is used for used in used_planes))
    return BandPlane(
        path,
        band.name,
        image.shape,
        wcs,
        scale,
        read_rows,
        tuple(notes),
        one_error,
        roles,
        "".join(origin),
    )
