"""Dask on this machine: one worker process per device, out of reach of its other users."""

import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import dask
from dask.system import CPU_COUNT
from distributed import Client, Nanny, SpecCluster
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.scheduler import Scheduler
from distributed.system import MEMORY_LIMIT
from distributed.utils import get_mp_context

from photozhpc.errors import ConfigError, RunError, one_line
from photozhpc.logs import is_verbose
from photozhpc.workers.devices import Device, device_list
from photozhpc.workers.fork_server import (
    SERVER_ENVIRONMENT,
    environment_kept,
    import_early,
    private_scratch,
    program_hidden,
)
from photozhpc.workers.signals import signals_held_back
from photozhpc.workers.unix_sockets import PROTOCOL, LocalScheduler, LocalWorker

# torch, timm and a model take 0.6 GB; the rest holds two blocks of cutouts.
MIN_WORKER_BYTES = 2 << 30
# A frozen worker is killed and replaced after one to two times this without a heartbeat.
WORKER_TTL_SECONDS = 30
# Dask serves HTTP (health, Prometheus) even without a dashboard, by default on every interface.
LOOPBACK_HTTP = "127.0.0.1:0"
# A task is given up when more workers than this died while they ran it.
ALLOWED_FAILURES = 2

_QUIET_LOGGERS = ("distributed", "distributed.client", "distributed.worker", "tornado", "asyncio")
CONFIG: dict[str, Any] = {
    # Dask's defaults leak OMP_NUM_THREADS=1 into this process, and a trim threshold that makes
    # glibc map and unmap every temporary array. `worker_environments` sets the threads.
    "distributed.nanny.pre-spawn-environ": SERVER_ENVIRONMENT,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.no-workers-timeout": "120s",
    "distributed.diagnostics.nvml": False,
    # By default every process wakes up 70 times per second to monitor itself, which takes 5% of a
    # node whose cores are all busy.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "30s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.worker.memory.monitor-interval": "1s",
    # Without the pages that show every user of the machine what runs here.
    "distributed.scheduler.http.routes": [
        "distributed.http.scheduler.prometheus",
        "distributed.http.health",
    ],
    "distributed.worker.http.routes": [
        "distributed.http.worker.prometheus",
        "distributed.http.health",
    ],
}


def worker_environments(
    workers: int | None,
    devices: Sequence[str],
    n_cores: int = CPU_COUNT,
    memory_bytes: int = MEMORY_LIMIT,
) -> list[dict[str, str]]:
    """Return the environment variables of each worker: its device and its number of threads.

    Args:
        workers: how many; None: one per device, or one per core as far as memory allows.
        devices: from `device_list`; more workers than devices share them.

    Raises:
        ConfigError: `workers` is below one.
    """
    if workers is None:
        workers = len(devices) or max(1, min(n_cores, memory_bytes // MIN_WORKER_BYTES))
    if workers < 1:
        raise ConfigError(f"the number of workers must be at least 1, got {workers}")
    threads = str(max(1, n_cores // workers))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return [
        {
            **dict.fromkeys(names, threads),
            "CUDA_VISIBLE_DEVICES": devices[worker % len(devices)] if devices else "",
        }
        for worker in range(workers)
    ]


@contextmanager
def local_client(
    workers: int | None = None,
    device: Device = "auto",
    *,
    devices: Sequence[str] | None = None,
    tasks_per_worker: int = 1,
    preload: Sequence[str] = (),
    on_worker_lost: Callable[[str], None] | None = None,
) -> Iterator[Client]:
    """Start worker processes on this machine and give a client; stop them at the end.

    A worker that dies is replaced, and its tasks run again. Ctrl-C reaches only this process,
    which then stops the workers without waiting for their tasks.

    Args:
        workers: how many; None: one per CUDA device, or one per core.
        devices: the result of `device_list`, if the caller has it.
        tasks_per_worker: tasks that a worker runs at a time, in threads.
        preload: modules that every worker needs. Without CUDA they are imported once, in a
            process that then forks the workers: a dead worker is replaced in half a second.
        on_worker_lost: called (in another thread) with the address of a worker that died.

    Raises:
        ConfigError: see `device_list` and `worker_environments`.
        RunError: the workers did not start.
    """
    if devices is None:
        devices = device_list(device)
    environments = worker_environments(workers, devices)
    # An import of torch may initialise CUDA, which then fails in forked processes.
    method = "spawn" if devices else "forkserver"
    options = {
        "nthreads": tasks_per_worker,
        "host": str(private_scratch()),
        "protocol": PROTOCOL,
        "worker_class": LocalWorker,
        "memory_limit": MEMORY_LIMIT // len(environments),
        "dashboard": False,
        "silence_logs": _dask_level(),
    }
    # The process that forks the workers may be older than these settings of s3fs and photozhpc.
    prefixes = ("AWS_", "PHOTOZHPC_CACHE")
    settings = {name: value for name, value in os.environ.items() if name.startswith(prefixes)}
    specs = {
        name: {"cls": Nanny, "options": {**options, "env": {**settings, **environment}}}
        for name, environment in enumerate(environments)
    }
    with _local_settings(method), quiet_logs(), environment_kept(), program_hidden():
        losses = LostWorkers(on_worker_lost)
        cluster: SpecCluster | None = None
        completed = False
        try:
            with signals_held_back():
                if method == "forkserver":
                    get_mp_context()  # sets Dask's own list of imports, on the first call only
                    import_early(preload)
                cluster = _start(specs, losses)
            client = Client(cluster, set_as_default=False)
            try:
                yield client
                completed = True
            finally:
                with signals_held_back():
                    losses.report = None  # from here on, workers are meant to end
                    if not completed:
                        kill_workers(cluster)
                    client.close(timeout=5)
        finally:
            with signals_held_back():
                losses.report = None
                if cluster is not None:
                    if not completed:
                        kill_workers(cluster)
                    cluster.close(timeout=20)


@contextmanager
def _local_settings(method: str) -> Iterator[None]:
    """Use Dask's defaults and the settings here, and not the user's Dask files and DASK_*.

    Those belong to another cluster, or are left over from one.
    """
    settings = {
        "distributed": dask.config.merge(*dask.config.defaults)["distributed"],
        **CONFIG,
        "distributed.worker.multiprocessing-method": method,
        "temporary-directory": str(private_scratch()),
        "scheduler-address": None,
    }
    with dask.config.set(settings):
        yield


def kill_workers(cluster: SpecCluster) -> None:
    """Kill the worker processes at once: what they write is whole or absent in any case."""
    for nanny in list(cluster.workers.values()):
        nanny.close_gracefully()  # keeps it from starting another
        if nanny.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(nanny.pid, signal.SIGKILL)


def _start(specs: dict[int, dict[str, Any]], losses: SchedulerPlugin) -> SpecCluster:
    options = {
        **scheduler_options(losses),
        "host": str(private_scratch()),
        "protocol": PROTOCOL,
        "port": 0,
    }
    try:
        return SpecCluster(
            workers=specs,
            scheduler={"cls": LocalScheduler, "options": options},
            silence_logs=_dask_level(),
        )
    except (OSError, RuntimeError, TimeoutError) as error:
        raise RunError(
            f"the worker processes did not start ({one_line(error)}); try fewer --workers, and "
            f"check that there is room in {private_scratch().parent}"
        ) from error


def scheduler_options(losses: SchedulerPlugin) -> dict[str, Any]:
    """Return the options that every scheduler gets, here and on a cluster."""
    return {
        "dashboard": False,
        "dashboard_address": LOOPBACK_HTTP,
        "worker_ttl": f"{WORKER_TTL_SECONDS}s",
        "allowed_failures": ALLOWED_FAILURES,
        "plugins": [losses],
    }


class LostWorkers(SchedulerPlugin):
    """Reports workers that died or froze."""

    def __init__(self, report: Callable[[str], None] | None) -> None:
        self.report = report

    def remove_worker(self, scheduler: Scheduler, worker: str, **_: Any) -> None:
        if self.report is not None:
            self.report(worker)


def _dask_level() -> int:
    return logging.WARNING if is_verbose() else logging.CRITICAL


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep Dask's messages on lost connections, with tracebacks, off the terminal."""
    loggers = [logging.getLogger(name) for name in _QUIET_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(_dask_level())
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
