"""Kills of train (one rank, and two of torchrun), calibrate, extract and export.

    python tests/system/chaos/kills.py --trials 60 --seed 1 [--save]

A signal at a random moment to a random process, or to all; then the same command again, at once,
until it ends well. The files must then be those of an undisturbed run, byte for byte, and
state.pt say the same; nothing half-written, no lock and no temporary file may be left, and no
process.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from torch.utils._pytree import tree_flatten_with_path

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "benchmarks")]

from side_by_side import about, finish  # noqa: E402

from builders.catalogs import ALONE  # noqa: E402
from builders.skies import SIMPLE  # noqa: E402
from builders.training import TINY  # noqa: E402
from photozhpc.catalog.run import run_inference  # noqa: E402
from photozhpc.config import to_mapping  # noqa: E402
from photozhpc.extraction.extract import extract  # noqa: E402
from photozhpc.sky import simulate_sky  # noqa: E402
from photozhpc.store import CutoutStore  # noqa: E402
from photozhpc.survey import load_survey  # noqa: E402

KINDS = ("train", "train-2", "calibrate", "extract", "export")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MAX_STARTS = 5
END_SECONDS = 60
# Every process of a trial has this in its environment, whoever its parent is.
MARK = "PHOTOZHPC_TRIAL"
CODES = {0, 1, 75, 130} | {-number for number in SIGNALS}


class Site:
    """What the commands read, and what they make when they are left alone.

    Args:
        sky, store: a simulated sky of small tiles, and its store with cutouts of 48 px.
    """

    def __init__(self, folder: Path, sky: Path, store: Path) -> None:
        self.folder, self.sky, self.store = folder, sky, store
        model = replace(TINY.model, density_bins=16, density_z_max=3.5)
        config = replace(
            TINY, out="run", store=str(store), model=model, precision="float32", device="cpu",
            epochs=2, batch_size=64, checkpoint_minutes=0.0, refit_steps=100, density_steps=100,
        )  # fmt: skip
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(to_mapping(config)))
        self.wanted: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}

    def prepare(self, kind: str) -> None:
        """Make the undisturbed result of a kind, once, and what it needs."""
        if kind in self.wanted:
            return
        if kind in ("calibrate", "export"):
            self.prepare("train")
            self.model = self.folder / "train" / "work" / "run" / "model.safetensors"
        if kind == "export":
            run_inference(self.store, self.model, self.folder / "cat", **ALONE)
        run = Run(self, kind, self.folder / kind)
        assert run.process.wait(300) == 0, run.said()
        self.seconds[kind] = time.monotonic() - run.started
        self.wanted[kind] = digests(run.work)

    def command(self, kind: str) -> list[str]:
        photozhpc = [sys.executable, "-m", "photozhpc"]
        store, survey = str(self.store), ("--survey", "roman-sim")
        train = ["train", "--config", str(self.recipe)]
        if kind == "train":
            return [*photozhpc, *train]
        if kind == "train-2":
            torchrun = "-m torch.distributed.run --standalone --nproc-per-node 2 -m photozhpc"
            return [sys.executable, *torchrun.split(), *train]
        if kind == "calibrate":
            files = ("--checkpoint", str(self.model), "--store", store, "--out", "c.safetensors")
            return [*photozhpc, "calibrate", *files]
        if kind == "extract":
            sizes = ("--size", "48", "--workers", "2")
            return [*photozhpc, "extract", *survey, "--mosaics", str(self.sky), "--store", "s",
                    *sizes]  # fmt: skip
        catalogue = str(self.folder / "cat")
        return [*photozhpc, "export", catalogue, "--format", "fits", "--out", "c.fits"]


class Run:
    """A command in a session, and with a folder for temporary files, of its own."""

    def __init__(self, site: Site, kind: str, work: Path) -> None:
        self.work = work / "work"
        self.temporary = work / "tmp"
        self.log = work / "log"
        for folder in (self.work, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self.mark = f"{work}"
        environment = {
            **os.environ,
            MARK: self.mark,
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",  # a second one must not change the order of a sum
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.started = time.monotonic()
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                site.command(kind), cwd=self.work, env=environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    def family(self) -> list[psutil.Process]:
        """Return the processes of the trial that live, orphans too."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.status() != psutil.STATUS_ZOMBIE
                    and process.environ().get(MARK) == self.mark
                ):
                    found.append(process)
            except psutil.Error:
                pass
        return found


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that is the same in every undisturbed run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tensorboard" not in path.parts
    }


def content(path: Path) -> bytes:
    """Return what a file says: the bytes of state.pt also depend on which of its strings were one
    object in memory."""
    if path.suffix != ".pt":
        return path.read_bytes()
    state = torch.load(path)
    tensors, rest = [], []
    for keys, leaf in tree_flatten_with_path(state)[0]:
        found = tensors if isinstance(leaf, torch.Tensor) else rest
        found.append((str(keys), leaf))
    values = [(name, str(t.dtype), t.shape, t.numpy().tobytes()) for name, t in tensors]
    return repr((values, rest)).encode()


def trial(site: Site, kind: str, rng: random.Random) -> tuple[str, int, int, list[str]]:
    """One signal at a random moment, then the same command until it ends well.

    Returns:
        What was sent to whom, the exit code then, how often it was started, and what is wrong.
    """
    site.prepare(kind)
    work = site.folder / "trial"
    shutil.rmtree(work, ignore_errors=True)
    run = Run(site, kind, work)
    moment = rng.uniform(0.1, 1.0) * site.seconds[kind]
    number, to_all = rng.choice(SIGNALS), rng.random() < 0.3
    fault = f"{number.name} to {'all' if to_all else 'one'}"
    while run.process.poll() is None and time.monotonic() - run.started < moment:
        time.sleep(0.01)
    family = run.family()
    for process in family if to_all else rng.sample(family, min(1, len(family))):
        with suppress(psutil.Error):
            process.send_signal(number)
    first = code = run.process.wait(END_SECONDS)
    problems = [] if code in CODES else [f"exit code {code}: {run.said()}"]
    # torchrun shows a traceback for whatever a rank ends with, and Python while it starts.
    if kind != "train-2" and "Traceback" in run.said() and "in _invoke" in run.said():
        problems.append(run.said())
    starts = 1
    while starts == 1 or code != 0:
        if starts == MAX_STARTS:
            return fault, first, starts, [*problems, f"exit code {code}: {run.said()}"]
        run = Run(site, kind, work)
        code, starts = run.process.wait(END_SECONDS * 3), starts + 1
    return fault, first, starts, problems + remains(run) + differences(site, kind, run)


def remains(run: Run) -> list[str]:
    end = time.monotonic() + END_SECONDS / 3
    while (left := run.family()) and time.monotonic() < end:
        time.sleep(0.1)
    problems = [f"still there: {process}" for process in left]
    for process in left:
        process.kill()
    hidden = [path for path in run.work.rglob(".*") if path.suffix in (".partial", ".lock")]
    # torchrun leaves an empty folder behind, however it ends.
    temporary = [path for path in run.temporary.iterdir() if "torchelastic" not in path.name]
    return problems + [f"left behind: {path}" for path in [*hidden, *temporary]]


def differences(site: Site, kind: str, run: Run) -> list[str]:
    wanted, found = site.wanted[kind], digests(run.work)
    names = sorted(name for name in wanted | found if wanted.get(name) != found.get(name))
    return [f"not as undisturbed: {name}" for name in names]


def make_site(folder: Path) -> Site:
    config = replace(SIMPLE, tile_size_pix=700, density_scale=3.0, label_fraction=0.6)
    survey = load_survey("roman-sim")
    simulate_sky(survey, folder / "sky", 2, 5, config, workers=1)
    extract(survey, folder / "sky", folder / "store", size=48, shard_len=64, workers=1)
    return Site(folder, folder / "sky", CutoutStore.open(folder / "store").path)


def run_trials(
    n_trials: int, seed: int, make: Callable[[Path], Site] = make_site
) -> dict[str, Any]:
    """Run so many trials, every kind in turn; return the counts."""
    done: dict[str, Counter[str]] = defaultdict(Counter)
    survived = restarts = 0
    with tempfile.TemporaryDirectory() as name:
        site = make(Path(name))
        for index in range(n_trials):
            kind = KINDS[index % len(KINDS)]
            started = time.monotonic()
            fault, code, starts, problems = trial(site, kind, random.Random(f"{seed}-{index}"))
            survived += not problems
            restarts += starts - 1
            done[kind][f"{fault}: {code}"] += 1
            text = "; ".join(problems) or "survived"
            seconds = time.monotonic() - started
            print(f"{index + 1}/{n_trials} {kind}, {fault}: exit {code}, {starts} starts, "
                  f"{seconds:.0f} s, {text}", flush=True)  # fmt: skip
    return {
        "trials": n_trials,
        "survived": survived,
        "restarts": restarts,
        "exit_codes_by_kind": json.loads(json.dumps(done)),
    }


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=60)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--save", action="store_true")
    given = options.parse_args()
    found = run_trials(given.trials, given.seed)
    finish(about("kills", "torch pyarrow", seed=given.seed) | found, given.save)
