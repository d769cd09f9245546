"""Accuracy against the number of labels: the table, the figure, and the learning curves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from photozhpc.cli import main
from photozhpc.errors import ConfigError
from photozhpc.figures.scaling import (
    plot_learning_curves,
    plot_scaling,
    read_results,
    report_scaling,
    scaling_table,
)


def run(method: str, n_labels: int, seed: int, nmad: float, **more: Any) -> dict[str, Any]:
    metrics = {"bias": -nmad / 10, "nmad": nmad, "outlier_fraction": 2 * nmad, "n": 900}
    return {"method": method, "n_labels": n_labels, "seed": seed, "metrics": metrics, **more}


RUNS = [
    run("PITA", 4000, 0, 0.05),
    run("PITA", 500, 0, 0.09),
    run("PITA", 500, 1, 0.12),
    run("PITA", 500, 2, 0.12),
    run("photometry-MLP", 500, 0, 0.15),
]


def history(start: float, epochs: int) -> list[dict[str, float]]:
    return [
        {"epoch": e, "step": 160 * e, "validation_nmad": start / e} for e in range(1, epochs + 1)
    ]


def test_the_table_has_mean_and_standard_deviation_over_seeds() -> None:
    assert scaling_table(RUNS).splitlines() == [
        "| method | labels | seeds | bias | NMAD | outlier fraction (%) |",
        "|:--|--:|--:|--:|--:|--:|",
        # mean 0.11; deviations -0.02, 0.01, 0.01: sqrt(0.0006 / 2) = 0.01732
        "| PITA | 500 | 3 | -0.0110 ± 0.0017 | 0.1100 ± 0.0173 | 22.00 ± 3.46 |",
        "| PITA | 4000 | 1 | -0.0050 | 0.0500 | 10.00 |",
        "| photometry-MLP | 500 | 1 | -0.0150 | 0.1500 | 30.00 |",
    ]


def test_the_figure_shows_means_error_bars_and_every_seed(tmp_path: Path) -> None:
    figure = plot_scaling(RUNS, tmp_path / "scaling.png")
    assert imread(tmp_path / "scaling.png").shape[:2] == (780, 2130)
    assert (tmp_path / "scaling.pdf").read_bytes().startswith(b"%PDF")
    assert [axes.get_ylabel() for axes in figure.axes] == ["bias", "NMAD", "outlier fraction (%)"]
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert axes.get_xlabel() == "training labels"
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["500", "4000"]
    pita, mlp = figure.axes[1].containers
    assert (pita.get_label(), mlp.get_label()) == ("PITA", "photometry-MLP")
    np.testing.assert_allclose(pita.lines[0].get_ydata(), [0.11, 0.05])
    (bar, single) = pita.lines[2][0].get_segments()
    np.testing.assert_allclose(bar[:, 1], [0.11 - 0.017321, 0.11 + 0.017321], atol=1e-6)
    assert not np.isfinite(single).any()
    points = [line.get_ydata() for line in figure.axes[2].lines if line.get_alpha()]
    np.testing.assert_allclose(np.concatenate(points), [18, 24, 24, 10, 30])
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["PITA", "photometry-MLP"]


def test_learning_curves_have_a_panel_a_method(tmp_path: Path) -> None:
    runs = [
        run("supervised", 500, 0, 0.2, history=history(0.4, 5)),
        run("PITA", 500, 0, 0.1, history=history(0.3, 4)),
        run("PITA", 8000, 0, 0.1, history=history(0.2, 4)),
    ]
    figure = plot_learning_curves(runs, tmp_path / "curves.png")
    *panels, bar = figure.axes
    assert [axes.get_title() for axes in panels] == ["supervised", "PITA"]
    assert [len(axes.lines) for axes in panels] == [1, 2]
    np.testing.assert_allclose(panels[1].lines[1].get_ydata(), [0.2, 0.1, 0.2 / 3, 0.05])
    np.testing.assert_array_equal(panels[0].lines[0].get_xdata(), [160, 320, 480, 640, 800])
    assert panels[0].get_xlabel() == "optimiser step"
    assert panels[1].lines[0].get_color() == panels[0].lines[0].get_color()
    assert panels[1].lines[0].get_color() != panels[1].lines[1].get_color()
    assert bar.get_ylabel() == "training labels"
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["500", "8000"]
    del runs[0]["history"][0]["step"]
    figure = plot_learning_curves(runs, tmp_path / "curves.png")
    assert figure.axes[0].get_xlabel() == "epoch"


def test_a_report_writes_what_the_results_allow(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"runs": RUNS}))
    lines = report_scaling(results, tmp_path / "a")
    words = ["figures", "--scaling", str(results), "--out", str(tmp_path / "b"), "--json"]
    told = CliRunner().invoke(main, words)
    assert json.loads(told.stdout) == {"out": str(tmp_path / "b"), "figures": ["scaling"]}
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "scaling.md",
        "scaling.pdf",
        "scaling.png",
    ]
    assert (tmp_path / "a" / "scaling.md").read_text() == scaling_table(RUNS)
    assert "| PITA | 500 | 3 |" in lines
    results.write_text(json.dumps({"runs": [*RUNS, run("x", 9, 0, 0.1, history=history(1, 3))]}))
    report_scaling(results, tmp_path / "a")
    assert imread(tmp_path / "a" / "learning_curves.png").std() > 0.05


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "no runs"),
        ([*RUNS, RUNS[0]], "PITA, 4000 labels, seed 0 appears twice"),
        ([{**RUNS[0], "method": None}], r"needs method \(str\), got None"),
        ([{**RUNS[0], "n_labels": "many"}], r"needs n_labels \(int\), got 'many'"),
        ([{**RUNS[0], "n_labels": 0}], "n_labels must be positive"),
        ([{**RUNS[0], "metrics": {"bias": 0.0, "nmad": 0.1}}], "outlier_fraction, all finite"),
        ([run("PITA", 500, 0, float("nan"))], "all finite"),
        (["PITA"], "must be a record"),
    ],
)
def test_faulty_runs_are_named(runs: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        scaling_table(runs)


def test_faulty_histories_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run has a history"):
        plot_learning_curves([], tmp_path / "x.png")
    with pytest.raises(ConfigError, match="epoch and validation_nmad"):
        plot_learning_curves([run("PITA", 9, 0, 0.1, history=[{"epoch": 1}])], tmp_path / "x.png")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_results(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match='no list "runs"'):
        read_results(tmp_path / "list.json")
