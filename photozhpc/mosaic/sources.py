"""Source lists: Parquet, FITS, ECSV or CSV -> Sources."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean
from photozhpc.mosaic.table_file import read_columns
from photozhpc.object_storage import AnyPath, location
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


def read_sources(paths: Iterable[str | AnyPath], columns: SourceColumns) -> Sources:
    """Read and join source lists, with the survey's column names.

    The rows of a single list without identifiers are numbered from 0.

    Raises:
        SourceListError: a file is missing or damaged, a column that is needed is missing, or a
            source_id stands in the lists twice.
    """
    paths = list(paths)
    parts = [_read_one(location(path), columns, number_rows=len(paths) == 1) for path in paths]
    if not parts:
        raise SourceListError("no source list was given; pass one with --sources FILE")
    joined = Sources(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
    ids_U, counts_U = np.unique(joined.source_id_N, return_counts=True)
    if len(ids_U) != len(joined):
        raise SourceListError(
            f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}: source_id "
            f"{ids_U[counts_U > 1][0]} stands {counts_U.max()} times in the source list; every "
            f"source needs an identifier of its own"
        )
    return joined


_FIELDS = ("source_id_N", "ra_N", "dec_N", "z_spec_N", "ebv_N")


def _read_one(path: AnyPath, columns: SourceColumns, number_rows: bool) -> Sources:
    known = {name.lower() for name in vars(columns).values() if name is not None}
    table, all_names = read_columns(path, "source list", lambda name: name.lower() in known)
    names = {name.lower(): name for name in table}

    def column(name: str | None, needed: bool) -> NDArray | None:
        if name is None or name.lower() not in names:
            if needed:
                raise SourceListError(
                    f"{path}: the source list has no column '{name}'"
                    f"{did_you_mean(str(name), all_names)}; name it under source_columns in the "
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
            if values_N is not None and values_N.dtype.kind not in "iufOSU":
                raise TypeError  # NumPy makes numbers of dates, and real ones of complex ones
            numbers[name] = None if values_N is None else np.asarray(values_N, dtype=np.float64)
        except (TypeError, ValueError):
            raise SourceListError(f"{path}: column '{wanted}' does not hold numbers") from None
    z_spec_N = numbers["z_spec"] if numbers["z_spec"] is not None else np.full(n, np.nan)
    ebv_N = numbers["ebv"] if numbers["ebv"] is not None else np.zeros(n)
    # Catalogues write 'no redshift' as -99, -1 or 0 as often as NaN; a galaxy's is positive.
    # Beyond the range of float32 it is none either.
    limits = np.finfo(np.float32)
    z_spec_N = np.where((z_spec_N >= limits.tiny) & (z_spec_N <= limits.max), z_spec_N, np.nan)
    assert numbers["ra"] is not None
    assert numbers["dec"] is not None
    return Sources(
        source_id_N=id_N.astype(np.int64),
        ra_N=numbers["ra"],
        dec_N=numbers["dec"],
        z_spec_N=z_spec_N.astype(np.float32),
        # A map's noise may make it slightly negative; -99 and its like mean 'missing'.
        ebv_N=np.where((ebv_N >= -0.1) & (ebv_N <= limits.max), ebv_N, 0).astype(np.float32),
    )
