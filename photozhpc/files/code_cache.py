"""Where compiled code is kept: code that is loaded must be writable by the user alone.

    ~/.cache/photozhpc     PHOTOZHPC_CACHE names another folder; XDG_CACHE_HOME replaces ~/.cache

torch's Inductor and Numba keep their code where environment variables say; without one, Inductor
uses a folder in TMPDIR whose name anyone can guess. A folder that others can write to, or
replace, is not used.
"""

import atexit
import grp
import os
import pwd
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

FOLDER = "PHOTOZHPC_CACHE"
_TORCH = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_NUMBA = "NUMBA_CACHE_DIR"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_UNMAPPED = 65534


def code_cache() -> Path:
    """Return the folder of compiled code, made if need be.

    Where the user has no private home, it is a temporary folder for this process and those that
    it starts.

    Raises:
        PermissionError: PHOTOZHPC_CACHE names a folder that others can write to.
        OSError: neither that folder nor one in TMPDIR can be made.
    """
    named = os.environ.get(FOLDER)
    if named:
        return private_folder(Path(named))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    with suppress(OSError):
        if os.path.isabs(base):  # "~" stays without HOME and an entry in /etc/passwd
            return private_folder(Path(base) / "photozhpc")
    from photozhpc.files.disk import temporary_folder
    from photozhpc.logs import LOG

    stack = ExitStack()
    folder = stack.enter_context(temporary_folder("photozhpc-code"))
    atexit.register(stack.close)
    os.environ[FOLDER] = str(folder)
    LOG.info(
        "compiled code is not kept: %s is not private to you; set %s to a folder that is",
        base,
        FOLDER,
    )
    return folder


def private_folder(folder: Path) -> Path:
    """Return a folder, made if need be and its symbolic links resolved, if it is the user's alone.

    Raises:
        PermissionError: another user owns it, can write to it, or could replace it.
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = folder.resolve()
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & _OTHERS_WRITE:
        raise PermissionError(f"other users can write to {folder}")
    for parent in folder.parents:
        if not _keeps_names(parent.stat()):
            raise PermissionError(f"other users can replace {folder} (see {parent})")
    return folder


def _keeps_names(folder: os.stat_result) -> bool:
    """Whether nobody else can rename what the user owns in a folder."""
    owners = {0, os.getuid()} | ({_UNMAPPED} if _is_in_user_namespace() else set())
    if folder.st_uid not in owners:
        return False
    if folder.st_mode & stat.S_ISVTX:  # as /tmp
        return True
    is_ours = folder.st_gid == os.getgid() and _is_private_group(folder.st_gid)
    return not folder.st_mode & (stat.S_IWOTH if is_ours else _OTHERS_WRITE)


def _is_in_user_namespace() -> bool:
    """Whether the owner of /home may show as nobody, as in an unprivileged container."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def _is_private_group(gid: int) -> bool:
    """Whether a group has the user's name and no other member (distributions with umask 002)."""
    try:
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def keep_torch_code() -> Path:
    """Have Inductor and Triton keep code in `code_cache`, or in the user's own choice if private.

    Call it before either is imported. Returns and raises as `code_cache`.
    """
    folder = code_cache()
    for name in _TORCH:
        if not _is_private(os.environ.get(name)):
            os.environ[name] = str(private_folder(folder / name.split("_")[0].lower()))
    return folder


def keep_numba_code() -> None:
    """Have Numba keep its code beside the package, or in `code_cache` where that is read-only.

    Call it before Numba is imported.
    """
    if _is_private(os.environ.get(_NUMBA)):
        return
    os.environ.pop(_NUMBA, None)
    package = Path(__file__).parents[1]
    if os.access(package / "__pycache__", os.W_OK) or os.access(package, os.W_OK):
        return
    try:
        folder = code_cache()
    except OSError:
        return  # Numba finds a folder, or says that there is none
    os.environ[_NUMBA] = str(folder / "numba")


def _is_private(folder: str | None) -> bool:
    try:
        return bool(folder) and private_folder(Path(str(folder))) is not None
    except OSError:
        return False
