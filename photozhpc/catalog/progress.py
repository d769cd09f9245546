"""The progress of a run: a bar on a terminal, plain lines in a log."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

from photozhpc.logs import LOG, is_quiet

_LINE_EVERY_FRACTION = 0.1
_LINE_EVERY_SECONDS = 30.0


class SourceProgress:
    """Counts finished sources and reports them on stderr.

    Args:
        n_total: sources of the whole run.
        n_done: sources that an earlier start finished.
        enabled: False: print nothing.
        stream: default: stderr.
    """

    def __init__(
        self, n_total: int, n_done: int, enabled: bool = True, stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled and not is_quiet()
        self._to_log = stream is None
        self._n_total = n_total
        self._n_before = self._n_done = self._n_reported = n_done
        self.started_at = self._reported_at = time.monotonic()
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
        """Start the clock: rates leave out the time before."""
        self.started_at = self._reported_at = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._n_total)
            self._bar.update(self._n_before)
            self._bar.initial = self._n_before

    def add(self, n_sources: int) -> None:
        """Count newly finished sources."""
        self._n_done += n_sources
        if self._bar is not None:
            self._bar.update(n_sources)
        elif self._is_due():
            self._n_reported, self._reported_at = self._n_done, time.monotonic()
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
        n_new = self._n_done - self._n_reported
        return (
            self._n_done >= self._n_total
            or n_new >= _LINE_EVERY_FRACTION * self._n_total
            or (n_new > 0 and time.monotonic() - self._reported_at >= _LINE_EVERY_SECONDS)
        )

    def _line(self) -> str:
        seconds = max(time.monotonic() - self.started_at, 1e-9)
        rate = (self._n_done - self._n_before) / seconds
        left = clock_text((self._n_total - self._n_done) / rate) if rate else "unknown time"
        percent = 100 * self._n_done / self._n_total
        return (
            f"infer: {self._n_done} of {self._n_total} sources ({percent:.0f} %), "
            f"{rate:.0f} sources/s, {left} left"
        )


def clock_text(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600:d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
