"""Rest-frame spectra of galaxies, their emission lines, dust and the intergalactic medium."""

from functools import lru_cache
from pathlib import Path

import galsim
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Coleman, Wu & Weedman (1980), extended by Bolzonella et al. (2000); shipped with GalSim.
CWW_FILES = ("CWW_E_ext", "CWW_Sbc_ext", "CWW_Scd_ext", "CWW_Im_ext")
N_TYPES = 5  # E, Sbc, Scd, Im, and a young starburst; a type is a number from 0 to 4

# Rest wavelength (nm) and equivalent width (nm) of the starburst's lines, typical of sub-L*
# star-forming galaxies at z ~ 1 to 2 (e.g. Reddy et al. 2018). Im has a third of these widths.
LINES_NM = ((372.8, 6.0), (486.1, 2.5), (495.9, 3.5), (500.7, 10.5), (656.3, 12.0))

# Lines of the COSMOS family, in groups that vary together: rest wavelengths (nm) and ratios.
# H-beta is 1/2.86 of H-alpha (case B); [O III] 4959 is a third of 5007, and 5007 is twice H-beta.
LINE_GROUPS = (
    ((372.8, 1.0),),
    ((486.1, 1.0), (495.9, 0.67), (500.7, 2.0)),
    ((656.3, 1.0), (658.4, 0.3)),
)
# A group's flux over the dust-free f_nu at 150 to 280 nm (Hz): the three measures of the star
# formation rate in Kennicutt (1998), eqs. 1 to 3: 1.4e-28 L_UV, 7.9e-42 L(H-alpha) and
# 1.4e-41 L([O II]).
LINE_HZ = (1.4e-28 / 1.4e-41, 1.4e-28 / 7.9e-42 / 2.86 * 3.67, 1.4e-28 / 7.9e-42 * 1.3)


def calzetti_k(wave_nm: Floats) -> Floats:
    """Return the starburst attenuation curve k(lambda), Calzetti et al. (2000) eq. 4; R_V = 4.05.

    Below 120 nm the curve is continued with the slope of its blue end.
    """
    um = np.clip(wave_nm, 120.0, 2200.0) / 1000.0
    blue = 2.659 * (-2.156 + 1.509 / um - 0.198 / um**2 + 0.011 / um**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 / um) + 4.05
    k = np.where(um < 0.63, blue, red)
    return np.maximum(k + np.clip(120.0 - wave_nm, 0.0, None) * 0.03, 0.0)


def igm_transmission(wave_obs_nm: Floats, z: float) -> Floats:
    """Return the IGM's mean transmission, Madau (1995) eqs. 12, 15 and 16."""
    tau = np.zeros_like(wave_obs_nm)
    lines = ((121.567, 0.0036), (102.572, 0.0017), (97.254, 0.0012), (94.974, 0.00093))
    for line_nm, strength in lines:
        ratio = wave_obs_nm / line_nm
        tau += np.where(ratio < 1.0 + z, strength * ratio**3.46, 0.0)
    xc = wave_obs_nm / 91.2
    xe = 1.0 + z
    continuum = (
        0.25 * xc**3 * (xe**0.46 - xc**0.46)
        + 9.4 * xc**1.5 * (xe**0.18 - xc**0.18)
        - 0.7 * xc**3 * (xc**-1.32 - xe**-1.32)
        - 0.023 * (xe**1.68 - xc**1.68)
    )
    tau += np.where(xc < xe, np.maximum(continuum, 0.0), 0.0)
    return np.exp(-tau)


@lru_cache(maxsize=1)
def templates() -> tuple[Floats, Floats]:
    """Return rest-frame templates (wave_nm_L, fnu_TL), with a mean f_nu of 1 in rest-frame i.

    Types 0 to 3 are the CWW spectra; type 4 is Im made bluer by a power law with emission lines.
    """
    wave_L = np.geomspace(20.0, 2600.0, 8000)
    share = Path(galsim.meta_data.share_dir) / "SEDs"
    flambda = []
    for name in CWW_FILES:
        sed = galsim.SED(str(share / f"{name}.sed"), wave_type="Ang", flux_type="flambda")
        table = np.array([[w, sed(w) / w] for w in sed.wave_list])  # photons -> energy
        inside = np.clip(wave_L, table[0, 0], table[-1, 0])
        flux_L = np.exp(np.interp(np.log(inside), np.log(table[:, 0]), np.log(table[:, 1])))
        flambda.append(flux_L * (wave_L / inside) ** -2.0)
    young_L = flambda[3] * (wave_L / 550.0) ** -0.6
    flambda[3] = flambda[3] + _lines(wave_L, flambda[3], 1.0 / 3.0)
    flambda.append(young_L + _lines(wave_L, young_L, 1.0))
    fnu_TL = np.array(flambda) * wave_L**2
    return wave_L, fnu_TL / rest_mean(wave_L, fnu_TL, "i")[:, None]


@lru_cache(maxsize=1)
def cosmos_templates() -> tuple[Floats, Floats, Floats]:
    """Return the 31 COSMOS SEDs (wave_nm_L, fnu_TL), mean f_nu of 1 in rest-frame i, and types_T.

    Templates of Ilbert et al. (2009), from red to blue. A type is the number from 0 to 4 at which
    the CWW family has the same rest-frame colour, 220 to 260 nm less 560 to 680 nm; bluer ones go
    on beyond 4. Neighbours come from different codes and samples, so that galaxies of one type
    differ in other colours.
    """
    cww_wave_L, cww_TL = templates()
    with np.load(Path(__file__).with_name("seds") / "cosmos31.npz") as file:
        inside_L = np.clip(cww_wave_L, file["wave_nm"][0], file["wave_nm"][-1])
        flambda_TL = np.exp(
            [
                np.interp(np.log(inside_L), np.log(file["wave_nm"]), row)
                for row in file["log_flambda"]
            ]
        )
    fnu_TL = flambda_TL * cww_wave_L**2
    cww_T, cosmos_T = (_near_uv_colour(cww_wave_L, f_TL) for f_TL in (cww_TL, fnu_TL))
    bluest = (cww_T[-2] - cww_T[-1]) * np.arange(1, 4)
    anchors = np.concatenate([cww_T, cww_T[-1] - bluest])
    types_T = np.interp(-cosmos_T, -anchors, np.arange(len(anchors), dtype=float))
    order_T = np.argsort(types_T)
    fnu_TL = fnu_TL[order_T] / rest_mean(cww_wave_L, fnu_TL[order_T], "i")[:, None]
    return cww_wave_L, fnu_TL, types_T[order_T]


def _near_uv_colour(wave_L: Floats, fnu_TL: Floats) -> Floats:
    near_uv, red = (wave_L > 220.0) & (wave_L < 260.0), (wave_L > 560.0) & (wave_L < 680.0)
    return -2.5 * np.log10(fnu_TL[:, near_uv].mean(axis=1) / fnu_TL[:, red].mean(axis=1))


def _lines(wave_L: Floats, continuum_L: Floats, scale: float) -> Floats:
    """Return Gaussian lines of 0.4% width, with the widths of `LINES_NM` times `scale`."""
    total_L = np.zeros_like(wave_L)
    for line_nm, width_nm in LINES_NM:
        sigma = 0.004 * line_nm
        shape_L = np.exp(-0.5 * ((wave_L - line_nm) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        level = np.interp(line_nm, wave_L, continuum_L)
        total_L += scale * width_nm * level * shape_L
    return total_L


def rest_mean(wave_L: Floats, fnu_XL: Floats, letter: str) -> Floats:
    """Return the photon-weighted mean f_nu through LSST g or i at z = 0 (close to SDSS)."""
    bandpass = galsim.Bandpass(f"LSST_{letter}.dat", wave_type="nm")
    inside = (wave_L > bandpass.blue_limit) & (wave_L < bandpass.red_limit)
    weight_L = bandpass(wave_L[inside]) / wave_L[inside] * np.gradient(wave_L[inside])
    return fnu_XL[..., inside] @ weight_L / weight_L.sum()


def line_group(wave_L: Floats, group: tuple[tuple[float, float], ...]) -> Floats:
    """Return f_nu of a group of Gaussian lines of 0.4% width; the integral over frequency is 1."""
    fnu_L = np.zeros_like(wave_L)
    total = sum(ratio for _, ratio in group)
    for line_nm, ratio in group:
        sigma = 0.004 * line_nm
        shape_L = np.exp(-0.5 * ((wave_L - line_nm) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        fnu_L += ratio / total * shape_L * line_nm**2 / 2.99792458e17  # per nm to per Hz
    return fnu_L
