"""Files written whole or not at all, folders behind links, and reads that the disk failed."""

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from photozhpc.catalog.notes import read_run
from photozhpc.catalog.run_folder import append_line
from photozhpc.errors import CatalogError, MosaicError, RunError, StoreError
from photozhpc.files import disk
from photozhpc.files.disk import files_below, read_fault, replacing, temporary_folder
from photozhpc.mosaic.duplicates import exposure_time_s
from photozhpc.mosaic.tile import read_tile
from photozhpc.store.cutout_store import CutoutStore
from photozhpc.store.manifest import read_manifest
from photozhpc.survey import load_survey


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_links_to_folders_are_followed_once(tmp_path):
    top, outside = tmp_path / "top", tmp_path / "outside"
    own = [touch(top / name) for name in ("x", "a/y", "b/c/z")]
    touch(outside / "deep" / "w")
    (top / "a" / "away").symlink_to(outside)
    (top / "0_own").symlink_to(top / "b")  # what is there under a name without links
    (top / "b" / "loop").symlink_to(top)
    (outside / "back").symlink_to(top / "a")
    (top / "twice").symlink_to(outside / "deep")
    (top / "dangling").symlink_to(tmp_path / "nowhere")
    (top / "file").symlink_to(outside / "deep" / "w")
    found = files_below(top)
    assert found == sorted(found)
    reached = {path.resolve() for path in found if path.exists()}
    assert reached == {path.resolve() for path in [*own, outside / "deep" / "w"]}
    assert set(own) <= set(found)
    assert len(found) == 6  # x, y, z, w, and the links `dangling` and `file`


def test_a_tree_without_links_is_as_rglob_has_it(tmp_path):
    for name in ("b/c", "a", ".hidden/d", "e/f/g"):
        touch(tmp_path / name)
    assert files_below(tmp_path) == sorted(p for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.skipif(os.getuid() == 0, reason="root may list every folder")
def test_a_folder_that_cannot_be_listed_is_told_of(tmp_path):
    touch(tmp_path / "shut" / "x").parent.chmod(0)
    notes: list[str] = []
    assert files_below(tmp_path, notes) == []
    (tmp_path / "shut").chmod(0o700)
    assert "shut (Permission denied)" in notes[0]


@pytest.mark.parametrize(
    "number",
    [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.EACCES],
)
def test_a_fault_of_the_disk_is_told_as_what_it_is(number):
    direct = OSError(number, os.strerror(number), "part")
    wrapped = ValueError("not a table")
    wrapped.__cause__ = direct
    for error in (
        direct,
        wrapped,
        RuntimeError(f"failed: {os.strerror(number)} (os error {number})"),
    ):
        fault = read_fault("x.fits", error)
        assert fault is not None
        assert fault.startswith(f"x.fits: cannot be read ({os.strerror(number)})")
        assert "copy it again" not in fault


@pytest.mark.parametrize(
    "error",
    [
        OSError("Empty or corrupt FITS file"),
        OSError(errno.EINVAL, "Invalid argument"),  # a seek to where a damaged header points
        ValueError("buffer is too small"),
        FileNotFoundError(errno.ENOENT, "No such file"),
    ],
)
def test_a_fault_of_the_file_is_not_the_disk(error):
    assert read_fault("x.fits", error) is None


@pytest.fixture
def failing(tmp_path):
    """A folder for links to a file whose first byte cannot be read (EIO)."""
    source = Path("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"), open(source, "rb") as stream:
        stream.read(1)
    return lambda name: touch(tmp_path / name).unlink() or _linked(tmp_path / name, source)


def _linked(path: Path, target: Path) -> Path:
    path.symlink_to(target)
    return path


@pytest.mark.parametrize(
    ("name", "read", "kind"),
    [
        ("x_f158_coadd.asdf", lambda p: read_tile(p, load_survey("roman-l3")), MosaicError),
        ("x_f158_coadd.asdf", exposure_time_s, MosaicError),
        (".manifests/t.json", read_manifest, StoreError),
        ("run.json", lambda p: read_run(p.parent), CatalogError),
        ("zarr.json", lambda p: CutoutStore.open(p.parent), StoreError),
    ],
)
def test_a_failing_disk_is_not_called_a_damaged_file(failing, name, read, kind):
    with pytest.raises(kind, match=r"cannot be read \(Input/output error\)") as caught:
        read(failing(name))
    assert "copy it again" not in str(caught.value)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_file_has_the_mode_of_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors makes files of mode 0600."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "m.safetensors") as partial:
            save_file({"a": np.zeros(2)}, partial)
    finally:
        os.umask(before)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_temporary_folder_is_private_and_what_is_in_use_stays(tmp_path: Path) -> None:
    with temporary_folder("t", tmp_path) as first, temporary_folder("t", tmp_path) as second:
        assert first != second
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        assert first.is_dir()
    left = tmp_path / "t-01234567"  # of a process that was killed: nobody holds its lock
    left.mkdir()
    (left / ".lock").touch()
    other = tmp_path / "t-abcdefgh"  # of another program
    other.mkdir()
    with temporary_folder("t", tmp_path):
        assert not left.exists()
        assert other.exists()


def test_a_link_under_the_hidden_name_is_not_followed(tmp_path, monkeypatch):
    """In a group's folder, another user may have guessed the name."""
    precious, path = tmp_path / "precious", tmp_path / "out" / "a.json"
    path.parent.mkdir()
    precious.write_bytes(b"mine")
    assert disk.partial_path(path) != disk.partial_path(path)
    monkeypatch.setattr(disk.secrets, "token_hex", lambda n: "0" * n)
    disk.partial_path(path).symlink_to(precious)
    with pytest.raises(RunError, match="cannot be written"):
        disk.write_durably(path, b"{}")
    assert precious.read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_lines_are_added_to_no_link_or_pipe(tmp_path, kind):
    precious, file = tmp_path / "precious", tmp_path / "events.jsonl"
    precious.write_bytes(b"mine")
    file.symlink_to(precious) if kind == "link" else os.mkfifo(file)
    with pytest.raises(OSError, match=r"symbolic links|No such device"):
        append_line(file, {"at": 1})
    assert precious.read_bytes() == b"mine"
