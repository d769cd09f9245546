"""YAML: surveys, skies, training runs, sites."""

import os
from random import Random
from typing import Any

from harness import Damage, Target
from mutate import mangle, mutate_yaml

from builders.paths import CONFIGS
from photozhpc.config import from_mapping, load_yaml, to_mapping
from photozhpc.errors import ConfigError
from photozhpc.model.train_config import TrainConfig
from photozhpc.sky.sky_config import load_sky_config
from photozhpc.survey import load_survey
from photozhpc.workers.site import STAGES, load_site, make_job


class _Yaml(Target):
    cases = 60
    weight = 1.0
    kind = ""

    def make(self) -> None:
        for path in sorted((CONFIGS / self.kind).rglob("*.yaml")):
            (self.folder / path.name).write_bytes(path.read_bytes())

    def damage(self, rng: Random) -> Damage:
        name = rng.choice(list(self.files))
        content = self.files[name]
        change = mangle if rng.random() < 0.2 else mutate_yaml
        return Damage(name, change(content, rng))


class SurveyYaml(_Yaml):
    kind = "surveys"

    def read(self, damage: Damage) -> Any:
        survey = load_survey(self.folder / damage.name)
        hash(survey)
        found = [
            survey.match_mosaic(name)
            for name in ("tile7_f158_coadd.asdf", "hlsp_candels_hst_acs_gs_f814w_v1.0_drz.fits")
        ]
        return to_mapping(survey), found


class SkyYaml(_Yaml):
    kind = "sky"

    def read(self, damage: Damage) -> Any:
        return load_sky_config(self.folder / damage.name)


class TrainYaml(_Yaml):
    kind = "train"

    def read(self, damage: Damage) -> Any:
        path = self.folder / damage.name
        return from_mapping(TrainConfig, load_yaml(path), str(path))


class SiteYaml(_Yaml):
    kind = "sites"

    def read(self, damage: Damage) -> Any:
        os.environ.setdefault("SCRATCH", "/scratch")
        site = load_site(self.folder / damage.name)
        try:
            return site, [str(make_job(site, stage, ["--x"])) for stage in STAGES]
        except ConfigError as error:
            return site, str(
                error
            )  # which names the site: it is the environment that lacks something
