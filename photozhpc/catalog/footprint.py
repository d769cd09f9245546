"""The footprint of a catalogue on the sky as a MOC, the IVOA's multi-order coverage map (2.0)."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from astropy import units

from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.photoz_catalog import read_pieces
from photozhpc.files.disk import write_durably

FOOTPRINT_NAME = "footprint.moc.fits"
_FINEST_ORDER = 12  # cells of 0.86 arcmin
_COARSEST_ORDER = 6  # of 55 arcmin
_PER_CELL = 10  # mean number of sources: few cells inside the footprint are then empty
_BATCH_ROWS = 2_000_000


def write_footprint(parts: Sequence[Path], path: Path) -> bool:
    """Write the HEALPix cells (nested, ICRS) that hold a source; return whether there are any.

    The cells are the smallest, of orders 12 to 6, that hold ten sources on average. Memory grows
    with the number of cells, not of sources.

    Raises:
        CatalogError: a part is damaged.
        RunError: the disk is full, or cannot be written.
    """
    run_notes = RunNotes.beside(parts[0])
    footprint, n_sources = None, 0
    waiting: list[pa.Table] = []
    for part in parts:
        waiting += read_pieces(part, ["ra", "dec"], run_notes)
        if sum(map(len, waiting)) >= _BATCH_ROWS or part is parts[-1]:
            table, waiting = pa.concat_tables(waiting), []
            cells, n_placed = _cells(table)
            footprint = cells if footprint is None else footprint.union(cells)
            n_sources += n_placed
    if footprint is None or not n_sources:
        return False
    order = _FINEST_ORDER
    while order > _COARSEST_ORDER:
        n_cells = footprint.sky_fraction * 12 * 4**order
        if n_sources >= _PER_CELL * n_cells:
            break
        order -= 1
        footprint = footprint.degrade_to_order(order)
    content = io.BytesIO()
    footprint.serialize("fits").writeto(content)
    write_durably(path, content.getvalue())
    return True


def _cells(table: pa.Table) -> tuple[Any, int]:
    """Return the MOC of the sources that have a position, and their number."""
    from mocpy import MOC  # takes two seconds, which the start of a run does not need

    ra_N, dec_N = (table.column(name).to_numpy() for name in ("ra", "dec"))
    placed_N = np.isfinite(ra_N) & (np.abs(dec_N) <= 90)
    ra_N, dec_N = ra_N[placed_N] % 360 * units.deg, dec_N[placed_N] * units.deg
    return MOC.from_lonlat(ra_N, dec_N, max_norder=_FINEST_ORDER), int(placed_N.sum())
