"""Kinds of arguments that the shell can complete: surveys, sites, recipes.

They take what the commands take; only completion knows more. Nothing heavy is imported: a shell
asks at every press of Tab.
"""

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from photozhpc.config_files import recipe_names, site_names, sky_names, survey_names


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
    begun, start = incomplete.rpartition("/")[0::2] if "/" in incomplete else ("", incomplete)
    prefix = f"{begun}/" if "/" in incomplete else ""
    try:
        entries = sorted(Path(prefix).expanduser().iterdir() if prefix else Path().iterdir())
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
CONFIG = NameOrYaml(
    "config", lambda: [*survey_names(), *site_names(), *recipe_names(), *sky_names()]
)
