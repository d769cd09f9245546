"""A Slurm site: its partitions, and how a stage of the pipeline is submitted there."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from photozhpc.config import config_path, from_mapping, load_yaml
from photozhpc.errors import ConfigError, RunError, did_you_mean

JOBS_DIR = Path(__file__).parents[1] / "jobs"
STAGES = ("extract", "train", "infer")
# A job is asked to stop five minutes before its limit: see --signal in jobs/*.slurm.
_MIN_MINUTES = 10


@dataclass(frozen=True)
class Resources:
    """What a job of a stage requests.

    Attributes:
        cpus_per_task, nodes, tasks_per_node, gpus_per_node: as for sbatch.
        time: limit, as sbatch takes it, e.g. "04:00:00".
        partition: for this stage; None: the site's.
        options: further options of sbatch, e.g. ["--qos=regular"].
    """

    cpus_per_task: int
    time: str
    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    partition: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.cpus_per_task, self.nodes, self.tasks_per_node) < 1 or self.gpus_per_node < 0:
            raise ValueError(
                "nodes, tasks_per_node and cpus_per_task must be at least 1, and gpus_per_node 0"
            )
        if _minutes(self.time) < _MIN_MINUTES:
            raise ValueError(
                f"time must be like 04:00:00 or 1-12:00:00, and {_MIN_MINUTES} minutes or more (a "
                f"job is asked to stop five minutes before its end), got '{self.time[:60]}'"
            )
        for option in self.options:
            if not option.startswith("-"):
                raise ValueError(
                    f"'{option[:60]}' is not an option of sbatch: it must begin with -"
                )


def _minutes(time: str) -> float:
    """Return the minutes of a time as sbatch takes it: [D-]H:M:S, D-H:M, D-H, M:S or M; 0: none."""
    match = re.fullmatch(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d\d))?(?::(\d\d))?", time)
    if match is None:
        return 0.0
    days, *rest = match.groups()
    numbers = [int(text) for text in rest if text is not None]
    if days is None and len(numbers) < 3:
        return numbers[0] + (numbers[1] / 60 if len(numbers) == 2 else 0)
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60


@dataclass(frozen=True)
class Site:
    """Where jobs go; see configs/sites/generic.yaml.

    Attributes:
        extract, train, infer: what a job of that stage requests.
        account, partition: Slurm's; None: the user's default.
        scratch: folder for job logs; may contain environment variables; None: the current folder.
        setup: shell commands at the start of every job.
        gpus_as: the sbatch option that requests {n} GPUs per node.
        interface: network interface that Dask uses between nodes, e.g. "ib0"; None: the default.
        name: shown in messages; empty: the file's name.
    """

    extract: Resources
    train: Resources
    infer: Resources
    account: str | None = None
    partition: str | None = None
    scratch: str | None = None
    setup: tuple[str, ...] = ()
    gpus_as: str = "--gpus-per-node={n}"
    interface: str | None = None
    name: str = field(default="")

    def __post_init__(self) -> None:
        if "{n}" not in self.gpus_as:
            raise ValueError("gpus_as must have {n} in place of the number of GPUs")

    def resources(self, stage: str) -> Resources:
        """Return what a job of a stage requests."""
        resources: Resources = getattr(self, stage)
        return resources

    def sbatch_options(self, stage: str) -> list[str]:
        """Return the options of sbatch for a stage, except the numbers of nodes, tasks and CPUs."""
        resources = self.resources(stage)
        partition = resources.partition or self.partition
        options = [f"--account={self.account}"] if self.account else []
        options += [f"--partition={partition}"] if partition else []
        options += [f"--time={resources.time}"]
        if resources.gpus_per_node:
            options.append(self.gpus_as.replace("{n}", str(resources.gpus_per_node)))
        return [*options, *resources.options]

    def log_folder(self) -> Path:
        """Return the folder of the jobs' logs.

        Raises:
            ConfigError: a variable in `scratch` is not set.
        """
        if self.scratch is None:
            return Path.cwd()
        folder = os.path.expanduser(os.path.expandvars(self.scratch))
        if "$" in folder:
            raise ConfigError(
                f"site '{self.name}': scratch is '{self.scratch}', and a variable in it is not "
                "set; export it first"
            )
        return Path(folder)


def load_site(name_or_path: str | Path) -> Site:
    """Read a bundled site by its name, or a YAML file by its path.

    Raises:
        ConfigError: it does not exist, or has an unknown key or a wrong type.
    """
    path = config_path(name_or_path, "site")
    return from_mapping(Site, {"name": path.stem, **load_yaml(path)}, str(path))


@dataclass(frozen=True)
class BatchJob:
    """A batch job, ready to be submitted.

    Attributes:
        command: sbatch, its options, the job script, and the arguments of the stage.
        environment: variables that are added to the caller's environment.
        script: the file of the job script.
    """

    command: tuple[str, ...]
    environment: dict[str, str]
    script: Path

    def __str__(self) -> str:
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " ".join([*settings, shlex.join(self.command)])

    def submit(self) -> str:
        """Submit the job and return its number.

        Raises:
            RunError: sbatch was not found, or refuses the job.
        """
        answer = run_sbatch(self.command, "sbatch refused", env=os.environ | self.environment)
        return answer.strip().split(";")[0]


def run_sbatch(command: Sequence[str], refusal: str, **settings: Any) -> str:
    """Run a command of sbatch, and return what it prints.

    Args:
        refusal: begins the message if sbatch fails.
        settings: further arguments of `subprocess.run`.

    Raises:
        RunError: sbatch was not found, or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, **settings)
    except FileNotFoundError:
        raise RunError("sbatch was not found; run this on a login node of a Slurm site") from None
    if done.returncode:
        raise RunError(f"{refusal}: {' '.join(done.stderr.split())[:300]}")
    return str(done.stdout)


def make_job(
    site: Site,
    stage: str,
    arguments: Sequence[str],
    *,
    nodes: int | None = None,
    array: int = 1,
    after: Sequence[str] = (),
    only_one: str | None = None,
) -> BatchJob:
    """Return the job that runs a stage at a site.

    Args:
        arguments: of `photozhpc STAGE`.
        nodes: default: the site's.
        array: number of jobs that share the tiles of an extraction.
        after: numbers of jobs that must succeed before this one starts.
        only_one: a name; of jobs with the same name, one runs at a time.

    Raises:
        ConfigError: the stage is unknown, or an option does not apply to it.
    """
    if stage not in STAGES:
        raise ConfigError(f"unknown stage '{stage}'{did_you_mean(stage, STAGES)}")
    if array != 1 and stage != "extract":
        raise ConfigError(f"--array is for extract: {stage} is one job")
    if nodes not in (None, 1) and stage != "train":
        raise ConfigError(f"--nodes is for train: {stage} runs on one node per job")
    resources = site.resources(stage)
    name = f"photozhpc-{stage}" + (f"-{only_one}" if only_one else "")
    depends = [f"afterok:{':'.join(after)}"] if after else []
    depends += ["singleton"] if only_one else []
    options = [
        "--parsable",
        f"--job-name={name}",
        *site.sbatch_options(stage),
        f"--nodes={nodes or resources.nodes}",
        f"--ntasks-per-node={resources.tasks_per_node}",
        f"--cpus-per-task={resources.cpus_per_task}",
        f"--output={site.log_folder() / '%x-%j.log'}",
    ]
    options += [f"--array=0-{array - 1}"] if array > 1 else []
    options += [f"--dependency={','.join(depends)}"] if depends else []
    options += ["--kill-on-invalid-dep=yes"] if after else []
    script = JOBS_DIR / f"{stage}.slurm"
    environment = {"PHOTOZHPC_SETUP": "\n".join(site.setup)} if site.setup else {}
    return BatchJob(("sbatch", *options, str(script), *arguments), environment, script)
