"""What a model file notes of its store, and when a store is called another."""

import json

import numpy as np
import pytest

from builders.models import make_checkpoint
from photozhpc.config import from_mapping
from photozhpc.model import load_checkpoint, save_checkpoint
from photozhpc.model.stars import PointSources
from photozhpc.model.store_note import (
    KEY,
    SOURCE_FACTOR,
    UNKNOWN_SPREAD,
    StoreNote,
    noise_warning,
    note_store,
    noted,
    training_note,
)
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
C, R = len(SURVEY.bands), len(SURVEY.aperture_radii_arcsec)


def make_store(path, noise=1.0, n=300):
    rng = np.random.default_rng(0)
    store = CutoutStore.create(path, SURVEY, 24, 128)
    with store.new_tile("t", n, {}) as writer:
        for start in range(0, n, 128):
            m = min(128, n - start)
            zeros = np.zeros(m)
            err_NCR = np.full((m, C, R), noise, np.float32) * np.arange(1, R + 1, dtype="f4")
            writer.write_shard(
                (noise * rng.standard_normal((m, C, 24, 24))).astype("f4"),
                Sources(np.arange(start, start + m), zeros, zeros, zeros.astype("f4"), zeros),
                Measurements(zeros, zeros, err_NCR, err_NCR, np.zeros((m, C), "u2")),
            )
    return store


def test_the_noise_of_a_store_is_noted_and_three_times_the_noise_is_told(tmp_path):
    training = note_store(make_store(tmp_path / "a"), 24)
    for low, median, high in training.noise_njy:
        assert 0.6 < low < median < high < 1.5
        assert median == pytest.approx(1, abs=0.15)
    assert training.flux_err_njy == ((1.0, 1.0, 1.0),) * C
    assert training.point_sources is None
    assert noise_warning(training, training, SURVEY) is None
    noisy = note_store(make_store(tmp_path / "b", 3.0), 24)
    warning = noise_warning(training, noisy, SURVEY)
    assert "pixels: F062 3" in warning
    assert "stated errors: F062 3, F087 3" in warning
    assert "photozhpc calibrate" in warning
    low_C, high_C = training.noise_limits_2C
    np.testing.assert_allclose(low_C, [r[0] / SOURCE_FACTOR for r in training.noise_njy])
    assert (high_C < [r[1] for r in noisy.noise_njy]).all()


def test_one_band_of_another_depth_is_named(tmp_path):
    note = note_store(make_store(tmp_path / "a"), 24)
    shallow = list(note.flux_err_njy)
    shallow[2] = (1.9, 2.0, 2.1)
    warning = noise_warning(note, StoreNote(note.noise_njy, tuple(shallow)), SURVEY)
    assert "(stated errors: F129 2)" in warning


def test_a_note_survives_the_model_file_and_an_older_file_gives_its_typical_noise(tmp_path):
    old = load_checkpoint(make_checkpoint(tmp_path / "old.safetensors"))
    assert training_note(old) is None
    nan = (float("nan"),) * 3
    note = StoreNote(((0.5, 1.0, 2.0), nan), (), PointSources((0.7, 0.6), 0.02, 0.1))
    mapping = json.loads(json.dumps(noted(note)))
    again = from_mapping(StoreNote, mapping, "x")
    assert repr(again) == repr(note)  # NaN differs from itself
    path = save_checkpoint(tmp_path / "new.safetensors", old.pita, old.survey, {KEY: mapping})
    assert repr(training_note(load_checkpoint(path))) == repr(note)
    limits_2C = note.noise_limits_2C
    assert not ((limits_2C[0] > 3) | (limits_2C[1] < 3))[1]  # of a band that was not measured
    path = save_checkpoint(tmp_path / "b.safetensors", old.pita, old.survey, {"store_sha256": ""})
    of_old = training_note(load_checkpoint(path))
    assert of_old.noise_njy[0] == pytest.approx((1 / UNKNOWN_SPREAD, 1.0, UNKNOWN_SPREAD))
    assert of_old.point_sources is None
