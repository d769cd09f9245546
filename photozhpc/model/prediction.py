"""What an engine returns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Prediction(NamedTuple):
    """The results of inference for N cutouts; NaN where a cutout cannot be used.

    Attributes:
        z_phot_N: redshift.
        quantile_NQ: calibrated quantiles at density.LEVEL_Q; NaN without density heads.
        ood_N: distance to the training images in latent space, 1 = their 99th percentile; NaN
            without density heads.
    """

    z_phot_N: NDArray[np.float32]
    quantile_NQ: NDArray[np.float32]
    ood_N: NDArray[np.float32]
