"""A short form of the long run (chaos.py): faults drawn anew, at moments drawn anew."""

import random

import kills
import pytest
from chaos import FAULTS, Site, trial

from builders.draws import drawn


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Site:
    return Site(tmp_path_factory.mktemp("chaos"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("fault", drawn(FAULTS, 2), ids=lambda fault: fault.__name__)
def test_the_catalogue_is_the_same_in_the_end(site, fault):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    *_, rows_lost, problems = trial(site, random.Random(seed), fault)
    assert (rows_lost, problems) == (0, [])


@pytest.fixture(scope="module")
def kills_site(small_sky, small_store, tmp_path_factory) -> kills.Site:
    return kills.Site(tmp_path_factory.mktemp("kills"), small_sky, small_store.path)


@pytest.mark.timeout(240)  # a command is started three times, and imports torch each time
@pytest.mark.parametrize("kind", drawn(kills.KINDS, 1))
def test_a_killed_command_ends_as_if_it_had_not_been(kills_site, kind):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    *_, problems = kills.trial(kills_site, kind, random.Random(seed))
    assert problems == []
