"""Where compiled code is kept: machine code that is loaded has to be the user's own.

    ~/.cache/photozhpc     PHOTOZHPC_CACHE names another folder, XDG_CACHE_HOME that of all caches

torch's Inductor and Numba keep theirs where the environment says, and Inductor else in a folder
of TMPDIR whose name anyone can guess. What others can write to, or replace, is not used.
"""

import atexit
import grp
import os
import pwd
import stat
from contextlib import ExitStack
from pathlib import Path

FOLDER = "PHOTOZHPC_CACHE"
_TORCH = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
_NUMBA = "NUMBA_CACHE_DIR"
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_UNMAPPED = 65534


def code_cache() -> Path:
    """Return the folder of compiled code, made if need be.

    Where there is no home, or none of the user's own, it is a new one for as long as this
    process runs, and for those that it starts.

    Raises:
        PermissionError: PHOTOZHPC_CACHE names a folder that others can write to.
        OSError: that folder cannot be made, or none in TMPDIR.
    """
    named = os.environ.get(FOLDER)
    if named:
        return own(Path(named))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    try:
        if os.path.isabs(base):  # not so without HOME and an entry in /etc/passwd
            return own(Path(base) / "photozhpc")
    except OSError:
        pass
    from photozhpc.files.disk import temporary_folder
    from photozhpc.logs import LOG

    stack = ExitStack()
    folder = stack.enter_context(temporary_folder("photozhpc-code"))
    atexit.register(stack.close)
    os.environ[FOLDER] = str(folder)
    LOG.info(
        "compiled code is not kept: %s is not a folder of yours alone; set %s to one", base, FOLDER
    )
    return folder


def own(folder: Path) -> Path:
    """Return a folder without symbolic links in its path, made if need be, if it is ours alone.

    Raises:
        PermissionError: others own it or may write to it, or could put another in its place.
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = folder.resolve()
    about = folder.stat()
    if about.st_uid != os.getuid() or about.st_mode & _OTHERS_WRITE:
        raise PermissionError(f"{folder} is not yours alone to write to")
    for place in folder.parents:
        if not _keeps_names(place.stat()):
            raise PermissionError(f"{folder} is not yours alone to write to (see {place})")
    return folder


def _keeps_names(folder: os.stat_result) -> bool:
    """Whether nobody else can rename what we own in a folder."""
    owners = {0, os.getuid()} | ({_UNMAPPED} if _is_in_user_namespace() else set())
    if folder.st_uid not in owners:
        return False
    if folder.st_mode & stat.S_ISVTX:  # as /tmp
        return True
    is_ours = folder.st_gid == os.getgid() and _is_private_group(folder.st_gid)
    return not folder.st_mode & (stat.S_IWOTH if is_ours else _OTHERS_WRITE)


def _is_in_user_namespace() -> bool:
    """Whether, as in a container without privileges, the owner of /home shows as nobody."""
    try:
        return Path("/proc/self/uid_map").read_text().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


def _is_private_group(gid: int) -> bool:
    """Whether a group is one user's, by its name, as many distributions make them (umask 002)."""
    try:
        user, group = pwd.getpwuid(os.getuid()).pw_name, grp.getgrgid(gid)
    except KeyError:
        return False
    return group.gr_name == user and set(group.gr_mem) <= {user}


def keep_torch_code() -> Path:
    """Have Inductor and Triton keep their code in ours, or where the user says if it is his alone.

    To be called before either is imported. Returns and raises as `code_cache`.
    """
    folder = code_cache()
    for name in _TORCH:
        if not _is_own(os.environ.get(name)):
            os.environ[name] = str(own(folder / name.split("_")[0].lower()))
    return folder


def keep_numba_code() -> None:
    """Have Numba keep its code beside ours, or in the cache where that cannot be written to.

    To be called before Numba is imported.
    """
    if _is_own(os.environ.get(_NUMBA)):
        return
    os.environ.pop(_NUMBA, None)
    package = Path(__file__).parents[1]
    if os.access(package / "__pycache__", os.W_OK) or os.access(package, os.W_OK):
        return
    try:
        folder = code_cache()
    except OSError:
        return  # Numba finds a place, or says that there is none
    os.environ[_NUMBA] = str(folder / "numba")


def _is_own(folder: str | None) -> bool:
    try:
        return bool(folder) and own(Path(str(folder))) is not None
    except OSError:
        return False
