"""Log lines on stderr, as detailed as --quiet and --verbose ask for.

They go through the standard library's logger "photozhpc". Notes and progress are INFO; what only
--verbose shows is DEBUG. Worker processes, and those that srun and torchrun start, take the level
from the environment.
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
# --verbose shows these loggers too. Dask's own level is WARNING; lower, it would flood the output.
_OTHERS = ("distributed", "dask_jobqueue", "py.warnings")


class _Formatter(logging.Formatter):
    """Leaves out the secrets in URLs, also in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_PLAIN = _Formatter("%(message)s")
_STAMPED = _Formatter("%(asctime)s %(name)s[%(process)d] %(levelname)s: %(message)s")


class _Stderr(logging.StreamHandler):
    """Writes to the current sys.stderr, without breaking a progress bar there."""

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
# A second handler, because Dask sets the level of its loggers' handlers.
_OTHERS_HANDLER = _Stderr()
_OTHERS_HANDLER.setFormatter(_STAMPED)


def verbosity() -> Verbosity:
    """Return the level in the environment; "normal" where it is unset or unknown."""
    value = os.environ.get(VARIABLE)
    return "quiet" if value == "quiet" else "verbose" if value == "verbose" else "normal"


def is_quiet() -> bool:
    return not LOG.isEnabledFor(logging.INFO)


def is_verbose() -> bool:
    return LOG.isEnabledFor(logging.DEBUG)


def set_verbosity(level: Verbosity) -> None:
    """Set the verbosity of this process and of those that it starts later."""
    os.environ[VARIABLE] = level
    _configure()


@contextmanager
def verbosity_kept() -> Iterator[None]:
    """Restore the verbosity at the end of the block."""
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
    level = verbosity()
    verbose = level == "verbose"
    LOG.setLevel(_LEVELS[level])
    _HANDLER.setFormatter(_STAMPED if verbose else _PLAIN)
    for name in _OTHERS:
        logger = logging.getLogger(name)
        (logger.addHandler if verbose else logger.removeHandler)(_OTHERS_HANDLER)
    # Python's warnings: verbose logs them with a time, quiet drops them, normal leaves them alone.
    logging.captureWarnings(verbose)
    if level == "quiet":
        warnings.simplefilter("ignore")


LOG.addHandler(_HANDLER)
LOG.propagate = False
_configure()
