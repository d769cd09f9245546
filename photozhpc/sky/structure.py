"""Clumps and spiral arms of star-forming galaxies: knots of young stars in the plane of the disk.

Knots take their light from the disk, so that no total flux depends on them. Their share of it falls
with rest wavelength, since they are young.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from photozhpc.sky.sky_config import Ingredients
from photozhpc.sky.spectra import Floats

MAX_CLUMPS, ARM_KNOTS = 6, 32

# Share of star-forming galaxies with an off-centre clump of more than 8% of the ultraviolet light,
# Guo et al. (2015, abstract), at z = 0.5 and 3, by log mass: below 9.8, 9.8 to 10.6, above. Masses
# are the centres of those bins.
CLUMPY_LOG_MASS = np.array([9.4, 10.2, 11.0])
CLUMPY_AT_HALF, CLUMPY_AT_THREE = np.array([0.60, 0.40, 0.15]), np.array([0.60, 0.55, 0.55])
CLUMP_SHARE = (0.08, 0.25)  # of the ultraviolet light; dN/dL ~ L^-2 between them
MEAN_FURTHER_CLUMPS = 0.45  # 1.45 clumps of 13% are the 19% of Soto et al. (2017, abstract)
CLUMP_KPC = 0.35  # half-light radius; "kpc-scale" (Soto et al. 2017)
# Clumps have 19% of the far-ultraviolet light and 4% of the mass (Soto et al. 2017, abstract). With
# the light at 1600 nm for the mass, the share falls as wavelength^-0.84 from 250 nm.
SHARE_NM, SHARE_SLOPE, LARGEST_SHARE = 250.0, -0.84, 0.9

# Share of galaxies above 10^10 Msun with spiral arms, Kuhn et al. (2024, abstract): 48% at z =
# 0.75; at z = 2 to 3, 35% best explain the 8% that are seen. None at 10^9.5 Msun (assumed).
SPIRAL_Z, SPIRAL_SHARE = np.array([0.75, 2.5]), np.array([0.48, 0.35])
THREE_ARMED = 1.0 / 3.0  # the others have two (Espejo Salcedo et al. 2025, abstract)
# The cotangent of the pitch angle is uniform (Lingard et al. 2021, abstract); limits assumed.
COT_PITCH = (1.0 / np.tan(np.radians(40.0)), 1.0 / np.tan(np.radians(15.0)))
ARM_RADII = (0.4, 2.2)  # in half-light radii of the disk
ARM_SHARE, ARM_SHARE_DEX, ARM_NM = 0.2, 0.15, 550.0  # of the disk's light; assumed
ARM_SIZE = 0.2  # half-light radius of a knot in an arm, of the disk's


@dataclass(frozen=True)
class Structure:
    """Knots of N galaxies: K knots at most, C bands.

    Attributes:
        knots_NK3: position (u, v) in the plane of the disk, along and across the line of nodes, in
            half-light radii of the disk; and the share of the knots' light. Unused knots have none.
        share_NC: the knots' share of the disk's light.
        size_N: half-light radius of a knot, of the disk's.
        clumps_N, arms_N: how many clumps and arms there are.
    """

    knots_NK3: Floats
    share_NC: Floats
    size_N: Floats
    clumps_N: NDArray[np.int64]
    arms_N: NDArray[np.int64]

    @classmethod
    def none(cls, n: int, n_bands: int) -> "Structure":
        zero_N = np.zeros(n, np.int64)
        return cls(np.zeros((n, 0, 3)), np.zeros((n, n_bands)), np.ones(n), zero_N, zero_N)


def clumpy_fraction(log_mass_N: Floats, z_N: Floats) -> Floats:
    """Return the share of star-forming galaxies with clumps: Guo et al. (2015).

    Linear in mass and redshift between the published numbers. Below z = 0.5 it follows the
    cosmic star formation rate (Madau & Dickinson 2014, eq. 15), as Shibuya et al. (2016) find.
    """
    at_half_N = np.interp(log_mass_N, CLUMPY_LOG_MASS, CLUMPY_AT_HALF)
    at_three_N = np.interp(log_mass_N, CLUMPY_LOG_MASS, CLUMPY_AT_THREE)
    share_N = at_half_N + np.clip((z_N - 0.5) / 2.5, 0.0, 1.0) * (at_three_N - at_half_N)
    return share_N * np.where(z_N < 0.5, _star_formation(z_N) / _star_formation(0.5), 1.0)


def spiral_fraction(log_mass_N: Floats, z_N: Floats) -> Floats:
    """Return the share of star-forming galaxies with spiral arms: Kuhn et al. (2024)."""
    return np.interp(z_N, SPIRAL_Z, SPIRAL_SHARE) * np.clip((log_mass_N - 9.5) / 0.5, 0.0, 1.0)


def _star_formation(z: Floats | float) -> Floats | float:
    """Return the star formation rate density (Msun / yr / Mpc3), Madau & Dickinson (2014)."""
    return 0.015 * (1.0 + z) ** 2.7 / (1.0 + ((1.0 + z) / 2.9) ** 5.6)


def young_share(wave_nm: Floats) -> Floats:
    """Return the knots' share of the light at a rest wavelength, in units of that at 250 nm."""
    return np.asarray((wave_nm / SHARE_NM) ** SHARE_SLOPE)


def draw_structure(
    rng: np.random.Generator,
    log_mass_N: Floats,
    z_N: Floats,
    disk_kpc_N: Floats,
    forming_N: NDArray[np.bool_],
    band_nm_C: Floats,
    config: Ingredients,
) -> Structure:
    """Draw the knots of N galaxies.

    Args:
        disk_kpc_N: half-light radius of the disk.
        forming_N: star-forming; the others, and stars, have none.
        band_nm_C: mean wavelengths of the bands.
    """
    n = len(z_N)
    mass_N = np.nan_to_num(log_mass_N)
    clumpy_N = forming_N & (rng.random(n) < clumpy_fraction(mass_N, z_N))
    clumps_N = np.where(clumpy_N, 1 + rng.poisson(MEAN_FURTHER_CLUMPS, n), 0)
    clumps_N = np.minimum(clumps_N, MAX_CLUMPS)
    spiral_N = forming_N & (rng.random(n) < spiral_fraction(mass_N, z_N))
    arms_N = np.where(spiral_N, np.where(rng.random(n) < THREE_ARMED, 3, 2), 0)

    clump_NK3 = _clumps(rng, clumps_N)
    clump_NK3[..., 2] *= config.clumps
    arm_NK3 = _arms(rng, arms_N)
    in_arms_N = ARM_SHARE / young_share(np.array(ARM_NM)) * config.spiral_arms
    arm_NK3[..., 2] *= (in_arms_N * 10.0 ** rng.normal(0.0, ARM_SHARE_DEX, n))[:, None]

    knots_NK3 = np.concatenate([clump_NK3, arm_NK3], axis=1)
    uv_share_N = knots_NK3[..., 2].sum(axis=1)
    knots_NK3[..., 2] /= np.maximum(uv_share_N, 1e-12)[:, None]
    rest_NC = band_nm_C / (1.0 + z_N[:, None])
    size_N = np.where(spiral_N, ARM_SIZE, np.clip(CLUMP_KPC / disk_kpc_N, 0.02, 0.5))
    return Structure(
        knots_NK3=knots_NK3,
        share_NC=np.minimum(uv_share_N[:, None] * young_share(rest_NC), LARGEST_SHARE),
        size_N=size_N,
        clumps_N=clumps_N if config.clumps else 0 * clumps_N,
        arms_N=arms_N if config.spiral_arms else 0 * arms_N,
    )


def _clumps(rng: np.random.Generator, clumps_N: NDArray[np.int64]) -> Floats:
    """Draw clumps (N, MAX_CLUMPS, 3): positions, and shares of the ultraviolet light."""
    shape = (len(clumps_N), MAX_CLUMPS)
    radius_NK, angle_NK = rng.uniform(0.5, 1.5, shape), rng.uniform(0.0, 2.0 * np.pi, shape)
    faintest, brightest = CLUMP_SHARE
    share_NK = 1.0 / (1.0 / faintest - rng.random(shape) * (1.0 / faintest - 1.0 / brightest))
    share_NK[np.arange(MAX_CLUMPS) >= clumps_N[:, None]] = 0.0
    return np.stack([radius_NK * np.cos(angle_NK), radius_NK * np.sin(angle_NK), share_NK], -1)


def _arms(rng: np.random.Generator, arms_N: NDArray[np.int64]) -> Floats:
    """Draw logarithmic spirals (N, ARM_KNOTS, 3): positions, and shares of the arms' light."""
    n = len(arms_N)
    sense_N, phase_N = rng.choice([-1.0, 1.0], n), rng.uniform(0.0, 2.0 * np.pi, n)
    cot_pitch_N = rng.uniform(*COT_PITCH, n)
    knot_K = np.arange(ARM_KNOTS)
    arm_NK = knot_K % np.maximum(arms_N, 1)[:, None]
    inner, outer = ARM_RADII
    radius_NK = inner + (outer - inner) * (knot_K + rng.random((n, ARM_KNOTS))) / ARM_KNOTS
    turn_NK = cot_pitch_N[:, None] * np.log(radius_NK / inner)
    angle_NK = phase_N[:, None] + sense_N[:, None] * turn_NK
    angle_NK += 2.0 * np.pi * arm_NK / np.maximum(arms_N, 1)[:, None]
    # As much light as the exponential disk has at that radius, within a factor of two.
    light_NK = radius_NK * np.exp(-1.678 * radius_NK) * 10.0 ** rng.normal(0.0, 0.2, angle_NK.shape)
    light_NK *= ((arms_N > 0) / light_NK.sum(axis=1))[:, None]
    return np.stack([radius_NK * np.cos(angle_NK), radius_NK * np.sin(angle_NK), light_NK], -1)
