"""Mosaics: Roman L3 in ASDF and drizzles in FITS."""

import gzip
from random import Random
from typing import Any

import asdf
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS
from harness import Damage, Target
from mutate import mangle, mutate_fits, mutate_lines

from builders.paths import DATA
from photozhpc.extraction.extract import wcs_text
from photozhpc.mosaic.footprint import read_footprint
from photozhpc.mosaic.tile import Tile, read_tile
from photozhpc.survey import load_survey

ROMAN, HST = load_survey("roman-l3"), load_survey("candels")
SIDE = 48


class _Mosaics(Target):
    survey = ROMAN

    def read(self, damage: Damage) -> Any:
        path = self.folder / damage.name
        y_N, x_N = np.array([0.0, SIDE / 2, SIDE - 1]), np.array([0.0, SIDE / 2, 3.0])
        # A run reads the grids of all mosaics before it reads the first pixel.
        grid = read_footprint({"*": path}, self.survey)
        sky = grid.pixel_to_sky(y_N, x_N)
        if damage.content is not None and len(damage.content) % 3 == 0 and self.survey is ROMAN:
            return grid.shape_HW, sky, grid.sky_to_pixel(*sky)
        tile = read_tile(path, self.survey)
        return tile_content(tile), tile.pixel_to_sky(y_N, x_N), tile.sky_to_pixel(*sky)

    def judge(self, damage: Damage, found: Any) -> str:
        if len(found[0]) > 2:
            _, _, image_CHW, err_CHW, mask_HW, area_arcsec2, *_ = found[0]
            good_CHW = np.isfinite(image_CHW)
            assert (good_CHW == np.isfinite(err_CHW)).all(), "an image without an error"
            assert (err_CHW[good_CHW] > 0).all(), "an error of zero"
            present_C = ~np.isnan(image_CHW).all(axis=(1, 2))
            assert (mask_HW == ~good_CHW[present_C].all(axis=0)).all() or mask_HW.all(), "the mask"
            assert 0 < area_arcsec2 < np.inf, f"pixels of {area_arcsec2} arcsec2"
        return super().judge(damage, found)


def tile_content(tile: Tile) -> tuple[Any, ...]:
    return (
        tile.tile_id,
        tile.missing_bands,
        tile.image_CHW,
        tile.err_CHW,
        tile.mask_HW,
        tile.pixel_area_arcsec2,
        tile.notes,
    )


class RomanAsdf(_Mosaics):
    cases = 48
    weight = 0.4

    def make(self) -> None:
        source = DATA / "cosmos_f158_coadd.asdf"
        with asdf.open(source, ignore_unrecognized_tag=True, memmap=False) as file:
            roman = dict(file["roman"])
            for name in ("data", "err", "weight"):
                roman[name] = np.array(roman[name][:SIDE, :SIDE])
            roman["dq"] = np.zeros((SIDE, SIDE), np.uint32)
            for name, compression in (("a", None), ("b", "zlib")):
                tree = asdf.AsdfFile({"roman": roman})
                tree.write_to(
                    self.folder / f"{name}_f158_coadd.asdf", all_array_compression=compression
                )

    def damage(self, rng: Random) -> Damage:
        name = rng.choice(list(self.files))
        content = self.files[name]
        header = content.index(b"\n...") + 1
        kind = rng.random()
        if kind < 0.6:
            # What comes before is the list of extensions, which ASDF itself passes over.
            start = content.index(b"\nroman:") + 1 if rng.random() < 0.9 else 0
            return Damage(
                name, content[:start] + mutate_lines(content[start:], rng, header - start)
            )
        if kind < 0.8:
            return Damage(name, mangle(content[:header], rng) + content[header:])
        return Damage(name, mangle(content, rng))


class FitsMosaic(_Mosaics):
    survey = HST
    cases = 120
    weight = 0.8

    def make(self) -> None:
        rng = np.random.default_rng(0)
        image = rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32)
        weight = np.full((SIDE, SIDE), 500, np.float32)
        weight[:3] = 0
        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.crval, wcs.wcs.crpix = [150.0, 2.0], [24.0, 25.5]
        wcs.wcs.cdelt = [-0.06 / 3600, 0.06 / 3600]
        header = wcs.to_header()
        header.update({"PHOTFLAM": 7.0e-20, "PHOTPLAM": 8045.0, "EXPTIME": 480.0})
        header.update({"BUNIT": "ELECTRONS/S", "FILTER": "F814W"})
        science, err = fits.ImageHDU(image, header, name="SCI"), np.abs(image) + 1
        planes = [fits.PrimaryHDU(), science, fits.ImageHDU(weight, name="WHT")]
        fits.HDUList(planes).writeto(self.folder / "a_f814w_drz.fits")
        sip = header.copy()
        sip.update(
            {"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP", "A_ORDER": 2, "A_2_0": 1e-5}
        )
        sip.update({"B_ORDER": 2, "B_0_2": 1e-5, "FILTER": "F160W"})
        planes = [fits.PrimaryHDU(image, sip), fits.ImageHDU(err, name="ERR")]
        planes.append(fits.ImageHDU(np.zeros((SIDE, SIDE), np.int16), name="DQ"))
        fits.HDUList(planes).writeto(self.folder / "b_f160w_drz.fits")
        packed = fits.CompImageHDU(image, header, compression_type="RICE_1", name="SCI")
        fits.HDUList([fits.PrimaryHDU(), packed]).writeto(self.folder / "c_f814w_drz.fits.fz")
        cube = fits.PrimaryHDU(np.stack([image] * len(HST.bands)), header)
        del cube.header["FILTER"]
        for number, band in enumerate(HST.band_names):
            cube.header[f"BAND{number}"] = band
        cube.writeto(self.folder / "d_cube_drz.fits")
        plain = (self.folder / "b_f160w_drz.fits").read_bytes()
        (self.folder / "e_f160w_drz.fits.gz").write_bytes(gzip.compress(plain, 1, mtime=0))

    def damage(self, rng: Random) -> Damage:
        name = rng.choice(list(self.files))
        content = self.files[name]
        if name.endswith(".gz"):
            if rng.random() < 0.3:
                return Damage(name, mangle(content, rng))
            return Damage(name, gzip.compress(mutate_fits(gzip.decompress(content), rng), 1))
        if rng.random() < 0.6:
            return Damage(name, mutate_fits(content, rng))
        return Damage(name, mangle(content, rng))

    def read(self, damage: Damage) -> Any:
        found = super().read(damage)
        wcs_text(read_footprint({"*": self.folder / damage.name}, self.survey).wcs)
        return found
