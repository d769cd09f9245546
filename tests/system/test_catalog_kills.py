"""kill -9 of the client or of a worker, and Ctrl-C: the catalogue is the same in the end."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from builders.catalogs import SMALL
from builders.models import make_checkpoint
from builders.stores import SHARD_LEN, make_store
from photozhpc.catalog import read_catalog
from photozhpc.catalog.run import RunSummary, run_inference

ROWS = 40 * SHARD_LEN
# As the command line does it.
PROGRAM = """
import signal
import sys
from photozhpc.catalog.run import run_inference
from photozhpc.errors import PhotozError
from photozhpc.workers.dask_workers import DaskWorkers

if __name__ == "__main__":
    store, checkpoint, out = sys.argv[1:]
    # A shell's background jobs, and so tests run in one, ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_inference(store, checkpoint, out, None, DaskWorkers.of(2, "cpu"), rows_per_part=64)
    except PhotozError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
"""


class Run:
    """`photozhpc infer` in a session of its own."""

    def __init__(self, folder: Path, out: Path) -> None:
        program = folder / "program.py"
        program.write_text(PROGRAM)
        self.catalog = out / "catalog"
        self.log = out.with_suffix(".log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, program, folder / "store", folder / "model.safetensors", out],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def parts(self) -> int:
        return len(list(self.catalog.glob("part-*.parquet")))

    def wait_for_parts(self, n: int) -> None:
        end = time.monotonic() + 120
        while self.parts() < n:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that the fork server has forked."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        servers = {p.pid for p in family if p.ppid() == self.process.pid}
        return [p for p in family if p.ppid() in servers]

    def finish(self) -> str:
        self.process.wait(timeout=180)
        return self.log.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    make_store(folder / "store", {"a": ROWS // 2, "b": ROWS // 2})
    make_checkpoint(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder) -> Path:
    out = folder / "undisturbed"
    assert go_on(folder, out).counts.rows == ROWS
    return out


def go_on(folder: Path, out: Path) -> RunSummary:
    return run_inference(folder / "store", folder / "model.safetensors", out, **SMALL)


def test_client_killed_and_run_again(folder, undisturbed, tmp_path):
    """The scheduler is in the client's process, so that this kills both."""
    seed = random.randrange(1 << 30)
    print("seed", seed)
    run = Run(folder, tmp_path / "out")
    run.wait_for_parts(random.Random(seed).randrange(1, 30))
    workers = run.workers()
    assert len(workers) == 2
    run.process.kill()
    log = run.finish()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    assert "Traceback" not in log
    kept = {p.name: p.stat().st_mtime_ns for p in run.catalog.glob("part-*.parquet")}
    assert 0 < len(kept) < 40

    assert go_on(folder, tmp_path / "out").n_parts_resumed == len(kept)
    now = {p.name: p.stat().st_mtime_ns for p in run.catalog.iterdir()}
    assert len(now) == 40
    assert kept.items() <= now.items()
    assert read_catalog(tmp_path / "out").equals(read_catalog(undisturbed))


def test_workers_killed_are_replaced_within_the_run(folder, undisturbed, tmp_path):
    run = Run(folder, tmp_path / "out")
    for n_parts in (3, 12):
        run.wait_for_parts(n_parts)
        run.workers()[0].kill()
    log = run.finish()
    assert run.process.returncode == 0, log
    assert "a worker died or froze" in log
    assert "Traceback" not in log
    assert "Warning" not in log
    assert read_catalog(tmp_path / "out").equals(read_catalog(undisturbed))
    assert [p.name for p in run.catalog.iterdir() if p.suffix != ".parquet"] == []


def test_ctrl_c_stops_at_once_and_can_be_taken_up_again(folder, undisturbed, tmp_path):
    run = Run(folder, tmp_path / "out")
    run.wait_for_parts(2)
    workers = run.workers()
    os.killpg(run.process.pid, signal.SIGINT)  # a terminal sends it to the whole group
    start, parts = time.monotonic(), run.parts()
    log = run.finish()
    assert run.process.returncode == 130, f"interrupted after {parts} of 40 parts\n{log}"
    assert time.monotonic() - start < 10
    assert "Traceback" not in log
    assert "Warning" not in log
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    go_on(folder, tmp_path / "out")
    assert read_catalog(tmp_path / "out").equals(read_catalog(undisturbed))


@pytest.mark.slow
def test_a_frozen_worker_is_replaced(folder, undisturbed, tmp_path):
    run = Run(folder, tmp_path / "out")
    run.wait_for_parts(3)
    run.workers()[0].suspend()
    log = run.finish()
    assert run.process.returncode == 0, log
    assert "a worker died or froze" in log
    assert read_catalog(tmp_path / "out").equals(read_catalog(undisturbed))
