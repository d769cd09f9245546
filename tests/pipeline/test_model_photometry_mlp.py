"""The photometry-MLP as a method: trained on a store, written, read, and used for a catalogue."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from builders.paths import CONFIGS
from photozhpc.catalog import PhotozFlag, read_catalog
from photozhpc.catalog.predict import predict_part
from photozhpc.catalog.run_folder import ModelKey, file_sha256, plan_parts
from photozhpc.config import from_mapping, load_yaml
from photozhpc.errors import CheckpointError, ConfigError, StoreError
from photozhpc.figures.latents import read_latents
from photozhpc.metrics import point_metrics
from photozhpc.model import PITA, PITAConfig, bundled_checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model.calibrate import calibrate
from photozhpc.model.colours import colour_features
from photozhpc.model.engine import Engine, PhotometryMLPEngine, make_engine
from photozhpc.model.photometry_mlp import PhotometryMLP, PhotometryMLPConfig
from photozhpc.model.train import train
from photozhpc.model.train_config import OptimiserConfig, TrainConfig
from photozhpc.mosaic.photometry import PhotFlag
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.store.loader import read_labelled, typical_noise

SMALL = TrainConfig(
    out="",
    method="photometry-mlp",
    epochs=40,
    batch_size=32,
    model=PITAConfig(redshift_mlp=(32, 32), redshift_heads=2, redshift_scale="log1p"),
    optimiser=OptimiserConfig(lr=5e-3, weight_decay=1e-4),
)


@pytest.fixture(scope="module")
def model_file(small_store: CutoutStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("photometry")
    return train(replace(SMALL, out=str(out), store=str(small_store.path)))


def read_fluxes(store: CutoutStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids, flux_NCR and E(B-V) of a whole store."""
    columns = [
        (s.source_id_N, store.read_measurements(key).flux_NCR, s.ebv_N)
        for key in store.shards()
        for s in [store.read_sources(key)]
    ]
    ids, flux, ebv = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    return ids, flux, ebv


def slow_z_phot(model: PhotometryMLP, flux: np.ndarray, ebv: np.ndarray) -> float:
    """One source's redshift, by the formulas, in float64."""
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    dereddened = flux * 10 ** (0.4 * ebv * state["extinction_r_C"])
    b = state["softening_C"]
    log = np.arcsinh(dereddened / (2 * b)) / np.log(10) + np.log10(b)
    features = [log[0] - log[1], log[1] - log[2], log[2] - log[3], log[3]]
    scaled = (np.array(features) - state["feature_mean_F"]) / state["feature_std_F"]
    outputs = []
    for network in range(model.config.networks):
        x = scaled
        for layer in range(len(model.config.widths) + 1):
            name = f"networks.{network}.{2 * layer}"
            x = state[f"{name}.weight"] @ (np.maximum(x, 0) if layer else x) + state[f"{name}.bias"]
        outputs.append(x[0])
    return float(np.expm1(np.mean(outputs)))


def test_it_learns_and_its_file_holds_the_metrics(
    small_store: CutoutStore, model_file: Path
) -> None:
    checkpoint = load_checkpoint(model_file)
    assert model_file.name == "model.safetensors"
    assert checkpoint.training["store_sha256"] == small_store.fingerprint()
    assert checkpoint.training["config"]["method"] == "photometry-mlp"
    assert len(read_labelled(small_store, "train", 0)) == checkpoint.training["labels"]
    check = read_labelled(small_store, "validation", SMALL.seed)
    z_phot = checkpoint.model.predict(check.flux_NCR[:, :, 2], check.ebv_N)
    measured = point_metrics(check.z_spec_N, z_phot)
    assert checkpoint.training["validation"]["nmad"] == pytest.approx(measured.nmad)
    constant = np.full(len(check), np.median(check.z_spec_N))
    assert measured.nmad < 0.6 * point_metrics(check.z_spec_N, constant).nmad


def test_it_is_what_its_formulas_say(small_store: CutoutStore, model_file: Path) -> None:
    model = load_checkpoint(model_file).model
    np.testing.assert_allclose(model.softening_C, typical_noise(small_store, 2)[1], rtol=1e-6)
    _, flux, ebv = read_fluxes(small_store)
    flux_NC = flux[:40, :, 2]
    flux_NC[7, 1] = np.nan
    features = colour_features(
        flux_NC, model.softening_C.numpy(), ebv[:40], model.extinction_r_C.numpy()
    )
    np.testing.assert_array_equal(model.features(flux_NC, ebv[:40]), features)
    expected = [slow_z_phot(model, f, e) for f, e in zip(flux_NC, ebv[:40], strict=True)]
    z_phot = model.predict(flux_NC, ebv[:40])
    np.testing.assert_allclose(z_phot, expected, rtol=1e-4, atol=1e-5)
    assert np.isnan(z_phot[7])


def test_a_model_file_gives_the_same_predictions(
    small_store: CutoutStore, model_file: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(model_file)
    again = load_checkpoint(
        save_checkpoint(tmp_path / "m.safetensors", checkpoint.model, checkpoint.survey)
    )
    assert again.config == checkpoint.config
    assert isinstance(again.model, PhotometryMLP)
    _, flux, ebv = read_fluxes(small_store)
    np.testing.assert_array_equal(
        again.model.predict(flux[:, :, 2], ebv), checkpoint.model.predict(flux[:, :, 2], ebv)
    )
    data = bytearray(model_file.read_bytes())
    data[-5] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="altered or damaged"):
        load_checkpoint(tmp_path / "bad.safetensors")


def test_a_finished_run_stays_and_begins_anew_only_where_that_is_asked_for(
    small_store: CutoutStore, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(SMALL, out=str(model_file.parent), store=str(small_store.path))
    before, written = load_checkpoint(model_file), model_file.stat().st_mtime_ns
    monkeypatch.setenv("RANK", "1")  # left over: without WORLD_SIZE there is one process
    train(config)
    assert model_file.stat().st_mtime_ns == written
    with pytest.raises(CheckpointError, match=r"another configuration.*--restart"):
        train(replace(config, seed=5))
    again = load_checkpoint(train(config, restart=True))
    assert model_file.stat().st_mtime_ns > written
    assert again.training == before.training
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def key_of(store: CutoutStore, model_file: Path) -> ModelKey:
    return ModelKey(store.path, model_file, file_sha256(model_file), "cpu", False)


def test_the_catalogue_holds_its_predictions_and_no_intervals(
    small_store: CutoutStore, model_file: Path, tmp_path: Path
) -> None:
    (part,) = plan_parts(small_store.shard_lengths(), 10**6)
    path = tmp_path / "part.parquet"
    predict_part(key_of(small_store, model_file), part, path, {})
    table = read_catalog(path)
    ids, flux, ebv = read_fluxes(small_store)
    z_phot = load_checkpoint(model_file).model.predict(flux[:, :, 2], ebv)
    np.testing.assert_array_equal(table["source_id"].to_numpy(), ids)
    np.testing.assert_array_equal(table["photoz"].to_numpy(zero_copy_only=False), z_phot)
    assert table["photoz"].null_count == np.isnan(z_phot).sum() < len(ids)
    for name in ("photoz_low68", "photoz_high68", "photoz_low99", "photoz_high99"):
        assert table[name].null_count == len(ids)


def test_flags_are_of_the_square_round_the_aperture(
    small_store: CutoutStore, model_file: Path, tmp_path: Path
) -> None:
    """A pixel just outside the square is not seen, the one at the source is."""
    survey = small_store.survey
    engine = make_engine(load_checkpoint(model_file), survey)
    assert isinstance(engine, PhotometryMLPEngine)
    half = int(np.ceil(0.4 / survey.pixel_scale_arcsec))
    assert engine.side_pix == 2 * half + 1
    shape = (3, len(survey.bands), len(survey.aperture_radii_arcsec))
    cutout = np.random.default_rng(0).normal(size=(3, 4, 48, 48)).astype(np.float32)
    cutout[0, :, : 24 - half], cutout[0, :, 25 + half :] = np.nan, np.nan
    cutout[1, 2, 24, 24] = np.nan
    cutout[2, 0] = np.nan
    store = CutoutStore.create(tmp_path / "store", survey, 48, 64)
    with store.new_tile("a", 3, {}) as writer:
        writer.write_shard(
            cutout,
            Sources(np.arange(3), np.zeros(3), np.zeros(3), np.full(3, np.nan), np.zeros(3)),
            Measurements(
                np.zeros(3),
                np.zeros(3),
                np.full(shape, 100.0, np.float32),
                np.ones(shape, np.float32),
                np.full(shape[:2], int(PhotFlag(0))),
            ),
        )
    (part,) = plan_parts(store.shard_lengths(), 10)
    path = tmp_path / "part.parquet"
    predict_part(key_of(store, model_file), part, path, {})
    flags = read_catalog(path)["photoz_flags"].to_numpy()
    both = PhotozFlag.MISSING_BAND | PhotozFlag.BAD_PIXELS
    assert flags.tolist() == [0, int(PhotozFlag.BAD_PIXELS), int(both)]
    with pytest.raises(StoreError, match="falls into the train split"):  # nothing is labelled
        train(replace(SMALL, out=str(tmp_path / "run"), store=str(store.path)))
    assert not (tmp_path / "run").exists()


def test_another_aperture_or_band_is_refused(
    small_store: CutoutStore, model_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not among the store's apertures"):
        train(
            replace(
                SMALL,
                out=str(tmp_path / "run"),
                store=str(small_store.path),
                feature_aperture_arcsec=0.3,
            )
        )
    checkpoint = load_checkpoint(model_file)
    checkpoint.check_store(small_store.survey, small_store.cutout_size)
    other = replace(small_store.survey, aperture_radii_arcsec=(0.1, 0.3))
    with pytest.raises(CheckpointError, match=r"an aperture of 0\.4 arcsec"):
        checkpoint.check_store(other, 48)
    bands = small_store.survey.bands
    with pytest.raises(CheckpointError, match="with bands"):
        checkpoint.check_store(replace(small_store.survey, bands=bands[::-1]), 48)
    torch.manual_seed(0)
    wrong = PhotometryMLP(PhotometryMLPConfig(aperture_radius_arcsec=0.3, widths=(8,)))
    path = save_checkpoint(tmp_path / "wrong.safetensors", wrong, small_store.survey)
    part = plan_parts(small_store.shard_lengths(), 10)[0]
    with pytest.raises(CheckpointError, match=r"an aperture of 0\.3 arcsec"):
        predict_part(key_of(small_store, path), part, tmp_path / "part.parquet", {})


def test_what_needs_images_says_so(
    small_store: CutoutStore, model_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="is a model of fluxes"):
        calibrate(model_file, small_store, tmp_path / "c.safetensors")
    with pytest.raises(CheckpointError, match="is a model of fluxes"):
        read_latents(model_file, small_store.path, 10, 0)
    with pytest.raises(CheckpointError, match="is a model of fluxes"):
        Engine(load_checkpoint(model_file))
    tuned = TrainConfig(
        out=str(tmp_path / "run"),
        store=str(small_store.path),
        method="fine-tuned",
        initial_checkpoint=str(model_file),
        model=PITAConfig(encoder="convnext_atto", crop=32),
        batch_size=16,
    )
    with pytest.raises(CheckpointError, match="is a model of fluxes"):
        train(tuned)


def test_the_header_tells_the_kind_of_model(model_file: Path) -> None:
    bundled = bundled_checkpoint("roman-sim")
    for path, kind in ((model_file, "photometry-mlp"), (bundled, "pita")):
        with safe_open(path, framework="pt") as file:
            assert json.loads(file.metadata()["photozhpc"])["kind"] == kind
    assert isinstance(load_checkpoint(bundled).model, PITA)


@pytest.mark.parametrize("path", sorted((CONFIGS / "train").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid(path: Path) -> None:
    config = from_mapping(TrainConfig, load_yaml(path), str(path))
    if path.parent != CONFIGS / "train":
        assert config.method == path.stem
        assert config.out == f"out/{path.parent.name}/{path.stem}"
    if config.method == "fine-tuned":
        pretrained = path.with_name("self-supervised.yaml")
        first = from_mapping(TrainConfig, load_yaml(pretrained), str(pretrained))
        assert config.initial_checkpoint == f"{first.out}/model.safetensors"
        assert config.model == first.model
