"""The catalogue as one FITS binary table, written row group by row group."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from astropy.io import fits

from photozhpc.exports.dialects import Dialect, translated_schema
from photozhpc.exports.rows import CatalogRows, OnProgress

TABLE_NAME = "PHOTOZ"
PROVENANCE = "photozhpc provenance:"  # starts the HISTORY of the table

_BLOCK_BYTES = 2880
_CODES = {
    "int64": ("K", ">i8"),
    "int32": ("J", ">i4"),
    "double": ("D", ">f8"),
    "float": ("E", ">f4"),
}


def write_fits(
    path: Path, rows: CatalogRows, dialect: Dialect | None, progress: OnProgress
) -> None:
    """Write a FITS file whose first extension is the table.

    Missing numbers are NaN. TUNITn, TUCDn and TCOMMn have units, UCDs and descriptions, as TOPCAT
    reads them.
    """
    width = rows.text_length
    target = translated_schema(rows.schema, dialect)
    formats = [_format(field, width) for field in target]
    row = np.dtype([(field.name, kind) for field, (_, kind) in zip(target, formats, strict=True)])
    with open(path, "wb") as stream:
        stream.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
        header = _header(target, [code for code, _ in formats], rows.n_rows, row.itemsize)
        header["HISTORY"] = f"{PROVENANCE} {rows.provenance}"
        stream.write(header.tostring().encode("ascii"))
        for table in rows.translated(dialect, progress):
            rows_N = np.empty(len(table), row)
            for name, column in zip(table.column_names, table.columns, strict=True):
                rows_N[name] = _values(column)
            stream.write(rows_N.tobytes())
        stream.write(b"\0" * (-rows.n_rows * row.itemsize % _BLOCK_BYTES))


def _format(field: pa.Field, width: int) -> tuple[str, str]:
    if field.type == pa.string():
        return f"{width}A", f"S{width}"
    return _CODES[str(field.type)]


def _header(schema: pa.Schema, codes: list[str], n_rows: int, row_bytes: int) -> fits.Header:
    header = fits.Header()
    header["XTENSION"] = ("BINTABLE", "binary table extension")
    header["BITPIX"], header["NAXIS"] = 8, 2
    header["NAXIS1"], header["NAXIS2"] = row_bytes, n_rows
    header["PCOUNT"], header["GCOUNT"] = 0, 1
    header["TFIELDS"] = len(schema)
    for n, (field, code) in enumerate(zip(schema, codes, strict=True), start=1):
        header[f"TTYPE{n}"], header[f"TFORM{n}"] = field.name, code
        for keyword, key in (("TUNIT", b"unit"), ("TUCD", b"ucd"), ("TCOMM", b"description")):
            if text := field.metadata.get(key, b"").decode():
                header[f"{keyword}{n}"] = text
    header["EXTNAME"] = TABLE_NAME
    header["RADESYS"] = "ICRS"
    return header


def _values(column: pa.ChunkedArray) -> np.ndarray:
    if column.type == pa.string():
        return np.array([text.encode() for text in column.to_pylist()])
    return column.to_numpy()  # null floats become NaN; no other column has nulls
