"""SpectralVariety: how the spectra of single galaxies differ from those of their family."""

from dataclasses import dataclass

import numpy as np

from photozhpc.sky.sky_config import Ingredients
from photozhpc.sky.spectra import LINE_GROUPS, Floats, calzetti_k

# The template error function of EAZY (Brammer, van Dokkum & Coppi 2008; TEMPLATE_ERROR.eazy_v1.0):
# relative scatter of galaxies about the best template, at rest wavelengths in nm.
SCATTER_NM = np.geomspace(116.0, 2049.0, 17)
SCATTER = np.array([
    0.038, 0.061, 0.084, 0.089, 0.075, 0.060, 0.047, 0.038, 0.038, 0.048, 0.065, 0.077, 0.079,
    0.080, 0.084, 0.091, 0.103,
])  # fmt: skip


@dataclass(frozen=True)
class SpectralVariety:
    """How the spectra of N galaxies differ from their family's.

    Attributes:
        line_NG: strengths of the line groups; 1 is the published one.
        dust_slope_N: the attenuation curve is multiplied by (wavelength / 550 nm)^slope, as in
            Noll et al. (2009).
        residual_NK: magnitudes added at the rest wavelengths SCATTER_NM, interpolated between
            them so that independent values keep their scatter.
        mass_to_light_dex_N: offset from the relation between colour and mass-to-light ratio.
    """

    line_NG: Floats
    dust_slope_N: Floats
    residual_NK: Floats
    mass_to_light_dex_N: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int, config: Ingredients) -> "SpectralVariety":
        """Draw the variety of n galaxies; without the ingredients there is none."""
        dex_NG = config.line_scatter_dex * rng.standard_normal((n, len(LINE_GROUPS)))
        error_K = 1.086 * config.spectral_scatter * SCATTER
        return cls(
            line_NG=config.line_strength * 10.0**dex_NG,
            dust_slope_N=config.dust_slope_scatter * rng.standard_normal(n),
            residual_NK=error_K * rng.standard_normal((n, len(SCATTER))),
            mass_to_light_dex_N=config.mass_to_light_scatter_dex * rng.standard_normal(n),
        )

    def magnitudes(self, pivot_nm_C: Floats, z_N: Floats, a_v_N: Floats) -> Floats:
        """Return what the dust's slope and the residuals add to magnitudes in the bands (N x C)."""
        rest_NC = pivot_nm_C / (1.0 + z_N[:, None])
        curve_NC = calzetti_k(rest_NC) / 4.05
        tilt_NC = (rest_NC / 550.0) ** self.dust_slope_N[:, None] - 1.0
        step = np.log(SCATTER_NM[1] / SCATTER_NM[0])
        at_NC = np.clip(np.log(rest_NC / SCATTER_NM[0]) / step, 0.0, len(SCATTER_NM) - 1.001)
        low_NC = at_NC.astype(int)
        next_NC = at_NC - low_NC
        row_N1 = np.arange(len(z_N))[:, None]
        residual_NC = (1.0 - next_NC) * self.residual_NK[row_N1, low_NC]
        residual_NC += next_NC * self.residual_NK[row_N1, low_NC + 1]
        residual_NC /= np.hypot(1.0 - next_NC, next_NC)  # as much scatter between as at them
        return a_v_N[:, None] * curve_NC * tilt_NC + residual_NC
