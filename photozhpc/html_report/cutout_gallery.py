"""Colour composites of sources, from the store that a catalogue was made from."""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from photozhpc.catalog.photoz_catalog import PhotozFlag
from photozhpc.evaluation.catalog_columns import BandColumns, floats
from photozhpc.figures.composites import composites, read_sources_of
from photozhpc.store import CutoutStore
from photozhpc.survey import ab_magnitude


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


def make_gallery(
    store: CutoutStore, table: pa.Table, bands: list[BandColumns], limit: int
) -> list[Cutout]:
    """Return composites of the first `limit` rows of a catalogue.

    Raises:
        StoreError: the store is damaged, or holds other sources.
    """
    table = table.slice(0, limit)
    ids = table.column("source_id").to_pylist()
    tiles = table.column("tile_id").to_pylist()
    images = composites(read_sources_of(store, ids, dict(zip(ids, tiles, strict=True))))
    captions = _captions(table, bands)
    return [
        Cutout(source_id, _png(images[source_id]) if source_id in images else None, *captions[row])
        for row, source_id in enumerate(ids)
    ]


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
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
