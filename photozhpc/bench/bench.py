"""The speed of this machine: `photozhpc bench`. Synthetic data; real kernels, store and engine."""

import multiprocessing
import os
import queue
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.bench.synthetic_store import make_store
from photozhpc.catalog.run import run_inference
from photozhpc.errors import RunError
from photozhpc.model import bundled_checkpoint
from photozhpc.mosaic.cutouts import extract_cutouts
from photozhpc.mosaic.photometry import local_sky, sum_circles
from photozhpc.store import CutoutStore, Measurements
from photozhpc.store.cutout_store import local_path
from photozhpc.survey import load_survey
from photozhpc.workers.dask_workers import DaskWorkers, tasks_per_worker
from photozhpc.workers.devices import Device, device_list
from photozhpc.workers.memory import keep_freed_memory

TILE_PIX = 2048
MEASURED_SECONDS = 5.0
COST_SOURCES = (10**6, 10**8, 10**9)


def bench_extract(n_sources: int = 5000, rounds: int = 3) -> dict[str, Any]:
    """Return the rate of the extraction kernels on four bands and all cores, in sources/s."""
    survey = load_survey("roman-sim")
    rng = np.random.default_rng(0)
    image_CHW = rng.normal(0, 1, (len(survey.bands), TILE_PIX, TILE_PIX)).astype(np.float32)
    err_HW = np.ones((TILE_PIX, TILE_PIX), np.float32)
    y_N, x_N = rng.uniform(70, TILE_PIX - 70, (2, n_sources))
    radius_pix = np.array(survey.aperture_radii_arcsec) / survey.pixel_scale_arcsec
    r_in, r_out = np.array(survey.sky_annulus_arcsec) / survey.pixel_scale_arcsec
    size = survey.cutout_size
    out = np.empty((n_sources, len(survey.bands), size, size), np.float32)

    def apertures() -> None:
        for image_HW in image_CHW:
            sum_circles(image_HW, y_N, x_N, radius_pix, err_HW)

    def sky() -> None:
        for image_HW in image_CHW:
            local_sky(image_HW, y_N, x_N, r_in, r_out)

    def cutouts() -> None:
        extract_cutouts(image_CHW, y_N, x_N, size, out)

    rates = {}
    for run in (apertures, sky, cutouts):
        run()  # compiles
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        rates[run.__name__] = n_sources / median(seconds)
    shape = {"apertures": len(radius_pix), "bands": len(survey.bands), "size": size}
    return {"sources_per_s": rates, **shape}


def bench_infer(
    n_sources: int = 50_000,
    device: Device = "auto",
    compiled: bool = True,
    workers: int | None = None,
    checkpoint: str | Path | None = None,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Return the rates from disk to disk and of the engine in memory, and the cost of a survey.

    Args:
        checkpoint: of survey roman-sim; default: the bundled model.
        folder: with space for the store; default: the system's temporary folder.
    """
    path = Path(checkpoint or bundled_checkpoint("roman-sim"))
    devices = device_list(device)
    n_workers = workers or len(devices) or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=folder) as name:
        store = make_store(Path(name) / "store", load_survey("roman-sim"), n_sources)
        n_stored = len(store)
        n_bytes = store_bytes(store) / n_stored
        kind: Device = "cuda" if devices else "cpu"
        out = Path(name) / "out"
        from_disk(path, store, out, compiled, n_workers, kind)  # compiles, fills caches
        memory, is_compiled = in_memory(path, store, compiled, n_workers, devices)
        disk = from_disk(path, store, out, compiled, n_workers, kind)
        catalog_bytes = sum(f.stat().st_size for f in (out / "catalog").iterdir()) / n_stored
    rate = disk["sources_per_s"]
    return {
        "device": kind,
        "workers": n_workers,
        "compiled": is_compiled,
        "sources": n_stored,
        "in_memory_per_s": memory,
        "from_disk_per_s": rate,
        "utilisation": rate / memory,
        "startup_s": disk["startup_s"],
        "store_bytes_per_source": n_bytes,
        "catalog_bytes_per_source": catalog_bytes,
        "cost": [
            {
                "sources": n,
                "hours": n / rate / 3600,
                "store_tb": n * n_bytes / 1e12,
                "catalog_gb": n * catalog_bytes / 1e9,
            }
            for n in COST_SOURCES
        ],
    }


def from_disk(
    checkpoint: Path,
    store: CutoutStore,
    out: Path,
    compiled: bool | None,
    workers: int,
    device: Device = "cpu",
) -> dict[str, float]:
    """Make the catalogue of a store; return sources per second, and the start-up in seconds.

    The rate is the sustained one, between a tenth and nine tenths of the sources written; with
    fewer than 20 parts, from the start-up to the end.
    """
    shutil.rmtree(out, ignore_errors=True)
    run = run_inference(
        store.path,
        checkpoint,
        out,
        workers=DaskWorkers.of(workers, device),
        compiled=compiled,
        progress=False,
    )
    rate = run.counts.rows / (run.wall_seconds - run.startup_seconds)
    parts = sorted((out / "catalog").iterdir(), key=lambda part: part.stat().st_mtime_ns)
    if len(parts) >= 20:
        rows = np.cumsum([pq.read_metadata(part).num_rows for part in parts])
        first, last = np.searchsorted(rows, (0.1 * rows[-1], 0.9 * rows[-1]))
        elapsed = parts[last].stat().st_mtime_ns - parts[first].stat().st_mtime_ns
        rate = 1e9 * float(rows[last] - rows[first]) / elapsed
    return {"sources_per_s": rate, "startup_s": run.startup_seconds}


def in_memory(
    checkpoint: Path,
    store: CutoutStore,
    compiled: bool,
    workers: int,
    devices: list[str],
    seconds: float = MEASURED_SECONDS,
) -> tuple[float, bool]:
    """Return images per second of one engine per worker, and whether they were compiled.

    The images are in memory, as the engine sees them, and come from as many threads as in a worker.
    """
    context = multiprocessing.get_context("spawn")
    ready, answer = context.Barrier(workers), context.Queue()
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    shared = (str(checkpoint), str(store.path), compiled, threads, seconds, ready, answer)
    processes = [
        context.Process(
            target=_in_memory, args=(devices[n % len(devices)] if devices else "", *shared)
        )
        for n in range(workers)
    ]
    for process in processes:
        process.start()
    rates: list[tuple[float, bool]] = []
    try:
        while len(rates) < workers:
            with suppress(queue.Empty):
                rates.append(answer.get(timeout=1))
            if any(process.exitcode for process in processes):
                raise RunError(
                    "the engine could not be measured: one of its processes died; see its messages "
                    "above"
                )
    finally:
        for process in processes:
            if len(rates) < workers:  # the others wait for the process that died
                process.kill()
            process.join()
    return sum(rate for rate, _ in rates), all(is_compiled for _, is_compiled in rates)


def _in_memory(
    visible: str,
    checkpoint: str,
    store_path: str,
    compiled: bool,
    threads: int,
    seconds: float,
    ready: Any,
    answer: Any,
) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = visible
    import torch

    from photozhpc.model import load_checkpoint
    from photozhpc.model.engine import Engine

    torch.set_num_threads(threads)
    keep_freed_memory()  # as a worker does
    store = CutoutStore.open(store_path)
    engine = Engine(
        load_checkpoint(checkpoint),
        "cuda" if visible else "cpu",
        compiled=compiled,
        survey=store.survey,
    )
    n = max(2048, engine.batch_size)
    cutout_NCSS, ebv_N, measured = sources_of(store, n, engine.side_pix)
    batches = [slice(a, a + engine.batch_size) for a in range(0, len(ebv_N), engine.batch_size)]

    def predict() -> None:
        for rows in batches:
            engine.predict(cutout_NCSS[rows], ebv_N[rows], measured.take(rows))

    n_tasks = tasks_per_worker(bool(visible), threads)  # they share the engine
    with ThreadPoolExecutor(n_tasks, "", torch.set_num_threads, (threads,)) as pool:

        def predict_in_all() -> None:
            for future in [pool.submit(predict) for _ in range(n_tasks)]:
                future.result()

        predict_in_all()  # the first call is slow: each thread allocates memory, pinned for a GPU
        ready.wait()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            predict_in_all()
            done += n_tasks * len(ebv_N)
    answer.put((done / (time.perf_counter() - start), engine.is_compiled))


def sources_of(
    store: CutoutStore, n: int, side: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], Measurements]:
    """Return the first `n` cutouts of a store, or their central `side` px, E(B-V), photometry."""
    keys = store.shards()[: -(-n // store.shard_len)]
    cutout_NCSS = np.concatenate([store.read_cutouts(key, side=side) for key in keys])
    ebv_N = np.concatenate([store.read_sources(key).ebv_N for key in keys])
    columns = zip(*(vars(store.read_measurements(key)).values() for key in keys), strict=True)
    measured = Measurements(*map(np.concatenate, columns))
    return cutout_NCSS[:n], ebv_N[:n], measured.take(slice(n))


def store_bytes(store: CutoutStore) -> int:
    """Return the total size of the files of all tiles."""
    files = [
        file for tile_id in store.tiles() for file in (local_path(store.path) / tile_id).rglob("*")
    ]
    return sum(file.stat().st_size for file in files if file.is_file())


def describe(result: dict[str, dict[str, Any]]) -> str:
    """Return the results as text."""
    lines = []
    if extract := result.get("extract"):
        rates = extract["sources_per_s"]
        lines += [
            f"extraction, {extract['bands']} bands, all cores, sources/s:",
            f"  {extract['apertures']} apertures  {rates['apertures']:>12,.0f}",
            f"  local sky    {rates['sky']:>12,.0f}",
            f"  cutouts      {rates['cutouts']:>12,.0f}   ({extract['size']} px)",
        ]
    if infer := result.get("infer"):
        kind = "compiled" if infer["compiled"] else "not compiled"
        lines += [
            f"inference on {infer['device']}, {infer['workers']} workers, {kind}, sources/s:",
            f"  engine, images in memory  {infer['in_memory_per_s']:>12,.0f}",
            f"  from store to catalogue   {infer['from_disk_per_s']:>12,.0f}"
            f"   ({100 * infer['utilisation']:.0f}% of that; start-up {infer['startup_s']:.1f} s)",
            "on this machine:",
        ]
        lines += [
            f"  {cost['sources']:.0e} sources: {cost['hours']:,.2f} h, store "
            f"{cost['store_tb']:,.2f} TB, catalogue {cost['catalog_gb']:,.1f} GB"
            for cost in infer["cost"]
        ]
    return "\n".join(lines)
