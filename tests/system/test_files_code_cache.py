"""Compiled code that someone else could have written is not loaded."""

import os
import pwd
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from photozhpc.files.code_cache import code_cache, keep_torch_code, private_folder


def test_a_new_folder_is_the_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = private_folder(tmp_path / "cache")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("mode", "parent_mode", "is_own"),
    [
        (0o700, 0o755, True),
        (0o755, 0o755, True),
        (0o777, 0o755, False),
        (0o700, 0o777, False),  # another folder can be put in its place
        (0o700, 0o1777, True),  # but not in /tmp
    ],
)
def test_a_folder_that_others_can_change_is_refused(
    tmp_path: Path, mode: int, parent_mode: int, is_own: bool
) -> None:
    folder = tmp_path / "parent" / "cache"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    folder.parent.chmod(parent_mode)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for path in (folder, link):
        if is_own:
            assert private_folder(path) == folder.resolve()
        else:
            with pytest.raises(PermissionError, match="other users can"):
                private_folder(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("whose", ["folder", "parent"])
def test_a_folder_of_another_user_is_refused(tmp_path: Path, whose: str) -> None:
    folder = tmp_path / "parent" / "cache"
    folder.mkdir(parents=True)
    os.chown(folder if whose == "folder" else folder.parent, 65534, 65534)
    with pytest.raises(PermissionError, match="other users can"):
        private_folder(folder)


@pytest.mark.parametrize("home", [None, "/proc", "OPEN"])
def test_without_a_home_of_ones_own_code_is_kept_for_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    """As in containers whose user has no entry in /etc/passwd."""

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("XDG_CACHE_HOME", "PHOTOZHPC_CACHE", "HOME", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "")  # so that it is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if home is not None:
        (tmp_path / ".cache" / "photozhpc").mkdir(parents=True)
        (tmp_path / ".cache").chmod(0o777)
        monkeypatch.setenv("HOME", home.replace("OPEN", str(tmp_path)))
    folder = code_cache()
    assert folder.name.startswith("photozhpc-code-")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.environ["PHOTOZHPC_CACHE"] == str(folder)
    assert code_cache() == folder  # and so do the processes that this one starts
    keep_torch_code()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder / "torchinductor")


def test_the_commands_need_no_home(tmp_path: Path) -> None:
    """astropy asks for one, and is given one that is gone when the command has ended."""
    site = "import pwd\ndef nobody(uid):\n    raise KeyError(uid)\npwd.getpwuid = nobody\n"
    (tmp_path / "sitecustomize.py").write_text(site)
    (tmp_path / "tmp").mkdir()
    program = (
        "import os, photozhpc.cli\n"
        "from astropy.config import get_cache_dir_path\n"
        "print(get_cache_dir_path(), os.stat(os.environ['HOME']).st_mode & 0o777)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "HOME" and k[:3] != "XDG"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
        env=environment | {"PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path / "tmp")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder, mode = done.stdout.split()
    assert folder.startswith(f"{tmp_path}/tmp/photozhpc-home-")
    assert int(mode) == 0o700
    assert not any((tmp_path / "tmp").iterdir())


MARKED = """
#include <sys/stat.h>
__attribute__((constructor)) static void planted(void) { mkdir("%s", 0700); }
"""
USE_INDUCTOR = """
import os, sys
if sys.argv[1] == "kept":
    from photozhpc.files.code_cache import keep_torch_code
    keep_torch_code()
from torch._inductor.cpu_vec_isa import VecAVX2
bool(VecAVX2())  # compiles a few lines, loads them, and so on for every processor
"""


@pytest.mark.drawn
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler is there")
def test_a_library_that_lies_where_inductor_looks_is_not_loaded(tmp_path: Path) -> None:
    """It takes ten seconds: torch is imported six times, by us and by Inductor."""
    marker, shared = tmp_path / "marker", tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    plant = tmp_path / "plant.so"
    (tmp_path / "plant.c").write_text(MARKED % marker)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", plant, tmp_path / "plant.c"], check=True)
    # The one stands for the neighbour, who knows the names of the files from his own cache.
    compilers = {}
    for name, action in (("plants", f'cp {plant} "$2"'), ("fails", "exit 1")):
        compilers[name] = tmp_path / name
        compilers[name].write_text(
            f"#!/bin/sh\necho compiler 1\n"
            f'while [ $# -gt 0 ]; do [ "$1" = -o ] && {action}; shift; done; exit 0\n'
        )
        compilers[name].chmod(0o755)

    def use(how: str, cxx: str) -> bool:
        environment = {**os.environ, "TMPDIR": str(shared), "CXX": str(compilers[cxx]),
                       "PHOTOZHPC_CACHE": str(tmp_path / "cache")}  # fmt: skip
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        subprocess.run(
            [sys.executable, "-c", USE_INDUCTOR, how], env=environment, check=True, timeout=200
        )
        was_loaded = marker.exists()
        if was_loaded:
            marker.rmdir()
        return was_loaded

    use("as it comes", "plants")
    assert list(shared.rglob("*.so"))
    assert use("as it comes", "fails")  # the attack works
    assert not use("kept", "fails")
    assert use("kept", "plants")  # and so does the cache that is ours
    assert list((tmp_path / "cache" / "torchinductor").rglob("*.so"))


KERNEL = """
import numba
@numba.njit(cache=True)
def f(x):
    return x + 1
"""
PLANT = """
import os, pathlib, pickle, sys
class Marked:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)
for index in pathlib.Path(sys.argv[1]).rglob("*.nbi"):
    index.write_bytes(pickle.dumps(Marked()))
"""


def test_a_pickle_in_a_shared_folder_of_numba_is_not_loaded(tmp_path: Path) -> None:
    marker, shared = tmp_path / "marker", tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "kernel.py").write_text(KERNEL)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(shared), "PYTHONPATH": str(tmp_path)}

    def python(program: str, *arguments: object) -> str:
        command = [sys.executable, "-c", program, *map(str, arguments)]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        return done.stdout

    assert python("import kernel; print(kernel.f(1))") == "2\n"
    python(PLANT, shared, marker)
    python("import kernel; print(kernel.f(1))")
    assert marker.is_dir()  # the attack works
    marker.rmdir()
    python(PLANT, shared, marker)
    assert python("import photozhpc, kernel; print(kernel.f(1))") == "2\n"
    assert not marker.exists()
