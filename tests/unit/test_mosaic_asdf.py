"""Roman's ASDF files with odd paths, and with blocks in other files."""

import functools
import http.server
import shutil
import threading
from pathlib import Path

import asdf
import numpy as np
import pytest

from builders.mosaics import F158, change_roman
from photozhpc.errors import MosaicError
from photozhpc.info.mosaics import about_fits_or_asdf
from photozhpc.mosaic.tile import read_tile
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-l3")


@pytest.mark.parametrize("name", ["a#b", "a?b", "a%41b", "%20", "#1", "file:x", "http:x", "a;b é"])
def test_a_folder_may_have_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(F158, folder / "x_f158_coadd.asdf")
    want, tile = read_tile(F158, SURVEY), read_tile(folder / "x_f158_coadd.asdf", SURVEY)
    assert np.array_equal(tile.image_CHW, want.image_CHW, equal_nan=True)
    # A file that asdf would have read in its place.
    (tmp_path / "a").write_bytes(b"#ASDF 1.0.0\n")
    assert about_fits_or_asdf(folder / "x_f158_coadd.asdf", SURVEY)["bands"] == ["F158"]


def exploded(folder: Path) -> Path:
    """Write the mosaic as asdf 'explodes' it: every array in a file beside it."""
    folder.mkdir(exist_ok=True)
    path = folder / "x_f158_coadd.asdf"
    with asdf.open(F158, ignore_unrecognized_tag=True, memmap=False, lazy_load=False) as file:
        roman = {k: np.array(v) if k != "meta" else v for k, v in file["roman"].items()}
        asdf.AsdfFile({"roman": roman}).write_to(path, all_array_storage="external")
    return path


def test_blocks_beside_the_mosaic_are_read(tmp_path):
    want, tile = read_tile(F158, SURVEY), read_tile(exploded(tmp_path / "own"), SURVEY)
    assert np.array_equal(tile.image_CHW, want.image_CHW, equal_nan=True)
    assert np.array_equal(tile.err_CHW, want.err_CHW, equal_nan=True)
    moved = (tmp_path / "own").rename(tmp_path / "a#b")
    tile = read_tile(moved / "x_f158_coadd.asdf", SURVEY)
    assert np.array_equal(tile.image_CHW, want.image_CHW, equal_nan=True)


def point(path: Path, target: str) -> Path:
    """Move the image of an exploded mosaic to another place."""
    text = path.read_bytes()
    assert text.count(b"x_f158_coadd0000.asdf") == 1
    path.write_bytes(text.replace(b"x_f158_coadd0000.asdf", target.encode()))
    return path


@pytest.mark.parametrize("kind", ["file", "absolute", "up", "linked", "quoted", "folder"])
def test_blocks_elsewhere_are_refused(tmp_path, kind):
    secret = exploded(tmp_path / "other").parent / "x_f158_coadd0000.asdf"
    path = exploded(tmp_path / "own")
    (path.parent / "link.asdf").symlink_to(secret)
    (path.parent / "linked").symlink_to(secret.parent)
    target = {
        "file": secret.as_uri(),
        "absolute": str(secret),
        "up": f"../other/{secret.name}",
        "linked": "link.asdf",
        "quoted": f"'%2e%2e/other/{secret.name}'",
        "folder": f"linked/{secret.name}",
    }[kind]
    with pytest.raises(MosaicError, match=r"in another place .*write the mosaic as one file"):
        read_tile(point(path, target), SURVEY)
    with pytest.raises(MosaicError, match="in another place"):
        about_fits_or_asdf(path, SURVEY)


def test_no_server_is_asked_for_blocks(tmp_path):
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *args):
            asked.append(self.path)

    exploded(tmp_path / "other")
    handler = functools.partial(Handler, directory=str(tmp_path / "other"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x_f158_coadd0000.asdf"
        with pytest.raises(MosaicError, match="in another place"):
            read_tile(point(exploded(tmp_path / "own"), url), SURVEY)
        server.shutdown()
    assert not asked


def test_a_block_of_a_model_of_the_wcs_is_looked_at_too(tmp_path):
    """An array anywhere in the tree: those of models are read while the file is opened."""
    path = exploded(tmp_path / "own")
    text = path.read_bytes()
    path.write_bytes(
        text.replace(
            b"roman:\n",
            b"extra: {deep: [!core/ndarray-1.1.0 {source: 'file:///etc/passwd', datatype: uint8, "
            b"byteorder: little, shape: [1]}]}\nroman:\n",
            1,
        )
    )
    with pytest.raises(MosaicError, match=r"in another place .'file:///etc/passwd'"):
        read_tile(path, SURVEY)


def test_a_chain_of_files_ends(tmp_path):
    path = exploded(tmp_path / "own")
    loop = path.parent / "x_f158_coadd0000.asdf"
    loop.write_bytes(
        b"#ASDF 1.0.0\n#ASDF_STANDARD 1.5.0\n%YAML 1.1\n%TAG ! tag:stsci.org:asdf/\n--- "
        b"!core/asdf-1.1.0\na: !core/ndarray-1.0.0 {source: x_f158_coadd.asdf, datatype: uint8, "
        b"byteorder: little, shape: [1]}\n...\n"
    )
    with pytest.raises(MosaicError):
        read_tile(path, SURVEY)


def test_a_block_that_is_not_there_is_named(tmp_path):
    path = exploded(tmp_path / "own")
    (path.parent / "x_f158_coadd0000.asdf").unlink()
    with pytest.raises(MosaicError, match=r"x_f158_coadd0000\.asdf, which is not beside it"):
        read_tile(path, SURVEY)


def test_a_reference_is_not_followed(tmp_path):
    secret = change_roman(F158, tmp_path / "secret.asdf", lambda roman: None)
    path = exploded(tmp_path / "own")
    with asdf.open(path, ignore_unrecognized_tag=True, lazy_load=False, memmap=False) as file:
        roman = {k: np.array(v) if k != "meta" else v for k, v in file["roman"].items()}
    roman["data"] = {"$ref": f"{secret.as_uri()}#roman/data"}
    asdf.AsdfFile({"roman": roman}).write_to(path)
    with pytest.raises(MosaicError, match=r"own/x_f158_coadd\.asdf"):
        read_tile(path, SURVEY)
