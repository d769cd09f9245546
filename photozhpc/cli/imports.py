"""Commands that take in the files of pita-z: import-checkpoint, import-hdf5."""

from pathlib import Path

import click

from photozhpc.cli.group import LOCAL, Examples, Progress, main
from photozhpc.cli.parameters import SURVEY
from photozhpc.logs import LOG
from photozhpc.survey import load_survey


@main.command(
    "import-checkpoint",
    cls=Examples,
    example="photozhpc import-checkpoint epoch=1549.ckpt --survey candels --out pita.safetensors",
)
@click.argument("path", metavar="FILE", type=LOCAL)
@click.option("--survey", required=True, type=SURVEY, help="Survey name or YAML file.")
@click.option("--out", required=True, type=LOCAL, help="Model file to write.")
@click.option(
    "--zero-point",
    multiple=True,
    type=float,
    help="AB magnitude of one count; repeat for each band.",
)
@click.option(
    "--crop",
    default=64,
    show_default=True,
    type=click.IntRange(32),
    help="Side of the image that the network sees, px.",
)
def import_checkpoint_command(
    path: Path, survey: str, out: Path, zero_point: tuple[float, ...], crop: int
) -> None:
    """Turn a Lightning checkpoint of pita-z into a model; nothing in it is executed."""
    from photozhpc.model import save_checkpoint
    from photozhpc.pita_z.checkpoint import import_checkpoint

    wanted = load_survey(survey)
    model, notes = import_checkpoint(path, wanted, zero_point or None, crop)
    for note in notes:
        LOG.info("note: %s", note)
    training = {"imported_from": path.name, "notes": list(notes)}
    click.echo(f"model file: {save_checkpoint(out, model, wanted, training)}")


@main.command(
    "import-hdf5",
    cls=Examples,
    example="photozhpc import-hdf5 candels_test.hdf5 --survey candels --store test.zarr",
)
@click.argument("path", metavar="FILE", type=LOCAL)
@click.option("--survey", required=True, type=SURVEY, help="Survey name or YAML file.")
@click.option("--store", required=True, type=LOCAL, help="Store to write.")
@click.option(
    "--label-f",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="N of the array use_redshift_N: which of the file's samples of labels.",
)
@click.option(
    "--zero-point",
    multiple=True,
    type=float,
    help="AB magnitude of one count; repeat for each band.",
)
@click.option(
    "--colours",
    type=click.Choice(["red/blue", "blue/red"]),
    help="Ratios of the file's colour features; default: what its fluxes say, else red/blue.",
)
@click.option(
    "--flux-band", help="Band of their flux; default: what its fluxes say, else the last."
)
def import_hdf5_command(
    path: Path,
    survey: str,
    store: Path,
    label_f: int,
    zero_point: tuple[float, ...],
    colours: str | None,
    flux_band: str | None,
) -> None:
    """Copy an HDF5 catalogue of pita-z into a store; run again to continue."""
    from photozhpc.pita_z.hdf5 import import_hdf5
    from photozhpc.pita_z.units import FluxFeatures

    wanted = load_survey(survey)
    features = None
    if colours or flux_band:
        band = wanted.band(flux_band).name if flux_band else wanted.band_names[-1]
        features = FluxFeatures(colours != "blue/red", wanted.band_names.index(band))
    summary = import_hdf5(
        path, wanted, store, label_f, features, zero_point or None, progress=Progress("sources")
    )
    for note in summary.notes:
        LOG.info("note: %s", note)
    click.echo(f"{summary.sources} sources in {store}, {summary.labelled} with a z_spec")
