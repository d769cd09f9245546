"""What makes a catalogue as a whole doubtful: said at the end of a run, and in the report."""

import numpy as np
from numpy.typing import NDArray

MIN_SOURCES = 20
FLAGGED_SHARE = 0.5
SAME_REDSHIFT = 0.02  # 90% of all redshifts within this, in units of 1 + z


def doubts(rows: int, flagged: int, photoz_N: NDArray[np.floating]) -> list[str]:
    """Return a sentence for each reason not to trust a catalogue.

    Args:
        rows, flagged: numbers of sources.
        photoz_N: redshifts of all of them, or of a sample; NaN where there is none.
    """
    if rows < MIN_SOURCES:
        return []
    z_N = photoz_N[np.isfinite(photoz_N)]
    if not len(z_N):
        return ["no source has a redshift"]
    said = []
    if flagged > FLAGGED_SHARE * rows:
        said.append(
            f"{flagged} of {rows} sources are flagged: do the images suit the model? "
            f"('photozhpc report' counts each flag)"
        )
    low, middle, high = np.quantile(z_N, [0.05, 0.5, 0.95])
    if len(z_N) >= MIN_SOURCES and high - low < SAME_REDSHIFT * (1 + middle):
        said.append(
            f"90% of the redshifts are between {low:.3f} and {high:.3f}: the model hardly tells "
            f"these sources apart"
        )
    return said
