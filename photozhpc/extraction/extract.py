"""Mosaics + source lists -> a store: each source is measured once, on its best tile."""

import hashlib
import io
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.extraction.mosaics import ALL_BANDS, OFF_TILE_ID, check_pixel_scale
from photozhpc.extraction.plan import ExtractionPlan, plan_extraction
from photozhpc.files.disk import remove_stale_partials
from photozhpc.files.objects import AnyPath, version_of
from photozhpc.logs import LOG
from photozhpc.mosaic.cutouts import extract_cutouts
from photozhpc.mosaic.measure import Photometry, forced_photometry, noise_weights
from photozhpc.mosaic.photometry import PhotFlag
from photozhpc.mosaic.tile import Tile, read_tile
from photozhpc.sources.dust import describe_map, fill_ebv
from photozhpc.sources.read import Sources
from photozhpc.store.cutout_store import CutoutStore, local_path
from photozhpc.store.rounding import round_pixels, rounding_step
from photozhpc.store.schema import Measurements
from photozhpc.survey import Survey
from photozhpc.workers.pool import run_jobs

# In units of the pixel noise. With a higher sky, images differ from those of the training.
MAX_SKY_SIGMA = 1.0


@dataclass(frozen=True)
class ExtractSummary:
    """The result of an extraction.

    Attributes:
        tiles, sources: in the finished store.
        skipped_tiles: tiles that were there already.
        off_tile: sources on no tile (kept, flagged).
        bytes_per_cutout: on disk, all bands.
        notes: remarks for the user: missing bands, estimated errors.
    """

    tiles: int
    sources: int
    skipped_tiles: int
    off_tile: int
    bytes_per_cutout: float
    notes: tuple[str, ...]


def extract(
    survey: Survey,
    mosaics: str | AnyPath,
    store_path: str | AnyPath,
    source_lists: Iterable[str | AnyPath] = (),
    size: int | None = None,
    shard_len: int = 2048,
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
    ebv_map: str = "sfd",
    allow_missing_bands: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    plan: ExtractionPlan | None = None,
) -> ExtractSummary:
    """Measure every source of the lists and write the store; finished tiles are skipped.

    Args:
        mosaics: folder (searched with its subfolders) or glob.
        source_lists: files; default: those beside the mosaics.
        size: side of the cutouts, pixels; default: the survey's.
        workers: processes; default: one per core, at most one per tile.
        share: (i, n): extract only the i-th (from 0) of n equal shares of the tiles.
        ebv_map: source of E(B-V) where a list has none; see `dust.EBV_MAPS`.
        allow_missing_bands: leave bands empty that no tile has, instead of raising.
        progress: called with (sources done, all sources).
        plan: from `plan_extraction` with the same arguments; default: made here.

    Raises:
        PhotozError: the mosaics, the lists, or the store are faulty.
    """
    store_path = local_path(store_path)  # an error if it is in a bucket
    plan = plan or plan_extraction(survey, mosaics, source_lists, ebv_map, allow_missing_bands)
    notes, sources, tile_N = list(plan.notes), plan.sources, plan.tile_N
    store = CutoutStore.create(store_path, survey, size, shard_len)

    remove_stale_partials(store_path)
    remove_stale_partials(store_path / ".manifests")

    jobs: list[tuple[str, dict[str, AnyPath] | None, Sources]] = [
        (tile_id, bands, sources[np.flatnonzero(tile_N == index)])
        for index, (tile_id, bands) in enumerate(plan.tile_mosaics.items())
    ]
    off_tile = sources[np.flatnonzero(tile_N == -1)]
    if len(off_tile):
        jobs.append((OFF_TILE_ID, None, off_tile))
    store.declare(
        {tile_id: _sources_digest(tile_sources, ebv_map) for tile_id, _, tile_sources in jobs}
    )
    jobs = jobs[share[0] :: share[1]]
    present = store.tiles()
    for tile_id, bands, _ in jobs:
        if tile_id in present:
            attributes = store.tile_attributes(tile_id)
            _check_same_mosaics(store, tile_id, bands, attributes)
            notes += attributes.get("notes", [])
    missing = [job for job in jobs if job[0] not in present]

    total = sum(len(job[2]) for job in jobs)
    done = total - sum(len(job[2]) for job in missing)
    progress(done, total)

    def finished(index: int, tile_notes: list[str]) -> None:
        nonlocal done
        notes.extend(tile_notes)
        done += len(missing[index][2])
        progress(done, total)

    arguments = [(store.path, *job, ebv_map) for job in missing]
    run_jobs(_extract_tile, arguments, workers, f"extracting to {store.path}", finished)
    index = store.index()
    files = (file for tile in index.tiles for file in (store_path / tile / "cutout").rglob("*"))
    n_bytes = sum(file.stat().st_size for file in files if file.is_file())
    return ExtractSummary(
        tiles=len(index.tiles),
        sources=index.n_sources,
        skipped_tiles=len(jobs) - len(missing),
        off_tile=len(off_tile),
        bytes_per_cutout=n_bytes / max(index.n_sources, 1),
        notes=tuple(sorted(notes)),
    )


def _extract_tile(
    store_path: Path,
    tile_id: str,
    bands: dict[str, AnyPath] | None,
    sources: Sources,
    ebv_map: str,
) -> list[str]:
    """Write one tile; return notes on its mosaics."""
    started = time.monotonic()
    store = CutoutStore.open(store_path)
    if bands is None:
        tile, y_N, x_N = None, np.full(len(sources), np.nan), np.full(len(sources), np.nan)
        attributes: dict[str, Any] = {"missing_bands": list(store.survey.band_names)}
        step_C = np.zeros(len(store.survey.bands), dtype=np.float32)
    else:
        tile = read_tile(bands.get(ALL_BANDS, bands), store.survey)
        check_pixel_scale(tile.tile_id, tile.pixel_scale_arcsec, store.survey)
        y_N, x_N = tile.sky_to_pixel(sources.ra_N, sources.dec_N)
        order_N = np.lexsort((x_N, y_N))  # neighbours in the shard are neighbours on the tile
        sources, y_N, x_N = sources[order_N], y_N[order_N], x_N[order_N]
        attributes = {
            "missing_bands": list(tile.missing_bands),
            "wcs": wcs_text(tile.wcs),
            "shape_HW": list(tile.shape_HW),
        }
        step_C = rounding_step(tile.err_CHW)
    attributes["mosaics"] = mosaics_stamp(bands)
    n_without = int(np.isnan(sources.ebv_N).sum())
    counts = {"source list": len(sources) - n_without, describe_map(ebv_map): n_without}
    attributes["ebv_from"] = {origin: n for origin, n in counts.items() if n}
    sources = fill_ebv(sources, ebv_map)
    size, n_bands = store.cutout_size, len(step_C)
    # One array for all shards: allocating new memory costs as much as copying.
    cutouts = np.empty((min(store.shard_len, len(sources)), n_bands, size, size), np.float32)
    if store.has_tile(tile_id):
        return []  # another process of a job that Slurm took for dead was quicker
    skies: list[NDArray[np.float32]] = []
    with store.new_tile(tile_id, len(sources), attributes) as writer:
        for start in range(0, len(sources), store.shard_len):
            rows = slice(start, start + store.shard_len)
            photometry = _measure(tile, y_N, x_N, rows, store.survey)
            cutout_NCSS = cutouts[: len(y_N[rows])]
            if tile is None:
                cutout_NCSS[:] = np.nan
            else:
                extract_cutouts(tile.image_CHW, y_N[rows], x_N[rows], size, cutout_NCSS)
            if store.survey.subtract_sky:  # an unknown sky (NaN) leaves neither flux nor image
                cutout_NCSS -= photometry.sky_NC[:, :, None, None]
            else:
                skies.append(photometry.sky_NC)
            round_pixels(cutout_NCSS, step_C)
            measured = Measurements(
                y_N=y_N[rows],
                x_N=x_N[rows],
                flux_NCR=photometry.flux_NCR.astype(np.float32),
                flux_err_NCR=photometry.flux_err_NCR.astype(np.float32),
                kron_flux_NC=photometry.kron_flux_NC,
                kron_flux_err_NC=photometry.kron_flux_err_NC,
                flags_NC=photometry.flags_NC.astype(np.uint16),
            )
            writer.write_shard(cutout_NCSS, sources[rows], measured)
        notes: list[str] = []
        if tile is not None:
            notes = [f"no mosaic of band {band}" for band in tile.missing_bands]
            if skies:
                notes += _note_sky(np.concatenate(skies), noise_weights(tile.err_CHW), store.survey)
            notes = [f"tile '{tile_id}': {note}" for note in (*notes, *tile.notes)]
        if notes:  # kept, to be shown when the command is run again
            writer.attributes["notes"] = notes
    seconds = time.monotonic() - started
    LOG.debug("extract: tile %s: %d sources in %.2f s", tile_id, len(sources), seconds)
    return notes


def _note_sky(
    sky_NC: NDArray[np.float32], weight_C: NDArray[np.float64], survey: Survey
) -> list[str]:
    """Return a note if sky remains in the cutouts: the network would see it as light."""
    has_sky_C = np.isfinite(sky_NC).any(axis=0)
    level_C = np.zeros(sky_NC.shape[1])
    level_C[has_sky_C] = np.abs(np.nanmedian(sky_NC[:, has_sky_C], axis=0))
    level_C *= np.sqrt(weight_C)
    worst = int(np.argmax(level_C))
    if level_C[worst] < MAX_SKY_SIGMA:
        return []
    band = survey.band_names[worst]
    return [
        f"the cutouts hold a sky of {level_C[worst]:.1f} sigma per pixel in {band}; set "
        f"subtract_sky: true in the survey's YAML file to remove it"
    ]


def _measure(
    tile: Tile | None, y_N: NDArray, x_N: NDArray, rows: slice, survey: Survey
) -> Photometry:
    if tile is not None:
        return forced_photometry(tile, y_N[rows], x_N[rows], survey, field_K=(y_N, x_N))
    y_N = y_N[rows]
    n, n_bands, n_radii = len(y_N), len(survey.bands), len(survey.aperture_radii_arcsec)
    nothing = PhotFlag.OFF_TILE | PhotFlag.NO_DATA
    return Photometry(
        flux_NCR=np.full((n, n_bands, n_radii), np.nan),
        flux_err_NCR=np.full((n, n_bands, n_radii), np.nan),
        kron_flux_NC=np.full((n, n_bands), np.nan, np.float32),
        kron_flux_err_NC=np.full((n, n_bands), np.nan, np.float32),
        flags_NC=np.full((n, n_bands), int(nothing), dtype=np.int32),
        sky_NC=np.full((n, n_bands), np.nan),
    )


def wcs_text(wcs: Any) -> dict[str, str] | None:
    """Return a WCS as text: a FITS header, or the ASDF form of a gwcs; None if there is none."""
    if wcs is None:
        return None
    if hasattr(wcs, "to_header_string"):
        return {"fits_header": wcs.to_header_string(relax=True)}
    import asdf

    stream = io.BytesIO()
    asdf.AsdfFile({"wcs": wcs}).write_to(stream, all_array_storage="inline")
    # The history lists the extensions in use, in an order that varies between runs.
    text = re.sub(r"(?m)^history:\n(?:[ -].*\n)*", "", stream.getvalue().decode())
    return {"asdf": text}


def _check_same_mosaics(
    store: CutoutStore,
    tile_id: str,
    bands: dict[str, AnyPath] | None,
    attributes: dict[str, Any],
) -> None:
    if attributes.get("mosaics") != mosaics_stamp(bands):
        raise StoreError(
            f"{store.path}: the mosaics of tile '{tile_id}' have changed since it was extracted; "
            f"choose another --store or delete that one"
        )


def mosaics_stamp(bands: dict[str, AnyPath] | None) -> dict[str, list[Any]]:
    """Identify the mosaics by size and the date of a file or the ETag of an object."""
    # Objects as they were listed: `fetched` reads only that version.
    return {band: [*version_of(path)] for band, path in (bands or {}).items()}


def _sources_digest(sources: Sources, ebv_map: str) -> str:
    order_N = np.argsort(sources.source_id_N)
    digest = hashlib.sha256()
    for values_N in (sources.source_id_N, sources.ra_N, sources.dec_N, sources.z_spec_N):
        digest.update(values_N[order_N].tobytes())
    digest.update(sources.ebv_N[order_N].tobytes())
    if np.isnan(sources.ebv_N).any():
        digest.update(ebv_map.encode())
    return digest.hexdigest()
