"""p(z) beside the catalogue: against NumPy, against the intervals, and through every fault."""

import json
import math
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from builders.catalogs import ALONE as SMALL
from builders.models import calibrated_checkpoint, tiny_checkpoint
from builders.stores import SURVEY, make_store
from photozhpc.catalog import read_catalog, read_pdf
from photozhpc.catalog import run as run_module
from photozhpc.catalog.pdf import make_pdf_table, read_pdf_part
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS
from photozhpc.catalog.run import run_inference
from photozhpc.catalog.verify import verify_catalog
from photozhpc.cli import main
from photozhpc.errors import CatalogError, CheckpointError
from photozhpc.model import load_checkpoint
from photozhpc.model.density import LEVEL_Q, Uncertainty
from photozhpc.model.engine import Engine, make_engine
from photozhpc.model.pdf import (
    INTERVAL_INDEX,
    PDF_LEVELS,
    CalibratedPdf,
)
from photozhpc.model.redshift_grid import GRID_STEP, grid_cells, redshift_grid

FORMS = ("quantiles", "grid")
TILES = {"a": 150, "off-tile": 3}
NINE = list(INTERVAL_INDEX)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("pdf") / "store", TILES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return calibrated_checkpoint(tmp_path_factory.mktemp("pdf") / "model.safetensors")


@pytest.fixture(scope="module")
def runs(store, checkpoint, tmp_path_factory) -> dict[str | None, Path]:
    """The catalogue without p(z), and with it in each form."""
    folder = tmp_path_factory.mktemp("pdf-runs")
    for form in (None, *FORMS):
        run_inference(store.path, checkpoint, folder / str(form), **SMALL, pdf=form)
    return {form: folder / str(form) for form in (None, *FORMS)}


@pytest.fixture
def finished(runs, tmp_path) -> Path:
    return Path(shutil.copytree(runs["quantiles"], tmp_path / "out"))


def whole(path: Path):
    """Return source_id_N and value_NP of all parts, and the last part."""
    parts = list(read_pdf(path))
    ids = np.concatenate([part.source_id_N for part in parts])
    return ids, np.concatenate([part.value_NP for part in parts]), parts[-1]


def fitted(level_GQ: np.ndarray, n_bins: int, z_max: float) -> Uncertainty:
    uncertainty = Uncertainty(3, 2, (4,), 1, n_bins, z_max)
    uncertainty.knot_G.copy_(torch.linspace(0, 10, len(uncertainty.knot_G)))
    uncertainty.level_GQ.copy_(torch.from_numpy(level_GQ))
    uncertainty.usual_distance.fill_(1.0)
    return uncertainty


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(["usual", "ends", "ties"]))
def test_both_forms_agree_with_numpy(seed, kind):
    """The calibrated distribution as a chain of np.interp: bins, then levels in probits."""
    rng = np.random.default_rng(seed)
    n_bins, z_max = int(rng.integers(3, 200)), float(rng.uniform(0.5, 6))
    uncertainty = fitted(np.tile(LEVEL_Q, (24, 1)), n_bins, z_max)
    level_GQ = np.sort(rng.uniform(0.001, 0.999, (24, len(LEVEL_Q))), axis=1)
    if kind == "ends":  # too few labels: the whole range of redshifts
        level_GQ[:, 0], level_GQ[:, -1] = 0, 1
    if kind == "ties":
        level_GQ[:, 1] = level_GQ[:, 0]
    uncertainty.level_GQ.copy_(torch.from_numpy(level_GQ))
    level_GQ = uncertainty.level_GQ.double().numpy()
    concentration = 10.0 ** rng.uniform(-2, 1)
    mass_BK = torch.from_numpy(rng.dirichlet(np.full(n_bins, concentration), 5))
    from photozhpc.model.density import cumulative

    cdf_BE = cumulative(mass_BK)
    knot = rng.integers(0, 24, 5)
    brightness_B = uncertainty.knot_G[knot]
    quantile_BP = CalibratedPdf(uncertainty, "quantiles")(cdf_BE, brightness_B).numpy()
    assert np.array_equal(quantile_BP[:, NINE], uncertainty.quantiles(cdf_BE, brightness_B).numpy())
    assert (np.diff(quantile_BP, axis=1) >= 0).all()
    grid = CalibratedPdf(uncertainty, "grid")
    density_BP = grid(cdf_BE, brightness_B).numpy()
    assert (density_BP >= 0).all()
    np.testing.assert_allclose(np.trapezoid(density_BP, grid.axis_P, axis=1), 1, atol=1e-5)
    edge_E = np.linspace(0, math.log1p(z_max), n_bins + 1)
    border = grid_cells(grid.axis_P)
    for b in range(5):
        probit_Q = norm.ppf(np.clip(level_GQ[knot[b]], 1e-9, 1 - 1e-9))
        raw_P = norm.cdf(np.interp(norm.ppf(PDF_LEVELS), norm.ppf(LEVEL_Q), probit_Q))
        raw_P[NINE] = level_GQ[knot[b]]
        cdf_E = cdf_BE[b].double().numpy()
        expected = np.expm1(np.interp(raw_P, cdf_E, edge_E))
        # Where there is hardly any probability the last digit of a level is a step in redshift.
        back = np.interp(np.log1p(quantile_BP[b].astype(float)), edge_E, cdf_E)
        np.testing.assert_allclose(back, np.interp(np.log1p(expected), edge_E, cdf_E), atol=5e-5)
        at_border = np.interp(np.log1p(border), edge_E, cdf_E)
        raw_L, known_L = np.r_[0, raw_P, 1], np.r_[0, PDF_LEVELS, 1]
        due_E = np.interp(at_border, raw_L, known_L)
        due_E[0], due_E[-1] = 0, 1
        found_E = np.r_[0, np.cumsum(density_BP[b].astype(float) * np.diff(border))]
        # At a step of the calibration either side of it is right.
        low_E = np.interp(at_border - 1e-6, raw_L, known_L) - 2e-4
        high_E = np.interp(at_border + 1e-6, raw_L, known_L) + 2e-4
        inside = (found_E >= low_E) & (found_E <= high_E)
        assert inside[1:-1].all() or np.allclose(found_E, due_E, atol=2e-4)


def test_the_grid_is_even_and_has_a_limit():
    assert np.allclose(np.diff(redshift_grid(4.0)), GRID_STEP)
    assert len(redshift_grid(4.0)) == 401
    assert (redshift_grid(4.0)[0], redshift_grid(4.0)[-1]) == (0, 4)
    assert len(redshift_grid(100.0)) == 1001


@pytest.mark.parametrize("form", FORMS)
def test_p_of_z_lies_beside_the_catalogue_row_by_row(runs, form):
    out = runs[form]
    assert read_catalog(out).equals(read_catalog(runs[None]))
    files = sorted(p.name for p in (out / "pdf").iterdir())
    assert files == sorted(p.name for p in (out / "catalog").iterdir())
    assert len(files) > 1
    for name in files:
        ids = [pq.read_table(out / kind / name)["source_id"] for kind in ("catalog", "pdf")]
        assert ids[0].equals(ids[1])
    table = read_catalog(out)
    ids, value_NP, last = whole(out)
    assert np.array_equal(ids, table["source_id"].to_numpy())
    lost = table["photoz"].is_null().to_numpy()
    assert 0 < lost.sum() < len(lost)
    assert np.array_equal(np.isnan(value_NP).all(axis=1), lost)
    assert np.isfinite(value_NP[~lost]).all()
    columns = np.stack([table[name].to_numpy() for name in QUANTILE_LEVELS], axis=1)
    by_level = columns[:, np.argsort(list(QUANTILE_LEVELS.values()))]
    if form == "quantiles":
        assert last.axis_P.tolist() == list(PDF_LEVELS)
        assert np.array_equal(value_NP[:, NINE], by_level, equal_nan=True)
        assert (np.diff(value_NP[~lost], axis=1) >= 0).all()
        return
    assert (value_NP[~lost] >= 0).all()
    integral = np.trapezoid(value_NP[~lost].astype(float), last.axis_P, axis=1)
    np.testing.assert_allclose(integral, 1, atol=1e-3)
    assert np.ptp(value_NP[~lost]) > 0.1
    last = type(last)("grid", last.axis_P, last.z_max, ids[~lost], value_NP[~lost])
    # Two steps of the grid either side of an end of an interval have its level between them.
    for q, level in enumerate(LEVEL_Q):
        for row in range(0, len(last.source_id_N), 10):
            z = by_level[~lost][row, q] + np.array([-2, 2]) * GRID_STEP
            low, high = type(last)(
                "grid", last.axis_P, last.z_max, ids[row : row + 1], last.value_NP[row : row + 1]
            ).cdf(z)[0]
            assert low - 1e-3 <= level <= high + 1e-3


def test_the_grid_is_what_the_engine_says_and_the_forms_agree(store, checkpoint, runs):
    engine = Engine(load_checkpoint(checkpoint), "cpu", pdf="grid")
    key = store.shards()[0]
    sources = store.read_sources(key)
    _, density_NP = engine.predict_pdf(store.read_cutouts(key), sources.ebv_N)
    (_, value_NP, grid), (_, _, quantiles) = whole(runs["grid"]), whole(runs["quantiles"])
    np.testing.assert_allclose(value_NP[: len(density_NP)], density_NP, rtol=2e-2, atol=2e-3)
    assert grid.form == "grid"
    z = np.linspace(0, quantiles.z_max, 81)
    first = [next(iter(read_pdf(runs[form]))) for form in FORMS]
    cdf = [part.cdf(z) for part in first]
    # The quantiles say nothing of what lies between two of them: at most 0.06 of probability.
    np.testing.assert_allclose(cdf[0], cdf[1], atol=0.07)
    same = [part.density(grid.axis_P) for part in first]
    for density in same:
        known = np.isfinite(density).all(axis=1)
        np.testing.assert_allclose(np.trapezoid(density[known], grid.axis_P, axis=1), 1, atol=1e-3)


def test_pandas_and_duckdb_read_the_files(runs):
    for form, column in zip(FORMS, ("photoz_quantiles", "photoz_pdf"), strict=True):
        ids, value_NP, _ = whole(runs[form])
        frame = pd.read_parquet(runs[form] / "pdf")
        assert np.array_equal(frame["source_id"], ids)
        assert np.array_equal(frame[column][0], value_NP[0])
        found = duckdb.sql(
            f"select source_id, {column} from '{runs[form]}/pdf/*.parquet' "
            f"where {column} is not null order by source_id"
        ).fetchall()
        assert len(found) == np.isfinite(value_NP[:, 0]).sum()
        assert np.array_equal(np.float32(found[0][1]), value_NP[0])
    about = json.loads(pq.read_schema(runs["grid"] / "pdf/part-000000.parquet").metadata[
        b"photozhpc.pdf"
    ])  # fmt: skip
    assert about["z"][:2] == [0, 0.01]


def test_a_run_goes_on_with_the_p_of_z_it_began_with(store, checkpoint, runs, finished):
    for pdf in (None, "grid"):
        with pytest.raises(CatalogError, match=r"p\(z\) in another form, or none: see --pdf"):
            run_inference(store.path, checkpoint, finished, **SMALL, pdf=pdf)
    with pytest.raises(CatalogError, match="see --pdf"):
        run_inference(store.path, checkpoint, runs[None], **SMALL, pdf="grid")
    assert "pdf" not in json.loads((runs[None] / "run.json").read_text())["identity"]
    summary = run_inference(store.path, checkpoint, finished, **SMALL, pdf="quantiles")
    assert summary.n_rows_new == 0


def test_files_of_p_of_z_that_are_missing_or_damaged_are_made_anew(
    store, checkpoint, runs, finished, monkeypatch
):
    folder = finished / "pdf"
    names = sorted(path.name for path in folder.iterdir())
    before = {name: (folder / name).read_bytes() for name in names}
    (folder / names[0]).unlink()
    flipped = bytearray(before[names[1]])
    flipped[len(flipped) // 8] ^= 1
    (folder / names[1]).write_bytes(flipped)
    _, problems = verify_catalog(finished, store)
    assert [problem.split(":")[0] for problem in problems] == [f"pdf/{n}" for n in names[:2]]
    summary = run_inference(store.path, checkpoint, finished, **SMALL, pdf="quantiles")
    assert summary.n_parts_resumed == len(names) - 2
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert verify_catalog(finished, store)[1] == []
    # Of many parts the sizes alone are looked at.
    monkeypatch.setattr(run_module, "MAX_PARTS_READ", 1)
    (folder / names[2]).unlink()
    summary = run_inference(store.path, checkpoint, finished, **SMALL, pdf="quantiles")
    assert summary.n_parts_resumed == len(names) - 1
    assert read_catalog(finished).equals(read_catalog(runs[None]))


def test_verify_tells_what_happened_to_p_of_z(store, runs, finished):
    names = sorted(path.name for path in (finished / "pdf").iterdir())
    shutil.copy(finished / "pdf" / names[0], finished / "pdf" / names[1])
    shutil.copy(finished / "pdf" / names[0], finished / "pdf/part-000099.parquet")
    result = CliRunner().invoke(main, ["verify", str(finished), "--store", str(store.path)])
    assert result.exit_code == 1
    told = result.output
    assert f"pdf/{names[1]}: does not hold the sources of its part" in told
    assert f"pdf/{names[1]}: altered: its SHA-256" in told
    assert "pdf/part-000099.parquet: is not of this run" in told
    status = CliRunner().invoke(main, ["status", str(finished)])
    assert "p(z)     quantiles" in status.output
    plain = Path(shutil.copytree(runs[None], finished.parent / "plain"))
    shutil.copytree(runs["grid"] / "pdf", plain / "pdf")
    assert any("pdf/part-000000.parquet: is not of" in p for p in verify_catalog(plain)[1])


def test_a_model_without_a_density_is_refused_and_nothing_is_written(store, tmp_path):
    path = tiny_checkpoint(tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match=r"no density heads, which p\(z\) needs"):
        run_inference(store.path, path, tmp_path / "out", **SMALL, pdf="grid")
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="leave --pdf out"):
        make_engine(load_checkpoint(path), SURVEY, pdf="quantiles")
    assert make_engine(load_checkpoint(path), SURVEY).pdf is None


def test_reading_takes_one_part_at_a_time_and_names_what_is_wrong(runs, finished):
    parts = read_pdf(finished)
    assert next(parts).source_id_N.tolist() == read_catalog(finished)["source_id"][:64].to_pylist()
    damaged = sorted((finished / "pdf").iterdir())[1]
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-50])  # it is read when it is its turn
    with pytest.raises(CatalogError, match=rf"{damaged.name}: the p\(z\) .* damaged .* replace it"):
        next(parts)
    damaged.unlink()
    with pytest.raises(CatalogError, match=r"1 of 3 parts are missing, the first is part-000001"):
        next(read_pdf(finished))
    assert len(list(read_pdf(finished, incomplete_ok=True))) == 2
    assert len(list(read_pdf(finished / "pdf/part-000000.parquet"))) == 1
    for path in (runs[None], finished / "none"):
        with pytest.raises(CatalogError, match=r"has no p\(z\); make a catalogue with"):
            next(read_pdf(path))
    with pytest.raises(CatalogError, match="is missing or damaged"):
        next(read_pdf(finished / "catalog/part-000000.parquet"))


def test_rows_that_are_null_keep_their_place():
    value_NP = np.arange(12, dtype=np.float32).reshape(4, 3)
    value_NP[[0, 2]] = np.nan
    table = make_pdf_table("quantiles", np.array([0.1, 0.5, 0.9]), 4.0, np.arange(4), value_NP)
    assert table["photoz_quantiles"].to_pylist() == [None, [3, 4, 5], None, [9, 10, 11]]


@pytest.mark.parametrize("form", FORMS)
def test_damage_is_told_of_or_harmless(form, runs, tmp_path):
    """400 files, cut short or with bytes changed: refused in one line, or read as they were."""
    sound = runs[form] / "pdf/part-000000.parquet"
    content, due = sound.read_bytes(), read_pdf_part(sound)[0]
    path, rng = tmp_path / "part-000000.parquet", np.random.default_rng(5)
    n_refused = 0
    for _ in range(200):
        damaged = bytearray(content)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(damaged)) :]
        else:  # near the end, where Parquet has its metadata, as often as anywhere
            first = rng.choice([0, max(len(damaged) - 3000, 0)])
            damaged[rng.integers(first, len(damaged))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            found = read_pdf_part(path)[0]
        except CatalogError:
            n_refused += 1
            continue
        assert np.array_equal(found.source_id_N, due.source_id_N)
        assert np.array_equal(found.value_NP, due.value_NP, equal_nan=True)
        assert (found.form, found.axis_P.tolist()) == (due.form, due.axis_P.tolist())
    assert n_refused > 100


def test_the_command_says_where_p_of_z_is(store, checkpoint, tmp_path):
    out = tmp_path / "out"
    arguments = ["infer", "--survey", "roman-sim", "--store", str(store.path), "--workers", "1"]
    arguments += ["--checkpoint", str(checkpoint), "--out", str(out), "--pdf"]
    result = CliRunner().invoke(main, [*arguments, "quantiles"])
    assert result.exit_code == 0, result.output
    assert f"p(z)       {out}/pdf (quantiles)" in result.output
    assert json.loads((out / "summary.json").read_text())["pdf_form"] == "quantiles"
    assert CliRunner().invoke(main, [*arguments, "median"]).exit_code == 2
