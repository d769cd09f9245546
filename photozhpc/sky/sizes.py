"""Half-light radii of galaxies by mass and redshift, after van der Wel et al. (2014)."""

import numpy as np

from photozhpc.sky.spectra import Floats

# van der Wel et al. (2014, ApJ 788, 28), table 2: the 16th, 50th and 84th percentiles of log
# half-light radius (kpc, major axis), by log mass and redshift (rows: z = 0.25, 0.75, ..., 2.75).
# Cells that the paper leaves empty have their neighbour's value, shifted as the paper's relation
# shifts with mass.
TABLE_Z = np.arange(0.25, 3.0, 0.5)
TABLE_LOG_MASS = np.array([9.25, 9.75, 10.25, 10.75, 11.25])
NAN = np.nan
STAR_FORMING_3ZM = np.array([
    [[0.24, 0.36, 0.42, 0.61, NAN], [0.18, 0.32, 0.39, 0.51, 0.77], [0.11, 0.23, 0.33, 0.47, 0.62],
     [0.07, 0.16, 0.28, 0.35, 0.53], [NAN, 0.10, 0.17, 0.26, 0.40], [NAN, NAN, 0.16, 0.19, 0.33]],
    [[0.49, 0.61, 0.66, 0.83, NAN], [0.43, 0.56, 0.64, 0.75, 0.90], [0.37, 0.48, 0.57, 0.67, 0.82],
     [0.33, 0.42, 0.52, 0.61, 0.70], [NAN, 0.35, 0.44, 0.53, 0.64], [NAN, NAN, 0.43, 0.47, 0.55]],
    [[0.70, 0.80, 0.85, 1.01, NAN], [0.65, 0.76, 0.83, 0.90, 1.12], [0.60, 0.69, 0.77, 0.83, 0.96],
     [0.57, 0.65, 0.72, 0.80, 0.87], [NAN, 0.57, 0.64, 0.70, 0.84], [NAN, NAN, 0.65, 0.71, 0.76]],
])  # fmt: skip
QUIESCENT_3ZM = np.array([
    [[0.03, 0.04, 0.13, 0.42, 0.65], [-0.02, -0.14, 0.02, 0.26, 0.62],
     [NAN, -0.15, -0.15, 0.07, 0.41], [NAN, -0.02, -0.27, -0.04, 0.28],
     [NAN, NAN, -0.37, -0.20, 0.16], [NAN, NAN, NAN, -0.22, 0.07]],
    [[0.27, 0.28, 0.38, 0.67, 0.76], [0.23, 0.21, 0.23, 0.45, 0.81],
     [NAN, 0.18, 0.09, 0.30, 0.58], [NAN, 0.22, 0.02, 0.19, 0.45],
     [NAN, NAN, -0.04, 0.08, 0.36], [NAN, NAN, NAN, 0.10, 0.39]],
    [[0.46, 0.46, 0.58, 0.92, 1.08], [0.43, 0.44, 0.42, 0.64, 0.97],
     [NAN, 0.42, 0.36, 0.54, 0.81], [NAN, 0.48, 0.35, 0.50, 0.74],
     [NAN, NAN, 0.36, 0.54, 0.55], [NAN, NAN, NAN, 0.50, 0.68]],
])  # fmt: skip
# Slopes of log radius with log mass for the empty cells, and beyond the table.
STAR_FORMING_SLOPE, QUIESCENT_SLOPE = 0.22, 0.0


def half_light_kpc(
    rng: np.random.Generator, log_mass_N: Floats, z_N: Floats, quiescent: bool, skewed: bool
) -> Floats:
    """Draw half-light radii along the major axis, kpc: van der Wel et al. (2014).

    skewed: from the percentiles of their table 2; else from the log-normal relations of sect. 3.
    """
    if skewed:
        return 10.0 ** table_log_radius(rng.standard_normal(len(z_N)), log_mass_N, z_N, quiescent)
    x_N = log_mass_N - np.log10(5e10)
    if quiescent:
        pivot = np.log10(2e10 / 5e10)
        slope_N = np.where(x_N > pivot, 0.75 * x_N, 0.75 * pivot + 0.15 * (x_N - pivot))
        log_N = np.log10(5.6) - 1.48 * np.log10(1.0 + z_N) + slope_N
        return 10.0 ** (log_N + rng.normal(0.0, 0.13, len(z_N)))
    log_N = np.log10(8.9) - 0.75 * np.log10(1.0 + z_N) + 0.22 * x_N
    return 10.0 ** (log_N + rng.normal(0.0, 0.18, len(z_N)))


def table_log_radius(deviate_N: Floats, log_mass_N: Floats, z_N: Floats, quiescent: bool) -> Floats:
    """Return log radii (kpc) from table 2: the median, and a scatter for each side of it.

    deviate_N: standard normal; -1, 0 and 1 give the table's percentiles.
    """
    slope = QUIESCENT_SLOPE if quiescent else STAR_FORMING_SLOPE
    table_3ZM = _filled(QUIESCENT_3ZM if quiescent else STAR_FORMING_3ZM, slope)
    z_at_N = np.clip((z_N - TABLE_Z[0]) / 0.5, 0.0, len(TABLE_Z) - 1.001)
    mass_N = np.clip(log_mass_N, TABLE_LOG_MASS[0], TABLE_LOG_MASS[-1])
    m_at_N = np.clip((mass_N - TABLE_LOG_MASS[0]) / 0.5, 0.0, len(TABLE_LOG_MASS) - 1.001)
    iz_N, im_N = z_at_N.astype(int), m_at_N.astype(int)
    fz_N, fm_N = z_at_N - iz_N, m_at_N - im_N
    low_N, middle_N, high_N = (
        (1 - fz_N) * ((1 - fm_N) * table_ZM[iz_N, im_N] + fm_N * table_ZM[iz_N, im_N + 1])
        + fz_N * ((1 - fm_N) * table_ZM[iz_N + 1, im_N] + fm_N * table_ZM[iz_N + 1, im_N + 1])
        for table_ZM in table_3ZM
    )
    scatter_N = np.where(deviate_N < 0, middle_N - low_N, high_N - middle_N)
    return middle_N + scatter_N * deviate_N + slope * (log_mass_N - mass_N)


def _filled(table_3ZM: Floats, slope: float) -> Floats:
    """Return the table with its empty cells filled from their nearest neighbour in mass."""
    table_3ZM = table_3ZM.copy()
    for row_ZM in table_3ZM:
        for row_M in row_ZM:
            known = np.flatnonzero(np.isfinite(row_M))
            for m in np.flatnonzero(np.isnan(row_M)):
                near = known[np.argmin(np.abs(known - m))]
                row_M[m] = row_M[near] + slope * (TABLE_LOG_MASS[m] - TABLE_LOG_MASS[near])
    return table_3ZM
