"""The manifest of a tile: size and SHA-256 of every file of its folder, and of itself."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

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
        manifest = json.loads(path.read_bytes())
        sound = manifest["sha256"] == own_digest(manifest) and manifest["tile_id"] == path.stem
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path}: the tile's manifest is damaged ({error!r})") from error
    if not sound:
        raise StoreError(f"{path}: the tile's manifest was altered; extract the tile again")
    return manifest


def check_file(path: Path, expected: dict[str, Any]) -> str | None:
    """Return what is wrong with a file; None: it is as the manifest says."""
    try:
        size = path.stat().st_size
        if size < expected["bytes"]:
            return f"truncated: {size} of {expected['bytes']} bytes"
        with open(path, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != expected["sha256"]:
                return "altered: its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error})"
    return None
