"""What `train` says of the model that it has made."""

import json
from pathlib import Path

import numpy as np
import pytest

from photozhpc.model.verdict import verdict

Z_N = np.random.default_rng(1).uniform(0, 3, 200).astype(np.float32)


def _log(folder: Path, nmads: list[float]) -> Path:
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps({"validation_nmad": nmad}) + "\n" for nmad in nmads))
    return path


def test_a_model_that_tells_redshifts_apart_is_said_to(tmp_path: Path) -> None:
    (line,) = verdict(Z_N, Z_N + 0.01, _log(tmp_path, [0.1] * 20))
    assert "outliers 0.0%, against 7" in line
    assert "200 validation labels" in line
    assert line.startswith("verdict")


@pytest.mark.parametrize("z_phot", [np.full(200, 1.5), np.roll(Z_N, 1)])
def test_a_model_that_does_not_is_a_warning(tmp_path: Path, z_phot: np.ndarray) -> None:
    (line,) = verdict(Z_N, z_phot, _log(tmp_path, [0.1] * 20))
    assert line.startswith("warning: the model is hardly better than no model")


def test_a_run_that_was_too_short_is_told_so(tmp_path: Path) -> None:
    falling = list(np.geomspace(0.5, 0.05, 20))
    assert any("more epochs" in line for line in verdict(Z_N, Z_N, _log(tmp_path, falling)))
    flat = falling + [0.05] * 20
    assert not any("more epochs" in line for line in verdict(Z_N, Z_N, _log(tmp_path, flat)))
    assert not any("more epochs" in line for line in verdict(Z_N, Z_N, _log(tmp_path, [0.5, 0.1])))


def test_sources_without_a_redshift_do_not_count(tmp_path: Path) -> None:
    z_phot_N = np.where(np.arange(200) < 150, np.nan, Z_N)
    assert "of 50 validation" in verdict(Z_N, z_phot_N, _log(tmp_path, [0.1]))[0]
    assert "none of" in verdict(Z_N, np.full(200, np.nan), _log(tmp_path, [0.1]))[0]
