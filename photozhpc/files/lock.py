"""One process at a time writes to a folder or a file; others learn which one does.

The lock is `flock` on a file that names its holder. The system frees it when the process ends,
however it ends, and NFS carries it to other machines. Where a file system has no locks, or keeps
them to one machine (Lustre with `localflock`), the latest process takes over, and `Lock.check`
stops the previous one before its next write.
"""

import errno
import fcntl
import json
import os
import secrets
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from photozhpc.errors import PhotozError, RunError
from photozhpc.files.disk import disk_error, is_alive, parse_json

# 'photozhpc status' holds a lock for a moment, and a rank whose launcher was killed for a second.
_TRIES = 20
_TRY_SECONDS = 0.1
_HELD = (errno.EWOULDBLOCK, errno.EACCES)


@dataclass(frozen=True)
class Lock:
    """A lock that this process holds, known by the token that it wrote into the file."""

    path: Path
    token: str

    def check(self) -> None:
        """Make sure, before replacing something, that no other process has taken over.

        Raises:
            RunError: one has, or the file was deleted.
        """
        if _holder(self.path).get("token") != self.token:
            raise RunError(
                f"{self.path.parent}: another run has taken over there ({self.path.name} was "
                "deleted or replaced); this run stops and writes nothing more"
            )


@contextmanager
def locked(
    path: Path,
    command: str,
    error: type[PhotozError] = RunError,
    place: Path | None = None,
    keep: bool = False,
) -> Iterator[Lock]:
    """Hold the lock file `path` in an existing folder; it is deleted when the block ends.

    Args:
        command: the command that holds the lock, for the errors of other processes.
        error: class of the error that is raised here if another process holds the lock.
        place: what the error says is in use; default: the folder.
        keep: leave the file behind, empty.

    Raises:
        PhotozError: another process holds it (`error`).
        RunError: the file cannot be made.
    """
    lock = Lock(path, secrets.token_hex(16))
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command,
        "since": round(time.time(), 3),
        "token": lock.token,
    }
    try:
        handle = _taken(path, error, place or path.parent)
    except OSError as failure:
        raise disk_error(path, failure) from failure
    try:
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode(), 0)
            os.fsync(handle)
        except OSError as failure:
            raise disk_error(path, failure) from failure
        yield lock
    finally:
        with suppress(OSError):
            if keep:
                os.ftruncate(handle, 0)
            elif _holder(path).get("token") in (lock.token, None):
                path.unlink()
        os.close(handle)


def is_held(path: Path) -> bool:
    """Return whether a process holds a lock file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # does not wait for a pipe's writer
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(handle)
    return False


def _taken(path: Path, error: type[PhotozError], place: Path) -> int:
    """Return the open file, locked where the file system can."""
    for _ in range(_TRIES):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        free = False
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # another user's trap?
                raise disk_error(path, OSError("not a regular file with one name; delete it"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have deleted the file that was opened here.
            with suppress(FileNotFoundError):
                free = os.path.samestat(status, path.stat())
        except OSError as failure:
            if failure.errno not in _HELD:  # a file system without locks
                free = not _lives_here(_holder(path))
        finally:
            if not free:
                os.close(handle)
        if free:
            return handle
        time.sleep(_TRY_SECONDS)
    raise error(
        f"{place}: another run is writing there now{_named(_holder(path))}; wait for it or stop it"
    )


def _holder(path: Path) -> dict[str, Any]:
    """Return what the lock file says of its holder; empty: nothing."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _lives_here(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    return holder.get("host") == socket.gethostname() and type(pid) is int and is_alive(pid)


def _named(holder: dict[str, Any]) -> str:
    """Return " (photozhpc train, process 12 on node3, since ...)"."""
    pid, host, since = (holder.get(key) for key in ("pid", "host", "since"))
    if type(pid) is not int or not isinstance(since, int | float):
        return ""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(min(max(since, 0), 2**33)))
    return f" ({holder.get('command')}, process {pid} on {host}, since {at})"
