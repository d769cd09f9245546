"""A pool of processes for independent jobs: the tiles of an extraction or a simulated sky."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from photozhpc.errors import RunError
from photozhpc.workers.fork_server import environment_kept, program_hidden, set_preload
from photozhpc.workers.signals import die_with_parent, signals_held_back

Result = TypeVar("Result")


def run_jobs(
    work: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    workers: int | None,
    doing: str,
    finished: Callable[[int, Result], None],
) -> None:
    """Call `work(*job)` for every job, in several processes, or in this one if one is enough.

    Signals that stop a run reach only this process. When it stops, for whatever reason, it kills
    the others: a job must write its files whole or not at all.

    Args:
        workers: processes, at most one per job; None: one per core.
        doing: what the jobs do, for the message about a killed process.
        finished: called here with the index of a job and its result, in the order of completion.

    Raises:
        RunError: a process was killed.
    """
    cores = len(os.sched_getaffinity(0))
    n_workers = max(1, min(workers or cores, len(jobs)))
    if n_workers == 1:
        for index, job in enumerate(jobs):
            finished(index, work(*job))
        return
    try:
        with signals_held_back(), environment_kept(), program_hidden():
            set_preload([work.__module__])
            context = multiprocessing.get_context("forkserver")
            settings = (max(1, cores // n_workers), dict(os.environ))
            pool = ProcessPoolExecutor(n_workers, context, _begin_worker, settings)
            futures = {pool.submit(work, *job): index for index, job in enumerate(jobs)}
        for future in as_completed(futures):
            finished(futures[future], future.result())
        pool.shutdown()
    except BrokenProcessPool:
        pool.shutdown()  # it has stopped the other processes: wait for their end
        raise RunError(
            f"a process was killed while {doing} (out of memory?); run the same command again with "
            "fewer --workers: finished work is kept"
        ) from None
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise


def _begin_worker(threads: int, environment: dict[str, str]) -> None:
    die_with_parent()
    os.environ.clear()  # the process that forks the workers may be older
    os.environ.update(environment)
    import numba

    # NUMBA_NUM_THREADS may allow fewer.
    numba.set_num_threads(min(threads, numba.get_num_threads()))
