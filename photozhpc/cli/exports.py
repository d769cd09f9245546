"""The command that hands a catalogue to other tools: export."""

from pathlib import Path

import click

from photozhpc.cli.group import Examples, Progress, main

# Format -> name in the --out folder of `photozhpc infer --export`.
EXPORT_NAMES = {"hats": "hats", "vo-parquet": "photoz.parquet", "fits": "photoz.fits"}
FORMATS = tuple(EXPORT_NAMES)


@main.command(
    cls=Examples,
    example="photozhpc export out/roman-sim --format hats --out out/roman-sim/hats\n"
    "  photozhpc export out/roman-sim --format fits --columns euclid --out photoz.fits",
)
@click.argument("catalog", type=click.Path(path_type=Path))
@click.option("--format", "to", required=True, type=click.Choice(FORMATS), help="What to write.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File or folder.")
@click.option(
    "--columns",
    type=click.Choice(["roman", "rubin", "euclid"]),
    default="roman",
    show_default=True,
    help="Whose names, and units, the columns are to have.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes, for hats; default: one a core.")
def export(catalog: Path, to: str, out: Path, columns: str, workers: int | None) -> None:
    """Write a catalogue for other tools: HATS for LSDB, FITS or VOParquet for TOPCAT.

    What stands at --out is replaced when the new one is complete.
    """
    click.echo(export_as(catalog, to, out, columns, workers))


def export_as(
    catalog: Path, to: str, out: Path, columns: str = "roman", workers: int | None = None
) -> str:
    """Export, and return what to say of it."""
    from photozhpc.catalog.export import export as run

    done = run(catalog, to, out, columns, workers, Progress("sources"))
    left_out = f"; {done.left_out} left out: they {done.why}" if done.left_out else ""
    return f"{done.rows} sources in {out}{left_out}"
