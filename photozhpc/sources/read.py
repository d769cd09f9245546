"""Source lists: tables -> Sources."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean, one_line
from photozhpc.files.objects import AnyPath, location
from photozhpc.sources.identifiers import read_identifiers
from photozhpc.sources.redshifts import Z_SPEC_MAX, Remarks, is_placeholder, usable_redshifts
from photozhpc.sources.sky_units import is_degrees, to_degrees, to_magnitudes, to_redshifts
from photozhpc.sources.table_file import TableFile, as_floats, read_columns
from photozhpc.survey import SourceColumns, names_of

# A_V of the E(B-V) of the SFD map: Schlafly & Finkbeiner (2011), table 6, Landolt V. Not R_V = 3.1,
# which belongs to an E(B-V) without the map's calibration error of 0.86.
A_V_OF_EBV = 2.742
# Beyond, no galaxy is seen.
EBV_MAX = 20.0


@dataclass(frozen=True)
class Sources:
    """Sources to measure.

    Attributes:
        source_id_N: unique identifiers, int64.
        ra_N, dec_N: ICRS degrees, float64.
        z_spec_N: spectroscopic redshifts, float32; NaN = unlabelled.
        ebv_N: Galactic E(B-V), magnitudes, float32. As it is read, NaN where the list has none,
            or writes it as missing (not finite, below -0.1 or above 20, such as -99); see `dust`.
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
        notes: lines on what was taken for missing, converted, or numbered.
    """

    sources: Sources
    list_N: NDArray[np.int64]
    labels: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_sources(paths: Iterable[str | AnyPath], columns: SourceColumns) -> Sources:
    """Read and join source lists, as read_source_lists; E(B-V) is 0 where a list has none."""
    sources = read_source_lists(paths, columns).sources
    return replace(sources, ebv_N=np.nan_to_num(sources.ebv_N))


def read_source_lists(
    paths: Iterable[str | AnyPath],
    columns: SourceColumns,
    list_name: Callable[[AnyPath], str] = lambda path: path.stem,
    z_spec_max: float = Z_SPEC_MAX,
) -> JoinedLists:
    """Read and join source lists, with the survey's column names.

    The rows of a single list without identifiers are numbered from 0.

    Args:
        list_name: of a path; tells the numbers of one list (`columns.number`) from another's.
        z_spec_max: no label is above it.

    Raises:
        SourceListError: a file is missing or damaged, a column that is needed is missing or
            states another unit or frame than can be read, a position is not on the sky, or a
            source_id stands in the lists twice.
    """
    files = [location(path) for path in paths]
    remarks = Remarks()
    notes: list[str] = []
    labels = dict.fromkeys(names_of(columns.z_spec), 0)
    parts = []
    for path in files:
        table = read_columns(path, "source list", _is_of(columns))
        id_N, note = read_identifiers(
            table, columns, is_only_list=len(files) == 1, list_name=list_name(path)
        )
        notes += [*table.notes, *([] if note is None else [note])]
        parts.append(_sources_of(table, columns, id_N, z_spec_max, remarks, labels))
    if not parts:
        raise SourceListError("no source list was given; pass one with --sources FILE")
    joined = Sources(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
    list_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    _check_unique(joined.source_id_N, list_N, files)
    return JoinedLists(joined, list_N, labels, (*notes, *remarks.lines()))


_FIELDS = ("source_id_N", "ra_N", "dec_N", "z_spec_N", "ebv_N")


def _is_of(columns: SourceColumns) -> Callable[[str], bool]:
    known = {name.lower() for value in vars(columns).values() for name in names_of(value)}
    return lambda name: name.lower() in known


def _check_unique(id_N: NDArray[np.int64], list_N: NDArray[np.int64], files: list[AnyPath]) -> None:
    """Check that no identifier is there twice: one sorted copy, 8 bytes a source."""
    sorted_N = np.sort(id_N)
    twice_N = sorted_N[1:] == sorted_N[:-1]
    if not twice_N.any():
        return
    repeated = sorted_N[1:][np.argmax(twice_N)]
    row_M = np.flatnonzero(id_N == repeated)
    where = dict.fromkeys(str(files[index]) for index in list_N[row_M])
    raise SourceListError(
        f"{' and '.join(list(where)[:2])}: source_id {repeated} stands {len(row_M)} times in the "
        f"source list ({np.count_nonzero(twice_N)} rows too many in all); every source needs an "
        "identifier of its own"
    )


def _sources_of(
    table: TableFile,
    columns: SourceColumns,
    id_N: NDArray[np.int64],
    z_spec_max: float,
    remarks: Remarks,
    labels: dict[str, int],
) -> Sources:
    """Return the sources of a list; count in `labels` how many are from which column."""
    n = len(id_N)
    ra_N, dec_N = _positions(table, columns, remarks)
    z_spec_N = np.full(n, np.nan)
    for name in names_of(columns.z_spec):
        value_N = _numbers(table, name, to_redshifts)
        if value_N is not None:
            remedy = "set z_spec_max in the survey's YAML file below it"
            z_N = usable_redshifts(value_N, name, remarks, z_spec_max, remedy)
            new_N = np.isnan(z_spec_N) & ~np.isnan(z_N)
            z_spec_N[new_N] = z_N[new_N]
            labels[name] += int(np.count_nonzero(new_N))
    return Sources(id_N, ra_N, dec_N, z_spec_N.astype(np.float32), _ebv(table, columns, n, remarks))


def _ebv(table: TableFile, columns: SourceColumns, n: int, remarks: Remarks) -> NDArray[np.float32]:
    """Return E(B-V), magnitudes; NaN where the list has none, or writes it as missing."""
    ebv_N = np.full(n, np.nan)
    names = [name for name in names_of(columns.ebv) if table.find(name) is not None]
    for name in names or names_of(columns.a_v):
        value_N = _numbers(table, name, to_magnitudes)
        if value_N is not None:
            found_N = usable_ebv(value_N if names else value_N / A_V_OF_EBV, name, remarks)
            ebv_N = np.where(np.isnan(ebv_N), found_N, ebv_N)
    return ebv_N.astype(np.float32)


def usable_ebv(value_N: NDArray[np.float64], column: str, remarks: Remarks) -> NDArray[np.float64]:
    # A map's noise may make it slightly negative; -99 and its like mean 'missing'.
    wrong_N = ~(value_N >= -0.1) | (value_N > EBV_MAX) | is_placeholder(value_N)
    too_large_N = wrong_N & (value_N > 0)
    remarks.add(
        int(np.count_nonzero(too_large_N)),
        f"values of '{column}' are no E(B-V), and taken for missing",
        np.unique(value_N[too_large_N])[:6],
    )
    return np.where(wrong_N, np.nan, value_N)


def _positions(
    table: TableFile, columns: SourceColumns, remarks: Remarks
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ra_N, dec_N in degrees; NaN where a list writes -99 or its like for 'nowhere'.

    Raises:
        SourceListError: a column is missing, or of a unit or frame that cannot be read, or a
            position is not on the sky.
    """
    found = []
    for name, limit, hours in ((columns.ra, 360.0, True), (columns.dec, 90.0, False)):
        known = _needed(table, name)
        frame = table.frames.get(known, "")
        # FK5 of J2000 is ICRS to 0.03 arcsec, and as often as not a word for it.
        if frame and not _ICRS.fullmatch(frame.strip()):
            raise SourceListError(
                f"{table.path}: column '{known}' is in the frame '{frame[:40]}'; give positions in "
                "ICRS, under other names in source_columns if need be"
            )
        remarks.add(
            len(table.columns[known]) * bool(frame and "fk5" in frame.lower()),
            f"values of '{known}' are FK5 of J2000, and taken as ICRS (0.03 arcsec at most)",
        )
        unit = table.units.get(known, "")
        if table.columns[known].dtype == np.float16:
            raise SourceListError(
                f"{table.path}: column '{known}' holds numbers of 16 bits, which are no positions"
            )
        value_N = _numbers(table, name, partial(to_degrees, hours=hours))
        assert value_N is not None
        if not is_degrees(unit):
            remarks.add(len(value_N), f"values of '{known}' converted from {unit} to degrees")
        off_N = np.abs(value_N) > limit * (1 + 1e-9)
        if off_N.any():
            raw_N = _numbers(table, name, lambda it, unit: it)
            assert raw_N is not None
            lost_N = off_N & is_placeholder(raw_N)
            if (off_N & ~lost_N).any():
                worst = value_N[np.argmax(off_N & ~lost_N)]
                raise SourceListError(
                    f"{table.path}: column '{known}' holds {worst:.6g} degrees, which is not on "
                    f"the sky; positions are degrees, unless the table states another unit"
                )
            remarks.add(
                int(np.count_nonzero(lost_N)),
                f"values of '{known}' are no positions, and taken for missing",
                np.unique(raw_N[lost_N])[:6],
            )
            value_N = np.where(lost_N, np.nan, value_N)
        if table.columns[known].dtype == np.float32 and len(value_N):
            step = np.spacing(np.nanmax(np.abs(table.columns[known]), initial=0.0))
            step_arcsec = float(to_degrees(np.full(1, 3600.0 * step), unit, hours=hours)[0])
            remarks.add(
                len(value_N),
                f"values of '{known}' are numbers of 32 bits: positions in steps of "
                f"{step_arcsec:.2g} arcsec; write them as float64",
            )
        found.append(value_N)
    nowhere_N = np.isnan(found[0]) | np.isnan(found[1])  # -99 is on the sky as a right ascension
    return np.where(nowhere_N, np.nan, found[0]), np.where(nowhere_N, np.nan, found[1])


_ICRS = re.compile(r"icrs( .*)?|(eq_)?fk5( J?2000(\.0*)?)?", re.IGNORECASE)


def _needed(table: TableFile, name: str) -> str:
    known = table.find(name)
    if known is None:
        raise SourceListError(
            f"{table.path}: the source list has no column '{name}'"
            f"{did_you_mean(name, table.names)}; name it under source_columns in the "
            f"survey's YAML file"
        )
    return known


def _numbers(
    table: TableFile, wanted: str, in_unit: Callable[[NDArray[np.float64], str], Any]
) -> NDArray[np.float64] | None:
    """Return the numbers of a column, in the unit that is needed; None: there is no such column.

    Args:
        in_unit: given numbers and the unit that the table states; raises ValueError, where it
            cannot be.
    """
    name = table.find(wanted)
    if name is None:
        return None
    values = table.columns[name]
    if values.ndim != 1:
        raise SourceListError(
            f"{table.path}: column '{wanted}' must hold one value a row, it holds "
            f"{values.shape[1:]}; split it"
        )
    try:
        value_N = as_floats(values)
    except (TypeError, ValueError) as error:
        raise SourceListError(
            f"{table.path}: column '{wanted}' does not hold numbers ({one_line(error)})"
        ) from None
    unit = table.units.get(name, "")
    try:
        return in_unit(value_N, unit)
    except ValueError as error:
        raise SourceListError(f"{table.path}: column '{name}': {error}; convert it") from None
