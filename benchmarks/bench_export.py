"""Exports of a catalogue of ten million sources: seconds and memory of each format.

python benchmarks/bench_export.py [--sources 10000000] [--folder FOLDER] [--save]

The catalogue has the columns of survey roman-sim and random numbers in them, on 40 square degrees
around RA 0. Each export is a separate run of `photozhpc export`; memory is the highest sum over its
processes of their own memory and their share of the rest (PSS). Before a time counts, these are
checked: the rows, a cone search by LSDB against brute force, and one source by its identifier.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import astropy.units as u
import numpy as np
import psutil
import pyarrow.parquet as pq
from astropy.coordinates import SkyCoord
from astropy.io import fits
from side_by_side import about, finish, parser

from photozhpc.catalog import read_catalog
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS, make_table, write_part
from photozhpc.survey import load_survey

PART_LEN = 100_000
CENTRE = (0.05, 5.0)
RADIUS_ARCSEC = 600.0


def write_catalogue(folder: Path, n_sources: int) -> None:
    survey, rng = load_survey("roman-sim"), np.random.default_rng(0)
    (folder / "catalog").mkdir(parents=True)
    for index, start in enumerate(range(0, n_sources, PART_LEN)):
        n = min(PART_LEN, n_sources - start)
        shape = (n, len(survey.bands), len(survey.aperture_radii_arcsec))
        flux_NCR = rng.lognormal(4, 1, shape).astype(np.float32)
        photoz_N = rng.gamma(3, 0.4, n).astype(np.float32)
        offset_Q = np.linspace(-0.3, 0.3, len(QUANTILE_LEVELS), dtype=np.float32)
        table = make_table(
            survey,
            source_id_N=start + rng.permutation(n),
            ra_N=rng.uniform(-4, 4, n) % 360,
            dec_N=rng.uniform(2.5, 7.5, n),
            tile_id_N=np.full(n, f"tile{index:06d}"),
            photoz_N=photoz_N,
            quantile_NQ=photoz_N[:, None] + offset_Q,
            ood_N=rng.random(n).astype(np.float32),
            photoz_flags_N=np.zeros(n, np.int32),
            flux_NCR=flux_NCR,
            flux_err_NCR=(0.1 * flux_NCR).astype(np.float32),
            kron_flux_NC=flux_NCR[:, :, -1] * np.float32(1.1),
            kron_flux_err_NC=flux_NCR[:, :, -1] * np.float32(0.2),
        )
        write_part(table, folder / "catalog" / f"part-{index:06d}.parquet", {"index": index})


def timed_export(catalogue: Path, to: str, out: Path) -> dict[str, float]:
    """Export; return seconds, peak memory, and the size of what was written."""
    command = [sys.executable, "-m", "photozhpc", "export", str(catalogue), "--format", to]
    started = time.monotonic()
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    own, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        try:
            for one in [own, *own.children(recursive=True)]:
                total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
        peak = max(peak, total)
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"the export to {to} failed")
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    return {
        "seconds": time.monotonic() - started,
        "peak_pss_mb": peak / 2**20,
        "written_gb": sum(path.stat().st_size for path in files) / 1e9,
    }


def check(catalogue: Path, to: str, out: Path, n_sources: int) -> dict[str, float]:
    if to == "fits":
        with fits.open(out) as hdus:
            assert hdus[1].header["NAXIS2"] == n_sources
        return {}
    if to == "vo-parquet":
        assert pq.read_metadata(out).num_rows == n_sources
        return {}
    import lsdb

    opened = lsdb.open_catalog(out)
    assert opened.hc_structure.catalog_info.total_rows == n_sources
    started = time.monotonic()
    inside_cone = opened.cone_search(*CENTRE, RADIUS_ARCSEC).compute()
    seconds = time.monotonic() - started
    table = read_catalog(catalogue, columns=["source_id", "ra", "dec"])
    ra_N, dec_N = table["ra"].to_numpy(), table["dec"].to_numpy()
    near_N = np.flatnonzero((np.abs(dec_N - CENTRE[1]) < 1) & (np.cos(np.radians(ra_N)) > 0.999))
    sky = SkyCoord(ra_N[near_N] * u.deg, dec_N[near_N] * u.deg)
    centre = SkyCoord(*CENTRE, unit="deg")
    inside = near_N[sky.separation(centre) < RADIUS_ARCSEC * u.arcsec]
    ids_N = table["source_id"].to_numpy()
    assert sorted(inside_cone["source_id"]) == sorted(ids_N[inside])
    started = time.monotonic()
    one = opened.id_search(values={"source_id": int(ids_N[7])}).compute()
    assert list(one["source_id"]) == [ids_N[7]]
    return {
        "partitions": len(opened.get_healpix_pixels()),
        "cone_search_seconds": seconds,
        "cone_search_rows": len(inside_cone),
        "id_search_seconds": time.monotonic() - started,
    }


def main() -> None:
    options = parser(__doc__, rounds=None)
    options.add_argument("--sources", type=int, default=10_000_000)
    options.add_argument("--folder", type=Path, help="with room for 800 bytes per source")
    options = options.parse_args()
    packages = "hats hats-import lsdb duckdb pyarrow"
    results: dict = about("export", packages, sources=options.sources, formats={})
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch)
        write_catalogue(folder / "catalogue", options.sources)
        for to in ("hats", "vo-parquet", "fits"):
            out = folder / to
            measured = timed_export(folder / "catalogue", to, out)
            measured |= check(folder / "catalogue", to, out, options.sources)
            results["formats"][to] = measured
            print(to, measured, flush=True)
            shutil.rmtree(out) if out.is_dir() else out.unlink()
    finish(results, options.save)


if __name__ == "__main__":
    main()
