"""Commands that describe and help: info, config, completion."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from photozhpc.cli.group import JSON, LOCAL, Examples, echo, main
from photozhpc.cli.parameters import CONFIG, SURVEY
from photozhpc.survey import load_survey

_VARIABLE = "_PHOTOZHPC_COMPLETE"


@main.command(cls=Examples, example="photozhpc info store.zarr")
@click.argument("path", metavar="FILE", type=LOCAL)
@click.option("--survey", type=SURVEY, help="Survey of a mosaic; default: the first that fits.")
@JSON
def info(path: Path, survey: str | None, as_json: bool) -> None:
    """Describe a file or folder: a store, checkpoint, mosaic, catalogue, table, run or config.

    It reads only headers, so it is quick on large files.
    """
    from photozhpc.info.describe import about, describe

    facts = about(path, None if survey is None else load_survey(survey))
    echo(facts if as_json else describe(facts))


class ExamplesGroup(click.Group):
    """A group of commands whose help ends with an example, as in Examples."""

    def __init__(self, name: str, *, example: str, **settings: object) -> None:
        super().__init__(name, epilog=f"\b\nExample:\n  {example}", **settings)  # type: ignore[arg-type]


@main.group(cls=ExamplesGroup, example="photozhpc config show candels > my.yaml")
def config() -> None:
    """Show configurations: surveys, training recipes, sites, the simulated sky."""


@config.command("list", cls=Examples, example="photozhpc config list")
@JSON
def list_configs(as_json: bool) -> None:
    """List the configurations that come with the package."""
    from photozhpc.info.configs import listing

    entries = listing()
    width = max(len(entry["name"]) for entry in entries)
    lines = (f"{entry['kind']:<6}  {entry['name']:<{width}}  {entry['about']}" for entry in entries)
    echo(entries if as_json else "\n".join(lines))


@config.command(cls=Examples, example="photozhpc config show candels > my.yaml")
@click.argument("name", metavar="NAME_OR_FILE", type=CONFIG)
@JSON
def show(name: str, as_json: bool) -> None:
    """Print a survey, recipe, site or sky as YAML, with every default filled in.

    NAME is one that 'photozhpc config list' lists. A FILE is checked as it is where it is used.
    """
    from photozhpc.info.configs import load_config

    loaded = load_config(name)
    echo(loaded.mapping() if as_json else loaded.text())


@main.command(
    cls=Examples,
    example="photozhpc completion bash\n"
    "  echo 'eval \"$(photozhpc completion bash)\"' >> ~/.bashrc",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes the Tab key complete commands, options, surveys and files."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "photozhpc", _VARIABLE).source(), nl=False)
