"""Resample the 31 COSMOS SEDs of an installed pz-rail-base into cosmos31.npz, beside this file.

    python photozhpc/sky/seds/make_cosmos31.py

Source: rail/examples_data/estimation_data/data/SED of pz-rail-base 2.0 (MIT, LICENSE-rail), the
templates of Ilbert et al. (2009): Polletta et al. (2007) and Bruzual & Charlot (2003).
"""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np


def main() -> None:
    rail = distribution("pz-rail-base")
    folder = Path(str(rail.locate_file("rail/examples_data/estimation_data/data/SED")))
    names = (folder / "COSMOS_seds.list").read_text().split()
    wave_nm_L = np.geomspace(92.0, 2600.0, 1500)  # their own step is 0.23%, this one 0.22%
    log_flambda_TL = []
    for name in names:
        angstrom, flux = np.loadtxt(folder / name).T
        lit = flux > 0
        log_flambda_TL.append(
            np.interp(np.log(wave_nm_L), np.log(angstrom[lit] / 10.0), np.log(flux[lit]))
        )
    np.savez_compressed(
        Path(__file__).with_name("cosmos31.npz"),
        names=np.array([name.removesuffix(".sed") for name in names]),
        wave_nm=wave_nm_L,
        log_flambda=np.array(log_flambda_TL, np.float32),
    )


if __name__ == "__main__":
    main()
