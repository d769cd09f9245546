"""Cut the sample mosaics of the tests out of larger ones: python make_samples.py SOURCE_FOLDER.

SOURCE_FOLDER holds roman_l3_cosmos/ (romanisim L3 mosaics), hst/ (from mpdaf) and jwst/ (from
slsim); README.md says where they come from.
"""

import shutil
import sys
from pathlib import Path

import asdf
from asdf.tagged import TaggedDict
from astropy.io import fits
from astropy.modeling.models import Shift
from gwcs import WCS, Step

HERE = Path(__file__).parent
FIRST, SIDE = 220, 160  # rows and columns [220, 380) of the Roman mosaics


def cut_roman(source: Path, target: Path, tag: str | None) -> None:
    cut = slice(FIRST, FIRST + SIDE)
    with asdf.open(source) as file:
        roman = file["roman"]
        steps = [Step(step.frame, step.transform) for step in roman["meta"]["wcs"].pipeline]
        steps[0] = Step(steps[0].frame, Shift(FIRST) & Shift(FIRST) | steps[0].transform)
        tree = {
            "meta": {
                "instrument": dict(roman["meta"]["instrument"]),
                "wcsinfo": {"pixel_scale": 1.5277777760101e-05},  # degrees, as some versions have
                "wcs": WCS(steps),
            },
            **{name: roman[name][cut, cut].copy() for name in ("data", "err", "weight")},
        }
        with asdf.config_context() as config:
            for package in ("roman_datamodels", "rad"):
                config.remove_extension(package=package)
            node = TaggedDict(tree, tag) if tag else tree
            asdf.AsdfFile({"roman": node}).write_to(target, all_array_compression=None)


def cut_hst(source: Path, target: Path) -> None:
    rows, columns = slice(150, 350), slice(100, 350)
    with fits.open(source) as hdus:
        out = fits.HDUList([fits.PrimaryHDU(header=hdus[0].header)])
        for name in ("SCI", "WHT"):
            header = hdus[name].header.copy()
            header["CRPIX1"] -= columns.start
            header["CRPIX2"] -= rows.start
            out.append(fits.ImageHDU(hdus[name].data[rows, columns], header, name=name))
        out.writeto(target, overwrite=True, output_verify="silentfix")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    tag = "tag:stsci.edu:datamodels/roman/tags/wfi_mosaic-99.0.0"  # one that nobody has installed
    cut_roman(
        folder / "roman_l3_cosmos/cosmos_f129_coadd.asdf", HERE / "cosmos_f129_coadd.asdf", tag
    )
    cut_roman(
        folder / "roman_l3_cosmos/cosmos_f158_coadd.asdf", HERE / "cosmos_f158_coadd.asdf", None
    )
    cut_hst(folder / "hst/a478hst-cutout.fits", HERE / "a478_f814w_drz.fits")
    shutil.copyfile(
        folder / "jwst/COSMOSWeb_galaxy_6701_image.fits",
        HERE / "COSMOSWeb_galaxy_6701_image.fits",
    )
    for licence in ("hst/LICENSE-mpdaf", "jwst/LICENSE-slsim"):
        shutil.copyfile(folder / licence, HERE / Path(licence).name)
