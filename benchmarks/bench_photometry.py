"""Circles, ellipses, Kron apertures and sky beside SEP and photutils: checked first, then timed.

python benchmarks/bench_photometry.py [--save] [--sources 20000] [--side 2048]
"""

import os
import time
from functools import partial
from statistics import median

os.environ.setdefault("NUMBA_NUM_THREADS", str(min(2, os.cpu_count() or 1)))

import numba
import numpy as np
import sep
from photutils.aperture import CircularAperture, aperture_photometry
from side_by_side import about, alternate, finish, parser, ratio, rounded

from photozhpc.mosaic.ellipses import sum_ellipses
from photozhpc.mosaic.kron import kron_apertures
from photozhpc.mosaic.photometry import local_sky, sum_circles

RADII_PIX = [1.8, 3.6, 7.3, 14.5, 29.1]  # Roman's 0.1 0.2 0.4 0.8 1.6 arcsec at 0.055 arcsec


def on_threads(count: int, *what) -> None:
    numba.set_num_threads(count)
    sum_circles(*what)


def kron_beside_sep(rng, rounds: int) -> dict[str, float]:
    """Galaxies of 2 to 4 px rms in four bands: SEP is given our ellipses, we find them too."""
    side, n_bands, psf_sigma = 1024, 4, 1.2
    image = rng.normal(0, 1, (n_bands, side, side))
    err, weight_C = np.ones((n_bands, side, side), np.float32), np.ones(n_bands)
    middle = np.arange(40, side - 40, 50)
    y, x = (
        np.ravel(v) + rng.uniform(-0.5, 0.5, middle.size**2) for v in np.meshgrid(middle, middle)
    )
    dy, dx = np.mgrid[-20:21, -20:21]
    for yc, xc, sigma, q in zip(
        y, x, rng.uniform(2, 4, y.size), rng.uniform(1, 2, y.size), strict=True
    ):
        i, j = round(yc), round(xc)
        r2 = (dy + i - yc) ** 2 * q + (dx + j - xc) ** 2 / q
        image[:, i - 20 : i + 21, j - 20 : j + 21] += 30 * np.exp(-0.5 * r2 / sigma**2)
    image = image.astype(np.float32)
    summed = np.ascontiguousarray(image.mean(axis=0, dtype=np.float64), np.float32)
    apertures = kron_apertures(image, weight_C, y, x, psf_sigma, 43.6)
    shape = (apertures.a_N, apertures.b_N, apertures.theta_N)
    axes = (apertures.scale_N * apertures.a_N, apertures.scale_N * apertures.b_N, apertures.theta_N)
    want = sep.kron_radius(summed, x, y, *shape, 6.0)[0]
    np.testing.assert_allclose(apertures.kron_radius_N, want, rtol=1e-4)
    flux = sum_ellipses(image, y, x, *axes, err)[0]
    for c in range(n_bands):
        want = sep.sum_ellipse(image[c], x, y, *axes, 1.0, err=err[c], subpix=0)[0]
        np.testing.assert_allclose(flux[:, c], want, atol=1e-6)
    sides = {
        "apertures": lambda: kron_apertures(image, weight_C, y, x, psf_sigma, 43.6),
        "sums": lambda: sum_ellipses(image, y, x, *axes, err),
        "sep radius": lambda: sep.kron_radius(summed, x, y, *shape, 6.0),
        "sep sums": lambda: [
            sep.sum_ellipse(image[c], x, y, *axes, 1.0, err=err[c], subpix=0)
            for c in range(n_bands)
        ],
        "circles": lambda: [sum_circles(image[c], y, x, RADII_PIX, err[c]) for c in range(n_bands)],
        "sky": lambda: [local_sky(image[c], y, x, 43.6, 50.9) for c in range(n_bands)],
    }
    seconds = alternate(sides, rounds)
    micro = {name: 1e6 * median(times) / y.size for name, times in seconds.items()}
    return {
        "us_to_find_apertures": micro["apertures"],
        "us_to_sum": micro["sums"],
        "sum_times_sep": ratio(seconds, "sep sums", "sums"),
        "sep_us_radius_of_given_ellipses": micro["sep radius"],
        "us_of_five_circles": micro["circles"],
        "us_of_local_sky": micro["sky"],
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sources", type=int, default=20_000)
    options.add_argument("--side", type=int, default=2048)
    options = options.parse_args()
    n, side = options.sources, options.side
    rng = np.random.default_rng(0)
    image = rng.normal(1, 1, (side, side)).astype(np.float32)
    err = rng.uniform(0.5, 1.5, image.shape).astype(np.float32)
    y, x = rng.uniform(60, side - 60, (2, n))
    few = slice(0, max(1, n // 10))
    positions = np.column_stack([x, y])[few]
    results = about(
        "photometry",
        "numpy numba sep photutils",
        image=f"{side} x {side} float32",
        sources=n,
    )
    print(results)

    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    for radius in (3.0, 8.0):
        sides = {
            "ours": lambda r=radius: sum_circles(image, y, x, r, err),
            "sep": lambda r=radius: sep.sum_circle(image, x, y, r, err=err, subpix=0),
            "sep subpix=5": lambda r=radius: sep.sum_circle(image, x, y, r, err=err),
            "photutils": lambda r=radius: aperture_photometry(
                image, CircularAperture(positions, r), error=err
            ),
        }
        flux, flux_err, _ = sides["ours"]()
        flux_sep, err_sep, _ = sides["sep"]()
        table = sides["photutils"]()
        np.testing.assert_allclose(flux, flux_sep, atol=1e-8)
        np.testing.assert_allclose(flux_err, err_sep, rtol=1e-6)
        np.testing.assert_allclose(flux[few], table["aperture_sum"], rtol=1e-4, atol=1e-3)
        seconds = alternate(sides, options.rounds)
        row = {
            "sources_per_s": n / median(seconds["ours"]),
            "sep_sources_per_s": n / median(seconds["sep"]),
            "photutils_sources_per_s": len(positions) / median(seconds["photutils"]),
            "times_sep": ratio(seconds, "sep", "ours"),
            "times_sep_subpix5": ratio(seconds, "sep subpix=5", "ours"),
            "times_photutils": ratio(seconds, "photutils", "ours") * n / len(positions),
        }
        results[f"r{radius:g}_one_core"] = row
        print(f"r = {radius:g} px, with errors, one core:", rounded(row))

    many = slice(0, max(1, n // 4))
    sides = {
        "ours": lambda: sum_circles(image, y[many], x[many], RADII_PIX, err),
        "sep": lambda: [
            sep.sum_circle(image, x[many], y[many], r, err=err, subpix=0) for r in RADII_PIX
        ],
    }
    for k, (want, _, _) in enumerate(sides["sep"]()):
        np.testing.assert_allclose(sides["ours"]()[0][:, k], want, atol=1e-8)
    seconds = alternate(sides, options.rounds)
    row = {
        "sources_per_s": len(y[many]) / median(seconds["ours"]),
        "times_five_sep": ratio(seconds, "sep", "ours"),
    }
    results["five_radii_one_core"] = row
    print("five radii in one pass, one core:", rounded(row))

    results["kron_four_bands_one_core"] = row = kron_beside_sep(rng, options.rounds)
    print("Kron, four bands, one core:", rounded(row))

    start = time.perf_counter()
    local_sky(image, y[few], x[few], 43.6, 50.9)
    local_sky_cold = time.perf_counter() - start
    seconds = alternate({"sky": lambda: local_sky(image, y[few], x[few], 43.6, 50.9)}, 5)
    row = {"sources_per_s": len(positions) / median(seconds["sky"]), "first_call_s": local_sky_cold}
    results["local_sky_43.6_50.9_one_core"] = row
    print("local sky, annulus of 43.6 to 50.9 px, one core:", rounded(row))

    if threads > 1:
        # The list above, which is over in milliseconds, and one of a whole tile.
        tile = rng.normal(0, 1, (4096, 4096)).astype(np.float32)
        lists = {"": (image, err, y, x)}
        lists["_tile"] = (tile, np.ones_like(tile), *rng.uniform(20, 4076, (2, 100_000)))
        for name, (image_HW, err_HW, y_N, x_N) in lists.items():
            for radius in (3.0, 8.0):
                what = (image_HW, y_N, x_N, radius, err_HW)
                sides = {"one": partial(on_threads, 1, *what), "two": partial(on_threads, 2, *what)}
                gain = ratio(alternate(sides, 4 * options.rounds), "one", "two")
                results[f"r{radius:g}{name}_two_threads_times_one"] = gain
                print(f"{len(y_N)} sources, r = {radius:g} px, two threads: {gain:.2f} times one")
    finish(results, options.save)


if __name__ == "__main__":
    main()
