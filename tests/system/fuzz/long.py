"""The long run: many cases of every target, each target in a process of its own.

    python tests/system/fuzz/long.py --cases 50000 --seed 1 --out benchmarks/results/fuzz.json
    python tests/system/fuzz/long.py --targets Store --seed 123 --cases 1      # one case again

A process that crashes, or is silent for four minutes, is a failure of the case that it was at, and
the next goes on behind it. The seeds of a target are --seed, --seed + 1, ...; those of
continuous integration begin at 0. The last line is JSON.
"""

import argparse
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "benchmarks"),
    str(ROOT / "tests"),
    str(Path(__file__).parent),
]

from harness import (  # noqa: E402
    AS_IT_SAYS,
    CPU_SECONDS,
    EXTRA_BYTES,
    REFUSED,
    UNCHANGED,
    Target,
    run_cases,
)
from side_by_side import about  # noqa: E402

SILENT_SECONDS = 240
_SHOWN = 10
PACKAGES = "photozhpc numpy asdf gwcs astropy pyarrow numcodecs pyyaml safetensors torch"


def targets() -> dict[str, type[Target]]:
    from targets import TARGETS

    return {kind.__name__: kind for kind in TARGETS}


def work(name: str, start: int, stop: int) -> None:
    """Run the cases of a target; print a line before each case and one after it."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries in C print what they think of a file
    with tempfile.TemporaryDirectory(prefix="photozhpc-fuzz-") as folder:
        sample = Path(folder) / name
        sample.mkdir()
        target = targets()[name](sample)
        for seed in range(start, stop):
            print(json.dumps({"seed": seed}), file=told, flush=True)
            outcomes, failures = run_cases(target, range(seed, seed + 1))
            line = {"outcome": next(iter(outcomes)), "failures": failures}
            print(json.dumps(line), file=told, flush=True)


def run_target(name: str, start: int, stop: int) -> tuple[Counter[str], list[str]]:
    """Run the cases of a target in child processes; return outcomes and failures."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    while start < stop:
        command = [sys.executable, "-W", "ignore", __file__, "--work", name, str(start), str(stop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            seed = start - 1  # until it has made its samples
            for line in _lines(child):
                if "seed" in line:
                    seed = line["seed"]
                else:
                    outcomes[line["outcome"]] += 1
                    failures += line["failures"]
                    start = seed + 1
            code = child.wait()
        if start < stop:
            ending = (
                f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit {code}"
            )
            if seed < start:
                raise SystemExit(f"{name}: its samples cannot be made ({ending})")
            outcomes["failures"] += 1
            failures.append(f"{name} seed {seed}: the process ended by {ending}")
            start = seed + 1
    return outcomes, failures


def _lines(child: "subprocess.Popen[bytes]") -> Iterator[dict[str, Any]]:
    """Yield what a child prints; one that is silent for too long is killed."""
    assert child.stdout is not None
    text = b""
    while select.select([child.stdout], [], [], SILENT_SECONDS)[0]:
        more = os.read(child.stdout.fileno(), 1 << 16)
        if not more:
            return
        *whole, text = (text + more).split(b"\n")
        yield from map(json.loads, whole)
    child.kill()


def shares(names: list[str], n_cases: int) -> dict[str, int]:
    """Return the cases of every target, by their weights; n_cases in all, or a few more."""
    kinds = targets()
    whole = sum(kinds[name].weight for name in names)
    return {name: math.ceil(n_cases * kinds[name].weight / whole) for name in names}


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--cases", type=int, default=50_000)
    options.add_argument("--seed", type=int, default=1_000_000)
    options.add_argument("--targets", nargs="+", default=list(targets()), metavar="NAME")
    options.add_argument("--out", type=Path, help="file for the result")
    asked = options.parse_args()
    began = time.monotonic()
    found: dict[str, dict[str, int]] = {}
    failures: list[str] = []
    for name, n_cases in shares(asked.targets, asked.cases).items():
        since = time.monotonic()
        outcomes, faults = run_target(name, asked.seed, asked.seed + n_cases)
        found[name] = {
            "cases": sum(outcomes.values()),
            **{kind: outcomes[kind] for kind in (REFUSED, UNCHANGED, AS_IT_SAYS, "failures")},
            "seconds": round(time.monotonic() - since),
        }
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        for fault in faults[:_SHOWN]:
            print(f"  {fault}", flush=True)
        failures += faults[:_SHOWN]
    result = about("fuzz", PACKAGES, seed=asked.seed) | {
        "limits": {"cpu_seconds": CPU_SECONDS, "extra_memory_gib": EXTRA_BYTES >> 30},
        "cases": sum(row["cases"] for row in found.values()),
        "failures": sum(row["failures"] for row in found.values()),
        "seconds": round(time.monotonic() - began),
        "targets": found,
        "first_failures": failures,
    }
    line = json.dumps(result)
    if asked.out:
        asked.out.write_text(line + "\n")
    print(line)
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
