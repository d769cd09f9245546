"""Signals that stop a run are for the first process alone; it stops the others."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_WATCH_SECONDS = 0.5


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Hold back the signals that stop us, and keep them for ever from what is started meanwhile.

    Terminals and Slurm send them to every process of a job. Those that came are handled at the
    end of the block.
    """
    received: list[int] = []
    handlers = {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if threading.current_thread() is threading.main_thread():
        # The mask is this thread's; another one may get the signal, and Python handles it here.
        for number in STOP_SIGNALS:
            handlers[number] = signal.signal(number, lambda n, _: received.append(n))
    try:
        _start_resource_tracker()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # the tracker takes it back
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for came in received:
            signal.raise_signal(came)


def die_with_parent() -> None:
    """Let this process end when the one that started it does, even by SIGKILL.

    A worker of a process pool that waits for work would wait for ever. What it may be writing is
    whole or absent in any case.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with(parent_pid: int) -> None:
    """Let this process end when its parent, another program, does, even by SIGKILL."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_resource_tracker() -> None:
    """Start multiprocessing's tracker of semaphores so that it keeps its warnings to itself.

    It frees what killed processes leave behind, and would say so on the terminal.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONWARNINGS", "PYTHONSAFEPATH")}
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    said = before["PYTHONWARNINGS"]
    os.environ["PYTHONWARNINGS"] = f"{said},{quiet}" if said else quiet
    os.environ["PYTHONSAFEPATH"] = "1"  # the working folder may be anybody's
    try:
        resource_tracker.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
