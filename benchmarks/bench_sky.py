"""Simulated sky: four-band sources per second per core, after checking them against GalSim.

    python benchmarks/bench_sky.py [--rounds 5] [--tiles 4]

Times are CPU seconds of one process; the two skies take turns, and a ratio is the median over the
rounds. The last line is JSON.
"""

import tempfile
import time
from pathlib import Path
from statistics import median

import galsim
import numpy as np
import pyarrow.parquet as pq
from side_by_side import about, finish, parser

from photozhpc.sky import SkyConfig, load_sky_config, simulate_sky
from photozhpc.sky.observe import sky_sigma_njy
from photozhpc.sky.population import BULGE_TRUNCATION, Population, SkyPhysics
from photozhpc.sky.psf import effective_psf
from photozhpc.sky.render import Renderer
from photozhpc.survey import Survey, load_survey


def check(sources: Population, renderer: Renderer, sigma_C: np.ndarray) -> tuple[float, float]:
    """Worst flux and worst pixel (in units of the noise) of some galaxies against GalSim."""
    worst_flux = worst_pixel = 0.0
    scale = renderer.pixel_scale_arcsec
    psfs = [effective_psf(band, scale) for band in renderer.bands]
    for i in np.flatnonzero(~sources.is_star_N)[:12]:
        size = int(renderer.stamp_sizes(sources.take([i]), sigma_C, np.array([96]))[0])
        if size > 256:
            continue
        stamp_Cyx = renderer.stamp(sources, i, size, 0.2, -0.3)
        for c, psf in enumerate(psfs):
            beta = sources.angle_rad_N[i] * galsim.radians
            q, r = sources.bulge_axis_ratio_N[i], sources.bulge_radius_arcsec_N[i]
            r *= np.sqrt(q)
            bulge = galsim.Sersic(4.0, half_light_radius=r, trunc=BULGE_TRUNCATION * r)
            galaxy = bulge.shear(q=q, beta=beta) * sources.bulge_njy_NC[i, c]
            q, r = sources.disk_axis_ratio_N[i], sources.disk_radius_arcsec_N[i]
            disk = galsim.Exponential(half_light_radius=r * np.sqrt(q)).shear(q=q, beta=beta)
            galaxy += disk * sources.disk_njy_NC[i, c]
            for knots in (sources.structure.clumps, sources.structure.arms):
                in_knots = sources.disk_njy_NC[i, c] * knots.share_NC[i, c]
                for u, v, share in knots.place_NK3[i]:
                    if share > 0.0:
                        knot = galsim.Exponential(half_light_radius=r * knots.size_N[i])
                        knot = knot.shift(r * u, r * v).transform(1.0, 0.0, 0.0, q) / q
                        galaxy += knot.rotate(beta) * in_knots * share
                        galaxy += disk * (-in_knots * share)
            exact = galsim.Convolve(galaxy, psf).drawImage(
                nx=512, ny=512, scale=scale, offset=(0.2, 0.7), method="no_pixel", dtype=float
            )
            inside = slice(256 - size // 2, 256 + size // 2)
            exact_yx = exact.array[inside, inside]
            worst_flux = max(worst_flux, abs(stamp_Cyx[c].sum() / exact_yx.sum() - 1.0))
            worst_pixel = max(worst_pixel, np.abs(stamp_Cyx[c] - exact_yx).max() / sigma_C[c])
    return float(worst_flux), float(worst_pixel)


def time_renderer(renderer: Renderer, sources: Population, sigma_C: np.ndarray, size: int) -> float:
    """Sources per CPU second, stamps and wings, nothing else."""
    rng = np.random.default_rng(0)
    y_N, x_N = rng.uniform(0, size, (2, len(sources)))
    smallest_N = np.full(len(sources), 96)
    image_CHW = np.zeros((len(renderer.bands), size, size), np.float32)
    renderer.draw(image_CHW, sources, y_N, x_N, sigma_C, smallest_N)  # compiles, fills caches
    start = time.process_time()
    renderer.draw(image_CHW, sources, y_N, x_N, sigma_C, smallest_N)
    return len(sources) / (time.process_time() - start)


def time_tiles(survey: Survey, config: SkyConfig, tiles: int, seed: int) -> dict[str, float]:
    """Catalogued sources and tiles per CPU second, and MB per tile, through files on disk."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        start = time.process_time()
        ids = simulate_sky(survey, out, tiles, seed, config, workers=1)
        seconds = time.process_time() - start
        listed = sum(pq.read_metadata(out / f"{tile}_cat.parquet").num_rows for tile in ids)
        mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    return {
        "catalogued_per_s_core": listed / seconds,
        "cpu_s_per_tile": seconds / tiles,
        "mb_per_tile": mb / tiles,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--tiles", type=int, default=4)
    given = options.parse_args()
    survey = load_survey("roman-sim")
    skies = {name: load_sky_config(f"sky/{name}") for name in ("simple", "realistic")}
    renderer = Renderer(survey.band_names, survey.pixel_scale_arcsec)
    results = about("sky", "numpy numba galsim")
    for name, config in skies.items():
        sigma_C = sky_sigma_njy(survey.band_names, config, renderer.noise_area_C)
        physics = SkyPhysics(survey.band_names, config)
        sources = physics.draw(np.random.default_rng(0), 12.0)
        sources = physics.with_structure(np.random.default_rng(1), sources)
        flux, pixel = check(sources, renderer, sigma_C)
        assert flux < 0.005, f"flux differs from GalSim by {flux:.2%}"
        assert pixel < 0.05, f"a pixel differs from GalSim by {pixel:.3f} of the noise"
        print(
            f"{name}: like GalSim, flux within {flux:.3%}, pixels within {pixel:.4f} of the noise"
        )
        rendered = time_renderer(renderer, sources, sigma_C, config.tile_size_pix)
        print(f"{name}: {rendered:.0f} four-band sources rendered per second per core")
        results[name] = {
            "worst_flux": flux,
            "worst_pixel_in_noise": pixel,
            "rendered_per_s_core": rendered,
        }
        time_tiles(survey, config, 1, 1)  # compiles, fills caches
    rounds = [
        {name: time_tiles(survey, config, given.tiles, 2 + k) for name, config in skies.items()}
        for k in range(given.rounds)
    ]
    for name in skies:
        medians = {key: median(row[name][key] for row in rounds) for key in rounds[0][name]}
        results[name] |= medians
        print(
            f"{name}, whole tiles on disk: {medians['catalogued_per_s_core']:.0f} catalogued "
            f"sources per second per core, {medians['cpu_s_per_tile']:.2f} s and "
            f"{medians['mb_per_tile']:.0f} MB per tile"
        )
    results["realistic_over_simple"] = median(
        row["realistic"]["cpu_s_per_tile"] / row["simple"]["cpu_s_per_tile"] for row in rounds
    )
    print(f"a realistic tile takes {results['realistic_over_simple']:.2f} times a simple one")
    finish(results, given.save)


if __name__ == "__main__":
    main()
