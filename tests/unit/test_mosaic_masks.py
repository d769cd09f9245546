"""Mask planes of each survey and pipeline: which of their bits lose a pixel."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import CCDData, StdDevUncertainty

from builders.mosaics import F158, change_roman
from builders.mosaics import ground_survey as make_survey
from photozhpc.errors import MosaicError
from photozhpc.mosaic.tile import read_tile
from photozhpc.survey import Survey, load_survey

H, W = 40, 50
IMAGE = np.random.default_rng(0).normal(10, 1, (H, W)).astype(np.float32)


def write(path, mask, name="MASK", primary=(), cards=(), dtype=np.int32, **more):
    """A mosaic whose pixel (i, 0) has the i-th value of `mask`; the others 0."""
    plane = np.zeros((H, W), dtype)
    plane[: len(mask), 0] = mask
    hdus = [
        fits.PrimaryHDU(header=fits.Header(primary)),
        fits.ImageHDU(IMAGE, name="SCI"),
        fits.ImageHDU(plane, fits.Header(cards), name=name),
        fits.ImageHDU(np.ones((H, W), np.float32), name="ERR"),
    ]
    hdus += [fits.ImageHDU(p, fits.Header(c), name="MASK", ver=v) for p, c, v in more.values()]
    fits.HDUList(hdus).writeto(path)
    return path


def lost(path, survey) -> list[int]:
    tile = read_tile({survey.bands[0].name: path}, survey)
    bad = np.isnan(tile.image_CHW[0])
    assert not bad[:, 1:].any()
    assert np.array_equal(tile.image_CHW[0][~bad], IMAGE[~bad])
    return np.flatnonzero(bad[:, 0]).tolist()


# afw (HSC PDR3's numbers), with and without HIERARCH: names above 8 letters need it.
HSC = [
    *("BAD", "SAT", "INTRP", "CR", "EDGE", "DETECTED", "DETECTED_NEGATIVE"),
    *("SUSPECT", "NO_DATA", "BRIGHT_OBJECT"),
]
AFW = [(f"HIERARCH MP_{name}", bit) for bit, name in enumerate(HSC)]
EACH = [1 << bit for bit in range(14)]
# lsst.images (test_mask.py): MSKNnnnn, MSKMnnnn, MSKDnnnn
NEW = [
    card
    for bit, name in enumerate(HSC)
    for card in ((f"MSKN{bit + 1:04d}", name), (f"MSKM{bit + 1:04d}", 1 << bit))
]
SPHEREX = [("MSKN0000", "TRANSIENT"), ("MSKN0010", "HOT"), ("MSKN0021", "SOURCE")]
# Pan-STARRS (outerspace.stsci.edu, PS1 Pixel flags in Image Table Data)
PS1 = [
    ("MSKNUM", 5),
    *((f"MSKNAM{i:02d}", n) for i, n in enumerate(("BLANK", "SAT", "SUSPECT", "MASK.VALUE"))),
    *((f"MSKVAL{i:02d}", v) for i, v in enumerate((8, 32, 128, 8575))),
]


@pytest.mark.parametrize(
    ("name", "values", "primary", "cards", "want"),
    [
        ("MASK", EACH[:10], [], AFW, [0, 1, 4, 8]),
        ("MASK", EACH[:10], [], NEW, [0, 1, 4, 8]),
        ("FLAGS", [1, 1 << 10, 1 << 21, 1 << 21 | 1 << 10], [], SPHEREX, [1, 3]),
        ("MASK", [8, 32, 128, 16384, 8192, 136], [], PS1, [0, 1, 4, 5]),
        ("MSK", EACH[:12], [], [], [0, 1, 3, 4, 6, 7, 9, 10]),
        ("DQ", EACH, [("TELESCOP", "HST")], [], [*range(5), *range(7, 14)]),
        ("DQ", EACH, [("TELESCOP", "JWST")], [], [0]),
        ("DQ", [3, 5, 6], [("TELESCOP", "ROMAN")], [], [0, 1]),
        ("DQ", EACH[:7], [("OBSERVAT", "Gemini-North")], [], [0, 2, 3, 4, 6]),
        ("DQ", [1, 0, 1], [], [], [0, 2]),
        ("MASKBITS", EACH, [], [], [5]),
        ("MASK", [0, 1, 7, 255], [], [], [1, 2, 3]),
        ("BPM", [0, 1], [], [], [1]),
    ],
)
def test_bits_by_the_names_of_their_header_or_the_telescope(
    tmp_path, name, values, primary, cards, want
):
    survey = make_survey("g")
    path = write(tmp_path / "t-g.fits", list(values), name, primary, cards)
    assert lost(path, survey) == want


def test_a_note_says_what_was_taken_for_bad(tmp_path):
    tile = read_tile({"g": write(tmp_path / "t-g.fits", EACH[:10], cards=AFW)}, make_survey())
    assert "bad in the mask are BAD, SAT, EDGE, NO_DATA, not INTRP" in tile.notes[0]


@pytest.mark.parametrize(
    ("bits", "want"),
    [
        ((), []),
        (("DETECTED", "no_data"), [5, 8]),
        (("MP_CR", 0, 13), [0, 3, 13]),
        (("ZERO",), [*range(14, H)]),
    ],
)
def test_the_survey_says_which_bits_are_bad(tmp_path, bits, want):
    path = write(tmp_path / "t-g.fits", EACH, cards=AFW)
    survey = make_survey(bad_mask_bits=bits)
    bad = np.isnan(read_tile({"g": path}, survey).image_CHW[0])
    assert np.flatnonzero(bad[:, 0]).tolist() == want
    assert bad[:, 1:].all() == ("ZERO" in bits)


def test_bits_that_are_not_there_or_not_known(tmp_path):
    path = write(tmp_path / "t-g.fits", EACH, cards=AFW)
    with pytest.raises(MosaicError, match=r"'NODATA', but the mask's header names BAD, SAT"):
        read_tile({"g": path}, make_survey(bad_mask_bits=("NODATA",)))
    path = write(tmp_path / "u-g.fits", EACH, cards=[("MP_LEFT", 0), ("MP_RIGHT", 1)])
    with pytest.raises(MosaicError, match=r"u-g\.fits.*LEFT, RIGHT.*set bad_mask_bits"):
        read_tile({"g": path}, make_survey())
    assert lost(path, make_survey(bad_mask_bits=("RIGHT",))) == [1]


def test_more_bits_than_one_plane_holds(tmp_path):
    """lsst.images writes 31 planes to MASK,1 and the next to MASK,2."""
    second = np.zeros((H, W), np.int32)
    second[3, 0], second[4, 0] = 1, 2
    cards = [("MSKN0000", "NO_DATA"), ("MSKM0000", 1), ("MSKN0001", "CR"), ("MSKM0001", 2)]
    first = [("MSKN0000", "BAD"), ("MSKM0000", 1)]
    path = write(tmp_path / "t-g.fits", [1], cards=first, more=(second, cards, 2))
    assert lost(path, make_survey()) == [0, 3]


def test_planes_that_only_exttype_names(tmp_path):
    """afw before 2020: EXTTYPE and no EXTNAME."""
    hdus = [fits.PrimaryHDU()]
    mask = np.zeros((H, W), np.int32)
    mask[3, 0], mask[4, 0] = 1 << 8, 1 << 5
    for kind, data in (("IMAGE", IMAGE), ("MASK", mask), ("VARIANCE", np.full((H, W), 4.0, "f4"))):
        hdus.append(fits.ImageHDU(data, fits.Header(AFW if kind == "MASK" else [])))
        hdus[-1].header["EXTTYPE"] = kind
    fits.HDUList(hdus).writeto(tmp_path / "t-g.fits")
    assert lost(tmp_path / "t-g.fits", make_survey()) == [3]
    tile = read_tile({"g": tmp_path / "t-g.fits"}, make_survey())
    assert np.nanmin(tile.err_CHW) == np.nanmax(tile.err_CHW) == 2


def test_a_mask_of_which_one_is_good_is_refused(tmp_path):
    good = np.ones((H, W), np.uint8)
    good[3, 0] = 0
    hdus = [
        fits.PrimaryHDU(),
        fits.ImageHDU(IMAGE, name="SCI"),
        fits.ImageHDU(np.ones((H, W), np.float32), name="ERR"),
        fits.ImageHDU(good, name="MASK"),
    ]
    fits.HDUList(hdus).writeto(tmp_path / "t-g.fits")
    with pytest.raises(MosaicError, match=r"not 0 on 100% .*\[ZERO\] if 0 is bad"):
        read_tile({"g": tmp_path / "t-g.fits"}, make_survey())
    assert lost(tmp_path / "t-g.fits", make_survey(bad_mask_bits=("ZERO",))) == [3]
    assert lost(tmp_path / "t-g.fits", make_survey(bad_mask_bits=())) == []
    hdus[3].header["HDUCLAS3"] = "MASKONE"  # ESO-044286: 1 is good
    fits.HDUList(hdus).writeto(tmp_path / "u-g.fits")
    assert lost(tmp_path / "u-g.fits", make_survey()) == [3]


def test_a_footprint_that_is_mostly_masked_is_no_mask_of_ones(tmp_path):
    """Masked pixels without a value do not show what 1 means."""
    image, mask = IMAGE.copy(), np.zeros((H, W), np.uint8)
    image[:, 2:], mask[:, 2:] = np.nan, 1
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(image, name="SCI"), fits.ImageHDU(mask, name="MASK")]
    fits.HDUList(hdus).writeto(tmp_path / "t-g.fits")
    tile = read_tile({"g": tmp_path / "t-g.fits"}, make_survey())
    assert np.array_equal(tile.mask_HW, mask == 1)


def test_what_astropy_writes(tmp_path):
    """CCDData: the image in PRIMARY, MASK (1 is bad), UNCERT with its kind in UTYPE."""
    mask = np.zeros((H, W), bool)
    mask[5, 0] = True
    ccd = CCDData(IMAGE, unit="nJy", mask=mask, uncertainty=StdDevUncertainty(IMAGE * 0 + 3))
    ccd.write(tmp_path / "t-g.fits")
    assert lost(tmp_path / "t-g.fits", make_survey()) == [5]
    with fits.open(tmp_path / "t-g.fits", "update") as hdus:
        hdus["UNCERT"].header["UTYPE"] = "VarianceUncertainty"
        hdus["UNCERT"].data[:] = 4
    tile = read_tile({"g": tmp_path / "t-g.fits"}, make_survey())
    assert np.nanmax(tile.err_CHW) == 2


def test_dq_of_a_roman_mosaic_takes_the_survey_bits(tmp_path):
    def flag(roman):
        roman["dq"] = np.zeros((160, 160), np.uint32)
        roman["dq"][7, 8], roman["dq"][9, 9] = 1, 2

    path = change_roman(F158, tmp_path / "x_f158_coadd.asdf", flag)
    base = load_survey("roman-l3")
    for bits, want in ((None, [[7, 8]]), (("SATURATED",), [[9, 9]]), ((0, 1), [[7, 8], [9, 9]])):
        survey = Survey(**{**base.__dict__, "bad_mask_bits": bits})
        assert np.argwhere(read_tile(path, survey).mask_HW).tolist() == want
    with pytest.raises(MosaicError, match="SATURATE"):
        read_tile(path, Survey(**{**base.__dict__, "bad_mask_bits": ("SATURATE",)}))


def test_bits_of_a_mask_that_is_not_there_do_not_matter(tmp_path):
    fits.PrimaryHDU(IMAGE).writeto(tmp_path / "t-g.fits")
    assert lost(tmp_path / "t-g.fits", make_survey(bad_mask_bits=("NO_DATA",))) == []
