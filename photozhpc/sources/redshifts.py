"""Decides which numbers in a table are redshifts and which mean 'unknown', and counts them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# The highest spectroscopic redshift is 14.44 (MoM-z14; Naidu et al. 2025, arXiv 2505.11263).
Z_SPEC_MAX = 20.0
# 600 km/s: nothing that is bound to the Galaxy is faster.
STAR_Z = 0.002
# If the largest value is so frequent and so high, it is the end of a grid or means 'unknown'.
_REPEATED, _REPEATED_FROM_Z = 3, 5.0
# 9.99, 99, 99.9, 999, ...: EAZY, hyperz, SExtractor and COSMOS write these for 'unknown'.
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
    """Remarks about rows of one or more tables, counted by kind."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, n: int, what: str, examples: Iterable[float] = ()) -> None:
        """Add a remark about n rows; none if n is 0."""
        if n:
            self.counts[what] += n
            self.examples.setdefault(what, {}).update((f"{value:g}", None) for value in examples)

    def lines(self) -> list[str]:
        """Return one line per kind: "7 redshifts ...: 99, 9.99"."""
        lines = []
        for what, n in self.counts.items():
            examples = list(self.examples[what])
            more = ["..."] if len(examples) > _MAX_EXAMPLES else []
            shown = ", ".join(examples[:_MAX_EXAMPLES] + more)
            lines.append(f"{n} {what}{shown and f': {shown}'}")
        return lines


def is_placeholder(value_N: NDArray) -> NDArray[np.bool_]:
    """Return where a number only means 'unknown': +-9.99, 99, 999.0, 1e20, inf; also in float32."""
    size_N = np.abs(np.asarray(value_N, np.float64))
    placeholder_N = size_N >= 1e10
    row_M = np.flatnonzero((size_N > 0.999 * _NINES[0]) & ~placeholder_N)
    for nines in _NINES if len(row_M) else ():
        placeholder_N[row_M] |= np.abs(size_N[row_M] - nines) <= 1e-7 * nines
    return placeholder_N


def usable_redshifts(
    value_N: NDArray[np.float64],
    column: str,
    remarks: Remarks,
    z_max: float = Z_SPEC_MAX,
    remedy: str = "",
) -> NDArray[np.float64]:
    """Return the redshifts among the values of a column, NaN elsewhere.

    Labels and truth follow this one rule. A redshift is above 0, because catalogues write 'no
    redshift' as -99, -1 or 0 as often as NaN; it is at most `z_max`, is not one of the numbers of
    nines that mean 'unknown' (9.99, 9.999), and is within the range of float32.

    Args:
        column: its name, for remarks.
        remedy: what to do about an unrecognised mark for 'unknown', for remarks.
    """
    z_N = np.array(value_N, np.float64)
    z_N[~(z_N >= np.finfo(np.float32).tiny)] = np.nan
    wrong_N = (z_N > z_max) | is_placeholder(z_N)
    remarks.add(
        int(np.count_nonzero(wrong_N)),
        f"values of '{column}' are not redshifts and count as missing (9.99, 99, ... or above "
        f"{z_max:g})",
        np.unique(z_N[wrong_N])[: _MAX_EXAMPLES + 1],
    )
    z_N[wrong_N] = np.nan
    remarks.add(
        int(np.count_nonzero(z_N < STAR_Z)),
        f"redshifts of '{column}' are below {STAR_Z:g} and were kept; check if they are stars",
    )
    largest = np.max(z_N, initial=-np.inf, where=~np.isnan(z_N))
    count = int(np.count_nonzero(z_N == largest))
    if largest >= _REPEATED_FROM_Z and count >= _REPEATED:
        remarks.add(
            count,
            f"redshifts of '{column}' equal its largest value and were kept; if that means "
            f"'unknown', {remedy or 'remove them'}",
            [largest],
        )
    return z_N
