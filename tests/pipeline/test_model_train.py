"""The loader, and training: it learns, resumes exactly, and refuses what cannot work."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.training import TINY
from photozhpc.errors import CheckpointError, ConfigError, StoreError
from photozhpc.model import load_checkpoint
from photozhpc.model.colours import colour_features
from photozhpc.model.engine import Engine, make_engine
from photozhpc.model.photometry_mlp import MLPFitConfig, fit_mlp
from photozhpc.model.refit import refit_redshift_heads
from photozhpc.model.train import train
from photozhpc.model.trainer import Trainer
from photozhpc.store import CutoutStore
from photozhpc.store.loader import Block, Sampling, TrainingLoader, label_split, read_labelled


def test_the_split_is_by_identifier_alone_and_in_proportion() -> None:
    ids = np.arange(100_000)
    split = label_split(ids, seed=3)
    shuffled = np.random.default_rng(0).permutation(ids)
    assert (label_split(shuffled, 3) == split[shuffled]).all()
    assert np.mean(split == "train") == pytest.approx(0.7, abs=0.01)
    for name in ("validation", "calibration", "test"):
        assert np.mean(split == name) == pytest.approx(0.10, abs=0.01)
    assert (label_split(ids, 4) != split).mean() > 0.3


def test_an_epoch_is_shuffled_complete_and_hides_other_splits(small_store: CutoutStore) -> None:
    loader = TrainingLoader(small_store, Sampling(16, seed=1, aperture=2, shuffle_len=128))
    batches = epoch_of(loader, 0)
    assert len(batches) == loader.steps_per_epoch
    ids = np.concatenate([batch.source_id_N for batch in batches])
    labelled = ids[np.isfinite(np.concatenate([batch.z_spec_N for batch in batches]))]
    assert len(labelled) > 0
    assert set(label_split(labelled, 1)) == {"train"}
    again = np.concatenate([batch.source_id_N for batch in epoch_of(loader, 0)])
    other = np.concatenate([batch.source_id_N for batch in epoch_of(loader, 1)])
    assert (ids == again).all()
    assert (ids != other).any()
    measured = sum(
        np.isfinite(small_store.read_measurements(key).flux_NCR[:, :, 2]).all(axis=1).sum()
        for key in small_store.shards()
    )
    assert len(ids) == len(set(ids)) == measured // 16 * 16


def epoch_of(loader: TrainingLoader, epoch: int, first_step: int = 0) -> list[Block]:
    return [Block.join(lanes) for lanes in loader.epoch(epoch, first_step)]


@pytest.mark.parametrize("shuffle_len", [16, 128, 8192])
def test_the_batches_do_not_depend_on_the_number_of_ranks(
    small_store: CutoutStore, shuffle_len: int
) -> None:
    def loader(rank: int, world: int) -> TrainingLoader:
        sampling = Sampling(16, 1, 2, label_repeat=2, shuffle_len=shuffle_len)
        return TrainingLoader(small_store, sampling, rank, world)

    whole = epoch_of(loader(0, 1), 3)
    halves = [epoch_of(loader(rank, 2), 3) for rank in (0, 1)]
    assert len(whole) == len(halves[0]) == len(halves[1]) > 3
    for batch, first, second in zip(whole, *halves, strict=True):
        joined = Block.join([first, second])
        for name in Block.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(batch, name), getattr(joined, name))


@pytest.mark.parametrize("shuffle_len", [16, 48, 8192])
def test_an_epoch_taken_up_in_the_middle_goes_on_with_the_same_batches(
    small_store: CutoutStore, shuffle_len: int
) -> None:
    loader = TrainingLoader(small_store, Sampling(16, 1, 2, shuffle_len=shuffle_len))
    whole = epoch_of(loader, 0)
    for first in (1, 5, len(whole) - 1, len(whole)):
        rest = epoch_of(loader, 0, first)
        assert [b.source_id_N.tolist() for b in rest] == [
            b.source_id_N.tolist() for b in whole[first:]
        ]


def test_fewer_labels_are_a_subset_of_more(small_store: CutoutStore) -> None:
    few, many = (
        set(read_labelled(small_store, "train", 1, fraction).source_id_N) for fraction in (0.3, 1.0)
    )
    assert few < many
    assert len(few) == pytest.approx(0.3 * len(many), abs=3 * np.sqrt(0.3 * len(many)))
    loader = TrainingLoader(small_store, Sampling(8, 1, 2, labelled_only=True, label_fraction=0.3))
    for batch in epoch_of(loader, 0):
        assert set(batch.source_id_N) <= few
        assert np.isfinite(batch.z_spec_N).all()


def test_no_split_shares_a_source_with_another(small_store: CutoutStore) -> None:
    samples = [
        set(read_labelled(small_store, split, 1).source_id_N)
        for split in ("train", "validation", "calibration", "test")
    ]
    assert sum(map(len, samples)) == len(set.union(*samples))


def test_labelled_only_leaves_the_others_out(small_store: CutoutStore) -> None:
    loader = TrainingLoader(small_store, Sampling(8, seed=1, aperture=2, labelled_only=True))
    for batch in epoch_of(loader, 0):
        assert np.isfinite(batch.z_spec_N).all()


def test_label_repeat_brings_labelled_sources_more_often(small_store: CutoutStore) -> None:
    share = []
    for repeat in (1, 3):
        loader = TrainingLoader(small_store, Sampling(16, seed=1, aperture=2, label_repeat=repeat))
        z_spec = np.concatenate([batch.z_spec_N for batch in epoch_of(loader, 0)])
        share.append(np.isfinite(z_spec).mean())
    expected = 3 * share[0] / (1 + 2 * share[0])
    assert share[1] == pytest.approx(expected, abs=0.08)


def test_refitting_the_head_changes_it_alone_and_for_the_better(
    small_store: CutoutStore, tmp_path: Path
) -> None:
    config = replace(TINY, out=str(tmp_path), store=str(small_store.path), refit_steps=1000)
    refitted = train(config)
    assert refitted.name == "model.safetensors"
    before, after = load_checkpoint(tmp_path / "best.safetensors"), load_checkpoint(refitted)
    changed = {
        name.split(".")[0]
        for name, tensor in before.model.state_dict().items()
        if not torch.equal(tensor, after.model.state_dict()[name])
    }
    assert changed == {"redshift_mlp", "redshift_mean_F", "redshift_std_F"}
    nmad = before.training["last_epoch"]["validation_nmad"]
    found = after.training["refit_validation"]
    assert found["joint"]["nmad"] == pytest.approx(nmad, rel=0.01)
    assert found["refitted"]["nmad"] < nmad

    labels, validation = (
        read_labelled(small_store, split, config.seed) for split in ("train", "validation")
    )
    kept = {name: tensor.clone() for name, tensor in after.model.state_dict().items()}
    again = refit_redshift_heads(
        after.pita, labels, validation, small_store.survey, 1, 0.15, seed=1
    )
    assert again["refitted"].nmad > again["joint"].nmad == found["refitted"]["nmad"]
    for name, tensor in after.model.state_dict().items():
        assert torch.equal(tensor, kept[name])


def test_training_learns_and_its_checkpoint_reproduces_the_metrics(
    small_store: CutoutStore, tmp_path: Path
) -> None:
    config = replace(TINY, out=str(tmp_path / "run"), store=str(small_store.path), epochs=6)
    best = train(config)
    assert best.name == "model.safetensors"
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == list(range(1, 7))
    assert log[-1]["loss_colour"] < 0.5 * log[0]["loss_colour"]
    assert log[-1]["loss_redshift"] < log[0]["loss_redshift"]
    trainer = Trainer(config, small_store)
    trainer.keys.model.load_state_dict(load_checkpoint(best).model.state_dict())
    validation = read_labelled(small_store, "validation", config.seed)
    nmad = trainer.validate(validation).metrics.nmad
    assert nmad == pytest.approx(min(record["validation_nmad"] for record in log), rel=1e-3)


def test_training_ends_with_calibrated_intervals(small_store: CutoutStore, tmp_path: Path) -> None:
    model = replace(TINY.model, density_bins=32, density_z_max=3.5)
    config = replace(TINY, out=str(tmp_path), store=str(small_store.path), epochs=1, model=model)
    checkpoint = load_checkpoint(train(config))
    assert checkpoint.model.uncertainty is not None
    assert checkpoint.model.uncertainty.is_fitted
    key = small_store.shards()[0]
    prediction = Engine(checkpoint).predict(
        small_store.read_cutouts(key), small_store.read_sources(key).ebv_N
    )
    known = np.isfinite(prediction.z_phot_N)
    assert known.any()
    assert np.isfinite(prediction.quantile_NQ[known]).all()
    assert (np.diff(prediction.quantile_NQ[known], axis=1) >= 0).all()


def test_fine_tuning_takes_the_encoder_and_new_redshift_heads(
    small_store: CutoutStore, tmp_path: Path
) -> None:
    base = replace(TINY, store=str(small_store.path), epochs=1)
    first = train(replace(base, out=str(tmp_path / "ssl"), method="self-supervised"))
    with pytest.raises(CheckpointError, match="without redshifts"):
        make_engine(load_checkpoint(first), small_store.survey)
    tuned = replace(
        base,
        out=str(tmp_path / "tuned"),
        method="fine-tuned",
        initial_checkpoint=str(first),
        batch_size=16,
        seed=1,  # else the new heads would be the first run's, which did not train them
    )
    before = load_checkpoint(first).model.state_dict()
    start = Trainer(tuned, small_store).model.state_dict()
    for name, tensor in before.items():
        # the last layers of a network are random anew, their biases may be equal
        same = torch.equal(tensor, start[name])
        assert same == (not name.startswith("redshift_mlp")) or tensor.ndim < 2, name
    after = load_checkpoint(train(tuned)).model.state_dict()
    moved = {n.split(".")[0] for n, tensor in after.items() if not torch.equal(tensor, start[n])}
    assert moved == {"encoder", "encoder_mlp", "aperture_skip", "redshift_mlp"}
    other = replace(tuned, model=replace(TINY.model, encoder_mlp=(48, 16)))
    with pytest.raises(CheckpointError, match="does not fit the configuration's model"):
        Trainer(other, small_store)
    with pytest.raises(ValueError, match="initial_checkpoint"):
        replace(tuned, method="pita")


def test_a_resumed_run_ends_where_an_undisturbed_one_does(
    small_store: CutoutStore, tmp_path: Path
) -> None:
    whole = replace(TINY, out=str(tmp_path / "whole"), store=str(small_store.path))
    train(whole)
    broken = replace(whole, out=str(tmp_path / "broken"))
    trainer = Trainer(broken, small_store)
    for lanes, _ in zip(trainer.batches(), range(3), strict=False):
        trainer.loss_sums += trainer.train_step(lanes)
    Path(broken.out).mkdir()
    trainer.save_state(Path(broken.out) / "state.pt")
    train(broken)
    states = [torch.load(Path(c.out) / "state.pt", weights_only=True) for c in (whole, broken)]
    for name in ("model", "keys"):
        for key, tensor in states[0][name].items():
            assert torch.equal(tensor, states[1][name][key]), key
    with pytest.raises(CheckpointError, match=r"another configuration.*--restart"):
        train(replace(broken, batch_size=16))
    model_file = Path(broken.out) / "model.safetensors"
    written = model_file.stat().st_mtime_ns
    train(broken)
    assert model_file.stat().st_mtime_ns == written
    with pytest.raises(StoreError):  # a fault in the new configuration costs the old run nothing
        train(replace(broken, batch_size=8192), restart=True)
    assert model_file.stat().st_mtime_ns == written
    logs = [(Path(c.out) / "log.jsonl").read_text().splitlines() for c in (whole, broken)]
    assert len(logs[0]) == 2
    for one, other in zip(*(map(json.loads, lines) for lines in logs), strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_what_cannot_work_is_refused(small_store: CutoutStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--size 50"):
        Trainer(replace(TINY, model=replace(TINY.model, crop=48)), small_store)
    with pytest.raises(ConfigError, match="not among the store's apertures"):
        Trainer(replace(TINY, feature_aperture_arcsec=0.3), small_store)
    with pytest.raises(ConfigError, match="n_bands"):
        Trainer(replace(TINY, model=replace(TINY.model, n_bands=3)), small_store)
    with pytest.raises(StoreError, match="do not fill one batch"):
        Trainer(replace(TINY, batch_size=100_000), small_store)


def test_the_photometry_mlp_learns_a_smooth_relation() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, 4))
    z = np.abs(features[:, 0] + 0.5 * features[:, 1]) + 0.1
    mlp = fit_mlp(features[:1500], z[:1500], features[1500:], z[1500:], MLPFitConfig(epochs=80))
    z_phot = mlp.predict(features[1500:])
    assert np.median(np.abs(z_phot - z[1500:])) < 0.05
    features[0, 0] = np.nan
    assert np.isnan(mlp.predict(features[:2])).tolist() == [True, False]


def test_colour_features_are_log_ratios_of_dereddened_fluxes() -> None:
    flux = np.array([[1000.0, 2000.0, 4000.0, 3000.0], [-50.0, 0.0, 1.0, 2.0]])
    r, ebv, softening = np.array([2.0, 1.0, 0.5, 0.2]), np.array([0.1, 0.0]), np.full(4, 1.0)
    bright, faint = colour_features(flux, softening, ebv, r)
    f = flux[0] * 10 ** (0.4 * r * 0.1)
    expected = [np.log10(f[0] / f[1]), np.log10(f[1] / f[2]), np.log10(f[2] / f[3]), np.log10(f[3])]
    np.testing.assert_allclose(bright, expected, atol=1e-5)
    assert np.isfinite(faint).all()
