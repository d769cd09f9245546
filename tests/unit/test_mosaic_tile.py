"""read_tile on real and simulated mosaics, in every form it accepts, sound and damaged."""

import gzip
import shutil
import subprocess
import sys
import textwrap

import asdf
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from builders.mosaics import (
    AB,
    F129,
    F158,
    HST,
    JWST,
    change_roman,
    make_header,
    make_image,
    make_survey,
    write,
)
from builders.paths import ROOT
from photozhpc.errors import ConfigError, MosaicError, PhotozError
from photozhpc.mosaic import tile as tile_module
from photozhpc.mosaic.measure import forced_photometry
from photozhpc.mosaic.photometry import PhotFlag
from photozhpc.mosaic.tile import read_tile
from photozhpc.survey import load_survey

# --- Roman L3


def test_roman_mosaics_are_njy_per_pixel_with_the_area_of_their_wcs():
    survey = load_survey("roman-l3")
    tile = read_tile([F158, F129], survey)
    assert tile.tile_id == "cosmos"
    assert tile.band_names == ("F062", "F087", "F129", "F158")
    assert tile.missing_bands == ("F062", "F087")
    assert np.isnan(tile.image_CHW[:2]).all()
    assert np.isnan(tile.err_CHW[:2]).all()
    assert not tile.mask_HW.any()
    assert tile.pixel_scale_arcsec == pytest.approx(0.055, rel=1e-6)
    sr = (0.055 / 3600 * np.pi / 180) ** 2
    with asdf.open(F129, ignore_unrecognized_tag=True) as file:
        for node, plane in (("data", tile.image_CHW[2]), ("err", tile.err_CHW[2])):
            assert plane.dtype == np.float32
            np.testing.assert_allclose(plane, file["roman"][node][:] * sr * 1e15, rtol=1e-5)
    mapped = read_tile({"f129": F129, "F158": str(F158)}, survey)
    assert np.array_equal(mapped.image_CHW, tile.image_CHW, equal_nan=True)


def test_gwcs_there_and_back_and_not_from_behind():
    tile = read_tile(F158, load_survey("roman-l3"))
    y, x = np.array([0.0, 79.5, 159.0, -300.25]), np.array([0.0, 79.5, 0.0, 900.0])
    ra, dec = tile.pixel_to_sky(y, x)
    assert (ra[1], dec[1]) == (pytest.approx(150.45, abs=1e-9), pytest.approx(2.55, abs=1e-9))
    y_back, x_back = tile.sky_to_pixel(ra, dec)
    np.testing.assert_allclose([y_back, x_back], [y, x], atol=1e-6)
    assert np.isnan(tile.sky_to_pixel([330.45, np.nan, 0.0], [-2.55, 0.0, 91.0])).all()


@pytest.mark.parametrize("compression", ["zlib", "bzp2", "lz4"])
def test_compressed_roman_blocks(tmp_path, compression):
    if compression == "lz4":
        pytest.importorskip("lz4")
    survey = load_survey("roman-l3")
    packed = change_roman(
        F158, tmp_path / "f158.asdf", lambda roman: None, all_array_compression=compression
    )
    want, found = read_tile(F158, survey), read_tile(packed, survey)
    assert np.array_equal(found.image_CHW, want.image_CHW, equal_nan=True)
    assert np.array_equal(found.err_CHW, want.err_CHW, equal_nan=True)
    zipped = tmp_path / "zipped_f158.asdf.gz"
    zipped.write_bytes(gzip.compress(F158.read_bytes()))
    assert np.array_equal(read_tile(zipped, survey).image_CHW, want.image_CHW, equal_nan=True)


def test_roman_planes_that_are_there_or_not(tmp_path):
    survey = load_survey("roman-l3")
    want = read_tile(F158, survey)

    def blank(roman):
        roman["weight"][3, 4] = 0
        roman["data"][5, 6] = np.nan
        roman["dq"] = np.zeros((160, 160), np.uint32)
        roman["dq"][7, 8], roman["dq"][9, 9] = 1, 2

    tile = read_tile(change_roman(F158, tmp_path / "a.asdf", blank), survey)
    assert np.argwhere(tile.mask_HW).tolist() == [[3, 4], [5, 6], [7, 8]]
    assert np.array_equal(np.isnan(tile.image_CHW[3]), tile.mask_HW)

    def only_data(roman):
        del roman["err"], roman["weight"]

    tile = read_tile(change_roman(F158, tmp_path / "b.asdf", only_data), survey)
    assert "clipped MAD" in tile.notes[0]
    assert np.unique(tile.err_CHW[3]).size == 1
    assert tile.err_CHW[3, 0, 0] == pytest.approx(np.median(want.err_CHW[3]), rel=0.5)

    def variances(roman):
        del roman["weight"]
        roman["var_poisson"] = roman.pop("err") ** 2
        roman["var_rnoise"] = np.zeros((160, 160), np.float32)

    tile = read_tile(change_roman(F158, tmp_path / "c.asdf", variances), survey)
    np.testing.assert_allclose(tile.err_CHW[3], want.err_CHW[3], rtol=1e-5)

    def no_wcs(roman):
        del roman["meta"]["wcs"]

    with pytest.raises(MosaicError, match="no WCS"):
        read_tile(change_roman(F158, tmp_path / "d.asdf", no_wcs), survey)


def test_forced_photometry_takes_the_sky_off():
    survey = load_survey("roman-l3")
    tile = read_tile([F129, F158], survey)
    y, x = np.array([80.0, 70.3, -500.0]), np.array([80.0, 91.7, 3.0])
    found = forced_photometry(tile, y, x, survey)
    assert found.flux_NCR.shape == found.flux_err_NCR.shape == (3, 4, 5)
    assert np.isfinite(found.flux_NCR[:2, 2:]).all()
    assert (found.flux_err_NCR[:2, 2:] > 0).all()
    assert np.isnan(found.flux_NCR[:, :2]).all()
    assert (found.flags_NC[:, :2] & PhotFlag.NO_DATA).all()
    assert (found.flags_NC[2] & PhotFlag.OFF_TILE).all()
    assert found.sky_NC[0, 3] == pytest.approx(np.median(tile.image_CHW[3]), rel=0.05)
    raised = tile_module.Tile(**{**tile.__dict__, "image_CHW": tile.image_CHW + 5})
    shifted = forced_photometry(raised, y, x, survey)
    np.testing.assert_allclose(shifted.flux_NCR[:2, 2:], found.flux_NCR[:2, 2:], atol=0.5)


# --- FITS: units and planes


def test_hst_drizzle_with_photflam_and_exposure_weights():
    survey = make_survey("F606W", "F814W")
    tile = read_tile(HST, survey)
    assert tile.tile_id == "a478"
    assert tile.missing_bands == ("F606W",)
    assert tile.pixel_scale_arcsec == pytest.approx(0.1, rel=1e-4)
    assert "exposure weights" in tile.notes[0]
    with fits.open(HST) as hdus:
        header, image, weight = hdus["SCI"].header, hdus["SCI"].data, hdus["WHT"].data
    zero_point = -2.5 * np.log10(header["PHOTFLAM"]) - 5 * np.log10(header["PHOTPLAM"]) - 2.408
    njy = 10 ** (0.4 * (31.4 - zero_point))
    assert np.array_equal(tile.mask_HW, weight == 0)
    good = weight > 0
    np.testing.assert_allclose(tile.image_CHW[1][good], image[good] * njy, rtol=1e-5)
    spread = (tile.image_CHW[1] - np.nanmedian(tile.image_CHW[1])) / tile.err_CHW[1]
    assert 1.4826 * np.nanmedian(np.abs(spread)) == pytest.approx(1, rel=0.4)
    ratio = tile.err_CHW[1] * np.sqrt(weight)
    assert np.nanmax(ratio) == pytest.approx(np.nanmin(ratio), rel=1e-4)


def test_jwst_sample_without_wcs_or_unit():
    survey = make_survey("F115W", "F150W", "F277W", "F444W", zero_point_ab=28.0)
    tile = read_tile(JWST, survey)
    with fits.open(JWST) as hdus:
        for c, name in enumerate(survey.band_names):
            want = hdus[name].data * 10 ** (0.4 * 3.4)
            np.testing.assert_allclose(tile.image_CHW[c], want, rtol=1e-5)
    assert tile.wcs is None
    assert tile.pixel_scale_arcsec == pytest.approx(0.06)
    with pytest.raises(MosaicError, match="no WCS"):
        tile.sky_to_pixel([1.0], [1.0])
    some = read_tile(dict.fromkeys(("F150W", "F444W"), JWST), survey)
    assert some.missing_bands == ("F115W", "F277W")
    with pytest.raises(MosaicError, match="zero_point_ab of F115W"):
        read_tile(JWST, make_survey("F115W", "F150W"))
    with pytest.raises(ConfigError, match="F115W, F150W"):
        read_tile(JWST, AB)


@pytest.mark.parametrize(
    ("cards", "njy"),
    [
        ({"BUNIT": "nJy"}, 1.0),
        ({"BUNIT": "uJy"}, 1e3),
        ({"BUNIT": "Jy"}, 1e9),
        ({"BUNIT": "mJy/pixel"}, 1e6),
        ({"BUNIT": "10.0*nanoJansky"}, 10.0),
        ({"BUNIT": "10 nJy"}, 10.0),
        ({"BUNIT": "1e-9 Jy"}, 1.0),
        ({"BUNIT": "nmgy"}, 3631.0),
        ({"BUNIT": "nanomaggy"}, 3631.0),
        ({"BUNIT": "uJy/arcsec2"}, 1e3 * 0.06**2),
        ({"BUNIT": "MJY/SR"}, 1e15 * (0.06 / 3600 * np.pi / 180) ** 2),
        *(
            ({"MAGZERO": 25.0, "BUNIT": unit}, 10**2.56)
            for unit in ("", "ct", "COUNTS/SEC", "DN/s", "cps", "e-/s", "count / (pix s)", "ADU")
        ),
        ({"PHOTFNU": 1e-6, "BUNIT": "count / (pix s)", "EXPTIME": 100.0}, 1e3),
        ({"PHOTFNU": 1e-6, "BUNIT": "e- s**-1", "EXPTIME": 100.0}, 1e3),
        ({"PHOTFNU": 1e-6, "BUNIT": "e-", "EXPTIME": 100.0}, 10.0),
        ({"PHOTFNU": 1e-6, "BUNIT": "DN/pix", "EXPTIME": 100.0}, 10.0),
        ({"BUNIT": "MJy/sr"}, 1e15 * (0.06 / 3600 * np.pi / 180) ** 2),
        ({"BUNIT": "MJy sr-1"}, 1e15 * (0.06 / 3600 * np.pi / 180) ** 2),
        ({"MAGZERO": 25.0}, 10**2.56),
        ({"MAGZPT": 25.0, "BUNIT": "ELECTRONS", "EXPTIME": 100.0}, 10**2.56),
        ({"PHOTFLAM": 1e-19, "PHOTPLAM": 1e4, "BUNIT": "ELECTRONS/S"}, 10 ** (0.4 * 6.308)),
        (
            {"PHOTFLAM": 1e-19, "PHOTPLAM": 1e4, "BUNIT": "ELECTRONS", "EXPTIME": 100.0},
            10 ** (0.4 * 6.308) / 100,
        ),
    ],
)
def test_calibration_by_unit_and_header(tmp_path, cards, njy):
    survey = make_survey("F814W")
    path = write(tmp_path / "x_f814w_drz.fits", **cards)
    tile = read_tile(path, survey)
    if "PHOTFLAM" in cards:
        njy = njy * 10 ** (0.4 * 0.0)
        zero_point = -2.5 * np.log10(1e-19) - 5 * np.log10(1e4) - 2.408
        njy = 10 ** (0.4 * (31.4 - zero_point)) / cards.get("EXPTIME", 1.0)
    np.testing.assert_allclose(tile.image_CHW[0], make_image() * njy, rtol=1e-5)


@pytest.mark.parametrize("unit", ["erg/s/cm2/A", "mag", "Jy/beam", "10 ct", "furlong?", "K"])
def test_a_physical_unit_is_never_taken_for_counts(tmp_path, unit):
    cards = {"PHOTFLAM": 1e-19, "PHOTPLAM": 1e4, "MAGZERO": 25.0, "EXPTIME": 100.0}
    path = write(tmp_path / "x_f814w_drz.fits", BUNIT=unit, **cards)
    with pytest.raises(MosaicError, match=r"x_f814w.*BUNIT .*set zero_point_ab of F814W") as caught:
        read_tile(path, make_survey("F814W"))
    assert f"'{unit}'" in str(caught.value)
    tile = read_tile(path, make_survey("F814W", zero_point_ab=31.4))
    np.testing.assert_allclose(tile.image_CHW[0], make_image())


@pytest.mark.parametrize("name", ["ERR", "VAR"])
def test_an_error_that_is_zero_or_not_finite_is_bad(tmp_path, name):
    noise = np.ones((40, 50), np.float32)
    noise[1, :4] = 0, -1, np.nan, np.inf
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(make_image(), make_header(), name="SCI"),
        fits.ImageHDU(noise, name=name),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "x_f814w_drz.fits")
    drizzle = read_tile(tmp_path / "x_f814w_drz.fits", AB)

    def spoil(roman):
        roman["err"][1, :4] = noise[1, :4]
        if name == "VAR":
            roman["var_poisson"] = roman.pop("err")

    path = change_roman(F158, tmp_path / "x.asdf", spoil)
    for tile, c in ((drizzle, 1), (read_tile(path, load_survey("roman-l3")), 3)):
        assert np.argwhere(tile.mask_HW).tolist() == [[1, 0], [1, 1], [1, 2], [1, 3]]
        assert np.array_equal(np.isnan(tile.image_CHW[c]), tile.mask_HW)
        assert np.array_equal(np.isnan(tile.err_CHW[c]), tile.mask_HW)


def test_no_zero_point_says_what_to_set(tmp_path):
    path = write(tmp_path / "x_f814w_drz.fits", BUNIT="COUNTS")
    with pytest.raises(MosaicError, match="set zero_point_ab of F814W"):
        read_tile(path, make_survey("F814W"))


@pytest.mark.parametrize("name", ["ERR", "RMS", "VAR", "IVM", "WHT"])
def test_noise_extensions(tmp_path, name):
    sigma = np.random.default_rng(1).uniform(0.5, 2, (40, 50))
    planes = {"ERR": sigma, "RMS": sigma, "VAR": sigma**2, "IVM": sigma**-2, "WHT": sigma**-2}
    plane = planes[name].astype(np.float32)
    bad = np.zeros(plane.shape, bool)
    if name in ("IVM", "WHT"):
        plane[3, 4], bad[3, 4] = 0, True
    mask = np.zeros(plane.shape, np.uint8)
    mask[8, 9] = bad[8, 9] = 1
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(make_image(), make_header(), name="SCI"),
        fits.ImageHDU(plane, name=name),
        fits.ImageHDU(mask, name="MASK"),
        fits.ImageHDU(mask, name="CTX"),
    ]
    path = tmp_path / "x_f814w_drz.fits"
    fits.HDUList(hdus).writeto(path)
    tile = read_tile(path, AB)
    assert np.array_equal(tile.mask_HW, bad)
    np.testing.assert_allclose(tile.err_CHW[1][~bad], sigma[~bad], rtol=1e-5)
    assert np.array_equal(np.isnan(tile.err_CHW[1]), bad)
    assert tile.notes == ()


def test_siblings_are_found_and_left_out_of_a_list(tmp_path):
    write(tmp_path / "x_f814w_drz.fits")
    write(tmp_path / "x_f814w_wht.fits", np.full((40, 50), 4, np.float32))
    write(tmp_path / "x_f606w_drz.fits")
    write(tmp_path / "x_f606w_rms.fits", np.full((40, 50), 3, np.float32))
    tile = read_tile(sorted(tmp_path.glob("*.fits")), AB)
    assert np.unique(tile.err_CHW[0]).tolist() == [3]
    assert np.unique(tile.err_CHW[1]).tolist() == [0.5]
    assert tile.tile_id == "x"


# --- FITS: layouts


def test_one_file_in_every_packing(tmp_path):
    image = make_image()
    want = read_tile(write(tmp_path / "x_f814w_drz.fits", image), AB)
    zipped = tmp_path / "y_f814w_drz.fits.gz"
    zipped.write_bytes(gzip.compress((tmp_path / "x_f814w_drz.fits").read_bytes()))
    packed = tmp_path / "z_f814w_drz.fits.fz"
    fits.CompImageHDU(image, make_header(), compression_type="GZIP_2", quantize_level=0).writeto(
        packed
    )
    both = tmp_path / "w_f814w_drz.fits.fz.gz"
    both.write_bytes(gzip.compress(packed.read_bytes()))
    for path in (zipped, packed, both):
        tile = read_tile(path, AB)
        assert np.array_equal(tile.image_CHW, want.image_CHW, equal_nan=True)
        np.testing.assert_allclose(tile.pixel_to_sky(3, 4), want.pixel_to_sky(3, 4))


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", "u1", ">i4"])
def test_types_of_pixels_and_scaled_integers(tmp_path, dtype):
    image = make_image(dtype=dtype)
    tile = read_tile(write(tmp_path / "x_f814w_drz.fits", image), AB)
    np.testing.assert_allclose(tile.image_CHW[1], image.astype(np.float32), rtol=1e-6)
    assert tile.image_CHW.dtype == np.float32
    assert tile.image_CHW.dtype.isnative
    hdu = fits.ImageHDU(make_image(1) * 100, make_header(), name="SCI")
    hdu.scale("int16", bzero=1000.0, bscale=0.5)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "y_f814w_drz.fits")
    tile = read_tile(tmp_path / "y_f814w_drz.fits", AB)
    np.testing.assert_allclose(tile.image_CHW[1], make_image(1) * 100, atol=0.3)


def test_an_extension_a_band_with_its_errors(tmp_path):
    hdus = fits.HDUList([fits.PrimaryHDU()])
    for k, band in enumerate(("F814W", "f606w", "F275W")):
        hdus.append(fits.ImageHDU(make_image(k), make_header(), name=f"SCI_{band}"))
        hdus.append(fits.ImageHDU(np.full((40, 50), k + 2.0), name=f"{band}_ERR"))
    hdus.writeto(tmp_path / "all.fits")
    tile = read_tile(tmp_path / "all.fits", AB)
    assert np.array_equal(tile.image_CHW, np.stack([make_image(1), make_image(0)]))
    assert tile.err_CHW[:, 0, 0].tolist() == [3, 2]
    assert tile.tile_id == "all"


def test_cubes_and_stacks(tmp_path):
    cube = make_image(shape=(2, 40, 50))
    tile = read_tile(write(tmp_path / "cube.fits", cube), AB)
    assert np.array_equal(tile.image_CHW, cube)
    second = read_tile({"F814W": tmp_path / "cube.fits"}, AB)
    assert np.array_equal(second.image_CHW[1], cube[1])
    assert second.missing_bands == ("F606W",)
    stack = make_image(shape=(1, 15, 40, 50))  # as IMCOM: layer 0 is science
    tile = read_tile(write(tmp_path / "x_f814w_drz.fits", stack), AB)
    assert np.array_equal(tile.image_CHW[1], stack[0, 0])
    with pytest.raises(MosaicError, match=r"\(5, 40, 50\)"):
        read_tile(write(tmp_path / "y_f814w_drz.fits", make_image(shape=(5, 40, 50))), AB)


def test_the_band_of_a_file(tmp_path):
    survey = make_survey("F606W", "F814W", zero_point_ab=31.4, band_aliases={"Wide-I": "F814W"})
    for k, (name, cards) in enumerate(
        [
            ("a.fits", {"FILTER": "F814W"}),
            ("b.fits", {"FILTER1": "CLEAR1L", "FILTER2": "f814w"}),
            ("c.fits", {"FILTER": "wide-i"}),
            ("t_F814W_drz.fits", {}),
            ("mosaic-f814w-v2.fits", {}),
            ("f_f814w_drz.fits", {"FILTER": 38}),
        ]
    ):
        tile = read_tile([write(tmp_path / f"{k}{name}", **cards)], survey)
        assert tile.missing_bands == ("F606W",), name
    with pytest.raises(ConfigError, match=r"F841W.*did you mean 'F814W'"):
        read_tile(write(tmp_path / "g.fits", FILTER="F841W"), survey)
    with pytest.raises(ConfigError, match="mapping"):
        read_tile(write(tmp_path / "h.fits"), survey)
    with pytest.raises(ConfigError, match="F999W"):
        read_tile({"F999W": tmp_path / "h.fits"}, survey)
    with pytest.raises(MosaicError, match="both F814W"):
        read_tile([tmp_path / "0a.fits", tmp_path / "1b.fits"], survey)
    with pytest.raises(MosaicError, match="given as F606W, but says it is F814W"):
        read_tile({"F606W": tmp_path / "0a.fits"}, survey)
    with pytest.raises(ConfigError, match="F129"):
        read_tile([F158, F129], make_survey("F158"))
    with pytest.raises(MosaicError, match="given as F129"):
        read_tile({"F129": F158}, load_survey("roman-l3"))


def test_the_names_of_candels_files():
    survey = load_survey("candels")
    for name, want in (
        ("acs_gs-tot-60mas_f606w_v1.0_drz.fits", ("gs", "F606W")),
        ("wfc3_gs-tot_f160w_v1.0_drz.fits.gz", ("gs", "F160W")),
        ("acs_cos_f814w_v1.0_drz.fits", ("cos", "F814W")),
        ("wfc3_cos-tot_f125w_v1.0_drz.fits", ("cos", "F125W")),
    ):
        tile, found = survey.match_mosaic(f"hlsp_candels_hst_{name}") or ("", None)
        assert (tile, found and found.name) == want
    for passed_over in (
        "gs-tot_f160w_v1.0_wht",
        "gsd01_f160w_v0.5_drz",
        "gs-tot-30mas_f160w_v1.0_drz",
    ):
        assert survey.match_mosaic(f"hlsp_candels_hst_wfc3_{passed_over}.fits") is None


# --- WCS


@pytest.mark.parametrize("kind", ["TAN", "ZEA", "SIN", "STG", "TPV", "CAR", "SIP"])
def test_projections_there_and_back(tmp_path, kind):
    header = make_header("TAN" if kind == "SIP" else kind)
    if kind == "SIP":
        with fits.open(HST) as hdus:
            header.update({k: v for k, v in hdus["WHT"].header.items() if k[:2] in ("A_", "B_")})
        header.update({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"})
    tile = read_tile(write(tmp_path / "x_f814w_drz.fits", header=header), AB)
    y, x = np.mgrid[0:40:7, 0:50:7].reshape(2, -1).astype(float)
    ra, dec = tile.pixel_to_sky(y, x)
    want = WCS(header).all_pix2world(x, y, 0)
    np.testing.assert_allclose([ra, dec], want, atol=1e-10)
    np.testing.assert_allclose(tile.sky_to_pixel(ra, dec), [y, x], atol=1e-4)
    assert tile.pixel_scale_arcsec == pytest.approx(0.06, rel=1e-3)
    if kind not in ("CAR", "ZEA"):  # those show the whole sky
        assert np.isnan(tile.sky_to_pixel([330.0], [-2.0])).all()


def test_galactic_grids_take_equatorial_positions(tmp_path):
    header = make_header()
    header.update({"CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"})
    tile = read_tile(write(tmp_path / "x_f814w_drz.fits", header=header), AB)
    ra, dec = tile.pixel_to_sky([19.5], [25.0])
    assert (ra[0], dec[0]) != (pytest.approx(150.0), pytest.approx(2.0))
    np.testing.assert_allclose(tile.sky_to_pixel(ra, dec), [[19.5], [25.0]], atol=1e-6)


def test_ecliptic_grids_take_equatorial_positions(tmp_path):
    header = make_header()
    header.update({"CTYPE1": "ELON-TAN", "CTYPE2": "ELAT-TAN", "CRVAL1": 90.0, "CRVAL2": 0.0})
    tile = read_tile(write(tmp_path / "x_f814w_drz.fits", header=header), AB)
    ra, dec = tile.pixel_to_sky([19.5], [25.0])
    np.testing.assert_allclose([ra[0], dec[0]], [90.0, 23.43928], atol=1e-4)  # the solstice
    np.testing.assert_allclose(tile.sky_to_pixel(ra, dec), [[19.5], [25.0]], atol=1e-6)


@pytest.mark.parametrize("sip", [False, True])
def test_a_header_may_put_the_declination_first(tmp_path, sip):
    header = make_header()
    if sip:
        header.update({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"})
        header.update({"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_1_1": 2e-4})
    swapped = header.copy()
    for key in ("CTYPE", "CRVAL", "CDELT", "CUNIT"):
        swapped[f"{key}1"], swapped[f"{key}2"] = header[f"{key}2"], header[f"{key}1"]
    for j in (1, 2):
        swapped[f"PC1_{j}"], swapped[f"PC2_{j}"] = header[f"PC2_{j}"], header[f"PC1_{j}"]
    want = read_tile(write(tmp_path / "a_f814w_drz.fits", header=header), AB)
    tile = read_tile(write(tmp_path / "b_f814w_drz.fits", header=swapped), AB)
    y, x = np.array([0.0, 30.0]), np.array([3.0, 49.0])
    ra, dec = want.pixel_to_sky(y, x)
    np.testing.assert_allclose(tile.pixel_to_sky(y, x), [ra, dec], atol=1e-10)
    np.testing.assert_allclose(tile.sky_to_pixel(ra, dec), [y, x], atol=1e-4)
    assert tile.pixel_area_arcsec2 == pytest.approx(want.pixel_area_arcsec2)


@pytest.mark.parametrize(
    "cards",
    [
        {"RADESYS": "GAPPT"},
        {"CTYPE1": "HPLN-TAN", "CTYPE2": "HPLT-TAN"},
        {"CTYPE1": "ELON-TAN", "CTYPE2": "ELAT-TAN", "RADESYS": "FK4"},
        {"CTYPE1": "TLON-TAN", "CTYPE2": "TLAT-TAN"},
    ],
)
def test_a_frame_that_is_not_of_the_sky_is_one_error(tmp_path, cards):
    path = write(tmp_path / "x_f814w_drz.fits", header=make_header(), **cards)
    with pytest.raises(MosaicError, match=r"x_f814w_drz\.fits: the WCS .*resample"):
        read_tile(path, AB)


def test_a_gwcs_without_an_inverse_is_one_error():
    class OneWay:
        def __call__(self, x, y, with_bounding_box):
            return 150 + x * 1e-5, 2 + y * 1e-5

        def invert(self, *_, **__):
            raise NotImplementedError("no analytical inverse")

    tile = read_tile(F158, load_survey("roman-l3"))
    one_way = tile_module.Tile(**{**tile.__dict__, "wcs": OneWay()})
    assert np.isfinite(one_way.pixel_to_sky([3], [4])).all()
    with pytest.raises(MosaicError, match="no analytical inverse"):
        one_way.sky_to_pixel([150.0], [2.0])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"header": make_header(shift_pix=1.0)}, r"differ by 1\.* pixels|differ by 1 pixels"),
        ({"header": make_header(scale_arcsec=0.061)}, "differ by"),
        ({"image": make_image(shape=(40, 51))}, r"\(40, 50\) and \(40, 51\)"),
        ({"header": fits.Header()}, "only one of them has a WCS"),
    ],
)
def test_bands_on_different_grids_are_named(tmp_path, other, words):
    one = write(tmp_path / "x_f606w_drz.fits")
    two = write(tmp_path / "x_f814w_drz.fits", **other)
    with pytest.raises(MosaicError, match=words) as caught:
        read_tile([one, two], AB)
    assert str(one) in str(caught.value)
    assert str(two) in str(caught.value)


def test_a_hundredth_of_a_pixel_is_the_same_grid(tmp_path):
    write(tmp_path / "x_f606w_drz.fits")
    write(tmp_path / "x_f814w_drz.fits", header=make_header(shift_pix=0.01))
    assert not read_tile(sorted(tmp_path.glob("*.fits")), AB).missing_bands


# --- damage


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory):
    """Small files of each kind, with the survey to read them with."""
    folder = tmp_path_factory.mktemp("sound")
    roman = change_roman(
        F158,
        folder / "small_f158_coadd.asdf",
        lambda r: r.update({k: r[k][:30, :30].copy() for k in ("data", "err", "weight")}),
    )
    packed = change_roman(
        roman, folder / "zlib_f158_coadd.asdf", lambda r: None, all_array_compression="zlib"
    )
    plain = folder / "x_f814w_drz.fits"
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(make_image(), make_header(), name="SCI"),
        fits.ImageHDU(make_image(1), name="WHT"),
    ]
    fits.HDUList(hdus).writeto(plain)
    tiled = folder / "y_f814w_drz.fits.fz"
    fits.CompImageHDU(make_image(), make_header()).writeto(tiled)
    zipped = folder / "z_f814w_drz.fits.gz"
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    roman_l3 = load_survey("roman-l3")
    return [(roman, roman_l3), (packed, roman_l3), (plain, AB), (tiled, AB), (zipped, AB)]


def test_cut_at_any_length_is_one_error(tmp_path, sound_files):
    for path, survey in sound_files:
        whole = path.read_bytes()
        index = whole.rfind(b"#ASDF BLOCK INDEX")  # an ASDF file is whole without it
        end = index if index > 0 else len(whole)
        for length in np.unique(np.linspace(0, end - 1, 60).astype(int)):
            broken = tmp_path / path.name
            broken.write_bytes(whole[:length])
            if path.name.startswith("x_") and length == 5760 + 8640:
                continue  # between two extensions: a whole file that has fewer
            with pytest.raises(PhotozError, match=path.name.replace(".", r"\.")) as caught:
                read_tile(broken, survey)
            assert "\n" not in str(caught.value)


def test_garbage_anywhere_is_a_tile_or_one_error(tmp_path, sound_files):
    rng = np.random.default_rng(0)
    for path, survey in sound_files:
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            broken = whole.copy()
            at = rng.integers(0, min(len(whole), 12000))
            n = min(rng.integers(1, 200), len(whole) - at)
            broken[at : at + n] = rng.integers(0, 256, n)
            (tmp_path / path.name).write_bytes(broken.tobytes())
            try:
                read_tile(tmp_path / path.name, survey)
            except PhotozError as error:
                assert path.name in str(error)  # noqa: PT017


def test_damaged_lz4_blocks_are_one_error(tmp_path):
    pytest.importorskip("lz4")
    path = change_roman(F158, tmp_path / "x.asdf", lambda r: None, all_array_compression="lz4")
    whole = bytearray(path.read_bytes())
    at = whole.find(b"\xd3BLK") + 54
    whole[at + 20 : at + 2000] = b"\xff" * 1980
    path.write_bytes(whole)
    with pytest.raises(MosaicError, match=r"x\.asdf"):
        read_tile(path, load_survey("roman-l3"))


def test_what_is_not_there_or_no_mosaic(tmp_path):
    (tmp_path / "empty.fits").touch()
    (tmp_path / "text.fits").write_text("hello")
    asdf.AsdfFile({"a": 1}).write_to(tmp_path / "other.asdf")
    fits.PrimaryHDU().writeto(tmp_path / "no_f814w_drz.fits")
    for path, words in (
        (tmp_path / "nowhere_f814w.fits", "no such file"),
        (tmp_path, "not a file"),
        (tmp_path / "empty.fits", "empty"),
        (tmp_path / "text.fits", "neither FITS nor ASDF"),
        (tmp_path / "other.asdf", "no 'roman' node"),
        (tmp_path / "no_f814w_drz.fits", "no image"),
        ([], "at least one path"),
        ({}, "at least one path"),
    ):
        with pytest.raises(MosaicError, match=words):
            read_tile(path, AB)


# --- memory


def test_a_large_tile_lives_in_a_scratch_file(tmp_path, monkeypatch):
    write(tmp_path / "x_f814w_drz.fits")
    want = read_tile(tmp_path / "x_f814w_drz.fits", AB)
    monkeypatch.setattr(tile_module, "MAX_MEMORY_BYTES", 0)
    monkeypatch.setattr("photozhpc.mosaic.blank.SECTION_PIXELS", 170)
    tile = read_tile(tmp_path / "x_f814w_drz.fits", AB)
    for name in ("image_CHW", "err_CHW", "mask_HW"):
        assert np.array_equal(getattr(tile, name), getattr(want, name), equal_nan=True)
    monkeypatch.setattr(tile_module.os, "posix_fallocate", raise_no_space)
    with pytest.raises(MosaicError, match="TMPDIR"):
        read_tile(tmp_path / "x_f814w_drz.fits", AB)


def raise_no_space(*_):
    raise OSError(28, "No space left on device")


def test_memory_stays_below_one_band(tmp_path):
    side = 6000
    card = make_header()
    header = fits.PrimaryHDU(np.zeros((1, 1), np.float32), card).header
    header["NAXIS1"] = header["NAXIS2"] = side
    for band in ("f606w", "f814w"):
        with open(tmp_path / f"x_{band}_drz.fits", "wb") as stream:
            stream.write(header.tostring().encode())
            stream.truncate(len(header.tostring()) + -(-side * side * 4 // 2880) * 2880)
    code = f"""
        import pathlib, re, threading, time
        from tests_survey import AB
        from photozhpc.mosaic.tile import read_tile
        def anonymous():
            return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
        before, peak, run = anonymous(), [0], [True]
        def watch():
            while run[0]:
                peak[0] = max(peak[0], anonymous())
                time.sleep(0.002)
        watcher = threading.Thread(target=watch)
        watcher.start()
        tile = read_tile(sorted(pathlib.Path({str(tmp_path)!r}).glob("*.fits")), AB)
        run[0] = False
        watcher.join()
        print((peak[0] - before) * 1024)
    """
    (tmp_path / "tests_survey.py").write_text(
        "from photozhpc.survey import Band, Survey\n"
        "AB = Survey('t', tuple(Band(b, .1, 1., 31.4) for b in ('F606W', 'F814W')), .06,"
        " mosaic_pattern='{tile}_{band}_drz.fits')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < side * side * 4  # one of the four float32 planes, 144 MB
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    "card",
    [("NAXIS2", -32), ("NAXIS", 999999999), ("PCOUNT", -5760), ("GCOUNT", -1), ("TFIELDS", 10**9)],
)
def test_impossible_sizes_in_a_header_are_refused_at_once(tmp_path, card):
    key, value = card
    content = write(tmp_path / "sound.fits").read_bytes()
    changed = f"{key:<8}= {value:>20}".ljust(80).encode()
    at = content.find(f"{key:<8}=".encode())
    at = content.index(b"LATPOLE =") if at < 0 else at
    path = tmp_path / "f606w_drz.fits"
    path.write_bytes(content[:at] + changed + content[at + 80 :])
    with pytest.raises(MosaicError, match=rf"{path.name}: damaged: HDU 0 has {key}"):
        read_tile(path, AB)
