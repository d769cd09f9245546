"""Galaxy and star spectra through Roman's bandpasses, tabulated for fast look-up."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import galsim
import galsim.roman
import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, did_you_mean
from photozhpc.survey import flux_of_ab

Floats = NDArray[np.float64]

GALSIM_NAME = {
    "F062": "R062", "F087": "Z087", "F106": "Y106", "F129": "J129",
    "F158": "H158", "F184": "F184", "F213": "K213", "F146": "W146",
}  # fmt: skip

# Coleman, Wu & Weedman (1980), extended by Bolzonella et al. (2000); shipped with GalSim.
CWW_FILES = ("CWW_E_ext", "CWW_Sbc_ext", "CWW_Scd_ext", "CWW_Im_ext")
N_TYPES = 5  # E, Sbc, Scd, Im, and a young starburst; a type is a number from 0 to 4

# Rest wavelength (nm) and equivalent width (nm) of the starburst's lines, typical of sub-L*
# star-forming galaxies at z ~ 1 to 2 (e.g. Reddy et al. 2018). Im has a third of these widths.
LINES_NM = ((372.8, 6.0), (486.1, 2.5), (495.9, 3.5), (500.7, 10.5), (656.3, 12.0))

A_V_GRID = np.linspace(0.0, 4.0, 21)
DZ = 0.01


def galsim_band_name(band: str) -> str:
    """Return GalSim's name of a Roman filter ("F158" -> "H158").

    Raises:
        ConfigError: there is no such Roman filter.
    """
    if band.upper() not in GALSIM_NAME:
        raise ConfigError(
            f"band '{band}' has no GalSim Roman bandpass{did_you_mean(band, GALSIM_NAME)}"
        )
    return GALSIM_NAME[band.upper()]


@lru_cache(maxsize=1)
def roman_bandpasses() -> dict[str, galsim.Bandpass]:
    """Return GalSim's Roman bandpasses by Roman filter name, with AB zero points."""
    bandpasses = galsim.roman.getBandpasses(AB_zeropoint=True)
    return {name: bandpasses[galsim_name] for name, galsim_name in GALSIM_NAME.items()}


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
    return wave_L, fnu_TL / _rest_mean(wave_L, fnu_TL, "i")[:, None]


def _lines(wave_L: Floats, continuum_L: Floats, scale: float) -> Floats:
    """Return Gaussian lines of 0.4% width, with the widths of `LINES_NM` times `scale`."""
    total_L = np.zeros_like(wave_L)
    for line_nm, width_nm in LINES_NM:
        sigma = 0.004 * line_nm
        shape_L = np.exp(-0.5 * ((wave_L - line_nm) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        level = np.interp(line_nm, wave_L, continuum_L)
        total_L += scale * width_nm * level * shape_L
    return total_L


def _rest_mean(wave_L: Floats, fnu_XL: Floats, letter: str) -> Floats:
    """Return the photon-weighted mean f_nu through LSST g or i at z = 0 (close to SDSS)."""
    bandpass = galsim.Bandpass(f"LSST_{letter}.dat", wave_type="nm")
    inside = (wave_L > bandpass.blue_limit) & (wave_L < bandpass.red_limit)
    weight_L = bandpass(wave_L[inside]) / wave_L[inside] * np.gradient(wave_L[inside])
    return fnu_XL[..., inside] @ weight_L / weight_L.sum()


@dataclass(frozen=True)
class SedGrid:
    """Band fluxes over (type T, redshift Z, dust A, band C), for one solar mass.

    Attributes:
        bands: Roman filter names, in channel order.
        z_Z: redshifts of the table, DZ apart from 0.
        log_fnu_TZAC: ln of the mean f_nu in a band; 1 is the rest-frame i flux without dust.
        rest_g_TA, rest_i_TA: rest-frame g and i fluxes with dust, for the mass-to-light ratio.
    """

    bands: tuple[str, ...]
    z_Z: Floats
    log_fnu_TZAC: Floats
    rest_g_TA: Floats
    rest_i_TA: Floats

    def fluxes_njy(
        self, type_N: Floats, z_N: Floats, a_v_N: Floats, log_mass_N: Floats, modulus_N: Floats
    ) -> Floats:
        """Return band fluxes (nJy, N x C) of stellar populations of a given mass at a redshift.

        Mass to light: log M = 1.15 + 0.70 (g - i) - 0.4 M_i, Taylor et al. (2011) eq. 8.
        modulus_N: distance modulus, magnitudes.
        """
        t_N = np.clip(type_N, 0.0, N_TYPES - 1.0)
        t0_N = np.minimum(t_N.astype(int), N_TYPES - 2)
        ft_N = t_N - t0_N
        a_N = np.clip(a_v_N, 0.0, A_V_GRID[-1]) / (A_V_GRID[1] - A_V_GRID[0])
        a0_N = np.minimum(a_N.astype(int), len(A_V_GRID) - 2)
        fa_N = a_N - a0_N
        zi_N = np.clip(z_N / DZ, 0.0, len(self.z_Z) - 1.001)
        z0_N = zi_N.astype(int)
        fz_N = zi_N - z0_N
        fnu_NC = np.zeros((len(t_N), len(self.bands)))
        g_N = np.zeros(len(t_N))
        i_N = np.zeros(len(t_N))
        for dt, weight_N in ((0, 1.0 - ft_N), (1, ft_N)):
            log_NC = np.zeros_like(fnu_NC)
            for dz, wz_N in ((0, 1.0 - fz_N), (1, fz_N)):
                for da, wa_N in ((0, 1.0 - fa_N), (1, fa_N)):
                    corner_NC = self.log_fnu_TZAC[t0_N + dt, z0_N + dz, a0_N + da]
                    log_NC += (wz_N * wa_N)[:, None] * corner_NC
            fnu_NC += weight_N[:, None] * np.exp(log_NC)
            for da, wa_N in ((0, 1.0 - fa_N), (1, fa_N)):
                g_N += weight_N * wa_N * self.rest_g_TA[t0_N + dt, a0_N + da]
                i_N += weight_N * wa_N * self.rest_i_TA[t0_N + dt, a0_N + da]
        g_minus_i_N = -2.5 * np.log10(g_N / i_N)
        abs_i_N = (1.15 + 0.70 * g_minus_i_N - log_mass_N) / 0.4
        scale_N = flux_of_ab(abs_i_N + modulus_N) * (1.0 + z_N) / i_N
        return fnu_NC * scale_N[:, None]


@lru_cache(maxsize=4)
def sed_grid(bands: tuple[str, ...], z_max: float) -> SedGrid:
    """Tabulate the templates with dust and IGM through the bands; takes about half a second.

    Raises:
        ConfigError: GalSim's Roman module lacks a band.
    """
    wave_L, fnu_TL = templates()
    dust_AL = 10.0 ** (-0.4 * A_V_GRID[:, None] * calzetti_k(wave_L) / 4.05)
    dusty_TAL = fnu_TL[:, None] * dust_AL
    obs = [_band_samples(band) for band in bands]
    z_Z = np.arange(0.0, z_max + 2 * DZ, DZ)
    fnu_TZAC = np.empty((N_TYPES, len(z_Z), len(A_V_GRID), len(bands)))
    log_wave_L = np.log(wave_L)
    for iz, z in enumerate(z_Z):
        for ic, (wave_W, weight_W) in enumerate(obs):
            at_W = (np.log(wave_W / (1.0 + z)) - log_wave_L[0]) / (log_wave_L[1] - log_wave_L[0])
            lo_W = at_W.astype(int)
            up_W = at_W - lo_W
            absorbed_W = weight_W * igm_transmission(wave_W, z)
            fnu_TZAC[:, iz, :, ic] = dusty_TAL[..., lo_W] @ (absorbed_W * (1.0 - up_W))
            fnu_TZAC[:, iz, :, ic] += dusty_TAL[..., lo_W + 1] @ (absorbed_W * up_W)
    return SedGrid(
        bands=bands,
        z_Z=z_Z,
        log_fnu_TZAC=np.log(np.maximum(fnu_TZAC, 1e-300)),
        rest_g_TA=_rest_mean(wave_L, dusty_TAL, "g"),
        rest_i_TA=_rest_mean(wave_L, dusty_TAL, "i"),
    )


def _band_samples(band: str) -> tuple[Floats, Floats]:
    """Return wavelengths (nm) and weights of the photon-weighted mean f_nu; weights sum to 1."""
    galsim_band_name(band)
    bandpass = roman_bandpasses()[band.upper()]
    wave_W = np.linspace(bandpass.blue_limit, bandpass.red_limit, 160)
    weight_W = np.maximum(bandpass(wave_W), 0.0) / wave_W
    return wave_W, weight_W / weight_W.sum()


def star_colours(bands: tuple[str, ...], temperature_N: Floats) -> Floats:
    """Return black bodies' mean f_nu in the bands (N x C), in arbitrary units: Planck's law."""
    fnu_NC = np.empty((len(temperature_N), len(bands)))
    for ic, band in enumerate(bands):
        wave_W, weight_W = _band_samples(band)
        x_NW = 1.438777e7 / (wave_W[None] * temperature_N[:, None])  # hc / (lambda k T), nm K
        fnu_NC[:, ic] = (wave_W**-3 / np.expm1(x_NW)) @ weight_W
    return fnu_NC
