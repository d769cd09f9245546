"""Other users of the machine cannot reach the processes of a run."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from distributed import Worker

from builders.models import tiny_checkpoint
from photozhpc.catalog import read_catalog
from photozhpc.store import CutoutStore
from photozhpc.workers.fork_server import private_scratch
from photozhpc.workers.local import local_client

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")

# Reads lines [address, marker] and tries to have `os.mkdir(marker)` run there, in every way it
# knows; answers each with what it could connect to. It keeps silent connections open, too.
ATTACKER = """
import asyncio, json, os, pickle, socket, sys, warnings
from distributed.comm import connect
from distributed.security import Security
warnings.simplefilter("ignore")
foreign = Security.temporary().get_connection_args("client")
silent = []

async def ask(url, marker, **settings):
    comm = await asyncio.wait_for(connect(url, timeout="1s", **settings), 2)
    for op in ("run", "run_function"):
        await comm.write({"op": op, "function": pickle.dumps(os.mkdir), "reply": True,
                          "args": pickle.dumps((marker,)), "kwargs": pickle.dumps({})})
        await asyncio.wait_for(comm.read(), 1)

def attack(address, marker):
    reached = []
    family = socket.AF_INET if isinstance(address, int) else socket.AF_UNIX
    where = ("127.0.0.1", address) if isinstance(address, int) else address.replace("@", "\\0", 1)
    for garbage in (b"", b"\\x08\\0\\0\\0\\0\\0\\0\\0garbage", os.urandom(4096)):
        try:
            other = socket.socket(family)
            other.settimeout(2)
            other.connect(where)
            reached.append("socket")
            other.sendall(garbage)
            silent.append(other)
        except OSError as error:
            reached.append(type(error).__name__)
    if isinstance(address, int):
        for url, settings in ((f"tcp://127.0.0.1:{address}", {}),
                              (f"tls://127.0.0.1:{address}", foreign)):
            try:
                asyncio.run(ask(url, marker, **settings))
            except Exception as error:
                reached.append(type(error).__name__)
    return reached

attack(1, "")  # imports what it needs, which the other user may not be able to read
os.setgroups([]), os.setgid(65534), os.setuid(65534)
print("ready", os.getuid(), flush=True)
for line in sys.stdin:
    print(json.dumps(attack(*json.loads(line))), flush=True)
"""


@contextmanager
def attacker() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", ATTACKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"ready {NOBODY}\n"
        try:
            yield process
        finally:
            process.kill()


def tried(process: subprocess.Popen[str], address: int | str, marker: Path) -> list[str]:
    process.stdin.write(json.dumps([address, str(marker)]) + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def listening(pid: int) -> set[int | str]:
    """Ports, and paths of Unix sockets, of a process and of those that it started."""
    found: set[int | str] = set()
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return found
    for process in family:
        try:
            for connection in process.net_connections("all"):
                if connection.family == socket.AF_UNIX:
                    found |= {connection.laddr} - {""}
                elif connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip == "127.0.0.1"
                    found.add(connection.laddr.port)
        except psutil.Error:
            continue  # it has ended
    return found


@needs_root
def test_another_user_runs_nothing_in_infer(small_store: CutoutStore, tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "m.safetensors", crop=48)
    marker = tmp_path / "marker"
    answers: dict[int | str, list[str]] = {}
    with attacker() as process:
        infer = subprocess.Popen(
            [sys.executable, "-m", "photozhpc", "infer", "--survey", "roman-sim", "--store",
             small_store.path, "--checkpoint", model, "--out", tmp_path / "out", "--workers", "1",
             "-q"],
        )  # fmt: skip
        while infer.poll() is None:
            for address in listening(infer.pid) - answers.keys():
                answers[address] = tried(process, address, marker)
            time.sleep(0.02)
    assert infer.returncode == 0
    assert not marker.exists()
    # The scheduler, the worker and its nanny, and multiprocessing's fork server.
    sockets = [address for address in answers if isinstance(address, str)]
    assert len(sockets) >= 4
    for address in sockets:
        assert set(answers[address]) <= {"PermissionError", "FileNotFoundError"}, address
    ports = [address for address in answers if isinstance(address, int)]
    assert len(ports) == 1  # Prometheus' metrics, over HTTP
    assert len(read_catalog(tmp_path / "out")) == small_store.index().n_sources


@needs_root
def test_the_attack_does_what_it_should_where_dask_listens_on_tcp(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    program = (
        "import asyncio\n"
        "from distributed import Scheduler\n"
        "async def main():\n"
        "    here = {'host': '127.0.0.1', 'dashboard_address': '127.0.0.1:0'}\n"
        "    async with Scheduler(port=0, **here) as s:\n"
        "        print(s.port, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    scheduler = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        port = int(scheduler.stdout.readline())
        with attacker() as process:
            tried(process, port, marker)
        assert marker.is_dir()
    finally:
        scheduler.kill()
        scheduler.communicate()


def scratch_folder(dask_worker: Worker) -> str:
    return dask_worker.local_directory


def test_all_is_in_a_folder_of_the_users_own() -> None:
    """Dask puts its scratch folder on Python's search path: a shared one could hold modules."""
    folder = private_scratch()
    before = set(folder.iterdir())  # sockets of workers that other tests killed
    with local_client(2, "cpu") as client:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()
        assert all(Path(f).is_relative_to(folder) for f in client.run(scratch_folder).values())
        workers = client.scheduler_info()["workers"]
        assert all(address.startswith(f"unix://{folder}:") for address in workers)
        assert not [p for p in sys.path if "dask" in p and not p.startswith(str(folder))]
    assert [path for path in set(folder.iterdir()) - before if path.name.isdigit()] == []


def test_large_messages_come_whole() -> None:
    content = os.urandom(40_000_000)
    with local_client(1, "cpu") as client:
        [future] = client.scatter([content], direct=False)
        assert client.submit(len, future).result(timeout=60) == len(content)
        assert client.gather(future) == content


LEFT_OVER = {
    "TMPDIR": "/nonexistent/tmp",
    "DASK_TEMPORARY_DIRECTORY": "/proc/nowhere",
    "DASK_SCHEDULER_ADDRESS": "tcp://nowhere:1",
    "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
    "DASK_DISTRIBUTED__COMM__DEFAULT_SCHEME": "tls",
    "DASK_DISTRIBUTED__WORKER__PRELOAD": "no_such_module",
    "DASK_DISTRIBUTED__WORKER__DAEMON": "x",
    "PYTHONWARNINGS": "error",
}


@pytest.mark.parametrize("tmpdir", ["/nonexistent/tmp", "long" * 30, "with:colon"])
def test_workers_start_whatever_the_environment_says(tmp_path: Path, tmpdir: str) -> None:
    """Of a socket's path 107 bytes count; 'host:port' is how Dask takes an address apart."""
    folder = tmp_path / tmpdir  # for an absolute path that path
    if folder.is_relative_to(tmp_path):
        folder.mkdir()
    program = (
        "import os\n"
        "from photozhpc.workers.local import local_client\n"
        "with local_client(1, 'cpu') as client:\n"
        "    print(client.submit(os.getpid).result(timeout=60) != os.getpid())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **LEFT_OVER, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_a_killed_run_leaves_nothing_that_the_next_one_does_not_delete() -> None:
    """SIGKILL leaves sockets, and what multiprocessing made."""
    program = (
        "import os, signal\n"
        "from photozhpc.workers.local import local_client\n"
        "with local_client(1, 'cpu') as client:\n"
        "    client.submit(os.getpid).result(timeout=60)\n"
        "    if os.environ['KILL']:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    left = []
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # short enough for a socket
        for kill in ("1", ""):
            subprocess.run(
                [sys.executable, "-c", program], timeout=120, check=False,
                env={**os.environ, "TMPDIR": folder, "KILL": kill},
            )  # fmt: skip
            left.append([path.name.rpartition("-")[0] for path in Path(folder).iterdir()])
    assert left == [["photozhpc-dask"], []]
