"""A catalogue of a store of noise, made once for all tests of a worker."""

import shutil
from pathlib import Path

import pytest

from builders.catalogs import SMALL, TILES
from builders.models import make_checkpoint
from builders.stores import make_store
from photozhpc.catalog.run import run_inference
from photozhpc.store import CutoutStore


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> CutoutStore:
    return make_store(tmp_path_factory.mktemp("catalog") / "store", TILES)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("catalog") / "model.safetensors")


@pytest.fixture(scope="session")
def undisturbed(store, checkpoint, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("catalog") / "undisturbed"
    run_inference(store.path, checkpoint, out, **SMALL)
    return out


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "out"))
