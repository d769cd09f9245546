"""The notebooks of the documentation show what they showed: one is run in each run of the tests."""

import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from builders.draws import drawn
from builders.paths import ROOT

sys.path.append(str(ROOT / "docs"))
from run_notebooks import NOTEBOOKS, executed

BOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))


def shown(notebook: Any) -> list[list[tuple[str, ...]]]:
    """Return the kinds of the results of every cell, without its progress."""
    return [
        [
            tuple(sorted(output.get("data", [output.get("name", "")])))
            for output in cell.outputs
            if output.get("name") != "stderr"
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("path", drawn(BOOKS, 1), ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_showed(path: Path, tmp_path: Path) -> None:
    kept = nbformat.read(path, as_version=4)
    results = shown(kept)
    assert all(results[1:]), "a cell shows nothing: run docs/run_notebooks.py"
    assert shown(executed(path, tmp_path)) == results
