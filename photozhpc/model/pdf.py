"""p(z) of sources: the density behind the catalogue's intervals, as quantiles or on a grid.

The calibration gives the level of the density at which to read each of the catalogue's quantiles
(model/density.py). Between them, the level is linear in probits. The result is one calibrated
distribution, and the intervals are part of it.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from photozhpc.model.density import (
    LEVEL_Q,
    Calibration,
    calibrated,
    interpolate,
    inverse_cdf,
    levels_between,
)
from photozhpc.model.redshift_grid import grid_cells, redshift_grid

PdfForm = Literal["quantiles", "grid"]
# The levels of the catalogue's intervals, and others that resolve the shape.
PDF_LEVELS = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.84, 0.9, 0.95, 0.975, 0.99, 0.995),
)
INTERVAL_INDEX = tuple(PDF_LEVELS.index(level) for level in LEVEL_Q)


class CalibratedPdf(nn.Module):
    """From the heads' cumulative distribution to p(z) in one of the two forms.

    Args:
        calibration: fitted.
        form: "quantiles": redshifts below which PDF_LEVELS of the probability lie; "grid": the
            density at `redshift_grid`, averaged over the cell around each point.

    Attributes:
        axis_P: PDF_LEVELS, or the redshifts.
        z_max: upper end of the redshifts.
    """

    level_GP: Tensor
    knot_G: Tensor
    calibrated_L: Tensor
    bin_E: Tensor
    share_E: Tensor
    width_P: Tensor

    def __init__(self, calibration: Calibration, form: PdfForm) -> None:
        super().__init__()
        self.form = form
        self.log1p_max = calibration.log1p_max
        self.z_max = round(math.expm1(calibration.log1p_max), 12)  # 4, not 3.9999999999999996
        self.axis_P = np.array(PDF_LEVELS)
        level_GQ = calibration.level_GQ.cpu().double().numpy()
        level_GP = levels_between(level_GQ, LEVEL_Q, PDF_LEVELS)
        if form == "grid":
            level_GP = np.pad(level_GP, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
            self.axis_P = redshift_grid(self.z_max)
            border_E = grid_cells(self.axis_P)
            place_E = np.log1p(border_E) / calibration.log1p_max * calibration.n_bins
            bin_E = np.clip(np.floor(place_E).astype(np.int64), 0, calibration.n_bins - 1)
            self._register("calibrated_L", np.array([0, *PDF_LEVELS, 1]))
            self.register_buffer("bin_E", torch.from_numpy(bin_E))
            self._register("share_E", np.clip(place_E - bin_E, 0, 1))
            self._register("width_P", np.diff(border_E))
        self._register("level_GP", level_GP)
        self._register("knot_G", calibration.knot_G.cpu().double().numpy())

    def _register(self, name: str, values: NDArray[np.float64]) -> None:
        self.register_buffer(name, torch.from_numpy(values.astype(np.float32)))

    def forward(self, cdf_BE: Tensor, brightness_B: Tensor) -> Tensor:
        """Return pdf_BP: the quantiles, ascending; or densities per unit of redshift.

        Args:
            cdf_BE: from `Uncertainty.cdf`.
            brightness_B: from `PITA.brightness`.
        """
        level_BP = interpolate(brightness_B, self.knot_G, self.level_GP)
        if self.form == "quantiles":
            quantile_BP = torch.expm1(inverse_cdf(cdf_BE, level_BP) * self.log1p_max)
            return quantile_BP.cummax(dim=1).values  # as Uncertainty.quantiles
        low_BE, high_BE = cdf_BE[:, self.bin_E], cdf_BE[:, self.bin_E + 1]
        border_BE = low_BE + self.share_E * (high_BE - low_BE)
        return calibrated(border_BE, level_BP, self.calibrated_L).diff(dim=1) / self.width_P
