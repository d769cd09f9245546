"""The end of a run: what is counted, what is compared, and the z-z plot."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import Table
from matplotlib.image import imread
from mocpy import MOC

from photozhpc.catalog import footprint
from photozhpc.catalog.footprint import write_footprint
from photozhpc.catalog.photoz_catalog import Counts, make_table, write_part
from photozhpc.catalog.run import RunSummary
from photozhpc.errors import RunError, SourceListError
from photozhpc.evaluation.figure_style import save_figure
from photozhpc.evaluation.summary import summarise
from photozhpc.evaluation.truth import read_truth, store_labels
from photozhpc.evaluation.zz import plot_zz
from photozhpc.metrics import point_metrics
from photozhpc.sources.read import Sources
from photozhpc.store import CutoutStore, Measurements
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
N = 130


@pytest.fixture
def run(tmp_path) -> RunSummary:
    """A store of 130 sources, every third labelled, and its catalogue with z_phot = z + 0.1."""
    rng = np.random.default_rng(0)
    z_N = rng.uniform(0.2, 3, N).astype(np.float32)
    label_N = np.where(np.arange(N) % 3 == 0, z_N, np.nan).astype(np.float32)
    store = CutoutStore.create(tmp_path / "store", SURVEY, 8, 64)
    shape = (N, len(SURVEY.bands), len(SURVEY.aperture_radii_arcsec))
    flux_NCR = np.ones(shape, np.float32)
    with store.new_tile("t", N, {}) as writer:
        for start in range(0, N, 64):
            rows = slice(start, min(start + 64, N))
            zeros = np.zeros(rows.stop - start)
            writer.write_shard(
                np.zeros((len(zeros), 4, 8, 8), np.float32),
                Sources(
                    np.arange(N)[rows][::-1], zeros, zeros, label_N[rows][::-1], zeros.astype("f4")
                ),
                Measurements(
                    zeros, zeros, flux_NCR[rows], flux_NCR[rows], np.zeros((len(zeros), 4), "u2")
                ),
            )
    out = tmp_path / "out"
    (out / "catalog").mkdir(parents=True)
    photoz_N = z_N + np.float32(0.1)
    photoz_N[3] = np.nan
    for index, rows in enumerate((slice(0, 70), slice(70, N))):
        n = len(z_N[rows])
        table = make_table(
            SURVEY,
            source_id_N=np.arange(N)[rows],
            ra_N=np.zeros(n),
            dec_N=np.zeros(n),
            tile_id_N=np.full(n, "t"),
            photoz_N=photoz_N[rows],
            quantile_NQ=np.full((n, 9), np.nan, np.float32),
            ood_N=np.full(n, np.nan, np.float32),
            photoz_flags_N=np.zeros(n, np.int32),
            flux_NCR=flux_NCR[rows],
            flux_err_NCR=flux_NCR[rows],
        )
        write_part(table, out / f"catalog/part-{index:06d}.parquet", {"index": index})
    truth = {"source_id": np.arange(N + 20)[::-1], "z_true": np.append(z_N, np.full(20, 9.0))[::-1]}
    is_star = np.zeros(N + 20, bool)
    is_star[-10:] = True  # sources 0 to 9
    pq.write_table(pa.table({**truth, "is_star": is_star}), tmp_path / "truth.parquet")
    return RunSummary(
        path=out,
        store_path=store.path,
        checkpoint_path=Path("model.safetensors"),
        survey_name="roman-sim",
        counts=Counts(N, 2, 1),
        n_parts=2,
        n_parts_resumed=0,
        n_rows_new=N,
        wall_seconds=2.0,
        startup_seconds=0.5,
    )


def test_with_truth_galaxies_are_compared(run, tmp_path):
    text = summarise(run, [tmp_path / "truth.parquet"])
    document = json.loads((run.path / "summary.json").read_bytes())
    assert document["rows"] == N
    assert document["flagged_rows"] == 2
    assert document["rows_without_photoz"] == 1
    assert document["sources_per_second"] == 65
    metrics = document["metrics"]
    assert metrics["n"] == N - 10  # source 3, which has no redshift, is a star
    assert "truth.parquet" in metrics["reference"]
    truth = pq.read_table(tmp_path / "truth.parquet")
    z_N = truth["z_true"].to_numpy()[::-1][10:N]
    expected = point_metrics(z_N, z_N + 0.1)
    assert metrics["bias"] == pytest.approx(expected.bias, abs=1e-6)
    assert metrics["nmad"] == pytest.approx(expected.nmad, abs=1e-6)
    assert document["figure"] == str(run.path / "zz.png")
    assert document["footprint"] == str(run.path / "footprint.moc.fits")
    assert MOC.load(document["footprint"]).contains_lonlat([0] * u.deg, [0] * u.deg).all()
    assert f"rows       {N} (2 flagged, 1 of them without a redshift)" in text
    assert "65 sources/s" in text
    assert f"catalogue  {run.path / 'catalog'}" in text
    assert f"bias {expected.bias:+.4f}" in text


def test_a_footprint_holds_every_source_and_little_else(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    ra_N, dec_N = rng.uniform(-0.5, 0.5, 20_000) % 360, rng.uniform(-0.5, 0.5, 20_000)
    ra_N[7] = np.nan
    parts = [tmp_path / f"part-{index:06d}.parquet" for index in range(4)]
    for part, ra, dec in zip(parts, np.split(ra_N, 4), np.split(dec_N, 4), strict=True):
        pq.write_table(pa.table({"ra": ra, "dec": dec}), part)
    path = tmp_path / "a.fits"
    assert write_footprint(parts, path)
    moc = MOC.load(path)
    placed_N = np.isfinite(ra_N)
    assert moc.contains_lonlat(ra_N[placed_N] * u.deg, dec_N[placed_N] * u.deg).all()
    assert moc.max_order == 11  # 16 sources per cell of 3 square arcminutes
    assert 1 < 41253 * moc.sky_fraction < 1.15  # square degrees
    once = path.read_bytes()
    monkeypatch.setattr(footprint, "_BATCH_ROWS", 100)
    write_footprint(parts, path)
    assert path.read_bytes() == once
    pq.write_table(
        pa.table(
            {"ra": [None], "dec": [0.0]}, pa.schema({"ra": pa.float64(), "dec": pa.float64()})
        ),
        parts[0],
    )
    assert not write_footprint(parts[:1], tmp_path / "none.fits")
    assert not (tmp_path / "none.fits").exists()


def test_without_truth_labels_are_named_for_what_they_are(run):
    text = summarise(run)
    metrics = json.loads((run.path / "summary.json").read_bytes())["metrics"]
    assert metrics["n"] == len(range(0, N, 3)) - 1
    assert "may have been trained on them" in metrics["reference"]
    assert "may have been trained on them" in text
    labels = store_labels(run.store_path)
    assert labels.source_id_N.tolist() == list(range(0, N, 3))


def test_truth_tables_of_other_kinds(run, tmp_path):
    expected = read_truth([tmp_path / "truth.parquet"])
    table = Table.read(tmp_path / "truth.parquet")
    for name in ("truth.fits", "truth.ecsv", "truth.csv"):
        table["is_star"] = table["is_star"].astype(int)
        table.write(tmp_path / name)
        found = read_truth([tmp_path / name])
        assert np.array_equal(found.source_id_N, expected.source_id_N)
        np.testing.assert_allclose(found.z_ref_N, expected.z_ref_N, rtol=1e-6)


def test_faulty_truth_tables_are_named(run, tmp_path):
    with pytest.raises(SourceListError, match="no such truth table"):
        summarise(run, [tmp_path / "none.parquet"])
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(b"PAR1")
    with pytest.raises(SourceListError, match="cannot be read"):
        summarise(run, [damaged])
    pq.write_table(pa.table({"source_id": [1], "ztrue": [1.0]}), damaged)
    with pytest.raises(SourceListError, match="no column 'z_true'; did you mean 'ztrue'"):
        summarise(run, [damaged])
    assert not (run.path / "summary.json").exists()


def test_a_source_twice_in_the_truth_is_an_error(tmp_path):
    pq.write_table(pa.table({"source_id": [1, 2], "z_spec": [1.0, 2.0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"source_id": [7, 2], "z_spec": [1.0, 2.0]}), tmp_path / "b.parquet")
    assert read_truth([tmp_path / "a.parquet"]).z_kind == "spectroscopic"
    assert read_truth([f"{tmp_path}/[ac].parquet"]).source_id_N.tolist() == [1, 2]
    with pytest.raises(SourceListError, match=r"c\*: no such truth table"):
        read_truth([tmp_path / "c*"])
    with pytest.raises(SourceListError, match="and 1 more: source_id 2 is in the truth more than"):
        read_truth([tmp_path / "a.parquet", tmp_path / "b.parquet"])


def test_masked_values_of_the_truth_are_none(tmp_path):
    table = Table(
        {"source_id": [3, 1, 2], "z_spec": [1.0, 2.0, 3.0], "mag_r": [20, 21, 22]}, masked=True
    )
    table["z_spec"].mask = [False, True, False]
    table["mag_r"].mask = [True, False, False]
    table.write(tmp_path / "truth.ecsv")
    truth = read_truth([tmp_path / "truth.ecsv"])
    assert truth.source_id_N.tolist() == [2, 3]
    assert truth.z_ref_N.tolist() == [3, 1]
    np.testing.assert_array_equal(truth.magnitudes["r"], [22, np.nan])
    table["source_id"].mask = [True, False, False]
    table.write(tmp_path / "truth.ecsv", overwrite=True)
    with pytest.raises(
        SourceListError, match="'source_id' of the truth table does not hold one id"
    ):
        read_truth([tmp_path / "truth.ecsv"])


@pytest.mark.parametrize("n", [0, 1, 300, 20_000])
def test_zz_plot_of_any_size(tmp_path, n):
    rng = np.random.default_rng(n)
    z_N = rng.gamma(3, 0.35, n)
    z_phot_N = z_N + rng.normal(0, 0.1, n)
    z_phot_N[:1] = np.nan
    figure = plot_zz(z_N, z_phot_N, point_metrics(z_N, z_phot_N), reference="true")
    save_figure(figure, tmp_path / "zz.png")
    image = imread(tmp_path / "zz.png")
    assert image.shape[:2] == (840, 1050)  # 3.5 inches, one column, at 300 dots an inch
    assert image[..., :3].std() > 0.05
    assert [p.name for p in tmp_path.iterdir()] == ["zz.png"]
    save_figure(figure, tmp_path / "zz.pdf")
    assert (tmp_path / "zz.pdf").read_bytes().startswith(b"%PDF")


def test_zz_plot_that_cannot_be_written(tmp_path):
    figure = plot_zz([1.0], [1.0], point_metrics([1.0], [1.0]))
    with pytest.raises(RunError, match="cannot be written"):
        save_figure(figure, tmp_path / "none" / "zz.png")
