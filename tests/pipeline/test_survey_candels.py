"""candels on one field's files and on the catalogues of all five, as MAST publishes them.

Mosaics: HLSP candels (archive.stsci.edu/hlsp/candels; Koekemoer et al. 2011, arXiv 1105.3754):
hlsp_candels_hst_{acs|wfc3}_{field}-tot[-60mas]_{band}_v1.0_{drz|wht}.fits, electrons/s, PHOTFLAM
and PHOTPLAM, weights that are inverse variances, TAN headers in which distortion coefficients of
an exposure are left. Catalogues: hlsp_candels_hst_wfc3_{field}_multi_v2_redshift-cat.txt (Kodra
et al. 2023, ApJ 942, 36): a header that numbers 57 columns (file, ID, RA, DEC, z_best,
z_best_type, z_spec, z_spec_ref, z_grism, then six photometric estimates by each of eight codes);
-99 is 'none'.
"""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from photozhpc.errors import SourceListError
from photozhpc.extraction.extract import extract
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic.tile import read_tile
from photozhpc.sources.find import find_source_lists, read_survey_lists
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

SURVEY = load_survey("candels")
SIDE, SCALE = 200, 0.06
PHOT = {  # PHOTFLAM, PHOTPLAM of the mosaics
    "f606w": ("acs", 7.862481e-20, 5921.1),
    "f814w": ("acs", 7.033186e-20, 8057.0),
    "f125w": ("wfc3", 2.2446000e-20, 12486.0),
    "f160w": ("wfc3", 1.9275602e-20, 15369.0),
}
FIELDS = {  # of the catalogue: (of the mosaic, RA, Dec)
    "goodss": ("gs", 53.12, -27.80),
    "goodsn": ("gn", 189.23, 62.24),
    "uds": ("uds", 34.40, -5.20),
    "cosmos": ("cos", 150.12, 2.33),
    "egs": ("egs", 214.82, 52.82),
}
CODES = ("mFDa4", "HB4", "Finkelstein", "Fontana", "Pforr", "Salvato", "Wiklind", "Wuyts")
ESTIMATES = ("z_peak", "z_weight", "z683_low", "z683_high", "z954_low", "z954_high")


def _wcs(field: str) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = FIELDS[field][1:]
    wcs.wcs.cdelt = [-SCALE / 3600, SCALE / 3600]
    wcs.wcs.crpix = [SIDE / 2, SIDE / 2]
    return wcs


def _mosaic(folder: Path, name: str, band: str, field: str, scale: float = 1.0) -> None:
    rng = np.random.default_rng(len(name))
    header = _wcs(field).to_header()
    header["PC1_1"] = header["PC2_2"] = scale
    for key, value in (("A_ORDER", 2), ("B_ORDER", 2), ("A_2_0", 1e-4), ("B_0_2", 1e-4)):
        header[key] = value  # of an exposure; the mosaic is drizzled
    _, photflam, photplam = PHOT[band]
    header["BUNIT"], header["PHOTFLAM"], header["PHOTPLAM"] = "ELECTRONS/S", photflam, photplam
    image = rng.normal(0, 0.003, (SIDE, SIDE)).astype(np.float32)
    weight = np.full((SIDE, SIDE), 0.003**-2, np.float32)
    fits.PrimaryHDU(image, header).writeto(folder / f"{name}_drz.fits")
    fits.PrimaryHDU(weight, header).writeto(folder / f"{name}_wht.fits")


def _catalogue(folder: Path, field: str, xy_N2: np.ndarray) -> Path:
    columns = ["file", "ID", "RA", "DEC", "z_best", "z_best_type", "z_spec", "z_spec_ref"]
    columns += ["z_grism", *(f"{code}_{name}" for code in CODES for name in ESTIMATES)]
    lines = [f"# {i} {name}" for i, name in enumerate(columns, 1)]
    for i in (1, 2, 3):
        lines[i] += f" (CANDELS.{field.upper()}.F160W.v1.photom.cat)"
    lines += ["#", f"# CANDELS {field} photometric redshifts", "# see Kodra et al.", "#"]
    for number, (ra, dec) in enumerate(_wcs(field).all_pix2world(xy_N2, 0), 1):
        z_spec = 0.5 + number / 100 if number % 3 == 0 else -99.0
        z_grism = 1.5 + number / 100 if number % 2 == 0 else -99.0
        kind = "s" if z_spec > 0 else "g" if z_grism > 0 else "p"
        reference = "VLT_2008" if z_spec > 0 else "None"
        row = f"{field}_{number:05d}.pzd {number} {ra:.7f} {dec:.7f} 1.1 {kind} {z_spec:.4f} "
        row += f"{reference} {z_grism:.4f} "
        lines.append(row + " ".join(["1.2000"] * (len(CODES) * len(ESTIMATES))))
    path = folder / f"hlsp_candels_hst_wfc3_{field}_multi_v2_redshift-cat.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def xy_N2() -> np.ndarray:
    return np.random.default_rng(3).uniform(20, SIDE - 20, (24, 2))


@pytest.fixture(scope="module")
def delivery(tmp_path_factory: pytest.TempPathFactory, xy_N2: np.ndarray) -> Path:
    """GOODS-N: mosaics of 60 and 30 mas of every band, weights, the redshift catalogue."""
    folder = tmp_path_factory.mktemp("goodsn")
    for band, (camera, *_) in PHOT.items():
        _mosaic(folder, f"hlsp_candels_hst_{camera}_gn-tot-60mas_{band}_v1.0", band, "goodsn")
    for band in ("f606w", "f814w"):
        _mosaic(folder, f"hlsp_candels_hst_acs_gn-tot-30mas_{band}_v1.0", band, "goodsn", 0.5)
        _mosaic(folder, f"hlsp_candels_hst_acs_gn-tot-sect11_{band}_v1.0", band, "goodsn", 0.5)
    # A single epoch, as the delivery's first versions have them.
    _mosaic(folder, "hlsp_candels_hst_wfc3_gnd01_f160w_v0.5", "f160w", "goodsn")
    _catalogue(folder, "goodsn", xy_N2)
    return folder


def test_one_fields_files_become_a_store_with_labels(
    delivery: Path, xy_N2: np.ndarray, tmp_path: Path
) -> None:
    summary = extract(SURVEY, delivery, tmp_path / "s", size=32, workers=1)
    assert "labels in the source lists: 8 from z_spec, 8 from z_grism" in summary.notes
    store = CutoutStore.open(tmp_path / "s")
    assert store.tiles() == {"gn": 24}
    (key,) = store.shards()
    sources, measured = store.read_sources(key), store.read_measurements(key)
    number_N = sources.source_id_N % 10_000_000
    assert sorted(number_N) == list(range(1, 25))
    expected_N = np.where(
        number_N % 3 == 0,
        0.5 + number_N / 100,
        np.where(number_N % 2 == 0, 1.5 + number_N / 100, np.nan),
    )
    np.testing.assert_allclose(sources.z_spec_N, expected_N, rtol=1e-6)
    assert np.isfinite(measured.flux_NCR).all()
    # 6 decimals of a pixel in the catalogue; the leftover coefficients would shift them by 1 px.
    np.testing.assert_allclose(measured.x_N, xy_N2[number_N - 1, 0], atol=0.01)
    np.testing.assert_allclose(measured.y_N, xy_N2[number_N - 1, 1], atol=0.01)


def test_the_mosaics_calibration_and_weights(delivery: Path) -> None:
    tile = read_tile(find_mosaics(delivery, SURVEY)["gn"], SURVEY)
    assert tile.missing_bands == ()
    for c, (_, photflam, photplam) in enumerate(PHOT.values()):
        zero_point = -2.5 * np.log10(photflam) - 5 * np.log10(photplam) - 2.408
        njy = 0.003 * 10 ** (0.4 * (31.4 - zero_point))
        np.testing.assert_allclose(np.median(tile.err_CHW[c]), njy, rtol=2e-3)


def test_identifiers_are_unique_over_the_five_fields(tmp_path: Path, xy_N2: np.ndarray) -> None:
    paths = [_catalogue(tmp_path, field, xy_N2) for field in FIELDS]
    lists = find_source_lists(tmp_path, SURVEY)
    assert sorted(lists) == sorted(paths)
    sources = read_survey_lists(lists, SURVEY).sources
    assert len(np.unique(sources.source_id_N)) == 5 * 24
    assert len(np.unique(sources.source_id_N // 10_000_000)) == 5
    alone = read_survey_lists([paths[0]], SURVEY).sources
    assert set(alone.source_id_N) < set(sources.source_id_N)  # the same, whatever else is read


def test_a_damaged_catalogue_is_named(tmp_path: Path, xy_N2: np.ndarray) -> None:
    path = _catalogue(tmp_path, "uds", xy_N2)
    text = path.read_text()
    path.write_text(text[: len(text) * 9 // 10])
    with pytest.raises(
        SourceListError, match=r"uds_multi_v2_redshift-cat\.txt: the source list can"
    ):
        read_survey_lists([path], SURVEY)
    path.write_text("".join(line + "\n" for line in text.splitlines() if "# 57 " not in line))
    with pytest.raises(SourceListError, match="header has 56 columns"):
        read_survey_lists([path], SURVEY)
