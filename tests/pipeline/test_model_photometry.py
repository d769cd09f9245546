"""Method 'photometry' on a photometric catalogue: train, calibrate, infer, evaluate."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from photozhpc.catalog import PhotozFlag, read_catalog, read_pdf
from photozhpc.catalog.run import run_inference
from photozhpc.catalog.verify import verify_catalog
from photozhpc.errors import CatalogError, CheckpointError, ConfigError, StoreError
from photozhpc.evaluation.evaluate import evaluate
from photozhpc.html_report.page import write_report
from photozhpc.metrics import point_metrics
from photozhpc.model import bundled_checkpoint, load_checkpoint
from photozhpc.model.calibrate import calibrate
from photozhpc.model.flux_expert import FluxExpertConfig
from photozhpc.model.photometry_engine import PhotometryEngine
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore, FluxTable, open_store
from photozhpc.survey import Survey, load_survey
from photozhpc.workers.dask_workers import DaskWorkers

N_GALAXIES = 700
SURVEY = {
    "name": "galaxies",
    "bands": [{"name": n, "psf_fwhm_arcsec": 0.1, "extinction_r": 1.0} for n in ("g", "r", "z")],
    "aperture_radii_arcsec": [],
    "total_columns": {"value": "m_{band}", "error": "m_err_{band}", "kind": "magnitude"},
    "source_columns": {"source_id": "id", "z_spec": "zs", "ebv": "ebv"},
}


def write_galaxies(path: Path, seed: int, change: Callable[[dict], None] | None = None) -> Path:
    """A catalogue whose colours tell the redshift, in three row groups; some rows lack a band."""
    rng = np.random.default_rng(seed)
    z_N = rng.uniform(0.1, 1.5, N_GALAXIES)
    flux_NC = 10 ** rng.uniform(2, 3, (N_GALAXIES, 1)) * np.stack(
        [np.ones(N_GALAXIES), 1 + z_N, 1 + z_N**2], 1
    )
    flux_NC += rng.normal(0, 3, flux_NC.shape)
    columns = {
        "id": 1000 * seed + np.arange(N_GALAXIES),
        "ra": rng.uniform(10, 11, N_GALAXIES),
        "dec": rng.uniform(-1, 0, N_GALAXIES),
        "ebv": rng.uniform(0, 0.1, N_GALAXIES),
        "zs": np.where(np.arange(N_GALAXIES) % 4, z_N, 99.0),
    }
    for c, name in enumerate("grz"):
        columns[f"m_{name}"] = 31.4 - 2.5 * np.log10(flux_NC[:, c])
        columns[f"m_err_{name}"] = 1.0857 * 3 / flux_NC[:, c]
    columns["m_g"][:4] = 99.0
    columns["m_r"][:2] = np.nan
    if change is not None:
        change(columns)
    pq.write_table(pa.table(columns), path, row_group_size=300)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("galaxies")
    (folder / "survey.yaml").write_text(yaml.safe_dump(SURVEY))
    write_galaxies(folder / "train.parquet", 1)
    write_galaxies(folder / "test.parquet", 2)
    return folder


@pytest.fixture(scope="module")
def survey(folder: Path) -> Survey:
    return load_survey(folder / "survey.yaml")


def recipe(folder: Path, table: str = "train.parquet") -> TrainConfig:
    return TrainConfig(
        out=str(folder / "run"),
        store=str(folder / table),
        survey=str(folder / "survey.yaml"),
        method="photometry",
        density_steps=80,
        photometry=FluxExpertConfig(widths=(32,), networks=5, dropout=0.0, bins=64),
    )


@pytest.fixture(scope="module")
def model_file(folder: Path) -> Path:
    return train(recipe(folder))


@pytest.fixture(scope="module")
def catalogue(folder: Path, survey: Survey, model_file: Path) -> Path:
    out = folder / "out"
    run_inference(
        folder / "test.parquet", model_file, out, survey, DaskWorkers.of(1, "cpu"),
        rows_per_part=300, progress=False, pdf="quantiles",
    )  # fmt: skip
    return out


def test_the_model_file_has_its_cross_validation(model_file: Path) -> None:
    training = load_checkpoint(model_file).training
    n_labels = N_GALAXIES * 3 // 4 - 1  # one of the labelled has a single band
    assert training["labels"] == training["cross_validation"]["n"] == n_labels
    assert training["cross_validation"]["nmad"] < 0.15


def test_training_again_gives_the_same_file(folder: Path, model_file: Path) -> None:
    before = model_file.read_bytes()
    train(recipe(folder), restart=True)
    assert model_file.read_bytes() == before


def test_the_catalogue_holds_redshifts_intervals_and_flags(folder: Path, catalogue: Path) -> None:
    table = read_catalog(catalogue)
    assert table["source_id"].to_pylist() == (2000 + np.arange(N_GALAXIES)).tolist()
    assert set(table["tile_id"].to_pylist()) == {"test"}
    flags = table["photoz_flags"].to_numpy()
    lost = PhotozFlag.MISSING_BAND | PhotozFlag.NO_PHOTOZ
    lacks = PhotozFlag.MISSING_BAND | PhotozFlag.UNUSUAL  # all in training have every band
    assert flags[:5].tolist() == [lost, lost, lacks, lacks, 0]
    assert table["photoz"].null_count == table["photoz_low68"].null_count == 2
    assert table["kron_g_flux"].null_count == 4
    ends = [table[f"photoz_{e}"].to_numpy() for e in ("low99", "low68", "high68", "high99")]
    assert (np.diff(ends, axis=0)[:, 2:] >= 0).all()
    assert sum(len(part.source_id_N) for part in read_pdf(catalogue)) == N_GALAXIES


def test_intervals_hold_as_often_as_they_say(folder: Path, survey: Survey, catalogue: Path) -> None:
    truth = [folder / "test.parquet"]
    result = evaluate(catalogue, truth, n_resamples=2, columns=survey.source_columns)
    matched = result.matched
    assert len(matched.z_ref_N) == N_GALAXIES * 3 // 4 - 1
    assert (result.band, result.mag_origin) == ("z", "kron_z_flux")
    assert point_metrics(matched.z_ref_N, matched.z_phot_N).nmad < 0.15
    np.testing.assert_allclose(matched.inside_NI.mean(axis=0), [0.68, 0.90, 0.99], atol=0.07)
    page = write_report(catalogue, [], folder / "report.html").read_text()
    assert "made from a table of fluxes" in page


def test_a_run_is_verified_and_resumed(
    folder: Path, survey: Survey, model_file: Path, catalogue: Path
) -> None:
    store = open_store(folder / "test.parquet", survey)
    assert verify_catalog(catalogue, store) == (N_GALAXIES, [])
    part = catalogue / "catalog" / "part-000001.parquet"
    before = part.read_bytes()
    part.unlink()
    again = {"rows_per_part": 300, "progress": False, "pdf": "quantiles"}
    workers = DaskWorkers.of(1, "cpu")
    summary = run_inference(
        folder / "test.parquet", model_file, catalogue, survey, workers, **again
    )
    assert (summary.n_parts, summary.n_parts_resumed) == (3, 2)
    assert part.read_bytes() == before
    moved = folder / "other" / "test.parquet"
    moved.parent.mkdir()
    write_galaxies(moved, 3)
    with pytest.raises(CatalogError, match="another store, or the store has changed"):
        run_inference(moved, model_file, catalogue, survey, workers, **again)


def test_calibration_takes_labels_that_the_model_has_not_seen(
    folder: Path, survey: Survey, model_file: Path
) -> None:
    with pytest.raises(CheckpointError, match="calibrate on labels that it has not seen"):
        calibrate(
            model_file, open_store(folder / "train.parquet", survey), folder / "c.safetensors"
        )
    other = open_store(folder / "test.parquet", survey)
    path = calibrate(model_file, other, folder / "c.safetensors")
    checkpoint = load_checkpoint(path)
    assert checkpoint.training["calibration"]["labels"] > 500
    key = other.shards()[0]
    sources, measured = other.read_sources(key), other.read_measurements(key)
    engine = PhotometryEngine(checkpoint.model, survey)
    quantile_NQ = engine.predict(np.empty(0), sources.ebv_N, measured).quantile_NQ
    inside_N = (quantile_NQ[:, 2] < sources.z_spec_N) & (sources.z_spec_N < quantile_NQ[:, 6])
    known_N = np.isfinite(sources.z_spec_N) & np.isfinite(quantile_NQ[:, 0])
    assert 0.8 < inside_N[known_N].mean() < 0.98


def test_missing_labels_are_explained(folder: Path, tmp_path: Path) -> None:
    def unlabelled(columns: dict) -> None:
        columns["zs"][:] = -99.0

    write_galaxies(tmp_path / "none.parquet", 4, unlabelled)
    config = replace(recipe(folder), store=str(tmp_path / "none.parquet"), out=str(tmp_path / "r"))
    with pytest.raises(StoreError, match=r"0 sources have a redshift in 'zs'; .* need 50"):
        train(config)
    assert not (tmp_path / "r").exists()


def test_names_without_errors_and_positions_serve_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def bare(columns: dict) -> None:
        columns["id"] = [f"galaxy {i}" for i in columns["id"]]
        columns["zs"][5] = 4.5
        columns["m_g"][:] = np.nan
        for name in ("ra", "dec", "m_err_g", "m_err_r", "m_err_z"):
            del columns[name]

    train_table = write_galaxies(tmp_path / "train.parquet", 1, bare)
    table = write_galaxies(tmp_path / "test.parquet", 2, bare)
    mapping = {
        **SURVEY,
        "total_columns": {"value": "m_{band}", "kind": "magnitude"},
        "source_columns": {**SURVEY["source_columns"], "ra": None, "dec": None},
    }
    path = tmp_path / "survey.yaml"
    path.write_text(yaml.safe_dump(mapping))
    survey = load_survey(path)
    config = replace(
        recipe(tmp_path), store=str(train_table), photometry=FluxExpertConfig(
            widths=(32,), networks=2, dropout=0.0, bins=64
        )
    )  # fmt: skip
    model = train(config)
    text = capsys.readouterr().err
    assert "1 redshifts are above 4, up to 4.50, and count as 4" in text
    assert "no source with a redshift is measured in g, which is not used" in text
    out = tmp_path / "out"
    run_inference(table, model, out, survey, DaskWorkers.of(1, "cpu"), progress=False)
    assert verify_catalog(out, open_store(table, survey)) == (N_GALAXIES, [])
    matched = evaluate(out, [table], n_resamples=2, columns=survey.source_columns).matched
    assert len(matched.z_ref_N) > 0.7 * N_GALAXIES
    assert point_metrics(matched.z_ref_N, matched.z_phot_N).nmad < 0.2  # 0.27 without fluxes
    np.testing.assert_allclose(matched.inside_NI.mean(axis=0), [0.68, 0.90, 0.99], atol=0.07)


def test_a_source_without_a_band_that_all_others_have_is_told(
    folder: Path, model_file: Path, tmp_path: Path, survey: Survey
) -> None:
    def complete(columns: dict) -> None:
        columns["m_g"][:4], columns["m_r"][:2] = 25.0, 25.0
        columns["m_err_g"][:4], columns["m_err_r"][:2] = 0.1, 0.1

    write_galaxies(tmp_path / "complete.parquet", 1, complete)
    config = replace(recipe(folder), store=str(tmp_path / "complete.parquet"), out=str(tmp_path))
    test = FluxTable.open(folder / "test.parquet", survey)
    sources, measured = (
        read(test.shards()[0]) for read in (test.read_sources, test.read_measurements)
    )
    for model, warned in ((train(config), True), (model_file, False)):
        engine = PhotometryEngine(load_checkpoint(model).model, survey)
        ood_N = engine.predict(np.empty(0), sources.ebv_N, measured).ood_N
        assert (ood_N[2:4] >= 10).all() == warned  # without g
        assert (ood_N[4:] < 10).all()


def test_a_misspelt_column_of_redshifts_is_named(folder: Path, tmp_path: Path) -> None:
    mapping = {**SURVEY, "source_columns": {**SURVEY["source_columns"], "z_spec": "zspec"}}
    (tmp_path / "survey.yaml").write_text(yaml.safe_dump(mapping))
    config = replace(
        recipe(folder), survey=str(tmp_path / "survey.yaml"), out=str(tmp_path / "run")
    )
    with pytest.raises(StoreError, match=r"has no column in 'zspec'.*'zs'.*correct"):
        train(config)


def test_one_network_cannot_be_calibrated(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"photometry.networks must be 2 or more"):
        replace(recipe(folder), photometry=FluxExpertConfig(networks=1))


def test_catalogues_and_methods_that_do_not_fit_are_refused(
    folder: Path, survey: Survey, model_file: Path, small_store: CutoutStore, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="only method 'photometry' can train on"):
        train(replace(recipe(folder), method="pita", out=str(tmp_path / "r")))
    table = FluxTable.open(folder / "test.parquet", survey)
    with pytest.raises(CheckpointError, match="with bands"):
        load_checkpoint(bundled_checkpoint("roman-sim")).check_store(table.survey, 0)
    bands = small_store.survey.bands
    named = replace(survey, bands=bands)
    with pytest.raises(CheckpointError, match="sees images, and a photometric catalogue has none"):
        load_checkpoint(bundled_checkpoint("roman-sim")).check_store(named, 0)
    apertures = replace(small_store.survey, aperture_radii_arcsec=(0.3,))
    model = train(
        replace(recipe(folder), store=str(small_store.path), survey="", out=str(tmp_path / "s"))
    )
    with pytest.raises(CheckpointError, match=r"apertures of .* arcsec, but survey .* has 0\.3"):
        load_checkpoint(model).check_store(apertures, 48)


def test_a_store_with_images_serves_too(small_store: CutoutStore, folder: Path) -> None:
    out = folder / "run_of_store"
    model = train(replace(recipe(folder), store=str(small_store.path), survey="", out=str(out)))
    config = load_checkpoint(model).config
    assert config.aperture_radii_arcsec == small_store.survey.aperture_radii_arcsec
    text = json.dumps(load_checkpoint(model).training)
    assert str(small_store.path) in text
