"""How far a run has got, from the files that it leaves: `photozhpc status`."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from photozhpc.catalog.notes import (
    EVENTS_FILE,
    PART_FOLDER,
    RUN_FILE,
    Counts,
    PartNote,
    part_name,
    read_events,
    read_lines,
    read_notes,
    read_run,
)
from photozhpc.catalog.progress import clock_text
from photozhpc.errors import PhotozError
from photozhpc.files.disk import is_count
from photozhpc.files.lock import is_held
from photozhpc.store import CutoutStore

# The rate is the mean of this last stretch of a run.
_WINDOW_SECONDS = 300.0


def status_of(path: str | Path, now: float | None = None) -> dict[str, Any]:
    """Return how far the run in a folder has got; the key "kind" says what kind of run it is.

    Args:
        now: seconds since 1970; default: the current time.

    Raises:
        PhotozError: there is no run, or its files are damaged.
    """
    path, now = Path(path), time.time() if now is None else now
    if (path / RUN_FILE).is_file():
        return _catalog_status(path, now)
    if (path / "log.jsonl").is_file():
        return _training_status(path)
    if (path / EVENTS_FILE).is_file() or (path / ".lock").is_file():
        return {"kind": "catalogue", "path": str(path), "state": _state(path, False)}
    if (path / "plan.json").is_file():
        return _store_status(path)
    raise PhotozError(
        f"{path}: no run of photozhpc is there; pass a store, or the --out folder of train or infer"
    )


def _catalog_status(path: Path, now: float) -> dict[str, Any]:
    run = read_run(path)
    n_parts, n_rows = run.n_parts, run.n_rows
    begun_at, metrics = 0.0, ""
    failed: list[dict[str, Any]] = []
    events = read_events(path)
    for event in events:
        if event.get("event") == "begun":
            begun_at, failed = event["at"], []
            metrics = f"{event.get('metrics')} on {event.get('host')}"
        elif event.get("event") == "set aside" and is_count(event.get("part")):
            failed.append(event)
    notes = read_notes(path)
    lost = _lost_parts(path, notes)
    notes = {part: note for part, note in notes.items() if part not in lost}
    counts = sum((note.counts for note in notes.values()), Counts(0, 0, 0))
    finished = len(notes) >= n_parts
    running = is_held(path / ".lock")
    last_at = max((note.at for note in notes.values()), default=begun_at)
    end = now if running else last_at
    start = max(begun_at, end - _WINDOW_SECONDS)
    workers: dict[str, dict[str, Any]] = defaultdict(lambda: {"parts": 0, "sources": 0, "at": 0.0})
    recent = 0
    for note in notes.values():
        if note.at < begun_at:
            continue  # of an earlier start
        worker = workers[note.worker]
        worker["parts"] += 1
        worker["sources"] += note.counts.rows
        worker["at"] = max(worker["at"], note.at)
        recent += note.counts.rows if note.at >= start else 0
    rate = recent / (end - start) if end > start else 0.0
    left = n_rows - counts.rows
    return {
        "kind": "catalogue",
        "path": str(path),
        "state": _state(path, finished),
        "parts": n_parts,
        "parts_done": len(notes),
        "sources": n_rows,
        "sources_done": counts.rows,
        "pdf": run.identity.get("pdf"),
        "flagged": counts.flagged,
        "sources_per_s": rate,
        "seconds_left": left / rate if rate and running else None,
        "metrics": metrics if running else None,
        "parts_lost": lost,
        "workers_lost": sum(
            event.get("event") == "worker lost" and event["at"] >= begun_at for event in events
        ),
        "set_aside": [
            {key: event.get(key) for key in ("part", "shards", "reason")}
            for event in failed
            if event["part"] not in notes
        ],
        "workers": {
            name: {
                "parts": worker["parts"],
                "sources": worker["sources"],
                "seconds_since_part": round(max(now - worker["at"], 0.0), 1),
            }
            for name, worker in sorted(workers.items())
        },
    }


def _lost_parts(path: Path, notes: dict[int, PartNote]) -> list[int]:
    """Return the parts that have a note, but are missing or have another size."""
    sizes = {part.name: part.stat().st_size for part in (path / PART_FOLDER).glob("part-*")}
    return sorted(
        part for part, note in notes.items() if sizes.get(part_name(part)) != note.file.n_bytes
    )


def _training_status(path: Path) -> dict[str, Any]:
    lines = list(read_lines(path / "log.jsonl"))
    return {
        "kind": "training",
        "path": str(path),
        "state": "finished" if (path / "model.safetensors").is_file() else "not finished",
        "epochs_done": len(lines),
        "last": lines[-1] if lines else None,
    }


def _store_status(path: Path) -> dict[str, Any]:
    store = CutoutStore.open(path)
    tiles, missing = store.tiles(), store.missing_tiles()
    return {
        "kind": "store",
        "path": str(path),
        "state": "not finished" if missing else "finished",
        "tiles": len(tiles) + len(missing),
        "tiles_done": len(tiles),
        "sources_done": sum(tiles.values()),
    }


def _state(path: Path, finished: bool) -> str:
    if is_held(path / ".lock"):
        return "running"
    return "finished" if finished else "stopped"


def describe(status: dict[str, Any]) -> str:
    """Return a status as lines of text."""
    lines = [f"{status['path']}: {status['kind']}, {status['state']}"]
    if status["kind"] == "training":
        lines.append(f"epochs   {status['epochs_done']}")
        if status["last"]:
            values = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in status["last"].items()
            )
            lines.append(f"last     {'  '.join(values)}")
    elif status["kind"] == "store":
        lines.append(f"tiles    {status['tiles_done']} of {status['tiles']}")
        lines.append(f"sources  {status['sources_done']}")
    elif "parts" in status:
        lines += _catalog_lines(status)
    return "\n".join(lines)


def _catalog_lines(status: dict[str, Any]) -> list[str]:
    percent = 100 * status["sources_done"] / max(status["sources"], 1)
    lines = [
        f"parts    {status['parts_done']} of {status['parts']}",
        f"sources  {status['sources_done']} of {status['sources']} ({percent:.1f} %), "
        f"{status['flagged']} flagged",
        f"rate     {status['sources_per_s']:.0f} sources/s",
    ]
    if status["pdf"]:
        lines.append(f"p(z)     {status['pdf']}")
    if status["metrics"]:
        lines.append(f"metrics  {status['metrics']}")
    if status["seconds_left"] is not None:
        lines.append(f"left     {clock_text(status['seconds_left'])}")
    if lost := status["parts_lost"]:
        lines.append(
            f"missing  {len(lost)} finished parts are gone or altered (the first is "
            f"{part_name(lost[0])}); run the same 'photozhpc infer' again"
        )
    if status["workers_lost"]:
        lines.append(f"lost     {status['workers_lost']} workers, replaced")
    for part in status["set_aside"]:
        shards = part["shards"]
        known = isinstance(shards, list) and shards
        place = f"shards {shards[0]} to {shards[-1]}" if known else "shards unknown"
        lines.append(f"failed   part {part['part']}, {place}: {part['reason']}")
    for name, worker in status["workers"].items():
        lines.append(
            f"worker   {name}: {worker['parts']} parts, {worker['sources']} sources, the last "
            f"{worker['seconds_since_part']:.0f} s ago"
        )
    return lines
