"""Locks: one holder at a time, free when the process dies, and what a latecomer is told."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from photozhpc.errors import CatalogError, RunError
from photozhpc.files import lock as lock_module
from photozhpc.files.lock import is_held, locked

HOLD = """
import sys, time
from pathlib import Path
from photozhpc.files.lock import locked
with locked(Path(sys.argv[1]), "photozhpc train"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def few_tries(monkeypatch):
    monkeypatch.setattr(lock_module, "_TRIES", 2)


@pytest.fixture
def no_flock(monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_who_comes_too_late_is_told_who_holds_it_until_that_one_is_killed(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert is_held(path)
        text = rf"another run is writing there now \(photozhpc train, process {holder.pid} on "
        with pytest.raises(CatalogError, match=text), locked(path, "mine", CatalogError):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert path.exists()
    assert not is_held(path)
    with locked(path, "mine") as lock:
        assert is_held(path)
        lock.check()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["deleted", "deleted and held by another"])
def test_who_lost_the_lock_may_write_nothing_more(tmp_path: Path, how: str) -> None:
    path = tmp_path / ".lock"
    with locked(path, "first") as first:
        path.unlink()
        if how == "deleted":
            with pytest.raises(RunError, match="another run has taken over"):
                first.check()
        else:
            with locked(path, "second") as second:
                second.check()
                with pytest.raises(RunError, match="another run has taken over"):
                    first.check()


@pytest.mark.parametrize(
    ("holder", "is_free"),
    [
        ({"pid": os.getpid(), "host": os.uname().nodename}, False),
        ({"pid": 2**22 + 1, "host": os.uname().nodename}, True),
        ({"pid": os.getpid(), "host": "elsewhere"}, True),
        ({"pid": "1", "host": os.uname().nodename}, True),
        ([], True),
    ],
)
def test_without_locks_a_process_of_this_machine_is_believed(
    tmp_path: Path, no_flock, holder, is_free: bool
) -> None:
    path = tmp_path / ".lock"
    path.write_text(json.dumps(holder))
    if is_free:
        with locked(path, "second") as lock:
            lock.check()
    else:
        with pytest.raises(RunError, match="writing there now"), locked(path, "second"):
            pass
        assert json.loads(path.read_text()) == holder


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(RunError, match="cannot be written"), locked(tmp_path / ".lock", "mine"):
        pass
    assert precious.read_text() == "kept"


def test_a_file_that_is_kept_names_nobody_any_more(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", "mine", keep=True):
        assert is_held(tmp_path / ".lock")
    assert (tmp_path / ".lock").read_bytes() == b""
    assert not is_held(tmp_path / ".lock")


@pytest.mark.parametrize("kind", ["link", "pipe", "another name of a file"])
def test_a_lock_file_that_others_put_there_is_refused(tmp_path, kind):
    precious, path = tmp_path / "precious", tmp_path / ".lock"
    precious.write_bytes(b"mine")
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.hardlink_to(precious)
    with pytest.raises(RunError, match=r"\.lock: cannot be written"), locked(path, "test"):
        pass
    assert precious.read_bytes() == b"mine"
    assert not is_held(path)
