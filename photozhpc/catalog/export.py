"""The catalogue as other tools read it: HATS, one VOParquet file, a FITS table, a qp ensemble."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits

from photozhpc.catalog.dialects import Dialect, find_dialect, translate, translated_schema
from photozhpc.catalog.notes import PART_FOLDER, PART_KEY, PDF_FOLDER, Due
from photozhpc.catalog.photoz_catalog import (
    PROVENANCE_KEY,
    SCHEMA_VERSION_KEY,
    TEXT_LENGTH_KEY,
    catalog_parts,
    check_n_rows,
    read_part,
    read_pieces,
    text_length,
)
from photozhpc.catalog.votable import table_description, with_votable
from photozhpc.disk import disk_error, read_fault, remove_stale_partials, replacing
from photozhpc.errors import CatalogError, ConfigError, did_you_mean
from photozhpc.logs import LOG

Format = Literal["hats", "vo-parquet", "fits", "qp"]
Report = Callable[[int, int], None]

_QP_MAGIC = b"\x89HDF"
FITS_NAME = "PHOTOZ"  # of the table
FITS_PROVENANCE = "photozhpc provenance:"  # begins its HISTORY
HATS_PROPERTIES = "collection.properties"
TYPES = ("int64", "int32", "double", "float", "string")  # of columns
_PACKAGES = {"hats": ("hats_import", "duckdb"), "qp": ("qp",)}

# Rows of a row group, for files that stand for a whole catalogue: a part may have few.
ROW_GROUP_LEN = 1 << 17


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        rows: in the new file or folder.
        left_out: rows that have no place in it; `why` says why.
    """

    rows: int
    left_out: int = 0
    why: str = ""


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
    schema = checked_schema(parts)
    check_n_rows(catalog, count_rows(parts))
    _check_not_own(out, parts)
    check_target(out, to)
    remove_stale_partials(out.parent, out.name)
    if to == "qp":
        if dialect is not None:
            raise ConfigError(f"a qp ensemble has no {columns} columns; leave --columns out")
        from photozhpc.catalog.export_qp import export_qp

        ensemble = export_qp(catalog, out)
        return Exported(ensemble.n_rows, ensemble.n_left_out, "have no redshift")
    if to == "hats":
        from photozhpc.catalog.export_hats import export_hats

        return export_hats(parts, translated_schema(schema, dialect), columns, out, workers)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            if to == "fits":
                from photozhpc.catalog.export_fits import write_fits

                n_rows = write_fits(partial, parts, schema, dialect, progress)
            else:
                n_rows = _write_parquet(partial, parts, schema, dialect, progress)
    except OSError as error:
        raise disk_error(out, error) from error
    return Exported(n_rows)


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
                header = hdus[FITS_NAME].header if FITS_NAME in hdus else {}
                ours = FITS_PROVENANCE in str(header.get("HISTORY", ""))
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


def checked_schema(parts: list[Path]) -> pa.Schema:
    """Return the schema that all parts share, with the first one's metadata and its own VOTable.

    Raises:
        CatalogError: a part is damaged, of another catalogue, or none of photozhpc's.
    """
    first = read_part(parts[0], columns=[]).schema
    schema = _schema_of(parts[0])
    missing = {"source_id", "ra", "dec", "tile_id", "photoz"} - set(schema.names)
    if missing or not all(b"ucd" in (field.metadata or {}) for field in schema):
        what = f"has no column '{min(missing)}'" if missing else "says nothing of its columns"
        raise CatalogError(
            f"{parts[0]}: {what}: it is no catalogue of 'photozhpc infer' with columns as they "
            f"were made"
        )
    for field in schema:
        if str(field.type) not in TYPES:
            raise CatalogError(
                f"{parts[0]}: column '{field.name}' is of type {field.type}: exports take columns "
                f"as they were made"
            )
    due = Due.beside(parts[0])
    for part in parts[1:]:
        if not _schema_of(part).equals(schema):
            raise CatalogError(f"{part}: has other columns than {parts[0].name}")
    if due.run is not None and (unknown := [part for part in parts if due.note(part) is None]):
        LOG.warning(
            "nothing was noted of %s (%d of %d parts): values cannot be checked; run the same "
            "'photozhpc infer' again to note them",
            unknown[0],
            len(unknown),
            len(parts),
        )
    # Columns may have been left out since: the VOTable in the file says what once was there.
    return with_votable(schema.with_metadata(first.metadata), table_description(first))


def read_rows(
    parts: list[Path], dialect: Dialect | None, progress: Report, n_rows: int
) -> Iterator[pa.Table]:
    """Yield the rows of a catalogue, row group by row group, in the words of a dialect.

    Raises:
        CatalogError: a part is missing or damaged, has other columns than the first, or another
            SHA-256 than was noted.
    """
    done, due = 0, Due.beside(parts[0])
    for part in parts:
        for table in read_pieces(part, due=due, verify=True):
            done += len(table)
            yield translate(table, dialect)
            progress(done, n_rows)


def count_rows(parts: list[Path]) -> int:
    """Return the number of rows, as the footers of the files say it."""
    return sum(_metadata_of(part).num_rows for part in parts)


def widest_text(parts: list[Path], schema: pa.Schema) -> int:
    """Return the length of the longest text in any column, in bytes."""
    names = [field.name for field in schema if field.type == pa.string()]
    due = Due.beside(parts[0])
    return max(
        text_length(column)
        for part in parts
        for table in read_pieces(part, names, due)
        for column in table.columns
    )


def provenance(schema: pa.Schema) -> str:
    """Return what a catalogue says of its making, as JSON."""
    return (schema.metadata or {}).get(PROVENANCE_KEY, b"{}").decode()


def _write_parquet(
    path: Path, parts: list[Path], schema: pa.Schema, dialect: Dialect | None, progress: Report
) -> int:
    n_rows = count_rows(parts)
    settings = {"compression": "zstd", "use_dictionary": ["tile_id"], "write_page_checksum": True}
    target = translated_schema(schema, dialect)
    length = str(widest_text(parts, schema)).encode()
    target = target.with_metadata({**target.metadata, TEXT_LENGTH_KEY: length})
    with pq.ParquetWriter(path, target, **settings) as writer:
        waiting: list[pa.Table] = []
        for table in read_rows(parts, dialect, progress, n_rows):
            waiting.append(table.cast(target))
            if sum(map(len, waiting)) >= ROW_GROUP_LEN:
                writer.write_table(pa.concat_tables(waiting), ROW_GROUP_LEN)
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting), ROW_GROUP_LEN)
    return n_rows


def _metadata_of(part: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(part)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(part, error) from error


def _schema_of(part: Path) -> pa.Schema:
    try:
        return pq.read_schema(part)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(part, error) from error


def _damaged(part: Path, error: Exception) -> CatalogError:
    return CatalogError(
        read_fault(part, error)
        or f"{part}: the part is missing or damaged; run the same 'photozhpc infer' again to make "
        f"it anew"
    )
