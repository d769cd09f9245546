"""The manifest of a tile: size and SHA-256 of every file in its folder, and its own SHA-256.

A chunk's own CRC32C shows that it is whole, not where it belongs. So the manifest holds the CRC32C
of every chunk of every file, in order: reads compare with it at no cost and refuse a file in the
place of another. It also says for which store and plan the tile was made.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from photozhpc.errors import StoreError, one_line
from photozhpc.files.disk import is_count, parse_json, read_fault
from photozhpc.files.objects import AnyPath, is_remote, read_ranges, size_of, version_of

_AT_A_TIME = 256  # manifests of a remote store
_CRC32C = re.compile("([0-9a-f]{8})*")


@dataclass(frozen=True)
class FileNote:
    """A manifest's entry of a file.

    Attributes:
        n_bytes, sha256: of the file.
        crc32c: of its chunks, in order, 4 bytes each; None: the file has no chunks.
    """

    n_bytes: int
    sha256: str
    crc32c: bytes | None


@dataclass(frozen=True)
class TileNote:
    """A manifest's content: the number of sources, and the files by name."""

    n_sources: int
    files: dict[str, FileNote]


def make_manifest(
    folder: Path,
    tile_id: str,
    n_sources: int,
    crc32c: Mapping[str, bytes],
    store_sha256: str,
    plan_sha256: str | None,
) -> dict[str, Any]:
    """Return the manifest of a tile's folder, after making its files durable.

    Args:
        crc32c: see `FileNote`, by file name.
        store_sha256: digest in the store's zarr.json.
        plan_sha256: of the extraction's plan; None: there is none.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = str(path.relative_to(folder))
        files[name] = {"bytes": path.stat().st_size, "sha256": digest}
        if name in crc32c:
            files[name]["crc32c"] = crc32c[name].hex()
    manifest: dict[str, Any] = {
        "tile_id": tile_id,
        "n_sources": n_sources,
        "store": store_sha256,
        "plan": plan_sha256,
        "files": files,
    }
    manifest["sha256"] = own_digest(manifest)
    return manifest


def own_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest's other entries."""
    return json_sha256({key: value for key, value in manifest.items() if key != "sha256"})


def json_sha256(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, independent of spaces and of the order of keys."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def read_manifest(path: AnyPath) -> dict[str, Any]:
    """Read and check a manifest.

    Raises:
        StoreError: it is damaged or was altered.
    """
    try:
        return _checked(path, path.read_bytes())
    except OSError as error:
        raise _damaged(path, error) from error


def _checked(path: AnyPath, content: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(content)
        sound = manifest["sha256"] == own_digest(manifest) and manifest["tile_id"] == path.stem
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if not sound:
        raise StoreError(f"{path}: the tile's manifest was altered; extract the tile again")
    if not (
        {"store", "plan"} <= manifest.keys()
        and is_count(manifest.get("n_sources"))
        and _are_files(manifest.get("files"))
    ):
        raise StoreError(f"{path}: the tile's manifest is not photozhpc's; extract the tile again")
    return manifest


def list_manifests(folder: AnyPath) -> tuple[list[AnyPath], list[tuple[Any, ...]]]:
    """Return a store's manifests, sorted by tile, and stamps that differ if one has changed."""
    paths: list[AnyPath] = sorted(folder.glob("*.json"), key=str)
    return paths, [_stamp(path) for path in paths]


def _stamp(path: AnyPath) -> tuple[Any, ...]:
    if is_remote(path):
        return path.name, *version_of(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise _damaged(path, error) from error
    return path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read_manifests(paths: list[Any]) -> list[dict[str, Any]]:
    """Read and check manifests; remote ones many at a time.

    Raises:
        StoreError: one is damaged.
    """
    if not paths or not is_remote(paths[0]):
        return [read_manifest(path) for path in paths]
    manifests: list[dict[str, Any]] = []
    for start in range(0, len(paths), _AT_A_TIME):
        batch = paths[start : start + _AT_A_TIME]
        contents = read_ranges([(path, 0, path.size) for path in batch])
        manifests += [_checked(p, content) for p, content in zip(batch, contents, strict=True)]
    return manifests


def tile_of(path: AnyPath) -> TileNote:
    """Return the content of a tile's manifest, cached until it changes (if remote, for good).

    Raises:
        OSError: there is no manifest.
        StoreError: it is damaged or was altered.
    """
    return _tile_of(path, version_of(path))


@lru_cache(maxsize=256)
def _tile_of(path: AnyPath, _version: tuple[int | None, int | str | None]) -> TileNote:
    manifest = read_manifest(path)
    return TileNote(
        manifest["n_sources"],
        {
            name: FileNote(
                entry["bytes"],
                entry["sha256"],
                bytes.fromhex(entry["crc32c"]) if "crc32c" in entry else None,
            )
            for name, entry in manifest["files"].items()
        },
    )


def forget_manifests() -> None:
    """Empty the cache of manifests."""
    _tile_of.cache_clear()


def _damaged(path: AnyPath, error: Exception) -> StoreError:
    return StoreError(
        read_fault(path, error)
        or f"{path}: the tile's manifest is damaged ({type(error).__name__}: "
        f"{one_line(error, 160)}); delete it and extract the tile again"
    )


def _are_files(files: object) -> bool:
    """Return whether these are entries of files within the tile's folder."""
    return isinstance(files, dict) and all(
        isinstance(entry, dict)
        and is_count(entry.get("bytes"))
        and isinstance(entry.get("sha256"), str)
        and ("/c/" in f"/{name}") == ("crc32c" in entry)
        and _CRC32C.fullmatch(str(entry.get("crc32c", ""))) is not None
        and name[:1] not in ("", "/")
        and ".." not in PurePosixPath(name).parts
        for name, entry in files.items()
    )


def check_file(path: AnyPath, expected: dict[str, Any]) -> str | None:
    """Return what is wrong with a file; None: it agrees with the manifest."""
    try:
        size = size_of(path)
        if size < expected["bytes"]:
            return f"truncated: {size} of {expected['bytes']} bytes"
        if size > expected["bytes"]:
            return f"altered: {size} bytes, expected {expected['bytes']}"
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                return "altered: its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        return f"cannot be read ({error})"
    return None


def not_of_store(manifest: dict[str, Any], store_sha256: str) -> str | None:
    """Return a line if a tile was made for another store."""
    if manifest["store"] == store_sha256:
        return None
    return (
        f"tile {manifest['tile_id']}: was made for another store, or zarr.json belongs to another "
        f"store; restore the right file, or extract the store again"
    )


def copied(manifest: dict[str, Any], holders: dict[str, str]) -> str | None:
    """Return a line if a tile holds the sources of another.

    Args:
        holders: tile_id of the earlier tiles by the SHA-256 of their identifiers; extended.
    """
    if not manifest["n_sources"]:
        return None
    tile_id, files = manifest["tile_id"], manifest["files"]
    ids = [files[name]["sha256"] for name in sorted(files) if name.startswith("source_id/c/")]
    holder = holders.setdefault(" ".join(ids), tile_id)
    if holder == tile_id:
        return None
    return f"tile {tile_id}: holds the sources of tile {holder}; one is a copy, delete it"


def plan_problem(plans: Mapping[str, str | None], plan_sha256: str | None) -> str | None:
    """Return a line if plan.json is not the plan under which the tiles were extracted.

    Args:
        plans: in the manifests, by tile_id.
        plan_sha256: of plan.json; None: there is none.
    """
    tile_id = min((t for t, noted in plans.items() if noted != plan_sha256), default=None)
    if tile_id is None:
        return None
    if plan_sha256 is None:
        return (
            f"is missing, but tile '{tile_id}' was extracted with one; run the same "
            f"'photozhpc extract' again to restore it"
        )
    return (
        f"was altered, or tile '{tile_id}' is from another extraction; delete plan.json (or "
        f"that tile) and run the same 'photozhpc extract' again"
    )
