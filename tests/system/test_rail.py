"""A checkpoint as a RAIL stage: what it gives is the catalogue's p(z), and RAIL goes on with it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import qp
from rail.core import RailPipeline

from builders.catalogs import ALONE as SMALL
from builders.models import calibrated_checkpoint, make_checkpoint
from builders.stores import make_store
from photozhpc.catalog import PhotozFlag, read_catalog, read_pdf
from photozhpc.catalog.run import run_inference
from photozhpc.errors import CheckpointError, ConfigError, StoreError
from photozhpc.rail import CutoutStoreHandle, PITAEstimator


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("rail") / "store", {"a": 150, "off-tile": 3})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return calibrated_checkpoint(tmp_path_factory.mktemp("rail") / "model.safetensors")


@pytest.fixture(scope="module")
def estimated(store, checkpoint, tmp_path_factory):
    """The stage after `estimate`, and its output; its files lie in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("stage"))
        stage = PITAEstimator.make_stage(
            name="pita",
            model=str(checkpoint),
            chunk_size=50,  # not the length of a shard
            calculated_point_estimates=["zmean", "zmedian"],
            zmax=4.0,
            device="cpu",
        )
        handle = stage.estimate(store.path)
        path = Path(handle.path).absolute()
    return stage, handle.data, path


def test_the_stage_gives_the_p_of_z_of_the_catalogue(store, checkpoint, estimated, tmp_path):
    out = tmp_path / "out"
    run_inference(store.path, checkpoint, out, **SMALL, pdf="grid")
    table = read_catalog(out)
    _, ensemble, path = estimated
    assert ensemble.npdf == len(store) == len(table)
    assert np.array_equal(ensemble.ancil["source_id"], table["source_id"].to_numpy())
    assert np.array_equal(ensemble.ancil["id"], table["source_id"].to_numpy())
    assert np.array_equal(ensemble.ancil["photoz_flags"], table["photoz_flags"].to_numpy())
    for name in ("photoz", "photoz_low68", "photoz_high99", "photoz_ood"):
        np.testing.assert_allclose(
            ensemble.ancil[name], table[name].to_numpy(), rtol=2e-2, atol=2e-3
        )
    parts = list(read_pdf(out))
    value_NP = np.concatenate([part.value_NP for part in parts])
    known = np.isfinite(value_NP).all(axis=1)
    assert 0 < (~known).sum() < len(known)
    found = ensemble.pdf(parts[0].axis_P)
    # Compared where a density is steep too: bfloat16 rounds otherwise in batches of another length.
    step = parts[0].axis_P[1] - parts[0].axis_P[0]
    cdf_difference_NP = np.cumsum(found[known] - value_NP[known], axis=1) * step
    assert np.abs(cdf_difference_NP).max() < 5e-3
    assert np.median(np.abs(found[known] / value_NP[known] - 1)) < 3e-3
    lost = found[~known]
    np.testing.assert_allclose(lost, 1 / 4.0, rtol=1e-4)
    assert np.isnan(ensemble.ancil["zmode"][~known]).all()
    assert (ensemble.ancil["photoz_flags"][~known] & PhotozFlag.NO_PHOTOZ).all()
    again = qp.read(str(path))
    assert np.array_equal(again.ancil["source_id"], ensemble.ancil["source_id"])
    grid = parts[0].axis_P
    mean = np.trapezoid(value_NP[known] * grid, grid, axis=1)
    np.testing.assert_allclose(ensemble.ancil["zmean"].ravel()[known], mean, rtol=3e-2)
    assert np.array_equal(ensemble.ancil["zmode"][known], grid[found[known].argmax(axis=1)])
    labelled = np.concatenate([store.read_sources(key).z_spec_N for key in store.shards()])
    assert np.array_equal(ensemble.ancil["redshift"], labelled, equal_nan=True)


def test_rail_summarises_and_evaluates_what_the_stage_gives(estimated, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from rail.core.data import QPHandle
    from rail.estimation.algos.naive_stack import NaiveStackSummarizer
    from rail.estimation.algos.point_est_hist import PointEstHistSummarizer

    _, ensemble, path = estimated
    stack = NaiveStackSummarizer.make_stage(
        name="stack", zmin=0.0, zmax=4.0, nzbins=80, n_samples=3, chunk_size=64
    )
    stack.set_data("input", QPHandle("input", path=str(path)), do_read=False)
    stack.run()
    stack.finalize()
    grid = np.linspace(0, 4, 81)
    expected = ensemble.pdf(grid).sum(axis=0)
    found = qp.read(stack.get_handle("single_NZ").path).pdf(grid).ravel()
    np.testing.assert_allclose(found, expected / np.trapezoid(expected, grid), rtol=1e-3)
    points = PointEstHistSummarizer.make_stage(
        name="points", zmin=0.0, zmax=4.0, nzbins=20, n_samples=3
    )
    points.set_data("input", QPHandle("input", path=str(path)), do_read=False)
    points.run()
    points.finalize()
    n_of_z = qp.read(points.get_handle("single_NZ").path)
    zmode = ensemble.ancil["zmode"]  # of RAIL's point estimates the one that it looks for
    counts, edges = np.histogram(zmode[np.isfinite(zmode)], bins=np.linspace(0, 4, 21))
    middle = (edges[1:] + edges[:-1]) / 2
    np.testing.assert_allclose(
        n_of_z.pdf(middle).ravel(), counts / counts.sum() / np.diff(edges), rtol=1e-5, atol=1e-9
    )


def test_the_chunks_of_the_handle_are_the_rows_of_the_store(store):
    handle = CutoutStoreHandle("input", path=str(store.path))
    assert handle.size() == len(store)
    chunks = list(handle.iterator(chunk_size=40, rank=0, parallel_size=1))
    assert [(start, end) for start, end, _ in chunks] == [
        (0, 40), (40, 80), (80, 120), (120, len(store)),
    ]  # fmt: skip
    ids = np.concatenate([table["source_id"] for _, _, table in chunks])
    due = np.concatenate([store.read_sources(key).source_id_N for key in store.shards()])
    assert np.array_equal(ids, due)
    shared = [
        start
        for rank in (0, 1)
        for start, _, _ in handle.iterator(chunk_size=40, rank=rank, parallel_size=2)
    ]
    assert sorted(shared) == [0, 40, 80, 120]


def test_what_does_not_fit_is_refused(store, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    stage = PITAEstimator.make_stage(name="pita", model=str(checkpoint), device="cpu")
    with pytest.raises(StoreError, match="no store there"):
        stage.estimate(tmp_path / "none")
    with pytest.raises(ConfigError, match="no model; pass model=PATH"):
        PITAEstimator.make_stage(name="none").estimate(store)
    other = make_checkpoint(tmp_path / "other.safetensors", survey_name="candels")
    with pytest.raises(CheckpointError, match="was trained on survey 'candels'"):
        PITAEstimator.make_stage(name="other", model=str(other)).estimate(store.path)


def test_a_pipeline_of_rail_runs_the_stage(store, checkpoint, tmp_path, monkeypatch):
    """Saved, and run by the program ceci, as RAIL's own pipelines are."""
    monkeypatch.chdir(tmp_path)
    stage = PITAEstimator.make_stage(
        name="pita", model=str(checkpoint), output_mode="default", device="cpu"
    )
    pipeline = RailPipeline()
    pipeline.add_stage(stage)
    inputs = {"model": str(checkpoint), "input": str(store.path)}
    places = {"output_dir": str(tmp_path), "log_dir": str(tmp_path), "resume": False}
    pipeline.initialize(inputs, places, None)
    pipeline.save("pipeline.yml")
    # ceci starts its stages with the "python3" of PATH: that of an environment which is active.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    done = subprocess.run(["ceci", "pipeline.yml"], capture_output=True, text=True)
    assert done.returncode == 0, (tmp_path / "pita.out").read_text()
    assert qp.read(str(tmp_path / "output_pita.hdf5")).npdf == len(store)
