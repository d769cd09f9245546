"""The calibration that headers state, as public archives and programs write it."""

import warnings

import asdf
import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits

from builders.mosaics import F158, change_roman, make_image, make_survey, write
from photozhpc.errors import ConfigError, MosaicError
from photozhpc.mosaic.calibration import njy_per_unit
from photozhpc.mosaic.tile import read_tile
from photozhpc.survey import Band, load_survey

BAND = Band("g", psf_fwhm_arcsec=0.8, extinction_r=3.2)
FLAM, PLAM = 7.0e-20, 8045.0


def calibrate(cards: dict, unit: str | None = None, band: Band = BAND) -> float | None:
    header = fits.Header()
    for key, value in cards.items():
        header[f"HIERARCH {key}" if len(key) > 8 or "." in key else key] = value
    return njy_per_unit(unit, band, 0.04, (header, fits.Header()))


def njy_of(zero_point_ab: float) -> float:
    return (zero_point_ab * u.ABmag).to_value(u.nJy)


def photflam_njy() -> float:
    """By astropy: f_lambda of one count per second at the pivot wavelength, as f_nu."""
    flam = FLAM * u.erg / u.s / u.cm**2 / u.AA
    return flam.to_value(u.nJy, u.spectral_density(PLAM * u.AA))


# --- exposure times


@pytest.mark.parametrize(
    "cards",
    [
        {"EXPTIME": 1000.0},
        {"EXPTIME": "1000.0"},
        {"EXPTIME": "1.0D3"},
        {"TEXPTIME": " 1000. "},
        {"EXPOSURE": 1000},
        {"XPOSURE": "1E3"},
        {"EXPTIME": 0.0, "TEXPTIME": 1000.0},
        {"EXPTIME": "N/A", "EXPOSURE": 1000.0},
    ],
)
def test_an_exposure_time_in_any_spelling(cards):
    hst = {"PHOTFLAM": FLAM, "PHOTPLAM": PLAM, **cards}
    assert calibrate(hst, "ELECTRONS") == pytest.approx(photflam_njy() / 1000, rel=1e-3)
    quoted = {**cards, "PHOTFLAM": str(FLAM), "PHOTPLAM": str(PLAM)}
    assert calibrate(quoted, "ELECTRONS") == calibrate(hst, "ELECTRONS")
    assert calibrate({"PHOTFNU": "1e-6", **cards}, "DN") == pytest.approx(1.0)


@pytest.mark.parametrize(
    "cards", [{}, {"EXPTIME": 0.0}, {"EXPTIME": -1.0}, {"EXPTIME": "N/A"}, {"EXPTIME": True}]
)
@pytest.mark.parametrize("calibration", [{"PHOTFLAM": FLAM, "PHOTPLAM": PLAM}, {"PHOTFNU": 1e-6}])
def test_counts_without_an_exposure_time_are_refused(cards, calibration):
    with pytest.raises(MosaicError, match=r"no exposure time .*set zero_point_ab of g"):
        calibrate({**calibration, **cards}, "ELECTRONS")
    assert calibrate({**calibration, **cards}, "ELECTRONS/S") is not None
    band = Band("g", 0.8, 3.2, zero_point_ab=31.4)
    assert calibrate({**calibration, **cards}, "ELECTRONS", band) == 1.0


def test_the_primary_header_serves_where_the_image_has_no_number(tmp_path):
    primary = fits.PrimaryHDU()
    primary.header.update({"EXPTIME": "100.", "PHOTFNU": 1e-6})
    image = fits.ImageHDU(make_image(), name="SCI")
    image.header.update({"EXPTIME": 0.0, "BUNIT": "ELECTRONS"})
    fits.HDUList([primary, image]).writeto(tmp_path / "x_f814w_drz.fits")
    tile = read_tile(tmp_path / "x_f814w_drz.fits", make_survey("F814W"))
    np.testing.assert_allclose(tile.image_CHW[0], make_image() * 10, rtol=1e-5)


# --- zero points


@pytest.mark.parametrize(
    ("cards", "zero_point_ab"),
    [
        ({"MAGZERO": "25.0"}, 25.0),
        ({"MAGZERO": "25.0", "ZP": 1.0}, 25.0),  # of something else
        ({"MAGZERO": 30.0, "TELESCOP": "CTIO 4.0-m telescope"}, 30.0),  # DES coadds
        ({"MAGZERO": 30.1, "MAGZPT": 25.1, "EXPTIME": 100.0}, 30.1),  # NOIRLab: of 1 s
        ({"FLUXMAG0": 10**10.8}, 27.0),  # HSC
        ({"FLUXMAG0": "63095734448.0194"}, 27.0),
        ({"MAGZP": 26.2, "INSTRUME": "ZTF/MOSAIC"}, 26.2),
        ({"MAGZP": (26.2, "[mag] AB zero point")}, 26.2),
        ({"PHOTZP": 30.0, "INSTRUME": "MegaPrime"}, 30.0),  # MegaPipe
        ({"PHOTZP": 30.0, "PHOTSYS": "AB"}, 30.0),  # ESO phase 3
        ({"MAGZEROP": 24.6, "TELESCOP": "Euclid"}, 24.6),
        ({"MAGZERO": 24.0, "MAGSYS": "ABMAG", "TELESCOP": "VISTA"}, 24.0),
        ({"ABZP": 24.0, "TELESCOP": "UKIRT", "SURVEY": "UKIDSS"}, 24.0),
        ({"FPA.ZP": 25.0, "EXPTIME": 500.0}, 25 + 2.5 * np.log10(500)),  # Pan-STARRS' stacks
    ],
)
def test_zero_points_in_headers(cards, zero_point_ab):
    assert calibrate(cards, "adu") == pytest.approx(njy_of(zero_point_ab), rel=1e-3)


@pytest.mark.parametrize(
    ("cards", "why"),
    [
        ({"MAGZP": 20.5, "TELESCOP": "WISE", "BUNIT": "DN"}, "TELESCOP 'WISE'"),  # AllWISE
        ({"MAGZP": (22.5, "Magnitude zeropoint (in Vega mag)")}, "comment says Vega"),  # unWISE
        ({"MAGZP": 20.8, "ORIGIN": "2MASS"}, "ORIGIN '2MASS'"),
        ({"MAGZP": 20.8, "SURVEY": "unWISE-neo7"}, "unWISE"),
        ({"MAGZP": 20.8}, "does not state the system"),
        ({"MAGZPT": 24.2, "TELESCOP": "UKIRT", "INSTRUME": "WFCAM"}, "WFCAM"),
        ({"MAGZPT": 24.2, "NUMZPT": 300}, "NUMZPT"),  # CASU's pipelines
        ({"MAGZERO": 24.2, "INSTRUME": "VIRCAM"}, "VIRCAM"),
        ({"MAGZERO": 24.2, "INSTRUME": "newfirm"}, "newfirm"),
        ({"PHOTZP": 24.2, "PHOTSYS": "VEGA"}, "PHOTSYS is 'VEGA'"),  # ESO phase 3
        ({"PHOTZP": 24.2}, "does not state the system"),
        ({"MAGZERO": 24.2, "MAGSYS": "VEGAMAG"}, "MAGSYS is 'VEGAMAG'"),
        ({"MAGZERO": 24.2, "ZPSYS": "ST"}, "ZPSYS is 'ST'"),
        ({"MAGZERO": 24.2, "HISTORY": "zero point tied to Vega"}, "HISTORY card mentions Vega"),
        ({"MAGZERO": 25.0, "ZP": 26.0}, "disagree"),
        ({"FPA.ZP": 25.0}, "no exposure time"),
    ],
)
def test_a_zero_point_that_may_not_be_ab_is_refused(cards, why):
    with pytest.raises(MosaicError, match=rf"{why}.*set zero_point_ab of g"):
        calibrate(cards, "DN")
    assert calibrate(cards, "DN", Band("g", 0.8, 3.2, zero_point_ab=31.4)) == 1.0


@pytest.mark.parametrize("cards", [{"ZP": 1.0}, {"MAGZERO": 0.0}, {"SEXMGZPT": 25.0}, {"ZP": "x"}])
def test_what_is_no_zero_point_is_none(cards):
    assert calibrate(cards, "DN") is None


def test_a_nanomaggy_of_vega_is_refused():
    vega = {"MAGZP": (22.5, "Magnitude zeropoint (in Vega mag)")}
    assert calibrate({}, "nanomaggy") == pytest.approx(3631.0)
    assert calibrate({"MAGZERO": 22.5, "INSTRUME": "DECam"}, "nanomaggy") == pytest.approx(3631.0)
    for cards in (vega, {"SURVEY": "unwise-neo7"}):
        with pytest.raises(MosaicError, match="not AB"):
            calibrate(cards, "nanomaggy")
    assert calibrate({"TELESCOP": "WISE"}, "uJy") == pytest.approx(1e3)


@pytest.mark.parametrize("unit", ["log10(ct)", "sqrt(DN)", "asinh(nmgy)", "dex(nJy)", "[log(Jy)]"])
def test_a_scale_that_is_not_linear_is_refused(unit):
    with pytest.raises(MosaicError, match="not a linear scale"):
        calibrate({}, unit, Band("g", 0.8, 3.2, zero_point_ab=31.4))


# --- asinh pixels


def asinh_pixels(flux, softening, offset):
    """The inverse of MAST's recipe, in its own terms: a = 1.0857362."""
    return 1.0857362 * np.arcsinh((flux - offset) / (2 * softening))


@pytest.mark.parametrize("tiled", [False, True])
def test_pixels_on_an_asinh_scale_are_made_linear(tmp_path, tiled):
    flux = make_image() * np.linspace(-50, 5000, 2000).reshape(40, 50)
    pixels = asinh_pixels(flux, 20.0, 3.0).astype(np.float32)
    cards = {"BSOFTEN": 20.0, "BOFFSET": 3.0, "EXPTIME": 500.0}
    if tiled:  # as the archive gives them; compressed without loss, for the comparison
        hdu = fits.CompImageHDU(pixels, compression_type="GZIP_1", quantize_level=0)
        hdu.header.update(cards)
        hdu.header["HIERARCH FPA.ZP"] = 25.0
        path = tmp_path / "x_f814w_drz.fits"
        fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)
        tile = read_tile(path, make_survey("F814W"))
        want = flux * njy_of(25.0) / 500
    else:
        path = write(tmp_path / "x_f814w_drz.fits", pixels, **cards)
        tile = read_tile(path, make_survey("F814W", zero_point_ab=31.4))
        want = flux
    np.testing.assert_allclose(tile.image_CHW[0], want, rtol=2e-3, atol=1e-2 * want.std() / 100)
    assert any("asinh" in note for note in tile.notes)


@pytest.mark.parametrize(
    "cards",
    [
        {"BSOFTEN": 20.0},
        {"BOFFSET": 3.0},
        {"BSOFTEN": 0.0, "BOFFSET": 3.0},
        {"BSOFTEN": 20.0, "BOFFSET": "x"},
    ],
)
def test_half_of_an_asinh_scale_is_refused(tmp_path, cards):
    path = write(tmp_path / "x_f814w_drz.fits", **cards)
    with pytest.raises(MosaicError, match=r"x_f814w.*asinh scale"):
        read_tile(path, make_survey("F814W", zero_point_ab=31.4))


# --- Roman level 2


def test_a_level_2_image_is_refused(tmp_path):
    rdm = pytest.importorskip("roman_datamodels.datamodels")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = rdm.ImageModel.create_fake_data(shape=(160, 160))
        with asdf.open(F158, ignore_unrecognized_tag=True, memmap=False, lazy_load=False) as file:
            model.meta.wcs = file["roman"]["meta"]["wcs"]
        model.meta.photometry.conversion_megajanskys = 0.3535
        model.meta.instrument.optical_element = "F158"
        model.save(tmp_path / "r0001_wfi01_f158_cal.asdf")
    with pytest.raises(MosaicError, match=r"single exposure .*level-3"):
        read_tile(tmp_path / "r0001_wfi01_f158_cal.asdf", load_survey("roman-l3"))


@pytest.mark.parametrize(
    "change",
    [
        lambda roman: roman["meta"].update(model_type="ImageModel"),
        lambda roman: roman.update(border_ref_pix_left=np.zeros((4, 4, 4), np.float32)),
    ],
)
def test_a_level_2_image_without_its_tag_is_refused(tmp_path, change):
    with pytest.raises(MosaicError, match="single exposure"):
        read_tile(change_roman(F158, tmp_path / "f158.asdf", change), load_survey("roman-l3"))


@pytest.mark.parametrize("unit", ["DN / s", "electron / s"])
def test_count_rates_of_a_roman_mosaic_take_its_conversion(tmp_path, unit):
    want = read_tile(F158, load_survey("roman-l3"))

    def rate(roman):
        roman["data"] = u.Quantity(roman["data"] / np.float32(0.25), unit)
        roman["err"] = roman["err"] / np.float32(0.25)
        roman["meta"]["photometry"] = {"conversion_megajanskys": 0.25}

    tile = read_tile(change_roman(F158, tmp_path / "f158.asdf", rate), load_survey("roman-l3"))
    np.testing.assert_allclose(tile.image_CHW[3], want.image_CHW[3], rtol=1e-5)


@pytest.mark.parametrize(
    ("unit", "conversion"),
    [("DN / s", c) for c in (-999999.0, None, float("nan"), 0.0, "?")] + [("DN", 0.25)],
)
def test_a_conversion_that_is_not_known_is_refused(tmp_path, unit, conversion):
    def rate(roman):
        roman["data"] = u.Quantity(roman["data"], unit)
        roman["meta"]["photometry"] = {"conversion_megajanskys": conversion}

    path = change_roman(F158, tmp_path / "f158.asdf", rate)
    with pytest.raises(MosaicError, match=r"no calibration .*set zero_point_ab of F158"):
        read_tile(path, load_survey("roman-l3"))


# --- layers of a cube


CUBE = np.stack([make_image() * 2**k for k in range(3)])  # g, r, z
OF_BAND = {"g": 0, "r": 1, "z": 2}


@pytest.mark.parametrize("order", ["grz", "rgz", "zrg"])
@pytest.mark.parametrize(
    "cards",
    [
        {"BANDS": "grz"},
        {"BANDS": "grz", "BAND0": "g", "BAND1": "r", "BAND2": "z"},  # Legacy Surveys' cutouts
        {"BANDS": "g, r, z"},
        {"BAND1": "g", "BAND2": "r", "BAND3": "z"},
        {"FILTER1": "g", "FILTER2": "r", "FILTER3": "z"},
    ],
)
def test_layers_follow_the_cards(tmp_path, cards, order):
    survey = make_survey(*order, zero_point_ab=31.4)
    tile = read_tile(write(tmp_path / "cube.fits", CUBE, **cards), survey)
    for c, name in enumerate(order):
        assert np.array_equal(tile.image_CHW[c], CUBE[OF_BAND[name]])
    assert not any("no card says" in note for note in tile.notes)


def test_a_cube_of_more_layers_than_bands(tmp_path):
    path = write(tmp_path / "cube.fits", CUBE[None], BANDS="grz")
    tile = read_tile(path, make_survey("z", zero_point_ab=31.4))
    assert np.array_equal(tile.image_CHW[0], CUBE[2])
    tile = read_tile(path, make_survey("z", "y", "g", zero_point_ab=31.4))
    assert tile.missing_bands == ("y",)
    assert np.array_equal(tile.image_CHW[2], CUBE[0])
    with pytest.raises(MosaicError, match="has no y; it has g, z"):
        read_tile({"y": path}, make_survey("z", "y", "g", zero_point_ab=31.4))


@pytest.mark.parametrize("cards", [{}, {"FILTER": "r"}, {"CTYPE3": "WAVE"}])
def test_the_order_of_the_survey_is_a_guess_and_noted(tmp_path, cards):
    tile = read_tile(
        write(tmp_path / "c.fits", CUBE, **cards), make_survey(*"rgz", zero_point_ab=31.4)
    )
    assert np.array_equal(tile.image_CHW, CUBE)
    assert any("no card says which layer" in note and "r, g, z" in note for note in tile.notes)


@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ({"BANDS": "grz", "BAND0": "r", "BAND1": "g", "BAND2": "z"}, "do not give one band"),
        ({"BANDS": "gr"}, "do not give one band"),
        ({"BANDS": "ggz"}, "two of its layers"),
        ({"BANDS": "xyw"}, "no such band"),
        ({"FILTER": "z"}, "3 layers, but its header says z"),
        ({"CTYPE3": "STOKES"}, "CTYPE3"),
    ],
)
def test_a_cube_that_contradicts_itself_is_refused(tmp_path, cards, words):
    path = write(tmp_path / "cube.fits", CUBE, **cards)
    with pytest.raises((MosaicError, ConfigError), match=words):
        read_tile(path, make_survey(*"grz", zero_point_ab=31.4))


# --- the filter in the pupil wheel


@pytest.mark.parametrize(
    ("cards", "band"),
    [
        ({"FILTER": "F444W", "PUPIL": "F470N"}, "F470N"),
        ({"FILTER": "F444W", "PUPIL": "CLEAR"}, "F444W"),
        ({"FILTER": "F444W", "PUPIL": "MASKRND"}, "F444W"),
        ({"FILTER": "F150W2", "PUPIL": "F162M"}, "F162M"),
        ({"FILTER": "CLEAR", "PUPIL": "F150W"}, "F150W"),  # NIRISS
        ({"FILTER": "F444W", "PUPIL": "CLEARP"}, "F444W"),
        ({"FILTER1": "F606W", "FILTER2": "CLEAR2L"}, "F606W"),  # ACS
        ({"FILTER1": "CLEAR1L", "FILTER2": "F814W"}, "F814W"),
    ],
)
def test_the_filter_in_the_pupil_is_the_band(tmp_path, cards, band):
    survey = make_survey("F444W", "F470N", "F162M", "F150W", "F606W", "F814W", zero_point_ab=31.4)
    path = write(tmp_path / "mosaic.fits", **cards)
    missing = read_tile(path, survey).missing_bands
    assert set(survey.band_names) - set(missing) == {band}
    wrong = "F150W" if band != "F150W" else "F444W"
    with pytest.raises(MosaicError, match=f"given as {wrong}, but says it is"):
        read_tile({wrong: path}, survey)


def test_a_narrow_filter_that_the_survey_lacks_is_not_the_broad_one(tmp_path):
    path = write(tmp_path / "t_f444w_drz.fits", FILTER="F444W", PUPIL="F470N")
    with pytest.raises(MosaicError, match="given as F444W, but says it is F470N"):
        read_tile(path, make_survey("F444W", zero_point_ab=31.4))
