"""The command that writes a catalogue for other tools: export."""

from pathlib import Path
from typing import Any

import click

from photozhpc.cli.group import JSON, LOCAL, Examples, Progress, echo, main

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
    help="Survey whose names and units the columns get.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Processes, for hats; default: one per core."
)
@JSON
def export(
    catalog: Path, to: str, out: Path, columns: str, workers: int | None, as_json: bool
) -> None:
    """Write a catalogue for other tools: HATS for LSDB, FITS or VOParquet for TOPCAT, qp for RAIL.

    A complete new export replaces an older one at --out; nothing else is replaced.
    """
    facts = export_as(catalog, to, out, columns, workers)
    echo(facts if as_json else export_line(facts))


def export_as(
    catalog: Path, to: str, out: Path, columns: str = "roman", workers: int | None = None
) -> dict[str, Any]:
    """Export, and return the facts that --json prints."""
    from photozhpc.export.export import export

    exported = export(catalog, to, out, columns, workers, Progress("sources"))
    return {
        "format": to,
        "path": str(out),
        "sources": exported.rows,
        "left_out": exported.left_out,
        "why_left_out": exported.why if exported.left_out else None,
    }


def export_line(facts: dict[str, Any]) -> str:
    """Return the facts of `export_as` as one line."""
    line = f"{facts['sources']} sources in {facts['path']}"
    if facts["left_out"]:
        line += f"; {facts['left_out']} left out: they {facts['why_left_out']}"
    return line
