"""Roman L3 mosaics in ASDF, read without the Roman schemas."""

import contextlib
import io
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asdf
import numpy as np
from asdf.exceptions import AsdfWarning
from asdf.tags.core.ndarray import NDArrayType
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, MosaicError, did_you_mean
from photozhpc.mosaic.calibration import njy_per_unit
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

_BLOCK_MAGIC = b"\xd3BLK"
_INDEX_MAGIC = b"#ASDF BLOCK INDEX"
_DO_NOT_USE = 1  # bit 0 of dq
_VARIANCES = ("var_poisson", "var_rnoise", "var_flat", "var_sky")


@contextlib.contextmanager
def open_asdf(
    path: AnyPath, plain: Path, survey: Survey, band: Band | None
) -> Iterator[list[BandPlane]]:
    """Open one band of a Roman L3 mosaic; memory-mapped where it is not compressed.

    Args:
        path: to show in errors.
        plain: the file, unpacked if need be.
        band: the band it holds; None: as the file says (meta.instrument.optical_element).

    Raises:
        MosaicError: truncated, damaged, or without what a mosaic needs.
        ConfigError: of a band that the survey does not have.
    """
    check_blocks(path, plain)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_reading_tree())
        try:
            file = stack.enter_context(
                asdf.open(plain, memmap=True, lazy_load=True, ignore_unrecognized_tag=True)
            )
            plane = _plane(path, file.tree, survey, band)
        except DAMAGED as error:
            raise _damaged(path, error) from error
        yield [plane]


def asdf_grid(path: AnyPath, stream: io.RawIOBase) -> tuple[tuple[int, int], Any]:
    """Read shape and WCS of a mosaic, of which no more is requested than its tree.

    Raises:
        MosaicError: damaged, or without what a mosaic needs.
    """
    with _reading_tree():
        try:
            with asdf.open(stream, lazy_load=True, ignore_unrecognized_tag=True) as file:
                _, meta, data, _ = _nodes(path, file.tree)
                shape, wcs = tuple(int(n) for n in data.shape), meta.get("wcs")
                wcs = _check_wcs(path, wcs)
                # What it needs of the file has to be there before that is closed.
                wcs(0.0, 0.0)
        except DAMAGED as error:
            raise _damaged(path, error) from error
    return (shape[0], shape[1]), wcs


@contextlib.contextmanager
def _reading_tree() -> Iterator[None]:
    # The Roman tags are left unread even where roman_datamodels is installed: one way to
    # read every version of its schemas.
    with asdf.config_context() as config, warnings.catch_warnings():
        for package in ("roman_datamodels", "rad"):
            config.remove_extension(package=package)
        warnings.simplefilter("ignore", AsdfWarning)
        yield


def _nodes(
    path: AnyPath, tree: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any], Any, str | None]:
    """Return what stands under 'roman' and under 'meta', the image, and its unit."""
    roman = tree.get("roman", tree)
    if not isinstance(roman, Mapping) or "data" not in roman or "meta" not in roman:
        raise MosaicError(f"{path}: not a Roman L3 mosaic: no 'roman' node with 'data' and 'meta'")
    data, unit = _array(roman["data"])
    if len(data.shape) != 2 or 0 in data.shape:
        raise MosaicError(f"{path}: 'data' must have two axes, it has shape {tuple(data.shape)}")
    return roman, roman["meta"], data, unit


def _check_wcs(path: AnyPath, wcs: Any) -> Any:
    if wcs is None or isinstance(wcs, Mapping | str):
        raise MosaicError(f"{path}: has no WCS (meta.wcs); make the mosaic again with one")
    with naming(path):
        check_frame(wcs)
    return wcs


def _plane(path: AnyPath, tree: Mapping[str, Any], survey: Survey, band: Band | None) -> BandPlane:
    roman, meta, data, unit = _nodes(path, tree)
    height, width = (int(n) for n in data.shape)
    band = _band(path, meta, survey, band)
    wcs = _check_wcs(path, meta.get("wcs"))
    with naming(path):
        area_arcsec2 = pixel_area_arcsec2(wcs, (height, width))
        scale = njy_per_unit(unit or "MJy/sr", band, area_arcsec2)
    conversion = meta.get("photometry", {}).get("conversion_megajanskys")
    if scale is None and conversion is not None:
        factor = float(getattr(conversion, "value", conversion))
        scale = njy_per_unit("MJy/sr", band, area_arcsec2)
        scale = None if scale is None else scale * factor
    if scale is None:
        raise MosaicError(
            f"{path}: unit '{unit}' has no calibration; set zero_point_ab of {band.name} in the "
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
                    f"{path}: '{name}' has shape {tuple(plane.shape)}, 'data' {(height, width)}"
                )
            del planes[name]
    variances = [planes.pop(name) for name in _VARIANCES if name in planes]
    notes: tuple[str, ...] = ()
    constant = np.nan
    if "err" not in planes and not variances and "weight" not in planes:
        rows = sample_rows(height, width)
        constant = robust_sigma(np.stack([np.asarray(data[i : i + 1])[0] for i in rows]))
        notes = (f"{band.name}: no error plane; one error for all pixels, from the clipped MAD",)

    def read_rows(i0: int, i1: int) -> Rows:
        try:
            image = np.asarray(data[i0:i1])
            bad = None
            if "weight" in planes:
                weight = np.asarray(planes["weight"][i0:i1])
                bad = ~(weight > 0)
            if "dq" in planes:
                flagged = (np.asarray(planes["dq"][i0:i1]) & _DO_NOT_USE) != 0
                bad = flagged if bad is None else bad | flagged
            if "err" in planes:
                err: NDArray[Any] = np.asarray(planes["err"][i0:i1])
            elif variances:
                err = np.sqrt(sum(np.asarray(v[i0:i1]) for v in variances))
            elif "weight" in planes:
                err = sigma_from_weight(weight)
            else:
                err = np.full(image.shape, constant, np.float32)
        except DAMAGED as error:
            raise _damaged(path, error) from error
        return image, err, bad

    one_error = constant if notes else None
    return BandPlane(path, band.name, (height, width), wcs, scale, read_rows, notes, one_error)


def _array(node: Any) -> tuple[Any, str | None]:
    """Split an array node into its array, which may be lazy, and its unit."""
    if isinstance(node, NDArrayType):  # to ask it for what it has not would read its block
        return node, None
    unit = getattr(node, "unit", None)
    value = getattr(node, "value", node) if unit is not None else node
    if not hasattr(value, "shape"):
        raise ValueError(f"expected an array, got {type(value).__name__}")
    return value, None if unit is None else str(unit)


def _band(path: AnyPath, meta: Mapping[str, Any], survey: Survey, given: Band | None) -> Band:
    """The band that is given, else the one the file says it is, else the one in its name."""
    instrument = meta.get("instrument", {})
    name = str(instrument.get("optical_element") or instrument.get("filter") or "")
    stated = survey.find_band(name)
    if given is not None:
        if stated is not None and stated.name != given.name:
            raise MosaicError(f"{path}: is given as {given.name} and says it is {stated.name}")
        return given
    match = survey.match_mosaic(path.name)
    if stated is not None:
        return stated
    if name:
        raise ConfigError(
            f"{path}: its band is '{name}', and the survey '{survey.name}' has no such band"
            f"{did_you_mean(name, survey.band_names)}"
        )
    if match is None or match[1] is None:
        raise MosaicError(
            f"{path}: does not say its band (meta.instrument.optical_element); "
            "give read_tile a mapping {band: path}"
        )
    return match[1]


def check_blocks(path: AnyPath, plain: Path) -> None:
    """Walk the binary blocks: a file cut short would fault, or read as zeros, when mapped.

    Raises:
        MosaicError: a block, or the tree before it, goes on past the end of the file.
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
        f"{path}: truncated: {size} bytes, and a data block goes on past the end; "
        "copy or download it again"
    )


def _damaged(path: AnyPath, error: BaseException) -> MosaicError:
    detail = " ".join(str(error).split())[:160] or type(error).__name__
    return MosaicError(f"{path}: damaged or not a Roman mosaic ({detail}); copy it again")
