"""The redshift grid of p(z), in plain NumPy: importing torch takes seconds."""

import math

import numpy as np
from numpy.typing import NDArray

GRID_STEP = 0.01
MAX_GRID_POINTS = 1001  # the step is larger where GRID_STEP would give more


def redshift_grid(z_max: float) -> NDArray[np.float64]:
    """Return the redshifts of the grid, evenly spaced from 0 to z_max."""
    return np.linspace(0, z_max, min(math.ceil(z_max / GRID_STEP - 1e-6) + 1, MAX_GRID_POINTS))


def grid_cells(z_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the P + 1 borders of the cells around the points of a grid; half cells at its ends.

    If each point has the mean density of its cell, the trapezoidal rule gives exactly 1.
    """
    return np.concatenate([z_P[:1], (z_P[1:] + z_P[:-1]) / 2, z_P[-1:]])
