"""Kinds of arguments that the shell can complete: surveys, sites, recipes.

Nothing heavy is imported: a shell asks at every press of Tab.
"""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from photozhpc.config import KINDS, Kind, bundled_configs


class NameOrYaml(click.ParamType):
    """A name that comes with the package, or the path of a YAML file; stays text."""

    def __init__(self, *kinds: Kind) -> None:
        self.name = kinds[0] if len(kinds) == 1 else "config"
        self._kinds = kinds

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [name for name in bundled_configs(*self._kinds) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in [*names, *_yaml_paths(incomplete)]]


def _yaml_paths(incomplete: str) -> list[str]:
    """Return the YAML files, and the folders, that a path may be the beginning of."""
    begun, slash, start = incomplete.rpartition("/")
    prefix = begun + slash
    try:
        entries = sorted(Path(prefix).expanduser().iterdir())
    except OSError:
        return []
    paths = []
    for entry in entries:
        hidden = entry.name.startswith(".") and not start.startswith(".")
        if hidden or not entry.name.startswith(start):
            continue
        if entry.is_dir():
            paths.append(f"{prefix}{entry.name}/")
        elif entry.suffix in (".yaml", ".yml"):
            paths.append(f"{prefix}{entry.name}")
    return paths


SURVEY = NameOrYaml("survey")
SITE = NameOrYaml("site")
RECIPE = NameOrYaml("recipe")
CONFIG = NameOrYaml(*KINDS)
