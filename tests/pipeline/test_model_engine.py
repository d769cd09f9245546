"""The engine: eager and compiled, shared by threads, batches of every size."""

import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.models import TINY, tiny_checkpoint
from photozhpc.model import compiled as compiled_module
from photozhpc.model import load_checkpoint
from photozhpc.model.engine import Engine, default_batch_size
from photozhpc.model.pita import PITA, PITAConfig


@pytest.fixture(scope="module")
def model_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    return tiny_checkpoint(path, layer_scale=0.5, density_bins=16)


@pytest.fixture
def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    cutout = rng.normal(0, 0.3, (150, 4, 40, 40)).astype(np.float32)
    cutout[7] = np.nan
    return cutout, rng.uniform(0, 0.1, 150).astype(np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PHOTOZHPC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.mark.timeout(300)
def test_compiled_code_is_made_once_and_gives_the_same(model_file, images, compiler) -> None:
    eager = Engine(load_checkpoint(model_file), batch_size=64).predict(*images)
    engine = Engine(load_checkpoint(model_file), batch_size=64, compiled=True)
    assert engine.is_compiled
    (package,) = compiler.glob("*.pt2")
    made_at = package.stat().st_mtime_ns
    z_phot, quantile, ood = engine.predict(*images)
    np.testing.assert_allclose(z_phot, eager.z_phot_N, rtol=0.02, atol=0.01)
    assert np.isnan(z_phot[7])
    assert quantile.shape == (150, 6)
    assert np.isnan(quantile).all()  # the density heads were not fitted
    assert np.isnan(ood).all()
    again = Engine(load_checkpoint(model_file), batch_size=64, compiled=True)
    np.testing.assert_array_equal(again.predict(*images).z_phot_N, z_phot)
    assert package.stat().st_mtime_ns == made_at
    assert compiler.stat().st_mode & 0o777 == 0o700
    assert not list(compiler.glob(".*.partial"))


def test_without_a_compiler_it_says_so_and_goes_on(
    model_file, images, cache, tmp_path, monkeypatch
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no C++ compiler' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.warns(UserWarning, match=r"runs uncompiled, which is slower \(no C\+\+ compiler"):
        engine = Engine(load_checkpoint(model_file), batch_size=64, compiled=True)
    assert not engine.is_compiled
    assert np.isfinite(engine.predict(*images).z_phot_N).sum() == 149
    assert not list(cache.glob("*.pt2"))


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


def test_code_that_others_could_have_written_is_not_loaded(model_file, cache) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.warns(UserWarning, match="other users can"):
        assert not Engine(load_checkpoint(model_file), compiled=True).is_compiled


def test_another_model_is_other_code(model_file, monkeypatch, cache) -> None:
    wanted: list[Path] = []
    monkeypatch.setattr(compiled_module, "_make", lambda path, _: wanted.append(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nothing is there to be loaded
        for batch_size, precision in ((64, torch.bfloat16), (64, torch.float32), (32, None)):
            Engine(load_checkpoint(model_file), "cpu", batch_size, precision, compiled=True)
    assert len(set(wanted)) == 3


def test_threads_may_share_it(model_file, images) -> None:
    engine = Engine(load_checkpoint(model_file), batch_size=32)
    expected = engine.predict(*images).z_phot_N
    found: list[np.ndarray] = []

    def work() -> None:
        for _ in range(5):
            found.append(engine.predict(*images).z_phot_N)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for z_phot in found:
        np.testing.assert_array_equal(z_phot, expected)


def test_cutouts_may_have_the_size_that_is_seen_or_more(model_file, images) -> None:
    cutout, ebv = images
    engine = Engine(load_checkpoint(model_file), batch_size=32)
    centre = cutout[:, :, 4:36, 4:36]
    np.testing.assert_array_equal(
        engine.predict(cutout, ebv).z_phot_N, engine.predict(centre, ebv).z_phot_N
    )
    assert engine.predict(cutout[:0], ebv[:0]).z_phot_N.shape == (0,)
    with pytest.raises(ValueError, match="no central 32"):
        engine.predict(cutout[:, :, :30, :30], ebv)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TINY, 256),
        (PITAConfig(), 32),  # ConvNeXt-Tiny on 64 px
        (PITAConfig(encoder="convnext_atto", crop=256), 16),
    ],
)
def test_a_batch_fits_the_cache(config: PITAConfig, expected: int) -> None:
    with torch.device("meta"):
        model = PITA(config)
    assert default_batch_size(model, torch.device("cpu")) == expected
    assert default_batch_size(model, torch.device("cuda")) == 2048
