"""Skies, stores and a catalogue, made once for all tests of a worker.

The fixtures import what they use: this file is read before any test is, by every process.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from builders.draws import draw_third

if TYPE_CHECKING:
    from photozhpc.store import CutoutStore


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    draw_third(items)


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled code: empty, and not the user's own. Needs a C++ compiler."""
    program = os.environ.get("CXX", "g++")
    if shutil.which(program) is None:
        pytest.skip(f"no C++ compiler ({program}) is there")
    monkeypatch.setenv("PHOTOZHPC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Workers of pytest share the cores: OpenMP threads that wait for each other stall them all.

    Numba's kernels set the number of threads for torch too, so it is set before every test.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first process of a run of pytest-xdist makes for all of them."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / f"{name}.made").exists():
            make(base / name)
            (base / f"{name}.made").touch()
    return base / name


@pytest.fixture(scope="session")
def small_sky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two tiles of 700 px, with denser labels than a real survey's."""
    from builders.skies import SIMPLE
    from photozhpc.sky import simulate_sky
    from photozhpc.survey import load_survey

    def make(out: Path) -> None:
        config = replace(SIMPLE, tile_size_pix=700, density_scale=3.0, label_fraction=0.6)
        simulate_sky(load_survey("roman-sim"), out, 2, 5, config, workers=1)

    return made_once(tmp_path_factory, "small-sky", make)


@pytest.fixture(scope="session")
def small_store(small_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> CutoutStore:
    """The store of `small_sky`: cutouts of 48 px in shards of 64."""
    from photozhpc.extraction.extract import extract
    from photozhpc.store import CutoutStore
    from photozhpc.survey import load_survey

    def make(path: Path) -> None:
        extract(load_survey("roman-sim"), small_sky, path, size=48, shard_len=64, workers=1)

    return CutoutStore.open(made_once(tmp_path_factory, "small-store", make))


@pytest.fixture(scope="session")
def unlabelled_store(small_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> CutoutStore:
    """The store of `small_sky`, of a survey that knows no redshifts."""
    from photozhpc.extraction.extract import extract
    from photozhpc.store import CutoutStore
    from photozhpc.survey import load_survey

    folder = tmp_path_factory.mktemp("unlabelled")
    survey = load_survey("roman-sim")
    survey = replace(survey, source_columns=replace(survey.source_columns, z_spec=None))
    extract(survey, small_sky, folder / "store", size=48, shard_len=64, workers=1)
    return CutoutStore.open(folder / "store")


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> CutoutStore:
    from builders.catalogs import TILES
    from builders.stores import make_store

    return make_store(tmp_path_factory.mktemp("catalog") / "store", TILES)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from builders.models import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("catalog") / "model.safetensors")


@pytest.fixture(scope="session")
def undisturbed(store, checkpoint, tmp_path_factory) -> Path:
    from builders.catalogs import SMALL
    from photozhpc.catalog.run import run_inference

    out = tmp_path_factory.mktemp("catalog") / "undisturbed"
    run_inference(store.path, checkpoint, out, **SMALL)
    return out


@pytest.fixture
def finished(undisturbed, tmp_path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "out"))
