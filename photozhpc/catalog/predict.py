"""One part of the catalogue: read shards, estimate redshifts, write. Runs in a Dask worker.

The functions import torch, not the module, because the client never needs it.
"""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.pdf import check_part_and_pdf, make_pdf_table, pdf_path, write_pdf_part
from photozhpc.catalog.photoz_catalog import (
    PhotozFlag,
    catalog_schema,
    make_table,
    write_part,
)
from photozhpc.catalog.run_folder import ModelKey, Part, note_part
from photozhpc.errors import CatalogError, CheckpointError, StoreError
from photozhpc.files.objects import AnyPath
from photozhpc.logs import LOG
from photozhpc.store import CutoutStore, FluxTable, Measurements, open_store
from photozhpc.survey import Survey

if TYPE_CHECKING:
    from photozhpc.model.checkpoint import Checkpoint
    from photozhpc.model.engine import Engine, PhotometryEngine, PhotometryMLPEngine
    from photozhpc.model.stars import PointSources

    AnyEngine = Engine | PhotometryEngine | PhotometryMLPEngine

T = TypeVar("T")

# A band that lost more than this share of the pixels that the network sees is flagged.
MAX_BAD_FRACTION = 0.05
# Cutouts read at a time: whole chunks of the store, whole batches of the engine.
MIN_BLOCK_LEN = 256
_loading = threading.Lock()


def predict_part(
    model: ModelKey,
    part: Part,
    path: Path,
    identity: Mapping[str, Any],
    provenance: str = "{}",
    comparison: "Comparison | None" = None,
) -> None:
    """Estimate the redshifts of all sources of a part's shards; write the part and its note.

    A part that exists is complete, because its p(z), if any, is written first.

    Args:
        identity, provenance: written into the part; see `photoz_catalog.write_part`.
        comparison: from `compare`; None: it is made here.

    Raises:
        StoreError: a shard is missing or damaged.
        CheckpointError: the checkpoint is damaged, or not the one that the run began with.
        RunError: the disk is full.
    """
    started = time.monotonic()
    store = _open_store(model.store_path, model.table_survey)
    # Dask repeats a task whose worker died after the part was written.
    if path.exists():
        try:
            schema = catalog_schema(store.survey)
            note = check_part_and_pdf(path, identity, part.n_rows, schema, model.pdf)
            return note_part(path, part, note, time.monotonic() - started)
        except CatalogError:
            pass  # it is made again
    comparison = comparison or compare(model)
    table, pdf_table = _part_tables(store, part, load_engine(model), comparison)
    pdf = None
    if pdf_table is not None:
        pdf = write_pdf_part(pdf_table, pdf_path(path), identity, provenance)
    note = replace(write_part(table, path, identity, provenance), pdf=pdf)
    seconds = time.monotonic() - started
    note_part(path, part, note, seconds)
    LOG.debug("infer: %s: %d sources in %.2f s", path.name, part.n_rows, seconds)


def check_fit(model: ModelKey) -> None:
    """Load the model and check that it fits the store; errors as `load_engine`.

    It does not return the model, because Dask would send it to the client.
    """
    load_engine(model)


@dataclass(frozen=True)
class Comparison:
    """A store beside the training store of a model.

    Attributes:
        limits_2C: noise of an image below and above which it is another; None: unknown, or without
            images.
        point_sources: of the store, or else of the training store.
        warning: see `store_note.noise_warning`.
    """

    limits_2C: NDArray[np.float64] | None
    point_sources: "PointSources | None"
    warning: str | None


def compare_with_training(
    checkpoint: "Checkpoint", store: CutoutStore | FluxTable, side: int
) -> Comparison:
    """Compare a sample of a store with what a model file notes of its training store.

    Args:
        side: of the part of the images that the model sees, pixels; 0: none.
    """
    from photozhpc.model.store_note import noise_warning, note_store, training_note

    here, training = note_store(store, side), training_note(checkpoint)
    if training is None:
        return Comparison(None, here.point_sources, None)
    return Comparison(
        training.noise_limits_2C if side else None,
        here.point_sources or training.point_sources,
        noise_warning(training, here, store.survey),
    )


def image_flags(
    cutout_NCSS: NDArray[np.float32],
    side: int,
    survey: Survey,
    limits_2C: NDArray[np.float64] | None,
) -> NDArray[np.int32]:
    """Return the PhotozFlag bits SHARP_DEFECT and OTHER_NOISE (N,).

    Args:
        side: of the part of the images that the network sees, pixels.
        limits_2C: as in `Comparison`.
    """
    from photozhpc.model.store_note import psf_widths
    from photozhpc.mosaic.defects import find_defects

    found_N, noise_NC = find_defects(cutout_NCSS, side, psf_widths(survey))
    flags_N = np.where(found_N, int(PhotozFlag.SHARP_DEFECT), 0).astype(np.int32)
    if limits_2C is not None:
        other_N = ((noise_NC < limits_2C[0]) | (noise_NC > limits_2C[1])).any(axis=1)
        flags_N[other_N & ~found_N] |= PhotozFlag.OTHER_NOISE  # a dead band has no noise
    return flags_N


def photoz_flags(
    cutout_NCSS: NDArray[np.float32],
    crop: int,
    photometry_flags_NC: NDArray[np.integer],
    photoz_N: NDArray[np.float32],
) -> NDArray[np.int32]:
    """Return PhotozFlag bits (N,).

    Args:
        crop: side of the image that the network sees, pixels; limited to the cutout's.
        photometry_flags_NC: PhotFlag bits of the aperture photometry.
        photoz_N: NaN where no redshift could be estimated.
    """
    from photozhpc.mosaic.cutouts import count_finite
    from photozhpc.mosaic.photometry import PhotFlag

    crop = min(crop, cutout_NCSS.shape[-1])
    n_finite_NC = count_finite(cutout_NCSS, crop)
    # A few bad pixels in the image are usual and harmless; one on the source, or a missing part of
    # the image, is not.
    middle = 2 * (crop // 16) + 1
    core_N = (count_finite(cutout_NCSS, middle) == middle**2).all(axis=1)
    enough_N = (n_finite_NC >= (1 - MAX_BAD_FRACTION) * crop**2).all(axis=1)
    flags_N = np.zeros(len(cutout_NCSS), dtype=np.int32)
    off_tile_NC: NDArray[np.bool_] = (photometry_flags_NC & int(PhotFlag.OFF_TILE)) != 0
    for flag, where_N in (
        (PhotozFlag.OFF_TILE, off_tile_NC.any(axis=1)),
        (PhotozFlag.MISSING_BAND, (n_finite_NC == 0).any(axis=1)),
        (PhotozFlag.BAD_PIXELS, ~(core_N & enough_N)),
        (PhotozFlag.NO_PHOTOZ, ~np.isfinite(photoz_N)),
    ):
        flags_N[where_N] |= flag
    return flags_N


def estimate_flags(
    photoz_N: NDArray[np.float32], quantile_NQ: NDArray[np.float32], ood_N: NDArray[np.float32]
) -> NDArray[np.int32]:
    """Return the PhotozFlag bits UNUSUAL and IMPLAUSIBLE (N,); NaN is neither.

    Args:
        quantile_NQ: the ends of the intervals, widest first and last.
    """
    outside_N = (photoz_N < quantile_NQ[:, 0]) | (photoz_N > quantile_NQ[:, -1])
    flags_N = np.where(ood_N > 1, int(PhotozFlag.UNUSUAL), 0).astype(np.int32)
    flags_N[(photoz_N < 0) | outside_N] |= PhotozFlag.IMPLAUSIBLE
    return flags_N


def photometry_flags(measured: Measurements, photoz_N: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return PhotozFlag bits (N,) of sources whose redshift is from fluxes alone.

    Args:
        photoz_N: NaN where no redshift could be estimated.
    """
    from photozhpc.mosaic.photometry import PhotFlag

    n_measured_NC = np.isfinite(measured.flux_NCR).sum(axis=2)
    if measured.kron_flux_NC is not None:
        n_measured_NC = n_measured_NC + np.isfinite(measured.kron_flux_NC)
    flag_NC = measured.flags_NC
    bad = PhotFlag.EDGE | PhotFlag.MASKED | PhotFlag.NON_FINITE | PhotFlag.NO_DATA
    flags_N = np.zeros(len(photoz_N), dtype=np.int32)
    for flag, where_N in (
        (PhotozFlag.OFF_TILE, ((flag_NC & int(PhotFlag.OFF_TILE)) != 0).any(axis=1)),
        (PhotozFlag.MISSING_BAND, (n_measured_NC == 0).any(axis=1)),
        (PhotozFlag.BAD_PIXELS, ((flag_NC & int(bad)) != 0).any(axis=1)),
        (PhotozFlag.NO_PHOTOZ, ~np.isfinite(photoz_N)),
    ):
        flags_N[where_N] |= flag
    return flags_N


def _part_tables(
    store: CutoutStore | FluxTable, part: Part, engine: "AnyEngine", comparison: Comparison
) -> tuple[pa.Table, pa.Table | None]:
    """Return the rows of the catalogue, and those of p(z) if the engine gives it."""
    from photozhpc.model.prediction import Prediction

    sources = _concatenated([store.read_sources(key) for key in part.shards])
    measured = _concatenated([store.read_measurements(key) for key in part.shards])
    if len(sources) != part.n_rows:
        raise StoreError(f"{store.path}: the store changed during the run; run infer again")
    whole = Prediction.unknown(part.n_rows)
    flags_N = np.empty(part.n_rows, dtype=np.int32)
    side = min(engine.side_pix, store.cutout_size)
    block_len = max(engine.batch_size, MIN_BLOCK_LEN)
    pdf = engine.pdf
    value_NP = np.empty((part.n_rows, 0 if pdf is None else len(pdf.axis_P)), dtype=np.float32)
    for rows, cutout_BCSS in _blocks(store, part, side, block_len):
        block = measured.take(rows)
        prediction, pdf_BP = engine.predict_pdf(cutout_BCSS, sources.ebv_N[rows], block)
        for column, values in zip(whole, prediction, strict=True):
            column[rows] = values
        if pdf_BP is not None:
            value_NP[rows] = pdf_BP
        if side and isinstance(store, CutoutStore):
            flags_N[rows] = photoz_flags(cutout_BCSS, side, block.flags_NC, prediction.z_phot_N)
            flags_N[rows] |= image_flags(cutout_BCSS, side, store.survey, comparison.limits_2C)
        else:
            flags_N[rows] = photometry_flags(block, prediction.z_phot_N)
    flags_N |= estimate_flags(whole.z_phot_N, whole.quantile_NQ, whole.ood_N)
    pdf_table = None
    if pdf is not None:
        value_NP[~np.isfinite(whole.z_phot_N)] = np.nan
        pdf_table = make_pdf_table(pdf.form, pdf.axis_P, pdf.z_max, sources.source_id_N, value_NP)
    table = make_table(
        store.survey,
        source_id_N=sources.source_id_N,
        ra_N=sources.ra_N,
        dec_N=sources.dec_N,
        tile_id_N=np.repeat([key.tile_id for key in part.shards], part.shard_lengths),
        photoz_N=whole.z_phot_N,
        mean_N=whole.mean_N,
        mode_N=whole.mode_N,
        quantile_NQ=whole.quantile_NQ,
        ood_N=whole.ood_N,
        photoz_flags_N=flags_N,
        flux_NCR=measured.flux_NCR,
        flux_err_NCR=measured.flux_err_NCR,
        kron_flux_NC=measured.kron_flux_NC,
        kron_flux_err_NC=measured.kron_flux_err_NC,
        star_probability_N=probability_of_stars(measured, store.survey, comparison.point_sources),
    )
    return table, pdf_table


def probability_of_stars(
    measured: Measurements, survey: Survey, point_sources: "PointSources | None"
) -> NDArray[np.float32]:
    """Return the probability (N,) that a source is a star, by its two smallest apertures.

    NaN where no band has a flux in both, and where `point_sources` is None.
    """
    from photozhpc.model.stars import star_probability

    two = np.argsort(survey.aperture_radii_arcsec)[:2]
    flux_NCR, err_NCR = measured.flux_NCR[:, :, two], measured.flux_err_NCR[:, :, two]
    return star_probability(flux_NCR, err_NCR, point_sources)


def _blocks(
    store: CutoutStore | FluxTable, part: Part, side: int, block_len: int
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Yield (rows, cutouts) of the part in blocks of one length, across its shards.

    Each block overwrites the one before. With side 0 nothing is read.
    """
    block_len = min(block_len, part.n_rows)
    block_BCSS = np.empty((block_len, len(store.survey.bands), side, side), np.float32)
    if not side or isinstance(store, FluxTable):
        for first in range(0, part.n_rows, block_len):
            rows = slice(first, min(first + block_len, part.n_rows))
            yield rows, block_BCSS[: rows.stop - first]
        return
    first = filled = 0
    for key, length in zip(part.shards, part.shard_lengths, strict=True):
        at = 0
        while at < length:
            n = min(length - at, block_len - filled)
            store.read_cutouts(key, slice(at, at + n), side, block_BCSS[filled : filled + n])
            at, filled = at + n, filled + n
            if filled == block_len or first + filled == part.n_rows:
                yield slice(first, first + filled), block_BCSS[:filled]
                first, filled = first + filled, 0


def _concatenated(parts: list[T]) -> T:
    """Return the frozen dataclass of arrays that holds the rows of all `parts`."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*(np.concatenate(column) for column in columns))


@lru_cache(maxsize=4)
def _open_store(path: AnyPath, survey: Survey | None) -> CutoutStore | FluxTable:
    return open_store(path, survey)


def load_engine(model: ModelKey) -> "AnyEngine":
    """Return the model on its device; each process loads it once.

    Raises:
        CheckpointError: the file is damaged, changed since the run began, or does not fit the
            store.
    """
    # OpenMP keeps a number of threads for each thread that calls it, as read in the parent process,
    # before this worker's environment was set: two threads would each take all cores.
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # "4,2" for nested loops
    if threads.isdecimal() and int(threads):
        import torch

        torch.set_num_threads(int(threads))
    with _loading:
        return _load_engine(model)


def compare(model: ModelKey) -> Comparison:
    """Compare the store with the model's training store; one worker does it for all."""
    store, side = _open_store(model.store_path, model.table_survey), load_engine(model).side_pix
    with _loading:
        checkpoint = _load_checkpoint(model)
    return compare_with_training(checkpoint, store, min(side, store.cutout_size))


@lru_cache(maxsize=1)
def _load_engine(model: ModelKey) -> "AnyEngine":
    from photozhpc.model.engine import make_engine
    from photozhpc.model.photometry import check_measured
    from photozhpc.model.pita import PITA

    store = _open_store(model.store_path, model.table_survey)
    checkpoint = _load_checkpoint(model)
    checkpoint.check_store(store.survey, store.cutout_size)
    if isinstance(checkpoint.model, PITA):
        check_measured(checkpoint.model.config.fluxes, store)
    return make_engine(checkpoint, store.survey, model.device, model.compiled, model.pdf)


@lru_cache(maxsize=1)
def _load_checkpoint(model: ModelKey) -> "Checkpoint":
    from photozhpc.model.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model.checkpoint_path)
    if checkpoint.sha256 != model.checkpoint_sha256:
        raise CheckpointError(
            f"{model.checkpoint_path}: the checkpoint was changed during the run; put it back and "
            f"run the same command again"
        )
    return checkpoint
