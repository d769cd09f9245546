"""How far a run is: a bar on a terminal, plain lines in a log."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

from photozhpc.logs import LOG, is_quiet

_LINE_EVERY_FRACTION = 0.1
_LINE_EVERY_SECONDS = 30.0


class SourceProgress:
    """Counts sources and tells of them on stderr.

    Args:
        n_total: sources of the whole run.
        n_done: of them, finished before.
        enabled: False: say nothing.
        stream: default: stderr.
    """

    def __init__(
        self, n_total: int, n_done: int, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and not is_quiet()
        self._to_log = stream is None
        self._n_total = n_total
        self._n_before = self._n_done = self._n_told = n_done
        self.started_at = self._told_at = time.monotonic()
        self._bar: tqdm | None = None
        if self._enabled and self._stream.isatty():
            self._bar = tqdm(
                total=n_total,
                initial=n_done,
                unit=" sources",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.1,
                file=self._stream,
                desc="infer",
            )

    def start(self) -> None:
        """Begin to count time: rates leave out what came before."""
        self.started_at = self._told_at = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._n_total)
            self._bar.update(self._n_before)
            self._bar.initial = self._n_before

    def add(self, n_sources: int) -> None:
        """Count sources that are finished."""
        self._n_done += n_sources
        if self._bar is not None:
            self._bar.update(n_sources)
        elif self._is_due():
            self._n_told, self._told_at = self._n_done, time.monotonic()
            self.note(self._line())

    def note(self, text: str) -> None:
        """Write a line, without spoiling the bar."""
        if self._enabled and self._to_log:
            LOG.info(text)
        elif self._enabled:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _is_due(self) -> bool:
        news = self._n_done - self._n_told
        return (
            self._n_done >= self._n_total
            or news >= _LINE_EVERY_FRACTION * self._n_total
            or (news > 0 and time.monotonic() - self._told_at >= _LINE_EVERY_SECONDS)
        )

    def _line(self) -> str:
        seconds = max(time.monotonic() - self.started_at, 1e-9)
        rate = (self._n_done - self._n_before) / seconds
        left = (self._n_total - self._n_done) / rate if rate else float("inf")
        percent = 100 * self._n_done / self._n_total
        return (
            f"infer: {self._n_done} of {self._n_total} sources ({percent:.0f} %), "
            f"{rate:.0f} sources/s, {_clock(left)} left"
        )


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "unknown time"
    whole = round(seconds)
    return f"{whole // 3600:d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
