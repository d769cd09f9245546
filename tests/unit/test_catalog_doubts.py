"""Doubts about a whole catalogue."""

import numpy as np

from photozhpc.catalog.doubts import doubts
from photozhpc.catalog.photoz_catalog import PhotozFlag
from photozhpc.catalog.predict import estimate_flags

Z_N = np.linspace(0, 2, 100)


def test_a_good_catalogue_raises_none() -> None:
    assert doubts(100, 50, Z_N) == []
    assert doubts(10, 10, np.full(10, 0.5)) == []  # too few to tell
    assert doubts(100, 0, np.where(Z_N < 0.2, 5.0, Z_N)) == []


def test_what_is_wrong_with_a_whole_catalogue_is_said() -> None:
    assert doubts(100, 51, Z_N)[0].startswith("51 of 100 sources are flagged")
    [same] = doubts(100, 0, np.where(Z_N < 0.08, 3.0, 0.75 + 0.001 * Z_N))
    assert "90% of the redshifts are between 0.750 and 0.752" in same
    assert doubts(30, 0, np.full(30, np.nan)) == ["no source has a redshift"]


def test_estimates_are_flagged_where_they_contradict_themselves() -> None:
    quantile_NQ = np.tile(np.float32([0.1, 0.2, 0.3, 0.5, 0.6, 0.7]), (6, 1))
    quantile_NQ[5] = np.nan
    photoz_N = np.float32([0.4, 0.75, -0.01, 0.4, np.nan, 0.4])
    ood_N = np.float32([0.5, 0.5, 0.5, 1.2, np.nan, np.nan])
    flags_N = estimate_flags(photoz_N, quantile_NQ, ood_N)
    doubtful, unusual = PhotozFlag.IMPLAUSIBLE, PhotozFlag.UNUSUAL
    assert flags_N.tolist() == [0, doubtful, doubtful, unusual, 0, 0]
