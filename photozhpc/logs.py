"""What a run says while it works: lines on stderr, as many as --quiet and --verbose ask for.

It is the standard library's logging under the name "photozhpc". Notes and progress are INFO; what
only --verbose shows is DEBUG. Worker processes, and those that srun and torchrun start, take the
level from the environment.
"""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TextIO

from photozhpc.printable import printable

VARIABLE = "PHOTOZHPC_LOG"
Verbosity = Literal["quiet", "normal", "verbose"]

LOG = logging.getLogger("photozhpc")
_LEVELS = {"quiet": logging.ERROR, "normal": logging.INFO, "verbose": logging.DEBUG}
# Those whose news --verbose shows too. Dask's own are at WARNING, or a run would drown in them.
_OTHERS = ("distributed", "dask_jobqueue", "py.warnings")


class _Formatter(logging.Formatter):
    """Leaves out what is secret of URLs, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_PLAIN = _Formatter("%(message)s")
_STAMPED = _Formatter("%(asctime)s %(name)s[%(process)d] %(levelname)s: %(message)s")


class _Stderr(logging.StreamHandler):
    """Writes to what is stderr at the moment, without spoiling a bar there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is None or not getattr(tqdm.tqdm, "_instances", None):
            return super().emit(record)
        with tqdm.tqdm.external_write_mode(file=self.stream):
            super().emit(record)


_HANDLER = _Stderr()
# Not the same one: Dask sets the level of the handlers of its loggers.
_OTHERS_HANDLER = _Stderr()
_OTHERS_HANDLER.setFormatter(_STAMPED)


def verbosity() -> Verbosity:
    """Return what was asked for; "normal" where the environment says something else."""
    value = os.environ.get(VARIABLE)
    return "quiet" if value == "quiet" else "verbose" if value == "verbose" else "normal"


def is_quiet() -> bool:
    return not LOG.isEnabledFor(logging.INFO)


def is_verbose() -> bool:
    return LOG.isEnabledFor(logging.DEBUG)


def set_verbosity(wanted: Verbosity) -> None:
    """Set how much this process says, and those that it starts from now on."""
    os.environ[VARIABLE] = wanted
    _configure()


@contextmanager
def verbosity_kept() -> Iterator[None]:
    """Undo, at the end, what was set in between."""
    before = os.environ.get(VARIABLE)
    with warnings.catch_warnings():
        try:
            yield
        finally:
            if before is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = before
            _configure()


def _configure() -> None:
    wanted = verbosity()
    LOG.setLevel(_LEVELS[wanted])
    _HANDLER.setFormatter(_STAMPED if wanted == "verbose" else _PLAIN)
    for name in _OTHERS:
        logger = logging.getLogger(name)
        if wanted == "verbose":
            logger.addHandler(_OTHERS_HANDLER)
        else:
            logger.removeHandler(_OTHERS_HANDLER)
    # Python's warnings: as they are; not at all; or as lines with a time.
    logging.captureWarnings(wanted == "verbose")
    if wanted == "quiet":
        warnings.simplefilter("ignore")


LOG.addHandler(_HANDLER)
LOG.propagate = False
_configure()
