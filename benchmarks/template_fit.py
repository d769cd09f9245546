"""Redshift densities from a fit of galaxy templates: no training, but a prior from the labels.

Templates: the 31 COSMOS SEDs (Polletta et al. 2007; Bruzual & Charlot 2003; Ilbert et al. 2009)
that pz-rail-base brings (MIT), reddened by Calzetti et al. (2000); the intergalactic medium of
Inoue et al. (2014), from eazy. Each template is fitted alone with a free amplitude, as in LePHARE,
with 5% added to the errors; the likelihoods of all are summed. The prior p(z | magnitude) is that
of the labels of the nearest magnitudes. eazy and lephare themselves do not fit here, because their
filters and templates are not in their packages and have to be downloaded.
"""

from importlib.resources import files
from pathlib import Path

import galsim
import galsim.roman
import numpy as np
from numpy.typing import NDArray
from rivals import Grid

TEMPLATE_ERROR = 0.05
REDDENING = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # E(B-V); for star-forming templates
_EARLY = ("El", "S0", "Sa")
_PRIOR_LABELS = 200
_PRIOR_WIDTH = 0.08
_HST = {
    "F606W": "ACS_wfc_F606W.dat",
    "F814W": "ACS_wfc_F814W.dat",
    "F125W": "WFC3_ir_F125W.dat",
    "F160W": "WFC3_ir_F160W.dat",
}
_CHUNK = 256


def template_densities(
    flux_MC: NDArray,
    flux_err_MC: NDArray,
    bands: tuple[str, ...],
    grid: Grid,
    label_magnitude_N: NDArray,
    z_N: NDArray,
    seds: str = "COSMOS_seds.list",
) -> NDArray[np.float32]:
    """Return density_MK of galaxies.

    Args:
        flux_MC, flux_err_MC: nJy, dereddened for the Galaxy; NaN where not measured.
        bands: names of HST's or Roman's.
        label_magnitude_N, z_N: of labelled galaxies: the last band's AB magnitude, and redshift.
        seds: a list of templates in pz-rail-base; "CWWSB4.list" has BPZ's.
    """
    model_TKC = _model_fluxes(bands, grid, seds).reshape(-1, grid.n_bins, len(bands))
    magnitude_M = 31.4 - 2.5 * np.log10(np.nan_to_num(flux_MC[:, -1]).clip(1e-3))
    density_MK = np.empty((len(flux_MC), grid.n_bins), np.float32)
    order_N = np.argsort(label_magnitude_N)
    sorted_N = label_magnitude_N[order_N]
    kernel_NK = grid.kernels(z_N, _PRIOR_WIDTH)[order_N]
    cumulative_NK = np.pad(kernel_NK.astype(np.float64).cumsum(axis=0), ((1, 0), (0, 0)))
    half = min(_PRIOR_LABELS, len(z_N)) // 2
    for first in range(0, len(flux_MC), _CHUNK):
        rows = slice(first, first + _CHUNK)
        flux_BC = flux_MC[rows]
        weight_BC = 1 / (flux_err_MC[rows] ** 2 + (TEMPLATE_ERROR * flux_BC) ** 2)
        weight_BC = np.nan_to_num(weight_BC)
        flux_BC = np.nan_to_num(flux_BC)
        ff_B = (weight_BC * flux_BC**2).sum(axis=1)
        fm_BTK = np.einsum("bc,tkc->btk", weight_BC * flux_BC, model_TKC, optimize=True)
        mm_BTK = np.einsum("bc,tkc->btk", weight_BC, model_TKC**2, optimize=True)
        chi2_BTK = ff_B[:, None, None] - fm_BTK.clip(0) ** 2 / mm_BTK.clip(1e-30)
        chi2_BTK -= chi2_BTK.min(axis=(1, 2), keepdims=True)
        likelihood_BK = np.exp(-chi2_BTK / 2).sum(axis=1)
        middle_B = np.searchsorted(sorted_N, magnitude_M[rows]).clip(half, len(z_N) - half)
        prior_BK = cumulative_NK[middle_B + half] - cumulative_NK[middle_B - half] + 1e-3
        posterior_BK = likelihood_BK * prior_BK
        density_MK[rows] = posterior_BK / posterior_BK.sum(axis=1, keepdims=True)
    return density_MK


def _model_fluxes(bands: tuple[str, ...], grid: Grid, listed: str) -> NDArray[np.float64]:
    """Return f_nu (T, E(B-V), K, C) of templates at the middles of the bins, up to a factor."""
    from eazy.igm import Inoue14

    edge_E = grid.edge_E
    z_K = np.expm1((np.log1p(edge_E[1:]) + np.log1p(edge_E[:-1])) / 2)
    transmissions = [_transmission(band) for band in bands]
    igm = Inoue14()
    folder = Path(str(files("rail.examples_data.estimation_data").joinpath("data/SED")))
    names = [line.split()[0] for line in (folder / listed).read_text().splitlines()]
    seds = [(name, np.loadtxt(folder / name, usecols=(0, 1))) for name in names]
    flux_TEKC = np.zeros((len(seds), len(REDDENING), len(z_K), len(bands)))
    for c, (wave_W, response_W) in enumerate(transmissions):
        # Photon-counting mean of f_nu = f_lambda lambda^2 / c: int f_lambda T lambda d lambda.
        norm = np.trapezoid(response_W / wave_W, wave_W)
        for k, z in enumerate(z_K):
            igm_W = igm.full_IGM(z, wave_W)
            rest_W = wave_W / (1 + z)
            dust_W = _calzetti(rest_W)
            for t, (name, (sed_wave, sed_flux)) in enumerate((n, s.T) for n, s in seds):
                f_W = np.interp(rest_W, sed_wave, sed_flux, left=0, right=0) * igm_W
                for e, ebv in enumerate(REDDENING):
                    if ebv and name.startswith(_EARLY):
                        continue  # zero: no model
                    red_W = f_W * 10 ** (-0.4 * ebv * dust_W)
                    flux_TEKC[t, e, k, c] = (
                        np.trapezoid(red_W * response_W * wave_W, wave_W) / norm
                    )  # fmt: skip
    scale_TEK1 = flux_TEKC.max(axis=-1, keepdims=True)
    return flux_TEKC / np.where(scale_TEK1 > 0, scale_TEK1, 1)


def _transmission(band: str) -> tuple[NDArray, NDArray]:
    """Return wavelengths (Angstrom), evenly spaced, and the response of a band."""
    if band in _HST:
        bandpass = galsim.Bandpass(_HST[band], "nm")
    else:
        letter = {name[1:]: name for name in galsim.roman.getBandpasses()}
        bandpass = galsim.roman.getBandpasses()[letter[band[1:]]]
    wave_W = np.linspace(bandpass.blue_limit, bandpass.red_limit, 120)
    return 10 * wave_W, np.array([bandpass(w) for w in wave_W])


def _calzetti(wave_W: NDArray) -> NDArray[np.float64]:
    """Return k = A / E(B-V) of Calzetti et al. 2000, equation 4, extrapolated at both ends."""
    x_W = np.clip(wave_W / 1e4, 0.09, 2.2)
    blue_W = 2.659 * (-2.156 + 1.509 / x_W - 0.198 / x_W**2 + 0.011 / x_W**3) + 4.05
    red_W = 2.659 * (-1.857 + 1.040 / x_W) + 4.05
    return np.where(x_W < 0.63, blue_W, red_W).clip(0)
