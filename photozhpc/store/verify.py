"""Checks that a store is whole and unaltered, and that every source appears in it once."""

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from photozhpc.errors import StoreError
from photozhpc.files.objects import AnyPath
from photozhpc.store.chunks import read_layout
from photozhpc.store.manifest import check_file, copied, not_of_store, plan_problem, read_manifest
from photozhpc.store.schema import ShardKey

if TYPE_CHECKING:
    from photozhpc.store.cutout_store import CutoutStore


def verify_store(store: "CutoutStore") -> list[str]:
    """Return one line for every missing, truncated, altered, stray or foreign file.

    Every file is read completely; memory is 16 bytes per source.

    Raises:
        StoreError: plan.json cannot be read.
    """
    problems = [
        f"tile {tile_id}: missing (never extracted, or lost with its manifest)"
        for tile_id in store.missing_tiles()
    ]
    plans: dict[str, str | None] = {}
    holders: dict[str, str] = {}
    n_sources: dict[str, int] = {}
    declared: list[AnyPath] = sorted((store.path / ".manifests").glob("*.json"), key=str)
    for path in declared:
        try:
            manifest = read_manifest(path)
        except StoreError as error:
            problems.append(str(error))
            continue
        tile_id = manifest["tile_id"]
        plans[tile_id] = manifest["plan"]
        copy = copied(manifest, holders)
        if copy is None:
            n_sources[tile_id] = manifest["n_sources"]
        lines = (not_of_store(manifest, store.sha256), copy, _miscounted(store, manifest))
        problems += filter(None, lines)
        problems += _file_problems(store, manifest)
    names = {path.stem for path in declared}
    for folder in sorted(p for p in store.path.iterdir() if p.is_dir()):
        if not folder.name.startswith(".") and folder.name not in names:
            problems.append(
                f"tile {folder.name}: has no manifest (it was lost, or a run was killed); extract "
                f"the tile again"
            )
    if problem := plan_problem(plans, store.plan_sha256()):
        problems.append(f"plan.json: {problem}")
    return problems + _repeated(store, n_sources)


def _file_problems(store: "CutoutStore", manifest: dict[str, Any]) -> list[str]:
    tile_id, files = manifest["tile_id"], manifest["files"]
    folder = store.path / tile_id
    problems = [
        f"{_describe(tile_id, name)}: {problem}"
        for name, expected in files.items()
        if (problem := check_file(folder / name, expected))
    ]
    if folder.is_dir():
        present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        strays = sorted(present - set(files))
        problems += [f"{_describe(tile_id, name)}: not in the manifest" for name in strays]
    return problems or _checksum_problems(store, manifest)


def _checksum_problems(store: "CutoutStore", manifest: dict[str, Any]) -> list[str]:
    """Return lines on files that are sound but hold other chunks than the manifest says."""
    tile_id, files = manifest["tile_id"], manifest["files"]
    try:
        checksums = store.chunk_checksums(store.path / tile_id)
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return [f"tile {tile_id}: {error}"]
    return [
        f"{_describe(tile_id, name)}: the manifest has other checksums of its chunks"
        for name, entry in files.items()
        if "crc32c" in entry and entry["crc32c"] != checksums.get(name, b"").hex()
    ]


def _miscounted(store: "CutoutStore", manifest: dict[str, Any]) -> str | None:
    """Return a line if the tile's arrays are longer or shorter than its manifest says."""
    tile_id, n = manifest["tile_id"], manifest["n_sources"]
    try:
        array = read_layout(store.path / tile_id / "source_id", "int64")
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None  # a missing or altered file has its own line
    if array.shape == (n,):
        return None
    return f"tile {tile_id}: source_id has the shape {array.shape}, the manifest {n} sources"


def _repeated(store: "CutoutStore", n_sources: dict[str, int]) -> list[str]:
    """Return a line if a source appears twice in the store.

    Args:
        n_sources: of the tiles to compare; unreadable ones are skipped.
    """
    tile_ids: list[str] = []
    ids = [np.empty(0, np.int64)]
    for tile_id, n in n_sources.items():
        keys = [ShardKey(tile_id, index) for index in range(-(-n // store.shard_len))]
        with suppress(StoreError):
            ids.append(
                np.concatenate([ids[0], *(store.read_sources(key).source_id_N for key in keys)])
            )
            tile_ids.append(tile_id)
    id_N = np.concatenate(ids)
    order_N = np.argsort(id_N, kind="stable")
    again = np.flatnonzero(np.diff(id_N[order_N]) == 0)
    if not len(again):
        return []
    ends = np.cumsum([len(id_M) for id_M in ids[1:]])
    rows = order_N[again[0] : again[0] + 2]
    first, second = (tile_ids[tile] for tile in np.searchsorted(ends, rows, "right"))
    return [
        f"source {id_N[rows[0]]}: appears twice in the store, on tiles {first} and {second}; "
        f"{len(again)} sources do"
    ]


def _describe(tile_id: str, name: str) -> str:
    shard = re.fullmatch(r"cutout/c/(\d+)/0/0/0", name)
    return f"shard {ShardKey(tile_id, int(shard[1]))}" if shard else f"tile {tile_id}, {name}"
