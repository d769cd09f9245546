"""Colour composites of sources, from a store."""

from collections.abc import Collection, Mapping

import numpy as np
from astropy.visualization import make_lupton_rgb
from numpy.typing import NDArray

from photozhpc.errors import StoreError
from photozhpc.store import CutoutStore, ShardKey

_SOFTENING = 8.0  # Q of Lupton et al. (2004)
_STRETCH_SIGMA = 12.0
_WITHOUT_DATA = 110  # grey


def channels(band_names: tuple[str, ...]) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Return a description of the composite, and the bands of red, green and blue."""
    n = len(band_names)
    thirds = ((n - 1,), tuple(range((n - 1) // 2, n // 2 + 1)), (0,))
    if n == 1:
        return f"{band_names[0]} in grey", thirds
    names = [" + ".join(band_names[at] for at in third) for third in thirds]
    return f"red {names[0]}, green {names[1]}, blue {names[2]}", thirds


def read_sources_of(
    store: CutoutStore, ids: Collection[int], tile_of: Mapping[int, str] | None = None
) -> dict[int, NDArray[np.float32]]:
    """Return the cutouts of sources by source_id, without sources that are not in the store.

    Args:
        tile_of: their tiles; None: every tile is searched until all are found.

    Raises:
        StoreError: the store is damaged, or holds none of them.
    """
    n_sources = store.tiles()
    ids_of_tile: dict[str, set[int]] = {}
    if tile_of is None:
        ids_of_tile = {tile_id: set(ids) for tile_id in n_sources}
    else:
        for source_id in ids:
            ids_of_tile.setdefault(tile_of[source_id], set()).add(source_id)
    cutouts: dict[int, NDArray[np.float32]] = {}
    for tile_id, wanted in ids_of_tile.items():
        for index in range(-(-n_sources.get(tile_id, 0) // store.shard_len)):
            if wanted <= set(cutouts):
                break
            key = ShardKey(tile_id, index)
            id_N = store.read_sources(key).source_id_N
            for row in np.flatnonzero(np.isin(id_N, list(wanted))):
                cutouts[int(id_N[row])] = store.read_cutouts(key, slice(row, row + 1))[0]
    if not cutouts:
        raise StoreError(f"{store.path}: holds none of these sources")
    return cutouts


def composites(cutouts: Mapping[int, NDArray[np.float32]]) -> dict[int, NDArray[np.uint8]]:
    """Return images (S, S, 3), north up if the cutouts are, by source_id.

    All have the same asinh scale (Lupton et al. 2004), in units of the noise of each channel: the
    lower quartile over the images of 1.4826 MAD, which bright sources do not affect. The sky of
    each image, the median of its faintest side, is subtracted, as mosaics may include it.

    Args:
        cutouts: by source_id, (C, S, S), the bluest band first.
    """
    n_bands = len(next(iter(cutouts.values())))
    _, thirds = channels(("",) * n_bands)
    planes = {
        source_id: np.stack([_without_sky(_mean(image_CSS[list(third)])) for third in thirds])
        for source_id, image_CSS in cutouts.items()
    }
    noise_3 = _noise(list(planes.values()))
    return {i: _rgb(plane_3SS / noise_3[:, None, None]) for i, plane_3SS in planes.items()}


def _mean(image_CSS: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean of the bands that have data, pixel by pixel; NaN where none has."""
    has_data = np.isfinite(image_CSS)
    total = np.where(has_data, image_CSS, 0).sum(axis=0, dtype=np.float64)
    count = has_data.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _without_sky(image_SS: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract the median of an image's faintest side that has data."""
    n = max(len(image_SS) // 8, 1)
    sides = (image_SS[:n], image_SS[-n:], image_SS[:, :n], image_SS[:, -n:])
    skies = [np.median(data) for side in sides if len(data := side[np.isfinite(side)])]
    return image_SS - min(skies) if skies else image_SS


def _noise(planes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    sigma_3 = np.ones(3)
    for channel in range(3):
        sigmas = []
        for plane in planes:
            values = plane[channel][np.isfinite(plane[channel])]
            if len(values):
                sigmas.append(1.4826 * np.median(np.abs(values - np.median(values))))
        positive = [sigma for sigma in sigmas if sigma > 0]
        if positive:
            sigma_3[channel] = np.quantile(positive, 0.25)
    return sigma_3


def _rgb(image_3SS: NDArray[np.float64]) -> NDArray[np.uint8]:
    has_data: NDArray[np.bool_] = np.all(np.isfinite(image_3SS), axis=0)
    red, green, blue = np.where(np.isfinite(image_3SS), image_3SS, 0)[:, ::-1]  # y goes up
    rgb = make_lupton_rgb(red, green, blue, minimum=-1.0, stretch=_STRETCH_SIGMA, Q=_SOFTENING)
    rgb[~has_data[::-1]] = _WITHOUT_DATA
    return np.asarray(rgb)
