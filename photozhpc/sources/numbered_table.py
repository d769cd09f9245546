"""Text tables whose header numbers the columns, like SExtractor's and the CANDELS catalogues."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from numpy.typing import NDArray

_COLUMN = re.compile(r"#\s*(\d+)\s+(\S+)(?:.*\[([^\[\]]+)\]\s*$)?")
# SExtractor writes these vectors under one name each (its manual, "Output catalog").
_VECTOR = re.compile(r"(FLUX|FLUXERR|MAG|MAGERR)_(APER|GROWTH)|FLUX_RADIUS|VIGNET|VECTOR_", re.I)


@dataclass(frozen=True)
class NumberedHeader:
    """A header like '# 1 NAME comment [unit]'.

    Attributes:
        names: of all columns; a vector's are NAME, NAME_1, ...
        units: by name, where the header states one.
    """

    names: list[str]
    units: dict[str, str] = field(default_factory=dict)


def numbered_header(text: str) -> NumberedHeader | None:
    """Read the header of a text table; None: it does not number its columns.

    Omitted numbers belong to the vector in the column before them. A comment like '# 1 row per
    source' above a table of another kind is not a header.
    """
    names: list[str] = []
    units: dict[str, str] = {}
    first_row: list[str] = []
    for line in io.StringIO(text):
        if not line.startswith("#"):
            first_row = line.split()
            if first_row:
                break
            continue
        column = _COLUMN.match(line)
        if column is None or int(column[1]) <= len(names) or (not names and column[1] != "1"):
            continue
        number = int(column[1])
        if number > len(names) + 1 and (not _VECTOR.match(names[-1]) or number > 10_000):
            continue
        names += [*_rest_of_vector(names, number - 1), column[2]]
        if column[3]:
            units[column[2]] = column[3]
    if len(names) < 2 or (len(first_row) != len(names) and not any(map(is_number, first_row))):
        return None
    if len(first_row) > len(names) and _VECTOR.match(names[-1]):
        names += _rest_of_vector(names, len(first_row))
    return NumberedHeader(names, units)


def is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _rest_of_vector(names: list[str], length: int) -> list[str]:
    return [f"{names[-1]}_{i + 1}" for i in range(length - len(names))]


def read_numbered(text: str, names: list[str], wanted: Callable[[str], bool]) -> dict[str, NDArray]:
    """Return the wanted columns of blank-separated values.

    Raises:
        ValueError: the rows have more or fewer values than the header has columns.
    """
    import pandas as pd

    # All columns are read, so that too short a row is noticed.
    rows = pd.read_csv(io.StringIO(text), sep=r"\s+", comment="#", header=None)
    if rows.shape[1] != len(names):
        raise ValueError(f"the header has {len(names)} columns, the rows {rows.shape[1]} values")
    # A NaN in the last column is either written there or missing.
    if rows[len(names) - 1].isna().any() and any(
        0 < len(line.partition("#")[0].split()) < len(names) for line in io.StringIO(text)
    ):
        raise ValueError(f"a row has fewer than {len(names)} values")
    return {name: rows[i].to_numpy() for i, name in enumerate(names) if wanted(name)}
