"""The pool of processes of extraction, detection and simulation."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from photozhpc.errors import RunError
from photozhpc.workers.pool import run_jobs
from photozhpc.workers.signals import STOP_SIGNALS


def work(value: int, killed: bool = False) -> tuple[int, int, bool]:
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return value, os.getpid(), set(STOP_SIGNALS) <= blocked


def test_jobs_run_in_processes_that_no_stop_signal_reaches() -> None:
    results: dict[int, tuple[int, int, bool]] = {}
    run_jobs(work, [(10,), (20,), (30,)], 2, "testing", results.__setitem__)
    assert [results[index][0] for index in range(3)] == [10, 20, 30]
    assert all(pid != os.getpid() and blocked for _, pid, blocked in results.values())


def test_processes_have_the_environment_of_their_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("first", "second", None):  # what forks them may be as old as the first
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        if value is not None:
            monkeypatch.setenv("AWS_PROFILE", value)
        results: dict[int, str | None] = {}
        run_jobs(os.getenv, [("AWS_PROFILE",)] * 2, 2, "testing", results.__setitem__)
        assert results == {0: value, 1: value}


def test_processes_import_nothing_from_the_working_folder(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "program"
    program.parent.mkdir()
    program.write_text("""
import os
from photozhpc.workers.pool import run_jobs
run_jobs(os.getpid, [(), ()], 2, "testing", lambda index, pid: print(pid))
""")
    for module in ("multiprocessing", "numba", "photozhpc"):
        (tmp_path / f"{module}.py").write_text("open('imported', 'w')")
    command = [sys.executable, str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 2
    assert not (tmp_path / "imported").exists()


def test_a_single_job_is_done_here() -> None:
    results: dict[int, tuple[int, int, bool]] = {}
    run_jobs(work, [(1,)], 8, "testing", results.__setitem__)
    assert results[0][:2] == (1, os.getpid())


def test_a_killed_process_is_one_line_and_leaves_no_others() -> None:
    with pytest.raises(RunError, match=r"killed while testing .*fewer --workers"):
        run_jobs(work, [(1, True), (2,)], 2, "testing", lambda index, result: None)
    assert not multiprocessing.active_children()
