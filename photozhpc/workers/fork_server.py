"""The process of multiprocessing that imports what workers need once, and then forks them."""

import atexit
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

from photozhpc.errors import RunError
from photozhpc.files.disk import temporary_folder
from photozhpc.workers.memory import WORKER_ENVIRONMENT
from photozhpc.workers.signals import signals_held_back

# A socket's path has at most 107 bytes; the fork server of multiprocessing has the longest name.
_MAX_SOCKET_FOLDER = 107 - len("/listener-01234567")
# What workers need on a CPU.
PRELOAD = ("photozhpc.catalog.worker",)
SERVER_ENVIRONMENT = {"DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "critical", **WORKER_ENVIRONMENT}
_imported: frozenset[str] = frozenset()  # by the server that runs, for workers of Dask


def import_early(preload: Sequence[str]) -> None:
    """Begin to import `preload` in the process from which workers of Dask will be forked.

    That takes seconds, in which the caller can prepare the work. It is not for workers with CUDA.
    A server that was begun for something else, and has no processes left, is replaced.
    """
    global _imported
    wanted = frozenset([*preload, "photozhpc.workers.dask_import"])
    with environment_kept(), program_hidden(), signals_held_back():
        if not wanted <= _imported and not multiprocessing.active_children():
            forkserver._forkserver._stop()  # type: ignore[attr-defined]
            _imported = wanted
        os.environ |= SERVER_ENVIRONMENT
        set_preload(sorted(wanted))
        forkserver.ensure_running()


def set_preload(modules: Sequence[str]) -> None:
    """Set the modules that the fork server imports; a running one does not change."""
    private_scratch()
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))


@cache
def private_scratch() -> Path:
    """Return the folder of this process's sockets and scratch files, which is deleted at exit.

    It belongs to the user alone. Dask's own, dask-scratch-space in TMPDIR, goes on Python's search
    path and may belong to another user.

    Raises:
        RunError: it cannot be made.
    """
    for parent in dict.fromkeys([tempfile.gettempdir(), "/tmp", "/var/tmp"]):
        with suppress(OSError), ExitStack() as stack:
            folder = stack.enter_context(temporary_folder("photozhpc-dask", Path(parent)))
            if ":" in parent or len(os.fsencode(folder)) > _MAX_SOCKET_FOLDER:
                continue
            atexit.register(stack.pop_all().close)
            # Files of multiprocessing in TMPDIR itself would stay there if this process is killed.
            multiprocessing.current_process()._config.setdefault("tempdir", str(folder))  # type: ignore[attr-defined]
            return folder
    raise RunError(
        "the sockets of worker processes need a folder with a short name, but none can be made in "
        f"{tempfile.gettempdir()} or /tmp; set TMPDIR to a folder that you can write to"
    )


@contextmanager
def environment_kept() -> Iterator[None]:
    """Undo the changes to this process's environment that are meant for its workers.

    They do not import from the working folder, which may belong to anybody.
    """
    before = dict(os.environ)
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def program_hidden() -> Iterator[None]:
    """Keep multiprocessing from running the main program again in every worker.

    The jobs do not need it, and it may be a script without `if __name__ == "__main__"`, or come
    from standard input.
    """
    program = sys.modules["__main__"]
    spec, file = program.__spec__, getattr(program, "__file__", None)
    program.__spec__ = program.__file__ = None
    try:
        yield
    finally:
        program.__spec__, program.__file__ = spec, file
