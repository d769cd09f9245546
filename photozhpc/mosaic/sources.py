"""Source lists: Parquet, FITS, ECSV or CSV -> Sources."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean
from photozhpc.mosaic.table_file import read_columns
from photozhpc.object_storage import AnyPath, location
from photozhpc.survey import SourceColumns, names_of

# An identifier made of a list's name and a number in it: the last seven digits are the number.
NUMBERS_PER_LIST = 10_000_000
# A_V of the E(B-V) of the SFD map: Schlafly & Finkbeiner (2011), table 6, Landolt V. Not R_V = 3.1,
# which belongs to an E(B-V) without the map's calibration error of 0.86.
A_V_OF_EBV = 2.742


@dataclass(frozen=True)
class Sources:
    """Sources to measure.

    Attributes:
        source_id_N: unique identifiers, int64.
        ra_N, dec_N: ICRS degrees, float64.
        z_spec_N: spectroscopic redshifts, float32; NaN = unlabelled.
        ebv_N: Galactic E(B-V), magnitudes, float32. As it is read, NaN where the list has none,
            or writes it as missing (not finite, or below -0.1, such as -99); see `dust`.
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


@dataclass(frozen=True)
class JoinedLists:
    """Sources of several lists.

    Attributes:
        list_N: index of the list that a source is from.
        labels: how many labels are from which column.
    """

    sources: Sources
    list_N: NDArray[np.int64]
    labels: dict[str, int] = field(default_factory=dict)


def read_sources(paths: Iterable[str | AnyPath], columns: SourceColumns) -> Sources:
    """Read and join source lists, as read_source_lists; E(B-V) is 0 where a list has none."""
    sources = read_source_lists(paths, columns).sources
    return replace(sources, ebv_N=np.nan_to_num(sources.ebv_N))


def read_source_lists(
    paths: Iterable[str | AnyPath],
    columns: SourceColumns,
    list_name: Callable[[AnyPath], str] = lambda path: path.stem,
) -> JoinedLists:
    """Read and join source lists, with the survey's column names.

    The rows of a single list without identifiers are numbered from 0.

    Args:
        list_name: of a path; tells the numbers of one list (`columns.number`) from another's.

    Raises:
        SourceListError: a file is missing or damaged, a column that is needed is missing, or a
            source_id stands in the lists twice.
    """
    files = [location(path) for path in paths]
    read = [_read_one(path, columns, len(files) == 1, list_name(path)) for path in files]
    if not read:
        raise SourceListError("no source list was given; pass one with --sources FILE")
    parts = [part for part, _ in read]
    joined = Sources(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
    ids_U, counts_U = np.unique(joined.source_id_N, return_counts=True)
    if len(ids_U) != len(joined):
        raise SourceListError(
            f"{files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''}: source_id "
            f"{ids_U[counts_U > 1][0]} stands {counts_U.max()} times in the source list; every "
            f"source needs an identifier of its own"
        )
    labels = dict.fromkeys(names_of(columns.z_spec), 0)
    for _, counts in read:
        for name, count in counts.items():
            labels[name] += count
    list_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return JoinedLists(joined, list_N, labels)


_FIELDS = ("source_id_N", "ra_N", "dec_N", "z_spec_N", "ebv_N")


def _read_one(
    path: AnyPath, columns: SourceColumns, number_rows: bool, list_name: str
) -> tuple[Sources, dict[str, int]]:
    """Read a list; return its sources, and how many labels are from which column."""
    known = {name.lower() for value in vars(columns).values() for name in names_of(value)}
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
    # A pipeline that does not number its sources yet fills the column with zeros.
    id_name = next(
        (
            name
            for name in names_of(columns.source_id)
            if (values_N := column(name, needed=False)) is not None
            and (n == 1 or columns.number is None or (values_N != 0).any())
        ),
        None,
    )
    if id_name is None and columns.number is not None and columns.number.lower() in names:
        id_name = columns.number
    if id_name is None and not number_rows:
        column(names_of(columns.source_id)[0], needed=True)
    id_N = column(id_name, needed=False)
    id_N = np.arange(n) if id_N is None else id_N
    if not np.issubdtype(id_N.dtype, np.integer):
        raise SourceListError(
            f"{path}: column '{id_name}' must hold integers, it holds {id_N.dtype}"
        )
    if len(id_N) and id_N.max() > np.iinfo(np.int64).max:
        raise SourceListError(
            f"{path}: column '{id_name}' holds {id_N.max()}, which is more than an int64 "
            "can; number the sources anew"
        )
    id_N = id_N.astype(np.int64)
    if id_name is not None and id_name == columns.number:
        id_N = _identifiers(path, id_name, id_N, list_name)

    def numbers(wanted: str | None, needed: bool = False) -> NDArray[np.float64] | None:
        values_N = column(wanted, needed)
        try:
            if values_N is not None and values_N.dtype.kind not in "iufOSU":
                raise TypeError  # NumPy makes numbers of dates, and real ones of complex ones
            return None if values_N is None else np.asarray(values_N, dtype=np.float64)
        except (TypeError, ValueError):
            raise SourceListError(f"{path}: column '{wanted}' does not hold numbers") from None

    ra_N, dec_N = numbers(columns.ra, needed=True), numbers(columns.dec, needed=True)
    # Catalogues write 'no redshift' as -99, -1 or 0 as often as NaN; a galaxy's is positive.
    # Beyond the range of float32 it is none either.
    limits = np.finfo(np.float32)
    z_spec_N, labels = np.full(n, np.nan), {}
    for z_name in names_of(columns.z_spec):
        z_N = numbers(z_name)
        if z_N is not None:
            new_N = np.isnan(z_spec_N) & (z_N >= limits.tiny) & (z_N <= limits.max)
            z_spec_N[new_N] = z_N[new_N]
            labels[z_name] = int(np.count_nonzero(new_N))
    ebv_N = numbers(columns.ebv)
    if ebv_N is None and (a_v_N := numbers(columns.a_v)) is not None:
        ebv_N = a_v_N / A_V_OF_EBV
    ebv_N = np.full(n, np.nan) if ebv_N is None else ebv_N
    assert ra_N is not None
    assert dec_N is not None
    sources = Sources(
        source_id_N=id_N,
        ra_N=ra_N,
        dec_N=dec_N,
        z_spec_N=z_spec_N.astype(np.float32),
        # A map's noise may make it slightly negative; -99 and its like mean 'missing'.
        ebv_N=np.where((ebv_N >= -0.1) & (ebv_N <= limits.max), ebv_N, np.nan).astype(np.float32),
    )
    return sources, labels


def _identifiers(
    path: AnyPath, name: str, number_N: NDArray[np.int64], list_name: str
) -> NDArray[np.int64]:
    """Make identifiers that are unique over all lists of numbers that are unique in theirs.

    The list's name gives the digits before the last seven (a hash below 9e11, so that 10 000
    lists are told apart with a probability of 0.99994), the number the last seven.
    """
    if len(number_N) and not 0 <= number_N.min() <= number_N.max() < NUMBERS_PER_LIST:
        raise SourceListError(
            f"{path}: column '{name}' must hold 0 to {NUMBERS_PER_LIST - 1}, it holds "
            f"{number_N.min()} to {number_N.max()}; if it is unique over all lists, name it "
            "source_id under source_columns"
        )
    digest = hashlib.sha256(list_name.lower().encode()).digest()
    return (int.from_bytes(digest[:8], "big") % 900_000_000_000) * NUMBERS_PER_LIST + number_N
