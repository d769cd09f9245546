"""The job scripts and Slurm's workers, on a Slurm of two nodes on this machine."""

import asyncio
import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import cloudpickle
import numpy as np
import psutil
import pytest
import torch
import yaml
from distributed.security import Security

from builders.models import make_checkpoint
from builders.paths import ROOT
from builders.schedulers import answers
from builders.stores import SHARD_LEN, make_store
from builders.training import TINY
from photozhpc.catalog import read_catalog
from photozhpc.catalog.run import run_inference
from photozhpc.catalog.status import status_of
from photozhpc.catalog.verify import verify_catalog
from photozhpc.config import to_mapping
from photozhpc.model import load_checkpoint
from photozhpc.store import CutoutStore
from photozhpc.workers.dask_workers import DaskWorkers
from photozhpc.workers.site import load_site, make_job
from photozhpc.workers.slurm import slurm_client

ROWS = 100 * SHARD_LEN
pytestmark = pytest.mark.timeout(200)
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Slurm's workers cannot import it
PIPELINE = ROOT / "jobs" / "pipeline.sh"


def train_config(path: Path, **changes) -> Path:
    path.write_text(yaml.safe_dump(to_mapping(replace(TINY, precision="float32", **changes))))
    return path


def test_the_pipeline_runs_on_two_nodes_and_again(slurm, site, small_sky, tmp_path):
    config = train_config(tmp_path / "train.yaml", epochs=1)
    folder = tmp_path / "run"

    def pipeline() -> None:
        arguments = (site(), "roman-sim", small_sky, folder, config)
        environment = {**os.environ, "ARRAY": "2", "NODES": "2", "SIZE": "48"}
        said = slurm.run("bash", PIPELINE, *arguments, env=environment)
        numbers = [line.split(": ")[1] for line in said.splitlines()]
        assert len(numbers) == 3
        for number in numbers:
            slurm.ends_well(number)

    pipeline()
    store = CutoutStore.open(folder / "store")
    assert store.verify() == []
    assert len(store.tiles()) == 2
    n_rows, problems = verify_catalog(folder / "catalogue", store)
    assert (n_rows, problems) == (len(store), [])
    files = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.suffix in (".parquet", "")}
    model = (folder / "run" / "model.safetensors").read_bytes()

    pipeline()
    parts = [p for p in files if p.suffix == ".parquet"]
    assert parts
    assert all(p.stat().st_mtime_ns == files[p] for p in parts)
    assert (folder / "run" / "model.safetensors").read_bytes() == model


def test_training_preempted_and_requeued_ends_with_the_same_weights(
    slurm, site, small_store, tmp_path
):
    config = train_config(tmp_path / "train.yaml", epochs=4)

    def submit(out: Path, partition: str) -> str:
        arguments = ["--config", str(config), "--store", str(small_store.path), "--out", str(out)]
        file = site(partition=partition)
        return make_job(load_site(file), "train", arguments).submit()

    slurm.ends_well(submit(tmp_path / "undisturbed", "main"))
    number = submit(tmp_path / "out", "low")
    log = tmp_path / "out" / "log.jsonl"
    end = time.monotonic() + 120
    while not log.is_file() or log.read_text().count("\n") < 1:
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.05)
    urgent = ["sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o", "/dev/null"]
    high = slurm.run(*urgent, "--wrap", "sleep 1").strip()
    slurm.ends_well(high)
    slurm.ends_well(number)
    assert slurm.job(number)["Restarts"] == "1"
    one, other = (
        load_checkpoint(tmp_path / name / "model.safetensors").pita.state_dict()
        for name in ("undisturbed", "out")
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert [json.loads(line)["epoch"] for line in log.read_text().splitlines()] == [*range(1, 5)]


def test_a_job_that_fails_is_not_requeued(slurm, site, tmp_path):
    job = make_job(load_site(site()), "infer", ["--survey", "roman-sim", "--store", "/none"])
    number = job.submit()
    assert slurm.wait_for(number, {"FAILED"}) == "FAILED"
    found = slurm.job(number)
    assert (found["Restarts"], found["ExitCode"]) == ("0", "1:0")
    log = (slurm.folder / "logs" / f"photozhpc-infer-{number}.log").read_text()
    assert "Error: /none: no store there" in log
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_store(folder / "store", {"a": ROWS // 2, "b": ROWS // 2})
    make_checkpoint(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def undisturbed(inputs) -> Path:
    out = inputs / "undisturbed"
    make(inputs, out)
    return out


def make(inputs: Path, out: Path, **settings) -> None:
    arguments = (inputs / "store", inputs / "model.safetensors", out)
    workers = DaskWorkers.of(1, "cpu", **settings)
    run_inference(*arguments, workers=workers, rows_per_part=SHARD_LEN, progress=False)


def finished_parts(out: Path) -> int:
    return len(list((out / "catalog").glob("part-*.parquet")))


def test_infer_on_slurm_workers_of_which_a_job_is_cancelled(slurm, site, inputs, undisturbed):
    out = inputs / "cancelled"
    cancelled: list[str] = []

    def cancel() -> None:
        end = time.monotonic() + 120
        while finished_parts(out) < 3 and time.monotonic() < end:
            time.sleep(0.02)
        cancelled.extend(slurm.jobs("photozhpc-worker")[:1])
        slurm.run("scancel", *cancelled)

    thread = threading.Thread(target=cancel)
    thread.start()
    make(inputs, out, site=load_site(site()), jobs=2)
    thread.join()
    assert len(cancelled) == 1
    assert read_catalog(out).equals(read_catalog(undisturbed))
    assert verify_catalog(out, CutoutStore.open(inputs / "store")) == (ROWS, [])
    assert not (out / ".credentials").exists()
    found = status_of(out)
    assert found["state"] == "finished"
    assert found["workers_lost"] >= 1
    end = time.monotonic() + 30
    while slurm.jobs("photozhpc-worker"):
        assert time.monotonic() < end
        time.sleep(0.1)


def seen_by_worker(dask_worker) -> tuple[str, str, str, float]:
    """Where a worker is, and which device it was given."""
    limit = dask_worker.memory_manager.memory_limit
    node = os.environ["SLURMD_NODENAME"]
    return node, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"], limit


def listening() -> list[tuple[str, int]]:
    """What this process and its parent, the nanny, listen at."""
    return [
        connection.laddr
        for pid in (os.getpid(), os.getppid())
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def _security(folder: Path) -> Security:
    files = {"cert": folder / "cert", "key": folder / "key"}
    settings = {f"tls_client_{name}": str(path) for name, path in files.items()}
    return Security(require_encryption=True, tls_ca_file=str(folder / "ca"), **settings)


def test_workers_are_pinned_and_none_gets_in_without_credentials(slurm, site, tmp_path):
    two_gpus = {"cpus_per_task": 2, "time": "00:10:00", "gpus_per_node": 2}
    wanted = load_site(site(infer=two_gpus))
    with slurm_client(wanted, 2, tmp_path / "out", n_workers_needed=lambda: 4) as client:
        client.wait_for_workers(4, timeout=90)
        seen = sorted(client.run(seen_by_worker).values())
        assert [place[:2] for place in seen] == [
            ("n1", "0"),
            ("n1", "1"),
            ("n2", "0"),
            ("n2", "1"),
        ]
        assert {place[2] for place in seen} == {"1"}
        assert all(place[3] > 1e8 for place in seen)
        address = client.scheduler.address
        assert address.startswith("tls://")
        keys = list((tmp_path / "out" / ".credentials").iterdir())
        assert keys
        assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}
        assert (tmp_path / "out" / ".credentials").stat().st_mode & 0o777 == 0o700
        addresses = {a for some in client.run(listening).values() for a in some}
        mine = _security(tmp_path / "out" / ".credentials")
        assert asyncio.run(answers(address, mine))
        assert not asyncio.run(answers(address, Security.temporary()))
        assert not asyncio.run(answers(address, None))
    assert addresses
    assert {address[0] for address in addresses} == {"127.0.0.1"}  # site.interface is lo
    assert not (tmp_path / "out" / ".credentials").exists()


def of_job(process: psutil.Process, number: str) -> bool:
    with suppress(psutil.Error):
        return process.environ().get("SLURM_JOB_ID") == number
    return False


@pytest.mark.slow
def test_a_node_that_dies_under_its_job(slurm, site, inputs, undisturbed):
    """kill -9 of slurmd and of all that runs on its node: Slurm requeues the job on another."""
    out = inputs / "node-lost"
    arguments = ["--survey", "roman-sim", "--store", str(inputs / "store"), "--out", str(out)]
    arguments += ["--checkpoint", str(inputs / "model.safetensors"), "--device", "cpu"]
    number = make_job(load_site(site()), "infer", arguments).submit()
    end = time.monotonic() + 120
    while finished_parts(out) < 1:
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.02)
    node = slurm.job(number)["NodeList"]
    daemon = psutil.Process(int((slurm.folder / f"slurmd.{node}.pid").read_text()))
    # Nobody is to tell Slurm of it.
    silent = [daemon, *(p for p in psutil.process_iter() if p.name().startswith("slurmstepd"))]
    for process in silent:
        process.suspend()
    for process in [p for p in psutil.process_iter() if of_job(p, number)]:
        process.kill()
    for process in silent:
        process.kill()
    slurm.ends_well(number, 240)
    slurm.run("slurmd", "-N", node, "-f", slurm.folder / "slurm.conf")
    assert slurm.job(number)["Restarts"] == "1"
    assert verify_catalog(out, CutoutStore.open(inputs / "store")) == (ROWS, [])
    kept, made = read_catalog(undisturbed), read_catalog(out)
    assert made["source_id"].equals(kept["source_id"])
    np.testing.assert_allclose(made["photoz"], kept["photoz"], atol=0.02)  # parts of another size
