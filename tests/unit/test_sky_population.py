"""The simulated galaxies: spectra against GalSim, counts, redshifts, sizes and labels."""

from dataclasses import replace
from pathlib import Path

import galsim
import numpy as np
import pytest

from builders.skies import SIMPLE
from photozhpc.errors import ConfigError
from photozhpc.sky.catalogue import confuse_redshifts, label_probability
from photozhpc.sky.population import SkyPhysics, mass_function
from photozhpc.sky.sed import roman_bandpasses, sed_grid, star_colours
from photozhpc.sky.sky_config import Ingredients, SkyConfig, load_sky_config
from photozhpc.sky.spectra import CWW_FILES, igm_transmission, templates
from photozhpc.survey import load_survey

BANDS = ("F062", "F087", "F129", "F158")
AREA_ARCMIN2 = 200.0


@pytest.fixture(scope="module")
def galaxies():
    sources = SkyPhysics(BANDS, SIMPLE).draw(np.random.default_rng(1), AREA_ARCMIN2)
    return sources.take(~sources.is_star_N)


def magnitudes(sources):
    return 31.4 - 2.5 * np.log10(sources.reference_njy_N)


@pytest.mark.parametrize("z", [0.0, 0.57, 1.3])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_colours_agree_with_galsim(kind, z):
    """Colours of a CWW spectrum, without dust, through GalSim's own photometry."""
    grid = sed_grid(BANDS, 3.0)
    one = np.ones(1)
    ours_C = grid.fluxes_njy(kind * one, z * one, 0 * one, 10 * one, 0 * one)[0]
    path = Path(galsim.meta_data.share_dir) / "SEDs" / f"{CWW_FILES[kind]}.sed"
    sed = galsim.SED(str(path), wave_type="Ang", flux_type="flambda")
    theirs_C = [sed.atRedshift(z).calculateMagnitude(roman_bandpasses()[b]) for b in BANDS]
    ours = np.diff(-2.5 * np.log10(ours_C))
    assert ours == pytest.approx(np.diff(theirs_C), abs=0.015)


def test_absolute_scale_follows_the_mass_to_light_relation():
    """At z = 0, log M = 1.15 + 0.70 (g - i) - 0.4 M_i (Taylor et al. 2011)."""
    grid = sed_grid(BANDS, 3.0)
    wave_L, fnu_TL = templates()
    one = np.ones(1)
    flux_C = grid.fluxes_njy(0 * one, 0 * one, 0 * one, 10.5 * one, 0 * one)[0]
    g_minus_i = -2.5 * np.log10(grid.rest_g_TA[0, 0] / grid.rest_i_TA[0, 0])
    absolute_i = (1.15 + 0.70 * g_minus_i - 10.5) / 0.4
    # F087 covers 0.76 to 0.98 um: the template's mean f_nu there over its mean in i
    near = (wave_L > 830) & (wave_L < 910)
    expected = absolute_i - 2.5 * np.log10(fnu_TL[0, near].mean())
    assert 31.4 - 2.5 * np.log10(flux_C[1]) == pytest.approx(expected, abs=0.05)


def test_dust_reddens_and_the_forest_absorbs():
    grid = sed_grid(BANDS, 3.0)
    one = np.ones(1)
    clear, dusty = (
        grid.fluxes_njy(3 * one, one, a * one, 10 * one, 44 * one)[0] for a in (0.0, 1.0)
    )
    assert np.all(np.diff(dusty / clear) > 0)
    wave = np.array([90.0, 110.0, 121.0, 130.0]) * 4.0
    transmission = igm_transmission(wave, 3.0)
    assert transmission[0] < transmission[1] < 0.8
    assert transmission[2] == pytest.approx(np.exp(-0.0036 * (1.21e2 * 4 / 121.567) ** 3.46))
    assert transmission[3] == 1.0


def test_stars_run_from_red_to_blue():
    flux_NC = star_colours(BANDS, np.array([3000.0, 5800.0, 10000.0]))
    assert np.all(np.diff(flux_NC[:, 0] / flux_NC[:, -1]) > 0)


def test_number_counts_are_those_of_the_sky(galaxies):
    """Deep H-band fields count some tens of galaxies per square arcminute to H = 25."""
    magnitude_N = magnitudes(galaxies)
    edges = np.arange(20.0, 25.5, 1.0)
    cumulative = [np.sum(magnitude_N < edge) / AREA_ARCMIN2 for edge in edges]
    assert 35 < cumulative[-1] < 75
    slope = np.log10(np.histogram(magnitude_N, [21, 22, 23, 24, 25])[0][[0, -1]])
    assert 0.2 < (slope[1] - slope[0]) / 3.0 < 0.4


def test_redshifts_reach_three_and_rise_with_magnitude(galaxies):
    magnitude_N = magnitudes(galaxies)
    bright, faint = galaxies.z_N[magnitude_N < 22], galaxies.z_N[magnitude_N > 24]
    assert np.median(bright) < np.median(faint)
    assert 0.8 < np.median(galaxies.z_N[magnitude_N < 25]) < 1.2
    assert galaxies.z_N.min() > 0.02
    assert 2.9 < galaxies.z_N.max() < 3.0
    assert 0.06 < np.mean(galaxies.z_N[magnitude_N < 25] > 2.0) < 0.25


def test_sizes_shrink_with_redshift_and_grow_with_mass(galaxies):
    disk = ~galaxies.quiescent_N
    for chosen, least in ((disk, 0.3), (~disk, 0.6)):
        massive = chosen & (galaxies.log_mass_N > 10.3)
        near = massive & (galaxies.z_N < 1.0)
        far = massive & (galaxies.z_N > 1.5)
        kpc_near = np.median(galaxies.half_light_arcsec_N[near] * 7.0)
        kpc_far = np.median(galaxies.half_light_arcsec_N[far] * 8.4)
        assert np.log10(kpc_near / kpc_far) > least * np.log10(2.6 / 1.6) * 0.5
    at_one = disk & (np.abs(galaxies.z_N - 1.0) < 0.2)
    light, heavy = (at_one & (galaxies.log_mass_N < 9.3)), (at_one & (galaxies.log_mass_N > 10.3))
    sizes = galaxies.half_light_arcsec_N
    assert np.median(sizes[heavy]) > 1.3 * np.median(sizes[light])
    same_mass = np.abs(galaxies.log_mass_N - 10.6) < 0.3
    assert np.median(sizes[same_mass & disk]) > np.median(sizes[same_mass & ~disk])


def test_quiescent_galaxies_are_redder_and_bulges_redder_than_disks(galaxies):
    flux_NC = galaxies.flux_njy_NC
    colour_N = -2.5 * np.log10(flux_NC[:, 0] / flux_NC[:, -1])
    at_one = np.abs(galaxies.z_N - 1.0) < 0.3
    red, blue = at_one & galaxies.quiescent_N, at_one & ~galaxies.quiescent_N
    assert np.median(colour_N[red]) > np.median(colour_N[blue]) + 1.0
    share_NC = galaxies.bulge_njy_NC / flux_NC
    assert np.median(share_NC[blue, -1]) > 1.2 * np.median(share_NC[blue, 0])


def test_axis_ratios_and_angles_cover_their_ranges(galaxies):
    assert 0.1 <= galaxies.disk_axis_ratio_N.min() < 0.3
    assert galaxies.disk_axis_ratio_N.max() > 0.97
    assert galaxies.bulge_axis_ratio_N.min() >= 0.2
    assert np.std(galaxies.angle_rad_N) == pytest.approx(np.pi / np.sqrt(12), rel=0.05)


def test_labels_are_a_fifth_and_prefer_bright_blue_and_near(galaxies):
    listed = galaxies.take(magnitudes(galaxies) < 25.0)
    probability_N = label_probability(listed, BANDS, 0.2)
    assert probability_N.mean() == pytest.approx(0.2, abs=1e-3)
    flux_NC = listed.flux_njy_NC
    colour_N = -2.5 * np.log10(flux_NC[:, 0] / flux_NC[:, -1])
    magnitude_N = magnitudes(listed)
    assert probability_N[magnitude_N < 22].mean() > 3 * probability_N[magnitude_N > 24].mean()
    at = (np.abs(magnitude_N - 23.5) < 0.5) & (np.abs(listed.z_N - 1.0) < 0.3)
    blue, red = at & (colour_N < 1.5), at & (colour_N > 2.5)
    assert probability_N[blue].mean() > 1.2 * probability_N[red].mean()
    at = (np.abs(magnitude_N - 23.5) < 0.5) & (np.abs(colour_N - 1.5) < 0.5)
    near, far = at & (listed.z_N < 0.7), at & (listed.z_N > 1.4)
    assert probability_N[near].mean() > 1.3 * probability_N[far].mean()


def test_mass_function_falls_with_mass_and_redshift():
    log_mass = np.linspace(9.5, 11.0, 30)
    for quiescent in (False, True):
        at_half = mass_function(log_mass, np.full(30, 0.5), quiescent)
        at_three = mass_function(log_mass, np.full(30, 3.0), quiescent)
        assert np.all(at_half > 1.5 * at_three)
    assert mass_function(np.array([12.5]), np.array([0.5]), False)[0] < 1e-8


def test_extinction_of_the_presets_is_that_of_the_hst_analogues():
    """F606W 2.471, F814W 1.526, F125W 0.726, F160W 0.512 (Schlafly & Finkbeiner 2011)."""
    for name in ("roman-sim", "roman-l3"):
        r_C = [load_survey(name).band(band).extinction_r for band in BANDS]
        assert r_C == pytest.approx([2.471, 1.526, 0.726, 0.512], rel=0.15)


def test_bands_without_a_bandpass_are_named():
    with pytest.raises(ConfigError, match=r"F999.*F158"):
        sed_grid(("F999",), 3.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("z_max", 9.0), ("label_fraction", 1.5), ("tile_size_pix", 10), ("depth_ab", {"F158": 99.0})],
)
def test_config_names_the_field_and_its_value(field, value):
    with pytest.raises(ValueError, match=field):
        SkyConfig(**{field: value})


def test_faint_labels_are_as_rare_as_in_a_real_survey():
    """CANDELS-COSMOS: 7% of the galaxies with redshifts are fainter than F160W = 24."""
    config = load_sky_config("sky/realistic")
    sources = SkyPhysics(BANDS, config).draw(np.random.default_rng(3), AREA_ARCMIN2)
    sources = sources.take(magnitudes(sources) < 25.5)
    probability_N = label_probability(
        sources, BANDS, config.label_fraction, config.ingredients.label_slope_per_mag
    )
    assert probability_N.mean() == pytest.approx(config.label_fraction, abs=1e-3)
    faint = probability_N[magnitudes(sources) > 24.0].sum() / probability_N.sum()
    assert faint == pytest.approx(0.073, abs=0.02)


def test_wrong_redshifts_are_lines_taken_for_others_and_rise_towards_the_faint_end(galaxies):
    z_spec_N = np.where(np.arange(len(galaxies)) % 2, galaxies.z_N, np.nan)
    z_N, wrong_N = confuse_redshifts(np.random.default_rng(0), galaxies, z_spec_N, 0.01)
    assert np.array_equal(z_N[~wrong_N], z_spec_N[~wrong_N], equal_nan=True)
    assert np.isfinite(z_spec_N[wrong_N]).all()
    assert z_N[wrong_N].min() > 0.0
    ratio_N = (1 + z_N[wrong_N]) / (1 + z_spec_N[wrong_N])
    lines = np.array([372.8, 500.7, 656.3])
    allowed = np.unique((lines[:, None] / lines)[~np.eye(3, dtype=bool)])
    assert np.abs(ratio_N[:, None] - allowed).min(axis=1).max() < 1e-9
    magnitude_N = magnitudes(galaxies)
    for bright, faint, share in ((21.75, 22.25, 0.01), (23.75, 24.25, 0.04), (24.75, 25.25, 0.08)):
        at = (magnitude_N > bright) & (magnitude_N < faint) & np.isfinite(z_spec_N)
        expected = share * at.sum()
        assert abs(wrong_N[at].sum() - expected) < 4 * np.sqrt(expected) + 1
    assert not confuse_redshifts(np.random.default_rng(0), galaxies, z_spec_N, 0.0)[1].any()


def test_the_default_file_is_the_default_config():
    assert load_sky_config() == load_sky_config("sky/realistic") == SkyConfig()


def test_the_simple_sky_is_the_default_without_its_ingredients():
    off = vars(SIMPLE.ingredients)
    assert [name for name, value in vars(Ingredients()).items() if value == off[name]] == []
    assert replace(SIMPLE, ingredients=Ingredients()) == SkyConfig()


def test_unknown_keys_are_refused(tmp_path):
    path = tmp_path / "sky.yaml"
    path.write_text("z_maxx: 2.0\n")
    with pytest.raises(ConfigError, match="z_max"):
        load_sky_config(path)
