"""Are the intervals right for every kind of galaxy? Coverage of a catalogue in bins.

    python benchmarks/interval_coverage.py CATALOGUE --truth 'SKY/*_truth.parquet' [--save]

The bins are of what a user knows (the predicted redshift, the width of the interval) and of the
truth (magnitude, size, colour, type, bulge, dust). Bins of fewer than MIN_GALAXIES are left out.
The errors are binomial.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from science import galaxies
from side_by_side import about, finish

from photozhpc.catalog import read_catalog
from photozhpc.metrics import inside_interval

MIN_GALAXIES = 300
LEVELS = (68, 90, 99)


def binned(name: str, value_N: NDArray, edges: list[float]) -> dict[str, NDArray[np.bool_]]:
    """Return label -> rows of the bins between edges."""
    return {
        f"{name} {low:g} to {high:g}": (value_N >= low) & (value_N < high)
        for low, high in pairwise(edges)
    }


def kinds(rows: pd.DataFrame) -> dict[str, dict[str, NDArray[np.bool_]]]:
    """Return property -> label -> rows."""
    colour_N = (rows["mag_f062"] - rows["mag_f158"]).to_numpy()
    relative_N = (
        (rows["photoz_high68"] - rows["photoz_low68"]) / 2 / (1 + rows["photoz"])
    ).to_numpy()
    quiescent_N = rows["is_quiescent"].to_numpy(bool)

    def of(column: str) -> NDArray:
        return rows[column].to_numpy(float)

    return {
        "magnitude": binned("F158", of("mag_f158"), [16, 20, 21, 22, 23, 24, 25, 26]),
        "predicted redshift": binned("z", of("photoz"), [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4]),
        "half width of the interval over 1 + z": binned(
            "width", relative_N, [0, 0.02, 0.04, 0.08, 0.16, 0.32, 1]
        ),
        "half-light radius, arcsec": binned(
            "radius", of("half_light_radius_arcsec"), [0, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 2]
        ),
        "colour F062 - F158": binned("colour", colour_N, [-0.5, 0.5, 1, 1.5, 2, 3, 6]),
        "type": {"quiescent": quiescent_N, "star-forming": ~quiescent_N},
        "bulge to total in F158": binned(
            "B/T", of("bulge_to_total_f158"), [0, 0.1, 0.3, 0.6, 1.01]
        ),
        "dust of the galaxy, A_V": binned("A_V", of("a_v"), [0, 0.2, 0.5, 1, 4]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("catalogue", type=Path)
    parser.add_argument("--truth", nargs="+", required=True)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    table = read_catalog(options.catalogue).to_pandas().set_index("source_id")
    rows = galaxies(options.truth).join(table, how="inner", suffixes=("", "_catalogue"))
    rows = rows[np.isfinite(rows["photoz"])]
    z_N = rows["z_true"].to_numpy()
    inside_LN = {
        level: inside_interval(z_N, rows[f"photoz_low{level}"], rows[f"photoz_high{level}"])
        for level in LEVELS
    }

    def measured(chosen_N: NDArray[np.bool_]) -> dict[str, float]:
        row: dict[str, float] = {"n": int(chosen_N.sum())}
        for level, inside_N in inside_LN.items():
            share = float(np.mean(inside_N[chosen_N]))
            row[f"inside_{level}"] = round(100 * share, 2)
            row[f"inside_{level}_err"] = round(
                100 * float(np.sqrt(level / 100 * (1 - level / 100) / chosen_N.sum())), 2
            )
        return row

    result = {
        **about("interval_coverage", "numpy"),
        "all": measured(np.ones(len(rows), bool)),
        "bins": {
            kind: {
                label: measured(chosen_N)
                for label, chosen_N in bins.items()
                if chosen_N.sum() >= MIN_GALAXIES
            }
            for kind, bins in kinds(rows).items()
        },
    }
    finish(result, options.save)


if __name__ == "__main__":
    main()
