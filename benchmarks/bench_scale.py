"""A catalogue of hundreds of millions of sources: the scheduling and the catalogue, nothing else.

python benchmarks/bench_scale.py [--sources 300000000] [--out FOLDER] [--save]

A store of virtual shards (its manifests are real, its cutouts are not) and an engine that costs
nothing go through the unchanged `photozhpc infer`: planned, scheduled, written part by part, killed
half-way, resumed. Measured: seconds per shard, memory of the process with client and scheduler,
memory of the workers, and how long a resumed run takes to begin.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from side_by_side import about, finish, parser

HERE = Path(__file__).parent
TILE_LEN = 8192
SHARD_LEN = 2048

# Run in another process, because it is killed half-way.
PROGRAM = """
import json, sys, time
sys.path.insert(0, {here!r})
import virtual_store
from photozhpc.catalog import run
from photozhpc.workers.dask_workers import DaskWorkers

started = time.monotonic()
virtual_store.install()
summary = run.run_inference(
    {store!r}, {checkpoint!r}, {out!r}, rows_per_part={rows}, compiled=False,
    workers=DaskWorkers.of({workers}),
)
print(json.dumps([summary.counts.rows, summary.n_parts, summary.n_parts_resumed,
                  summary.startup_seconds, summary.wall_seconds]))
"""


def run_until(program: str, log: Path, stop_at: int | None, out: Path) -> dict:
    """Run the program, kill it when `stop_at` parts exist; return the memory that it took.

    Memory is that of the process and, separately, of its largest worker: MB when a tenth of the
    parts was done, and at most.
    """
    with open(log, "w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=errors, text=True
        )
    answer: list[str] = []
    reader = threading.Thread(target=lambda: answer.append(process.stdout.read()))
    reader.start()
    own = psutil.Process(process.pid)
    memory: list[tuple[float, float, float]] = []
    begun = time.monotonic()
    while process.poll() is None:
        try:
            workers = [p.memory_info().rss for p in own.children(recursive=True)]
            memory.append((time.monotonic(), own.memory_info().rss / 1e6, max([0, *workers]) / 1e6))
        except psutil.NoSuchProcess:
            continue
        if stop_at is not None and count_parts(out) > stop_at:
            for child in own.children(recursive=True):
                child.send_signal(signal.SIGKILL)
            process.kill()
        time.sleep(min(3, 0.05 + (time.monotonic() - begun) / 20))  # small runs end in seconds
    reader.join()
    early = memory[len(memory) // 10 :] or memory
    return {
        "answer": json.loads(answer[0]) if answer[0].strip() else None,
        "code": process.returncode,
        "client_mb_early": early[0][1],
        "client_mb_peak": max(m[1] for m in memory),
        "worker_mb_early": early[0][2],
        "worker_mb_peak": max(m[2] for m in early),
        "seconds": time.monotonic() - begun,
    }


def count_parts(out: Path) -> int:
    folder = out / "catalog"
    return sum(name.startswith("part-") for name in os.listdir(folder)) if folder.is_dir() else 0


def main() -> None:
    options = parser(__doc__, rounds=None)
    options.add_argument("--sources", type=int, default=300_000_000)
    options.add_argument("--rows-per-part", type=int, default=SHARD_LEN)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--out", type=Path, default=Path("bench_scale"))
    options = options.parse_args()
    sys.path.insert(0, str(HERE))
    import virtual_store

    from photozhpc.model import bundled_checkpoint

    folder = options.out
    shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    store = virtual_store.create(folder / "store", options.sources, TILE_LEN, SHARD_LEN)
    print(f"{len(store.tiles())} manifests made in {time.monotonic() - began:.0f} s", flush=True)
    began = time.monotonic()
    n_shards = len(store.shards())
    index_seconds = time.monotonic() - began
    out = folder / "out"
    program = PROGRAM.format(
        here=str(HERE.resolve()),
        store=str(folder / "store"),
        checkpoint=str(bundled_checkpoint("roman-sim")),
        out=str(out),
        rows=options.rows_per_part,
        workers=options.workers,
    )
    half = run_until(program, folder / "half.log", n_shards // 2, out)
    n_half = count_parts(out)
    print(f"killed at {n_half} of {n_shards} parts after {half['seconds']:.0f} s", flush=True)
    whole = run_until(program, folder / "whole.log", None, out)
    assert whole["answer"], (folder / "whole.log").read_text()
    rows, n_parts, n_resumed, startup, wall = whole["answer"]
    assert rows == options.sources, f"{rows} rows for {options.sources} sources"
    assert n_resumed == n_half, (n_half, n_resumed)
    virtual_store.check(out, options.sources, n_parts)
    n_bytes = sum(entry.stat().st_size for entry in os.scandir(out / "catalog"))
    results = about("scale", "numpy dask distributed", sources=options.sources)
    results |= {
        "tasks": n_parts,
        "workers": options.workers,
        "index_seconds": index_seconds,
        "parts_when_killed": n_half,
        "parts_resumed": n_resumed,
        "resume_seconds_to_first_new_part": startup,
        "ms_a_shard": 1e3 * (wall - startup) / (n_parts - n_resumed),
        "client_mb_early": whole["client_mb_early"],
        "client_mb_peak": max(half["client_mb_peak"], whole["client_mb_peak"]),
        "worker_mb_early": half["worker_mb_early"],
        "worker_mb_peak": max(half["worker_mb_peak"], whole["worker_mb_peak"]),
        "catalog_bytes": n_bytes,
        "half": half,
        "whole": whole,
    }
    finish(results, options.save)


if __name__ == "__main__":
    main()
