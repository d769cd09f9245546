"""Evaluation of made-up catalogues whose answers are known."""

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.image import imread
from scipy.stats import norm

from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS, make_table, write_part
from photozhpc.errors import CatalogError, RunError, SourceListError
from photozhpc.evaluation.evaluate import evaluate
from photozhpc.evaluation.tables import (
    default_folder,
    evaluation_document,
    evaluation_table,
    write_evaluation,
)
from photozhpc.metrics import crps, ks_uniform, normalised_residual, pit, point_metrics
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
LEVEL_Q = np.array(sorted(QUANTILE_LEVELS.values()))
NAMES = sorted(QUANTILE_LEVELS, key=lambda name: QUANTILE_LEVELS[name])
N = 600
FIRST_ID = 5000


class Sky:
    """600 sources: magnitudes 20 to 25.9, worse when faint; Gaussian intervals that are right.

    The last 50 have no truth, source 7 no redshift, source 11 no flux, sources 100 to 129 the flag
    BAD_PIXELS, 130 to 134 MISSING_BAND, 500 and on are unlike the training images.
    """

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(11)
        self.out = folder / "out"
        self.truth = folder / "truth.parquet"
        self.source_id_N = FIRST_ID + np.arange(N)
        self.mag_N = 20 + np.arange(N) / 100
        self.z_N = rng.uniform(0.5, 3, N)
        sigma_N = (0.01 + 0.02 * (self.mag_N - 20)) * (1 + self.z_N)
        mean_N = rng.normal(self.z_N, sigma_N)
        self.photoz_N = mean_N.astype(np.float32)
        self.photoz_N[7] = np.nan
        self.quantile_NQ = (mean_N[:, None] + sigma_N[:, None] * norm.ppf(LEVEL_Q)).astype("f4")
        self.quantile_NQ[7] = np.nan
        self.ood_N = np.where(np.arange(N) < 500, 0.5, 1.5).astype(np.float32)
        self.flags_N = np.zeros(N, np.int32)
        self.flags_N[100:130] = 4
        self.flags_N[130:135] = 2
        self.flux_N = 10 ** ((31.4 - self.mag_N) / 2.5)
        self.flux_N[11] = -1
        self.truth_columns = {"z_true": self.z_N[::-1], "mag_f158": self.mag_N[::-1] + 0.001}

    def write(self, *, with_mag: bool = True, old: bool = False) -> "Sky":
        """Write two parts and the truth; `old`: without the columns of intervals."""
        (self.out / "catalog").mkdir(parents=True, exist_ok=True)
        for index, rows in enumerate((slice(0, 250), slice(250, N))):
            n = len(self.z_N[rows])
            flux_NCR = np.ones((n, 4, 5), np.float32)
            flux_NCR[:, 3, 2] = self.flux_N[rows]
            table = make_table(
                SURVEY,
                source_id_N=self.source_id_N[rows],
                ra_N=np.zeros(n),
                dec_N=np.zeros(n),
                tile_id_N=np.full(n, "t"),
                photoz_N=self.photoz_N[rows],
                quantile_NQ=self.quantile_NQ[rows],
                ood_N=self.ood_N[rows],
                photoz_flags_N=self.flags_N[rows],
                flux_NCR=flux_NCR,
                flux_err_NCR=flux_NCR,
            )
            if old:
                table = table.drop_columns([*NAMES, "photoz_ood"])
            write_part(table, self.out / f"catalog/part-{index:06d}.parquet", {"index": index})
        columns = {"source_id": self.source_id_N[::-1], **self.truth_columns}
        if not with_mag:
            del columns["mag_f158"]
        # Not in the catalogue: one galaxy more than this. Without a truth: the last 50.
        table = pa.table(columns).slice(50)
        more = {"source_id": [1], "z_true": [1.0], "mag_f158": [21.0]}
        more = pa.table({name: more[name] for name in table.column_names})
        pq.write_table(pa.concat_tables([table, more]), self.truth)
        return self


@pytest.fixture
def sky(tmp_path) -> Sky:
    return Sky(tmp_path)


def group(evaluation, kind, label):
    return next(group for group in evaluation.groups[kind] if group.label == label)


def assert_point_metrics(found, z_ref_N, z_phot_N):
    expected = point_metrics(z_ref_N, z_phot_N)
    assert found.n == expected.n
    for name in ("bias", "nmad", "outlier_fraction"):
        assert found.statistics[name].value == pytest.approx(getattr(expected, name), abs=1e-12)


def test_statistics_are_those_of_the_sources_in_each_group(sky):
    sky.write()
    found = evaluate(sky.out, [sky.truth], n_resamples=100)
    compared_N = (np.arange(N) < 550) & np.isfinite(sky.photoz_N)
    phot_N = sky.photoz_N.astype(np.float64)
    assert (found.n_rows, found.n_truth, found.n_without_photoz) == (N, 551, 1)
    assert (found.band, found.mag_origin) == ("f158", "mag_f158 of the truth")
    assert found.z_kind == "true"
    assert_point_metrics(found.groups["overall"][0], sky.z_N[compared_N], sky.photoz_N[compared_N])
    assert [g.label for g in found.groups["magnitude"]] == [
        f"F158 {low} to {low + 1}" for low in (20, 21, 22, 23, 24)
    ] + ["F158 25 to 26"]
    assert sum(g.n for g in found.groups["magnitude"]) == compared_N.sum()
    mag_N = sky.mag_N + 0.001
    rows_N = compared_N & (mag_N >= 22) & (mag_N < 23)
    assert_point_metrics(
        group(found, "magnitude", "F158 22 to 23"), sky.z_N[rows_N], phot_N[rows_N]
    )
    rows_N = compared_N & (sky.z_N >= 1.25) & (sky.z_N < 1.5)
    assert_point_metrics(group(found, "redshift", "z 1.25 to 1.5"), sky.z_N[rows_N], phot_N[rows_N])
    for label, rows_N in (
        ("no flag", sky.flags_N == 0),
        ("any flag", sky.flags_N > 0),
        ("flag BAD_PIXELS", sky.flags_N == 4),
    ):
        rows_N = rows_N & compared_N
        assert_point_metrics(group(found, "flags", label), sky.z_N[rows_N], phot_N[rows_N])
    assert len(found.groups["flags"]) == 3
    assert "flag MISSING_BAND: 5 sources, too few to be listed" in found.notes
    assert [g.n for g in found.groups["ood"]] == [499, 50]


def test_intervals_pit_and_crps_are_those_of_the_metrics(sky):
    sky.write()
    found = evaluate(sky.out, [sky.truth], n_resamples=200)
    assert found.has_intervals
    rows_N = np.flatnonzero((np.arange(N) < 550) & np.isfinite(sky.photoz_N))
    z_N, quantile_NQ = sky.z_N[rows_N], sky.quantile_NQ[rows_N].astype(np.float64)
    overall = found.groups["overall"][0]
    assert overall.n_intervals == len(rows_N)
    for low, high, percent in ((3, 5, 68), (2, 6, 90), (0, 8, 99)):
        inside_N = (quantile_NQ[:, low] <= z_N) & (z_N <= quantile_NQ[:, high])
        coverage = overall.statistics[f"coverage{percent}"]
        assert coverage.value == pytest.approx(inside_N.mean())
        error = np.sqrt(percent / 100 * (1 - percent / 100) / len(rows_N))
        assert coverage.error == pytest.approx(error, rel=0.4)
        assert abs(coverage.value - percent / 100) < 4 * error  # these intervals are right
    expected = ks_uniform(pit(z_N, quantile_NQ, LEVEL_Q))
    assert overall.statistics["pit_ks"].value == pytest.approx(float(expected))
    expected = crps(z_N, quantile_NQ, LEVEL_Q).mean()
    assert overall.statistics["crps"].value == pytest.approx(expected)
    # Widths that are right for each source beat the best one for all; a shift cannot hurt it.
    gaussian = overall.statistics["crps_global_gaussian"].value
    shifted = overall.statistics["crps_shifted_gaussian"].value
    assert overall.statistics["crps"].value < 0.97 * shifted <= 0.97 * gaussian
    dz_N = normalised_residual(z_N, sky.photoz_N[rows_N])
    assert 0.3 * np.std(dz_N) < found.gaussian.sigma < 1.5 * np.std(dz_N)


@pytest.mark.parametrize("old", [True, False])
def test_without_intervals_the_point_estimates_are_judged(sky, old):
    sky.quantile_NQ[:], sky.ood_N[:] = np.nan, np.nan
    sky.write(old=old)
    found = evaluate(sky.out, [sky.truth], n_resamples=20)
    assert not found.has_intervals
    overall = found.groups["overall"][0]
    assert (overall.n, overall.n_intervals) == (549, 0)
    assert "crps_global_gaussian" in overall.statistics
    assert not {"crps", "coverage68", "pit_ks"} & set(overall.statistics)
    assert found.groups["ood"] == []
    assert "intervals   absent" in evaluation_table(found)
    assert evaluation_document(found)["intervals"] is None
    names = {path.name for path in write_evaluation(found)}
    assert names == {"evaluation.json", "zz.png", "zz.pdf", "metrics.png", "metrics.pdf"}


def test_some_sources_without_intervals_are_left_out_of_them_only(sky):
    sky.quantile_NQ[100:250] = np.nan
    found = evaluate(sky.write().out, [sky.truth], n_resamples=20)
    overall = found.groups["overall"][0]
    assert (overall.n, overall.n_intervals) == (549, 399)
    bad = group(found, "flags", "flag BAD_PIXELS")
    assert (bad.n, bad.n_intervals) == (30, 0)
    assert np.isnan(bad.statistics["coverage68"].value)
    table = evaluation_table(found)
    assert table.count("flag BAD_PIXELS") == 1  # with the point estimates only
    assert "nan" not in table
    write_evaluation(found)


def test_magnitudes_come_from_the_flux_where_the_truth_has_none(sky):
    found = evaluate(sky.write(with_mag=False).out, [sky.truth], n_resamples=20)
    assert found.mag_origin == "aper04_f158_flux"
    assert found.n_without_mag == 1
    table = evaluation_table(found)
    assert "F158 from aper04_f158_flux; 1 sources have none" in table
    mag_N = found.matched.mag_N[np.isfinite(found.matched.mag_N)]
    expected_N = np.delete(sky.mag_N[:550], [7, 11])
    np.testing.assert_allclose(mag_N, expected_N, atol=1e-5)
    assert sum(g.n for g in found.groups["magnitude"]) == 548


def test_sparse_bins_are_merged_and_it_is_said(sky):
    mag_N = sky.truth_columns["mag_f158"]
    mag_N[:] = 24.2
    mag_N[-30:] = 18.1  # sources 0 to 29, of which one has no redshift
    mag_N[-35:-30] = 15.2
    mag_N[-55:-35] = 21.3
    found = evaluate(sky.write().out, [sky.truth], n_resamples=20)
    bins = [(g.low, g.high, g.n) for g in found.groups["magnitude"]]
    assert bins == [(15, 18.5, 34), (21, 21.5, 20), (24, 24.5, 495)]
    assert "magnitude: bins with fewer than 20 sources were merged with a neighbour" in found.notes
    assert not any(note.startswith("redshift") for note in found.notes)


def test_a_handful_of_sources_has_no_bins(sky):
    sky.write()
    few = pq.read_table(sky.truth).filter(pa.compute.field("source_id") < FIRST_ID + 6)
    pq.write_table(few, sky.truth)
    found = evaluate(sky.out, [sky.truth], n_resamples=20)
    assert found.groups["overall"][0].n == 6
    assert not found.groups["magnitude"]
    assert any("6 sources, too few" in note for note in found.notes)
    assert "zz.png" in {path.name for path in write_evaluation(found)}


def test_what_is_written_can_be_read(sky, tmp_path):
    sky.write()
    found = evaluate(sky.out, [sky.truth], n_resamples=50, seed=3)
    paths = write_evaluation(found)
    assert {path.parent for path in paths} == {sky.out / "evaluation"}

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    document = json.loads(paths[0].read_bytes(), parse_constant=refuse)
    assert document["bootstrap"] == {"n_resamples": 50, "seed": 3}
    assert document["truth"] == [str(sky.truth)]
    assert document["compared"] == 549
    bias = found.groups["overall"][0].statistics["bias"]
    assert document["overall"]["bias"] == {"value": bias.value, "error": bias.error}
    assert len(document["groups"]["magnitude"]) == len(found.groups["magnitude"])
    assert set(document["figures"]) == {str(path) for path in paths[1:]}
    for path in paths[1:]:
        if path.suffix == ".png":
            assert imread(path).shape[1] == 1050
        else:
            assert path.read_bytes().startswith(b"%PDF")
    assert {path.stem for path in paths[1:]} == {"zz", "metrics", "pit", "coverage"}
    lines = evaluation_table(found).splitlines()
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
    assert any(line.startswith("all ") and " ± " in line for line in lines)
    for catalog in (sky.out / "catalog", sky.out / "catalog/part-000000.parquet"):
        assert default_folder(catalog) == sky.out / "evaluation"
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_evaluation(found, tmp_path / "file/inside")


def test_the_seed_makes_it_reproducible(sky):
    sky.write()
    one, same, other = (
        evaluation_document(evaluate(sky.out, [sky.truth], n_resamples=10, seed=seed))
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one["overall"]["bias"]["error"] != other["overall"]["bias"]["error"]
    assert one["overall"]["bias"]["value"] == other["overall"]["bias"]["value"]


def test_truth_of_other_sources_is_named(sky, tmp_path):
    sky.write()
    truth = tmp_path / "other.parquet"
    pq.write_table(pa.table({"source_id": [17, 18], "z_spec": [1.0, 2.0]}), truth)
    with pytest.raises(SourceListError, match=r"no source_id in common.*5000.*17"):
        evaluate(sky.out, [truth])
    pq.write_table(pa.table({"source_id": [17], "z_spec": [-1.0]}), truth)
    with pytest.raises(SourceListError, match="no galaxy with a redshift"):
        evaluate(sky.out, [truth])
    pq.write_table(pa.table({"source_id": [17], "redshift": [1.0]}), truth)
    with pytest.raises(SourceListError, match="no column 'z_true'"):
        evaluate(sky.out, [truth])


def test_faulty_catalogues_are_named(sky, tmp_path):
    sky.write()
    with pytest.raises(CatalogError, match="no catalogue there"):
        evaluate(tmp_path / "none", [sky.truth])
    (sky.out / "run.json").write_text(json.dumps({"identity": {}, "n_parts": 3, "n_rows": 300}))
    with pytest.raises(CatalogError, match="not finished: 2 of 3 parts"):
        evaluate(sky.out, [sky.truth])
    (sky.out / "run.json").unlink()
    part = sky.out / "catalog/part-000000.parquet"
    sound = part.read_bytes()
    part.write_bytes(sound[:500])
    with pytest.raises(CatalogError, match="missing or damaged"):
        evaluate(sky.out, [sky.truth])
    (sky.out / "catalog/part-000001.parquet").write_bytes(sound)
    part.write_bytes(sound)
    with pytest.raises(CatalogError, match="source_id appears twice"):
        evaluate(sky.out, [sky.truth])
    sky.quantile_NQ[3, 2] = 99
    with pytest.raises(CatalogError, match="quantiles must ascend"):
        evaluate(sky.write().out, [sky.truth])
    sky.photoz_N[:] = np.nan
    sky.quantile_NQ[:] = np.nan
    with pytest.raises(CatalogError, match="photoz is null for all 550 sources"):
        evaluate(sky.write().out, [sky.truth])


def test_a_hundred_thousand_sources_take_seconds(tmp_path):
    rng = np.random.default_rng(0)
    n = 100_000
    z_N, mag_N = rng.gamma(4, 0.3, n), 27 - rng.exponential(1.5, n).clip(0, 8)
    sigma_N = 0.05 * (1 + z_N)
    mean_N = rng.normal(z_N, sigma_N)
    quantile_NQ = mean_N[:, None] + sigma_N[:, None] * norm.ppf(LEVEL_Q)
    columns = {
        "source_id": np.arange(n),
        "photoz": mean_N.astype("f4"),
        "photoz_flags": np.where(rng.random(n) < 0.1, 4, 0).astype("i4"),
        "photoz_ood": rng.exponential(0.3, n).astype("f4"),
        "aper04_f158_flux": np.ones(n, "f4"),
        **{name: quantile_NQ[:, q].astype("f4") for q, name in enumerate(NAMES)},
    }
    table = pa.table(columns)
    for part in range(4):
        pq.write_table(table.slice(part * 25_000, 25_000), tmp_path / f"part-{part:06d}.parquet")
    truth = {"source_id": np.arange(n)[::-1], "z_true": z_N[::-1], "mag_f158": mag_N[::-1]}
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    started = time.process_time()
    found = evaluate(tmp_path, [tmp_path / "truth.parquet"])
    assert time.process_time() - started < 3
    overall = found.groups["overall"][0]
    assert overall.n == n
    assert overall.statistics["coverage90"].value == pytest.approx(0.9, abs=0.004)
    assert overall.statistics["bias"].error == pytest.approx(0.05 / np.sqrt(n), rel=0.15)
