"""extract_cutouts beside its peers: checked first, then timed in turn.

python benchmarks/bench_cutouts.py [--save] [--sources 1000] [--side 2048] [--size 64]

Peers: astropy's Cutout2D and NumPy slices on arrays in memory, Cutana's extraction on open FITS
files that are in memory, astrocut on the files (`pip install cutana astrocut`; left out if not
installed). All on one core; then ours on all cores, into one array, as in an extraction.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median

os.environ.setdefault("NUMBA_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

import numba
import numpy as np
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS
from side_by_side import about, alternate, finish, parser, ratio, rounded

from photozhpc.mosaic.cutouts import extract_cutouts


def cutana_side(files: list[Path], ra: np.ndarray, dec: np.ndarray, size: int):
    """Cutana's extraction of all sources from all bands, the files open and read."""
    from cutana.cutout_extraction import extract_cutouts_vectorized_from_extension

    hdus = [fits.open(file, memmap=False)[0] for file in files]
    assert all(hdu.data is not None for hdu in hdus)
    wcs = WCS(hdus[0].header)
    sizes = np.full(len(ra), size)

    def run() -> np.ndarray:
        bands = [
            extract_cutouts_vectorized_from_extension(hdu, wcs, ra, dec, sizes)[0] for hdu in hdus
        ]
        return np.stack([np.stack(band) for band in bands], axis=1)

    return run


def astrocut_side(files: list[Path], ra: np.ndarray, dec: np.ndarray, size: int):
    from astrocut import FITSCutout

    def run() -> list[object]:
        return [
            FITSCutout([str(f) for f in files], SkyCoord(*at, unit="deg"), size).fits_cutouts
            for at in zip(ra, dec, strict=True)
        ]

    return run


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sources", type=int, default=1_000)
    options.add_argument("--side", type=int, default=2048)
    options.add_argument("--size", type=int, default=64)
    options = options.parse_args()
    n, side, size = options.sources, options.side, options.size
    rng = np.random.default_rng(0)
    image = rng.normal(1, 1, (4, side, side)).astype(np.float32)
    y, x = rng.uniform(size, side - size, (2, n))
    out = np.empty((n, 4, size, size), np.float32)
    few = max(1, n // 20)
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval, wcs.wcs.cdelt = [150, 2], [-1.5e-5, 1.5e-5]
    peers = [name for name in ("cutana", "astrocut") if find_spec(name)]
    results = about(
        "cutouts",
        " ".join(["numpy", "numba", "astropy", *peers]),
        image=f"4 x {side} x {side} float32",
        sources=n,
        size=size,
    )
    print(results)
    wcs.wcs.crpix = [side / 2, side / 2]
    ra, dec = wcs.all_pix2world(x, y, 0)

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

    folder = tempfile.TemporaryDirectory()
    files = [Path(folder.name) / f"{c}.fits" for c in range(4)]
    for band, file in zip(image, files, strict=True):
        fits.writeto(file, band, wcs.to_header())
    sides = {
        "ours": lambda: extract_cutouts(image, y, x, size),
        "ours into out": lambda: extract_cutouts(image, y, x, size, out=out),
        "slices": slices,
        "Cutout2D": lambda: cutout2d(None),
        "Cutout2D with WCS": lambda: cutout2d(wcs),
    }
    if "cutana" in peers:
        sides["cutana"] = cutana_side(files, ra, dec, size)
    if "astrocut" in peers:
        sides["astrocut"] = astrocut_side(files, ra[:few], dec[:few], size)
    ours_NCSS = extract_cutouts(image, y, x, size)
    if "cutana" in peers:
        theirs = sides["cutana"]()
        whole = [k for k in range(n) if theirs[k].shape == ours_NCSS[k].shape]
        equal = [k for k in whole if np.abs(theirs[k] - ours_NCSS[k]).max() < 1e-6]
        results["same_as_cutana"] = len(equal) / n  # it rounds some positions to the next pixel
        assert len(equal) > 0.2 * n, results["same_as_cutana"]
    slices()
    assert np.array_equal(ours_NCSS, out)
    # Cutout2D rounds an even side by its own rule: compare where both start at the same pixel.
    theirs = cutout2d(None)
    same = [k for k in range(few) if np.array_equal(theirs[k], ours_NCSS[k])]
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
    for peer in peers:
        share = n / few if peer == "astrocut" else 1
        row[f"{peer}_sources_per_s"] = n / share / median(seconds[peer])
        row[f"times_{peer}"] = ratio(seconds, peer, "ours") * share
    results["four_bands_one_core"] = row
    print("four bands, one core:", rounded(row))
    if threads > 1:
        numba.set_num_threads(threads)
        del sides["slices"], sides["ours"]
        seconds = alternate(sides, options.rounds)
        ours = "ours into out"  # as an extraction does: one array for all shards
        row = {"sources_per_s": n / median(seconds[ours])}
        for name, times in (("Cutout2D", "cutout2d"), ("Cutout2D with WCS", "cutout2d_wcs")):
            row[f"times_{times}"] = ratio(seconds, name, ours) * n / few
        for peer in peers:
            row[f"times_{peer}"] = ratio(seconds, peer, ours) * (
                n / few if peer == "astrocut" else 1
            )
        results["four_bands_all_cores"] = row
        print(f"four bands, {threads} threads, the peers on one:", rounded(row))
    finish(results, options.save)


if __name__ == "__main__":
    main()
