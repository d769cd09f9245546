"""Dask workers on other machines: jobs of Slurm, or whatever an existing scheduler has.

A Dask scheduler runs what anyone who reaches it sends. What listens beyond the loopback here does
so with TLS, and takes none but those who hold the credentials that were made for the run.
"""

import ipaddress
import os
import shlex
import shutil
import subprocess
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
from photozhpc.workers.local import (
    CONFIG,
    LOOPBACK_HTTP,
    LostWorkers,
    own_folder,
    quiet_logs,
    scheduler_options,
)
from photozhpc.workers.memory import WORKER_ENVIRONMENT
from photozhpc.workers.pinning import WORKERS_VARIABLE
from photozhpc.workers.site import Site

_CREDENTIALS = ".credentials"
_ROLES = ("client", "scheduler", "worker")
_ADAPT_EVERY = "2s"


def workers_per_job(site: Site, workers: int | None) -> int:
    """Return how many worker processes a job has: one per GPU, else one per core."""
    wanted = site.infer
    return workers or wanted.gpus_per_node or wanted.cpus_per_task


@contextmanager
def slurm_client(
    site: Site,
    jobs: int,
    folder: Path,
    *,
    workers: int | None = None,
    tasks_per_worker: int = 1,
    wanted: Callable[[], int],
    on_worker_lost: Callable[[str], None] | None = None,
) -> Iterator[Client]:
    """Give a client of a scheduler in this process, whose workers are jobs of Slurm.

    A job is a node's worth of workers, each pinned to a GPU of its own. There are as many jobs as
    `wanted` asks for, at most `jobs`; one that is cancelled or preempted is replaced by another.

    Args:
        folder: seen by all nodes; the credentials are there, for the user alone, while it runs.
        workers: per job; default: `workers_per_job`.
        wanted: returns how many workers there is work for; asked every few seconds.
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
        # Dask's scratch folder goes on Python's search path; its own may be somebody else's.
        "export DASK_TEMPORARY_DIRECTORY=$(mktemp -d)",
        "trap 'rm -rf \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
    ]
    losses = LostWorkers(on_worker_lost)
    config = {
        "distributed.scheduler.no-workers-timeout": None,  # Slurm's queue takes its time
        "temporary-directory": str(own_folder()),
    }
    with dask.config.set(CONFIG | config), quiet_logs(), _credentials(folder) as security:
        try:
            cluster = cluster_class(
                cores=n_workers * tasks_per_worker,
                processes=n_workers,
                memory="1 GB",  # the nannies set what there is (photozhpc/workers/pinning.py)
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
            raise RunError(f"the Dask scheduler did not start ({one_line(error)})") from error
        try:
            _check_accepted(cluster.job_script())
            cluster.adapt(
                Adaptive=_ByDemand, maximum=jobs * n_workers, interval=_ADAPT_EVERY, wanted=wanted
            )
            with Client(cluster, set_as_default=False) as client:
                yield client
        finally:
            losses.report = None
            cluster.close(timeout=60)  # cancels the jobs


@contextmanager
def scheduler_client(address: str) -> Iterator[Client]:
    """Give a client of a Dask scheduler that runs already.

    Its TLS credentials are those of Dask's configuration (distributed.comm.tls).

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
                f"{address}: no Dask scheduler lets us in ({one_line(error)})"
            ) from error
        with client:
            yield client


def check_address(address: str) -> None:
    """Refuse to send tasks, or take them, in the open.

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
        f"{address}: beyond this machine a scheduler has to be tls://HOST:PORT; without TLS "
        f"anyone on the network can run code in it"
    )


class _ByDemand(Adaptive):
    """Asks for as many workers as there is work for: the scheduler sees a part of it only."""

    def __init__(self, cluster: Any, wanted: Callable[[], int], **settings: Any) -> None:
        self.wanted = wanted
        super().__init__(cluster, **settings)

    async def target(self) -> int:
        return self.wanted()


def _check_accepted(script: str) -> None:
    """Ask Slurm whether it would take a job: later on, a refusal would go unheard.

    Raises:
        RunError: it would not, or is not there.
    """
    command = ["sbatch", "--test-only"]
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RunError("sbatch was not found; is this a login node of a Slurm site?") from None
    if done.returncode:
        raise RunError(f"Slurm refuses the workers' jobs: {' '.join(done.stderr.split())[:300]}")


def _slurm_cluster() -> Any:
    try:
        import cryptography  # noqa: F401

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it writes its default configuration to ~/.config
            from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed; pip install 'photozhpc[slurm]'"
        ) from error
    return SLURMCluster


@contextmanager
def _credentials(folder: Path) -> Iterator[Security]:
    """Make a key and a certificate for this run, which none but this user can read."""
    path = folder / _CREDENTIALS
    shutil.rmtree(path, ignore_errors=True)  # of a client that was killed
    path.mkdir(parents=True, mode=0o700)
    made = Security.temporary()
    files = {"ca": made.tls_ca_file, "cert": made.tls_worker_cert, "key": made.tls_worker_key}
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
