"""The local cluster: which devices, how many workers, and that a dead worker comes back."""

import logging
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time

import pytest

from photozhpc.errors import ConfigError
from photozhpc.workers import devices, local
from photozhpc.workers.devices import device_list
from photozhpc.workers.fork_server import PRELOAD
from photozhpc.workers.local import local_client, worker_environments
from photozhpc.workers.pool import run_jobs

GB = 1 << 30


def test_no_cuda_devices_without_a_cuda_build_of_torch(monkeypatch):
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: False)
    assert device_list("auto", {"CUDA_VISIBLE_DEVICES": "0,1"}) == []
    with pytest.raises(ConfigError, match="CPU build; use --device cpu"):
        device_list("cuda", {"CUDA_VISIBLE_DEVICES": "0,1"})


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0,1", ["0", "1"]),
        (" 3 ,GPU-7f", ["3", "GPU-7f"]),
        ("MIG-1/2/3", ["MIG-1/2/3"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
    ],
)
def test_devices_are_those_that_cuda_would_see(monkeypatch, visible, expected):
    monkeypatch.setattr(devices, "_torch_has_cuda", lambda: True)
    assert device_list("auto", {"CUDA_VISIBLE_DEVICES": visible}) == expected
    assert device_list("cpu", {"CUDA_VISIBLE_DEVICES": visible}) == []
    if not expected:
        with pytest.raises(ConfigError, match="no CUDA device was found"):
            device_list("cuda", {"CUDA_VISIBLE_DEVICES": visible})


def test_an_unknown_device_is_refused():
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        device_list("tpu")


def test_one_worker_a_device_or_a_core():
    four = worker_environments(None, ["0", "1", "2", "3"], n_cores=64, memory_bytes=256 * GB)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in four] == ["0", "1", "2", "3"]
    assert {env["OMP_NUM_THREADS"] for env in four} == {"16"}
    cores = worker_environments(None, [], n_cores=8, memory_bytes=256 * GB)
    assert len(cores) == 8
    assert {(e["OMP_NUM_THREADS"], e["CUDA_VISIBLE_DEVICES"]) for e in cores} == {("1", "")}


def test_no_more_workers_than_memory_allows():
    assert len(worker_environments(None, [], n_cores=64, memory_bytes=7 * GB)) == 3
    assert len(worker_environments(None, [], n_cores=64, memory_bytes=GB)) == 1


def test_a_given_number_of_workers():
    three = worker_environments(3, ["0", "1"], n_cores=2, memory_bytes=GB)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in three] == ["0", "1", "0"]
    assert {env["OMP_NUM_THREADS"] for env in three} == {"1"}
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        worker_environments(0, [])


def environment() -> tuple[int, str]:
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


def sleep_then_pid(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_a_killed_worker_is_replaced_on_its_device_and_its_task_done_again():
    before = dict(os.environ)
    lost: list[str] = []
    with local_client(2, devices=["5", "7"], on_worker_lost=lost.append) as client:
        pids = dict(client.run(environment).values())
        assert sorted(pids.values()) == ["5", "7"]
        future = client.submit(sleep_then_pid, 1.5, pure=False)
        time.sleep(0.5)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        assert future.result(timeout=60) not in pids
        deadline = time.monotonic() + 60
        while len(client.scheduler_info()["workers"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        after = dict(client.run(environment).values())
        assert sorted(after.values()) == ["5", "7"]
        assert not set(after) & set(pids)
    assert len(lost) == 2
    assert dict(os.environ) == before
    for pid in after:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("source", ["file", "standard input"])
def test_a_program_without_a_main_guard_can_start_workers(tmp_path, source):
    program = (
        "import os\n"
        "from photozhpc.workers.local import local_client\n"
        "with local_client(1, 'cpu') as client:\n"
        "    print(client.submit(os.getpid).result(timeout=60) != os.getpid())\n"
    )
    file = tmp_path / "program.py"
    file.write_text(program)
    done = subprocess.run(
        [sys.executable, "-" if source == "standard input" else file],
        input=program,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


@pytest.fixture
def ctrl_c_heeded():
    """As at a terminal: a shell's background jobs, and tests in one, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_workers_of_a_start_that_was_stopped_are_not_reported_as_lost(monkeypatch, ctrl_c_heeded):
    """Ctrl-C while workers start: they are stopped, without a message."""
    start, begun, lost = local._start, [], []

    def stopped(*arguments):
        begun.append(start(*arguments))
        signal.raise_signal(signal.SIGINT)
        return begun[0]

    monkeypatch.setattr(local, "_start", stopped)
    with (
        pytest.raises(KeyboardInterrupt),
        local_client(1, "cpu", on_worker_lost=lost.append),
    ):
        pytest.fail("it went on")
    assert begun[0].status.name == "closed"
    assert lost == []


def test_workers_take_no_module_from_the_working_folder(tmp_path):
    """With its name, another user who can write there could run code as the user."""
    marker, folder = tmp_path / "ran", tmp_path / "shared"
    folder.mkdir()
    for name in ("multiprocessing", "selectors", "numpy", "photozhpc"):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write('{name} ')\n")
    script = tmp_path / "own" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "import os\nfrom photozhpc.workers.local import local_client\n"
        "with local_client(1, 'cpu') as client:\n"
        "    client.submit(os.getpid).result()\n"
        "assert 'PYTHONSAFEPATH' not in os.environ\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists(), marker.read_text()


def modules_of_worker() -> tuple[bool, int]:
    return "photozhpc.catalog.worker" in sys.modules, logging.getLogger("distributed").level


def test_workers_have_their_imports_also_after_a_pool() -> None:
    """The process that forks is one for all of multiprocessing, and does not change as it runs."""
    run_jobs(os.getpid, [(), ()], 2, "testing", lambda index, pid: None)
    with local_client(1, "cpu", preload=PRELOAD) as client:
        imported, level = client.submit(modules_of_worker).result()
    assert imported
    assert level == logging.CRITICAL
    server = multiprocessing.forkserver._forkserver._forkserver_pid
    with local_client(1, "cpu", preload=PRELOAD) as client:
        assert client.submit(modules_of_worker).result()[0]
    assert multiprocessing.forkserver._forkserver._forkserver_pid == server  # the same again
