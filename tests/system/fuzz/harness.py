"""One case: damage a sound sample, read it, and see that nothing but the allowed comes of it.

A damaged file may be refused (a PhotozError of one line that names the file), give what the sound
one gives, or give what it says, where its format has nothing to tell damage by. It may not give
any other exception, a warning, a hang, a gigabyte, or less than it held without a word.
"""

import dataclasses
import hashlib
import os
import resource
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa

from photozhpc.errors import PhotozError

REFUSED, UNCHANGED, AS_IT_SAYS = "refused", "unchanged", "read as the file says"
CPU_SECONDS = 10.0
EXTRA_BYTES = 2 << 30
_SHOWN = 5
# Readers remember files by size and time: every write gets a time of its own.
_times = count(1_800_000_000_000_000_000, 1_000_000)


class HangError(BaseException):
    """No Exception, so that no reader takes it for a fault of its file."""


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to a sample.

    Attributes:
        name: of the file, within the target's folder.
        content: it gets; None: it is deleted.
        sealed: its own checksum was put right again, so that nothing tells of the damage.
    """

    name: str
    content: bytes | None
    sealed: bool = False


class Target:
    """A kind of input: its samples, how they are damaged and how they are read."""

    cases = 100  # in continuous integration
    weight = 1.0  # share of a long run

    def __init__(self, folder: Path) -> None:
        """Make the samples in an empty folder."""
        self.folder = folder
        self.make()
        self.files = {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        self.sound = {
            name: digest(self.read(Damage(name, content))) for name, content in self.files.items()
        }

    @property
    def name(self) -> str:
        return type(self).__name__

    def make(self) -> None:
        raise NotImplementedError

    def damage(self, rng: Random) -> Damage:
        raise NotImplementedError

    def read(self, damage: Damage) -> Any:
        """Read what the damaged file is part of."""
        raise NotImplementedError

    def judge(self, damage: Damage, found: Any) -> str:
        """Return the outcome where something else was read than of the sound sample.

        Raises:
            AssertionError: it should not have been.
        """
        return AS_IT_SAYS

    def write(self, name: str, content: bytes | None) -> None:
        path = self.folder / name
        if content is None:
            path.unlink()
            return
        path.write_bytes(content)
        time_ns = next(_times)
        os.utime(path, ns=(time_ns, time_ns))


def run_case(target: Target, seed: int) -> str:
    """Run one case; return its outcome.

    Raises:
        Exception: whatever the case should not have ended in.
    """
    damage = target.damage(Random(f"{target.name} {seed}"))
    target.write(damage.name, damage.content)
    try:
        with warnings.catch_warnings(record=True) as caught, _limits():
            warnings.simplefilter("always")
            try:
                found = target.read(damage)
            except PhotozError as error:
                _check_message(str(error), target, damage)
                return REFUSED
            outcome = UNCHANGED
            if digest(found) != target.sound[damage.name]:
                outcome = target.judge(damage, found)
        assert not caught, f"warned: {caught[0].category.__name__}: {caught[0].message}"
        return outcome
    finally:
        target.write(damage.name, target.files[damage.name])


def run_cases(target: Target, seeds: range) -> tuple[Counter[str], list[str]]:
    """Return how many cases had which outcome, and the first few failures as text."""
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    for seed in seeds:
        try:
            outcomes[run_case(target, seed)] += 1
        except (Exception, HangError) as error:  # noqa: BLE001  (any of them is the finding)
            outcomes["failures"] += 1
            if len(failures) < _SHOWN:
                failures.append(describe(target, seed, error))
    return outcomes, failures


def check_cases(kind: type[Target], folder: Path) -> None:
    """Run the cases of continuous integration.

    Raises:
        AssertionError: one failed, or too few were worth refusing.
    """
    sample = folder / kind.__name__
    sample.mkdir()
    outcomes, failures = run_cases(kind(sample), range(kind.cases))
    assert not failures, "\n".join(failures)
    assert sum(outcomes.values()) == kind.cases
    assert outcomes[REFUSED] > 0.2 * kind.cases, outcomes


def describe(target: Target, seed: int, error: BaseException) -> str:
    places = [
        f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)
    ]
    damage = target.damage(Random(f"{target.name} {seed}"))
    what = " ".join(str(error).split())[:300]
    return (
        f"{target.name} seed {seed}, {damage.name}: {type(error).__name__}: {what} "
        f"({' < '.join(reversed(places[-8:]))})"
    )


def _check_message(message: str, target: Target, damage: Damage) -> None:
    assert len(message.splitlines()) == 1, f"not one line: {message!r}"
    assert message.isprintable(), f"not printable: {message!r}"
    assert len(message) < 2000, f"{len(message)} characters: {message[:200]!r}"
    assert str(target.folder) in message, f"names no file: {message!r}"


@contextmanager
def _limits() -> Iterator[None]:
    """Stop what takes too much of the processor, and refuse it too much memory."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise HangError(f"more than {CPU_SECONDS:g} s")

    pages = int(Path("/proc/self/statm").read_text().split()[5])
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + EXTRA_BYTES, hard))
    # Of CPU time, so that a busy machine makes no difference; pytest-timeout has the wall clock.
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def digest(value: Any) -> str:
    """SHA-256 of nested dataclasses, dicts, sequences, arrays and plain values."""
    found = hashlib.sha256()
    _update(found, value)
    return found.hexdigest()


def _update(found: Any, value: Any) -> None:
    if isinstance(value, np.ndarray) and value.dtype != object:
        found.update(f"{value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, pa.Table):
        _update(found, value.to_pydict())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _update(found, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    elif isinstance(value, dict):
        for key, item in value.items():
            found.update(repr(key).encode())
            _update(found, item)
    elif isinstance(value, list | tuple):
        found.update(f"{len(value)}".encode())
        for item in value:
            _update(found, item)
    else:
        found.update(repr(value).encode())
