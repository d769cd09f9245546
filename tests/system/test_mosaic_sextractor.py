"""Aperture and Kron fluxes against SExtractor itself, in dual-image mode, on a simulated tile."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from builders.skies import SIMPLE
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic.measure import forced_photometry, noise_weights
from photozhpc.mosaic.photometry import PhotFlag, sum_circles
from photozhpc.mosaic.tile import read_tile
from photozhpc.sky import simulate_sky
from photozhpc.survey import load_survey

SEXTRACTOR = shutil.which("source-extractor") or shutil.which("sex")
pytestmark = pytest.mark.skipif(
    SEXTRACTOR is None, reason="no SExtractor is there (apt: source-extractor)"
)

BAND = "F158"
DIAMETER_PIX = 8.0
PARAMETERS = "X_IMAGE Y_IMAGE FLUX_APER(1) FLUX_AUTO FLUXERR_AUTO FLAGS"
KERNEL = "CONV NORM\n1 2 1\n2 4 2\n1 2 1\n"  # SExtractor's default.conv


def sextractor(folder: Path, detection_HW, image_HW, err_HW) -> np.ndarray:
    """Return SExtractor's table; the backgrounds are zero."""
    noise_HW = np.full_like(detection_HW, np.nanstd(detection_HW[detection_HW < 0]))
    for name, plane_HW in (
        ("detection", detection_HW),
        ("detection_rms", noise_HW),
        ("image", image_HW),
        ("image_rms", err_HW),
    ):
        fits.writeto(folder / f"{name}.fits", plane_HW.astype(np.float32))
    (folder / "kernel.conv").write_text(KERNEL)
    (folder / "parameters").write_text(PARAMETERS.replace(" ", "\n") + "\n")
    options = (
        "-c /dev/null -CATALOG_NAME catalog.fits -CATALOG_TYPE FITS_1.0 -PARAMETERS_NAME parameters"
        " -FILTER_NAME kernel.conv -DETECT_THRESH 1.5 -ANALYSIS_THRESH 1.5 -DETECT_MINAREA 5"
        " -BACK_TYPE MANUAL -BACK_VALUE 0,0 -WEIGHT_TYPE MAP_RMS,MAP_RMS"
        " -WEIGHT_IMAGE detection_rms.fits,image_rms.fits -MASK_TYPE NONE -GAIN 0"
        f" -PHOT_AUTOPARAMS 2.5,3.5 -PHOT_APERTURES {DIAMETER_PIX} -VERBOSE_TYPE QUIET"
    )
    command = [str(SEXTRACTOR), "detection.fits,image.fits", *options.split()]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return fits.getdata(folder / "catalog.fits")


def test_fluxes_are_sextractors(tmp_path: Path) -> None:
    survey = load_survey("roman-sim")
    config = replace(SIMPLE, tile_size_pix=1200)
    simulate_sky(survey, tmp_path / "sky", 1, 3, config, workers=1)
    (mosaics,) = find_mosaics(tmp_path / "sky", survey).values()
    tile = read_tile(mosaics, survey)
    weight_C = noise_weights(tile.err_CHW)
    detection_HW = np.tensordot(weight_C / weight_C.sum(), tile.image_CHW, 1)
    band = tile.band_names.index(BAND)
    table = sextractor(tmp_path, detection_HW, tile.image_CHW[band], tile.err_CHW[band])
    x_N, y_N = table["X_IMAGE"] - 1.0, table["Y_IMAGE"] - 1.0
    apart_NN = np.hypot(x_N[:, None] - x_N, y_N[:, None] - y_N) + np.diag(np.full(len(x_N), 1e9))

    circle_N1, _, _ = sum_circles(tile.image_CHW[band], y_N, x_N, [DIAMETER_PIX / 2])
    assert len(table) > 100
    # SExtractor cuts a pixel on the circle into 5 x 5.
    difference_N = circle_N1[:, 0] - table["FLUX_APER"]
    assert np.abs(difference_N).max() < 0.01 * table["FLUX_APER"].max()
    bright_N = table["FLUX_AUTO"] > 20 * table["FLUXERR_AUTO"]
    relative_N = np.abs(difference_N / table["FLUX_APER"])[bright_N]
    assert np.median(relative_N) < 0.002
    assert relative_N.max() < 0.02

    no_sky = replace(survey, sky_annulus_arcsec=(), cutout_size=96)
    found = forced_photometry(tile, y_N, x_N, no_sky, field_K=((), ()))  # as MASK_TYPE NONE
    whole_N = (found.flags_NC[:, band] & PhotFlag.KRON_LIMITED) == 0
    clean_N = bright_N & whole_N & (table["FLAGS"] == 0) & (apart_NN.min(axis=1) > 30)
    ratio_N = found.kron_flux_NC[clean_N, band] / table["FLUX_AUTO"][clean_N]
    assert len(ratio_N) > 15
    low, middle, high = np.percentile(ratio_N, [16, 50, 84])
    assert 0.95 < middle < 1.02, middle
    assert 0.90 < low < high < 1.08, (low, high)
