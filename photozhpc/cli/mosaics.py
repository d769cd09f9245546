"""Commands on mosaics: simulate, detect, extract."""

from pathlib import Path
from typing import Literal

import click

from photozhpc import api
from photozhpc.cli.group import JSON, LOCAL, Examples, Location, main, show
from photozhpc.cli.parameters import SURVEY, WORKERS
from photozhpc.files.objects import AnyPath
from photozhpc.survey import MAX_CUTOUT_PIX

MOSAICS = click.option(
    "--mosaics", required=True, help="Folder or glob of mosaics; s3://BUCKET/... and https:// too."
)


@main.command(
    cls=Examples, example="photozhpc simulate --survey roman-sim --out sky --tiles 4 --seed 7"
)
@click.option(
    "--survey",
    default="roman-sim",
    show_default=True,
    type=SURVEY,
    help="Survey name or YAML file.",
)
@click.option("--out", required=True, type=LOCAL, help="Folder to write to.")
@click.option(
    "--tiles", default=1, show_default=True, type=click.IntRange(1), help="Number of tiles to make."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Random seed.")
@click.option("--config", type=LOCAL, help="YAML file of the sky's physics.")
@WORKERS
@JSON
def simulate(
    survey: str,
    out: Path,
    tiles: int,
    seed: int,
    config: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Make a simulated Roman sky: L3 mosaics, source lists and truth tables."""
    show(api.simulate(out, survey, tiles, seed, config, workers), as_json)


@main.command(
    cls=Examples, example="photozhpc detect --survey roman-l3 --mosaics l3 --out sources.parquet"
)
@click.option("--survey", required=True, type=SURVEY, help="Survey name or YAML file.")
@MOSAICS
@click.option("--out", required=True, type=LOCAL, help="Source list to write, *.parquet.")
@click.option(
    "--threshold",
    type=click.FloatRange(0, min_open=True),
    help="Minimum value of a filtered pixel, in standard deviations of the unfiltered noise "
    "(SExtractor's DETECT_THRESH); default: 4 standard deviations of the filtered noise.",
)
@click.option(
    "--min-area",
    default=5,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Minimum number of adjacent pixels above --threshold.",
)
@WORKERS
@JSON
def detect(
    survey: str,
    mosaics: str,
    out: Path,
    threshold: float | None,
    min_area: int,
    workers: int | None,
    as_json: bool,
) -> None:
    """Make a source list for extract from mosaics without a catalogue; run again to continue."""
    show(api.detect(mosaics, out, survey, threshold, min_area, workers), as_json)


@main.command(
    cls=Examples,
    example="photozhpc extract --survey roman-l3 --mosaics l3 --sources cat.fits --store s.zarr",
)
@click.option("--survey", required=True, type=SURVEY, help="Survey name or YAML file.")
@MOSAICS
@click.option(
    "--sources",
    multiple=True,
    type=Location(),
    help="Source list (Parquet, FITS, ECSV, CSV, text); may be repeated; default: the lists beside "
    "the mosaics.",
)
@click.option("--store", required=True, type=Location(), help="Store to write, on a local disk.")
@click.option(
    "--ebv-map",
    default="sfd",
    show_default=True,
    type=click.Choice(["sfd", "sfd-hires", "none"]),
    help="E(B-V) if the list has none: SFD98 at 0.9 or (download) 0.11 degrees, or 0.",
)
@click.option("--size", type=click.IntRange(8, MAX_CUTOUT_PIX), help="Side of the cutouts, px.")
@WORKERS
@click.option(
    "--allow-missing-bands", is_flag=True, help="Leave bands empty of which there is no mosaic."
)
@click.option("--share", default="0/1", help="I/N: the I-th of N equal shares of the tiles.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing.")
@JSON
def extract(
    survey: str,
    mosaics: str,
    sources: tuple[AnyPath, ...],
    store: AnyPath,
    ebv_map: Literal["sfd", "sfd-hires", "none"],
    size: int | None,
    workers: int | None,
    allow_missing_bands: bool,
    share: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Measure sources on mosaics and store their cutouts; run again to continue."""
    made = api.extract(
        mosaics,
        store,
        survey,
        sources,
        size,
        ebv_map,
        workers,
        _share(share),
        allow_missing_bands,
        dry_run,
    )
    show(made, as_json)


def _share(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise click.UsageError(f"--share must be like 0/8 to 7/8, got '{text}'")
    return int(number), int(count)
