"""The engine: eager and compiled, shared by threads, batches of every size."""

import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.models import TINY, noise_images, tiny_checkpoint
from photozhpc.model import compiled as compiled_module
from photozhpc.model import load_checkpoint
from photozhpc.model.engine import Engine, default_batch_size
from photozhpc.model.pita import PITA
from photozhpc.model.pita_config import PITAConfig


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
