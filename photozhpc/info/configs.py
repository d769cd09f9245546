"""Configuration files, whole: those that come with the package, and the user's own."""

import dataclasses
import inspect
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from photozhpc.config import from_mapping, load_yaml, to_mapping
from photozhpc.errors import ConfigError, did_you_mean
from photozhpc.survey import SURVEY_DIR, Survey, load_survey, survey_names
from photozhpc.workers.site import SITE_DIR, Site, load_site, site_names

TRAIN_DIR = SURVEY_DIR.parent / "train"
SKY_DIR = SURVEY_DIR.parent / "sky"
_WIDTH = 100
# A key that only files of this kind have.
_TELLTALE = {"survey": "bands", "site": "infer", "recipe": "out", "sky": "density_scale"}
_OPTION = {"survey": "--survey", "site": "--site", "recipe": "--config", "sky": "--config"}


@dataclass(frozen=True)
class ConfigFile:
    """A configuration with every default filled in.

    Attributes:
        kind: "survey", "site", "recipe" (of a training) or "sky" (of a simulation).
        config: its dataclass.
    """

    kind: str
    name: str
    path: Path
    config: Any

    def mapping(self) -> dict[str, Any]:
        """Return it as plain dicts and lists, ready for YAML or JSON."""
        found: dict[str, Any] = to_mapping(self.config)
        if self.kind == "site" and found["name"] == self.path.stem:
            del found["name"]  # it is the file's
        return found

    def text(self) -> str:
        """Return it as YAML that loads as the same again, with what the keys mean."""
        lines = [
            f"# {self.kind} '{self.name}', {self.path}, with every default filled in.",
            f"# Save it, change it, and pass it: {_OPTION[self.kind]} my.yaml",
        ]
        meanings = attribute_texts(type(self.config))
        for key, value in self.mapping().items():
            if key in meanings:
                lines += textwrap.wrap(
                    meanings[key], _WIDTH, initial_indent="# ", subsequent_indent="#   "
                )
            lines.append(_yaml({key: value}))
        return "\n".join(lines)


def recipe_names() -> list[str]:
    """Names of the training recipes that come with the package, such as small/pita."""
    return sorted(str(path.relative_to(TRAIN_DIR))[:-5] for path in TRAIN_DIR.rglob("*.yaml"))


def sky_names() -> list[str]:
    """Names of the skies that come with the package: sky/default."""
    return sorted(f"sky/{path.stem}" for path in SKY_DIR.glob("*.yaml"))


def config_names() -> list[str]:
    """Names of all configurations that come with the package."""
    return [*survey_names(), *recipe_names(), *site_names(), *sky_names()]


def listing() -> list[dict[str, str]]:
    """Return kind, name, path and, in a line, what it is, of all that comes with the package."""
    return [
        {"kind": kind, "name": name, "path": str(path), "about": _about(path)}
        for name in config_names()
        for kind, path in [_named(name)]
    ]


def recipe_path(name_or_path: str | Path) -> Path:
    """Return the path of a recipe that comes with the package, by its name; or the path given.

    Raises:
        ConfigError: it is neither a name nor the path of a file.
    """
    text = str(name_or_path)
    if text in recipe_names():
        return TRAIN_DIR / f"{text}.yaml"
    if not text.endswith((".yaml", ".yml")) and not Path(text).exists():
        raise ConfigError(
            f"unknown recipe '{text}'{did_you_mean(text, recipe_names())}; or pass a YAML file"
        )
    return Path(text)


def load_config(name_or_path: str | Path) -> ConfigFile:
    """Load whatever configuration this is, by its name or path, checking every key.

    Raises:
        ConfigError: the name is unknown, or the file is missing, faulty, or of no known kind.
    """
    text = str(name_or_path)
    if text in config_names():
        kind, path = _named(text)
    elif text.endswith((".yaml", ".yml")):
        path = Path(text)
        kind = _kind_of(path)
    else:
        raise ConfigError(
            f"unknown configuration '{text}'{did_you_mean(text, config_names())}; or pass a "
            f"YAML file"
        )
    return ConfigFile(kind, text if text in config_names() else path.stem, path, _load(kind, path))


def _named(name: str) -> tuple[str, Path]:
    if name in survey_names():
        return "survey", SURVEY_DIR / f"{name}.yaml"
    if name in site_names():
        return "site", SITE_DIR / f"{name}.yaml"
    if name in sky_names():
        return "sky", SURVEY_DIR.parent / f"{name}.yaml"
    return "recipe", TRAIN_DIR / f"{name}.yaml"


def _kind_of(path: Path) -> str:
    """Return the kind whose keys a file has most of; its own loader names what is wrong in it."""
    keys = {str(key) for key in load_yaml(path)}
    known = {"survey": _keys(Survey), "site": _keys(Site)}
    scores = {kind: len(keys & fields) for kind, fields in known.items()}
    for kind in ("survey", "site"):
        if _TELLTALE[kind] in keys and scores[kind] >= len(keys) / 2:
            return kind
    if keys & {"method", "model", "out", "epochs", "optimiser"}:
        return "recipe"
    from photozhpc.sky import SkyConfig

    if keys & _keys(SkyConfig):
        return "sky"
    best = max(scores, key=lambda kind: scores[kind])
    if scores[best]:
        return best
    raise ConfigError(
        f"{path}: is no survey, site, training recipe or sky: it has none of their keys"
    )


def _keys(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _load(kind: str, path: Path) -> Any:
    if kind == "survey":
        return load_survey(path.absolute())
    if kind == "site":
        return load_site(path)
    if kind == "sky":
        from photozhpc.sky import load_sky_config

        return load_sky_config(path)
    from photozhpc.model.train_config import TrainConfig

    return from_mapping(TrainConfig, load_yaml(path), str(path))


def attribute_texts(cls: type) -> dict[str, str]:
    """Return what the docstring of a config dataclass says of its attributes."""
    text = inspect.getdoc(cls) or ""
    _, _, after = text.partition("Attributes:\n")
    found: dict[str, str] = {}
    # An entry is indented by 4, what goes on of it by more; a blank line ends the list.
    entries = after.split("\n\n")[0].split("\n")
    names: list[str] = []
    for line in entries:
        match = re.match(r" {4}([a-z_0-9]+(?:, [a-z_0-9]+)*): (.*)", line)
        if match:
            names = match[1].split(", ")[:1]
            found[names[0]] = f"{match[1]}: {match[2]}"
        elif names:
            found[names[0]] += f" {line.strip()}"
    yaml_words = {name: re.sub(r"\bNone\b", "null", text) for name, text in found.items()}
    return {name: text.replace("`", "") for name, text in yaml_words.items()}


def _yaml(mapping: dict[str, Any]) -> str:
    """Return a key and its value as YAML: a line for each band, else as short as can be read."""
    (value,) = mapping.values()
    flat = not isinstance(value, dict) and not (
        isinstance(value, list) and value and isinstance(value[0], dict)
    )
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": _WIDTH}
    text: str = yaml.safe_dump(mapping, default_flow_style=True if flat else None, **options)
    return text.strip()[1:-1] if flat else text.rstrip("\n")


def _about(path: Path) -> str:
    """Return the description of a survey; else the first sentence of a file's comments."""
    description = load_yaml(path).get("description")
    if description:
        return str(description)
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    return re.split(r"(?<=[.:]) |\.$", " ".join(comments))[0].rstrip(".:")
