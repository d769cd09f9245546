"""p(z) of sources: the density behind the catalogue's intervals, as quantiles or on a grid.

The calibration gives the level of the density at which to read each of the catalogue's six
quantiles (model/density.py). Between the six, the level is linear in probits, like the smooth map
that shaped it (`conformal.SmoothMap`). The result is one calibrated distribution, and the
intervals are part of it.
"""

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from photozhpc.model.density import LEVEL_Q, Calibration, interpolate, inverse_cdf
from photozhpc.model.redshift_grid import grid_cells, redshift_grid

PdfForm = Literal["quantiles", "grid"]
# The levels of the catalogue's intervals, and others that resolve the shape.
PDF_LEVELS = (
    *(0.005, 0.01, 0.02, 0.05, 0.1, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5),
    *(0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.84, 0.9, 0.95, 0.98, 0.99, 0.995),
)
INTERVAL_INDEX = tuple(PDF_LEVELS.index(level) for level in LEVEL_Q)
_EDGE = 1e-9  # levels are at least this far from 0 and 1, where probits are infinite


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
        level_GP = levels_between(calibration.level_GQ.cpu().double().numpy())
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
        return self.calibrated(cdf_BE, level_BP).diff(dim=1) / self.width_P

    def calibrated(self, cdf_BE: Tensor, level_BL: Tensor) -> Tensor:
        """Return the calibrated cumulative distribution at the borders of the grid's cells.

        Args:
            level_BL: levels of `cdf_BE` at which the calibrated distribution is `calibrated_L`.
        """
        low_BE, high_BE = cdf_BE[:, self.bin_E], cdf_BE[:, self.bin_E + 1]
        raw_BE = low_BE + self.share_E * (high_BE - low_BE)
        right_BE = torch.searchsorted(level_BL.contiguous(), raw_BE, right=True)
        right_BE = right_BE.clamp(1, level_BL.shape[1] - 1)
        low_BE, high_BE = level_BL.gather(1, right_BE - 1), level_BL.gather(1, right_BE)
        share_BE = ((raw_BE - low_BE) / (high_BE - low_BE).clamp(min=1e-12)).clamp(0, 1)
        left_BE = self.calibrated_L[right_BE - 1]
        cdf_BE = left_BE + share_BE * (self.calibrated_L[right_BE] - left_BE)
        # The whole distribution lies on the grid, also where a level is 0 or 1.
        first_B1, last_B1 = torch.zeros_like(cdf_BE[:, :1]), torch.ones_like(cdf_BE[:, :1])
        return torch.cat([first_B1, cdf_BE[:, 1:-1], last_B1], dim=1).cummax(dim=1).values


def levels_between(level_GQ: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return level_GP, the levels at which to read PDF_LEVELS; at LEVEL_Q they are `level_GQ`."""
    probit_P, nominal_Q = ndtri(PDF_LEVELS), ndtri(LEVEL_Q)
    probit_GQ = ndtri(np.clip(level_GQ, _EDGE, 1 - _EDGE))
    level_GP = ndtr(np.array([np.interp(probit_P, nominal_Q, probit_Q) for probit_Q in probit_GQ]))
    level_GP[:, list(INTERVAL_INDEX)] = level_GQ
    return level_GP
