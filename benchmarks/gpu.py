"""The engine's highest rate, inference from store to catalogue, and a training step, on a GPU.

benchmarks/gpu.sh [OUT.json] [--device cuda] [--sources 400000] [--small]

ceiling   images/s of the forward pass on tensors that are already on the device, for the bundled
          model and the paper's ConvNeXt-Tiny: float32 and bfloat16, by batch size
feed      images/s that one thread and all cores read and decode from the store
disk      sources/s from store to catalogue, divided by the engine's rate on images in host memory,
          and what 300 million sources take at that rate
training  images/s of a training of PITA
train     images/s of a training step of the paper's PITA, beside pita-z's
compiled  ceiling and disk again, with compiled code: last, because compiling takes minutes
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from side_by_side import about, alternate

from photozhpc.bench.bench import bench_infer
from photozhpc.bench.synthetic_store import make_store
from photozhpc.config import from_mapping, load_yaml
from photozhpc.model import PITA, PITAConfig, bundled_checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model.engine import GPU_BATCH_SIZE, Engine
from photozhpc.model.ranks import Ranks
from photozhpc.model.train_config import TrainConfig
from photozhpc.model.trainer import Trainer
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

HERE = Path(__file__).parent
RECIPE = HERE.parent / "photozhpc/configs/train/small/pita.yaml"
SURVEY_SOURCES = 300_000_000
ROUNDS, TRAINING_STEPS = 10, 30  # of which medians and rates are taken


def ceiling(
    checkpoint_path: Path, device: str, batch: int, dtype: torch.dtype, compiled: bool = False
) -> dict[str, Any]:
    """Images per second of the forward pass alone, on images that are on the device."""
    checkpoint = load_checkpoint(checkpoint_path)
    start = time.perf_counter()
    engine = Engine(checkpoint, device, batch, dtype, compiled=compiled)
    ready = time.perf_counter() - start
    run = engine._full_batch or engine.forward
    shape = (batch, checkpoint.pita.config.n_bands, engine.side_pix, engine.side_pix)
    cutout, ebv = torch.randn(shape, device=device), torch.zeros(batch, device=device)
    with torch.inference_mode():
        rates: dict[str, Any] = {
            "images_per_s": batch / seconds_of(lambda: run(cutout, ebv), device)
        }
    if compiled:
        rates |= {"compiled": engine.is_compiled, "seconds_to_compile": ready}
    if device.startswith("cuda"):
        rates["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
        torch.cuda.reset_peak_memory_stats()
    print(checkpoint_path.name, batch, dtype, rates, flush=True)
    return rates


def seconds_of(run, device: str) -> float:
    """Median seconds of a call, the device idle before and after."""

    def run_and_wait() -> None:
        run()
        wait(device)

    for _ in range(min(3, ROUNDS)):
        run_and_wait()
    return median(alternate({"run": run_and_wait}, ROUNDS)["run"])


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def feed(store: CutoutStore, side: int) -> dict[str, float]:
    """Images per second that threads read and decode, without a model."""
    keys = list(store.shards())[:64]
    lengths = store.shard_lengths()

    def read(key) -> int:
        out = np.empty((256, len(store.survey.bands), side, side), np.float32)
        for a in range(0, lengths[key], 256):
            n = min(256, lengths[key] - a)
            store.read_cutouts(key, slice(a, a + n), side, out[:n])
        return lengths[key]

    rates = {}
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(read, keys[:threads]))
            start = time.perf_counter()
            done = sum(pool.map(read, keys))
            rates[f"{threads}_threads"] = done / (time.perf_counter() - start)
    return rates


def disk(n_sources: int, device: str, compiled: bool, path: Path, folder: Path) -> dict[str, Any]:
    """From store to catalogue, and what a survey takes at that rate."""
    measured = bench_infer(n_sources, device, compiled, None, path, folder)
    hours = SURVEY_SOURCES / measured["from_disk_per_s"] / 3600
    return {
        **{key: value for key, value in measured.items() if key != "cost"},
        "cost": {
            "sources": SURVEY_SOURCES,
            "gpu_hours": measured["workers"] * hours,
            "store_tb": SURVEY_SOURCES * measured["store_bytes_per_source"] / 1e12,
            "catalog_gb": SURVEY_SOURCES * measured["catalog_bytes_per_source"] / 1e9,
        },
    }


def train_rate(device: str, store: CutoutStore, batches: list[int]) -> dict[str, Any]:
    """Images per second of a training of PITA: the step alone, and from the store."""
    recipe = from_mapping(TrainConfig, load_yaml(RECIPE), "small/pita")
    rates = {}
    for batch in batches:
        config = replace(recipe, store=str(store.path), device=device, batch_size=batch)
        trainer = Trainer(config, store, Ranks(device=torch.device(device)))
        coming = trainer.batches()
        lanes = next(coming)
        alone = batch / seconds_of(lambda t=trainer, b=lanes: t.train_step(b), device)
        wait(device)
        start = time.perf_counter()
        steps = [
            trainer.train_step(lanes)
            for lanes, _ in zip(coming, range(TRAINING_STEPS), strict=False)
        ]
        wait(device)
        rate = batch * len(steps) / (time.perf_counter() - start)
        rates[f"batch {batch}"] = {"step_images_per_s": alone, "from_store_images_per_s": rate}
        print("training", batch, rates[f"batch {batch}"], flush=True)
    return rates


def train_step(device: str, batch: int, rounds: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", HERE / "bench_train.py", "--device", device]
    command += ["--batch", batch, "--rounds", rounds]
    try:
        done = subprocess.run(
            list(map(str, command)), check=True, capture_output=True, text=True, timeout=180
        )
    except subprocess.CalledProcessError as error:
        return {"failed": error.stderr[-500:]}
    except subprocess.TimeoutExpired:
        return {"failed": "not done after 180 s"}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", nargs="?", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--sources", type=int, default=400_000)
    parser.add_argument("--folder", type=Path, help="a fast local disk")
    parser.add_argument("--small", action="store_true", help="small sizes, nothing compiled")
    options = parser.parse_args()
    device, small = options.device, options.small
    if small:
        global ROUNDS, TRAINING_STEPS
        ROUNDS, TRAINING_STEPS = 2, 3
    n_sources = 512 if small else options.sources
    batches = [64] if small else [512, 2048, 4096]
    result = about("gpu", "torch timm zarr dask numba", device=device, sources=n_sources)
    if device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    started = time.perf_counter()
    options.out.parent.mkdir(exist_ok=True, parents=True)

    def keep() -> None:  # after every section: the job may be killed
        result["seconds"] = time.perf_counter() - started
        options.out.write_text(json.dumps(result) + "\n")

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        survey = load_survey("roman-sim")
        torch.manual_seed(0)
        encoder = "convnext_atto" if small else "convnext_tiny"
        models = {
            "bundled": Path(bundled_checkpoint("roman-sim")),
            encoder: save_checkpoint(
                folder / "paper.safetensors", PITA(PITAConfig(encoder=encoder)), survey
            ),
        }
        store = make_store(folder / "store", survey, min(n_sources, 131_072))
        for name, path in models.items():
            side = load_checkpoint(path).pita.config.crop
            result[name] = {
                "ceiling": {
                    f"{precision}, batch {batch}": ceiling(path, device, batch, dtype)
                    for precision, dtype in (
                        ("float32", torch.float32),
                        ("bfloat16", torch.bfloat16),
                    )
                    for batch in batches
                },
                "feed": feed(store, side),
                "disk": disk(n_sources, device, False, path, folder),
            }
            print(name, result[name], flush=True)
            keep()
        result["training"] = train_rate(device, store, [64] if small else [256, 1024])
        keep()
        if not small:
            result["train"] = train_step(device, 256, 3)
            keep()
        for name, path in models.items() if not small else ():
            result[name]["compiled"] = {
                "ceiling": ceiling(path, device, GPU_BATCH_SIZE, torch.bfloat16, compiled=True),
                "disk": disk(n_sources, device, True, path, folder),
            }
            print(name, result[name]["compiled"], flush=True)
            keep()
    keep()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
