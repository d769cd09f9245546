"""Source lists in four formats give the same Sources; every fault is named."""

from pathlib import Path

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from photozhpc.errors import SourceListError
from photozhpc.mosaic.sources import read_sources
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
    with pytest.raises(SourceListError, match=r"source_id 3 stands 2 times"):
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


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.remove_column("RA"), "no column 'ra'"),
        (lambda t: t.replace_column("ID", ["a", "b", "c"]), "must hold integers"),
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
    with pytest.raises(SourceListError, match=f"column '{name.lower()}' must hold one value"):
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
    with pytest.raises(SourceListError, match="column 'ra' does not hold numbers"):
        read_sources([path], COLUMNS)


def test_numbers_beyond_float32_are_no_redshifts_and_no_dust(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    frame = _table().to_pandas().assign(zsp=[1e300, 1e-300, 0.5], EBV=[1e300, 0.1, np.inf])
    frame.to_parquet(path)
    sources = read_sources([path], COLUMNS)
    np.testing.assert_array_equal(sources.z_spec_N, np.float32([np.nan, np.nan, 0.5]))
    np.testing.assert_array_equal(sources.ebv_N, np.float32([0, 0.1, 0]))
