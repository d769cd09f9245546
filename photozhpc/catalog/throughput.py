"""The pace of a run, from the notes of its workers and its events."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from photozhpc.catalog.notes import read_events, read_notes

_N_BINS = 80
_PAUSE_SECONDS = 60.0  # a longer time in which no part was being made is cut out
_MAX_SECONDS = 1e7  # no part takes longer: the note is damaged


@dataclass(frozen=True)
class Throughput:
    """The pace of a run; times are seconds of work, with the pauses between its starts cut out.

    Attributes:
        edges, sources_per_s: the rate in bins; a part's sources are spread evenly over the time
            that it took.
        done_share: share of the run's sources that was finished by each edge.
        marks: (time, event) of lost workers, failed parts, stops and restarts.
        n_sources, n_workers: of the parts whose time is known.
        n_parts, n_starts: finished parts; starts of `infer`.
        n_untimed: sources of parts whose worker died before it wrote a note.
        hosts: names of the machines.
    """

    edges: NDArray[np.float64]
    sources_per_s: NDArray[np.float64]
    done_share: NDArray[np.float64]
    marks: list[tuple[float, str]]
    n_sources: int
    n_parts: int
    n_workers: int
    n_starts: int
    n_untimed: int
    hosts: list[str]

    @property
    def seconds(self) -> float:
        return float(self.edges[-1])

    @property
    def mean_rate(self) -> float:
        return self.n_sources / self.seconds


def read_throughput(run: Path, n_rows: int) -> Throughput | None:
    """Return the pace of the run in a folder; None if no note has a time.

    Args:
        n_rows: sources of the whole run.
    """
    notes = [note for note in read_notes(run).values() if note.at]
    timed = [note for note in notes if 0 < note.seconds < _MAX_SECONDS]
    if not timed:
        return None
    stop_P = np.array([note.at for note in timed])
    start_P = stop_P - np.array([note.seconds for note in timed])
    rows_P = np.array([note.counts.rows for note in timed], np.float64)
    events = [event for event in read_events(run) if event["at"]]
    clock = _Clock.of(start_P, stop_P)
    start_P, stop_P = clock.working(start_P), clock.working(stop_P)
    edges = np.linspace(0, max(float(stop_P.max()), 1e-3), _N_BINS + 1)
    done_E = _spread(start_P, stop_P, rows_P, edges)
    marks, n_starts = [], 0
    for event in sorted(events, key=lambda event: event["at"]):
        kind = event.get("event")
        if kind == "begun":
            n_starts += 1
            kind = "begun again" if n_starts > 1 else ""
        if kind in ("begun again", "stopped", "worker lost", "set aside"):
            marks.append((float(clock.working(np.array([event["at"]]))[0]), kind))
    workers = {note.worker for note in timed}
    hosts = {str(event.get("host")) for event in events} | {
        name.rpartition("-")[0] for name in workers
    }
    return Throughput(
        edges=edges,
        sources_per_s=np.diff(done_E) / np.diff(edges),
        done_share=done_E / max(n_rows, 1),
        marks=marks,
        n_sources=int(rows_P.sum()),
        n_parts=len(notes),
        n_workers=len(workers),
        n_starts=max(n_starts, 1),
        n_untimed=sum(note.counts.rows for note in notes) - int(rows_P.sum()),
        hosts=sorted(hosts - {"", "None"}),
    )


@dataclass(frozen=True)
class _Clock:
    """Turns the time of day into time at work, in which pauses over a minute do not count."""

    knots: NDArray[np.float64]
    worked: NDArray[np.float64]

    @classmethod
    def of(cls, start_P: NDArray[np.float64], stop_P: NDArray[np.float64]) -> "_Clock":
        order = np.argsort(start_P, kind="stable")
        begin, end = start_P[order], np.maximum.accumulate(stop_P[order])
        pause = np.flatnonzero(begin[1:] - end[:-1] > _PAUSE_SECONDS)
        opens = begin[np.r_[0, pause + 1]]
        closes = end[np.r_[pause, len(end) - 1]]
        lengths = closes - opens
        before = np.r_[0.0, np.cumsum(lengths)[:-1]]
        knots = np.column_stack([opens, closes]).ravel()
        return cls(knots, np.column_stack([before, before + lengths]).ravel())

    def working(self, time_P: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(time_P, self.knots, self.worked)


def _spread(
    start_P: NDArray[np.float64],
    stop_P: NDArray[np.float64],
    rows_P: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the sources finished by each edge; a part's are spread evenly over its time."""
    length_P = np.maximum(stop_P - start_P, 1e-9)
    return np.array([(rows_P * np.clip((edge - start_P) / length_P, 0, 1)).sum() for edge in edges])
