"""Text tables: CSV and the like, ECSV, IPAC, AAS machine-readable, commented headers."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from photozhpc.sources.numbered_table import is_number
from photozhpc.sources.sky_units import is_angle

_SEPARATORS = "\t,;|"
_MARKS = (  # byte order marks; UTF-32 first, because its mark begins like that of UTF-16
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
_HEAD = 200  # lines


def decoded(content: bytes) -> str | None:
    """Return the text of a file in Unicode or Windows-1252; None: it is not text."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    if b"\0" in content:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        pass
    # Old programs write degree signs and people's names in comments, and Windows spreadsheets
    # write quotes and dashes that Latin-1 lacks.
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return None if re.search("[\x00-\x08\x0e-\x1f\x7f]", text) else text


@dataclass(frozen=True)
class Layout:
    """How a text table is laid out.

    Attributes:
        separator: of the values; " ": any blanks.
        names: from a comment line; None: they are in the first line that is not a comment.
        n_below: number of lines below those names that are not rows: units, a rule, types.
        units: by name, where such a line, or the comment line below the names, states them.
    """

    separator: str
    names: list[str] | None
    n_below: int = 0
    units: dict[str, str] = field(default_factory=dict)


def find_layout(text: str, wanted: Callable[[str], bool]) -> Layout:
    """Find the separator and the line that names the columns.

    That is the first line, or else a comment line with as many words as a row has values.

    Raises:
        ValueError: no line names a wanted column, and the first line holds numbers.
    """
    lines = [line.strip("\r\n") for line in text[: 1 << 20].splitlines()[:_HEAD] if line.strip()]
    comments = [line.lstrip()[1:].lstrip("# ") for line in lines if line.lstrip().startswith("#")]
    body = [line for line in lines if not line.lstrip().startswith("#")]
    if not body:
        raise ValueError("it has no line that is not a comment")
    first = body[0]
    counts = {separator: first.count(separator) for separator in _SEPARATORS}
    separator = max(counts, key=counts.__getitem__) if any(counts.values()) else " "
    words = _split(first, separator)
    if any(map(wanted, words)):
        n_below, units = _below(words, [_split(line, separator) for line in body[1:3]])
        return Layout(separator, None, n_below, units)
    headers = [
        (sum(map(wanted, names)), names, _split(comments[i + 1], " ") if comments[i + 1 :] else [])
        for i, line in enumerate(comments)
        for names in (_split(line, separator), _split(line, " "))
        if len(names) == len(words) and any(map(wanted, names))
    ]
    if headers:
        _, names, below = max(headers, key=lambda header: header[0])
        return Layout(separator, names, 0, _units(names, below))
    if any(map(is_number, words)) and not any(re.match("[A-Za-z_]", word) for word in words):
        raise ValueError("no line names its columns; write the names in the first line")
    return Layout(separator, None)


def _below(names: list[str], lines: list[list[str]]) -> tuple[int, dict[str, str]]:
    """Return how many lines below the names are not rows, and the units in them.

    VizieR writes a line of units and a rule of dashes (asu-tsv), RDB one of types (5N, 8S).
    """
    if len(lines) > 1 and all(re.fullmatch("-+", word) for word in lines[1]):
        return 2, {name: unit for name, unit in zip(names, lines[0], strict=False) if unit}
    if lines and all(re.fullmatch(r"\d*[SNM]", word) for word in lines[0]):
        return 1, {}
    return 0, {}


def _units(names: list[str], words: list[str]) -> dict[str, str]:
    """Return the units in a line; none if its words are something else."""
    if len(words) != len(names) or not any(map(is_angle, words)):
        return {}
    return dict(zip(names, words, strict=True))


def _split(line: str, separator: str) -> list[str]:
    words = line.split() if separator == " " else line.split(separator)
    return [clean_name(word) for word in words]


def clean_name(name: str) -> str:
    """Return a column's name without a byte order mark, quotes and blanks around it."""
    return name.strip("\ufeff \t\"'")


def read_text(text: str, layout: Layout) -> Any:
    """Return the text as an astropy table.

    Raises:
        ValueError, or another exception of astropy: it cannot be read.
    """
    from astropy.io import ascii as astropy_ascii

    if layout.separator != " " and _is_cut(text, layout.separator):
        raise ValueError("its last row is cut short; copy or make it again")
    options: dict[str, Any] = {"guess": False, "comment": "#", "delimiter": layout.separator}
    if layout.names is not None:
        options |= {"format": "no_header", "names": layout.names}
    else:
        options["format"] = "basic" if layout.separator == " " else "csv"
        if layout.n_below:
            options |= {"header_start": 0, "data_start": 1 + layout.n_below}
    # astropy takes a single line without an end for a file name or a URL.
    return astropy_ascii.read(text + "\n", **options)


def _is_cut(text: str, separator: str) -> bool:
    """Return whether the last line has no line end and fewer values than the line before it."""
    before, last = ["", *text[-(1 << 20) :].splitlines()][-2:]
    is_whole = text.endswith(("\n", "\r")) or before.startswith("#")
    return not is_whole and bool(last.strip()) and last.count(separator) < before.count(separator)


def read_described(text: str) -> Any | None:
    """Return a self-describing table as an astropy table; None: it is none of these.

    ECSV, IPAC (bars above the columns), and CDS or AAS (a byte-by-byte description).
    """
    from astropy.io import ascii as astropy_ascii

    if text.startswith("# %ECSV"):
        return astropy_ascii.read(text, format="ecsv", guess=False)
    if _is_ipac(text[: 1 << 16].splitlines()[:_HEAD]):
        return astropy_ascii.read(text, format="ipac", guess=False)
    if re.search(r"^Byte-by-byte Description of file", text[: 1 << 18], re.MULTILINE):
        return astropy_ascii.read(text.rstrip(), format="mrt", guess=False)
    return None


def _is_ipac(lines: Sequence[str]) -> bool:
    r"""Return whether keywords (\...) are followed by a header with bars and rows without."""
    rest = [line for line in lines if not line.startswith("\\")]
    bars = [line.startswith("|") and line.rstrip().endswith("|") for line in rest]
    n_header = bars.index(False) if False in bars else len(bars)
    return 0 < n_header <= 4 and not any(line.startswith("|") for line in rest[n_header:])
