"""The qp file: its pdf, cdf and ppf are those of the catalogue; RAIL's own stages take it."""

import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import qp

from builders.catalogs import ALONE as SMALL
from builders.models import calibrated_checkpoint
from builders.stores import make_store
from photozhpc.catalog import read_catalog, read_pdf
from photozhpc.catalog.run import run_inference
from photozhpc.errors import CatalogError, ConfigError
from photozhpc.exports import qp as export_module
from photozhpc.exports.qp import export_qp

FORMS = ("quantiles", "grid")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str | None, Path]:
    folder = tmp_path_factory.mktemp("qp")
    store = make_store(folder / "store", {"a": 150, "off-tile": 3, "z": 70})
    checkpoint = calibrated_checkpoint(folder / "model.safetensors")
    for form in (None, *FORMS):
        run_inference(store.path, checkpoint, folder / str(form), **SMALL, pdf=form)
    return {form: folder / str(form) for form in (None, *FORMS)}


def naive_cdf(out: Path, source_id: int, z: np.ndarray) -> np.ndarray:
    """The cumulative distribution of one source, from its numbers in the Parquet file."""
    for part in read_pdf(out):
        if source_id not in part.source_id_N:
            continue
        (row,) = np.flatnonzero(part.source_id_N == source_id)
        value = part.value_NP[row].astype(float)
        if part.form == "quantiles":
            x, y = [0.0, *value, part.z_max], [0.0, *part.axis_P, 1.0]
            return np.interp(z, x, y)
        steps = (value[1:] + value[:-1]) / 2 * np.diff(part.axis_P)
        return np.interp(z, part.axis_P, np.r_[0, np.cumsum(steps)])
    raise AssertionError(f"{source_id} has no p(z)")


@pytest.mark.parametrize("form", FORMS)
def test_qp_says_what_the_catalogue_says(runs, form, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_CHUNK_ROWS", 50)  # parts of 64 rows: several chunks each
    path = tmp_path / "sub/ensemble.hdf5"
    done = export_qp(runs[form], path)
    table = read_catalog(runs[form])
    known = ~table["photoz"].is_null().to_numpy()
    ensemble = qp.read(str(tmp_path / "sub/ensemble.hdf5"))
    assert (done.rows, done.left_out) == (known.sum(), (~known).sum())
    assert ensemble.npdf == known.sum()
    assert done.left_out > 0
    assert np.array_equal(ensemble.ancil["source_id"], table["source_id"].to_numpy()[known])
    for name in ("ra", "dec", "photoz", "photoz_low68", "photoz_high99", "photoz_flags"):
        assert np.array_equal(ensemble.ancil[name], table[name].to_numpy()[known])
    rng = np.random.default_rng(1)
    rows = rng.choice(ensemble.npdf, 20, replace=False)
    z = np.sort(rng.uniform(0, 4, 30))
    level = np.sort(rng.uniform(0.01, 0.99, 30))
    cdf, pdf, ppf = ensemble.cdf(z), ensemble.pdf(z), ensemble.ppf(level)
    step = 0.01
    fine = np.linspace(0, 4, 40001)
    for row in rows:
        source_id = ensemble.ancil["source_id"][row]
        ours = naive_cdf(runs[form], source_id, fine)
        # The grid of the file smooths over one step to either side.
        low, high = (np.interp(z + side, fine, ours) for side in (-step, step))
        assert (cdf[row] >= low - 1e-3).all()
        assert (cdf[row] <= high + 1e-3).all()
        assert (pdf[row] >= 0).all()
        due = np.interp([level - 1e-3, level + 1e-3], ours, fine)
        assert (ppf[row] >= due[0] - 2 * step).all()
        assert (ppf[row] <= due[1] + 2 * step).all()
        if form == "grid":
            part = next(p for p in read_pdf(runs[form]) if source_id in p.source_id_N)
            value = part.value_NP[part.source_id_N == source_id][0].astype(float)
            expected = np.interp(z, part.axis_P, value / np.trapezoid(value, part.axis_P))
            np.testing.assert_allclose(pdf[row], expected, rtol=1e-5, atol=1e-6)
    grid = ensemble.metadata["xvals"].ravel()
    np.testing.assert_allclose(np.trapezoid(ensemble.pdf(grid), grid, axis=1), 1, atol=1e-5)
    assert (np.diff(ensemble.cdf(fine[::50]), axis=1) >= -1e-9).all()
    np.testing.assert_allclose(ensemble.ancil["zmedian"], ensemble.ppf(0.5).ravel(), atol=step / 2)
    low68 = ensemble.ppf(0.16).ravel()
    assert np.abs(low68 - ensemble.ancil["photoz_low68"]).max() < 2 * step
    for start, end, piece in qp.iterator(str(path), chunk_size=33):
        assert np.array_equal(piece.ancil["source_id"], ensemble.ancil["source_id"][start:end])
    assert end == ensemble.npdf


def test_the_mean_of_qp_is_the_mean(runs, tmp_path):
    """qp takes the grid for even when it computes moments; ours is."""
    export_qp(runs["grid"], tmp_path / "e.hdf5")
    ensemble = qp.read(str(tmp_path / "e.hdf5"))
    z = ensemble.metadata["xvals"].ravel()
    mean = np.trapezoid(z * ensemble.objdata["yvals"], z, axis=1)
    np.testing.assert_allclose(ensemble.mean().ravel(), mean, rtol=5e-3)
    np.testing.assert_allclose(ensemble.ancil["zmean"], mean, rtol=1e-4)


def test_rail_stacks_the_file(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    from rail.core.data import QPHandle
    from rail.estimation.algos.naive_stack import NaiveStackSummarizer

    export_qp(runs["quantiles"], tmp_path / "ensemble.hdf5")
    stage = NaiveStackSummarizer.make_stage(
        name="stack", zmin=0.0, zmax=4.0, nzbins=80, n_samples=3, chunk_size=64
    )
    stage.set_data("input", QPHandle("input", path=str(tmp_path / "ensemble.hdf5")), do_read=False)
    stage.run()
    stage.finalize()
    n_of_z = qp.read(stage.get_handle("single_NZ").path)
    ensemble = qp.read(str(tmp_path / "ensemble.hdf5"))
    grid = np.linspace(0, 4, 81)
    expected = ensemble.pdf(grid).sum(axis=0)
    found = n_of_z.pdf(grid).ravel()
    expected /= np.trapezoid(expected, grid)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_memory_does_not_grow_with_the_catalogue(runs, tmp_path):
    def peak(n_parts: int) -> int:
        many = tmp_path / str(n_parts)
        for index in range(n_parts):
            for kind in ("catalog", "pdf"):
                (many / kind).mkdir(parents=True, exist_ok=True)
                source = runs["grid"] / kind / "part-000000.parquet"
                shutil.copy(source, many / kind / f"part-{index:06d}.parquet")
        tracemalloc.start()
        done = export_qp(many, tmp_path / "e.hdf5")
        _, bytes_at_most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert done.rows + done.left_out == 64 * n_parts
        return bytes_at_most

    peak(2)  # what is imported late
    assert peak(30) < 1.3 * peak(3)


def test_what_cannot_be_exported_is_named(runs, tmp_path, monkeypatch):
    out = tmp_path / "e.hdf5"
    with pytest.raises(CatalogError, match=r"has no p\(z\); make a catalogue with"):
        export_qp(runs[None], out)
    with pytest.raises(ConfigError, match=r"e\.h5: .* must end in \.hdf5"):
        export_qp(runs["grid"], tmp_path / "e.h5")
    with pytest.raises(CatalogError, match="no catalogue there"):
        export_qp(tmp_path / "none", out)
    copy = Path(shutil.copytree(runs["grid"], tmp_path / "copy"))
    shutil.copy(copy / "pdf/part-000000.parquet", copy / "pdf/part-000001.parquet")
    out.write_text("another file")
    with pytest.raises(CatalogError, match=r"part-000001.parquet: was made as part-000000"):
        export_qp(copy, out)
    (copy / "pdf/part-000001.parquet").unlink()
    with pytest.raises(CatalogError, match=r"the p\(z\) is not complete: .*part-000001"):
        export_qp(copy, out)
    assert out.read_text() == "another file"  # nothing half-done takes its place
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    monkeypatch.setitem(sys.modules, "qp", None)
    with pytest.raises(ConfigError, match=r"pip install 'photozhpc\[qp\]'"):
        export_qp(runs["grid"], out)
