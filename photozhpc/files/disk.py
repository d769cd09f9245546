"""Files that are written whole or not at all, and what failed reads and writes mean."""

import errno
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from photozhpc.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of a read that the disk, the file system, the server or the machine causes, not the file.
_FAULTS = frozenset(
    (
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
        *(errno.EACCES, errno.EPERM, errno.ENODEV, errno.ENXIO, errno.ENOTCONN, errno.ECONNRESET),
        *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EREMOTEIO, errno.EBUSY, errno.EAGAIN),
        *(errno.EINTR, errno.ENOLCK, errno.EUCLEAN, errno.EBADMSG, errno.EPROTO, *_FULL),
    )
)
_FOREIGN_PARTIAL_SECONDS = 24 * 3600
_LOCK = ".lock"  # in a temporary folder, held as long as its process lives


def partial_path(path: Path) -> Path:
    """Return the hidden name under which this process writes a file before renaming it to `path`.

    It cannot be guessed: another user of a shared folder could put a link there.
    """
    token = secrets.token_hex(4)
    return path.with_name(f".{path.name}.{token}.{socket.gethostname()}.{os.getpid()}.partial")


@contextmanager
def replacing(
    path: Path, sync_rename: bool = True, check: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Give a temporary path to write a file at; if the block succeeds, fsync it and rename it.

    Its mode follows the umask whatever wrote it: safetensors makes files of mode 0600.

    Args:
        sync_rename: make the rename survive a power cut too; if not, call `sync_folder` later.
        check: called before the rename; if it raises, nothing is renamed.
    """
    partial = partial_path(path)
    try:
        yield partial
        with open(partial, "rb") as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) == 0o600:
                os.fchmod(stream.fileno(), _usual_mode(partial))
            os.fsync(stream.fileno())
        check()
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    if sync_rename:
        sync_folder(path.parent)


def _usual_mode(beside: Path) -> int:
    """Return the mode of a new file there: the umask cannot be read without setting it."""
    probe = partial_path(beside)
    try:
        with open(probe, "xb") as stream:
            return stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
    finally:
        probe.unlink(missing_ok=True)


def write_durably(
    path: Path,
    content: bytes | memoryview,
    sync_rename: bool = True,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write a file whole or not at all, even if the machine loses power.

    Args:
        sync_rename, check: see `replacing`.

    Raises:
        RunError: the disk is full, or the file cannot be written.
    """
    try:
        # "x" follows no link.
        with replacing(path, sync_rename, check) as partial, open(partial, "xb") as stream:
            stream.write(content)
    except OSError as error:
        raise disk_error(path, error) from error


class Readable(Protocol):
    """A `Path`, or an object of an object store."""

    def read_bytes(self) -> bytes: ...


def read_json(path: Readable) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it is not JSON, or not an object.
    """
    return parse_json(path.read_bytes())


def parse_json(content: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: it is not JSON, or not an object.
    """
    try:
        document = json.loads(content)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict):
        raise ValueError(f"expected an object, got {type(document).__name__}")
    return document


def is_count(value: object) -> bool:
    """Whether a value of a JSON file is a non-negative integer."""
    return type(value) is int and 0 <= value < 1 << 53


def sync_folder(folder: Path) -> None:
    """Make renames in a folder survive a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_tree(folder: Path) -> None:
    """Fsync all files of a folder, before the folder is renamed."""
    for path in (*folder.rglob("*"), folder):
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())


def files_below(folder: Path, notes: list[str] | None = None) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted.

    Links to folders are followed. Each folder is listed once however many links lead to it, under
    a path without links if it has one.

    Args:
        notes: receives a line on folders that cannot be listed.
    """
    files: list[Path] = []
    faults: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    linked = [str(folder)]
    while linked:
        for root, folders, names in os.walk(linked.pop(0), onerror=faults.append):
            status = os.stat(root)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            files += [Path(root, name) for name in names]
            paths = [os.path.join(root, name) for name in sorted(folders)]
            linked += [path for path in paths if os.path.islink(path)]
    if faults and notes is not None:
        notes.append(
            f"{len(faults)} folders cannot be listed, such as {faults[0].filename} "
            f"({faults[0].strerror}): their files are left out"
        )
    return sorted(files)


def is_full(error: OSError) -> bool:
    """Whether a write failed because the disk, the quota or the largest file size is exhausted."""
    return error.errno in _FULL


def disk_error(path: Path, error: OSError) -> RunError:
    """Return the error that says why `path` could not be written, and what to do."""
    if is_full(error):
        return RunError(
            f"{path}: the disk is full ({error.strerror}); free some space and run the same "
            "command again: finished work is kept"
        )
    return RunError(f"{path}: cannot be written ({error.strerror or error})")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into the RunError that `disk_error` makes of it."""
    try:
        yield
    except OSError as error:
        raise disk_error(path, error) from error


def read_fault(path: object, error: BaseException) -> str | None:
    """Return the message where a read failed and the file may be sound; None: the file is at fault.

    The system's error is also looked for among the causes of `error`, and in the messages of
    libraries (h5py, safetensors) that raise their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"{path}: reading it needs more memory than there is, or it is damaged"
        number = cause.errno if isinstance(cause, OSError) else None
        stated = re.search(r"(?:os error |errno = |\[Errno )(\d+)", str(cause))
        if number is None and stated is not None:
            number = int(stated[1])
        if number in _FAULTS:
            return (
                f"{path}: cannot be read ({os.strerror(number)}): the fault may lie with the disk, "
                "the network or a limit of this process, not the file; check them and run the same "
                "command again"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def remove_stale_partials(
    folder: Path, name: str | None = None, foreign_seconds: float = _FOREIGN_PARTIAL_SECONDS
) -> None:
    """Delete the half-written files of dead processes: this host's, and other hosts' if old.

    Args:
        name: the file that they were writing; None: any, in a folder that is photozhpc's alone.
        foreign_seconds: age from which another host's are old; 0 if the caller holds the lock.
    """
    host = socket.gethostname()
    for path in folder.glob(".*.partial" if name is None else f".{glob.escape(name)}.*.partial"):
        owner, _, pid = path.name.removesuffix(".partial").rpartition(".")
        with suppress(OSError):
            if owner.endswith(f".{host}") and pid.isdigit():
                stale = not is_alive(int(pid))
            else:
                stale = time.time() - path.stat().st_mtime > foreign_seconds
            if stale and path.is_dir():
                shutil.rmtree(path)
            elif stale:
                path.unlink()


@contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """Give a new folder that only the user can enter; delete it at the end.

    Folders of the same name that killed processes left, whose locks are free, are deleted first.

    Args:
        name: the beginning of the folder's name; the rest cannot be guessed.
        parent: default: TMPDIR.
    """
    parent = parent or Path(tempfile.gettempdir())
    for leftover in parent.glob(f"{glob.escape(name)}-????????"):
        with suppress(OSError):
            if leftover.lstat().st_uid == os.getuid():
                _check_unlocked(leftover / _LOCK)
                shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))  # of mode 0700
    try:
        with open(folder / f"{_LOCK}.new", "w") as lock:
            with suppress(OSError):  # without locks in the file system, leftovers stay
                fcntl.flock(lock, fcntl.LOCK_EX)
                os.rename(lock.name, folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_unlocked(lock: Path) -> None:
    """Raise OSError if a process holds the lock, or the file system has none."""
    with open(lock) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True
