"""`photozhpc report`: its numbers against pandas, and catalogues that lack something."""

import base64
import io
import json
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from builders.catalogs import ALONE
from photozhpc.catalog.photoz_catalog import QUANTILE_LEVELS, PhotozFlag
from photozhpc.catalog.run import run_inference
from photozhpc.cli import main
from photozhpc.evaluation.evaluate import Estimate
from photozhpc.evaluation.truth import Truth
from photozhpc.html_report import catalog_scan, page_accuracy
from photozhpc.html_report.catalog_scan import TopRows, scan_catalog
from photozhpc.html_report.cutout_gallery import make_gallery
from photozhpc.html_report.page import write_report
from photozhpc.html_report.page_figures import redshift_bins, stacked_nz
from photozhpc.model import bundled_checkpoint
from photozhpc.model.calibrate import calibrate
from photozhpc.store import CutoutStore

TILE_ARCMIN = 700 * 0.055 / 60
N_TILES = 2


@pytest.fixture(scope="module")
def run(small_store, tmp_path_factory) -> Path:
    """A run of several parts on the small sky, with the bundled model calibrated there."""
    out = tmp_path_factory.mktemp("run") / "out"
    bundled = bundled_checkpoint("roman-sim")
    model = calibrate(bundled, small_store, out.with_name("model.safetensors"))
    run_inference(small_store.path, model, out, **ALONE, command="here")
    return out


@pytest.fixture(scope="module")
def truth(small_sky) -> str:
    return f"{small_sky}/*_truth.parquet"


@pytest.fixture(scope="module")
def page(run, truth) -> str:
    return write_report(run, [truth]).read_text("utf-8")


@pytest.fixture(scope="module")
def rows(run) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(part) for part in sorted(run.glob("catalog/*.parquet"))])


@pytest.fixture
def copy(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def facts(page: str) -> dict[str, str]:
    return dict(re.findall(r"<div><dt>(.*?)</dt><dd>(.*?)</dd></div>", page))


def table(page: str, caption: str) -> pd.DataFrame:
    body = re.search(rf"<caption>{caption}.*?</caption>(.*?)</table>", page, re.DOTALL)
    assert body is not None, caption
    lines = re.findall(r"<tr>(.*?)</tr>", body[1], re.DOTALL)
    cells = [
        [unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL)]
        for line in lines
    ]
    return pd.DataFrame(cells[1:], columns=cells[0]).set_index(cells[0][0])


def one_file(folder: Path, table: pa.Table) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / "part-000000.parquet")
    return folder


def test_counts_are_those_of_pandas(page, rows):
    told = facts(page)
    assert told["sources"] == f"{len(rows):,}"
    assert told["with a redshift"] == f"{rows.photoz.notna().sum():,}"
    assert told["flagged"] == f"{(rows.photoz_flags != 0).sum():,}"
    assert float(told["mean redshift"]) == pytest.approx(rows.photoz.mean(), abs=6e-4)
    flags = table(page, "photoz_flags")
    assert flags.loc["none", "sources"] == str((rows.photoz_flags == 0).sum())
    for flag in PhotozFlag:
        assert flags.loc[flag.name, "sources"] == str((rows.photoz_flags & int(flag) != 0).sum())
        assert flags.loc[flag.name, "meaning"] != "see the guide"


def test_metrics_are_those_of_the_definition(page, rows, small_sky):
    true = pd.concat([pd.read_parquet(file) for file in small_sky.glob("*_truth.parquet")])
    both = rows.merge(true[~true.is_star & (true.z_true > 0)], on="source_id").dropna(
        subset=["photoz"]
    )
    dz = (both.z_true - both.photoz) / (1 + both.z_true)
    told = {name: text.replace("−", "-").split() for name, text in facts(page).items()}
    nmad = 1.4826 * (dz - dz.median()).abs().median()
    assert float(told["NMAD"][0]) == pytest.approx(nmad, abs=6e-5)
    assert float(told["bias"][0]) == pytest.approx(dz.mean(), abs=6e-5)
    assert float(told["outliers"][0]) == pytest.approx(100 * (dz.abs() > 0.15).mean(), abs=0.06)
    share = (dz.abs() > 0.15).mean()
    error = 100 * np.sqrt(share * (1 - share) / len(dz))
    assert float(told["outliers"][2]) == pytest.approx(error, rel=0.3)
    metrics = table(page, "Metrics").loc["all"]
    assert metrics["n"] == str(len(both))
    inside = (both.photoz_low68 <= both.z_true) & (both.z_true <= both.photoz_high68)
    assert float(metrics["coverage 68 [%]"].split()[0]) == pytest.approx(
        100 * inside.mean(), abs=0.06
    )


def test_depths_and_detections(page, rows):
    bands = table(page, "Bands")
    for band in ("f062", "f158"):
        flux, error = rows[f"aper04_{band}_flux"], rows[f"aper04_{band}_flux_err"]
        depth = 31.4 - 2.5 * np.log10(5 * error.median())
        assert float(bands.loc[band.upper(), "5σ depth [AB mag]"]) == pytest.approx(depth, abs=0.03)
        assert bands.loc[band.upper(), "detected"] == str((flux >= 5 * error).sum())


def test_area_and_density(page, rows):
    fields = table(page, "Fields").iloc[0]
    area = N_TILES * TILE_ARCMIN**2
    assert fields["tiles"] == "2"
    assert float(fields["area"].split()[0]) == pytest.approx(area, rel=0.005)
    assert float(fields["sources per arcmin²"]) == pytest.approx(len(rows) / area, rel=0.005)


def test_galleries_show_the_right_sources(page, rows, small_store):
    at = page.index("At the highest redshift"), page.index("Most out of distribution")
    shown = [int(i) for i in re.findall(r'class="id">(\d+)<', page[at[0] : at[1]])]
    clean = rows[rows.photoz_flags == 0].nlargest(12, "photoz")
    assert shown == clean.source_id.tolist()
    z = clean.iloc[0]
    assert f"z = {z.photoz:.2f} ({z.photoz_low68:.2f} to {z.photoz_high68:.2f})" in page[at[0] :]
    far = [int(i) for i in re.findall(r'class="id">(\d+)<', page[at[1] :])]
    assert far == rows.nlargest(12, "photoz_ood").source_id.tolist()
    pictures = re.findall(r'data:image/png;base64,([^"]+)" width="128"', page[at[0] : at[1]])
    cutouts = {}
    for key in small_store.shards():
        ids = small_store.read_sources(key).source_id_N
        cutouts |= dict(zip(ids.tolist(), small_store.read_cutouts(key), strict=True))
    for source_id, text in list(zip(shown, pictures, strict=True))[:4]:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), float)[::-1]
        likeness = {}
        for other, cutout in cutouts.items():
            known = np.isfinite(cutout).all(axis=0)
            if known.mean() > 0.5:
                both = image[known][:, 0], np.arcsinh(cutout[-1][known])
                likeness[other] = np.corrcoef(*both)[0, 1]
        assert max(likeness, key=lambda other: likeness[other]) == source_id


def test_the_stack_and_its_band_are_those_of_draws_from_the_pdfs(run, rows):
    scan = scan_catalog(sorted(run.glob("catalog/*.parquet")))
    mean, sigma = stacked_nz(scan)
    rng = np.random.default_rng(3)
    names = sorted(QUANTILE_LEVELS, key=lambda name: QUANTILE_LEVELS[name])
    from scipy.stats import norm

    knot = norm.ppf([QUANTILE_LEVELS[name] for name in names])
    quantile = rows[names].dropna().to_numpy(np.float64)
    draws = []
    for _ in range(400):
        t = rng.normal(size=len(quantile))
        at = np.clip(np.searchsorted(knot, t) - 1, 0, len(knot) - 2)
        row = np.arange(len(quantile))
        slope = (quantile[row, at + 1] - quantile[row, at]) / (knot[at + 1] - knot[at])
        z = np.maximum(quantile[row, at] + slope * (t - knot[at]), 0)
        draws.append(np.histogram(z, scan.z_edges)[0])
    assert scan.n_stacked == len(quantile)
    assert mean.sum() == pytest.approx(len(quantile), rel=1e-3)
    np.testing.assert_allclose(mean, np.mean(draws, axis=0), atol=0.9)
    busy = mean > 3
    np.testing.assert_allclose(sigma[busy], np.std(draws, axis=0)[busy], rtol=0.2)


def test_batches_do_not_matter(run, monkeypatch):
    parts = sorted(run.glob("catalog/*.parquet"))
    whole = scan_catalog(parts)
    monkeypatch.setattr(catalog_scan, "BATCH_ROWS", 7)
    small = scan_catalog(parts)
    assert small.flag_values == whole.flag_values
    np.testing.assert_array_equal(small.z_Z, whole.z_Z)
    np.testing.assert_array_equal(small.bands[2].mag_M, whole.bands[2].mag_M)
    np.testing.assert_array_equal(small.colour_mag.counts_XY, whole.colour_mag.counts_XY)
    assert small.high_z["source_id"].to_pylist() == whole.high_z["source_id"].to_pylist()


def test_top_rows_are_those_of_a_sort():
    rng = np.random.default_rng(0)
    key_N = rng.normal(size=5000)
    key_N[::7] = np.nan
    top = TopRows(13)
    for start in range(0, 5000, 333):
        rows = slice(start, start + 333)
        top.offer(pa.table({"row": np.arange(5000)[rows]}), key_N[rows])
    order = np.argsort(-np.where(np.isnan(key_N), -np.inf, key_N))[:13]
    assert top.table["row"].to_pylist() == order.tolist()
    assert TopRows(3).table is None


def test_the_page_is_one_file_of_moderate_size(page):
    assert len(page) < 5e6
    assert not re.search(r'(?:src|href|srcset)="(?!data:|#)', page)
    assert "<script" not in page
    assert page.count("<h1") == 1


@pytest.mark.drawn
def test_truth_is_found_without_being_named(copy, truth, small_store):
    told = facts(write_report(copy).read_text("utf-8"))  # the labels of the store
    assert "NMAD" in told
    assert "may have been trained on them" in (copy / "report.html").read_text("utf-8")
    said = CliRunner().invoke(main, ["evaluate", str(copy), "--truth", truth])
    assert said.exit_code == 0
    page = write_report(copy).read_text("utf-8")
    assert "_truth.parquet and 1 more" in page
    assert "may have been trained" not in page


def test_a_run_that_is_not_finished_says_so(copy):
    parts = sorted(copy.glob("catalog/*.parquet"))
    parts[-1].unlink()
    for file in (copy / "notes").iterdir():
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if f'"part": {len(parts) - 1},' not in line))
    said = CliRunner().invoke(main, ["report", str(copy)])
    assert said.exit_code == 0, said.output
    page = (copy / "report.html").read_text("utf-8")
    assert f"The run has stopped: {len(parts) - 1} of {len(parts)} parts" in page
    for part in parts[:-1]:
        part.unlink()
    said = CliRunner().invoke(main, ["report", str(copy)])
    assert said.exit_code == 1
    assert "no part of the catalogue is finished yet" in said.output


def test_without_its_store_and_as_a_folder_of_parts(copy, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(copy / "catalog", bare)
    run_json = json.loads((copy / "run.json").read_text())
    for part in bare.iterdir():
        found = pq.read_table(part)
        about = {b"photozhpc.provenance": json.dumps(run_json | {"store": "/no/such"}).encode()}
        pq.write_table(found.replace_schema_metadata(about), part)
    page = write_report(bare).read_text("utf-8")
    assert "No cutouts are shown. The store /no/such no longer exists." in page
    assert "There is no run beside the catalogue" in page
    assert "There are no known redshifts" in page
    assert run_json["identity"]["checkpoint_sha256"] in page


@pytest.mark.parametrize("n", [1, 40])
def test_no_redshift_at_all(copy, tmp_path, n):
    found = pq.read_table(next(copy.glob("catalog/*.parquet"))).slice(0, n)
    for name in ("photoz", *QUANTILE_LEVELS, "photoz_ood"):
        null = pa.nulls(len(found), pa.float32())
        found = found.set_column(found.schema.get_field_index(name), name, null)
    page = write_report(one_file(tmp_path / "null", found)).read_text("utf-8")
    assert "No source has a redshift" in page
    assert facts(page)["with a redshift"] == "0"


def test_one_row(copy, tmp_path):
    found = pq.read_table(next(copy.glob("catalog/*.parquet"))).slice(0, 1)
    assert (
        facts(write_report(one_file(tmp_path / "one", found)).read_text("utf-8"))["sources"] == "1"
    )


@pytest.mark.parametrize("z", [0.0, 20.0])
def test_all_redshifts_alike(copy, tmp_path, z):
    found = pq.read_table(next(copy.glob("catalog/*.parquet")))
    for name in ("photoz", *QUANTILE_LEVELS):
        same = pa.array(np.full(len(found), z, "f4"))
        found = found.set_column(found.schema.get_field_index(name), name, same)
    page = write_report(one_file(tmp_path / "same", found)).read_text("utf-8")
    assert float(facts(page)["mean redshift"]) == z
    if z:
        assert f"{len(found):,} redshifts lie beyond the figure" in page


def test_the_axis_of_redshifts_holds_truth_and_pdfs(run):
    scan = scan_catalog(sorted(run.glob("catalog/*.parquet")))
    low = redshift_bins(scan, np.empty(0))[0][-1]
    assert scan.stack_Z[scan.z_edges[1:] > low].sum() <= 0.005 * scan.stack_Z.sum()
    assert redshift_bins(scan, np.array([0.5, low + 2]))[0][-1] >= low + 2


def test_the_sky_of_a_mosaic_is_not_in_the_pictures(small_store, rows, monkeypatch):
    """Roman mosaics may come with theirs: tens of sigma, on which no source is seen."""
    table = pa.Table.from_pandas(rows.head(6))
    clean = make_gallery(small_store, table, [], 6)
    read = CutoutStore.read_cutouts
    monkeypatch.setattr(CutoutStore, "read_cutouts", lambda *args: read(*args) + 64)
    for with_sky, without in zip(make_gallery(small_store, table, [], 6), clean, strict=True):
        images = [np.asarray(Image.open(io.BytesIO(one.png)), int) for one in (with_sky, without)]
        assert np.abs(images[0] - images[1]).max() <= 1  # of rounding


def test_errors_of_large_samples_are_not_0():
    assert page_accuracy._cell(Estimate(-0.0025, 0.00004), "+", 4, 1) == "−0.00250 ± 0.00004"
    assert page_accuracy._cell(Estimate(0.005, 0.0012), "", 1, 100) == "0.5 ± 0.1"
    assert page_accuracy._cell(Estimate(0.0, 0.0), "", 1, 100) == "0.0 ± 0.0"


def test_a_store_without_labels_is_no_fault(copy, monkeypatch):
    nothing = Truth(np.empty(0, np.int64), np.empty(0), "spectroscopic", {})
    monkeypatch.setattr(page_accuracy, "store_labels", lambda path: nothing)
    assert "There are no known redshifts" in write_report(copy).read_text("utf-8")


def test_other_bands_and_kron_fluxes(rows, tmp_path):
    n = 300
    rng = np.random.default_rng(1)
    flux = rng.lognormal(5, 1, (n, 2)).astype("f4")
    columns = {
        "source_id": np.arange(n),
        "ra": rng.normal(0, 0.05, n) % 360,
        "dec": rng.uniform(-1, 1, n),
        "photoz": rng.gamma(2, 0.5, n).astype("f4"),
        "photoz_flags": np.zeros(n, "i4"),
    }
    for band, values in zip(("g", "f606w_x"), flux.T, strict=True):
        columns |= {
            f"aper05_{band}_flux": values,
            f"aper05_{band}_flux_err": np.full(n, 2, "f4"),
            f"kron_{band}_flux": 2 * values,
            f"kron_{band}_flux_err": np.full(n, 4, "f4"),
        }
    page = write_report(one_file(tmp_path / "a", pa.table(columns))).read_text("utf-8")
    bands = table(page, "Bands")
    assert bands.index.tolist() == ["G", "F606W_X"]
    assert bands["magnitude"].tolist() == ["Kron", "Kron"]
    assert "does not say on which tile" in page or "No cutouts are shown" in page
    bare = {k: v for k, v in columns.items() if "flux" not in k}
    page = write_report(one_file(tmp_path / "b", pa.table(bare))).read_text("utf-8")
    assert "The catalogue holds no aperture fluxes." in page
    one = {k: v for k, v in columns.items() if "606" not in k and "kron" not in k}
    page = write_report(one_file(tmp_path / "c", pa.table(one))).read_text("utf-8")
    assert table(page, "Bands")["magnitude"].tolist() == ["aperture"]


def test_names_from_the_catalogue_are_no_markup(copy, tmp_path):
    found = pq.read_table(next(copy.glob("catalog/*.parquet")))
    evil = "<script>alert('x')</script>\" onload=1 \x1b\x00\u202e"
    about = {"survey": evil, "store": evil, "command": evil, "identity": 3}
    found = found.replace_schema_metadata({"photozhpc.provenance": json.dumps(about)})
    page = write_report(one_file(tmp_path / "evil", found)).read_text("utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not {"\x1b", "\x00", "\u202e"} & set(page)


def test_faults_are_one_line(copy, tmp_path):
    def refused(*words: str) -> str:
        said = CliRunner().invoke(main, ["report", *words])
        assert said.exit_code == 1, said.output
        assert len(said.output.splitlines()) == 1
        return said.output

    assert "no such folder" in refused(str(tmp_path / "none"))
    assert "no catalogue there" in refused(str(tmp_path))
    assert "is a folder" in refused(str(copy), "--out", str(tmp_path))
    assert "cannot be written" in refused(str(copy), "--out", str(tmp_path / "no" / "a.html"))
    assert "no such truth table" in refused(str(copy), "--truth", str(tmp_path / "none.parquet"))
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"source_id": [1], "z_true": [1.0]}), other)
    assert "no source_id in common" in refused(str(copy), "--truth", str(other))
    odd = one_file(tmp_path / "odd", pa.table({"source_id": [1], "ra": [1.0]}))
    assert "no column 'dec'" in refused(str(odd))
    sound = pa.table(
        {"source_id": [1], "ra": [1.0], "dec": [1.0], "photoz": [1.0], "photoz_flags": [0]}
    )
    for name, values, said in [
        ("photoz", ["high"], "'photoz' must hold numbers, not string"),
        ("photoz_flags", [0.5], "'photoz_flags' must hold integers, not double"),
        ("photoz_flags", pa.nulls(1, pa.int32()), "'photoz_flags' has a null"),
        ("source_id", ["a"], "'source_id' must hold integers, not string"),
    ]:
        bad = sound.set_column(sound.column_names.index(name), name, pa.array(values))
        assert said in refused(str(one_file(tmp_path / "bad", bad)))
    part = sorted(copy.glob("catalog/*.parquet"))[1]
    content = bytearray(part.read_bytes())
    columns = slice(4, len(content) - 8 - int.from_bytes(content[-8:-4], "little"))
    content[columns] = b"\xff" * len(content[columns])
    part.write_bytes(content)
    assert f"{part.name}: the part is missing or damaged" in refused(str(copy))
    assert not list(copy.glob("*.partial"))
