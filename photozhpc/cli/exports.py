"""The command that hands a catalogue to other tools: export."""

from pathlib import Path
from typing import Any

import click

from photozhpc.cli.group import JSON, LOCAL, Examples, Progress, echo_json, main

# Format -> name in the --out folder of `photozhpc infer --export`.
EXPORT_NAMES = {
    "hats": "hats",
    "vo-parquet": "photoz.parquet",
    "fits": "photoz.fits",
    "qp": "photoz_qp.hdf5",
}
FORMATS = tuple(EXPORT_NAMES)


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
    help="Whose names, and units, the columns are to have.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes, for hats; default: one a core.")
@JSON
def export(
    catalog: Path, to: str, out: Path, columns: str, workers: int | None, as_json: bool
) -> None:
    """Write a catalogue for other tools: HATS for LSDB, FITS or VOParquet for TOPCAT, qp for RAIL.

    An export that stands at --out is replaced when the new one is complete; nothing else is.
    """
    report = export_as(catalog, to, out, columns, workers)
    if as_json:
        echo_json(report)
    else:
        click.echo(sentence(report))


def export_as(
    catalog: Path, to: str, out: Path, columns: str = "roman", workers: int | None = None
) -> dict[str, Any]:
    """Export, and return what there is to say of it."""
    from photozhpc.export.export import export

    done = export(catalog, to, out, columns, workers, Progress("sources"))
    return {
        "format": to,
        "path": str(out),
        "sources": done.rows,
        "left_out": done.left_out,
        "why_left_out": done.why if done.left_out else None,
    }


def sentence(report: dict[str, Any]) -> str:
    """Say in a sentence what `export_as` returned."""
    why = (
        f"; {report['left_out']} left out: they {report['why_left_out']}"
        if report["left_out"]
        else ""
    )
    return f"{report['sources']} sources in {report['path']}{why}"
