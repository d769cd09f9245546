"""The fast renderer against GalSim's own drawing of the same profiles."""

from dataclasses import replace

import galsim
import numpy as np
import pytest
import scipy.linalg

from builders.skies import SIMPLE
from photozhpc.sky.observe import sky_sigma_njy
from photozhpc.sky.population import BULGE_TRUNCATION, Population
from photozhpc.sky.psf import blur_field, effective_psf
from photozhpc.sky.render import LEVELS, STAMP_SIZES, Renderer
from photozhpc.sky.structure import Knots, Structure

BANDS = ("F062", "F087", "F129", "F158")
SCALE = 0.055


@pytest.fixture(scope="module")
def renderer():
    return Renderer(BANDS, SCALE)


@pytest.fixture(scope="module")
def sigma_C(renderer):
    return sky_sigma_njy(BANDS, SIMPLE, renderer.noise_area_C)


def one_source(mag_ab, bulge_share_C, bulge_radius, disk_radius, bulge_q, disk_q, angle):
    flux_C = 10 ** (-0.4 * (np.broadcast_to(mag_ab, len(BANDS)) - 31.4))
    share_C = np.broadcast_to(bulge_share_C, len(BANDS))
    return Population(
        z_N=np.array([1.0]),
        is_star_N=np.array([bulge_radius == 0 and disk_radius == 0]),
        quiescent_N=np.array([False]),
        sed_type_N=np.array([2.0]),
        a_v_N=np.array([0.0]),
        log_mass_N=np.array([10.0]),
        bulge_njy_NC=(flux_C * share_C)[None],
        disk_njy_NC=(flux_C * (1 - share_C))[None],
        reference_njy_N=flux_C[-1:],
        bulge_radius_arcsec_N=np.array([bulge_radius]),
        disk_radius_arcsec_N=np.array([disk_radius]),
        half_light_arcsec_N=np.array([max(bulge_radius, disk_radius)]),
        bulge_axis_ratio_N=np.array([bulge_q]),
        disk_axis_ratio_N=np.array([disk_q]),
        angle_rad_N=np.array([angle]),
        structure=Structure.none(1, len(BANDS)),
    )


def with_knots(source):
    """The source with two clumps and three knots of an arm."""
    clumps = np.array([[0.9, 0.4, 0.7], [-0.2, -1.1, 0.3], [0.0, 0.0, 0.0]])
    arms = np.array([[0.5, 0.6, 0.2], [0.1, 1.2, 0.5], [-0.9, 1.3, 0.3]])
    structure = Structure(
        Knots(clumps[None], np.array([[0.4, 0.3, 0.2, 0.1]]), np.array([0.1])),
        Knots(arms[None], np.array([[0.3, 0.28, 0.26, 0.24]]), np.array([0.21])),
        np.array([1]),
    )
    return replace(source, structure=structure)


def galsim_knots(source, c):
    """Knots by GalSim: exponentials in the plane of the disk, sheared and turned with it."""
    radius, q = source.disk_radius_arcsec_N[0], source.disk_axis_ratio_N[0]
    beta = source.angle_rad_N[0]
    for knots in (source.structure.clumps, source.structure.arms):
        for u, v, share in knots.place_NK3[0]:
            if share > 0:
                knot = galsim.Exponential(half_light_radius=radius * knots.size_N[0])
                knot = knot.shift(radius * u, radius * v).transform(1.0, 0.0, 0.0, q) / q
                flux = source.disk_njy_NC[0, c] * knots.share_NC[0, c] * share
                yield knot.rotate(beta * galsim.radians) * flux


def galsim_image(source, c, size, dy, dx, blur_arcsec2_3=None):
    """The same source by GalSim: half-light radii there are along the geometric mean axis."""
    parts = []
    beta = source.angle_rad_N[0] * galsim.radians
    if source.bulge_njy_NC[0, c] > 0:
        q, r = source.bulge_axis_ratio_N[0], source.bulge_radius_arcsec_N[0]
        if r == 0:
            parts.append(galsim.DeltaFunction())
        else:
            r *= np.sqrt(q)
            bulge = galsim.Sersic(4.0, half_light_radius=r, trunc=BULGE_TRUNCATION * r)
            parts.append(bulge.shear(q=q, beta=beta))
        parts[-1] = parts[-1] * source.bulge_njy_NC[0, c]
    if source.disk_njy_NC[0, c] > 0:
        q, r = source.disk_axis_ratio_N[0], source.disk_radius_arcsec_N[0]
        disk = galsim.Exponential(half_light_radius=r * np.sqrt(q)).shear(q=q, beta=beta)
        knots = list(galsim_knots(source, c))
        in_knots = sum(knot.flux for knot in knots)
        parts += [disk * (source.disk_njy_NC[0, c] - in_knots), *knots]
    convolved = [galsim.Add(parts), effective_psf(BANDS[c], SCALE)]
    if blur_arcsec2_3 is not None:
        xx, xy, yy = blur_arcsec2_3
        root = scipy.linalg.sqrtm(np.array([[xx, xy], [xy, yy]]) / 3.0)
        unit = galsim.Exponential(scale_radius=1.0).transform(*root.real.ravel())
        convolved.append(unit.withFlux(1.0))
    profile = galsim.Convolve(convolved)
    # Even-sided GalSim images are centred between pixels; ours on pixel size // 2. A larger
    # image, cropped: on a small one GalSim itself folds the PSF's wings.
    n = max(512, size)
    image = profile.drawImage(
        nx=n, ny=n, scale=SCALE, offset=(dx + 0.5, dy + 0.5), method="no_pixel", dtype=float
    ).array
    lo, hi = n // 2 - size // 2, n // 2 + size // 2
    return image[lo:hi, lo:hi]


CASES = {
    "small disk": one_source(24.5, 0.0, 0.0, 0.10, 1.0, 0.4, 0.3),
    "typical disk": one_source((26.0, 25.5, 25.0, 24.5), 0.0, 0.0, 0.3, 1.0, 0.7, 2.0),
    "thin large disk": one_source(23.0, 0.0, 0.0, 0.8, 1.0, 0.2, 1.0),
    "compact bulge": one_source((25.5, 24.0, 23.0, 22.5), 1.0, 0.08, 0.0, 0.8, 1.0, 0.0),
    "large bulge": one_source((23.5, 22.0, 21.0, 20.5), 1.0, 0.5, 0.0, 0.6, 1.0, 2.5),
    "composite with a colour gradient": one_source(
        (24.0, 23.2, 22.5, 22.0), (0.1, 0.25, 0.4, 0.5), 0.12, 0.35, 0.8, 0.5, 0.9
    ),
    "faint at the limit": one_source(25.0, 0.3, 0.06, 0.15, 0.7, 0.6, 1.3),
    "bright nearby galaxy": one_source(19.0, 0.4, 0.4, 1.1, 0.8, 0.6, 0.2),
    "faint star": one_source(24.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0),
    "star": one_source(21.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0),
}


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.31, -0.44)])
@pytest.mark.parametrize("name", CASES)
def test_stamp_agrees_with_galsim(renderer, sigma_C, name, offset):
    source = CASES[name]
    size = int(renderer.stamp_sizes(source, sigma_C, np.array([96]))[0])
    contrast = (source.flux_njy_NC[0] / sigma_C).max()
    level = np.searchsorted([start for start, _, _ in LEVELS], contrast, "right") - 1
    stamp_Cyx = renderer.stamp(source, 0, size, *offset, level=int(level))
    for c in range(len(BANDS)):
        exact = galsim_image(source, c, size, *offset)
        assert stamp_Cyx[c].sum() == pytest.approx(exact.sum(), rel=0.005)
        assert np.abs(stamp_Cyx[c] - exact).max() < 0.05 * sigma_C[c]


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.31, -0.44)])
@pytest.mark.parametrize("name", [name for name in CASES if "disk" in name or "galaxy" in name])
def test_knots_agree_with_galsim(renderer, sigma_C, name, offset):
    source = with_knots(CASES[name])
    size = int(renderer.stamp_sizes(source, sigma_C, np.array([96]))[0])
    contrast = (source.flux_njy_NC[0] / sigma_C).max()
    level = np.searchsorted([start for start, _, _ in LEVELS], contrast, "right") - 1
    stamp_Cyx = renderer.stamp(source, 0, size, *offset, level=int(level))
    smooth_Cyx = renderer.stamp(CASES[name], 0, size, *offset, level=int(level))
    assert np.abs(stamp_Cyx - smooth_Cyx).max() > 0.5 * sigma_C.min()
    for c in (0, 3):
        exact = galsim_image(source, c, size, *offset)
        assert stamp_Cyx[c].sum() == pytest.approx(exact.sum(), rel=0.005)
        assert stamp_Cyx[c].sum() == pytest.approx(smooth_Cyx[c].sum(), rel=0.002)
        assert np.abs(stamp_Cyx[c] - exact).max() < 0.05 * sigma_C[c]


@pytest.mark.parametrize("name", ["star", "composite with a colour gradient", "typical disk"])
def test_a_blurred_psf_agrees_with_galsim(renderer, sigma_C, name):
    source = CASES[name] if name == "star" else with_knots(CASES[name])
    blur = np.array([6e-4, -2e-4, 4e-4])
    size = int(renderer.stamp_sizes(source, sigma_C, np.array([96]))[0])
    stamp_Cyx = renderer.stamp(source, 0, size, 0.31, -0.44, blur_arcsec2_3=blur)
    sharp_Cyx = renderer.stamp(source, 0, size, 0.31, -0.44)
    for c in (0, 3):
        exact = galsim_image(source, c, size, 0.31, -0.44, blur)
        assert stamp_Cyx[c].sum() == pytest.approx(exact.sum(), rel=0.005)
        assert np.abs(stamp_Cyx[c] - exact).max() < 0.05 * sigma_C[c]
        assert stamp_Cyx[c].max() < 0.98 * sharp_Cyx[c].max()


def test_the_psf_varies_over_a_tile_as_over_romans_detectors():
    """GalSim's PSFs of 18 detectors: widths differ by 0.8%, ellipticities by 0.01 to 0.03."""
    y, x = (v.ravel() for v in np.meshgrid(np.arange(0.0, 2048, 128), np.arange(0.0, 2048, 128)))
    widths, ellipticities = [], []
    for seed in range(30):
        xx, xy, yy = blur_field(np.random.default_rng(seed), y, x, 2048, 0.02).T
        assert np.all((xx * yy - xy**2 >= 0) & (xx + yy <= 0.02**2))
        a, b = xx + 0.0622**2, yy + 0.0622**2  # F129: 0.0622 arcsec wide (GalSim's moments)
        widths.append(np.sqrt(0.5 * (a + b)))
        ellipticities.append([(a - b) / (a + b), 2 * xy / (a + b)])
    assert 0.005 < np.std(widths) / np.mean(widths) < 0.02
    assert 0.003 < np.std(ellipticities) < 0.03


def test_stamp_sizes_hold_the_source_and_grow_with_flux(renderer, sigma_C):
    smallest = np.array([64])
    faint, bright = (one_source(m, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0) for m in (26.0, 18.0))
    sizes = [int(renderer.stamp_sizes(s, sigma_C, smallest)[0]) for s in (faint, bright)]
    assert sizes[0] == 64
    assert sizes[1] > 256
    huge = one_source(18.0, 0.0, 0.0, 20.0, 1.0, 0.5, 0.0)
    assert renderer.stamp_sizes(huge, sigma_C, smallest)[0] == STAMP_SIZES[-1]


def test_light_beyond_the_stamp_is_drawn(renderer, sigma_C):
    star = one_source(23.5, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0)
    image_CHW = np.zeros((len(BANDS), 700, 700), np.float32)
    renderer.draw(image_CHW, star, np.array([350.3]), np.array([349.6]), sigma_C, np.array([64]))
    assert image_CHW.sum(axis=(1, 2)) == pytest.approx(star.flux_njy_NC[0], rel=0.005)
    y, x = np.indices(image_CHW.shape[1:])
    radius_arcsec = SCALE * np.hypot(y - 350.3, x - 349.6)
    for c in (0, 3):
        exact = galsim_image(star, c, 700, 0.3, -0.4)
        assert np.abs(image_CHW[c] - exact).max() < 0.05 * sigma_C[c]
        for inner, outer in ((2.5, 4.0), (4.0, 8.0)):
            ring = (radius_arcsec > inner) & (radius_arcsec < outer)
            assert image_CHW[c][ring].sum() == pytest.approx(exact[ring].sum(), rel=0.1)


def test_a_source_across_the_edge_is_cut_there(renderer, sigma_C):
    source = CASES["typical disk"]
    whole_CHW = np.zeros((len(BANDS), 300, 300), np.float32)
    part_CHW = np.zeros((len(BANDS), 150, 150), np.float32)
    for image_CHW in (whole_CHW, part_CHW):
        renderer.draw(
            image_CHW, source, np.array([148.2]), np.array([2.7]), sigma_C, np.array([96])
        )
    assert np.allclose(part_CHW, whole_CHW[:, :150, :150], atol=1e-3 * sigma_C.min())
    assert part_CHW[:, 140:, :10].max() > 0


def test_noise_area_and_width_of_the_psf(renderer):
    assert np.all(np.diff(renderer.noise_area_C) > 0)
    stamp_Cyx = renderer.stamp(CASES["star"], 0, 128, 0.0, 0.0)
    shape_Cyx = stamp_Cyx / CASES["star"].flux_njy_NC[0][:, None, None]
    area_C = 1.0 / (shape_Cyx.astype(float) ** 2).sum(axis=(1, 2))
    assert area_C == pytest.approx(renderer.noise_area_C, rel=1e-3)
