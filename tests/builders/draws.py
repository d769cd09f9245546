"""Long tests of many kinds: each run of the tests tries some, drawn anew; `make test-long` all."""

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
