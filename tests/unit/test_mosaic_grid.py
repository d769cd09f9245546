"""Distortions and pixels as programs and archives write them, against explicit formulas."""

from pathlib import Path

import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from builders.mosaics import make_survey
from photozhpc.errors import MosaicError
from photozhpc.mosaic.tile import read_tile

SCALE = 0.2 / 3600
SURVEY = make_survey("F814W", zero_point_ab=31.4)
BASE = {
    "CTYPE1": "RA---TAN",
    "CTYPE2": "DEC--TAN",
    "CRVAL1": 150.0,
    "CRVAL2": 2.0,
    "CRPIX1": 20.5,
    "CRPIX2": 20.5,
    "CD1_1": -SCALE,
    "CD1_2": 0.0,
    "CD2_1": 0.0,
    "CD2_2": SCALE,
}
TPV = {"CTYPE1": "RA---TPV", "CTYPE2": "DEC--TPV"}
Y, X = np.array([1.0, 20, 39, 3]), np.array([2.0, 38, 2, 20])
XI, ETA = -SCALE * (X - 19.5), SCALE * (Y - 19.5)


def read(folder: Path, cards: dict):
    hdu = fits.PrimaryHDU(np.random.default_rng(0).normal(0, 1, (40, 40)).astype(np.float32))
    hdu.header.update(cards)
    hdu.writeto(folder / "x_f814w_drz.fits", overwrite=True)
    return read_tile(folder / "x_f814w_drz.fits", SURVEY)


def gnomonic(xi_deg, eta_deg):
    """RA and Dec of the tangent plane at (150, 2) (Calabretta & Greisen 2002, section 5.1.3)."""
    xi, eta, dec0 = np.radians(xi_deg), np.radians(eta_deg), np.radians(2.0)
    down = np.cos(dec0) - eta * np.sin(dec0)
    ra = 150 + np.degrees(np.arctan2(xi, down))
    return ra, np.degrees(np.arctan2(np.sin(dec0) + eta * np.cos(dec0), np.hypot(xi, down)))


def tpv(coefficients: dict[int, float], u, v):
    """The polynomial of one axis (registry of FITS conventions, TPV), u the axis's own."""
    r = np.hypot(u, v)
    terms = [1, u, v, r, u * u, u * v, v * v, u**3, u * u * v, u * v * v, v**3, r**3]
    return sum(value * terms[m] for m, value in coefficients.items())


def cards_of(first: dict[int, float], second: dict[int, float]) -> dict[str, float]:
    return {f"PV{axis}_{m}": c for axis, pv in ((1, first), (2, second)) for m, c in pv.items()}


@pytest.mark.parametrize("types", [{}, TPV], ids=["TAN", "TPV"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({0: 1e-5, 1: 1.002, 2: 0.001}, {0: -2e-5, 1: 0.998, 2: -0.002}),
        ({0: 0.0, 1: 1.0, 2: 0.0}, {0: 0.0, 1: 1.0, 2: 0.0}),
        ({0: 1e-5, 1: 1.0, 2: 0.0, 3: 0.01}, {0: 0.0, 1: 1.0, 2: 0.0, 3: 0.0}),
        ({1: 1.0, 4: 10.0}, {1: 1.0, 4: -5.0}),
        ({1: 1.0, 4: 10.0, 6: 3.0, 7: 50.0}, {0: 1e-6, 1: 1.01, 5: 2.0, 10: 9.0}),
    ],
)
def test_the_polynomial_of_scamp_under_either_name(tmp_path, types, first, second):
    tile = read(tmp_path, {**BASE, **types, **cards_of(first, second)})
    ra, dec = gnomonic(tpv(first, XI, ETA), tpv(second, ETA, XI))
    np.testing.assert_allclose(tile.pixel_to_sky(Y, X), [ra, dec], atol=1e-9)
    np.testing.assert_allclose(tile.sky_to_pixel(ra, dec), [Y, X], atol=1e-3)


def test_scamp_with_the_declination_first(tmp_path):
    first, second = {0: 1e-5, 1: 1.002, 2: 0.001}, {0: -2e-5, 1: 0.998, 2: -0.002}
    swapped = BASE | {
        "CTYPE1": "DEC--TAN",
        "CTYPE2": "RA---TAN",
        "CRVAL1": 2.0,
        "CRVAL2": 150.0,
        "CD1_1": 0.0,
        "CD1_2": SCALE,
        "CD2_1": -SCALE,
        "CD2_2": 0.0,
    }
    tile = read(tmp_path, swapped)
    np.testing.assert_allclose(tile.pixel_to_sky(Y, X), gnomonic(XI, ETA), atol=1e-9)
    with pytest.raises(MosaicError, match="declination first"):  # wcslib would swap the axes
        read(tmp_path, {**swapped, **cards_of(second, first)})


@pytest.mark.parametrize(
    "cards",
    [
        {"PV1_1": 0.0, "PV1_2": 90.0, "PV1_3": 180.0, "PV1_4": 0.0},  # the standard's LONPOLE
        {"PV2_1": 0.0, "PV2_2": 0.0},
        {"LONPOLE": 180.0},
        {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 1e-4, "B_0_2": 1e-4},  # of an exposure (CANDELS)
    ],
)
def test_a_tan_that_is_no_more_than_that(tmp_path, cards):
    tile = read(tmp_path, {**BASE, **cards})
    np.testing.assert_allclose(tile.pixel_to_sky(Y, X), gnomonic(XI, ETA), atol=1e-9)


@pytest.mark.parametrize("degree", [1, 2])
def test_sip_with_the_same_as_pv_beside_it(tmp_path, degree):
    """PTF's headers state their distortion twice."""
    sip = {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "B_ORDER": 2}
    sip |= {"A_2_0": 1e-4, "B_1_1": 2e-4}
    pv = {0: 0.0, 1: 1.0, 2: 0.0} | ({4: -1e-4 / SCALE, 5: 0.0, 6: 0.0} if degree == 2 else {})
    tile = read(tmp_path, {**BASE, **sip, **cards_of(pv, {0: 0.0, 1: 1.0, 2: 0.0})})
    u, v = X - 19.5, Y - 19.5
    ra, dec = gnomonic(-SCALE * (u + 1e-4 * u * u), SCALE * (v + 2e-4 * u * v))
    np.testing.assert_allclose(tile.pixel_to_sky(Y, X), [ra, dec], atol=1e-9)


def test_an_fk4_grid_takes_icrs_positions(tmp_path):
    tile = read(tmp_path, {**BASE, "RADESYS": "FK4", "EQUINOX": 1950.0})
    ra, dec = gnomonic(XI, ETA)
    icrs = SkyCoord(ra, dec, unit="deg", frame="fk4", equinox="B1950").icrs
    np.testing.assert_allclose(tile.sky_to_pixel(icrs.ra.deg, icrs.dec.deg), [Y, X], atol=1e-4)


# --- the shape of pixels


def square(**cards) -> dict:
    plain = {k: v for k, v in BASE.items() if not k.startswith("CD")}
    return plain | {"CDELT1": -SCALE, "CDELT2": SCALE} | cards


@pytest.mark.parametrize(
    "cards",
    [
        square(),
        square(CDELT2=SCALE * 1.04),
        square(CROTA2=30.0),
        square(PC1_1=0.8, PC1_2=-0.6, PC2_1=0.6, PC2_2=0.8),
        square(CTYPE1="RA---CAR", CTYPE2="DEC--CAR", CRVAL2=0.0, CRPIX2=20.5 - 15 / SCALE),
    ],
)
def test_pixels_that_are_square_enough(tmp_path, cards):
    tile = read(tmp_path, cards)
    assert tile.wcs is not None
    want = WCS(fits.Header(cards)).proj_plane_pixel_area().to_value("arcsec2")
    if "CAR" not in cards["CTYPE1"]:
        assert tile.pixel_area_arcsec2 == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(
    ("cards", "ratio"),
    [
        (square(CDELT1=-SCALE / np.sqrt(2), CDELT2=SCALE * np.sqrt(2)), "2"),
        (square(CDELT2=SCALE * 1.06), "1.06"),
        (square(PC1_1=1.0, PC1_2=0.5, PC2_1=0.0, PC2_2=1.0), "1.64"),  # sheared
        (
            square(CTYPE1="RA---CAR", CTYPE2="DEC--CAR", CRVAL2=0.0, CRPIX2=20.5 - 60 / SCALE),
            "2",
        ),
    ],
)
def test_oblong_pixels_are_refused(tmp_path, cards, ratio):
    with pytest.raises(MosaicError, match=rf"x_f814w.*not square: {ratio} times.*resample"):
        read(tmp_path, cards)
