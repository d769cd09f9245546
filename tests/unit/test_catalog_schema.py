"""The catalogue's files: what other tools see in them, and that damage does not pass."""

import io
import json
import os
import socket
import time

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from astropy.io import votable
from astropy.table import Table

from photozhpc.catalog import PhotozFlag, catalog_schema, read_catalog
from photozhpc.catalog.photoz_catalog import (
    QUANTILE_LEVELS,
    check_part,
    flux_column,
    make_table,
    write_part,
)
from photozhpc.config import from_mapping, to_mapping
from photozhpc.errors import CatalogError, RunError
from photozhpc.files.disk import remove_stale_partials, write_durably
from photozhpc.model.density import LEVEL_Q
from photozhpc.survey import Survey, load_survey

SURVEY = load_survey("roman-sim")
IDENTITY = {"run_id": "0123", "index": 0, "shards": ["t/00000"]}
N = 200


def table(seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    shape = (N, len(SURVEY.bands), len(SURVEY.aperture_radii_arcsec))
    photoz_N = rng.uniform(0, 3, N).astype(np.float32)
    photoz_N[3] = np.nan
    flux_NCR = rng.normal(0, 100, shape).astype(np.float32)
    flux_NCR[5, 1] = np.nan
    return make_table(
        SURVEY,
        source_id_N=2**62 + np.arange(N),
        ra_N=rng.uniform(0, 360, N),
        dec_N=rng.uniform(-90, 90, N),
        tile_id_N=np.full(N, "t"),
        photoz_N=photoz_N,
        quantile_NQ=photoz_N[:, None] + np.linspace(-0.3, 0.3, 9, dtype=np.float32),
        ood_N=np.where(np.isnan(photoz_N), np.nan, 0.5).astype(np.float32),
        photoz_flags_N=np.where(np.isnan(photoz_N), 8, 0),
        flux_NCR=flux_NCR,
        flux_err_NCR=np.abs(flux_NCR),
        kron_flux_NC=flux_NCR[:, :, 0],
        kron_flux_err_NC=np.abs(flux_NCR[:, :, 0]),
    )


@pytest.fixture
def part(tmp_path):
    path = tmp_path / "out/catalog/part-000000.parquet"
    path.parent.mkdir(parents=True)
    write_part(table(), path, IDENTITY)
    return path


def test_columns_are_those_of_the_roman_source_catalogue():
    names = catalog_schema(SURVEY).names
    assert names[:5] == ["source_id", "ra", "dec", "tile_id", "photoz"]
    assert names[5:8] == ["photoz_mean", "photoz_mode", "photoz_median"]
    ends = [f"photoz_{side}{p}" for p in (68, 90, 95, 99) for side in ("low", "high")]
    assert names[8:16] == ends
    assert names[16:19] == ["photoz_ood", "photoz_flags", "star_probability"]
    assert names[19:21] == ["aper01_f062_flux", "aper01_f062_flux_err"]
    assert names[-4:-2] == ["aper16_f158_flux", "aper16_f158_flux_err"]
    assert names[-2:] == ["kron_f158_flux", "kron_f158_flux_err"]
    assert len(names) == 19 + 2 * 4 * (5 + 1)
    types = {field.name: str(field.type) for field in catalog_schema(SURVEY)}
    assert types["source_id"] == "int64"
    assert types["ra"] == types["dec"] == "double"
    assert types["photoz"] == types["aper16_f158_flux"] == "float"


def test_each_interval_column_holds_its_quantile():
    expected = {
        "photoz_low99": -0.3,
        "photoz_low95": -0.225,
        "photoz_low90": -0.15,
        "photoz_low68": -0.075,
        "photoz_median": 0.0,
        "photoz_high68": 0.075,
        "photoz_high90": 0.15,
        "photoz_high95": 0.225,
        "photoz_high99": 0.3,
    }
    rows, schema = table(), catalog_schema(SURVEY)
    assert tuple(sorted(QUANTILE_LEVELS.values())) == LEVEL_Q
    levels = {"low99": "0.005", "low95": "0.025", "low90": "0.05", "low68": "0.16"}
    levels |= {"high68": "0.84", "median": "median of"}
    for name, offset in expected.items():
        shift_N = rows[name].to_numpy() - rows["photoz"].to_numpy()
        np.testing.assert_allclose(shift_N[np.isfinite(shift_N)], offset, atol=1e-6)
        assert rows[name].null_count == 1
        description = schema.field(name).metadata[b"description"].decode()
        assert levels.get(name.removeprefix("photoz_"), "quantile 0.9") in description
    assert rows["photoz_ood"].null_count == 1


def test_radii_that_share_a_column_are_refused():
    mapping = to_mapping(SURVEY)
    mapping["aperture_radii_arcsec"] = [0.4, 0.41]
    with pytest.raises(CatalogError, match="the column 'aper04_f062_flux'; radii must differ"):
        catalog_schema(from_mapping(Survey, mapping, "test"))
    assert flux_column(1.6, "F158") == "aper16_f158_flux"


def test_missing_is_null_and_never_a_number(part):
    read = read_catalog(part)
    assert read["photoz"].null_count == 1
    assert read["photoz"][3].as_py() is None
    assert read["aper08_f087_flux"].null_count == 1
    assert read["aper08_f087_flux_err"][5].as_py() is None
    assert read["kron_f087_flux"].null_count == read["kron_f087_flux_err"].null_count == 1
    assert read["kron_f158_flux"].to_pylist() == read["aper01_f158_flux"].to_pylist()
    assert read["source_id"][0].as_py() == 2**62


def test_pandas_pyarrow_and_plain_parquet_read_the_folder(part):
    expected = table()
    frame = pd.read_parquet(part.parent)
    assert list(frame.columns) == expected.column_names
    assert np.array_equal(frame["source_id"], expected["source_id"].to_numpy())
    assert frame["photoz"].isna().sum() == 1
    assert pyarrow.dataset.dataset(part.parent).to_table().equals(expected)
    assert pq.read_table(part).equals(expected)


def test_astropy_reads_units_and_ucds_from_the_votable(part):
    read = Table.read(part, format="parquet.votable")
    assert read["tile_id"].tolist() == table()["tile_id"].to_pylist()
    assert read.colnames == catalog_schema(SURVEY).names
    assert len(read) == N
    assert read["aper16_f158_flux"].unit == "nJy"
    assert read["ra"].unit == "deg"
    metadata = pq.read_schema(part).metadata
    assert metadata[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    content = metadata[b"IVOA.VOTable-Parquet.content"]
    fields = votable.parse(io.BytesIO(content), verify="exception").get_first_table().fields
    ucds = {field.name: field.ucd for field in fields}
    assert ucds["source_id"] == "meta.id;meta.main"
    assert ucds["photoz"] == "src.redshift.phot"
    assert ucds["aper01_f158_flux"] == "phot.flux;em.IR.H"
    assert ucds["aper01_f158_flux_err"] == "stat.error;phot.flux;em.IR.H"
    assert ucds["kron_f158_flux"] == "phot.flux;em.IR.H"
    assert ucds["kron_f158_flux_err"] == "stat.error;phot.flux;em.IR.H"
    assert ucds["photoz_low68"] == ucds["photoz_low99"] == "src.redshift.phot;stat.min"
    assert ucds["photoz_high95"] == "src.redshift.phot;stat.max"
    assert [field.datatype for field in fields[:5]] == [
        *("long", "double", "double", "char", "float")
    ]
    assert [field.datatype for field in fields[16:18]] == ["float", "int"]
    flags = next(field.description for field in fields if field.name == "photoz_flags")
    assert all(f"{flag.value} {flag.name}" in flags for flag in PhotozFlag)


def test_units_stand_in_the_parquet_fields_too(part):
    field = pq.read_schema(part).field("aper02_f062_flux")
    assert field.metadata[b"unit"] == b"nJy"
    assert field.metadata[b"ucd"] == b"phot.flux;em.opt.R"


def test_a_sound_part_is_counted(part):
    counts = check_part(part, IDENTITY, N, catalog_schema(SURVEY)).counts
    assert (counts.rows, counts.flagged, counts.without_photoz) == (N, 1, 1)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_is_noticed(part, seed):
    """Anywhere in the data: the last bytes, the footer, are covered by the schema's check."""
    rng = np.random.default_rng(seed)
    content = bytearray(part.read_bytes())
    footer_len = int.from_bytes(content[-8:-4], "little")
    at = int(rng.integers(4, len(content) - footer_len - 8))
    content[at] ^= 1 << int(rng.integers(8))
    part.write_bytes(content)
    try:
        counts = check_part(part, IDENTITY, N, catalog_schema(SURVEY)).counts
    except CatalogError:
        with pytest.raises(CatalogError, match="missing or damaged"):
            read_catalog(part)
    else:  # a bit of a page header that means nothing to the reader
        assert counts.rows == N
        assert read_catalog(part).equals(table())


@pytest.mark.parametrize("keep", [0, 1, 7, 100, -1])
def test_a_truncated_part_is_noticed(part, keep):
    part.write_bytes(part.read_bytes()[:keep])
    with pytest.raises(CatalogError, match="missing or damaged"):
        check_part(part, IDENTITY, N, catalog_schema(SURVEY))
    with pytest.raises(CatalogError, match="run the same 'photozhpc infer' again"):
        read_catalog(part)


def test_a_part_of_other_shards_or_rows_is_noticed(part):
    schema = catalog_schema(SURVEY)
    with pytest.raises(CatalogError, match="of another run"):
        check_part(part, {**IDENTITY, "index": 1}, N, schema)
    with pytest.raises(CatalogError, match="other rows or columns"):
        check_part(part, IDENTITY, N + 1, schema)
    with pytest.raises(CatalogError, match="missing or damaged"):
        check_part(part.with_name("part-000001.parquet"), IDENTITY, N, schema)


def test_read_catalog_takes_a_run_its_folder_or_a_part(part):
    write_part(table(1), part.with_name("part-000001.parquet"), {**IDENTITY, "index": 1})
    both = read_catalog(part.parent)
    assert both.equals(pa.concat_tables([table(0), table(1)]))
    assert read_catalog(part.parents[1]).equals(both)
    assert read_catalog(str(part)).equals(table(0))
    assert read_catalog(part, columns=["photoz", "ra"]).column_names == ["photoz", "ra"]
    assert b"photozhpc.part" not in both.schema.metadata
    assert b"IVOA.VOTable-Parquet.content" in both.schema.metadata


def test_what_is_no_catalogue_is_refused(part, tmp_path):
    with pytest.raises(CatalogError, match="no catalogue there"):
        read_catalog(tmp_path / "nowhere")
    with pytest.raises(CatalogError, match="no column 'photo_z'; did you mean 'photoz'"):
        read_catalog(part, columns=["photo_z"])
    (part.parents[1] / "run.json").write_text('{"identity": {}, "n_parts": 3, "n_rows": 3}')
    with pytest.raises(CatalogError, match="not finished: 1 of 3 parts"):
        read_catalog(part.parent)
    assert len(read_catalog(part.parent, incomplete_ok=True)) == N
    (part.parents[1] / "run.json").write_text("{}")
    with pytest.raises(CatalogError, match=r"run\.json: is damaged"):
        read_catalog(part.parent)


def test_a_part_that_cannot_be_written_leaves_nothing(tmp_path):
    folder = tmp_path / "not a folder"
    folder.write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_durably(folder / "part", b"content")
    with pytest.raises(RunError, match=r"the disk is full \(No space left on device\)"):
        write_full()
    assert list(tmp_path.iterdir()) == [folder]


def write_full():
    """Raise what a full disk gives, from the device that is always full."""
    from photozhpc.files.disk import disk_error

    try:
        with open("/dev/full", "wb") as stream:
            stream.write(b"content")
            stream.flush()
    except OSError as error:
        raise disk_error(stream.name, error) from error


def test_only_what_dead_writers_left_is_removed(tmp_path):
    host = socket.gethostname()
    names = {
        "dead": f".part-000000.parquet.{host}.{2**22 + 1}.partial",
        "alive": f".part-000001.parquet.{host}.{os.getpid()}.partial",
        "elsewhere": ".part-000002.parquet.node7.12.partial",
        "elsewhere, old": ".part-000003.parquet.node7.12.partial",
        "part": "part-000004.parquet",
    }
    for name in names.values():
        (tmp_path / name).touch()
    two_days_ago = time.time() - 2 * 86400
    os.utime(tmp_path / names["elsewhere, old"], (two_days_ago, two_days_ago))
    remove_stale_partials(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {names["alive"], names["elsewhere"], names["part"]}


@pytest.mark.parametrize("n_parts", [10**18, -1, 1.0, None, True, "1"])
def test_a_run_of_impossible_parts_is_refused_at_once(part, n_parts):
    run = {"identity": {}, "n_parts": n_parts, "n_rows": N}
    (part.parents[1] / "run.json").write_text(json.dumps(run))
    with pytest.raises(CatalogError, match=r"run\.json: is damaged"):
        read_catalog(part.parent)


def test_rows_that_the_run_made_and_the_parts_lack_are_told_of(part):
    run = {"identity": {}, "n_parts": 1, "n_rows": N + 1}
    (part.parents[1] / "run.json").write_text(json.dumps(run))
    with pytest.raises(CatalogError, match=f"the parts hold {N} rows, the run made {N + 1}"):
        read_catalog(part.parents[1])
