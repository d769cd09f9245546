"""What `extract` refuses before any work."""

from dataclasses import replace

import numpy as np
import pytest
from astropy.wcs import WCS

from photozhpc.errors import MosaicError, SourceListError
from photozhpc.extraction.preflight import check_bands, check_positions
from photozhpc.mosaic.footprint import Footprint
from photozhpc.sources.read import Sources
from photozhpc.survey import load_survey

SURVEY = replace(load_survey("roman-sim"), mosaic_pattern="{tile}_{band}.fits")
RA, DEC = 210.0, -9.0


def footprint() -> Footprint:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
    wcs.wcs.crval = RA, DEC
    wcs.wcs.crpix = 500.5, 500.5
    wcs.wcs.cdelt = -1e-4, 1e-4
    return Footprint((1000, 1000), wcs)


def sources(ra_N, dec_N) -> Sources:
    n = len(ra_N)
    nothing_N = np.full(n, np.nan, np.float32)
    return Sources(np.arange(n), np.array(ra_N), np.array(dec_N), nothing_N, nothing_N)


def refusal(ra_N, dec_N) -> str:
    with pytest.raises(SourceListError) as raised:
        check_positions(sources(ra_N, dec_N), np.full(len(ra_N), -1), [footprint()])
    return str(raised.value)


def test_sources_on_no_mosaic_are_refused_with_both_ranges_and_a_guess() -> None:
    ra_N, dec_N = np.array([RA, RA + 0.01]), np.array([DEC, DEC + 0.01])
    elsewhere = refusal(ra_N + 5, dec_N)
    assert "their RA is 215 to 215.01 deg, their Dec -9 to -8.99" in elsewhere
    assert "the mosaics span 209.95 to 210.05 in RA, -9.0499 to -8.95 in Dec" in elsewhere
    assert "?" not in elsewhere
    assert "is RA in hours?" in refusal(ra_N / 15, dec_N)
    assert "are RA and Dec swapped?" in refusal(dec_N, ra_N)
    assert "are they in radians?" in refusal(np.radians(ra_N), np.radians(dec_N))
    assert "unknown" in refusal(np.full(2, np.nan), np.full(2, np.nan))


def test_many_sources_off_the_mosaics_are_noted() -> None:
    listed = sources(np.full(10, RA), np.full(10, DEC))
    tile_N = np.zeros(10, int)
    tile_N[:2] = -1
    assert check_positions(listed, tile_N, [footprint()]) == []
    tile_N[2] = -1
    [note] = check_positions(listed, tile_N, [footprint()])
    assert note.startswith("3 of 10 sources are on no mosaic: 210 to 210 deg in RA")


def test_a_band_that_no_tile_has_is_refused(tmp_path) -> None:
    tiles: dict = {}
    for tile, bands in {"a": ("F062", "F129", "F158"), "b": ("F087", "F129", "Y")}.items():
        for band in bands:
            (tmp_path / f"{tile}_{band}.fits").touch()
            if band != "Y":
                tiles.setdefault(tile, {})[band] = tmp_path / f"{tile}_{band}.fits"
    check_bands(tiles, tmp_path, SURVEY)
    del tiles["b"]
    with pytest.raises(MosaicError, match=r"no tile has a mosaic of F087 .* does not know: Y;"):
        check_bands(tiles, tmp_path, SURVEY)
    check_bands({"a": {"*": tmp_path / "cube.fits"}}, tmp_path, SURVEY)  # read later
