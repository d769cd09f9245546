"""What an engine returns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from photozhpc.model.density import LEVEL_Q


class Prediction(NamedTuple):
    """The results of inference for N cutouts; NaN where a cutout cannot be used.

    Attributes:
        z_phot_N: redshift.
        mean_N, mode_N: of the density; NaN without density heads.
        quantile_NQ: calibrated quantiles at density.LEVEL_Q; NaN without density heads.
        ood_N: distance to the training images in latent space, 1 = their 99th percentile; NaN
            without density heads.
    """

    z_phot_N: NDArray[np.float32]
    mean_N: NDArray[np.float32]
    mode_N: NDArray[np.float32]
    quantile_NQ: NDArray[np.float32]
    ood_N: NDArray[np.float32]

    @classmethod
    def unknown(cls, n: int) -> "Prediction":
        """Return NaN for n cutouts."""
        one, many = (n,), (n, len(LEVEL_Q))
        return cls(*(np.full(shape, np.nan, np.float32) for shape in (one, one, one, many, one)))
