"""The rows of a catalogue as an export reads them: checked, and in the words of a dialect."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.part_file import PROVENANCE_KEY, read_footer
from photozhpc.catalog.photoz_catalog import check_n_rows, read_part, read_pieces, text_length
from photozhpc.catalog.votable import table_description, with_votable
from photozhpc.errors import CatalogError
from photozhpc.export.dialects import Dialect, translate
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


@dataclass(frozen=True)
class CatalogRows:
    """The rows of a catalogue, part by part.

    Attributes:
        parts: its files.
        schema: that all of them share, with the first one's metadata and a VOTable of its own.
        noted: of them.
        n_rows: of all, as the footers say.
    """

    parts: list[Path]
    schema: pa.Schema
    noted: RunNotes
    n_rows: int

    @classmethod
    def of(cls, catalog: str | Path, parts: list[Path]) -> "CatalogRows":
        """Look at the footers of the parts.

        Raises:
            CatalogError: a part is damaged, of another catalogue, or none of photozhpc's; or the
                parts have other rows than the run made.
        """
        noted = RunNotes.beside(parts[0])
        first = read_part(parts[0], [], noted).schema
        schema, n_rows = read_footer(parts[0])
        _check_columns(parts[0], schema)
        for part in parts[1:]:
            other, n_more = read_footer(part)
            if not other.equals(schema):
                raise CatalogError(f"{part}: has other columns than {parts[0].name}")
            n_rows += n_more
        check_n_rows(catalog, n_rows)
        unknown = [part for part in parts if noted.note(part) is None]
        if noted.run is not None and unknown:
            LOG.warning(
                "nothing was noted of %s (%d of %d parts): values cannot be checked; run the same "
                "'photozhpc infer' again to note them",
                unknown[0],
                len(unknown),
                len(parts),
            )
        # Columns may have been left out since: the VOTable in the file says what once was there.
        schema = with_votable(schema.with_metadata(first.metadata), table_description(first))
        return cls(parts, schema, noted, n_rows)

    @property
    def provenance(self) -> str:
        """What the catalogue says of its making, as JSON."""
        return (self.schema.metadata or {}).get(PROVENANCE_KEY, b"{}").decode()

    @property
    def text_length(self) -> int:
        """The length of the longest text in any column, in bytes."""
        names = [field.name for field in self.schema if field.type == pa.string()]
        return max(text_length(column) for table in self.pieces(names) for column in table.columns)

    def pieces(
        self, columns: list[str] | None = None, *, verify: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the rows as they are, row group by row group.

        Raises:
            CatalogError: a part is missing or damaged, or, with `verify`, has another SHA-256
                than was noted.
        """
        for part in self.parts:
            yield from read_pieces(part, columns, self.noted, verify=verify)

    def translated(self, dialect: Dialect | None, progress: Report) -> Iterator[pa.Table]:
        """Yield the rows, verified, in the words of a dialect."""
        done = 0
        for table in self.pieces(verify=True):
            done += len(table)
            yield translate(table, dialect)
            progress(done, self.n_rows)


def _check_columns(part: Path, schema: pa.Schema) -> None:
    missing = {"source_id", "ra", "dec", "tile_id", "photoz"} - set(schema.names)
    if missing or not all(b"ucd" in (field.metadata or {}) for field in schema):
        what = f"has no column '{min(missing)}'" if missing else "says nothing of its columns"
        raise CatalogError(
            f"{part}: {what}: it is no catalogue of 'photozhpc infer' with columns as they were "
            f"made"
        )
    for field in schema:
        if str(field.type) not in TYPES:
            raise CatalogError(
                f"{part}: column '{field.name}' is of type {field.type}: exports take columns as "
                f"they were made"
            )
