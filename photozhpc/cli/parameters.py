"""Options that several commands have, and arguments that the shell can complete.

It imports nothing heavy, because the shell runs it at every press of Tab.
"""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from photozhpc.config import KINDS, Kind, bundled_configs


class NameOrYaml(click.ParamType):
    """The name of a bundled configuration, or the path of a YAML file; stays text."""

    def __init__(self, *kinds: Kind) -> None:
        self.name = kinds[0] if len(kinds) == 1 else "config"
        self._kinds = kinds

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [name for name in bundled_configs(*self._kinds) if name.startswith(incomplete)]
        return [CompletionItem(name) for name in [*names, *_yaml_paths(incomplete)]]


def _yaml_paths(incomplete: str) -> list[str]:
    """Return the YAML files and folders whose paths start like this."""
    folder, slash, start = incomplete.rpartition("/")
    prefix = folder + slash
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
DEVICE = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Default: GPUs if there are any.",
)
WORKERS = click.option(
    "--workers", type=click.IntRange(1), help="Processes; default: one per core."
)
