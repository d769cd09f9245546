"""Which image of a FITS file is the mosaic, and which are its noise and its bad pixels."""

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from builders.mosaics import ground_survey as survey
from photozhpc.config import from_mapping
from photozhpc.errors import ConfigError, MosaicError
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic.fits_siblings import sibling_paths, without_siblings
from photozhpc.mosaic.tile import Tile, read_tile
from photozhpc.survey import Survey

SHAPE = (40, 50)
NOISE = np.random.default_rng(0).normal(10, 3, SHAPE).astype(np.float32)
ONE = np.ones(SHAPE, np.float32)


def plane(pixels, name: str | None = None, **cards) -> fits.ImageHDU:
    hdu = fits.ImageHDU(pixels, name=name, ver=cards.pop("ver", None))
    for key, value in cards.items():
        hdu.header[f"HIERARCH {key}" if len(key) > 8 else key] = value
    return hdu


def tile_of(folder: Path, *hdus, file: str = "t-g.fits", primary=None, **keys) -> Tile:
    fits.HDUList([fits.PrimaryHDU(primary), *hdus]).writeto(folder / file)
    return read_tile({"g": folder / file}, survey(**keys))


# --- Which image is the science image

SCI, ERR = ("SCI", NOISE), ("ERR", 3 * ONE)
RIGHT = {
    "Roman, HST, JWST": [SCI, ERR],
    "a weight map and a context map": [SCI, ("WHT", ONE / 9), ("CTX", ONE)],
    "variances that add": [SCI, ("VAR_POISSON", 4 * ONE), ("VAR_RNOISE", 5 * ONE)],
    "three, in another order": [
        ("VAR_RNOISE", 3 * ONE), SCI, ("VAR_SKY", 2 * ONE), ("VAR_POISSON", 4 * ONE),
    ],
    "the error beside its parts": [
        ("VAR_POISSON", 7 * ONE), SCI, ERR, ("VAR_FLAT", 7 * ONE),
    ],
    "a background before it": [("BACKGROUND", ONE), SCI, ERR],
    "a model before it": [("MODEL_IMAGE", NOISE / 2), ("IMAGE", NOISE), ERR],
    "a model's error before its own": [("MODEL_ERR", 7 * ONE), SCI, ERR],
    "a raw image": [("RAW_IMAGE", NOISE + 9), ("SKYSUB_IMAGE", NOISE), ERR],
    "the sky subtracted": [("SKY", ONE), ("SCI_SKY_SUB", NOISE), ERR],
    "a signal-to-noise map": [SCI, ERR, ("SNR", NOISE / 3)],
    "MUSE": [("DATA", NOISE), ("STAT", 9 * ONE)],
    "DES": [SCI, ("MSK", np.zeros(SHAPE, np.int16)), ("WGT", ONE / 9)],
    "a name that says nothing": [SCI, ERR, (None, 7 * ONE)],
}  # fmt: skip


@pytest.mark.parametrize("planes", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("preview", [None, np.full(SHAPE, 7, "f4"), np.full((4, 5), 7, "f4")])
def test_the_science_image_and_its_noise(tmp_path: Path, planes, preview) -> None:
    tile = tile_of(tmp_path, *(plane(a, name) for name, a in planes), primary=preview)
    np.testing.assert_array_equal(tile.image_CHW[0], NOISE)
    np.testing.assert_allclose(tile.err_CHW[0], 3, rtol=1e-6)


def test_ccddata_says_what_its_uncertainty_is(tmp_path: Path) -> None:
    for index, (utype, value) in enumerate(
        [("StdDevUncertainty", 3), ("VarianceUncertainty", 9), ("InverseVariance", 1 / 9)]
    ):
        uncertainty = plane(value * ONE, "UNCERT", UTYPE=utype)
        tile = tile_of(tmp_path, uncertainty, file=f"t{index}-g.fits", primary=NOISE)
        np.testing.assert_array_equal(tile.image_CHW[0], NOISE)
        np.testing.assert_allclose(tile.err_CHW[0], 3, rtol=1e-6)


def test_the_plainer_of_two_science_images_with_a_note(tmp_path: Path) -> None:
    tile = tile_of(tmp_path, plane(NOISE + 9, "SCI_BKSUB"), plane(NOISE, "SCI"), plane(ONE, "ERR"))
    np.testing.assert_array_equal(tile.image_CHW[0], NOISE)
    assert any("passed over SCI_BKSUB" in note for note in tile.notes)


@pytest.mark.parametrize(
    ("primary", "planes", "message"),
    [
        (NOISE, [plane(ONE)], "2 images could be the science image"),
        (None, [plane(NOISE), plane(ONE)], "2 images could be the science image"),
        (None, [plane(NOISE, "IMAGE"), plane(ONE, "DATA")], r"\(IMAGE, DATA\)"),
        (None, [plane(NOISE, "SCI", ver=1), plane(NOISE, "SCI", ver=2)], "2 science images"),
        (
            None,
            [plane(NOISE, "SCI", ver=1, FILTER="g"), plane(NOISE, "SCI", ver=2, FILTER="g")],
            "two science images of g",
        ),
        (None, [plane(NOISE, "MODEL")], "'MODEL', not a science image"),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path: Path, primary, planes, message) -> None:
    with pytest.raises(MosaicError, match=message):
        tile_of(tmp_path, *planes, primary=primary)


# --- Bits of masks

DETECTED = np.where(NOISE > 12, 1 << 5, 0).astype(np.int32)
DETECTED[3, 4] = 1 << 8
DETECTED[5, 6] = 1 << 1 | 1 << 5
LSST = {"MP_BAD": 0, "MP_SAT": 1, "MP_CR": 3, "MP_DETECTED": 5, "MP_NO_DATA": 8}


def bad_of(tile: Tile) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for y, x in np.argwhere(tile.mask_HW)]


@pytest.mark.parametrize("by", ["EXTNAME", "EXTTYPE"])
def test_detected_is_no_fault(tmp_path: Path, by: str) -> None:
    planes = [plane(NOISE), plane(DETECTED, **LSST), plane(9 * ONE)]
    for hdu, name in zip(planes, ("IMAGE", "MASK", "VARIANCE"), strict=True):
        hdu.header[by] = name
    assert bad_of(tile_of(tmp_path, *planes)) == [(3, 4), (5, 6)]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [(["NO_DATA"], [(3, 4)]), (["no_data", 1], [(3, 4), (5, 6)]), ([8], [(3, 4)]), ([], [])],
)
def test_the_survey_says_which_bits_are_bad(tmp_path: Path, wanted, expected) -> None:
    planes = [plane(NOISE, "IMAGE"), plane(DETECTED, "MASK", **LSST), plane(9 * ONE, "VARIANCE")]
    assert bad_of(tile_of(tmp_path, *planes, bad_mask_bits=tuple(wanted))) == expected


def test_a_bit_that_the_header_does_not_name_is_refused(tmp_path: Path) -> None:
    planes = [plane(NOISE, "IMAGE"), plane(DETECTED, "MASK", **LSST), plane(9 * ONE, "VARIANCE")]
    with pytest.raises(MosaicError, match="'CLIPPED', but the mask's header names BAD, SAT"):
        tile_of(tmp_path, *planes, bad_mask_bits=("CLIPPED",))


def test_bad_mask_bits_are_names_and_numbers_in_yaml() -> None:
    document = {
        "name": "mine",
        "pixel_scale_arcsec": 0.2,
        "bands": [{"name": "g", "psf_fwhm_arcsec": 0.8, "extinction_r": 3.0}],
    }
    read = from_mapping(Survey, {**document, "bad_mask_bits": ["SAT", 4]}, "mine.yaml")
    assert read.bad_mask_bits == ("SAT", 4)
    for wrong in ([62], [-1], [1.5], "SAT"):
        with pytest.raises(ConfigError, match="bad_mask_bits"):
            from_mapping(Survey, {**document, "bad_mask_bits": wrong}, "mine.yaml")


@pytest.mark.parametrize(
    ("telescope", "value", "is_bad"),
    [
        ("JWST", 1, True),
        ("JWST", 4, False),  # JUMP_DET, which the pipeline corrects
        ("HST", 1, True),
        ("HST", 4096, True),  # a cosmic ray
        ("HST", 64, False),  # a warm pixel
        (None, 1, True),
        (None, 2, False),
    ],
)
def test_data_quality_by_telescope(tmp_path: Path, telescope, value, is_bad) -> None:
    quality = np.zeros(SHAPE, np.int16)
    quality[7, 8] = value
    cards = {} if telescope is None else {"TELESCOP": telescope}
    tile = tile_of(tmp_path, plane(NOISE, "SCI"), plane(ONE, "ERR"), plane(quality, "DQ", **cards))
    assert bad_of(tile) == [(7, 8)] * is_bad
    assert any("bad_mask_bits" in note for note in tile.notes) == (telescope is None and not is_bad)


def test_a_mask_of_which_1_means_good(tmp_path: Path) -> None:
    good = ONE.astype(np.uint8)
    with pytest.raises(MosaicError, match=r"not 0 on 100% of the pixels with data.*bad_mask_bits"):
        tile_of(tmp_path, plane(NOISE, "SCI"), plane(ONE, "ERR"), plane(good, "MASK"))
    good[:, :20] = 0
    image = np.where(good, NOISE, np.nan).astype(np.float32)
    planes = plane(image, "SCI"), plane(ONE, "ERR"), plane(good, "MASK")
    tile = tile_of(tmp_path, *planes, file="u-g.fits")
    np.testing.assert_array_equal(tile.image_CHW[0], image)
    assert any("0 was taken for bad" in note for note in tile.notes)
    # Where that much is bad, the survey can say so.
    assert tile_of(tmp_path, *planes, file="v-g.fits", bad_mask_bits=(0,)).mask_HW.all()


# --- Files beside the mosaic

BESIDE = {
    "SWarp": ("t-g.fits", "t-g.weight.fits", 1 / 9),
    "90prime": ("t-g.fits", "t-g.wht.fits", 1 / 9),
    "HST": ("t-g_drz.fits", "t-g_wht.fits", 1 / 9),
    "one word more": ("t-g_drz.fits", "t-g_drz_rms.fits", 3),
    "grizli": ("t-g_drc_sci.fits.gz", "t-g_drc_wht.fits.gz", 1 / 9),
    "Legacy Surveys": ("legacysurvey-t-image-g.fits", "legacysurvey-t-invvar-g.fits", 1 / 9),
    "DECam": ("t_ooi_g_v1.fits", "t_oow_g_v1.fits", 1 / 9),
    "WISE": ("t_ac51-w1-int-3.fits", "t_ac51-w1-unc-3.fits.gz", 3),
    "unWISE": ("unwise-t-w1-img-m.fits", "unwise-t-w1-invvar-m.fits.gz", 1 / 9),
    "KiDS": ("KiDS_t_g_sci.fits", "KiDS_t_g_wei.fits", 1 / 9),
    "Spitzer": ("t.mosaic.fits", "t.mosaic_unc.fits", 3),
    "Pan-STARRS": ("r.skycell.1.2.stk.g.unconv.fits", "r.skycell.1.2.stk.g.unconv.wt.fits", 9),
    "in capitals": ("T-G.FITS", "T-G.WGT.FITS", 1 / 9),
    "before the name": ("t-g.fits", "weight_t-g.fits", 1 / 9),
}  # fmt: skip


@pytest.mark.parametrize(("science", "noise", "value"), BESIDE.values(), ids=BESIDE)
def test_noise_beside_a_mosaic(tmp_path: Path, science: str, noise: str, value: float) -> None:
    fits.PrimaryHDU(NOISE).writeto(tmp_path / science)
    values = value * ONE
    values[:, :9] = 0
    fits.PrimaryHDU(values).writeto(tmp_path / noise)
    for other in ("x-g.weight.fits", "t-h.weight.fits", "t-g.txt"):
        (tmp_path / other).write_bytes(b"of another mosaic, or no FITS")
    tile = read_tile({"g": tmp_path / science}, survey())
    np.testing.assert_array_equal(tile.mask_HW, values == 0)
    np.testing.assert_allclose(tile.err_CHW[0][:, 9:], 3, rtol=1e-6)
    listed = [tmp_path / noise, tmp_path / science]
    assert without_siblings(listed) == [tmp_path / science]


def test_bad_pixels_of_pan_starrs(tmp_path: Path) -> None:
    bits = np.zeros(SHAPE, np.int16)
    bits[1, 2], bits[3, 4] = 0x0100, 0x4000  # CR, CONV.POOR
    name = "r.skycell.1.2.stk.g.unconv.fits"
    fits.PrimaryHDU(NOISE, fits.Header({"TELESCOP": "PS1"})).writeto(tmp_path / name)
    fits.PrimaryHDU(bits).writeto(tmp_path / name.replace("unconv", "unconv.mask"))
    tile = read_tile({"g": tmp_path / name}, survey())
    assert bad_of(tile) == [(1, 2)]


@pytest.mark.parametrize("other", ["model", "chi2", "exp", "psf", "area", "num"])
def test_what_is_no_noise_is_not_taken_for_it(tmp_path: Path, other: str) -> None:
    for name in ("t-g.fits", f"t-g.{other}.fits"):
        fits.PrimaryHDU(NOISE).writeto(tmp_path / name)
    assert sibling_paths(tmp_path / "t-g.fits") == {}


def test_a_weight_map_that_fits_the_pattern_is_no_mosaic(tmp_path: Path) -> None:
    names = ["t-g.fits", "t-g.weight.fits", "t-wht-g.fits", "t-model-g.fits", "wht-g.fits"]
    for name in names:
        fits.PrimaryHDU(NOISE).writeto(tmp_path / name)
    for pattern, prefer in (("{tile}-{band}*.fits", ()), ("{tile}-{band}*.fits", ("*.fits",))):
        mine = survey(mosaic_pattern=pattern, prefer_mosaics=prefer)
        found = find_mosaics(tmp_path, mine)
        # 'wht' by itself belongs to no other mosaic, and may be what a field is called.
        assert found == {"t": {"g": tmp_path / "t-g.fits"}, "wht": {"g": tmp_path / "wht-g.fits"}}


def test_weights_that_are_not_of_the_scale_of_the_noise_are_told_of(tmp_path: Path) -> None:
    factors = [(1, False), (8, True), (400, True), (1 / 5, False), (1 / 400, True)]
    for index, (factor, said) in enumerate(factors):
        tile = tile_of(
            tmp_path, plane(NOISE, "SCI"), plane(factor * ONE / 9, "WHT"), file=f"t{index}-g.fits"
        )
        assert any("scale them if they are relative" in note for note in tile.notes) == said


def test_weights_of_0_and_1_are_of_the_scale_of_the_noise(tmp_path: Path) -> None:
    weights = np.where(np.arange(50) < 9, 0, ONE).astype(np.uint8)
    tile = tile_of(tmp_path, plane(NOISE, "SCI"), plane(weights, "WHT"))
    np.testing.assert_array_equal(tile.mask_HW, weights == 0)
    assert np.nanmedian(tile.err_CHW) == pytest.approx(3, rel=0.1)


@pytest.mark.parametrize(
    ("name", "value", "unit"),
    [("ERR", 3000, "nJy"), ("ERR", 3, "uJy"), ("VARIANCE", 9e6, "nJy2"), ("VAR", 9, "uJy^2"),
     ("IVAR", 1 / 9e6, "nJy-2"), ("IVAR", 1 / 9, ""), ("ERR", 3, "ct"), ("WHT", 1 / 9, "uJy")],
)  # fmt: skip
def test_errors_in_another_unit_than_the_image(tmp_path: Path, name, value, unit) -> None:
    tile = tile_of(tmp_path, plane(NOISE, "SCI", BUNIT="uJy"), plane(value * ONE, name, BUNIT=unit))
    np.testing.assert_allclose(tile.image_CHW[0], 1000 * NOISE, rtol=1e-6)
    np.testing.assert_allclose(tile.err_CHW[0], 3000, rtol=1e-6)


def test_a_mask_without_a_band_is_of_all_bands(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[3] = 1
    hdus = [fits.PrimaryHDU(), plane(NOISE, "G"), plane(NOISE, "R"), plane(mask, "MASK")]
    fits.HDUList(hdus).writeto(tmp_path / "t.fits")
    tile = read_tile(tmp_path / "t.fits", survey("g", "r"))
    for image in tile.image_CHW:
        np.testing.assert_array_equal(np.isnan(image), mask == 1)


def test_a_weight_map_of_another_shape_is_named(tmp_path: Path) -> None:
    fits.PrimaryHDU(NOISE).writeto(tmp_path / "t-g.fits")
    fits.PrimaryHDU(ONE[1:]).writeto(tmp_path / "t-g.weight.fits")
    with pytest.raises(MosaicError, match=r"t-g\.weight\.fits: has shape .* resample it"):
        read_tile(tmp_path / "t-g.fits", survey())
