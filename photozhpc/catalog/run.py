"""Streams a whole store through the model, part by part; an interrupted run can continue."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dask.system import CPU_COUNT
from distributed import KilledWorker

from photozhpc import __version__
from photozhpc.catalog.dispatch import CatalogRun, load_model, reason_of, stream_parts
from photozhpc.catalog.notes import Counts, read_notes, read_run, warnings_of
from photozhpc.catalog.pdf import check_part_and_pdf
from photozhpc.catalog.photoz_catalog import catalog_schema
from photozhpc.catalog.progress import SourceProgress
from photozhpc.catalog.run_folder import (
    ModelKey,
    Part,
    RunFolder,
    default_rows_per_part,
    file_sha256,
    note_part,
    plan_parts,
)
from photozhpc.errors import CatalogError, RunError, StoreError, first_few
from photozhpc.files.code_cache import code_cache
from photozhpc.files.disk import remove_stale_partials, sync_folder
from photozhpc.files.objects import AnyPath, location
from photozhpc.logs import LOG
from photozhpc.model.slow_imports import slow_imports
from photozhpc.printable import printable
from photozhpc.store import FluxTable, open_store
from photozhpc.store.unique import check_unique
from photozhpc.survey import Survey
from photozhpc.workers.dask_workers import DaskWorkers

if TYPE_CHECKING:
    from photozhpc.model.pdf import PdfForm

# Compiling takes half a minute, and saves a quarter of the time (docs/decisions.md).
COMPILE_FROM_ROWS = 1_000_000
MAX_PARTS_READ = 4096


@dataclass(frozen=True)
class RunSummary:
    """A finished catalogue.

    Attributes:
        path: the output folder; the parts are in path/catalog.
        counts: rows, flagged rows, rows without a redshift.
        n_parts_resumed: parts that earlier runs had finished.
        n_rows_new: rows made by this run.
        wall_seconds: duration of this run; `startup_seconds` of it passed until every worker had
            the model.
        pdf_form: "quantiles" or "grid" if p(z) is in path/pdf, else None.
        survey: of the store.
        warnings: what the run noted of the store: see `store_note.noise_warning`.
    """

    path: Path
    store_path: AnyPath
    checkpoint_path: Path
    survey_name: str
    counts: Counts
    n_parts: int
    n_parts_resumed: int
    n_rows_new: int
    wall_seconds: float
    startup_seconds: float
    pdf_form: str | None = None
    survey: Survey | None = None
    warnings: tuple[str, ...] = ()

    @property
    def catalog_path(self) -> Path:
        return self.path / "catalog"

    @property
    def sources_per_second(self) -> float:
        return self.n_rows_new / self.wall_seconds if self.wall_seconds > 0 else 0.0


def run_inference(
    store_path: str | AnyPath,
    checkpoint_path: str | Path,
    out: str | Path,
    survey: Survey | None = None,
    workers: DaskWorkers | None = None,
    *,
    rows_per_part: int | None = None,
    compiled: bool | None = None,
    progress: bool = True,
    pdf: "PdfForm | None" = None,
    command: str = "",
) -> RunSummary:
    """Make the catalogue of a store in `out`, or finish the one that was begun there.

    Args:
        survey: expected survey of the store; None: any.
        workers: the workers that do the work; None: `DaskWorkers.of()`, those of this machine.
        rows_per_part: minimum number of rows of a part; default: by the size of the store.
        compiled: run the model through compiled code; default: from COMPILE_FROM_ROWS sources.
        progress: show progress on stderr.
        pdf: also write p(z), in this form, to files beside those of the catalogue.
        command: the user's command line, for the provenance.

    Raises:
        StoreError, CheckpointError, ConfigError: the input is missing, damaged or does not fit.
        CatalogError: `out` holds another run, or another process is writing there.
        RunError: the disk is full, or some parts failed; finished parts are kept.
        KeyboardInterrupt: Ctrl-C, after the workers were stopped; finished parts are kept.
    """
    started = time.monotonic()
    checkpoint_path, out = Path(checkpoint_path), Path(out)
    workers = workers or DaskWorkers.of()
    if not workers.is_local:  # other machines have other working folders
        store_path = location(store_path).absolute()
        checkpoint_path, out = checkpoint_path.absolute(), out.absolute()
    store = open_store(store_path, survey)
    workers.import_early(*slow_imports(checkpoint_path))
    if survey is not None and survey.name != store.survey.name:
        raise StoreError(
            f"{store.path}: was made for survey '{store.survey.name}', not '{survey.name}'; pass "
            f"--survey {store.survey.name}, or another --store"
        )
    index = store.check_complete()
    n_rows = index.n_sources
    if not n_rows:
        raise StoreError(
            f"{store.path}: the store holds no sources; fill it with 'photozhpc extract'"
        )
    rows_per_part = default_rows_per_part(n_rows) if rows_per_part is None else rows_per_part
    parts = plan_parts(index.shard_lengths(), rows_per_part)
    compiled = n_rows >= COMPILE_FROM_ROWS if compiled is None else compiled
    if compiled and workers.is_local:
        with suppress(OSError):  # the workers report it
            code_cache()  # one for all workers
    model = ModelKey(
        store.path,
        checkpoint_path,
        file_sha256(checkpoint_path),
        workers.device,
        compiled,
        pdf,
        store.survey if isinstance(store, FluxTable) else None,
    )
    about = {
        "photozhpc": __version__,
        "n_parts": len(parts),
        "n_rows": n_rows,
        "survey": store.survey.name,
        "store": str(store.path.absolute()),
        "checkpoint": str(checkpoint_path.absolute()),
        "device": workers.device,
        "command": printable(command),
    }
    folder = RunFolder.of(out, index.fingerprint, rows_per_part, model)
    run = CatalogRun(store, model, folder, about)
    begun = folder.is_begun()
    with folder.locked():
        finished = _finished_parts(run, parts) if begun else {}
        unfinished = [part for part in parts if part.index not in finished]
        before = sum(finished.values(), Counts(0, 0, 0))
        counted = (n_rows, len(parts), len(unfinished))
        LOG.debug("infer: %s: %d sources, %d parts, %d to make", out, *counted)
        bar = SourceProgress(n_rows, before.rows, enabled=progress)
        if finished:
            bar.note(f"infer: {len(finished)} of {len(parts)} parts were finished before")
        try:
            if unfinished:
                _make(run, unfinished, workers, bar)
                folder.log("finished")
        except BaseException as error:
            folder.log("stopped", reason=reason_of(error))
            raise
        finally:
            bar.close()
            for parts_folder in (folder.pdf, folder.catalog):
                remove_stale_partials(parts_folder)
                sync_folder(parts_folder)
    notes = read_notes(out)
    if unnoted := [part.file_name for part in unfinished if part.index not in notes]:
        raise RunError(f"{out}: {unnoted[0]} was made, but has no note; run the same command again")
    counts = sum((notes[part.index].counts for part in unfinished), before)
    if counts.rows != n_rows:
        raise RunError(f"{out}: {counts.rows} rows were written for {n_rows} sources")
    return RunSummary(
        path=out,
        store_path=store.path,
        checkpoint_path=checkpoint_path,
        survey_name=store.survey.name,
        counts=counts,
        n_parts=len(parts),
        n_parts_resumed=len(finished),
        n_rows_new=counts.rows - before.rows,
        wall_seconds=time.monotonic() - started,
        startup_seconds=bar.started_at - started,
        pdf_form=pdf,
        survey=store.survey,
        warnings=warnings_of(read_run(out).about),
    )


def _finished_parts(run: CatalogRun, parts: list[Part]) -> dict[int, Counts]:
    """Return the counts of the parts that are sound and of this run, by index.

    Up to MAX_PARTS_READ parts are read whole. Of more, those with a note are accepted if they have
    the size that it says; `photozhpc verify` reads them all.
    """
    schema = catalog_schema(run.store.survey)
    form = run.folder.pdf_form
    notes = read_notes(run.folder.path)
    sizes, pdf_sizes = (
        {path.name: path.stat().st_size for path in folder.glob("part-*")}
        for folder in (run.folder.catalog, run.folder.pdf)
    )

    def check(part: Part) -> Counts | None:
        size, note = sizes.get(part.file_name), notes.get(part.index)
        if size is None:
            return None
        if len(sizes) > MAX_PARTS_READ and note is not None:
            agrees = (note.file.n_bytes, note.counts.rows) == (size, part.n_rows)
            if form is not None:
                pdf_size = None if note.pdf is None else note.pdf.n_bytes
                agrees &= pdf_size is not None and pdf_sizes.get(part.file_name) == pdf_size
            return note.counts if agrees else None
        path, identity = run.folder.part_path(part), run.folder.part_identity(part)
        try:
            actual = check_part_and_pdf(path, identity, part.n_rows, schema, form)
        except CatalogError:
            return None  # it is made again
        if note is None:  # its worker died before it wrote the note
            note_part(path, part, actual, 0.0)
        elif (note.file, note.pdf) != (actual.file, actual.pdf):
            return None
        return actual.counts

    with ThreadPoolExecutor(max_workers=min(CPU_COUNT, 16)) as pool:
        counts = pool.map(check, parts)
        return {part.index: n for part, n in zip(parts, counts, strict=True) if n is not None}


def _make(
    run: CatalogRun, unfinished: list[Part], workers: DaskWorkers, bar: SourceProgress
) -> None:
    """Make the unfinished parts in worker processes; errors as `run_inference`."""
    left = set(unfinished)

    def lost(worker: str) -> None:
        bar.note("infer: a worker died or froze; it is replaced and its part is made again")
        run.folder.log("worker lost", worker=worker)

    def done(part: Part) -> None:
        left.discard(part)
        bar.add(part.n_rows)

    with (
        ThreadPoolExecutor(1) as pool,
        workers.client(run.folder.path, lambda: len(left), lost) as client,
    ):
        unique = pool.submit(check_unique, run.store)  # while workers start and load the model
        if not workers.is_local:
            bar.note(f"infer: waiting for workers ({workers.described})")
            client.wait_for_workers(1)
        if run.model.compiled:
            bar.note("infer: compiling the model, unless this machine has compiled it before")
        comparison = load_model(client, run)
        if comparison.warning:
            bar.note(f"infer: {run.store.path}: {comparison.warning}")
            run.about["warnings"] = [comparison.warning]
        unique.result()
        run = replace(run, provenance=run.folder.begin(run.about), comparison=comparison)
        port = client.scheduler_info()["services"].get("dashboard")
        run.folder.log(
            "begun",
            workers=workers.described,
            parts_due=len(unfinished),
            pid=os.getpid(),
            metrics=f"http://127.0.0.1:{port}/metrics" if port and not workers.scheduler else None,
        )
        bar.start()
        failures = stream_parts(client, run, unfinished, workers, done)
        # A part that only waited at a worker is blamed for its death too: try each part alone.
        killed = [part for part, error in failures.items() if isinstance(error, KilledWorker)]
        if killed:
            alone = stream_parts(client, run, killed, workers, done, alone=True)
            failures = {p: e for p, e in failures.items() if p not in killed} | alone
    if not failures:
        return
    for part, error in failures.items():
        shards = [str(key) for key in part.shards]
        run.folder.log("set aside", part=part.index, shards=shards, reason=reason_of(error))
    reasons = [
        f"{part.file_name} (shards {part.shards[0]} to {part.shards[-1]}): {reason_of(error)}"
        for part, error in sorted(failures.items(), key=lambda item: item[0].index)
    ]
    raise RunError(
        f"{len(reasons)} of {run.about['n_parts']} parts could not be made: "
        f"{first_few(reasons, 3, '; ')}. The others are kept in {run.folder.catalog}; fix this "
        f"and run the same command again"
    )
