"""Commands around long runs: submit, status, bench."""

import glob
from pathlib import Path
from typing import Any, Literal

import click

from photozhpc.cli.group import JSON, LOCAL, Examples, echo, main
from photozhpc.cli.parameters import DEVICE, SITE
from photozhpc.errors import PhotozError
from photozhpc.files.objects import is_remote, location
from photozhpc.survey import load_survey

# What a stage reads.
_INPUTS = {
    "extract": ("mosaics", "sources"),
    "train": ("store",),
    "infer": ("store", "checkpoint", "truth"),
}


@main.command(
    cls=Examples,
    example="photozhpc submit train --site generic --nodes 2 --dry-run -- \\\n"
    "    --config pita.yaml --store s.zarr --out run",
)
@click.argument("stage", type=click.Choice(["extract", "train", "infer"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--site", required=True, type=SITE, help="Site name or YAML file.")
@click.option("--nodes", type=click.IntRange(1), help="Nodes for train; default: the site's.")
@click.option("--array", default=1, type=click.IntRange(1), help="Jobs that share the tiles.")
@click.option("--after", multiple=True, help="Number of a job that must first finish successfully.")
@click.option("--only-one", help="A name; only one job with this name runs at a time.")
@click.option("--dry-run", is_flag=True, help="Print the job without submitting it.")
@JSON
def submit(
    stage: str,
    arguments: tuple[str, ...],
    site: str,
    nodes: int | None,
    array: int,
    after: tuple[str, ...],
    only_one: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit a stage to Slurm, with the arguments after "--", and print the number of the job.

    First it looks up what the arguments name: survey, recipe, site, and, without --after, the files
    that the job will read.
    """
    from photozhpc.workers.site import load_site, make_job

    job = make_job(
        load_site(site), stage, arguments, nodes=nodes, array=array, after=after, only_one=only_one
    )
    try:  # report an error before the job waits in a queue
        given = main.commands[stage].make_context(f"photozhpc {stage}", list(arguments)).params
    except click.exceptions.Exit:  # the arguments hold --help
        return
    _look_up(stage, given, files=not after)
    if not dry_run:
        number = job.submit()
        echo({"job": number} if as_json else number)
    elif as_json:
        echo({"command": str(job), "script": str(job.script)})
    else:
        click.echo(f"{job}\n\n# {job.script}\n{job.script.read_text()}", nl=False)


def _look_up(stage: str, given: dict[str, Any], files: bool) -> None:
    """Look up what the arguments of a stage name, as its job will.

    Args:
        files: also the files that it reads; an earlier job may still have to make them.

    Raises:
        PhotozError: something is wrong or missing.
    """
    from photozhpc.workers.site import load_site

    if given.get("survey"):
        load_survey(given["survey"])
    if given.get("site"):
        load_site(given["site"])
    if stage == "train":
        from photozhpc.config import read_config
        from photozhpc.model.train_config import TrainConfig

        recipe = read_config(TrainConfig, given["config"], "recipe")
        given = given | {"store": given["store"] or recipe.store}
        if not given["store"]:
            raise PhotozError(f"{given['config']} names no store; pass --store PATH after '--'")
    for name in _INPUTS[stage] if files else ():
        value = given[name]
        for given_path in value if isinstance(value, tuple) else [value] if value else []:
            path = location(given_path)
            if is_remote(path) or path.exists() or glob.glob(str(path), recursive=True):
                continue
            raise PhotozError(
                f"--{name} {path}: is not there; pass --after JOB if a job will make it"
            )


@main.command(cls=Examples, example="photozhpc status catalogue")
@click.argument("path", type=LOCAL)
@JSON
def status(path: Path, as_json: bool) -> None:
    """Show how far a run has got: a store, or the folder of a training run or a catalogue.

    It reads only files: use it during the run or afterwards, on any machine that sees them.
    """
    from photozhpc.catalog.status import describe, status_of

    state = status_of(path)
    echo(state if as_json else describe(state))


@main.command(cls=Examples, example="photozhpc bench infer")
@click.argument("stage", type=click.Choice(["extract", "infer", "all"]), default="all")
@DEVICE
@click.option(
    "--sources",
    type=click.IntRange(1),
    default=50_000,
    show_default=True,
    help="Number of sources to infer.",
)
@click.option("--compile/--no-compile", "compiled", default=True, help="Compile the model.")
@click.option(
    "--folder", type=LOCAL, help="Working folder with 30 kB free per source; default: TMPDIR."
)
@JSON
def bench(
    stage: str,
    device: Literal["auto", "cpu", "cuda"],
    sources: int,
    compiled: bool,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure the speed of this machine, and estimate how long a survey would take on it."""
    from photozhpc.bench.bench import bench_extract, bench_infer, describe

    result: dict[str, Any] = {}
    if stage in ("extract", "all"):
        result["extract"] = bench_extract()
    if stage in ("infer", "all"):
        result["infer"] = bench_infer(sources, device, compiled, folder=folder)
    echo(result if as_json else describe(result))
