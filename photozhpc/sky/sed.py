"""Galaxy and star spectra through Roman's bandpasses, tabulated for fast look-up."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import galsim
import galsim.roman
import numpy as np
from numpy.typing import NDArray

from photozhpc.errors import ConfigError, did_you_mean
from photozhpc.sky.spectra import (
    LINE_GROUPS,
    LINE_HZ,
    N_TYPES,
    Floats,
    calzetti_k,
    cosmos_templates,
    igm_transmission,
    line_group,
    rest_mean,
    templates,
)
from photozhpc.sky.variety import SpectralVariety
from photozhpc.survey import flux_of_ab

GALSIM_NAME = {
    "F062": "R062", "F087": "Z087", "F106": "Y106", "F129": "J129",
    "F158": "H158", "F184": "F184", "F213": "K213", "F146": "W146",
}  # fmt: skip

A_V_GRID = np.linspace(0.0, 4.0, 21)
DZ = 0.01
NEBULAR_DUST = 1.0 / 0.44  # of the stars' A_V, Calzetti et al. (2000)


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


@dataclass(frozen=True)
class SedGrid:
    """Band fluxes over (type T, redshift Z, dust A, band C), for one solar mass.

    Attributes:
        bands: Roman filter names, in channel order.
        type_T: types of the templates, increasing.
        z_Z: redshifts of the table, DZ apart from 0.
        log_fnu_TZAC: ln of the mean f_nu in a band; 1 is the rest-frame i flux without dust.
        rest_g_TA, rest_i_TA: rest-frame g and i fluxes with dust, for the mass-to-light ratio.
        line_fnu_GZAC: mean f_nu in a band of a line group, for an f_nu of 1 in the ultraviolet.
        uv_T: f_nu at 150 to 280 nm without dust; zero where stars do not form.
        pivot_nm_C: mean wavelengths of the bands.
    """

    bands: tuple[str, ...]
    type_T: Floats
    z_Z: Floats
    log_fnu_TZAC: Floats
    rest_g_TA: Floats
    rest_i_TA: Floats
    line_fnu_GZAC: Floats
    uv_T: Floats
    pivot_nm_C: Floats

    def fluxes_njy(
        self,
        type_N: Floats,
        z_N: Floats,
        a_v_N: Floats,
        log_mass_N: Floats,
        modulus_N: Floats,
        variety: SpectralVariety | None = None,
    ) -> Floats:
        """Return band fluxes (nJy, N x C) of stellar populations of a given mass at a redshift.

        Mass to light: log M = 1.15 + 0.70 (g - i) - 0.4 M_i, Taylor et al. (2011) eq. 8.
        modulus_N: distance modulus, magnitudes.
        """
        t_N = np.clip(type_N, self.type_T[0], self.type_T[-1])
        t0_N = np.searchsorted(self.type_T, t_N, "right") - 1
        t0_N = np.minimum(t0_N, len(self.type_T) - 2)
        ft_N = (t_N - self.type_T[t0_N]) / (self.type_T[t0_N + 1] - self.type_T[t0_N])
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
        if variety is not None:
            abs_i_N += variety.mass_to_light_dex_N / 0.4
            uv_N = (1.0 - ft_N) * self.uv_T[t0_N] + ft_N * self.uv_T[t0_N + 1]
            fnu_NC += uv_N[:, None] * self._lines(variety.line_NG, z0_N, fz_N, a_v_N)
            fnu_NC *= 10.0 ** (-0.4 * variety.magnitudes(self.pivot_nm_C, z_N, a_v_N))
        scale_N = flux_of_ab(abs_i_N + modulus_N) * (1.0 + z_N) / i_N
        return fnu_NC * scale_N[:, None]

    def _lines(
        self, line_NG: Floats, z0_N: NDArray[np.intp], fz_N: Floats, a_v_N: Floats
    ) -> Floats:
        """Return the lines' mean f_nu in the bands (N x C) for an ultraviolet f_nu of 1."""
        dusty_N = np.clip(a_v_N * NEBULAR_DUST, 0.0, A_V_GRID[-1])
        a0_N = np.rint(dusty_N / (A_V_GRID[1] - A_V_GRID[0])).astype(int)
        fnu_NC = np.zeros((len(z0_N), len(self.bands)))
        for g, line_ZAC in enumerate(self.line_fnu_GZAC):
            here_NC, next_NC = line_ZAC[z0_N, a0_N], line_ZAC[z0_N + 1, a0_N]
            fnu_NC += line_NG[:, g, None] * (here_NC + fz_N[:, None] * (next_NC - here_NC))
        return fnu_NC


@lru_cache(maxsize=4)
def sed_grid(
    bands: tuple[str, ...], z_max: float, family: Literal["cww", "cosmos"] = "cww"
) -> SedGrid:
    """Tabulate a family with dust and IGM through the bands; half a second (cww) or two (cosmos).

    Raises:
        ConfigError: GalSim's Roman module lacks a band.
    """
    wave_L, fnu_TL = templates()
    type_T = np.arange(N_TYPES, dtype=float)
    if family == "cosmos":
        wave_L, fnu_TL, type_T = cosmos_templates()
    forming_T = np.clip((type_T - 0.6) / 0.6, 0.0, 1.0)
    uv_L = (wave_L > 150.0) & (wave_L < 280.0)
    lines_GL = np.array(
        [
            hertz * line_group(wave_L, group)
            for hertz, group in zip(LINE_HZ, LINE_GROUPS, strict=True)
        ]
    )
    dust_AL = 10.0 ** (-0.4 * A_V_GRID[:, None] * calzetti_k(wave_L) / 4.05)
    dusty_TAL = fnu_TL[:, None] * dust_AL
    dusty_lines_GAL = lines_GL[:, None] * dust_AL
    obs = [_band_samples(band) for band in bands]
    z_Z = np.arange(0.0, z_max + 2 * DZ, DZ)
    fnu_TZAC = np.empty((len(type_T), len(z_Z), len(A_V_GRID), len(bands)))
    line_fnu_GZAC = np.empty((len(LINE_GROUPS), *fnu_TZAC.shape[1:]))
    log_wave_L = np.log(wave_L)
    for iz, z in enumerate(z_Z):
        for ic, (wave_W, weight_W) in enumerate(obs):
            at_W = (np.log(wave_W / (1.0 + z)) - log_wave_L[0]) / (log_wave_L[1] - log_wave_L[0])
            lo_W = at_W.astype(int)
            up_W = at_W - lo_W
            absorbed_W = weight_W * igm_transmission(wave_W, z)
            for out_XAC, table_XAL in (
                (fnu_TZAC[:, iz], dusty_TAL),
                (line_fnu_GZAC[:, iz], dusty_lines_GAL),
            ):
                out_XAC[..., ic] = table_XAL[..., lo_W] @ (absorbed_W * (1.0 - up_W))
                out_XAC[..., ic] += table_XAL[..., lo_W + 1] @ (absorbed_W * up_W)
    return SedGrid(
        bands=bands,
        type_T=type_T,
        z_Z=z_Z,
        log_fnu_TZAC=np.log(np.maximum(fnu_TZAC, 1e-300)),
        rest_g_TA=rest_mean(wave_L, dusty_TAL, "g"),
        rest_i_TA=rest_mean(wave_L, dusty_TAL, "i"),
        line_fnu_GZAC=line_fnu_GZAC,
        uv_T=forming_T * fnu_TL[:, uv_L].mean(axis=1),
        pivot_nm_C=np.array([wave_W @ weight_W for wave_W, weight_W in obs]),
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
