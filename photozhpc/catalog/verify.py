"""Is a catalogue what its run left, whole and unaltered; and is every source in it once?"""

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
    read_run,
)
from photozhpc.catalog.part_file import PROVENANCE_KEY
from photozhpc.catalog.pdf import read_pdf_part
from photozhpc.catalog.run_folder import Part, RunFolder, plan_parts
from photozhpc.errors import CatalogError, one_line
from photozhpc.files.disk import read_fault
from photozhpc.store import CutoutStore

_FINGERPRINT = "store_fingerprint"


def verify_catalog(out: str | Path, store: CutoutStore | None = None) -> tuple[int, list[str]]:
    """Compare every part with what was noted when it was made; return its rows and what is wrong.

    Args:
        out: the folder of a run.
        store: that the catalogue is of: every part must hold the sources of its shards, all of
            them, in their order.

    Raises:
        CatalogError: it is not the folder of a run, or the store is another one.
    """
    file = Path(out) / RUN_FILE
    if not file.exists():
        raise CatalogError(f"{out}: no run of 'photozhpc infer' is there")
    about = read_run(Path(out))
    run = RunFolder(Path(out), about.identity)
    rows_per_part, fingerprint = (about.identity.get(k) for k in ("rows_per_part", _FINGERPRINT))
    if type(rows_per_part) is not int or type(fingerprint) is not str:
        raise CatalogError(f"{file}: is damaged: it does not say of which store the run is")
    parts: list[Part] = []
    if store is not None:
        stored = store.index()
        if stored.fingerprint != fingerprint:
            raise CatalogError(f"{out}: was made from another store than {store.path}")
        parts = plan_parts(stored.shard_lengths(), rows_per_part)
        if len(parts) != about.n_parts:
            raise CatalogError(
                f"{file}: is damaged: {about.n_parts} parts, of the store it is {len(parts)}"
            )
    notes = run.notes()
    noted = RunNotes(about, notes)
    problems = [
        f"notes: tell of {part_name(index)}, the run has {about.n_parts} parts"
        for index in sorted(notes)
        if index >= about.n_parts
    ]
    rows = 0
    edited: list[str] = []
    names = [part_name(index) for index in range(about.n_parts)]
    for index, name in enumerate(names):
        try:
            content = (run.catalog / name).read_bytes()
            with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as part:
                source_id_N = part.read(["source_id"])["source_id"].to_numpy()
                metadata = part.schema_arrow.metadata or {}
        except FileNotFoundError:
            problems.append(f"{name}: missing")
            continue
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            problems.append(read_fault(name, error) or f"{name}: damaged ({one_line(error, 80)})")
            continue
        rows += len(source_id_N)
        if metadata.get(PROVENANCE_KEY, b"{}") not in (b"{}", about.provenance.encode()):
            edited.append(name)
        if run.pdf_form is not None:
            problems += _pdf_problems(run, name, source_id_N, notes.get(index))
        if index not in notes:
            problems.append(f"{name}: nothing was noted of it")
        elif FileNote.of(content) != notes[index].file:
            problems.append(f"{name}: altered: its SHA-256 is not the one that was noted")
        else:  # as noted, if the notes are true
            try:
                noted.check_place(Path(name), metadata)
            except CatalogError as error:
                problems.append(str(error))
        if store is not None:
            stored_N = [store.read_sources(key).source_id_N for key in parts[index].shards]
            if not np.array_equal(source_id_N, np.concatenate(stored_N)):
                problems.append(f"{name}: does not hold the sources of its shards")
    if edited:
        problems.append(f"run.json: is not what it was when {edited[0]} was made: it was altered")
    # All that readers of the folder as a whole would take for a part.
    present = {path.name for path in run.catalog.glob("*") if not path.name.startswith(".")}
    unknown = present - set(names)
    pdf_names = set() if run.pdf_form is None else set(names)
    unknown |= {f"{PDF_FOLDER}/{n}" for n in {p.name for p in run.pdf.glob("part-*")} - pdf_names}
    problems += [f"{name}: is not of this run" for name in sorted(unknown)]
    if not problems and rows != about.n_rows:
        problems.append(f"{PART_FOLDER}: {rows} rows for {about.n_rows} sources")
    return rows, problems


def _pdf_problems(
    run: RunFolder, name: str, source_id_N: NDArray[np.int64], note: PartNote | None
) -> list[str]:
    """Say what is wrong with the p(z) of a part, whose sources are these."""
    shown = f"{PDF_FOLDER}/{name}"
    if not (run.pdf / name).exists():
        return [f"{shown}: missing"]
    try:
        part, file = read_pdf_part(run.pdf / name)
    except CatalogError as error:
        return [f"{shown}: damaged ({str(error.__cause__)[:80]})"]
    problems = []
    if part.form != run.pdf_form or not np.array_equal(part.source_id_N, source_id_N):
        problems.append(f"{shown}: does not hold the sources of its part")
    if note is not None and note.pdf != file:
        problems.append(f"{shown}: altered: its SHA-256 is not the one that was noted")
    return problems
