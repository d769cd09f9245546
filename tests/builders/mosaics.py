"""Mosaics of FITS and ASDF, and the surveys that read them."""

from pathlib import Path

import asdf
import numpy as np
from astropy.io import fits
from astropy.wcs import WCS

from builders.paths import DATA
from photozhpc.survey import Band, Survey

F129, F158 = DATA / "cosmos_f129_coadd.asdf", DATA / "cosmos_f158_coadd.asdf"
HST = DATA / "a478_f814w_drz.fits"
JWST = DATA / "COSMOSWeb_galaxy_6701_image.fits"


def make_survey(*names: str, zero_point_ab: float | None = None, **other) -> Survey:
    bands = tuple(
        Band(name, psf_fwhm_arcsec=0.1, extinction_r=1.0, zero_point_ab=zero_point_ab)
        for name in names
    )
    return Survey(
        name="test",
        bands=bands,
        pixel_scale_arcsec=0.06,
        mosaic_pattern="{tile}_{band}_drz.fits",
        **other,
    )


def ground_survey(*names: str, **other) -> Survey:
    """Pixels of 0.2 arcsec in nJy; the band is g if none is named."""
    bands = tuple(Band(name, 0.8, 0.0, 31.4) for name in names or ("g",))
    return Survey("mine", bands, 0.2, **{"mosaic_pattern": "{tile}-{band}.fits", **other})


AB = make_survey("F606W", "F814W", zero_point_ab=31.4)  # one count is one nJy


def make_header(kind: str = "TAN", scale_arcsec: float = 0.06, shift_pix: float = 0.0):
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = [f"RA---{kind}", f"DEC--{kind}"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [26.0 + shift_pix, 20.5]
    wcs.wcs.cdelt = [-scale_arcsec / 3600, scale_arcsec / 3600]
    wcs.wcs.pc = [[0.8, -0.6], [0.6, 0.8]]
    header = wcs.to_header()
    if kind == "TPV":
        header.update({"PV1_1": 1.0, "PV2_1": 1.0, "PV1_4": 20.0, "PV2_5": -30.0})
        for i, j in ((1, 1), (1, 2), (2, 1), (2, 2)):  # TPV is defined on degrees, after CD
            header[f"CD{i}_{j}"] = header.pop(f"PC{i}_{j}") * header[f"CDELT{i}"]
        del header["CDELT1"], header["CDELT2"]
    return header


def make_image(seed: int = 0, shape: tuple[int, ...] = (40, 50), dtype=np.float32):
    return np.random.default_rng(seed).normal(10, 1, shape).astype(dtype)


def write(path: Path, image=None, header=None, **cards) -> Path:
    header = make_header() if header is None else header
    header = header.copy()
    header.update(cards)
    fits.PrimaryHDU(make_image() if image is None else image, header).writeto(path)
    return path


def change_roman(source: Path, target: Path, change, **how) -> Path:
    with asdf.open(source, ignore_unrecognized_tag=True, memmap=False, lazy_load=False) as file:
        roman = dict(file["roman"])
        roman = {k: np.array(v) if k != "meta" else dict(v) for k, v in roman.items()}
        change(roman)
        asdf.AsdfFile({"roman": roman}).write_to(target, **how)
    return target
