"""The manifest of a tile: size and SHA-256 of every file of its folder, and of itself.

A chunk's own CRC32C says that it is whole, not whose it is. So the manifest has the CRC32C of
every chunk of every file, in their order: what is read is compared with it at no cost, and a file
in the place of another is refused. It also says which store and which plan the tile was made for.
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

from photozhpc.errors import StoreError
from photozhpc.files.disk import is_count, parse_json, read_fault
from photozhpc.files.objects import AnyPath, is_remote, read_ranges, size_of, version_of

_AT_A_TIME = 256  # manifests of a remote store
_CRC32C = re.compile("([0-9a-f]{8})*")


@dataclass(frozen=True)
class FileNote:
    """What a manifest says of a file.

    Attributes:
        n_bytes, sha256: of the file.
        crc32c: of its chunks, in their order, 4 bytes each; None of a file without chunks.
    """

    n_bytes: int
    sha256: str
    crc32c: bytes | None


@dataclass(frozen=True)
class TileNote:
    """What a manifest says of a tile: its number of sources, and its files by name."""

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
    """Return the manifest of a tile's folder, whose files are made to outlast a power cut.

    Args:
        crc32c: see `FileNote`, by the name of the file.
        store_sha256: of what the store says of itself.
        plan_sha256: of the plan of the extraction; None: there is none.
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
    """Return the SHA-256 over all else that a manifest says."""
    return json_sha256({key: value for key, value in manifest.items() if key != "sha256"})


def json_sha256(document: dict[str, Any]) -> str:
    """Return the SHA-256 of a JSON document, whatever the order of its keys and its spaces."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


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
    if "store" not in manifest or "plan" not in manifest:
        raise StoreError(
            f"{path}: the tile's manifest says no store and plan, as of a development version of "
            f"photozhpc; extract the store again"
        )
    if not (is_count(manifest.get("n_sources")) and _are_files(manifest.get("files"))):
        raise StoreError(f"{path}: the tile's manifest is not photozhpc's; extract the tile again")
    return manifest


def list_manifests(folder: AnyPath) -> tuple[list[Any], list[Any]]:
    """Return the manifests of a store, sorted by tile, and stamps that tell if one has changed."""
    paths: list[Any] = sorted(folder.glob("*.json"))
    return paths, [_stamp(path) for path in paths]


def _stamp(path: AnyPath) -> tuple[Any, ...]:
    if is_remote(path):
        return path.name, *version_of(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise _damaged(path, error) from error
    return path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def read_manifests(paths: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Read manifests, {tile_id: manifest}; remote ones many at a time.

    Raises:
        StoreError: one is damaged.
    """
    if not paths or not is_remote(paths[0]):
        return [(path.stem, read_manifest(path)) for path in paths]
    manifests = []
    for start in range(0, len(paths), _AT_A_TIME):
        batch = paths[start : start + _AT_A_TIME]
        contents = read_ranges([(path, 0, path.size) for path in batch])
        manifests += [(p.stem, _checked(p, c)) for p, c in zip(batch, contents, strict=True)]
    return manifests


def tile_of(path: AnyPath) -> TileNote:
    """Return what the manifest of a tile says.

    It is read anew only if it has changed; one that is remote, once.

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
            name: FileNote(about["bytes"], about["sha256"], _crc32c(about))
            for name, about in manifest["files"].items()
        },
    )


def _crc32c(about: dict[str, Any]) -> bytes | None:
    return bytes.fromhex(about["crc32c"]) if "crc32c" in about else None


def forget_manifests() -> None:
    """Forget what manifests told."""
    _tile_of.cache_clear()


def _damaged(path: AnyPath, error: Exception) -> StoreError:
    return StoreError(
        read_fault(path, error)
        or f"{path}: the tile's manifest is damaged ({type(error).__name__}: "
        f"{' '.join(str(error).split())[:160]}); delete it and extract the tile again"
    )


def _are_files(files: object) -> bool:
    """Whether it gives bytes and SHA-256 of files that lie within the tile."""
    return isinstance(files, dict) and all(
        isinstance(about, dict)
        and is_count(about.get("bytes"))
        and isinstance(about.get("sha256"), str)
        and ("/c/" in f"/{name}") == ("crc32c" in about)
        and _CRC32C.fullmatch(str(about.get("crc32c", ""))) is not None
        and name[:1] not in ("", "/")
        and ".." not in PurePosixPath(name).parts
        for name, about in files.items()
    )


def check_file(path: AnyPath, expected: dict[str, Any]) -> str | None:
    """Return what is wrong with a file; None: it is as the manifest says."""
    try:
        size = size_of(path)
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


def not_of_store(manifest: dict[str, Any], store_sha256: str) -> str | None:
    """Return a line if a tile was made for another store."""
    if manifest["store"] == store_sha256:
        return None
    return (
        f"tile {manifest['tile_id']}: was made for another store, or the zarr.json here is "
        f"another store's"
    )


def copied(manifest: dict[str, Any], holders: dict[str, str]) -> str | None:
    """Return a line if a tile holds the sources of another.

    Args:
        holders: tile_id by the SHA-256 of its identifiers, of the tiles before; it is added.
    """
    if not manifest["n_sources"]:
        return None
    tile_id, files = manifest["tile_id"], manifest["files"]
    ids = [files[name]["sha256"] for name in sorted(files) if name.startswith("source_id/c/")]
    holder = holders.setdefault(" ".join(ids), tile_id)
    if holder == tile_id:
        return None
    return f"tile {tile_id}: holds the sources of tile {holder}: one is a copy, to be deleted"


def plan_problem(plans: Mapping[str, str | None], plan_sha256: str | None) -> str | None:
    """Return a line if plan.json is not that under which tiles were extracted.

    Args:
        plans: what the manifests say, by tile_id.
        plan_sha256: of what is there; None: nothing is.
    """
    others = sorted(tile_id for tile_id, noted in plans.items() if noted != plan_sha256)
    if not others:
        return None
    if plan_sha256 is None:
        return (
            f"is missing, under which tile '{others[0]}' was extracted; run the same "
            f"'photozhpc extract' again: it writes it anew"
        )
    return (
        f"was altered, or tile '{others[0]}' is of another extraction; delete plan.json (or "
        f"that tile) and run the same 'photozhpc extract' again"
    )
