"""Commands that import files of pita-z: import-checkpoint, import-hdf5."""

from pathlib import Path

import click

from photozhpc.cli.group import JSON, LOCAL, Examples, echo, main
from photozhpc.cli.parameters import SURVEY
from photozhpc.logs import LOG
from photozhpc.progress import Progress
from photozhpc.survey import load_survey

ZERO_POINT = click.option(
    "--zero-point",
    multiple=True,
    type=float,
    help="AB magnitude of one count; repeat for each band.",
)


@main.command(
    "import-checkpoint",
    cls=Examples,
    example="photozhpc import-checkpoint epoch=1549.ckpt --survey candels --out pita.safetensors",
)
@click.argument("path", metavar="FILE", type=LOCAL)
@click.option("--survey", required=True, type=SURVEY, help="Survey name or YAML file.")
@click.option("--out", required=True, type=LOCAL, help="Model file to write.")
@ZERO_POINT
@click.option(
    "--crop",
    default=64,
    show_default=True,
    type=click.IntRange(32),
    help="Side of the image that the network sees, px.",
)
@JSON
def import_checkpoint_command(
    path: Path, survey: str, out: Path, zero_point: tuple[float, ...], crop: int, as_json: bool
) -> None:
    """Convert a Lightning checkpoint of pita-z to a model, without executing code in it."""
    from photozhpc.model import save_checkpoint
    from photozhpc.pita_z.checkpoint import import_checkpoint

    loaded_survey = load_survey(survey)
    model, notes = import_checkpoint(path, loaded_survey, zero_point or None, crop)
    for note in notes:
        LOG.info("note: %s", note)
    training = {"imported_from": path.name, "notes": list(notes)}
    written = save_checkpoint(out, model, loaded_survey, training)
    facts = {"model": str(written), "notes": list(notes)}
    echo(facts if as_json else f"model file: {written}")


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
    help="N of the array use_redshift_N, which selects one of the file's samples of labels.",
)
@ZERO_POINT
@click.option(
    "--colours",
    type=click.Choice(["red/blue", "blue/red"]),
    help="Ratios in the file's colour features; default: as its fluxes show, else red/blue.",
)
@click.option(
    "--flux-band", help="Band of their flux feature; default: as its fluxes show, else the last."
)
@JSON
def import_hdf5_command(
    path: Path,
    survey: str,
    store: Path,
    label_f: int,
    zero_point: tuple[float, ...],
    colours: str | None,
    flux_band: str | None,
    as_json: bool,
) -> None:
    """Copy an HDF5 catalogue of pita-z into a store; run again to continue."""
    from photozhpc.pita_z.hdf5 import import_hdf5
    from photozhpc.pita_z.units import FluxFeatures

    loaded_survey = load_survey(survey)
    names, features = loaded_survey.band_names, None
    if colours or flux_band:
        band = loaded_survey.band(flux_band).name if flux_band else names[-1]
        features = FluxFeatures(colours != "blue/red", names.index(band))
    zero_points = zero_point or None
    progress = Progress("sources")
    summary = import_hdf5(
        path, loaded_survey, store, label_f, features, zero_points, progress=progress
    )
    for note in summary.notes:
        LOG.info("note: %s", note)
    facts = {"store": str(store), "sources": summary.sources, "with_z_spec": summary.labelled}
    facts["notes"] = list(summary.notes)
    text = f"{summary.sources} sources in {store}, {summary.labelled} with a z_spec"
    echo(facts if as_json else text)
