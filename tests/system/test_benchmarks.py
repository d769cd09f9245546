"""The benchmarks that need a GPU or an hour run small; `photozhpc bench` runs."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from builders.paths import ROOT
from photozhpc.bench.bench import describe
from photozhpc.bench.synthetic_store import TILE_LEN, make_store
from photozhpc.cli import main
from photozhpc.survey import load_survey

BENCHMARKS = ROOT / "benchmarks"


def environment(**changes: str) -> dict[str, str]:
    """That of a user's shell, in which a script finds the modules beside it."""
    # photozhpc.cli, which is imported here, sets it for its own children.
    return {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"} | changes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gpu_benchmark_runs_small_on_a_cpu(tmp_path) -> None:
    out = tmp_path / "gpu.json"
    command = [BENCHMARKS / "gpu.sh", out, "--device", "cpu", "--small", "--folder", tmp_path]
    given = environment(PYTHON=sys.executable)
    subprocess.run(command, check=True, capture_output=True, env=given)
    result = json.loads(out.read_text())
    assert result["training"]["batch 64"]["from_store_images_per_s"] > 0
    for model in ("bundled", "convnext_atto"):  # not small: convnext_tiny
        found = result[model]
        assert found["ceiling"]["bfloat16, batch 64"]["images_per_s"] > 0
        assert found["feed"]["1_threads"] > 0
        assert found["disk"]["sources"] == 512
        assert 0 < found["disk"]["utilisation"] < 2
        assert found["disk"]["cost"]["gpu_hours"] == pytest.approx(
            found["disk"]["workers"] * 300e6 / found["disk"]["from_disk_per_s"] / 3600
        )


@pytest.mark.timeout(600)
def test_a_run_of_virtual_shards_is_killed_and_goes_on(tmp_path) -> None:
    command = [sys.executable, BENCHMARKS / "bench_scale.py", "--sources", "600001"]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "scale")],
        check=True,
        capture_output=True,
        text=True,
        env=environment(),
    )
    result = json.loads(done.stdout.splitlines()[-1])
    # 73 tiles of 8192 sources in 4 shards, and one of 1985; bench_scale.py checks every source.
    assert result["tasks"] == 73 * 4 + 1
    assert 0 < result["parts_when_killed"] == result["parts_resumed"] < result["tasks"]
    assert result["client_mb_peak"] < 1000


def test_bench_prints_what_the_kernels_give() -> None:
    done = CliRunner().invoke(main, ["bench", "extract", "--json"])
    assert done.exit_code == 0, done.output
    rates = json.loads(done.stdout)["extract"]["sources_per_s"]
    assert set(rates) == {"apertures", "sky", "cutouts"}
    assert min(rates.values()) > 0


def test_the_cost_is_that_of_the_rates(tmp_path) -> None:
    rate = 5000.0
    infer = {
        "device": "cpu",
        "workers": 2,
        "compiled": True,
        "in_memory_per_s": 6000.0,
        "from_disk_per_s": rate,
        "utilisation": rate / 6000,
        "startup_s": 3.0,
        "cost": [
            {"sources": 10**9, "hours": 10**9 / rate / 3600, "store_tb": 28, "catalog_gb": 190}
        ],
    }
    text = describe({"infer": infer})
    assert "5,000   (83% of that; start-up 3.0 s)" in text
    assert "1e+09 sources: 55.56 h, store 28.00 TB, catalogue 190.0 GB" in text


def test_a_made_up_store_has_the_size_that_was_asked_for(tmp_path) -> None:
    survey = load_survey("roman-sim")
    small = make_store(tmp_path / "a", survey, 100, 32)
    assert len(small) == 100
    assert small.verify() == []
    large = make_store(tmp_path / "b", survey, TILE_LEN + 1, 8)
    assert len(large) == 2 * TILE_LEN
    assert large.verify() == []
    assert large.read_cutouts(large.shards()[-1]).std() > 0.5
