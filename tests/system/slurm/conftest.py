"""A Slurm of two nodes on this machine, started once for the tests of this folder."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
END = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


class Slurm:
    """The commands of Slurm, and what they say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *command: str | Path, check: bool = True, **options) -> str:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=60, **options
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What scontrol knows of a job; of an array, of its first task."""
        text = self.run("scontrol", "show", "job", "-o", number).splitlines()[0]
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def wait_for(self, number: str, states: set[str], seconds: float = 120) -> str:
        end = time.monotonic() + seconds
        while True:
            tasks = self.run("scontrol", "show", "job", "-o", number).splitlines()
            found = {
                dict(w.split("=", 1) for w in t.split() if "=" in w)["JobState"] for t in tasks
            }
            if found <= states:
                return found.pop()
            assert time.monotonic() < end, f"job {number} is {found}, not {states}\n{self.logs()}"
            time.sleep(0.1)

    def ends_well(self, number: str, seconds: float = 90) -> None:
        state = self.wait_for(number, END, seconds)
        assert state == "COMPLETED", f"job {number}: {state}\n{self.logs()}"

    def jobs(self, name: str) -> list[str]:
        """Numbers of the running jobs of a name."""
        return self.run("squeue", "-h", "-o", "%i", "-t", "R", "-n", name).split()

    def logs(self) -> str:
        texts = sorted(self.folder.glob("log*/*"), key=lambda path: path.stat().st_mtime)
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in texts[-6:])


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    missing = [name for name in ("slurmctld", "slurmd", "munged") if not shutil.which(name)]
    if missing or os.getuid() != 0:
        why = f"{', '.join(missing)} not installed" if missing else "not root"
        pytest.skip(f"no Slurm can be started here: {why} (apt-get install slurm-wlm munge)")
    with tempfile.TemporaryDirectory(prefix="slurm") as name:
        folder = Path(name)
        try:
            up = subprocess.run([HERE / "up.sh", name], capture_output=True, text=True, timeout=90)
            assert up.returncode == 0, up.stdout + up.stderr
            before = dict(os.environ)
            os.environ["SLURM_CONF"] = f"{name}/slurm.conf"
            os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            os.environ["OMP_NUM_THREADS"] = "1"
            (folder / "logs").mkdir()
            yield Slurm(folder)
            os.environ.clear()
            os.environ.update(before)
        finally:
            subprocess.run([HERE / "down.sh", name], capture_output=True, timeout=60)


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path):
    """Write a site file for the two nodes, with what a test wants different."""

    def make(**changes) -> Path:
        one = {"cpus_per_task": 1, "time": "00:10:00"}
        settings = {
            "scratch": str(slurm.folder / "logs"),
            "interface": "lo",
            "gpus_as": "--gres=gpu:{n}",
            "extract": one,
            "train": {**one, "nodes": 2, "tasks_per_node": 1},
            "infer": {**one, "cpus_per_task": 2},
            **changes,
        }
        path = tmp_path / "site.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return make
