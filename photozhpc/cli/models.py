"""Commands on models: train, calibrate."""

import os
from pathlib import Path

import click

from photozhpc.cli.group import Examples, main


@main.command(cls=Examples, example="photozhpc train --config recipe.yaml --store S --out run")
@click.option("--config", required=True, type=click.Path(path_type=Path), help="YAML file.")
@click.option("--store", type=click.Path(path_type=Path), help="Store; default: the config's.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default: the config's.")
@click.option("--resume", is_flag=True, help="Go on where it was, if it had begun.")
def train(config: Path, store: Path | None, out: Path | None, resume: bool) -> None:
    """Train on a store; several processes where torchrun starts it.

    It stops on SIGTERM or SIGUSR1 with its state saved and exit code 75; --resume goes on.
    """
    from dataclasses import replace

    from photozhpc.config import from_mapping, load_yaml
    from photozhpc.model.train import train as run
    from photozhpc.model.train_config import TrainConfig

    settings = from_mapping(TrainConfig, load_yaml(config), str(config))
    if store is not None:
        settings = replace(settings, store=str(store))
    if out is not None:
        settings = replace(settings, out=str(out))
    if not settings.store:
        raise click.UsageError(f"{config} names no store; pass --store PATH")
    model_file = run(settings, resume)
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"model file: {model_file}")


@main.command(
    cls=Examples,
    example="photozhpc calibrate --checkpoint m.safetensors --store cal.zarr --out c.safetensors",
)
@click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="Model with density heads."
)
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Store with labels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model file to write.")
@click.option("--compact", is_flag=True, help="Encoder's weights in float16: half as large.")
def calibrate(checkpoint: Path, store: Path, out: Path, compact: bool) -> None:
    """Calibrate a model's intervals anew on the labels of a store."""
    from photozhpc.model.calibrate import calibrate as run
    from photozhpc.store import CutoutStore

    opened = CutoutStore.open(store)
    opened.check_complete()
    click.echo(f"model file: {run(checkpoint, opened, out, compact)}")
