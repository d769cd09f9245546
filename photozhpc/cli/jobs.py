"""Commands around long runs: submit, status, bench."""

from pathlib import Path
from typing import Any, Literal

import click

from photozhpc.cli.group import JSON, Examples, LocalPath, echo_json, main
from photozhpc.cli.parameters import SITE


@main.command(
    cls=Examples,
    example="photozhpc submit train --site generic --nodes 2 --dry-run -- \\\n"
    "    --config pita.yaml --store s.zarr --out run",
)
@click.argument("stage", type=click.Choice(["extract", "train", "infer"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--site", required=True, type=SITE, help="Site name or YAML file.")
@click.option("--nodes", type=click.IntRange(1), help="Nodes, of train; default: the site's.")
@click.option("--array", default=1, type=click.IntRange(1), help="Jobs that share the tiles.")
@click.option("--after", multiple=True, help="Number of a job that has to end well before.")
@click.option("--only-one", help="A name: of jobs with the same, one runs at a time.")
@click.option("--dry-run", is_flag=True, help="Print what would be submitted.")
def submit(
    stage: str,
    arguments: tuple[str, ...],
    site: str,
    nodes: int | None,
    array: int,
    after: tuple[str, ...],
    only_one: str | None,
    dry_run: bool,
) -> None:
    """Submit a stage to Slurm, with the arguments after "--"; prints the number of the job."""
    from photozhpc.site import load_site, make_job

    job = make_job(
        load_site(site),
        stage,
        arguments,
        nodes=nodes,
        array=array,
        after=after,
        only_one=only_one,
    )
    try:  # a typing error should not wait in a queue
        main.commands[stage].make_context(f"photozhpc {stage}", list(arguments))
    except click.exceptions.Exit:  # --help was among them
        return
    if dry_run:
        click.echo(f"{job}\n\n# {job.script}\n{job.script.read_text()}", nl=False)
    else:
        click.echo(job.submit())


@main.command(cls=Examples, example="photozhpc status catalogue")
@click.argument("path", type=LocalPath())
@JSON
def status(path: Path, as_json: bool) -> None:
    """Tell how far a run is: an extraction's store, a training's or a catalogue's folder.

    It reads what the run leaves on disk, while it runs and after, from any machine.
    """
    from photozhpc.report.status import describe, status_of

    found = status_of(path)
    if as_json:
        echo_json(found)
    else:
        click.echo(describe(found))


@main.command(cls=Examples, example="photozhpc bench infer")
@click.argument("stage", type=click.Choice(["extract", "infer", "all"]), default="all")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Default: the GPUs where there are any.",
)
@click.option(
    "--sources", type=click.IntRange(1), default=50_000, show_default=True, help="Sources to infer."
)
@click.option("--compile/--no-compile", "compiled", default=True, help="Compile the model.")
@click.option(
    "--folder",
    type=LocalPath(),
    help="Where to work, with 30 kB a source free; default: TMPDIR.",
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
    """Measure what this machine gives, and what a survey would take on it."""
    from photozhpc.report.bench import bench_extract, bench_infer, describe

    result: dict[str, Any] = {}
    if stage in ("extract", "all"):
        result["extract"] = bench_extract()
    if stage in ("infer", "all"):
        result["infer"] = bench_infer(sources, device, compiled, folder=folder)
    if as_json:
        echo_json(result)
    else:
        click.echo(describe(result))
