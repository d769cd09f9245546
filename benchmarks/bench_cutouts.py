"""extract_cutouts beside astropy's Cutout2D and NumPy slices: checked first, then timed in turn.

python benchmarks/bench_cutouts.py [--save] [--sources 1000] [--side 2048] [--size 64]
"""

import argparse
import json
import os
import platform
from pathlib import Path
from statistics import median

os.environ.setdefault("NUMBA_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

import astropy
import numba
import numpy as np
from astropy.nddata import Cutout2D
from astropy.wcs import WCS
from bench_photometry import alternate, ratio, rounded

from photozhpc.mosaic.cutouts import extract_cutouts

RESULTS = Path(__file__).parent / "results" / "cutouts.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--sources", type=int, default=1_000)
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    n, side, size = options.sources, options.side, options.size
    rng = np.random.default_rng(0)
    image = rng.normal(1, 1, (4, side, side)).astype(np.float32)
    y, x = rng.uniform(size, side - size, (2, n))
    out = np.empty((n, 4, size, size), np.float32)
    few = max(1, n // 20)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.cdelt = [150, 2], [-1.5e-5, 1.5e-5]
    results: dict[str, object] = {
        "benchmark": "cutouts",
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {m.__name__: m.__version__ for m in (np, numba, astropy)},
        "image": f"4 x {side} x {side} float32",
        "sources": n,
        "size": size,
    }
    print(json.dumps(results, indent=1))

    def cutout2d(with_wcs: WCS | None) -> np.ndarray:
        return np.stack(
            [
                [
                    Cutout2D(band, (x[k], y[k]), size, wcs=with_wcs, mode="partial").data
                    for band in image
                ]
                for k in range(few)
            ]
        )

    def slices() -> None:
        for k in range(n):
            top, left = int(y[k] + 0.5) - size // 2, int(x[k] + 0.5) - size // 2
            out[k] = image[:, top : top + size, left : left + size]

    sides = {
        "ours": lambda: extract_cutouts(image, y, x, size),
        "ours into out": lambda: extract_cutouts(image, y, x, size, out=out),
        "slices": slices,
        "Cutout2D": lambda: cutout2d(None),
        "Cutout2D with WCS": lambda: cutout2d(wcs),
    }
    found = extract_cutouts(image, y, x, size)
    slices()
    assert np.array_equal(found, out)
    # Cutout2D rounds an even side by its own rule: compare where both start at the same pixel.
    theirs = cutout2d(None)
    same = [k for k in range(few) if np.array_equal(theirs[k], found[k])]
    odd = extract_cutouts(image, y[:few], x[:few], size + 1)
    odd_theirs = [
        Cutout2D(image[0], (np.floor(x[k] + 0.5), np.floor(y[k] + 0.5)), size + 1).data
        for k in range(few)
    ]
    assert np.array_equal(odd[:, 0], np.stack(odd_theirs))
    print(f"equal to the slices; to Cutout2D at odd sides, and {len(same)} of {few} at {size}")

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    seconds = alternate(sides, options.rounds)
    row = {
        "sources_per_s": n / median(seconds["ours"]),
        "sources_per_s_into_out": n / median(seconds["ours into out"]),
        "slices_sources_per_s": n / median(seconds["slices"]),
        "cutout2d_sources_per_s": few / median(seconds["Cutout2D"]),
        "cutout2d_wcs_sources_per_s": few / median(seconds["Cutout2D with WCS"]),
        "times_slices": ratio(seconds, "slices", "ours into out"),
        "times_cutout2d": ratio(seconds, "Cutout2D", "ours") * n / few,
        "times_cutout2d_wcs": ratio(seconds, "Cutout2D with WCS", "ours") * n / few,
    }
    results["four_bands_one_core"] = row
    print("four bands, one core:", rounded(row))
    if threads > 1:

        def on(count: int) -> None:
            numba.set_num_threads(count)
            extract_cutouts(image, y, x, size, out=out)

        seconds = alternate({"one": lambda: on(1), "two": lambda: on(2)}, options.rounds)
        results["two_threads_times_one"] = ratio(seconds, "one", "two")
        print(f"two threads: {ratio(seconds, 'one', 'two'):.2f} times one")
    line = json.dumps(results)
    if options.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
