"""Columns of a table file: Parquet, FITS, ECSV, CSV, or text with numbered columns."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.disk import read_fault
from photozhpc.errors import MosaicError, SourceListError
from photozhpc.mosaic.fits_length import check_length
from photozhpc.mosaic.numbered_table import numbered_columns, read_numbered
from photozhpc.object_storage import AnyPath, ObjectPath


def read_columns(
    path: AnyPath, what: str, wanted: Callable[[str], bool] = lambda name: True
) -> tuple[dict[str, NDArray], list[str]]:
    """Return the columns that are wanted, and the names of all.

    Numbers that are null or masked make a column of floats with NaN.

    Args:
        what: the table is, for errors: "source list".

    Raises:
        SourceListError: the file is missing, damaged, or of another kind.
    """
    if isinstance(path, ObjectPath):
        return _read_fetched(path, what, wanted)
    if not path.is_file():
        raise SourceListError(f"{path}: no such {what}")
    if path.stat().st_size == 0:
        raise SourceListError(f"{path}: the {what} is empty; copy or make it again")
    # Imported here: whoever reads a store needs `Sources`, and not a third of a second of astropy.
    from astropy.io.registry import IORegistryError

    read = _read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_table
    try:
        return read(path, wanted)
    except IORegistryError as error:
        raise SourceListError(
            f"{path}: unknown kind of {what}; give Parquet, FITS, ECSV or CSV"
        ) from error
    except MosaicError as error:
        raise SourceListError(str(error)) from error
    except Exception as error:  # the readers of damaged tables raise whatever they run into
        line = " ".join(str(error).split())[:160] or type(error).__name__
        raise SourceListError(
            read_fault(path, error) or f"{path}: the {what} cannot be read ({line})"
        ) from error


def _read_fetched(
    path: ObjectPath, what: str, wanted: Callable[[str], bool]
) -> tuple[dict[str, NDArray], list[str]]:
    try:
        with path.fetched() as copy:
            try:
                return read_columns(copy, what, wanted)
            except SourceListError as error:
                raise SourceListError(str(error).replace(str(copy), str(path))) from error
    except FileNotFoundError as error:
        raise SourceListError(f"{path}: no such {what}") from error


def _read_parquet(
    path: Path, wanted: Callable[[str], bool]
) -> tuple[dict[str, NDArray], list[str]]:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        names = file.schema_arrow.names
        _check_counts(file.metadata)
        table = file.read(columns=[name for name in names if wanted(name)])
    return {
        name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names
    }, names


def _check_counts(about: pq.FileMetaData) -> None:
    """Check that the file says everywhere how many rows it has: nothing else protects that.

    Raises:
        ValueError: it does not.
    """
    flat = [j for j in range(about.num_columns) if not about.schema.column(j).max_repetition_level]
    groups = [about.row_group(index) for index in range(about.num_row_groups)]
    odd = any(group.column(j).num_values != group.num_rows for group in groups for j in flat)
    if odd or sum(group.num_rows for group in groups) != about.num_rows:
        raise ValueError("it says different numbers of rows")


def _read_table(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, NDArray], list[str]]:
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    with open(path, "rb") as stream:
        is_fits = stream.read(6) == b"SIMPLE"
    if is_fits:
        check_length(path, path)
    elif (names := numbered_columns(path)) is not None:
        return read_numbered(path, names, wanted), names
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # what is wrong is in the error
        table = Table.read(path)
        columns = {name: _filled(table[name]) for name in table.colnames if wanted(name)}
    return columns, table.colnames


def _filled(column: object) -> NDArray:
    """Turn a table column into an array of native byte order, NaN where it is masked."""
    values_N: Any = np.ma.asanyarray(column)
    if np.ma.is_masked(values_N) and np.issubdtype(values_N.dtype, np.number):
        return np.ma.filled(values_N.astype(np.float64), np.nan)
    array_N = np.asarray(values_N)
    return array_N.astype(array_N.dtype.newbyteorder("="))
