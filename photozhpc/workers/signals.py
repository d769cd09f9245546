"""Signals that stop a run are handled by its first process, which stops the others."""

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
    """Hold back the signals that stop a run, and block them for ever in processes started inside.

    Terminals and Slurm send them to every process of a job. Signals that arrive meanwhile are
    handled at the end of the block.
    """
    received: list[int] = []
    handlers = {}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    if threading.current_thread() is threading.main_thread():
        # The mask is this thread's: another one may receive the signal, which Python handles here.
        for number in STOP_SIGNALS:
            handlers[number] = signal.signal(number, lambda n, _: received.append(n))
    try:
        _start_resource_tracker()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # starting the tracker unblocks them
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for received_number in received:
            signal.raise_signal(received_number)


def die_with_parent() -> None:
    """Let this process end when the process that started it ends, even by SIGKILL.

    An idle worker of a process pool would wait for ever. A file that it is writing is whole or
    absent in any case.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_with(parent_pid: int) -> None:
    """Let this process end when its parent, another program, ends, even by SIGKILL."""

    def watch() -> None:
        while os.getppid() == parent_pid:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_resource_tracker() -> None:
    """Start multiprocessing's tracker of semaphores without its warnings.

    It frees what killed processes leave behind, and would report that on the terminal.
    """
    before = {name: os.environ.get(name) for name in ("PYTHONWARNINGS", "PYTHONSAFEPATH")}
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    warnings = before["PYTHONWARNINGS"]
    os.environ["PYTHONWARNINGS"] = f"{warnings},{quiet}" if warnings else quiet
    os.environ["PYTHONSAFEPATH"] = "1"  # the working folder may belong to anybody
    try:
        resource_tracker.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
