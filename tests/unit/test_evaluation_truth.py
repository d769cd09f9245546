"""Truth tables: what is masked, or stands for 'unknown', is no truth, and that is said."""

from pathlib import Path

import astropy.units as u
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table

from photozhpc.errors import SourceListError
from photozhpc.evaluation.truth import read_truth

Z = np.array([0.5, 1.5, 0.7, 2.5])


def _written(path: Path, **columns) -> Path:
    Table({"source_id": [4, 3, 2, 1], "z_true": Z, **columns}).write(path, overwrite=True)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.fits", "t.ecsv", "t.csv"])
def test_masked_redshifts_are_no_truth(tmp_path: Path, name: str) -> None:
    z_true = MaskedColumn(Z, mask=[False, True, False, False])
    truth = read_truth([_written(tmp_path / name, z_true=z_true)])
    assert truth.source_id_N.tolist() == [1, 2, 4]
    assert truth.z_ref_N.tolist() == [2.5, 0.7, 0.5]
    assert truth.notes == ()


def test_a_masked_class_is_no_galaxy(tmp_path: Path) -> None:
    is_star = MaskedColumn([False, False, True, False], mask=[False, True, False, False])
    truth = read_truth([_written(tmp_path / "t.parquet", is_star=is_star)])
    assert truth.source_id_N.tolist() == [1, 4]


@pytest.mark.parametrize("mark", [99.0, 9.99, 1e20])
def test_marks_are_no_truth_and_said(tmp_path: Path, mark: float) -> None:
    truth = read_truth([_written(tmp_path / "t.parquet", z_true=[0.5, mark, 0.7, -99.0])])
    assert truth.z_ref_N.tolist() == [0.7, 0.5]
    (note,) = truth.notes
    assert note.startswith("1 values of 'z_true' are not redshifts")
    assert note.endswith(f"{mark:g}")


def test_stars_that_are_known_as_such_are_not_asked_about(tmp_path: Path) -> None:
    path = _written(tmp_path / "t.fits", z_true=[5e-4, 1.0, 1.1, 1.2], is_star=[1, 0, 0, 0])
    assert read_truth([path]).notes == ()
    assert "they are stars" in read_truth([_written(path, z_true=[5e-4, 1.0, 1.1, 1.2])]).notes[0]


def test_a_magnitude_of_99_is_none(tmp_path: Path) -> None:
    truth = read_truth([_written(tmp_path / "t.fits", mag_F158=[21.0, 99.0, 22.0, -99.0])])
    np.testing.assert_array_equal(truth.magnitudes["f158"], [np.nan, 22.0, np.nan, 21.0])


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"z_true": Z * u.km / u.s}, "'km / s' cannot be converted to a redshift"),
        ({"source_id": [4.0, 3.0, 2.0, 1.0]}, "does not hold one identifier per row"),
        (
            {"source_id": MaskedColumn([4, 3, 2, 1], mask=[0, 1, 0, 0])},
            "does not hold one identifier per row",
        ),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path: Path, columns: dict, words: str) -> None:
    with pytest.raises(SourceListError, match=words):
        read_truth([_written(tmp_path / "t.parquet", **columns)])


def test_one_name_twice_is_refused_and_a_byte_order_mark_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([[1], [0.5], [0.6]], names=["source_id", "z_true", "z_true"]), path)
    with pytest.raises(SourceListError, match=r"truth table has .* for 'z_true'"):
        read_truth([path])
    csv = tmp_path / "t.csv"
    csv.write_bytes(b"\xef\xbb\xbfsource_id,z_true,Z_TRUE\n5,0.5,0.9\n")
    truth = read_truth([csv])
    assert (truth.source_id_N.tolist(), truth.z_ref_N.tolist()) == ([5], [0.5])


def test_a_null_class_is_left_out_and_said(tmp_path: Path) -> None:
    is_star = pa.array([False, None, True, False])
    rows = pa.table({"source_id": [4, 3, 2, 1], "z_true": Z, "is_star": is_star})
    pq.write_table(rows, tmp_path / "t.parquet")
    truth = read_truth([tmp_path / "t.parquet"])
    assert truth.source_id_N.tolist() == [1, 4]
    assert truth.notes == ("1 values of 'is_star' are missing, and their rows left out",)


@pytest.mark.parametrize("word", ["null", "N/A", "-", "<NA>", ""])
def test_truth_reads_text_and_case_as_source_lists_do(tmp_path: Path, word: str) -> None:
    (tmp_path / "t.csv").write_text(f"SOURCE_ID,Z_Spec\n3,0.5\n2,{word}\n1,1.25\n")
    truth = read_truth([tmp_path / "t.csv"])
    assert (truth.source_id_N.tolist(), truth.z_ref_N.tolist()) == ([1, 3], [1.25, 0.5])


def test_identifiers_beyond_int64_are_not_wrapped(tmp_path: Path) -> None:
    path = _written(tmp_path / "t.parquet", source_id=np.array([1, 2, 3, 2**63 + 9], np.uint64))
    with pytest.raises(SourceListError, match="more than an int64 can"):
        read_truth([path])
