"""One part of the catalogue: read shards, estimate redshifts, write. Runs in a Dask worker.

torch is imported by the functions here, not by the module: the client never needs it.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.photoz_catalog import (
    INTERVAL_LEVELS,
    Counts,
    PhotozFlag,
    catalog_schema,
    check_part,
    count_rows,
    make_table,
    write_part,
)
from photozhpc.catalog.run_folder import Part, file_sha256
from photozhpc.errors import CatalogError, CheckpointError, StoreError
from photozhpc.store import CutoutStore, ShardKey

if TYPE_CHECKING:
    from photozhpc.model.engine import Engine, PhotometryEngine

T = TypeVar("T")

# A band that lost more than this share of the pixels that the network sees is flagged.
MAX_BAD_FRACTION = 0.05
# Two blocks are in memory at a time: one read while the other is worked on.
BLOCK_LEN = 512


@dataclass(frozen=True)
class PartResult:
    """What became of one part; `skipped`: it was there already."""

    counts: Counts
    seconds: float
    skipped: bool


def predict_part(
    store_path: str,
    part: Part,
    checkpoint_path: str,
    checkpoint_sha256: str,
    device: str,
    part_path: str,
    identity: Mapping[str, Any],
) -> PartResult:
    """Estimate the redshifts of all sources of a part's shards and write the part.

    Args:
        checkpoint_sha256: of the file that the run began with.
        device: as `Engine` takes it.
        identity: written into the part; see `photoz_catalog.check_part`.

    Raises:
        StoreError: a shard is missing or damaged.
        CheckpointError: the checkpoint is damaged, or not the one the run began with.
        RunError: the disk is full.
    """
    start = time.monotonic()
    store = _open_store(store_path)
    path = Path(part_path)
    # Dask repeats a task whose worker died after the part was written.
    if path.exists():
        try:
            counts = check_part(path, identity, part.n_rows, catalog_schema(store.survey))
            return PartResult(counts, time.monotonic() - start, skipped=True)
        except CatalogError:
            pass  # it is made anew
    engine = load_engine(store_path, checkpoint_path, checkpoint_sha256, device)
    table = pa.concat_tables([_shard_table(store, key, engine) for key in part.shards])
    if len(table) != part.n_rows:
        raise StoreError(f"{store.path}: changed while the run was going on; run infer again")
    write_part(table, path, identity)
    return PartResult(count_rows(table), time.monotonic() - start, skipped=False)


def check_fit(store_path: str, checkpoint_path: str, checkpoint_sha256: str, device: str) -> None:
    """Load the model and check that it was trained on what the store holds.

    Raises:
        CheckpointError: it was not, or it is damaged.
    """
    load_engine(store_path, checkpoint_path, checkpoint_sha256, device)


def photoz_flags(
    cutout_NCSS: NDArray[np.float32],
    crop: int,
    photometry_flags_NC: NDArray[np.integer],
    photoz_N: NDArray[np.float32],
) -> NDArray[np.int32]:
    """Return PhotozFlag bits (N,).

    Args:
        crop: side of the image that the network sees, pixels; at most the whole cutout counts.
        photometry_flags_NC: PhotFlag bits of the aperture photometry.
        photoz_N: NaN where no redshift could be estimated.
    """
    from photozhpc.mosaic.photometry import PhotFlag

    crop = min(crop, cutout_NCSS.shape[-1])
    start = cutout_NCSS.shape[-1] // 2 - crop // 2
    seen = slice(start, start + crop)
    finite_NCSS = np.isfinite(cutout_NCSS[:, :, seen, seen])
    # A stray bad pixel somewhere in the image is the rule and harmless; one on the source, or a
    # lost part of the image, is not.
    middle = slice(crop // 2 - crop // 16, crop // 2 + crop // 16 + 1)
    core_N = finite_NCSS[:, :, middle, middle].all(axis=(1, 2, 3))
    enough_N = (finite_NCSS.mean(axis=(2, 3)) >= 1 - MAX_BAD_FRACTION).all(axis=1)
    flags_N = np.zeros(len(cutout_NCSS), dtype=np.int32)
    off_tile_NC: NDArray[np.bool_] = (photometry_flags_NC & int(PhotFlag.OFF_TILE)) != 0
    for flag, where_N in (
        (PhotozFlag.OFF_TILE, off_tile_NC.any(axis=1)),
        (PhotozFlag.MISSING_BAND, np.any(~np.any(finite_NCSS, axis=(2, 3)), axis=1)),
        (PhotozFlag.BAD_PIXELS, ~(core_N & enough_N)),
        (PhotozFlag.NO_PHOTOZ, ~np.isfinite(photoz_N)),
    ):
        flags_N[where_N] |= flag
    return flags_N


def _shard_table(
    store: CutoutStore, key: ShardKey, engine: "Engine | PhotometryEngine"
) -> pa.Table:
    sources = store.read_sources(key)
    n_rows = len(sources)
    measured = store.read_measurements(key)
    blocks = [slice(a, min(a + BLOCK_LEN, n_rows)) for a in range(0, n_rows, BLOCK_LEN)]
    photoz_N = np.empty(n_rows, dtype=np.float32)
    quantile_NQ = np.empty((n_rows, len(INTERVAL_LEVELS)), dtype=np.float32)
    ood_N = np.empty(n_rows, dtype=np.float32)
    flags_N = np.empty(n_rows, dtype=np.int32)
    reads = (lambda rows=rows: store.read_cutouts(key, rows) for rows in blocks)
    for rows, cutout_BCSS in zip(blocks, _read_ahead(reads), strict=True):
        photoz_N[rows], quantile_NQ[rows], ood_N[rows] = engine.predict(
            cutout_BCSS, sources.ebv_N[rows], measured.flux_NCR[rows]
        )
        flags_N[rows] = photoz_flags(
            cutout_BCSS, engine.side_pix, measured.flags_NC[rows], photoz_N[rows]
        )
    return make_table(
        store.survey,
        source_id_N=sources.source_id_N,
        ra_N=sources.ra_N,
        dec_N=sources.dec_N,
        tile_id=key.tile_id,
        photoz_N=photoz_N,
        quantile_NQ=quantile_NQ,
        ood_N=ood_N,
        photoz_flags_N=flags_N,
        flux_NCR=measured.flux_NCR,
        flux_err_NCR=measured.flux_err_NCR,
    )


def _read_ahead(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Call each of `reads` in a thread while the result of the one before is in use."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = None
        for read in reads:
            ready, coming = coming, pool.submit(read)
            if ready is not None:
                yield ready.result()
                del ready
        if coming is not None:
            yield coming.result()


@lru_cache(maxsize=4)
def _open_store(path: str) -> CutoutStore:
    return CutoutStore.open(path)


@lru_cache(maxsize=1)
def load_engine(
    store_path: str, checkpoint_path: str, checkpoint_sha256: str, device: str
) -> "Engine | PhotometryEngine":
    """Return the model, for a store, on its device; it is loaded once in a process.

    Raises:
        CheckpointError: the file is damaged, was changed since the run began, or does not fit
            the store.
    """
    if file_sha256(checkpoint_path) != checkpoint_sha256:
        raise CheckpointError(
            f"{checkpoint_path}: the checkpoint was changed while the run was going on"
        )
    import torch

    from photozhpc.model.checkpoint import load_checkpoint
    from photozhpc.model.engine import make_engine

    # torch may have been imported before this worker's environment was set.
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    store = _open_store(store_path)
    checkpoint = load_checkpoint(checkpoint_path)
    checkpoint.check_store(store.survey, store.cutout_size)
    return make_engine(checkpoint, store.survey, device)
