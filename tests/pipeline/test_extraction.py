"""Mosaics to a store: every source once, on the right tile, with the right pixels."""

import io
import re
import shutil
from dataclasses import replace
from pathlib import Path

import asdf
import numpy as np
import pandas as pd
import pytest
from astropy.io import fits

from photozhpc.errors import MosaicError, SourceListError, StoreError
from photozhpc.extraction.extract import extract
from photozhpc.extraction.mosaics import OFF_TILE_ID, find_mosaics
from photozhpc.extraction.plan import plan_extraction
from photozhpc.mosaic.photometry import PhotFlag
from photozhpc.mosaic.tile import read_tile
from photozhpc.sources.find import find_source_lists, read_survey_lists, sources_to_measure
from photozhpc.store import CutoutStore
from photozhpc.store.rounding import round_pixels, rounding_step
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")


def store_wcs(store: CutoutStore, tile_id: str) -> bytes:
    return store.tile_attributes(tile_id)["wcs"]["asdf"].encode()


def _listed(sky: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, sorted(sky.glob("*_cat.parquet"))))


def test_every_source_is_there_once(small_sky: Path, small_store: CutoutStore) -> None:
    stored = np.concatenate([small_store.read_sources(k).source_id_N for k in small_store.shards()])
    assert sorted(stored) == sorted(_listed(small_sky)["source_id"])
    assert small_store.verify() == []


def test_cutouts_are_the_mosaics_pixels_within_a_hundredth_of_the_noise(
    small_sky: Path, small_store: CutoutStore
) -> None:
    key = small_store.shards()[0]
    tile = read_tile(find_mosaics(small_sky, SURVEY)[key.tile_id], SURVEY)
    measured = small_store.read_measurements(key)
    cutouts = small_store.read_cutouts(key)
    wcs = asdf.open(io.BytesIO(store_wcs(small_store, key.tile_id))).tree["wcs"]
    np.testing.assert_allclose(wcs(10, 20), tile.wcs(10, 20))
    padded = np.pad(tile.image_CHW, ((0, 0), (64, 64), (64, 64)), constant_values=np.nan)
    noise = np.nanmedian(tile.err_CHW, axis=(1, 2))
    worst = 0.0
    for n in range(len(cutouts)):
        y, x = (int(np.floor(v + 0.5)) + 64 - 24 for v in (measured.y_N[n], measured.x_N[n]))
        expected = padded[:, y : y + 48, x : x + 48]
        np.testing.assert_array_equal(np.isnan(cutouts[n]), np.isnan(expected))
        worst = max(worst, np.nanmax(np.abs(cutouts[n] - expected) / noise[:, None, None]))
    assert 0 < worst < 0.01


def test_photometry_is_of_the_right_source(small_sky: Path, small_store: CutoutStore) -> None:
    truth = pd.concat(map(pd.read_parquet, small_sky.glob("*_truth.parquet"))).set_index(
        "source_id"
    )
    offsets = []
    for key in small_store.shards():
        sources, measured = small_store.read_sources(key), small_store.read_measurements(key)
        row = truth.loc[sources.source_id_N]
        flux = measured.flux_NCR[:, 3, 3]  # F158 within 0.8 arcsec
        magnitude = 31.4 - 2.5 * np.log10(np.where(flux > 0, flux, np.nan))
        extinction = SURVEY.bands[3].extinction_r * sources.ebv_N
        bright = (row["mag_f158"] < 22.5) & (row["half_light_radius_arcsec"] < 0.35)
        offsets.append((magnitude - extinction - row["mag_f158"])[bright])
    offset = np.concatenate(offsets)
    assert len(offset) > 8
    assert abs(np.nanmedian(offset) - 0.1) < 0.12  # 0.8 arcsec holds most of the light
    assert np.mean(np.abs(offset - np.nanmedian(offset)) < 0.3) > 0.8


def test_running_again_keeps_finished_tiles(small_sky: Path, tmp_path: Path) -> None:
    first = extract(SURVEY, small_sky, tmp_path / "s", size=16, shard_len=64, workers=2)
    again = extract(SURVEY, small_sky, tmp_path / "s", size=16, shard_len=64, workers=1)
    assert (first.skipped_tiles, again.skipped_tiles) == (0, first.tiles)
    assert first.sources == again.sources == len(_listed(small_sky))
    one = extract(SURVEY, small_sky, tmp_path / "t", size=16, shard_len=64, workers=1)
    stores = [CutoutStore.open(tmp_path / name) for name in "st"]
    assert one.sources == first.sources
    assert stores[0].fingerprint() == stores[1].fingerprint()  # whatever the number of processes


def test_sources_off_every_tile_are_kept_and_flagged(small_sky: Path, tmp_path: Path) -> None:
    listed = _listed(small_sky).head(5).reset_index(drop=True)
    listed.loc[1, ["ra", "dec"]] = [listed["ra"][0] + 180, -listed["dec"][0]]
    listed.loc[2, "dec"] = np.nan
    listed.to_parquet(tmp_path / "some.parquet")
    summary = extract(SURVEY, small_sky, tmp_path / "s", [tmp_path / "some.parquet"], workers=1)
    store = CutoutStore.open(tmp_path / "s")
    assert (summary.sources, summary.off_tile, store.tiles()[OFF_TILE_ID]) == (5, 2, 2)
    (key,) = [key for key in store.shards() if key.tile_id == OFF_TILE_ID]
    assert np.isnan(store.read_cutouts(key)).all()
    measured = store.read_measurements(key)
    assert np.isnan(measured.flux_NCR).all()
    assert (measured.flags_NC == int(PhotFlag.OFF_TILE | PhotFlag.NO_DATA)).all()


def test_a_tile_without_one_band_is_measured_in_the_others(small_sky: Path, tmp_path: Path) -> None:
    for path in small_sky.iterdir():
        if "t0000_" in path.name and "_f129_" not in path.name:
            shutil.copy(path, tmp_path)
    with pytest.raises(MosaicError, match="no tile has a mosaic of F129"):
        extract(SURVEY, tmp_path, tmp_path / "s", size=16, workers=1)
    summary = extract(
        SURVEY, tmp_path, tmp_path / "s", size=16, workers=1, allow_missing_bands=True
    )
    assert summary.notes == ("tile 'sim000005t0000': no mosaic of band F129",)
    store = CutoutStore.open(tmp_path / "s")
    key = next(key for key in store.shards() if key.tile_id != OFF_TILE_ID)
    assert store.tile_attributes(key.tile_id)["missing_bands"] == ["F129"]
    measured = store.read_measurements(key)
    assert np.isnan(measured.flux_NCR[:, 2]).all()
    assert (measured.flags_NC[:, 2] & PhotFlag.NO_DATA).all()
    assert np.isfinite(measured.flux_NCR[:, [0, 1, 3], 2]).mean() > 0.9


def test_a_changed_source_list_does_not_pass_for_the_old_one(small_sky: Path, tmp_path) -> None:
    listed = _listed(small_sky)
    listed.head(50).to_parquet(tmp_path / "a.parquet")
    listed.head(60).to_parquet(tmp_path / "b.parquet")
    extract(SURVEY, small_sky, tmp_path / "s", [tmp_path / "a.parquet"], size=16, workers=1)
    with pytest.raises(StoreError, match="other sources"):
        extract(SURVEY, small_sky, tmp_path / "s", [tmp_path / "b.parquet"], size=16, workers=1)


def test_a_truncated_mosaic_leaves_nothing_half_written(small_sky: Path, tmp_path: Path) -> None:
    sky = tmp_path / "sky"
    shutil.copytree(small_sky, sky)
    victim = sorted(sky.glob("*t0001_f087_coadd.asdf"))[0]
    content = victim.read_bytes()
    victim.write_bytes(content[: len(content) // 2])
    with pytest.raises(MosaicError, match="f087_coadd"):
        extract(SURVEY, sky, tmp_path / "s", size=16, workers=1)
    store = CutoutStore.open(tmp_path / "s")
    (problem,) = store.verify()
    assert victim.name.split("_")[0] in problem
    with pytest.raises(StoreError, match="not finished, 1 tiles are missing"):
        store.check_complete()
    assert not list(store.path.glob(".*.partial"))
    victim.write_bytes(content)
    extract(SURVEY, sky, tmp_path / "s", size=16, workers=1)
    store = CutoutStore.open(tmp_path / "s")
    store.check_complete()
    assert len(store) == len(_listed(sky))


def test_mosaics_that_changed_or_lie_on_another_scale_are_refused(
    small_sky: Path, tmp_path: Path
) -> None:
    sky = tmp_path / "sky"
    shutil.copytree(small_sky, sky)
    extract(SURVEY, sky, tmp_path / "s", size=16, workers=1)
    (sky / "sim000005t0001_f087_coadd.asdf").touch()
    with pytest.raises(StoreError, match="mosaics of tile 'sim000005t0001' have changed"):
        extract(SURVEY, sky, tmp_path / "s", size=16, workers=1)
    wrong, message = (
        replace(SURVEY, pixel_scale_arcsec=0.11),
        "0.055 arcsec per pixel, survey 'roman-sim' has 0.11",
    )
    with pytest.raises(MosaicError, match=message):
        extract(wrong, sky, tmp_path / "t", workers=1)
    plan = plan_extraction(wrong, sky)
    with pytest.raises(MosaicError, match=message):
        plan.lines(check=True)
    assert sum(message in line for line in plan.lines(check=False)) == len(SURVEY.bands)


def test_one_file_of_all_bands_is_a_tile(small_sky: Path, tmp_path: Path) -> None:
    files = find_mosaics(small_sky, SURVEY)["sim000005t0000"]
    tile = read_tile(files, SURVEY)
    header = tile.wcs.to_fits_tan() if hasattr(tile.wcs, "to_fits_tan") else tile.wcs.to_fits()[0]
    hdus = [fits.PrimaryHDU()]
    for c, band in enumerate(SURVEY.band_names):
        for name, plane in (("SCI", tile.image_CHW[c]), ("ERR", tile.err_CHW[c])):
            hdu = fits.ImageHDU(plane, header, name=name, ver=c + 1)
            hdu.header["FILTER"], hdu.header["BUNIT"] = band, "nJy"
            hdus.append(hdu)
    fits.HDUList(hdus).writeto(tmp_path / "all.fits")
    listed = tmp_path / "list.parquet"
    shutil.copy(small_sky / "sim000005t0000_cat.parquet", listed)
    survey = replace(SURVEY, mosaic_pattern="{tile}.fits")
    extract(survey, tmp_path / "all.fits", tmp_path / "one", [listed], size=16, workers=1)
    extract(SURVEY, str(small_sky / "*t0000*"), tmp_path / "four", [listed], size=16, workers=1)
    one, four = (CutoutStore.open(tmp_path / name) for name in ("one", "four"))
    assert set(one.tiles()) - {OFF_TILE_ID} == {"all"}
    read = [store.read_measurements(store.shards()[-1]).flux_NCR for store in (one, four)]
    np.testing.assert_allclose(read[0], read[1], rtol=1e-3, atol=0.02)


def test_what_is_not_there_is_named(small_sky: Path, tmp_path: Path) -> None:
    with pytest.raises(MosaicError, match="no such folder"):
        find_mosaics(tmp_path / "none", SURVEY)
    with pytest.raises(MosaicError, match="none of 13 file names matches survey 'candels'"):
        find_mosaics(small_sky, load_survey("candels"))
    with pytest.raises(SourceListError, match="pass --sources"):
        find_source_lists(tmp_path, SURVEY)


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["cosmos_F160W_sci.fits", "cosmos_f125w_sci.fits"], "cosmos_{band}_sci.fits"),
        (["t1-f160w.fits", "t1-f125w.fits", "t22-f160w.fits"], "{tile}-{band}.fits"),
        (["a_f160w_x_01.fits", "a_f160w_x_02.fits", "readme"], "a_{band}_x_{tile}.fits"),
        (["f160w/deep", "g_f125w.fits", "g_f125w_wht.fits"], "g_{band}.fits"),
        (["image1.fits", "image2.fits"], None),
        (["f160w_1.fits", "2_f160w.fits"], None),
        (["sub{a}_f160w.fits"], None),
    ],
)
def test_a_pattern_is_suggested_where_none_matches(
    names: list[str], pattern: str | None, tmp_path: Path
) -> None:
    survey = replace(load_survey("candels"), mosaic_pattern="other_{tile}_{band}.fits")
    for name in names:
        (tmp_path / name.replace("/", "")).write_bytes(b"")
    with pytest.raises(MosaicError, match="choose another --survey") as error:
        find_mosaics(tmp_path, survey)
    found = re.search(r'mosaic_pattern: "(.*)" would match \d of them$', str(error.value))
    assert (found and found[1]) == pattern
    if pattern is not None:
        assert find_mosaics(tmp_path, replace(survey, mosaic_pattern=pattern))


def test_rounding_steps_are_powers_of_two_below_two_hundredths_of_the_noise() -> None:
    rng = np.random.default_rng(0)
    err = np.stack([np.full((80, 80), s, dtype=np.float32) for s in (0.1, 1.0, 37.0, np.nan)])
    step = rounding_step(err)
    assert step[3] == 0
    for s, sigma in zip(step[:3], (0.1, 1.0, 37.0), strict=True):
        assert np.log2(s) == np.round(np.log2(s))
        assert 0.01 * sigma < s <= 0.02 * sigma
    cutout = rng.normal(size=(3, 4, 8, 8)).astype(np.float32) * 100
    cutout[0, 0, 0, 0] = np.nan
    rounded = cutout.copy()
    round_pixels(rounded, step)
    assert (np.nanmax(np.abs(rounded - cutout), axis=(0, 2, 3))[:3] <= step[:3] / 2).all()
    np.testing.assert_array_equal(rounded[:, 3], cutout[:, 3])
    assert np.isnan(rounded[0, 0, 0, 0])


def test_sky_that_mosaics_come_with_is_taken_off_the_cutouts_or_told_of(
    small_sky: Path, small_store: CutoutStore, tmp_path: Path
) -> None:
    """A pedestal of 20 sigma on every mosaic: the same fluxes, and cutouts without it."""
    sky = Path(shutil.copytree(small_sky, tmp_path / "sky"))
    for path in sky.glob("*_coadd.asdf"):
        with asdf.open(path, memmap=False, lazy_load=False) as file:
            tree = {**file.tree, "roman": file["roman"]}
            image, err = np.array(tree["roman"]["data"]), np.array(tree["roman"]["err"])
            tree["roman"]["data"] = (image + 20 * np.nanmedian(err)).astype(np.float32)
            asdf.AsdfFile(tree).write_to(path)
    stores, told = {}, {}
    for subtract in (False, True):
        survey = replace(SURVEY, subtract_sky=subtract)
        path = tmp_path / str(subtract)
        told[subtract] = extract(survey, sky, path, size=48, shard_len=64, workers=1).notes
        stores[subtract] = CutoutStore.open(path)
    (note, _) = told[False]
    assert "hold a sky of 20." in note
    assert "subtract_sky: true" in note
    assert not told[True]
    tile = read_tile(find_mosaics(small_sky, SURVEY)[small_store.shards()[0].tile_id], SURVEY)
    noise_C = np.nanmedian(tile.err_CHW, axis=(1, 2))
    for key in small_store.shards():
        measured = [s.read_measurements(key) for s in (small_store, *stores.values())]
        for other in measured[1:]:
            np.testing.assert_allclose(
                other.flux_NCR, measured[0].flux_NCR, rtol=1e-3, atol=0.05 * noise_C.max() * 30
            )
        plain, with_sky, without = (
            s.read_cutouts(key) / noise_C[:, None, None] for s in (small_store, *stores.values())
        )
        np.testing.assert_allclose(np.nanmedian(with_sky - plain), 20, atol=0.5)
        # What is left is the error of the local sky, and what of the sky was there before.
        left_NC = np.nanmedian(without - plain, axis=(2, 3))
        assert np.nanmedian(np.abs(left_NC)) < 0.15
        np.testing.assert_array_equal(np.isnan(without), np.isnan(plain))


def test_without_a_known_sky_there_is_no_image_of_it(small_sky: Path, tmp_path: Path) -> None:
    """As there is no flux: an annulus off every tile."""
    with pytest.raises(ValueError, match="subtract_sky needs a sky_annulus_arcsec"):
        replace(SURVEY, subtract_sky=True, sky_annulus_arcsec=())
    nowhere = replace(SURVEY, subtract_sky=True, sky_annulus_arcsec=(100.0, 101.0))
    extract(nowhere, small_sky, tmp_path / "s", size=16, shard_len=64, workers=1)
    store = CutoutStore.open(tmp_path / "s")
    key = store.shards()[0]
    assert np.isnan(store.read_measurements(key).flux_NCR).all()
    assert np.isnan(store.read_cutouts(key)).all()


def _named_files(folder: Path, *names: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return [folder / name for name in names]


def test_linked_tile_folders_are_found(tmp_path: Path) -> None:
    top, away = tmp_path / "mosaics", tmp_path / "away"
    own = _named_files(top / "a", "a_f158_coadd.asdf", "a_cat.parquet")
    linked = _named_files(away, "b_f158_coadd.asdf", "b_cat.parquet")
    (top / "b").symlink_to(away)
    (away / "loop").symlink_to(top)
    notes: list[str] = []
    found = find_mosaics(top, SURVEY, notes)
    assert {tile: bands["F158"].resolve() for tile, bands in found.items()} == {
        "a": own[0],
        "b": linked[0],
    }
    assert {path.resolve() for path in find_source_lists(top, SURVEY)} == {own[1], linked[1]}
    assert notes == []


def test_two_names_of_one_mosaic_are_read_once(tmp_path: Path) -> None:
    (file,) = _named_files(tmp_path / "a", "t_f158_coadd.asdf")
    (tmp_path / "z_links").mkdir()
    (tmp_path / "z_links" / file.name).symlink_to(file)
    notes: list[str] = []
    assert find_mosaics(tmp_path, SURVEY, notes) == {"t": {"F158": file}}
    assert notes == [
        f"{tmp_path}/z_links/{file.name} is {file} under another name; it is read once"
    ]
    (tmp_path / "z_links" / "t_f129_coadd.asdf").symlink_to(tmp_path / "gone")
    with pytest.raises(MosaicError, match=r"t_f129_coadd\.asdf: a broken link"):
        find_mosaics(tmp_path, SURVEY)


@pytest.mark.parametrize(
    ("kind", "pixel_scale_arcsec", "noted"),
    [(np.float32, 0.055, True), (np.float64, 0.055, False), (np.float32, 1.5, False)],
)
def test_positions_in_single_precision_are_told_of(
    tmp_path: Path, kind: type, pixel_scale_arcsec: float, noted: bool
) -> None:
    ra_N, dec_N = 150 + np.random.default_rng(0).uniform(0, 0.1, (2, 20))
    table = {"source_id": range(20), "ra": ra_N.astype(kind), "dec": (dec_N - 148).astype(kind)}
    pd.DataFrame(table).to_parquet(tmp_path / "cat.parquet")
    survey = replace(SURVEY, pixel_scale_arcsec=pixel_scale_arcsec)
    lists = [tmp_path / "cat.parquet"]
    notes: list[str] = []
    sources_to_measure(
        read_survey_lists(lists, survey), lists, np.zeros(20, int), ["t"], survey, notes
    )
    worst_pix = np.abs(ra_N.astype(np.float32) - ra_N).max() * 3600 / pixel_scale_arcsec
    assert (
        any("single precision" in note for note in notes)
        == noted
        == (kind is np.float32 and worst_pix > 0.04)
    )
