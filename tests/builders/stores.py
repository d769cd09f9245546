"""Stores of noise, made without mosaics; what an engine takes of a store."""

from pathlib import Path

import numpy as np

from photozhpc.mosaic.photometry import PhotFlag
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.survey import load_survey

SIZE = 32
SHARD_LEN = 64
SURVEY = load_survey("roman-sim")


def make_store(
    path: Path, tiles: dict[str, int], seed: int = 0, *, same_ids: bool = False
) -> CutoutStore:
    """Noise cutouts, among them: a band missing (source 1), a bad pixel (2), half a band (3)."""
    rng = np.random.default_rng(seed)
    store = CutoutStore.create(path, SURVEY, SIZE, SHARD_LEN)
    n_bands, n_radii = len(SURVEY.bands), len(SURVEY.aperture_radii_arcsec)
    next_id = 10**15
    for tile_id, n in tiles.items():
        next_id = 10**15 if same_ids else next_id
        with store.new_tile(tile_id, n, {}) as writer:
            for start in range(0, n, SHARD_LEN):
                m = min(SHARD_LEN, n - start)
                z_N = np.where(rng.random(m) < 0.5, rng.uniform(0.1, 3, m), np.nan)
                cutout = rng.normal(0, 1, (m, n_bands, SIZE, SIZE)).astype(np.float32)
                flux = rng.normal(100, 1, (m, n_bands, n_radii)).astype(np.float32)
                flags = np.zeros((m, n_bands), np.uint16)
                if tile_id == "off-tile":
                    cutout[:], flux[:] = np.nan, np.nan
                    flags[:] = PhotFlag.OFF_TILE | PhotFlag.NO_DATA
                if next_id == 10**15:
                    cutout[1, 2], flux[1, 2] = np.nan, np.nan
                    cutout[2, 0, 16, 16] = np.nan
                    cutout[3, 1, : SIZE * 3 // 4] = np.nan
                writer.write_shard(
                    cutout,
                    Sources(
                        np.arange(next_id, next_id + m),
                        rng.uniform(0, 360, m),
                        rng.uniform(-90, 90, m),
                        z_N.astype(np.float32),
                        rng.uniform(0, 0.1, m).astype(np.float32),
                    ),
                    Measurements(np.zeros(m), np.zeros(m), flux, np.sqrt(np.abs(flux)), flags),
                )
                next_id += m
    return store


def fill(store: CutoutStore, tile_id: str, n: int, seed: int = 0) -> tuple[np.ndarray, Sources]:
    rng = np.random.default_rng(seed)
    cutout = rng.normal(size=(n, 4, store.cutout_size, store.cutout_size)).astype(np.float32)
    cutout[::7] = np.nan
    sources = Sources(
        source_id_N=np.arange(n) + seed * 10_000,
        ra_N=rng.uniform(0, 360, n),
        dec_N=rng.uniform(-90, 90, n),
        z_spec_N=rng.uniform(0, 3, n).astype(np.float32),
        ebv_N=np.zeros(n, dtype=np.float32),
    )
    with store.new_tile(tile_id, n, {"note": "x"}) as writer:
        for start in range(0, n, store.shard_len):
            rows = slice(start, start + store.shard_len)
            k = len(sources[rows])
            measured = Measurements(
                y_N=np.zeros(k),
                x_N=np.zeros(k),
                flux_NCR=np.full((k, 4, 5), float(start), dtype=np.float32),
                flux_err_NCR=np.ones((k, 4, 5), dtype=np.float32),
                flags_NC=np.zeros((k, 4), dtype=np.uint16),
            )
            writer.write_shard(cutout[rows], sources[rows], measured)
    return cutout, sources


def engine_input(store: CutoutStore) -> tuple[np.ndarray, np.ndarray, Measurements]:
    """Return cutouts, E(B-V) and measurements of all sources."""
    keys = store.shards()
    parts = [vars(store.read_measurements(key)) for key in keys]
    measured = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return (
        np.concatenate([store.read_cutouts(key) for key in keys]),
        np.concatenate([store.read_sources(key).ebv_N for key in keys]),
        Measurements(**measured),
    )
