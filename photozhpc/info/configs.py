"""Complete configurations: those that come with the package, and the user's."""

import dataclasses
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from photozhpc.config import (
    KINDS,
    Kind,
    bundled_configs,
    config_path,
    load_yaml,
    read_config,
    to_mapping,
)
from photozhpc.errors import ConfigError
from photozhpc.info.docstrings import attributes
from photozhpc.survey import Survey, load_survey
from photozhpc.workers.site import Site, load_site

_WIDTH = 100
# A key that only files of this kind have.
_TELLTALE = {"survey": "bands", "site": "infer"}
_OPTION = {"survey": "--survey", "site": "--site", "recipe": "--config", "sky": "--config"}


@dataclass(frozen=True)
class ConfigFile:
    """A configuration with every default filled in.

    Attributes:
        kind: "survey", "site", "recipe" (for training) or "sky" (for simulation).
        config: its dataclass.
    """

    kind: Kind
    name: str
    path: Path
    config: Any

    def mapping(self) -> dict[str, Any]:
        """Return it as plain dicts and lists, ready for YAML or JSON."""
        mapping: dict[str, Any] = to_mapping(self.config)
        if self.kind == "site" and mapping["name"] == self.path.stem:
            del mapping["name"]  # it is the name of the file
        return mapping

    def text(self) -> str:
        """Return it as YAML, with the meaning of the keys as comments; it loads as the same."""
        lines = [
            f"# {self.kind} '{self.name}', {self.path}, with every default filled in.",
            f"# Save it, change it, and pass it: {_OPTION[self.kind]} my.yaml",
        ]
        # A text on several keys stands before the first of them.
        meanings = {
            names.split(", ")[0]: re.sub(r"\bNone\b", "null", f"{names}: {text}").replace("`", "")
            for names, text in attributes(type(self.config)).items()
        }
        for key, value in self.mapping().items():
            if key in meanings:
                lines += textwrap.wrap(
                    meanings[key], _WIDTH, initial_indent="# ", subsequent_indent="#   "
                )
            lines.append(_yaml({key: value}))
        return "\n".join(lines)


def listing() -> list[dict[str, str]]:
    """Return kind, name, path and one line of description of each bundled configuration."""
    return [
        {"kind": kind, "name": name, "path": str(path), "about": _about(path)}
        for kind in KINDS
        for name, path in bundled_configs(kind).items()
    ]


def load_config(name_or_path: str | Path) -> ConfigFile:
    """Load a configuration of any kind, by its name or path, checking every key.

    Raises:
        ConfigError: the name is unknown, or the file is missing, faulty, or of no known kind.
    """
    path, name = config_path(name_or_path, *KINDS), str(name_or_path)
    kind = next((kind for kind in KINDS if name in bundled_configs(kind)), None)
    if kind is None:
        kind, name = _kind_of(path), path.stem
    return ConfigFile(kind, name, path, _load(kind, path))


def _kind_of(path: Path) -> Kind:
    """Return the kind that most keys of a file belong to; the loader of that kind checks them."""
    keys = {str(key) for key in load_yaml(path)}
    n_keys: dict[Kind, int] = {"survey": len(keys & _keys(Survey)), "site": len(keys & _keys(Site))}
    for kind, n in n_keys.items():
        if _TELLTALE[kind] in keys and n >= len(keys) / 2:
            return kind
    if keys & {"method", "model", "out", "epochs", "optimiser"}:
        return "recipe"
    from photozhpc.sky import SkyConfig

    if keys & _keys(SkyConfig):
        return "sky"
    best = max(n_keys, key=lambda kind: n_keys[kind])
    if n_keys[best]:
        return best
    raise ConfigError(f"{path}: has no key of a survey, site, training recipe or sky")


def _keys(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def _load(kind: Kind, path: Path) -> Any:
    if kind == "survey":
        return load_survey(path)
    if kind == "site":
        return load_site(path)
    if kind == "sky":
        from photozhpc.sky import load_sky_config

        return load_sky_config(path)
    from photozhpc.model.train_config import TrainConfig

    return read_config(TrainConfig, path, "recipe")


def _yaml(mapping: dict[str, Any]) -> str:
    """Return a key and its value as YAML: one line per band, else in one line if possible."""
    (value,) = mapping.values()
    flat = not isinstance(value, dict) and not (
        isinstance(value, list) and value and isinstance(value[0], dict)
    )
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": _WIDTH}
    text: str = yaml.safe_dump(mapping, default_flow_style=True if flat else None, **options)
    return text.strip()[1:-1] if flat else text.rstrip("\n")


def _about(path: Path) -> str:
    """Return the description of a survey; else the first sentence of a file's comments."""
    if description := load_yaml(path).get("description"):
        return str(description)
    comments = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.lstrip("# "))
    return re.split(r"(?<=[.:]) |\.$", " ".join(comments))[0].rstrip(".:")
