"""Shared by the benchmarks: timing two sides in turn, and describing the machine."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"


def alternate(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side, one after the other in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """Median over the rounds of how many times faster one side is."""
    return median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True))


def profile(run: Callable[[], object], n_shown: int = 10) -> dict[str, float]:
    """The torch operators with the most self time in a run, as shares of the total."""
    import torch

    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        run()
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    largest = sorted(own, key=own.__getitem__, reverse=True)[:n_shown]
    return {name: float(f"{own[name] / sum(own.values()):.3g}") for name in largest}


def rounded(row: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.3g}") for key, value in row.items()}


def about(benchmark: str, packages: str, **what: object) -> dict[str, object]:
    """The head of a result: machine, versions, and the data that were used."""
    return {
        "benchmark": benchmark,
        "machine": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {package: version(package) for package in packages.split()},
        **what,
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.machine()


def parser(doc: str | None, rounds: int | None = 5) -> argparse.ArgumentParser:
    """Options of a benchmark; without rounds, it measures once."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--save", action="store_true", help="write results/*.json")
    if rounds is not None:
        options.add_argument("--rounds", type=int, default=rounds)
    return options


def finish(results: dict[str, object], save: bool, name: str | None = None) -> None:
    """Print the result as the last line; with `save`, write it to results/."""
    line = json.dumps(results)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name or results['benchmark']}.json").write_text(line + "\n")
    print(line)
