"""Stores and catalogues: folders of many files, some with the checksums of others."""

import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from harness import AS_IT_SAYS, REFUSED, Damage, Target, digest
from mutate import mangle, mutate_json, mutate_jsonl

from photozhpc.catalog import read_catalog
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS, make_table, write_part
from photozhpc.catalog.run_folder import ModelKey, RunFolder, append_line, note_part, plan_parts
from photozhpc.catalog.status import describe, status_of
from photozhpc.catalog.verify import verify_catalog
from photozhpc.errors import PhotozError
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.store.manifest import own_digest
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
SIZE, SHARD_LEN = 16, 4
TILES = {"a": 9, "b": 3, "off-tile": 1}
_NOT_IN_A_MANIFEST = ("plan.json", "zarr.json")


def make_store(path: Path, size: int = SIZE) -> CutoutStore:
    rng = np.random.default_rng(0)
    n_bands, n_radii = len(SURVEY.bands), len(SURVEY.aperture_radii_arcsec)
    store = CutoutStore.create(path, SURVEY, size, SHARD_LEN)
    store.declare(dict.fromkeys(TILES, "x"))
    for number, (tile_id, n) in enumerate(TILES.items()):
        with store.new_tile(tile_id, n, {"note": "x"}) as writer:
            for start in range(0, n, SHARD_LEN):
                m = min(SHARD_LEN, n - start)
                flux = rng.normal(100, 1, (m, n_bands, n_radii)).astype(np.float32)
                writer.write_shard(
                    rng.normal(0, 1, (m, n_bands, size, size)).astype(np.float32),
                    Sources(
                        10**12 * (number + 1) + np.arange(start, start + m),
                        rng.uniform(0, 360, m),
                        rng.uniform(-90, 90, m),
                        rng.uniform(0, 3, m).astype(np.float32),
                        rng.uniform(0, 0.1, m).astype(np.float32),
                    ),
                    Measurements(
                        rng.uniform(0, 99, m),
                        rng.uniform(0, 99, m),
                        flux,
                        flux / 10,
                        np.zeros((m, n_bands), np.uint16),
                    ),
                )
    return store


def seal_manifest(manifest: Any) -> Any:
    if isinstance(manifest, dict):
        manifest["sha256"] = own_digest(manifest)
    return manifest


class Store(Target):
    cases = 200
    weight = 2.0

    def make(self) -> None:
        store = make_store(self.folder)
        self.keys = store.shard_lengths()
        self.shards = {key: self._shard(store, key) for key in self.keys}

    @staticmethod
    def _shard(store: CutoutStore, key: Any) -> tuple[Any, ...]:
        cutout_NCSS = store.read_cutouts(key)
        return tuple(
            digest(part)
            for part in (cutout_NCSS, store.read_sources(key), store.read_measurements(key))
        )

    def damage(self, rng: Random) -> Damage:
        names = list(self.files)
        if rng.random() < 0.5:  # most files are columns
            names = [name for name in names if name.endswith(".json")]
        name = rng.choice(names)
        content = self.files[name]
        kind = rng.random()
        if kind < 0.03:
            return Damage(name, None)
        if kind < 0.06:
            return Damage(name, self.files[rng.choice(names)], sealed=True)
        if not name.endswith(".json") or kind < 0.2:
            return Damage(name, mangle(content, rng))
        if name.startswith(".manifests/") and kind < 0.7:
            return Damage(name, mutate_json(content, rng, seal_manifest), sealed=True)
        return Damage(name, mutate_json(content, rng))

    def read(self, damage: Damage) -> Any:
        """Open and index the store, verify it, and read every shard that it had or says it has."""
        store = CutoutStore.open(self.folder)
        problems = store.verify()
        assert all(len(line.splitlines()) == 1 for line in problems), problems
        found: list[Any] = [store.survey, store.cutout_size, store.shard_len]
        refusals = 0
        for ask in (store.shard_lengths, store.fingerprint, store.missing_tiles):
            try:
                found.append(ask())
            except PhotozError:
                refusals += 1
        for tile_id in TILES:
            try:
                found.append(store.tile_attributes(tile_id))
            except PhotozError:
                refusals += 1
        for key in self.keys:
            try:
                shard = self._shard(store, key)
            except PhotozError:
                refusals += 1
                continue
            found.append(shard)
            # A file in the place of another passes its own checksums: the manifest tells, unless
            # it is the manifest that was forged.
            forged = damage.sealed and damage.name.startswith(".manifests/")
            if shard != self.shards.get(key) and not (forged and problems):
                assert store.shard_len != SHARD_LEN, f"{key} reads as something else"
        return bool(problems), refusals, found

    def judge(self, damage: Damage, found: Any) -> str:
        problems, refusals, content = found
        if problems:
            return REFUSED
        assert not refusals, "sound, says verify(), but not to be read"
        lengths = content[3]
        assert sum(lengths.values()) >= sum(TILES.values()), "rows are lost"
        forged = damage.sealed and damage.name.startswith(".manifests/")
        known = forged or damage.name in _NOT_IN_A_MANIFEST
        assert known, f"verify() missed a change of {damage.name}"
        return AS_IT_SAYS


class Catalogue(Target):
    cases = 140
    weight = 2.0

    def make(self) -> None:
        beside = self.folder.with_name("catalogue-store")
        shutil.rmtree(beside, ignore_errors=True)
        self.store = make_store(beside)
        model = ModelKey(self.store.path, self.folder.with_name("model"), "0" * 64, "cpu", False)
        index = self.store.index()
        parts = plan_parts(index.shard_lengths(), 4)
        self.run = RunFolder.of(self.folder, index.fingerprint, 4, model)
        self.run.catalog.mkdir(parents=True)
        self.run.begin({"n_parts": len(parts), "n_rows": index.n_sources, "survey": SURVEY.name})
        rng = np.random.default_rng(1)
        for part in parts:
            sources = [self.store.read_sources(key) for key in part.shards]
            measured = [self.store.read_measurements(key) for key in part.shards]
            n = part.n_rows
            rows = make_table(
                SURVEY,
                source_id_N=np.concatenate([s.source_id_N for s in sources]),
                ra_N=np.concatenate([s.ra_N for s in sources]),
                dec_N=np.concatenate([s.dec_N for s in sources]),
                tile_id_N=np.repeat([key.tile_id for key in part.shards], part.shard_lengths),
                photoz_N=rng.uniform(0, 3, n).astype(np.float32),
                quantile_NQ=np.ones((n, len(QUANTILE_LEVELS)), np.float32),
                ood_N=np.ones(n, np.float32),
                photoz_flags_N=np.zeros(n, np.int32),
                flux_NCR=np.concatenate([m.flux_NCR for m in measured]),
                flux_err_NCR=np.concatenate([m.flux_err_NCR for m in measured]),
            )
            path = self.run.part_path(part)
            note_part(path, part, write_part(rows, path, self.run.part_identity(part)), 0.1)
        self._forget_time_and_place()
        self.rows = index.n_sources
        self.checked = self._checked_rows()

    def _forget_time_and_place(self) -> None:
        """Let the lines of the log be the same wherever and whenever a case is repeated."""
        (notes,) = (self.folder / "notes").iterdir()
        lines = [json.loads(line) for line in notes.read_text().splitlines()]
        notes.unlink()
        for number, line in enumerate(lines):
            append_line(notes.with_name("w.jsonl"), {**line, "at": 1e9 + number, "worker": "w"})
        for number, line in enumerate(
            (
                {"event": "begun", "workers": 2, "parts_due": len(lines)},
                {"event": "set aside", "part": 1, "shards": ["a/00001"], "reason": "x"},
                {"event": "worker lost", "worker": "w"},
            )
        ):
            append_line(self.folder / "events.jsonl", {"at": 1e9 + number, "host": "h", **line})

    def damage(self, rng: Random) -> Damage:
        names = list(self.files)
        if rng.random() < 0.6:
            names = [name for name in names if not name.endswith(".parquet")]
        name = rng.choice(names)
        content = self.files[name]
        kind = rng.random()
        if kind < 0.04:
            return Damage(name, None)
        if name.endswith(".parquet") and kind < 0.1:
            others = [other for other in names if other.endswith(".parquet")]
            return Damage(name, self.files[rng.choice(others)], sealed=True)
        if name.endswith(".parquet") or kind < 0.25:
            return Damage(name, mangle(content, rng))
        change = mutate_jsonl if name.endswith(".jsonl") else mutate_json
        return Damage(name, change(content, rng))

    def read(self, damage: Damage) -> Any:
        """Ask of the run all that the commands ask, and read its rows."""
        found: list[Any] = []
        problems: list[str] = []
        for ask in (
            self._rows,
            self.run.is_begun,
            self._status,
            self._verify,
            self._verify_store,
            self._checked_rows,
        ):
            try:
                found.append(ask())
            except PhotozError as error:
                found.append(None)
                problems.append(str(error))
        for line in problems:
            assert len(line.splitlines()) == 1, line
            assert str(self.folder) in line, line
        return found

    def _rows(self) -> Any:
        return read_catalog(self.folder)

    def _checked_rows(self) -> Any:
        return read_catalog(self.folder, verify=True)

    def _status(self) -> Any:
        status = status_of(self.folder, now=2e9)
        assert describe(status)
        return json.loads(json.dumps({k: v for k, v in status.items() if k != "workers"}))

    def _verify(self) -> Any:
        return verify_catalog(self.folder)

    def _verify_store(self) -> Any:
        return verify_catalog(self.folder, self.store)

    def judge(self, damage: Damage, found: Any) -> str:
        rows, _, _, verified, compared, checked = found
        if checked is not None:
            assert checked.equals(self.checked, check_metadata=True), "read as something else"
        if rows is not None:
            assert len(rows) >= self.rows, "rows are lost"
        changed = damage.content != self.files[damage.name]
        if damage.name.endswith(".parquet") and changed:
            assert verified is None or verified[1], "a part was altered, and is called sound"
            assert compared is None or compared[1], "a part was altered, and is called sound"
        if None in found or verified[1] or compared[1]:
            return REFUSED
        return AS_IT_SAYS
