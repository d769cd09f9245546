"""Blank pixels known only by their value, and noise where the MAD is 0 or not the noise."""

from functools import partial
from pathlib import Path

import asdf
import numpy as np
import pytest
from astropy.io import fits
from photutils.aperture import CircularAperture, aperture_photometry

from builders.mosaics import ground_survey
from builders.paths import DATA
from photozhpc.mosaic.blank import mark_blank, meaning_of_zeros, noise
from photozhpc.mosaic.measure import forced_photometry
from photozhpc.mosaic.photometry import PhotFlag
from photozhpc.mosaic.tile import Tile, read_tile
from photozhpc.survey import Band, Survey

SHAPE = (300, 340)
ROWS_HW, COLUMNS_HW = np.mgrid[: SHAPE[0], : SHAPE[1]]

# What was not observed: an oblique edge, the outside of a disc, most of it, pixels, a column.
OBLIQUE = COLUMNS_HW < 90 + 0.3 * ROWS_HW
DISC = np.hypot(ROWS_HW - 150, COLUMNS_HW - 170) > 140
MOST = COLUMNS_HW > 68
SINGLE = np.random.default_rng(8).random(SHAPE) < 1e-3
COLUMN = COLUMNS_HW == 33
NOTHING = np.zeros(SHAPE, np.bool_)
survey = partial(ground_survey, aperture_radii_arcsec=(1.0,), sky_annulus_arcsec=())


def draw(seed: int = 1) -> np.ndarray:
    """Return the light of 15 Gaussian sources."""
    rng = np.random.default_rng(seed)
    light_HW = np.zeros(SHAPE)
    for flux in np.geomspace(50, 5000, 15):
        y, x = rng.uniform(10, 290), rng.uniform(10, 330)
        light_HW += flux / 18 * np.exp(-(np.hypot(ROWS_HW - y, COLUMNS_HW - x) ** 2) / 5.8)
    return light_HW


LIGHT = draw()
NOISE = np.random.default_rng(2).normal(size=SHAPE)
EXPOSURE = 1000 + 50 * np.sin(COLUMNS_HW / 37) + 30 * np.cos(ROWS_HW / 23)


def counts(mean: float | np.ndarray) -> np.ndarray:
    return np.random.default_rng(3).poisson(mean + 0.1 * LIGHT).astype(np.float64)


def read(folder: Path, image, blank=NOTHING, fill: float = 0, **other) -> Tile:
    """Write an image with `fill` where it is blank; one count is one nJy; read it as a tile."""
    image = np.where(blank, fill, image).astype(getattr(image, "dtype", "f4"))
    if image.dtype == np.float64:
        image = image.astype(np.float32)
    path = folder / "t-g.fits"
    fits.PrimaryHDU(image).writeto(path, overwrite=True)
    return read_tile({"g": path}, survey("g", **other))


CONTINUOUS = {"noise": NOISE + LIGHT, "a sky of 5.5 sigma": NOISE + LIGHT + 5.5}
CONTINUOUS["a sky of 1000"] = 20 * NOISE + LIGHT + 1000
CONTINUOUS["photons of a bright sky"] = counts(50.0)
CONTINUOUS["integers"] = np.rint(30 * NOISE + LIGHT + 1000)


@pytest.mark.parametrize("blank", [OBLIQUE, DISC, MOST, SINGLE, COLUMN], ids=str.split(
    "oblique disc most single column"
))  # fmt: skip
@pytest.mark.parametrize("kind", CONTINUOUS)
def test_zeros_that_noise_cannot_make_are_blank(kind, blank, tmp_path):
    tile = read(tmp_path, CONTINUOUS[kind], blank)
    assert np.array_equal(np.isnan(tile.image_CHW[0]), blank)
    assert np.array_equal(tile.mask_HW, blank)
    assert np.array_equal(np.isnan(tile.err_CHW[0]), blank)
    assert f"{100 * blank.mean():.3g}% of the pixels are blank" in " ".join(tile.notes)
    # The error is that of the observed part alone.
    want = 1.4826 * np.median(np.abs(NOISE)) * {"noise": 1, "a sky of 5.5 sigma": 1}.get(kind, 0)
    if want:
        assert np.nanmax(tile.err_CHW[0]) == pytest.approx(want, rel=0.06)


DISCRETE = {f"photons, {mean} a pixel": counts(mean) for mean in (0.1, 0.5, 1, 2, 4, 9)}
DISCRETE |= {f"rate, {mean} a pixel": counts(mean) / EXPOSURE for mean in (0.1, 0.5, 1, 2)}
DISCRETE["vignetted photons"] = counts(
    0.3 * np.exp(-(np.hypot(ROWS_HW - 150, COLUMNS_HW - 170) ** 2) / 2 / 110**2)
)
DISCRETE["a sky clipped at 0"] = np.maximum(NOISE + LIGHT, 0)
DISCRETE["integers about 0"] = np.rint(NOISE + LIGHT)
DISCRETE["coarse integers"] = np.rint(0.3 * NOISE + LIGHT)
DISCRETE["rounded"] = np.round(NOISE + LIGHT, 2)
DISCRETE["from 16 bits"] = (NOISE + LIGHT).astype(np.float16).astype(np.float32)
DISCRETE["from float32 with its sky"] = np.float32(NOISE + LIGHT + 30000) - np.float32(30000)


@pytest.mark.parametrize("kind", DISCRETE)
def test_zeros_that_noise_makes_are_data(kind, tmp_path):
    image = DISCRETE[kind]
    tile = read(tmp_path, image)
    assert np.array_equal(tile.image_CHW[0], np.float32(image))
    assert not tile.mask_HW.any()


@pytest.mark.parametrize("kind", DISCRETE)
def test_regions_larger_than_noise_makes_are_blank_among_zeros_that_are_data(kind, tmp_path):
    found = np.isnan(read(tmp_path, DISCRETE[kind], DISC).image_CHW[0])
    # Sparse photons leave the tips of the corners, and lose zeros that touch the disc's edge.
    assert found[DISC].mean() > 0.88
    inner = np.hypot(ROWS_HW - 150, COLUMNS_HW - 170) < 132
    assert not found[inner].any()
    assert found[~DISC].mean() < 0.03


def test_a_blank_column_and_a_strip_along_the_edge_of_integers(tmp_path):
    blank = COLUMN | (ROWS_HW < 3)
    assert np.array_equal(
        np.isnan(read(tmp_path, np.rint(NOISE + 0.5), blank).image_CHW[0])[:, 33], blank[:, 33]
    )


@pytest.mark.parametrize("fill", [-999, -32768, -1e30, 1e30, 1.6e38])
@pytest.mark.parametrize("blank", [DISC, MOST], ids=["disc", "most"])
def test_other_fills_are_blank_too(fill, blank, tmp_path):
    tile = read(tmp_path, np.where(SINGLE, 0, NOISE + LIGHT), blank, fill)
    assert np.array_equal(np.isnan(tile.image_CHW[0]), blank | SINGLE)
    assert np.nanmax(tile.err_CHW[0]) == pytest.approx(1, rel=0.06)


@pytest.mark.parametrize("ceiling", [20, 65535], ids=str)
def test_saturated_pixels_are_no_fill(ceiling, tmp_path):
    image = np.where(LIGHT > 15, ceiling, NOISE + LIGHT)
    assert not read(tmp_path, image).mask_HW.any()


@pytest.mark.parametrize(
    "image", [np.zeros(SHAPE), np.full(SHAPE, 7.0)], ids=["zeros", "a constant"]
)
def test_a_band_without_an_image_is_blank_and_the_other_is_as_it_was(image, tmp_path):
    want = read(tmp_path, NOISE + LIGHT)
    fits.PrimaryHDU(image.astype("f4")).writeto(tmp_path / "t-r.fits")
    both = read_tile({"g": tmp_path / "t-g.fits", "r": tmp_path / "t-r.fits"}, survey("g", "r"))
    assert np.isnan(both.image_CHW[1]).all()
    assert both.mask_HW.all()
    assert both.missing_bands == ()
    assert np.array_equal(both.image_CHW[0], want.image_CHW[0])
    assert np.array_equal(both.err_CHW[0], want.err_CHW[0])
    assert "r: 100% of the pixels are blank" in " ".join(both.notes)


def test_bands_are_blank_where_they_are(tmp_path):
    for name, blank in (("g", OBLIQUE), ("r", DISC)):
        image = np.where(blank, 0, NOISE + LIGHT).astype("f4")
        fits.PrimaryHDU(image).writeto(tmp_path / f"t-{name}.fits")
    tile = read_tile({n: tmp_path / f"t-{n}.fits" for n in "gr"}, survey("g", "r"))
    assert np.array_equal(np.isnan(tile.image_CHW[0]), OBLIQUE)
    assert np.array_equal(np.isnan(tile.image_CHW[1]), DISC)
    assert np.array_equal(tile.mask_HW, OBLIQUE | DISC)


@pytest.mark.parametrize("role", ["WHT", "ERR", "MASK"])
def test_where_a_plane_tells_what_is_blank_nothing_changes(role, tmp_path):
    image = np.where(DISC, 0, NOISE + LIGHT).astype("f4")
    plane = {
        "WHT": np.where(DISC, 0, EXPOSURE),
        "ERR": np.where(DISC, np.nan, np.sqrt(EXPOSURE)),
        "MASK": DISC,
    }[role].astype("f4")
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, name="SCI"), fits.ImageHDU(plane, name=role)]
    fits.HDUList(hdus).writeto(tmp_path / "t-g.fits")
    tile = read_tile({"g": tmp_path / "t-g.fits"}, survey("g"))
    assert np.array_equal(np.isnan(tile.image_CHW[0]), DISC)
    assert np.array_equal(tile.image_CHW[0][~DISC], image[~DISC])
    assert "blank" not in " ".join(tile.notes)


@pytest.mark.parametrize("varies", [False, True])
def test_an_error_plane_that_goes_on_over_the_blank_margin_does_not_make_it_data(varies, tmp_path):
    error = (np.sqrt(EXPOSURE) if varies else np.ones(SHAPE)).astype("f4")
    image = np.where(DISC, 0, NOISE + LIGHT).astype("f4")
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, name="SCI"), fits.ImageHDU(error, name="ERR")]
    fits.HDUList(hdus).writeto(tmp_path / "t-g.fits")
    tile = read_tile({"g": tmp_path / "t-g.fits"}, survey("g"))
    assert np.array_equal(np.isnan(tile.image_CHW[0]), DISC)
    assert np.array_equal(tile.err_CHW[0][~DISC], error[~DISC])


def test_an_exposure_map_knows_where_there_are_no_photons(tmp_path):
    image, seconds = counts(0.1), np.where(MOST, 0, EXPOSURE)
    image[40:140, :60] = 0  # exposed, without a photon
    rate = np.where(MOST, 0, image / EXPOSURE)
    weight = fits.ImageHDU(seconds.astype("f4"), name="WHT")
    weight.header["WHTTYPE"] = "EXP"
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(rate.astype("f4"), name="SCI"), weight]
    fits.HDUList(hdus).writeto(tmp_path / "t-g.fits")
    tile = read_tile({"g": tmp_path / "t-g.fits"}, survey("g"))
    assert np.array_equal(np.isnan(tile.image_CHW[0]), MOST)
    # Of n photons in t seconds: sqrt(n) / t; the empty part has its share in the mean.
    want = np.sqrt(image[~MOST].clip(max=3).mean()) / EXPOSURE[~MOST]
    np.testing.assert_allclose(tile.err_CHW[0][~MOST], want, rtol=0.25)


def test_zeros_kept_by_compression_are_blank(tmp_path):
    """SUBTRACTIVE_DITHER_2 keeps exact zeros (FITS standard 4.0, section 10.2.1)."""
    image = np.where(DISC, 0, NOISE + LIGHT).astype("f4")
    hdu = fits.CompImageHDU(image, quantize_method=2, quantize_level=4, dither_seed=5)
    hdu.writeto(tmp_path / "t-g.fits.fz")
    tile = read_tile({"g": tmp_path / "t-g.fits.fz"}, survey("g"))
    assert np.array_equal(np.isnan(tile.image_CHW[0]), DISC)


def test_a_large_tile_is_read_in_sections_with_the_same_blank_pixels(tmp_path, monkeypatch):
    want = {kind: read(tmp_path, DISCRETE[kind], DISC) for kind in ("rounded", "coarse integers")}
    monkeypatch.setattr("photozhpc.mosaic.blank.SECTION_PIXELS", 7000)
    monkeypatch.setattr("photozhpc.mosaic.tile.MAX_MEMORY_BYTES", 0)
    for kind, tile in want.items():
        found = read(tmp_path, DISCRETE[kind], DISC)
        assert np.array_equal(found.image_CHW, tile.image_CHW, equal_nan=True)
        assert np.array_equal(found.err_CHW, tile.err_CHW, equal_nan=True)
        assert np.array_equal(found.mask_HW, tile.mask_HW)


def test_roman_mosaics_without_planes_have_their_zeros_taken_out(tmp_path):
    path = tmp_path / "cosmos_f158_coadd.asdf"
    with asdf.open(DATA / "cosmos_f158_coadd.asdf", memmap=False) as file:
        roman = dict(file.tree["roman"])
        roman["data"] = np.array(getattr(roman["data"], "value", roman["data"]))
        roman["data"][:, :70] = 0
        del roman["err"], roman["weight"]
        asdf.AsdfFile({"roman": roman}).write_to(path)
    one = Survey(name="one", bands=(Band("F158", 0.1, 0.5),), pixel_scale_arcsec=0.055)
    tile = read_tile({"F158": path}, one)
    assert np.isnan(tile.image_CHW[0, :, :70]).all()
    assert np.isfinite(tile.image_CHW[0, :, 70:]).all()


@pytest.mark.parametrize("said", [True, False])
def test_the_survey_can_say_what_zeros_are(said, tmp_path):
    tile = read(tmp_path, NOISE + LIGHT, DISC, zero_is_blank=said)
    assert np.array_equal(np.isnan(tile.image_CHW[0]), DISC & said)
    tile = read(tmp_path, np.rint(NOISE), zero_is_blank=said)
    assert np.array_equal(tile.mask_HW, (np.rint(NOISE) == 0) & said)


# --- sources


def test_sources_on_blank_sky_have_no_flux_and_half_on_it_a_flag(tmp_path):
    tile = read(tmp_path, NOISE + 50, COLUMNS_HW < 100)
    x = np.array([40.0, 99.5, 200.0])
    found = forced_photometry(tile, np.full(3, 150.0), x, survey("g"))
    assert np.isnan(found.flux_NCR[0, 0, 0])
    assert found.flags_NC[0, 0] & PhotFlag.NO_DATA
    assert found.flags_NC[1, 0] & PhotFlag.NON_FINITE
    assert found.flux_NCR[1, 0, 0] == pytest.approx(50 * np.pi * 25 / 2, rel=0.05)
    assert not found.flags_NC[2, 0] & (PhotFlag.NO_DATA | PhotFlag.NON_FINITE | PhotFlag.MASKED)


@pytest.mark.parametrize("mean", [0.1, 0.5, 2.0, 9.0])
@pytest.mark.parametrize("exposure", [1.0, EXPOSURE], ids=["counts", "rate"])
def test_photons_have_the_flux_of_photutils_and_the_noise_of_their_number(mean, exposure, tmp_path):
    image = counts(mean) / exposure
    tile = read(tmp_path, image)
    y, x = np.random.default_rng(4).uniform(20, 280, (2, 30))
    found = forced_photometry(tile, y, x, survey("g"))
    apertures = CircularAperture(np.stack([x, y], axis=1), 5.0)
    want = aperture_photometry(np.float32(image), apertures)["aperture_sum"]
    np.testing.assert_allclose(found.flux_NCR[:, 0, 0], want, rtol=1e-5, atol=1e-6)
    sigma = np.sqrt(mean) / np.median(exposure)
    assert np.unique(tile.err_CHW) == pytest.approx(sigma, rel=0.1)
    np.testing.assert_allclose(found.flux_err_NCR[:, 0, 0], sigma * np.sqrt(np.pi * 25), rtol=0.1)


@pytest.mark.parametrize(
    ("level", "sigma"),
    [(100, 0.1), (100, 0.2), (100, 0.5), (100, 1), (100, 2), (0, 0.2), (0, 0.3), (0, 1), (0, 2)],
)
def test_integers_of_low_noise_have_the_noise_of_their_rounding_at_least(level, sigma, tmp_path):
    image = np.rint(sigma * NOISE + LIGHT + level)
    tile = read(tmp_path, image.astype(np.int16))
    assert np.array_equal(tile.image_CHW[0], image)
    want = max(np.rint(sigma * NOISE).std(), 12**-0.5)
    assert np.unique(tile.err_CHW) == pytest.approx(want, rel=0.1)
    assert "clipped standard deviation" in " ".join(tile.notes)


def test_a_band_without_noise_keeps_its_flux_and_says_so(tmp_path):
    smooth = np.where(LIGHT > 1e-3, LIGHT, 0)
    tile = read(tmp_path, smooth)
    assert np.array_equal(tile.image_CHW[0], np.float32(smooth))
    assert 0 < np.unique(tile.err_CHW)[0] < 0.1
    assert "taken as data" in " ".join(tile.notes)


def test_the_noise_of_nothing_is_not_known():
    nothing = np.full(SHAPE, np.nan, np.float32)
    assert np.isnan(noise(nothing))
    assert mark_blank(nothing, nothing.copy(), True, None) == (0, 0, None)
    assert meaning_of_zeros(np.zeros((1, 1), np.float32)) == "blank"
