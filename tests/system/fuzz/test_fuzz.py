"""Damaged files of every kind that is read: see harness.py.

A failure names its target and seed: `python tests/system/fuzz/long.py --targets Store --seed 123
--cases 1` repeats it.
"""

from pathlib import Path

import pytest
from harness import Target, check_cases
from targets import TARGETS


@pytest.mark.parametrize("kind", TARGETS)
def test_damage_is_refused_or_does_not_matter(kind: type[Target], tmp_path: Path) -> None:
    check_cases(kind, tmp_path)
