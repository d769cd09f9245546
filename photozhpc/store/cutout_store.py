"""CutoutStore: sharded Zarr v3 cutouts with positions and photometry, one group per tile.

A tile exists as soon as its manifest does: it is written under a hidden name, renamed, and then
declared. Whatever was cut short before that is ignored and written again.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.config import from_mapping, to_mapping
from photozhpc.errors import ConfigError, StoreError, one_line
from photozhpc.files.disk import (
    is_count,
    parse_json,
    partial_path,
    read_fault,
    read_json,
    write_durably,
)
from photozhpc.files.objects import AnyPath, is_remote, location
from photozhpc.sources.read import Sources
from photozhpc.store.chunks import ArrayLayout, forget_layouts, read_layout
from photozhpc.store.manifest import (
    TileNote,
    copied,
    forget_manifests,
    json_sha256,
    list_manifests,
    make_manifest,
    not_of_store,
    own_digest,
    plan_problem,
    read_manifests,
    tile_of,
)
from photozhpc.store.schema import (
    COLUMNS,
    FORMAT,
    SOURCE_COLUMNS,
    Measurements,
    ShardKey,
    StoreIndex,
)
from photozhpc.store.shard_file import forget_objects
from photozhpc.store.writer import TileWriter, create_arrays
from photozhpc.survey import Survey

_ATTRIBUTES = {"format", "survey", "cutout_size", "shard_len", "sha256"}
TILE_ID = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*")


class CutoutStore:
    """A folder of cutouts of one survey. Make it with `create`, open it with `open`.

    It is read from a disk or from an object store (s3://, https://), and written to a disk.
    `sha256` is the digest of its own description; every manifest repeats it.
    """

    def __init__(
        self, path: AnyPath, survey: Survey, size: int, shard_len: int, sha256: str
    ) -> None:
        self.path = path
        self.survey = survey
        self.cutout_size = size
        self.shard_len = shard_len
        self.sha256 = sha256
        self._last_index: tuple[Any, StoreIndex] | None = None

    @classmethod
    def create(
        cls, path: str | AnyPath, survey: Survey, size: int | None = None, shard_len: int = 2048
    ) -> "CutoutStore":
        """Make an empty store, or open the one that is there if it was made the same way.

        Args:
            path: folder; made with its parents.
            survey: its bands are the channels, in order.
            size: side of the cutouts, pixels; default: the survey's.
            shard_len: sources per shard; it is divided into chunks of 64 sources, or of the
                largest smaller divisor.

        Raises:
            StoreError: the folder holds something else, or a store made differently.
        """
        path = local_path(path)
        size = survey.cutout_size if size is None else size
        if size < 1 or shard_len < 1:
            raise StoreError(f"size and shard_len must be positive, got {size} and {shard_len}")
        # Listed before zarr.json is looked for: another job of an array may be making the store.
        names = {p.name for p in path.iterdir()} if path.is_dir() else set()
        if (path / "zarr.json").exists():
            store = cls.open(path)
            requested = {"survey": survey, "cutout_size": size, "shard_len": shard_len}
            for name, value in requested.items():
                if getattr(store, name) != value:
                    raise StoreError(
                        f"{path}: the store there was made with another {name}; "
                        f"choose another --store or delete that one"
                    )
            return store
        # A run killed at this point leaves only .manifests and partial files.
        if (path.exists() and not path.is_dir()) or any(
            name != ".manifests" and not name.endswith(".partial") for name in names
        ):
            raise StoreError(f"{path}: already exists and is not a store; choose another --store")
        path.mkdir(parents=True, exist_ok=True)
        attributes: dict[str, Any] = {
            "format": FORMAT,
            "survey": to_mapping(survey),
            "cutout_size": size,
            "shard_len": shard_len,
        }
        attributes["sha256"] = own_digest(attributes)
        (path / ".manifests").mkdir(exist_ok=True)
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"photozhpc": attributes}}
        write_durably(path / "zarr.json", json.dumps(group, indent=2).encode())
        return cls(path, survey, size, shard_len, attributes["sha256"])

    @classmethod
    def open(cls, path: str | AnyPath) -> "CutoutStore":
        """Open a store for reading, or for adding tiles.

        Raises:
            StoreError: there is no store, it is damaged, or it has another format.
        """
        path = location(path)
        if is_remote(path):
            forget_layouts()
            forget_manifests()
            forget_objects()
        try:
            attributes = read_json(path / "zarr.json")["attributes"]["photozhpc"]
            if (format_ := attributes["format"]) != FORMAT or isinstance(format_, bool):
                raise StoreError(
                    f"{path}: the store has format {format_}, this photozhpc reads only format "
                    f"{FORMAT}; extract it again, or upgrade photozhpc"
                )
            if attributes.get("sha256") != own_digest(attributes):
                raise StoreError(f"{path}: damaged: its zarr.json was altered; copy it again")
            if foreign := set(attributes) - _ATTRIBUTES:
                raise StoreError(f"{path}: damaged: its zarr.json has '{min(foreign)}'")
            size, shard_len = attributes["cutout_size"], attributes["shard_len"]
            survey = from_mapping(Survey, attributes["survey"], f"{path}/zarr.json: survey")
        except (FileNotFoundError, NotADirectoryError):
            advice = f"make one with 'photozhpc extract --store {path}'"
            raise StoreError(
                f"{path}: no store there; {'check the address' if is_remote(path) else advice}"
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError, ConfigError) as error:
            raise StoreError(
                read_fault(path, error)
                or f"{path}: not a photozhpc store, or damaged ({type(error).__name__}: "
                f"{one_line(error, 160)})"
            ) from error
        if not all(is_count(n) and 0 < n < 1 << 31 for n in (size, shard_len)):
            raise StoreError(f"{path}: damaged: cutout_size {size!r}, shard_len {shard_len!r}")
        return cls(path, survey, size, shard_len, own_digest(attributes))

    def index(self) -> StoreIndex:
        """Return a summary of the manifests, cached until one is added or changed.

        Raises:
            StoreError: one is damaged, belongs to another store, or describes a copied tile.
        """
        paths, stamps = list_manifests(self.path / ".manifests")
        if self._last_index is None or self._last_index[0] != stamps:
            self._last_index = stamps, self._read_index(paths)
        return self._last_index[1]

    def _read_index(self, paths: list[Any]) -> StoreIndex:
        tiles: dict[str, int] = {}
        plans: dict[str, str | None] = {}
        holders: dict[str, str] = {}
        digest = hashlib.sha256()
        for manifest in read_manifests(paths):
            tile_id = manifest["tile_id"]
            tiles[tile_id] = n = manifest["n_sources"]
            n_files = sum(name.startswith("cutout/c/") for name in manifest["files"])
            if n_files != -(-n // self.shard_len):
                raise StoreError(
                    f"{self._manifest_path(tile_id)}: damaged: {n_files} files for {n} sources; "
                    f"extract the tile again"
                )
            digest.update(manifest["sha256"].encode())
            plans[tile_id] = manifest["plan"]
            for problem in (not_of_store(manifest, self.sha256), copied(manifest, holders)):
                if problem is not None:
                    raise StoreError(f"{self.path}: {problem}")
        return StoreIndex(tiles, self.shard_len, digest.hexdigest(), plans)

    def tiles(self) -> dict[str, int]:
        """Return the number of sources of every finished tile, by tile_id, sorted."""
        return dict(self.index().tiles)

    def shards(self) -> list[ShardKey]:
        """Return the keys of all shards, sorted by tile and index."""
        return list(self.shard_lengths())

    def shard_lengths(self) -> dict[ShardKey, int]:
        """Return the number of sources of every shard, sorted by tile and index."""
        return self.index().shard_lengths()

    def has_tile(self, tile_id: str) -> bool:
        """Return whether a tile is finished."""
        return self._manifest_path(tile_id).exists()

    def declare(self, plan: dict[str, Any]) -> None:
        """Record the tiles that are going to be written, {tile_id: anything}, before the first is.

        Raises:
            StoreError: another plan was declared before.
        """
        declared = self._plan()
        if declared is None:
            index = self.index()
            # If the tiles were extracted under this plan, plan.json was lost and is restored.
            lost = set(index.plans.values()) == {json_sha256(plan)}
            if index.tiles and not lost and self._plan() is None:
                raise StoreError(f"{self.path}: holds tiles already; choose another --store")
            write_durably(local_path(self.path) / "plan.json", json.dumps(plan).encode())
        elif declared != plan:
            tile_id = min(t for t in {*declared, *plan} if declared.get(t) != plan.get(t))
            raise StoreError(
                f"{self.path}: was begun with other tiles, or with other sources on them (tile "
                f"'{tile_id}'); choose another --store or delete that one"
            )

    def check_complete(self) -> StoreIndex:
        """Check that every declared tile is there, and return the summary of the manifests.

        Raises:
            StoreError: the extraction is not finished, or its plan was lost or altered.
        """
        if missing := self.missing_tiles():
            raise StoreError(
                f"{self.path}: the extraction is not finished, {len(missing)} tiles are missing "
                f"(the first is '{missing[0]}'); run the same 'photozhpc extract' again"
            )
        index = self.index()
        if problem := plan_problem(index.plans, self.plan_sha256()):
            raise StoreError(f"{self.path}/plan.json: {problem}")
        return index

    def __len__(self) -> int:
        return self.index().n_sources

    def fingerprint(self) -> str:
        """Return a SHA-256 over all manifests: equal if and only if all content is equal."""
        return self.index().fingerprint

    def read_cutouts(
        self,
        key: ShardKey,
        rows: slice = slice(None),
        side: int | None = None,
        out: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Return cutout_NCSS of a shard, or of `rows` of it, nJy per pixel.

        Args:
            side: read only the central side x side pixels; pixel S//2 becomes pixel side//2.
            out: an array to fill instead of a new one.

        Raises:
            StoreError: the shard is missing or damaged.
            ValueError: `side` is larger than the cutouts, or `out` has another shape.
        """
        side = self.cutout_size if side is None else side
        if not 0 < side <= self.cutout_size:
            raise ValueError(f"cutouts of {self.cutout_size} px have no central {side} px")
        corner = self.cutout_size // 2 - side // 2
        with self._reading(key, "cutout"):
            array, tile, start, stop = self._rows(key, "cutout", rows)
        shape = (stop - start, len(self.survey.bands), side, side)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32:
            raise ValueError(f"out must be float32 {shape}, got {out.dtype} {out.shape}")
        if stop > start:
            with self._reading(key, "cutout"):
                note = tile.files[f"cutout/{array.file_name(start)}"]
                array.read_rows(start, stop, out, note, slice(corner, corner + side))
        return out

    def read_sources(self, key: ShardKey) -> Sources:
        """Return identifiers, positions, z_spec and E(B-V) of a shard.

        Raises:
            StoreError: the tile is missing or damaged.
        """
        return Sources(*(self._read_column(key, name) for name in SOURCE_COLUMNS))

    def read_source_ids(self, key: ShardKey) -> NDArray[np.int64]:
        """Return the identifiers of a shard.

        Raises:
            StoreError: the tile is missing or damaged.
        """
        return self._read_column(key, "source_id")

    def read_measurements(self, key: ShardKey) -> Measurements:
        """Return pixel positions and photometry of a shard.

        Raises:
            StoreError: the tile is missing or damaged.
        """
        names = [name for name in COLUMNS if name not in SOURCE_COLUMNS]
        return Measurements(*(self._read_column(key, name) for name in names))

    def tile_attributes(self, tile_id: str) -> dict[str, Any]:
        """Return the attributes of a tile: its WCS, missing bands.

        Raises:
            StoreError: the tile is missing or damaged, or its zarr.json is another tile's.
        """
        file = self.path / tile_id / "zarr.json"
        try:
            content = file.read_bytes()
            note = tile_of(self._manifest_path(tile_id)).files["zarr.json"]
            if hashlib.sha256(content).hexdigest() != note.sha256:
                raise ValueError("its zarr.json is not the manifest's")
            return dict(parse_json(content)["attributes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                read_fault(file, error) or f"{self.path}: tile '{tile_id}' is missing or damaged"
            ) from error

    @contextmanager
    def new_tile(
        self, tile_id: str, n_sources: int, attributes: dict[str, Any]
    ) -> Iterator[TileWriter]:
        """Write a tile shard by shard; it appears as a whole when the block ends without error.

        Raises:
            StoreError: the tile_id cannot be a folder name, or the tile exists.
        """
        if not TILE_ID.fullmatch(tile_id):
            raise StoreError(f"'{tile_id}' cannot be a tile_id: use letters, digits, . _ + -")
        if self.has_tile(tile_id):
            raise StoreError(f"{self.path}: tile '{tile_id}' already exists")
        import zarr  # only for writing: readers need not wait for the import

        final = local_path(self.path) / tile_id
        partial = partial_path(final)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            group = zarr.create_group(partial, attributes={"tile_id": tile_id, **attributes})
            arrays = create_arrays(group, n_sources, self.shard_len, self._axes)
            writer = TileWriter(arrays, n_sources, self.shard_len)
            yield writer
            writer.finish()
            if writer.attributes:
                group.update_attributes(writer.attributes)
            crc32c, made_for = self.chunk_checksums(partial), (self.sha256, self.plan_sha256())
            manifest = make_manifest(partial, tile_id, n_sources, crc32c, *made_for)
            if self.has_tile(tile_id):
                return  # another process of a job that Slurm took for dead was quicker
            shutil.rmtree(final, ignore_errors=True)  # undeclared remains of a killed run
            try:
                os.rename(partial, final)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
                # That process was quicker between these lines; its files are equal.
            write_durably(self._manifest_path(tile_id), json.dumps(manifest).encode())
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def verify(self) -> list[str]:
        """Return one line for every missing, truncated, altered or stray file; none if sound."""
        from photozhpc.store.verify import verify_store

        return verify_store(self)

    def plan_sha256(self) -> str | None:
        """Return the digest of the declared plan, None if there is none.

        Raises:
            StoreError: plan.json is damaged.
        """
        plan = self._plan()
        return None if plan is None else json_sha256(plan)

    def _plan(self) -> dict[str, Any] | None:
        try:
            plan = read_json(self.path / "plan.json")
            if invalid := [tile_id for tile_id in plan if not TILE_ID.fullmatch(tile_id)]:
                raise ValueError(f"{invalid[0][:60]!r} cannot be a tile_id")
            return plan
        except FileNotFoundError:
            return None  # a store that was not made by an extraction
        except (OSError, ValueError) as error:
            file = f"{self.path}/plan.json"
            raise StoreError(read_fault(file, error) or f"{file}: damaged ({error})") from error

    def missing_tiles(self) -> list[str]:
        present = {path.stem for path in (self.path / ".manifests").glob("*.json")}
        return sorted(set(self._plan() or ()) - present)

    def chunk_checksums(self, folder: AnyPath) -> dict[str, bytes]:
        """Return the CRC32C of all chunks of each file of a tile's arrays, by file name."""
        checksums = {}
        for name, (dtype, _) in {"cutout": ("float32", "CSS"), **COLUMNS}.items():
            array = read_layout(folder / name, dtype)
            for row in range(0, array.shape[0], array.file_len):
                checksums[f"{name}/{array.file_name(row)}"] = array.crc32c(row)
        return checksums

    def _manifest_path(self, tile_id: str) -> Any:
        return self.path / ".manifests" / f"{tile_id}.json"

    def _read_column(self, key: ShardKey, name: str) -> NDArray[Any]:
        with self._reading(key, name):
            array, tile, start, stop = self._rows(key, name)
            values = np.empty((stop - start, *array.shape[1:]), array.dtype)
            array.read_rows(start, stop, values, tile.files[f"{name}/{array.file_name(start)}"])
            return values

    def _rows(
        self, key: ShardKey, name: str, rows: slice = slice(None)
    ) -> tuple[ArrayLayout, TileNote, int, int]:
        """Return an array of the key's tile, the tile's manifest, and the shard's row range."""
        dtype, trailing = COLUMNS.get(name, ("float32", "CSS"))
        array = read_layout(self.path / key.tile_id / name, dtype)
        if array.shape[1:] != tuple(self._axes[axis] for axis in trailing):
            raise ValueError(f"it has the shape {array.shape}")
        tile = tile_of(self._manifest_path(key.tile_id))
        if array.shape[0] != tile.n_sources:
            raise ValueError(f"it has {array.shape[0]} rows, the manifest {tile.n_sources} sources")
        if array.sha256 != tile.files[f"{name}/zarr.json"].sha256:
            raise ValueError("its zarr.json is not the manifest's")
        start = key.index * self.shard_len
        if not 0 <= start < array.shape[0]:
            raise ValueError(f"the tile has {array.shape[0]} sources")
        first, last, _ = rows.indices(min(self.shard_len, array.shape[0] - start))
        return array, tile, start + first, start + max(first, last)

    @property
    def _axes(self) -> dict[str, int]:
        survey = self.survey
        lengths = (len(survey.bands), len(survey.aperture_radii_arcsec), self.cutout_size)
        return dict(zip("CRS", lengths, strict=True))

    @contextmanager
    def _reading(self, key: ShardKey, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
            where = f"{self.path}: shard {key} ('{name}')"
            raise StoreError(
                read_fault(where, error)
                or f"{where} is missing or damaged ({one_line(error)}); run 'photozhpc verify "
                f"{self.path}', delete the tile and extract it again"
            ) from error


def local_path(path: str | AnyPath) -> Path:
    """Return the path of a store that is to be written.

    Raises:
        StoreError: it is not on a disk.
    """
    path = location(path)
    if is_remote(path):
        raise StoreError(
            f"{path}: a store can only be written to a disk; pass a local --store and copy the "
            f"finished store ('aws s3 cp --recursive')"
        )
    return path
