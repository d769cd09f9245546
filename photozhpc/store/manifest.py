"""The manifest of a tile: size and SHA-256 of every file of its folder, and of itself."""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from photozhpc.disk import is_count, parse_json
from photozhpc.errors import StoreError
from photozhpc.object_storage import AnyPath, ObjectPath, read_ranges

_AT_A_TIME = 256  # manifests of a remote store


def make_manifest(folder: Path, tile_id: str, n_sources: int) -> dict[str, Any]:
    """Return the manifest of a tile's folder, whose files are made to outlast a power cut."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": digest}
    manifest: dict[str, Any] = {"tile_id": tile_id, "n_sources": n_sources, "files": files}
    manifest["sha256"] = own_digest(manifest)
    return manifest


def own_digest(manifest: dict[str, Any]) -> str:
    """Return the SHA-256 over all else that a manifest says."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_manifest(path: AnyPath) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        StoreError: it is damaged or was altered.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error) from error
    return _checked(path, content)


def _checked(path: AnyPath, content: bytes) -> dict[str, Any]:
    try:
        manifest = parse_json(content)
        sound = manifest["sha256"] == own_digest(manifest) and manifest["tile_id"] == path.stem
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if not sound:
        raise StoreError(f"{path}: the tile's manifest was altered; extract the tile again")
    if not (is_count(manifest.get("n_sources")) and _are_files(manifest.get("files"))):
        raise StoreError(f"{path}: the tile's manifest is not photozhpc's; extract the tile again")
    return manifest


def read_manifests(folder: AnyPath) -> list[tuple[str, dict[str, Any]]]:
    """Read all manifests of a store, sorted by tile; remote ones many at a time.

    Raises:
        StoreError: one is damaged.
    """
    paths: list[Any] = sorted(folder.glob("*.json"))
    if not isinstance(folder, ObjectPath):
        return [(path.stem, read_manifest(path)) for path in paths]
    found = []
    for start in range(0, len(paths), _AT_A_TIME):
        some = paths[start : start + _AT_A_TIME]
        contents = read_ranges([(path, 0, path.size) for path in some])
        found += [(p.stem, _checked(p, c)) for p, c in zip(some, contents, strict=True)]
    return found


def tile_of(path: AnyPath) -> tuple[int, dict[str, int]]:
    """Return the number of sources of a tile, and the sizes of its files, from its manifest.

    It is read anew only if it has changed; one that is remote, once.

    Raises:
        OSError: there is no manifest.
        StoreError: it is damaged or was altered.
    """
    if isinstance(path, ObjectPath):
        return _tile_of(path, 0, 0)
    found = path.stat()
    return _tile_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _tile_of(path: AnyPath, _size: int, _mtime_ns: int) -> tuple[int, dict[str, int]]:
    manifest = read_manifest(path)
    return manifest["n_sources"], {
        name: about["bytes"] for name, about in manifest["files"].items()
    }


def forget_manifests() -> None:
    """Forget what manifests told."""
    _tile_of.cache_clear()


def _damaged(path: AnyPath, error: Exception) -> StoreError:
    return StoreError(
        f"{path}: the tile's manifest is damaged ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:160]})"
    )


def _are_files(files: object) -> bool:
    """Whether it gives bytes and SHA-256 of files that lie within the tile."""
    return isinstance(files, dict) and all(
        isinstance(about, dict)
        and is_count(about.get("bytes"))
        and isinstance(about.get("sha256"), str)
        and name[:1] not in ("", "/")
        and ".." not in PurePosixPath(name).parts
        for name, about in files.items()
    )


def check_file(path: AnyPath, expected: dict[str, Any]) -> str | None:
    """Return what is wrong with a file; None: it is as the manifest says."""
    try:
        size = path.described().size or 0 if isinstance(path, ObjectPath) else path.stat().st_size
        if size < expected["bytes"]:
            return f"truncated: {size} of {expected['bytes']} bytes"
        if size > expected["bytes"]:
            return f"altered: {size} bytes, where {expected['bytes']} are due"
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                return "altered: its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        return f"cannot be read ({error})"
    return None
