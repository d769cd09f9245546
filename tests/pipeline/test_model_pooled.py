"""A model of pixels and fluxes: trained, resumed, calibrated, run by workers, and refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.catalogs import SMALL
from builders.models import TINY_RESNET
from builders.stores import make_store
from builders.training import TINY
from photozhpc.catalog import read_catalog
from photozhpc.catalog.run import run_inference
from photozhpc.errors import CheckpointError, StoreError
from photozhpc.model import load_checkpoint, pooling
from photozhpc.model.calibrate import calibrate
from photozhpc.model.density import cumulative
from photozhpc.model.density_fit import log_density
from photozhpc.model.encode import encode_block
from photozhpc.model.engine import Engine, make_engine
from photozhpc.model.flux_expert import fit_flux_expert
from photozhpc.model.photometry_fit import read_sample
from photozhpc.model.pita import PITA
from photozhpc.model.pooling import SHARES, fit_expert, fit_share
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.model.trainer import Trainer
from photozhpc.store import CutoutStore
from photozhpc.store.loader import Split, in_split, read_labelled


@pytest.fixture
def config(small_store: CutoutStore, tmp_path: Path) -> TrainConfig:
    return replace(
        TINY,
        model=TINY_RESNET,
        out=str(tmp_path / "run"),
        store=str(small_store.path),
        method="supervised",
        batch_size=16,
        density_steps=0,
        expert_steps=20,
    )


def test_it_learns_and_both_experts_are_in_the_file(
    small_store: CutoutStore, config: TrainConfig
) -> None:
    checkpoint = load_checkpoint(train(replace(config, epochs=10)))
    log = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss_redshift"] < log[0]["loss_redshift"] - 0.1
    assert min(record["validation_nll"] for record in log) < log[0]["validation_nll"] - 0.05
    model = checkpoint.pita
    assert model.uncertainty.is_fitted
    assert model.expert_share.item() in SHARES.astype(np.float32)
    block = read_labelled(small_store, "calibration", config.seed)
    engine = Engine(checkpoint, survey=small_store.survey)
    found = engine.predict(block.cutout_NCSS, block.ebv_N, block)
    assert np.isfinite(found.z_phot_N).all()
    assert (np.diff(found.quantile_NQ, axis=1) >= 0).all()
    with pytest.raises(ValueError, match="takes fluxes too"):
        engine.predict(block.cutout_NCSS, block.ebv_N)
    encoded = encode_block(model, block, small_store.survey)  # what calibration sees
    tensors = (torch.from_numpy(values) for values in (encoded.input_NF, encoded.expert_NK))
    with torch.no_grad():
        median = model.uncertainty.median(cumulative(model.density(*tensors)))
    np.testing.assert_allclose(found.z_phot_N, median, rtol=2e-2, atol=2e-3)


def test_the_share_is_the_likeliest_one(small_store: CutoutStore, config: TrainConfig) -> None:
    model = load_checkpoint(train(replace(config, epochs=1))).pita
    block = read_labelled(small_store, "validation", config.seed)
    encoded = encode_block(model, block, small_store.survey)
    fit_share(model, encoded.input_NF, encoded.expert_NK, block.z_spec_N)
    position = model.uncertainty.position(torch.from_numpy(block.z_spec_N))

    def likelihood(share: float) -> float:
        model.expert_share.fill_(share)
        tensors = (torch.from_numpy(v) for v in (encoded.input_NF, encoded.expert_NK))
        with torch.no_grad():
            return log_density(model.density(*tensors), position).mean().item()

    best = model.expert_share.item()
    assert likelihood(best) >= max(map(likelihood, SHARES)) - 1e-6


def test_a_resumed_run_ends_where_an_undisturbed_one_does(
    small_store: CutoutStore, config: TrainConfig, tmp_path: Path
) -> None:
    whole = load_checkpoint(train(config))
    broken = replace(config, out=str(tmp_path / "broken"))
    trainer = Trainer(broken, small_store)
    for lanes, _ in zip(trainer.batches(), range(2), strict=False):
        trainer.loss_sums += trainer.train_step(lanes)
    Path(broken.out).mkdir()
    trainer.save_state(Path(broken.out) / "state.pt")
    resumed = load_checkpoint(train(broken))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_after_all_labels_another_store_calibrates_it(
    small_store: CutoutStore, store: CutoutStore, config: TrainConfig, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(train(replace(config, labels="all", epochs=1)))
    assert checkpoint.pita.expert_share.item() == 0.5
    assert not checkpoint.pita.uncertainty.level_GQ.isfinite().any()
    with pytest.raises(CheckpointError, match="calibrate it first"):
        make_engine(checkpoint, small_store.survey, pdf="grid")
    with pytest.raises(CheckpointError, match="every label"):
        calibrate(checkpoint.path, small_store, tmp_path / "c.safetensors")
    with pytest.raises(StoreError, match="has no Kron fluxes"):
        calibrate(checkpoint.path, store, tmp_path / "c.safetensors")


@pytest.mark.parametrize("split", ["train", "all"])
def test_the_expert_sees_no_label_beyond_the_fraction(
    split: Split, small_store: CutoutStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = PITA(TINY_RESNET), {}

    def fit(expert, flux_NCR, err_NCR, ebv_N, z_N, fold_N, **settings):
        seen.update(flux=flux_NCR[:, 0, 0].tolist(), fold=fold_N.tolist())
        return fit_flux_expert(expert, flux_NCR, err_NCR, ebv_N, z_N, fold_N, **settings)

    monkeypatch.setattr(pooling, "fit_flux_expert", fit)
    fit_expert(model, small_store, split, seed=1, label_fraction=0.4, steps=2)
    sample = read_sample(small_store, model.config.fluxes, 1)
    allowed_N = in_split(sample.source_id_N, split, 1, 0.4)
    if split == "train":  # the validation split stops the networks
        allowed_N |= in_split(sample.source_id_N, "validation", 1)
    rows_N = allowed_N & sample.labelled_N
    assert seen["flux"] == sample.flux_NCR[rows_N, 0, 0].tolist()
    assert set(seen["fold"]) == ({-1, 0} if split == "train" else {0, 1})


def test_a_store_without_a_column_that_it_takes_is_refused_in_one_line(
    config: TrainConfig, tmp_path: Path
) -> None:
    without_kron = make_store(tmp_path / "store", {"a": 200})
    with pytest.raises(StoreError, match="has no Kron fluxes, which the model takes") as error:
        Trainer(config, without_kron)
    assert "\n" not in str(error.value)
    fluxes = replace(TINY_RESNET.fluxes, aperture_radii_arcsec=(0.3,))
    with pytest.raises(CheckpointError, match=r"apertures of 0\.3 arcsec"):
        Trainer(replace(config, model=replace(config.model, fluxes=fluxes)), without_kron)


def test_workers_give_it_the_fluxes_of_the_store(
    small_store: CutoutStore, config: TrainConfig, tmp_path: Path
) -> None:
    path = train(replace(config, epochs=1))
    run_inference(small_store.path, path, tmp_path / "catalogue", **SMALL)
    table = read_catalog(tmp_path / "catalogue")
    engine = Engine(load_checkpoint(path), survey=small_store.survey)
    expected = np.concatenate(
        [
            engine.predict(
                small_store.read_cutouts(key),
                small_store.read_sources(key).ebv_N,
                small_store.read_measurements(key),
            ).z_phot_N
            for key in small_store.shards()
        ]
    )
    assert np.isfinite(expected).sum() > 100
    np.testing.assert_allclose(table["photoz"].to_numpy(), expected, rtol=2e-2, atol=2e-3)
