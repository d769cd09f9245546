"""Commands on catalogues: infer, evaluate, report, figures, verify."""

import shlex
import sys
from pathlib import Path
from typing import Literal

import click

from photozhpc.cli.exports import EXPORT_NAMES, FORMATS, export_as, sentence
from photozhpc.cli.group import JSON, LOCAL, Examples, Location, Progress, echo_json, main
from photozhpc.cli.parameters import SITE, SURVEY
from photozhpc.errors import PhotozError
from photozhpc.files.disk import read_json
from photozhpc.files.objects import AnyPath, is_remote
from photozhpc.logs import LOG
from photozhpc.printable import printable
from photozhpc.survey import load_survey

# The sky that `photozhpc infer --survey roman-sim` makes for itself. No model that comes with
# the package was trained on this seed.
DEFAULT_SEED = 2027
DEFAULT_TILES = 4


@main.command(
    cls=Examples,
    example=(
        "photozhpc infer --survey roman-sim\n"
        "  photozhpc infer --survey roman-l3 --store s.zarr --out dr1 --pdf quantiles --export hats"
    ),
)
@click.option("--survey", required=True, type=SURVEY, help="Survey name or YAML file.")
@click.option("--store", type=Location(), help="Store made by 'extract'; may be on s3://.")
@click.option("--checkpoint", type=LOCAL, help="Default: the bundled model.")
@click.option("--out", type=LOCAL, help="Folder; default: out/SURVEY.")
@click.option("--truth", multiple=True, type=Location(), help="Table(s) of known redshifts.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one per core or GPU.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    help="Default: GPUs if there are any.",
)
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Compile the model; default: for a million sources or more.",
)
@click.option(
    "--pdf",
    type=click.Choice(["quantiles", "grid"]),
    help="Also write p(z) of every source, to OUT/pdf: quantiles, or densities on a grid.",
)
@click.option("--site", type=SITE, help="Slurm site (name or YAML file) whose jobs do the work.")
@click.option(
    "--jobs",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="With --site: jobs at a time.",
)
@click.option("--scheduler", help="Address of a Dask scheduler whose workers do the work.")
@click.option(
    "--export",
    "formats",
    multiple=True,
    type=click.Choice(FORMATS),
    help="Also write the catalogue in this format, into the same folder; may be repeated.",
)
@JSON
def infer(
    survey: str,
    store: AnyPath | None,
    checkpoint: Path | None,
    out: Path | None,
    truth: tuple[AnyPath, ...],
    workers: int | None,
    device: Literal["auto", "cpu", "cuda"],
    compiled: bool | None,
    pdf: Literal["quantiles", "grid"] | None,
    site: str | None,
    jobs: int,
    scheduler: str | None,
    formats: tuple[str, ...],
    as_json: bool,
) -> None:
    """Stream a store through a model into a photo-z catalogue; run again to continue.

    Without --store, and for survey roman-sim, it first makes a small simulated sky and its
    store inside the output folder.
    """
    from photozhpc.catalog.run import run_inference
    from photozhpc.export.export import check_format, check_target
    from photozhpc.model import bundled_checkpoint
    from photozhpc.workers.site import load_site

    if "qp" in formats and pdf is None:
        raise click.UsageError("--export qp needs --pdf quantiles or --pdf grid")
    wanted = load_survey(survey)
    out = out or Path("out") / wanted.name
    for to in formats:
        check_format(to)  # here, for the run may take days
        check_target(out / EXPORT_NAMES[to], to)
    checkpoint = checkpoint or bundled_checkpoint(wanted.name)
    if store is None:
        store, truth = _own_sky(wanted.name, out, truth, workers)
    if truth:
        from photozhpc.evaluation.truth import read_truth

        read_truth(truth)  # a fault in it should not wait for the end of the run
    summary = run_inference(
        store,
        checkpoint,
        out,
        wanted,
        workers,
        device,
        compiled=compiled,
        pdf=pdf,
        site=load_site(site) if site else None,
        jobs=jobs,
        scheduler=scheduler,
        command=shlex.join(["photozhpc", *map(printable, sys.argv[1:])]),
    )
    from photozhpc.evaluation.summary import summarise  # a second, that the workers need not wait

    text = summarise(summary, truth or None)
    if not as_json:
        click.echo(text)
    exported = {to: export_as(out, to, out / EXPORT_NAMES[to], workers=workers) for to in formats}
    if as_json:
        echo_json(read_json(out / "summary.json") | ({"exports": exported} if exported else {}))
        return
    for report in exported.values():
        click.echo(sentence(report))


def _own_sky(
    survey_name: str, out: Path, truth: tuple[AnyPath, ...], workers: int | None
) -> tuple[Path, tuple[AnyPath, ...]]:
    """Make the small sky of `photozhpc infer --survey roman-sim` and its store."""
    if survey_name != "roman-sim":
        raise PhotozError(
            f"no store was given; make one with 'photozhpc extract --survey {survey_name} "
            f"--mosaics DIR --store PATH' and pass --store PATH"
        )
    from photozhpc.extract.extract import extract
    from photozhpc.sky import load_sky_config, simulate_sky

    survey = load_survey(survey_name)
    sky, store = out / "sky", out / "store"
    LOG.info("no --store: simulating %d tiles of sky in %s", DEFAULT_TILES, sky)
    simulate_sky(
        survey, sky, DEFAULT_TILES, DEFAULT_SEED, load_sky_config(), workers, Progress("tiles")
    )
    LOG.info("extracting cutouts and photometry to %s", store)
    extract(survey, sky, store, workers=workers, progress=Progress("sources"))
    return store, truth or tuple(sorted(sky.glob("*_truth.parquet")))


@main.command(
    cls=Examples, example="photozhpc evaluate out/roman-sim --truth 'sky/*_truth.parquet'"
)
@click.argument("catalog", type=LOCAL)
@click.option(
    "--truth",
    multiple=True,
    required=True,
    type=Location(),
    help="Table with source_id and z_true or z_spec, or a quoted glob of such, or a store whose "
    "labels are the truth; may be repeated.",
)
@click.option("--out", type=LOCAL, help="Folder; default: CATALOG/evaluation.")
@JSON
def evaluate(catalog: Path, truth: tuple[AnyPath, ...], out: Path | None, as_json: bool) -> None:
    """Compare a catalogue with known redshifts: tables, figures and evaluation.json."""
    from photozhpc.evaluation import evaluate, evaluation_table, write_evaluation

    evaluation = evaluate(catalog, truth)
    files = write_evaluation(evaluation, out)
    if as_json:
        click.echo(files[0].read_text(), nl=False)
        return
    click.echo(
        f"{evaluation_table(evaluation)}\n\nwritten to {files[0].parent}: "
        f"{', '.join(path.name for path in files)}"
    )


@main.command(cls=Examples, example="photozhpc report out/roman-sim")
@click.argument("path", metavar="OUT", type=LOCAL)
@click.option(
    "--truth",
    multiple=True,
    type=Location(),
    help="Truth table(s), or globs of them, or a store; default: those of the run's evaluation or "
    "simulated sky, else the store's labels.",
)
@click.option("--out", type=LOCAL, help="File; default: OUT/report.html.")
def report(path: Path, truth: tuple[AnyPath, ...], out: Path | None) -> None:
    """Make one self-contained HTML page of a catalogue, finished or not.

    OUT is the --out folder of infer, its catalog folder, or one part.
    """
    from photozhpc.report.page import write_report

    click.echo(f"report  {write_report(path, truth, out)}")


@main.command(
    cls=Examples,
    example="photozhpc figures --latents ssl.safetensors --latents pita.safetensors \\\n"
    "    --store store --truth 'sky/*_truth.parquet' --out figures\n"
    "  photozhpc figures --scaling results.json --out figures",
)
@click.option(
    "--latents",
    "checkpoints",
    multiple=True,
    type=LOCAL,
    help="Checkpoint whose latent space is shown; may be repeated: side by side.",
)
@click.option("--store", type=LOCAL, help="Store of the sources for it.")
@click.option(
    "--truth",
    multiple=True,
    type=Location(),
    help="Truth table(s), or globs of them; default: the store's labels.",
)
@click.option(
    "--scaling", type=LOCAL, help="JSON results of training runs with different numbers of labels."
)
@click.option("--out", required=True, type=LOCAL, help="Folder to write to.")
def figures(
    checkpoints: tuple[Path, ...],
    store: Path | None,
    truth: tuple[AnyPath, ...],
    scaling: Path | None,
    out: Path,
) -> None:
    """Plot the latent space of models, or their accuracy against the number of labels."""
    if not checkpoints and scaling is None:
        raise click.UsageError("nothing to report; pass --latents CHECKPOINT or --scaling FILE")
    if checkpoints:
        from photozhpc.figures.latents_report import report_latents

        if store is None:
            raise click.UsageError("--latents needs --store PATH")
        click.echo(report_latents(checkpoints, store, out, truth))
    if scaling is not None:
        from photozhpc.figures.scaling import report_scaling

        click.echo(report_scaling(scaling, out))


@main.command(cls=Examples, example="photozhpc verify catalogue --store store.zarr")
@click.argument("path", type=Location())
@click.option(
    "--store",
    "store_path",
    type=Location(),
    help="For a catalogue: check too that every source of this store is in it, once.",
)
@JSON
def verify(path: AnyPath, store_path: AnyPath | None, as_json: bool) -> None:
    """Check every file of a store, or of a catalogue (the --out of infer), and name what is wrong.

    Files are compared with the sizes and SHA-256 that were noted when they were written.
    """
    from photozhpc.store import CutoutStore

    if not is_remote(path) and (path / "run.json").is_file():
        _verify_catalog(path, store_path, as_json)
        return
    if store_path is not None:
        raise PhotozError(f"{path}: no run of 'photozhpc infer' is there to compare with --store")
    store = CutoutStore.open(path)
    problems = store.verify()
    if as_json:
        _echo_verdict("store", path, None if problems else len(store), problems)
    else:
        for problem in problems:
            click.echo(problem)
    if problems:
        raise PhotozError(
            f"{path}: {len(problems)} problems; delete the tiles named above (their folder and "
            f"their file in .manifests) and run 'photozhpc extract' again"
        )
    if not as_json:
        click.echo(f"{path}: sound: {len(store)} sources, {len(store.shards())} shards")


def _echo_verdict(kind: str, path: AnyPath, n_sources: int | None, problems: list[str]) -> None:
    sound = not problems
    echo_json(
        {
            "kind": kind,
            "path": str(path),
            "sound": sound,
            "sources": n_sources,
            "problems": problems,
        }
    )


def _verify_catalog(path: Path, store_path: AnyPath | None, as_json: bool) -> None:
    from photozhpc.catalog.verify import verify_catalog
    from photozhpc.store import CutoutStore

    store = None if store_path is None else CutoutStore.open(store_path)
    n_rows, problems = verify_catalog(path, store)
    if as_json:
        _echo_verdict("catalogue", path, n_rows, problems)
    else:
        for problem in problems:
            click.echo(problem)
    if problems:
        raise PhotozError(
            f"{path}: {len(problems)} problems; delete the parts named above and run the same "
            f"'photozhpc infer' again: it makes them anew"
        )
    where = "" if store is None else f", those of {store.path}, each once"
    if not as_json:
        click.echo(f"{path}: sound: {n_rows} sources{where}")
