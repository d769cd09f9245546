"""Redshift densities from a fit of galaxy templates: no training, but a prior from the labels.

Templates, from pz-rail-base (MIT): BPZ's eight (Coleman, Wu & Weedman 1980; Kinney et al. 1996;
Benitez 2004; Coe et al. 2006), or the 31 COSMOS SEDs (Polletta et al. 2007; Bruzual & Charlot 2003;
Ilbert et al. 2009), which the realistic sky is made of, so that a fit of them to that sky proves
nothing. Two mixtures are put between neighbours in the list, as BPZ does; all are reddened by
Calzetti et al. (2000); the intergalactic medium is Inoue et al. (2014), from eazy. Each is fitted
alone with a free amplitude, as in LePHARE; a share of the flux is added to the errors, and the
likelihoods of all are summed. The prior p(z | magnitude) is that of the labels of the nearest
magnitudes. The labels choose that share, as they choose the settings of other rivals. eazy and
lephare themselves do not fit here, because their filters and templates are not in their packages
and have to be downloaded.
"""

import time
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import galsim
import galsim.roman
import numpy as np
from numpy.typing import NDArray
from rivals import Grid, Result, chosen

TEMPLATE_ERRORS = (0.02, 0.05, 0.1, 0.2)
N_BETWEEN = 2  # mixtures of neighbouring templates
BPZ, COSMOS = "CWWSB4.list", "COSMOS_seds.list"
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
_CHUNK = 128


def template_fit(
    fit: tuple[NDArray, NDArray],
    z_N: NDArray,
    new: tuple[NDArray, NDArray],
    bands: tuple[str, ...],
    grid: Grid,
    seds: str,
) -> Result:
    """Fit templates to new galaxies, with a prior and a template error from the labels.

    Args:
        fit, new: fluxes and errors, nJy, dereddened for the Galaxy; NaN where not measured.
        bands: names of HST's or Roman's.
        seds: BPZ or COSMOS.
    """
    started = time.process_time()
    magnitude_N = _magnitude(fit[0])
    trials = []
    for error in TEMPLATE_ERRORS:

        def densities(sample: tuple[NDArray, NDArray], error: float = error) -> NDArray:
            return template_densities(*sample, bands, grid, magnitude_N, z_N, seds, error)

        settings = {"seds": seds, "template_error": error}
        trials.append((settings, densities(fit), lambda of=densities: of(new)))
    return chosen(trials, z_N, grid, started)


def template_densities(
    flux_MC: NDArray,
    flux_err_MC: NDArray,
    bands: tuple[str, ...],
    grid: Grid,
    label_magnitude_N: NDArray,
    z_N: NDArray,
    seds: str,
    error: float,
) -> NDArray[np.float32]:
    """Return density_MK of galaxies.

    Args:
        flux_MC, flux_err_MC: nJy, dereddened for the Galaxy; NaN where not measured.
        label_magnitude_N, z_N: of labelled galaxies: the last band's AB magnitude, and redshift.
        error: of the templates, a share of the flux.
    """
    model_TKC = _model_fluxes(bands, grid, seds).reshape(-1, grid.n_bins, len(bands))
    model_TKC = model_TKC[(model_TKC > 0).any(axis=(1, 2))]
    magnitude_M = _magnitude(flux_MC)
    density_MK = np.empty((len(flux_MC), grid.n_bins), np.float32)
    order_N = np.argsort(label_magnitude_N)
    sorted_N = label_magnitude_N[order_N]
    kernel_NK = grid.kernels(z_N, _PRIOR_WIDTH)[order_N]
    cumulative_NK = np.pad(kernel_NK.astype(np.float64).cumsum(axis=0), ((1, 0), (0, 0)))
    half = min(_PRIOR_LABELS, len(z_N)) // 2
    for first in range(0, len(flux_MC), _CHUNK):
        rows = slice(first, first + _CHUNK)
        flux_BC = flux_MC[rows]
        weight_BC = 1 / (flux_err_MC[rows] ** 2 + (error * flux_BC) ** 2)
        weight_BC = np.nan_to_num(weight_BC)
        flux_BC = np.nan_to_num(flux_BC)
        # In units of the brightest flux, so that float32 holds the squares.
        unit_B1 = np.abs(flux_BC).max(axis=1, keepdims=True).clip(1e-9)
        flux_BC, weight_BC = flux_BC / unit_B1, (weight_BC * unit_B1**2).astype(np.float32)
        product_BC = (weight_BC * flux_BC).astype(np.float32)
        fm_BTK = np.tensordot(product_BC, model_TKC, axes=(1, 2)).clip(0)
        mm_BTK = np.tensordot(weight_BC, model_TKC**2, axes=(1, 2)).clip(1e-30)
        # chi2 = sum(w f^2) - fm^2 / mm; the first term is the same for all models.
        gain_BTK = fm_BTK**2 / mm_BTK
        gain_BTK -= gain_BTK.max(axis=(1, 2), keepdims=True)
        likelihood_BK = np.exp(gain_BTK / 2).sum(axis=1)
        middle_B = np.searchsorted(sorted_N, magnitude_M[rows]).clip(half, len(z_N) - half)
        prior_BK = cumulative_NK[middle_B + half] - cumulative_NK[middle_B - half] + 1e-3
        posterior_BK = likelihood_BK * prior_BK
        density_MK[rows] = posterior_BK / posterior_BK.sum(axis=1, keepdims=True)
    return density_MK


def _magnitude(flux_MC: NDArray) -> NDArray[np.float64]:
    """Return the AB magnitude in the last band; 38.9 for what is fainter or not measured."""
    return 31.4 - 2.5 * np.log10(np.nan_to_num(flux_MC[:, -1]).clip(1e-3))


@lru_cache(maxsize=4)
def _model_fluxes(bands: tuple[str, ...], grid: Grid, listed: str) -> NDArray[np.float32]:
    """Return f_nu (T, E(B-V), K, C) of templates at the middles of the bins, up to a factor.

    It is 0 where a template is not reddened so much.
    """
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
    flux_TEKC /= np.where(scale_TEK1 > 0, scale_TEK1, 1)
    known_TE11 = (scale_TEK1 > 0).any(axis=(2, 3), keepdims=True)
    between = [
        ((1 - share) * flux_TEKC[:-1] + share * flux_TEKC[1:]) * (known_TE11[:-1] & known_TE11[1:])
        for share in np.arange(1, N_BETWEEN + 1) / (N_BETWEEN + 1)
    ]
    return np.concatenate([flux_TEKC, *between]).astype(np.float32)


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
