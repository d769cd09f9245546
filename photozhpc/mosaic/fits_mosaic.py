"""Mosaics in FITS: one file a band, an extension a band, or a cube; .gz and .fz too."""

import contextlib
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, MosaicError, did_you_mean
from photozhpc.files.disk import read_fault
from photozhpc.files.fits_length import check_length, unzipped
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.band_image import (
    DAMAGED,
    BandPlane,
    Rows,
    naming,
    robust_sigma,
    sample_rows,
    sigma_from_weight,
)
from photozhpc.mosaic.blank import noise_of
from photozhpc.mosaic.calibration import njy_of_noise, njy_per_unit, number
from photozhpc.mosaic.fits_roles import (
    FILTER_NAME,
    MASK_ROLES,
    NOISE_ROLES,
    PART_OF_VARIANCE,
    header_bands,
    is_image,
    sort_planes,
)
from photozhpc.mosaic.fits_siblings import sibling_paths
from photozhpc.mosaic.grid import check_frame, check_square, pixel_area_arcsec2
from photozhpc.mosaic.mask_bits import bad_bits, known_bits
from photozhpc.survey import Band, Survey

_DISTORTED = ("-TPV", "-TNX", "-ZPX", "-TPD", "-TPU")  # projections of polynomials
_ASINH_MAG = 2.5 * math.log10(math.e)  # of a step of e in flux: pixels of Pan-STARRS' stacks
# The scatter of pixels, in the sigma that weights say: outside it is told. Resampling makes the
# scatter up to 3 times smaller (drizzle: Casertano et al. 2000, appendix A).
_SCATTER_RANGE = (0.2, 2.5)
_MIN_UNPACKED_PIXELS = 1 << 17  # of a compressed plane
_MAX_KEPT_BYTES = 16 << 20  # of the tiles of a compressed plane that was read to its end
_SPARSE = 0.8  # of the exposed pixels have light: fewer, and their zeros are data


@dataclass
class _Plane:
    """An image HDU, or one layer of it."""

    hdu: Any
    layer: tuple[int, ...] = ()
    notes: list[str] = field(default_factory=list)
    asinh: tuple[float, float] | None = None  # BSOFTEN, BOFFSET; None: pixels are linear
    _first: int = field(default=0, init=False)
    _unpacked: NDArray[Any] | None = field(default=None, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        height, width = self.hdu.shape[-2:]
        return int(height), int(width)

    def rows(self, i0: int, i1: int) -> NDArray[Any]:
        rows = self._stored_rows(i0, i1)
        if self.asinh is None:
            return rows
        softening, offset = self.asinh
        with np.errstate(over="ignore"):
            return offset + 2 * softening * np.sinh(rows.astype(np.float64) / _ASINH_MAG)

    def _stored_rows(self, i0: int, i1: int) -> NDArray[Any]:
        if not isinstance(self.hdu, fits.CompImageHDU):
            return self._section(i0, i1)
        # The tiles that hold a row are unpacked as a whole: they are kept for the next rows. Low
        # ones many at a time, as it costs more to ask for a row than to unpack it.
        tile_height = self.hdu.tile_shape[-2]
        tile_height *= max(1, _MIN_UNPACKED_PIXELS // (self.shape[1] * tile_height))
        kept = self._unpacked
        if kept is None or not self._first <= i0 <= i1 <= self._first + len(kept):
            self._unpacked = kept = None  # before the next ones need the memory
            self._first = i0 // tile_height * tile_height
            kept = self._section(
                self._first, min(-(-i1 // tile_height) * tile_height, self.shape[0])
            )
        rows = kept[i0 - self._first : i1 - self._first]
        done = i1 == self.shape[0] and kept.nbytes > _MAX_KEPT_BYTES
        self._unpacked = None if done else kept
        return rows

    def _section(self, i0: int, i1: int) -> NDArray[Any]:
        return np.asarray(self.hdu.section[(*self.layer, slice(i0, i1), slice(None))])


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
            if len(groups) == 1:
                ((name, planes_of_one),) = groups.items()
                _add_siblings(path, name, planes_of_one, survey, stack)
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
            wcs = celestial_wcs(path, hdus, image.hdu)
    except DAMAGED as error:
        raise _damaged(path, error) from error
    if wcs is not None:
        with naming(path):
            check_frame(wcs)
    return image.shape, wcs


def _open(path: AnyPath, plain: Path, stack: contextlib.ExitStack) -> Any:
    try:
        check_length(plain, path)
        hdus = stack.enter_context(fits.open(plain, memmap=False))
        len(hdus)  # reads every header now; `section` reads rows, and scales them
    except DAMAGED as error:
        raise _damaged(path, error) from error
    return hdus


def _add_siblings(
    path: AnyPath,
    band: str,
    planes: dict[str, _Plane],
    survey: Survey,
    stack: contextlib.ExitStack,
) -> None:
    """Take noise and mask from files beside the mosaic, where it has none of its own."""
    has_mask = bool(set(MASK_ROLES) & set(planes))
    if _noise_role(planes) is not None and has_mask:
        return
    for role, sibling in sibling_paths(path, survey).items():
        if has_mask if role == "mask" else _noise_role(planes) is not None:
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
                    f"{sibling.name} is not used: nothing says which of its values are bad "
                    "(bad_mask_bits)"
                )
                continue
        planes[role] = _flat(sibling, images[0])
        if planes[role].shape != planes["image"].shape:
            raise MosaicError(
                f"{sibling}: has shape {planes[role].shape}, the mosaic {path.name} "
                f"{planes['image'].shape}; resample it to the mosaic, or move it elsewhere"
            )


def _noise_role(planes: dict[str, _Plane]) -> str | None:
    """Return the role of the plane that the errors are from; parts of a variance come last."""
    parts = [role for role in planes if role.startswith(PART_OF_VARIANCE)]
    return next((role for role in NOISE_ROLES if role in planes), "variance" if parts else None)


def _groups(
    path: AnyPath, hdus: Any, survey: Survey, band: Band | None
) -> dict[str, dict[str, _Plane]]:
    """Sort the image planes of a file: band name -> role -> plane."""
    images = [hdu for hdu in hdus if is_image(hdu)]
    if not images:
        raise MosaicError(f"{path}: holds no image")
    if survey.layer is not None:
        return _layer(path, hdus, images[0], survey, band)
    groups, passed_over = sort_planes(path, hdus, survey)
    named: dict[str, dict[str, Any]] = {}
    for (name, ver), planes in groups.items():
        if name and "image" in planes:
            if name in named:
                raise MosaicError(
                    f"{path}: has two science images of {name} (EXTVER {ver} is one); give one "
                    "file for each"
                )
            named[name] = planes
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
        headers = (unnamed[0]["image"].header, hdus[0].header)
        shape = tuple(unnamed[0]["image"].shape)
        layers, note = _cube(path, shape, survey, headers)
        if layers:
            if band is not None and band.name not in layers:
                raise MosaicError(f"{path}: has no {band.name}; it has {', '.join(layers)}")
            return {
                name: {
                    role: _Plane(hdu, (*(0,) * (len(shape) - 3), c), [note] if note else [])
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
            known = FILTER_NAME.fullmatch(text) and FILTER_NAME.fullmatch(band.name)
            if (stated.name if stated else text.upper() if known else band.name) != band.name:
                raise MosaicError(f"{path}: is given as {band.name} and says it is {text}")
        named = {band.name: unnamed[0]}
    found = {
        name: {role: _flat(path, hdu) for role, hdu in planes.items()}
        for name, planes in named.items()
    }
    for planes in found.values():
        planes["image"].notes += [passed_over] if passed_over else []
    return found


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


def _cube(
    path: AnyPath, shape: tuple[int, ...], survey: Survey, headers: Sequence[fits.Header]
) -> tuple[dict[str, int], str]:
    """Say which layer of a cube is which of the survey's bands, with a note if that is a guess.

    By the header's cards (BANDS = 'grz', BAND0 = 'g' ...); without them, a cube of as many
    layers as the survey has bands is in the survey's order. Empty: no cube.

    Raises:
        MosaicError: the cards contradict one another or the cube, or no card says what is what and
            something says that the layers are not the survey's bands in order.
        ConfigError: none of the bands is one of the survey's.
    """
    n_layers = shape[-3] if len(shape) > 2 else 1
    if n_layers == 1 or math.prod(shape[:-3]) != 1:
        return {}, ""
    names = _layer_names(path, n_layers, headers)
    if names:
        found = [survey.find_band(name) for name in names]
        layers = {band.name: c for c, band in enumerate(found) if band is not None}
        if not layers:
            raise ConfigError(
                f"{path}: its layers are {', '.join(names)}, and the survey '{survey.name}' has "
                f"no such band{did_you_mean(names[0], survey.band_names)}"
            )
        if len(layers) < sum(band is not None for band in found):
            raise MosaicError(f"{path}: two of its layers are of one band ({', '.join(names)})")
        return layers, ""
    if len(shape) != 3 or n_layers != len(survey.bands):
        return {}, ""
    advice = f"say which layer is which in cards BAND1 to BAND{n_layers}"
    axis = str(next((h["CTYPE3"] for h in headers if h.get("CTYPE3")), ""))
    if re.match(r"STOKES|V(ELO|RAD|OPT|ELO-)|TIME|UTC|TAI", axis, re.IGNORECASE):
        raise MosaicError(f"{path}: CTYPE3 is '{axis}', so its layers are no bands; {advice}")
    bands = (survey.find_band(text) for _, text in header_bands(*headers))
    stated = dict.fromkeys(band.name for band in bands if band is not None)
    if set(stated) - {survey.bands[0].name}:  # a stack of images has the header of the first
        raise MosaicError(
            f"{path}: has {n_layers} layers, and its header says {', '.join(stated)}; {advice}"
        )
    order = ", ".join(survey.band_names)
    note = f"no card says which layer of {path.name} is which band: taken in the order {order}"
    return {name: c for c, name in enumerate(survey.band_names)}, note


def _layer_names(path: AnyPath, n_layers: int, headers: Sequence[fits.Header]) -> list[str]:
    """What the header's cards call the layers of a cube; empty: nothing.

    Legacy Surveys' cutouts have BANDS and BAND0, BAND1 ... (legacysurvey.org, viewer's cutouts);
    others count from 1, or call it FILTERn.
    """
    found: dict[str, list[str]] = {}
    for header in headers:
        together = header.get("BANDS") or header.get("FILTERS")
        if isinstance(together, str) and together.strip():
            words = re.findall(r"[^\s,;:|/'\"\[\]()]+", together)
            one = len(words) == 1 and len(words[0]) == n_layers
            found["BANDS"] = list(words[0]) if one else words
        for key in ("BAND", "FILTER", "PLANE", "LAYER", "CHAN", "FILT"):
            first = 0 if f"{key}0" in header else 1
            cards = [header.get(f"{key}{c}") for c in range(first, first + n_layers)]
            if all(isinstance(card, str) and card.strip() for card in cards):
                found[f"{key}{first} ..."] = [card.strip() for card in cards]
        if found:
            break
    lists = list(found.values())
    if any(len(names) != n_layers or names != lists[0] for names in lists):
        shown = "; ".join(f"{key}: {' '.join(names)}" for key, names in found.items())
        raise MosaicError(
            f"{path}: its cards do not say which of {n_layers} layers is which band ({shown}); "
            "correct them"
        )
    return lists[0] if lists else []


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


def _band_of_file(path: AnyPath, survey: Survey, *headers: Any) -> Band:
    stated = header_bands(*headers)
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


def celestial_wcs(path: AnyPath, hdus: Any, image: Any) -> WCS | None:
    """The celestial WCS of a science image (of the primary header, where it has none)."""
    for header in (image.header, hdus[0].header):
        if "CTYPE1" not in header:
            continue
        # Drizzled mosaics (CANDELS) keep the coefficients of an exposure's distortion, which their
        # pixels no longer have; astropy applies them. The SIP standard wants -SIP in CTYPE.
        header = header.copy()
        if not str(header["CTYPE1"]).strip().upper().endswith("-SIP"):
            for key in ("A_ORDER", "B_ORDER", "AP_ORDER", "BP_ORDER"):
                header.remove(key, ignore_missing=True)
        _name_tpv(path, header)
        wcs = WCS(header, fobj=hdus, naxis=2)
        if wcs.has_celestial:
            return wcs
    return None


def _name_tpv(path: AnyPath, header: fits.Header) -> None:
    """Call the projection of SCAMP's headers by its name, TPV.

    SCAMP writes its polynomial as PVi_m under -TAN. astropy finds it by terms above the fourth
    (Shupe et al. 2012, section 7), so not where it is linear. -TAN has no PV of the latitude
    (Calabretta & Greisen 2002, section 5.1.3): where there is one, it is SCAMP's. Under -TAN-SIP
    (PTF) it is the same distortion for a second time.

    Raises:
        MosaicError: the declination comes first: wcslib swaps the axes of a distortion then.
    """
    types = {axis: str(header.get(f"CTYPE{axis}", "")).strip().upper() for axis in (1, 2)}
    latitude = next((axis for axis, name in types.items() if "LAT" in name or "DEC" in name), 2)
    values = [header[key] for key in header[f"PV{latitude}_*"]]
    is_scamp = any(isinstance(value, int | float) and value for value in values)
    for axis, name in types.items() if is_scamp else ():
        if name.endswith("-TAN-SIP"):
            for key in list(header[f"PV{axis}_*"]):
                del header[key]
        elif name.endswith("-TAN"):
            header[f"CTYPE{axis}"] = f"{name[:-4]}-TPV"
            header.setdefault(f"PV{axis}_1", 1.0)
    if latitude == 1 and header["CTYPE1"].strip().endswith(_DISTORTED):
        raise MosaicError(
            f"{path}: the WCS ({header['CTYPE1']}, {header['CTYPE2']}) has the declination first, "
            "which no library reads right; write the right ascension first"
        )


def _band_plane(
    path: AnyPath, hdus: Any, survey: Survey, band: Band, planes: dict[str, _Plane]
) -> BandPlane:
    image = planes["image"]
    headers = (image.hdu.header, hdus[0].header)
    for role, plane in planes.items():
        own = (plane.hdu.header,)
        plane.asinh = _asinh_scale(path, headers if role == "image" else own)
    wcs = celestial_wcs(path, hdus, image.hdu)
    area_arcsec2 = survey.pixel_scale_arcsec**2
    if wcs is not None:
        with naming(path):
            check_frame(wcs)
            area_arcsec2 = pixel_area_arcsec2(wcs, image.shape)
    if not 0 < area_arcsec2 < 1e8:
        raise MosaicError(f"{path}: the WCS gives a pixel of {area_arcsec2} arcsec2")
    if wcs is not None:
        with naming(path):
            check_square(wcs, image.shape)

    def lookup(key: str) -> Any:
        return headers[0].get(key, headers[1].get(key))

    unit = lookup("BUNIT")
    with naming(path):
        scale = njy_per_unit(None if unit is None else str(unit), band, area_arcsec2, headers)
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
    noise = _noise_role(planes)
    noise_planes = [planes[noise]] if noise in planes else []
    if noise == "variance" and not noise_planes:
        noise_planes = [p for role, p in planes.items() if role.startswith(PART_OF_VARIANCE)]
    factor = 1.0
    notes = [f"{band.name}: {note}" for note in image.notes]
    if image.asinh is not None:
        notes.append(f"{band.name}: pixels on an asinh scale (BSOFTEN, BOFFSET) made linear")
    if noise is None or (noise == "weight" and _is_exposure(planes["weight"], lookup)):
        factor = _noise_scale(image, planes.get("weight"))
        what = "no error plane: one error for all pixels" if noise is None else "exposure weights"
        notes.append(f"{band.name}: {what}; scaled to the clipped MAD of the image")
    else:
        factor = _noise_unit(noise, noise_planes[0], unit, area_arcsec2)
        if noise == "weight":
            scatter = _noise_scale(image, planes["weight"]) / factor
            notes += _note_on_weights(band, scatter)
    masks = []
    for name, mask in planes.items():
        role = name.split()[0]
        if role in MASK_ROLES:
            about, wanted = (mask.hdu.header, *headers), survey.bad_mask_bits
            masks.append((mask, bad_bits(path, mask, role, about, image, band.name, wanted)))
    notes += [f"{band.name}: {bits.note}" for _, bits in masks if bits.note]

    def read_rows(i0: int, i1: int) -> Rows:
        try:
            rows = image.rows(i0, i1)
            bad = np.zeros(rows.shape, np.bool_)
            if noise is None:
                err = np.full(rows.shape, factor, np.float32)
            else:
                first, *others = (plane.rows(i0, i1) for plane in noise_planes)
                err, bad = _sigma(noise, sum(others, first), factor)
            for mask, bits in masks:
                bad |= bits.of(mask.rows(i0, i1))
        except DAMAGED as error:
            raise _damaged(path, error) from error
        return rows, err, bad

    one_error = factor if noise is None else None
    masked = [mask for mask, _ in masks]
    roles = tuple(
        role
        for role, plane in planes.items()
        if plane is image or any(plane is used for used in (*noise_planes, *masked))
    )
    return BandPlane(
        path, band.name, image.shape, wcs, scale, read_rows, tuple(notes), one_error, roles
    )


def _asinh_scale(path: AnyPath, headers: Sequence[fits.Header]) -> tuple[float, float] | None:
    """BSOFTEN and BOFFSET of a Pan-STARRS stack, whose pixels are asinh magnitudes.

    flux = BOFFSET + BSOFTEN * 2 sinh(pixel / 2.5 log10(e)) (MAST, PS1 Stack images).

    Raises:
        MosaicError: only one of them is there, or they are no numbers.
    """
    for header in headers:
        found = header.get("BSOFTEN"), header.get("BOFFSET")
        if found == (None, None):
            continue
        softening, offset = number(found[0]), found[1]
        if softening is None or not isinstance(offset, int | float) or not math.isfinite(offset):
            raise MosaicError(
                f"{path}: pixels on an asinh scale, with BSOFTEN {found[0]} and BOFFSET {found[1]};"
                " make them linear first"
            )
        return softening, float(offset)
    return None


def _sigma(
    role: str, values: NDArray[Any], factor: float
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """1-sigma error and bad pixels of a noise plane."""
    with np.errstate(all="ignore"):
        if role in ("err", "variance"):
            sigma = values if role == "err" else np.sqrt(values)
            return sigma if factor == 1 else sigma * factor, ~(values > 0)
    return sigma_from_weight(values, factor), ~(values > 0)


def _noise_unit(role: str, plane: _Plane, unit: Any, pixel_area_arcsec2: float) -> float:
    """Units of the image per unit of its error, where both planes state a flux density."""
    power = {"err": 1.0, "variance": 2.0}.get(role, -2.0)
    stated = plane.hdu.header.get("BUNIT")
    of_noise = njy_of_noise(str(stated or ""), power, pixel_area_arcsec2)
    of_image = njy_of_noise(str(unit or ""), 1.0, pixel_area_arcsec2)
    if of_noise is None or of_image is None or math.isclose(of_noise, of_image, rel_tol=1e-6):
        return 1.0
    return of_noise / of_image


def _note_on_weights(band: Band, scatter: float) -> list[str]:
    """Note where weights are not 1 / sigma^2, as SWarp's may be relative.

    Args:
        scatter: of the image times the root of the weights, which should be 1.
    """
    low, high = _SCATTER_RANGE
    if not 0 < scatter < math.inf or low < scatter < high:
        return []
    return [
        f"{band.name}: the weights, taken as 1 / sigma^2, say an error {1 / scatter:.2g} times the "
        "scatter of the image; scale them if they are relative"
    ]


def _is_exposure(weight: _Plane, lookup: Any) -> bool:
    """Whether a weight map is exposure time and not inverse variance.

    The header decides if it says (WHTTYPE, or seconds as BUNIT); else a map whose typical
    weight is within a factor 3 of EXPTIME is taken for exposure time, and one of 0 and 1 too.
    """
    header = weight.hdu.header
    stated = str(header.get("WHTTYPE") or header.get("WHT_TYPE") or lookup("WHTTYPE") or "")
    if stated.strip():
        return stated.strip().upper().startswith("EXP")
    if str(header.get("BUNIT", "")).strip().lower() in ("s", "sec", "second", "seconds"):
        return True
    seconds = number(lookup("EXPTIME"))
    values = np.concatenate([weight.rows(i, i + 1)[0] for i in sample_rows(*weight.shape)])
    values = values[values > 0]
    if values.size and (values == 1).all():
        return True
    if seconds is None or not values.size:
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
    return MosaicError(
        read_fault(path, error) or f"{path}: damaged or not a FITS mosaic ({detail}); copy it again"
    )
