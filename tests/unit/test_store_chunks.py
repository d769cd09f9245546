"""The direct reader against Zarr, which wrote the arrays."""

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import GzipCodec

from builders.stores import SURVEY, fill
from photozhpc.errors import StoreError
from photozhpc.store import CutoutStore
from photozhpc.store.chunks import read_layout


@pytest.fixture(scope="module", params=[(44, 16, 40), (16, 16, 100), (31, 7, 20)])
def store(request, tmp_path_factory) -> CutoutStore:
    size, shard_len, n = request.param
    store = CutoutStore.create(tmp_path_factory.mktemp("chunks") / "s", SURVEY, size, shard_len)
    fill(store, "a", n)
    return store


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_reads_what_zarr_reads(store: CutoutStore, data) -> None:
    key = data.draw(st.sampled_from(store.shards()))
    length = store.shard_lengths()[key]
    start = data.draw(st.integers(0, length))
    stop = data.draw(st.integers(0, length + 3))
    side = data.draw(st.integers(1, store.cutout_size))
    group = zarr.open_group(store.path / "a", mode="r")
    first = key.index * store.shard_len
    whole = group["cutout"][first : first + length]
    corner = store.cutout_size // 2 - side // 2
    wanted = whole[start:stop, :, corner : corner + side, corner : corner + side]
    np.testing.assert_array_equal(store.read_cutouts(key, slice(start, stop), side), wanted)
    np.testing.assert_array_equal(store.read_cutouts(key), whole)
    out = np.full(wanted.shape, 5, np.float32)
    assert store.read_cutouts(key, slice(start, stop), side, out) is out
    np.testing.assert_array_equal(out, wanted)
    sources = store.read_sources(key)
    np.testing.assert_array_equal(sources.ra_N, group["ra"][first : first + length])
    measured = store.read_measurements(key)
    np.testing.assert_array_equal(measured.flux_NCR, group["flux"][first : first + length])


def test_images_are_in_bands_and_columns_in_chunks_of_a_shard(tmp_path) -> None:
    store = CutoutStore.create(tmp_path / "s", SURVEY, 66, 128)
    fill(store, "a", 200)
    group = zarr.open_group(store.path / "a", mode="r")
    assert group["cutout"].chunks == (64, 4, 11, 66)
    assert group["cutout"].shards == (128, 4, 66, 66)
    assert group["flux"].chunks == (128, 4, 5)
    assert group["flux"].shards == (256, 4, 5)


def test_an_array_of_another_encoding_is_refused(store: CutoutStore, tmp_path) -> None:
    group = zarr.create_group(tmp_path / "g")
    group.create_array("x", shape=(4, 2), chunks=(4, 2), dtype="float32", compressors=GzipCodec())
    with pytest.raises(ValueError, match="gzip"):
        read_layout(tmp_path / "g" / "x", "float32")
    with pytest.raises(ValueError, match="float32, expected float64"):
        read_layout(store.path / "a" / "cutout", "float64")


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_flipped_bit_or_a_lost_end_is_noticed(store: CutoutStore, place, bit, cut) -> None:
    key = store.shards()[0]
    file = store.path / "a" / "cutout" / "c" / "0" / "0" / "0" / "0"
    content = file.read_bytes()
    wanted = store.read_cutouts(key)
    at = int(place * len(content))
    damaged = bytearray(content)
    damaged[at] ^= 1 << bit
    try:
        file.write_bytes(content[:at] if cut else bytes(damaged))
        try:
            found = store.read_cutouts(key)
        except StoreError:
            pass
        else:  # the length of a chunk beyond the last source, say, which nobody reads
            assert not cut
            np.testing.assert_array_equal(found, wanted)
    finally:
        file.write_bytes(content)


def test_sizes_that_cannot_be_are_refused(store: CutoutStore) -> None:
    key = store.shards()[0]
    with pytest.raises(ValueError, match="no central 99 px"):
        store.read_cutouts(key, side=99)
    with pytest.raises(ValueError, match="out must be float32"):
        store.read_cutouts(key, out=np.empty((1, 2, 3, 4), np.float32))


def test_damaged_metadata_is_one_error(store: CutoutStore, tmp_path: Path) -> None:
    file = store.path / "a" / "cutout" / "zarr.json"
    content = file.read_text()
    size = store.cutout_size
    shapes = (f"{size},\n    {size}\n  ]", f'"{size}",\n    {size}\n  ]', "null,\n    1\n  ]")
    try:
        for text in (
            "{}",
            "[]",
            content[:-40],
            *(content.replace(shapes[0], s) for s in shapes[1:]),
        ):
            file.write_text(text)
            with pytest.raises(StoreError, match="is missing or damaged"):
                store.read_cutouts(store.shards()[0])
    finally:
        file.write_text(content)
