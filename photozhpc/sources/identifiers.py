"""Identifiers of the rows of a source list."""

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean
from photozhpc.sources.table_file import TableFile, read_columns
from photozhpc.survey import SourceColumns, names_of

# An identifier made of a list's name and a number in it: the last seven digits are the number.
NUMBERS_PER_LIST = 10_000_000
# id, ID_2, objectId, TARGETID, obj_no, NUMBER, label, ...; not centroid, valid or num_exposures.
_LIKE_AN_IDENTIFIER = re.compile(
    r"(?i:(.*[^a-z])?(id|ids|ident|identifier)([^a-z].*)?)"
    r"|(?i:(.*[^a-z])?(number|num|nr|no|label|index|idx|recno|rownum|seq|oid|uid|uuid|name"
    r"|designation|key))"
    r"|.*[a-z](Id|ID|Number|No)(?![a-z]).*"
    r"|(?i:.*(obj|object|source|src|target|gal|galaxy|halo|star|spec|cat|catalog|row|det|entry)"
    r"(id|no|num|number|index))"
)


def read_identifiers(
    table: TableFile, columns: SourceColumns, *, is_only_list: bool, list_name: str
) -> tuple[NDArray[np.int64], str | None]:
    """Return the identifiers of the rows, and a note if the rows were numbered instead.

    Args:
        is_only_list: a list without identifiers may have its rows numbered from 0.
        list_name: tells the numbers of one list (`columns.number`) from another's.

    Raises:
        SourceListError: there are none, or they are no integers of 64 bits; or rows would be
            numbered though a column looks like their identifiers.
    """
    n = len(next(iter(table.columns.values()), np.empty(0)))
    # A pipeline that does not number its sources yet fills the column with zeros.
    name, known = next(
        (
            (wanted, known)
            for wanted in names_of(columns.source_id)
            if (known := table.find(wanted)) is not None
            and (n == 1 or columns.number is None or (table.columns[known] != 0).any())
        ),
        (columns.number, table.find(columns.number)),
    )
    if known is None:
        wanted = (*names_of(columns.source_id), *names_of(columns.number))
        if not is_only_list:
            raise SourceListError(
                f"{table.path}: the source list has no column '{(wanted or ('source_id',))[0]}'"
                f"{did_you_mean(str((wanted or ('source_id',))[0]), table.names)}; name the column "
                "of identifiers under source_columns in the survey's YAML file: of several lists, "
                "rows are not numbered"
            )
        return np.arange(n), _numbered(table, n, wanted)
    id_N = table.columns[known]
    if id_N.ndim != 1:
        raise SourceListError(
            f"{table.path}: column '{name}' must hold one value a row, it holds "
            f"{id_N.shape[1:]}; split it"
        )
    if id_N.dtype.kind == "f" and (n_empty := np.count_nonzero(np.isnan(id_N))):
        raise SourceListError(
            f"{table.path}: column '{name}' is empty (masked, null or NaN) in {n_empty} rows; "
            "every source needs an identifier of its own"
        )
    if not np.issubdtype(id_N.dtype, np.integer):
        raise SourceListError(
            f"{table.path}: column '{name}' must hold integers, it holds {id_N.dtype} such as "
            f"{id_N.tolist()[0]!r:.40}"
            "; write them as integers"
            + ("; numbers of float64 are not exact from 2^53 on" if id_N.dtype.kind == "f" else "")
        )
    if len(id_N) and id_N.max() > np.iinfo(np.int64).max:
        raise SourceListError(
            f"{table.path}: column '{name}' holds {id_N.max()}, which is more than an int64 "
            "can; number the sources anew"
        )
    id_N = id_N.astype(np.int64)
    if name == columns.number:
        id_N = _with_name_of_list(table, known, id_N, list_name)
    return id_N, None


def _numbered(table: TableFile, n: int, wanted: tuple[str, ...]) -> str | None:
    """Return a note that n rows were numbered.

    Raises:
        SourceListError: a column that looks like identifiers holds a different integer in each row.
    """
    alike = [name for name in table.names if _LIKE_AN_IDENTIFIER.fullmatch(name)]
    if not wanted or n < 2:
        alike = []
    if alike:
        read = read_columns(table.path, table.what, set(alike).__contains__)
        for name in alike:
            values_N = read.columns.get(name, np.empty(0))
            if _are_unique_integers(values_N):
                raise SourceListError(
                    f"{table.path}: the source list has no column '{wanted[0]}', and '{name}' "
                    f"looks like its identifiers: write source_columns: {{source_id: {name}}} in "
                    "the survey's YAML file, or {source_id: null} to number the rows from 0"
                )
    no_column = f"there is no column '{wanted[0]}'" if wanted else "the survey names no column"
    unused = (
        f" ('{alike[0]}' was not used: it is not a different integer in each row)" if alike else ""
    )
    return f"{table.path.name}: {no_column} of identifiers: the rows are numbered from 0{unused}"


def _are_unique_integers(values_N: NDArray) -> bool:
    if values_N.ndim != 1 or values_N.dtype.kind not in "iuf":
        return False
    if values_N.dtype.kind == "f" and not (values_N == np.floor(values_N)).all():
        return False
    return len(np.unique(values_N)) == len(values_N)


def _with_name_of_list(
    table: TableFile, name: str, number_N: NDArray[np.int64], list_name: str
) -> NDArray[np.int64]:
    """Make identifiers that are unique over all lists of numbers that are unique in theirs.

    The list's name gives the digits before the last seven (a hash below 9e11, so that 10 000
    lists are told apart with a probability of 0.99994), the number the last seven.
    """
    if len(number_N) and not 0 <= number_N.min() <= number_N.max() < NUMBERS_PER_LIST:
        raise SourceListError(
            f"{table.path}: column '{name}' must hold 0 to {NUMBERS_PER_LIST - 1}, it holds "
            f"{number_N.min()} to {number_N.max()}; if it is unique over all lists, name it "
            "source_id under source_columns"
        )
    digest = hashlib.sha256(list_name.lower().encode()).digest()
    return (int.from_bytes(digest[:8], "big") % 900_000_000_000) * NUMBERS_PER_LIST + number_N
