"""Who makes the parts of a catalogue: processes here, in Slurm jobs, or of a Dask scheduler."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dask.system import CPU_COUNT
from distributed import Client

from photozhpc.errors import ConfigError
from photozhpc.workers.local import Device, device_list, local_client, worker_environments
from photozhpc.workers.site import Site
from photozhpc.workers.slurm import scheduler_client, slurm_client, workers_per_job

# While one part is computed another is read or written. A GPU is fed by more: decoding takes
# about as much of a core as the bundled model takes of a GPU.
_TASKS_PER_CPU_WORKER = 2
_MAX_TASKS_PER_GPU_WORKER = 8
PRELOAD = ("photozhpc.catalog.worker",)


def tasks_per_worker(on_gpu: bool, n_cores: int) -> int:
    """Return how many parts a worker with so many cores has in work at a time."""
    if not on_gpu:
        return _TASKS_PER_CPU_WORKER
    return max(_TASKS_PER_CPU_WORKER, min(_MAX_TASKS_PER_GPU_WORKER, n_cores))


@dataclass(frozen=True)
class DaskWorkers:
    """`n_workers` processes with `n_tasks` parts in work each, on `device`.

    Attributes:
        devices: CUDA devices here, one for each process; empty: the processors.
        site, jobs: they are in so many jobs of a Slurm site.
        scheduler: address of the scheduler whose they are; then the two numbers are not known.
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
                raise ConfigError("a scheduler has its own workers: no --site, no --workers")
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

    @property
    def described(self) -> str:
        """Who they are, for people."""
        if self.scheduler is not None:
            return f"scheduler {self.scheduler}"
        if self.site is not None:
            return f"{self.jobs} jobs of {self.n_workers // self.jobs} at site {self.site.name}"
        return f"{self.n_workers} processes"

    @contextmanager
    def client(
        self, out: Path, wanted: Callable[[], int], lost: Callable[[str], None]
    ) -> Iterator[Client]:
        """Give a client, of which at least one worker is there."""
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
                wanted=lambda: -(-wanted() // self.n_tasks),
                on_worker_lost=lost,
            ) as client:
                yield client
        else:
            with local_client(
                self.n_workers,
                self.device,
                devices=self.devices,
                tasks_per_worker=self.n_tasks,
                preload=PRELOAD,
                on_worker_lost=lost,
            ) as client:
                yield client
