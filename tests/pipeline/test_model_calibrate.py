"""Calibrating a network on stores: who is used for what, files, refusals, unusual images."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from builders import models as tiny
from photozhpc.errors import CheckpointError, StoreError
from photozhpc.extraction.extract import extract
from photozhpc.files.lock import locked
from photozhpc.model import PITA, bundled_checkpoint, load_checkpoint, save_checkpoint
from photozhpc.model import calibrate as calibrate_module
from photozhpc.model.calibrate import Roles, calibrate, fit_uncertainty
from photozhpc.model.density_fit import fit_distance
from photozhpc.model.encode import encode
from photozhpc.model.engine import Engine, Prediction
from photozhpc.store import CutoutStore
from photozhpc.store.loader import label_split, typical_noise
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
SEED, APERTURE = 1, 2
TINY = replace(tiny.TINY, redshift_heads=2, redshift_sees_apertures=True, density_bins=40)


def untrained(store: CutoutStore) -> PITA:
    torch.manual_seed(0)
    model = PITA(TINY).eval()
    model.noise_C.copy_(torch.from_numpy(typical_noise(store, APERTURE)[0]))
    return model


@pytest.fixture(scope="module")
def fitted(small_store: CutoutStore) -> tuple[PITA, Roles]:
    torch.set_num_threads(1)  # as in every test: the kernels that made the store set another number
    model = untrained(small_store)
    return model, fit_uncertainty(model, small_store, SEED, steps=100)


@pytest.fixture(scope="module")
def checkpoint(fitted: tuple[PITA, Roles], small_store: CutoutStore, tmp_path_factory) -> Path:
    training = {"config": {"seed": SEED}, "store_sha256": small_store.fingerprint()}
    path = tmp_path_factory.mktemp("calibrate") / "model.safetensors"
    return save_checkpoint(path, fitted[0], SURVEY, training)


@pytest.fixture(scope="module")
def other_store(small_sky: Path, tmp_path_factory) -> CutoutStore:
    """The same sky in larger cutouts: another store, to which no split of labels applies."""
    path = tmp_path_factory.mktemp("stores") / "other"
    extract(SURVEY, small_sky, path, size=66, shard_len=64, workers=1)
    return CutoutStore.open(path)


def predict(model_file: Path, store: CutoutStore) -> Prediction:
    engine = Engine(load_checkpoint(model_file), batch_size=64)
    parts = [
        engine.predict(store.read_cutouts(key), store.read_sources(key).ebv_N)
        for key in store.shards()
    ]
    return Prediction(*map(np.concatenate, zip(*parts, strict=True)))


def labelled_ids(store: CutoutStore) -> np.ndarray:
    sources = [store.read_sources(key) for key in store.shards()]
    return np.concatenate([s.source_id_N[np.isfinite(s.z_spec_N)] for s in sources])


def test_no_source_has_two_roles(fitted, small_store: CutoutStore) -> None:
    roles = fitted[1]
    expected = {"fit_N": "train", "shape_N": "validation", "conformal_N": "calibration"}
    used = []
    for name, split in expected.items():
        ids = getattr(roles, name)
        assert len(ids) > 0
        assert set(label_split(ids, SEED)) == {split}
        used.append(ids)
    everyone = np.concatenate(used)
    assert len(np.unique(everyone)) == len(everyone)
    labelled = labelled_ids(small_store)
    assert set(everyone) <= set(labelled)
    assert "test" in label_split(labelled, SEED)


def test_only_the_uncertainty_changes_and_the_seed_settles_it(
    fitted, small_store: CutoutStore
) -> None:
    model, again = fitted[0], untrained(small_store)
    before = {name: tensor.clone() for name, tensor in again.state_dict().items()}
    fit_uncertainty(again, small_store, SEED, steps=100)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
        assert name.startswith("uncertainty.") or torch.equal(tensor, before[name])
    assert again.uncertainty.is_fitted
    assert not any(p.requires_grad for p in again.uncertainty.parameters())


def test_a_calibrated_model_says_the_same_from_its_file(
    fitted, checkpoint: Path, small_store: CutoutStore
) -> None:
    found = predict(checkpoint, small_store)
    good = np.isfinite(found.z_phot_N)
    assert good.sum() > 50
    for column in found:
        assert np.isfinite(column[good]).all()
        assert np.isnan(column[~good]).all()
    quantile = found.quantile_NQ[good]
    assert (np.diff(quantile, axis=1) >= 0).all()
    assert ((quantile[:, 0] < found.mean_N[good]) & (found.mean_N[good] < quantile[:, -1])).all()
    assert ((found.mode_N[good] > 0) & (found.mode_N[good] < 4)).all()
    engine = Engine(replace(load_checkpoint(checkpoint), model=fitted[0]), batch_size=64)
    key = small_store.shards()[0]
    direct = engine.predict(small_store.read_cutouts(key), small_store.read_sources(key).ebv_N)
    for from_file, value in zip(found, direct, strict=True):
        np.testing.assert_array_equal(from_file[: len(value)], value)


def test_its_own_store_lends_only_the_splits_kept_for_it(
    checkpoint: Path, fitted, small_store: CutoutStore, tmp_path: Path
) -> None:
    out = calibrate(checkpoint, small_store, tmp_path / "same.safetensors")
    loaded = load_checkpoint(out)
    assert loaded.training["calibration"]["labels"] == len(fitted[1].conformal_N)
    assert loaded.training["config"] == {"seed": SEED}
    for name, tensor in loaded.model.state_dict().items():
        torch.testing.assert_close(tensor, fitted[0].state_dict()[name], rtol=1e-5, atol=1e-6)


def test_another_store_lends_all_its_labels_and_moves_the_levels_alone(
    checkpoint: Path, fitted, other_store: CutoutStore, tmp_path: Path
) -> None:
    loaded = load_checkpoint(calibrate(checkpoint, other_store, tmp_path / "new.safetensors"))
    shape = label_split(labelled_ids(other_store), SEED) == "validation"
    provenance = loaded.training["calibration"]
    assert 0 <= np.count_nonzero(~shape) - provenance["labels"] <= 3  # unusable images
    assert 1 < provenance["effective_labels"] <= provenance["labels"]
    assert provenance["store_sha256"] == other_store.fingerprint()
    before, after = fitted[0].state_dict(), loaded.model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"uncertainty.level_GQ"}  # brightness is the same on the same sky


def test_a_compact_file_is_smaller_and_rounds_the_encoder_alone(
    checkpoint: Path, small_store: CutoutStore, tmp_path: Path
) -> None:
    whole, compact = (
        calibrate(checkpoint, small_store, tmp_path / f"{flag}.safetensors", flag)
        for flag in (False, True)
    )
    assert compact.stat().st_size < 0.75 * whole.stat().st_size
    before, after = (load_checkpoint(path).model.state_dict() for path in (whole, compact))
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("encoder.") for name in changed)
    for name in changed:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-6)


def test_few_images_can_stand_for_a_survey(
    small_store: CutoutStore, fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate_module, "MAX_IMAGES", 60)
    model = untrained(small_store)
    roles = fit_uncertainty(model, small_store, SEED, steps=10)
    for name in ("fit_N", "shape_N", "conformal_N"):  # labels are used all the same
        np.testing.assert_array_equal(getattr(roles, name), getattr(fitted[1], name))
    assert not torch.equal(model.uncertainty.latent_mean_D, fitted[0].uncertainty.latent_mean_D)


def test_what_cannot_be_calibrated_is_refused(
    small_store: CutoutStore, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = PITA(replace(TINY, density_bins=0))
    with pytest.raises(CheckpointError, match="density_bins above 0"):
        fit_uncertainty(plain, small_store, SEED, 1)
    for name, model in (("plain", plain), ("unfitted", untrained(small_store))):
        path = save_checkpoint(tmp_path / f"{name}.safetensors", model, SURVEY)
        with pytest.raises(CheckpointError, match=f"{name}.*no fitted density heads"):
            calibrate(path, small_store, tmp_path / "out.safetensors")
    monkeypatch.setattr(
        calibrate_module, "label_split", lambda ids, seed: np.full(len(ids), "train")
    )
    with pytest.raises(StoreError, match="falls into the validation split"):
        calibrate(checkpoint, small_store, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def auc(high: np.ndarray, low: np.ndarray) -> float:
    """Probability that a random one of `high` exceeds a random one of `low`."""
    return float(np.mean(high[:, None] > low[None, :]))


def test_unusual_images_stand_out_from_usual_ones(other_store: CutoutStore) -> None:
    model = load_checkpoint(bundled_checkpoint("roman-sim")).pita
    cutout = np.concatenate([other_store.read_cutouts(key) for key in other_store.shards()])
    ebv = np.concatenate([other_store.read_sources(key).ebv_N for key in other_store.shards()])
    whole = np.isfinite(cutout).mean(axis=(1, 2, 3)) > 0.99
    cutout, ebv = cutout[whole], ebv[whole]
    turned = [np.rot90(cutout, turn, axes=(2, 3)) for turn in range(4)]
    usual = [encode(model, images.copy(), ebv).latent_ND for images in turned]
    seen = np.arange(len(cutout)) % 3 > 0
    fit_distance(model.uncertainty, np.concatenate([latent[seen] for latent in usual]))

    def score(images: np.ndarray) -> np.ndarray:
        latent = encode(model, images.astype(np.float32), ebv).latent_ND
        return model.uncertainty.ood(torch.from_numpy(latent)).numpy()

    blank = cutout.copy()
    blank[:, 2] = 0
    kinds = {
        "another unit of flux": cutout * 30,
        "a blank band": blank,
        "bands in another order": cutout[:, ::-1],
    }
    unseen = score(cutout)[~seen]
    assert np.median(unseen) < 1.5
    for name, images in kinds.items():
        # A small network reacts less to a blank band, of which flag SHARP_DEFECT tells.
        assert auc(score(images), unseen) > (0.7 if name == "a blank band" else 0.8), name


def test_the_same_calibration_is_the_same_file_in_every_process(
    checkpoint: Path, small_store: CutoutStore, tmp_path: Path
) -> None:
    """safetensors writes the two keys of its metadata in an order of its own."""
    program = (
        "import sys; from photozhpc.model import load_checkpoint, save_checkpoint\n"
        "found = load_checkpoint(sys.argv[1])\n"
        "for n in range(8):\n"
        "    save_checkpoint(f'{sys.argv[2]}/{n}', found.model, found.survey, found.training)\n"
    )
    again = [sys.executable, "-c", program, checkpoint, tmp_path]
    subprocess.run(again, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {checkpoint.read_bytes()}
    with safe_open(checkpoint, framework="pt") as file:
        theirs = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    mine = load_checkpoint(checkpoint).model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine | theirs)


def test_calibrate_is_refused_where_somebody_writes(
    checkpoint: Path, small_store: CutoutStore, tmp_path: Path
) -> None:
    out = tmp_path / "c.safetensors"
    for lock in (tmp_path / ".c.safetensors.lock", tmp_path / ".lock"):
        with (
            locked(lock, "photozhpc train"),
            pytest.raises(CheckpointError, match=r"writing there now \(photozhpc train, process"),
        ):
            calibrate(checkpoint, small_store, out)
    half = tmp_path / f".c.safetensors.{socket.gethostname()}.{2**22 + 1}.partial"
    half.write_bytes(b"half")
    with locked(tmp_path / ".d.safetensors.lock", "photozhpc calibrate"):  # another file
        calibrate(checkpoint, small_store, out)
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
