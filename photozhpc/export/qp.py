"""A catalogue's p(z) as an ensemble of qp, which RAIL reads: one HDF5 file, written in chunks.

qp (LSSTDESC/qp, Malz et al. 2018, arXiv 1806.00014) has a class of densities for each way of
writing them down. Both forms of p(z) go into `qp.interp`, a density on a grid. `qp.quant` looks
made for the quantiles, but version 1.1 draws a quadratic spline through them: with our levels its
cdf runs to 2.5 and its pdf integrates to as much as 4.5 (docs/decisions.md).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.pdf import PdfPart, pdf_parts, pdf_path, read_noted_pdf_part
from photozhpc.catalog.photoz_catalog import INTERVAL_LEVELS, catalog_parts, read_part
from photozhpc.errors import CatalogError, ConfigError
from photozhpc.export.rows import Exported
from photozhpc.files.disk import disk_error, replacing
from photozhpc.model.redshift_grid import redshift_grid

SUFFIX = ".hdf5"  # by which qp and RAIL know the format
_CHUNK_ROWS = 4096
_ANCIL = (*("source_id", "ra", "dec", "photoz"), *INTERVAL_LEVELS, *("photoz_ood", "photoz_flags"))


def export_qp(catalog: str | Path, out: str | Path) -> Exported:
    """Write the p(z) of a catalogue as a qp ensemble; a part is in memory at a time.

    The ancillary table has the columns of `source_id` to `photoz_flags` (NaN for null) and
    `zmode`, the redshift of the highest density on the grid, which RAIL looks for. Sources
    without a redshift are left out: the rows are those of the catalogue where photoz is not null.

    Args:
        catalog: the --out folder of `photozhpc infer --pdf`.
        out: a file; its name ends in .hdf5. One that is there is replaced.

    Raises:
        ConfigError: qp is not installed, or the name ends otherwise.
        CatalogError: the catalogue has no p(z), is not finished, or damaged.
        RunError: the disk is full, or cannot be written.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise ConfigError(f"{out}: qp knows its files by the ending {SUFFIX}; name it so")
    import_qp()
    from tables_io import hdf5

    parts = catalog_parts(catalog)
    pdf_parts(catalog)  # are they all there
    noted = RunNotes.beside(parts[0])
    counts = [_count(part, noted) for part in parts]
    n_rows = sum(known for _, known in counts)
    if not n_rows:
        raise CatalogError(f"{catalog}: no source has a redshift: there is no p(z) to export")
    groups, stream, start = {}, None, 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            try:
                for pdf, ancil in _chunks(parts, noted):
                    _, columns = _columns(pdf, ancil)
                    if stream is None:
                        # Of the first row alone: what qp makes of rows is long in being freed.
                        ensemble = ensemble_of(pdf.take(np.array([0])))
                        room = _room(columns, n_rows)
                        groups, stream = hdf5.initialize_HDF5_write(str(partial), **room)
                    end = start + len(pdf.source_id_N)
                    hdf5.write_dict_to_HDF5_chunk(groups, columns, start, end)
                    start = end
                if stream is not None:
                    ensemble.finalizeHdf5Write(stream)
            finally:
                if stream is not None:
                    stream.close()
    except OSError as error:
        raise disk_error(out, error) from error
    return Exported(n_rows, sum(rows for rows, _ in counts) - n_rows, "have no redshift")


def ensemble_of(part: PdfPart, ancil: dict[str, NDArray] | None = None) -> Any:
    """Return the qp ensemble of rows that all have a p(z).

    Args:
        ancil: columns of the ancillary table, beside zmode.
    """
    qp = import_qp()
    z_P, columns = _columns(part, ancil or {})
    data = {"xvals": z_P, **columns["data"]}
    return qp.Ensemble(qp.interp, data=data, ancil=columns["ancil"])


def import_qp() -> Any:
    """Return the package qp.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import qp
    except ImportError as error:
        raise ConfigError(
            "an ensemble of p(z) needs qp, which is not installed; pip install 'photozhpc[qp]'"
        ) from error
    return qp


def _count(part: Path, noted: RunNotes) -> tuple[int, int]:
    column = read_part(part, ["photoz"], noted)["photoz"]
    return len(column), len(column) - column.null_count


def _columns(
    part: PdfPart, ancil: dict[str, NDArray]
) -> tuple[NDArray[np.float64], dict[str, dict[str, NDArray]]]:
    """Return the grid, and the two tables of a qp file, of rows that all have a p(z)."""
    z_P = part.axis_P if part.form == "grid" else redshift_grid(part.z_max)
    density_NP = part.density(z_P)
    density_NP /= np.asarray(np.trapezoid(density_NP, z_P, axis=1))[:, None]
    zmode_N = z_P[density_NP.argmax(axis=1)]
    return z_P, {"data": {"yvals": density_NP}, "ancil": {**ancil, "zmode": zmode_N}}


def _chunks(parts: list[Path], noted: RunNotes) -> Iterator[tuple[PdfPart, dict[str, NDArray]]]:
    """Yield at most _CHUNK_ROWS rows at a time, of those that have a redshift, and their ancil."""
    for path in parts:
        table = read_part(path, _ANCIL, noted, verify=True)
        pdf = read_noted_pdf_part(pdf_path(path), noted)
        if not np.array_equal(pdf.source_id_N, table["source_id"].to_numpy()):
            raise CatalogError(
                f"{pdf_path(path)}: does not hold the sources of {path}; run 'photozhpc verify'"
            )
        known_N = ~table["photoz"].is_null().to_numpy()
        if not np.array_equal(np.isfinite(pdf.value_NP).all(axis=1), known_N):
            raise CatalogError(
                f"{pdf_path(path)}: has no p(z) where {path} has a redshift; run 'photozhpc verify'"
            )
        rows = np.flatnonzero(known_N)
        for some in np.split(rows, range(_CHUNK_ROWS, len(rows), _CHUNK_ROWS)):
            if len(some):
                chosen = table.take(pa.array(some))
                yield pdf.take(some), {name: chosen[name].to_numpy() for name in _ANCIL}


def _room(
    columns: dict[str, dict[str, NDArray]], n_rows: int
) -> dict[str, dict[str, tuple[tuple[int, ...], np.dtype]]]:
    """Return what the file has room for: densities as float32, as qp's own allocation has them."""
    return {
        group: {
            name: ((n_rows, *values.shape[1:]), np.dtype("f4") if group == "data" else values.dtype)
            for name, values in table.items()
        }
        for group, table in columns.items()
    }
