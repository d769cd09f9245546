"""The command line: each command parses, calls one function, and reports.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from types import FrameType
from typing import Any

import click

from photozhpc import __version__
from photozhpc.errors import PhotozError, Preempted
from photozhpc.object_storage import AnyPath, location


class Group(click.Group):
    """Shows a PhotozError, and a fault of the file system, as one line.

    SIGTERM and SIGUSR1, with which Slurm asks a job to stop, stop it as Ctrl-C does, but with
    the exit code on which the job scripts requeue.
    """

    def invoke(self, ctx: click.Context) -> Any:
        with _stop_signals() as received:
            return self._invoke(ctx, received)

    def _invoke(self, ctx: click.Context, received: list[int]) -> Any:
        try:
            return super().invoke(ctx)
        except PhotozError as error:
            shown = _Requeue if received or isinstance(error, Preempted) else _OneLine
            raise shown(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            what = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = "the disk is full; free some space and run the same command again"
            raise _OneLine(f"{error.filename}: {what}" if error.filename else what) from error
        except KeyboardInterrupt:
            if received:
                name = signal.Signals(received[0]).name
                raise _Requeue(f"stopped by {name}; run the same command again to go on") from None
            click.echo("stopped; run the same command again to go on", err=True)
            sys.exit(130)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _OneLine(click.ClickException):
    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class _Requeue(_OneLine):
    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the job scripts requeue on it


class Location(click.ParamType):
    """A path, or the URL of an object (s3://, https://), which `click.Path` would mangle."""

    name = "path or URL"

    def convert(self, value: Any, param: Any, ctx: Any) -> AnyPath:
        return location(value)


class Examples(click.Command):
    """Keeps the line breaks of the examples at the end of a command's help."""

    def __init__(self, name: str, *, example: str, **settings: Any) -> None:
        super().__init__(name, **settings, epilog=f"\b\nExample:\n  {example}")


class Progress:
    """Progress: a bar on a terminal, about ten plain lines in a log."""

    def __init__(self, unit: str) -> None:
        from tqdm import tqdm

        tqdm.set_lock(RLock())  # its own is for several processes, and starts another one
        self._unit = unit
        self._bar = tqdm(unit=f" {unit}", disable=None, leave=False, total=0)
        self._next = 0.1

    def __call__(self, done: int, total: int) -> None:
        if not self._bar.disable:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            if done >= total:
                self._bar.close()
        elif total and done / total >= self._next:
            click.echo(f"  {done}/{total} {self._unit}", err=True)
            self._next = done / total + 0.1


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="photozhpc")
def main() -> None:
    """Survey mosaics in, photometric-redshift catalogues out."""
