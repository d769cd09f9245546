"""Mosaics and stores on s3:// and https://: the same results as from a disk, in few requests.

The server is moto's, over HTTP in a process of its own (object_server.py); nothing is patched.
"""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import zarr
from astropy.io import fits
from astropy.wcs import WCS
from botocore.config import Config
from click.testing import CliRunner

from builders.paths import DATA
from photozhpc.catalog import read_catalog
from photozhpc.catalog.run import run_inference
from photozhpc.cli import main
from photozhpc.errors import MosaicError, SourceListError, StorageError, StoreError
from photozhpc.extraction.extract import extract
from photozhpc.extraction.mosaics import find_mosaics
from photozhpc.files import objects
from photozhpc.files import requests as object_requests
from photozhpc.files.objects import ObjectPath, list_objects, location, read_ranges
from photozhpc.html_report.page import write_report
from photozhpc.model import bundled_checkpoint
from photozhpc.mosaic.footprint import read_footprint
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.survey import load_survey
from photozhpc.workers.dask_workers import DaskWorkers

SURVEY = load_survey("roman-sim")
BUCKET, PRIVATE = "sky", "closed"
PUBLIC = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:HeadObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"],
        }
    ],
}


@dataclass(frozen=True)
class Server:
    address: str
    www: Path
    client: Any  # with credentials, for putting things there

    def put(self, folder: Path, prefix: str) -> str:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            key = f"{prefix}/{file.relative_to(folder)}"
            self.client.put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
        return f"s3://{BUCKET}/{prefix}"

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests since the last call."""
        with urllib.request.urlopen(f"{self.address}/_log") as answer:
            return json.load(answer)

    def fail(self, match: str, kind: str, times: int) -> None:
        fault = json.dumps({"match": match, "kind": kind, "times": times})
        urllib.request.urlopen(f"{self.address}/_fail", data=fault.encode()).close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "www").mkdir()
    script = Path(__file__).with_name("object_server.py")
    command = [sys.executable, str(script), str(folder / "port"), str(folder / "www")]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
        pytest.MonkeyPatch.context() as patch,
    ):
        for _ in range(600):
            if (folder / "port").exists():
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        address = f"http://127.0.0.1:{(folder / 'port').read_text()}"
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        object_requests.has_credentials.cache_clear()
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id="writer",
            aws_secret_access_key="writer",
            config=Config(request_checksum_calculation="when_required"),
        )
        for bucket in (BUCKET, PRIVATE):
            client.create_bucket(Bucket=bucket)
        client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(PUBLIC))
        client.put_object(Bucket=PRIVATE, Key="l3/t_f158_coadd.asdf", Body=b"#ASDF")
        yield Server(address, folder / "www", client)
        client.close()
        process.kill()
    object_requests.has_credentials.cache_clear()


@pytest.fixture(scope="module")
def mosaics(server: Server, small_sky: Path) -> str:
    return server.put(small_sky, "l3")


@pytest.fixture(scope="module")
def local_store(small_sky: Path, tmp_path_factory: pytest.TempPathFactory) -> CutoutStore:
    path = tmp_path_factory.mktemp("local") / "store"
    extract(SURVEY, small_sky, path, size=64, shard_len=64, workers=1)
    return CutoutStore.open(path)


@pytest.fixture(scope="module")
def remote_store(server: Server, local_store: CutoutStore) -> CutoutStore:
    return CutoutStore.open(server.put(local_store.path, "stores/small"))


def contents(store: CutoutStore) -> dict[str, bytes]:
    """Every file of the tiles but those whose attributes say of which mosaics they are."""
    return {
        str(file.relative_to(store.path)): file.read_bytes()
        for tile in store.tiles()
        for file in (store.path / tile).rglob("*")
        if file.is_file() and file != store.path / tile / "zarr.json"
    }


@pytest.mark.drawn
def test_the_chain_over_s3_gives_what_it_gives_on_a_disk(
    server: Server, mosaics: str, local_store: CutoutStore, tmp_path: Path
) -> None:
    server.requests()
    from_s3 = tmp_path / "from_s3"
    summary = extract(SURVEY, mosaics, from_s3, size=64, shard_len=64, workers=2)
    assert summary.sources == len(local_store)
    assert contents(CutoutStore.open(from_s3)) == contents(local_store)
    asked = server.requests()
    assert {request["authorization"] for request in asked} == {None}
    assert extract(SURVEY, mosaics, from_s3, size=64, shard_len=64).skipped_tiles == 2

    store = server.put(from_s3, "stores/chain")
    server.requests()
    checkpoint = bundled_checkpoint("roman-sim")
    run_inference(
        store, checkpoint, tmp_path / "a", workers=DaskWorkers.of(2, "cpu"), progress=False
    )
    assert {request["authorization"] for request in server.requests()} == {None}
    run_inference(
        from_s3, checkpoint, tmp_path / "b", workers=DaskWorkers.of(2, "cpu"), progress=False
    )
    assert read_catalog(tmp_path / "a").equals(read_catalog(tmp_path / "b"))
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    assert store in json.dumps(run)
    there, here = (write_report(tmp_path / name).read_text() for name in ("a", "b"))
    assert there.count("data:image/png") == here.count("data:image/png") > 12


def test_footprints_need_the_headers_only(server: Server, small_sky: Path, mosaics: str) -> None:
    found = find_mosaics(mosaics, SURVEY)
    local = find_mosaics(small_sky, SURVEY)
    assert found.keys() == local.keys()
    for tile_id, bands in found.items():
        server.requests()
        there, here = read_footprint(bands, SURVEY), read_footprint(local[tile_id], SURVEY)
        asked = server.requests()
        assert there.shape_HW == here.shape_HW
        np.testing.assert_array_equal(there.pixel_to_sky(3, 5), here.pixel_to_sky(3, 5))
        size = next(iter(bands.values())).size
        assert len(asked) <= 4  # head and index, and at most the blocks that they reach into
        assert 0 < requested_bytes(asked) < size / 2


def requested_bytes(asked: list[dict[str, Any]]) -> int:
    ranges = [r["range"].removeprefix("bytes=").split("-") for r in asked if r["range"]]
    return sum(int(last) - int(first) + 1 for first, last in ranges)


def test_a_fits_mosaic_and_its_weight_on_s3(server: Server, tmp_path: Path) -> None:
    survey = load_survey("candels")
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [53, -27], [300, 300]
    wcs.wcs.cdelt = [-0.06 / 3600, 0.06 / 3600]
    header = wcs.to_header()
    header["PHOTFLAM"], header["PHOTPLAM"] = 1.5e-20, 15369.0
    name = survey.mosaic_pattern.replace("{tile}", "gs").replace("{band}", "f160w")
    name = name.replace("*", "all_wfc3")
    noise = np.random.default_rng(1).normal(0, 0.01, (600, 600)).astype(np.float32)
    fits.PrimaryHDU(noise, header).writeto(tmp_path / name)
    weight = fits.PrimaryHDU(np.full((600, 600), 1e4, np.float32), header)
    weight.writeto(tmp_path / name.replace("_drz", "_wht"))
    found = find_mosaics(server.put(tmp_path, "candels"), survey)
    ((tile_id, bands),) = found.items()
    server.requests()
    there = read_footprint(bands, survey)
    assert requested_bytes(server.requests()) <= objects.HEAD_BYTES
    here = read_footprint(find_mosaics(tmp_path, survey)[tile_id], survey)
    assert there.shape_HW == here.shape_HW == (600, 600)
    np.testing.assert_array_equal(there.pixel_to_sky(3, 5), here.pixel_to_sky(3, 5))

    from photozhpc.mosaic.tile import read_tile

    for mapping in (bands, list(bands.values())):
        there = read_tile(mapping, survey)
        here = read_tile([tmp_path / name], survey)
        np.testing.assert_array_equal(there.image_CHW, here.image_CHW)
        np.testing.assert_array_equal(there.err_CHW, here.err_CHW)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_of_repeats_on_s3_the_headers_say_which_is_deepest(
    server: Server, small_sky: Path, tmp_path: Path, end: str
) -> None:
    content = next(small_sky.glob("*t0000_f158_coadd.asdf")).read_bytes()
    for visit, seconds in ((1, b"1000.0"), (2, b"9000.0"), (3, b"3000.0")):
        again = re.sub(rb"(?<=[^_]exposure_time: )[0-9.]{6}", seconds, content, count=1)
        assert again.count(seconds)
        name = f"r00001_p_v0100{visit}001001001_270p65x48y69_f158_coadd.asdf{end}"
        (tmp_path / name).write_bytes(gzip.compress(again, 0) if end else again)
    where = server.put(tmp_path, f"repeats{end}")
    server.requests()
    found = find_mosaics(where, load_survey("roman-l3"))["270p65x48y69"]
    assert "v01002001001001" in found["F158"].name
    assert requested_bytes(server.requests()) < 3 * len(content) / 2


def test_a_web_server_with_index_pages(
    server: Server, small_sky: Path, local_store: CutoutStore, tmp_path: Path
) -> None:
    shutil.copytree(small_sky, server.www / "l3")
    extract(SURVEY, f"{server.address}/www/l3", tmp_path / "s", size=64, shard_len=64, workers=1)
    assert contents(CutoutStore.open(tmp_path / "s")) == contents(local_store)


def test_a_remote_store_reads_as_zarr_does(
    server: Server, remote_store: CutoutStore, local_store: CutoutStore
) -> None:
    assert remote_store.fingerprint() == local_store.fingerprint()
    assert remote_store.shards() == local_store.shards()
    options = {"anon": True, "endpoint_url": server.address}
    for key in remote_store.shards()[:3]:
        array = zarr.open_array(
            f"{remote_store.path}/{key.tile_id}/cutout", mode="r", storage_options=options
        )
        rows = slice(key.index * 64, key.index * 64 + 64)
        np.testing.assert_array_equal(remote_store.read_cutouts(key), array[rows])
        there = remote_store.read_cutouts(key, slice(3, 40), 32)
        np.testing.assert_array_equal(there, local_store.read_cutouts(key, slice(3, 40), 32))
        for read in ("read_sources", "read_measurements"):
            there, here = (getattr(s, read)(key) for s in (remote_store, local_store))
            for name in vars(here):
                np.testing.assert_array_equal(getattr(there, name), getattr(here, name))
    assert remote_store.tile_attributes(key.tile_id) == local_store.tile_attributes(key.tile_id)


def test_a_shard_is_read_in_two_requests(server: Server, tmp_path: Path) -> None:
    """The index, and the lines that are wanted of all rows; not one request a chunk."""
    rng = np.random.default_rng(0)
    n, size = 512, 64
    store = CutoutStore.create(tmp_path / "big", SURVEY, size, n)
    cutouts = rng.normal(size=(n, 4, size, size)).astype(np.float32)
    zeros_N, flux_NCR = np.zeros(n), np.ones((n, 4, len(SURVEY.aperture_radii_arcsec)), np.float32)
    sources = Sources(np.arange(n), zeros_N, zeros_N, zeros_N.astype("f4"), zeros_N.astype("f4"))
    flags_NC = np.zeros((n, 4), np.uint16)
    with store.new_tile("t", n, {}) as writer:
        writer.write_shard(
            cutouts, sources, Measurements(zeros_N, zeros_N, flux_NCR, flux_NCR, flags_NC)
        )
    remote = CutoutStore.open(server.put(store.path, "stores/big"))
    (key,) = remote.shards()
    remote.read_cutouts(key, slice(0, 1), 32)  # the array's metadata, the manifest, the index
    server.requests()
    cutouts = remote.read_cutouts(key, side=32)
    asked = server.requests()
    assert len(asked) <= 4
    np.testing.assert_array_equal(cutouts, store.read_cutouts(key, side=32))
    whole = (store.path / "t/cutout/c/0/0/0/0").stat().st_size
    assert len(asked) <= 1 + whole // (16 << 20) + 1
    assert requested_bytes(asked) <= whole
    server.requests()
    for _ in range(2):
        remote.read_sources(key)
        remote.read_measurements(key)
    assert len(server.requests()) <= 24  # zarr.json and content of twelve columns, once


def test_verify_reads_a_remote_store(server: Server, local_store: CutoutStore) -> None:
    where = server.put(local_store.path, "stores/verified")
    assert CutoutStore.open(where).verify() == []
    runner = CliRunner()
    assert "sound" in runner.invoke(main, ["verify", where]).output
    key = local_store.shards()[0]
    name = f"stores/verified/{key.tile_id}/cutout/c/0/0/0/0"
    content = bytearray((local_store.path / key.tile_id / "cutout/c/0/0/0/0").read_bytes())
    content[100] ^= 1
    server.client.put_object(Bucket=BUCKET, Key=name, Body=bytes(content))
    server.client.delete_object(
        Bucket=BUCKET, Key=name.replace("cutout", "ra").removesuffix("/0/0/0")
    )
    damaged = CutoutStore.open(where)
    problems = damaged.verify()
    assert len(problems) == 2
    assert "altered" in problems[0] + problems[1]
    assert "missing" in problems[0] + problems[1]
    with pytest.raises(StoreError, match="checksum is wrong"):
        damaged.read_cutouts(key)
    with pytest.raises(StoreError, match="missing or damaged"):
        damaged.read_sources(key)
    result = runner.invoke(main, ["verify", where])
    assert result.exit_code == 1


@pytest.mark.parametrize("kind", ["truncate", "503"])
def test_faults_that_pass_are_tried_again_and_others_told(
    server: Server, mosaics: str, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(object_requests, "_FIRST_WAIT_SECONDS", 0.01)
    server.put(DATA, "data")
    sample = next(p for p in list_objects(location(f"s3://{BUCKET}/data")) if p.suffix == ".fits")
    content = (DATA / sample.name).read_bytes()
    shutil.copy(DATA / sample.name, server.www / sample.name)
    web = ObjectPath(f"{server.address}/www/{sample.name}").described()
    for path in (sample, web):
        server.fail(sample.name, kind, 2)
        with path.fetched() as copy:
            assert copy.read_bytes() == content
    server.fail(sample.name, kind, 1000)
    with (
        pytest.raises(StorageError, match=r"truncated|cannot serve it now") as error,
        web.fetched(),
    ):
        raise AssertionError
    assert web.url in str(error.value)
    if kind == "truncate":
        with pytest.raises(StorageError, match="truncated"):
            read_ranges([(sample, 0, sample.size)])
    server.fail("", kind, 0)


def test_an_object_that_was_replaced_is_refused(server: Server, mosaics: str) -> None:
    server.client.put_object(Bucket=BUCKET, Key="changing/a.bin", Body=b"old")
    listed = list_objects(location(f"s3://{BUCKET}/changing"))[0]
    server.client.put_object(Bucket=BUCKET, Key="changing/a.bin", Body=b"new")
    with pytest.raises(StorageError, match="was replaced"), listed.fetched():
        raise AssertionError


def test_what_is_not_there_or_closed_is_told_in_a_line(
    server: Server, mosaics: str, tmp_path: Path
) -> None:
    def refused(where: str, **more: Any) -> str:
        with pytest.raises((MosaicError, SourceListError, StoreError, StorageError)) as error:
            extract(SURVEY, where, more.pop("store", tmp_path / "s"), workers=1, **more)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no such" in refused(f"s3://{BUCKET}/nothing")
    assert "no such" in refused("s3://no-such-bucket/l3")
    assert "none of" in refused(f"s3://{BUCKET}/l3/*_cat.parquet")
    assert "no such" in refused(f"S3://{BUCKET}/nothing")
    assert "'gs' URLs" in refused("gs://bucket/l3")
    assert "no bucket" in refused("s3://")
    assert "no such source list" in refused(mosaics, source_lists=[f"{mosaics}/none.parquet"])
    assert "only be written to a disk" in refused(mosaics, store=f"s3://{BUCKET}/out")
    assert "cannot be reached" in refused("http://127.0.0.1:9/l3")
    with pytest.raises(StoreError, match="no store there"):
        CutoutStore.open(f"s3://{BUCKET}/nothing")
    with pytest.raises(StorageError, match="access denied to anonymous"):
        ObjectPath(f"s3://{PRIVATE}/l3/t_f158_coadd.asdf").read_bytes()


def test_the_command_line_takes_urls(server: Server, mosaics: str, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        result = CliRunner().invoke(main, list(words))
        assert result.exit_code == 1, result.output
        assert result.output.count("\n") == 1
        return result.output

    shared = ("extract", "--survey", "roman-sim", "--mosaics")
    assert "only be written to a disk" in refused(
        *shared, "s3://sky/none", "--store", "s3://sky/out"
    )
    out = str(tmp_path / "s")
    assert "no such" in refused(*shared, "s3://sky/none", "--store", out)
    detect = ("detect", "--survey", "roman-sim", "--mosaics", mosaics, "--out")
    for words in ((*detect, "s3://sky/l.parquet"), ("info", "s3://sky/x")):
        assert "is a URL; pass a path on a disk" in CliRunner().invoke(main, words).output
    infer = ("infer", "--survey", "roman-sim", "--out", str(tmp_path / "o"), "--store")
    assert "no store there" in refused(*infer, "s3://sky/none")


@pytest.mark.drawn
def test_a_missing_extra_and_a_missing_network(tmp_path: Path) -> None:
    """In processes of their own: without s3fs, without a server, and with an unknown profile."""
    program = "import sys; {}; from photozhpc.cli import main; main()"
    command = ["extract", "--survey", "roman-sim", "--mosaics", "s3://b/l3", "--store"]
    expected = {
        "sys.modules['s3fs'] = None": ({}, "pip install 'photozhpc[s3]'"),
        "pass": ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE"),
        "0": (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"},
            "cannot be reached",
        ),
    }
    for prelude, (setting, words) in expected.items():
        done = subprocess.run(
            [sys.executable, "-c", program.format(prelude), *command, str(tmp_path / "s")],
            env={**os.environ, "AWS_EC2_METADATA_DISABLED": "true", **setting},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that take every connection and say nothing."""
    monkeypatch.setattr(object_requests, "_SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(object_requests, "_FIRST_WAIT_SECONDS", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for url in (f"{address}/sky/a.fits", "s3://silent/sky/a.fits"):
            began = time.monotonic()
            with pytest.raises(StorageError, match="the server cannot be reached"):
                location(url).exists()
            assert time.monotonic() - began < 15


def test_copies_of_processes_that_were_killed_are_cleared_away(
    server: Server, mosaics: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import os, signal\n"
        "from photozhpc.files.objects import list_objects, location\n"
        f"with min(list_objects(location({mosaics!r}))).fetched() as copy:\n"
        "    assert copy.stat().st_size > 0\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with min(list_objects(location(mosaics))).fetched() as copy:
        assert copy.is_relative_to(tmp_path)
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []
