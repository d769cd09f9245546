"""Source lists: Parquet, FITS, ECSV or CSV -> Sources."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean
from photozhpc.survey import SourceColumns


@dataclass(frozen=True)
class Sources:
    """Sources to measure.

    Attributes:
        source_id_N: unique identifiers, int64.
        ra_N, dec_N: ICRS degrees, float64.
        z_spec_N: spectroscopic redshifts, float32; NaN = unlabelled.
        ebv_N: Galactic E(B-V), magnitudes, float32; 0 where the list has none, or
            writes it as missing (not finite, or below -0.1, such as -99).
    """

    source_id_N: NDArray[np.int64]
    ra_N: NDArray[np.float64]
    dec_N: NDArray[np.float64]
    z_spec_N: NDArray[np.float32]
    ebv_N: NDArray[np.float32]

    def __post_init__(self) -> None:
        for name in ("ra_N", "dec_N", "z_spec_N", "ebv_N"):
            if getattr(self, name).shape != self.source_id_N.shape:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}, "
                    f"source_id_N has {self.source_id_N.shape}"
                )

    def __len__(self) -> int:
        return len(self.source_id_N)

    def __getitem__(self, rows: NDArray | slice) -> "Sources":
        return Sources(
            self.source_id_N[rows],
            self.ra_N[rows],
            self.dec_N[rows],
            self.z_spec_N[rows],
            self.ebv_N[rows],
        )


def read_sources(paths: Iterable[str | Path], columns: SourceColumns) -> Sources:
    """Read and join source lists, with the survey's column names.

    The rows of a single list without identifiers are numbered from 0.

    Raises:
        SourceListError: a file is missing or damaged, a column that is needed is missing, or a
            source_id stands in the lists twice.
    """
    paths = list(paths)
    parts = [_read_one(Path(path), columns, number_rows=len(paths) == 1) for path in paths]
    if not parts:
        raise SourceListError("no source list was given; pass one with --sources FILE")
    joined = Sources(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
    ids_U, counts_U = np.unique(joined.source_id_N, return_counts=True)
    if len(ids_U) != len(joined):
        raise SourceListError(
            f"source_id {ids_U[counts_U > 1][0]} stands {counts_U.max()} times in the source "
            f"list; every source needs an identifier of its own"
        )
    return joined


_FIELDS = ("source_id_N", "ra_N", "dec_N", "z_spec_N", "ebv_N")


def _read_one(path: Path, columns: SourceColumns, number_rows: bool) -> Sources:
    table = _read_table(path)
    names = {name.lower(): name for name in table}

    def column(name: str | None, needed: bool) -> NDArray | None:
        if name is None or name.lower() not in names:
            if needed:
                raise SourceListError(
                    f"{path}: the source list has no column '{name}'"
                    f"{did_you_mean(str(name), table)}; name it under source_columns in the "
                    f"survey's YAML file"
                )
            return None
        values = table[names[name.lower()]]
        if values.ndim != 1:
            raise SourceListError(
                f"{path}: column '{name}' must hold one value a row, it holds "
                f"{values.shape[1:]}; split it"
            )
        return values

    n = len(next(iter(table.values()), np.empty(0)))
    id_N = column(columns.source_id, needed=not number_rows)
    id_N = np.arange(n) if id_N is None else id_N
    if not np.issubdtype(id_N.dtype, np.integer):
        raise SourceListError(
            f"{path}: column '{columns.source_id}' must hold integers, it holds {id_N.dtype}"
        )
    if len(id_N) and id_N.max() > np.iinfo(np.int64).max:
        raise SourceListError(
            f"{path}: column '{columns.source_id}' holds {id_N.max()}, which is more than an int64 "
            "can; number the sources anew"
        )
    numbers = {}
    for name, wanted, needed in (
        ("ra", columns.ra, True),
        ("dec", columns.dec, True),
        ("z_spec", columns.z_spec, False),
        ("ebv", columns.ebv, False),
    ):
        values_N = column(wanted, needed)
        try:
            numbers[name] = None if values_N is None else np.asarray(values_N, dtype=np.float64)
        except (TypeError, ValueError):
            raise SourceListError(f"{path}: column '{wanted}' does not hold numbers") from None
    z_spec_N = numbers["z_spec"] if numbers["z_spec"] is not None else np.full(n, np.nan)
    ebv_N = numbers["ebv"] if numbers["ebv"] is not None else np.zeros(n)
    # Catalogues write 'no redshift' as -99, -1 or 0 as often as NaN; a galaxy's is positive.
    z_spec_N = np.where(z_spec_N > 0, z_spec_N, np.nan)
    assert numbers["ra"] is not None
    assert numbers["dec"] is not None
    return Sources(
        source_id_N=id_N.astype(np.int64),
        ra_N=numbers["ra"],
        dec_N=numbers["dec"],
        z_spec_N=z_spec_N.astype(np.float32),
        # A map's noise may make it slightly negative; -99 and its like mean 'missing'.
        ebv_N=np.where(np.isfinite(ebv_N) & (ebv_N >= -0.1), ebv_N, 0).astype(np.float32),
    )


def _read_table(path: Path) -> dict[str, NDArray]:
    if not path.is_file():
        raise SourceListError(f"{path}: no such source list")
    if path.stat().st_size == 0:
        raise SourceListError(f"{path}: the source list is empty; copy or make it again")
    # Imported here: whoever reads a store needs `Sources`, and not a third of a second of astropy.
    from astropy.io.registry import IORegistryError
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            parquet = pq.ParquetFile(path).read()
            return {
                name: parquet.column(name).to_numpy(zero_copy_only=False)
                for name in parquet.column_names
            }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AstropyWarning)  # what is wrong is in the error
            table = Table.read(path)
    except (OSError, ValueError, TypeError, KeyError, IndexError, pa.ArrowException) as error:
        raise SourceListError(f"{path}: the source list cannot be read ({_line(error)})") from error
    except IORegistryError as error:
        raise SourceListError(
            f"{path}: unknown kind of source list; give Parquet, FITS, ECSV or CSV"
        ) from error
    return {name: _filled(table[name]) for name in table.colnames}


def _filled(column: object) -> NDArray:
    """Turn a table column into an array of native byte order, NaN where it is masked."""
    values_N: Any = np.ma.asanyarray(column)
    if np.ma.is_masked(values_N) and np.issubdtype(values_N.dtype, np.number):
        return np.ma.filled(values_N.astype(np.float64), np.nan)
    array_N = np.asarray(values_N)
    return array_N.astype(array_N.dtype.newbyteorder("="))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
