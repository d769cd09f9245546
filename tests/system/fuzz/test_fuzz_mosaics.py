"""Damaged mosaics, which take the longest: see test_fuzz.py."""

from pathlib import Path

import pytest
from harness import Target, check_cases
from mosaic_targets import FitsMosaic, RomanAsdf

MOSAICS = [RomanAsdf, FitsMosaic]


@pytest.mark.parametrize("kind", MOSAICS)
def test_a_damaged_mosaic_is_refused_or_does_not_matter(kind: type[Target], tmp_path: Path) -> None:
    check_cases(kind, tmp_path)
