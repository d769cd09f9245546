"""The workers that make the parts of a catalogue: here, in Slurm jobs, or a Dask scheduler's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dask.system import CPU_COUNT
from distributed import Client

from photozhpc.errors import ConfigError
from photozhpc.workers.devices import Device, device_list
from photozhpc.workers.fork_server import PRELOAD, import_early
from photozhpc.workers.local import (
    local_client,
    worker_environments,
)
from photozhpc.workers.site import Site
from photozhpc.workers.slurm import scheduler_client, slurm_client, workers_per_job

# While one part is computed, another is read or written. A GPU needs more: for one part, decoding
# keeps a core about as busy as the bundled model keeps a GPU.
_TASKS_PER_CPU_WORKER = 2
_MAX_TASKS_PER_GPU_WORKER = 8


def tasks_per_worker(on_gpu: bool, n_cores: int) -> int:
    """Return how many parts a worker with `n_cores` cores handles at a time."""
    if not on_gpu:
        return _TASKS_PER_CPU_WORKER
    return max(_TASKS_PER_CPU_WORKER, min(_MAX_TASKS_PER_GPU_WORKER, n_cores))


@dataclass(frozen=True)
class DaskWorkers:
    """`n_workers` processes that handle `n_tasks` parts at a time each, on `device`.

    Attributes:
        devices: CUDA devices of this machine, shared among the processes; empty: the CPU.
        site, jobs: the Slurm site and the number of jobs in which they run.
        scheduler: address of the Dask scheduler that has them; the two numbers are then unknown.
    """

    n_workers: int
    n_tasks: int
    device: Literal["cpu", "cuda"]
    devices: tuple[str, ...] = ()
    site: Site | None = None
    jobs: int = 1
    scheduler: str | None = None

    @classmethod
    def of(
        cls,
        workers: int | None = None,
        device: Device = "auto",
        site: Site | None = None,
        jobs: int = 1,
        scheduler: str | None = None,
    ) -> "DaskWorkers":
        """Choose the processes on this machine, in the jobs of a site, or of a scheduler.

        Args:
            workers: processes, with `site` per job; None: one per CUDA device, or one per core.
            device: of the processes; with `site`, "auto" is the device that its `infer` requests.

        Raises:
            ConfigError: the arguments contradict each other.
        """
        if scheduler is not None:
            if site is not None or workers is not None:
                raise ConfigError("a scheduler has its own workers; leave out --site and --workers")
            return cls(1, 1, "cuda" if device == "cuda" else "cpu", scheduler=scheduler)
        if site is None:
            devices = tuple(device_list(device))
            n_workers = len(worker_environments(workers, devices))
            n_tasks = tasks_per_worker(bool(devices), CPU_COUNT // n_workers)
            return cls(n_workers, n_tasks, "cuda" if devices else "cpu", devices)
        on_gpu = device == "cuda" or (device == "auto" and site.infer.gpus_per_node > 0)
        n_workers = workers_per_job(site, workers)
        n_tasks = tasks_per_worker(on_gpu, site.infer.cpus_per_task // n_workers)
        return cls(n_workers * jobs, n_tasks, "cuda" if on_gpu else "cpu", site=site, jobs=jobs)

    @property
    def is_local(self) -> bool:
        return self.site is None and self.scheduler is None

    def import_early(self, *modules: str) -> None:
        """Begin to import what local workers need, while the caller prepares their work.

        Args:
            modules: that they need in addition.
        """
        if self.is_local and self.device == "cpu":
            import_early([*PRELOAD, *modules])

    @property
    def described(self) -> str:
        """A description for people."""
        if self.scheduler is not None:
            return f"scheduler {self.scheduler}"
        if self.site is not None:
            return f"{self.jobs} jobs of {self.n_workers // self.jobs} at site {self.site.name}"
        return f"{self.n_workers} processes"

    @contextmanager
    def client(
        self, out: Path, n_parts_left: Callable[[], int], on_worker_lost: Callable[[str], None]
    ) -> Iterator[Client]:
        """Give a Dask client of the workers.

        Args:
            out: folder for the credentials of Slurm jobs.
            n_parts_left: returns how many parts are to be made; decides on the number of jobs.
            on_worker_lost: called (in another thread) with the address of a worker that died.
        """
        if self.scheduler is not None:
            with scheduler_client(self.scheduler) as client:
                yield client
        elif self.site is not None:
            with slurm_client(
                self.site,
                self.jobs,
                out,
                workers=self.n_workers // self.jobs,
                tasks_per_worker=self.n_tasks,
                n_workers_needed=lambda: -(-n_parts_left() // self.n_tasks),
                on_worker_lost=on_worker_lost,
            ) as client:
                yield client
        else:
            with local_client(
                self.n_workers,
                self.device,
                devices=self.devices,
                tasks_per_worker=self.n_tasks,
                preload=PRELOAD,
                on_worker_lost=on_worker_lost,
            ) as client:
                yield client
