"""Dask workers on other machines: Slurm jobs, or those of an existing scheduler.

A Dask scheduler runs the code of anyone who reaches it. What listens beyond the loopback uses TLS,
and accepts only holders of the credentials that were made for the run.
"""

import ipaddress
import os
import shlex
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Client
from distributed.deploy.adaptive import Adaptive
from distributed.security import Security

from photozhpc.errors import ConfigError, RunError, one_line
from photozhpc.workers.fork_server import private_scratch
from photozhpc.workers.local import (
    CONFIG,
    LOOPBACK_HTTP,
    LostWorkers,
    quiet_logs,
    scheduler_options,
)
from photozhpc.workers.memory import WORKER_ENVIRONMENT
from photozhpc.workers.pinning import WORKERS_VARIABLE
from photozhpc.workers.site import Site, run_sbatch

_CREDENTIALS = ".credentials"
_ROLES = ("client", "scheduler", "worker")
_ADAPT_EVERY = "2s"


def workers_per_job(site: Site, workers: int | None) -> int:
    """Return how many worker processes a job has: one per GPU, else one per core."""
    return workers or site.infer.gpus_per_node or site.infer.cpus_per_task


@contextmanager
def slurm_client(
    site: Site,
    jobs: int,
    folder: Path,
    *,
    workers: int | None = None,
    tasks_per_worker: int = 1,
    n_workers_needed: Callable[[], int],
    on_worker_lost: Callable[[str], None] | None = None,
) -> Iterator[Client]:
    """Give a client of a scheduler in this process, whose workers are Slurm jobs.

    A job fills one node with workers, each pinned to a GPU. There are as many jobs as
    `n_workers_needed` asks for, at most `jobs`; a job that is cancelled or preempted is replaced.

    Args:
        folder: visible to all nodes; holds the credentials, readable by the user alone, meanwhile.
        workers: per job; default: `workers_per_job`.
        n_workers_needed: returns how many workers there is work for; called every few seconds.
        on_worker_lost: called (in another thread) with the address of a worker that died.

    Raises:
        ConfigError: dask-jobqueue or cryptography is not installed.
        RunError: the scheduler could not start, or Slurm refused the first job.
    """
    cluster_class = _slurm_cluster()
    n_workers = workers_per_job(site, workers)
    environment = {
        **WORKER_ENVIRONMENT,
        **_dask_environment(CONFIG),
        WORKERS_VARIABLE: str(n_workers),
    }
    prologue = [
        *site.setup,
        *(f"export {k}={shlex.quote(v)}" for k, v in environment.items()),
        # Dask's scratch folder goes on Python's search path; its default may be another user's.
        "export DASK_TEMPORARY_DIRECTORY=$(mktemp -d)",
        "trap 'rm -rf \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
    ]
    losses = LostWorkers(on_worker_lost)
    config = {
        "distributed.scheduler.no-workers-timeout": None,  # jobs may wait long in Slurm's queue
        "temporary-directory": str(private_scratch()),
    }
    with dask.config.set(CONFIG | config), quiet_logs(), _credentials(folder) as security:
        try:
            cluster = cluster_class(
                cores=n_workers * tasks_per_worker,
                processes=n_workers,
                memory="1 GB",  # the nannies set the real limit (photozhpc/workers/pinning.py)
                job_cpu=site.infer.cpus_per_task,
                job_directives_skip=["--mem", "-t "],
                job_extra_directives=[*site.sbatch_options("infer"), "--no-requeue", "--nodes=1"],
                job_script_prologue=prologue,
                job_name="photozhpc-worker",
                log_directory=str(site.log_folder()),
                worker_extra_args=[
                    *("--preload-nanny", "photozhpc.workers.pinning"),
                    *("--no-dashboard", "--dashboard-address", LOOPBACK_HTTP),
                ],
                death_timeout=60,
                interface=site.interface,
                security=security,
                scheduler_options=scheduler_options(losses),
            )
        except (OSError, RuntimeError, ValueError, TimeoutError) as error:
            raise RunError(
                f"the Dask scheduler did not start ({one_line(error)}); check `interface` in the "
                "site's YAML file"
            ) from error
        try:
            # Later on, a refusal would go unnoticed.
            command = ("sbatch", "--test-only")
            run_sbatch(command, "Slurm refuses the workers' jobs", input=cluster.job_script())
            cluster.adapt(
                Adaptive=_ByDemand,
                maximum=jobs * n_workers,
                interval=_ADAPT_EVERY,
                n_workers_needed=n_workers_needed,
            )
            with Client(cluster, set_as_default=False) as client:
                yield client
        finally:
            losses.report = None
            cluster.close(timeout=60)  # cancels the jobs


@contextmanager
def scheduler_client(address: str) -> Iterator[Client]:
    """Give a client of an existing Dask scheduler.

    The TLS credentials are those of Dask's configuration (distributed.comm.tls).

    Raises:
        ConfigError: the address is beyond the loopback, and not tls://.
        RunError: no scheduler answers there.
    """
    check_address(address)
    with dask.config.set(CONFIG), quiet_logs():
        try:
            client = Client(address, set_as_default=False, timeout="20s")
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise RunError(
                f"{address}: no Dask scheduler accepts the connection ({one_line(error)}); check "
                "the address and distributed.comm.tls in Dask's configuration"
            ) from error
        with client:
            yield client


def check_address(address: str) -> None:
    """Refuse unencrypted connections to other machines.

    Raises:
        ConfigError: the address is beyond the loopback, and not tls://.
    """
    scheme, _, rest = address.partition("://")
    host = rest.rpartition(":")[0].strip("[]")
    if scheme == "tls":
        return
    with suppress(ValueError):
        if scheme == "tcp" and (host == "localhost" or ipaddress.ip_address(host).is_loopback):
            return
    raise ConfigError(
        f"{address}: a scheduler on another machine must be tls://HOST:PORT; without TLS anyone on "
        "the network can run code in it"
    )


class _ByDemand(Adaptive):
    """Asks for as many workers as there is work for, of which the scheduler sees only a part."""

    def __init__(self, cluster: Any, n_workers_needed: Callable[[], int], **settings: Any) -> None:
        self.n_workers_needed = n_workers_needed
        super().__init__(cluster, **settings)

    async def target(self) -> int:
        return self.n_workers_needed()


def _slurm_cluster() -> Any:
    try:
        import cryptography  # noqa: F401

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its default configuration in ~/.config
            from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; run pip install 'photozhpc[slurm]'"
        ) from error
    return SLURMCluster


@contextmanager
def _credentials(folder: Path) -> Iterator[Security]:
    """Make a key and a certificate for this run, which only this user can read."""
    path = folder / _CREDENTIALS
    shutil.rmtree(path, ignore_errors=True)  # left by a client that was killed
    path.mkdir(parents=True, mode=0o700)
    new = Security.temporary()
    files = {"ca": new.tls_ca_file, "cert": new.tls_worker_cert, "key": new.tls_worker_key}
    for name, content in files.items():
        handle = os.open(path / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as stream:
            stream.write(content)
    ca, cert, key = (str(path / name) for name in files)
    try:
        yield Security(
            require_encryption=True,
            tls_ca_file=ca,
            **{f"tls_{role}_cert": cert for role in _ROLES},
            **{f"tls_{role}_key": key for role in _ROLES},
        )
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _dask_environment(config: dict[str, Any]) -> dict[str, str]:
    """Return Dask's settings as the environment variables that a worker reads them from."""
    return {
        "DASK_" + key.upper().replace(".", "__").replace("-", "_"): str(value)
        for key, value in config.items()
        if not isinstance(value, dict)
    } | {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": os.environ.get("PHOTOZHPC_LOG", "warning")}
