"""What every command does alike: --quiet, --verbose, colour, strict JSON, completion."""

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from builders.commands import photozhpc, run
from builders.models import tiny_checkpoint
from photozhpc.logs import VARIABLE, verbosity
from photozhpc.store import CutoutStore
from photozhpc.survey import survey_names

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \S+\[(\d+)\] [A-Z]+: ", re.MULTILINE)


def strict(text: str) -> dict:
    """The one JSON document that the text is; NaN and Infinity are none."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert text.count("\n") == 1
    return json.loads(text, parse_constant=refuse)


def extract(small_sky: Path, store: Path) -> tuple[object, ...]:
    return ("extract", "--survey", "roman-sim", "--mosaics", small_sky, "--store", store,
            "--size", 16, "--workers", 1)  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(small_store: CutoutStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue, made by `infer -q --json`, whose answer lies beside it."""
    folder = tmp_path_factory.mktemp("habits")
    model = tiny_checkpoint(folder / "m.safetensors", crop=48)
    done = photozhpc(
        "infer", "--survey", "roman-sim", "--store", small_store.path, "--checkpoint", model,
        "--out", folder / "out", "--workers", 1, "-q", "--json",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "answer.json").write_text(done.stdout)
    return folder


def test_quiet_leaves_results_alone_and_verbose_adds_times(small_sky: Path, tmp_path: Path) -> None:
    said = {}
    for n, options in enumerate([(), ("-q",), ("--verbose",)]):
        done = run(*extract(small_sky, tmp_path / f"{n}"), *options)
        assert done.exit_code == 0
        assert f"of 2 tiles in {tmp_path / str(n)}" in done.stdout
        said[options] = done.stderr
    assert re.search(r"^  \d+/\d+ sources$", said[()], re.MULTILINE)
    assert said[("-q",)] == ""
    loud = said[("--verbose",)]
    assert loud.count("extract: tile ") == 2
    assert len(STAMP.findall(loud)) == len(loud.splitlines())
    assert verbosity() == "normal"
    assert VARIABLE not in os.environ


@pytest.mark.drawn
def test_worker_processes_take_it_from_the_environment(small_sky: Path, tmp_path: Path) -> None:
    command = extract(small_sky, tmp_path / "s")[:-1]
    done = photozhpc(*command, 2, env=os.environ | {VARIABLE: "verbose"})
    tiles = [line for line in done.stderr.splitlines() if "extract: tile " in line]
    assert len({STAMP.match(line)[1] for line in tiles}) == 2


def test_options_before_and_after_the_name_and_both(tmp_path: Path) -> None:
    for arguments in (("-v", "verify", tmp_path), ("verify", tmp_path, "-v")):
        done = run(*arguments)
        assert done.exit_code == 1
        assert "Traceback" in done.stderr
        assert "StoreError" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("Error: ")
    for arguments in (("-q", "verify", tmp_path), ("verify", tmp_path, "-q"), ("verify", tmp_path)):
        done = run(*arguments)
        assert done.exit_code == 1
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
    done = run("-q", "verify", tmp_path, "-v")
    assert done.exit_code == 2
    assert "exclude each other" in done.stderr


def test_infer_says_what_happens_to_its_parts(run_folder: Path, small_store: CutoutStore) -> None:
    again = (
        "infer", "--survey", "roman-sim", "--store", small_store.path, "--checkpoint",
        run_folder / "m.safetensors", "--workers", 1,
    )  # fmt: skip
    done = photozhpc(*again, "--out", run_folder / "loud", "-v")
    assert done.returncode == 0, done.stderr
    assert "infer: part-000000.parquet: " in done.stderr  # by the worker process
    pids = set(STAMP.findall(done.stderr))
    assert len(pids) >= 2
    document = strict((run_folder / "answer.json").read_text())
    assert document["rows"] == len(small_store)
    assert document["catalog"] == str(run_folder / "out" / "catalog")
    assert document == json.loads((run_folder / "out" / "summary.json").read_text())


def test_data_is_one_strict_document_on_stdout(
    small_sky: Path, small_store: CutoutStore, run_folder: Path, tmp_path: Path
) -> None:
    out, n = run_folder / "out", len(small_store)
    (tmp_path / "log.jsonl").write_text('{"step": 3, "loss_total": NaN, "epoch": 1}\n')
    truth = sorted(small_sky.glob("*_truth.parquet"))
    store = tmp_path / "store"
    for arguments, key, value in [
        (("verify", small_store.path), "sound", True),
        (("verify", out, "--store", small_store.path), "sources", n),
        (("status", out), "sources_done", n),
        (("status", tmp_path), "last", {"step": 3, "loss_total": None, "epoch": 1}),
        (("info", out), "rows", n),
        (("info", tmp_path), "last_epoch", {"step": 3, "loss_total": None, "epoch": 1}),
        (("info", small_store.path), "sources", n),
        (("config", "show", "candels"), "name", "candels"),
        (extract(small_sky, store), "sources", n),
        (extract(small_sky, store), "skipped_tiles", 2),
    ]:
        done = run(*arguments, "--json", "-q")
        assert (done.exit_code, done.stderr) == (0, ""), arguments
        assert strict(done.stdout)[key] == value, arguments
    done = run("evaluate", out, *(f"--truth={path}" for path in truth), "--json", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    assert json.loads(done.stdout, parse_constant=pytest.fail)["catalog"] == str(out)


def test_train_tells_of_its_model_in_json(small_store: CutoutStore, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"out: {tmp_path / 'run'}\nmethod: photometry-mlp\nepochs: 1\n")
    done = run("train", "--config", recipe, "--store", small_store.path, "-q", "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = strict(done.stdout)
    assert (found["model"], found["method"]) == ("photometry-mlp", "photometry-mlp")
    assert found["path"] == str(tmp_path / "run" / "model.safetensors")


def test_a_recipe_of_the_package_goes_by_its_name(tmp_path: Path) -> None:
    done = run("train", "--config", "small/pita", "--store", tmp_path, "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert f"{tmp_path}: no store there" in done.stderr
    done = run("train", "--config", "small/pit", "--store", tmp_path, "--out", tmp_path / "o")
    assert done.exit_code == 1
    assert "did you mean 'small/pita'" in done.stderr


def test_a_verdict_in_json_names_the_problem_and_fails(
    small_store: CutoutStore, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(small_store.path, store)
    victim = sorted(store.glob("*/cutout/c/1/0/0/0"))[0]
    victim.write_bytes(victim.read_bytes()[:-7])
    done = run("verify", store, "--json")
    assert done.exit_code == 1
    verdict = strict(done.stdout)
    assert verdict["sound"] is False
    assert verdict["sources"] is None
    assert "truncated" in verdict["problems"][0]
    assert "1 problems" in done.stderr


@pytest.mark.drawn
def test_streams_that_are_closed_or_full(run_folder: Path, small_store: CutoutStore) -> None:
    """Of daemons, and of a full disk: nothing is written into another file, no traceback."""
    program = f"exec {sys.executable} -m photozhpc"
    infer = f"infer --survey roman-sim --store {small_store.path} --workers 1 --checkpoint"
    for words, code in [
        (f"{infer} {run_folder / 'm.safetensors'} --out {run_folder / 'mute'} >&- 2>&- <&-", 0),
        (f"info {run_folder / 'mute'} >&-", 0),
        (f"info {run_folder / 'none'} 2>&-", 1),
        ("--help >/dev/full", 1),
        ("config show candels >/dev/full", 1),
    ]:
        done = subprocess.run(
            ["sh", "-c", f"{program} {words}"], capture_output=True, text=True, timeout=200
        )
        assert done.returncode == code, (words, done.stderr)
        assert "Traceback" not in done.stderr
        if "full" in words:
            assert done.stderr.startswith("Error: the disk is full")
    assert (run_folder / "mute" / "summary.json").is_file()
    assert (run_folder / "mute" / "catalog" / "part-000000.parquet").is_file()


def on_a_terminal(*arguments: str, **environment: str) -> str:
    """What a command writes when stdout and stderr are a terminal."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "photozhpc", *arguments],
        stdin=slave, stdout=slave, stderr=slave, env={**clean, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(slave)
    text = b""
    try:
        while more := os.read(master, 65536):
            text += more
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(master)
    process.wait(timeout=60)
    return text.decode()


def test_colour_on_a_terminal_alone_and_not_with_no_color(tmp_path: Path) -> None:
    command = ("verify", str(tmp_path))
    assert "\x1b[31m" in on_a_terminal(*command)
    assert "\x1b" not in on_a_terminal(*command, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(*command, NO_COLOR="1", FORCE_COLOR="1")
    assert "\x1b[31m" in on_a_terminal(*command, NO_COLOR="")  # empty is as if it were not set
    assert "\x1b" not in on_a_terminal(*command, TERM="dumb")
    assert "\x1b" not in photozhpc(*command).stderr
    forced = photozhpc(*command, env=os.environ | {"FORCE_COLOR": "1"})
    assert "\x1b[31m" in forced.stderr


@pytest.mark.drawn
def test_a_bar_on_a_terminal_is_gone_when_quiet(small_sky: Path, tmp_path: Path) -> None:
    text = on_a_terminal(*map(str, extract(small_sky, tmp_path / "a")))
    assert re.search(r"\d+/\d+ \[.* sources", text)
    text = on_a_terminal(*map(str, extract(small_sky, tmp_path / "b")), "-q")
    assert text.splitlines() == [text.strip()]
    assert "\x1b" not in text


def completions(
    words: str,
    folder: Path | None = None,
    program: str = "from photozhpc.cli import main; main(prog_name='photozhpc')",
) -> list[str]:
    environment = {
        "_PHOTOZHPC_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=60,
        env=os.environ | environment,
    )  # fmt: skip
    assert done.stderr == ""
    return [line.split(",", 1)[1] for line in done.stdout.split()]


def test_completion_of_names_and_files(tmp_path: Path) -> None:
    for name in ("mine.yaml", "ours.yml", "notes.txt", ".hidden.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "deep.yaml").touch()
    assert {"infer", "info", "import-hdf5"} <= set(completions("photozhpc i"))
    assert "--survey" in completions("photozhpc infer --s")
    found = completions("photozhpc extract --survey ", tmp_path)
    assert found == [*survey_names(), "mine.yaml", "more/", "ours.yml"]
    assert completions("photozhpc extract --survey more/", tmp_path) == ["more/deep.yaml"]
    assert completions("photozhpc infer --survey cand") == ["candels"]
    assert completions("photozhpc submit infer --site gen", tmp_path) == ["generic"]
    assert "small/pita" in completions("photozhpc train --config small/p", tmp_path)
    assert completions("photozhpc config show perl", tmp_path) == ["perlmutter"]
    assert completions("photozhpc extract --survey /no/such/", tmp_path) == []
    assert completions("photozhpc completion z") == ["zsh"]


def test_completion_is_quick(tmp_path: Path) -> None:
    """A tenth of a second, if nothing that takes longer to import is imported."""
    slow = {"torch", "numba", "astropy", "zarr", "dask", "pandas", "pyarrow", "numpy"}
    program = (
        "import sys; from photozhpc.cli import main\n"
        "try: main(prog_name='photozhpc')\n"
        f"finally: print(*({slow} & set(sys.modules)), sep=',', end='')"
    )
    words = completions("photozhpc infer --survey ", tmp_path, program)
    assert words == survey_names()


def test_a_real_bash_completes(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    (tmp_path / "cat.parquet").touch()
    program = tmp_path / "bin" / "photozhpc"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m photozhpc "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(photozhpc completion bash)"
        complete -p photozhpc | grep -o -- '-F [a-z_]*' | cut -c4- > function
        COMP_WORDS=(photozhpc infer --survey roman-s); COMP_CWORD=3; COMPREPLY=()
        $(cat function) photozhpc roman-s --survey; echo "${COMPREPLY[@]}"
        COMP_WORDS=(photozhpc ver); COMP_CWORD=1; COMPREPLY=()
        $(cat function) photozhpc ver photozhpc; echo "${COMPREPLY[@]}"
    """
    path = f"{program.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "--norc", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=60,
        env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.stdout.splitlines() == ["roman-sim", "verify"], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert f"_PHOTOZHPC_COMPLETE={shell}_complete" in done.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=done.stdout, text=True, check=True, timeout=30)


def test_an_unknown_shell_is_named() -> None:
    done = run("completion", "tcsh")
    assert done.exit_code == 2
    assert "tcsh" in done.stderr


LEFT_OVER = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # of a Jupyter kernel
    "NUMBA_THREADING_LAYER": "tbb",
    "NUMBA_DISABLE_JIT": "1",
    "NUMBA_NUM_THREADS": "0",
    "OMP_NUM_THREADS": "2,1",
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "DASK_DISTRIBUTED__SCHEDULER__WORK_STEALING": "False",
}


@pytest.mark.drawn
def test_what_a_notebook_or_site_left_in_the_environment_does_no_harm(
    run_folder: Path, small_sky: Path, tmp_path: Path
) -> None:
    """Figures are drawn, and kernels are compiled."""
    environment = {**os.environ, **LEFT_OVER}
    words = ("evaluate", run_folder / "out", "--out", tmp_path / "e", "--json", "-q",
             "--truth", f"{small_sky}/*_truth.parquet")  # fmt: skip
    done = photozhpc(*words, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "e").glob("*.png"))
    done = photozhpc(*extract(small_sky, tmp_path / "s"), "-q", "--json", env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.drawn
def test_two_workers_take_the_threads_that_numba_lets_them_have(
    small_sky: Path, tmp_path: Path
) -> None:
    """NUMBA_NUM_THREADS=1 on a machine of eight cores, which two workers would share out."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.sched_getaffinity = lambda pid: set(range(8))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_NUM_THREADS": "1"}
    words = extract(small_sky, tmp_path / "s")
    done = photozhpc(*words[:-1], 2, "-q", "--json", env=environment)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["distributed: [unclosed\n", "- a list\n"])
def test_a_broken_file_of_dask_is_named_before_any_work(
    run_folder: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "dask.yaml").write_text(text)
    done = photozhpc(
        "infer", "--survey", "roman-sim", "--store", tmp_path / "none", "--out", tmp_path / "o",
        env={**os.environ, "DASK_CONFIG": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/dask.yaml" in done.stderr
    assert "DASK_CONFIG" in done.stderr
