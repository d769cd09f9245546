"""The features of the colour loss, which are also the photometry-MLP's input."""

import numpy as np
from numpy.typing import NDArray


def colour_features(
    flux_NC: NDArray, softening_C: NDArray, ebv_N: NDArray, extinction_r_C: NDArray
) -> NDArray[np.float32]:
    """Return colour_NM: C-1 log10 flux ratios of neighbouring bands, then one log10 flux.

    The paper takes logarithms of dereddened fluxes. Forced fluxes of faint sources may be
    negative, so the logarithm is replaced by asinh(f / 2b) / ln 10 + log10 b, which is log10 f
    for f >> b and linear around zero (Lupton, Gunn & Szalay 1999).

    Args:
        flux_NC: nJy; NaN where not measured gives NaN features.
        softening_C: b, nJy: the typical flux error.
        ebv_N: Galactic E(B-V), magnitudes.
        extinction_r_C: R of A = R E(B-V).
    """
    dereddened_NC = flux_NC * 10 ** (0.4 * ebv_N[:, None] * extinction_r_C)
    log_NC = np.arcsinh(dereddened_NC / (2 * softening_C)) / np.log(10) + np.log10(softening_C)
    ratio_NC = log_NC[:, :-1] - log_NC[:, 1:]
    return np.concatenate([ratio_NC, log_NC[:, -1:]], axis=1).astype(np.float32)
