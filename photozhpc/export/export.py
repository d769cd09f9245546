"""The catalogue as other tools read it: HATS, one VOParquet file, a FITS table, a qp ensemble."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from photozhpc.catalog.notes import PART_FOLDER, PART_KEY, PDF_FOLDER
from photozhpc.catalog.photoz_catalog import SCHEMA_VERSION_KEY, catalog_parts
from photozhpc.errors import CatalogError, ConfigError, did_you_mean
from photozhpc.export.dialects import find_dialect
from photozhpc.export.fits import PROVENANCE, TABLE_NAME, write_fits
from photozhpc.export.rows import CatalogRows, Exported, Report
from photozhpc.export.vo_parquet import write_parquet
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
    progress: Report = lambda done, total: None,
) -> Exported:
    """Write a catalogue in a format of other tools; memory does not grow with its rows.

    An export that stands at `out` is replaced when the new one is complete; nothing else is.

    Args:
        catalog: the --out folder of `photozhpc infer`, its catalog/ folder, or one part.
        to: a format, see `Format`.
        columns: whose names they are to have, see `dialects.DIALECTS`.
        workers: processes, for HATS; default: one a core.
        progress: called with rows done and in all; not for HATS and qp.

    Raises:
        CatalogError: there is no finished catalogue, it is damaged, `out` is one of its files,
            or something else is there.
        ConfigError: unknown format or columns, or a package that is not installed.
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
        from photozhpc.export.qp import export_qp

        return export_qp(catalog, out)
    if to == "hats":
        from photozhpc.export.hats import export_hats

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
        ConfigError: one of the two is not so.
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
    """Check that nothing but an export of the same format is lost where one will stand.

    Raises:
        CatalogError: something else is there.
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
                ours = PROVENANCE in str(header.get("HISTORY", ""))
        elif to == "vo-parquet":
            metadata = pq.read_schema(out).metadata or {}
            ours = SCHEMA_VERSION_KEY in metadata and PART_KEY not in metadata
        elif to == "qp":
            with open(out, "rb") as stream:
                ours = stream.read(len(_QP_MAGIC)) == _QP_MAGIC
        else:
            ours = b"photozhpc" in (out / HATS_PROPERTIES).read_bytes()
    except (OSError, ValueError, pa.ArrowException):
        ours = False
    if not ours:
        raise CatalogError(
            f"{out}: is there already, and no export of photozhpc's to {to}; name another place"
        )


def _check_not_own(out: Path, parts: list[Path]) -> None:
    """Check that an export is not among the files of the catalogue itself.

    Raises:
        CatalogError: it is.
    """
    target, folder = out.resolve(), parts[0].resolve().parent
    own = {part.resolve() for part in parts}
    if folder.name == PART_FOLDER:
        own |= {folder, folder.parent / PDF_FOLDER}
    if own & {target, *target.parents}:
        raise CatalogError(f"{out}: is among the files of the catalogue itself; name another place")
