"""Source lists in four formats give the same Sources; every fault is named."""

from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table

from photozhpc.errors import SourceListError
from photozhpc.sources.identifiers import id_of_text
from photozhpc.sources.read import Sources, read_source_lists, read_sources
from photozhpc.survey import SourceColumns


def _table() -> Table:
    return Table(
        {
            "ID": np.array([7, 3, 5]),
            "RA": [150.1, 150.2, 150.3],
            "DEC": [2.1, 2.2, 2.3],
            "zsp": MaskedColumn([0.5, -99.0, 1.5], mask=[False, False, True]),
            "EBV": [0.01, 0.02, 0.03],
        }
    )


COLUMNS = SourceColumns(source_id="id", ra="ra", dec="dec", z_spec="zsp", ebv="ebv")


@pytest.mark.parametrize("name", ["list.parquet", "list.fits", "list.ecsv", "list.csv"])
def test_every_format_reads_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".parquet"):
        _table().to_pandas().to_parquet(path)
    else:
        _table().write(path)
    sources = read_sources([path], COLUMNS)
    assert sources.source_id_N.tolist() == [7, 3, 5]
    assert sources.source_id_N.dtype == np.int64
    np.testing.assert_allclose(sources.ra_N, [150.1, 150.2, 150.3])
    np.testing.assert_allclose(sources.dec_N, [2.1, 2.2, 2.3])
    np.testing.assert_array_equal(sources.z_spec_N, np.float32([0.5, np.nan, np.nan]))
    np.testing.assert_allclose(sources.ebv_N, [0.01, 0.02, 0.03], rtol=1e-6)


def test_several_lists_are_joined_and_a_repeated_id_is_refused(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    table = _table()
    table.write(first)
    table["ID"] += 100
    table.write(second)
    assert len(read_sources([first, second], COLUMNS)) == 6
    with pytest.raises(SourceListError, match="source_id 3 appears 2 times"):
        read_sources([first, first], COLUMNS)


def test_columns_that_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    _table()["ID", "RA", "DEC"].write(path)
    sources = read_sources([path], COLUMNS)
    assert np.isnan(sources.z_spec_N).all()
    assert (sources.ebv_N == 0).all()


def test_rows_without_identifiers_are_numbered_in_a_single_list_only(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    _table()["RA", "DEC"].write(path)
    assert read_sources([path], COLUMNS).source_id_N.tolist() == [0, 1, 2]
    with pytest.raises(SourceListError, match="no column 'id'"):
        read_sources([path, path], COLUMNS)


def test_identifiers_may_be_whole_floats_or_text(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    table = _table()
    table.replace_column("ID", [7.0, 3.0, 5.0])
    table.write(path)
    assert read_sources([path], COLUMNS).source_id_N.tolist() == [7, 3, 5]
    table.replace_column("ID", ["J1000+02", "12", "b"])
    table.write(path, overwrite=True)
    lists = read_source_lists([path], COLUMNS)
    assert lists.sources.source_id_N.tolist() == [id_of_text("J1000+02"), 12, id_of_text("b")]
    [note] = [note for note in lists.notes if "is text" in note]
    assert f"source_id is its hash ('J1000+02': {id_of_text('J1000+02')})" in note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.remove_column("RA"), "no column 'ra'"),
        (lambda t: t.replace_column("ID", [1.5, 2.5, 3.5]), "must hold integers"),
        (lambda t: t.replace_column("DEC", ["north", "b", "c"]), "does not hold numbers"),
    ],
)
def test_a_faulty_column_is_named(tmp_path: Path, change, words: str) -> None:
    table, path = _table(), tmp_path / "list.csv"
    change(table)
    table.write(path)
    with pytest.raises(SourceListError, match=words):
        read_sources([path], COLUMNS)


@pytest.mark.parametrize("name", ["list.parquet", "list.fits", "list.ecsv", "list.xyz"])
def test_a_damaged_or_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(SourceListError, match="no such source list"):
        read_sources([path], COLUMNS)
    path.write_bytes(b"\x89nonsense\x00\xff" * 50)
    with pytest.raises(SourceListError, match=name.split(".")[1]):
        read_sources([path], COLUMNS)


@pytest.mark.parametrize("name", ["RA", "ID", "EBV"])
def test_a_vector_column_is_named(tmp_path: Path, name: str) -> None:
    table = _table()
    table.replace_column(name, np.ones((3, 2), table[name].dtype))
    table.write(tmp_path / "list.fits")
    with pytest.raises(SourceListError, match=f"column '{name}' must hold one value"):
        read_sources([tmp_path / "list.fits"], COLUMNS)


def test_an_identifier_beyond_int64_is_refused(tmp_path: Path) -> None:
    table = _table()
    table.replace_column("ID", np.array([1, 2, 2**63], np.uint64))
    table.write(tmp_path / "list.fits")
    with pytest.raises(SourceListError, match="column 'id' holds 9223372036854775808"):
        read_sources([tmp_path / "list.fits"], COLUMNS)
    table["ID"] = np.array([1, 2, 2**63 - 1], np.uint64)
    table.write(tmp_path / "list.fits", overwrite=True)
    assert read_sources([tmp_path / "list.fits"], COLUMNS).source_id_N[2] == 2**63 - 1


@pytest.mark.parametrize("name", ["list.parquet", "list.fits", "list.ecsv", "list.csv"])
def test_an_empty_file_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(SourceListError, match="is empty"):
        read_sources([tmp_path / name], COLUMNS)


def test_an_absurd_reddening_is_a_missing_one(tmp_path: Path) -> None:
    table = _table()
    table["EBV"] = [-99.0, -0.01, np.nan]
    table.write(tmp_path / "list.ecsv")
    ebv_N = read_sources([tmp_path / "list.ecsv"], COLUMNS).ebv_N
    np.testing.assert_array_equal(ebv_N, np.float32([0, -0.01, 0]))


@pytest.mark.filterwarnings("error")
def test_a_truncated_fits_list_is_one_error_without_warnings(tmp_path: Path) -> None:
    path = tmp_path / "list.fits"
    _table().write(path)
    path.write_bytes(path.read_bytes()[:-2880])
    with pytest.raises(SourceListError, match="truncated"):
        read_sources([path], COLUMNS)


@pytest.mark.parametrize("values", [np.array(["2020-01-01"] * 3, "M8[us]"), np.ones(3, "m8[s]")])
def test_dates_are_no_positions(tmp_path: Path, values: np.ndarray) -> None:
    path = tmp_path / "list.parquet"
    _table().to_pandas().assign(RA=values).to_parquet(path)
    with pytest.raises(SourceListError, match="column 'RA' does not hold numbers"):
        read_sources([path], COLUMNS)


def test_numbers_beyond_float32_are_no_redshifts_and_no_dust(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    frame = _table().to_pandas().assign(zsp=[1e300, 1e-300, 0.5], EBV=[1e300, 0.1, np.inf])
    frame.to_parquet(path)
    sources = read_sources([path], COLUMNS)
    np.testing.assert_array_equal(sources.z_spec_N, np.float32([np.nan, np.nan, 0.5]))
    np.testing.assert_array_equal(sources.ebv_N, np.float32([0, 0.1, 0]))


def _written(path: Path, **columns) -> Path:
    Table(
        {"source_id": [7, 3, 5], "ra": [150.1, 150.2, 150.3], "dec": [2.1, 2.2, 2.3], **columns}
    ).write(path)
    return path


def _read(path: Path, **names) -> tuple[Sources, tuple[str, ...]]:
    joined = read_source_lists([path], SourceColumns(**names))
    return joined.sources, joined.notes


@pytest.mark.parametrize(
    ("unit", "per_degree"),
    [(u.rad, np.pi / 180), (u.hour, 1 / 15), (u.arcsec, 3600), (u.arcmin, 60), (u.mas, 3.6e6)],
)
@pytest.mark.parametrize("name", ["list.parquet", "list.ecsv", "list.fits"])
def test_positions_are_converted_from_the_unit_that_is_stated(
    tmp_path: Path, unit: u.UnitBase, per_degree: float, name: str
) -> None:
    ra = [150.1 * per_degree, 150.2 * per_degree, 150.3 * per_degree] * unit
    path = _written(tmp_path / name, ra=ra)
    sources, notes = _read(path)
    np.testing.assert_allclose(sources.ra_N, [150.1, 150.2, 150.3], rtol=1e-14)
    assert notes == (f"3 values of 'ra' were converted from {unit} to degrees",)


@pytest.mark.parametrize(
    ("unit", "is_read"),
    [("deg", True), ("degrees", True), ("DEG", True), ("deg (J2000)", True), ("none", True),
     ("h", True), ("hours", True), ("radians", True), ("RAD", True),
     ("h:m:s", False), ("furlong", False), ("m", False), ("pix", False)],
)  # fmt: skip
def test_words_for_units_and_those_that_are_none(tmp_path: Path, unit: str, is_read: bool) -> None:
    factor = {"h": 1 / 15, "hours": 1 / 15, "radians": np.pi / 180, "RAD": np.pi / 180}
    path = _written(
        tmp_path / "list.fits", ra=np.array([150.1, 150.2, 150.3]) * factor.get(unit, 1)
    )
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["TUNIT2"] = unit
    if is_read:
        np.testing.assert_allclose(_read(path)[0].ra_N, [150.1, 150.2, 150.3], rtol=1e-14)
    else:
        with pytest.raises(SourceListError, match=f"'ra': '{unit}' cannot be converted to deg"):
            _read(path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"dec": [2.1, 95.0, 2.3]}, "'dec' holds 95 degrees, which is not on the sky"),
        ({"ra": [150.1, 540360.0, 150.3]}, "'ra' holds 540360 degrees"),
        ({"dec": [2.1, 2.2, 2.3] * u.hourangle}, "cannot be in hours"),
        ({"ra": ["10:00:24.0"] * 3}, "'10:00:24.0'; write decimal degrees"),
        ({"ra": ["10 00 24.0"] * 3}, "does not hold numbers"),
        ({"ra": ["150,1"] * 3}, "'150,1'; write a decimal point"),
        ({"ra": np.float16([150, 151, 152])}, "holds float16"),
        ({"z_spec": [1e4, 2e4, 3e4] * u.km / u.s}, "'km / s' cannot be converted to a redshift"),
        ({"ebv": [1e4, 2e4, 3e4] * u.km / u.s}, "'km / s' cannot be converted to mag"),
        (
            {"source_id": [1000.0, 2000.0, 2.0**60]},
            "must hold integers.* such as 1000",
        ),
        (
            {"source_id": MaskedColumn([7, 3, 5], mask=[0, 1, 0])},
            "'source_id' is empty .* in 1 rows",
        ),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path: Path, columns: dict, words: str) -> None:
    with pytest.raises(SourceListError, match=words):
        _read(_written(tmp_path / "list.parquet", **columns))


def test_a_position_that_is_missing_is_no_position(tmp_path: Path) -> None:
    path = _written(tmp_path / "list.fits", ra=[150.1, -999.0, -0.5], dec=[2.1, -99.0, 2.3])
    sources, notes = _read(path)
    np.testing.assert_array_equal(sources.ra_N, [150.1, np.nan, -0.5])
    np.testing.assert_array_equal(sources.dec_N, [2.1, np.nan, 2.3])
    assert notes[0] == "1 values of 'ra' are not positions and count as missing: -999"


def test_positions_of_32_bits_are_said(tmp_path: Path) -> None:
    sources, notes = _read(_written(tmp_path / "list.fits", ra=np.float32([150.1, 150.2, 150.3])))
    assert np.abs(sources.ra_N - [150.1, 150.2, 150.3]).max() * 3600 < 0.055
    assert "'ra' are float32: positions in steps of 0.055 arcsec" in notes[0]


def test_millimagnitudes_are_converted_and_what_is_no_reddening_is_said(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.ecsv", ebv=[300.0, 20.0, 99.0] * u.mmag)
    np.testing.assert_allclose(_read(path)[0].ebv_N, [0.3, 0.02, 0.099], rtol=1e-6)
    sources, notes = _read(_written(tmp_path / "b.ecsv", ebv=[99.0, 0.1, 1e20]))
    np.testing.assert_array_equal(sources.ebv_N, np.float32([np.nan, 0.1, np.nan]))
    assert notes == ("2 values of 'ebv' are not E(B-V) and count as missing: 99, 1e+20",)


def test_reddening_is_of_the_first_column_that_has_it(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.ecsv", ebv=[0.1, np.nan, -99.0], dust_ebv=[0.4, 0.5, 0.6])
    sources, _ = _read(path, ebv=("ebv", "dust_ebv"))
    np.testing.assert_array_equal(sources.ebv_N, np.float32([0.1, 0.5, 0.6]))


@pytest.mark.parametrize(
    "name",
    ["object_id", "objid", "NUMBER", "ID", "id", "objectId", "TARGETID", "COADD_OBJECT_ID", "recno",
     "galaxy_id", "label", "specObjID", "ls_id", "flagged_spatial_id", "ID_COSMOS2020", "#id"],
)  # fmt: skip
def test_rows_are_not_numbered_beside_identifiers_of_another_name(
    tmp_path: Path, name: str
) -> None:
    path = _written(tmp_path / "list.parquet")
    table = Table.read(path)
    table.rename_column("source_id", name)
    table.write(path, overwrite=True)
    with pytest.raises(SourceListError, match=rf"source_columns: \{{source_id: {name}\}}"):
        _read(path)
    assert _read(path, source_id=name)[0].source_id_N.tolist() == [7, 3, 5]
    sources, notes = _read(path, source_id=None)
    assert sources.source_id_N.tolist() == [0, 1, 2]
    assert "the rows are numbered from 0" in notes[0]


def test_rows_are_not_numbered_beside_names(tmp_path: Path) -> None:
    path = _written(tmp_path / "list.csv", ID=["GAL-1", "GAL-2", "GAL-3"])
    table = Table.read(path)
    table.remove_column("source_id")
    table.write(path, overwrite=True)
    with pytest.raises(SourceListError, match=r"source_columns: \{source_id: ID\}"):
        _read(path)
    assert len(set(_read(path, source_id="ID")[0].source_id_N)) == 3


@pytest.mark.parametrize(
    ("name", "values"),
    [("tile_id", [7, 7, 7]), ("name", ["a", "b", "b"]), ("valid", [1, 2, 3]),
     ("centroid", [1, 2, 3]), ("num_exposures", [1, 2, 3]), ("id", [0.5, 1.5, 2.5])],
)  # fmt: skip
def test_rows_are_numbered_with_a_note_where_nothing_is_their_identifier(
    tmp_path: Path, name: str, values: list
) -> None:
    path = _written(tmp_path / "list.parquet", **{name: values})
    table = Table.read(path)
    table.remove_column("source_id")
    table.write(path, overwrite=True)
    sources, notes = _read(path)
    assert sources.source_id_N.tolist() == [0, 1, 2]
    assert notes[0].startswith("list.parquet: there is no column 'source_id' of identifiers")


def test_the_lists_that_repeat_an_identifier_are_named(tmp_path: Path) -> None:
    first, second = _written(tmp_path / "a.csv"), _written(tmp_path / "b.csv", source_id=[1, 2, 5])
    with pytest.raises(SourceListError, match=r"a.csv and \S*b.csv: source_id 5 appears"):
        read_sources([first, second], SourceColumns())


def test_labels_stop_at_the_highest_redshift_of_the_survey(tmp_path: Path) -> None:
    path = _written(tmp_path / "list.fits", z_spec=[0.5, 9.99, 9.0])
    joined = read_source_lists([path], SourceColumns(), z_spec_max=8)
    np.testing.assert_array_equal(joined.sources.z_spec_N, np.float32([0.5, np.nan, np.nan]))
    assert joined.labels == {"z_spec": 1}
    assert joined.notes[0].endswith(": 9, 9.99")


@pytest.mark.parametrize("word", ["N/A", "null", "--", "", "None", "NaN"])
def test_words_for_nothing_are_missing(tmp_path: Path, word: str) -> None:
    path = _written(tmp_path / "list.csv", z_spec=["0.5", word, "1.5"])
    np.testing.assert_array_equal(_read(path)[0].z_spec_N, np.float32([0.5, np.nan, 1.5]))


def test_another_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    QTable({"source_id": [1], "sky": SkyCoord([1.0], [2.0], unit="deg", frame="fk4")}).write(path)
    with pytest.raises(SourceListError, match=r"'sky\.ra' is in the frame 'fk4 B1950"):
        _read(path, ra="sky.ra", dec="sky.dec")


def test_a_position_of_which_half_is_missing_is_none(tmp_path: Path) -> None:
    # -99 is on the sky as a right ascension: at 261 degrees.
    path = _written(tmp_path / "list.fits", ra=[150.1, -99.0, 150.3], dec=[2.1, -99.0, 2.3])
    sources, _ = _read(path)
    np.testing.assert_array_equal(sources.ra_N, [150.1, np.nan, 150.3])
    np.testing.assert_array_equal(sources.dec_N, [2.1, np.nan, 2.3])
