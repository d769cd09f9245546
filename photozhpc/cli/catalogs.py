"""Commands on catalogues: infer, evaluate, report, figures, verify."""

import shlex
import sys
from pathlib import Path
from typing import Literal

import click

from photozhpc import api
from photozhpc.cli.exports import FORMATS
from photozhpc.cli.group import JSON, LOCAL, Examples, Location, echo, main, show
from photozhpc.cli.parameters import DEVICE, SITE, SURVEY
from photozhpc.errors import PhotozError
from photozhpc.files.objects import AnyPath, is_remote
from photozhpc.printable import printable
from photozhpc.survey import load_survey

# Format -> name in the --out folder of `infer --export`.
EXPORT_NAMES: dict[api.Format, str] = {
    "hats": "hats",
    "vo-parquet": "photoz.parquet",
    "fits": "photoz.fits",
    "qp": "photoz_qp.hdf5",
}


@main.command(
    cls=Examples,
    example=(
        "photozhpc infer --survey roman-sim\n"
        "  photozhpc infer --survey roman-l3 --store s.zarr --out dr1 --pdf quantiles --export hats"
    ),
)
@click.option("--survey", type=SURVEY, help="Survey name or YAML file; default: the store's.")
@click.option(
    "--store",
    type=Location(),
    help="Store made by 'extract', may be on s3://; or a table of fluxes.",
)
@click.option("--checkpoint", type=LOCAL, help="Model file; default: the bundled model.")
@click.option("--out", type=LOCAL, help="Folder; default: out/SURVEY.")
@click.option("--truth", multiple=True, type=Location(), help="Table(s) of known redshifts.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one per core or GPU.")
@DEVICE
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
    help="With --site: number of jobs.",
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
    survey: str | None,
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
    formats: tuple[api.Format, ...],
    as_json: bool,
) -> None:
    """Stream a store through a model into a photo-z catalogue; run again to continue.

    For survey roman-sim without --store, it first makes a small simulated sky and its store in
    the output folder.
    """
    from photozhpc.exports.export import check_format, check_target

    if "qp" in formats and pdf is None:
        raise click.UsageError("--export qp needs --pdf quantiles or --pdf grid")
    loaded_survey = api.survey_of(survey, store)
    out = out or Path("out") / loaded_survey.name
    for to in formats:
        check_format(to)  # before the run, which may take days
        check_target(out / EXPORT_NAMES[to], to)
    catalogue = api.infer(
        loaded_survey,
        store,
        checkpoint,
        out,
        truth,
        workers=workers,
        device=device,
        compiled=compiled,
        pdf=pdf,
        site=site,
        jobs=jobs,
        scheduler=scheduler,
        command=shlex.join(["photozhpc", *map(printable, sys.argv[1:])]),
    )
    if not as_json:
        echo(catalogue.text)
    exports = {to: api.export(out, to, out / EXPORT_NAMES[to], workers=workers) for to in formats}
    if as_json:
        facts = {to: exported.facts for to, exported in exports.items()}
        echo(catalogue.facts | ({"exports": facts} if facts else {}))
        return
    for exported in exports.values():
        echo(exported.text)


@main.command(
    cls=Examples, example="photozhpc evaluate out/roman-sim --truth 'sky/*_truth.parquet'"
)
@click.argument("catalog", type=LOCAL)
@click.option(
    "--truth",
    multiple=True,
    required=True,
    type=Location(),
    help="Table with source_id and z_true or z_spec, a quoted glob of such tables, or a store "
    "whose labels are the truth; may be repeated.",
)
@click.option("--survey", type=SURVEY, help="Whose source_columns the truth has, if others.")
@click.option("--out", type=LOCAL, help="Folder; default: CATALOG/evaluation.")
@JSON
def evaluate(
    catalog: Path,
    truth: tuple[AnyPath, ...],
    survey: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Compare a catalogue with known redshifts: tables, figures and evaluation.json."""
    show(api.evaluate(catalog, truth, survey, out), as_json)


@main.command(cls=Examples, example="photozhpc report out/roman-sim")
@click.argument("path", metavar="OUT", type=LOCAL)
@click.option(
    "--truth",
    multiple=True,
    type=Location(),
    help="Truth table(s), globs of them, or a store; default: the truth of the run's evaluation "
    "or simulated sky, else the store's labels.",
)
@click.option("--out", type=LOCAL, help="File; default: OUT/report.html.")
@JSON
def report(path: Path, truth: tuple[AnyPath, ...], out: Path | None, as_json: bool) -> None:
    """Make one self-contained HTML page about a catalogue, finished or not.

    OUT is the --out folder of infer, its catalog folder, or one part.
    """
    show(api.report(path, truth, out), as_json)


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
    help="Checkpoint whose latent space to plot; repeat it to plot several side by side.",
)
@click.option("--store", type=LOCAL, help="Store with the sources for --latents.")
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
@JSON
def figures(
    checkpoints: tuple[Path, ...],
    store: Path | None,
    truth: tuple[AnyPath, ...],
    scaling: Path | None,
    out: Path,
    as_json: bool,
) -> None:
    """Plot the latent space of models, or their accuracy against the number of labels."""
    if not checkpoints and scaling is None:
        raise click.UsageError("nothing to plot; pass --latents CHECKPOINT or --scaling FILE")
    texts = []
    if checkpoints:
        from photozhpc.figures.latents_report import report_latents

        if store is None:
            raise click.UsageError("--latents needs --store PATH")
        texts.append(report_latents(checkpoints, store, out, truth))
    if scaling is not None:
        from photozhpc.figures.scaling import report_scaling

        texts.append(report_scaling(scaling, out))
    if as_json:
        kinds = {"latents": bool(checkpoints), "scaling": scaling is not None}
        echo({"out": str(out), "figures": [kind for kind, made in kinds.items() if made]})
    else:
        for text in texts:
            click.echo(text)


@main.command(cls=Examples, example="photozhpc verify catalogue --store store.zarr")
@click.argument("path", type=Location())
@click.option(
    "--store",
    "store_path",
    type=Location(),
    help="For a catalogue: also check that it has every source of this store once.",
)
@click.option("--survey", type=SURVEY, help="If --store is a table of fluxes: its columns.")
@JSON
def verify(path: AnyPath, store_path: AnyPath | None, survey: str | None, as_json: bool) -> None:
    """Check every file of a store, or of a catalogue (the --out of infer), and name each problem.

    It compares the files with the sizes and SHA-256 that were recorded when they were written.
    """
    from photozhpc.store import CutoutStore, open_store

    n_sources: int | None
    if not is_remote(path) and (path / "run.json").is_file():
        from photozhpc.catalog.verify import verify_catalog

        columns = None if survey is None else load_survey(survey)
        made_from = None if store_path is None else open_store(store_path, columns)
        n_sources, problems = verify_catalog(path, made_from)
        kind, verdict = "catalogue", f"{n_sources} sources"
        if made_from is not None:
            verdict += f", those of {made_from.path}, each once"
        advice = "delete the parts named above and run the same 'photozhpc infer' again"
    elif store_path is not None:
        raise PhotozError(f"{path}: no run of 'photozhpc infer' is there to compare with --store")
    else:
        store = CutoutStore.open(path)
        problems = store.verify()
        n_sources = None if problems else len(store)
        kind = "store"
        verdict = "" if problems else f"{n_sources} sources, {len(store.shards())} shards"
        advice = (
            "delete the tiles named above (their folder and their file in .manifests) and run "
            "'photozhpc extract' again"
        )
    if as_json:
        verdict_json = {"kind": kind, "path": str(path), "sound": not problems}
        echo(verdict_json | {"sources": n_sources, "problems": problems})
    else:
        for line in problems or [f"{path}: sound: {verdict}"]:
            echo(line)
    if problems:
        raise PhotozError(f"{path}: {len(problems)} problems; {advice}")
