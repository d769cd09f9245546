"""SkyConfig: the parameters of a simulated sky."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from photozhpc.config import read_config


@dataclass(frozen=True)
class Ingredients:
    """What real skies have and a simple one lacks; each is off by default.

    All but the spectra have random numbers of their own: switching one off leaves the same
    galaxies in the same places.

    Attributes:
        spectra: the spectra of galaxies: `cww` (five) or `cosmos` (31, and separate lines).
        spectral_scatter: scatter of spectra about their family, in units of EAZY's template error.
        mass_to_light_scatter_dex: scatter of masses at a given spectrum and luminosity.
        line_strength: emission lines of `cosmos`, in units of the published strength.
        line_scatter_dex: scatter of each group of lines.
        dust_slope_scatter: standard deviation of the slope of the attenuation curve.
        skewed_sizes: sizes from the percentiles of van der Wel et al. (2014), table 2.
        clumps: share of light in clumps, in units of the published one.
        spiral_arms: share of light in spiral arms, in units of the published one.
        psf_blur_arcsec: largest blur that is added to the PSF; it varies over a tile.
        drizzled_noise: noise is correlated as drizzling with full-size drops leaves it.
        depth_scatter_mag: standard deviation of the depth from tile to tile, and half of it
            from band to band.
        exposures: exposures in a co-add, each with detector gaps; 0: a smooth exposure map.
        cosmic_rays_arcmin2: cosmic rays that were not rejected, per band.
        hot_pixels_arcmin2: hot pixels that were not masked, per band.
        label_slope_per_mag: how fast the odds of a redshift fall with magnitude.
        wrong_redshifts: share of wrong redshifts at magnitude 22; it doubles with each magnitude.
    """

    spectra: Literal["cww", "cosmos"] = "cosmos"
    spectral_scatter: float = 0.25
    mass_to_light_scatter_dex: float = 0.1
    line_strength: float = 1.0
    line_scatter_dex: float = 0.25
    dust_slope_scatter: float = 0.2
    skewed_sizes: bool = True
    clumps: float = 1.0
    spiral_arms: float = 1.0
    psf_blur_arcsec: float = 0.02
    drizzled_noise: bool = True
    depth_scatter_mag: float = 0.1
    exposures: int = 8
    cosmic_rays_arcmin2: float = 6.0
    hot_pixels_arcmin2: float = 3.0
    label_slope_per_mag: float = 1.6
    wrong_redshifts: float = 0.01

    def __post_init__(self) -> None:
        _within("spectral_scatter", self.spectral_scatter, 0.0, 5.0)
        _within("mass_to_light_scatter_dex", self.mass_to_light_scatter_dex, 0.0, 0.5)
        _within("line_strength", self.line_strength, 0.0, 5.0)
        _within("line_scatter_dex", self.line_scatter_dex, 0.0, 1.0)
        _within("dust_slope_scatter", self.dust_slope_scatter, 0.0, 1.0)
        _within("clumps", self.clumps, 0.0, 2.0)
        _within("spiral_arms", self.spiral_arms, 0.0, 2.0)
        _within("psf_blur_arcsec", self.psf_blur_arcsec, 0.0, 0.2)
        _within("depth_scatter_mag", self.depth_scatter_mag, 0.0, 1.0)
        _within("exposures", self.exposures, 0, 1000)
        _within("cosmic_rays_arcmin2", self.cosmic_rays_arcmin2, 0.0, 1e4)
        _within("hot_pixels_arcmin2", self.hot_pixels_arcmin2, 0.0, 1e4)
        _within("label_slope_per_mag", self.label_slope_per_mag, 0.0, 10.0)
        _within("wrong_redshifts", self.wrong_redshifts, 0.0, 0.5)


@dataclass(frozen=True)
class SkyConfig:
    """A simulated sky: geometry, limits, depth, stars, dust, labels and defects.

    Attributes:
        tile_size_pix: side of a tile, pixels.
        reference_band: Roman filter of the two limits below.
        catalogue_limit_ab: sources brighter than this (true, before extinction) are catalogued.
        render_limit_ab: sources brighter than this are drawn; those below the catalogue limit only
            blend.
        z_max: galaxies lie at 0.02 < z < z_max.
        density_scale: 1 is the sky as the mass functions predict it.
        depth_ab: 5 sigma point-source depth by Roman filter (optimal extraction), AB.
        exposure_time_s: exposure of the co-add; determines the photon noise of the sources.
        pair_fraction: share of the sources placed within `pair_radius_arcsec` of another one.
        pair_radius_arcsec: largest separation of such a pair.
        star_density_arcmin2: stars per square arcminute down to `catalogue_limit_ab`.
        ebv_median, ebv_sigma_dex: log-normal E(B-V) of the tiles.
        label_fraction: share of catalogued sources with a spectroscopic redshift.
        coverage_scatter: relative amplitude of the smooth exposure map.
        bad_pixel_fraction: isolated pixels set to NaN.
        border_pix: NaN border.
        ingredients: what makes the sky more real; see `Ingredients`.
    """

    tile_size_pix: int = 2048
    reference_band: str = "F158"
    catalogue_limit_ab: float = 25.5
    render_limit_ab: float = 26.2
    z_max: float = 3.0
    density_scale: float = 1.0
    depth_ab: dict[str, float] = field(
        default_factory=lambda: {
            "F062": 28.4, "F087": 28.0, "F106": 27.9, "F129": 27.8, "F158": 27.7,
            "F184": 27.2, "F213": 26.2, "F146": 28.3,
        }
    )  # fmt: skip
    exposure_time_s: float = 4000.0
    pair_fraction: float = 0.12
    pair_radius_arcsec: float = 2.5
    star_density_arcmin2: float = 3.0
    ebv_median: float = 0.03
    ebv_sigma_dex: float = 0.2
    label_fraction: float = 0.2
    coverage_scatter: float = 0.1
    bad_pixel_fraction: float = 3e-4
    border_pix: int = 4
    ingredients: Ingredients = field(default_factory=Ingredients)

    def __post_init__(self) -> None:
        _within("tile_size_pix", self.tile_size_pix, 128, 16384)
        _within("catalogue_limit_ab", self.catalogue_limit_ab, 20.0, 28.0)
        _within("render_limit_ab", self.render_limit_ab, self.catalogue_limit_ab, 29.0)
        _within("z_max", self.z_max, 0.5, 4.0)
        _within("density_scale", self.density_scale, 0.0, 100.0)
        _within("exposure_time_s", self.exposure_time_s, 1.0, 1e7)
        _within("pair_fraction", self.pair_fraction, 0.0, 0.9)
        _within("pair_radius_arcsec", self.pair_radius_arcsec, 0.1, 60.0)
        _within("star_density_arcmin2", self.star_density_arcmin2, 0.0, 1000.0)
        _within("ebv_median", self.ebv_median, 1e-4, 2.0)
        _within("ebv_sigma_dex", self.ebv_sigma_dex, 0.0, 1.0)
        _within("label_fraction", self.label_fraction, 0.0, 1.0)
        _within("coverage_scatter", self.coverage_scatter, 0.0, 0.5)
        _within("bad_pixel_fraction", self.bad_pixel_fraction, 0.0, 0.5)
        _within("border_pix", self.border_pix, 0, self.tile_size_pix // 4)
        for band, depth in self.depth_ab.items():
            _within(f"depth_ab[{band}]", depth, 15.0, 35.0)


def load_sky_config(name_or_path: str | Path = "sky/realistic") -> SkyConfig:
    """Read a sky of the package by its name, or your own by its path.

    Raises:
        ConfigError: it does not exist, or has an unknown key or a wrong type.
    """
    return read_config(SkyConfig, name_or_path, "sky")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low:g} and {high:g}, got {value:g}")
