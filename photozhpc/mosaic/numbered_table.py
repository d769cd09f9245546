"""Text tables whose header numbers the columns, as SExtractor and the CANDELS catalogues."""

import re
from collections.abc import Callable
from pathlib import Path

from numpy.typing import NDArray

_COLUMN = re.compile(r"#\s*(\d+)\s+(\S+)")


def numbered_columns(path: Path) -> list[str] | None:
    """Return the columns' names of a header like '# 1 NAME comment'; None: it has another."""
    names: list[str] = []
    with open(path, encoding="utf-8", errors="replace") as stream:
        for line in stream:
            if not line.startswith("#"):
                break
            column = _COLUMN.match(line)
            if column is not None and int(column[1]) == len(names) + 1:
                names.append(column[2])
    return names or None


def read_numbered(
    path: Path, names: list[str], wanted: Callable[[str], bool]
) -> dict[str, NDArray]:
    """Return the columns that are wanted; values are parted by blanks.

    Raises:
        ValueError: a row has not as many values as the header has columns.
    """
    import pandas as pd

    # All columns are read, so that a row that is too short is noticed.
    rows = pd.read_csv(path, sep=r"\s+", comment="#", header=None)
    if rows.shape[1] != len(names):
        raise ValueError(f"rows of {rows.shape[1]} values, and a header of {len(names)} columns")
    if rows[len(names) - 1].isna().any():
        raise ValueError(f"a row has fewer than {len(names)} values")
    return {name: rows[i].to_numpy() for i, name in enumerate(names) if wanted(name)}
