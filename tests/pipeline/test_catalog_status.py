"""`photozhpc status`: what it says while a run goes on, after it, and of what failed."""

import json
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from builders.catalogs import SMALL, TILES, late_first
from photozhpc import __version__
from photozhpc.catalog import dispatch
from photozhpc.catalog.notes import read_notes
from photozhpc.catalog.part_file import PROVENANCE_KEY
from photozhpc.catalog.run import run_inference
from photozhpc.catalog.status import describe, status_of
from photozhpc.cli import main
from photozhpc.errors import PhotozError

ROWS = sum(TILES.values())


def test_a_finished_run(finished):
    found = status_of(finished)
    assert found["state"] == "finished"
    assert (found["parts"], found["parts_done"]) == (10, 10)
    assert (found["sources"], found["sources_done"]) == (ROWS, ROWS)
    assert found["seconds_left"] is None
    assert found["set_aside"] == []
    assert sum(worker["sources"] for worker in found["workers"].values()) == ROWS
    said = CliRunner().invoke(main, ["status", str(finished)])
    assert said.exit_code == 0
    assert f"sources  {ROWS} of {ROWS} (100.0 %)" in said.output
    as_json = CliRunner().invoke(main, ["status", str(finished), "--json"])
    assert json.loads(as_json.output)["sources_done"] == ROWS


def test_while_it_runs_and_it_does_not_disturb(
    store,
    checkpoint,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(dispatch, "predict_part", late_first)
    out = tmp_path / "out"
    thread = threading.Thread(
        target=run_inference, args=(store.path, checkpoint, out), kwargs=SMALL
    )
    thread.start()
    seen, metrics = [], ""
    while thread.is_alive():
        with suppress(PhotozError, URLError):  # no run is there yet
            seen.append(status_of(out))
            if seen[-1].get("metrics") and not metrics:
                with urlopen(seen[-1]["metrics"].split()[0], timeout=5) as answer:
                    metrics = answer.read().decode()
        time.sleep(0.05)
    thread.join()
    running = [found for found in seen if found.get("parts_done") == 9]
    assert running
    assert running[-1]["state"] == "running"
    assert "dask_scheduler_tasks" in metrics
    assert running[-1]["sources_done"] < ROWS
    assert 0 < running[-1]["seconds_left"] < 600
    assert "left     0:0" in describe(running[-1])
    assert status_of(out)["state"] == "finished"


def test_events_and_notes_name_shard_and_worker(finished):
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["begun", "finished"]
    lines = [
        json.loads(line)
        for file in (finished / "notes").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    assert {shard for line in lines for shard in line["shards"]} >= {"a/00000", "z/00003"}
    assert all(line["worker"] and line["seconds"] > 0 and line["at"] > 1e9 for line in lines)


def test_every_part_says_where_it_comes_from(store, checkpoint, tmp_path):
    out = tmp_path / "out"
    run_inference(store.path, checkpoint, out, **SMALL, command="photozhpc infer --survey x")
    (out / "catalog" / "part-000003.parquet").unlink()
    run_inference(store.path, checkpoint, out, **SMALL, command="another")
    for path in (out / "catalog").iterdir():
        found = json.loads(pq.read_schema(path).metadata[PROVENANCE_KEY])
        assert found["photozhpc"] == __version__
        assert found["command"] == "photozhpc infer --survey x"
        assert found["store"] == str(store.path)
        assert found["checkpoint"] == str(checkpoint)
        identity = found["identity"]
        assert identity["store_fingerprint"] == store.fingerprint()
        assert len(identity["checkpoint_sha256"]) == 64
        assert identity["rows_per_part"] == 64


def test_a_part_that_was_not_noted_is_noted_when_the_run_goes_on(store, checkpoint, finished):
    """Its worker died between the two."""
    shutil.rmtree(finished / "notes")
    run_inference(store.path, checkpoint, finished, **SMALL)
    assert sorted(read_notes(finished)) == [*range(10)]


def test_a_store_and_a_training(store, tmp_path):
    copy = Path(shutil.copytree(store.path, tmp_path / "store"))
    plan = dict.fromkeys([*TILES, "later"], "digest")
    (copy / "plan.json").write_text(json.dumps(plan))
    found = status_of(copy)
    assert (found["state"], found["tiles_done"], found["tiles"]) == ("not finished", 5, 6)
    assert describe(found).splitlines()[1] == "tiles    5 of 6"
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text('{"epoch": 1, "loss_total": 2.5}\n{"epoch": 2, "los')
    found = status_of(run)
    assert (found["kind"], found["epochs_done"]) == ("training", 1)
    assert describe(found).endswith("last     epoch 1  loss_total 2.5")
    with pytest.raises(PhotozError, match="no run of photozhpc is there"):
        status_of(tmp_path)
