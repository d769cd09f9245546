"""Random faults while a catalogue is made; then the same command again, until it ends well.

    python tests/system/chaos/chaos.py --trials 120 --seed 1 [--save]

After every trial the catalogue must be the undisturbed one, row for row; `verify` must find
nothing; no part may be there twice and nothing half-written be left; no process may be left.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "benchmarks")]

from side_by_side import about, finish  # noqa: E402

from builders.catalogs import SMALL  # noqa: E402
from builders.models import make_checkpoint  # noqa: E402
from builders.stores import SHARD_LEN, make_store  # noqa: E402
from photozhpc.catalog import read_catalog  # noqa: E402
from photozhpc.catalog.run import run_inference  # noqa: E402
from photozhpc.catalog.verify import verify_catalog  # noqa: E402
from photozhpc.store import CutoutStore  # noqa: E402

# What Python's own tracker of semaphores says when it was killed.
_OF_PYTHON = re.compile(r"Traceback .*\n  File .*resource_tracker\.py.*\n.*\nKeyError: .*\n")
ROWS = 60 * SHARD_LEN
WORKERS = 2
# `photozhpc infer` with small parts, and a lease after which a frozen worker is given up early.
PROGRAM = """
import sys
from photozhpc.catalog import run
from photozhpc.workers import local
from photozhpc.cli import main

local.WORKER_TTL_SECONDS = 4
run.default_rows_per_part = lambda n_rows: 64
main(prog_name="photozhpc")
"""


class Site:
    """A store, a model, and the catalogue that they make."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = make_store(folder / "store", {"a": ROWS // 2, "b": ROWS // 2})
        self.model = make_checkpoint(folder / "model.safetensors")
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)
        out = folder / "undisturbed"
        run_inference(self.store.path, self.model, out, **SMALL)
        self.undisturbed = read_catalog(out)
        self.parts = sorted(path.name for path in (out / "catalog").iterdir())


class Run:
    """`photozhpc infer`, in a session of its own."""

    def __init__(self, site: Site, out: Path, options: tuple[str, ...] = ()) -> None:
        self.out = out
        self.log = out.with_suffix(".log")
        command = [sys.executable, site.program, "infer", "--survey", "roman-sim"]
        command += ["--store", site.store.path, "--checkpoint", site.model, "--out", out]
        options = options or ("--workers", str(WORKERS), "--device", "cpu")
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [*map(str, command), *options], stdout=log, stderr=log, start_new_session=True
            )

    def n_parts(self) -> int:
        return len(list((self.out / "catalog").glob("part-*.parquet")))

    def family(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def workers(self) -> list[psutil.Process]:
        """Return the processes that the fork server has forked."""
        family = self.family()
        servers = {p.pid for p in family if _parent(p) == self.process.pid}
        return [p for p in family if _parent(p) in servers]

    def finish(self, seconds: float = 120) -> int:
        code = self.process.wait(seconds)
        text = _OF_PYTHON.sub("", self.log.read_text())
        assert "Traceback" not in text, text
        return code


def _parent(process: psutil.Process) -> int:
    try:
        return process.ppid()
    except psutil.Error:
        return -1


def kill_worker(run: Run, rng: random.Random) -> None:
    for worker in rng.sample(workers := run.workers(), min(1, len(workers))):
        worker.kill()


def kill_two_workers_in_a_row(run: Run, rng: random.Random) -> None:
    kill_worker(run, rng)
    time.sleep(rng.uniform(0, 0.8))
    kill_worker(run, rng)


def kill_all_workers(run: Run, rng: random.Random) -> None:
    for worker in run.workers():
        worker.kill()


def kill_client_and_scheduler(run: Run, rng: random.Random) -> None:
    run.process.kill()


def kill_any_process(run: Run, rng: random.Random) -> None:
    """A worker, the fork server, or the tracker of semaphores."""
    family = run.family()
    if family:
        rng.choice(family).kill()


def freeze_worker(run: Run, rng: random.Random) -> None:
    """Past its lease: it is given up and killed."""
    workers = run.workers()
    if workers:
        rng.choice(workers).suspend()


def pause_worker(run: Run, rng: random.Random) -> None:
    """For less than its lease."""
    for worker in rng.sample(workers := run.workers(), min(1, len(workers))):
        worker.suspend()
        time.sleep(rng.uniform(0.2, 2))
        worker.resume()


def stop_by(number: signal.Signals, group: bool) -> Callable[[Run, random.Random], None]:
    def send(run: Run, rng: random.Random) -> None:
        (os.killpg if group else os.kill)(run.process.pid, number)

    send.__name__ = f"{number.name} to {'all processes' if group else 'the client'}"
    return send


def flip_a_bit_of_a_part(run: Run, rng: random.Random) -> None:
    """Of one that is finished; then the client dies."""
    parts = sorted((run.out / "catalog").glob("part-*.parquet"))
    run.process.kill()
    if parts:
        path = rng.choice(parts)
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)


FAULTS: list[Callable[[Run, random.Random], None]] = [
    kill_worker,
    kill_two_workers_in_a_row,
    kill_all_workers,
    kill_client_and_scheduler,
    kill_any_process,
    freeze_worker,
    pause_worker,
    stop_by(signal.SIGUSR1, group=True),
    stop_by(signal.SIGUSR1, group=False),
    stop_by(signal.SIGTERM, group=True),
    stop_by(signal.SIGTERM, group=False),
    flip_a_bit_of_a_part,
]
MAX_STARTS = 4
# Exit codes: well, a PhotozError (workers that cannot be had), Ctrl-C, to be requeued, killed.
CODES = {0, 1, 75, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1}


def trial(
    site: Site, rng: random.Random, fault: Callable[[Run, random.Random], None]
) -> tuple[int, int, int, list[str]]:
    """One fault at a random moment, then the same command until it ends well.

    Half of the moments are counted in parts that are there, half in seconds from the start.

    Returns:
        The exit code of the run with the fault, how often it was started in all, rows that were
        lost, and what else is wrong.
    """
    out = site.folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.with_suffix(".log").unlink(missing_ok=True)
    run = Run(site, out)
    by_parts = rng.random() < 0.5
    n_parts, moment = rng.randrange(len(site.parts)), time.monotonic() + rng.uniform(0, 6)
    family: list[psutil.Process] = []
    while run.process.poll() is None:
        if run.n_parts() > n_parts if by_parts else time.monotonic() > moment:
            family = run.family()
            fault(run, rng)
            break
        time.sleep(0.005)
    first = code = run.finish()
    starts = 1
    problems = [] if code in CODES else [f"exit code {code}"]
    while starts == 1 or code != 0:
        if starts == MAX_STARTS:
            problems.append(f"exit code {code} at start {starts}: {run.log.read_text()[-500:]}")
            break
        _, alive = psutil.wait_procs(family, timeout=20)
        left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        problems += [f"still there: {p}" for p in left]
        run = Run(site, out)
        code, starts = run.finish(), starts + 1
    n_lost, wrong = check(site, out)
    return first, starts, n_lost, problems + wrong


def check(site: Site, out: Path) -> tuple[int, list[str]]:
    """Return how many rows of the undisturbed catalogue are not there, and what else is wrong."""
    problems = []
    if sorted(path.name for path in (out / "catalog").iterdir()) != site.parts:
        problems.append("other files than the undisturbed run's")
    n_rows, wrong = verify_catalog(out, CutoutStore.open(site.store.path))
    problems += wrong
    found = read_catalog(out, incomplete_ok=True)
    if found.equals(site.undisturbed):
        return 0, problems
    kept = {tuple(row.values()) for row in site.undisturbed.to_pylist()}
    lost = kept - {tuple(row.values()) for row in found.to_pylist()}
    return len(lost), [*problems, f"{n_rows} rows, of which some differ or are elsewhere"]


def run_trials(n_trials: int, seed: int) -> dict[str, Any]:
    """Run so many trials, every fault in turn; return the counts."""
    done: dict[str, Counter[int]] = defaultdict(Counter)
    restarts = rows_lost = survived = 0
    with tempfile.TemporaryDirectory() as name:
        site = Site(Path(name))
        for number in range(n_trials):
            fault = FAULTS[number % len(FAULTS)]
            rng = random.Random(f"{seed}-{number}")
            code, starts, n_lost, problems = trial(site, rng, fault)
            restarts, rows_lost = restarts + starts - 1, rows_lost + n_lost
            survived += not problems and not n_lost
            done[fault.__name__.replace("_", " ")][code] += 1
            text = "; ".join(problems) or "survived"
            print(f"{number + 1}/{n_trials} {fault.__name__}: exit {code}, {text}", flush=True)
    return {
        "trials": n_trials,
        "survived": survived,
        "rows_lost": rows_lost,
        "rows": ROWS,
        "restarts": restarts,
        "exit_codes_by_fault": done,
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=120)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--save", action="store_true")
    given = options.parse_args()
    found = run_trials(given.trials, given.seed)
    finish(about("chaos", "dask distributed pyarrow", seed=given.seed) | found, given.save)
