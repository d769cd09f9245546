"""Inference from a store on disk to a catalogue on disk, and its components.

python benchmarks/bench_inference.py [--save] [--part NAME ...] [--sources 200000]

forward       the bundled model on images in memory: eager float32, our engine, our engine compiled;
              and by how much the engine changes the redshifts
utilisation   sources/s from Zarr to Parquet, divided by sources/s of the same engine, in as many
              processes, on images of the store in memory. Start-up is stated separately. The
              store's tiles are links to one, so they are in the system's memory after a while.
cold          the same with a store of 2.2 GB of copies, which is removed from the system's memory
              before every run
reference     ConvNeXt-Tiny of the paper from disk, beside the reference code: its modules, its
              HDF5 dataset, a DataLoader with as many workers as cores, eager float32
memory        peak memory of a worker, for 10^4 to 10^6 sources
first         seconds from `photozhpc infer` to its first finished part
"""

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import torch
from side_by_side import RESULTS, about, alternate, finish, parser, profile, ratio

from photozhpc.bench.bench import from_disk, in_memory, sources_of, store_bytes
from photozhpc.bench.synthetic_store import make_store
from photozhpc.catalog import read_catalog
from photozhpc.model import bundled_checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model.augment import prepare
from photozhpc.model.engine import Engine
from photozhpc.model.photometry import FluxInput
from photozhpc.model.pita import Fluxes
from photozhpc.pita_z.checkpoint import import_checkpoint
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

CORES = len(os.sched_getaffinity(0))


def forward(store: CutoutStore, rounds: int) -> dict[str, object]:
    checkpoint = load_checkpoint(bundled_checkpoint("roman-sim"))
    cutout, ebv, fluxes = sources_of(store, 2048)
    exact = Engine(checkpoint, precision=torch.float32).predict(cutout, ebv, fluxes)
    measured: dict[str, object] = {}
    for threads in sorted({1, CORES}):
        torch.set_num_threads(threads)
        model = checkpoint.pita
        tensor, ebv_N = torch.from_numpy(cutout), torch.from_numpy(ebv)
        seen = None
        if model.config.fluxes.n_apertures:
            picked = FluxInput(model.config.fluxes, store.survey)(fluxes)
            seen = Fluxes(*map(torch.from_numpy, picked), ebv_N)
        engines = {"eager": Engine(checkpoint), "compiled": Engine(checkpoint, compiled=True)}
        assert engines["compiled"].is_compiled

        @torch.inference_mode()
        def eager_float32(tensor=tensor, ebv_N=ebv_N, model=model, seen=seen) -> None:
            for a in range(0, len(tensor), 256):
                rows = slice(a, a + 256)
                image = prepare(
                    tensor[rows],
                    ebv_N[rows],
                    model.extinction_r_C,
                    model.noise_C,
                    model.config.crop,
                    model.config.stretch,
                )
                model.estimate(image, None if seen is None else Fluxes(*(v[rows] for v in seen)))

        sides = {
            "eager float32": eager_float32,
            **{n: lambda e=e: e.predict(cutout, ebv, fluxes) for n, e in engines.items()},
        }
        for name, engine in engines.items():
            shift = np.abs(engine.predict(cutout, ebv, fluxes).z_phot_N - exact.z_phot_N)
            measured[f"shift_99_{name}"] = float(np.nanquantile(shift / (1 + exact.z_phot_N), 0.99))
            assert measured[f"shift_99_{name}"] < 0.005, measured
            sides[name]()
        eager_float32()
        seconds = alternate(sides, rounds)
        measured[f"{threads}_threads"] = {
            "images_per_s": {name: len(cutout) / median(times) for name, times in seconds.items()},
            "times_eager_float32": ratio(seconds, "eager float32", "eager"),
            "times_eager_float32_compiled": ratio(seconds, "eager float32", "compiled"),
        }
    return measured


def cold(folder: Path, rounds: int, n: int) -> dict[str, object]:
    checkpoint = Path(bundled_checkpoint("roman-sim"))
    store = make_store(folder / "cold", load_survey("roman-sim"), n, linked=False)
    from_disk(checkpoint, store, folder / "out", True, CORES)
    memory, disk = [], []
    for _ in range(rounds):
        memory.append(in_memory(checkpoint, store, True, CORES, [])[0])
        evict(store)
        disk.append(from_disk(checkpoint, store, folder / "out", True, CORES)["sources_per_s"])
        print("cold", memory[-1], disk[-1], flush=True)
    return {
        "sources": len(store),
        "store_gb": store_bytes(store) / 1e9,
        "in_memory_per_s": memory,
        "from_disk_per_s": disk,
        "utilisation": median(d / m for d, m in zip(disk, memory, strict=True)),
    }


def evict(store: CutoutStore) -> None:
    """Take the files of a store out of the system's memory."""
    os.sync()
    for file in store.path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def utilisation(store: CutoutStore, folder: Path, rounds: int) -> dict[str, object]:
    checkpoint = Path(bundled_checkpoint("roman-sim"))
    measured: dict[str, object] = {}
    for compiled in (True, False):
        memory, disk = [], []
        from_disk(checkpoint, store, folder / "out", compiled, CORES)  # compiles, fills caches
        for _ in range(rounds):
            memory.append(in_memory(checkpoint, store, compiled, CORES, [])[0])
            disk.append(from_disk(checkpoint, store, folder / "out", compiled, CORES))
            print("compiled" if compiled else "eager", memory[-1], disk[-1], flush=True)
        rates = [run["sources_per_s"] for run in disk]
        measured["compiled" if compiled else "eager"] = {
            "in_memory_per_s": memory,
            "from_disk_per_s": rates,
            "startup_s": [run["startup_s"] for run in disk],
            "utilisation": median(d / m for d, m in zip(rates, memory, strict=True)),
        }
    parts = list((folder / "out" / "catalog").iterdir())
    measured["store_bytes_per_source"] = store_bytes(store) / len(store)
    measured["catalog_bytes_per_source"] = sum(p.stat().st_size for p in parts) / len(store)
    return measured


def reference_way(folder: Path, rounds: int, n: int = 12_288) -> dict[str, object]:
    import h5py
    from reference import dataset, pita_module, randomise

    survey = load_survey("candels")
    store = make_store(folder / "candels", survey, n, 64)
    cutout, ebv, _ = sources_of(store, n)
    module = pita_module(128, np.ones(4, np.float32)).eval()
    randomise(module, seed=0)
    about = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": "2.5.0"}
    torch.save({"state_dict": module.state_dict(), **about}, folder / "theirs.ckpt")
    imported, _ = import_checkpoint(folder / "theirs.ckpt", survey)
    model = save_checkpoint(folder / "tiny.safetensors", imported, survey)
    with h5py.File(folder / "c.hdf5", "w") as file:
        file["images"] = cutout / imported.noise_C.numpy()[:, None, None]  # in its counts
        file["ebvs"] = ebv

    @torch.inference_mode()
    def theirs() -> None:
        torch.set_num_threads(CORES)
        loader = torch.utils.data.DataLoader(
            dataset(folder / "c.hdf5", with_labels=False), batch_size=256, num_workers=CORES
        )
        redshift = [module(batch)[1] for batch in loader]
        np.save(folder / "z.npy", torch.cat(redshift).numpy())

    rates: dict[str, list[float]] = {"ours": [], "pita-z": []}
    for _ in range(rounds + 1):
        start = time.perf_counter()
        theirs()
        rates["pita-z"].append(n / (time.perf_counter() - start))
        run = from_disk(model, store, folder / "out", True, CORES)
        rates["ours"].append(run["sources_per_s"])
        print({name: rate[-1] for name, rate in rates.items()}, flush=True)
    ours = read_catalog(folder / "out")["photoz"].to_numpy()
    # Random weights amplify the rounding of bfloat16; other pixels or weights would give 0.
    agreement = float(np.corrcoef(ours, np.load(folder / "z.npy").ravel())[0, 1])
    assert agreement > 0.95, agreement
    rates = {name: rate[1:] for name, rate in rates.items()}
    times = median(a / b for a, b in zip(rates["ours"], rates["pita-z"], strict=True))
    engine = Engine(load_checkpoint(model))
    batch = slice(0, engine.batch_size)
    return {
        "sources_per_s": rates,
        "times_pita_z": times,
        "correlation_of_redshifts": agreement,
        "profile_eager": profile(lambda: engine.predict(cutout[batch], ebv[batch])),
    }


def memory(folder: Path, sizes: list[int]) -> dict[str, object]:
    """Peak resident memory (its own and shared) of the largest worker, MB."""
    checkpoint, survey = bundled_checkpoint("roman-sim"), load_survey("roman-sim")
    peaks: dict[str, float] = {}
    for n in sizes:
        store = make_store(folder / "memory", survey, n)
        seen: dict[int, int] = {}
        stop = threading.Event()

        def watch(seen=seen, stop=stop) -> None:
            while not stop.wait(0.2):
                for child in psutil.Process().children(recursive=True):
                    try:
                        text = Path(f"/proc/{child.pid}/status").read_text()
                        if "torch" not in Path(f"/proc/{child.pid}/maps").read_text():
                            continue
                    except OSError:
                        continue
                    peak = next(line for line in text.splitlines() if line.startswith("VmHWM"))
                    seen[child.pid] = int(peak.split()[1])

        watcher = threading.Thread(target=watch)
        watcher.start()
        from_disk(Path(checkpoint), store, folder / "out", None, CORES)  # as a user's run
        stop.set()
        watcher.join()
        peaks[str(n)] = max(seen.values()) / 1e3
        print(n, "sources:", peaks[str(n)], "MB", flush=True)
    return {"peak_mb": peaks, "largest_over_smallest": max(peaks.values()) / min(peaks.values())}


def first_part(store: CutoutStore, folder: Path, rounds: int) -> dict[str, object]:
    seconds = []
    for _ in range(rounds):
        out = folder / "first"
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "photozhpc", "infer", "--survey", "roman-sim"]
        command += ["--store", str(store.path), "--out", str(out)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(out.glob("catalog/part-*.parquet")):
            assert process.poll() is None, f"infer ended without a part ({process.returncode})"
            time.sleep(0.02)
        seconds.append(time.perf_counter() - start)
        process.terminate()
        process.wait()
        time.sleep(3)  # its workers notice
    return {"seconds": seconds, "median": median(seconds)}


def main() -> None:
    names = ["forward", "utilisation", "cold", "reference", "memory", "first"]
    options = parser(__doc__)
    options.add_argument("--part", nargs="+", choices=names, default=names)
    options.add_argument("--sources", type=int, default=200_000)
    options.add_argument("--cold-sources", type=int, default=80_000)
    options.add_argument("--memory-sources", type=int, nargs="+", default=[10_000, 1_000_000])
    options.add_argument("--folder", type=Path, help="where there is room for some GB")
    options = options.parse_args()
    before = RESULTS / "inference.json"
    results = json.loads(before.read_text()) if before.exists() else {}  # parts not run again stay
    results |= about(
        "inference", "torch timm zarr dask distributed numba pyarrow", sources=options.sources
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        store = make_store(folder / "store", load_survey("roman-sim"), options.sources)
        parts = {
            "forward": lambda: forward(store, options.rounds),
            "utilisation": lambda: utilisation(store, folder, options.rounds),
            "cold": lambda: cold(folder, min(options.rounds, 3), options.cold_sources),
            "reference": lambda: reference_way(folder, min(options.rounds, 2)),
            "memory": lambda: memory(folder, options.memory_sources),
            "first": lambda: first_part(store, folder, min(options.rounds, 3)),
        }
        for part in options.part:
            results[part] = copy.copy(parts[part]())
            print(part, results[part], flush=True)
            if options.save:  # the next one takes minutes
                (RESULTS / "inference.json").write_text(json.dumps(results) + "\n")
    finish(results, options.save)


if __name__ == "__main__":
    main()
