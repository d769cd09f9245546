"""`import photozhpc`: the stages as functions, from mosaics to a report."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import photozhpc
from photozhpc import api
from photozhpc.errors import ConfigError, PhotozError
from photozhpc.files.objects import ObjectPath

STAGES = (
    *("simulate", "detect", "extract", "train", "calibrate"),
    *("infer", "evaluate", "report", "export"),
)


def test_every_stage_is_there_and_says_what_it_takes() -> None:
    for name in STAGES:
        function = getattr(photozhpc, name)
        assert callable(function)
        assert f"photozhpc.{name}(" in function.__doc__  # an example
        assert function.__annotations__["return"] is photozhpc.Result
        assert all(
            parameter.annotation is not inspect.Parameter.empty
            for parameter in inspect.signature(function).parameters.values()
        )
    assert set(photozhpc.__all__) <= set(dir(photozhpc))
    with pytest.raises(AttributeError, match="no attribute 'infr'"):
        _ = photozhpc.infr  # type: ignore[attr-defined]


def test_a_url_where_a_folder_is_meant_is_refused(small_store) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/out: is a URL; pass a path on a disk"):
        photozhpc.infer("roman-sim", small_store.path, out="s3://bucket/out")
    with pytest.raises(PhotozError, match="no store was given"):
        photozhpc.infer("roman-l3")


def test_infer_takes_the_survey_of_the_store_where_none_is_given(small_store, tmp_path) -> None:
    assert api.survey_of(None, small_store.path).name == small_store.survey.name
    assert api.survey_of("roman-l3", small_store.path).name == "roman-l3"
    with pytest.raises(ConfigError, match="pass --survey, or a --store"):
        photozhpc.infer()
    (tmp_path / "fluxes.csv").write_text("id,flux\n1,2\n")
    with pytest.raises(ConfigError, match="the survey must say which columns hold the fluxes"):
        photozhpc.infer(store=tmp_path / "fluxes.csv")


def test_a_result_keeps_the_url_it_was_made_at() -> None:
    made = api.Result(ObjectPath("s3://bucket/store"), {}, "")
    assert api._locations([made, "a.csv"]) == (ObjectPath("s3://bucket/store"), Path("a.csv"))
    assert os.fspath(made) == "s3://bucket/store"


def test_importing_it_loads_no_heavy_package() -> None:
    code = (
        "import sys, photozhpc; dir(photozhpc); photozhpc.infer; photozhpc.load_survey\n"
        "print([m for m in ('torch', 'zarr', 'dask', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
