"""The grid of redshifts that p(z) is given on: plain NumPy, for those who have no torch."""

import math

import numpy as np
from numpy.typing import NDArray

# Points of the grid: this far apart, or so many, whichever is fewer.
GRID_STEP = 0.01
MAX_GRID_POINTS = 1001


def redshift_grid(z_max: float) -> NDArray[np.float64]:
    """Return the redshifts of the grid, evenly from 0 to z_max."""
    return np.linspace(0, z_max, min(math.ceil(z_max / GRID_STEP - 1e-6) + 1, MAX_GRID_POINTS))


def grid_cells(z_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the P + 1 borders of the cells round the points of a grid; half cells at its ends.

    The mean density in the cells, taken at the points and joined by straight lines, has the
    integral of the cells: exactly 1 (trapezoidal rule).
    """
    return np.concatenate([z_P[:1], (z_P[1:] + z_P[:-1]) / 2, z_P[-1:]])
