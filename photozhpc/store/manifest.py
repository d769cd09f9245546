"""The manifest of a tile: size and SHA-256 of every file of its folder, and of itself."""

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from photozhpc.disk import is_count, read_json
from photozhpc.errors import StoreError


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


def read_manifest(path: Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        StoreError: it is damaged or was altered.
    """
    try:
        manifest = read_json(path)
        sound = manifest["sha256"] == own_digest(manifest) and manifest["tile_id"] == path.stem
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: the tile's manifest is damaged ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:160]})"
        ) from error
    if not sound:
        raise StoreError(f"{path}: the tile's manifest was altered; extract the tile again")
    if not (is_count(manifest.get("n_sources")) and _are_files(manifest.get("files"))):
        raise StoreError(f"{path}: the tile's manifest is not photozhpc's; extract the tile again")
    return manifest


def n_sources_of(path: Path) -> int:
    """Return the number of sources that a manifest tells of, read anew only if it has changed.

    Raises:
        OSError: there is no manifest.
        StoreError: it is damaged or was altered.
    """
    found = path.stat()
    return _n_sources_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=256)
def _n_sources_of(path: Path, _size: int, _mtime_ns: int) -> int:
    n_sources: int = read_manifest(path)["n_sources"]
    return n_sources


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


def check_file(path: Path, expected: dict[str, Any]) -> str | None:
    """Return what is wrong with a file; None: it is as the manifest says."""
    try:
        size = path.stat().st_size
        if size < expected["bytes"]:
            return f"truncated: {size} of {expected['bytes']} bytes"
        if size > expected["bytes"]:
            return f"altered: {size} bytes, where {expected['bytes']} are due"
        with open(path, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                return "altered: its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        return f"cannot be read ({error})"
    return None
