"""What is a redshift, and what only stands for 'unknown': the rule for labels and truth."""

import numpy as np
import pytest

from photozhpc.sources.redshifts import Remarks, is_placeholder, usable_redshifts


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "mark", [99, 99.9, 99.99, 9.99, 9.999, 9.9999, 999, 9999, 1e20, 1e30, np.inf, 20.5]
)
def test_marks_are_no_redshifts_and_counted(mark: float, dtype: type) -> None:
    remarks = Remarks()
    value_N = np.array([0.5, mark, 1.2, mark], dtype)
    np.testing.assert_array_equal(
        usable_redshifts(value_N, "z_spec", remarks), np.array([0.5, np.nan, 1.2, np.nan], dtype)
    )
    (line,) = remarks.lines()
    assert line.startswith("2 values of 'z_spec' are not redshifts")
    assert line.endswith(f": {mark:g}")


def test_nothing_is_said_of_what_every_catalogue_writes() -> None:
    remarks = Remarks()
    value_N = np.array([-99, -1, 0, np.nan, -9.99, -np.inf, 1e-300, 14.44, 9.98, 10.6])
    z_N = usable_redshifts(value_N, "z_spec", remarks)
    np.testing.assert_array_equal(z_N, [np.nan] * 7 + [14.44, 9.98, 10.6])
    assert remarks.lines() == []


def test_a_largest_value_that_is_repeated_and_stars_are_kept_and_said() -> None:
    remarks = Remarks()
    z_N = usable_redshifts(np.array([9.9, 0.4, 9.9, 5e-4, 9.9]), "z", remarks, remedy="lower it")
    np.testing.assert_array_equal(z_N, [9.9, 0.4, 9.9, 5e-4, 9.9])
    stars, largest = remarks.lines()
    assert stars.startswith("1 redshifts of 'z' are below 0.002 and were kept")
    assert largest.startswith("3 redshifts of 'z' equal its largest value and were kept")
    assert largest.endswith("lower it: 9.9")
    assert np.isnan(usable_redshifts(np.array([9.9, 0.4]), "z", remarks, z_max=9)[0])


def test_remarks_on_several_tables_are_added_up() -> None:
    remarks = Remarks()
    for mark in (99.0, 999.0):
        usable_redshifts(np.array([mark]), "z", remarks)
    (line,) = remarks.lines()
    assert line.startswith("2 values")
    assert line.endswith(": 99, 999")


def test_ordinary_numbers_are_no_placeholders() -> None:
    value_N = np.array([0, 1, 9.9, 9, 90, 98.99, 100, 9.98, 150.0, np.nan, 359.99])
    assert not is_placeholder(value_N).any()
    assert is_placeholder(np.array([-99.0, 99, 9.99, -999, 1e10, np.inf])).all()
