"""HATS collections, as LSDB, Astropy and DuckDB read them, and what all exports have in common."""

import io
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import astropy.units as u
import duckdb
import lsdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import qp
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.io import votable
from astropy.table import Table
from click.testing import CliRunner
from hats.catalog import TableProperties
from hats.catalog.dataset.collection_properties import CollectionProperties
from mocpy import MOC

from builders.catalogs import N_PARTS, NOWHERE, PART_LEN, SURVEY, located_rows, write_catalogue
from photozhpc.catalog import read_catalog, read_pdf
from photozhpc.catalog.footprint import FOOTPRINT_NAME
from photozhpc.catalog.photoz_catalog import catalog_schema
from photozhpc.cli import main
from photozhpc.errors import CatalogError, ConfigError, RunError
from photozhpc.exports import hats
from photozhpc.exports.export import export

pytestmark = [
    pytest.mark.filterwarnings("ignore:The default suffix behavior:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The inplace keyword"),  # lsdb 0.11 beside pandas 3.1
]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_catalogue(tmp_path_factory.mktemp("catalogue"))


@pytest.fixture(scope="module")
def rows(catalogue: Path) -> pd.DataFrame:
    return located_rows(catalogue)


@pytest.fixture(scope="module")
def hats_folder(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "Npix=5" / "roman"  # as a partition is called
    out.parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hats, "PARTITION_LEN", 500)
        patch.setattr(hats, "CHUNK_BYTES", 60_000)
        patch.setattr(hats, "INDEX_LEN", 300)
        done = export(catalogue, "hats", out)
    assert (done.rows, done.left_out) == (N_PARTS * PART_LEN - NOWHERE, NOWHERE)
    assert not list(out.parent.glob(".*.partial"))
    return out


def coordinates(frame: pd.DataFrame) -> SkyCoord:
    return SkyCoord(frame["ra"].to_numpy(float) * u.deg, frame["dec"].to_numpy(float) * u.deg)


def test_hats_holds_every_source_with_a_position_once(hats_folder, rows):
    catalog = lsdb.open_catalog(hats_folder)
    assert MOC.load(hats_folder / FOOTPRINT_NAME).sky_fraction > 0
    assert len(catalog.get_healpix_pixels()) >= 4
    assert catalog.hc_structure.catalog_info.total_rows == len(rows)
    read = catalog.compute().sort_values("source_id").reset_index(drop=True)
    for name in rows.columns:
        ours = rows[name].to_numpy()
        theirs = read[name].to_numpy(dtype=ours.dtype)
        np.testing.assert_array_equal(theirs, ours, err_msg=name)


@pytest.mark.parametrize(
    ("ra", "dec", "radius_arcsec"), [(0.0, 10.0, 200.0), (359.95, 10.02, 120.0), (10, -90, 100)]
)
def test_a_cone_search_finds_what_brute_force_finds(hats_folder, rows, ra, dec, radius_arcsec):
    found = lsdb.open_catalog(hats_folder).cone_search(ra, dec, radius_arcsec).compute()
    centre = SkyCoord(ra * u.deg, dec * u.deg)
    inside_N = coordinates(rows).separation(centre) < radius_arcsec * u.arcsec
    assert inside_N.sum() > 5
    assert sorted(found["source_id"]) == list(rows["source_id"][inside_N])


def test_a_cross_match_finds_what_brute_force_finds(hats_folder, rows):
    rng = np.random.default_rng(1)
    some = rows.iloc[::3]
    offset_arcsec = rng.uniform(0, 9, len(some))
    moved = coordinates(some).directional_offset_by(
        rng.uniform(0, 360, len(some)) * u.deg, offset_arcsec * u.arcsec
    )
    other = pd.DataFrame({"name": np.arange(len(some)), "ra": moved.ra.deg, "dec": moved.dec.deg})
    left = lsdb.from_dataframe(other, ra_column="ra", dec_column="dec", margin_threshold=10)
    ours = lsdb.open_catalog(hats_folder)
    matched = left.crossmatch(
        ours, radius_arcsec=6, n_neighbors=50, suffixes=("_left", "_right")
    ).compute()
    i_M, j_M, _, _ = search_around_sky(moved, coordinates(rows), 6 * u.arcsec)
    expected = sorted(
        zip(other["name"].to_numpy()[i_M], rows["source_id"].to_numpy()[j_M], strict=True)
    )
    assert len(expected) > 300
    assert sorted(zip(matched["name_left"], matched["source_id_right"], strict=True)) == expected
    assert len(ours.margin) > 0


def test_the_index_finds_a_source_by_its_id(hats_folder, rows):
    catalog = lsdb.open_catalog(hats_folder)
    for row in (0, len(rows) // 2, len(rows) - 1):
        wanted = int(rows["source_id"][row])
        found = catalog.id_search(values={"source_id": wanted}).compute()
        assert list(found["source_id"]) == [wanted]
        assert found["ra"].iloc[0] == rows["ra"][row]
    folder = hats_folder / "photoz_source_id" / "dataset" / "index"
    index = pq.read_table(folder, partitioning=None)
    assert np.array_equal(index["source_id"], rows["source_id"])
    partitions = {(pixel.order, pixel.pixel) for pixel in catalog.get_healpix_pixels()}
    assert (
        set(zip(*(index[name].to_pylist() for name in ("Norder", "Npix")), strict=True))
        == partitions
    )


def test_a_collection_may_be_moved(hats_folder):
    """Its tables name each other by their names, not by where they were made."""
    for name in ("photoz_10arcs", "photoz_source_id"):
        properties = TableProperties.read_from_dir(hats_folder / name)
        assert properties.primary_catalog == "photoz"
        assert properties.extra_columns is None
    n_bytes = sum(path.stat().st_size for path in hats_folder.rglob("*") if path.is_file())
    about = CollectionProperties.read_from_dir(hats_folder)
    assert int(about.hats_estsize) == pytest.approx(n_bytes / 1024, rel=0.05)


def test_hats_files_say_units_and_ucds_and_where_they_come_from(hats_folder):
    file = next((hats_folder / "photoz" / "dataset").rglob("Npix=*.parquet"))
    for path in (file, hats_folder / "photoz" / "dataset" / "_common_metadata"):
        metadata = pq.read_schema(path).metadata
        content = metadata[b"IVOA.VOTable-Parquet.content"]
        fields = votable.parse(io.BytesIO(content), verify="exception").get_first_table().fields
        assert [field.name for field in fields] == ["_healpix_29", *catalog_schema(SURVEY).names]
        assert metadata[b"photozhpc.provenance"] == b'{"command": "made by a test"}'


def test_a_second_export_replaces_the_first_and_nothing_else_is_replaced(
    catalogue, hats_folder, tmp_path
):
    part = catalogue / "catalog" / "part-000001.parquet"
    out = tmp_path / "hats"
    shutil.copytree(hats_folder, out)
    export(part, "hats", out, columns="rubin")
    read = lsdb.open_catalog(out)
    assert read.hc_structure.catalog_info.total_rows == PART_LEN
    assert {"objectId", "coord_ra", "pita_z_best", "f158_ap0p4FluxErr"} <= set(read.columns)
    assert [path.name for path in tmp_path.iterdir()] == ["hats"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "collection.properties").write_text("obs_collection=gaia\n")
    with pytest.raises(CatalogError, match="exists and is not an export to hats"):
        export(part, "hats", tmp_path / "mine")
    for to in ("fits", "vo-parquet"):
        export(part, to, tmp_path / to)
        export(part, to, tmp_path / to)
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    pq.write_table(pa.table({"source_id": [1]}), tmp_path / "sources.parquet")
    Table({"source_id": [1]}).write(tmp_path / "sources.fits")
    other = shutil.copy(part, tmp_path / "part.parquet")
    for to in ("fits", "vo-parquet", "qp"):
        for name in ("notes.txt", "sources.parquet", "sources.fits", other.name, "fits", "vo-parq"):
            file = tmp_path / name
            if to == name or not file.exists():
                continue
            before = file.read_bytes()
            with pytest.raises(CatalogError, match=f"is not an export to {to}; choose"):
                export(part, to, file)
            assert file.read_bytes() == before
    (tmp_path / "empty").touch()
    assert export(part, "fits", tmp_path / "empty").rows == PART_LEN


def test_columns_of_other_types_are_refused(catalogue, tmp_path):
    table = pq.read_table(catalogue / "catalog" / "part-000001.parquet")
    for name, kind in (("tile_id", pa.large_string()), ("photoz_flags", pa.uint8())):
        n = table.column_names.index(name)
        field = table.schema.field(n).with_type(kind)
        file = tmp_path / "part.parquet"
        pq.write_table(table.set_column(n, field, table[name].cast(kind)), file)
        for to in ("fits", "vo-parquet", "hats"):
            with pytest.raises(CatalogError, match=f"'{name}' is of type {kind}; export takes"):
                export(file, to, tmp_path / "out")


def test_a_partition_of_hats_is_no_catalogue_to_make_hats_of(hats_folder, tmp_path):
    file = next((hats_folder / "photoz" / "dataset").rglob("Npix=*.parquet"))
    with pytest.raises(CatalogError, match="already a partition of a HATS catalogue"):
        export(file, "hats", tmp_path / "out")
    assert export(file, "fits", tmp_path / "out").rows == pq.read_metadata(file).num_rows


def test_faults_of_hats_and_duckdb_are_one_line(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(hats, "PARTITION_LEN", 2)
    with pytest.raises(RunError, match=r"not be written \(single pixel row count \d+ exceeds thr"):
        export(catalogue, "hats", tmp_path / "out")
    monkeypatch.setattr(hats, "_write_collection", lambda *_: duckdb.sql("SELECT nothing"))
    with pytest.raises(RunError, match=r"HATS could not be written \(Binder Error"):
        export(catalogue, "hats", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_catalogue_is_exported_whole_or_not_at_all(catalogue, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(catalogue, copy)
    about = {"identity": {}, "n_parts": N_PARTS + 1, "n_rows": (N_PARTS + 1) * PART_LEN}
    (copy / "run.json").write_text(json.dumps(about))
    (copy / "hats").mkdir()
    for folder in (copy, copy / "catalog"):
        with pytest.raises(CatalogError, match="not finished: 6 of 7 parts"):
            export(folder, "fits", tmp_path / "out")
    with pytest.raises(CatalogError, match="no catalogue there; make one"):
        export(copy / "hats", "fits", tmp_path / "out")
    (copy / "run.json").write_text(json.dumps(about | {"n_parts": N_PARTS}))
    for to in ("fits", "vo-parquet", "hats", "qp"):
        with pytest.raises(CatalogError, match="hold 2400 rows, the run made 2800; 'photozhpc ver"):
            export(copy, to, tmp_path / "out")


def test_a_catalogue_is_not_written_over_by_its_own_export(catalogue, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(catalogue, copy)
    (tmp_path / "link").symlink_to(copy / "catalog")
    part = copy / "catalog" / "part-000000.parquet"
    before = {path.name: path.read_bytes() for path in part.parent.iterdir()}
    for target in (
        part,
        part.with_name("part-000099.parquet"),
        part.parent,
        tmp_path / "link" / "x",
        copy / "pdf" / "x",
    ):
        for to in ("fits", "vo-parquet", "hats"):
            with pytest.raises(CatalogError, match="is among the files of the catalogue itself"):
                export(copy, to, target)
    with pytest.raises(CatalogError, match="is among the files of the catalogue itself"):
        export(part, "vo-parquet", part)
    assert {path.name: path.read_bytes() for path in part.parent.iterdir()} == before


def test_what_a_killed_export_left_is_cleared_away_and_nothing_else(catalogue, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [tmp_path / f".{name}.{socket.gethostname()}.{ended.pid}.partial" for name in "ab"]
    for folder in left:
        folder.mkdir()
    export(catalogue, "fits", tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [left[1].name, "a"]


@pytest.mark.drawn
def test_stdout_is_for_data_even_when_a_worker_fails(catalogue, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(catalogue, copy)
    part = copy / "catalog" / "part-000003.parquet"
    content = bytearray(part.read_bytes())
    found = pq.read_metadata(part).row_group(0)
    columns = [found.column(number) for number in range(found.num_columns)]
    (photoz,) = [column for column in columns if column.path_in_schema == "photoz"]
    content[photoz.data_page_offset + photoz.total_compressed_size // 2] ^= 0xFF
    part.write_bytes(content)
    command = ["export", str(copy), "--format", "hats", "--out", str(tmp_path / "[1]"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "photozhpc", *command], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "part-000003.parquet" in done.stderr
    shutil.copy(catalogue / "catalog" / part.name, part)
    done = subprocess.run(
        [sys.executable, "-m", "photozhpc", *command], capture_output=True, text=True
    )
    assert json.loads(done.stdout)["sources"] == N_PARTS * PART_LEN - NOWHERE


def test_what_cannot_be_exported_is_said_in_one_line(catalogue, tmp_path):
    with pytest.raises(ConfigError, match="unknown format 'fit'; did you mean 'fits'"):
        export(catalogue, "fit", tmp_path / "x")
    with pytest.raises(ConfigError, match="unknown columns 'ruben'; did you mean 'rubin'"):
        export(catalogue, "fits", tmp_path / "x", columns="ruben")
    with pytest.raises(CatalogError, match="is a folder; name a file"):
        export(catalogue, "fits", tmp_path)
    foreign = tmp_path / "foreign.parquet"
    export(catalogue, "vo-parquet", foreign, columns="rubin")
    with pytest.raises(CatalogError, match="has no column 'dec'; export takes only"):
        export(foreign, "fits", tmp_path / "x")
    pq.write_table(read_catalog(catalogue).select([0, 1, 2]), foreign)
    with pytest.raises(CatalogError, match="export takes only catalogues"):
        export(foreign, "hats", tmp_path / "x")
    foreign.unlink()
    damaged = tmp_path / "damaged"
    shutil.copytree(catalogue, damaged)
    part = damaged / "catalog" / "part-000003.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 0xFF
    part.write_bytes(content)
    for to in ("fits", "vo-parquet", "hats"):
        with pytest.raises(CatalogError, match=r"part-000003.parquet: the part is missing or dam"):
            export(damaged, to, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged"]


@pytest.mark.drawn
def test_infer_exports_what_it_made(small_store, tmp_path):
    """All formats at once, beside the catalogue; what is missing for one is said before the run."""
    words = ["infer", "--survey", "roman-sim", "--store", str(small_store.path), "--workers", "1"]
    words += ["--out", str(tmp_path / "out")]
    told = CliRunner().invoke(main, [*words, "--export", "qp"])
    assert told.exit_code == 2
    assert "--export qp needs --pdf" in told.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("photozhpc.exports.export.find_spec", lambda name: None)
        told = CliRunner().invoke(main, [*words, "--export", "fits", "--export", "hats"])
    assert told.exit_code == 1
    assert "format hats needs hats_import, which is not installed; pip" in told.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photoz.fits").write_text("mine")
    told = CliRunner().invoke(main, [*words, "--export", "fits"])
    assert told.exit_code == 1
    assert "photoz.fits: exists and is not an export to fits" in told.stderr
    assert not (tmp_path / "out" / "run.json").exists()
    (tmp_path / "out" / "photoz.fits").unlink()

    words += ["--pdf", "quantiles", "--json"]
    for to in ("hats", "fits", "vo-parquet", "qp"):
        words += ["--export", to]
    told = CliRunner().invoke(main, words)
    assert told.exit_code == 0, told.output
    exports = json.loads(told.stdout)["exports"]
    table = read_catalog(tmp_path / "out")
    with_z = len(table) - table["photoz"].null_count
    for to, n in (("hats", len(table)), ("fits", len(table)), ("vo-parquet", len(table))):
        assert (exports[to]["sources"], exports[to]["left_out"]) == (n, 0)
    assert exports["qp"]["sources"] == with_z
    ids = sorted(table["source_id"].to_pylist())
    out = tmp_path / "out"
    opened = lsdb.open_catalog(out / "hats").compute()
    assert sorted(opened["source_id"]) == ids
    assert sorted(Table.read(out / "photoz.fits")["source_id"]) == ids
    assert sorted(pd.read_parquet(out / "photoz.parquet")["source_id"]) == ids
    ensemble = qp.read(str(out / "photoz_qp.hdf5"))
    assert ensemble.npdf == with_z

    (pdf,) = read_pdf(out)
    nested = opened.set_index("source_id")["photoz_quantiles"]
    assert nested.nest.columns == ["level", "z"]
    for i, z_P in zip(pdf.source_id_N, pdf.value_NP, strict=True):
        if np.isnan(z_P).any():
            assert pd.isna(nested[i])
        else:
            np.testing.assert_allclose(nested[i]["level"], pdf.axis_P)
            np.testing.assert_array_equal(nested[i]["z"], z_P)

    # As a reader of Rubin's object_photoz does it: arrays of p(z) for qp's interp.
    done = export(out, "hats", tmp_path / "rubin", columns="rubin")
    assert done.rows == len(table)
    rubin = lsdb.open_catalog(tmp_path / "rubin").compute().set_index("objectId")
    rubin = rubin.loc[ensemble.ancil["source_id"], "pita_ens_interp"]
    assert rubin.nest.columns == ["xvals", "yvals"]
    z_P = rubin.iloc[0]["xvals"].to_numpy()
    yvals_NP = np.stack([row["yvals"] for row in rubin])
    np.testing.assert_allclose(
        qp.Ensemble(qp.interp, data={"xvals": z_P, "yvals": yvals_NP}).median(),
        ensemble.median(),
        rtol=1e-3,
    )


def test_the_memory_of_an_export_does_not_grow_with_the_rows(tmp_path):
    """Peak memory, in a process of its own, of a FITS export of 4 and of 40 equal parts."""
    one = write_catalogue(tmp_path / "one") / "catalog" / "part-000000.parquet"
    program = (
        "import resource, sys; from photozhpc.exports.export import export; "
        "export(sys.argv[1], sys.argv[2], sys.argv[3]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    big = tmp_path / "big.parquet"
    table = pa.concat_tables([pq.read_table(one)] * 25)
    pq.write_table(table.replace_schema_metadata(pq.read_schema(one).metadata), big)
    places = {n: tmp_path / f"n{n}" for n in (4, 40)}
    for n, folder in places.items():
        folder.mkdir()
        for index in range(n):
            (folder / f"part-{index:06d}.parquet").hardlink_to(big)
    peaks = {}
    places[1] = tmp_path / "vo-parquet-40"  # a catalogue in one part
    for to in ("vo-parquet", "fits"):
        for n in (4, 40, 1):
            out = tmp_path / f"{to}-{n}"
            command = [sys.executable, "-c", program, str(places[n]), to, str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200)
            peaks[to, n] = int(done.stdout) / 1024
    # A row group of 131 072 rows is in memory at a time, and not the 400 000 of the part.
    assert peaks["fits", 1] - peaks["fits", 40] < 250, peaks
    assert peaks["fits", 40] - peaks["fits", 4] < 30, peaks
    # A row group is gathered: 131 072 rows are 33 MB, which 4 parts do not fill.
    assert peaks["vo-parquet", 40] - peaks["vo-parquet", 4] < 200, peaks
