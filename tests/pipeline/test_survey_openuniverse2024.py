"""openuniverse2024 on coadds and truth tables of the published structure.

Coadds: OpenUniverse2024 (arXiv 2501.05632), IRSA's tutorials (images/coadds/{band}/Row{RR}/
prod_{B}_{CC}_{RR}_map.fits, primary HDU 1 x 15 x 2688 x 2688, layer 0 in e / (0.11")^2 / exposure,
STG projection about one point) and PyIMCOM's output (coadd.py: extensions CONFIG, INDATA, INWEIGHT,
INWTFLAT, FIDELITY, SIGMA, KAPPA, INWTSUM, EFFCOVER as logarithms in 16-bit integers). Truth:
skyCatalogs' 'diffsky' schema of galaxy_{HEALPix}.parquet; MW_av is 2.742 times the E(B-V) of SFD
(skycatalogs' _Av_adjustment). Zero points: GalSim's bandpasses. Here a block has 160 px of its own.
"""

from dataclasses import replace
from pathlib import Path

import galsim.roman
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from photozhpc.catalog.photoz_catalog import (
    QUANTILE_LEVELS,
    make_table,
    part_name,
    write_part,
)
from photozhpc.errors import MosaicError
from photozhpc.evaluation.evaluate import evaluate
from photozhpc.extraction.assign import assign_tiles
from photozhpc.extraction.extract import extract
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic.footprint import read_footprint
from photozhpc.mosaic.tile import read_tile
from photozhpc.sources.find import find_source_lists, read_survey_lists
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

SURVEY = load_survey("openuniverse2024")
OWN, PAD, N_LAYERS = 160, 64, 15
SIDE = OWN + 2 * PAD
SCALE = 0.0390625
FWHM_PIX = 6.0
MAG = 22.0
NOISE = 0.3
LETTERS = {"Y106": "Y", "H158": "H"}


def _wcs(column: int, row: int) -> WCS:
    """The WCS of a block: all share one projection, shifted by whole blocks."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---STG", "DEC--STG"]
    wcs.wcs.crval = [9.55, -44.1]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    wcs.wcs.crpix = [SIDE / 2 + 0.5 - OWN * (column - 18), SIDE / 2 + 0.5 - OWN * (row - 18)]
    return wcs


def _science(wcs: WCS, sky_K2: np.ndarray, zero_point: float, rng) -> np.ndarray:
    image = rng.normal(0, NOISE, (SIDE, SIDE))
    flux, sigma = 10 ** (0.4 * (zero_point - MAG)), FWHM_PIX / 2.3548
    yy, xx = np.mgrid[:SIDE, :SIDE]
    for x, y in wcs.all_world2pix(sky_K2, 0):
        if -40 < x < SIDE + 40 and -40 < y < SIDE + 40:
            r2 = (xx - x) ** 2 + (yy - y) ** 2
            image += flux * np.exp(-r2 / 2 / sigma**2) / (2 * np.pi * sigma**2)
    return image.astype(np.float32)


def _coadd(path: Path, column: int, row: int, sky_K2: np.ndarray, zero_point: float) -> None:
    rng = np.random.default_rng(column * 100 + row)
    wcs = _wcs(column, row)
    layers = rng.normal(100, 1, (1, N_LAYERS, SIDE, SIDE)).astype(np.float32)
    layers[0, 0] = _science(wcs, sky_K2, zero_point, rng)
    text = fits.Column(name="text", array=["{", '"EXTRAINPUT": []', "}"], format="A512", ascii=True)
    hdus = [fits.PrimaryHDU(layers, wcs.to_header()), fits.TableHDU.from_columns([text])]
    hdus[1].header["EXTNAME"] = "CONFIG"
    indata = fits.Column(name="obsid", array=np.arange(3), format="J")
    hdus.append(fits.BinTableHDU.from_columns([indata], name="INDATA"))
    hdus.append(fits.ImageHDU(np.ones((1, 3, 12, 12), np.float32), name="INWEIGHT"))
    hdus.append(fits.ImageHDU(np.ones((12, 36), np.float32), name="INWTFLAT"))
    for name, kind in (
        ("FIDELITY", np.uint16),
        ("SIGMA", np.int16),
        ("KAPPA", np.uint16),
        ("INWTSUM", np.int16),
        ("EFFCOVER", np.uint16),
    ):
        hdus.append(fits.ImageHDU(np.full((1, SIDE, SIDE), 3000, kind), wcs.to_header(), name=name))
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(path)


@pytest.fixture(scope="module")
def truth() -> pd.DataFrame:
    """Galaxies: 60 in the blocks' own areas, their overlaps included, and 3 far from all."""
    rng = np.random.default_rng(4)
    xy = rng.uniform(PAD, PAD + 2 * OWN, (60, 2))
    xy[:20] = rng.uniform(PAD + OWN - 60, PAD + OWN + 60, (20, 2))  # where all four overlap
    sky = np.vstack([_wcs(15, 12).all_pix2world(xy, 0), [[9.9, -44.1], [9.2, -44.3], [200, 30]]])
    n = len(sky)
    return pd.DataFrame(
        {
            "galaxy_id": 10307_000_000_000 + rng.permutation(n),
            "ra": sky[:, 0],
            "dec": sky[:, 1],
            "redshift": rng.uniform(0.1, 3, n),
            "redshiftHubble": rng.uniform(0.1, 3, n),
            "shear1": np.zeros(n),
            "diskHalfLightRadiusArcsec": np.float32(0.2),
            "MW_rv": np.full(n, 3.1, np.float32),
            "MW_av": np.full(n, 0.02742, np.float32),  # 2.742 E(B-V) of SFD
        }
    )


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory, truth: pd.DataFrame) -> Path:
    folder = tmp_path_factory.mktemp("ou")
    sky = truth[["ra", "dec"]].to_numpy()[:-3]
    for column, row in ((15, 12), (16, 12), (15, 13), (16, 13)):
        for band, letter in LETTERS.items():
            end = ".gz" if (column, row, band) == (15, 12, "Y106") else ""
            name = f"prod_{letter}_{column:02d}_{row:02d}_map.fits{end}"
            path = folder / "RomanWAS/images/coadds" / band / f"Row{row:02d}" / name
            _coadd(path, column, row, sky, SURVEY.band(band).zero_point_ab)
    truth.to_parquet(folder / "galaxy_10307.parquet")
    flux = truth[["galaxy_id"]].assign(roman_flux_H158=np.float32(1))
    flux.to_parquet(folder / "galaxy_flux_10307.parquet")
    return folder


@pytest.fixture(scope="module")
def store(delivery: Path, tmp_path_factory: pytest.TempPathFactory) -> CutoutStore:
    path = tmp_path_factory.mktemp("store") / "s"
    summary = extract(SURVEY, delivery, path, size=32, workers=1, allow_missing_bands=True)
    assert "3 sources on no tile were left out" in summary.notes
    assert any("one error for all pixels" in note for note in summary.notes)
    return CutoutStore.open(path)


def test_zero_points_are_those_of_galsims_roman() -> None:
    bandpasses = galsim.roman.getBandpasses(AB_zeropoint=True)
    per_exposure = galsim.roman.collecting_area * 139.8 * (0.11 / SCALE) ** 2
    for name in ("Y106", "J129", "H158", "F184", "K213"):
        expected = bandpasses[name].zeropoint + 2.5 * np.log10(per_exposure)
        assert SURVEY.band(name).zero_point_ab == pytest.approx(expected, abs=1e-3)


def test_the_block_is_the_one_whose_own_area_a_source_lies_in(
    delivery: Path, truth: pd.DataFrame
) -> None:
    found = find_mosaics(delivery, SURVEY)
    assert set(found) == {"15_12", "16_12", "15_13", "16_13"}  # column before row
    lists = find_source_lists(delivery, SURVEY)
    assert [path.name for path in lists] == ["galaxy_10307.parquet"]
    sources = read_survey_lists(lists, SURVEY).sources
    tile_N = assign_tiles(sources, [read_footprint(bands, SURVEY) for bands in found.values()])
    x, y = _wcs(15, 12).all_world2pix(truth[["ra", "dec"]].to_numpy()[:-3], 0).T
    column = 15 + ((x + 0.5 - PAD) // OWN).astype(int)
    row = 12 + ((y + 0.5 - PAD) // OWN).astype(int)
    names = np.array([*found, "none"])[tile_N]
    assert names.tolist() == [f"{c}_{r}" for c, r in zip(column, row, strict=True)] + ["none"] * 3
    np.testing.assert_allclose(sources.ebv_N, 0.01, rtol=1e-5)


def test_furthest_from_an_edge_is_the_own_area_everywhere_inside() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(PAD, PAD + 3 * OWN, (2, 20000)) - 0.5  # of 3 x 3 blocks
    depth = np.full((9, 20000), -np.inf)
    for i in range(9):
        u, v = x - OWN * (i % 3), y - OWN * (i // 3)
        depth[i] = np.minimum.reduce([u + 0.5, SIDE - 0.5 - u, v + 0.5, SIDE - 0.5 - v])
    inside = (x >= 2 * PAD) & (x < 3 * OWN) & (y >= 2 * PAD) & (y < 3 * OWN)
    own = ((x + 0.5 - PAD) // OWN + 3 * ((y + 0.5 - PAD) // OWN)).astype(int)
    assert inside.mean() > 0.4
    np.testing.assert_array_equal(np.argmax(depth, axis=0), own)


def test_every_galaxy_is_measured_once_with_its_magnitude_and_redshift(
    store: CutoutStore, truth: pd.DataFrame
) -> None:
    known = truth.set_index("galaxy_id")
    ids, offsets = [], []
    for key in store.shards():
        sources, measured = store.read_sources(key), store.read_measurements(key)
        ids += sources.source_id_N.tolist()
        np.testing.assert_allclose(
            sources.z_spec_N, known.loc[sources.source_id_N, "redshift"], rtol=1e-6
        )
        flux_NB = measured.flux_NCR[:, [0, 2], 3]  # F106 and F158 within 0.8 arcsec
        offsets.append(31.4 - 2.5 * np.log10(np.maximum(flux_NB, 1)) - MAG)
        assert np.isnan(measured.flux_NCR[:, 1]).all()  # no mosaics of F129
    assert sorted(ids) == sorted(truth["galaxy_id"][:-3])
    # Neighbours within the aperture only make a source brighter.
    assert np.abs(np.quantile(np.concatenate(offsets), 0.7, axis=0)).max() < 0.03


def test_only_the_science_layer_is_used(delivery: Path) -> None:
    tile = read_tile(find_mosaics(delivery, SURVEY)["16_13"], SURVEY)
    njy = 10 ** (0.4 * (31.4 - SURVEY.band("H").zero_point_ab))
    assert np.nanmedian(tile.err_CHW[2]) == pytest.approx(NOISE * njy, rel=0.1)
    path = next(delivery.rglob("prod_H_16_13_map.fits"))
    with fits.open(path) as hdus:
        np.testing.assert_allclose(tile.image_CHW[2], hdus[0].data[0, 0] * njy, rtol=1e-5)


def test_a_file_without_the_layer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prod_H_01_01_map.fits"
    fits.PrimaryHDU(np.ones((1, 2, 32, 32), np.float32), _wcs(1, 1).to_header()).writeto(path)
    with pytest.raises(MosaicError, match=r"has no layer 4, which .* survey 'openuniverse2024'"):
        read_tile({"F158": path}, replace(SURVEY, layer=4))


def test_the_truth_is_joined_on_galaxy_id(
    store: CutoutStore, delivery: Path, truth: pd.DataFrame, tmp_path: Path
) -> None:
    known = truth.set_index("galaxy_id")["redshift"]
    (tmp_path / "catalog").mkdir()
    levels = np.array(sorted(QUANTILE_LEVELS.values()))
    for number, key in enumerate(store.shards()):
        sources, measured = store.read_sources(key), store.read_measurements(key)
        z_N = known.loc[sources.source_id_N].to_numpy()
        estimate_N = (z_N + 0.1 * (1 + z_N)).astype(np.float32)
        table = make_table(
            SURVEY,
            source_id_N=sources.source_id_N,
            ra_N=sources.ra_N,
            dec_N=sources.dec_N,
            tile_id_N=np.full(len(z_N), key.tile_id),
            photoz_N=estimate_N,
            quantile_NQ=(estimate_N[:, None] + levels - 0.5).astype(np.float32),
            ood_N=np.zeros(len(z_N), np.float32),
            photoz_flags_N=np.zeros(len(z_N), np.int32),
            flux_NCR=measured.flux_NCR,
            flux_err_NCR=measured.flux_err_NCR,
        )
        write_part(table, tmp_path / "catalog" / part_name(number), {})
    evaluation = evaluate(tmp_path, [delivery / "galaxy_[0-9]*.parquet"])
    assert (evaluation.z_kind, evaluation.n_rows, evaluation.n_truth) == ("true", 60, 63)
    matched = evaluation.matched
    np.testing.assert_array_equal(matched.z_ref_N, known.loc[matched.source_id_N])
    residual_N = (matched.z_phot_N - matched.z_ref_N) / (1 + matched.z_ref_N)
    np.testing.assert_allclose(residual_N, 0.1, rtol=1e-4)
