"""Clumps and spiral arms of star-forming galaxies: knots of young stars in the plane of the disk.

Knots take their light from the disk, so that no total flux depends on them. Their share of it falls
with rest wavelength, since they are young.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from photozhpc.sky.sky_config import Ingredients
from photozhpc.sky.spectra import Floats

MAX_CLUMPS, ARM_KNOTS = 6, 24

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
UV_NM, CLUMP_SLOPE = 250.0, -0.84

# Share of galaxies above 10^10 Msun with spiral arms, Kuhn et al. (2024, abstract): 48% at z =
# 0.75; at z = 2 to 3, 35% best explain the 8% that are seen. None at 10^9.5 Msun (assumed).
SPIRAL_Z, SPIRAL_SHARE = np.array([0.75, 2.5]), np.array([0.48, 0.35])
THREE_ARMED = 1.0 / 3.0  # the others have two (Espejo Salcedo et al. 2025, abstract)
# The cotangent of the pitch angle is uniform (Lingard et al. 2021, abstract); limits assumed.
COT_PITCH = (1.0 / np.tan(np.radians(40.0)), 1.0 / np.tan(np.radians(15.0)))
ARM_RADII = (0.4, 2.2)  # in half-light radii of the disk
# Arms raise the azimuthal average by 0.3 to 0.7 mag at 3.6 microns, and are 53% of the disk's scale
# length wide (Chugunov et al. 2024, abstract): 30% of the disk's light at 550 nm and 19% at 3.6
# microns do so. A row of exponential knots is 2.5 of their scale lengths wide.
ARM_SHARE, ARM_SHARE_DEX, ARM_NM, ARM_SLOPE = 0.30, 0.15, 550.0, -0.25
ARM_SIZE = 0.53 / 2.5  # half-light radius of a knot in an arm, of the disk's
LARGEST_SHARE = 0.45  # of clumps, and of arms


@dataclass(frozen=True)
class Knots:
    """Equal exponential profiles in the disks of N galaxies: K at most, in C bands.

    Attributes:
        place_NK3: position (u, v) in the plane of the disk, along and across the line of nodes, in
            half-light radii of the disk; and the share of the knots' light. Unused knots have none.
        share_NC: the knots' share of the disk's light.
        size_N: half-light radius of a knot, of the disk's.
    """

    place_NK3: Floats
    share_NC: Floats
    size_N: Floats

    @classmethod
    def none(cls, n: int, n_bands: int) -> "Knots":
        return cls(np.zeros((n, 0, 3)), np.zeros((n, n_bands)), np.ones(n))

    @property
    def count_N(self) -> NDArray[np.int64]:
        return (self.place_NK3[..., 2] > 0.0).sum(axis=1)


@dataclass(frozen=True)
class Structure:
    """Clumps and arms of N galaxies; `arms_N` is how many arms there are."""

    clumps: Knots
    arms: Knots
    arms_N: NDArray[np.int64]

    @classmethod
    def none(cls, n: int, n_bands: int) -> "Structure":
        knots = Knots.none(n, n_bands)
        return cls(knots, knots, np.zeros(n, np.int64))


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
    rest_NC = band_nm_C / (1.0 + z_N[:, None])
    clumpy_N = forming_N & (rng.random(n) < clumpy_fraction(mass_N, z_N))
    clumps_N = np.where(clumpy_N, 1 + rng.poisson(MEAN_FURTHER_CLUMPS, n), 0)
    clumps = _knots(
        _clumps(rng, np.minimum(clumps_N, MAX_CLUMPS)),
        config.clumps * (rest_NC / UV_NM) ** CLUMP_SLOPE,
        np.clip(CLUMP_KPC / disk_kpc_N, 0.02, 0.5),
    )
    spiral_N = forming_N & (rng.random(n) < spiral_fraction(mass_N, z_N))
    arms_N = np.where(spiral_N, np.where(rng.random(n) < THREE_ARMED, 3, 2), 0)
    arm_NK3 = _arms(rng, arms_N)
    arm_NK3[..., 2] *= ARM_SHARE * 10.0 ** rng.normal(0.0, ARM_SHARE_DEX, n)[:, None]
    arms = _knots(
        arm_NK3,
        config.spiral_arms * (rest_NC / ARM_NM) ** ARM_SLOPE,
        np.full(n, ARM_SIZE),
    )
    return Structure(clumps, arms, arms_N if config.spiral_arms else 0 * arms_N)


def _knots(place_NK3: Floats, colour_NC: Floats, size_N: Floats) -> Knots:
    """Turn shares of the disk's light, with their dependence on wavelength, into `Knots`."""
    total_N1 = place_NK3[..., 2].sum(axis=1)[:, None]
    place_NK3[..., 2] *= (colour_NC.max(axis=1, keepdims=True) > 0.0) / np.maximum(total_N1, 1e-12)
    return Knots(place_NK3, np.minimum(total_N1 * colour_NC, LARGEST_SHARE), size_N)


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
