"""Loaded by the Dask nannies of a Slurm job (--preload-nanny): gives each a device and cores."""

import os

from distributed import Nanny
from distributed.system import MEMORY_LIMIT

from photozhpc.workers.devices import visible_devices
from photozhpc.workers.local import worker_environments

WORKERS_VARIABLE = "PHOTOZHPC_WORKERS"


def dask_setup(nanny: Nanny) -> None:
    """Set the environment with which the worker starts, and its share of memory.

    `dask worker` names the workers of a job NAME-0, NAME-1 and so on, or NAME if there is one.
    """
    n_workers = int(os.environ[WORKERS_VARIABLE])
    number = int(str(nanny.name).rpartition("-")[2]) if n_workers > 1 else 0
    n_cores = len(os.sched_getaffinity(0))
    environments = worker_environments(n_workers, visible_devices(), n_cores)
    nanny.env.update(environments[number])
    nanny.memory_manager.memory_limit = MEMORY_LIMIT // n_workers
