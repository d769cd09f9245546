"""Sizes, clumps and spiral arms against the numbers of the papers that they follow."""

import numpy as np
import pytest

from builders.skies import only
from photozhpc.sky.sizes import (
    QUIESCENT_3ZM,
    STAR_FORMING_3ZM,
    TABLE_LOG_MASS,
    TABLE_Z,
    half_light_kpc,
)
from photozhpc.sky.structure import (
    ARM_RADII,
    LARGEST_SHARE,
    clumpy_fraction,
    draw_structure,
    spiral_fraction,
)

N = 20_000
ON = only(clumps=1.0, spiral_arms=1.0)


def drawn(log_mass, z, rest_nm=250.0, config=ON, seed=0, disk_kpc=3.0, forming=True):
    """Structure of N equal galaxies, in one band at a rest wavelength."""
    return draw_structure(
        np.random.default_rng(seed),
        np.full(N, log_mass),
        np.full(N, z),
        np.full(N, disk_kpc),
        np.full(N, forming),
        np.array([rest_nm * (1.0 + z)]),
        config,
    )


@pytest.mark.parametrize(
    ("log_mass", "z", "share"),
    [(9.4, 0.5, 0.60), (9.4, 3.0, 0.60), (10.2, 0.5, 0.40), (10.2, 3.0, 0.55),
     (11.0, 0.5, 0.15), (11.0, 3.0, 0.55)],
)  # fmt: skip
def test_clumpy_galaxies_are_as_many_as_guo_et_al_count(log_mass, z, share):
    """Guo et al. (2015), abstract: 60% at low mass; 55% to 40% and 55% to 15% above."""
    clumps = drawn(log_mass, z).clumps
    bright = clumps.place_NK3[..., 2] * clumps.share_NC > 0.08
    assert (bright.any(axis=1)).mean() == pytest.approx(share, abs=0.012)
    off_centre = np.hypot(*clumps.place_NK3[..., :2].T).T
    assert off_centre[bright].min() >= 0.5


def test_clumps_become_fewer_below_redshift_one_half_as_star_formation_does():
    """Shibuya et al. (2016): from z ~ 1 to 0 the clumpy share falls as star formation does."""
    mass = np.full(3, 9.4)
    now, half, one = clumpy_fraction(mass, np.array([0.0, 0.5, 1.0]))
    assert one == half == pytest.approx(0.60)
    # Madau & Dickinson (2014), eq. 15: 0.0150 at z = 0, 0.0439 at z = 0.5
    assert now / half == pytest.approx(0.0150 / 0.0439, rel=0.02)


def test_clumps_hold_the_light_that_soto_et_al_measure():
    """Soto et al. (2017), abstract: 19% of the far ultraviolet, 4% of the mass; 8 at most."""
    for rest_nm, share in ((250.0, 0.19), (1600.0, 0.04)):
        clumps = drawn(9.4, 1.0, rest_nm).clumps
        assert clumps.share_NC[clumps.count_N > 0].mean() == pytest.approx(share, rel=0.05)
    assert clumps.count_N[clumps.count_N > 0].min() >= 1
    assert clumps.count_N.max() <= 8


def test_spirals_are_as_many_as_kuhn_et_al_count():
    """Kuhn et al. (2024), abstract: 48% at z = 0.75; 35% are needed at z = 2 to 3."""
    assert (drawn(10.5, 0.75).arms_N > 0).mean() == pytest.approx(0.48, abs=0.012)
    assert (drawn(10.5, 2.5).arms_N > 0).mean() == pytest.approx(0.35, abs=0.012)
    assert np.array_equal(spiral_fraction(np.array([9.5, 10.0]), np.full(2, 0.5)), [0.0, 0.48])


def test_two_thirds_of_the_spirals_have_two_arms_and_the_others_three():
    """Espejo Salcedo et al. (2025), abstract."""
    arms_N = drawn(10.5, 0.75).arms_N
    assert set(arms_N) == {0, 2, 3}
    assert (arms_N == 2).sum() / (arms_N > 0).sum() == pytest.approx(2 / 3, abs=0.02)


def test_arms_raise_the_profile_as_chugunov_et_al_measure():
    """Chugunov et al. (2024), abstract: 0.3 to 0.7 mag at 3.6 microns; 53% of the scale wide."""
    structure = drawn(10.5, 0.75, 3600.0)
    share = np.median(structure.arms.share_NC[structure.arms_N > 0])
    inner, outer = (1.0 - (1.0 + 1.678 * r) * np.exp(-1.678 * r) for r in ARM_RADII)
    bump_mag = -2.5 * np.log10(1.0 - share / (outer - inner))  # within the arms' radii
    assert 0.3 < bump_mag < 0.7
    # A row of knots exp(-r / h) adds up to x K1(x), which falls to one half at x = 1.257.
    assert 2 * 1.257 * structure.arms.size_N[0] == pytest.approx(0.53, rel=0.01)


def test_arms_are_logarithmic_spirals_of_uniform_cotangent():
    """Lingard et al. (2021): the cotangent of the pitch angle is uniform."""
    structure = drawn(10.5, 0.75)
    place_NK3 = structure.arms.place_NK3[structure.arms_N == 2]
    u, v = place_NK3[:, ::2, 0], place_NK3[:, ::2, 1]  # one of the two arms
    turn, log_radius = np.unwrap(np.arctan2(v, u), axis=1), np.log(np.hypot(u, v))
    centred = log_radius - log_radius.mean(axis=1, keepdims=True)
    cot_N = np.abs((turn * centred).sum(axis=1) / (centred**2).sum(axis=1))
    deviation = turn - turn.mean(axis=1, keepdims=True)
    residual = np.abs(deviation) - cot_N[:, None] * np.abs(centred)
    assert np.abs(residual).max() < 1e-9
    low, high = 1 / np.tan(np.radians([40.0, 15.0]))
    assert np.quantile(cot_N, [0.0, 0.25, 0.5, 0.75, 1.0]) == pytest.approx(
        np.linspace(low, high, 5), abs=0.05
    )


def test_what_is_off_or_does_not_form_stars_has_no_structure():
    for structure in (drawn(10.5, 0.75, config=only()), drawn(10.5, 0.75, forming=False)):
        assert not structure.clumps.place_NK3[..., 2].any()
        assert not structure.arms.place_NK3[..., 2].any()
        assert not structure.clumps.count_N.any()
        assert not structure.arms_N.any()
    half = drawn(10.5, 0.75, config=only(clumps=0.5))
    whole = drawn(10.5, 0.75)
    below = whole.clumps.share_NC < LARGEST_SHARE
    assert half.clumps.share_NC[below] == pytest.approx(0.5 * whole.clumps.share_NC[below])
    assert np.array_equal(half.clumps.place_NK3, whole.clumps.place_NK3)


@pytest.mark.parametrize("quiescent", [False, True])
def test_sizes_have_the_percentiles_of_van_der_wel_et_al(quiescent):
    """Their table 2, in every cell of mass and redshift that the paper fills."""
    table_3ZM = QUIESCENT_3ZM if quiescent else STAR_FORMING_3ZM
    rng = np.random.default_rng(0)
    for iz, z in enumerate(TABLE_Z):
        for im, log_mass in enumerate(TABLE_LOG_MASS):
            if np.isnan(table_3ZM[1, iz, im]):
                continue
            radius = half_light_kpc(rng, np.full(N, log_mass), np.full(N, z), quiescent, True)
            found = np.percentile(np.log10(radius), [15.87, 50.0, 84.13])
            assert found == pytest.approx(table_3ZM[:, iz, im], abs=0.015)


def test_sizes_go_on_beyond_the_table():
    rng = np.random.default_rng(0)
    for quiescent in (False, True):
        mass, z = (v.ravel() for v in np.meshgrid([6.5, 8.0, 9.25, 11.25, 12.2], [0.02, 1.0, 3.0]))
        radius = half_light_kpc(rng, mass, z, quiescent, True)
        assert np.isfinite(radius).all()
        assert radius.min() > 0.1
        assert radius.max() < 40.0
