"""The survey files of docs/own_survey.md are loaded, and the whole one is used."""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from click.testing import CliRunner

from builders.paths import ROOT
from photozhpc.cli import main
from photozhpc.extraction.extract import extract
from photozhpc.store import CutoutStore
from photozhpc.survey import Band, FluxColumns, SourceColumns, Survey, load_survey

PAGE = (ROOT / "docs/own_survey.md").read_text()
SIDE, STEP = 120, 90


def _wcs(tile: int) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["RA---TAN", "DEC--TAN"], [30.0, 5.0]
    wcs.wcs.cdelt = [-0.2 / 3600, 0.2 / 3600]
    wcs.wcs.crpix = [SIDE / 2 - STEP * (tile - 1), SIDE / 2]
    return wcs


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Tiles f1 and f2, 30 px of them in common; 15 sources a list, 6 of them in both."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for tile in (1, 2):
        for band in ("gp", "rp"):
            image = rng.normal(tile, 0.1, (SIDE, SIDE)).astype(np.float32)
            hdu = fits.PrimaryHDU(image, _wcs(tile).to_header())
            hdu.writeto(folder / f"f{tile}-{band}-v{1 if tile == 2 else 2}.fits")
    hdu.writeto(folder / "f1-gp-v1.fits")
    hdu.writeto(folder / "f1-rp-v3-shallow.fits")
    y = np.linspace(20, 100, 12)
    common = np.stack([np.repeat([95.0, 115.0], 3), y[:6]], axis=-1)  # of f1
    only = [np.stack([np.full(9, x), y[:9]], axis=-1) for x in (30.0, 180.0)]
    for tile in (1, 2):
        xy = np.vstack([common, only[tile - 1]])
        ra, dec = _wcs(1).all_pix2world(xy, 0).T
        number = np.arange(1, 16)
        Table(
            {
                "NUMBER": number,
                "ALPHA_J2000": ra,
                "DELTA_J2000": dec,
                "ZSPEC": np.where(number % 5 < 2, 0.5, -99.0),
                "ZGRISM": np.where(number % 5 < 4, 1.5, -99.0),
                "AV": np.full(15, 0.2742),
            }
        ).write(folder / f"f{tile}-cat.fits")
    return folder


def _blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_every_survey_file_of_the_page_loads(tmp_path: Path) -> None:
    assert len(_blocks()) == 2
    for text in _blocks():
        (tmp_path / "mine.yaml").write_text(text)
        assert load_survey(tmp_path / "mine.yaml").band_names == ("g", "r")


def test_every_key_is_explained_and_no_other() -> None:
    keys = {field.name for cls in (Survey, Band) for field in dataclasses.fields(cls)}
    columns = (SourceColumns, FluxColumns)
    keys |= {field.name for cls in columns for field in dataclasses.fields(cls)}
    explained = set(re.findall(r"`([a-z_]+)`", " ".join(re.findall(r"(?m)^\| `.*?\|", PAGE))))
    explained |= set(re.findall(r"`source_columns: ([a-z_]+)`", PAGE))
    assert explained == keys - {"bands", "source_columns"}
    special = {"layer", "image_extension", "bad_mask_bits", "zero_is_blank"}
    special |= {"aperture_columns", "total_columns"}  # of catalogues: docs/table.md
    shown = set(yaml.safe_load(_blocks()[1]))
    assert shown == {f.name for f in dataclasses.fields(Survey)} - special


def test_the_whole_one_does_what_the_page_says(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(_blocks()[1])
    command = next(line for line in PAGE.splitlines() if "photozhpc extract" in line).split()[1:]
    plan = CliRunner().invoke(main, command)
    command.remove("--dry-run")
    assert plan.exit_code == 0, plan.output
    assert not Path("mine.store").exists()
    assert plan.stdout in PAGE
    for time in ("first", "again"):  # the notes of finished tiles are kept
        result = CliRunner().invoke(main, [*command, "--workers", "1"])
        assert result.exit_code == 0, result.output
        notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
        assert notes == re.findall(r"(?m)^note: .*", PAGE), time
    assert all(line in result.stderr for line in plan.stdout.splitlines())
    store = CutoutStore.open("mine.store")
    assert store.tiles() == {"f1": 12, "f2": 12}
    z_spec_N = np.concatenate([store.read_sources(key).z_spec_N for key in store.shards()])
    n_labels = np.count_nonzero(np.isfinite(z_spec_N))
    assert re.search(rf"labels +{n_labels}, z 0.5 to 1.5\n", plan.stdout)
    with_sky = replace(load_survey("mine.yaml"), subtract_sky=False)
    extract(with_sky, images, tmp_path / "with-sky.store", workers=1)
    sky = CutoutStore.open(tmp_path / "with-sky.store")
    for key in store.shards():
        sources = store.read_sources(key)
        level = float(key.tile_id[1]) * 10**1.76  # which says which mosaic was chosen
        assert np.median(sky.read_cutouts(key)) == pytest.approx(level, rel=0.05)
        assert np.median(store.read_cutouts(key)) == pytest.approx(0, abs=0.02 * level)
        np.testing.assert_allclose(sources.ebv_N, 0.1, rtol=1e-6)
        number_N = sources.source_id_N % 10_000_000
        kind_N = np.where(number_N % 5 < 2, 0.5, np.where(number_N % 5 < 4, 1.5, np.nan))
        np.testing.assert_array_equal(sources.z_spec_N, kind_N.astype(np.float32))
