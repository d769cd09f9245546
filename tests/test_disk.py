"""Files that are there whole or not at all, and folders that are the user's alone."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from photozhpc.disk import replacing, temporary_folder


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
