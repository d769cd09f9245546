"""Reference redshifts: truth tables, and the labels of a store."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean, first_few, one_line
from photozhpc.files.objects import AnyPath, expand_glob, location
from photozhpc.sources.identifiers import ids_of_text
from photozhpc.sources.redshifts import Remarks, is_placeholder, usable_redshifts
from photozhpc.sources.sky_units import to_redshifts
from photozhpc.sources.table_file import as_floats, read_columns
from photozhpc.store import open_store
from photozhpc.survey import SourceColumns, Survey, names_of

# The first that a table has counts; galaxy_id and redshift are OpenUniverse2024's.
_Z_NAMES = {"z_true": "true", "z_spec": "spectroscopic", "redshift": "true"}
_ID_NAMES = ("source_id", "galaxy_id")
# NumPy's kinds that a column may have; of all others "iuf".
_KINDS = {
    **dict.fromkeys(_ID_NAMES, "iuOSU"),
    **dict.fromkeys(_Z_NAMES, "iufOSU"),
    "is_star": "biufO",
}
_MAGNITUDE_PREFIX = "mag_"


@dataclass(frozen=True)
class Truth:
    """Reference redshifts of galaxies, sorted by source_id.

    Attributes:
        z_kind: what z_ref is, in words: "true", "spectroscopic", or "reference" for both.
        magnitudes: AB magnitudes (N,) by band, in lower case, of the bands for which every table
            has a column mag_{band}.
        notes: lines about values that count as missing.
    """

    source_id_N: NDArray[np.int64]
    z_ref_N: NDArray[np.float64]
    z_kind: str
    magnitudes: dict[str, NDArray[np.float64]]
    notes: tuple[str, ...] = ()


def truth_tables(paths: Sequence[str | AnyPath]) -> list[AnyPath]:
    """Return the files that paths, URLs and globs name; a glob without matches stays as it is."""
    return [file for path in paths for file in expand_glob(location(path))]


def read_truth(paths: Sequence[str | AnyPath], columns: SourceColumns | None = None) -> Truth:
    """Read the galaxies with a redshift from truth tables, in any format of a source list.

    Args:
        paths: tables, or globs of them, with source_id and z_true (or z_spec), or with galaxy_id
            and redshift, and optionally is_star (not 0: left out) and mag_{band}; or stores, whose
            labels are used. `usable_redshifts` decides what is a redshift.
        columns: what else a table may call its source_id and z_spec.

    Raises:
        SourceListError: a table is missing, damaged, or has no source_id or no z_true (or z_spec);
            or a source_id appears twice.
    """
    remarks = Remarks()
    tables = [_read_one(path, remarks, columns) for path in truth_tables(paths)]
    bands = set.intersection(*(set(table.magnitudes) for table in tables))
    kinds = {table.z_kind for table in tables}
    truth = Truth(
        np.concatenate([table.source_id_N for table in tables]),
        np.concatenate([table.z_ref_N for table in tables]),
        kinds.pop() if len(kinds) == 1 else "reference",
        {band: np.concatenate([table.magnitudes[band] for table in tables]) for band in bands},
        (*(note for table in tables for note in table.notes), *remarks.lines()),
    )
    truth = _rows(truth, np.argsort(truth.source_id_N, kind="stable"))
    twice_N = truth.source_id_N[1:] == truth.source_id_N[:-1]
    if twice_N.any():
        raise SourceListError(
            f"{tables_text(paths)}: source_id {truth.source_id_N[1:][twice_N][0]} is in the truth "
            f"more than once ({np.count_nonzero(twice_N)} extra rows); keep one row per source"
        )
    return _rows(truth, np.flatnonzero(np.isfinite(truth.z_ref_N)))


def store_labels(store_path: str | AnyPath, survey: Survey | None = None) -> Truth:
    """Return the spectroscopic redshifts in a store, or in a photometric catalogue.

    Args:
        survey: says what the columns of the catalogue are.

    Raises:
        StoreError, SourceListError: it is damaged.
    """
    store = open_store(store_path, survey)
    ids, labels = [np.empty(0, np.int64)], [np.empty(0)]
    for key in store.shards():
        sources = store.read_sources(key)
        labelled_N = np.isfinite(sources.z_spec_N)
        ids.append(sources.source_id_N[labelled_N])
        labels.append(sources.z_spec_N[labelled_N].astype(np.float64))
    remarks = Remarks()
    z_ref_N = usable_redshifts(np.concatenate(labels), "z_spec", remarks)
    usable_N = np.isfinite(z_ref_N)
    notes = tuple(remarks.lines())
    truth = Truth(np.concatenate(ids)[usable_N], z_ref_N[usable_N], "spectroscopic", {}, notes)
    return _rows(truth, np.argsort(truth.source_id_N, kind="stable"))


def tables_text(paths: Sequence[str | AnyPath]) -> str:
    """Return the first of the tables and how many more there are."""
    return first_few(paths, 1, " ")


def _rows(truth: Truth, row_N: NDArray[np.intp]) -> Truth:
    return Truth(
        truth.source_id_N[row_N],
        truth.z_ref_N[row_N],
        truth.z_kind,
        {band: mag_N[row_N] for band, mag_N in truth.magnitudes.items()},
        truth.notes,
    )


def _read_one(path: AnyPath, remarks: Remarks, own: SourceColumns | None) -> Truth:
    """Read every row of a table, in its order; z_ref is NaN where there is no redshift."""
    if path.is_dir():
        return store_labels(path)
    own_names = {} if own is None else {"source_id": own.source_id, "z_spec": own.z_spec}
    known = {name.lower() for names in own_names.values() for name in names_of(names)}
    table = read_columns(
        path, "truth table", lambda name: _is_truth_column(name) or name.lower() in known
    )
    table_name = {name: table.find(name) for name in (*_ID_NAMES, "is_star", *_Z_NAMES)}
    for name, names in own_names.items():
        found = [column for column in map(table.find, names_of(names)) if column is not None]
        table_name[name] = table_name[name] or next(iter(found), None)
    columns = {name: table.columns[own] for name, own in table_name.items() if own is not None}
    columns |= {
        name: values for name, values in table.columns.items() if name.startswith(_MAGNITUDE_PREFIX)
    }
    id_name = next((name for name in _ID_NAMES if name in columns), "source_id")
    if id_name == "source_id":
        columns.pop("redshift", None)  # only in OpenUniverse2024 is it clear which one that is
    z_name = next((name for name in _Z_NAMES if name in columns), "z_true")
    for name in (id_name, z_name):
        if name not in columns:
            remedy = "; --survey says what other names mean" if own is None else ""
            raise SourceListError(
                f"{path}: the truth table has no column '{name}'{did_you_mean(name, table.names)}"
                f"{remedy}"
            )
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in _KINDS.get(name, "iuf"):
            raise SourceListError(
                f"{path}: column '{name}' of the truth table does not hold one "
                f"{'identifier' if name in _ID_NAMES else 'number'} per row ({column.dtype})"
            )
    for name in columns:
        table.find(name)  # raises if two columns have this name
    id_N = columns[id_name]
    if id_N.dtype.kind in "OSU":  # as in a photometric catalogue
        id_N = ids_of_text(id_N, f"{path}: column '{id_name}'")
    if len(id_N) and id_N.max() > np.iinfo(np.int64).max:
        raise SourceListError(
            f"{path}: column '{id_name}' contains {id_N.max()}, more than an int64 can hold; "
            "use the identifiers of the catalogue"
        )
    z_unit = table.units.get(table_name[z_name] or "", "")
    try:
        z_ref_N = np.array(to_redshifts(as_floats(columns[z_name]), z_unit))
    except (TypeError, ValueError) as error:
        raise SourceListError(
            f"{path}: column '{z_name}' of the truth table: {one_line(error)}; "
            "convert it to redshifts"
        ) from None
    if "is_star" in columns:
        z_ref_N[_is_star(path, columns["is_star"], remarks)] = np.nan
    z_ref_N = usable_redshifts(z_ref_N, z_name, remarks)
    magnitudes = {
        name.removeprefix(_MAGNITUDE_PREFIX).lower(): np.where(
            is_placeholder(column), np.nan, column.astype(np.float64)
        )
        for name, column in columns.items()
        if name.startswith(_MAGNITUDE_PREFIX)
    }
    return Truth(id_N.astype(np.int64), z_ref_N, _Z_NAMES[z_name], magnitudes, tuple(table.notes))


def _is_star(path: AnyPath, values_N: NDArray, remarks: Remarks) -> NDArray[np.bool_]:
    """Return whether each row is not a galaxy: a star, or masked or null in this column."""
    try:
        star_N = as_floats(values_N.astype(np.int8) if values_N.dtype.kind == "b" else values_N)
    except (TypeError, ValueError) as error:
        raise SourceListError(
            f"{path}: column 'is_star' of the truth table: {one_line(error)}; write 0 and 1"
        ) from None
    remarks.add(
        int(np.count_nonzero(np.isnan(star_N))),
        "values of 'is_star' are missing, and their rows left out",
    )
    return star_N != 0


def _is_truth_column(name: str) -> bool:
    return name.lower() in (*_ID_NAMES, "is_star", *_Z_NAMES) or name.startswith(_MAGNITUDE_PREFIX)
