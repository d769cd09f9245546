"""An existing scheduler: TLS, and what happens when it dies."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pytest
from distributed.security import Security

from builders.models import make_checkpoint
from builders.schedulers import answers
from builders.stores import make_store
from photozhpc.catalog import read_catalog
from photozhpc.catalog.run import run_inference
from photozhpc.errors import ConfigError, RunError
from photozhpc.workers.dask_workers import DaskWorkers
from photozhpc.workers.slurm import check_address

ROWS = 120 * 64


@pytest.mark.parametrize(
    ("address", "safe"),
    [
        ("tls://10.0.0.7:8786", True),
        ("tcp://127.0.0.1:8786", True),
        ("tcp://localhost:8786", True),
        ("tcp://[::1]:8786", True),
        ("tcp://10.0.0.7:8786", False),
        ("tcp://login1:8786", False),
        ("ucx://10.0.0.7:8786", False),
        ("ws://127.0.0.1:8786", False),
        ("10.0.0.7:8786", False),
        ("127.0.0.1.evil.org:8786", False),
        ("", False),
    ],
)
def test_beyond_the_loopback_it_is_tls_or_nothing(address, safe):
    if safe:
        check_address(address)
    else:
        with pytest.raises(ConfigError, match="without TLS anyone on the network can run code"):
            check_address(address)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("remote")
    make_store(folder / "store", {"a": ROWS // 2, "b": ROWS // 2})
    make_checkpoint(folder / "model.safetensors")
    return folder


def infer(inputs: Path, out: Path, **settings):
    arguments = (inputs / "store", inputs / "model.safetensors", out)
    workers = DaskWorkers.of(**settings)
    return run_inference(*arguments, workers=workers, rows_per_part=64, progress=False)


@pytest.fixture(scope="module")
def undisturbed(inputs) -> Path:
    infer(inputs, inputs / "undisturbed", workers=1, device="cpu")
    return inputs / "undisturbed"


class Deployment:
    """`dask scheduler` and `dask worker`, with TLS."""

    def __init__(self, folder: Path) -> None:
        self.processes: list[subprocess.Popen] = []
        made = Security.temporary()
        folder.mkdir()
        files = {"ca": made.tls_ca_file, "cert": made.tls_client_cert, "key": made.tls_client_key}
        for name, content in files.items():
            (folder / name).write_text(content)
        self.folder = folder
        self.flags = [
            word
            for flag, name in (("ca-file", "ca"), ("cert", "cert"), ("key", "key"))
            for word in (f"--tls-{flag}", str(folder / name))
        ]
        self.address = ""

    def config(self) -> dict[str, str]:
        """Dask's configuration with the credentials."""
        settings = {"distributed.comm.tls.ca-file": str(self.folder / "ca")}
        for name in ("cert", "key"):
            settings[f"distributed.comm.tls.client.{name}"] = str(self.folder / name)
        return settings

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        options = ["--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0"]
        command += ["--protocol", "tls", *options, *self.flags]
        scheduler = subprocess.Popen(command, **quiet)
        assert scheduler.stderr is not None
        for line in scheduler.stderr:
            if "Scheduler at:" in line:
                self.address = line.split()[-1]
                break
        threading.Thread(target=scheduler.stderr.read, daemon=True).start()  # it must not block
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, *options]
        command += [*self.flags, "--nthreads", "1", "--nworkers", "2", "--death-timeout", "10"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        worker = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        self.processes = [scheduler, worker]

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(30)
            if process.stderr is not None:
                process.stderr.close()


@pytest.fixture
def deployment(tmp_path):
    running = Deployment(tmp_path / "credentials")
    running.start()
    yield running
    running.stop()


@pytest.mark.drawn
@pytest.mark.timeout(140)
def test_infer_with_a_scheduler_that_dies_and_with_a_new_one(
    deployment, inputs, undisturbed, tmp_path
):
    address = deployment.address
    assert address.startswith("tls://127.0.0.1:")
    with dask.config.set(deployment.config()):
        assert asyncio.run(answers(address, Security()))
    assert not asyncio.run(answers(address, None))
    assert not asyncio.run(answers(address, Security.temporary()))
    with pytest.raises(RunError, match="no Dask scheduler accepts"):
        infer(inputs, tmp_path / "out", scheduler=address)
    assert not (tmp_path / "out").exists()

    def kill_scheduler() -> None:
        end = time.monotonic() + 90
        while len(list((tmp_path / "out").glob("catalog/part-*"))) < 5 and time.monotonic() < end:
            time.sleep(0.01)
        deployment.processes[0].send_signal(signal.SIGKILL)

    thread = threading.Thread(target=kill_scheduler)
    thread.start()
    with (
        dask.config.set(deployment.config()),
        pytest.raises(RunError, match="run the same command again"),
    ):
        infer(inputs, tmp_path / "out", scheduler=address)
    thread.join()
    deployment.stop()
    deployment.start()
    with dask.config.set(deployment.config()):
        summary = infer(inputs, tmp_path / "out", scheduler=deployment.address)
    assert summary.n_parts_resumed >= 5
    found, expected = read_catalog(tmp_path / "out"), read_catalog(undisturbed)
    assert found.schema == expected.schema
    for name in expected.column_names:  # workers with another number of threads: other last bits
        if pa.types.is_floating(expected[name].type):
            columns = (table[name].to_numpy() for table in (found, expected))
            np.testing.assert_allclose(*columns, rtol=2e-3, err_msg=name)
        else:
            assert found[name].equals(expected[name]), name


def test_a_scheduler_brings_its_own_workers(inputs, tmp_path):
    with pytest.raises(ConfigError, match="leave out --site and --workers"):
        infer(inputs, tmp_path / "out", scheduler="tls://a:1", workers=2)
    with pytest.raises(ConfigError, match="must be tls://"):
        infer(inputs, tmp_path / "out", scheduler="tcp://192.0.2.1:8786")
