"""Kinds of arguments that the shell can complete: surveys, sites, recipes.

They take what the commands take; only completion knows more. Nothing heavy is imported: a shell
asks at every press of Tab.
"""

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from photozhpc.info.configs import config_names, recipe_names
from photozhpc.survey import survey_names
from photozhpc.workers.site import site_names


class NameOrYaml(click.ParamType):
    """A name that comes with the package, or the path of a YAML file; stays text."""

    def __init__(self, name: str, known: Callable[[], list[str]]) -> None:
        self.name = name
        self._known = known

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [name for name in self._known() if name.startswith(incomplete)]
        return [CompletionItem(name) for name in [*names, *_yaml_paths(incomplete)]]


def _yaml_paths(incomplete: str) -> list[str]:
    """Return the YAML files, and the folders, that a path may be the beginning of."""
    begun, slash, start = incomplete.rpartition("/")
    prefix = begun + slash
    try:
        entries = sorted(Path(prefix).expanduser().iterdir())
    except OSError:
        return []
    found = []
    for entry in entries:
        hidden = entry.name.startswith(".") and not start.startswith(".")
        if hidden or not entry.name.startswith(start):
            continue
        if entry.is_dir():
            found.append(f"{prefix}{entry.name}/")
        elif entry.suffix in (".yaml", ".yml"):
            found.append(f"{prefix}{entry.name}")
    return found


SURVEY = NameOrYaml("survey", survey_names)
SITE = NameOrYaml("site", site_names)
RECIPE = NameOrYaml("recipe", recipe_names)
CONFIG = NameOrYaml("config", config_names)
