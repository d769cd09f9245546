"""Tables in the forms that programs and archives write; the oracle is what was written."""

import bz2
import gzip
from pathlib import Path

import astropy.units as u
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import Latitude, Longitude, SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked

from photozhpc.errors import SourceListError
from photozhpc.sources.table_file import TableFile, read_columns

N = 12
ID = np.arange(101, 101 + N)
RA, DEC = np.linspace(150, 150.1, N), np.linspace(2, 2.1, N)
Z = np.linspace(0.5, 1.6, N)
MASK = np.arange(N) % 3 == 0
_NAMES = ("source_id", "ra", "dec", "z_spec", "ebv", "sky.ra", "sky.dec")
_ROWS = list(zip(ID, RA.tolist(), DEC.tolist(), strict=True))
CSV = "source_id,ra,dec\n" + "".join(f"{i},{a!r},{d!r}\n" for i, a, d in _ROWS)


def read(path: Path) -> TableFile:
    return read_columns(path, "source list", lambda name: name.lower() in _NAMES)


def is_right(table: TableFile) -> None:
    np.testing.assert_array_equal(table.columns["source_id"], ID)
    np.testing.assert_allclose(table.columns["ra"], RA, rtol=1e-14)
    np.testing.assert_allclose(table.columns["dec"], DEC, rtol=1e-14)


def _masked(kind: str) -> Table:
    if kind == "quantity":
        return QTable(
            {"z_spec": Masked(Z, MASK) * u.dimensionless_unscaled, "ebv": Masked(Z, MASK) * u.mag}
        )
    text = MaskedColumn([f"{z:.4f}" for z in Z], mask=MASK)
    return Table({"z_spec": MaskedColumn(Z, mask=MASK), "ebv": text})


@pytest.mark.parametrize("kind", ["column", "quantity"])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("t.parquet", {}),
        ("t.ecsv", {}),
        ("d.ecsv", {"serialize_method": "data_mask"}),
        ("t.fits", {}),
        ("d.fits", {"serialize_method": "data_mask"}),
        ("t.xml", {"format": "votable"}),
        ("t.csv", {}),
        ("t.hdf5", {"path": "t", "serialize_meta": True}),
    ],
)
def test_what_is_masked_is_missing(tmp_path: Path, kind: str, name: str, how: dict) -> None:
    table = _masked(kind)
    if name == "t.hdf5":
        table.remove_column("ebv")  # HDF5 has no text that may be missing
    table.write(tmp_path / name, **how)
    found = read(tmp_path / name).columns
    np.testing.assert_array_equal(found["z_spec"], np.where(MASK, np.nan, Z))
    if kind == "column" and "ebv" in found:
        missing_N = [value in (None, "") or value != value for value in found["ebv"]]
        np.testing.assert_array_equal(missing_N, MASK)


def test_masks_outlive_the_metadata_of_the_file(tmp_path: Path) -> None:
    _masked("column").write(tmp_path / "t.parquet")
    bare = pq.read_table(tmp_path / "t.parquet").replace_schema_metadata({})
    pq.write_table(bare, tmp_path / "t.parquet")
    bare.to_pandas().to_csv(tmp_path / "t.csv", index=False)
    for name in ("t.parquet", "t.csv"):
        found = read(tmp_path / name).columns["z_spec"]
        np.testing.assert_array_equal(found, np.where(MASK, np.nan, Z))


def test_a_number_that_fits_declares_null_is_missing(tmp_path: Path) -> None:
    values = np.where(MASK, 99, 2)
    columns = [fits.Column("z_spec", "J", array=values, null=99)]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    found = read(tmp_path / "t.fits").columns["z_spec"]
    np.testing.assert_array_equal(found, np.where(MASK, np.nan, 2))


def test_nulls_of_pandas_are_missing(tmp_path: Path) -> None:
    frame = pd.DataFrame({"z_spec": pd.array(Z, dtype="Float64")})
    frame.loc[MASK, "z_spec"] = pd.NA
    frame.to_parquet(tmp_path / "t.parquet")
    found = read(tmp_path / "t.parquet").columns["z_spec"]
    np.testing.assert_array_equal(found, np.where(MASK, np.nan, Z))


@pytest.mark.parametrize(
    "content",
    [
        CSV.encode(),
        b"\xef\xbb\xbf" + CSV.encode(),
        CSV.encode("utf-16"),
        b"\xfe\xff" + CSV.encode("utf-16-be"),
        CSV.encode("utf-32"),
        CSV.replace("\n", "\r\n").encode(),
        CSV.replace("\n", "\r").encode(),
        CSV.replace(",", ", ").encode(),
        CSV.replace(",", ";").encode(),
        CSV.replace(",", "\t").encode(),
        CSV.replace(",", "|").encode(),
        CSV.replace(",", "  ").encode(),
        b"\xef\xbb\xbf" + CSV.replace("source_id,ra,dec", '"source_id","ra","dec"').encode(),
        b"#" + CSV.encode(),
        b"# made by TOPCAT\n# 1 row per source\n" + CSV.encode(),
        b"# field of 5\xb0\n" + CSV.encode("latin-1"),
        gzip.compress(b"\xef\xbb\xbf" + CSV.encode()),
    ],
    ids=["csv", "bom", "utf-16", "utf-16-be", "utf-32", "crlf", "cr", "spaces", "semicolons",
         "tabs", "bars", "blanks", "bom, quotes", "comment", "remarks", "latin-1", "gzip"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["t.csv", "t", "t.cat"])
def test_text_is_read_whatever_parts_or_encodes_it(
    tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    table = read(tmp_path / name)
    is_right(table)
    assert table.names == ["source_id", "ra", "dec"]


@pytest.mark.parametrize(
    "how",
    ["ascii.ipac", "ascii.commented_header", "ascii.basic", "ascii.tab", "ascii.ecsv", "ascii.rdb",
     "ascii.fixed_width", "ascii.mrt", "votable", "fits", "parquet"],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_the_content_says_of_which_kind_a_file_is(tmp_path: Path, how: str, packed: bool) -> None:
    path = tmp_path / "list.dat"
    Table({"source_id": ID, "ra": RA, "dec": DEC}).write(path, format=how)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    is_right(read(path))


def test_a_header_of_sextractor_with_vectors(tmp_path: Path) -> None:
    """The numbers of a vector's columns are left out (SExtractor's manual, 'ASCII_HEAD')."""
    header = (
        "#   1 source_id  Running object number\n#   2 FLUX_APER  Flux vector  [count]\n"
        "#   5 ra  Right ascension  [deg]\n#   6 dec  Declination  [deg]\n"
        "#   7 MAG_APER  Magnitude vector  [mag]\n"
    )
    rows = "".join(f"{i} 1 2 3 {a!r} {d!r} 20 21\n" for i, a, d in _ROWS)
    (tmp_path / "t.cat").write_text(header + rows)
    table = read(tmp_path / "t.cat")
    is_right(table)
    assert table.names[1:4] == ["FLUX_APER", "FLUX_APER_1", "FLUX_APER_2"]
    assert table.names[-2:] == ["MAG_APER", "MAG_APER_1"]
    assert table.units["ra"] == "deg"


def test_units_below_the_names_are_read(tmp_path: Path) -> None:
    rows = CSV.split("\n", 1)[1].replace(",", "\t")
    (tmp_path / "vizier.tsv").write_text(
        f"#RESOURCE=yCat\nsource_id\tra\tdec\n\trad\trad\n---\t---\t---\n{rows}"
    )
    (tmp_path / "t.txt").write_text(f"# a list\n# source_id ra dec\n# - rad rad\n{rows}")
    for name in ("vizier.tsv", "t.txt"):
        table = read(tmp_path / name)
        is_right(table)
        assert (table.units["ra"], table.units["dec"]) == ("rad", "rad")


def _hdu(name: str, **columns: np.ndarray) -> fits.BinTableHDU:
    return fits.BinTableHDU(Table(columns), name=name)


def test_of_several_tables_the_one_with_the_columns_is_read(tmp_path: Path) -> None:
    header = _hdu("LDAC_IMHEAD", card=np.array(["x" * 100]))
    objects = _hdu("LDAC_OBJECTS", source_id=ID, ra=RA, dec=DEC, VIGNET=np.ones((N, 5, 5)))
    fits.HDUList([fits.PrimaryHDU(), header, objects]).writeto(tmp_path / "ldac.fits")
    table = read(tmp_path / "ldac.fits")
    is_right(table)
    assert not table.notes
    redshifts = _hdu("REDSHIFTS", source_id=ID + 1, z_spec=Z)
    fits.HDUList([fits.PrimaryHDU(), redshifts, objects]).writeto(tmp_path / "desi.fits")
    table = read(tmp_path / "desi.fits")
    is_right(table)
    assert table.notes == ["desi.fits: table 2 'LDAC_OBJECTS' was read, but not 1 'REDSHIFTS'"]
    chips = [fits.PrimaryHDU(), header, objects, header.copy(), objects.copy()]
    fits.HDUList(chips).writeto(tmp_path / "chips.fits")
    with pytest.raises(SourceListError, match=r"2 of its tables .*2 'LDAC_OBJECTS', 4"):
        read(tmp_path / "chips.fits")
    fits.PrimaryHDU(np.zeros((2, 2))).writeto(tmp_path / "image.fits")
    with pytest.raises(SourceListError, match="it holds no table"):
        read(tmp_path / "image.fits")


def test_a_structure_of_idl_is_a_table(tmp_path: Path) -> None:
    columns = [
        fits.Column(name, f"{N}{form}", array=values[None])
        for name, form, values in (("source_id", "K", ID), ("ra", "D", RA), ("dec", "D", DEC))
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "idl.fits")
    is_right(read(tmp_path / "idl.fits"))


@pytest.mark.parametrize("name", ["t.ecsv", "t.parquet"])
def test_units_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    angles = {"ra": Longitude(RA / 15, u.hourangle), "dec": Latitude(np.radians(DEC), u.rad)}
    QTable(angles).write(tmp_path / name)
    table = read(tmp_path / name)
    assert (table.units["ra"], table.units["dec"]) == ("hourangle", "rad")
    np.testing.assert_allclose(table.columns["ra"], RA / 15)


def test_a_votable_in_a_parquet_file_says_unit_and_frame(tmp_path: Path) -> None:
    """VOParquet, IVOA Note 1.0; units of Arrow's fields are those of romancal and photozhpc."""
    about = (
        '<VOTABLE version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE>'
        '<COOSYS ID="s" system="eq_FK4" equinox="B1950"/><TABLE>'
        '<FIELD name="ra" datatype="double" unit="rad" ref="s"/>'
        '<FIELD name="dec" datatype="double" ref="s"/></TABLE></RESOURCE></VOTABLE>'
    )
    fields = [pa.field("ra", pa.float64()), pa.field("dec", pa.float64(), metadata={"unit": "mas"})]
    schema = pa.schema(fields, metadata={"IVOA.VOTable-Parquet.content": about})
    pq.write_table(pa.table([RA, DEC], schema=schema), tmp_path / "t.parquet")
    table = read(tmp_path / "t.parquet")
    assert table.units == {"ra": "rad", "dec": "mas"}
    assert table.frames == {"ra": "eq_FK4 B1950", "dec": "eq_FK4 B1950"}
    Table({"ra": RA, "dec": DEC}).write(tmp_path / "t.xml", format="votable")
    text = (tmp_path / "t.xml").read_text()
    text = text.replace("<TABLE", '<COOSYS ID="s" system="galactic"/><TABLE', 1)
    (tmp_path / "t.xml").write_text(text.replace('name="ra"', 'name="ra" ref="s"'))
    assert read(tmp_path / "t.xml").frames == {"ra": "galactic"}


@pytest.mark.parametrize("name", ["t.ecsv", "t.fits"])
@pytest.mark.parametrize("frame", ["icrs", "galactic", "fk4"])
def test_positions_of_a_skycoord_are_icrs(tmp_path: Path, name: str, frame: str) -> None:
    QTable({"sky": SkyCoord(RA, DEC, unit="deg").transform_to(frame)}).write(tmp_path / name)
    found = read(tmp_path / name).columns
    np.testing.assert_allclose(found["sky.ra"], RA, atol=1e-9)
    np.testing.assert_allclose(found["sky.dec"], DEC, atol=1e-9)


def test_the_exact_name_wins_and_two_others_are_too_many(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"RA": RA + 1, "ra": RA, "Dec": DEC, "DEC": DEC, "\ufeffID": ID}), path)
    table = read_columns(path, "source list")
    assert table.find("ra") == "ra"
    assert table.find("RA") == "RA"
    assert table.find("id") == "ID"
    assert table.find("ebv") is None
    with pytest.raises(SourceListError, match=r"'Dec' and 'DEC' for 'dec'"):
        table.find("dec")
    pq.write_table(pa.table([RA, RA], names=["ra", "ra"]), path)
    with pytest.raises(SourceListError, match="'ra' and 'ra'"):
        read_columns(path, "source list").find("ra")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bz2.compress(CSV.encode()), "bzip2 file; unpack it"),
        (b"PK\x03\x04xlsx", "zip file; unpack it"),
        (CSV.encode("utf-16-le"), "unknown format; give the source list"),
        (CSV.split("\n", 1)[1].encode(), "no line names its columns"),
        (gzip.compress(CSV.encode())[:-20], "truncated or damaged gzip file"),
    ],
)
def test_what_cannot_be_read_says_what_to_do(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(SourceListError, match=words):
        read(tmp_path / "t.csv")


def test_a_scaled_null_of_fits_is_missing(tmp_path: Path) -> None:
    columns = [
        fits.Column("ra", "J", array=np.where(MASK, -999, np.round(RA * 1e6)).astype(np.int32)),
        fits.Column("z_spec", "J", array=np.where(MASK, 12, np.arange(N) + 20)),
    ]
    table = fits.BinTableHDU.from_columns(columns)
    table.header.update(TSCAL1=1e-6, TNULL1=-999, TSCAL2=0.1, TZERO2=0.2, TNULL2=12)
    table.writeto(tmp_path / "t.fits")
    found = read(tmp_path / "t.fits").columns
    np.testing.assert_allclose(found["ra"], np.where(MASK, np.nan, np.round(RA, 6)), rtol=1e-14)
    expected = np.where(MASK, np.nan, 0.1 * (np.arange(N) + 20) + 0.2)
    np.testing.assert_allclose(found["z_spec"], expected)


def test_the_frame_of_an_old_fits_table_is_told(tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns([fits.Column("ra", "D", array=RA)])
    table.header.update(RADESYS="FK4", EQUINOX=1950.0)
    table.writeto(tmp_path / "t.fits")
    assert read(tmp_path / "t.fits").frames == {"ra": "FK4 1950.0"}


def test_columns_of_a_votable_are_known_by_name(tmp_path: Path) -> None:
    path = tmp_path / "t.xml"
    Table({"source_id": ID, "ra": RA, "dec": DEC}).write(path, format="votable")
    text = path.read_text()
    for i, name in enumerate(("source_id", "ra", "dec")):  # as NED writes them
        assert f'ID="{name}"' in text
        text = text.replace(f'ID="{name}"', f'ID="main_col{i + 1}"')
    path.write_text(text)
    is_right(read(path))
    path.write_text(text.replace('ID="main_col2"', 'ID="ra"').replace('name="ra"', 'name="RA deg"'))
    is_right(read(path))


def test_an_index_of_pandas_that_is_a_range_is_a_column(tmp_path: Path) -> None:
    index = pd.RangeIndex(101, 101 + N, name="source_id")
    pd.DataFrame({"ra": RA, "dec": DEC}, index=index).to_parquet(tmp_path / "t.parquet")
    is_right(read(tmp_path / "t.parquet"))


def test_units_of_parquet_in_any_case(tmp_path: Path) -> None:
    field = pa.field("ra", pa.float64(), metadata={"Unit": "rad"})
    pq.write_table(pa.table([pa.array(RA)], schema=pa.schema([field])), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet").units == {"ra": "rad"}


def test_remarks_with_quotes_of_windows(tmp_path: Path) -> None:
    rows = [f"{line},it\u2019s \u2013 so" for line in CSV.splitlines()]
    (tmp_path / "t.csv").write_bytes("\r\n".join(rows).encode("cp1252"))
    is_right(read(tmp_path / "t.csv"))


def test_a_last_row_that_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CSV.rstrip("\n").rpartition(",")[0])
    with pytest.raises(SourceListError, match="last row is cut short"):
        read(path)


def test_nan_in_the_last_column_of_a_numbered_header(tmp_path: Path) -> None:
    path, header = tmp_path / "t.cat", "# 1 source_id\n# 2 ra\n# 3 dec\n# 4 z_spec\n"
    path.write_text(header + "".join(f"{i} {a!r} {d!r} nan\n" for i, a, d in _ROWS))
    is_right(read(path))
    assert np.isnan(read(path).columns["z_spec"]).all()
    path.write_text(header + "".join(f"{i} {a!r} {d!r}\n" for i, a, d in _ROWS[:1]))
    with pytest.raises(SourceListError):
        read(path)


def test_of_several_tables_of_hdf5_none_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    rows = Table({"source_id": ID, "ra": RA, "dec": DEC})
    Table({"x": RA}).write(path, path="a/first")
    rows.write(path, path="a/second", append=True)
    is_right(read(path))
    rows.write(path, path="third", append=True)
    with pytest.raises(SourceListError, match="of its tables fit equally well"):
        read(path)


@pytest.mark.parametrize("separator", [",", " "])
def test_a_header_without_an_end_is_no_name_of_a_file(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(separator.join(("source_id", "ra", "dec")))
    assert len(read(path).columns["ra"]) == 0
    (tmp_path / "other.csv").write_text(CSV)
    path.write_text(str(tmp_path / "other.csv"))
    assert not read(path).columns


def test_blank_lines_below_a_machine_readable_table_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    Table({"source_id": ID, "ra": RA, "dec": DEC}).write(path, format="ascii.mrt")
    path.write_text(path.read_text() + "\n  \n\n")
    is_right(read(path))
