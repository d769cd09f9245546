"""Extraction by several jobs at a time, stopped and killed: the same store in the end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from photozhpc.cli import main
from photozhpc.extraction.extract import extract
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")


def start(sky: Path, store: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "photozhpc", "extract", "--survey", "roman-sim"]
    command += ["--mosaics", str(sky), "--store", str(store), "--size", "48", *options]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "NUMBA_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def whole(small_sky, tmp_path_factory) -> CutoutStore:
    path = tmp_path_factory.mktemp("whole") / "store"
    extract(SURVEY, small_sky, path, size=48, workers=1)
    return CutoutStore.open(path)


@pytest.mark.timeout(120)
def test_jobs_that_share_the_tiles_and_twins_make_one_store(small_sky, whole, tmp_path):
    """Two of each share: a job that Slurm took for dead goes on beside its successor."""
    jobs = [start(small_sky, tmp_path / "store", "--share", f"{i}/2") for i in (0, 1, 0, 1)]
    for job in jobs:
        said, _ = job.communicate(timeout=100)
        assert job.returncode == 0, said
    store = CutoutStore.open(tmp_path / "store")
    assert store.verify() == []
    store.check_complete()
    assert store.fingerprint() == whole.fingerprint()
    assert not list(store.path.rglob("*.partial"))


def test_a_share_does_its_tiles_alone(small_sky, tmp_path):
    summary = extract(SURVEY, small_sky, tmp_path / "store", size=48, workers=1, share=(1, 2))
    assert summary.tiles == 1
    summary = extract(SURVEY, small_sky, tmp_path / "store", size=48, workers=1)
    assert (summary.tiles, summary.skipped_tiles) == (2, 1)


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "1/0", "/"])
def test_a_share_that_makes_no_sense_is_refused(text):
    arguments = ["extract", "--survey", "roman-sim", "--mosaics", ".", "--store", "s"]
    done = CliRunner().invoke(main, [*arguments, "--share", text])
    assert done.exit_code == 2
    assert "--share must be like 0/8 to 7/8" in done.output


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "group", "code"),
    [
        (signal.SIGUSR1, True, 75),
        (signal.SIGTERM, True, 75),
        (signal.SIGTERM, False, 75),
        (signal.SIGKILL, False, -9),
    ],
)
def test_stopped_it_leaves_nobody_behind_and_goes_on(
    small_sky, whole, tmp_path, number, group, code
):
    job = start(small_sky, tmp_path / "store", "--workers", "2")
    end = time.monotonic() + 60
    while not (tmp_path / "store" / "plan.json").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    family = psutil.Process(job.pid).children(recursive=True)
    (os.killpg if group else os.kill)(job.pid, number)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == code, said
    if number != signal.SIGKILL:  # which may orphan a process that is just being started
        assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
    extract(SURVEY, small_sky, tmp_path / "store", size=48, workers=1)
    store = CutoutStore.open(tmp_path / "store")
    assert store.verify() == []
    assert store.fingerprint() == whole.fingerprint()
