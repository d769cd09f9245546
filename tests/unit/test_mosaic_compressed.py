"""Tile-compressed FITS: the pixels of astropy's hdu.data, and each tile unpacked about once."""

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.hdu.compressed import _tiled_compression as tiled_compression

from builders.mosaics import make_header, make_survey
from photozhpc.mosaic import fits_plane
from photozhpc.mosaic.tile import read_tile

SURVEY = make_survey("F814W", zero_point_ab=31.4)
SHAPE = (300, 200)
RNG = np.random.default_rng(0)
FLOATS = RNG.normal(10, 1, SHAPE).astype(np.float32)
PACKINGS = [
    ("RICE_1", None, 16),
    ("RICE_1", (50, 50), 16),
    ("RICE_1", SHAPE, 16),
    ("GZIP_2", (7, 200), 0),
    ("GZIP_1", SHAPE, 0),
    ("HCOMPRESS_1", (16, 200), 16),
]


def write(path, kind, tile_shape, level, *names):
    more = {} if tile_shape is None else {"tile_shape": tile_shape}
    hdus = [
        fits.CompImageHDU(
            FLOATS, make_header(), compression_type=kind, quantize_level=level, name=name, **more
        )
        for name in names
    ]
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("rows_in_a_section", [13, 1000])
def test_the_pixels_are_those_of_astropy(tmp_path, monkeypatch, packing, rows_in_a_section):
    monkeypatch.setattr("photozhpc.mosaic.blank.SECTION_PIXELS", rows_in_a_section * SHAPE[1])
    path = write(tmp_path / "x_f814w_drz.fits.fz", *packing, "SCI", "ERR")
    with fits.open(path) as hdus:
        want, err = hdus["SCI"].data, hdus["ERR"].data
    tile = read_tile(path, SURVEY)
    assert np.array_equal(tile.image_CHW[0], want)
    assert np.array_equal(tile.err_CHW[0], err)


@pytest.mark.parametrize("kept_bytes", [fits_plane._MAX_KEPT_BYTES, 0])
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_tile_is_unpacked_about_once(tmp_path, monkeypatch, packing, kept_bytes):
    """Without an error plane, so that rows are sampled before the image is read."""
    unpacked = 0
    decompress = tiled_compression._decompress_tile

    def counted(*args, **kwargs):
        nonlocal unpacked
        unpacked += 1
        return decompress(*args, **kwargs)

    monkeypatch.setattr(tiled_compression, "_decompress_tile", counted)
    monkeypatch.setattr("photozhpc.mosaic.blank.SECTION_PIXELS", 40 * SHAPE[1])
    monkeypatch.setattr(fits_plane, "_MAX_KEPT_BYTES", kept_bytes)
    path = write(tmp_path / "x_f814w_drz.fits.fz", *packing, "SCI")
    with fits.open(path) as hdus:
        assert hdus[1].data.shape == SHAPE
    once, unpacked = unpacked, 0
    tile = read_tile(path, SURVEY)
    assert "one error for all pixels" in tile.notes[0]
    assert once <= unpacked <= 2 * once
