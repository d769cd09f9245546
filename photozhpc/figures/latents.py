"""Latents and redshifts of a random subset of a store, with its fluxes and a few images."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.files.objects import AnyPath
from photozhpc.model.augment import centre_crop
from photozhpc.model.checkpoint import load_checkpoint
from photozhpc.model.engine import Engine, usable
from photozhpc.model.photometry import check_measured
from photozhpc.model.pita import Fluxes
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.survey import Survey, ab_magnitude

MAX_IMAGES = 2000  # sources whose image is kept for the figure: 30 MB
IMAGE_SIZE = 36  # pixels: 2 arcsec in roman-sim
_FEATURE_APERTURE_ARCSEC = 0.4  # the default of the colour loss
_BLOCK_LEN = 256


@dataclass(frozen=True)
class Latents:
    """A random subset of a store as a model sees it, in the store's order.

    Attributes:
        checkpoint_path, checkpoint_sha256: the model.
        store_path, survey, seed: the subset.
        z_spec_N: labels of the store; NaN = unlabelled.
        flux_NCR: dereddened flux in every aperture, nJy.
        image_row_G: rows of N whose image is kept.
        image_G3HW: their centres in the last, a middle and the first band, nJy.
    """

    checkpoint_path: Path
    checkpoint_sha256: str
    store_path: AnyPath
    survey: Survey
    seed: int
    source_id_N: NDArray[np.int64]
    latent_ND: NDArray[np.float32]
    z_phot_N: NDArray[np.float32]
    z_spec_N: NDArray[np.float32]
    flux_NCR: NDArray[np.float32]
    image_row_G: NDArray[np.intp]
    image_G3HW: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.source_id_N)

    def take(self, keep_N: NDArray[np.bool_]) -> "Latents":
        """Return the sources where keep_N is true."""
        kept_G = keep_N[self.image_row_G]
        new_row_N = np.cumsum(keep_N) - 1
        names = ("source_id_N", "latent_ND", "z_phot_N", "z_spec_N", "flux_NCR")
        return replace(
            self,
            **{name: getattr(self, name)[keep_N] for name in names},
            image_row_G=new_row_N[self.image_row_G[kept_G]],
            image_G3HW=self.image_G3HW[kept_G],
        )


def read_latents(
    checkpoint_path: str | Path, store_path: str | AnyPath, max_sources: int, seed: int
) -> Latents:
    """Run a model over a random subset of a store, one block of a shard at a time.

    Sources whose cutout the model cannot use are left out. The subset depends only on the store
    and the seed, so that models can be compared on the same sources.

    Raises:
        CheckpointError: missing, damaged, or of other bands or another pixel scale.
        StoreError: missing, damaged or empty.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    store = CutoutStore.open(store_path)
    checkpoint.check_store(store.survey, store.cutout_size)
    check_measured(checkpoint.pita.config.fluxes, store)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = Engine(checkpoint, device, survey=store.survey)
    rng = np.random.default_rng(seed)
    total = len(store)
    if not total:
        raise StoreError(f"{store.path}: holds no sources; run 'photozhpc extract' first")
    chosen_N = np.sort(rng.choice(total, min(max_sources, total), replace=False, shuffle=False))
    pictured_N = np.zeros(len(chosen_N), dtype=bool)
    pictured_N[rng.permutation(len(chosen_N))[:MAX_IMAGES]] = True
    extinction_r_C = np.array([band.extinction_r for band in store.survey.bands])
    columns: list[tuple[NDArray, ...]] = []
    images: list[NDArray[np.float32]] = []
    for rows, sources, measured, cutout_BCSS in _read_blocks(store, chosen_N):
        usable_B = usable(cutout_BCSS, engine.side_pix)
        gain_BC = 10 ** (0.4 * sources.ebv_N[:, None] * extinction_r_C)
        block = (
            sources.source_id_N,
            *_forward(engine, cutout_BCSS, sources.ebv_N, measured),
            sources.z_spec_N,
            (measured.flux_NCR * gain_BC[:, :, None]).astype(np.float32),
            pictured_N[rows],
        )
        columns.append(tuple(column[usable_B] for column in block))
        images.append(_centres(cutout_BCSS[usable_B & pictured_N[rows]]))
    source_id_N, latent_ND, z_phot_N, z_spec_N, flux_NCR, has_image_N = (
        np.concatenate(parts) for parts in zip(*columns, strict=True)
    )
    return Latents(
        checkpoint_path=Path(checkpoint_path),
        checkpoint_sha256=checkpoint.sha256,
        store_path=store.path,
        survey=store.survey,
        seed=seed,
        source_id_N=source_id_N,
        latent_ND=latent_ND,
        z_phot_N=z_phot_N,
        z_spec_N=z_spec_N,
        flux_NCR=flux_NCR,
        image_row_G=np.flatnonzero(has_image_N),
        image_G3HW=np.concatenate(images),
    )


def magnitudes(latents: Latents) -> NDArray[np.float64]:
    """Return mag_NC in the feature aperture, AB, dereddened; NaN where the flux is not positive."""
    return ab_magnitude(latents.flux_NCR[:, :, feature_aperture(latents.survey)])


def concentration(latents: Latents) -> tuple[NDArray[np.float64], str]:
    """Return a proxy for size, for sources of unknown size, and its label.

    It is the last band's magnitude in the smallest aperture minus that in the feature aperture:
    larger for more extended sources.
    """
    radii = latents.survey.aperture_radii_arcsec
    inner, outer = int(np.argmin(radii)), feature_aperture(latents.survey)
    flux_NR = latents.flux_NCR[:, -1]
    label = f"mag(r < {radii[inner]:g}″) − mag(r < {radii[outer]:g}″)"
    return ab_magnitude(flux_NR[:, inner]) - ab_magnitude(flux_NR[:, outer]), label


def feature_aperture(survey: Survey) -> int:
    """Return the index of the aperture whose fluxes are shown: the one nearest to 0.4 arcsec."""
    radii_R = np.array(survey.aperture_radii_arcsec)
    return int(np.argmin(np.abs(radii_R - _FEATURE_APERTURE_ARCSEC)))


def _read_blocks(
    store: CutoutStore, chosen_N: NDArray[np.int64]
) -> Iterator[tuple[slice, Sources, Measurements, NDArray[np.float32]]]:
    """Yield (rows of chosen_N, their sources, photometry, cutout_BCSS), a block at a time.

    Args:
        chosen_N: indices of sources in the whole store, sorted.
    """
    start = 0
    for key, length in store.shard_lengths().items():
        edges = [*range(start, start + length, _BLOCK_LEN), start + length]
        cut = np.searchsorted(chosen_N, edges)
        if cut[0] < cut[-1]:
            sources, measured = store.read_sources(key), store.read_measurements(key)
        for edge, first, last in zip(edges, cut[:-1], cut[1:], strict=False):
            if first < last:
                row_B = chosen_N[first:last] - start
                begin = edge - start
                block_NCSS = store.read_cutouts(key, slice(begin, begin + _BLOCK_LEN))
                cutout_BCSS = block_NCSS[row_B - begin]
                yield slice(first, last), sources[row_B], measured.take(row_B), cutout_BCSS
        start += length


@torch.inference_mode()
def _forward(
    engine: Engine,
    cutout_BCSS: NDArray[np.float32],
    ebv_B: NDArray[np.float32],
    measured: Measurements,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return latent_BD and z_phot_B, computed as inference does."""
    forward, device = engine.forward, engine.device
    ebv = torch.from_numpy(ebv_B).to(device)
    feature_BF, linear_BCHW = forward.encode(torch.from_numpy(cutout_BCSS).to(device), ebv)
    fluxes = None
    if engine.fluxes is not None:
        flux_BCR, err_BCR = (torch.from_numpy(v).to(device) for v in engine.fluxes(measured))
        fluxes = Fluxes(flux_BCR, err_BCR, ebv)
    latent_BD, _ = forward.model.latent(feature_BF, linear_BCHW)
    estimate, _ = forward.model.estimate_from(
        feature_BF, linear_BCHW, forward.point_estimate, fluxes
    )
    return latent_BD.cpu().numpy(), estimate.z_phot_B.cpu().numpy()


def _centres(cutout_BCSS: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return image_B3HW: the red, green and blue of a figure."""
    n_bands, size = cutout_BCSS.shape[1], cutout_BCSS.shape[-1]
    rgb = [n_bands - 1, (n_bands - 1) // 2, 0]
    return centre_crop(cutout_BCSS, min(IMAGE_SIZE, size))[:, rgb]
