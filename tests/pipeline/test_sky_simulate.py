"""simulate_sky: files that a Roman pipeline could have written, the same for a seed."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import roman_datamodels

from builders.skies import SIMPLE, only
from photozhpc.errors import ConfigError, RunError
from photozhpc.sky import load_sky_config, simulate_sky
from photozhpc.sky.observe import electrons_per_njy, sky_sigma_njy
from photozhpc.sky.render import Renderer
from photozhpc.sky.simulate import tile_centre_deg
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
CONFIG = replace(SIMPLE, tile_size_pix=512, density_scale=2.0, bad_pixel_fraction=1e-3)
MJY_SR_TO_NJY = (0.055 / 3600 * np.pi / 180) ** 2 * 1e15


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    out = tmp_path_factory.mktemp("sky")
    seen = []
    ids = simulate_sky(
        SURVEY, out, 2, 11, CONFIG, workers=2, progress=lambda *done: seen.append(done)
    )
    assert seen == [(0, 2), (1, 2), (2, 2)]
    return out, ids


def planes(out, tile, band):
    with roman_datamodels.open(out / f"{tile}_{band}_coadd.asdf") as model:
        names = ("data", "err", "weight", "context", "var_poisson", "var_rnoise")
        return {name: np.array(model[name]) for name in names}


def test_files_of_a_tile(sky):
    out, ids = sky
    assert ids == ["sim000011t0000", "sim000011t0001"]
    names = {path.name for path in out.iterdir()}
    wanted = {f"{t}_{b.lower()}_coadd.asdf" for t in ids for b in SURVEY.band_names}
    wanted |= {f"{t}_{kind}.parquet" for t in ids for kind in ("cat", "truth")}
    assert names == wanted | {"sky.json"}
    manifest = json.loads((out / "sky.json").read_text())
    assert manifest["seeds"] == {"11": 2}
    assert manifest["versions"]["galsim"]


def test_mosaics_are_valid_roman_products(sky):
    out, ids = sky
    with roman_datamodels.open(out / f"{ids[0]}_f158_coadd.asdf") as model:
        model.validate()
        assert type(model).__name__ == "MosaicModel"
        assert model.meta.instrument.optical_element == "F158"
        assert model.data.shape == (512, 512)
        assert model.meta.filename == f"{ids[0]}_f158_coadd.asdf"
        wcs = model.meta.wcs
        x, y = np.array([0.0, 300.2, 511.0]), np.array([10.0, 77.7, 511.0])
        back = wcs.invert(*wcs(x, y))
        assert np.allclose(back, (x, y), atol=1e-6)
        ra, dec = wcs(np.array([100.0, 101.0, 100.0]), np.array([100.0, 100.0, 101.0]))
        assert (ra[0] - ra[1]) * np.cos(np.radians(dec[0])) * 3600 == pytest.approx(0.055, rel=1e-3)
        assert (dec[2] - dec[0]) * 3600 == pytest.approx(0.055, rel=1e-3)


def test_noise_is_what_err_says(sky):
    out, ids = sky
    sigma_C = sky_sigma_njy(
        SURVEY.band_names, CONFIG, Renderer(SURVEY.band_names, 0.055).noise_area_C
    )
    for c, band in enumerate(SURVEY.band_names):
        plane = planes(out, ids[0], band.lower())
        data, err = plane["data"] * MJY_SR_TO_NJY, plane["err"] * MJY_SR_TO_NJY
        bad = np.isnan(data)
        assert np.array_equal(bad, np.isnan(err))
        assert np.array_equal(bad, plane["weight"] == 0)
        assert np.array_equal(bad, plane["context"][0] == 0)
        assert bad[:4].all()
        assert bad[:, -4:].all()
        assert 5e-4 < bad[4:-4, 4:-4].mean() < 5e-3
        assert np.nanmin(err) == pytest.approx(sigma_C[c], rel=0.1)
        sky = err < 1.05 * np.nanmedian(err)
        pull = (data / err)[sky & (np.abs(data / err) < 3)]
        assert np.std(pull) == pytest.approx(0.99, abs=0.05)
        variance = plane["var_poisson"] + plane["var_rnoise"]
        assert np.nanmax(np.abs(variance / plane["err"] ** 2 - 1)) < 0.03


def test_bright_pixels_have_photon_noise(sky):
    out, ids = sky
    plane = planes(out, ids[0], "f158")
    data, err = plane["data"] * MJY_SR_TO_NJY, plane["err"] * MJY_SR_TO_NJY
    y, x = np.unravel_index(np.nanargmax(data), data.shape)
    coverage = plane["weight"][y, x] / CONFIG.exposure_time_s
    photons = data[y, x] / (electrons_per_njy("F158", CONFIG.exposure_time_s) * coverage)
    sky = np.nanmedian(err) ** 2
    assert err[y, x] ** 2 - sky == pytest.approx(photons, rel=0.2, abs=0.1 * float(sky))


def test_depth_is_the_one_asked_for(sky):
    """A source of 5 sigma depth has S/N 5 by optimal extraction with the PSF."""
    renderer = Renderer(SURVEY.band_names, 0.055)
    sigma_C = sky_sigma_njy(SURVEY.band_names, CONFIG, renderer.noise_area_C)
    depth_C = np.array([CONFIG.depth_ab[band] for band in SURVEY.band_names])
    flux_C = 10 ** (-0.4 * (depth_C - 31.4))
    assert flux_C / (sigma_C * np.sqrt(renderer.noise_area_C)) == pytest.approx(5.0)


def test_catalogue_and_truth_agree_with_the_image(sky):
    out, ids = sky
    ids_seen = []
    for tile in ids:
        cat = pq.read_table(out / f"{tile}_cat.parquet")
        truth = pq.read_table(out / f"{tile}_truth.parquet").to_pandas()
        assert cat.column_names == ["source_id", "ra", "dec", "ebv", "z_spec"]
        types = [str(field.type) for field in cat.schema]
        assert types == ["int64", "double", "double", "float", "float"]
        frame = cat.to_pandas()
        ids_seen.append(frame.source_id.to_numpy())
        assert np.array_equal(frame.source_id, truth.source_id)
        offset = np.hypot(
            (frame.ra - truth.ra) * np.cos(np.radians(frame.dec)), frame.dec - truth.dec
        )
        assert 0 < np.median(offset) * 3600 < 0.03
        labelled = cat["z_spec"].is_valid().to_numpy(zero_copy_only=False)
        error = (frame.z_spec - truth.z_true) / (1 + truth.z_true)
        assert np.abs(error[labelled]).max() < 0.002
        assert not truth.is_star[labelled].any()
        with roman_datamodels.open(out / f"{tile}_f158_coadd.asdf") as model:
            x, y = model.meta.wcs.invert(truth.ra.to_numpy(), truth.dec.to_numpy())
            data = np.array(model.data) * MJY_SR_TO_NJY
        assert x.min() >= -0.5
        assert x.max() <= 511.5
        bright = np.flatnonzero((truth.mag_f158 < 23) & (abs(x - 255) < 240) & (abs(y - 255) < 240))
        for i in bright:
            yi, xi = round(y[i]), round(x[i])
            box = data[yi - 1 : yi + 2, xi - 1 : xi + 2]
            assert np.nanmax(box) > 5 * np.nanmedian(np.abs(data))
        assert truth[truth.is_star].z_true.eq(0).all()
    joined = np.concatenate(ids_seen)
    assert len(np.unique(joined)) == len(joined)
    assert joined.min() > 0


def test_a_seed_is_a_sky_whatever_the_workers(sky, tmp_path):
    out, ids = sky
    assert simulate_sky(SURVEY, tmp_path, 2, 11, CONFIG, workers=1) == ids
    for tile in ids:
        for kind in ("cat", "truth"):
            a, b = (pq.read_table(folder / f"{tile}_{kind}.parquet") for folder in (out, tmp_path))
            assert a.equals(b) or a.to_pandas().equals(b.to_pandas())
        one, two = planes(out, tile, "f062"), planes(tmp_path, tile, "f062")
        assert all(np.array_equal(one[k], two[k], equal_nan=True) for k in ("data", "err"))
    simulate_sky(SURVEY, tmp_path, 1, 12, CONFIG, workers=1)
    other = planes(tmp_path, "sim000012t0000", "f062")
    assert not np.array_equal(other["data"], two["data"], equal_nan=True)


def test_finished_tiles_are_kept_and_lost_ones_made_again(sky, tmp_path):
    small = replace(CONFIG, tile_size_pix=128)
    (tile,) = simulate_sky(SURVEY, tmp_path, 1, 3, small, workers=1)
    path = tmp_path / f"{tile}_f087_coadd.asdf"
    before = path.stat().st_mtime_ns
    simulate_sky(SURVEY, tmp_path, 1, 3, small, workers=1)
    assert path.stat().st_mtime_ns == before
    first = pq.read_table(tmp_path / f"{tile}_cat.parquet").to_pandas()
    (tmp_path / f"{tile}_cat.parquet").unlink()
    simulate_sky(SURVEY, tmp_path, 1, 3, small, workers=1)
    assert pq.read_table(tmp_path / f"{tile}_cat.parquet").to_pandas().equals(first)
    with pytest.raises(RunError, match="another configuration"):
        simulate_sky(SURVEY, tmp_path, 1, 3, replace(small, z_max=2.0), workers=1)


def test_tiles_do_not_overlap():
    side = 2048 * 0.055
    centres = np.array([tile_centre_deg(5, i, side) for i in range(250)])
    for i in (0, 57, 99, 100, 199):
        ra, dec = centres[i]
        others = np.delete(centres, i, axis=0)
        dra = (others[:, 0] - ra + 180) % 360 - 180
        dx = np.abs(dra) * np.cos(np.radians(np.maximum(np.abs(others[:, 1]), abs(dec)))) * 3600
        dy = np.abs(others[:, 1] - dec) * 3600
        assert np.all((dx > side) | (dy > side))
    assert np.all(np.abs(centres[:, 1]) < 75)


def test_faulty_calls_say_what_is_wrong(tmp_path):
    unknown = replace(SURVEY, bands=(replace(SURVEY.bands[0], name="F606W"),))
    with pytest.raises(ConfigError, match="F606W"):
        simulate_sky(unknown, tmp_path, 1, 0, CONFIG)
    with pytest.raises(ConfigError, match="tiles"):
        simulate_sky(SURVEY, tmp_path, 0, 0, CONFIG)
    with pytest.raises(ConfigError, match="depth_ab"):
        simulate_sky(SURVEY, tmp_path, 1, 0, replace(CONFIG, depth_ab={"F158": 27.0}))
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        simulate_sky(SURVEY, blocked / "sky", 1, 0, CONFIG)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("photozhpc.sky.simulate.write_mosaic", full)
    with pytest.raises(RunError, match="disk is full"):
        simulate_sky(SURVEY, tmp_path, 1, 0, replace(CONFIG, tile_size_pix=128), workers=1)


def test_other_bands_by_config(tmp_path):
    names = ("F106", "F184")
    bands = tuple(replace(SURVEY.bands[0], name=name) for name in names)
    survey = replace(SURVEY, bands=bands)
    config = replace(CONFIG, tile_size_pix=128)
    (tile,) = simulate_sky(survey, tmp_path, 1, 0, config, workers=1)
    assert {p.name for p in tmp_path.glob("*.asdf")} == {
        f"{tile}_{name.lower()}_coadd.asdf" for name in names
    }


REALISTIC = replace(
    load_sky_config("sky/realistic"), tile_size_pix=512, density_scale=2.0, label_fraction=0.5
)


def simulated(out, **changes):
    """Return the truth, the source list and the F062 plane of a realistic tile."""
    ingredients = replace(REALISTIC.ingredients, **changes)
    config = replace(REALISTIC, ingredients=ingredients)
    (tile,) = simulate_sky(SURVEY, out, 1, 21, config, workers=1)
    truth, cat = (
        pq.read_table(out / f"{tile}_{kind}.parquet").to_pandas() for kind in ("truth", "cat")
    )
    return truth, cat, planes(out, tile, "f062")


@pytest.fixture(scope="module")
def realistic(tmp_path_factory):
    out = tmp_path_factory.mktemp("realistic")

    return out, *simulated(out, cosmic_rays_arcmin2=300.0, wrong_redshifts=0.2)


def test_a_realistic_tile_says_what_is_wrong_with_it(realistic):
    out, truth, cat, plane = realistic
    assert json.loads((out / "sky.json").read_text())["sky"]["config"]["ingredients"]["clumps"] == 1
    assert set(truth.spiral_arms) == {0, 2, 3}
    assert truth.clumps.max() >= 2
    assert not truth[truth.is_quiescent | truth.is_star][["clumps", "spiral_arms"]].any().any()
    error = np.abs(cat.z_spec - truth.z_true) / (1 + truth.z_true)
    labelled = cat.z_spec.notna()
    assert truth.z_spec_is_wrong.sum() > 3
    assert error[truth.z_spec_is_wrong].min() > 0.1
    assert error[labelled & ~truth.z_spec_is_wrong].max() < 0.002
    hit = truth[truth.defect_snr_f062 > 50]
    assert 0 < len(hit) < len(truth) / 2
    with roman_datamodels.open(out / "sim000021t0000_f062_coadd.asdf") as model:
        model.validate()
        x, y = model.meta.wcs.invert(hit.ra.to_numpy(), hit.dec.to_numpy())
    noise = np.nanmedian(plane["err"])
    for snr, yi, xi in zip(hit.defect_snr_f062, np.rint(y), np.rint(x), strict=True):
        rows, columns = (slice(max(int(at) - 12, 0), int(at) + 13) for at in (yi, xi))
        assert np.nanmax(plane["data"][rows, columns]) > 0.4 * snr * noise


@pytest.mark.parametrize(
    "off",
    [
        {"clumps": 0.0, "spiral_arms": 0.0},
        {"psf_blur_arcsec": 0.0},
        {"drizzled_noise": False},
        {"depth_scatter_mag": 0.0, "exposures": 0},
        {"cosmic_rays_arcmin2": 0.0, "hot_pixels_arcmin2": 0.0},
        {"wrong_redshifts": 0.0},
    ],
)
def test_an_ingredient_that_is_off_leaves_the_galaxies_as_they_were(realistic, tmp_path, off):
    _, truth, cat, plane = realistic
    changes = {"cosmic_rays_arcmin2": 300.0, "wrong_redshifts": 0.2} | off
    truth_off, cat_off, plane_off = simulated(tmp_path, **changes)
    same = [name for name in truth if name not in ("clumps", "spiral_arms", "z_spec_is_wrong")]
    same = [name for name in same if not name.startswith("defect_snr")]
    assert truth_off[same].equals(truth[same])
    assert cat_off[["source_id", "ra", "dec"]].equals(cat[["source_id", "ra", "dec"]])
    assert cat_off.z_spec.notna().equals(cat.z_spec.notna())
    if "wrong_redshifts" in off:
        assert not cat_off.z_spec.equals(cat.z_spec)
    else:
        assert cat_off.z_spec.equals(cat.z_spec)
        assert not np.array_equal(plane_off["data"], plane["data"], equal_nan=True)


def test_depths_differ_from_tile_to_tile_and_band_to_band(tmp_path):
    ingredients = only(depth_scatter_mag=0.5)
    config = replace(CONFIG, tile_size_pix=128, ingredients=ingredients)
    ids = simulate_sky(SURVEY, tmp_path, 3, 5, config, workers=1)
    noise = [
        [np.nanmedian(planes(tmp_path, tile, band)["err"]) for band in ("f062", "f158")]
        for tile in ids
    ]
    mag_TC = 2.5 * np.log10(noise)
    assert np.ptp(mag_TC, axis=0).min() > 0.1
    assert np.std(mag_TC[:, 0] - mag_TC[:, 1]) > 0.02
