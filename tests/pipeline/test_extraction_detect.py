"""Detection: against the truth of a simulated sky, a plain SEP call, and with overlapping tiles."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import sep
from astropy.io import fits
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from builders.paths import DATA
from photozhpc.cli import main
from photozhpc.errors import ConfigError, MosaicError, SourceListError
from photozhpc.extraction import detect as extract_detect
from photozhpc.extraction.detect import check_names, make_source_list, tile_number
from photozhpc.extraction.extract import extract
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.mosaic import detect
from photozhpc.mosaic.detect import detect_sources, first_sightings
from photozhpc.mosaic.tile import read_tile
from photozhpc.store import CutoutStore
from photozhpc.survey import Band, Survey, load_survey

SURVEY = load_survey("roman-sim")
ONE_FILE = replace(SURVEY, mosaic_pattern="{tile}.fits")


@pytest.fixture(scope="module")
def tile(small_sky: Path):
    return read_tile(find_mosaics(small_sky, SURVEY)["sim000005t0000"], SURVEY)


@pytest.fixture(scope="module")
def quadrants(tile, tmp_path_factory) -> Path:
    """The tile as four overlapping ones of 420 px, each with some noise of its own."""
    folder = tmp_path_factory.mktemp("quadrants")
    header = tile.wcs.to_fits_tan() if hasattr(tile.wcs, "to_fits_tan") else tile.wcs.to_fits()[0]
    rng = np.random.default_rng(0)
    for i, j in ((0, 0), (0, 280), (280, 0), (280, 280)):
        hdus = [fits.PrimaryHDU()]
        part = (slice(i, i + 420), slice(j, j + 420))
        for c, band in enumerate(SURVEY.band_names):
            noise = 0.2 * np.nanmedian(tile.err_CHW[c]) * rng.normal(size=(420, 420))
            image = (tile.image_CHW[c][part] + noise).astype(np.float32)
            for name, plane in (("SCI", image), ("ERR", tile.err_CHW[c][part])):
                hdu = fits.ImageHDU(plane, header, name=name, ver=c + 1)
                hdu.header["CRPIX1"] -= j
                hdu.header["CRPIX2"] -= i
                hdu.header["FILTER"], hdu.header["BUNIT"] = band, "nJy"
                hdus.append(hdu)
        fits.HDUList(hdus).writeto(folder / f"q{i:03d}-{j:03d}.fits")
    return folder


def test_completeness_and_purity_against_the_truth(small_sky: Path, tile) -> None:
    found = detect_sources(tile, SURVEY, None, 5)
    truth = pd.read_parquet(small_sky / "sim000005t0000_truth.parquet")
    y, x = tile.sky_to_pixel(truth["ra"], truth["dec"])
    place = np.column_stack([found.y_N, found.x_N])
    distance, nearest = cKDTree(place).query(np.column_stack([y, x]))
    inside = np.minimum.reduce([y, x, 699 - y, 699 - x]) > 10
    crowd = cKDTree(np.column_stack([y, x])).query(np.column_stack([y, x]), 2)[0][:, 1]
    alone = inside & (crowd > 20)
    assert np.mean(distance[alone & (truth["mag_f158"] < 24.5)] < 4) > 0.97
    assert np.mean(distance[inside] < 4) > 0.85
    bright = alone & (truth["mag_f158"] < 23.5) & (distance < 4)
    off = np.hypot(*(place[nearest] - np.column_stack([y, x])).T)
    assert np.median(off[bright]) < 0.3
    # The truth ends at 25.5, the sky at 26.2: what is spurious shows in the negative of the sky.
    negative = replace(tile, image_CHW=-tile.image_CHW)
    assert len(detect_sources(negative, SURVEY, None, 5).y_N) <= 0.02 * len(found.y_N)


def test_a_real_image_gives_what_a_plain_sep_call_gives() -> None:
    """HST WFPC2 of Abell 478, one band: the image over its error, drizzled, so correlated."""
    survey = Survey("hst", (Band("F814W", 0.15, 1.5),), 0.1)
    tile = read_tile(DATA / "a478_f814w_drz.fits", survey)
    image, err = tile.image_CHW[0], tile.err_CHW[0]
    bad = ~np.isfinite(image)
    sky = sep.Background(np.where(bad, 0, image).astype(np.float32), mask=bad)
    ratio = np.where(bad, 0, (image - sky.back()) / err).astype(np.float32)
    sigma = 0.15 / 0.1 / np.sqrt(8 * np.log(2))
    offset = np.arange(-1, 2)
    line = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel = np.outer(line, line)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    raised = detect._correlation(tile, np.ones(1), kernel)
    assert 1.05 < raised < 2
    plain = sep.extract(
        ratio,
        detect.FILTERED_SIGMA * np.sqrt(np.sum(kernel**2)) * raised,
        err=sep.Background(ratio, mask=bad).rms(),
        mask=bad,
        filter_kernel=kernel,
        filter_type="conv",
    )
    found = detect_sources(tile, survey, None, 5)
    assert len(found.y_N) == len(plain) > 5
    order = np.lexsort((plain["x"], plain["y"]))
    off = np.hypot(found.y_N - plain["y"][order], found.x_N - plain["x"][order])
    assert off.max() < 0.3
    assert np.mean(off < 0.01) > 0.8


@pytest.mark.parametrize("kind", ["white", "steps", "patches", "resampled", "pedestal"])
def test_noise_has_no_sources(tile, kind: str) -> None:
    """Half a million pixels of it; errors are those of a pixel, as mosaics have them."""
    rng = np.random.default_rng(7)
    shape = tile.image_CHW.shape
    noise = rng.normal(size=shape)
    err = np.ones(shape)
    if kind == "steps":  # exposures that end
        err[:, :, 300:] = 3
        err[:, 350:390] = 2
    elif kind == "patches":
        err += 2 * (rng.random((1, 44, 44)).repeat(16, 1).repeat(16, 2) > 0.7)[:, :700, :700]
    elif kind == "resampled":  # whose errors, moreover, are those of before
        noise = gaussian_filter(noise, 0.8, axes=(1, 2))
    image = noise * err
    if kind == "pedestal":
        image += np.array([20, 25, 30, 40])[:, None, None]
        image[1, :, 400:] = np.nan
    planes = {"image_CHW": image.astype(np.float32), "err_CHW": err.astype(np.float32)}
    assert len(detect_sources(replace(tile, **planes), SURVEY, None, 5).y_N) <= 1


def test_a_source_is_found_in_resampled_noise_too(tile) -> None:
    """Stars at 12 sigma of the filtered noise, each once and little else."""
    rng = np.random.default_rng(8)
    white, image = np.zeros((2, *tile.image_CHW.shape))
    white += rng.normal(size=white.shape)
    noise = gaussian_filter(white, 0.8, axes=(1, 2))
    y, x = (axis.ravel() for axis in np.mgrid[30:700:60, 30:700:60])
    image[:, y, x] = 1
    image = gaussian_filter(image, 1.1, axes=(1, 2))
    filtered = gaussian_filter(noise.mean(axis=0), 1.1).std()
    image *= 12 * filtered / gaussian_filter(image[0], 1.1).max()
    planes = {
        "image_CHW": (image + noise).astype(np.float32),
        "err_CHW": np.full(image.shape, noise.std(), np.float32),
    }
    found = detect_sources(replace(tile, **planes), SURVEY, None, 5)
    place = np.column_stack([found.y_N, found.x_N])
    distance, _ = cKDTree(place).query(np.column_stack([y, x]))
    assert np.mean(distance < 2) > 0.97
    assert len(place) <= 1.02 * len(y)


@pytest.mark.parametrize("fwhm_pix", [0.5, 1.0, 2.4, 4.0, 8.0])
def test_the_default_threshold_finds_the_same_signal_for_any_psf(tile, fwhm_pix: float) -> None:
    """1.5 sigma of the unfiltered noise found no star of 10 sigma where the PSF has 6 px, and took
    hundreds of peaks of the noise for stars where it has less than one.
    """
    signal = 10 if fwhm_pix > 2 else 16
    rng = np.random.default_rng(9)
    survey = Survey("s", (Band("B", 0.1 * fwhm_pix, 1.0),), 0.1)
    sigma = max(fwhm_pix / np.sqrt(8 * np.log(2)), 0.6)
    image = np.zeros((1, 960, 960))
    y, x = (axis.ravel() for axis in np.mgrid[30:960:60, 30:960:60])
    image[:, y, x] = signal * 2 * np.sqrt(np.pi) * sigma
    image = gaussian_filter(image, (0, sigma, sigma)) + rng.normal(size=image.shape)
    noisy = replace(
        tile,
        band_names=("B",),
        image_CHW=image.astype(np.float32),
        err_CHW=np.ones(image.shape, np.float32),
        mask_HW=np.zeros(image.shape[1:], np.bool_),
        pixel_area_arcsec2=0.01,
    )
    found = detect_sources(noisy, survey, None, 5)
    place = np.column_stack([found.y_N, found.x_N])
    stars = np.column_stack([y, x])
    assert np.mean(cKDTree(place).query(stars)[0] < 3) > 0.98
    assert np.count_nonzero(cKDTree(stars).query(place)[0] > 5) <= 3


def test_blocks_find_what_the_whole_tile_does(tile, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = detect_sources(tile, SURVEY, None, 5)
    monkeypatch.setattr(detect, "BLOCK_PIX", 192)
    monkeypatch.setattr(detect, "MARGIN_PIX", 192)
    blocks = detect_sources(tile, SURVEY, None, 5)
    places = [np.column_stack([found.y_N, found.x_N]) for found in (whole, blocks)]
    distance = cKDTree(places[0]).query(places[1])[0]
    assert abs(len(places[0]) - len(places[1])) <= 0.03 * len(places[0])
    assert np.mean(distance < 0.5) > 0.95
    assert cKDTree(places[1]).query(places[1], 2)[0][:, 1].min() > 1


def test_lost_pixels_bands_and_meshes_do_not_make_sources(tile) -> None:
    image, err = tile.image_CHW.copy(), tile.err_CHW.copy()
    image[:, :300], err[:, :300] = np.nan, np.nan  # no data at all
    image[2], err[2] = np.nan, np.nan  # a band that is missing
    image[0, :, 500:], err[0, :, 500:] = np.nan, np.nan  # a band that ends
    holed = replace(tile, image_CHW=image, err_CHW=err)
    found = detect_sources(holed, SURVEY, None, 5)
    whole = detect_sources(tile, SURVEY, None, 5)
    assert found.y_N.min() > 299
    at_seam = np.count_nonzero(np.abs(found.x_N - 500) < 5)
    assert at_seam <= np.count_nonzero(np.abs(whole.x_N - 500) < 5) + 1
    assert 0.7 < len(found.y_N) / np.count_nonzero(whole.y_N > 300) < 1.1
    nothing = replace(
        tile, image_CHW=np.full_like(image, np.nan), err_CHW=np.full_like(err, np.nan)
    )
    assert len(detect_sources(nothing, SURVEY, None, 5).y_N) == 0


def test_of_two_sightings_the_deeper_is_kept() -> None:
    place = np.array([[0.0, 0], [0, 1], [5, 5], [5, 6], [9, 9], [9, 9.5]])
    group = np.array([0, 1, 0, 1, 1, 1])
    depth = np.array([3.0, 2, 1, 1, 0, 0])
    keep = first_sightings(place, group, depth, 2.0)
    assert keep.tolist() == [True, False, True, False, True, True]
    assert first_sightings(np.empty((0, 2)), group[:0], depth[:0], 2.0).shape == (0,)


def test_sources_in_overlaps_are_found_once(tile, quadrants: Path, tmp_path: Path) -> None:
    summary = make_source_list(ONE_FILE, quadrants, tmp_path / "q.parquet", workers=1)
    listed = pd.read_parquet(tmp_path / "q.parquet")
    assert summary.sources == len(listed) == listed["source_id"].nunique()
    assert summary.repeats > 20
    whole = detect_sources(tile, SURVEY, None, 5)
    y, x = tile.sky_to_pixel(listed["ra"], listed["dec"])
    ours, theirs = np.column_stack([y, x]), np.column_stack([whole.y_N, whole.x_N])
    nearest, other = cKDTree(ours).query(ours, 2)
    same = listed["tile_id"].to_numpy() == listed["tile_id"].to_numpy()[other[:, 1]]
    assert same[nearest[:, 1] < 3].all()  # what is closer was told apart on one tile
    assert np.mean(cKDTree(ours).query(theirs)[0] < 3) > 0.93
    assert np.mean(cKDTree(theirs).query(ours)[0] < 3) > 0.93
    # Each is on the tile on which it lies deepest, up to the width of the seam.
    depth = {
        f"q{i:03d}-{j:03d}": np.minimum.reduce([y - i, i + 419 - y, x - j, j + 419 - x])
        for i in (0, 280)
        for j in (0, 280)
    }
    deepest = np.max(list(depth.values()), axis=0)
    for tile_id, here in depth.items():
        mine = (listed["tile_id"] == tile_id).to_numpy()
        assert mine.sum() > 10
        assert np.all(here[mine] >= deepest[mine] - 6.1)


def test_identifiers_do_not_depend_on_processes_runs_or_other_tiles(
    quadrants: Path, tmp_path: Path
) -> None:
    one, two, alone = (tmp_path / f"{name}.parquet" for name in ("one", "two", "alone"))
    make_source_list(ONE_FILE, quadrants, one, workers=1)
    make_source_list(ONE_FILE, quadrants, two, workers=2)
    assert one.read_bytes() == two.read_bytes()
    make_source_list(ONE_FILE, quadrants / "q000-280.fits", alone, workers=1)
    listed, single = pd.read_parquet(one), pd.read_parquet(alone).set_index("source_id")
    rows = listed[listed["tile_id"] == "q000-280"]
    np.testing.assert_array_equal(single.loc[rows["source_id"], "ra"], rows["ra"])
    assert (rows["source_id"] // 2**24 == tile_number("q000-280")).all()
    assert listed["source_id"].dtype == np.int64
    assert (listed["source_id"] > 0).all()
    assert make_source_list(ONE_FILE, quadrants, one).present


def test_a_stopped_detection_goes_on(quadrants: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "a.parquet", tmp_path / "b.parquet"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_source_list(ONE_FILE, quadrants, out, workers=1, progress=stop)
    assert not out.exists()
    assert len(list((tmp_path / ".a.parquet.tiles").iterdir())) == 2
    seen: list[int] = []
    make_source_list(
        ONE_FILE, quadrants, out, workers=1, progress=lambda done, total: seen.append(done)
    )
    assert seen == [2, 3, 4]
    make_source_list(ONE_FILE, quadrants, again, workers=1)
    assert out.read_bytes() == again.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    with pytest.raises(SourceListError, match="from other mosaics or in another way"):
        make_source_list(ONE_FILE, quadrants, out, threshold=2.0)


def test_of_two_runs_at_once_one_may_be_done_first(
    quadrants: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "list.parquet"
    detect_tile = extract_detect._detect_tile

    def overtaken(*job: Any) -> list[str]:
        if not out.exists():
            monkeypatch.setattr(extract_detect, "_detect_tile", detect_tile)
            make_source_list(ONE_FILE, quadrants, out, workers=1)
        return detect_tile(*job)

    monkeypatch.setattr(extract_detect, "_detect_tile", overtaken)
    summary = make_source_list(ONE_FILE, quadrants, out, workers=1)
    assert summary.present
    assert summary.sources == len(pq.read_table(out)) > 0


def test_what_is_detected_is_extracted_with_the_surveys_column_names(
    quadrants: Path, tmp_path: Path
) -> None:
    columns = replace(SURVEY.source_columns, source_id=("NUMBER", "ID"), ra="ALPHA", dec="DELTA")
    survey = replace(ONE_FILE, source_columns=columns)
    with pytest.raises(SourceListError, match="or make one with 'photozhpc detect'"):
        extract(survey, quadrants, tmp_path / "s", size=16)
    make_source_list(survey, quadrants, tmp_path / "list.parquet", workers=1)
    names = pq.read_schema(tmp_path / "list.parquet").names
    assert names == ["NUMBER", "ALPHA", "DELTA", "tile_id", "detect_flags"]
    summary = extract(survey, quadrants, tmp_path / "s", [tmp_path / "list.parquet"], 16, workers=1)
    listed = pd.read_parquet(tmp_path / "list.parquet")
    assert summary.sources == len(listed)
    assert summary.off_tile == 0
    store = CutoutStore.open(tmp_path / "s")
    for tile_id, rows in listed.groupby("tile_id", observed=True):
        stored = np.concatenate(
            [store.read_sources(k).source_id_N for k in store.shards() if k.tile_id == tile_id]
        )
        # Measured where it was found, but for sources on the seam.
        assert len(set(stored) & set(rows["NUMBER"])) > 0.9 * len(rows)


def test_faults_are_one_line(quadrants: Path, tile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name it \*\.parquet"):
        make_source_list(ONE_FILE, quadrants, tmp_path / "x.csv")
    with pytest.raises(ConfigError, match="must be positive"):
        make_source_list(ONE_FILE, quadrants, tmp_path / "x.parquet", threshold=float("nan"))
    with pytest.raises(SourceListError, match="no source has 5 px above the threshold; lower"):
        make_source_list(ONE_FILE, quadrants, tmp_path / "x.parquet", threshold=1e6, workers=1)
    (tmp_path / "y.parquet").write_bytes(b"something else")
    with pytest.raises(SourceListError, match="choose another --out"):
        make_source_list(ONE_FILE, quadrants, tmp_path / "y.parquet")
    with pytest.raises(MosaicError, match="no such folder"):
        make_source_list(ONE_FILE, tmp_path / "none", tmp_path / "z.parquet")
    named = tmp_path / "mañana"
    named.mkdir()
    (named / "mañana.fits").write_bytes(next(iter(quadrants.iterdir())).read_bytes())
    with pytest.raises(MosaicError, match=r"use letters, digits, . _ \+ -"):
        make_source_list(ONE_FILE, named, tmp_path / "z.parquet")
    steep = replace(tile, image_CHW=np.abs(tile.image_CHW) + 1e-3)
    assert len(detect_sources(steep, SURVEY, None, 5).y_N) > 0
    found = {"a": {}, "b": {}}
    check_names(found)
    told = CliRunner().invoke(main, ["detect", "--survey", "roman-sim", "--mosaics", str(tmp_path)])
    assert told.exit_code == 2
    assert "--out" in told.stderr


def test_tiles_whose_names_share_a_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("photozhpc.extraction.detect.tile_number", len)
    with pytest.raises(SourceListError, match="tiles 'aa' and 'bb' give the same identifiers"):
        check_names({"aa": {}, "b": {}, "bb": {}})
