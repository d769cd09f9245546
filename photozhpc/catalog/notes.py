"""What a run noted of its parts, and whether a file is the part that it is called.

A part's own checksums say that it is whole, not whose it is. Its metadata name the run and the
number under which it was made; OUT/notes has its rows, bytes and SHA-256.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from photozhpc.errors import CatalogError
from photozhpc.files.disk import is_count, read_fault, read_json

PART_FOLDER = "catalog"
PDF_FOLDER = "pdf"
NOTES_FOLDER = "notes"
PART_KEY = b"photozhpc.part"
PART_NAME = re.compile(r"part-(\d{6,})\.parquet")
_AGAIN = "; run the same 'photozhpc infer' again to make it anew"
_NOTED = ("part", "rows", "flagged", "without_photoz", "bytes")


@dataclass(frozen=True)
class Counts:
    """Rows of a part or a catalogue; how many have a flag; how many of them have no redshift."""

    rows: int
    flagged: int
    without_photoz: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.rows + other.rows,
            self.flagged + other.flagged,
            self.without_photoz + other.without_photoz,
        )


@dataclass(frozen=True)
class FileNote:
    """What is noted of a file of p(z)."""

    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class PartNote:
    """What is noted of a finished part.

    Attributes:
        counts: of its rows.
        n_bytes, sha256: of the file.
        pdf: of the file of p(z) beside it; None: there is none.
    """

    counts: Counts
    n_bytes: int
    sha256: str
    pdf: FileNote | None = None


@dataclass(frozen=True)
class Run:
    """What run.json says of a run: which it is, and how many parts and rows it makes."""

    identity: dict[str, Any]
    n_parts: int
    n_rows: int


def read_run(file: Path) -> Run:
    """Read the run.json of a catalogue.

    Raises:
        CatalogError: it is missing or damaged.
    """
    try:
        about = read_json(file)
        run = Run(about["identity"], about["n_parts"], about["n_rows"])
    except (OSError, ValueError, KeyError) as error:
        raise CatalogError(
            read_fault(file, error) or f"{file}: is damaged ({type(error).__name__})"
        ) from error
    counts = (run.n_parts, run.n_rows)
    sound = all(map(is_count, counts)) and run.n_parts <= run.n_rows
    if not sound or not isinstance(run.identity, dict):
        raise CatalogError(f"{file}: is damaged: parts and rows are {str(counts)[:80]}")
    return run


def run_id(identity: Mapping[str, Any]) -> str:
    """Return the name of a run: a digest of its identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def part_name(index: int) -> str:
    return f"part-{index:06d}.parquet"


def read_notes(out: Path) -> dict[int, PartNote]:
    """Return what the workers of a run noted of finished parts, by index.

    Lines that were cut short are passed over; of two on the same part, the later one holds.
    """
    lines = [
        line for file in sorted((out / NOTES_FOLDER).glob("*.jsonl")) for line in read_lines(file)
    ]
    notes: dict[int, PartNote] = {}
    for line in sorted(lines, key=_time):
        numbers: list[Any] = [line.get(key) for key in _NOTED]
        if all(map(is_count, numbers)):
            part, rows, flagged, without_photoz, n_bytes = numbers
            counts = Counts(rows, flagged, without_photoz)
            pdf = None
            if is_count(line.get("pdf_bytes")):
                pdf = FileNote(line["pdf_bytes"], str(line.get("pdf_sha256")))
            notes[part] = PartNote(counts, n_bytes, str(line.get("sha256")), pdf)
    return notes


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; what was cut short or damaged is passed over."""
    if not file.is_file():  # of a pipe nobody may write to
        return
    with suppress(OSError), open(file, encoding="utf-8", errors="replace") as stream:
        for text in stream:
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


@dataclass(frozen=True)
class Due:
    """What the parts of a catalogue must be.

    Attributes:
        run: in whose folder they lie; None: in none, and any part will do.
        notes: of it, by the index of the part.
    """

    run: Run | None
    notes: dict[int, PartNote]

    @classmethod
    def beside(cls, part: Path) -> "Due":
        """Read what is due of the parts beside this one, or of the p(z).

        Raises:
            CatalogError: run.json is damaged.
        """
        folder = part.absolute().parent
        out = folder.parent
        if folder.name not in (PART_FOLDER, PDF_FOLDER) or not (out / "run.json").is_file():
            return cls(None, {})
        return cls(read_run(out / "run.json"), read_notes(out))

    def note(self, part: Path) -> PartNote | None:
        """Return what was noted of the part that is called like a file."""
        found = PART_NAME.fullmatch(part.name)
        return None if found is None else self.notes.get(int(found[1]))

    def check_place(self, part: Path, metadata: Mapping[bytes, bytes] | None) -> None:
        """Check by its metadata that a file is of the run, and the part that its name says.

        Raises:
            CatalogError: it is not.
        """
        if self.run is None or not self.run.identity:
            return
        try:
            about = json.loads((metadata or {}).get(PART_KEY, b"{}"))
            own_run, own_name = about["run_id"], part_name(about["index"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CatalogError(f"{part}: does not say which part of which run it is{_AGAIN}") from (
                error
            )
        if own_run != run_id(self.run.identity):
            raise CatalogError(f"{part}: is a part of another run than run.json beside it{_AGAIN}")
        if own_name != part.name:
            raise CatalogError(f"{part}: was made as {own_name}: parts have changed places{_AGAIN}")

    def check_size(self, part: Path, n_rows: int) -> None:
        """Check that a part of the catalogue has the rows and bytes that were noted of it.

        Raises:
            CatalogError: it has not.
            OSError: it is missing.
        """
        note = self.note(part)
        if note is None:
            return
        n_bytes = part.stat().st_size
        if (n_rows, n_bytes) != (note.counts.rows, note.n_bytes):
            raise CatalogError(
                f"{part}: was altered: {n_rows} rows in {n_bytes} bytes, noted were "
                f"{note.counts.rows} in {note.n_bytes}{_AGAIN}"
            )


def check_sha256(file: Path, content: bytes, note: PartNote | FileNote) -> None:
    """Check that a file is the one that was noted.

    Raises:
        CatalogError: it is not.
    """
    if hashlib.sha256(content).hexdigest() != note.sha256:
        raise CatalogError(
            f"{file}: was altered: its SHA-256 is not the one that was noted{_AGAIN}"
        )


def _time(line: dict[str, Any]) -> float:
    at = line.get("at")
    return float(at) if isinstance(at, int | float) and abs(at) < 1e12 else 0.0
