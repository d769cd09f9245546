"""What is damaged; mosaics, which take the longest, first."""

from config_targets import SiteYaml, SkyYaml, SurveyYaml, TrainYaml
from harness import Target
from model_targets import Checkpoint, PitaZ, TrainingState
from mosaic_targets import FitsMosaic, RomanAsdf
from store_targets import Catalogue, Store
from table_targets import SourceLists, TruthTables

TARGETS: list[type[Target]] = [
    RomanAsdf, FitsMosaic, Store, Catalogue, SourceLists, TruthTables, Checkpoint, TrainingState,
    PitaZ, SurveyYaml, SkyYaml, TrainYaml, SiteYaml,
]  # fmt: skip
