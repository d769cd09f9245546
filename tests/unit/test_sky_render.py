"""The fast renderer against GalSim's own drawing of the same profiles."""

import galsim
import numpy as np
import pytest

from photozhpc.sky.observe import sky_sigma_njy
from photozhpc.sky.population import BULGE_TRUNCATION, Population
from photozhpc.sky.psf import effective_psf
from photozhpc.sky.render import LEVELS, STAMP_SIZES, Renderer
from photozhpc.sky.sky_config import SkyConfig
from photozhpc.sky.structure import Structure

BANDS = ("F062", "F087", "F129", "F158")
SCALE = 0.055


@pytest.fixture(scope="module")
def renderer():
    return Renderer(BANDS, SCALE)


@pytest.fixture(scope="module")
def sigma_C(renderer):
    return sky_sigma_njy(BANDS, SkyConfig(), renderer.noise_area_C)


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


def galsim_image(source, c, size, dy, dx):
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
        parts.append(disk * source.disk_njy_NC[0, c])
    profile = galsim.Convolve(galsim.Add(parts), effective_psf(BANDS[c], SCALE))
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
