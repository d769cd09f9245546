"""Streams a whole store through the model, part by part; can be stopped and taken up again."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.system import CPU_COUNT
from distributed import KilledWorker

from photozhpc import __version__
from photozhpc.catalog.dispatch import CatalogRun, load_model, reason_of, stream_parts
from photozhpc.catalog.notes import Counts
from photozhpc.catalog.pdf import check_pdf_part, pdf_path
from photozhpc.catalog.photoz_catalog import catalog_schema, check_part
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
from photozhpc.printable import printable
from photozhpc.store import CutoutStore
from photozhpc.store.unique import check_unique
from photozhpc.survey import Survey
from photozhpc.workers.dask_workers import PRELOAD, DaskWorkers
from photozhpc.workers.local import Device, import_early
from photozhpc.workers.site import Site

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
        n_rows_new: rows made by this run, in `wall_seconds` of which `startup_seconds` went by
            until every worker had the model.
        pdf_form: "quantiles" or "grid" where p(z) stands in path/pdf; None: it does not.
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
    workers: int | None = None,
    device: Device = "auto",
    *,
    rows_per_part: int | None = None,
    compiled: bool | None = None,
    progress: bool = True,
    site: Site | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    pdf: "PdfForm | None" = None,
    command: str = "",
) -> RunSummary:
    """Make the catalogue of a store in `out`, or finish the one that was begun there.

    Args:
        survey: what the store is expected to be of; None: whatever it is of.
        workers: worker processes, with `site` those of a job; None: one a CUDA device, or one a
            core.
        device: of the workers; with `site`, "auto" is what its `infer` asks for.
        rows_per_part: a part is this many rows or more; default: by the size of the store.
        compiled: run the model through compiled code; default: from COMPILE_FROM_ROWS sources.
        progress: tell of it on stderr.
        site, jobs: have the workers in so many jobs of a Slurm site; None: on this machine.
        scheduler: address of a Dask scheduler whose workers are to do it.
        pdf: write p(z) too, in this form, to files beside those of the catalogue.
        command: that the user gave, for the provenance.

    Raises:
        StoreError, CheckpointError, ConfigError: the input is missing, damaged or does not fit.
        CatalogError: `out` holds another run, or another process is writing there.
        RunError: the disk is full, or parts had to be set aside; what is finished is kept.
        KeyboardInterrupt: Ctrl-C, after the workers were stopped; what is finished is kept.
    """
    started = time.monotonic()
    checkpoint_path, out = Path(checkpoint_path), Path(out)
    processes = DaskWorkers.of(workers, device, site, jobs, scheduler)
    if not processes.is_local:  # what other machines are told
        store_path = location(store_path).absolute()
        checkpoint_path, out = checkpoint_path.absolute(), out.absolute()
    store = CutoutStore.open(store_path)
    if processes.is_local and processes.device == "cpu":
        import_early(PRELOAD)
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
    if compiled and processes.is_local:
        with suppress(OSError):  # of which the workers tell
            code_cache()  # one for all of them
    model = ModelKey(
        store.path, checkpoint_path, file_sha256(checkpoint_path), processes.device, compiled, pdf
    )
    folder = RunFolder.of(out, index.fingerprint, rows_per_part, model)
    run = CatalogRun(store, model, folder, command)
    begun = run.folder.is_begun()
    with run.folder.locked():
        finished = _finished_parts(run, parts) if begun else {}
        unfinished = [part for part in parts if part.index not in finished]
        before = sum(finished.values(), Counts(0, 0, 0))
        LOG.debug(
            "infer: %s: %d sources, %d parts, %d due", out, n_rows, len(parts), len(unfinished)
        )
        bar = SourceProgress(n_rows, before.rows, enabled=progress)
        if finished:
            bar.note(f"infer: {len(finished)} of {len(parts)} parts were finished before")
        try:
            if unfinished:
                _make(run, unfinished, processes, bar, len(parts), n_rows)
                run.folder.log("finished")
        except BaseException as error:
            run.folder.log("stopped", reason=reason_of(error))
            raise
        finally:
            bar.close()
            for parts_folder in (run.folder.pdf, run.folder.catalog):
                remove_stale_partials(parts_folder)
                sync_folder(parts_folder)
    notes = run.folder.notes()
    missing = [part.file_name for part in unfinished if part.index not in notes]
    if missing:
        raise RunError(f"{out}: {missing[0]} was made, but not noted; run the same command again")
    counts = sum((notes[part.index].counts for part in unfinished), before)
    if counts.rows != n_rows:
        raise RunError(f"{out}: {counts.rows} rows were written for {n_rows} sources")
    return RunSummary(
        path=run.folder.path,
        store_path=store.path,
        checkpoint_path=run.model.checkpoint_path,
        survey_name=store.survey.name,
        counts=counts,
        n_parts=len(parts),
        n_parts_resumed=len(finished),
        n_rows_new=counts.rows - before.rows,
        wall_seconds=time.monotonic() - started,
        startup_seconds=bar.started_at - started,
        pdf_form=pdf,
    )


def _finished_parts(run: CatalogRun, parts: list[Part]) -> dict[int, Counts]:
    """Return the counts of the parts that are there, sound, and of this run, by index.

    Up to MAX_PARTS_READ parts are read whole. Of more, those that were noted as finished are
    believed if they have the size that was noted; `photozhpc verify` reads them all.
    """
    schema = catalog_schema(run.store.survey)
    form = run.folder.pdf_form
    sizes, notes = run.folder.part_sizes(), run.folder.notes()
    pdf_sizes = run.folder.part_sizes(run.folder.pdf)

    def check(part: Part) -> Counts | None:
        size, note = sizes.get(part.file_name), notes.get(part.index)
        if size is None:
            return None
        if len(sizes) > MAX_PARTS_READ and note is not None:
            as_noted = (note.file.n_bytes, note.counts.rows) == (size, part.n_rows)
            if form is not None:
                pdf_size = None if note.pdf is None else note.pdf.n_bytes
                as_noted &= pdf_size is not None and pdf_sizes.get(part.file_name) == pdf_size
            return note.counts if as_noted else None
        path = run.folder.part_path(part)
        try:
            identity = run.folder.part_identity(part)
            made = check_part(path, identity, part.n_rows, schema)
            if form is not None:
                file = check_pdf_part(pdf_path(path), identity, part.n_rows, form)
                made = replace(made, pdf=file)
        except CatalogError:
            return None  # it is made anew
        if note is None:  # its worker died before it could
            note_part(path, part, made, 0.0)
        elif (note.file, note.pdf) != (made.file, made.pdf):
            return None
        return made.counts

    with ThreadPoolExecutor(max_workers=min(CPU_COUNT, 16)) as pool:
        counts = pool.map(check, parts)
        return {part.index: n for part, n in zip(parts, counts, strict=True) if n is not None}


def _make(
    run: CatalogRun,
    unfinished: list[Part],
    processes: DaskWorkers,
    bar: SourceProgress,
    n_parts: int,
    n_rows: int,
) -> None:
    """Make the parts that are unfinished, in worker processes.

    Raises:
        RunError, CheckpointError: as `run_inference`.
    """
    left = set(unfinished)

    def lost(worker: str) -> None:
        bar.note("infer: a worker died or froze; it is replaced and its part is made again")
        run.folder.log("worker lost", worker=worker)

    def done(part: Part) -> None:
        left.discard(part)
        bar.add(part.n_rows)

    with (
        ThreadPoolExecutor(1) as pool,
        processes.client(run.folder.path, lambda: len(left), lost) as client,
    ):
        unique = pool.submit(check_unique, run.store)  # while workers start and load the model
        if not processes.is_local:
            bar.note(f"infer: waiting for workers ({processes.described})")
            client.wait_for_workers(1)
        if run.model.compiled:
            bar.note("infer: compiling the model, if that was not done on this machine before")
        load_model(client, run)
        unique.result()
        run = replace(run, provenance=run.folder.begin(_about(run, n_parts, n_rows)))
        port = client.scheduler_info()["services"].get("dashboard")
        run.folder.log(
            "begun",
            workers=processes.described,
            parts_due=len(unfinished),
            pid=os.getpid(),
            metrics=f"http://127.0.0.1:{port}/metrics"
            if port and not processes.scheduler
            else None,
        )
        bar.start()
        failures = stream_parts(client, run, unfinished, processes, done)
        # A part is blamed too for the death of a worker at which it only waited: try it alone.
        killed = [part for part, error in failures.items() if isinstance(error, KilledWorker)]
        if killed:
            alone = stream_parts(client, run, killed, processes, done, alone=True)
            failures = {p: e for p, e in failures.items() if p not in killed} | alone
    for part, error in failures.items():
        shards = [str(key) for key in part.shards]
        run.folder.log("set aside", part=part.index, shards=shards, reason=reason_of(error))
    if failures:
        raise RunError(_failure_line(run.folder, failures, n_parts))


def _about(run: CatalogRun, n_parts: int, n_rows: int) -> dict[str, Any]:
    """Return what run.json and every part say of the run, beside its identity."""
    return {
        "photozhpc": __version__,
        "n_parts": n_parts,
        "n_rows": n_rows,
        "survey": run.store.survey.name,
        "store": str(run.store.path.absolute()),
        "checkpoint": str(run.model.checkpoint_path.absolute()),
        "device": run.model.device,
        "command": printable(run.command),
    }


def _failure_line(folder: RunFolder, failures: dict[Part, BaseException], n_parts: int) -> str:
    shown = [
        f"{part.file_name} (shards {part.shards[0]} to {part.shards[-1]}): {reason_of(error)}"
        for part, error in sorted(failures.items(), key=lambda item: item[0].index)
    ]
    return (
        f"{len(shown)} of {n_parts} parts could not be made: "
        f"{first_few(shown, 3, '; ')}. The others are kept in {folder.catalog}; "
        f"mend this and run the same command again"
    )
