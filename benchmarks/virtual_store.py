"""A store without cutouts, and an engine without a model, to measure the overhead of a run.

The manifests are files as `photozhpc extract` writes them. Sources and photometry are made up when
they are read; cutouts are constant.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from photozhpc.catalog import dispatch, predict, run
from photozhpc.model.density import LEVEL_Q
from photozhpc.model.prediction import Prediction
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore
from photozhpc.store.manifest import own_digest
from photozhpc.store.schema import Measurements
from photozhpc.survey import load_survey

_FILES = 24  # in the folder of a tile
_CHUNKS = 192  # in a shard of 2048 sources


class VirtualStore(CutoutStore):
    """A store whose content is made up."""

    def _ids(self, key):
        tile = int(key.tile_id.removeprefix("tile"))
        n = next(iter(self._lengths(key.tile_id)))
        first = key.index * self.shard_len
        return tile * 1_000_000 + np.arange(first, min(first + self.shard_len, n))

    def _lengths(self, tile_id):
        yield json.loads((self.path / ".manifests" / f"{tile_id}.json").read_bytes())["n_sources"]

    def read_source_ids(self, key):
        return self._ids(key)

    def read_sources(self, key):
        ids = self._ids(key)
        nothing = np.zeros(len(ids), np.float32)
        return Sources(ids, ids * 1e-9, ids * -1e-10, np.full_like(nothing, np.nan), nothing)

    def read_measurements(self, key):
        n = len(self._ids(key))
        shape = (n, len(self.survey.bands), len(self.survey.aperture_radii_arcsec))
        flux = np.full(shape, 100, np.float32)
        flags, kron = np.zeros(shape[:2], np.uint16), flux[:, :, 0]
        return Measurements(np.zeros(n), np.zeros(n), flux, flux, flags, kron, kron)

    def read_cutouts(self, key, rows=slice(None), side=None, out=None):
        out[:] = 1
        return out


class FreeEngine:
    """An engine that costs no time."""

    side_pix = 1
    batch_size = 2048
    pdf = None

    def predict_pdf(self, cutout_NCSS, ebv_N, flux_NCR):
        n = len(cutout_NCSS)
        one = np.ones(n, np.float32)
        return Prediction(one, one, one, np.ones((n, len(LEVEL_Q)), np.float32), one), None


def create(path: Path, n_sources: int, tile_len: int, shard_len: int) -> CutoutStore:
    """Write the manifests of a store with this number of sources."""
    store = VirtualStore.create(path, load_survey("roman-sim"), shard_len=shard_len)
    file = {"bytes": 1_000_000, "sha256": "0" * 64, "crc32c": "0" * 8}
    shard = {**file, "crc32c": "0" * 8 * _CHUNKS}
    for tile, first in enumerate(range(0, n_sources, tile_len)):
        n = min(tile_len, n_sources - first)
        shards = [f"cutout/c/{number}/0/0/0" for number in range(-(-n // shard_len))]
        columns = [f"column{number}/c/0" for number in range(_FILES - len(shards) - 1)]
        ids = {"source_id/c/0": {**file, "sha256": f"{tile:064x}"}}
        manifest = {
            "tile_id": f"tile{tile:06d}",
            "n_sources": n,
            "store": store.sha256,
            "plan": None,
            "files": dict.fromkeys(shards, shard) | dict.fromkeys(columns, file) | ids,
        }
        manifest["sha256"] = own_digest(manifest)
        (path / ".manifests" / f"tile{tile:06d}.json").write_text(json.dumps(manifest))
    return store


def install() -> None:
    """Let `run_inference` use virtual stores and the engine without cost."""
    run.CutoutStore = VirtualStore
    dispatch.predict_part = virtual_part
    dispatch.check_fit = lambda model: None
    dispatch.compare = lambda model: predict.Comparison(None, None, None)


def virtual_part(model, part, *rest):
    """`predict_part` in a worker, with the virtual store and engine in their places."""
    predict._open_store = _open_store
    predict.load_engine = lambda _: FreeEngine()
    return predict.predict_part(model, part, *rest)


_stores: dict[str, VirtualStore] = {}


def _open_store(path: str, survey: None) -> VirtualStore:
    if path not in _stores:
        _stores[path] = VirtualStore.open(path)
    return _stores[path]


def check(out: Path, n_sources: int, n_parts: int) -> None:
    """Check that every source is in the catalogue exactly once."""
    parts = sorted((out / "catalog").glob("part-*.parquet"))
    assert len(parts) == n_parts, (len(parts), n_parts)
    assert not list((out / "catalog").glob(".*.partial"))
    seen = 0
    last = -1
    for part in parts:
        ids = pq.read_table(part, columns=["source_id"])["source_id"].to_numpy()
        assert (np.diff(ids) > 0).all()
        assert ids[0] > last, part  # in the order of the store: none twice
        last, seen = ids[-1], seen + len(ids)
    assert seen == n_sources, (seen, n_sources)
