"""Which numbers of a table are redshifts, which mean 'unknown', and what was noticed of them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# The highest redshift from a spectrum is 14.44 (MoM-z14; Naidu et al. 2025, arXiv 2505.11263).
Z_SPEC_MAX = 20.0
# Nothing that is bound to the Galaxy is faster: 600 km/s.
STAR_Z = 0.002
# A largest value that is there this often, at such a redshift, is the end of a grid or a mark.
_REPEATED, _REPEATED_FROM_Z = 3, 5.0
# 9.99, 99, 99.9, 999, ...: what EAZY, hyperz, SExtractor and COSMOS write for 'unknown'.
_NINES = sorted(
    {
        round(10.0**a - 10.0**-b, b)
        for a in range(1, 7)
        for b in range(5)
        if a + b >= 3 or (a, b) == (2, 0)
    }
)
_MAX_EXAMPLES = 5


@dataclass
class Remarks:
    """What was noticed of the rows of one or more tables, counted by kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, n: int, what: str, examples: Iterable[float] = ()) -> None:
        """Note that something is so in n rows; nothing if that is 0."""
        if n:
            self.counts[what] += n
            self.examples.setdefault(what, {}).update((f"{value:g}", None) for value in examples)

    def lines(self) -> list[str]:
        """Return one line a kind: "7 redshifts ...: 99, 9.99"."""
        lines = []
        for what, n in self.counts.items():
            some = list(self.examples[what])
            more = ", ..." if len(some) > _MAX_EXAMPLES else ""
            lines.append(f"{n} {what}{': ' * bool(some)}{', '.join(some[:_MAX_EXAMPLES])}{more}")
        return lines


def is_placeholder(value_N: NDArray) -> NDArray[np.bool_]:
    """Return where a number is one that only stands for 'unknown': +-9.99, 99, 999.0, 1e20, inf.

    Numbers of float32 are recognised too.
    """
    size_N = np.abs(np.asarray(value_N, np.float64))
    found_N = size_N >= 1e10
    row_M = np.flatnonzero((size_N > 0.999 * _NINES[0]) & ~found_N)
    for nines in _NINES if len(row_M) else ():
        found_N[row_M] |= np.abs(size_N[row_M] - nines) <= 1e-7 * nines
    return found_N


def usable_redshifts(
    value_N: NDArray[np.float64],
    column: str,
    remarks: Remarks,
    z_max: float = Z_SPEC_MAX,
    remedy: str = "",
) -> NDArray[np.float64]:
    """Return the redshifts among the values of a column, NaN elsewhere.

    The one rule for labels and truth. A redshift is above 0: catalogues write 'no redshift' as
    -99, -1 or 0 as often as NaN. It is not above `z_max`, and none of the numbers of nines that
    stand for 'unknown' (9.99, 9.999). Beyond the range of float32 it is none either.

    Args:
        column: its name, for remarks.
        remedy: what to do about a mark that is not known as such, for remarks.
    """
    z_N = np.array(value_N, np.float64)
    z_N[~(z_N >= np.finfo(np.float32).tiny)] = np.nan
    wrong_N = (z_N > z_max) | is_placeholder(z_N)
    remarks.add(
        int(np.count_nonzero(wrong_N)),
        f"values of '{column}' are no redshifts, and taken for missing (9.99, 99, ... or above "
        f"{z_max:g})",
        np.unique(z_N[wrong_N])[: _MAX_EXAMPLES + 1],
    )
    z_N[wrong_N] = np.nan
    remarks.add(
        int(np.count_nonzero(z_N < STAR_Z)),
        f"redshifts of '{column}' are below {STAR_Z:g} and kept: are they stars?",
    )
    if len(z_N) and (largest := np.max(z_N, initial=-np.inf, where=~np.isnan(z_N))) >= (
        _REPEATED_FROM_Z
    ):
        count = int(np.count_nonzero(z_N == largest))
        if count >= _REPEATED:
            remarks.add(
                count,
                f"redshifts of '{column}' are exactly its largest value, and kept; if that means "
                f"'unknown', {remedy or 'take them out'}",
                [largest],
            )
    return z_N
