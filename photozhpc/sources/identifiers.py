"""Identifiers of a source list's rows."""

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import SourceListError, did_you_mean
from photozhpc.sources.table_file import TableFile, read_columns
from photozhpc.survey import SourceColumns, names_of

# In an identifier made of a list's name and a number, the last seven digits are the number.
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
    table: TableFile,
    columns: SourceColumns,
    *,
    is_only_list: bool,
    list_name: str,
) -> tuple[NDArray[np.int64], str | None]:
    """Return the identifiers of the rows, and a note if they are not in the table as they are.

    Text stands for an integer, see `id_of_text`; without a column the rows are numbered.

    Args:
        is_only_list: the rows of an only list without identifiers may be numbered from 0.
        list_name: distinguishes the numbers of this list (`columns.number`) from another's.

    Raises:
        SourceListError: there are none, or they are numbers but not integers of 64 bits; or rows
            would be numbered although a column looks like their identifiers.
    """
    n = len(next(iter(table.columns.values()), np.empty(0)))
    # A pipeline that does not number its sources may fill the column with zeros.
    name, column = next(
        (
            (candidate, column)
            for candidate in names_of(columns.source_id)
            if (column := table.find(candidate)) is not None
            and (n == 1 or columns.number is None or (table.columns[column] != 0).any())
        ),
        (columns.number, table.find(columns.number)),
    )
    if column is None:
        candidates = (*names_of(columns.source_id), *names_of(columns.number))
        if not is_only_list:
            raise missing_column(
                table,
                candidates[0] if candidates else "source_id",
                "several lists need identifiers",
            )
        return np.arange(n), _numbered(table, n, candidates)
    id_N = table.columns[column]
    check_one_per_row(table, column)
    if id_N.dtype.kind == "f" and (n_empty := np.count_nonzero(np.isnan(id_N))):
        raise SourceListError(
            f"{table.path}: column '{name}' is empty (masked, null or NaN) in {n_empty} rows; "
            "give every source an identifier"
        )
    if id_N.dtype.kind in "OSU" and name != columns.number:
        number_N = ids_of_text(id_N, f"{table.path}: column '{name}'")
        first = _as_text(id_N.tolist()[0]) if len(id_N) else ""
        is_number = not len(id_N) or str(number_N[0]) == first
        note = f"{table.path.name}: '{name}' is text; source_id is its hash ('{first}': "
        return number_N, None if is_number else f"{note}{number_N[0]})"
    if id_N.dtype.kind == "f" and _are_exact_integers(id_N):
        id_N = id_N.astype(np.int64)
    if not np.issubdtype(id_N.dtype, np.integer):
        raise SourceListError(
            f"{table.path}: column '{name}' must hold integers, it holds {id_N.dtype} such as "
            f"{id_N.tolist()[0]!r:.40}; write them as integers"
            + (" (float64 is exact only below 2^53)" if id_N.dtype.kind == "f" else "")
        )
    if len(id_N) and id_N.max() > np.iinfo(np.int64).max:
        raise SourceListError(
            f"{table.path}: column '{name}' holds {id_N.max()}, which does not fit an int64; "
            "renumber the sources"
        )
    id_N = id_N.astype(np.int64)
    if name == columns.number:
        id_N = _with_list_name(table, column, id_N, list_name)
    return id_N, None


def _are_exact_integers(value_N: NDArray[np.floating]) -> bool:
    """Whether floats are whole, and so small that no other integer became the same float."""
    limit = 2 ** (np.finfo(value_N.dtype).nmant + 1)
    return bool(((value_N == np.rint(value_N)) & (np.abs(value_N) < limit)).all())


def ids_of_text(text_N: NDArray, where: str) -> NDArray[np.int64]:
    """Return `id_of_text` of every row.

    Args:
        where: file and column, for errors.

    Raises:
        SourceListError: rows are empty.
    """
    texts = [_as_text(value) for value in text_N.tolist()]
    if n_empty := texts.count(""):
        raise SourceListError(
            f"{where} is empty in {n_empty} rows; give every source an identifier"
        )
    return np.array([id_of_text(text) for text in texts], np.int64)


def id_of_text(text: str) -> int:
    """Return the identifier of 64 bits that stands for a text.

    It is the number itself where the text is a whole number, and otherwise the first 63 bits of the
    text's SHA-256: among 10 million texts, two have the same with a probability of 5e-6.
    """
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _as_text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return "" if text is None or text != text else str(text).strip()


def missing_column(table: TableFile, name: str, remark: str = "") -> SourceListError:
    """Return the error for a source list without a column that it must have."""
    return SourceListError(
        f"{table.path}: the {table.what} has no column '{name}'{did_you_mean(name, table.names)}; "
        f"name it under source_columns in the survey's YAML file{remark and f' ({remark})'}"
    )


def check_one_per_row(table: TableFile, column: str) -> None:
    """Raise SourceListError if a column holds several values per row."""
    values = table.columns[column]
    if values.ndim != 1:
        raise SourceListError(
            f"{table.path}: column '{column}' must hold one value per row, it holds "
            f"{values.shape[1:]}; split it"
        )


def _numbered(table: TableFile, n: int, candidates: tuple[str, ...]) -> str:
    """Return a note that n rows were numbered.

    Args:
        candidates: the names that the survey gives the column of identifiers.

    Raises:
        SourceListError: a column that looks like identifiers holds a different integer or text in
            each row.
    """
    unused = ""
    alike = [name for name in table.names if _LIKE_AN_IDENTIFIER.fullmatch(name)]
    if alike and candidates and n > 1:
        read = read_columns(table.path, table.what, set(alike).__contains__)
        for name in alike:
            if _are_identifiers(read.columns.get(name, np.empty(0))):
                raise SourceListError(
                    f"{table.path}: the source list has no column '{candidates[0]}', but '{name}' "
                    f"looks like its identifiers; write source_columns: {{source_id: {name}}} in "
                    "the survey's YAML file, or {source_id: null} to number the rows from 0"
                )
        unused = f" ('{alike[0]}' was not used: its rows do not hold different values)"
    lacks = f"there is no column '{candidates[0]}'" if candidates else "the survey names no column"
    return f"{table.path.name}: {lacks} of identifiers: the rows are numbered from 0{unused}"


def _are_identifiers(values_N: NDArray) -> bool:
    """Whether every row holds another integer, or another text."""
    if values_N.ndim != 1:
        return False
    if values_N.dtype.kind in "OSU":
        texts = set(map(_as_text, values_N.tolist()))
        return "" not in texts and len(texts) == len(values_N)
    return (
        values_N.dtype.kind in "iuf"
        and bool((values_N == np.floor(values_N)).all())
        and len(np.unique(values_N)) == len(values_N)
    )


def _with_list_name(
    table: TableFile, name: str, number_N: NDArray[np.int64], list_name: str
) -> NDArray[np.int64]:
    """Turn numbers that are unique within their list into identifiers that are unique over all.

    The list's name gives the digits before the last seven (a hash below 9e11: 10 000 lists all
    differ with a probability of 0.99994), the number the last seven.
    """
    if len(number_N) and not 0 <= number_N.min() <= number_N.max() < NUMBERS_PER_LIST:
        raise SourceListError(
            f"{table.path}: column '{name}' must hold 0 to {NUMBERS_PER_LIST - 1}, it holds "
            f"{number_N.min()} to {number_N.max()}; if it is unique over all lists, give it as "
            "source_id under source_columns"
        )
    digest = hashlib.sha256(list_name.lower().encode()).digest()
    return (int.from_bytes(digest[:8], "big") % 900_000_000_000) * NUMBERS_PER_LIST + number_N
