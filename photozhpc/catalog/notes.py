"""Reads what a run writes beside its parts: run.json, the notes on parts, and the events.

It also checks that a file is the part that its name says. A part's own checksums only show that it
is whole; its metadata name the run and the part's number, and OUT/notes has its rows, bytes and
SHA-256.
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
RUN_FILE = "run.json"
EVENTS_FILE = "events.jsonl"
PART_KEY = b"photozhpc.part"
PART_NAME = re.compile(r"part-(\d{6,})\.parquet")
_AGAIN = "; run the same 'photozhpc infer' again to replace it"
_MAX_SECONDS = 1e11  # since 1970; no clock shows more


@dataclass(frozen=True)
class Counts:
    """Numbers of rows of a part or a catalogue: all, with any flag, and with some of the flags."""

    rows: int
    flagged: int
    without_photoz: int
    sharp_defects: int = 0
    other_noise: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.rows + other.rows,
            self.flagged + other.flagged,
            self.without_photoz + other.without_photoz,
            self.sharp_defects + other.sharp_defects,
            self.other_noise + other.other_noise,
        )


@dataclass(frozen=True)
class FileNote:
    """Size and digest of a file."""

    n_bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes | memoryview) -> "FileNote":
        return cls(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class PartNote:
    """The note on a finished part.

    Attributes:
        counts: numbers of rows.
        file: the part itself.
        pdf: the file of p(z) beside it; None: there is none.
        at: when it was finished, seconds since 1970; 0: unknown.
        seconds: how long it took; 0: unknown.
        worker: the process that made it, as "host-pid".
    """

    counts: Counts
    file: FileNote
    pdf: FileNote | None = None
    at: float = 0.0
    seconds: float = 0.0
    worker: str = ""


@dataclass(frozen=True)
class Run:
    """The content of run.json.

    Attributes:
        identity: which run it is.
        n_parts, n_rows: parts and rows of the finished catalogue.
        about: the whole file.
    """

    identity: dict[str, Any]
    n_parts: int
    n_rows: int
    about: dict[str, Any]

    @property
    def provenance(self) -> str:
        """run.json as every part has it in its metadata."""
        return json.dumps(self.about, sort_keys=True)


def run_folder_of(path: Path) -> Path | None:
    """Return the folder of the run that `path` is, or is the catalog/, pdf/ or a part of.

    None if there is no run.json.
    """
    is_file = path.is_file()
    folder = path.parent if is_file else path
    name = folder.absolute().name
    if name in (PART_FOLDER, PDF_FOLDER) and not (folder / PART_FOLDER).is_dir():
        folder = folder.parent if folder.name == name else folder.absolute().parent
    elif is_file:
        return None
    return folder if (folder / RUN_FILE).is_file() else None


def read_run(out: Path) -> Run:
    """Read the run.json in the folder of a run.

    Raises:
        CatalogError: it is missing or damaged.
    """
    file = out / RUN_FILE
    try:
        about = read_json(file)
        run = Run(about["identity"], about["n_parts"], about["n_rows"], about)
    except (OSError, ValueError, KeyError) as error:
        raise CatalogError(
            read_fault(file, error) or f"{file}: is damaged ({type(error).__name__})"
        ) from error
    counts = (run.n_parts, run.n_rows)
    sound = all(map(is_count, counts)) and run.n_parts <= run.n_rows
    if not sound or not isinstance(run.identity, dict):
        raise CatalogError(f"{file}: is damaged: parts and rows are {str(counts)[:80]}")
    return run


def warnings_of(about: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what run.json warns the readers of the catalogue of; often nothing."""
    warnings = about.get("warnings")
    return tuple(map(str, warnings)) if isinstance(warnings, list) else ()


def run_id(identity: Mapping[str, Any]) -> str:
    """Return the name of a run: a digest of its identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


def part_name(index: int) -> str:
    return f"part-{index:06d}.parquet"


def read_notes(out: Path) -> dict[int, PartNote]:
    """Return the workers' notes on finished parts, by index.

    Lines that were cut short are skipped; of two notes on the same part, the later one counts.
    """
    notes = [
        (line["part"], note)
        for file in sorted((out / NOTES_FOLDER).glob("*.jsonl"))
        for line in read_lines(file)
        if (note := _part_note(line)) is not None
    ]
    return dict(sorted(notes, key=lambda item: item[1].at))


def read_events(out: Path) -> list[dict[str, Any]]:
    """Return the events of a run in the order of their file; each has a number "at"."""
    return [line | {"at": _seconds(line, "at")} for line in read_lines(out / EVENTS_FILE)]


def read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines; skip lines that were cut short or damaged."""
    if not file.is_file():  # reading a pipe might wait for ever
        return
    with suppress(OSError), open(file, encoding="utf-8", errors="replace") as stream:
        for text in stream:
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


@dataclass(frozen=True)
class RunNotes:
    """A run and the notes on its parts, which the parts must agree with.

    Attributes:
        run: the run whose folder the parts lie in; None: there is no run, and any part will do.
        notes: the notes on the parts, by index.
    """

    run: Run | None
    notes: dict[int, PartNote]

    @classmethod
    def beside(cls, part: Path) -> "RunNotes":
        """Read the notes on the parts, or files of p(z), in the folder of this one.

        Raises:
            CatalogError: run.json is damaged.
        """
        out = run_folder_of(part)
        return cls(None, {}) if out is None else cls(read_run(out), read_notes(out))

    def note(self, part: Path) -> PartNote | None:
        """Return the note on the part that has the name of this file."""
        match = PART_NAME.fullmatch(part.name)
        return None if match is None else self.notes.get(int(match[1]))

    def check_place(self, part: Path, metadata: Mapping[bytes, bytes] | None) -> None:
        """Check by its metadata that a file is of the run, and the part that its name says.

        Raises:
            CatalogError: it is another part, or of another run.
        """
        if self.run is None or not self.run.identity:
            return
        try:
            about = json.loads((metadata or {}).get(PART_KEY, b"{}"))
            part_run_id, made_as = about["run_id"], part_name(about["index"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{part}: does not say which part of which run it is{_AGAIN}"
            raise CatalogError(message) from error
        if part_run_id != run_id(self.run.identity):
            raise CatalogError(f"{part}: is a part of another run than run.json beside it{_AGAIN}")
        if made_as != part.name:
            raise CatalogError(f"{part}: was made as {made_as}: parts have changed places{_AGAIN}")

    def check_size(self, part: Path, n_rows: int) -> None:
        """Check that a part of the catalogue has the rows and bytes of its note, if it has one.

        Raises:
            CatalogError: it has others.
            OSError: it is missing.
        """
        note = self.note(part)
        if note is None:
            return
        n_bytes = part.stat().st_size
        if (n_rows, n_bytes) != (note.counts.rows, note.file.n_bytes):
            raise CatalogError(
                f"{part}: was altered: it has {n_rows} rows in {n_bytes} bytes, its note says "
                f"{note.counts.rows} in {note.file.n_bytes}{_AGAIN}"
            )


def check_sha256(file: Path, content: bytes, note: FileNote) -> None:
    """Check that a file has the SHA-256 of its note.

    Raises:
        CatalogError: it has another.
    """
    if hashlib.sha256(content).hexdigest() != note.sha256:
        raise CatalogError(f"{file}: was altered: its SHA-256 differs from its note{_AGAIN}")


def _part_note(line: dict[str, Any]) -> PartNote | None:
    """Return the note in a line of JSON; None if the line is damaged."""
    keys = ("part", "rows", "flagged", "without_photoz", "bytes")
    numbers: list[Any] = [line.get(key) for key in keys]
    if not all(map(is_count, numbers)):
        return None
    _, rows, flagged, without_photoz, n_bytes = numbers
    further: list[Any] = [line.get(key) for key in ("sharp_defects", "other_noise")]
    further = [n if is_count(n) else 0 for n in further]  # older notes have neither
    pdf = None
    if is_count(line.get("pdf_bytes")):
        pdf = FileNote(line["pdf_bytes"], str(line.get("pdf_sha256")))
    return PartNote(
        Counts(rows, flagged, without_photoz, *further),
        FileNote(n_bytes, str(line.get("sha256"))),
        pdf,
        at=_seconds(line, "at"),
        seconds=_seconds(line, "seconds"),
        worker=str(line.get("worker")),
    )


def _seconds(line: dict[str, Any], key: str) -> float:
    """Return a time in a line of JSON; 0 if a damaged line has none."""
    value: Any = line.get(key)
    return float(value) if type(value) in (int, float) and 0 <= value < _MAX_SECONDS else 0.0
