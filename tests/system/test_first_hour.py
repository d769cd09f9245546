"""A student's own survey, from files that astropy wrote to a report, and what goes wrong there.

Three bands of a simulated sky, as FITS files with a weight each and calibrated in three ways; a CSV
list with the columns that a student would have, as docs/own_survey.md and docs/training.md say.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import asdf
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.table import Table

from photozhpc.sources.identifiers import id_of_text
from photozhpc.store import CutoutStore
from photozhpc.survey import flux_of_ab

SURVEY = """
name: mine
pixel_scale_arcsec: 0.055
cutout_size: 48
mosaic_pattern: "{tile}_{band}.fits"
source_pattern: "*.csv"
source_columns: {source_id: ID, ra: RA, dec: DEC, z_spec: zspec}
bands:
  - {name: blue, psf_fwhm_arcsec: 0.12, extinction_r: 1.341}
  - {name: green, psf_fwhm_arcsec: 0.136, extinction_r: 0.686}
  - {name: red, psf_fwhm_arcsec: 0.154, extinction_r: 0.5}
"""
RECIPE = """
base: pixels-and-fluxes
epochs: 20
batch_size: 16
expert_steps: 100
model:
  {n_bands: 3, n_colours: 3, encoder_widths: [8, 16], redshift_mlp: [32], density_bins: 64,
   fluxes: {expert_networks: 1}}
loss: {momentum: 0.98}
optimiser: {lr: 3.0e-3, warmup_steps: 10}
"""
FLAM, PIVOT = 1.5e-20, 12900.0  # erg / cm2 / s / AA per count per second, and the pivot wavelength
# band -> of the simulated sky, cards of the header, nJy per unit
BANDS: dict[str, tuple[str, dict[str, Any], float]] = {
    "blue": ("f087", {"MAGZERO": 26.4, "BUNIT": "count"}, flux_of_ab(26.4)),
    "green": (
        "f129",
        {"PHOTFLAM": FLAM, "PHOTPLAM": PIVOT, "BUNIT": "ELECTRONS/S"},
        flux_of_ab(-2.5 * np.log10(FLAM) - 5 * np.log10(PIVOT) - 2.408),
    ),
    "red": ("f158", {"BUNIT": "uJy"}, 1e3),
}
NJY_PER_MJY_SR = 1e15 * (0.055 / 206264.806247) ** 2
Run = Callable[..., subprocess.CompletedProcess[str]]


def write_mosaics(sky: Path, folder: Path) -> None:
    """Write the mosaics of a simulated sky again, as a student's pipeline would."""
    folder.mkdir()
    for path in sorted(sky.glob("*_coadd.asdf")):
        tile, band = path.name.removesuffix("_coadd.asdf").rsplit("_", 1)
        names = [name for name, (source, *_) in BANDS.items() if source == band]
        for name in names:
            _, cards, njy = BANDS[name]
            with asdf.open(path) as tree:
                roman = tree["roman"]
                image, err = (np.array(roman[key]) for key in ("data", "err"))
                header = roman["meta"]["wcs"].to_fits_sip(max_pix_error=0.01)
            scale = NJY_PER_MJY_SR / njy
            header.update(cards)
            fits.writeto(folder / f"{tile}_{name}.fits", (image * scale).astype("f4"), header)
            weight = (1 / (err * scale) ** 2).astype("f4")
            fits.writeto(folder / f"{tile}_{name}.weight.fits", weight, header)


def catalogues(sky: Path, kind: str) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(sky.glob(f"*_{kind}.parquet"))))


def write_list(sky: Path, path: Path, **changed: Any) -> Table:
    """Write the list of sources; `changed` replaces columns, and None drops one."""
    listed = catalogues(sky, "cat")
    columns: Mapping[str, Any] = {
        "ID": [f"GAL-{number:05d}" for number in range(len(listed))],
        "RA": listed["ra"],
        "DEC": listed["dec"],
        "mag": np.full(len(listed), 24.0),
        "zspec": listed["z_spec"].fillna(-99.0),
    }
    columns = {
        name: values for name, values in {**columns, **changed}.items() if values is not None
    }
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return Table({name: list(values) for name, values in columns.items()})


@pytest.fixture(scope="module")
def desk(small_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the mosaics, the list, the survey file and the recipe."""
    folder = tmp_path_factory.mktemp("desk")
    write_mosaics(small_sky, folder / "images")
    write_list(small_sky, folder / "images" / "sources.csv")
    (folder / "mine.yaml").write_text(SURVEY)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


@pytest.fixture
def run(desk: Path) -> Run:
    def command(*words: str, fails: int = 0) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).with_name("photozhpc"))
        done = subprocess.run([program, *words], cwd=desk, capture_output=True, text=True)
        assert done.returncode == fails, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return command


def test_from_files_to_a_report(
    desk: Path, run: Run, small_sky: Path, small_store: CutoutStore
) -> None:
    tile = next(iter(desk.glob("images/*_green.fits")))
    about = json.loads(run("info", str(tile), "--survey", "mine.yaml", "--json").stdout)
    assert about["calibrated_by"] == {"green": "PHOTFLAM and PHOTPLAM"}
    assert about["has_errors"]

    plan = run(
        "extract", "--survey", "mine.yaml", "--mosaics", "images", "--store", "s", "--dry-run"
    )
    for name, origin in (("blue", "MAGZERO 26.4"), ("red", "unit uJy")):
        assert (
            f"{name:8s}1 is {BANDS[name][2]:.6g} nJy ({origin}); planes: image, weight"
            in plan.stdout
        )
    assert "source_id ID, ra RA, dec DEC, z_spec zspec; not used: mag" in plan.stdout
    assert not (desk / "s").exists()

    run("extract", "--survey", "mine.yaml", "--mosaics", "images", "--store", "s")
    run("verify", "s")
    trained = run("train", "--config", "recipe.yaml", "--store", "s", "--out", "run")
    assert "with one redshift for all" in trained.stderr
    words = ["infer", "--store", "s", "--checkpoint", "run/model.safetensors", "--out", "out"]
    made = run(*words, "--pdf", "quantiles", "--export", "fits")
    assert "accuracy" in made.stdout
    run("verify", "out", "--store", "s")

    # The sources are those of the list, and the fluxes those of the same pixels in a Roman file.
    table = Table.read(desk / "out" / "photoz.fits")
    listed = Table.read(desk / "images" / "sources.csv")
    ids = [id_of_text(text) for text in listed["ID"]]
    assert sorted(table["source_id"]) == sorted(ids)
    sky_ids = catalogues(small_sky, "cat")["source_id"].set_axis(ids)
    survey, flux = small_store.survey, {}
    at = survey.band_names.index("F129"), survey.aperture_radii_arcsec.index(0.4)
    for key in small_store.shards():
        flux_N = small_store.read_measurements(key).flux_NCR[:, *at]
        flux |= dict(zip(small_store.read_sources(key).source_id_N, flux_N, strict=True))
    simulated_N = np.array([flux[sky_ids[source_id]] for source_id in table["source_id"]])
    bright = simulated_N > 1000
    ratio = np.array(table["aper04_green_flux"], float)[bright] / simulated_N[bright]
    assert bright.sum() > 10
    np.testing.assert_allclose(np.median(ratio), 1, atol=0.02)

    run("evaluate", "out", "--truth", "images/sources.csv", "--survey", "mine.yaml")
    run("report", "out", "--out", "report.html")
    assert "<html" in (desk / "report.html").read_text()[:1000]


def refused(run: Run, *words: str) -> str:
    told = run(*words, fails=1).stderr
    assert len(told.strip().splitlines()[-1]) < 600
    return told


def test_what_goes_wrong_is_said(desk: Path, run: Run, small_sky: Path) -> None:
    """Each of these once gave wrong redshifts, or none, with exit code 0."""
    listed = Table.read(desk / "images" / "sources.csv")
    ra, dec = np.array(listed["RA"]), np.array(listed["DEC"])
    begin = ["extract", "--survey", "mine.yaml", "--mosaics", "images", "--store", "wrong"]

    def with_list(**changed: Any) -> str:
        write_list(small_sky, desk / "wrong.csv", **changed)
        return refused(run, *begin, "--sources", "wrong.csv")

    assert "is RA in hours?" in with_list(RA=ra / 15)
    assert "'DEC'" in with_list(RA=dec % 360, DEC=ra)  # 158 degrees
    assert "source_id" in with_list(ID=["GAL-1"] * len(listed))  # one name for all

    (desk / "unnamed.yaml").write_text(SURVEY.replace("source_id: ID, ", ""))
    told = refused(run, "extract", "--survey", "unnamed.yaml", *begin[3:])
    assert "'ID'" in told
    (desk / "fourth.yaml").write_text(
        SURVEY + "  - {name: z, psf_fwhm_arcsec: 0.1, extinction_r: 1}\n"
    )
    told = refused(run, "extract", "--survey", "fourth.yaml", *begin[3:])
    assert "no tile has a mosaic of z" in told
    (desk / "other.yaml").write_text(SURVEY.replace("{tile}_{band}.fits", "{tile}-{band}-sci.fits"))
    told = refused(run, "extract", "--survey", "other.yaml", *begin[3:])
    assert "none of" in told
    assert "mosaic_pattern" in told
    assert not (desk / "wrong").exists()

    z = np.where(np.array(listed["zspec"]) < 0, 99.0, np.array(listed["zspec"]))
    write_list(small_sky, desk / "wrong.csv", zspec=np.where(np.arange(len(z)) % 7 == 0, 31.0, z))
    told = run(*begin, "--sources", "wrong.csv", "--dry-run").stderr
    assert "99" in told
    assert "31" in told
