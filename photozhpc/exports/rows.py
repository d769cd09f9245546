"""The rows of a catalogue as an export reads them: checked, and translated to a dialect."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.part_file import PROVENANCE_KEY, read_footer
from photozhpc.catalog.photoz_catalog import check_n_rows, read_part, read_pieces, text_length
from photozhpc.catalog.votable import table_description, with_votable
from photozhpc.errors import CatalogError
from photozhpc.exports.dialects import Dialect, translate
from photozhpc.logs import LOG

OnProgress = Callable[[int, int], None]  # called with rows done and in all
_TYPES = ("int64", "int32", "double", "float", "string")  # of columns


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        rows: rows in the new file or folder.
        left_out: rows that the format cannot hold.
        why: what those rows lack, as in "have no position".
    """

    rows: int
    left_out: int = 0
    why: str = ""


@dataclass(frozen=True)
class CatalogRows:
    """The rows of a catalogue, part by part.

    Attributes:
        parts: its files.
        schema: the schema of all parts, with the first one's metadata and a VOTable of its own.
        run_notes: the notes on the parts.
        n_rows: total number of rows in the footers.
    """

    parts: list[Path]
    schema: pa.Schema
    run_notes: RunNotes
    n_rows: int

    @classmethod
    def of(cls, catalog: str | Path, parts: list[Path]) -> "CatalogRows":
        """Read the footers of the parts.

        Raises:
            CatalogError: a part is damaged, of another catalogue, or not one of photozhpc's; or
                the parts have other rows than the run made.
        """
        run_notes = RunNotes.beside(parts[0])
        first = read_part(parts[0], [], run_notes).schema
        schema, n_rows = read_footer(parts[0])
        _check_columns(parts[0], schema)
        for part in parts[1:]:
            other, n_more = read_footer(part)
            if not other.equals(schema):
                raise CatalogError(f"{part}: has other columns than {parts[0].name}")
            n_rows += n_more
        check_n_rows(catalog, n_rows)
        unnoted = [part for part in parts if run_notes.note(part) is None]
        if run_notes.run is not None and unnoted:
            LOG.warning(
                "the run has no note on %s (%d of %d parts), so its values cannot be checked; run "
                "the same 'photozhpc infer' again to make the notes",
                *(unnoted[0], len(unnoted), len(parts)),
            )
        # Columns may have been removed since, which the VOTable in the file would still list.
        schema = with_votable(schema.with_metadata(first.metadata), table_description(first))
        return cls(parts, schema, run_notes, n_rows)

    @property
    def provenance(self) -> str:
        """How the catalogue was made, as JSON."""
        return (self.schema.metadata or {}).get(PROVENANCE_KEY, b"{}").decode()

    @property
    def text_length(self) -> int:
        """Length of the longest text in any column, in bytes."""
        names = [field.name for field in self.schema if field.type == pa.string()]
        return max(text_length(column) for table in self.pieces(names) for column in table.columns)

    def pieces(
        self, columns: list[str] | None = None, *, verify: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the rows as they are, row group by row group.

        Raises:
            CatalogError: a part is missing or damaged, or, with `verify`, its SHA-256 differs from
                its note.
        """
        for part in self.parts:
            yield from read_pieces(part, columns, self.run_notes, verify=verify)

    def translated(self, dialect: Dialect | None, progress: OnProgress) -> Iterator[pa.Table]:
        """Yield the verified rows with the names and units of a dialect."""
        done = 0
        for table in self.pieces(verify=True):
            done += len(table)
            yield translate(table, dialect)
            progress(done, self.n_rows)


def _check_columns(part: Path, schema: pa.Schema) -> None:
    missing = {"source_id", "ra", "dec", "tile_id", "photoz"} - set(schema.names)
    if missing or not all(b"ucd" in (field.metadata or {}) for field in schema):
        fault = f"has no column '{min(missing)}'" if missing else "has columns without a UCD"
        raise CatalogError(f"{part}: {fault}; export takes only catalogues as 'infer' wrote them")
    for field in schema:
        if str(field.type) not in _TYPES:
            raise CatalogError(
                f"{part}: column '{field.name}' is of type {field.type}; export takes only "
                f"catalogues as 'infer' wrote them"
            )
