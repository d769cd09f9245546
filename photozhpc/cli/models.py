"""Commands on models: train, calibrate."""

import os
from pathlib import Path

import click

from photozhpc.cli.group import JSON, LOCAL, Examples, echo, main
from photozhpc.cli.parameters import RECIPE, SURVEY


@main.command(
    "train", cls=Examples, example="photozhpc train --config recipe.yaml --store S --out run"
)
@click.option("--config", required=True, type=RECIPE, help="Recipe name or YAML file.")
@click.option(
    "--store", type=LOCAL, help="Store, or table of fluxes with --survey; default: the config's."
)
@click.option("--survey", type=SURVEY, help="For a table of fluxes: what its columns are.")
@click.option("--out", type=LOCAL, help="Folder; default: the config's.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run, if there is one.")
@JSON
def train_command(
    config: str,
    store: Path | None,
    survey: str | None,
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Train on a store or a table of fluxes; under torchrun, in several processes.

    On SIGTERM or SIGUSR1 it saves its state and exits with code 75; --resume continues.
    """
    from dataclasses import replace

    from photozhpc.config import read_config
    from photozhpc.model.launch import Launch
    from photozhpc.model.train import train
    from photozhpc.model.train_config import TrainConfig

    settings = read_config(TrainConfig, config, "recipe")
    if store is not None:
        settings = replace(settings, store=str(store))
    if survey is not None:
        settings = replace(settings, survey=survey)
    if out is not None:
        settings = replace(settings, out=str(out))
    if not settings.store:
        raise click.UsageError(f"{config} names no store; pass --store PATH")
    model_file = train(settings, resume)
    if Launch.of(os.environ).rank == 0:
        _echo_model(model_file, as_json)


@main.command(
    "calibrate",
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
def calibrate_command(
    checkpoint: Path, store: Path, survey: str | None, out: Path, compact: bool, as_json: bool
) -> None:
    """Recalibrate a model's intervals on the labels of a store or a table of fluxes."""
    from photozhpc.model import load_checkpoint
    from photozhpc.model.calibrate import calibrate
    from photozhpc.store import open_store
    from photozhpc.survey import load_survey

    its_survey = load_checkpoint(checkpoint).survey if survey is None else load_survey(survey)
    opened = open_store(store, its_survey)
    opened.check_complete()
    _echo_model(calibrate(checkpoint, opened, out, compact), as_json)


def _echo_model(path: Path, as_json: bool) -> None:
    from photozhpc.info.models import about_checkpoint

    echo(about_checkpoint(path) if as_json else f"model file: {path}")
