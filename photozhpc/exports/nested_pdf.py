"""p(z) as one nested column: a table within each row, as LSDB and nested-pandas open it.

In Parquet it is a struct of lists, one list per field of the inner tables. Rubin's Data Preview 1
has its p(z) so: `object_photoz`, columns `{algorithm}_ens_interp` with the fields xvals and yvals.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from photozhpc.catalog.notes import PART_FOLDER, RunNotes
from photozhpc.catalog.pdf import (
    COLUMN_OF_FORM,
    PdfPart,
    pdf_folder,
    pdf_path,
    read_noted_pdf_part,
)
from photozhpc.errors import CatalogError
from photozhpc.exports.dialects import Dialect
from photozhpc.model.redshift_grid import redshift_grid

_FIELDS = {"quantiles": ("level", "z"), "grid": ("z", "density")}
_DESCRIPTION = {
    "quantiles": "calibrated p(z): redshifts z below which a share `level` of the probability lies",
    "grid": "calibrated p(z): density per unit of redshift at redshifts z",
}


class NestedPdf:
    """The p(z) of a catalogue as a column beside its parts.

    Args:
        part: a file of the catalogue; others have the same form of p(z).

    Attributes:
        field: the column's name, type and description.

    Raises:
        CatalogError: the p(z) of `part` is missing or damaged.
    """

    def __init__(self, part: Path, run_notes: RunNotes, dialect: Dialect | None) -> None:
        self.dialect, self.run_notes = dialect, run_notes
        pdf = read_noted_pdf_part(pdf_path(part), run_notes)
        self.row_bytes = 8 * len(self._axis_and_values(pdf.take(np.arange(0)))[0])
        form, name = pdf.form, COLUMN_OF_FORM[pdf.form]
        self.names = _FIELDS[form]
        if dialect is not None and dialect.ensemble:
            form, name, self.names = "grid", dialect.ensemble, ("xvals", "yvals")
        about = {"ucd": "stat.probability;src.redshift.phot", "description": _DESCRIPTION[form]}
        lists = [(field, pa.list_(pa.float32())) for field in self.names]
        self.field = pa.field(name, pa.struct(lists), metadata=about)

    @staticmethod
    def has(part: Path, run_notes: RunNotes) -> bool:
        """Return whether a catalogue has p(z), from one of its parts."""
        note = run_notes.note(part)
        if note is not None:
            return note.pdf is not None
        return part.parent.name == PART_FOLDER and pdf_folder(part.parent).is_dir()

    def read(self, part: Path) -> PdfPart:
        """Read the p(z) of a part.

        Raises:
            CatalogError: it is missing or damaged.
        """
        return read_noted_pdf_part(pdf_path(part), self.run_notes)

    def column(self, pdf: PdfPart, source_id: pa.ChunkedArray) -> pa.Array:
        """Return rows of the column, null where there is no redshift.

        Args:
            source_id: the sources of these rows in the catalogue.

        Raises:
            CatalogError: the rows are of other sources.
        """
        if not np.array_equal(pdf.source_id_N, source_id.to_numpy()):
            raise CatalogError(
                "the p(z) does not hold the sources of its part of the catalogue; run 'photozhpc "
                "verify'"
            )
        axis_P, value_NP = self._axis_and_values(pdf)
        has_N = np.isfinite(value_NP).all(axis=1)
        end_N = np.append(0, np.cumsum(has_N * len(axis_P))).astype(np.int32)
        inner_MP = (np.broadcast_to(axis_P, (has_N.sum(), len(axis_P))), value_NP[has_N])
        lists = [
            pa.ListArray.from_arrays(pa.array(end_N), pa.array(inner.ravel(), pa.float32()))
            for inner in inner_MP
        ]
        return pa.StructArray.from_arrays(lists, self.names, mask=pa.array(~has_N))

    def _axis_and_values(self, pdf: PdfPart) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.dialect is not None and self.dialect.ensemble and pdf.form == "quantiles":
            axis_P = redshift_grid(pdf.z_max)
            return axis_P.astype(np.float32), pdf.density(axis_P).astype(np.float32)
        return pdf.axis_P.astype(np.float32), pdf.value_NP
