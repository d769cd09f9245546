"""The command line as a user meets it: every fault is one line and exit code 1."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from builders.commands import photozhpc, run
from builders.disks import disk_of
from builders.models import tiny_checkpoint
from builders.paths import CONFIGS
from photozhpc.catalog import read_catalog
from photozhpc.store import CutoutStore


def assert_one_line(done: Result, *words: str) -> None:
    assert done.exit_code == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert lines[-1].startswith("Error: "), done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[-1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    return tiny_checkpoint(path, crop=48)


def test_every_command_has_help_with_an_example() -> None:
    top = run("--help").stdout
    commands = [line.split()[0] for line in top.split("Commands:")[1].splitlines() if line.strip()]
    assert {"simulate", "extract", "train", "infer", "verify"} <= set(commands)
    for command in commands:
        done = run(command, "--help")
        assert done.exit_code == 0
        assert f"Example:\n    photozhpc {command}" in done.stdout
        assert "--quiet" in done.stdout or "Commands:" in done.stdout
    for command in ("list", "show"):
        shown = run("config", command, "--help").stdout
        assert f"Example:\n    photozhpc config {command}" in shown


def test_from_mosaics_to_a_catalogue(small_sky: Path, checkpoint: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    done = photozhpc(
        "extract", "--survey", "roman-sim", "--mosaics", small_sky, "--store", store, "--size", 48
    )
    assert done.returncode == 0, done.stderr
    assert "bytes per cutout" in done.stdout
    assert str(store) in done.stdout
    truth = [f"--truth={path}" for path in small_sky.glob("*_truth.parquet")]
    command = (
        "infer", "--survey", "roman-sim", "--store", store, "--checkpoint", checkpoint,
        "--out", out, "--workers", 1, *truth,
    )  # fmt: skip
    done = photozhpc(*command)
    assert done.returncode == 0, done.stderr
    for word in ("rows", "sources/s", "NMAD", "outliers", str(out / "catalog")):
        assert word in done.stdout
    listed = pd.concat(map(pd.read_parquet, small_sky.glob("*_cat.parquet")))
    table = read_catalog(out)
    assert sorted(table["source_id"].to_pylist()) == sorted(listed["source_id"])
    assert (out / "zz.png").read_bytes().startswith(b"\x89PNG")
    assert "nothing was left to do" in run(*command).stdout
    assert read_catalog(out).equals(table)
    assert "sound" in run("verify", store).stdout


def test_faults_before_anything_is_written(
    small_sky: Path, small_store: CutoutStore, checkpoint: Path, tmp_path: Path
) -> None:
    extract = ("extract", "--store", tmp_path / "s", "--mosaics", small_sky, "--survey")
    infer = ("infer", "--out", tmp_path / "o", "--store", small_store.path, "--survey")
    pd.DataFrame({"source_id": [1], "x": [2.0]}).to_parquet(tmp_path / "nowhere.parquet")
    (tmp_path / "t.yaml").write_text("out: x\nepoch: 3\n")
    bad_bands = (CONFIGS / "surveys/roman-sim.yaml").read_text()
    (tmp_path / "x.yaml").write_text(bad_bands.replace("F158", "F999"))
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for command, words in [
        ((*extract, "roman-sims"), ["unknown survey 'roman-sims'", "'roman-sim'"]),
        ((*extract, "candels"), ["none of", "survey 'candels'"]),
        ((*extract, "roman-sim", "--sources", tmp_path / "no.fits"), ["no such source list"]),
        ((*extract, "roman-sim", "--sources", tmp_path / "nowhere.parquet"), ["no column 'ra'"]),
        (("extract", "--store", tmp_path / "s", "--mosaics", tmp_path / "no",
          "--survey", "roman-sim"), ["no such folder"]),
        (("simulate", "--survey", tmp_path / "x.yaml", "--out", tmp_path / "k"), ["F999"]),
        (("train", "--config", tmp_path / "t.yaml"), ["unknown key 'epoch'", "'epochs'"]),
        (("train", "--config", tmp_path / "none.yaml"), ["no such config file"]),
        ((*infer, "roman-sim", "--checkpoint", tmp_path / "no"), ["no such checkpoint"]),
        ((*infer, "roman-sim", "--checkpoint", tmp_path / "junk.safetensors"), ["damaged"]),
        ((*infer, "candels", "--checkpoint", checkpoint), ["was made for survey 'roman-sim'"]),
        (("infer", "--survey", "candels"), ["no model comes with photozhpc"]),
        (("infer", "--survey", "roman-l3", "--checkpoint", checkpoint), ["no store was given"]),
        (("verify", tmp_path / "none"), ["no store there"]),
    ]:  # fmt: skip
        assert_one_line(run(*command), *words)
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "o").exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    with disk_of(tmp_path / "disk", "2m") as folder:
        yield folder


def test_a_full_disk_is_one_line_and_leaves_no_tile_behind(
    small_sky: Path, small_disk: Path
) -> None:
    store = small_disk / "store"
    done = run(
        "extract", "--survey", "roman-sim", "--mosaics", small_sky, "--store", store, "--workers", 1
    )
    assert_one_line(done, "the disk is full", "run the same command again")
    written = CutoutStore.open(store)
    assert len(written.tiles()) < 2
    assert all("missing (never extracted" in problem for problem in written.verify())
    assert not list(store.glob(".*.partial"))


def test_mosaics_on_different_grids_are_named(small_sky: Path, tmp_path: Path) -> None:
    sky = tmp_path / "sky"
    shutil.copytree(small_sky, sky)
    first, second = sorted(sky.glob("*_f129_coadd.asdf"))
    shutil.copy(second, first)
    done = run(
        "extract", "--survey", "roman-sim", "--mosaics", sky, "--store", tmp_path / "s",
        "--size", 16, "--workers", 1,
    )  # fmt: skip
    assert_one_line(done, "different grids", first.name)
    assert first.name.split("_")[0] not in CutoutStore.open(tmp_path / "s").tiles()


def test_the_catalogue_has_a_row_for_what_could_not_be_measured(
    small_sky: Path, checkpoint: Path, tmp_path: Path
) -> None:
    listed = pd.read_parquet(sorted(small_sky.glob("*_cat.parquet"))[0]).head(40)
    listed.loc[listed.index[:3], "dec"] = [np.nan, 80.0, -80.0]
    listed.to_parquet(tmp_path / "some.parquet")
    for command in [
        ("extract", "--mosaics", small_sky, "--sources", tmp_path / "some.parquet", "--size", 48),
        ("infer", "--checkpoint", checkpoint, "--out", tmp_path / "o", "--workers", 1),
    ]:
        done = run(*command, "--survey", "roman-sim", "--store", tmp_path / "s")
        assert done.exit_code == 0, done.stderr
    table = read_catalog(tmp_path / "o").to_pandas().set_index("source_id")
    lost = table.loc[listed["source_id"][:3]]
    assert len(table) == 40
    assert lost["photoz"].isna().all()
    assert (lost["photoz_flags"] > 0).all()
