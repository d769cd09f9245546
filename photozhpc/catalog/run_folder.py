"""The folder of a run: its identity, the parts that it needs, and the lock of its writer.

OUT/run.json        identity of the run: a part counts as done only if it is of this run
OUT/catalog/        the parts (photoz_catalog.py)
OUT/pdf/            p(z) of the sources of each part, with --pdf (pdf.py); written before the part
OUT/notes/*.jsonl   a line per finished part (when, rows, bytes, SHA-256), a file per worker
OUT/events.jsonl    a line per start and end of `infer`, lost worker, and failed part
OUT/.lock           held by the process that writes here; free again when that dies
"""

import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from photozhpc.catalog.notes import (
    EVENTS_FILE,
    NOTES_FOLDER,
    PART_FOLDER,
    RUN_FILE,
    PartNote,
    part_name,
    read_run,
    run_id,
)
from photozhpc.catalog.pdf import pdf_folder
from photozhpc.catalog.photoz_catalog import SCHEMA_VERSION
from photozhpc.errors import CatalogError, CheckpointError
from photozhpc.files.disk import disk_error, remove_stale_partials, write_durably
from photozhpc.files.lock import locked
from photozhpc.files.objects import AnyPath
from photozhpc.store import ShardKey
from photozhpc.survey import Survey

if TYPE_CHECKING:
    from photozhpc.model.pdf import PdfForm

# The keys that identify a run, and how a message describes a difference in each.
_IDENTITY = {
    "store_fingerprint": "another store, or the store has changed",
    "checkpoint_sha256": "another checkpoint",
    "schema_version": "another version of photozhpc",
    "rows_per_part": "parts of another size",
    "compiled": "the model compiled or not, whose last digits differ: see --compile",
    "pdf": "p(z) in another form, or none: see --pdf",
}
_MIN_ROWS_PER_PART = 1024
_MAX_ROWS_PER_PART = 32768
_TARGET_PARTS = 512


@dataclass(frozen=True)
class Part:
    """One file of the catalogue: consecutive shards of the store, and their lengths."""

    index: int
    shards: tuple[ShardKey, ...]
    shard_lengths: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        return sum(self.shard_lengths)

    @property
    def file_name(self) -> str:
        return part_name(self.index)


def default_rows_per_part(n_rows: int) -> int:
    """Return the minimum size of a part: it gives some hundreds of parts, each worth a file.

    It depends on the store alone, so that a run can continue with any number of workers.
    """
    return min(max(n_rows // _TARGET_PARTS, _MIN_ROWS_PER_PART), _MAX_ROWS_PER_PART)


def plan_parts(shard_lengths: Mapping[ShardKey, int], rows_per_part: int) -> list[Part]:
    """Group consecutive shards until a part has `rows_per_part` rows or more."""
    parts: list[Part] = []
    shards: dict[ShardKey, int] = {}
    for key, length in shard_lengths.items():
        shards[key] = length
        if sum(shards.values()) >= rows_per_part:
            parts.append(Part(len(parts), tuple(shards), tuple(shards.values())))
            shards = {}
    if shards:
        parts.append(Part(len(parts), tuple(shards), tuple(shards.values())))
    return parts


@dataclass(frozen=True)
class ModelKey:
    """What a worker needs to load the model.

    Attributes:
        checkpoint_sha256: SHA-256 of the checkpoint when the run began.
        device: passed to `Engine`.
        compiled: whether full batches run through compiled code.
        pdf: the form in which p(z) is written beside the catalogue; None: p(z) is not written.
        table_survey: says what the columns of a photometric catalogue are, if `store_path` is one.
    """

    store_path: AnyPath
    checkpoint_path: Path
    checkpoint_sha256: str
    device: str
    compiled: bool
    pdf: "PdfForm | None" = None
    table_survey: Survey | None = None


@dataclass(frozen=True)
class RunFolder:
    """The output folder of the run that `identity` identifies."""

    path: Path
    identity: dict[str, Any]

    @classmethod
    def of(
        cls, path: Path, store_fingerprint: str, rows_per_part: int, model: ModelKey
    ) -> "RunFolder":
        """Return the folder of the run that a store and a model make; write nothing."""
        return cls(
            path,
            {
                "store_fingerprint": store_fingerprint,
                "checkpoint_sha256": model.checkpoint_sha256,
                "schema_version": SCHEMA_VERSION,
                "rows_per_part": rows_per_part,
                "compiled": model.compiled,
                **({} if model.pdf is None else {"pdf": model.pdf}),
            },
        )

    @property
    def catalog(self) -> Path:
        return self.path / PART_FOLDER

    @property
    def pdf(self) -> Path:
        return pdf_folder(self.catalog)

    @property
    def pdf_form(self) -> str | None:
        """The form in which p(z) is written beside the catalogue, or None."""
        return self.identity.get("pdf")

    @property
    def run_id(self) -> str:
        return run_id(self.identity)

    def part_path(self, part: Part) -> Path:
        return self.catalog / part.file_name

    def part_identity(self, part: Part) -> dict[str, Any]:
        """Return what a part's metadata must say for a later start to accept it."""
        return {
            "run_id": self.run_id,
            "index": part.index,
            "shards": [str(key) for key in part.shards],
        }

    def log(self, event: str, **about: Any) -> None:
        """Add a line to events.jsonl, if the run has begun: what happened, when, and where."""
        if not self._has_begun:
            return
        line = {"at": round(time.time(), 3), "event": event, "host": socket.gethostname(), **about}
        with suppress(OSError):  # other writes report a full disk
            append_line(self.path / EVENTS_FILE, line)

    def is_begun(self) -> bool:
        """Return whether this run has begun here.

        Raises:
            CatalogError: the folder holds another run, or something else.
        """
        file = self.path / RUN_FILE
        other = "; choose another --out or delete that folder"
        if self.path.exists() and not self.path.is_dir():
            raise CatalogError(f"{self.path}: is not a folder{other}")
        if not file.exists():
            if any(self.catalog.glob("*")):
                raise CatalogError(f"{self.catalog}: holds files, but {file} is missing{other}")
            return False
        identity = read_run(self.path).identity
        if differences := [
            text for key, text in _IDENTITY.items() if identity.get(key) != self.identity.get(key)
        ]:
            raise CatalogError(f"{self.path}: holds another run ({'; '.join(differences)}){other}")
        return True

    def begin(self, about: dict[str, Any]) -> str:
        """Note the run in the folder, and return its provenance, as JSON.

        Args:
            about: facts for readers; ignored if the run has begun before.

        Raises:
            RunError: the disk is full, or cannot be written.
        """
        if not self.is_begun():
            document = {"format": 1, **about, "identity": self.identity}
            write_durably(self.path / RUN_FILE, json.dumps(document, indent=2).encode())
        remove_stale_partials(self.path)
        remove_stale_partials(self.catalog)
        remove_stale_partials(self.pdf)
        return read_run(self.path).provenance

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder if necessary, and keep other processes from writing to it.

        The lock ends with the process. On a file system without locks, two runs at once do no
        harm: their parts are equal and appear whole; only the work is done twice.

        Raises:
            CatalogError: another process is writing to the folder.
            RunError: the folder cannot be made.
        """
        try:
            self.catalog.mkdir(parents=True, exist_ok=True)
            if self.pdf_form is not None:
                self.pdf.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error(self.path, error) from error
        try:
            with locked(self.path / ".lock", "photozhpc infer", CatalogError, keep=True):
                try:
                    yield
                finally:
                    if not self._has_begun:  # leave nothing behind
                        with suppress(OSError):
                            if self.pdf_form is not None:
                                self.pdf.rmdir()
                            self.catalog.rmdir()
                            (self.path / ".lock").unlink()
        finally:
            if not self._has_begun:
                with suppress(OSError):
                    self.path.rmdir()

    @property
    def _has_begun(self) -> bool:
        return (self.path / RUN_FILE).exists()


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a checkpoint file.

    Raises:
        CheckpointError: it is missing or cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


def note_part(part_path: Path, part: Part, note: PartNote, seconds: float) -> None:
    """Add a note on a finished part to the file of this process.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    folder = part_path.parent.with_name(NOTES_FOLDER)
    worker = f"{socket.gethostname()}-{os.getpid()}"
    line = {
        "at": round(time.time(), 3),
        "part": part.index,
        "shards": [str(key) for key in part.shards],
        "worker": worker,
        "seconds": round(seconds, 3),
        **asdict(note.counts),
        "bytes": note.file.n_bytes,
        "sha256": note.file.sha256,
        **(
            {}
            if note.pdf is None
            else {"pdf_bytes": note.pdf.n_bytes, "pdf_sha256": note.pdf.sha256}
        ),
    }
    file = folder / f"{worker}.jsonl"
    try:
        folder.mkdir(exist_ok=True)
        append_line(file, line)
    except OSError as error:
        raise disk_error(file, error) from error


def append_line(file: Path, line: dict[str, Any]) -> None:
    """Add a line of JSON to a file in one write, so that concurrent writers do not mix lines.

    Raises:
        OSError: it cannot be written, or is a link or a pipe, which another user may have made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = os.open(file, flags, 0o666)
    try:
        os.write(handle, json.dumps(line).encode() + b"\n")
    finally:
        os.close(handle)
