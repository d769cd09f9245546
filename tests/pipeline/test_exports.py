"""Exports, read back by the tools that they are for, and compared with the catalogue itself."""

import io
import shutil
import subprocess
from pathlib import Path

import astropy.units as u
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits, votable
from astropy.table import Table
from click.testing import CliRunner

from builders.catalogs import N_PARTS, PART_LEN, located_rows, write_catalogue
from photozhpc.catalog import read_catalog
from photozhpc.cli import main
from photozhpc.exports.dialects import find_dialect, translated_schema
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


def coordinates(frame: pd.DataFrame) -> SkyCoord:
    return SkyCoord(frame["ra"].to_numpy(float) * u.deg, frame["dec"].to_numpy(float) * u.deg)


def test_columns_that_were_left_out_are_not_in_the_votable(catalogue, tmp_path):
    """Of a part from which columns were taken: every field of the VOTable is a column."""
    part = catalogue / "catalog" / "part-000001.parquet"
    names = ["source_id", "photoz", "ra", "dec", "tile_id", "photoz_flags", "aper04_f158_flux"]
    pq.write_table(pq.read_table(part).select(names), tmp_path / "some.parquet")
    out = tmp_path / "out.parquet"
    export(tmp_path / "some.parquet", "vo-parquet", out)
    content = pq.read_schema(out).metadata[b"IVOA.VOTable-Parquet.content"]
    table = votable.parse(io.BytesIO(content), verify="exception").get_first_table()
    assert [field.name for field in table.fields] == names
    assert table.description == "Photometric redshifts of survey roman-sim, by photozhpc"
    assert Table.read(out, format="parquet.votable")["aper04_f158_flux"].unit == "nJy"


def test_files_that_are_called_nearly_as_parts_are_none(catalogue, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(catalogue, copy)
    for name in (
        "part-000000 (1).parquet",
        "part-000000~.parquet",
        "part-x.parquet",
        "all.parquet",
    ):
        (copy / "catalog" / name).write_bytes(b"mine")
    assert export(copy, "fits", tmp_path / "a.fits").rows == N_PARTS * PART_LEN


def test_vo_parquet_is_read_by_astropy_pandas_pyarrow_and_duckdb(catalogue, tmp_path):
    out = tmp_path / "photoz.parquet"
    assert export(catalogue, "vo-parquet", out).rows == N_PARTS * PART_LEN
    expected = read_catalog(catalogue)
    read = Table.read(out, format="parquet.votable")
    assert read["photoz"].unit is None
    assert read["aper04_f158_flux"].unit == "nJy"
    assert np.array_equal(read["source_id"], expected["source_id"].to_numpy())
    assert pq.read_table(out).schema.equals(expected.schema)
    pd.testing.assert_frame_equal(pd.read_parquet(out), expected.to_pandas())
    with duckdb.connect() as database:
        counted = database.sql(
            f"SELECT count(*), count(photoz), max(source_id) FROM '{out}'"
        ).fetchall()[0]
    n_photoz = len(expected) - expected["photoz"].null_count
    assert counted == (len(expected), n_photoz, max(expected["source_id"].to_pylist()))
    assert pq.ParquetFile(out).num_row_groups == 1


def test_a_fits_table_is_the_catalogue(catalogue, tmp_path):
    out = tmp_path / "photoz.fits"
    export(catalogue, "fits", out)
    expected = read_catalog(catalogue).to_pandas()
    with fits.open(out, checksum=True) as hdus:
        hdus.verify("exception")
        header = hdus[1].header
        n = 1 + list(expected).index("aper04_f158_flux")
        assert (header[f"TTYPE{n}"], header[f"TUNIT{n}"]) == ("aper04_f158_flux", "nJy")
        assert header[f"TUCD{n}"] == "phot.flux;em.IR.H"
        assert "within 0.4 arcsec" in header[f"TCOMM{n}"]
        assert "made by a test" in str(header["HISTORY"]).replace("\n", "")
    read = Table.read(out)
    for name in expected:
        ours = expected[name].to_numpy()
        theirs = np.ma.asarray(read[name])
        if ours.dtype.kind == "f":
            theirs = np.ma.filled(theirs.astype(ours.dtype), np.nan)
        elif name == "tile_id":
            theirs = np.char.decode(theirs)
        np.testing.assert_array_equal(theirs, ours, err_msg=name)
    assert out.stat().st_size % 2880 == 0


@pytest.mark.skipif(shutil.which("stilts") is None, reason="stilts (TOPCAT's library) not there")
def test_topcat_reads_the_fits_table(catalogue, tmp_path):
    out = tmp_path / "photoz.fits"
    export(catalogue, "fits", out)
    command = ["stilts", "tpipe", f"in={out}", "cmd=stats Name NGood Minimum Maximum", "ofmt=csv"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    stats = pd.read_csv(io.StringIO(text)).set_index("Name")
    expected = read_catalog(catalogue).to_pandas()
    assert list(stats.index) == list(expected)
    assert stats["NGood"]["photoz"] == expected["photoz"].count()
    assert float(stats["Maximum"]["photoz"]) == pytest.approx(expected["photoz"].max())
    command = ["stilts", "tpipe", f"in={out}", "cmd=meta name units ucd", "ofmt=csv"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    columns = pd.read_csv(io.StringIO(text)).set_index("Name")
    assert columns["UCD"]["photoz"] == "src.redshift.phot"
    assert columns["Units"]["aper04_f158_flux"] == "nJy"


@pytest.mark.parametrize(
    ("columns", "names", "unit", "factor"),
    [
        (
            "rubin",
            {
                "source_id": "objectId",
                "ra": "coord_ra",
                "photoz_low68": "pita_z_err68_low",
                "photoz_high90": "pita_z_err90_high",
                "aper16_f062_flux_err": "f062_ap1p6FluxErr",
                "tile_id": "tile_id",
            },
            "nJy",
            1.0,
        ),
        (
            "euclid",
            {
                "source_id": "object_id",
                "dec": "declination",
                "photoz": "phz_best",
                "photoz_low90": "phz_90_int1",
                "photoz_high90": "phz_90_int2",
                "aper16_f062_flux": "flux_f062_1p6arcsec_aper",
                "aper16_f062_flux_err": "fluxerr_f062_1p6arcsec_aper",
                "photoz_flags": "phz_flags",
            },
            "uJy",
            1e-3,
        ),
    ],
)
def test_dialects_rename_and_convert(catalogue, tmp_path, columns, names, unit, factor):
    out = tmp_path / "photoz.parquet"
    export(catalogue, "vo-parquet", out, columns=columns)
    ours, theirs = read_catalog(catalogue).to_pandas(), pd.read_parquet(out)
    assert len(set(theirs.columns)) == len(ours.columns)
    for name, translated in names.items():
        scale = factor if "flux" in name else 1
        expected = ours[name] * scale if scale != 1 else ours[name]
        pd.testing.assert_series_equal(theirs[translated], expected, check_names=False, rtol=1e-6)
    schema = pq.read_schema(out)
    flux = schema.field(next(new for old, new in names.items() if "flux" in old))
    assert flux.metadata[b"unit"].decode() == unit
    content = schema.metadata[b"IVOA.VOTable-Parquet.content"]
    table = votable.parse(io.BytesIO(content), verify="exception").get_first_table()
    assert [field.name for field in table.fields] == list(theirs.columns)


def test_kron_fluxes_have_words_in_every_dialect():
    fields = [
        pa.field(
            name, pa.float32(), metadata={"ucd": "phot.flux", "unit": "nJy", "description": ""}
        )
        for name in ("kron_f158_flux", "kron_f158_flux_err")
    ]
    names = {
        name: translated_schema(pa.schema(fields), find_dialect(name)).names
        for name in ("rubin", "euclid")
    }
    assert names == {
        "rubin": ["f158_kronFlux", "f158_kronFluxErr"],
        "euclid": ["flux_f158_kron_aper", "fluxerr_f158_kron_aper"],
    }


def test_urls_are_no_places_to_write_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (
        ["export", "out", "--format", "fits", "--out", "s3://bucket/a.fits"],
        ["export", "s3://bucket/out", "--format", "fits", "--out", "a.fits"],
        ["infer", "--survey", "roman-sim", "--out", "s3://bucket/out"],
    ):
        told = CliRunner().invoke(main, words)
        assert told.exit_code == 2
        assert "is a URL; pass a path" in told.stderr
    assert not list(tmp_path.iterdir())
