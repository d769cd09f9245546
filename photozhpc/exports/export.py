"""Exports a catalogue for other tools: HATS, one VOParquet file, a FITS table, a qp ensemble."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from photozhpc.catalog.notes import PART_FOLDER, PART_KEY, PDF_FOLDER
from photozhpc.catalog.photoz_catalog import SCHEMA_VERSION_KEY, catalog_parts
from photozhpc.errors import CatalogError, ConfigError, did_you_mean
from photozhpc.exports.dialects import find_dialect
from photozhpc.exports.fits import PROVENANCE, TABLE_NAME, write_fits
from photozhpc.exports.rows import CatalogRows, Exported, OnProgress
from photozhpc.exports.vo_parquet import write_parquet
from photozhpc.files.disk import disk_error, remove_stale_partials, replacing

Format = Literal["hats", "vo-parquet", "fits", "qp"]

_QP_MAGIC = b"\x89HDF"
HATS_PROPERTIES = "collection.properties"
_PACKAGES = {"hats": ("hats_import", "duckdb"), "qp": ("qp",)}


def export(
    catalog: str | Path,
    to: str,
    out: str | Path,
    columns: str = "roman",
    workers: int | None = None,
    progress: OnProgress = lambda done, total: None,
) -> Exported:
    """Write a catalogue in a format of other tools; memory does not grow with its rows.

    A complete new export replaces an older one at `out`; nothing else is replaced.

    Args:
        catalog: the --out folder of `photozhpc infer`, its catalog/ folder, or one part.
        to: a format, see `Format`.
        columns: dialect of the column names, see `dialects.DIALECTS`.
        workers: processes, for HATS; default: one per core.
        progress: called with rows done and in all; not for HATS and qp.

    Raises:
        CatalogError: the catalogue is missing, unfinished or damaged; `out` is one of its files,
            or a file that is no export.
        ConfigError: the format or columns are unknown, or a package is not installed.
        RunError: `out` cannot be written.
    """
    check_format(to)
    dialect, out = find_dialect(columns), Path(out)
    parts = catalog_parts(catalog)
    rows = CatalogRows.of(catalog, parts)
    _check_not_own(out, parts)
    check_target(out, to)
    remove_stale_partials(out.parent, out.name)
    if to == "qp":
        if dialect is not None:
            raise ConfigError(f"a qp ensemble has no {columns} columns; leave --columns out")
        from photozhpc.exports.qp import export_qp

        return export_qp(catalog, out)
    if to == "hats":
        from photozhpc.exports.hats import export_hats

        return export_hats(rows, columns, out, workers)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            write = write_fits if to == "fits" else write_parquet
            write(partial, rows, dialect, progress)
    except OSError as error:
        raise disk_error(out, error) from error
    return Exported(rows.n_rows)


def check_format(to: str) -> None:
    """Check that a format is known, and that its packages are installed.

    Raises:
        ConfigError: it is unknown, or a package is missing.
    """
    if to not in get_args(Format):
        raise ConfigError(f"unknown format '{to}'{did_you_mean(to, get_args(Format))}")
    for package in _PACKAGES.get(to, ()):
        if find_spec(package) is None:
            raise ConfigError(
                f"format {to} needs {package}, which is not installed; "
                f"pip install 'photozhpc[{to}]'"
            )


def check_target(out: Path, to: str) -> None:
    """Check that an export would replace nothing but an export of the same format.

    Raises:
        CatalogError: `out` is something else.
    """
    if not out.exists():
        return
    if to != "hats" and out.is_dir():
        raise CatalogError(f"{out}: is a folder; name a file to write")
    if to != "hats" and out.stat().st_size == 0:
        return
    try:
        if to == "fits":
            with fits.open(out) as hdus:
                header = hdus[TABLE_NAME].header if TABLE_NAME in hdus else {}
                is_export = PROVENANCE in str(header.get("HISTORY", ""))
        elif to == "vo-parquet":
            metadata = pq.read_schema(out).metadata or {}
            is_export = SCHEMA_VERSION_KEY in metadata and PART_KEY not in metadata
        elif to == "qp":
            with open(out, "rb") as stream:
                is_export = stream.read(len(_QP_MAGIC)) == _QP_MAGIC
        else:
            is_export = b"photozhpc" in (out / HATS_PROPERTIES).read_bytes()
    except (OSError, ValueError, pa.ArrowException):
        is_export = False
    if not is_export:
        raise CatalogError(f"{out}: exists and is not an export to {to}; choose another --out")


def _check_not_own(out: Path, parts: list[Path]) -> None:
    """Check that an export would not lie among the files of the catalogue itself.

    Raises:
        CatalogError: it would.
    """
    target, folder = out.resolve(), parts[0].resolve().parent
    catalog_paths = {part.resolve() for part in parts}
    if folder.name == PART_FOLDER:
        catalog_paths |= {folder, folder.parent / PDF_FOLDER}
    if catalog_paths & {target, *target.parents}:
        raise CatalogError(
            f"{out}: is among the files of the catalogue itself; choose another --out"
        )
