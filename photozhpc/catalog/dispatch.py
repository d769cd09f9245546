"""Sends parts to the workers, a few at a time; tells errors of one part from those of the run."""

import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from distributed import Client, Future, KilledWorker, as_completed
from distributed.scheduler import NoWorkerError

from photozhpc.catalog.predict import Comparison, check_fit, compare, predict_part
from photozhpc.catalog.run_folder import ModelKey, Part, RunFolder
from photozhpc.errors import CheckpointError, ConfigError, PhotozError, RunError, one_line
from photozhpc.printable import printable
from photozhpc.store import CutoutStore, FluxTable
from photozhpc.workers.dask_workers import DaskWorkers

_AHEAD_SECONDS = 0.1
_POLL_SECONDS = 0.01
_MAX_AHEAD = 64


@dataclass(frozen=True)
class CatalogRun:
    """A run: which store, through which model, into which folder.

    Attributes:
        about: what run.json and every part say of the run, beside its identity.
        provenance: the whole run.json, as every part has it.
        comparison: from `load_model`; None: each part makes it.
    """

    store: CutoutStore | FluxTable
    model: ModelKey
    folder: RunFolder
    about: dict[str, Any]
    provenance: str = "{}"
    comparison: Comparison | None = None


def load_model(client: Client, run: CatalogRun) -> Comparison:
    """Load the model in every worker, and compare the store with its training store in one."""
    compared = client.submit(compare, run.model, key="compare")
    futures = [
        client.submit(
            check_fit,
            run.model,
            key=f"load-{address}",
            workers=[address],
            allow_other_workers=True,  # its worker may die and come back under another address
        )
        for address in client.scheduler_info(n_workers=-1)["workers"]
    ]
    for batch in _batches(client, as_completed([compared, *futures], loop=client.loop)):
        for future in batch:
            error = future.exception()
            if error is not None:
                raise _fatal(error) or RunError(f"the model cannot be loaded: {reason_of(error)}")
    comparison: Comparison = compared.result()
    return comparison


def stream_parts(
    client: Client,
    run: CatalogRun,
    parts: list[Part],
    workers: DaskWorkers,
    made: Callable[[Part], None],
    alone: bool = False,
) -> dict[Part, BaseException]:
    """Run parts through the workers; return the errors of those that failed.

    The scheduler gets few parts at a time. At first it gets one per worker, so that a result comes
    soon; then as many as the workers run at once, one more per worker, and as many as they finish
    in _AHEAD_SECONDS, submitted together. With `alone` it gets one part at a time.

    Args:
        made: called with each finished part.

    Raises:
        RunError, CheckpointError, ConfigError: an error that would fail every part.
    """
    n_workers, n_tasks = (1, 0) if alone else (workers.n_workers, workers.n_tasks)
    if workers.scheduler is not None and not alone:
        n_workers = len(client.nthreads())
        n_tasks = max(client.nthreads().values())

    def submit(batch: list[Part]) -> list[Future]:
        futures: list[Future] = client.map(
            predict_part,
            [run.model] * len(batch),
            batch,
            [run.folder.part_path(part) for part in batch],
            [run.folder.part_identity(part) for part in batch],
            [run.provenance] * len(batch),
            [run.comparison] * len(batch),
            # One name for all parts, because Dask never forgets a name.
            key=[("predict-part", part.index, n_tasks) for part in batch],
        )
        in_flight.update(zip(futures, batch, strict=True))
        return futures

    in_flight: dict[Future, Part] = {}
    failures: dict[Part, BaseException] = {}
    waiting = iter(parts)
    started, n_done = time.monotonic(), 0
    done = as_completed(submit(list(islice(waiting, n_workers))), loop=client.loop)
    for batch in _batches(client, done):
        for future in batch:
            part = in_flight.pop(future)
            error = future.exception()
            if error is None:
                made(part)
            elif fatal := _fatal(error):
                raise fatal from error
            else:
                failures[part] = error
        n_done += len(batch)
        ahead = min(_MAX_AHEAD, int(_AHEAD_SECONDS * n_done / (time.monotonic() - started)))
        # Towards the end each worker gets one part, so that none waits while another has two.
        depth = min(n_tasks + 1, max(1, (len(parts) - n_done) // (2 * n_workers)))
        ahead = ahead if n_tasks and depth > n_tasks else 0
        room = n_workers * depth + ahead - len(in_flight)
        if room > ahead // 2 and (more := list(islice(waiting, room))):
            done.update(submit(more))
    return failures


def _batches(client: Client, done: as_completed) -> Iterator[list[Future]]:
    """Yield finished futures in batches; Dask's own iterator waits for a dead scheduler forever.

    Raises:
        RunError: the scheduler is lost.
    """
    while not done.is_empty():
        if batch := done.next_batch(block=False):
            yield batch
        elif client.status == "running":
            time.sleep(_POLL_SECONDS)
        else:
            raise RunError(
                "the Dask scheduler was lost; run the same command again: finished parts are kept"
            )


def _fatal(error: BaseException) -> PhotozError | None:
    """Return the error to stop the run with, or None if other parts can still be made."""
    if isinstance(error, RunError | CheckpointError | ConfigError):
        return error
    if isinstance(error, NoWorkerError | CancelledError):
        return RunError(
            "the worker processes were lost and could not be restarted; run the same command "
            "again: finished parts are kept"
        )
    return None


def reason_of(error: BaseException) -> str:
    """Return why a part or a run failed, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "asked to stop"
    if isinstance(error, PhotozError):
        return str(error)
    if isinstance(error, KilledWorker):
        return "every worker that tried it died (out of memory, or killed)"
    return printable(f"{type(error).__name__}: {one_line(error)}")
