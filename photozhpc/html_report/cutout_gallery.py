"""Colour composites of sources, from the store that a catalogue was made from."""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from astropy.visualization import make_lupton_rgb
from numpy.typing import NDArray
from PIL import Image

from photozhpc.catalog.photoz_catalog import PhotozFlag
from photozhpc.errors import StoreError
from photozhpc.evaluation.catalog_columns import BandColumns, floats
from photozhpc.store import CutoutStore, ShardKey
from photozhpc.survey import ab_magnitude

_SOFTENING = 8.0  # Q of Lupton et al. (2004)
_STRETCH_SIGMA = 12.0
_WITHOUT_DATA = 110  # grey


@dataclass(frozen=True)
class Cutout:
    """A source of a gallery.

    Attributes:
        png: its composite; None: it is not in the store.
        facts: its values in the catalogue, line by line.
        alt: the same on one line.
    """

    source_id: int
    png: bytes | None
    facts: tuple[str, ...]
    alt: str


def channels(band_names: tuple[str, ...]) -> tuple[str, tuple[tuple[int, ...], ...]]:
    """Return a description of the composite, and the bands of red, green and blue."""
    n = len(band_names)
    thirds = ((n - 1,), tuple(range((n - 1) // 2, n // 2 + 1)), (0,))
    if n == 1:
        return f"{band_names[0]} in grey", thirds
    names = [" + ".join(band_names[at] for at in third) for third in thirds]
    return f"red {names[0]}, green {names[1]}, blue {names[2]}", thirds


def make_gallery(
    store: CutoutStore, table: pa.Table, bands: list[BandColumns], limit: int
) -> list[Cutout]:
    """Return composites of the first `limit` rows of a catalogue.

    All have the same asinh scale (Lupton et al. 2004), in units of the noise of each channel: the
    lower quartile over the images of 1.4826 MAD, which bright sources do not affect. The sky of
    each image, the median of its faintest side, is subtracted, as mosaics may include it.

    Raises:
        StoreError: the store is damaged, or holds other sources.
    """
    table = table.slice(0, limit)
    ids = table.column("source_id").to_pylist()
    tiles = table.column("tile_id").to_pylist()
    images = _read(store, dict(zip(ids, tiles, strict=True)))
    _, thirds = channels(store.survey.band_names)
    planes = {
        source_id: np.stack([_without_sky(_mean(image_CSS[list(third)])) for third in thirds])
        for source_id, image_CSS in images.items()
    }
    noise_3 = _noise(list(planes.values()))
    captions = _captions(table, bands)
    return [
        Cutout(
            source_id,
            _composite(planes[source_id] / noise_3[:, None, None]) if source_id in planes else None,
            *captions[row],
        )
        for row, source_id in enumerate(ids)
    ]


def _read(store: CutoutStore, tile_of: dict[int, str]) -> dict[int, NDArray[np.float32]]:
    """Return the cutouts of sources by source_id, without sources that are not in the store."""
    ids_of_tile: dict[str, set[int]] = {}
    for source_id, tile_id in tile_of.items():
        ids_of_tile.setdefault(tile_id, set()).add(source_id)
    cutouts: dict[int, NDArray[np.float32]] = {}
    n_sources = store.tiles()
    for tile_id, ids in ids_of_tile.items():
        for index in range(-(-n_sources.get(tile_id, 0) // store.shard_len)):
            key = ShardKey(tile_id, index)
            id_N = store.read_sources(key).source_id_N
            for row in np.flatnonzero(np.isin(id_N, list(ids))):
                cutouts[int(id_N[row])] = store.read_cutouts(key, slice(row, row + 1))[0]
            if ids <= set(cutouts):
                break
    if not cutouts:
        raise StoreError(f"{store.path}: holds none of the sources of the gallery")
    return cutouts


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


def _composite(image_3SS: NDArray[np.float64]) -> bytes:
    has_data: NDArray[np.bool_] = np.all(np.isfinite(image_3SS), axis=0)
    red, green, blue = np.where(np.isfinite(image_3SS), image_3SS, 0)[:, ::-1]  # y goes up
    rgb = make_lupton_rgb(red, green, blue, minimum=-1.0, stretch=_STRETCH_SIGMA, Q=_SOFTENING)
    rgb[~has_data[::-1]] = _WITHOUT_DATA
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _captions(table: pa.Table, bands: list[BandColumns]) -> list[tuple[tuple[str, ...], str]]:
    def column(name: str) -> NDArray[np.float64]:
        return floats(table, name) if name in table.column_names else np.full(len(table), np.nan)

    z_N, flags_N = floats(table, "photoz"), table.column("photoz_flags").to_numpy()
    low_N, high_N, ood_N = map(column, ("photoz_low68", "photoz_high68", "photoz_ood"))
    last = bands[-1] if bands else None
    mag_N = ab_magnitude(column(last.total or last.flux if last else ""))
    captions = []
    for z, low, high, ood, mag, flags in zip(
        z_N, low_N, high_N, ood_N, mag_N, flags_N, strict=True
    ):
        facts = [f"z = {z:.2f}" if np.isfinite(z) else "no redshift"]
        if np.isfinite(low) and np.isfinite(high):
            facts[0] += f" ({low:.2f} to {high:.2f})"
        if last is not None:
            facts.append(f"{last.label} {mag:.1f}" if np.isfinite(mag) else f"no {last.label}")
        if np.isfinite(ood):
            facts.append(f"OOD {ood:.2f}")
        if flags:
            facts.append(" ".join(flag_names(int(flags))))
        captions.append((tuple(facts), "; ".join(facts)))
    return captions


def flag_names(value: int) -> list[str]:
    """Return the names of the bits of photoz_flags that are set."""
    names = [str(flag.name) for flag in PhotozFlag if value & flag]
    unknown = value & ~sum(PhotozFlag)
    return [*names, f"unknown {unknown}"] if unknown else names
