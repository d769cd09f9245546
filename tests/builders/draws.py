"""Long tests: each run of the tests tries some of them, drawn anew; `make test-long` tries all."""

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

# The processes of one pytest-xdist run must draw the same.
_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or str(random.getrandbits(64))


def drawn(kinds: Sequence[Any], n: int) -> list[Any]:
    """Return all kinds as parameters of a test, all but n of them marked slow."""
    chosen = random.Random(f"{_RUN} {len(kinds)}").sample(range(len(kinds)), n)
    return [
        kind if index in chosen else pytest.param(kind, marks=pytest.mark.slow)
        for index, kind in enumerate(kinds)
    ]


def draw_third(tests: Sequence[pytest.Item]) -> None:
    """Mark all but a third of the tests that are marked `drawn` slow."""
    long = [test for test in tests if test.get_closest_marker("drawn")]
    left_out = random.Random(_RUN).sample(long, len(long) - -(-len(long) // 3))
    for test in left_out:
        test.add_marker("slow")
