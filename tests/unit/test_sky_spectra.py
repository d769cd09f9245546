"""The COSMOS family of spectra: order, lines, dust, and the scatter of single galaxies."""

import numpy as np
import pytest

from builders.skies import only
from photozhpc.sky.population import SkyPhysics
from photozhpc.sky.sky_config import Ingredients, load_sky_config
from photozhpc.sky.spectra import (
    LINE_GROUPS,
    LINE_HZ,
    calzetti_k,
    cosmos_templates,
    line_group,
    templates,
)
from photozhpc.sky.variety import SCATTER, SCATTER_NM, SpectralVariety

BANDS = ("F062", "F087", "F129", "F158")
N = 20_000


@pytest.fixture(scope="module")
def grid():
    return SkyPhysics(BANDS, load_sky_config("sky/realistic")).grid  # made once for all tests


def plain(n, **changes):
    """Variety that changes nothing, but for what is named."""
    nothing = SpectralVariety(
        line_NG=np.zeros((n, len(LINE_GROUPS))),
        dust_slope_N=np.zeros(n),
        residual_NK=np.zeros((n, len(SCATTER))),
        mass_to_light_dex_N=np.zeros(n),
    )
    return SpectralVariety(**(vars(nothing) | changes))


def fluxes(grid, variety, n=1, sed_type=3.0, z=0.8, a_v=0.0):
    one = np.ones(n)
    of_all = grid.fluxes_njy(sed_type * one, z * one, a_v * one, 10.0 * one, 43.0 * one, variety)
    return of_all[:, : len(BANDS)]  # the last is the reference band


def near_uv_colour(wave_L, fnu_TL):
    near_uv, red = (wave_L > 220) & (wave_L < 260), (wave_L > 560) & (wave_L < 680)
    return -2.5 * np.log10(fnu_TL[:, near_uv].mean(axis=1) / fnu_TL[:, red].mean(axis=1))


def test_a_type_has_the_near_uv_colour_of_the_cww_family():
    wave_L, fnu_TL, type_T = cosmos_templates()
    assert len(type_T) == 31
    assert np.all(np.diff(type_T) > 0)
    cww = near_uv_colour(*templates())
    within = type_T <= 4.0
    expected = np.interp(type_T[within], np.arange(5), cww)
    assert near_uv_colour(wave_L, fnu_TL)[within] == pytest.approx(expected, abs=1e-6)
    assert type_T[-1] > 5.0


def test_lines_carry_the_light_of_their_star_formation():
    """Kennicutt (1998): SFR = 1.4e-28 L_UV = 7.9e-42 L(H-alpha) = 1.4e-41 L([O II])."""
    wave_L = np.geomspace(300.0, 800.0, 40_000)
    frequency_L = 2.99792458e17 / wave_L
    uv = 3.0e28  # erg / s / Hz
    for hertz, group, lines, rate in zip(
        LINE_HZ, LINE_GROUPS, (1.0, 1.0 / 2.86, 1.0), (1.4e-41, 7.9e-42, 7.9e-42), strict=True
    ):
        total = -np.trapezoid(line_group(wave_L, group), frequency_L)
        assert total == pytest.approx(1.0, rel=1e-3)
        first = uv * hertz * group[0][1] / sum(ratio for _, ratio in group)
        assert first / lines * rate == pytest.approx(uv * 1.4e-28, rel=1e-6)


def test_a_line_brightens_the_band_that_it_falls_in(grid):
    """H-alpha at z = 1.39 lies in F158; [O III] and H-beta at z = 1.55 in F129."""
    for group, z, band in ((2, 1.39, 3), (1, 1.55, 2)):
        line_NG = np.zeros((1, len(LINE_GROUPS)))
        line_NG[0, group] = 1.0
        ratio_C = (fluxes(grid, plain(1, line_NG=line_NG), z=z) / fluxes(grid, plain(1), z=z))[0]
        assert np.argmax(ratio_C) == band
        assert 1.03 < ratio_C[band] < 1.4
        assert np.delete(ratio_C, band) == pytest.approx(1.0, abs=0.01)
    old = fluxes(grid, plain(1, line_NG=np.ones((1, 3))), sed_type=0.3)
    assert old == pytest.approx(fluxes(grid, plain(1), sed_type=0.3))


def test_the_slope_of_the_dust_tilts_the_attenuation_curve(grid):
    """A / A_V = k / 4.05 (wavelength / 550 nm)^slope, Noll et al. (2009)."""
    steep = fluxes(grid, plain(1, dust_slope_N=np.array([-0.5])), a_v=1.2)
    rest_nm = grid.pivot_nm_C[:-1] / 1.8
    more_C = 1.2 * calzetti_k(rest_nm) / 4.05 * ((rest_nm / 550.0) ** -0.5 - 1.0)
    found_C = -2.5 * np.log10(steep / fluxes(grid, plain(1), a_v=1.2))[0]
    assert found_C == pytest.approx(more_C)
    assert np.all(np.diff(found_C) < 0)


def test_scatter_at_fixed_redshift_is_that_of_the_template_error_function(grid):
    """Brammer et al. (2008), TEMPLATE_ERROR.eazy_v1.0: 8.4% at 166 nm, 3.8% at 430, 8% at 1 um."""
    assert np.interp([165.7, 431.9, 1060.5], SCATTER_NM, SCATTER) == pytest.approx(
        [0.0840, 0.0364, 0.0794], abs=0.002
    )
    variety = SpectralVariety.draw(np.random.default_rng(0), N, only(spectral_scatter=1.0))
    between_nm = np.sqrt(SCATTER_NM[1:] * SCATTER_NM[:-1])
    for rest_nm in (*SCATTER_NM[:-1], *between_nm):
        magnitudes_N = variety.magnitudes(np.array([2 * rest_nm]), np.ones(N), np.zeros(N))[:, 0]
        expected = 1.086 * np.interp(np.log(rest_nm), np.log(SCATTER_NM), SCATTER)
        assert magnitudes_N.std() == pytest.approx(expected, rel=0.04)
    config = only(line_strength=1.0, line_scatter_dex=0.25)
    line_NG = SpectralVariety.draw(np.random.default_rng(0), N, config).line_NG
    assert np.std(np.log10(line_NG), axis=0) == pytest.approx(0.25, rel=0.03)
    nothing = SpectralVariety.draw(np.random.default_rng(0), 5, only())
    assert fluxes(grid, nothing, 5) == pytest.approx(fluxes(grid, None, 5))


def test_masses_scatter_about_the_colour_relation_as_taylor_et_al_find(grid):
    config = only(mass_to_light_scatter_dex=0.1)
    variety = SpectralVariety.draw(np.random.default_rng(0), N, config)
    scattered = plain(N, mass_to_light_dex_N=variety.mass_to_light_dex_N)
    assert np.log10(fluxes(grid, scattered, N)[:, 3]).std() == pytest.approx(0.1, rel=0.03)


def test_colours_are_those_of_real_galaxies():
    """CANDELS-COSMOS galaxies with redshifts, F160W < 24: quartiles of F606W - F814W, F814W -
    F125W, F125W - F160W, whose wavelengths are near those of F062, F087, F129 and F158.
    """
    real_C3 = [[0.41, 0.66, 0.95], [0.36, 0.63, 0.96], [0.14, 0.24, 0.36]]
    config = load_sky_config("sky/realistic")
    sources = SkyPhysics(BANDS, config).draw(np.random.default_rng(1), 100.0)
    flux_NC = sources.flux_njy_NC[~sources.is_star_N & (sources.reference_njy_N > 910.0)]
    colours = np.percentile(-2.5 * np.log10(flux_NC[:, :-1] / flux_NC[:, 1:]), [25, 50, 75], axis=0)
    assert pytest.approx(np.array(real_C3), abs=0.25) == colours.T


def test_the_new_family_leaves_counts_and_redshifts_as_they_are():
    drawn = {}
    for name in ("sky/simple", "sky/realistic"):
        physics = SkyPhysics(BANDS, load_sky_config(name))
        sources = physics.draw(np.random.default_rng(2), 100.0)
        listed = ~sources.is_star_N & (sources.reference_njy_N > 229.0)  # 25.5 mag
        drawn[name] = sources.z_N[listed]
    simple, realistic = drawn.values()
    assert len(realistic) == pytest.approx(len(simple), rel=0.06)
    assert np.median(realistic) == pytest.approx(np.median(simple), abs=0.08)


def test_ingredients_name_the_field_and_its_value():
    with pytest.raises(ValueError, match="spectral_scatter"):
        Ingredients(spectral_scatter=-1.0)
