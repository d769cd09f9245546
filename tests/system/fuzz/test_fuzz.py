"""Damaged stores, catalogues, tables, configurations and models: see harness.py.

A failure names its target and seed: `python tests/system/fuzz/long.py --targets Store --seed 123
--cases 1` repeats it.
"""

from pathlib import Path

import pytest
from config_targets import SiteYaml, SkyYaml, SurveyYaml, TrainYaml
from harness import Target, check_cases
from model_targets import Checkpoint, PitaZ, TrainingState
from store_targets import Catalogue, Store
from table_targets import SourceLists, TruthTables

TARGETS = [
    Store, Catalogue, SourceLists, TruthTables, Checkpoint, TrainingState, PitaZ,
    SurveyYaml, SkyYaml, TrainYaml, SiteYaml,
]  # fmt: skip


@pytest.mark.parametrize("kind", TARGETS)
def test_damage_is_refused_or_does_not_matter(kind: type[Target], tmp_path: Path) -> None:
    check_cases(kind, tmp_path)
