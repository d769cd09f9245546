"""Workers that die while they make a part: no other part suffers, and what was lost is said."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from builders.catalogs import SMALL, TILES, part_stats, poisoned
from builders.models import calibrated_checkpoint
from photozhpc.catalog import dispatch, predict, read_catalog, read_pdf
from photozhpc.catalog.predict import predict_part
from photozhpc.catalog.run import run_inference
from photozhpc.catalog.status import describe, status_of
from photozhpc.catalog.verify import verify_catalog
from photozhpc.errors import RunError


def test_a_part_that_kills_its_workers_is_set_aside(store, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "predict_part", poisoned)
    with pytest.raises(RunError, match=r"1 of 10 parts .*part-000004.*every worker .* died"):
        run_inference(store.path, checkpoint, tmp_path / "out", **SMALL)
    assert len(part_stats(tmp_path / "out")) == 9


def test_parts_set_aside_are_named_until_they_are_made(
    store,
    checkpoint,
    tmp_path,
):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "predict_part", poisoned)
        with pytest.raises(RunError):
            run_inference(store.path, checkpoint, out, **SMALL)
    found = status_of(out)
    assert found["state"] == "stopped"
    assert found["workers_lost"] >= 3
    (part,) = found["set_aside"]
    assert part["part"] == 4
    assert part["shards"] == ["a/00004"]
    assert "died" in part["reason"]
    assert "failed   part 4, shards a/00004 to a/00004: every worker" in describe(found)
    run_inference(store.path, checkpoint, out, **SMALL)
    assert status_of(out)["set_aside"] == []


def killed_between(model, part, part_path, *rest):
    """Stands for `predict_part`: its process dies once, after p(z) and before the catalogue."""
    once = Path(part_path).parents[1] / "killed"

    def write_part(table, path, *more):
        if part.index == 1 and not once.exists():
            once.touch()
            assert (path.parents[1] / "pdf" / path.name).exists()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(table, path, *more)

    write, predict.write_part = predict.write_part, write_part
    try:
        return predict_part(model, part, part_path, *rest)
    finally:
        predict.write_part = write


def test_a_worker_that_dies_between_the_two_files_costs_nothing(store, tmp_path, monkeypatch):
    checkpoint = calibrated_checkpoint(tmp_path / "calibrated.safetensors")
    run_inference(store.path, checkpoint, tmp_path / "whole", **SMALL, pdf="grid")
    monkeypatch.setattr(dispatch, "predict_part", killed_between)
    out = tmp_path / "out"
    run_inference(store.path, checkpoint, out, **SMALL, pdf="grid")
    assert (out / "killed").exists()
    assert read_catalog(out).equals(read_catalog(tmp_path / "whole"))
    assert verify_catalog(out, store) == (sum(TILES.values()), [])
    for ours, other in zip(read_pdf(out), read_pdf(tmp_path / "whole"), strict=True):
        assert np.array_equal(ours.value_NP, other.value_NP, equal_nan=True)
    assert {p.suffix for p in (out / "pdf").iterdir()} == {".parquet"}
    # And a whole run that died there: p(z) without its part of the catalogue, nothing noted.
    (out / "catalog/part-000000.parquet").unlink()
    shutil.rmtree(out / "notes")
    summary = run_inference(store.path, checkpoint, out, **SMALL, pdf="grid")
    assert summary.n_rows_new == 64
    assert verify_catalog(out, store)[1] == []
