"""No password in what a run writes, whatever it reads from."""

import base64
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from builders.models import tiny_checkpoint
from photozhpc.catalog import read_catalog
from photozhpc.cli import main
from photozhpc.errors import StorageError
from photozhpc.files.objects import list_objects, location, read_ranges
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore

PASSWORD, SIGNATURE = "pw0rd-9f3c", "c2lnbmF0dXJl71"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own server, which knows no ranges, for those with the password or a signature."""

    def send_head(self):  # type: ignore[no-untyped-def]
        asked = urlsplit(self.path)
        known = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        if (
            self.headers.get("Authorization") != f"Basic {known}"
            and parse_qs(asked.query).get("sig") != [SIGNATURE]
            and not asked.path.startswith("/open")
        ):
            self.send_error(403 if "sig" in asked.query else 401)
            return None
        return super().send_head()

    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix("/open"))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and where it is served: HOST:PORT."""
    folder = tmp_path / "www"
    folder.mkdir()

    def handler(*arguments: object) -> Handler:
        return Handler(*arguments, directory=str(folder))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        yield folder, f"127.0.0.1:{web.server_port}"
        web.shutdown()
        thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    """All that was written; of Parquet, which is compressed, also what its schema says."""
    found = {}
    for path in (p for p in folder.rglob("*") if p.is_file()):
        found[str(path)] = path.read_bytes()
        if path.suffix == ".parquet":
            found[str(path)] += repr(pq.read_schema(path).metadata).encode()
    return found


def test_a_plain_web_server_is_read(server: tuple[Path, str]) -> None:
    """Its index pages say no sizes and quote names, and it sends whole files whatever is asked."""
    folder, host = server
    content = os.urandom(3_000_000)
    (folder / "a+b c.bin").write_bytes(content)
    (folder / "empty.bin").write_bytes(b"")
    found = list_objects(location(f"http://{host}/open"))
    assert [path.name for path in found] == ["a+b c.bin", "empty.bin"]
    path = found[0]
    assert path.size is None
    assert read_ranges([(path, 0, None), (path, 5, 9)]) == [content, content[5:9]]
    assert read_ranges([(path, 7, 2_000_000)]) == [content[7:2_000_000]]  # now it is known
    assert found[1].read_bytes() == b""
    for each, due in zip(found, (content, b""), strict=True):
        with each.fetched() as copy:
            assert (copy.name, copy.read_bytes()) == (each.name, due)


def test_a_signed_url_is_one_file(server: tuple[Path, str]) -> None:
    folder, host = server
    (folder / "t.bin").write_bytes(b"content")
    signed = location(f"http://{host}/t.bin?sig={SIGNATURE}&id=[1]")
    assert [path.read_bytes() for path in list_objects(signed)] == [b"content"]
    with signed.fetched() as copy:
        assert copy.name == "t.bin"
    with pytest.raises(StorageError, match=r"/t.bin\?sig=...: access denied") as refused:
        location(f"http://{host}/t.bin?sig=wr0ng").read_bytes()
    assert "wr0ng" not in str(refused.value)
    with pytest.raises(StorageError, match="access denied"):
        location(f"http://me:{PASSWORD}x@{host}/t.bin").read_bytes()


def test_a_password_is_in_nothing_that_a_run_writes(
    server: tuple[Path, str], small_store: CutoutStore, small_sky: Path, tmp_path: Path
) -> None:
    """The chain of commands, ten seconds: each writes where its input came from."""
    folder, host = server
    (folder / "store").symlink_to(small_store.path)
    (folder / "sky").symlink_to(small_sky)
    model = tiny_checkpoint(tmp_path / "m.safetensors", crop=48)
    store = f"http://me:{PASSWORD}@{host}/store"
    truths = [f"http://{host}/sky/{p.name}?sig={SIGNATURE}&v=a" for p in small_sky.glob("*truth*")]
    out = tmp_path / "out"
    said: list[str] = []

    def photozhpc(*words: object, code: int = 0) -> None:
        result = CliRunner().invoke(main, [str(word) for word in words])
        said.append(result.output)
        assert result.exit_code == code, result.output

    truth = [word for url in truths for word in ("--truth", url)]
    infer = ("infer", "--survey", "roman-sim", "--checkpoint", model, "--out", out, "--workers", 1)
    command = [*infer, "--verbose", "--store", store, *truth, "--export", "fits"]
    done = subprocess.run(
        [sys.executable, "-m", "photozhpc", *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    said.append(done.stdout)
    assert done.returncode == 0, done.stdout
    assert len(read_catalog(out)) == small_store.index().n_sources
    # Neither a password nor where a store lies is part of what it is.
    photozhpc(*infer, "--store", f"http://{host}/open/store")
    assert "parts were finished before" in said[-1]
    photozhpc(*infer, "--verbose", "--store", f"http://me:{PASSWORD}x@{host}/store", code=1)
    photozhpc(*infer, "--store", store, f"--truth=http://{host}/no.csv?sig={SIGNATURE}", code=1)
    photozhpc(*infer, "--store", store, f"http://{host}/no?sig={SIGNATURE}", code=2)
    photozhpc("evaluate", out, *truth, "--out", out / "evaluation")
    photozhpc("report", out)
    photozhpc("status", out)
    extract = ("extract", "--survey", "roman-sim", "--size", 16, "--workers", 1, "--store")
    lists = [f"http://me:{PASSWORD}@{host}/sky/{p.name}" for p in small_sky.glob("*_cat.parquet")]
    photozhpc(*extract, out / "s", "--mosaics", f"http://me:{PASSWORD}@{host}/sky",
              *[word for url in lists for word in ("--sources", url)])  # fmt: skip
    written = files_of(out) | {"the terminal": "".join(said).encode()}
    assert "127.0.0.1" in "".join(said)
    assert len(written) > 10
    for secret in (PASSWORD, SIGNATURE):
        assert [name for name, content in written.items() if secret.encode() in content] == []


def test_a_model_file_does_not_name_the_password_of_its_store() -> None:
    config = TrainConfig(out="run", store="https://me:pw@host/s.zarr")
    assert config.noted()["store"] == "https://host/s.zarr"
    assert config.store == "https://me:pw@host/s.zarr"
