"""Commands on models: train, calibrate."""

import os
from pathlib import Path

import click

from photozhpc import api
from photozhpc.cli.group import JSON, LOCAL, Examples, main, show
from photozhpc.cli.parameters import RECIPE, SURVEY


@main.command(cls=Examples, example="photozhpc train --config recipe.yaml --store S --out run")
@click.option("--config", required=True, type=RECIPE, help="Recipe name or YAML file.")
@click.option(
    "--store", type=LOCAL, help="Store, or table of fluxes with --survey; default: the config's."
)
@click.option("--survey", type=SURVEY, help="For a table of fluxes: what its columns are.")
@click.option("--out", type=LOCAL, help="Folder; default: the config's.")
@click.option("--restart", is_flag=True, help="Delete the run that is in the folder; begin anew.")
@click.option("--resume", is_flag=True, hidden=True, help="Continue, as it does anyway.")
@JSON
def train(
    config: str,
    store: Path | None,
    survey: str | None,
    out: Path | None,
    restart: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Train on a store or a table of fluxes; run again to continue.

    Under torchrun it trains in several processes. On Ctrl-C, SIGTERM or SIGUSR1 it saves its state
    first; after the last two it exits with code 75.
    """
    if resume and restart:
        raise click.UsageError("--resume and --restart contradict each other")
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"  # of a job that was stopped
    made = api.train(config, store, survey, out, restart and not requeued)
    if made.facts:
        show(made, as_json)


@main.command(
    cls=Examples,
    example="photozhpc calibrate --checkpoint m.safetensors --store cal.zarr --out c.safetensors",
)
@click.option("--checkpoint", required=True, type=LOCAL, help="Model with density heads.")
@click.option("--store", required=True, type=LOCAL, help="Store, or table of fluxes, with labels.")
@click.option(
    "--survey", type=SURVEY, help="For a table: what its columns are; default: as in training."
)
@click.option("--out", required=True, type=LOCAL, help="Model file to write.")
@click.option(
    "--compact", is_flag=True, help="Store the encoder's weights in float16: half the size."
)
@JSON
def calibrate(
    checkpoint: Path, store: Path, survey: str | None, out: Path, compact: bool, as_json: bool
) -> None:
    """Recalibrate a model's intervals on the labels of a store or a table of fluxes."""
    show(api.calibrate(checkpoint, store, out, survey, compact), as_json)
