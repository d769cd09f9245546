"""Streaming inference: against a plain loop, taken up again, and refused where it must be."""

import ctypes
import fcntl
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.catalogs import SMALL, TILES, late_first, part_stats
from builders.disks import disk_of
from builders.models import make_checkpoint
from builders.paths import CONFIGS
from builders.stores import SHARD_LEN, SIZE, SURVEY, make_store
from photozhpc.catalog import PhotozFlag, dispatch, read_catalog
from photozhpc.catalog import run as run_module
from photozhpc.catalog.notes import read_notes
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS
from photozhpc.catalog.predict import (
    check_fit,
    load_engine,
    photoz_flags,
    predict_part,
)
from photozhpc.catalog.progress import SourceProgress
from photozhpc.catalog.run import run_inference
from photozhpc.catalog.run_folder import (
    ModelKey,
    default_rows_per_part,
    file_sha256,
    plan_parts,
)
from photozhpc.catalog.verify import verify_catalog
from photozhpc.errors import CatalogError, CheckpointError, ConfigError, RunError, StoreError
from photozhpc.store import CutoutStore
from photozhpc.store.unique import check_unique
from photozhpc.survey import load_survey
from photozhpc.workers.dask_workers import DaskWorkers


def test_the_catalogue_equals_a_plain_loop_over_the_store(store, checkpoint, undisturbed):
    import torch

    from photozhpc.model import load_checkpoint
    from photozhpc.model.engine import Engine

    torch.set_num_threads(1)
    engine = Engine(load_checkpoint(checkpoint), "cpu")
    table = read_catalog(undisturbed)
    assert len(table) == len(store) == sum(TILES.values())
    ids, tiles, predictions, fluxes = [], [], [], []
    for key in store.shards():
        sources = store.read_sources(key)
        ids.append(sources.source_id_N)
        tiles += [key.tile_id] * len(sources)
        predictions.append(engine.predict(store.read_cutouts(key), sources.ebv_N))
        fluxes.append(store.read_measurements(key).flux_NCR[:, 3, 1])
    assert np.array_equal(table["source_id"].to_numpy(), np.concatenate(ids))
    assert table["tile_id"].to_pylist() == tiles
    photoz = table["photoz"].to_numpy()
    z_phot, mean, mode, quantile, ood = map(np.concatenate, zip(*predictions, strict=True))
    np.testing.assert_allclose(photoz, z_phot, rtol=2e-2, atol=2e-3)
    columns = np.stack([table[name].to_numpy() for name in QUANTILE_LEVELS], axis=1)
    by_level = columns[:, np.argsort(list(QUANTILE_LEVELS.values()))]
    np.testing.assert_allclose(by_level, quantile, rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(table["photoz_mean"].to_numpy(), mean, rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(table["photoz_mode"].to_numpy(), mode, rtol=2e-2, atol=2e-3)
    np.testing.assert_allclose(table["photoz_ood"].to_numpy(), ood, rtol=2e-2, atol=2e-3)
    assert np.isfinite(columns[np.isfinite(photoz)]).all()
    assert (np.diff(by_level[np.isfinite(photoz)], axis=1) >= 0).all()
    assert np.ptp(photoz[np.isfinite(photoz)]) > 0
    np.testing.assert_array_equal(table["aper02_f158_flux"].to_numpy(), np.concatenate(fluxes))


def test_sources_that_could_not_be_measured_are_kept_and_flagged(undisturbed):
    rows = {row["source_id"] - 10**15: row for row in read_catalog(undisturbed).to_pylist()}
    for row in rows.values():  # a network that has learnt nothing contradicts itself
        row["photoz_flags"] &= ~(PhotozFlag.UNUSUAL | PhotozFlag.IMPLAUSIBLE)
    assert rows[0]["photoz_flags"] == 0
    assert rows[0]["photoz"] is not None
    lost = PhotozFlag.NO_PHOTOZ | PhotozFlag.BAD_PIXELS
    assert rows[1]["photoz_flags"] == lost | PhotozFlag.MISSING_BAND
    assert rows[1]["photoz"] is None
    assert rows[1]["aper02_f129_flux"] is None
    assert rows[1]["aper02_f158_flux"] is not None
    assert rows[2]["photoz_flags"] == PhotozFlag.BAD_PIXELS
    assert rows[2]["photoz"] is not None
    assert rows[3]["photoz_flags"] == lost
    off = [row for row in rows.values() if row["tile_id"] == "off-tile"]
    assert len(off) == 3
    for row in off:
        assert row["photoz_flags"] == lost | PhotozFlag.MISSING_BAND | PhotozFlag.OFF_TILE
        assert row["photoz"] is None


def test_flags_look_only_where_the_network_looks():
    cutout_NCSS = np.zeros((4, 4, 48, 48), np.float32)
    cutout_NCSS[0, :, :8] = np.nan  # the network sees rows 8 to 39
    cutout_NCSS[1, 2, :10] = np.nan  # 6% of one band
    cutout_NCSS[2, 0, 12, 12] = np.nan  # a stray pixel
    cutout_NCSS[3, 0, 24, 25] = np.nan  # one beside the centre
    flags_N = photoz_flags(cutout_NCSS, 32, np.zeros((4, 4), np.uint16), np.ones(4, np.float32))
    bad = PhotozFlag.BAD_PIXELS
    assert flags_N.tolist() == [0, bad, 0, bad]


def test_a_run_taken_up_again_makes_only_what_is_missing_or_damaged(
    store, checkpoint, undisturbed, finished, capsys
):
    before = part_stats(finished)
    folder = finished / "catalog"
    (folder / "part-000002.parquet").unlink()
    truncated = folder / "part-000003.parquet"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    flipped = bytearray((folder / "part-000004.parquet").read_bytes())
    flipped[len(flipped) // 8] ^= 1
    (folder / "part-000004.parquet").write_bytes(flipped)
    shutil.copy(folder / "part-000006.parquet", folder / "part-000005.parquet")
    stale = folder / f".part-000002.parquet.{os.uname().nodename}.{2**22 + 1}.partial"
    stale.write_bytes(b"half of a part")
    summary = run_inference(store.path, checkpoint, finished, **{**SMALL, "progress": True})
    assert (summary.n_parts, summary.n_parts_resumed) == (len(before), len(before) - 4)
    redone = {name for name, stat in part_stats(finished).items() if stat != before.get(name)}
    assert redone == {f"part-{index:06d}.parquet" for index in (2, 3, 4, 5)}
    assert read_catalog(finished).equals(read_catalog(undisturbed))
    assert not stale.exists()
    told = capsys.readouterr().err
    assert f"{len(before) - 4} of {len(before)} parts were finished before" in told
    assert "(100 %)" in told

    done = part_stats(finished)
    again = run_inference(store.path, checkpoint, finished, **SMALL)
    assert again.n_rows_new == 0
    assert again.counts == summary.counts
    assert part_stats(finished) == done


def test_the_folder_of_another_run_is_refused_and_left_alone(store, finished, tmp_path):
    other = make_checkpoint(tmp_path / "other.safetensors", seed=1)
    before = part_stats(finished)
    with pytest.raises(CatalogError, match=r"another run \(another checkpoint\); choose another"):
        run_inference(store.path, other, finished, **SMALL)
    assert part_stats(finished) == before


def test_a_changed_store_is_another_run(checkpoint, finished, tmp_path):
    other = make_store(tmp_path / "store", {"a": 70}, seed=1)
    with pytest.raises(CatalogError, match="another store, or the store has changed"):
        run_inference(other.path, checkpoint, finished, **SMALL)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"identity": 3}', b"\xff\xfe"])
def test_a_damaged_run_file_is_named(store, checkpoint, finished, content):
    (finished / "run.json").write_bytes(content)
    with pytest.raises(CatalogError, match=r"run\.json: is damaged"):
        run_inference(store.path, checkpoint, finished, **SMALL)


def test_parts_without_a_run_file_are_not_taken_over(store, checkpoint, finished):
    (finished / "run.json").unlink()
    with pytest.raises(CatalogError, match="holds files, but"):
        run_inference(store.path, checkpoint, finished, **SMALL)


def test_a_folder_that_another_run_is_writing_to_is_refused(store, checkpoint, finished):
    with open(finished / ".lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CatalogError, match="another run is writing there now"):
            run_inference(store.path, checkpoint, finished, **SMALL)


def test_a_checkpoint_of_another_survey_is_refused_and_nothing_written(store, tmp_path):
    survey_yaml = tmp_path / "other.yaml"
    text = (CONFIGS / "surveys/roman-sim.yaml").read_text()
    survey_yaml.write_text(text.replace("F062", "F106").replace("roman-sim", "other"))
    other = make_checkpoint(tmp_path / "other.safetensors", survey_name=str(survey_yaml))
    with pytest.raises(CheckpointError, match="trained on survey 'other'"):
        run_inference(store.path, other, tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


def test_an_identifier_that_is_there_twice_is_found_at_the_start(checkpoint, tmp_path):
    twice = make_store(tmp_path / "store", {"a": 70, "b": 30}, same_ids=True)
    line = "source_id 1000000000000000 appears twice in the store, as do 30 in all"
    with pytest.raises(StoreError, match=line):
        check_unique(twice)
    with pytest.raises(StoreError, match=line):
        run_inference(twice.path, checkpoint, tmp_path / "out", **SMALL)
    assert not list(tmp_path.glob("out/catalog/*"))


def test_input_that_cannot_be_used_is_refused(store, checkpoint, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        run_inference(store.path, tmp_path / "none.safetensors", out, **SMALL)
    with pytest.raises(StoreError, match="no store there"):
        run_inference(tmp_path / "none", checkpoint, out, **SMALL)
    with pytest.raises(StoreError, match="was made for survey 'roman-sim', not 'roman-l3'"):
        run_inference(store.path, checkpoint, out, load_survey("roman-l3"))
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        run_inference(store.path, checkpoint, out, workers=DaskWorkers.of(0))
    empty = CutoutStore.create(tmp_path / "empty", SURVEY, SIZE, SHARD_LEN)
    with pytest.raises(StoreError, match="holds no sources"):
        run_inference(empty.path, checkpoint, out, **SMALL)
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(checkpoint.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        run_inference(store.path, damaged, out, **SMALL)
    assert not out.exists()
    out.write_text("a file")
    with pytest.raises(CatalogError, match="is not a folder"):
        run_inference(store.path, checkpoint, out, **SMALL)


def test_a_damaged_shard_costs_its_part_alone(store, checkpoint, undisturbed, tmp_path):
    path = Path(shutil.copytree(store.path, tmp_path / "store"))
    shard = path / "a/cutout/c/3/0/0/0"
    sound = shard.read_bytes()
    shard.write_bytes(sound[: len(sound) // 2])
    out = tmp_path / "out"
    with pytest.raises(RunError, match=r"1 of 10 parts .*part-000003\.parquet.*a/00003.*again"):
        run_inference(path, checkpoint, out, **SMALL)
    assert len(part_stats(out)) == 9
    with pytest.raises(CatalogError, match="not finished: 9 of 10 parts"):
        read_catalog(out)
    shard.write_bytes(sound)
    assert run_inference(path, checkpoint, out, **SMALL).n_parts_resumed == 9
    assert read_catalog(out).equals(read_catalog(undisturbed))


@pytest.fixture
def small_disk(tmp_path):
    with disk_of(tmp_path / "disk", "200k") as folder:
        yield folder


def test_a_full_disk_stops_the_run_and_leaves_only_whole_parts(
    store, checkpoint, undisturbed, small_disk
):
    out = small_disk / "out"
    with pytest.raises(RunError, match=r"the disk is full .* run the same command again"):
        run_inference(store.path, checkpoint, out, **SMALL)
    left = part_stats(out)
    assert 0 < len(left) < 10
    assert all(name.startswith("part-") for name in left)
    grow = ["mount", "-o", "remount,size=20m", str(small_disk)]
    subprocess.run(grow, check=True)
    assert run_inference(store.path, checkpoint, out, **SMALL).n_parts_resumed == len(left)
    assert read_catalog(out).equals(read_catalog(undisturbed))


def test_rows_are_in_the_order_of_the_store_however_parts_finish(
    store, checkpoint, undisturbed, tmp_path, monkeypatch
):
    monkeypatch.setattr(dispatch, "predict_part", late_first)
    run_inference(store.path, checkpoint, tmp_path / "out", **SMALL)
    assert read_catalog(tmp_path / "out").equals(read_catalog(undisturbed))


def test_a_part_that_is_there_is_not_made_twice_by_a_repeated_task(store, checkpoint, finished):
    """Dask repeats a task whose worker died between writing the part and saying so."""
    (part, *_) = plan_parts(store.shard_lengths(), 64)
    identity = json.loads((finished / "run.json").read_bytes())["identity"]
    sha256 = identity["checkpoint_sha256"]
    folder = run_module.RunFolder(finished, identity)
    model = ModelKey(store.path, checkpoint, sha256, "cpu", False)
    path = folder.part_path(part)
    before = path.stat().st_mtime_ns
    predict_part(model, part, path, folder.part_identity(part))
    assert path.stat().st_mtime_ns == before
    assert read_notes(finished)[part.index].counts.rows == part.n_rows
    check_fit(model)
    with pytest.raises(CheckpointError, match="changed during the run"):
        check_fit(replace(model, checkpoint_sha256="0" * 64))


def test_parts_are_consecutive_shards_of_at_least_so_many_rows(store):
    parts = plan_parts(store.shard_lengths(), 100)
    assert [key for part in parts for key in part.shards] == store.shards()
    assert sum(part.n_rows for part in parts) == len(store)
    assert all(part.n_rows >= 100 for part in parts[:-1])
    assert [part.index for part in parts] == list(range(len(parts)))
    assert [default_rows_per_part(n) for n in (1, 10**6, 10**9)] == [1024, 1953, 32768]


def test_of_many_parts_those_noted_are_believed_by_their_size(
    store, checkpoint, finished, undisturbed, monkeypatch
):
    """Reading every byte of 100 000 parts would take longer than making some of them."""
    monkeypatch.setattr(run_module, "MAX_PARTS_READ", 3)
    parts = sorted((finished / "catalog").glob("part-*.parquet"))
    before = {part.name: part.stat().st_mtime_ns for part in parts}
    parts[2].write_bytes(parts[2].read_bytes()[:-1])  # noted with another size
    parts[3].unlink()
    unknown = json.dumps([4, {}]) + "\n"
    for notes in (finished / "notes").glob("*.jsonl"):  # a line that is damaged, one cut short
        lines = notes.read_text().splitlines(keepends=True)
        lines = [unknown if line.startswith("[4,") else line for line in lines]
        notes.write_text("".join(lines) + '[1, {"counts"')
    summary = run_inference(store.path, checkpoint, finished, **SMALL)
    assert summary.n_parts_resumed == len(parts) - 2
    assert summary.counts.rows == len(store)
    made = {p.name for p in parts if p.stat().st_mtime_ns != before[p.name]}
    assert made == {parts[2].name, parts[3].name}
    assert read_catalog(finished).equals(read_catalog(undisturbed))


def test_a_run_goes_on_with_the_engine_it_began_with(store, checkpoint, finished):
    with pytest.raises(CatalogError, match=r"compiled or not, .* see --compile"):
        run_inference(store.path, checkpoint, finished, **SMALL, compiled=True)


def test_verify_finds_what_happened_to_a_part(store, finished, tmp_path):
    n_rows = sum(TILES.values())
    assert verify_catalog(finished, store) == (n_rows, [])
    parts = sorted((finished / "catalog").iterdir())
    content = bytearray(parts[1].read_bytes())
    content[len(content) // 2] ^= 1
    parts[1].write_bytes(content)  # as long as before
    shutil.copy(parts[3], parts[2])  # a sound part, in the place of another
    parts[4].unlink()
    shutil.copy(parts[0], finished / "catalog" / "part-999999.parquet")
    rows, problems = verify_catalog(finished, store)
    assert rows < n_rows
    named = "\n".join(problems)
    assert f"{parts[1].name}: " in named
    assert f"{parts[2].name}: altered: its SHA-256" in named
    assert f"{parts[2].name}: does not hold the sources of its shards" in named
    assert f"{parts[4].name}: missing" in named
    assert "part-999999.parquet: is not of this run" in named
    assert len(problems) == 5
    other = make_store(tmp_path / "other", {"a": 5}, seed=1)
    with pytest.raises(CatalogError, match="was made from another store"):
        verify_catalog(finished, other)
    with pytest.raises(CatalogError, match="no run of 'photozhpc infer' is there"):
        verify_catalog(tmp_path)


def test_every_thread_of_a_worker_keeps_to_its_cores(store, checkpoint, monkeypatch):
    """OpenMP's number of threads is each thread's own; torch asks OpenMP only now and then."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    libraries = {line.split()[-1] for line in maps if "libgomp" in line}
    openmp = [ctypes.CDLL(path) for path in sorted(libraries)]
    assert openmp
    before = torch.get_num_threads()
    model = ModelKey(store.path, checkpoint, file_sha256(checkpoint), "cpu", False)
    wanted = 3 + len(os.sched_getaffinity(0))  # what no thread begins with
    monkeypatch.setenv("OMP_NUM_THREADS", str(wanted))

    def threads_of_a_task() -> list[int]:
        load_engine(model)
        return [library.omp_get_max_threads() for library in openmp]

    found = []
    try:
        for _ in range(2):  # the second thread finds the model loaded
            with ThreadPoolExecutor(1) as pool:
                found.append(pool.submit(threads_of_a_task).result())
    finally:
        torch.set_num_threads(before)
    assert all(wanted in numbers for numbers in found)


def test_progress_in_a_log_is_plain_lines(capsys):
    bar = SourceProgress(1000, 200)
    bar.start()
    for _ in range(80):
        bar.add(10)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 11
    assert lines[0].startswith("infer: 300 of 1000 sources (30 %), ")
    assert lines[-1].startswith("infer: 1000 of 1000 sources (100 %), ")
    assert lines[-1].endswith(" 0:00:00 left")
