"""On a CUDA device: the same redshifts, catalogues and trainings as on a CPU; elsewhere skipped."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.stores import engine_input, make_store
from builders.training import TINY, free_port, write_config
from photozhpc.catalog import read_catalog, read_pdf
from photozhpc.catalog.run import run_inference
from photozhpc.config import to_mapping
from photozhpc.extraction.extract import extract
from photozhpc.metrics import point_metrics
from photozhpc.model import bundled_checkpoint, load_checkpoint
from photozhpc.model.engine import Engine
from photozhpc.model.ranks import Ranks
from photozhpc.model.train import train
from photozhpc.model.trainer import Trainer
from photozhpc.store import CutoutStore, Measurements
from photozhpc.survey import load_survey
from photozhpc.workers.dask_workers import DaskWorkers

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no CUDA device here"
)
SHIFT = 2e-3  # of (1+z): bfloat16 on another device, far below the model's NMAD of 0.05


@pytest.fixture(autouse=True)
def whole_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is float32, and not TF32, whose rounding differs from kernel to kernel."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(scope="module")
def bundled() -> Path:
    return Path(bundled_checkpoint("roman-sim"))


@pytest.fixture(scope="module")
def sky_store(small_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> CutoutStore:
    path = tmp_path_factory.mktemp("stores") / "cuda"
    extract(load_survey("roman-sim"), small_sky, path, size=66, shard_len=64, workers=1)
    return CutoutStore.open(path)


@pytest.fixture(scope="module")
def images(sky_store: CutoutStore) -> tuple[np.ndarray, np.ndarray, Measurements]:
    return engine_input(sky_store)


def shifts(z_N: np.ndarray, reference_N: np.ndarray) -> np.ndarray:
    assert np.array_equal(np.isnan(z_N), np.isnan(reference_N))
    known_N = np.isfinite(reference_N)
    return np.abs(z_N - reference_N)[known_N] / (1 + reference_N[known_N])


@pytest.fixture(scope="module")
def on_cpu(bundled, images):
    return Engine(load_checkpoint(bundled), "cpu", precision=torch.float32).predict(*images)


@pytest.mark.parametrize(
    ("precision", "limit"), [(torch.float32, 1e-3), (torch.bfloat16, 5 * SHIFT)]
)
def test_redshifts_are_those_of_the_cpu(bundled, images, on_cpu, precision, limit):
    engine = Engine(load_checkpoint(bundled), "cuda", batch_size=128, precision=precision)
    found = engine.predict(*images)
    shift_N = shifts(found.z_phot_N, on_cpu.z_phot_N)
    assert len(shift_N) > 100
    assert np.quantile(shift_N, 0.95) < limit
    assert np.median(shift_N) < limit / 5
    quantile_shift = shifts(found.quantile_NQ.ravel(), on_cpu.quantile_NQ.ravel())
    assert np.quantile(quantile_shift, 0.95) < 2 * limit


def test_threads_share_an_engine(bundled, images):
    """Copies of one thread overlap with the computing of another, and nothing is mixed up."""
    engine = Engine(load_checkpoint(bundled), "cuda", batch_size=64)
    alone = engine.predict(*images).z_phot_N
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: engine.predict(*images).z_phot_N, range(24)):
            assert shifts(found, alone).max() < SHIFT


@pytest.mark.timeout(900)
def test_compiled_code_gives_the_same(bundled, images, compiler):
    eager = Engine(load_checkpoint(bundled), "cuda", batch_size=256)
    engine = Engine(load_checkpoint(bundled), "cuda", batch_size=256, compiled=True)
    assert engine.is_compiled
    shift_N = shifts(engine.predict(*images).z_phot_N, eager.predict(*images).z_phot_N)
    assert np.quantile(shift_N, 0.95) < 5 * SHIFT


def test_a_catalogue_is_that_of_the_cpu(sky_store, bundled, tmp_path):
    for device in ("cuda", "cpu"):
        run_inference(
            sky_store.path,
            bundled,
            tmp_path / device,
            workers=DaskWorkers.of(device=device),
            pdf="grid",
        )
    found, want = (read_catalog(tmp_path / device) for device in ("cuda", "cpu"))
    assert found["source_id"].equals(want["source_id"])
    assert found["photoz_flags"].equals(want["photoz_flags"])
    z_N, reference_N = (
        table["photoz"].to_numpy(zero_copy_only=False).astype(float) for table in (found, want)
    )
    assert np.quantile(shifts(z_N, reference_N), 0.95) < 5 * SHIFT
    for part, other in zip(read_pdf(tmp_path / "cuda"), read_pdf(tmp_path / "cpu"), strict=True):
        step = part.axis_P[1] - part.axis_P[0]
        cdf_difference = np.cumsum(part.value_NP - other.value_NP, axis=1) * step
        assert np.nanmedian(np.abs(cdf_difference).max(axis=1)) < 0.02


def test_workers_use_the_gpu_and_a_finished_run_is_left_alone(bundled, tmp_path):
    """Workers come from a fork server: none may have touched CUDA before it was forked."""
    store = make_store(tmp_path / "store", {"a": 600, "b": 300})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "photozhpc", "infer", "--survey", "roman-sim", "--json"]
    command += ["--store", str(store.path), "--checkpoint", str(bundled), "--out", str(out)]
    command += ["--device", "cuda", "--workers", "1"]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert len(read_catalog(out)) == len(store)
    assert json.loads(done.stdout)


def test_training_learns_and_is_resumed(small_store, tmp_path):
    config = replace(
        TINY,
        store=str(small_store.path),
        out=str(tmp_path / "whole"),
        epochs=6,
        device="cuda",
        model=replace(TINY.model, density_bins=16),
        refit_steps=20,
        density_steps=20,
    )
    whole = load_checkpoint(train(config))
    stopped = replace(config, out=str(tmp_path / "stopped"), checkpoint_minutes=0.0)
    process = subprocess.Popen(
        [sys.executable, *write_config(stopped, tmp_path)], stderr=subprocess.PIPE, text=True
    )
    log = Path(stopped.out) / "log.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    resumed = load_checkpoint(train(stopped))
    # CUDA adds in an order of its own: the same run to a few digits, not to the last bit.
    block = small_store.read_cutouts(small_store.shards()[0])
    ebv_N = small_store.read_sources(small_store.shards()[0]).ebv_N
    z_whole, z_resumed = (
        Engine(model, "cuda").predict(block, ebv_N).z_phot_N for model in (whole, resumed)
    )
    assert np.median(shifts(z_resumed, z_whole)) < 0.05


def steps_of(config, monkeypatch=None) -> torch.Tensor:
    """The losses of the first steps on the GPU; with a monkeypatch, kernel by kernel."""
    if monkeypatch is not None:
        monkeypatch.setattr(Trainer, "_record", lambda _: None)
    ranks = Ranks(device=torch.device("cuda"))
    trainer = Trainer(config, CutoutStore.open(config.store), ranks)
    return torch.stack([trainer.train_step(lanes) for lanes in trainer.batches()]).cpu()


@pytest.mark.parametrize("method", ["pita", "supervised"])
def test_recorded_passes_are_those_that_were_recorded(small_store, method, monkeypatch):
    """CUDA graphs against the same kernels launched one by one; idle heads have no gradients."""
    config = replace(
        TINY, store=str(small_store.path), method=method, precision="float32", batch_size=16
    )
    config = replace(config, model=replace(config.model, drop_path=0.1))
    recorded = steps_of(config)
    assert len(recorded) >= 2
    torch.testing.assert_close(steps_of(config, monkeypatch), recorded, rtol=2e-3, atol=1e-5)


RANK = """
import json, sys, torch, torch.distributed as dist
from photozhpc.config import from_mapping
from photozhpc.model.ranks import Ranks
from photozhpc.model.trainer import Trainer
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore

torch.backends.cudnn.allow_tf32 = False
config = from_mapping(TrainConfig, json.loads(sys.argv[1]), "test")
dist.init_process_group("gloo")
ranks = Ranks(dist.get_rank(), 2, torch.device("cuda", 0), dist.group.WORLD)
trainer = Trainer(config, CutoutStore.open(config.store), ranks)
losses = [ranks.sum(trainer.train_step(lanes).tolist()) for lanes in trainer.batches()]
if ranks.is_first:
    torch.save(torch.tensor(losses) / 2, sys.argv[2])
dist.barrier()
"""


def test_two_ranks_on_one_gpu_are_one_process(small_store, tmp_path):
    """DDP around recorded passes. NCCL wants a GPU for each rank; gloo does not."""
    config = replace(TINY, store=str(small_store.path), precision="float32", batch_size=16)
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    command += [json.dumps(to_mapping(config)), str(tmp_path / "losses.pt")]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = torch.load(tmp_path / "losses.pt", weights_only=True)
    torch.testing.assert_close(found, steps_of(config), rtol=5e-3, atol=1e-4)


def test_the_bundled_model_is_as_good_as_on_a_cpu(sky_store, bundled, images, on_cpu):
    sources = [sky_store.read_sources(key) for key in sky_store.shards()]
    z_spec_N = np.concatenate([s.z_spec_N for s in sources])
    found = Engine(load_checkpoint(bundled), "cuda").predict(*images)
    known_N = np.isfinite(z_spec_N) & np.isfinite(found.z_phot_N)
    metrics = [
        point_metrics(z_spec_N[known_N], prediction.z_phot_N[known_N])
        for prediction in (found, on_cpu)
    ]
    assert metrics[0].nmad == pytest.approx(metrics[1].nmad, rel=0.05)
