"""Roman L3 mosaics in ASDF, read without the Roman schemas."""

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import asdf
import numpy as np
from asdf.exceptions import AsdfWarning
from asdf.tags.core.ndarray import NDArrayType
from asdf.util import load_yaml
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, MosaicError, did_you_mean
from photozhpc.files.asdf_extensions import load_extensions
from photozhpc.files.objects import AnyPath
from photozhpc.mosaic.band_image import (
    DAMAGED,
    BandPlane,
    Rows,
    damaged,
    naming,
    robust_sigma,
    sample_rows,
    sigma_from_weight,
)
from photozhpc.mosaic.calibration import is_count_rate, njy_per_unit, number
from photozhpc.mosaic.grid import check_frame, check_square, pixel_area_arcsec2
from photozhpc.mosaic.mask_bits import DO_NOT_USE, BadBits, bits_of_roman
from photozhpc.survey import Band, Survey

_BLOCK_MAGIC = b"\xd3BLK"
_INDEX_MAGIC = b"#ASDF BLOCK INDEX"
_MAX_CHAIN = 8  # files whose blocks are in further files
_VARIANCES = ("var_poisson", "var_rnoise", "var_flat", "var_sky")


@contextlib.contextmanager
def open_asdf(
    path: AnyPath, plain: Path, survey: Survey, band: Band | None
) -> Iterator[list[BandPlane]]:
    """Open one band of a Roman L3 mosaic; memory-mapped where it is not compressed.

    Args:
        path: the path that errors name.
        plain: the file, unpacked if need be.
        band: the band it holds; None: as the file says (meta.instrument.optical_element).

    Raises:
        MosaicError: truncated, damaged, or without what a mosaic needs.
        ConfigError: the survey does not have its band.
    """
    with contextlib.ExitStack() as stack:
        try:
            plane = _plane(path, stack.enter_context(opened_tree(path, plain)), survey, band)
        except DAMAGED as error:
            raise damaged(path, "Roman", error) from error
        yield [plane]


@contextlib.contextmanager
def opened_tree(path: AnyPath, plain: Path) -> Iterator[Mapping[str, Any]]:
    """Open an ASDF file, memory-mapped where it is not compressed, and give its tree.

    Raises:
        MosaicError: truncated, damaged, or with data in a file outside its own folder.
        DAMAGED: it cannot be opened, or is not ASDF.
    """
    check_blocks(path, plain)
    with open(plain, "rb") as stream:
        check_outside(path, stream, plain)
    with _reading_tree():
        # As a URI: asdf takes a path for one, and cuts it off at # or ?.
        uri = plain.absolute().as_uri()
        with asdf.open(uri, memmap=True, lazy_load=True, ignore_unrecognized_tag=True) as file:
            yield file.tree


def asdf_grid(path: AnyPath, stream: io.RawIOBase) -> tuple[tuple[int, int], Any]:
    """Read shape and WCS of a mosaic from its tree alone.

    Raises:
        MosaicError: damaged, or without what a mosaic needs.
    """
    with _reading_tree():
        try:
            check_outside(path, stream)
            stream.seek(0)
            with asdf.open(stream, lazy_load=True, ignore_unrecognized_tag=True) as file:
                _, meta, data, _ = _nodes(path, file.tree)
                height, width = (int(n) for n in data.shape)
                wcs = _checked_wcs(path, meta)
                wcs(0.0, 0.0)  # loads what it needs before the file is closed
        except DAMAGED as error:
            raise damaged(path, "Roman", error) from error
    return (height, width), wcs


@contextlib.contextmanager
def _reading_tree() -> Iterator[None]:
    # Roman's tags are not resolved even where roman_datamodels is installed, so that every version
    # of its schemas is read in one way.
    load_extensions()
    with asdf.config_context() as config, warnings.catch_warnings():
        for package in ("roman_datamodels", "rad"):
            config.remove_extension(package=package)
        warnings.simplefilter("ignore", AsdfWarning)
        yield


def check_outside(
    path: AnyPath | str, stream: Any, plain: Path | None = None, seen: frozenset[Path] = frozenset()
) -> None:
    """Make sure that arrays are in the file, or in its folder (an 'exploded' file).

    asdf reads whatever file or URL an array names as its block (ASDF standard, 'External
    arrays'); one that a model of the WCS names, as soon as the file is opened.

    Args:
        plain: the file on this disk; None: a remote file, which may name no other.
        seen: the files that led to this one.

    Raises:
        MosaicError: an array is elsewhere, or cannot be found.
    """
    if len(seen) > _MAX_CHAIN:
        raise MosaicError(f"{path}: its blocks lead from file to file; write it as one file")
    for source in _outside_sources(load_yaml(stream, tagged=True)):
        refusal = MosaicError(
            f"{path}: its data are in another place ('{source}'), and only files in the mosaic's "
            "own folder are read; write the mosaic as one file"
        )
        address = urlsplit(source)
        if plain is None or address.scheme or address.netloc or not address.path:
            raise refusal
        target = (plain.parent / unquote(address.path)).resolve()
        if not target.is_relative_to(plain.parent.resolve()):
            raise refusal
        if not target.is_file():
            raise MosaicError(
                f"{path}: its data are in {target.name}, which is not beside it; copy both"
            )
        if target not in seen:
            check_blocks(target, target)
            with open(target, "rb") as other:
                check_outside(path, other, target, seen | {plain.resolve()})


def _outside_sources(tree: Any) -> Iterator[str]:
    """Yield the files and URLs that arrays in a tree name as their blocks."""
    nodes, seen = [tree], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, Mapping):
            source = node.get("source")
            if "ndarray" in str(getattr(node, "_tag", "")) and isinstance(source, str):
                yield source
            nodes += node.values()
        elif isinstance(node, Sequence) and not isinstance(node, str | bytes):
            nodes += node


def _nodes(
    path: AnyPath, tree: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any], Any, str | None]:
    """Return the nodes 'roman' and 'meta', the image, and its unit."""
    roman = tree.get("roman", tree)
    if not isinstance(roman, Mapping) or "data" not in roman or "meta" not in roman:
        raise MosaicError(f"{path}: not a Roman L3 mosaic: no 'roman' node with 'data' and 'meta'")
    data, unit = _array(roman["data"])
    # The tag, model type and planes of a WFI level-2 image (RAD, wfi_image).
    if (
        "/wfi_image-" in str(getattr(roman, "_tag", ""))
        or roman["meta"].get("model_type") == "ImageModel"
        or "border_ref_pix_left" in roman
    ):
        raise MosaicError(
            f"{path}: is a single exposure (Roman level 2), with the detector's distortion and in "
            "DN/s; give the level-3 mosaic (_coadd.asdf)"
        )
    if len(data.shape) != 2 or 0 in data.shape:
        raise MosaicError(f"{path}: 'data' must have two axes, but has shape {tuple(data.shape)}")
    return roman, roman["meta"], data, unit


def _checked_wcs(path: AnyPath, meta: Mapping[str, Any]) -> Any:
    wcs = meta.get("wcs")
    if wcs is None or isinstance(wcs, Mapping | str):
        raise MosaicError(f"{path}: has no WCS (meta.wcs); make the mosaic again with one")
    with naming(path):
        check_frame(wcs)
    return wcs


def _plane(path: AnyPath, tree: Mapping[str, Any], survey: Survey, band: Band | None) -> BandPlane:
    roman, meta, data, unit = _nodes(path, tree)
    height, width = (int(n) for n in data.shape)
    band = _band(path, meta, survey, band)
    wcs = _checked_wcs(path, meta)
    origin: list[str] = []
    with naming(path):
        area_arcsec2 = pixel_area_arcsec2(wcs, (height, width))
        check_square(wcs, (height, width))
        scale = njy_per_unit(unit or "MJy/sr", band, area_arcsec2, origin=origin)
    if scale is None and is_count_rate(unit):
        # -999999, None or NaN mean 'unknown' (roman_datamodels).
        conversion = meta.get("photometry", {}).get("conversion_megajanskys")
        factor = number(getattr(conversion, "value", conversion))
        mjy_per_sr = njy_per_unit("MJy/sr", band, area_arcsec2)
        scale = mjy_per_sr * factor if mjy_per_sr is not None and factor is not None else None
        origin = ["meta.photometry.conversion_megajanskys"]
    if scale is None:
        raise MosaicError(
            f"{path}: unit '{unit}' has no calibration (counts per second need a positive "
            f"meta.photometry.conversion_megajanskys); set zero_point_ab of {band.name} in the "
            f"survey '{survey.name}'"
        )

    planes = {
        name: _array(roman[name])[0]
        for name in ("err", "weight", "dq", *_VARIANCES)
        if name in roman and roman[name] is not None
    }
    for name, plane in list(planes.items()):
        if tuple(plane.shape) != (height, width):
            if plane.shape and plane.shape[0] != 0:
                raise MosaicError(
                    f"{path}: '{name}' has shape {tuple(plane.shape)}, but 'data' has "
                    f"{(height, width)}; make the mosaic again"
                )
            del planes[name]
    roles = ("image", *(name for name in planes if name not in _VARIANCES or "err" not in planes))
    variances = [planes.pop(name) for name in _VARIANCES if name in planes]
    notes: tuple[str, ...] = ()
    one_error: float | None = None
    if "err" not in planes and not variances and "weight" not in planes:
        rows = sample_rows(height, width)
        one_error = robust_sigma(np.stack([np.asarray(data[i : i + 1])[0] for i in rows]))
        notes = (f"{band.name}: no error plane; one error for all pixels, from the clipped MAD",)

    bits = survey.bad_mask_bits
    bad_bits = BadBits(DO_NOT_USE if bits is None else bits_of_roman(bits, path))

    def read_rows(i0: int, i1: int) -> Rows:
        try:
            image = np.asarray(data[i0:i1])
            bad = None
            if "weight" in planes:
                weight = np.asarray(planes["weight"][i0:i1])
                bad = ~(weight > 0)
            if "dq" in planes:
                flagged = bad_bits.of(np.asarray(planes["dq"][i0:i1]))
                bad = flagged if bad is None else bad | flagged
            if "err" in planes:
                err: NDArray[Any] = np.asarray(planes["err"][i0:i1])
            elif variances:
                err = np.sqrt(sum(np.asarray(v[i0:i1]) for v in variances))
            elif "weight" in planes:
                err = sigma_from_weight(weight)
            else:
                err = np.full(image.shape, one_error, np.float32)
        except DAMAGED as error:
            raise damaged(path, "Roman", error) from error
        return image, err, bad

    shape_HW = (height, width)
    return BandPlane(
        path,
        band.name,
        shape_HW,
        wcs,
        scale,
        read_rows,
        notes,
        one_error,
        roles,
        "".join(origin),
    )


def _array(node: Any) -> tuple[Any, str | None]:
    """Split an array node into its array, which may be lazy, and its unit."""
    if isinstance(node, NDArrayType):  # asking for an attribute that it lacks would read its block
        return node, None
    unit = getattr(node, "unit", None)
    value = getattr(node, "value", node) if unit is not None else node
    if not hasattr(value, "shape"):
        raise ValueError(f"expected an array, got {type(value).__name__}")
    return value, None if unit is None else str(unit)


def _band(path: AnyPath, meta: Mapping[str, Any], survey: Survey, band: Band | None) -> Band:
    """Return `band`, else the band that the metadata state, else the one in the file's name."""
    instrument = meta.get("instrument", {})
    name = str(instrument.get("optical_element") or instrument.get("filter") or "")
    stated = survey.find_band(name)
    if band is not None and stated is not None and stated.name != band.name:
        raise MosaicError(
            f"{path}: is given as {band.name}, but says it is {stated.name}; correct one of the two"
        )
    if (band := band or stated) is not None:
        return band
    if name:
        raise ConfigError(
            f"{path}: its band is '{name}', which the survey '{survey.name}' does not have"
            f"{did_you_mean(name, survey.band_names)}"
        )
    match = survey.match_mosaic(path.name)
    if match is None or match[1] is None:
        raise MosaicError(
            f"{path}: does not say its band (meta.instrument.optical_element); "
            "give read_tile a mapping {band: path}"
        )
    return match[1]


def check_blocks(path: AnyPath, plain: Path) -> None:
    """Walk the binary blocks: a truncated file would fault, or read as zeros, when mapped.

    Raises:
        MosaicError: a block, or the tree before it, extends past the end of the file.
    """
    size = os.path.getsize(plain)
    with open(plain, "rb") as stream:
        text, at = b"", -1
        while at < 0:
            more = stream.read(1 << 20)
            text += more
            at = text.find(b"\n...", max(0, len(text) - len(more) - 8))
            if not more and at < 0:
                raise MosaicError(f"{path}: truncated in its header; copy or download it again")
        at += 4
        stream.seek(at)
        gap = stream.read(65536)
        at += max(gap.find(_BLOCK_MAGIC), 0)
        while True:
            stream.seek(at)
            head = stream.read(54)
            if not head or head.startswith(_INDEX_MAGIC[: len(head)]) or head[:4] == b"\0" * 4:
                return
            if head[:4] != _BLOCK_MAGIC and not _BLOCK_MAGIC.startswith(head):
                if gap.find(_BLOCK_MAGIC) < 0 and not gap.strip():
                    return
                raise MosaicError(
                    f"{path}: damaged at byte {at}, where a data block should begin; "
                    "copy or download it again"
                )
            if len(head) < 54:
                break
            header_size, flags = struct.unpack(">HI", head[4:10])
            allocated, used, _ = struct.unpack(">QQQ", head[14:38])
            if flags & 1:  # streamed: to the end of the file
                return
            if at + 6 + header_size + max(used, 0) > size:
                break
            at += 6 + header_size + allocated
    raise MosaicError(
        f"{path}: truncated: {size} bytes, but a data block extends past the end; "
        "copy or download it again"
    )
