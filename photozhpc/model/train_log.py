"""The log of a training: log.jsonl, TensorBoard if installed, lines on stderr."""

import json
import math
import time
from pathlib import Path
from typing import Any

from photozhpc.files.disk import disk_errors, write_durably
from photozhpc.logs import LOG

_SECONDS = 20


class TrainLog:
    """One record per epoch, and a progress line every 20 s in between.

    Args:
        out: folder for log.jsonl and tensorboard/.
        step: at which the run continues; later records of an earlier attempt are dropped.
    """

    def __init__(self, out: Path, step: int, total_steps: int) -> None:
        self._path = out / "log.jsonl"
        self._total_steps = total_steps
        self._first_step = step
        self._started = self._last = time.monotonic()
        self._images = 0
        kept = [line for line in self._lines() if _step_of(line) <= step]
        write_durably(self._path, "".join(kept).encode())
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._writer = None
        else:
            # We flush every epoch: its thread would show a traceback on a full disk.
            with disk_errors(out / "tensorboard"):
                self._writer = SummaryWriter(
                    str(out / "tensorboard"), purge_step=step, flush_secs=2**31
                )

    def progress(self, step: int, images: int) -> None:
        """Count the images of a step; print a line every 20 s."""
        self._images += images
        if time.monotonic() - self._last > _SECONDS:
            self._print(f"step {step}/{self._total_steps}", step)

    def epoch(self, record: dict[str, Any], text: str) -> None:
        """Add the record of a finished epoch.

        Raises:
            RunError: the disk is full, or cannot be written.
        """
        with disk_errors(self._path):
            with open(self._path, "a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
            if self._writer is not None:
                for name, value in record.items():
                    if isinstance(value, float):
                        self._writer.add_scalar(name.replace("_", "/", 1), value, record["step"])
                self._writer.flush()
        self._print(text, record["step"])

    def close(self) -> None:
        if self._writer is not None:
            with disk_errors(self._path):
                self._writer.close()

    def _lines(self) -> list[str]:
        if not self._path.exists():
            return []
        # A line without its end: the run was killed while writing it.
        with self._path.open(encoding="utf-8", errors="replace") as log:
            return [line for line in log if line.endswith("\n")]

    def _print(self, text: str, step: int) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._started
        left = elapsed / max(step - self._first_step, 1) * (self._total_steps - step)
        LOG.info(f"{text}  {self._images / elapsed:.0f} images/s  {left / 60:.1f} min left")


def _step_of(line: str) -> float:
    """Return the step of a record; infinity for a damaged line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
