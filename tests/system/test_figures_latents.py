"""Latents: what is read, the number for smoothness, and the figure."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from astropy.table import Table
from matplotlib.image import imread

import photozhpc.figures.latents as latents_module
import photozhpc.figures.latents_report as report_module
from builders.models import tiny_checkpoint
from photozhpc.errors import ConfigError, SourceListError
from photozhpc.figures.latents import Latents, concentration, magnitudes, read_latents
from photozhpc.figures.latents_figure import LatentMap, nearest_to_cells, plot_latents
from photozhpc.figures.latents_report import map_latents, report_latents
from photozhpc.figures.latents_smoothness import embed, smoothness, standardise
from photozhpc.model import bundled_checkpoint, load_checkpoint
from photozhpc.model.augment import prepare
from photozhpc.model.engine import Engine, native_precision
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    return tiny_checkpoint(path)


def told_by_neighbours(point_ND: np.ndarray, z_N: np.ndarray, k: int) -> np.ndarray:
    """The oracle: sort all the distances of every point."""
    z_told_N = np.empty(len(z_N))
    for i, point in enumerate(point_ND):
        distance_N = np.sqrt(((point_ND - point) ** 2).sum(axis=1))
        distance_N[i] = np.inf
        z_told_N[i] = np.expm1(np.mean(np.log1p(z_N[np.argsort(distance_N)[:k]])))
    return z_told_N


def test_smoothness_is_what_all_pairs_say() -> None:
    rng = np.random.default_rng(0)
    latent_ND = (rng.normal(size=(150, 6)) * [1, 5, 0.1, 1, 1, 0] + 3).astype(np.float32)
    z_N = rng.uniform(0.1, 3, 150)
    found = smoothness(latent_ND, z_N, k=7)
    std_D = latent_ND.std(axis=0)
    scaled_ND = (latent_ND - latent_ND.mean(axis=0)) / np.where(std_D > 0, std_D, 1)
    dz_N = (z_N - told_by_neighbours(scaled_ND, z_N, 7)) / (1 + z_N)
    assert found.nmad == pytest.approx(1.4826 * np.median(np.abs(dz_N - np.median(dz_N))))
    assert found.rms == pytest.approx(np.sqrt(np.mean(dz_N**2)))
    assert found.n == 150


def test_a_smooth_manifold_is_far_smoother_than_noise_and_a_shuffle_is_noise() -> None:
    rng = np.random.default_rng(1)
    z_N = rng.uniform(0.1, 3, 1500)
    t_N = np.log1p(z_N)
    curve_ND = np.stack([t_N, np.sin(3 * t_N), t_N**2, np.cos(2 * t_N)], axis=1)
    smooth = smoothness(curve_ND + 0.01 * rng.normal(size=curve_ND.shape), z_N)
    noise = smoothness(rng.normal(size=(1500, 4)), z_N)
    assert smooth.nmad < 0.02 < 0.3 < noise.nmad
    assert smooth.nmad_shuffled == pytest.approx(noise.nmad, rel=0.15)
    assert noise.rms == pytest.approx(noise.rms_shuffled, rel=0.1)


def test_a_source_is_not_its_own_neighbour_even_among_duplicates() -> None:
    latent_ND = np.repeat(np.arange(20.0)[:, None], 2, axis=0)
    z_N = np.tile([0.5, 1.5], 20)  # the other of each pair has the other redshift
    dz_N = (z_N - z_N[::-1]) / (1 + z_N)
    assert smoothness(latent_ND, z_N, k=1).rms == pytest.approx(np.sqrt(np.mean(dz_N**2)))


def test_sources_without_a_redshift_do_not_count() -> None:
    rng = np.random.default_rng(2)
    latent_ND, z_N = rng.normal(size=(90, 3)), rng.uniform(0.1, 2, 90)
    with_gaps_N = np.where(np.arange(90) % 3 == 0, np.nan, z_N)
    known_N = np.isfinite(with_gaps_N)
    assert smoothness(latent_ND, with_gaps_N) == smoothness(latent_ND[known_N], z_N[known_N])


def test_standardised_latents_have_unit_variance_or_none() -> None:
    latent_ND = np.random.default_rng(3).normal(5, 2, (50, 4)).astype(np.float32)
    latent_ND[:, 2] = 7
    scaled_ND = standardise(latent_ND)
    np.testing.assert_allclose(scaled_ND.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled_ND.std(axis=0), [1, 1, 0, 1], atol=1e-6)


def test_what_is_read_is_what_the_model_says(small_store: CutoutStore, checkpoint: Path) -> None:
    latents = read_latents(checkpoint, small_store.path, 60, seed=3)
    assert 50 < len(latents) <= 60
    assert latents.latent_ND.shape == (len(latents), 16)
    assert latents.latent_ND.dtype == np.float32
    one = load_checkpoint(checkpoint)
    rows = {}
    for key in small_store.shards():
        sources, cutouts = small_store.read_sources(key), small_store.read_cutouts(key)
        flux_NCR = small_store.read_measurements(key).flux_NCR
        for i, source_id in enumerate(sources.source_id_N):
            rows[source_id] = (cutouts[i], sources.ebv_N[i], flux_NCR[i])
    cutout_NCSS, ebv_N, flux_NCR = (
        np.stack(column)
        for column in zip(*(rows[source_id] for source_id in latents.source_id_N), strict=True)
    )
    model = one.model
    image_NCHW = prepare(
        torch.from_numpy(cutout_NCSS),
        torch.from_numpy(ebv_N),
        model.extinction_r_C,
        model.noise_C,
        32,
        "asinh",
    )
    with torch.no_grad():
        expected = model(image_NCHW)
    # The encoder is computed in bfloat16 where that is native; it keeps 8 bits.
    loose = 0.05 if native_precision(torch.device("cpu")) == torch.bfloat16 else 1e-3
    for found, wanted in (
        (latents.latent_ND, expected.latent_BD.numpy()),
        (latents.z_phot_N, expected.z_phot_B.numpy()),
    ):
        np.testing.assert_allclose(found, wanted, atol=loose * np.abs(wanted).max())
    r_C = np.array([band.extinction_r for band in SURVEY.bands])
    expected_NC = flux_NCR[:, :, 2] * 10 ** (0.4 * ebv_N[:, None] * r_C)
    mag_NC = magnitudes(latents)
    positive_NC = expected_NC > 0
    assert (np.isfinite(mag_NC) == positive_NC).all()
    mag_expected = 31.4 - 2.5 * np.log10(expected_NC[positive_NC])
    np.testing.assert_allclose(mag_NC[positive_NC], mag_expected, atol=1e-4)
    shown_G3HW = cutout_NCSS[latents.image_row_G][:, [3, 1, 0], 6:42, 6:42]
    np.testing.assert_array_equal(latents.image_G3HW, shown_G3HW)


def test_the_redshifts_are_those_of_a_catalogue(small_store: CutoutStore) -> None:
    path = bundled_checkpoint("roman-sim")  # it reports the median of its density
    latents = read_latents(path, small_store.path, 60, seed=3)
    engine = Engine(load_checkpoint(path))
    catalogue = {}
    for key in small_store.shards():
        sources = small_store.read_sources(key)
        measured = small_store.read_measurements(key)
        prediction = engine.predict(small_store.read_cutouts(key), sources.ebv_N, measured)
        catalogue |= dict(zip(sources.source_id_N, prediction.z_phot_N, strict=True))
    expected_N = np.array([catalogue[source_id] for source_id in latents.source_id_N])
    assert np.median(np.abs(latents.z_phot_N - expected_N)) < 1e-3


def test_the_subset_is_the_seeds_and_memory_is_bounded(
    small_store: CutoutStore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents_module, "MAX_IMAGES", 15)
    monkeypatch.setattr(latents_module, "_BLOCK_LEN", 40)  # of shards of 64
    lengths = []
    read = CutoutStore.read_cutouts

    def counted(self, key, rows=slice(None)):
        cutouts = read(self, key, rows)
        lengths.append(len(cutouts))
        return cutouts

    monkeypatch.setattr(CutoutStore, "read_cutouts", counted)
    first, again, other = (read_latents(checkpoint, small_store.path, 30, s) for s in (1, 1, 2))
    assert max(lengths) <= 40
    assert len(first.image_G3HW) == len(first.image_row_G) <= 15
    np.testing.assert_array_equal(first.source_id_N, again.source_id_N)
    assert set(first.source_id_N) != set(other.source_id_N)
    assert len(set(first.source_id_N)) == len(first)
    keep_N = np.arange(len(first)) % 2 == 1
    half = first.take(keep_N)
    images = dict(zip(first.source_id_N[first.image_row_G], first.image_G3HW, strict=True))
    assert 0 < len(half.image_row_G) < len(first.image_row_G)
    for source_id, image in zip(half.source_id_N[half.image_row_G], half.image_G3HW, strict=True):
        np.testing.assert_array_equal(image, images[source_id])


def test_the_images_are_those_nearest_to_the_cells_centres() -> None:
    point_G2 = np.random.default_rng(4).uniform([-2, 10], [3, 11], (40, 2))
    row_YX = nearest_to_cells(point_G2, (-2, 3, 10, 11), 5)
    for iy in range(5):
        for ix in range(5):
            x, y = -2 + (ix + 0.5), 10 + (iy + 0.5) / 5
            dx_G, dy_G = point_G2[:, 0] - x, 5 * (point_G2[:, 1] - y)
            inside = np.flatnonzero((np.abs(dx_G) <= 0.5) & (np.abs(dy_G) <= 0.5))
            nearest = min(inside, key=lambda g: np.hypot(dx_G[g], dy_G[g]), default=-1)
            assert row_YX[iy, ix] == nearest


def synthetic_map(name: str, n: int, seed: int) -> LatentMap:
    rng = np.random.default_rng(seed)
    z_N = rng.uniform(0.1, 3, n)
    latent_ND = np.stack([np.log1p(z_N), rng.normal(size=n)], axis=1).astype(np.float32)
    latents = Latents(
        checkpoint_path=Path(f"{name}.safetensors"),
        checkpoint_sha256="0" * 64,
        store_path=Path("store"),
        survey=SURVEY,
        seed=seed,
        source_id_N=np.arange(n),
        latent_ND=latent_ND,
        z_phot_N=(z_N + 0.05 * rng.normal(size=n)).astype(np.float32),
        z_spec_N=np.full(n, np.nan, np.float32),
        flux_NCR=rng.normal(300, 200, (n, 4, 5)).astype(np.float32),  # some are negative
        image_row_G=np.arange(0, n, 2),
        image_G3HW=rng.normal(size=(len(range(0, n, 2)), 3, 36, 36)).astype(np.float32),
    )
    z_ref_N = np.where(np.arange(n) % 4 == 0, np.nan, z_N)
    size_N, label = concentration(latents)
    return LatentMap(
        name,
        latents,
        latent_ND,
        z_ref_N,
        size_N,
        label,
        of_latents=smoothness(latent_ND, z_ref_N),
        of_plane=smoothness(latent_ND, z_ref_N),
    )


def test_the_figure_has_its_panels_and_both_models_the_same_colours(tmp_path: Path) -> None:
    maps = [synthetic_map("self-supervised", 1200, 0), synthetic_map("PITA", 300, 1)]
    figure = plot_latents(maps, tmp_path / "latents.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latents.pdf", "latents.png"]
    assert imread(tmp_path / "latents.png").shape[:2] == (2700, 2100)
    assert (tmp_path / "latents.pdf").read_bytes().startswith(b"%PDF")
    first, second = figure.subfigs
    assert first.axes[0].get_title() == "self-supervised  (N = 1200)"
    assert second.axes[0].get_title() == "PITA  (N = 300)"
    expected = [
        "F158 magnitude (AB)",
        "F062 − F158 (mag)",
        "reference redshift",
        "photometric redshift",
        "mag(r < 0.1″) − mag(r < 0.4″)",
    ]
    ranges = []
    for column in (first, second):
        bars = [axes for axes in column.axes if axes.get_label() == "<colorbar>"]
        assert [bar.get_xlabel() for bar in bars] == expected
        ranges.append([bar._colorbar.mappable.get_clim() for bar in bars])
    assert ranges[0] == ranges[1]
    assert ranges[0][2] == ranges[0][3]
    text = [item.get_text() for item in second.axes[-1].texts]
    assert f"{maps[1].of_latents.nmad:.3f}" in text
    assert "10 neighbours, N = 225" in text


def test_a_report_of_two_models(
    small_store: CutoutStore,
    small_sky: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # UMAP takes seconds to import and compile; see the slow test below.
    monkeypatch.setattr(report_module, "import_umap", lambda: None)
    monkeypatch.setattr(report_module, "embed", lambda latent_ND, seed: latent_ND[:, :2])
    truth = [small_sky / "*_truth.parquet"]
    copy = tmp_path / "other" / "tiny.safetensors"
    copy.parent.mkdir()
    copy.write_bytes(checkpoint.read_bytes())
    lines = report_latents([checkpoint, copy], small_store.path, tmp_path / "out", truth, 40, 5)
    document = json.loads((tmp_path / "out" / "latents.json").read_text())
    assert document["store_sha256"] == small_store.fingerprint()
    assert document["seed"] == 5
    one, two = document["models"]
    assert two["name"] == "other/tiny"
    assert one["checkpoint_sha256"] == load_checkpoint(checkpoint).sha256
    assert one["smoothness_of_latents"] == two["smoothness_of_latents"]
    assert one["size"] == "half-light radius (arcsec)"
    # every source of a simulated sky is in the truth, and stars are left out
    assert one["smoothness_of_latents"]["n"] == one["n"] <= 40
    assert f"{two['smoothness_of_umap_plane']['nmad']:.4f} in the UMAP plane" in lines
    assert (tmp_path / "out" / "latents.pdf").is_file()


def test_without_truth_the_labels_and_a_concentration_do(
    small_store: CutoutStore, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "embed", lambda latent_ND, seed: latent_ND[:, :2])
    one = map_latents("tiny", read_latents(checkpoint, small_store.path, 60, 0), ())
    labelled_N = np.isfinite(one.latents.z_spec_N)
    assert 0 < one.of_latents.n == labelled_N.sum() < len(one.latents)
    assert one.size_label == "mag(r < 0.1″) − mag(r < 0.4″)"
    assert np.nanmedian(one.size_N) > 0


@pytest.mark.parametrize("suffix", [".fits", ".csv", ".parquet"])
def test_truth_tables_may_lack_columns_and_sources(tmp_path: Path, suffix: str) -> None:
    full, bare = tmp_path / f"full{suffix}", tmp_path / f"bare{suffix}"
    one = pd.DataFrame({"source_id": [9, 4], "z_true": [1.0, 0.0], "is_star": [0, 1]})
    one["half_light_radius_arcsec"] = [0.3, 0.0]
    two = pd.DataFrame({"source_id": [2**60 + 1, 5], "z_true": [2.0, 0.5]})
    for table, path in ((one, full), (two, bare)):
        if suffix == ".parquet":
            table.to_parquet(path)
        else:
            Table.from_pandas(table).write(path)
    known = report_module._read_truth([full, bare], np.array([2**60 + 1, 4, 7, 9]))
    assert known["is_star"].tolist() == [False, True, False, False]
    np.testing.assert_array_equal(known["z_ref"], [2.0, np.nan, np.nan, 1.0])
    size_N = known["half_light_radius_arcsec"]
    np.testing.assert_array_equal(size_N, [np.nan, 0.0, np.nan, 0.3])


def test_too_few_redshifts_are_refused(
    small_store: CutoutStore, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "import_umap", lambda: None)
    with pytest.raises(SourceListError, match="have a redshift in the store; pass --truth"):
        report_latents([checkpoint], small_store.path, tmp_path, (), 12, 0)


def test_missing_umap_is_named_with_what_to_install(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"umap-learn.*pip install photozhpc\[figures\]"):
        report_latents([checkpoint], tmp_path / "no store", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tensorflow not installed:ImportWarning")
def test_umap_keeps_what_is_apart_apart_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    latent_ND = rng.normal(size=(200, 8)).astype(np.float32)
    latent_ND[100:, 0] += 50
    plane_N2 = embed(latent_ND, seed=1)
    np.testing.assert_array_equal(plane_N2, embed(latent_ND, seed=1))
    side = np.repeat([0.5, 2.0], 100)
    assert smoothness(plane_N2, side).rms == pytest.approx(0, abs=1e-9)
