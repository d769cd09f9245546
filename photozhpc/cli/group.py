"""The command line: each command parses, calls one function, and reports.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import atexit
import errno
import io
import json
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

import click
from click.shell_completion import CompletionItem

from photozhpc import __version__
from photozhpc.api import Result
from photozhpc.errors import PhotozError, Preempted
from photozhpc.files.disk import is_full
from photozhpc.files.objects import AnyPath, location
from photozhpc.logs import LOG, is_verbose, set_verbosity, verbosity_kept
from photozhpc.printable import printable

# With colorama installed, Numba writes an escape sequence at exit, whatever NO_COLOR says.
os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
# A notebook or a site may have set these variables. Figures go to files, never to a window. Kernels
# do not run on Numba's own threads, whose named layer may not be installed; without compilation
# they take hours.
os.environ["MPLBACKEND"] = "agg"
# Python's child processes would import modules from the working folder, which may be anybody's.
os.environ["PYTHONSAFEPATH"] = "1"
for _name in ("NUMBA_THREADING_LAYER", "NUMBA_DISABLE_JIT"):
    os.environ.pop(_name, None)
# Numba and numexpr fail on values that are not a number; "4,2" is for nested loops of OpenMP.
for _name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
    _first = os.environ.pop(_name, "").partition(",")[0].strip()
    if re.fullmatch("0*[1-9][0-9]*", _first):
        os.environ[_name] = _first

# Astropy needs a home folder, which a user without an entry in a container's /etc/passwd lacks.
if not os.path.isabs(os.path.expanduser("~")):
    from photozhpc.files.disk import temporary_folder

    _home = ExitStack()
    os.environ["HOME"] = str(_home.enter_context(temporary_folder("photozhpc-home")))
    atexit.register(_home.close)

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_DEAF = (signal.SIGINT, signal.SIG_IGN)
_PATIENCE_SECONDS = 5.0


class Group(click.Group):
    """Shows a PhotozError, and an error of the file system, as one line.

    SIGTERM and SIGUSR1, with which Slurm asks a job to stop, act like Ctrl-C, but give the exit
    code on which the job scripts requeue.
    """

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """Run the program; then ignore signals, so that Ctrl-C does not disturb Python's exit."""
        try:
            return self.main(*args, **settings)
        finally:
            for number in _STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def main(self, *args: Any, **settings: Any) -> Any:
        _open_standard_streams()
        return super().main(*args, **settings)

    def make_context(self, *args: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*args, **settings)
        except OSError as error:  # --help and --version write here
            raise _file_system_error(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        with _stop_signals() as received, verbosity_kept():
            for name in ("quiet", "verbose"):  # options before the command's name
                set_verbosity_once(ctx, name, bool(ctx.params.get(name)))
            return self._invoke(ctx, received)

    def _invoke(self, ctx: click.Context, received: list[int]) -> Any:
        try:
            return super().invoke(ctx)
        except PhotozError as error:
            _log_traceback()
            kind = _Requeue if received or isinstance(error, Preempted) else _OneLine
            raise kind(str(error)) from error
        except OSError as error:
            raise _file_system_error(error) from error
        except ValueError as error:
            if not str(error).startswith("A dask config file at"):
                raise
            # Importing Dask raises it, before any work.
            raise _OneLine(f"{error}; correct or move it (see DASK_CONFIG)") from error
        except click.UsageError as error:  # it repeats the arguments, which may hold secrets
            raise click.UsageError(printable(error.format_message()), error.ctx) from error
        except KeyboardInterrupt:
            if received:
                name = signal.Signals(received[0]).name
                raise _Requeue(
                    f"stopped by {name}; run the same command again to continue"
                ) from None
            click.echo("stopped; run the same command again to continue", err=True)
            sys.exit(130)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Stop the command at the first signal; a second Ctrl-C does not interrupt the clean-up.

    A Ctrl-C after _PATIENCE_SECONDS does: files are whole or absent in any case.
    """
    received: list[int] = []
    first = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal first
        if not first:
            first = time.monotonic()
            if number != signal.SIGINT:
                received.append(number)
            raise KeyboardInterrupt
        if number == signal.SIGINT and time.monotonic() - first > _PATIENCE_SECONDS:
            os._exit(130)

    # A shell's background jobs ignore Ctrl-C, and must still ignore it.
    caught = [n for n in _STOP_SIGNALS if (n, signal.getsignal(n)) != _DEAF]
    before = {n: signal.signal(n, stop) for n in caught}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def colour() -> bool | None:
    """Return whether to write colours; None: only if the stream is a terminal.

    NO_COLOR (https://no-color.org) overrides FORCE_COLOR (https://force-color.org); a terminal
    of type "dumb" gets none.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return False if os.environ.get("TERM") == "dumb" else None


class _OneLine(click.ClickException):
    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.split())))

    def show(self, file: IO[Any] | None = None) -> None:
        error = click.style("Error:", fg="red", bold=True)
        click.echo(f"{error} {self.message}", file=file, err=True, color=colour())


def _file_system_error(error: OSError) -> Exception:
    """Return the one-line error to raise instead of an error of the file system."""
    if error.errno == errno.EPIPE:
        return error  # click exits silently
    _log_traceback()
    reason = error.strerror or str(error)
    if is_full(error):
        reason = "the disk is full; free some space and run the same command again"
    return _OneLine(f"{error.filename}: {reason}" if error.filename else reason)


def _log_traceback() -> None:
    if is_verbose():
        LOG.debug("traceback of the error below:\n%s", traceback.format_exc().rstrip())


def _open_standard_streams() -> None:
    """Open /dev/null for each closed stream (2>&-, some daemons), else a file takes its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
        if name != "stdin" and isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # LC_ALL=C has no letter mu


class _Requeue(_OneLine):
    exit_code = 75  # EX_TEMPFAIL of sysexits.h; the job scripts then requeue


class Location(click.ParamType):
    """A path, or the URL of an object (s3://, https://), which `click.Path` would mangle."""

    name = "path or URL"

    def convert(self, value: Any, param: Any, ctx: Any) -> AnyPath:
        return location(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


class LocalPath(click.Path):
    """A path on a disk; it refuses a URL, for which `Path` would make a folder named 's3:'."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if "://" in os.fspath(value):
            self.fail(f"{os.fspath(value)!r} is a URL; pass a path on a disk", param, ctx)
        return super().convert(value, param, ctx)


LOCAL = LocalPath()


def set_verbosity_once(ctx: click.Context, name: str, is_set: bool) -> None:
    """Obey --quiet or --verbose, wherever it stands in the command line, but not both."""
    if not is_set or ctx.resilient_parsing:
        return
    meta = ctx.find_root().meta
    if meta.setdefault("photozhpc.verbosity", name) != name:
        raise click.UsageError("--quiet and --verbose exclude each other", ctx)
    set_verbosity("quiet" if name == "quiet" else "verbose")


def verbosity_options() -> list[click.Option]:
    """Return --quiet and --verbose, which every command has."""

    def callback(ctx: click.Context, option: click.Parameter, is_set: bool) -> None:
        set_verbosity_once(ctx, str(option.name), is_set)

    settings: dict[str, Any] = {"is_flag": True, "expose_value": False, "callback": callback}
    return [
        click.Option(["-q", "--quiet"], help="Show only results and errors.", **settings),
        click.Option(["-v", "--verbose"], help="Show more, with times.", **settings),
    ]


class Examples(click.Command):
    """A command with --quiet, --verbose, and an example, unwrapped, at the end of its help."""

    def __init__(self, name: str, *, example: str, **settings: Any) -> None:
        super().__init__(name, **settings, epilog=f"\b\nExample:\n  {example}")
        self.params += verbosity_options()


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")


def echo(result: Any) -> None:
    """Print text as it is, and anything else as one line of JSON; NaN and infinity become null."""
    is_text = isinstance(result, str)
    click.echo(result if is_text else json.dumps(_finite(result), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def show(result: Result, as_json: bool) -> None:
    """Print what a stage has made."""
    echo(result.facts if as_json else result.text)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="photozhpc")
@click.option("-q", "--quiet", is_flag=True, help="Show only results and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Show more, with times.")
def main(quiet: bool, verbose: bool) -> None:
    """Survey mosaics in, photometric-redshift catalogues out."""
