"""Counts what a report shows of a catalogue, batch by batch, in memory of a fixed size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.part_file import read_footer
from photozhpc.catalog.photoz_catalog import open_part
from photozhpc.errors import CatalogError
from photozhpc.evaluation.catalog_columns import (
    QUANTILES,
    BandColumns,
    band_columns,
    floats,
    levels_of,
    quantiles,
)
from photozhpc.survey import ab_magnitude

BATCH_ROWS = 1 << 17
N_SAMPLE = 3000  # up to this many sources are drawn as points; more, as densities
N_GALLERY = 12
N_STACKED = 50_000  # PDFs in the stack
DETECTION_SN = 5.0
COLOUR_SN = 3.0
Z_WIDTH, MAG_WIDTH, COLOUR_WIDTH = 0.05, 0.1, 0.1
_Z_EDGES = np.round(np.arange(0, 15 + Z_WIDTH / 2, Z_WIDTH), 10)
_MAG_EDGES = np.round(np.arange(10, 40 + MAG_WIDTH / 2, MAG_WIDTH), 10)
_COLOUR_EDGES = np.round(np.arange(-8, 8 + COLOUR_WIDTH / 2, COLOUR_WIDTH), 10)
_LOG_ERR_EDGES = np.linspace(-6, 8, 1401)  # log10 nJy


@dataclass
class BandCounts:
    """Number counts of a band, and the flux errors that its depth is computed from."""

    columns: BandColumns
    mag_M: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_MAG_EDGES) - 1, int))
    log_err_E: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(_LOG_ERR_EDGES) - 1, int)
    )
    n_detected: int = 0

    @property
    def mag_edges(self) -> NDArray[np.float64]:
        return _MAG_EDGES

    @property
    def depth_mag(self) -> float:
        """AB magnitude of 5 times the median flux error; NaN without errors."""
        total = self.log_err_E.sum()
        if not total:
            return np.nan
        at = int(np.searchsorted(np.cumsum(self.log_err_E), total / 2))
        error_njy = 10 ** ((_LOG_ERR_EDGES[at] + _LOG_ERR_EDGES[at + 1]) / 2)
        return float(ab_magnitude(DETECTION_SN * error_njy))


@dataclass
class Density:
    """Counts on a grid of two quantities, x then y."""

    x_edges: NDArray[np.float64]
    y_edges: NDArray[np.float64]
    counts_XY: NDArray[np.int64]

    @classmethod
    def empty(cls, x_edges: NDArray[np.float64], y_edges: NDArray[np.float64]) -> "Density":
        return cls(x_edges, y_edges, np.zeros((len(x_edges) - 1, len(y_edges) - 1), np.int64))

    def add(self, x_N: NDArray[np.float64], y_N: NDArray[np.float64]) -> None:
        counts_XY = np.histogram2d(x_N, y_N, bins=(self.x_edges, self.y_edges))[0]
        self.counts_XY += counts_XY.astype(np.int64)


class TopRows:
    """The k rows with the largest keys of all rows that were offered."""

    def __init__(self, k: int) -> None:
        self._k = k
        self._key_N = np.empty(0)
        self._tables: list[pa.Table] = []

    def offer(self, table: pa.Table, key_N: NDArray[np.float64]) -> None:
        """Take the rows whose keys are among the k largest; never rows whose key is NaN."""
        at_N = np.flatnonzero(np.isfinite(key_N))
        if len(self._key_N) == self._k:
            at_N = at_N[key_N[at_N] > self._key_N.min()]
        if not len(at_N):
            return
        keys = np.concatenate([self._key_N, key_N[at_N]])
        best = np.argsort(-keys, kind="stable")[: self._k]
        merged = pa.concat_tables([*self._tables, table.take(at_N)])
        self._key_N, self._tables = keys[best], [merged.take(best).combine_chunks()]

    @property
    def table(self) -> pa.Table | None:
        """The rows, by descending key, or None."""
        return self._tables[0] if self._tables else None


@dataclass
class CatalogScan:
    """The counts of a catalogue that a report shows.

    Attributes:
        n_rows, n_photoz, n_intervals: rows; rows with a redshift; of these, rows with all
            quantiles.
        flag_values: number of rows by value of photoz_flags.
        z_Z, z_sum: number of redshifts in bins of 0.05; sum of all redshifts.
        stack_Z, stack_var_Z, n_stacked: sum over `n_stacked` random sources of the probability p
            of each bin, and of p (1 - p).
        bands: counts per band, in the order of the columns.
        colour_mag, colour_z: densities of the colour of the first and last band (ratio of
            aperture fluxes) against magnitude of the last band and against redshift; None if
            there is only one band.
        sample, high_z, far_out: random rows; unflagged rows with the highest redshifts; rows with
            the highest photoz_ood; None if there are none.
    """

    bands: list[BandCounts]
    colour_mag: Density | None
    colour_z: Density | None
    n_rows: int = 0
    n_photoz: int = 0
    n_intervals: int = 0
    flag_values: dict[int, int] = field(default_factory=dict)
    z_Z: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(_Z_EDGES) - 1, int))
    z_sum: float = 0.0
    stack_Z: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_Z_EDGES) - 1))
    stack_var_Z: NDArray[np.float64] = field(default_factory=lambda: np.zeros(len(_Z_EDGES) - 1))
    n_stacked: int = 0
    sample: pa.Table | None = None
    high_z: pa.Table | None = None
    far_out: pa.Table | None = None

    @property
    def z_edges(self) -> NDArray[np.float64]:
        return _Z_EDGES

    def colours(self, table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return colour_N (first minus last band) and mag_N (last band); NaN if undetected."""
        last = self.bands[-1].columns
        first_N, last_N = (
            _magnitude(table, band, "flux", COLOUR_SN) for band in (self.bands[0].columns, last)
        )
        return first_N - last_N, _magnitude(table, last, "total", COLOUR_SN)


def rebin(count_B: NDArray, merge: int) -> NDArray:
    """Return counts in bins that each merge `merge` bins; leftover bins at the end are dropped."""
    return count_B[: len(count_B) // merge * merge].reshape(-1, merge).sum(axis=1)


def scan_catalog(parts: Sequence[Path]) -> CatalogScan:
    """Read the parts of a catalogue once, and count.

    Raises:
        CatalogError: a part is damaged, lacks a column, or has quantiles that do not ascend.
    """
    names = _names(parts[0])
    columns = band_columns(names)
    colour_mag, colour_z = (
        Density.empty(edges, _COLOUR_EDGES) if len(columns) > 1 else None
        for edges in (_MAG_EDGES, _Z_EDGES)
    )
    scan = CatalogScan([BandCounts(band) for band in columns], colour_mag, colour_z)
    has_quantiles = set(QUANTILES) <= set(names)
    shown = ["source_id", "ra", "dec", "tile_id", "photoz", "photoz_flags", "photoz_ood"]
    shown += QUANTILES if has_quantiles else []
    for band in columns:
        shown += [name for name in (band.flux, band.flux_err, band.total) if name]
    shown = [name for name in shown if name in names]
    share = min(1.0, N_STACKED / max(sum(read_footer(part)[1] for part in parts), 1))
    rng = np.random.default_rng(0)  # the same catalogue gives the same page
    sample, high_z, far_out = TopRows(N_SAMPLE), TopRows(N_GALLERY), TopRows(N_GALLERY)
    for part, table in read_batches(parts, shown):
        n = len(table)
        z_N, flags_N = floats(table, "photoz"), table.column("photoz_flags").to_numpy()
        sample.offer(table, rng.random(n))
        high_z.offer(table, np.where(flags_N == 0, z_N, np.nan))
        if "photoz_ood" in names:
            far_out.offer(table, floats(table, "photoz_ood"))
        scan.n_rows += n
        for value, count in zip(*np.unique(flags_N, return_counts=True), strict=True):
            scan.flag_values[int(value)] = scan.flag_values.get(int(value), 0) + int(count)
        finite_z_N = z_N[np.isfinite(z_N)]
        scan.n_photoz += len(finite_z_N)
        scan.z_sum += float(finite_z_N.sum())
        scan.z_Z += np.histogram(finite_z_N, _Z_EDGES)[0]
        stacked_N = rng.random(n) < share
        if has_quantiles:
            _stack(scan, table, z_N, stacked_N, part)
        _count_photometry(scan, table, z_N)
    scan.sample, scan.high_z, scan.far_out = sample.table, high_z.table, far_out.table
    return scan


def _stack(
    scan: CatalogScan,
    table: pa.Table,
    z_N: NDArray[np.float64],
    chosen_N: NDArray[np.bool_],
    part: Path,
) -> None:
    """Add the PDFs of the chosen sources to the stack; a PDF is as in `photozhpc.metrics`."""
    quantile_NQ = quantiles(table)
    complete_N = np.isfinite(quantile_NQ).all(axis=1) & np.isfinite(z_N)
    scan.n_intervals += int(complete_N.sum())
    quantile_NQ = quantile_NQ[complete_N & chosen_N]
    n = len(quantile_NQ)
    if not n:
        return
    scan.n_stacked += n
    below_N = np.zeros(n)  # probability below z = 0 counts in the first bin
    top = float(quantile_NQ.max())
    for at, edge in enumerate(_Z_EDGES[1:]):
        upto_N = levels_of(np.full(n, edge), quantile_NQ, part)
        p_N = upto_N - below_N
        scan.stack_Z[at] += p_N.sum()
        scan.stack_var_Z[at] += (p_N * (1 - p_N)).sum()
        below_N = upto_N
        if edge > top and (1 - upto_N).max() < 1e-6:
            break


def _count_photometry(scan: CatalogScan, table: pa.Table, z_N: NDArray[np.float64]) -> None:
    for band in scan.bands:
        mag_N = _magnitude(table, band.columns, "total", DETECTION_SN)
        mag_N = mag_N[np.isfinite(mag_N)]
        # By the aperture flux: at an edge a detected source may have no Kron flux.
        detected_N = np.isfinite(_magnitude(table, band.columns, "flux", DETECTION_SN))
        band.n_detected += int(detected_N.sum())
        band.mag_M += np.histogram(mag_N, _MAG_EDGES)[0]
        if band.columns.flux_err is not None:
            error_N = floats(table, band.columns.flux_err)
            log_N = np.log10(error_N[error_N > 0])
            band.log_err_E += np.histogram(log_N, _LOG_ERR_EDGES)[0]
    if scan.colour_mag is not None and scan.colour_z is not None:
        colour_N, mag_N = scan.colours(table)
        scan.colour_mag.add(mag_N, colour_N)
        scan.colour_z.add(z_N, colour_N)


def _magnitude(
    table: pa.Table, columns: BandColumns, kind: str, min_sn: float
) -> NDArray[np.float64]:
    """Return AB magnitudes; NaN where the aperture flux is below `min_sn` times its error."""
    aperture_N = floats(table, columns.flux)
    flux_N = aperture_N
    if kind == "total" and columns.total is not None:
        flux_N = floats(table, columns.total)
    mag_N = ab_magnitude(flux_N)
    if columns.flux_err is not None:
        mag_N[~(aperture_N >= min_sn * floats(table, columns.flux_err))] = np.nan
    return mag_N


def read_batches(parts: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[Path, pa.Table]]:
    """Yield (part, rows) with at most BATCH_ROWS rows at a time; pages are checked.

    Raises:
        CatalogError: a part is damaged or differs from its note, or lacks one of the columns or
            has another type in it.
    """
    run_notes = RunNotes.beside(parts[0]) if parts else None
    for part in parts:
        with open_part(part, run_notes) as file:
            missing = sorted(set(columns) - set(file.schema_arrow.names))
            if missing:
                raise CatalogError(f"{part}: has no column '{missing[0]}', unlike {parts[0]}")
            _check_kinds(part, file.schema_arrow, columns)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
                table = pa.Table.from_batches([batch]).select(list(columns))
                for name in {"source_id", "photoz_flags"} & set(columns):
                    if table.column(name).null_count:
                        raise CatalogError(f"{part}: column '{name}' has a null")
                yield part, table.replace_schema_metadata(None)


def _names(part: Path) -> list[str]:
    names: list[str] = read_footer(part)[0].names
    for name in ("source_id", "ra", "dec", "photoz", "photoz_flags"):
        if name not in names:
            raise CatalogError(
                f"{part}: has no column '{name}'; 'photozhpc report' reads a catalogue of "
                f"'photozhpc infer', not an export of it"
            )
    return names


def _check_kinds(part: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    """Raise CatalogError if a column has another type than in a catalogue of `infer`."""
    for name in columns:
        kind = schema.field(name).type
        number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
        if name == "tile_id":
            expected, good = "text", not number
        elif name in ("source_id", "photoz_flags"):
            expected, good = "integers", pa.types.is_integer(kind)
        else:
            expected, good = "numbers", number
        if not good:
            raise CatalogError(f"{part}: column '{name}' must hold {expected}, not {kind}")
