"""p(z) beside the point estimates: the only file that knows the schema of its Parquet parts.

    OUT/pdf/part-000000.parquet     as many rows as OUT/catalog/part-000000.parquet, in their order

One column is `source_id`, which shows that the rows are aligned. The other holds lists: either
`photoz_quantiles`, redshifts at given levels, or `photoz_pdf`, densities on a given grid; null
where photoz is null. The metadata "photozhpc.pdf" state the levels or the grid, as JSON.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.catalog.notes import (
    PART_FOLDER,
    PDF_FOLDER,
    FileNote,
    PartNote,
    RunNotes,
    check_sha256,
    part_name,
    read_run,
    run_folder_of,
)
from photozhpc.catalog.part_file import check_identity, damage_reported, write_part_file
from photozhpc.catalog.photoz_catalog import check_part, part_files
from photozhpc.catalog.votable import with_votable
from photozhpc.errors import CatalogError
from photozhpc.model.redshift_grid import grid_cells

COLUMN_OF_FORM = {"quantiles": "photoz_quantiles", "grid": "photoz_pdf"}
_PDF_KEY = b"photozhpc.pdf"
# Densities keep as many bits as float16 has, which compress to six tenths of the bytes. They stay
# float32, which every reader knows.
_GRID_BITS = 10
_DESCRIPTION = {
    "quantiles": "quantiles of the calibrated p(z), at the levels that photozhpc.pdf states",
    "grid": "calibrated p(z) per unit of redshift, at the redshifts that photozhpc.pdf states",
}


@dataclass(frozen=True)
class PdfPart:
    """p(z) of the sources of one part, in the order of the catalogue.

    Attributes:
        form: "quantiles" or "grid".
        source_id_N: identifiers, int64.
        axis_P: levels of the quantiles; or redshifts, evenly spaced.
        z_max: upper end of the model's redshifts; the lower end is 0.
        value_NP: redshifts, ascending; or densities per unit of redshift, whose trapezoidal
            integral over the grid is 1 to within 1e-3. NaN for sources without a redshift.
    """

    form: str
    axis_P: NDArray[np.float64]
    z_max: float
    source_id_N: NDArray[np.int64]
    value_NP: NDArray[np.float32]

    def take(self, rows: NDArray[np.integer]) -> "PdfPart":
        """Return the part with only these rows."""
        return replace(self, source_id_N=self.source_id_N[rows], value_NP=self.value_NP[rows])

    def cdf(self, z_E: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return cdf_NE, the cumulative probability at redshifts; NaN where there is no p(z).

        Between quantiles it is linear, from 0 at z = 0 to 1 at z_max; on a grid, trapezoidal.
        """
        value_NP = self.value_NP.astype(np.float64)
        if self.form == "quantiles":
            x_NL = np.pad(value_NP, ((0, 0), (1, 1)), constant_values=((0, 0), (0, self.z_max)))
            y_NL = np.broadcast_to(np.concatenate([[0], self.axis_P, [1]]), x_NL.shape)
        else:
            mass_NP = (value_NP[:, 1:] + value_NP[:, :-1]) / 2 * np.diff(self.axis_P)
            y_NL = np.pad(np.cumsum(mass_NP, axis=1), ((0, 0), (1, 0)))
            y_NL /= y_NL[:, -1:]
            x_NL = np.broadcast_to(self.axis_P, y_NL.shape)
        cdf_NE = np.full((len(value_NP), len(z_E)), np.nan)
        for row in np.flatnonzero(np.isfinite(value_NP[:, 0])):
            cdf_NE[row] = np.interp(z_E, x_NL[row], y_NL[row])
            cdf_NE[row, z_E <= 0], cdf_NE[row, z_E >= self.z_max] = (
                0,
                1,
            )  # also if the cdf jumps there
        return cdf_NE

    def density(self, z_P: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return p(z) (N, P) on a grid: at each point the mean between the midpoints beside it.

        Its trapezoidal integral is the probability between the ends of the grid.
        """
        if self.form == "grid" and np.array_equal(z_P, self.axis_P):
            return self.value_NP.astype(np.float64)
        border_E = grid_cells(z_P)
        return np.diff(self.cdf(border_E), axis=1) / np.diff(border_E)


def pdf_folder(catalog_folder: Path) -> Path:
    """Return the folder of p(z) that belongs to a folder of parts."""
    return catalog_folder.absolute().with_name(PDF_FOLDER)


def pdf_path(part_path: Path) -> Path:
    """Return the file of p(z) that belongs to a part of the catalogue."""
    return pdf_folder(part_path.parent) / part_path.name


def make_pdf_table(
    form: str,
    axis_P: NDArray[np.float64],
    z_max: float,
    source_id_N: NDArray[np.int64],
    value_NP: NDArray[np.float32],
) -> pa.Table:
    """Return rows of p(z); rows that are not finite become null. Arguments as in `PdfPart`."""
    if form == "grid":
        value_NP = _rounded(value_NP, _GRID_BITS)
    # Not lists of a fixed size: pyarrow before 26 cannot read a file of these with nulls.
    finite_N = np.isfinite(value_NP).all(axis=1)
    end_N = np.cumsum(finite_N * value_NP.shape[1], dtype=np.int32)
    lists = pa.ListArray.from_arrays(
        pa.array(np.append(np.int32(0), end_N)),
        pa.array(value_NP[finite_N].ravel(), pa.float32()),
        mask=pa.array(~finite_N),
    )
    about = {
        "form": form,
        "z_max": z_max,
        "levels" if form == "quantiles" else "z": axis_P.tolist(),
    }
    ucd = "stat.probability;src.redshift.phot" if form == "grid" else "src.redshift.phot"
    fields = [
        ("source_id", pa.int64(), "meta.id;meta.main", "identifier of the source list"),
        (COLUMN_OF_FORM[form], lists.type, ucd, _DESCRIPTION[form]),
    ]
    schema = pa.schema(
        [
            pa.field(name, kind, name != "source_id", {"ucd": ucd, "description": text})
            for name, kind, ucd, text in fields
        ],
        {_PDF_KEY: json.dumps({**about, "sha256": _digest(about)}).encode()},
    )
    schema = with_votable(schema, "p(z) of the sources of a photometric-redshift catalogue")
    return pa.Table.from_arrays([pa.array(source_id_N, pa.int64()), lists], schema=schema)


def write_pdf_part(
    table: pa.Table, path: Path, identity: Mapping[str, Any], provenance: str = "{}"
) -> FileNote:
    """Write a part's p(z), before the part itself; arguments and errors as `write_part_file`."""
    return write_part_file(
        table,
        path,
        identity,
        provenance,
        {},
        use_dictionary=False,
        use_byte_stream_split=[f"{table.column_names[1]}.list.element"],
        write_statistics=["source_id"],
    )


def check_part_and_pdf(
    path: Path, identity: Mapping[str, Any], n_rows: int, schema: pa.Schema, form: str | None
) -> PartNote:
    """Read a whole part, and its p(z) in this form unless None, with their checksums.

    Raises:
        CatalogError: one is missing, damaged, or of other shards or another run.
    """
    note = check_part(path, identity, n_rows, schema)
    if form is None:
        return note
    path = pdf_path(path)
    part, content, metadata = _read(path)
    check_identity(path, metadata, identity)
    if len(part.source_id_N) != n_rows or part.form != form:
        raise CatalogError(f"{path}: has other rows or another form than the run makes")
    return replace(note, pdf=FileNote.of(content))


def read_noted_pdf_part(path: Path, run_notes: RunNotes) -> PdfPart:
    """Read one file of p(z), which must be the one that its name says and agree with its note.

    Raises:
        CatalogError: it is missing, damaged, or differs from its note.
    """
    part, content, metadata = _read(path)
    run_notes.check_place(path, metadata)
    note = run_notes.note(path)
    if note is not None and note.pdf is not None:
        check_sha256(path, content, note.pdf)
    return part


def read_pdf_part(path: Path) -> tuple[PdfPart, FileNote]:
    """Read one file of p(z), with its checksums.

    Raises:
        CatalogError: it is missing or damaged.
    """
    part, content, _ = _read(path)
    return part, FileNote.of(content)


def read_pdf(path: str | Path, *, incomplete_ok: bool = False) -> Iterator[PdfPart]:
    """Yield the p(z) of a catalogue part by part, in its order; one part is in memory at a time.

    Args:
        path: the --out folder of `photozhpc infer --pdf`, its pdf/ folder, or one file of it.
        incomplete_ok: read the finished parts of an unfinished run.

    Raises:
        CatalogError: the catalogue has no p(z), or a file of it is missing or damaged.
    """
    files = pdf_parts(path, incomplete_ok=incomplete_ok)
    run_notes = RunNotes.beside(files[0])
    for file in files:
        yield read_noted_pdf_part(file, run_notes)


def pdf_parts(path: str | Path, *, incomplete_ok: bool = False) -> list[Path]:
    """Return the files of p(z) of a catalogue, in order.

    Raises:
        CatalogError: there are none, or, unless `incomplete_ok`, some are missing.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    folder = path / PDF_FOLDER if (path / PART_FOLDER).is_dir() else path
    if path.name == PART_FOLDER:
        folder = pdf_folder(path)
    out = run_folder_of(path)
    n_parts = None if out is None else read_run(out).n_parts
    files = part_files(folder, n_parts)
    if not files:
        raise CatalogError(
            f"{path}: has no p(z); make a catalogue with 'photozhpc infer --pdf quantiles' or "
            f"'--pdf grid', in a folder of its own"
        )
    if n_parts is not None and len(files) < n_parts and not incomplete_ok:
        names = {file.name for file in files}
        first = next(name for name in map(part_name, range(n_parts)) if name not in names)
        raise CatalogError(
            f"{folder}: the p(z) is not complete: {n_parts - len(files)} of {n_parts} parts are "
            f"missing, the first is {first}; run the same 'photozhpc infer' again to finish it"
        )
    return files


def _read(path: Path) -> tuple[PdfPart, bytes, dict[bytes, bytes]]:
    with damage_reported(path, "the p(z) of this part"):
        content = path.read_bytes()
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            metadata = file.schema_arrow.metadata or {}
            table = file.read()
        try:
            part = _part(table, metadata)
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
    return part, content, metadata


def _part(table: pa.Table, metadata: Mapping[bytes, bytes]) -> PdfPart:
    """Raises ValueError, KeyError or TypeError if it is not a table of p(z)."""
    about = json.loads(metadata[_PDF_KEY])
    if about.pop("sha256") != _digest(about):  # Parquet has no checksum for metadata
        raise ValueError("its metadata photozhpc.pdf were altered")
    form, z_max = about["form"], float(about["z_max"])
    axis_P = np.array(about["levels" if form == "quantiles" else "z"], dtype=np.float64)
    column = table[COLUMN_OF_FORM[form]].combine_chunks()
    ascends = axis_P.ndim == 1 and len(axis_P) > 1 and bool(np.all(np.diff(axis_P) > 0))
    valid_N = column.is_valid().to_numpy(zero_copy_only=False)
    length_N = pc.list_value_length(column).drop_null().to_numpy()
    if column.type != pa.list_(pa.float32()) or not ascends or (length_N != len(axis_P)).any():
        raise ValueError(f"the column {COLUMN_OF_FORM[form]} is not as photozhpc.pdf states")
    value_NP = np.full((len(column), len(axis_P)), np.nan, dtype=np.float32)
    value_NP[valid_N] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(axis_P))
    return PdfPart(form, axis_P, z_max, table["source_id"].to_numpy(), value_NP)


def _rounded(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round values to this many mantissa bits; what is not finite stays as it is."""
    drop = 23 - bits
    pattern = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    kept = np.uint32(0x1_0000_0000 - (1 << drop))
    rounded = ((pattern + np.uint32(1 << (drop - 1))) & kept).view(np.float32)
    return np.where(np.isfinite(values), rounded, values).astype(np.float32)


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
