"""The command that writes a catalogue for other tools: export."""

from pathlib import Path
from typing import Literal, get_args

import click

from photozhpc import api
from photozhpc.cli.group import JSON, LOCAL, Examples, main, show

FORMATS = get_args(api.Format)


@main.command(
    cls=Examples,
    example="photozhpc export out/roman-sim --format hats --out out/roman-sim/hats\n"
    "  photozhpc export out/roman-sim --format fits --columns euclid --out photoz.fits",
)
@click.argument("catalog", type=LOCAL)
@click.option("--format", "to", required=True, type=click.Choice(FORMATS), help="What to write.")
@click.option("--out", required=True, type=LOCAL, help="File or folder.")
@click.option(
    "--columns",
    type=click.Choice(["roman", "rubin", "euclid"]),
    default="roman",
    show_default=True,
    help="Survey whose names and units the columns get.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes, for hats; default: one per core."
)
@JSON
def export(
    catalog: Path,
    to: api.Format,
    out: Path,
    columns: Literal["roman", "rubin", "euclid"],
    workers: int | None,
    as_json: bool,
) -> None:
    """Write a catalogue for other tools: HATS for LSDB, FITS or VOParquet for TOPCAT, qp for RAIL.

    A complete new export replaces an older one at --out; nothing else is replaced.
    """
    show(api.export(catalog, to, out, columns, workers), as_json)
