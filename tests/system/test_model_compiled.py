"""Compiled code: made once, the same numbers."""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.models import noise_images, tiny_checkpoint
from photozhpc.model import compiled as compiled_module
from photozhpc.model import load_checkpoint
from photozhpc.model.density import LEVEL_Q
from photozhpc.model.engine import Engine


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return tiny_checkpoint(path, layer_scale=0.5, density_bins=16)


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    return noise_images()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PHOTOZHPC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.mark.drawn
@pytest.mark.timeout(300)
def test_compiled_code_is_made_once_and_gives_the_same(model_file, images, compiler) -> None:
    eager = Engine(load_checkpoint(model_file), batch_size=64).predict(*images)
    engine = Engine(load_checkpoint(model_file), batch_size=64, compiled=True)
    assert engine.is_compiled
    (package,) = compiler.glob("*.pt2")
    made_at = package.stat().st_mtime_ns
    found = engine.predict(*images)
    z_phot = found.z_phot_N
    np.testing.assert_allclose(z_phot, eager.z_phot_N, rtol=0.02, atol=0.01)
    assert np.isnan(z_phot[7])
    assert found.quantile_NQ.shape == (150, len(LEVEL_Q))
    assert np.isnan(found.quantile_NQ).all()  # the density heads were not fitted
    assert np.isnan(found.ood_N).all()
    again = Engine(load_checkpoint(model_file), batch_size=64, compiled=True)
    np.testing.assert_array_equal(again.predict(*images).z_phot_N, z_phot)
    assert package.stat().st_mtime_ns == made_at
    assert compiler.stat().st_mode & 0o777 == 0o700
    assert not list(compiler.glob(".*.partial"))


def test_what_one_worker_cannot_compile_those_that_waited_do_not_try(
    model_file, cache, tmp_path, monkeypatch
) -> None:
    broken, tried = tmp_path / "python", tmp_path / "tried"
    broken.write_text(f"#!/bin/sh\necho once >> {tried}\nsleep 1\necho 'no compiler' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    checkpoint = load_checkpoint(model_file)
    what = (checkpoint, torch.float32, 16, torch.device("cpu"))
    with (
        warnings.catch_warnings(record=True, action="always") as found,
        ThreadPoolExecutor(3) as pool,
    ):
        waiting = [pool.submit(compiled_module.compiled_forward, *what) for _ in range(3)]
        assert [future.result() for future in waiting] == [None] * 3
    assert len(found) == 3
    assert all("no compiler" in str(warning.message) for warning in found)
    assert tried.read_text() == "once\n"


@pytest.mark.slow
def test_compiled_p_of_z_is_the_same(compiler, store, checkpoint):
    key = store.shards()[0]
    images = (store.read_cutouts(key), store.read_sources(key).ebv_N)
    loaded = load_checkpoint(checkpoint)
    precision = {"batch_size": 64, "precision": torch.float32}
    found = Engine(loaded, compiled=True, pdf="grid", **precision)
    assert found.is_compiled
    _, due_NP = Engine(loaded, pdf="grid", **precision).predict_pdf(*images)
    _, found_NP = found.predict_pdf(*images)
    np.testing.assert_allclose(found_NP, due_NP, rtol=1e-3, atol=1e-4)
