"""Commands on mosaics: simulate, detect, extract."""

from dataclasses import asdict
from pathlib import Path

import click

from photozhpc.cli.group import JSON, LOCAL, Examples, Location, Progress, echo, main
from photozhpc.cli.parameters import SURVEY, WORKERS
from photozhpc.files.objects import AnyPath
from photozhpc.logs import LOG
from photozhpc.survey import MAX_CUTOUT_PIX, load_survey

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
    from photozhpc.sky import load_sky_config, simulate_sky

    sky_config = load_sky_config(config) if config else load_sky_config()
    progress = Progress("tiles")
    simulate_sky(load_survey(survey), out, tiles, seed, sky_config, workers, progress)
    facts = {"kind": "sky", "path": str(out), "tiles": tiles, "seed": seed}
    echo(facts if as_json else f"{tiles} tiles written to {out}")


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
    from photozhpc.extract.detect import make_source_list

    summary = make_source_list(
        load_survey(survey), mosaics, out, threshold, min_area, workers, Progress("tiles")
    )
    for note in summary.notes:
        LOG.info("note: %s", note)
    if as_json:
        echo({"kind": "source list", "path": str(out), **asdict(summary)})
        return
    echo(
        f"{summary.sources} sources of {summary.tiles} tiles in {out}"
        + ("; it existed already" if summary.present else "")
        + (f"; {summary.repeats} repeats in overlaps left out" if summary.repeats else "")
    )


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
@click.option("--share", default="0/1", help="I/N: the I-th of N equal shares of the tiles.")
@JSON
def extract(
    survey: str,
    mosaics: str,
    sources: tuple[AnyPath, ...],
    store: AnyPath,
    ebv_map: str,
    size: int | None,
    workers: int | None,
    share: str,
    as_json: bool,
) -> None:
    """Measure sources on mosaics and store their cutouts; run again to continue."""
    from photozhpc.extract.extract import extract

    summary = extract(
        load_survey(survey),
        mosaics,
        store,
        sources,
        size,
        workers=workers,
        share=_share(share),
        ebv_map=ebv_map,
        progress=Progress("sources"),
    )
    for note in summary.notes:
        LOG.info("note: %s", note)
    if as_json:
        echo({"kind": "store", "path": str(store), **asdict(summary)})
        return
    echo(
        f"{summary.sources} sources of {summary.tiles} tiles in {store}, "
        f"{summary.bytes_per_cutout:.0f} bytes per cutout"
        + (f"; {summary.skipped_tiles} tiles existed already" if summary.skipped_tiles else "")
        + (f"; {summary.off_tile} sources lie on no tile" if summary.off_tile else "")
    )


def _share(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise click.UsageError(f"--share must be like 0/8 to 7/8, got '{text}'")
    return int(number), int(count)
