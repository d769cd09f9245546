"""A catalogue joined with the truth, part by part; only the scores of each source are kept."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.part_file import read_footer
from photozhpc.catalog.photoz_catalog import catalog_parts, read_part
from photozhpc.errors import CatalogError
from photozhpc.evaluation.catalog_columns import (
    LEVEL_Q,
    QUANTILES,
    band_columns,
    floats,
    levels_of,
    quantiles,
)
from photozhpc.evaluation.truth import Truth
from photozhpc.metrics import crps, inside_interval
from photozhpc.survey import ab_magnitude

INTERVALS_PERCENT = (68, 90, 99)
_OOD = "photoz_ood"


@dataclass(frozen=True)
class Matched:
    """The N sources that are in the catalogue and in the truth, in the order of the catalogue.

    Attributes:
        source_id_N, z_ref_N: from the truth.
        z_phot_N: NaN where the catalogue has none.
        flags_N: photoz_flags.
        mag_N: AB magnitude; NaN where there is none.
        ood_N, pit_N, crps_N: NaN where the catalogue has none.
        inside_NI: 1 where z_ref is in the 68, 90 and 99% interval, else 0; NaN where the catalogue
            has no intervals.
    """

    source_id_N: NDArray[np.int64]
    z_ref_N: NDArray[np.float64]
    z_phot_N: NDArray[np.float64]
    flags_N: NDArray[np.int32]
    mag_N: NDArray[np.float64]
    ood_N: NDArray[np.float64]
    pit_N: NDArray[np.float64]
    crps_N: NDArray[np.float64]
    inside_NI: NDArray[np.float64]

    def rows(self, keep_N: NDArray[np.bool_]) -> "Matched":
        """Return the sources where keep_N is true."""
        return Matched(*(getattr(self, field.name)[keep_N] for field in fields(self)))


@dataclass(frozen=True)
class Match:
    """A catalogue joined with the truth.

    Attributes:
        n_rows: rows of the catalogue.
        band: the band of `matched.mag_N`, None if there are no magnitudes.
        mag_origin: the column of the truth or of the catalogue that they come from.
        example_id: an identifier of the catalogue, None if it is empty.
    """

    matched: Matched
    n_rows: int
    band: str | None
    mag_origin: str | None
    example_id: int | None


def match(catalog: str | Path, truth: Truth, *, incomplete_ok: bool = False) -> Match:
    """Join a catalogue with the truth.

    The magnitude is of the last band: from the truth, or else from the flux in the aperture
    nearest to a radius of 0.4 arcsec.

    Args:
        truth: of one galaxy or more.
        incomplete_ok: accept a run that has not finished, and use its parts.

    Raises:
        CatalogError: the catalogue is missing, not finished, damaged, lacks a column, or has
            quantiles that do not ascend.
    """
    parts = catalog_parts(catalog, incomplete_ok=incomplete_ok)
    names = read_footer(parts[0])[0].names
    bands = band_columns(names)
    band, flux_name = (bands[-1].band, bands[-1].flux) if bands else (None, None)
    true_mag_N = truth.magnitudes.get(band) if band else None
    columns = ["source_id", "photoz", "photoz_flags"]
    has_quantiles = set(QUANTILES) <= set(names)
    columns += QUANTILES if has_quantiles else []
    columns += [_OOD] if _OOD in names else []
    columns += [flux_name] if flux_name and true_mag_N is None else []
    pieces, n_rows, example_id = [], 0, None
    run_notes = RunNotes.beside(parts[0])
    for part in parts:
        table = read_part(part, columns, run_notes)
        n_rows += len(table)
        id_N = table.column("source_id").to_numpy()
        if example_id is None and len(id_N):
            example_id = int(id_N[0])
        truth_row_N = np.searchsorted(truth.source_id_N, id_N)
        truth_row_N[truth_row_N == len(truth.source_id_N)] = 0
        common_N = np.flatnonzero(truth.source_id_N[truth_row_N] == id_N)
        truth_row_N, table = truth_row_N[common_N], table.take(common_N)
        if true_mag_N is not None:
            mag_N = true_mag_N[truth_row_N]
        elif flux_name is not None:
            mag_N = ab_magnitude(floats(table, flux_name))
        else:
            mag_N = np.full(len(table), np.nan)
        pieces.append(_piece(part, table, truth.z_ref_N[truth_row_N], mag_N, has_quantiles))
    matched = Matched(
        *(np.concatenate([getattr(piece, f.name) for piece in pieces]) for f in fields(Matched))
    )
    if len(np.unique(matched.source_id_N)) < len(matched.source_id_N):
        raise CatalogError(f"{catalog}: a source_id appears twice; make the catalogue anew")
    origin = f"mag_{band} of the truth" if true_mag_N is not None else flux_name
    return Match(matched, n_rows, band, origin, example_id)


def _piece(
    part: Path,
    table: pa.Table,
    z_ref_N: NDArray[np.float64],
    mag_N: NDArray[np.float64],
    has_quantiles: bool,
) -> Matched:
    nan_N = np.full(len(table), np.nan)
    pit_N = crps_N = nan_N
    inside_NI = np.full((len(table), len(INTERVALS_PERCENT)), np.nan)
    if has_quantiles:
        quantile_NQ = quantiles(table)
        pit_N = levels_of(z_ref_N, quantile_NQ, part)
        crps_N = crps(z_ref_N, quantile_NQ, LEVEL_Q)
        for i, percent in enumerate(INTERVALS_PERCENT):
            low_N, high_N = (floats(table, f"photoz_{end}{percent}") for end in ("low", "high"))
            inside_NI[:, i] = inside_interval(z_ref_N, low_N, high_N)
    return Matched(
        source_id_N=table.column("source_id").to_numpy(),
        z_ref_N=z_ref_N,
        z_phot_N=floats(table, "photoz"),
        flags_N=table.column("photoz_flags").to_numpy(),
        mag_N=mag_N,
        ood_N=floats(table, _OOD) if _OOD in table.column_names else nan_N,
        pit_N=pit_N,
        crps_N=crps_N,
        inside_NI=inside_NI,
    )
