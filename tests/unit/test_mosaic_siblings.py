"""Files beside a mosaic, and cards that state what an image is."""

from functools import partial

import numpy as np
import pytest
from astropy.io import fits

from builders.mosaics import ground_survey
from photozhpc.errors import MosaicError
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic.fits_siblings import sibling_paths, without_siblings
from photozhpc.mosaic.tile import read_tile

H, W = 40, 50
IMAGE = np.random.default_rng(0).normal(10, 1, (H, W)).astype(np.float32)
THREE = np.full((H, W), 3, np.float32)
make_survey = partial(ground_survey, "g", "r")


def write(path, *planes, **cards):
    """The first plane without a name is the primary HDU's."""
    hdus = [fits.PrimaryHDU()]
    if planes and planes[0][0] == "PRIMARY":
        hdus = [fits.PrimaryHDU(planes[0][1])]
        planes = planes[1:]
    hdus[0].header.update(cards)
    for name, data, *ver in planes:
        hdus.append(fits.ImageHDU(data, name=name or None, ver=ver[0] if ver else None))
    fits.HDUList(hdus).writeto(path)
    return path


SCI, ERR, HALF = ("SCI", IMAGE), ("ERR", THREE), IMAGE / 2
SMALL = np.full((4, 5), 7, np.float32)


def without_companions(paths, survey):
    kept = without_siblings(paths, survey)
    return kept, [(p, kept[0]) for p in paths if p not in kept]


@pytest.mark.parametrize(
    ("planes", "extension"),
    [
        ((("PRIMARY", HALF), ("", IMAGE)), "1"),
        ((("PRIMARY", IMAGE), ("", THREE)), "0"),
        ((("DATA", HALF), ("IMAGE", IMAGE)), "image"),
        ((("MODEL", IMAGE), ("SCI", HALF)), "MODEL"),
    ],
)
def test_the_survey_names_the_science_image(tmp_path, planes, extension):
    path = write(tmp_path / "t-g.fits", *planes)
    tile = read_tile({"g": path}, make_survey(image_extension=extension))
    assert np.array_equal(tile.image_CHW[0], IMAGE)
    with pytest.raises(MosaicError, match=r"image_extension .*is 'X'"):
        read_tile({"g": path}, make_survey(image_extension="X"))


@pytest.mark.parametrize(
    "cards",
    [{"PRODTYPE": "wtmap"}, {"PRODTYPE": "dqmask"}, {"PRODCATG": "ANCILLARY.WEIGHTMAP"}],
)
def test_a_weight_map_is_no_mosaic(tmp_path, cards):
    path = write(tmp_path / "t-g.fits", ("PRIMARY", IMAGE), **cards)
    with pytest.raises(MosaicError, match="not a science image"):
        read_tile({"g": path}, make_survey())


def test_what_eso_calls_its_planes(tmp_path):
    """HDUCLASn: ESO Science Data Products Standard, GEN-3.02.1-ESO-33-5335."""
    planes = (("CHIP1.DATA1", IMAGE), ("CHIP1.X", THREE**2))
    with fits.open(write(tmp_path / "a.fits", *planes)) as hdus:
        for hdu, kinds in zip(hdus[1:], (("DATA", ""), ("ERROR", "MSE")), strict=True):
            hdu.header.update({"HDUCLASS": "ESO", "HDUCLAS2": kinds[0], "HDUCLAS3": kinds[1]})
        hdus.writeto(tmp_path / "t-g.fits")
    tile = read_tile({"g": tmp_path / "t-g.fits"}, make_survey())
    assert np.array_equal(tile.image_CHW[0], IMAGE)
    np.testing.assert_allclose(tile.err_CHW[0], 3)


PAIRS = [
    ("t-g.fits", "t-g.weight.fits", "weight"),  # SWarp
    ("t-g.fits", "t-g_weight.fits.fz", "weight"),
    ("t-g.fits", "t-g.wht.fits", "weight"),  # 90prime
    ("t-g.fits", "t-g-wht.fits.gz", "weight"),
    ("t-g.fits.fz", "t-g.weight.fits.fz", "weight"),
    ("T-G.FITS", "T-G_WGT.FITS", "weight"),
    ("t-g_drz.fits", "t-g_wht.fits", "weight"),  # drizzle
    ("t-g_drz_sci.fits", "t-g_drz_wht.fits", "weight"),
    ("t-g-clear_drc_sci.fits.gz", "t-g-clear_drc_wht.fits.gz", "weight"),  # grizli
    ("hlsp_x_hst_60mas_t_g_v2.0_sci.fits", "hlsp_x_hst_60mas_t_g_v2.0_wht.fits", "weight"),
    ("KiDS_t_g_sci.fits", "KiDS_t_g_wei.fits", "weight"),
    ("t_ooi_g_v1.fits.fz", "t_oow_g_v1.fits.fz", "weight"),  # Community Pipeline
    ("t_osi_g_v1.fits.fz", "t_osw_g_v1.fits.fz", "weight"),
    ("legacysurvey-t-image-g.fits.fz", "legacysurvey-t-invvar-g.fits.fz", "inverse_variance"),
    ("unwise-t-g-img-m.fits", "unwise-t-g-invvar-m.fits.gz", "inverse_variance"),
    ("t-w1-int-3.fits", "t-w1-unc-3.fits.gz", "err"),  # WISE
    ("irac_ch1_sci_10.fits", "irac_ch1_unc_10.fits", "err"),  # S-COSMOS
    ("t_maic.fits", "t_munc.fits", "err"),  # MOPEX
    ("t-g.fits", "t-g_rms.fits", "err"),
    ("t-g_i2d.fits", "t-g_err.fits", "err"),
    ("t-g.fits", "t-g.var.fits", "variance"),
    ("rings.t.stk.g.unconv.fits", "rings.t.stk.g.unconv.wt.fits", "variance"),  # Pan-STARRS
    ("t-g.fits", "t-g.mask.fits", "mask"),
]


@pytest.mark.parametrize(("science", "beside", "role"), PAIRS)
def test_companions_by_name(tmp_path, science, beside, role):
    for name in (science, beside, "other-g.weight.fits", "t-r.weight.fits", "t-g.weight.txt"):
        (tmp_path / name).touch()
    assert sibling_paths(tmp_path / science) == {role: tmp_path / beside}
    kept, companions = without_companions([tmp_path / beside, tmp_path / science], make_survey())
    assert kept == [tmp_path / science]
    assert companions == [(tmp_path / beside, tmp_path / science)]
    assert without_companions([tmp_path / beside], make_survey())[0] == [tmp_path / beside]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("t_ooi_g_v1.fits", "t_osw_g_v1.fits"),  # of a stack and of a single exposure
        ("t-g.fits", "t-r.weight.fits"),
        ("t-g.fits", "t-g-weighted.fits"),
        ("t-g.fits", "t2-g.fits"),
        ("x_t-g.fits", "x-g.weight.fits"),
    ],
)
def test_what_only_looks_like_a_companion(tmp_path, one, other):
    (tmp_path / one).touch()
    (tmp_path / other).touch()
    assert sibling_paths(tmp_path / one) == {}
    paths = [tmp_path / one, tmp_path / other]
    assert without_companions(paths, make_survey()) == (paths, [])


def test_a_band_called_like_a_role_is_a_band(tmp_path):
    survey = make_survey(band_aliases={"sig": "r"})
    paths = [tmp_path / "t.fits", tmp_path / "t-sig.fits"]
    assert without_companions(paths, survey) == (paths, [])


def test_the_first_of_several_beside_a_mosaic(tmp_path):
    for name in ("t-g_rms.fits", "t-g_err.fits", "t-g_wht.fits.gz", "t-g_wht.fits", "t-g_sci.fits"):
        (tmp_path / name).touch()
    found = sibling_paths(tmp_path / "t-g_sci.fits")
    assert {role: path.name for role, path in found.items()} == {
        "weight": "t-g_wht.fits",
        "err": "t-g_rms.fits",
    }


@pytest.mark.parametrize(("science", "beside", "role"), PAIRS[:-1])
def test_their_noise_is_read(tmp_path, science, beside, role):
    survey = make_survey()
    noise = {"weight": 1 / 9, "inverse_variance": 1 / 9, "err": 3.0, "variance": 9.0}[role]
    plane = np.full((H, W), noise, np.float32)
    plane[3, 4] = 0
    for name, data in ((science, IMAGE), (beside, plane)):
        packed = name.lower().endswith(".fz")
        hdu = (
            fits.CompImageHDU(data, compression_type="GZIP_2", quantize_level=0)
            if packed
            else fits.PrimaryHDU(data)
        )
        hdu.writeto(tmp_path / name)
    tile = read_tile({"g": tmp_path / science}, survey)
    assert np.argwhere(tile.mask_HW).tolist() == [[3, 4]]
    np.testing.assert_allclose(np.nanmax(tile.err_CHW[0]), 3, rtol=1e-6)
    assert tile.notes == ()


def test_masks_beside_a_mosaic(tmp_path):
    survey = make_survey()
    mask = np.zeros((H, W), np.int16)
    mask[3, 4], mask[5, 6] = 32, 128
    write(tmp_path / "t-g.fits", ("PRIMARY", IMAGE))
    path = write(tmp_path / "t-g.mask.fits", ("PRIMARY", mask))
    tile = read_tile({"g": tmp_path / "t-g.fits"}, survey)
    assert not tile.mask_HW.any()
    assert "t-g.mask.fits is not used" in tile.notes[0]
    tile = read_tile({"g": tmp_path / "t-g.fits"}, make_survey(bad_mask_bits=(7,)))
    assert np.argwhere(tile.mask_HW).tolist() == [[5, 6]]
    with fits.open(path, "update") as hdus:
        hdus[0].header.update({"MSKNAM00": "SAT", "MSKVAL00": 32})
        hdus[0].header.update({"MSKNAM01": "SUSPECT", "MSKVAL01": 128})
    tile = read_tile({"g": tmp_path / "t-g.fits"}, survey)
    assert np.argwhere(tile.mask_HW).tolist() == [[3, 4]]
    write(tmp_path / "u_osi_g_v1.fits", ("PRIMARY", IMAGE))
    mask[:] = 0
    mask[0, :8] = range(8)  # codes, not bits (NOIRLab Data Handbook)
    write(tmp_path / "u_osd_g_v1.fits", ("PRIMARY", mask), PRODTYPE="dqmask")
    tile = read_tile({"g": tmp_path / "u_osi_g_v1.fits"}, survey)
    assert np.argwhere(tile.mask_HW).tolist() == [[0, j] for j in range(1, 8)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{tile}-{band}*.fits", ["t-g.fits", "t-g.weight.fits", "t-g_rms.fits", "t-g-exp.fits"]),
        ("{tile}_{band}.fits", ["t_sci_g.fits", "t_wht_g.fits", "t_mask_g.fits"]),
        ("legacysurvey-{tile}-{band}.fits", ["legacysurvey-t-image-g.fits"]
         + [f"legacysurvey-t-{w}-g.fits" for w in ("invvar", "nexp", "model", "chi2", "psfsize")]),
        ("unwise-{tile}-{band}-*.fits", ["unwise-t-g-img-m.fits", "unwise-t-g-std-m.fits"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("preferred", [(), ("*",)])
def test_a_pattern_that_fits_weights_too(tmp_path, pattern, names, preferred):
    for name in names:
        (tmp_path / name).touch()
    notes = []
    survey = make_survey(mosaic_pattern=pattern, prefer_mosaics=preferred)
    found = find_mosaics(tmp_path, survey, notes)
    (bands,) = found.values()
    assert bands == {"g": tmp_path / names[0]}
    assert f"{len(names) - 1} files beside a mosaic are not mosaics" in notes[0]
