"""Mosaics on disk to a finished store with photometry, beside Cutana's Zarr and SEP's photometry.

python benchmarks/bench_extract.py [--save] [--sources 20000] [--tiles 4] [--folder DIR]

Needs `pip install cutana`. Both sides read the same FITS mosaics, use the same sources, cores and
cutout size, and measure five apertures with a sky from the same annulus (SEP: its mean; ours: its
clipped median). Ours also writes errors, flags, positions and checksums. Cutana is started as a
program, as intended, which takes some seconds of its time; SEP's processes already run.
"""

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import sep
import zarr
from astropy.io import fits
from astropy.wcs import WCS
from side_by_side import about, alternate, finish, parser, ratio

from photozhpc.config import from_mapping
from photozhpc.extraction.extract import extract
from photozhpc.store import CutoutStore
from photozhpc.survey import Survey

CORES = len(os.sched_getaffinity(0))
SIZE = 64
BANDS = ("F062", "F087", "F129", "F158")
ZERO_POINT = 31.4  # a count is a nJy
SCALE = 0.055
RADII_ARCSEC = (0.1, 0.2, 0.4, 0.8, 1.6)
ANNULUS_ARCSEC = (2.4, 2.8)
SURVEY = {
    "name": "bench",
    "pixel_scale_arcsec": SCALE,
    "mosaic_pattern": "{tile}_{band}.fits",
    "cutout_size": SIZE,
    "aperture_radii_arcsec": list(RADII_ARCSEC),
    "sky_annulus_arcsec": list(ANNULUS_ARCSEC),
    "bands": [
        {"name": band, "zero_point_ab": ZERO_POINT, "psf_fwhm_arcsec": 0.12, "extinction_r": 0.0}
        for band in BANDS
    ],
}
# Cutana starts processes that import the program again, so it gets a separate one.
CUTANA = """
import sys
from cutana import Orchestrator, get_default_config

def main(catalogue, out, size, bands):
    config = get_default_config()
    config.source_catalogue, config.output_dir = catalogue, out
    config.output_format, config.data_type = "zarr", "float32"
    config.target_resolution, config.normalisation_method = int(size), "none"
    config.apply_flux_conversion = False
    config.max_workers = 2
    config.loadbalancer.initial_workers = 2
    config.loadbalancer.main_process_memory_reserve_gb = 1.0
    config.loadbalancer.skip_memory_calibration_wait = True
    names = bands.split(",")
    config.selected_extensions = [{"name": n, "ext": "PRIMARY"} for n in names]
    config.channel_weights = {
        n: [float(i == j) for j in range(len(names))] for i, n in enumerate(names)
    }
    result = Orchestrator(config).run()
    assert result["status"] == "completed", result

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


def make_mosaics(folder: Path, n_tiles: int, side: int, n_sources: int) -> pd.DataFrame:
    """Write tiles of noise and Gaussian sources; return the list of sources, Cutana's columns."""
    rng = np.random.default_rng(0)
    y_HW, x_HW = np.mgrid[-8:9, -8:9]
    rows = []
    for tile in range(n_tiles):
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval = [150 + 0.2 * tile, 2.0]
        wcs.wcs.crpix = [side / 2, side / 2]
        wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
        n = n_sources // n_tiles
        y_N, x_N = rng.uniform(64, side - 64, (2, n))
        flux_N = 10 ** rng.uniform(1, 3, n)
        paths = [str(folder / f"t{tile}_{band}.fits") for band in BANDS]
        for path in paths:
            image = rng.normal(0, 1, (side, side)).astype(np.float32)
            for y, x, flux in zip(y_N, x_N, flux_N, strict=True):
                i, j = int(y), int(x)
                stamp = np.exp(-((y_HW + i - y) ** 2 + (x_HW + j - x) ** 2) / 4.5)
                image[i - 8 : i + 9, j - 8 : j + 9] += flux * stamp / stamp.sum()
            hdu = fits.PrimaryHDU(image, wcs.to_header())
            hdu.header["MAGZERO"] = ZERO_POINT
            hdu.writeto(path)
        ra_N, dec_N = wcs.all_pix2world(x_N, y_N, 0)
        rows += [
            (f"{tile}_{k}", tile * 10**6 + k, ra, dec, SIZE, str(paths))
            for k, (ra, dec) in enumerate(zip(ra_N, dec_N, strict=True))
        ]
    names = ["SourceID", "source_id", "RA", "Dec", "diameter_pixel", "fits_file_paths"]
    return pd.DataFrame(rows, columns=names)


def run_cutana(catalogue: Path, out: Path, program: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-W", "ignore", program, catalogue, out, SIZE, ",".join(BANDS)]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)


def run_sep(table: pd.DataFrame, pool: ProcessPoolExecutor) -> dict[str, np.ndarray]:
    """Measure five apertures in four bands of every source, one tile per core at a time."""
    tiles = [group for _, group in table.groupby("fits_file_paths")]
    flux: dict = {}
    for of_tile in pool.map(sep_tile, tiles):
        flux |= of_tile
    return flux


def sep_tile(group: pd.DataFrame) -> dict[tuple, np.ndarray]:
    flux = {}
    for band, path in zip(BANDS, eval(group["fits_file_paths"].iloc[0]), strict=True):
        with fits.open(path, memmap=False) as file:
            image = file[0].data.astype(np.float32)
            wcs = WCS(file[0].header)
        x_N, y_N = wcs.all_world2pix(group["RA"], group["Dec"], 0)
        r_in, r_out = (r / SCALE for r in ANNULUS_ARCSEC)
        sky, _, _ = sep.sum_circann(image, x_N, y_N, r_in, r_out, subpix=0)
        sky /= np.pi * (r_out**2 - r_in**2)
        for radius in RADII_ARCSEC:
            r = radius / SCALE
            sum_N, _, _ = sep.sum_circle(image, x_N, y_N, r, err=1.0, subpix=0)
            flux[group["source_id"].iloc[0], band, radius] = sum_N - sky * np.pi * r**2
    return flux


def check(store: CutoutStore, out: Path, flux: dict, table: pd.DataFrame) -> dict[str, float]:
    """Our cutouts are Cutana's to our rounding; our fluxes are SEP's to the noise of the sky."""
    ours, our_flux = {}, {}
    for key in store.shards():
        ids = store.read_sources(key).source_id_N
        ours |= dict(zip(ids.tolist(), store.read_cutouts(key), strict=True))
        our_flux |= dict(zip(ids.tolist(), store.read_measurements(key).flux_NCR, strict=True))
    assert len(ours) == len(table), f"{len(ours)} cutouts for {len(table)} sources"
    number = dict(zip(table["SourceID"], table["source_id"], strict=True))
    theirs = 0
    compared = 0
    worst = 0.0
    for folder in out.glob("batch_*"):
        about = pd.read_parquet(folder / "images_metadata.parquet")
        images = zarr.open(folder / "images.zarr", mode="r")["images"][:]
        theirs += len(images)
        for row, source in list(enumerate(about["source_id"]))[::50]:
            image_CSS = np.moveaxis(images[row], -1, 0)
            mine = ours[number[source]]
            # Where they round a position to the other pixel, the cutouts are shifted by one.
            shifts = [(0, 0), (1, 0), (0, 1), (1, 1), (-1, 0), (0, -1), (-1, -1), (1, -1), (-1, 1)]
            inner = np.s_[:, 2:-2, 2:-2]
            differences = [
                np.abs(np.roll(image_CSS, s, (1, 2))[inner] - mine[inner]).max() for s in shifts
            ]
            compared += 1
            worst = max(worst, min(differences))
    assert theirs == len(table), f"Cutana wrote {theirs} of {len(table)}"
    assert worst < 0.011, f"a pixel differs by {worst} of the noise"
    offset = []
    for (first, band, radius), sep_flux_N in flux.items():
        c, r = BANDS.index(band), RADII_ARCSEC.index(radius)
        mine = np.array([our_flux[first + k][c, r] for k in range(len(sep_flux_N))])
        # A clipped median and a mean differ where a neighbour is in the annulus.
        if radius <= 0.4:
            noise = np.sqrt(np.pi) * radius / SCALE
            offset.append(np.median(np.abs(mine - sep_flux_N)) / noise)
    assert max(offset) < 0.5, f"fluxes differ by {max(offset)} of their noise"
    return {"compared": compared, "worst_pixel": float(worst), "flux_in_noise": float(max(offset))}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--sources", type=int, default=20_000)
    options.add_argument("--tiles", type=int, default=4)
    options.add_argument("--side", type=int, default=4096)
    options.add_argument("--folder", type=Path)
    options = options.parse_args()
    survey = from_mapping(Survey, SURVEY, "bench")
    results = about(
        "extract",
        "numpy numba zarr astropy sep cutana",
        sources=options.sources,
        mosaics=f"{options.tiles} x 4 x {options.side} x {options.side} float32 FITS",
        size=SIZE,
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        table = make_mosaics(folder, options.tiles, options.side, options.sources)
        catalogue, source_list = folder / "cutana.parquet", folder / "ours.parquet"
        table.drop(columns="source_id").to_parquet(catalogue)
        ours = {"source_id": table["source_id"], "ra": table["RA"], "dec": table["Dec"]}
        pd.DataFrame(ours).to_parquet(source_list)
        program = folder / "run_cutana.py"
        program.write_text(CUTANA)
        store, theirs = folder / "store", folder / "theirs"

        busy: list[float] = []

        def run_ours() -> None:
            shutil.rmtree(store, ignore_errors=True)
            before, start = os.times(), time.perf_counter()
            extract(survey, folder, store, [source_list])
            spent = sum(b - a for a, b in zip(before[:4], os.times()[:4], strict=True))
            busy.append(spent / (time.perf_counter() - start))

        sides = {
            "ours": run_ours,
            "cutana": lambda: run_cutana(catalogue, theirs, program),
            "sep": lambda: run_sep(table, pool),
        }
        with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as pool:
            run_ours()
            sides["cutana"]()
            flux = run_sep(table, pool)  # starts the processes
            results["check"] = check(CutoutStore.open(store), theirs, flux, table)
            print(results["check"], flush=True)
            seconds = alternate(sides, options.rounds)
    results["cores_at_work"] = median(busy[1:])
    both = [a + b for a, b in zip(seconds["cutana"], seconds["sep"], strict=True)]
    seconds["cutana and sep"] = both
    results["seconds"] = seconds
    results["times_cutana_and_sep"] = ratio(seconds, "cutana and sep", "ours")
    results["times_cutana_alone"] = ratio(seconds, "cutana", "ours")
    for name, times in seconds.items():
        print(name, " ".join(f"{t:.2f}" for t in times), "s")
    print(f"{results['times_cutana_and_sep']:.2f} times Cutana and SEP")
    finish(results, options.save)


if __name__ == "__main__":
    main()
