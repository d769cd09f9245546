"""Files that are there whole or not at all."""

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
# Of a read: what a disk, a file system, a server or the machine does, and no content of a file.
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
_LOCK = ".lock"  # of a temporary folder, held as long as its process lives


def partial_path(path: Path) -> Path:
    """Return a hidden name under which this process can write what will be renamed to `path`.

    It cannot be guessed: who else may write to the folder would put a link there.
    """
    token = secrets.token_hex(4)
    return path.with_name(f".{path.name}.{token}.{socket.gethostname()}.{os.getpid()}.partial")


@contextmanager
def replacing(
    path: Path, sync_rename: bool = True, check: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """Give a temporary path to write a file at; if the block ends well, fsync it and rename it.

    Its mode is that of the umask, whatever wrote it: safetensors makes files of mode 0600.

    Args:
        sync_rename: make the rename outlast a power cut too; else `sync_folder` has to, later.
        check: called before the rename, which is not made if it raises.
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
    """Return the mode of a new file there: the umask cannot be asked for without setting it."""
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
    """Write a file so that it is there whole or not at all, even if the machine loses power.

    Args:
        sync_rename, check: see `replacing`.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    try:
        # "x" follows no link.
        with replacing(path, sync_rename, check) as partial, open(partial, "xb") as stream:
            stream.write(content)
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


def files_below(folder: Path, notes: list[str] | None = None) -> list[Path]:
    """Return the files in a folder and in those below it, sorted.

    Links to folders are followed, each folder once however many links lead to it, and under the
    name that needs no link if there is one.

    Args:
        notes: gets a line on folders that cannot be listed.
    """
    files: list[Path] = []
    faults: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    linked = [str(folder)]
    while linked:
        for root, folders, names in os.walk(linked.pop(0), onerror=faults.append):
            about = os.stat(root)
            if (about.st_dev, about.st_ino) in seen:
                folders.clear()
                continue
            seen.add((about.st_dev, about.st_ino))
            files += [Path(root, name) for name in names]
            paths = [os.path.join(root, name) for name in sorted(folders)]
            linked += [path for path in paths if os.path.islink(path)]
    if faults and notes is not None:
        notes.append(
            f"{len(faults)} folders cannot be listed, such as {faults[0].filename} "
            f"({faults[0].strerror}): what is in them is left out"
        )
    return sorted(files)


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room: on the disk, in the quota, or in one file."""
    return error.errno in _FULL


def disk_error(path: Path, error: OSError) -> RunError:
    """Return the one line that says why `path` could not be written, and what to do."""
    if is_full(error):
        return RunError(
            f"{path}: the disk is full ({error.strerror}); make room and run the same command "
            f"again: what is finished is kept"
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
    """Return what to say where a read failed and the file may be sound; None: it is the file.

    The error of the system is looked for in what led to `error` too, and in the words of
    libraries (h5py, safetensors) that raise their own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"{path}: needs more memory than there is to be read, or is damaged"
        number = cause.errno if isinstance(cause, OSError) else None
        stated = re.search(r"(?:os error |errno = |\[Errno )(\d+)", str(cause))
        if number is None and stated is not None:
            number = int(stated[1])
        if number in _FAULTS:
            return (
                f"{path}: cannot be read ({os.strerror(number)}): the disk, the network or this "
                "process's limits failed, and the file may be sound; see to that and run the same "
                "command again"
            )
        cause = cause.__cause__ or cause.__context__
    return None


def remove_stale_partials(
    folder: Path, name: str | None = None, foreign_seconds: float = _FOREIGN_PARTIAL_SECONDS
) -> None:
    """Delete what writers that are dead left half-written: this host's, and others' if old.

    Args:
        name: of the file that they were to write; None, where all files are photozhpc's: of any.
        foreign_seconds: age from which another host's are old; 0 for who has locked them out.
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


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
