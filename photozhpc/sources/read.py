"""Source lists: tables -> Sources."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, one_line
from photozhpc.files.objects import AnyPath, location
from photozhpc.sources.identifiers import check_one_per_row, missing_column, read_identifiers
from photozhpc.sources.redshifts import Z_SPEC_MAX, Remarks, is_placeholder, usable_redshifts
from photozhpc.sources.sky_units import is_degrees, to_degrees, to_magnitudes, to_redshifts
from photozhpc.sources.table_file import TableFile, as_floats, read_columns
from photozhpc.survey import SourceColumns, names_of

# A_V / E(B-V) for the SFD map's E(B-V): Schlafly & Finkbeiner (2011), table 6, Landolt V. Not
# R_V = 3.1, which belongs to an E(B-V) without the map's calibration factor of 0.86.
A_V_OF_EBV = 2.742
EBV_MAX = 20.0  # beyond, no galaxy is visible


# Numbers and the unit that their table states -> numbers in the unit that is needed; raises
# ValueError where that unit cannot be converted.
InUnit = Callable[[NDArray[np.float64], str], NDArray[np.float64]]


@dataclass(frozen=True)
class Sources:
    """Sources to measure.

    Attributes:
        source_id_N: unique identifiers, int64.
        ra_N, dec_N: ICRS degrees, float64.
        z_spec_N: spectroscopic redshifts, float32; NaN = unlabelled.
        ebv_N: Galactic E(B-V), magnitudes, float32. After reading, NaN where the list has none
            or marks it as missing (not finite, below -0.1 or above 20, such as -99); see `dust`.
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
        return Sources(*(values_N[rows] for values_N in vars(self).values()))


@dataclass(frozen=True)
class JoinedLists:
    """Sources of several lists.

    Attributes:
        list_N: index of each source's list.
        labels: number of labels from each column.
        columns: {what it holds: its column} of the first list, for what the list has.
        unused: the other columns of the first list.
        notes: lines about values that were ignored, converted, or numbered.
    """

    sources: Sources
    list_N: NDArray[np.int64]
    labels: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def read_sources(paths: Iterable[str | AnyPath], columns: SourceColumns) -> Sources:
    """Read and join source lists as `read_source_lists` does; E(B-V) is 0 where a list has none."""
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
        list_name: name of a path's list, to distinguish its numbers (`columns.number`).
        z_spec_max: upper limit of a label.

    Raises:
        SourceListError: a file is missing or damaged, a required column is missing or states an
            unsupported unit or frame, a position is not on the sky, or a source_id appears twice.
    """
    files = [location(path) for path in paths]
    column_names = {name.lower() for value in vars(columns).values() for name in names_of(value)}
    remarks = Remarks()
    notes: list[str] = []
    labels = dict.fromkeys(names_of(columns.z_spec), 0)
    parts: list[Sources] = []
    used: dict[str, str] = {}
    unused: tuple[str, ...] = ()
    for path in files:
        table = read_columns(path, "source list", lambda name: name.lower() in column_names)
        if not parts:
            used = _columns_used(table, columns)
            unused = tuple(name for name in table.names if name.lower() not in column_names)
        id_N, note = read_identifiers(
            table, columns, is_only_list=len(files) == 1, list_name=list_name(path)
        )
        notes += [*table.notes, *([] if note is None else [note])]
        parts.append(sources_of(table, columns, id_N, z_spec_max, remarks, labels))
    if not parts:
        raise SourceListError("no source list was given; pass one with --sources FILE")
    joined = Sources(*map(np.concatenate, zip(*(vars(p).values() for p in parts), strict=True)))
    list_N = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    _check_unique(joined.source_id_N, list_N, files)
    return JoinedLists(joined, list_N, labels, (*notes, *remarks.lines()), used, unused)


def _columns_used(table: TableFile, columns: SourceColumns) -> dict[str, str]:
    """Return {what: column}; labels may come from several."""
    used = {}
    for what, names in vars(columns).items():
        there = [column for name in names_of(names) if (column := table.find(name)) is not None]
        if there:
            used[what] = " + ".join(there if what == "z_spec" else there[:1])
    if "source_id" in used:
        used.pop("number", None)
    if "ebv" in used:
        used.pop("a_v", None)
    return used


def _check_unique(id_N: NDArray[np.int64], list_N: NDArray[np.int64], files: list[AnyPath]) -> None:
    """Check that no identifier appears twice; takes a sorted copy, 8 bytes per source."""
    sorted_N = np.sort(id_N)
    twice_N = sorted_N[1:] == sorted_N[:-1]
    if not twice_N.any():
        return
    repeated = sorted_N[1:][np.argmax(twice_N)]
    row_M = np.flatnonzero(id_N == repeated)
    paths = dict.fromkeys(str(files[index]) for index in list_N[row_M])
    raise SourceListError(
        f"{' and '.join(list(paths)[:2])}: source_id {repeated} appears {len(row_M)} times "
        f"({np.count_nonzero(twice_N)} repeated rows in all); give every source its own identifier"
    )


def sources_of(
    table: TableFile,
    columns: SourceColumns,
    id_N: NDArray[np.int64],
    z_spec_max: float,
    remarks: Remarks,
    labels: dict[str, int],
) -> Sources:
    """Return the sources of a table, as `read_source_lists` does.

    Args:
        labels: with an entry for each of columns.z_spec; receives the number of its labels.
    """
    ra_N, dec_N = _positions(table, columns, remarks)
    z_spec_N = np.full(len(id_N), np.nan)
    for name in names_of(columns.z_spec):
        value_N = _numbers(table, name, to_redshifts)
        if value_N is not None:
            remedy = "set z_spec_max in the survey's YAML file to less"
            z_N = usable_redshifts(value_N, name, remarks, z_spec_max, remedy)
            new_N = np.isnan(z_spec_N) & ~np.isnan(z_N)
            z_spec_N[new_N] = z_N[new_N]
            labels[name] += int(np.count_nonzero(new_N))
    ebv_N = np.full(len(id_N), np.nan)
    ebv_columns = [name for name in names_of(columns.ebv) if table.find(name) is not None]
    for name in ebv_columns or names_of(columns.a_v):
        value_N = _numbers(table, name, to_magnitudes)
        if value_N is not None:
            value_N = value_N if ebv_columns else value_N / A_V_OF_EBV
            ebv_N = np.where(np.isnan(ebv_N), usable_ebv(value_N, name, remarks), ebv_N)
    return Sources(id_N, ra_N, dec_N, z_spec_N.astype(np.float32), ebv_N.astype(np.float32))


def usable_ebv(value_N: NDArray[np.float64], column: str, remarks: Remarks) -> NDArray[np.float64]:
    """Return the E(B-V) among the values of a column, NaN elsewhere."""
    # A map's noise may make it slightly negative; -99 and the like mean 'missing'.
    wrong_N = ~(value_N >= -0.1) | (value_N > EBV_MAX) | is_placeholder(value_N)
    too_large_N = wrong_N & (value_N > 0)
    remarks.add(
        int(np.count_nonzero(too_large_N)),
        f"values of '{column}' are not E(B-V) and count as missing",
        np.unique(value_N[too_large_N])[:6],
    )
    return np.where(wrong_N, np.nan, value_N)


def _positions(
    table: TableFile, columns: SourceColumns, remarks: Remarks
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ra_N, dec_N in degrees; NaN where a list writes -99 or the like for 'no position'.

    Raises:
        SourceListError: a column is missing or has an unsupported unit or frame, or a position is
            not on the sky.
    """
    if columns.ra is None or columns.dec is None:
        n = len(next(iter(table.columns.values()), np.empty(0)))
        return np.full(n, np.nan), np.full(n, np.nan)
    axes = [
        _angles(table, columns.ra, 360.0, partial(to_degrees, hours=True), remarks),
        _angles(table, columns.dec, 90.0, partial(to_degrees, hours=False), remarks),
    ]
    nowhere_N = np.isnan(axes).any(axis=0)  # -99 alone is a valid right ascension
    ra_N, dec_N = (np.where(nowhere_N, np.nan, value_N) for value_N in axes)
    return ra_N, dec_N


def _angles(
    table: TableFile, name: str, limit: float, in_degrees: InUnit, remarks: Remarks
) -> NDArray[np.float64]:
    column = table.find(name)
    if column is None:
        is_catalogue = table.what == "photometric catalogue"
        remark = "null: the catalogue has no positions" if is_catalogue else ""
        raise missing_column(table, name, remark)
    frame, unit = table.frames.get(column, ""), table.units.get(column, "")
    values_N = table.columns[column]
    # FK5 J2000 agrees with ICRS to 0.03 arcsec, and is often just another word for it.
    if frame and not _ICRS.fullmatch(frame.strip()):
        raise SourceListError(
            f"{table.path}: column '{column}' is in the frame '{frame[:40]}'; give positions in "
            "ICRS, if necessary in other columns named under source_columns"
        )
    if "fk5" in frame.lower():
        remark = f"values of '{column}' are FK5 J2000 and were used as ICRS (within 0.03 arcsec)"
        remarks.add(len(values_N), remark)
    if values_N.dtype == np.float16:
        raise SourceListError(
            f"{table.path}: column '{column}' holds float16, too coarse for positions; write it "
            "as float64"
        )
    value_N = _numbers(table, column, in_degrees)
    assert value_N is not None
    if not is_degrees(unit):
        remarks.add(len(value_N), f"values of '{column}' were converted from {unit} to degrees")
    off_N = np.abs(value_N) > limit * (1 + 1e-9)
    if off_N.any():
        raw_N = as_floats(values_N)
        lost_N = off_N & is_placeholder(raw_N)
        if (off_N & ~lost_N).any():
            worst = value_N[np.argmax(off_N & ~lost_N)]
            raise SourceListError(
                f"{table.path}: column '{column}' holds {worst:.6g} degrees, which is not on "
                f"the sky; give degrees, or state the unit in the table"
            )
        remarks.add(
            int(np.count_nonzero(lost_N)),
            f"values of '{column}' are not positions and count as missing",
            np.unique(raw_N[lost_N])[:6],
        )
        value_N = np.where(lost_N, np.nan, value_N)
    if values_N.dtype == np.float32 and len(value_N):
        step = np.spacing(np.nanmax(np.abs(values_N), initial=0.0))
        step_arcsec = float(in_degrees(np.full(1, 3600.0 * step), unit)[0])
        remarks.add(
            len(value_N),
            f"values of '{column}' are float32: positions in steps of {step_arcsec:.2g} arcsec; "
            "write them as float64",
        )
    return value_N


_ICRS = re.compile(r"icrs( .*)?|(eq_)?fk5( J?2000(\.0*)?)?", re.IGNORECASE)


def _numbers(table: TableFile, name: str, in_unit: InUnit) -> NDArray[np.float64] | None:
    """Return the numbers of a column in the unit that is needed; None: there is no such column."""
    column = table.find(name)
    if column is None:
        return None
    check_one_per_row(table, column)
    try:
        value_N = as_floats(table.columns[column])
    except (TypeError, ValueError) as error:
        raise SourceListError(
            f"{table.path}: column '{column}' does not hold numbers ({one_line(error)})"
        ) from None
    try:
        return in_unit(value_N, table.units.get(column, ""))
    except ValueError as error:
        raise SourceListError(f"{table.path}: column '{column}': {error}; convert it") from None
