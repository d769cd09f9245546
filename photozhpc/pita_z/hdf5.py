"""HDF5 catalogues of the reference code `pita-z` -> a store.

pita-z reads these datasets (pita_z/data_modules), which its authors' script wrote
(deep_learning_photoz, scripts/CatalogCreation/creating_training_catalogs.py; both at
github.com/ashodkh):

    images                          (N, C, S, S)  float16, in the unit of the mosaics
    ebvs                            (N,)          E(B-V), magnitudes
    redshifts                       (N,)          -1 where there is none
    use_redshift_F or use_redshift  (N,)          1: a label (one in F of them is kept); optional
    dered_color_features            (N, C)        see `FluxFeatures`; optional
    fluxes                          (N, C)        catalogue fluxes, microjansky; optional
    custom_ids, ra, dec             (N,)          optional
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import StoreError, one_line
from photozhpc.files.disk import read_fault, remove_stale_partials
from photozhpc.mosaic.measure import Photometry, forced_photometry
from photozhpc.mosaic.photometry import PhotFlag
from photozhpc.mosaic.tile import Tile
from photozhpc.pita_z.units import NJY_PER_UJY, FluxFeatures, njy_per_count
from photozhpc.sources.read import Sources, usable_ebv
from photozhpc.sources.redshifts import Remarks, usable_redshifts
from photozhpc.store.cutout_store import CutoutStore, local_path
from photozhpc.store.schema import Measurements
from photozhpc.survey import Survey

FEATURE_NAMES = (
    "dered_color_features",
    "dered_color_feature",
    "dereddened_features",
    "features_dr",
)
ID_NAMES = ("custom_ids", "source_id")
SHARDS_PER_TILE = 8  # a killed import continues after the last finished tile
_BLOCK_LEN = 256  # cutouts that are read and measured at once
_MAX_FEATURE_ERROR_DEX = 0.02  # float16 holds the features to 0.002


@dataclass(frozen=True)
class ImportSummary:
    """The result of an import.

    Attributes:
        sources, labelled: in the finished store.
        skipped: sources that were there already.
        notes: remarks for the user about the file and its conversion.
    """

    sources: int
    labelled: int
    skipped: int
    notes: tuple[str, ...]


def import_hdf5(
    path: str | Path,
    survey: Survey,
    store_path: str | Path,
    label_f: int = 1,
    features: FluxFeatures | None = None,
    zero_point_ab_C: Sequence[float] | None = None,
    shard_len: int = 2048,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportSummary:
    """Copy a catalogue of the reference into a store; run it again to continue after a stop.

    - Pixels: multiplied by `njy_per_count`, not rounded; NaN where they are not finite, or a band
      is 0 everywhere (the source is off that band's mosaic).
    - z_spec: the redshift where it is positive and `use_redshift_<label_f>` is 1, else NaN; in a
      file without such flags every positive redshift is a label.
    - Fluxes: from the features, reddened again, so that training sees the file's colours; else
      `fluxes`; else measured on the cutouts. A catalogue's flux is a total flux and is written
      for every aperture radius.
    - Flux errors: the pixel noise of each cutout (1.4826 MAD about its median) over each
      aperture's area, assuming independent pixels.
    - source_id: `custom_ids` or `source_id`, else the row number.
    - ra, dec: NaN if the file has none (a HATS export needs them).

    Memory: one shard of cutouts and its compression, 1.4 GB for 2048 sources of 108 px (measured),
    whatever the file's size; the other columns are read whole.

    Args:
        survey: its bands are the channels, in order.
        label_f: selects one of the reference's label fractions.
        features: definition of `dered_color_features`; default: the one that agrees with
            `fluxes`, or `FluxFeatures()` if the file has none.
        zero_point_ab_C: see `njy_per_count`.
        progress: called with (sources done, all sources).

    Raises:
        StoreError: h5py is not installed; the file is missing, damaged, or lacks a dataset; or
            the store holds something else.
    """
    path = Path(path)
    scale_C = njy_per_count(survey, zero_point_ab_C)
    with _open(path) as file:
        images = _images(path, file, survey)
        n = len(images)
        sources, notes = _read_sources(path, file, survey, n, label_f)
        catalogue_flux_NC, note = _catalogue_flux(path, file, survey, sources.ebv_N, features)
        store = CutoutStore.create(store_path, survey, int(images.shape[-1]), shard_len)
        remove_stale_partials(local_path(store.path))
        remove_stale_partials(local_path(store.path) / ".manifests")
        stat = path.stat()
        stamp = [stat.st_size, stat.st_mtime_ns, label_f, repr(features), scale_C.tolist()]
        edges = [*range(0, n, SHARDS_PER_TILE * shard_len), n]
        stem = re.sub(r"[^A-Za-z0-9_]", "-", path.stem)
        tiles = {f"{stem}-{a:09d}": (a, b) for a, b in pairwise(edges)}
        store.declare({tile_id: [*rows, *stamp] for tile_id, rows in tiles.items()})
        present = store.tiles()
        done = skipped = sum(present.values())
        progress(done, n)
        for tile_id, (first, last) in tiles.items():
            if tile_id in present:
                continue
            attributes = {"missing_bands": [], "hdf5": str(path), "rows": [first, last]}
            with store.new_tile(tile_id, last - first, attributes) as writer:
                for start in range(first, last, shard_len):
                    rows = slice(start, min(start + shard_len, last))
                    cutout_NCSS, measured = _shard(path, images, rows, survey, scale_C)
                    if catalogue_flux_NC is not None:
                        measured.flux_NCR[:] = catalogue_flux_NC[rows, :, None]
                        total_NC = catalogue_flux_NC[rows].astype(np.float32)
                        measured = replace(measured, kron_flux_NC=total_NC)
                    writer.write_shard(cutout_NCSS, sources[rows], measured)
                    done += rows.stop - rows.start
                    progress(done, n)
    labelled = int(np.isfinite(sources.z_spec_N).sum())
    return ImportSummary(len(store), labelled, skipped, (*notes, note))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise StoreError(
            "reading HDF5 needs h5py, which is not installed; pip install 'photozhpc[hdf5]'"
        ) from error
    if not path.is_file():
        raise StoreError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise StoreError(
            read_fault(path, error) or f"{path}: not an HDF5 file, or cut short ({one_line(error)})"
        ) from error
    with file:
        yield file


def _images(path: Path, file: Any, survey: Survey) -> Any:
    images = _dataset(path, file, "images")
    n_bands = len(survey.bands)
    shape = images.shape
    if len(shape) != 4 or shape[1] != n_bands or shape[2] != shape[3] or not shape[0]:
        raise StoreError(
            f"{path}: 'images' has shape {shape}, expected (N, {n_bands}, S, S) with the bands "
            f"{' '.join(survey.band_names)} of survey '{survey.name}'; choose another --survey"
        )
    return images


def _read_sources(
    path: Path, file: Any, survey: Survey, n: int, label_f: int
) -> tuple[Sources, list[str]]:
    """Return the sources of the file, and notes on them."""
    notes = []
    redshift_N = _column(path, file, "redshifts", (n,))
    ebv_N = _column(path, file, "ebvs", (n,))
    label_N = np.ones(n, bool)
    flag = next((k for k in (f"use_redshift_{label_f}", "use_redshift") if k in file), None)
    flags = sorted(name for name in file if name.startswith("use_redshift"))
    if flag is None or (flag == "use_redshift" and label_f != 1):
        if flags or label_f != 1:
            raise StoreError(
                f"{path}: has no 'use_redshift_{label_f}'; its labels are "
                f"{', '.join(flags) or 'not flagged'}; choose another --label-f"
            )
        notes.append("no use_redshift: every positive redshift is a label")
    else:
        label_N &= _column(path, file, flag, (n,)) == 1
    id_name = next((name for name in ID_NAMES if name in file), None)
    id_N = np.arange(n) if id_name is None else _column(path, file, id_name, (n,), "iu")
    if len(np.unique(id_N)) != n:
        raise StoreError(
            f"{path}: '{id_name}': an identifier appears twice; give every source its own"
        )
    if id_N.max() > np.iinfo(np.int64).max:
        raise StoreError(
            f"{path}: '{id_name}' holds {id_N.max()}, which does not fit an int64; renumber the "
            "sources"
        )
    nowhere_N = np.full(n, np.nan)
    positions = [_column(path, file, k, (n,)) if k in file else nowhere_N for k in ("ra", "dec")]
    if positions[0] is nowhere_N:
        notes.append("no positions: ra and dec are NaN")
    remarks = Remarks()
    z_spec_N = np.where(label_N, redshift_N, np.nan)
    z_spec_N = usable_redshifts(z_spec_N, "redshifts", remarks, survey.z_spec_max)
    ebv_N = np.nan_to_num(usable_ebv(ebv_N, "ebvs", remarks))
    notes += remarks.lines()
    sources = Sources(
        source_id_N=id_N.astype(np.int64),
        ra_N=positions[0].astype(np.float64),
        dec_N=positions[1].astype(np.float64),
        z_spec_N=z_spec_N.astype(np.float32),
        ebv_N=ebv_N.astype(np.float32),
    )
    return sources, notes


def _catalogue_flux(
    path: Path, file: Any, survey: Survey, ebv_N: NDArray, features: FluxFeatures | None
) -> tuple[NDArray[np.float64] | None, str]:
    """Return the catalogue's fluxes (nJy, not dereddened), None without any, and a note on them."""
    shape = (len(ebv_N), len(survey.bands))
    r_C = np.array([band.extinction_r for band in survey.bands])
    gain_NC = 10 ** (0.4 * ebv_N.astype(np.float64)[:, None] * r_C)
    flux_NC = _column(path, file, "fluxes", shape) * NJY_PER_UJY if "fluxes" in file else None
    name = next((name for name in FEATURE_NAMES if name in file), None)
    if name is None:
        if flux_NC is None:
            return None, "no colours and no fluxes: measured on the cutouts"
        return flux_NC, "fluxes: the file's, the same under every aperture radius"
    feature_NC = _column(path, file, name, shape)
    if features is None and flux_NC is not None:
        features = _best_features(path, name, feature_NC, flux_NC * gain_NC)
    features = features or FluxFeatures()
    ratio = "redder over bluer" if features.red_over_blue else "bluer over redder"
    band = survey.band_names[features.flux_band]
    note = f"fluxes: from '{name}' ({ratio}, flux of {band}), the same under every aperture radius"
    return features.to_flux(feature_NC) / gain_NC, note


def _best_features(path: Path, name: str, feature_NC: NDArray, flux_NC: NDArray) -> FluxFeatures:
    """Return the definition with which the features follow from the dereddened fluxes."""
    definitions = product((True, False), range(flux_NC.shape[1]))
    candidates = [FluxFeatures(*definition) for definition in definitions]

    def error_dex(candidate: FluxFeatures) -> float:
        difference_NC = np.abs(candidate.from_flux(flux_NC) - feature_NC)
        usable_N = np.isfinite(difference_NC).all(axis=1)
        return float(np.median(difference_NC[usable_N].max(axis=1))) if usable_N.any() else np.inf

    best = min(candidates, key=error_dex)
    if error_dex(best) > _MAX_FEATURE_ERROR_DEX:
        raise StoreError(
            f"{path}: '{name}' does not follow from 'fluxes' in microjansky and 'ebvs' "
            f"(they differ by at least {error_dex(best):.3g} dex); pass --colours and --flux-band"
        )
    return best


def _shard(
    path: Path, images: Any, rows: slice, survey: Survey, scale_C: NDArray[np.float32]
) -> tuple[NDArray[np.float32], Measurements]:
    """Return the cutouts of some rows, nJy, and the measurements on them."""
    n = rows.stop - rows.start
    cutout_NCSS = np.empty((n, *images.shape[1:]), np.float32)
    parts = []
    for start in range(0, n, _BLOCK_LEN):
        block = slice(start, min(start + _BLOCK_LEN, n))
        try:
            raw_BCSS = images[rows.start + block.start : rows.start + block.stop]
        except (OSError, RuntimeError) as error:
            raise StoreError(f"{path}: 'images' cannot be read ({one_line(error)})") from error
        cutout_BCSS = raw_BCSS.astype(np.float32) * scale_C[:, None, None]
        empty_BC = ~cutout_BCSS.any(axis=(2, 3))
        cutout_BCSS[~np.isfinite(cutout_BCSS) | empty_BC[:, :, None, None]] = np.nan
        cutout_NCSS[block] = cutout_BCSS
        parts.append(_measure(cutout_BCSS, survey))
    centre_N = np.full(n, float(images.shape[-1] // 2))  # each cutout is its own image
    flux_NCR, flux_err_NCR, flags_NC = (np.concatenate(part) for part in zip(*parts, strict=True))
    return cutout_NCSS, Measurements(centre_N, centre_N, flux_NCR, flux_err_NCR, flags_NC)


def _measure(
    cutout_NCSS: NDArray[np.float32], survey: Survey
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint16]]:
    """Return (flux_NCR, flux_err_NCR, flags_NC) of the source in the middle of each cutout.

    The cutouts are stacked vertically, with gaps as wide as the largest circle's reach, and
    measured like a mosaic.
    """
    n, n_bands, size, _ = cutout_NCSS.shape
    scale = survey.pixel_scale_arcsec
    if survey.sky_annulus_arcsec and survey.sky_annulus_arcsec[1] / scale > size / 2:
        survey = replace(survey, sky_annulus_arcsec=())
    reach_arcsec = max(*survey.aperture_radii_arcsec, *survey.sky_annulus_arcsec)
    step = max(size, size // 2 + int(reach_arcsec / scale) + 2)
    noise_NC = _pixel_noise(cutout_NCSS)
    image_CNTS = np.full((n_bands, n, step, size), np.nan, np.float32)
    image_CNTS[:, :, :size] = cutout_NCSS.swapaxes(0, 1)
    image_CHW = image_CNTS.reshape(n_bands, n * step, size)
    err_CHW = np.repeat(noise_NC.T, step, axis=1)[:, :, None] * np.ones(size, np.float32)
    tile = Tile(
        tile_id="",
        band_names=survey.band_names,
        image_CHW=image_CHW,
        err_CHW=err_CHW,
        mask_HW=np.zeros(image_CHW.shape[1:], np.bool_),
        wcs=None,
        pixel_area_arcsec2=scale**2,
    )
    y_N = np.arange(n) * step + size // 2
    x_N = np.full(n, size // 2)
    photometry: Photometry = forced_photometry(tile, y_N, x_N, survey, with_kron=False)
    # The gaps are the edge for a circle that leaves its cutout.
    flags_NC = photometry.flags_NC.astype(np.uint16)
    missing_NC = ~np.isfinite(noise_NC)
    flags_NC[missing_NC] |= np.uint16(PhotFlag.NO_DATA)
    return photometry.flux_NCR, photometry.flux_err_NCR, flags_NC


def _pixel_noise(cutout_NCSS: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (N, C) 1.4826 MAD of each cutout's pixels about their median; NaN without pixels."""
    flat_NCP = cutout_NCSS.reshape(*cutout_NCSS.shape[:2], -1)
    noise_NC = np.full(flat_NCP.shape[:2], np.nan, np.float32)
    for index in np.ndindex(noise_NC.shape):
        pixels_P = flat_NCP[index][np.isfinite(flat_NCP[index])]
        if pixels_P.size:
            noise_NC[index] = 1.4826 * np.median(np.abs(pixels_P - np.median(pixels_P)))
    return noise_NC


def _column(
    path: Path, file: Any, name: str, shape: tuple[int, ...], kinds: str = "iufb"
) -> NDArray:
    """Return a whole dataset as float64 (integers as they are)."""
    dataset = _dataset(path, file, name, kinds)
    if dataset.shape != shape and dataset.shape != (*shape, 1):
        raise StoreError(
            f"{path}: '{name}' has shape {dataset.shape}, expected {shape}: one row per image"
        )
    try:
        values = dataset[:].reshape(shape)
    except (OSError, RuntimeError) as error:
        raise StoreError(f"{path}: '{name}' cannot be read ({one_line(error)})") from error
    return values if values.dtype.kind in "iu" else values.astype(np.float64)


def _dataset(path: Path, file: Any, name: str, kinds: str = "iufb") -> Any:
    if name not in file:
        raise StoreError(f"{path}: has no dataset '{name}'; it has {', '.join(file) or 'nothing'}")
    dataset = file[name]
    kind = getattr(getattr(dataset, "dtype", None), "kind", None)
    if kind is None or kind not in kinds:
        what = "integers" if kinds == "iu" else "numbers"
        raise StoreError(f"{path}: '{name}' must be a dataset of {what}, it is {dataset}")
    return dataset
