"""The rows of a catalogue as an export reads them: checked, and in the words of a dialect."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from photozhpc.catalog.notes import Due
from photozhpc.catalog.photoz_catalog import (
    PROVENANCE_KEY,
    read_part,
    read_pieces,
    text_length,
)
from photozhpc.catalog.votable import table_description, with_votable
from photozhpc.errors import CatalogError
from photozhpc.export.dialects import Dialect, translate
from photozhpc.files.disk import read_fault
from photozhpc.logs import LOG

Report = Callable[[int, int], None]

TYPES = ("int64", "int32", "double", "float", "string")  # of columns


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
