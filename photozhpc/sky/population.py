"""Draws the galaxies and stars on a piece of sky, before it is observed."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from astropy.cosmology import FlatLambdaCDM
from numpy.typing import NDArray

from photozhpc.sky.sed import SedGrid, sed_grid, star_colours
from photozhpc.sky.sizes import half_light_kpc
from photozhpc.sky.sky_config import SkyConfig
from photozhpc.sky.spectra import N_TYPES, Floats
from photozhpc.sky.structure import Structure, draw_structure
from photozhpc.sky.variety import SpectralVariety
from photozhpc.survey import flux_of_ab

Z_MIN = 0.02
BULGE_TRUNCATION = 7.0  # in half-light radii, as SDSS truncates de Vaucouleurs profiles

# Double Schechter mass functions of EGG (Schreiber et al. 2017, A&A 602, A96; fitted to
# CANDELS GOODS-South by Schreiber et al. 2015), Salpeter IMF, by mid-redshift of the bin:
# log M*_1, alpha_1, phi_1 [Mpc^-3], log M*_2, alpha_2, phi_2.
MF_Z = np.array([0.15, 0.5, 0.95, 1.55, 2.2, 3.0, 4.0])
MF_STAR_FORMING = np.array([
    [10.97, -1.45, 7.1e-4, 10.97, 0.3, 0.0],
    [11.00, -1.40, 8.98887e-4, 10.6418, 0.5, 8.30778e-5],
    [11.00, -1.40, 7.18160e-4, 10.7292, 0.5, 4.04045e-4],
    [11.00, -1.50, 4.65684e-4, 10.6717, 0.5, 4.17749e-4],
    [11.00, -1.57, 2.13874e-4, 10.8404, 0.0, 4.06023e-4],
    [11.00, -1.60, 2.12404e-4, 10.9443, 0.5, 9.06860e-5],
    [11.00, -1.80, 3.69e-5, 11.0, 0.5, 0.0],
])  # fmt: skip
MF_QUIESCENT = np.array([
    [10.97, -0.45, 3.25e-3, 10.97, -1.45, 8e-5],
    [11.0426, -0.481039, 1.54472e-3, 11.0, -1.65, 7.77453e-5],
    [10.8601, 0.0594024, 1.04263e-3, 11.0, -1.60, 3.54586e-5],
    [10.8342, 0.296244, 6.24682e-4, 11.0, -1.25, 2.29979e-5],
    [11.0471, -0.166611, 1.73119e-4, 11.0, -1.00, 1e-5],
    [10.9439, -0.263124, 1.22278e-4, 11.0, -1.00, 0.0],
    [11.0, -0.3, 3e-5, 11.0, -1.35, 0.0],
])  # fmt: skip
SALPETER_TO_CHABRIER_DEX = -0.24

# log specific star formation rate (1/yr) of the types 0, 1, ... (Speagle et al. 2014, see below)
SSFR_OF_TYPE = (-11.0, -10.2, -9.4, -8.6, -7.8, -7.0)
VARIETY_DEX = 0.3  # how much fainter in mass galaxies with unusual spectra can be seen


@dataclass(frozen=True)
class Population:
    """Galaxies and stars of a piece of sky (N sources, C bands); fluxes before extinction.

    Radii are half-light radii along the major axis; a star has radii of zero and all of its
    flux in `bulge_njy_NC`. Position angles run from +x to +y. Stars have z = 0 and a NaN mass.
    Part of the disk's flux is in the knots of its structure.
    """

    z_N: Floats
    is_star_N: NDArray[np.bool_]
    quiescent_N: NDArray[np.bool_]
    sed_type_N: Floats
    a_v_N: Floats
    log_mass_N: Floats
    bulge_njy_NC: Floats
    disk_njy_NC: Floats
    reference_njy_N: Floats
    bulge_radius_arcsec_N: Floats
    disk_radius_arcsec_N: Floats
    half_light_arcsec_N: Floats
    bulge_axis_ratio_N: Floats
    disk_axis_ratio_N: Floats
    angle_rad_N: Floats
    structure: Structure

    def __len__(self) -> int:
        return len(self.z_N)

    @property
    def flux_njy_NC(self) -> Floats:
        return self.bulge_njy_NC + self.disk_njy_NC

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> "Population":
        """Return the sources `index`, in that order."""
        return _each(lambda values_N: values_N[index], self)


def _each(function: Callable[..., Any], *parts: Any) -> Any:
    """Apply a function to the arrays of populations, and of the dataclasses within them."""
    kind = type(parts[0])
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        values = [_each(function, *(getattr(part, name) for part in parts)) for name in names]
        return kind(*values)
    return function(*parts)


@lru_cache(maxsize=1)
def cosmology(z_max: float) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Return tables over z: z, modulus (mag), kpc per arcsec, dV/dz (Mpc3 / arcmin2), age (Gyr).

    Flat Lambda-CDM with H0 = 70 and Omega_m = 0.3, as in the papers cited here.
    """
    model = FlatLambdaCDM(H0=70.0, Om0=0.3)
    z_Z = np.arange(Z_MIN, z_max + 0.02, 0.01)
    steradian_per_arcmin2 = (np.pi / 180.0 / 60.0) ** 2
    return (
        z_Z,
        model.distmod(z_Z).value,
        model.kpc_proper_per_arcmin(z_Z).value / 60.0,
        model.differential_comoving_volume(z_Z).value * steradian_per_arcmin2,
        model.age(z_Z).value,
    )


def mass_function(log_mass: Floats, z: Floats, quiescent: bool) -> Floats:
    """Return the number density, Mpc^-3 dex^-1, at a log10 mass in solar masses (Chabrier IMF)."""
    table = MF_QUIESCENT if quiescent else MF_STAR_FORMING
    m1, a1, p1, m2, a2, p2 = (np.interp(z, MF_Z, column) for column in table.T)
    salpeter = log_mass - SALPETER_TO_CHABRIER_DEX
    x1 = 10.0 ** (salpeter - m1)
    x2 = 10.0 ** (salpeter - m2)
    return np.log(10.0) * (p1 * x1 ** (a1 + 1) * np.exp(-x1) + p2 * x2 ** (a2 + 1) * np.exp(-x2))


def _cells(
    config: SkyConfig, grid: SedGrid, quiescent: bool
) -> tuple[float, Floats, Floats, Floats, Floats]:
    """Return the expected number per square arcminute, and its CDF over cells of (z, log mass).

    Only masses that can reach the render limit at a redshift (with the brightest spectrum of
    their class) are tabulated: galaxies below it are never drawn.
    """
    z_Z, modulus_Z, _, volume_Z, _ = cosmology(config.z_max)
    z_Z, modulus_Z, volume_Z = z_Z[:-2], modulus_Z[:-2], volume_Z[:-2]
    flux_limit = flux_of_ab(config.render_limit_ab)
    types = (0.0, 1.0) if quiescent else (2.0, 3.0, 4.0)
    various = config.ingredients.spectra == "cosmos"
    zero_Z = np.zeros_like(z_Z)
    brightest_Z = np.max(
        [grid.fluxes_njy(zero_Z + t, z_Z, zero_Z, zero_Z, modulus_Z)[:, -1] for t in types], axis=0
    )
    lowest_Z = np.maximum(np.log10(flux_limit / brightest_Z) - VARIETY_DEX * various, 6.0)
    steps_M = (np.arange(150) + 0.5) / 150
    width_Z = (12.3 - lowest_Z) / 150
    log_mass_ZM = lowest_Z[:, None] + (12.3 - lowest_Z[:, None]) * steps_M
    z_ZM = np.broadcast_to(z_Z[:, None] + 0.005, log_mass_ZM.shape)
    density_ZM = mass_function(log_mass_ZM.ravel(), z_ZM.ravel(), quiescent).reshape(z_ZM.shape)
    count_ZM = density_ZM * volume_Z[:, None] * width_Z[:, None] * 0.01
    cdf = np.cumsum(count_ZM.ravel())
    return float(cdf[-1]), cdf / cdf[-1], z_Z, lowest_Z, width_Z


class SkyPhysics:
    """Draws populations, with tables of the spectra through the survey's bands."""

    def __init__(self, bands: tuple[str, ...], config: SkyConfig):
        self.bands = bands
        self.config = config
        family = config.ingredients.spectra
        self.grid = sed_grid((*bands, config.reference_band), config.z_max, family)
        self._cells = {q: _cells(config, self.grid, q) for q in (False, True)}

    def draw(self, rng: np.random.Generator, area_arcmin2: float) -> Population:
        """Draw the galaxies and stars brighter than the render limit on an area of sky."""
        parts = [self._galaxies(rng, area_arcmin2, quiescent) for quiescent in (False, True)]
        parts.append(self._stars(rng, area_arcmin2))
        return _each(lambda *arrays: np.concatenate(arrays), *parts)

    def with_structure(self, rng: np.random.Generator, sources: Population) -> Population:
        """Return the sources with clumps and spiral arms drawn in those that are catalogued."""
        ingredients = self.config.ingredients
        if not (ingredients.clumps or ingredients.spiral_arms):
            return sources
        table_z, _, kpc_Z, _, _ = cosmology(self.config.z_max)
        disk_kpc_N = sources.disk_radius_arcsec_N * np.interp(sources.z_N, table_z, kpc_Z)
        listed_N = sources.reference_njy_N > flux_of_ab(self.config.catalogue_limit_ab)
        structure = draw_structure(
            rng,
            sources.log_mass_N,
            sources.z_N,
            np.maximum(disk_kpc_N, 0.1),
            ~(sources.quiescent_N | sources.is_star_N) & listed_N,
            self.grid.pivot_nm_C[:-1],
            ingredients,
        )
        return replace(sources, structure=structure)

    def _galaxies(self, rng: np.random.Generator, area: float, quiescent: bool) -> Population:
        config = self.config
        total, cdf, z_Z, lowest_Z, width_Z = self._cells[quiescent]
        n = rng.poisson(total * area * config.density_scale)
        cell_N = np.minimum(np.searchsorted(cdf, rng.random(n)), len(cdf) - 1)
        iz_N, im_N = np.divmod(cell_N, len(cdf) // len(z_Z))
        z_N = z_Z[iz_N] + 0.01 * rng.random(n)
        log_mass_N = lowest_Z[iz_N] + (im_N + rng.random(n)) * width_Z[iz_N]
        table_z, modulus_Z, kpc_Z, _, age_Z = cosmology(config.z_max)
        modulus_N = np.interp(z_N, table_z, modulus_Z)
        age_N = np.interp(z_N, table_z, age_Z)

        family = config.ingredients.spectra
        disk_type_N, bulge_type_N, a_v_N = _spectra(
            rng, log_mass_N, z_N, age_N, quiescent, family == "cosmos"
        )
        bulge_q_N, disk_q_N, angle_N = _shapes(rng, n)
        if not quiescent:  # an edge-on disk is seen through more dust (Tuffs et al. 2004)
            a_v_N = a_v_N * (0.8 + 0.7 * np.log10(1.0 / disk_q_N))
        share_N = _bulge_share(rng, log_mass_N, quiescent)
        variety = None
        if family == "cosmos":
            variety = SpectralVariety.draw(rng, n, config.ingredients)
        bulge_NC, disk_NC = (
            self.grid.fluxes_njy(type_N, z_N, dust * a_v_N, log_mass_N, modulus_N, variety)
            for type_N, dust in ((bulge_type_N, 0.5), (disk_type_N, 1.0))
        )
        bulge_NC *= share_N[:, None]
        disk_NC *= (1.0 - share_N)[:, None]

        radius_kpc_N = half_light_kpc(
            rng, log_mass_N, z_N, quiescent, config.ingredients.skewed_sizes
        )
        radius_N = np.clip(radius_kpc_N / np.interp(z_N, table_z, kpc_Z), 0.02, 6.0)
        to_disk, to_bulge = (1.15, 0.85) if quiescent else (1.05, 0.40)
        reference_N = bulge_NC[:, -1] + disk_NC[:, -1]
        drawn = Population(
            z_N=z_N,
            is_star_N=np.zeros(n, bool),
            quiescent_N=np.full(n, quiescent),
            sed_type_N=disk_type_N,
            a_v_N=a_v_N,
            log_mass_N=log_mass_N,
            bulge_njy_NC=bulge_NC[:, :-1],
            disk_njy_NC=disk_NC[:, :-1],
            reference_njy_N=reference_N,
            bulge_radius_arcsec_N=to_bulge * radius_N,
            disk_radius_arcsec_N=to_disk * radius_N,
            half_light_arcsec_N=radius_N,
            bulge_axis_ratio_N=bulge_q_N,
            disk_axis_ratio_N=disk_q_N,
            angle_rad_N=angle_N,
            structure=Structure.none(n, len(self.bands)),
        )
        return drawn.take(reference_N > flux_of_ab(config.render_limit_ab))

    def _stars(self, rng: np.random.Generator, area: float) -> Population:
        """Draw black-body stars: dN/dm ~ 10^(0.12 m) from 18 mag to the catalogue limit.

        Temperatures follow the mix of a high-latitude field: mostly M dwarfs.
        """
        n = rng.poisson(self.config.star_density_arcmin2 * area)
        low, high = 10.0 ** (0.12 * np.array([18.0, self.config.catalogue_limit_ab]))
        mag_N = np.log10(low + (high - low) * rng.random(n)) / 0.12
        kind_N = rng.choice(3, size=n, p=[0.65, 0.30, 0.05])
        cool_N = np.array([2700.0, 4000.0, 6500.0])[kind_N]
        warm_N = np.array([4000.0, 6500.0, 12000.0])[kind_N]
        temperature_N = cool_N + (warm_N - cool_N) * rng.random(n)
        fnu_NC = star_colours((*self.bands, self.config.reference_band), temperature_N)
        flux_N = flux_of_ab(mag_N)
        flux_NC = fnu_NC * (flux_N / fnu_NC[:, -1])[:, None]
        zero_N = np.zeros(n)
        return Population(
            z_N=zero_N,
            is_star_N=np.ones(n, bool),
            quiescent_N=np.zeros(n, bool),
            sed_type_N=np.full(n, np.nan),
            a_v_N=zero_N,
            log_mass_N=np.full(n, np.nan),
            bulge_njy_NC=flux_NC[:, :-1],
            disk_njy_NC=np.zeros((n, len(self.bands))),
            reference_njy_N=flux_N,
            bulge_radius_arcsec_N=zero_N,
            disk_radius_arcsec_N=zero_N,
            half_light_arcsec_N=zero_N,
            bulge_axis_ratio_N=np.ones(n),
            disk_axis_ratio_N=np.ones(n),
            angle_rad_N=zero_N,
            structure=Structure.none(n, len(self.bands)),
        )


def _spectra(
    rng: np.random.Generator,
    log_mass_N: Floats,
    z_N: Floats,
    age_N: Floats,
    quiescent: bool,
    cosmos: bool,
) -> tuple[Floats, Floats, Floats]:
    """Draw the types of disk and bulge, and A_V of the disk (magnitudes).

    Star-forming: the specific star formation rate of the main sequence (Speagle et al. 2014,
    eq. 28, 0.3 dex of scatter) sets the type: 10^10 Msun at z = 0 is an Sbc, a starburst has
    10^-7.8 per year; dust follows the mass (Garn & Best 2010, eq. 3, from H-alpha to the stars
    with a factor 0.44 and Calzetti's curve). Quiescent: an E that is younger at higher redshift.
    cosmos: the family has spectra beyond type 4, and its oldest ellipticals begin at 0.14.
    """
    n = len(z_N)
    if quiescent:
        type_N = np.clip(0.12 * z_N + rng.normal(0.3 if cosmos else 0.05, 0.12, n), 0.0, 1.0)
        bulge_N = np.clip(type_N + rng.normal(-0.05, 0.05, n), 0.0, 1.0)
        return type_N, bulge_N, np.abs(rng.normal(0.0, 0.12, n))
    log_sfr_N = (0.84 - 0.026 * age_N) * log_mass_N - (6.51 - 0.11 * age_N)
    log_ssfr_N = log_sfr_N - log_mass_N + rng.normal(0.0, 0.3, n)
    types = N_TYPES + cosmos
    type_N = np.interp(log_ssfr_N, SSFR_OF_TYPE[:types], np.arange(types))
    type_N = np.clip(type_N + rng.normal(0.0, 0.25, n), 0.3, types - 1.0)
    x_N = np.clip(log_mass_N - 10.0, -2.0, 1.5)
    a_halpha_N = np.maximum(0.91 + 0.77 * x_N + 0.11 * x_N**2 - 0.09 * x_N**3, 0.1)
    a_v_N = 0.535 * a_halpha_N * 10.0 ** rng.normal(0.0, 0.22, n)
    # The Sbc and Scd spectra are of real, dusty spirals: only additional dust is applied.
    a_v_N *= np.clip((type_N - 0.5) / 2.5, 0.2, 1.0)
    bulge_N = np.clip(0.45 * type_N + rng.normal(0.0, 0.3, n), 0.0, 3.0)
    return type_N, bulge_N, a_v_N


def _bulge_share(rng: np.random.Generator, log_mass_N: Floats, quiescent: bool) -> Floats:
    """Draw mass ratios of bulge to total, after Lang et al. (2014) and EGG (2017) sect. 3.3."""
    log_median, slope, scatter = (-0.3, 0.1, 0.1) if quiescent else (-0.7, 0.27, 0.2)
    median_N = 10.0 ** (log_median + slope * (log_mass_N - 10.0))
    share_N = median_N * 10.0 ** rng.normal(0.0, scatter, len(log_mass_N))
    return np.clip(share_N, 0.0, 1.0)


def _shapes(rng: np.random.Generator, n: int) -> tuple[Floats, Floats, Floats]:
    """Draw axis ratios of bulge and disk, and the position angle.

    Disks are randomly inclined oblate spheroids of thickness 0.22 +- 0.05 (Padilla & Strauss
    2008); bulges are rounder.
    """
    thickness_N = np.clip(rng.normal(0.22, 0.05, n), 0.1, 0.5)
    cosine_N = rng.random(n)
    disk_N = np.sqrt(thickness_N**2 + (1.0 - thickness_N**2) * cosine_N**2)
    bulge_N = np.clip(rng.normal(0.75, 0.13, n), 0.35, 1.0)
    # A bulge in a face-on disk is not flatter than the disk itself.
    bulge_N = np.maximum(bulge_N, np.minimum(disk_N, 0.9))
    return bulge_N, disk_N, rng.random(n) * np.pi
