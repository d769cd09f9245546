"""A store of synthetic cutouts, of any size: one tile is written, the others link to it."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.store.chunks import read_layout
from photozhpc.store.manifest import own_digest
from photozhpc.store.rounding import round_pixels, rounding_step
from photozhpc.survey import Survey

TILE_LEN = 4096


def make_store(
    path: Path, survey: Survey, n: int, size: int | None = None, linked: bool = True
) -> CutoutStore:
    """Write a store of `n` sources, or of the next multiple of TILE_LEN; a fifth have a z_spec.

    A cutout is noise of 1 nJy with a source in the centre, faint ones more often than bright ones,
    rounded as in an extraction.

    Args:
        linked: all tiles are the same files except for their identifiers, and stay in memory once
            read; else they are copies, which take as much space as a real store.
    """
    rng = np.random.default_rng(0)
    shutil.rmtree(path, ignore_errors=True)
    store = CutoutStore.create(path, survey, size)
    side, length = store.cutout_size, min(n, TILE_LEN)
    n_bands, n_radii = len(survey.bands), len(survey.aperture_radii_arcsec)
    y_SS, x_SS = np.mgrid[:side, :side] - side // 2
    step_C = rounding_step(np.ones((n_bands, 16, 16), np.float32))
    with store.new_tile("tile00000", length, {"missing_bands": []}) as writer:
        for start in range(0, length, store.shard_len):
            m = min(store.shard_len, length - start)
            cutout = rng.normal(0, 1, (m, n_bands, side, side)).astype(np.float32)
            brightness_N1 = 30 * rng.pareto(1, (m, 1)).astype(np.float32)
            flux_NC = brightness_N1 * rng.uniform(0.5, 2, (m, n_bands))
            width_N11 = rng.uniform(1, 4, (m, 1, 1))
            profile = np.exp(-np.hypot(y_SS, x_SS) / width_N11) / (2 * np.pi * width_N11**2)
            cutout += (flux_NC[:, :, None, None] * profile[:, None]).astype(np.float32)
            round_pixels(cutout, step_C)
            flux = np.repeat(flux_NC[:, :, None], n_radii, axis=2).astype(np.float32)
            z_spec = np.where(rng.random(m) < 0.2, rng.uniform(0, 3, m), np.nan)
            writer.write_shard(
                cutout,
                Sources(
                    np.arange(start, start + m),
                    rng.uniform(0, 360, m),
                    rng.uniform(-90, 90, m),
                    z_spec.astype(np.float32),
                    np.full(m, 0.02, np.float32),
                ),
                Measurements(
                    np.zeros(m),
                    np.zeros(m),
                    flux,
                    (5 + 0.01 * flux).astype(np.float32),
                    np.zeros((m, n_bands), np.uint16),
                    (1.1 * flux_NC).astype(np.float32),
                    (6 + 0.01 * flux_NC).astype(np.float32),
                ),
            )
    first = json.loads((path / ".manifests" / "tile00000.json").read_bytes())
    copy = os.link if linked else shutil.copyfile
    for number in range(1, -(-n // TILE_LEN)):
        folder = path / f"tile{number:05d}"
        shutil.copytree(path / "tile00000", folder, copy_function=copy)
        files = first["files"] | _renumber(folder, number * TILE_LEN)
        manifest = {**first, "tile_id": folder.name, "files": files}
        manifest["sha256"] = own_digest(manifest)
        (path / ".manifests" / f"{folder.name}.json").write_text(json.dumps(manifest))
    return store


def _renumber(tile: Path, first_id: int) -> dict[str, dict[str, Any]]:
    """Give the sources of a copied tile new identifiers; return the manifest's entries of these."""
    folder = tile / "source_id"
    shutil.rmtree(folder)
    shutil.copytree(tile.with_name("tile00000") / "source_id", folder)
    array = zarr.open_array(folder, mode="r+")
    array[:] = np.arange(first_id, first_id + array.shape[0])
    layout = read_layout(folder, "int64")
    name = layout.file_name(0)
    content = (folder / name).read_bytes()
    return {
        f"source_id/{name}": {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "crc32c": layout.crc32c(0).hex(),
        }
    }
