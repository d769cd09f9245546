"""Checks that a catalogue is as its run left it, and that it holds every source of a store once."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.catalog.notes import (
    PART_FOLDER,
    PDF_FOLDER,
    RUN_FILE,
    FileNote,
    PartNote,
    RunNotes,
    part_name,
    read_notes,
    read_run,
)
from photozhpc.catalog.part_file import PROVENANCE_KEY
from photozhpc.catalog.pdf import read_pdf_part
from photozhpc.catalog.run_folder import Part, RunFolder, plan_parts
from photozhpc.errors import CatalogError, one_line
from photozhpc.files.disk import read_fault
from photozhpc.store import CutoutStore, FluxTable

_FINGERPRINT = "store_fingerprint"


def verify_catalog(
    out: str | Path, store: CutoutStore | FluxTable | None = None
) -> tuple[int, list[str]]:
    """Compare every part with its note; return the number of rows and the list of problems.

    Args:
        out: the folder of a run.
        store: the store that the catalogue was made from; every part must then hold exactly the
            sources of its shards, in their order.

    Raises:
        CatalogError: `out` is not the folder of a run, or the store is another one.
    """
    out = Path(out)
    file = out / RUN_FILE
    if not file.exists():
        raise CatalogError(f"{out}: no run of 'photozhpc infer' is there")
    run = read_run(out)
    folder = RunFolder(out, run.identity)
    rows_per_part, fingerprint = (run.identity.get(k) for k in ("rows_per_part", _FINGERPRINT))
    if type(rows_per_part) is not int or type(fingerprint) is not str:
        raise CatalogError(f"{file}: is damaged: it does not name the store of the run")
    parts: list[Part] = []
    if store is not None:
        index = store.index()
        if index.fingerprint != fingerprint:
            raise CatalogError(f"{out}: was made from another store than {store.path}")
        parts = plan_parts(index.shard_lengths(), rows_per_part)
        if len(parts) != run.n_parts:
            raise CatalogError(
                f"{file}: is damaged: it states {run.n_parts} parts, the store gives {len(parts)}"
            )
    notes = read_notes(out)
    run_notes = RunNotes(run, notes)
    problems = [
        f"notes: list {part_name(number)}, but the run has {run.n_parts} parts"
        for number in sorted(notes)
        if number >= run.n_parts
    ]
    n_rows = 0
    edited: list[str] = []
    names = [part_name(number) for number in range(run.n_parts)]
    for number, name in enumerate(names):
        try:
            content = (folder.catalog / name).read_bytes()
            with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as part:
                source_id_N = part.read(["source_id"])["source_id"].to_numpy()
                metadata = part.schema_arrow.metadata or {}
        except FileNotFoundError:
            problems.append(f"{name}: missing")
            continue
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            problems.append(read_fault(name, error) or f"{name}: damaged ({one_line(error, 80)})")
            continue
        n_rows += len(source_id_N)
        if metadata.get(PROVENANCE_KEY, b"{}") not in (b"{}", run.provenance.encode()):
            edited.append(name)
        if folder.pdf_form is not None:
            problems += _pdf_problems(folder, name, source_id_N, notes.get(number))
        if number not in notes:
            problems.append(f"{name}: the run has no note on it")
        elif FileNote.of(content) != notes[number].file:
            problems.append(f"{name}: altered: its SHA-256 differs from its note")
        else:  # as its note says; but the note may be of another part
            try:
                run_notes.check_place(Path(name), metadata)
            except CatalogError as error:
                problems.append(str(error))
        if store is not None:
            stored_N = [store.read_sources(key).source_id_N for key in parts[number].shards]
            if not np.array_equal(source_id_N, np.concatenate(stored_N)):
                problems.append(f"{name}: does not hold the sources of its shards")
    if edited:
        problems.append(f"run.json: was altered after {edited[0]} was made")
    # Readers of the whole folder would take any file for a part.
    present = {path.name for path in folder.catalog.glob("*") if not path.name.startswith(".")}
    stray = present - set(names)
    pdf_names = {path.name for path in folder.pdf.glob("part-*")}
    stray |= {
        f"{PDF_FOLDER}/{name}"
        for name in pdf_names.difference([] if folder.pdf_form is None else names)
    }
    problems += [f"{name}: is not of this run" for name in sorted(stray)]
    if not problems and n_rows != run.n_rows:
        problems.append(f"{PART_FOLDER}: {n_rows} rows for {run.n_rows} sources")
    return n_rows, problems


def _pdf_problems(
    folder: RunFolder, name: str, source_id_N: NDArray[np.int64], note: PartNote | None
) -> list[str]:
    """Return what is wrong with the p(z) of the part that has these sources."""
    label = f"{PDF_FOLDER}/{name}"
    if not (folder.pdf / name).exists():
        return [f"{label}: missing"]
    try:
        part, file_note = read_pdf_part(folder.pdf / name)
    except CatalogError as error:
        return [f"{label}: damaged ({str(error.__cause__)[:80]})"]
    problems = []
    if part.form != folder.pdf_form or not np.array_equal(part.source_id_N, source_id_N):
        problems.append(f"{label}: does not hold the sources of its part")
    if note is not None and note.pdf != file_note:
        problems.append(f"{label}: altered: its SHA-256 differs from its note")
    return problems
