"""A catalogue's p(z) as an ensemble of qp, which RAIL reads: one HDF5 file, written in chunks.

qp (LSSTDESC/qp, Malz et al. 2018, arXiv 1806.00014) has one class per parametrisation of a
density. Both forms of p(z) become `qp.interp`, a density on a grid. `qp.quant` takes quantiles, but
version 1.1 fits a quadratic spline through them: with our levels its cdf reaches 2.5 and its pdf
integrates to up to 4.5 (docs/decisions.md).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.notes import RunNotes
from photozhpc.catalog.part_file import read_footer
from photozhpc.catalog.pdf import PdfPart, pdf_parts, pdf_path, read_noted_pdf_part
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS, catalog_parts, read_part
from photozhpc.errors import CatalogError, ConfigError
from photozhpc.exports.rows import Exported
from photozhpc.files.disk import disk_error, replacing
from photozhpc.model.redshift_grid import redshift_grid

SUFFIX = ".hdf5"  # qp and RAIL know the format by it
_CHUNK_ROWS = 4096
_ANCIL = ("source_id", "ra", "dec", "photoz", "photoz_ood", "photoz_flags")
_FURTHER = ("photoz_mean", "photoz_mode", *QUANTILE_LEVELS, "star_probability")  # of later versions


def export_qp(catalog: str | Path, out: str | Path) -> Exported:
    """Write the p(z) of a catalogue as a qp ensemble, with one part in memory at a time.

    The ancillary table has the columns `source_id` to `star_probability` (NaN for null) and
    `zmode`, the redshift of the highest density on the grid, which RAIL needs, `zmean` and
    `zmedian` of the same density. It leaves out sources without a redshift: the rows are those of
    the catalogue where photoz is not null.

    Args:
        catalog: the --out folder of `photozhpc infer --pdf`.
        out: a file whose name ends in .hdf5; an existing one is replaced.

    Raises:
        ConfigError: qp is not installed, or the name of `out` has another ending.
        CatalogError: the catalogue has no p(z), or is unfinished or damaged.
        RunError: the disk is full, or cannot be written.
    """
    out = Path(out)
    if out.suffix != SUFFIX:
        raise ConfigError(f"{out}: the name of a qp file must end in {SUFFIX}; change --out")
    import_qp()
    from tables_io import hdf5

    parts = catalog_parts(catalog)
    pdf_parts(catalog)  # raises if one is missing
    run_notes = RunNotes.beside(parts[0])
    n_rows = n_null = 0
    for part in parts:
        photoz = read_part(part, ["photoz"], run_notes)["photoz"]
        n_null += photoz.null_count
        n_rows += len(photoz) - photoz.null_count
    if not n_rows:
        raise CatalogError(f"{catalog}: no source has a redshift, so there is no p(z) to export")
    groups, stream, start = {}, None, 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            try:
                for pdf, ancil in _chunks(parts, run_notes):
                    _, columns = _columns(pdf, ancil)
                    if stream is None:
                        # Of the first row only: qp frees the memory of an ensemble late.
                        ensemble = ensemble_of(pdf.take(np.array([0])))
                        shapes = _shapes(columns, n_rows)
                        groups, stream = hdf5.initialize_HDF5_write(str(partial), **shapes)
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
    return Exported(n_rows, n_null, "have no redshift")


def ensemble_of(part: PdfPart, ancil: dict[str, NDArray] | None = None) -> Any:
    """Return the qp ensemble of rows that all have a p(z).

    Args:
        ancil: columns of the ancillary table, in addition to zmode, zmean and zmedian.
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


def _columns(
    part: PdfPart, ancil: dict[str, NDArray]
) -> tuple[NDArray[np.float64], dict[str, dict[str, NDArray]]]:
    """Return the grid and the two tables of a qp file, for rows that all have a p(z)."""
    z_P = part.axis_P if part.form == "grid" else redshift_grid(part.z_max)
    density_NP = part.density(z_P)
    density_NP /= np.asarray(np.trapezoid(density_NP, z_P, axis=1))[:, None]
    mass_NP = (density_NP[:, 1:] + density_NP[:, :-1]) / 2 * np.diff(z_P)
    cdf_NP = np.pad(np.cumsum(mass_NP, axis=1), ((0, 0), (1, 0)))
    points = {
        "zmode": z_P[density_NP.argmax(axis=1)],
        "zmean": np.trapezoid(density_NP * z_P, z_P, axis=1),
        "zmedian": np.array([np.interp(0.5, cdf_P, z_P) for cdf_P in cdf_NP]),
    }
    return z_P, {"data": {"yvals": density_NP}, "ancil": {**ancil, **points}}


def _chunks(parts: list[Path], run_notes: RunNotes) -> Iterator[tuple[PdfPart, dict[str, NDArray]]]:
    """Yield p(z) and ancillary columns of rows with a redshift, at most _CHUNK_ROWS at a time."""
    has = read_footer(parts[0])[0].names
    names = [*_ANCIL, *(name for name in _FURTHER if name in has)]
    for path in parts:
        table = read_part(path, names, run_notes, verify=True)
        pdf = read_noted_pdf_part(pdf_path(path), run_notes)
        if not np.array_equal(pdf.source_id_N, table["source_id"].to_numpy()):
            raise CatalogError(
                f"{pdf_path(path)}: does not hold the sources of {path}; run 'photozhpc verify'"
            )
        has_photoz_N = ~table["photoz"].is_null().to_numpy()
        if not np.array_equal(np.isfinite(pdf.value_NP).all(axis=1), has_photoz_N):
            raise CatalogError(
                f"{pdf_path(path)}: has no p(z) where {path} has a redshift; run 'photozhpc verify'"
            )
        rows = np.flatnonzero(has_photoz_N)
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS]
            ancil = table.take(pa.array(chunk))
            yield pdf.take(chunk), {name: ancil[name].to_numpy() for name in names}


def _shapes(
    columns: dict[str, dict[str, NDArray]], n_rows: int
) -> dict[str, dict[str, tuple[tuple[int, ...], np.dtype]]]:
    """Return shape and type of each column: densities are float32, as in qp's own allocation."""
    return {
        group: {
            name: ((n_rows, *values.shape[1:]), np.dtype("f4") if group == "data" else values.dtype)
            for name, values in table.items()
        }
        for group, table in columns.items()
    }
