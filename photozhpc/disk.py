"""Files that are there whole or not at all."""

import errno
import fcntl
import glob
import json
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from photozhpc.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FOREIGN_PARTIAL_SECONDS = 24 * 3600
_LOCK = ".lock"  # of a temporary folder, held as long as its process lives


def partial_path(path: Path) -> Path:
    """Return the hidden name under which this process writes what will be renamed to `path`."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")


@contextmanager
def replacing(path: Path, sync_rename: bool = True) -> Iterator[Path]:
    """Give a temporary path to write a file at; if the block ends well, fsync it and rename it.

    Its mode is that of the umask, whatever wrote it: safetensors makes files of mode 0600.

    Args:
        sync_rename: make the rename outlast a power cut too; else `sync_folder` has to, later.
    """
    partial = partial_path(path)
    try:
        yield partial
        with open(partial, "rb") as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == 0o600:
                os.fchmod(stream.fileno(), _usual_mode(partial))
            os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    if sync_rename:
        sync_folder(path.parent)


def _usual_mode(beside: Path) -> int:
    """Return the mode of a new file there: the umask cannot be asked for without setting it."""
    probe = partial_path(beside)
    try:
        with open(probe, "xb") as stream:
            return stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
    finally:
        probe.unlink(missing_ok=True)


def write_durably(path: Path, content: bytes | memoryview, sync_rename: bool = True) -> None:
    """Write a file so that it is there whole or not at all, even if the machine loses power.

    Args:
        sync_rename: see `replacing`.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        with replacing(path, sync_rename) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise disk_error(path, error) from error


class Readable(Protocol):
    """A `Path`, or an object of an object storage."""

    def read_bytes(self) -> bytes: ...


def read_json(path: Readable) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not JSON, or something other than an object.
    """
    return parse_json(path.read_bytes())


def parse_json(content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: it is not JSON, or something other than an object.
    """
    try:
        document = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected an object, got {type(document).__name__}")
    return document


def is_count(value: object) -> bool:
    """Whether a value of a JSON file is a whole number that counts something."""
    return type(value) is int and 0 <= value < 1 << 53


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlast a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """Have the disk hold all files of a folder, before it gets its name."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())


def disk_error(path: Path, error: OSError) -> RunError:
    """Return the one line that says why `path` could not be written, and what to do."""
    if error.errno in _FULL:
        return RunError(
            f"{path}: the disk is full ({error.strerror}); make room and run the same command "
            f"again: what is finished is kept"
        )
    return RunError(f"{path}: cannot be written ({error.strerror or error})")


def remove_stale_partials(folder: Path, name: str | None = None) -> None:
    """Delete what writers that are dead left half-written: this host's, and others' if old.

    Args:
        name: of the file that they were to write; None, where all files are photozhpc's: of any.
    """
    host = socket.gethostname()
    for path in folder.glob(".*.partial" if name is None else f".{glob.escape(name)}.*.partial"):
        owner, _, pid = path.name.removesuffix(".partial").rpartition(".")
        with suppress(OSError):
            if owner.endswith(f".{host}") and pid.isdigit():
                stale = not _is_alive(int(pid))
            else:
                stale = time.time() - path.stat().st_mtime > _FOREIGN_PARTIAL_SECONDS
            if stale and path.is_dir():
                shutil.rmtree(path)
            elif stale:
                path.unlink()


@contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """Give a new folder that none but the user can enter; delete it at the end.

    What processes that were killed left is deleted first: nobody holds its lock any more.

    Args:
        name: of a kind of folder; what follows it cannot be guessed.
        parent: default: TMPDIR.
    """
    parent = parent or Path(tempfile.gettempdir())
    for left in parent.glob(f"{glob.escape(name)}-????????"):
        with suppress(OSError):
            if left.lstat().st_uid == os.getuid() and _is_left(left / _LOCK):
                shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))  # of mode 0700
    try:
        with open(folder / f"{_LOCK}.new", "w") as lock:
            with suppress(OSError):  # a file system without locks: left-overs stay
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.rename(lock.name, folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_left(lock: Path) -> bool:
    """Raises OSError where somebody holds the lock, or none can be had."""
    with open(lock) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
