"""The store gives back what was put in, and finds every kind of damage."""

import dataclasses
import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from builders.stores import SURVEY, fill
from photozhpc.errors import StoreError
from photozhpc.store import CutoutStore, ShardKey
from photozhpc.store import manifest as manifest_module
from photozhpc.store.manifest import own_digest, read_manifest

N, SHARD = 200, 64


@pytest.fixture
def store(tmp_path: Path) -> CutoutStore:
    return CutoutStore.create(tmp_path / "store", SURVEY, size=16, shard_len=SHARD)


def test_what_was_written_is_read(store: CutoutStore) -> None:
    cutout, sources = fill(store, "a", N)
    opened = CutoutStore.open(store.path)
    assert opened.survey == SURVEY
    assert opened.shards() == [ShardKey("a", i) for i in range(4)]
    assert len(opened) == N
    for key in opened.shards():
        rows = slice(key.index * SHARD, (key.index + 1) * SHARD)
        np.testing.assert_array_equal(opened.read_cutouts(key), cutout[rows])
        np.testing.assert_array_equal(opened.read_sources(key).ra_N, sources.ra_N[rows])
        assert (opened.read_measurements(key).flux_NCR == rows.start).all()
    np.testing.assert_array_equal(
        opened.read_cutouts(ShardKey("a", 1), slice(3, 9)), cutout[SHARD + 3 : SHARD + 9]
    )
    assert opened.tile_attributes("a")["note"] == "x"
    assert opened.verify() == []


def test_tiles_are_sorted_and_may_be_empty(store: CutoutStore) -> None:
    for seed, tile_id in enumerate(["b", "a", "c"]):
        fill(store, tile_id, 0 if tile_id == "c" else 10, seed)
    assert store.tiles() == {"a": 10, "b": 10, "c": 0}
    assert store.shards() == [ShardKey("a", 0), ShardKey("b", 0)]
    assert store.verify() == []


def test_a_tile_that_was_interrupted_does_not_exist_and_is_made_anew(store: CutoutStore) -> None:
    with pytest.raises(ZeroDivisionError), store.new_tile("a", N, {}):
        raise ZeroDivisionError
    with pytest.raises(StoreError, match="0 of 200 sources"), store.new_tile("a", N, {}):
        pass
    assert store.tiles() == {}
    # a run killed between the rename and the manifest leaves an undeclared folder
    (store.path / "a").mkdir()
    (store.path / "a" / "junk").write_text("x")
    assert store.verify() != []
    fill(store, "a", N)
    assert store.verify() == []
    with pytest.raises(StoreError, match="already exists"):
        fill(store, "a", N)


def _shard_file(store: CutoutStore) -> Path:
    return store.path / "a" / "cutout" / "c" / "1" / "0" / "0" / "0"


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_shard_is_named_and_not_read(store: CutoutStore, damage: str) -> None:
    fill(store, "a", N)
    path = _shard_file(store)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    else:
        content[500] ^= 4
        path.write_bytes(content)
    (problem,) = store.verify()
    assert "a/00001" in problem
    assert damage in problem
    with pytest.raises(StoreError, match="a/00001"):
        store.read_cutouts(ShardKey("a", 1))
    assert len(store.read_cutouts(ShardKey("a", 0))) == SHARD


def test_every_single_bit_flip_of_a_shard_is_found(store: CutoutStore) -> None:
    fill(store, "a", N)
    path, rng = _shard_file(store), np.random.default_rng(0)
    sound = path.read_bytes()
    for _ in range(60):
        content = bytearray(sound)
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        with pytest.raises(StoreError):
            store.read_cutouts(ShardKey("a", 1))
    path.write_bytes(sound)
    assert store.verify() == []


def test_a_column_file_that_is_lost_is_an_error_and_not_zeros(store: CutoutStore) -> None:
    fill(store, "a", N)
    (store.path / "a" / "source_id" / "c" / "0").unlink()
    with pytest.raises(StoreError, match="source_id"):
        store.read_sources(ShardKey("a", 0))
    assert any("source_id" in problem for problem in store.verify())


def test_a_lost_tile_and_an_altered_manifest_are_found(store: CutoutStore) -> None:
    fill(store, "a", N)
    fill(store, "b", N, seed=1)
    os.rename(store.path / "b", store.path.parent / "elsewhere")
    assert any("b/00000: missing" in problem for problem in store.verify())
    manifest = store.path / ".manifests" / "a.json"
    content = json.loads(manifest.read_text())
    content["n_sources"] = 1
    manifest.write_text(json.dumps(content))
    assert any("altered" in problem for problem in store.verify())
    with pytest.raises(StoreError, match="altered"):
        store.tiles()


def test_another_store_or_something_else_is_not_written_into(store: CutoutStore, tmp_path) -> None:
    assert len(CutoutStore.create(store.path, SURVEY, size=16, shard_len=SHARD)) == 0
    with pytest.raises(StoreError, match="another cutout_size"):
        CutoutStore.create(store.path, SURVEY, size=32, shard_len=SHARD)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(StoreError, match="not a store"):
        CutoutStore.create(tmp_path / "full", SURVEY)
    with pytest.raises(StoreError, match="must be positive"):
        CutoutStore.create(tmp_path / "new", SURVEY, shard_len=0)
    (tmp_path / "begun" / ".manifests").mkdir(parents=True)  # killed at the very start
    assert len(CutoutStore.create(tmp_path / "begun", SURVEY)) == 0
    with pytest.raises(StoreError, match="no store there"):
        CutoutStore.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"attributes": {"photozhpc": 3}}',
        '{"attributes": {"photozhpc": {}}}',
        "\x00",
    ],
)
def test_damaged_metadata_is_one_error(store: CutoutStore, content: str) -> None:
    (store.path / "zarr.json").write_text(content)
    with pytest.raises(StoreError):
        CutoutStore.open(store.path)


@pytest.mark.parametrize("tile_id", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_tile_id_cannot_leave_the_store(store: CutoutStore, tile_id: str) -> None:
    with pytest.raises(StoreError, match="cannot be a tile_id"), store.new_tile(tile_id, 0, {}):
        pass


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    stores = [CutoutStore.create(tmp_path / name, SURVEY, 16, SHARD) for name in "xyz"]
    for store, seed in zip(stores, [0, 0, 1], strict=True):
        fill(store, "a", 10, seed)
    assert stores[0].fingerprint() == stores[1].fingerprint() != stores[2].fingerprint()


@pytest.mark.parametrize("shard_len", [1, 50, 100, 127])
def test_any_shard_length_will_do(tmp_path: Path, shard_len: int) -> None:
    store = CutoutStore.create(tmp_path / "s", SURVEY, size=8, shard_len=shard_len)
    cutout, _ = fill(store, "a", 130)
    read = np.concatenate([store.read_cutouts(key) for key in store.shards()])
    np.testing.assert_array_equal(read, cutout)


def test_a_store_that_is_not_finished_says_so(store: CutoutStore) -> None:
    store.declare({"a": "x", "b": "y"})
    fill(store, "a", 10)
    with pytest.raises(StoreError, match=r"1 tiles are missing \(the first is 'b'\)"):
        store.check_complete()
    assert any("tile b: missing" in problem for problem in store.verify())
    with pytest.raises(StoreError, match="begun with other tiles"):
        store.declare({"a": "x", "b": "z"})
    fill(store, "b", 10, seed=1)
    store.check_complete()
    assert store.verify() == []


@pytest.mark.parametrize("name", ["cutout", "source_id"])
def test_an_array_shorter_than_its_manifest_says_is_not_read(store: CutoutStore, name: str) -> None:
    fill(store, "a", N)
    about = store.path / "a" / name / "zarr.json"
    document = json.loads(about.read_text())
    document["shape"][0] = N - 4
    about.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=f"it has {N - 4} rows"):
        (store.read_cutouts if name == "cutout" else store.read_sources)(ShardKey("a", 3))


@pytest.mark.parametrize("n_sources", [10**15, N + SHARD, -1, None, "200", 1e308, True])
def test_a_manifest_of_other_sources_than_files_is_refused(store: CutoutStore, n_sources) -> None:
    fill(store, "a", N)
    path = store.path / ".manifests" / "a.json"
    manifest = json.loads(path.read_text()) | {"n_sources": n_sources}
    path.write_text(json.dumps(manifest | {"sha256": own_digest(manifest)}))
    with pytest.raises(StoreError, match=r"a\.json"):
        store.shards()


def test_another_survey_in_the_metadata_of_a_store_is_found(store: CutoutStore) -> None:
    path = store.path / "zarr.json"
    path.write_text(path.read_text().replace("2.263", "2.264"))
    with pytest.raises(StoreError, match="altered"):
        CutoutStore.open(store.path)


def test_a_store_without_its_checksums_is_refused_in_one_line(store: CutoutStore) -> None:
    fill(store, "a", N)
    manifest_file = store.path / ".manifests" / "a.json"
    manifest = json.loads(manifest_file.read_text())
    del manifest["store"], manifest["plan"]
    manifest_file.write_text(json.dumps(manifest | {"sha256": own_digest(manifest)}))
    with pytest.raises(StoreError, match="not photozhpc's; extract") as refused:
        CutoutStore.open(store.path).shards()
    assert "\n" not in str(refused.value)
    path = store.path / "zarr.json"
    document = json.loads(path.read_text())
    del document["attributes"]["photozhpc"]["sha256"]
    path.write_text(json.dumps(document))
    with pytest.raises(StoreError, match=r"zarr\.json was altered"):
        CutoutStore.open(store.path)


def test_manifests_are_read_once_and_new_tiles_are_seen(store: CutoutStore, monkeypatch) -> None:
    fill(store, "a", N)
    opened = CutoutStore.open(store.path)
    assert len(opened) == N
    reads: list[Path] = []
    monkeypatch.setattr(
        manifest_module, "read_manifest", lambda p, read=read_manifest: reads.append(p) or read(p)
    )
    assert (opened.fingerprint(), len(opened.shards())) == (store.fingerprint(), 4)
    reads.clear()
    assert (len(opened), opened.tiles(), len(opened.shard_lengths())) == (N, {"a": N}, 4)
    assert reads == []
    fill(CutoutStore.open(store.path), "b", 10, seed=1)  # by another process, as it were
    assert opened.tiles() == {"a": N, "b": 10}
    (store.path / ".manifests" / "b.json").unlink()
    assert opened.tiles() == {"a": N}


def test_a_read_error_of_the_disk_names_the_shard(small_store: CutoutStore, monkeypatch) -> None:
    key = small_store.shards()[0]

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(StoreError, match=rf"{key.tile_id}.*Input/output error"):
        small_store.read_cutouts(key)


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    os.rename(one, aside)
    os.rename(other, one)
    os.rename(aside, other)


def _copy_tile(store: CutoutStore) -> None:
    shutil.copytree(store.path / "a", store.path / "c")
    manifests = store.path / ".manifests"
    manifest = json.loads((manifests / "a.json").read_text()) | {"tile_id": "c"}
    manifest["sha256"] = own_digest(manifest)
    (manifests / "c.json").write_text(json.dumps(manifest))


def _swap_folders_and_manifests(store: CutoutStore) -> None:
    _swap(store.path / "a", store.path / "b")
    manifests = store.path / ".manifests"
    _swap(manifests / "a.json", manifests / "b.json")


def _other_survey(store: CutoutStore) -> None:
    shutil.copy(_other_store(store) / "zarr.json", store.path / "zarr.json")


def _other_store(store: CutoutStore) -> Path:
    """Make a store of the same shape and another survey."""
    survey = dataclasses.replace(SURVEY, name="other")
    other = CutoutStore.create(store.path.with_name("other"), survey, size=16, shard_len=SHARD)
    fill(other, "d", 5, seed=9)
    return other.path


def _foreign_tile(store: CutoutStore) -> None:
    other = _other_store(store)
    shutil.copytree(other / "d", store.path / "d")
    shutil.copy(other / ".manifests" / "d.json", store.path / ".manifests")


def _cutout(store: CutoutStore, tile_id: str, number: int) -> Path:
    return store.path / tile_id / "cutout" / "c" / str(number) / "0" / "0" / "0"


# What was done -> whose reading of all shards is right or an error, and a word of verify().
OUT_OF_PLACE: dict[str, tuple[Callable[[CutoutStore], object], str]] = {
    "shards of two tiles": (lambda s: _swap(_cutout(s, "a", 0), _cutout(s, "b", 0)), "a/00000"),
    "shards of one tile": (lambda s: _swap(_cutout(s, "a", 0), _cutout(s, "a", 1)), "a/00001"),
    "ra and dec": (lambda s: _swap(s.path / "a/ra/c/0", s.path / "a/dec/c/0"), "a, ra/c/0"),
    "arrays of ra and dec": (lambda s: _swap(s.path / "a/ra", s.path / "a/dec"), "a, dec/c/0"),
    "flux and its error": (lambda s: _swap(s.path / "a/flux", s.path / "a/flux_err"), "a, flux/c"),
    "labels of two tiles": (
        lambda s: _swap(s.path / "a/z_spec", s.path / "b/z_spec"),
        "b, z_spec/c/0",
    ),
    "identifiers of two tiles": (
        lambda s: _swap(s.path / "a/source_id", s.path / "b/source_id"),
        "source_id",
    ),
    "tile folders": (lambda s: _swap(s.path / "a", s.path / "b"), "tile a"),
    "tile folders and manifests": (_swap_folders_and_manifests, "altered"),
    "a tile twice": (_copy_tile, "one is a copy"),
    "zarr.json of another store": (_other_survey, "was made for another store"),
    "a tile of another store": (_foreign_tile, "was made for another store"),
}


@pytest.mark.parametrize("what", OUT_OF_PLACE)
def test_what_is_whole_and_out_of_place_is_not_read(store: CutoutStore, what: str) -> None:
    """Every file passes its own checksums: what tells is the manifest."""
    for seed, tile_id in enumerate("ab"):
        fill(store, tile_id, N, seed)
    assert len(_all_of(store)) == 8
    assert store.verify() == []
    change, said = OUT_OF_PLACE[what]
    change(store)
    found = CutoutStore.open(store.path)
    problems = found.verify()
    assert any(said in problem for problem in problems), problems
    with pytest.raises(StoreError) as told:
        _all_of(found)
    assert "\n" not in str(told.value)
    assert str(store.path) in str(told.value)


def _all_of(store: CutoutStore) -> list[object]:
    """What `infer` and `train` read of a store."""
    return [
        (store.read_sources(key), store.read_measurements(key), store.read_cutouts(key))
        for key in store.check_complete().shard_lengths()
    ]


def test_a_tile_is_not_described_by_the_metadata_of_another(store: CutoutStore) -> None:
    fill(store, "a", N)
    fill(store, "b", N, seed=1)
    shutil.copy(store.path / "b" / "zarr.json", store.path / "a" / "zarr.json")
    with pytest.raises(StoreError, match="tile 'a' is missing or damaged"):
        store.tile_attributes("a")
    assert any("tile a, zarr.json" in problem for problem in store.verify())


def test_chunks_of_another_shape_and_as_many_bytes_are_noticed(store: CutoutStore) -> None:
    """All checksums of the pixels are right, and the pixels would stand elsewhere."""
    fill(store, "a", N)
    file = store.path / "a" / "cutout" / "zarr.json"
    about = json.loads(file.read_text())
    sharding = about["codecs"][0]["configuration"]
    assert sharding["chunk_shape"] == [64, 4, 2, 16]
    sharding["chunk_shape"] = [32, 4, 4, 16]
    file.write_text(json.dumps(about))
    with pytest.raises(StoreError, match=r"zarr\.json is not the manifest's"):
        store.read_cutouts(ShardKey("a", 0))


PLAN = {"a": "x", "b": "y"}


def _planned(store: CutoutStore) -> None:
    store.declare(PLAN)
    for seed, tile_id in enumerate(PLAN):
        fill(store, tile_id, 10, seed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"plan\.json: is missing, but tile 'a'"),
        ('{"a": "x"}', r"plan\.json: was altered"),
        ('{"a": "x", "b": "z"}', r"plan\.json: was altered"),
        ('{"a": "x", "b": "y", "c": "z"}', r"tile c: missing|1 tiles are missing"),
        ("{", r"plan\.json: damaged"),
    ],
)
def test_a_plan_that_was_lost_or_altered_is_found(
    store: CutoutStore, content: str | None, said: str
) -> None:
    _planned(store)
    plan = store.path / "plan.json"
    plan.write_text(json.dumps(PLAN, indent=1))  # the same plan, in other words
    assert store.verify() == []
    assert store.check_complete().n_sources == 20
    if content is None:
        plan.unlink()
    else:
        plan.write_text(content)
    with pytest.raises(StoreError, match=said):
        store.check_complete()
    try:
        problems = store.verify()
    except StoreError as error:
        problems = [str(error)]
    assert re.search(said, "\n".join(problems)), problems


@pytest.mark.parametrize("plan_too", [False, True])
def test_a_tile_that_is_gone_with_its_manifest_is_missed(
    store: CutoutStore, plan_too: bool
) -> None:
    _planned(store)
    shutil.rmtree(store.path / "b")
    (store.path / ".manifests" / "b.json").unlink()
    if plan_too:
        (store.path / "plan.json").write_text('{"a": "x"}')
    assert store.verify() != []
    with pytest.raises(StoreError, match="was altered" if plan_too else "first is 'b'"):
        store.check_complete()


def test_a_lost_plan_is_written_anew_by_the_same_extraction(store: CutoutStore) -> None:
    _planned(store)
    (store.path / "plan.json").unlink()
    with pytest.raises(StoreError, match="holds tiles already"):
        store.declare({"a": "x", "b": "z"})
    store.declare(PLAN)
    assert store.check_complete().n_sources == 20
    assert store.verify() == []


def test_a_source_that_stands_on_two_tiles_is_found(store: CutoutStore) -> None:
    fill(store, "a", 10)
    fill(store, "b", 5)
    (problem,) = store.verify()
    assert problem == "source 0: appears twice in the store, on tiles a and b; 5 sources do"
