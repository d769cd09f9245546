"""The command line: each command parses, calls one function, and reports.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import FrameType
from typing import Any, Literal

import click

from photozhpc import __version__
from photozhpc.errors import PhotozError, Preempted
from photozhpc.survey import load_survey

# The sky that `photozhpc infer --survey roman-sim` makes for itself. No model that comes with
# the package was trained on this seed.
DEFAULT_SEED = 2027
DEFAULT_TILES = 4


class _Group(click.Group):
    """Shows a PhotozError, and a fault of the file system, as one line.

    SIGTERM and SIGUSR1, with which Slurm asks a job to stop, stop it as Ctrl-C does, but with
    the exit code on which the job scripts requeue.
    """

    def invoke(self, ctx: click.Context) -> Any:
        with _stop_signals() as received:
            return self._invoke(ctx, received)

    def _invoke(self, ctx: click.Context, received: list[int]) -> Any:
        try:
            return super().invoke(ctx)
        except PhotozError as error:
            shown = _Requeue if received or isinstance(error, Preempted) else _OneLine
            raise shown(str(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            what = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                what = "the disk is full; free some space and run the same command again"
            raise _OneLine(f"{error.filename}: {what}" if error.filename else what) from error
        except KeyboardInterrupt:
            if received:
                name = signal.Signals(received[0]).name
                raise _Requeue(f"stopped by {name}; run the same command again to go on") from None
            click.echo("stopped; run the same command again to go on", err=True)
            sys.exit(130)


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _OneLine(click.ClickException):
    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class _Requeue(_OneLine):
    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the job scripts requeue on it


class _Examples(click.Command):
    """Keeps the line breaks of the examples at the end of a command's help."""

    def __init__(self, name: str, *, example: str, **settings: Any) -> None:
        super().__init__(name, **settings, epilog=f"\b\nExample:\n  {example}")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="photozhpc")
def main() -> None:
    """Survey mosaics in, photometric-redshift catalogues out."""


@main.command(
    cls=_Examples,
    example="photozhpc simulate --survey roman-sim --out sky --tiles 4 --seed 7",
)
@click.option("--survey", default="roman-sim", show_default=True, help="Survey name or YAML file.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--tiles", default=1, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of the sky's physics.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one a core.")
def simulate(
    survey: str, out: Path, tiles: int, seed: int, config: Path | None, workers: int | None
) -> None:
    """Make a simulated Roman sky: L3 mosaics, source lists and truth tables."""
    from photozhpc.sky import load_sky_config, simulate_sky

    sky_config = load_sky_config(config) if config else load_sky_config()
    progress = _Lines("tiles")
    simulate_sky(load_survey(survey), out, tiles, seed, sky_config, workers, progress)
    click.echo(f"{tiles} tiles written to {out}")


@main.command(
    cls=_Examples,
    example="photozhpc extract --survey roman-l3 --mosaics l3 --sources cat.fits --store s.zarr",
)
@click.option("--survey", required=True, help="Survey name or YAML file.")
@click.option("--mosaics", required=True, help="Folder or glob of mosaics.")
@click.option(
    "--sources",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Source list (Parquet, FITS, ECSV, CSV); may be repeated; default: those beside the "
    "mosaics.",
)
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Store to write.")
@click.option("--size", type=click.IntRange(8), help="Side of the cutouts, px.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one a core.")
@click.option("--share", default="0/1", help="I/N: the I-th of N equal shares of the tiles.")
def extract(
    survey: str,
    mosaics: str,
    sources: tuple[Path, ...],
    store: Path,
    size: int | None,
    workers: int | None,
    share: str,
) -> None:
    """Measure sources on mosaics and cut them out into a store; run again to go on."""
    from photozhpc.store.ingest import extract as run

    summary = run(
        load_survey(survey),
        mosaics,
        store,
        sources,
        size,
        workers=workers,
        share=_share(share),
        progress=_Lines("sources"),
    )
    for note in summary.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(
        f"{summary.sources} sources of {summary.tiles} tiles in {store}, "
        f"{summary.bytes_per_cutout:.0f} bytes a cutout"
        + (f"; {summary.skipped_tiles} tiles were there already" if summary.skipped_tiles else "")
        + (f"; {summary.off_tile} sources lie on no tile" if summary.off_tile else "")
    )


def _share(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
        raise click.UsageError(f"--share must be like 0/8 to 7/8, got '{text}'")
    return int(number), int(count)


@main.command(cls=_Examples, example="photozhpc train --config recipe.yaml --store S --out run")
@click.option("--config", required=True, type=click.Path(path_type=Path), help="YAML file.")
@click.option("--store", type=click.Path(path_type=Path), help="Store; default: the config's.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default: the config's.")
@click.option("--resume", is_flag=True, help="Go on where it was, if it had begun.")
def train(config: Path, store: Path | None, out: Path | None, resume: bool) -> None:
    """Train on a store; several processes where torchrun starts it.

    It stops on SIGTERM or SIGUSR1 with its state saved and exit code 75; --resume goes on.
    """
    from dataclasses import replace

    from photozhpc.config import from_mapping, load_yaml
    from photozhpc.model.train import train as run
    from photozhpc.model.train_config import TrainConfig

    settings = from_mapping(TrainConfig, load_yaml(config), str(config))
    if store is not None:
        settings = replace(settings, store=str(store))
    if out is not None:
        settings = replace(settings, out=str(out))
    if not settings.store:
        raise click.UsageError(f"{config} names no store; pass --store PATH")
    model_file = run(settings, resume)
    if os.environ.get("RANK", "0") == "0":
        click.echo(f"model file: {model_file}")


@main.command(cls=_Examples, example="photozhpc bench infer")
@click.argument("stage", type=click.Choice(["extract", "infer", "all"]), default="all")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--sources", type=click.IntRange(1), default=50_000, help="Sources to infer.")
@click.option("--compile/--no-compile", "compiled", default=True, help="Compile the model.")
@click.option("--folder", type=click.Path(path_type=Path), help="With room for 20 kB a source.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    stage: str,
    device: Literal["auto", "cpu", "cuda"],
    sources: int,
    compiled: bool,
    folder: Path | None,
    as_json: bool,
) -> None:
    """Measure what this machine gives, and what a survey would take on it."""
    import json

    from photozhpc.report.bench import bench_extract, bench_infer, describe

    result: dict[str, Any] = {}
    if stage in ("extract", "all"):
        result["extract"] = bench_extract()
    if stage in ("infer", "all"):
        result["infer"] = bench_infer(sources, device, compiled, folder=folder)
    click.echo(json.dumps(result) if as_json else describe(result))


@main.command(
    cls=_Examples,
    example="photozhpc calibrate --checkpoint m.safetensors --store cal.zarr --out c.safetensors",
)
@click.option(
    "--checkpoint", required=True, type=click.Path(path_type=Path), help="Model with density heads."
)
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Store with labels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model file to write.")
@click.option("--compact", is_flag=True, help="Encoder's weights in float16: half as large.")
def calibrate(checkpoint: Path, store: Path, out: Path, compact: bool) -> None:
    """Calibrate a model's intervals anew on the labels of a store."""
    from photozhpc.model.calibrate import calibrate as run
    from photozhpc.store import CutoutStore

    opened = CutoutStore.open(store)
    opened.check_complete()
    click.echo(f"model file: {run(checkpoint, opened, out, compact)}")


@main.command(cls=_Examples, example="photozhpc infer --survey roman-sim")
@click.option("--survey", required=True, help="Survey name or YAML file.")
@click.option("--store", type=click.Path(path_type=Path), help="Store made by 'extract'.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Default: the bundled model.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default: out/SURVEY.")
@click.option("--truth", multiple=True, type=click.Path(path_type=Path), help="Truth table(s).")
@click.option("--workers", type=click.IntRange(1), help="Processes; default: one a core or GPU.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option(
    "--compile/--no-compile",
    "compiled",
    default=None,
    help="Run the model through compiled code; default: from a million sources on.",
)
@click.option("--site", help="Slurm site (name or YAML file) whose jobs are to do the work.")
@click.option("--jobs", default=1, type=click.IntRange(1), help="With --site: jobs at a time.")
@click.option("--scheduler", help="Address of a Dask scheduler whose workers are to do the work.")
def infer(
    survey: str,
    store: Path | None,
    checkpoint: Path | None,
    out: Path | None,
    truth: tuple[Path, ...],
    workers: int | None,
    device: Literal["auto", "cpu", "cuda"],
    compiled: bool | None,
    site: str | None,
    jobs: int,
    scheduler: str | None,
) -> None:
    """Stream a store through a model into a photo-z catalogue; run again to go on.

    Without --store, and for survey roman-sim, it first makes a small simulated sky and its
    store inside the output folder.
    """
    from photozhpc.catalog.run import run_inference
    from photozhpc.model import bundled_checkpoint
    from photozhpc.site import load_site

    wanted = load_survey(survey)
    out = out or Path("out") / wanted.name
    checkpoint = checkpoint or bundled_checkpoint(wanted.name)
    if store is None:
        store, truth = _own_sky(wanted.name, out, truth, workers)
    if truth:
        from photozhpc.report.truth import read_truth

        read_truth(truth)  # a fault in it should not wait for the end of the run
    summary = run_inference(
        store,
        checkpoint,
        out,
        wanted,
        workers,
        device,
        compiled=compiled,
        site=load_site(site) if site else None,
        jobs=jobs,
        scheduler=scheduler,
        command=shlex.join(["photozhpc", *sys.argv[1:]]),
    )
    from photozhpc.report.summary import summarise  # a second, that the workers need not wait

    click.echo(summarise(summary, truth or None))


def _own_sky(
    survey_name: str, out: Path, truth: tuple[Path, ...], workers: int | None
) -> tuple[Path, tuple[Path, ...]]:
    """Make the small sky of `photozhpc infer --survey roman-sim` and its store."""
    if survey_name != "roman-sim":
        raise PhotozError(
            f"no store was given; make one with 'photozhpc extract --survey {survey_name} "
            f"--mosaics DIR --store PATH' and pass --store PATH"
        )
    from photozhpc.sky import load_sky_config, simulate_sky
    from photozhpc.store.ingest import extract as run

    survey = load_survey(survey_name)
    sky, store = out / "sky", out / "store"
    click.echo(f"no --store: simulating {DEFAULT_TILES} tiles of sky in {sky}", err=True)
    simulate_sky(
        survey, sky, DEFAULT_TILES, DEFAULT_SEED, load_sky_config(), workers, _Lines("tiles")
    )
    click.echo(f"extracting cutouts and photometry to {store}", err=True)
    run(survey, sky, store, workers=workers, progress=_Lines("sources"))
    return store, truth or tuple(sorted(sky.glob("*_truth.parquet")))


@main.command(
    cls=_Examples,
    example="photozhpc submit train --site generic --nodes 2 --dry-run -- \\\n"
    "    --config pita.yaml --store s.zarr --out run",
)
@click.argument("stage", type=click.Choice(["extract", "train", "infer"]))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--site", required=True, help="Site name or YAML file.")
@click.option("--nodes", type=click.IntRange(1), help="Of train; default: the site's.")
@click.option("--array", default=1, type=click.IntRange(1), help="Jobs that share the tiles.")
@click.option("--after", multiple=True, help="Number of a job that has to end well before.")
@click.option("--only-one", help="A name: of jobs with the same, one runs at a time.")
@click.option("--dry-run", is_flag=True, help="Print what would be submitted.")
def submit(
    stage: str,
    arguments: tuple[str, ...],
    site: str,
    nodes: int | None,
    array: int,
    after: tuple[str, ...],
    only_one: str | None,
    dry_run: bool,
) -> None:
    """Submit a stage to Slurm, with the arguments after "--"; prints the number of the job."""
    from photozhpc.site import load_site, make_job

    job = make_job(
        load_site(site),
        stage,
        arguments,
        nodes=nodes,
        array=array,
        after=after,
        only_one=only_one,
    )
    try:  # a typing error should not wait in a queue
        main.commands[stage].make_context(f"photozhpc {stage}", list(arguments))
    except click.exceptions.Exit:  # --help was among them
        return
    if dry_run:
        click.echo(f"{job}\n\n# {job.script}\n{job.script.read_text()}", nl=False)
    else:
        click.echo(job.submit())


@main.command(cls=_Examples, example="photozhpc status catalogue")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(path: Path, as_json: bool) -> None:
    """Tell how far a run is: an extraction's store, a training's or a catalogue's folder.

    It reads what the run leaves on disk, while it runs and after, from any machine.
    """
    import json

    from photozhpc.report.status import describe, status_of

    found = status_of(path)
    click.echo(json.dumps(found) if as_json else describe(found))


@main.command(cls=_Examples, example="photozhpc verify catalogue --store store.zarr")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--store",
    "store_path",
    type=click.Path(path_type=Path),
    help="Of a catalogue: see too that every source of this store is in it, once.",
)
def verify(path: Path, store_path: Path | None) -> None:
    """Check every file of a store, or of a catalogue (the --out of infer), and name what is wrong.

    Files are compared with the sizes and SHA-256 that were noted when they were written.
    """
    from photozhpc.store import CutoutStore

    if (path / "run.json").is_file():
        _verify_catalog(path, store_path)
        return
    if store_path is not None:
        raise PhotozError(f"{path}: no run of 'photozhpc infer' is there to compare with --store")
    store = CutoutStore.open(path)
    problems = store.verify()
    for problem in problems:
        click.echo(problem)
    if problems:
        raise PhotozError(
            f"{path}: {len(problems)} problems; delete the tiles named above (their folder and "
            f"their file in .manifests) and run 'photozhpc extract' again"
        )
    click.echo(f"{path}: sound: {len(store)} sources, {len(store.shards())} shards")


def _verify_catalog(path: Path, store_path: Path | None) -> None:
    from photozhpc.catalog.verify import verify_catalog
    from photozhpc.store import CutoutStore

    store = None if store_path is None else CutoutStore.open(store_path)
    n_rows, problems = verify_catalog(path, store)
    for problem in problems:
        click.echo(problem)
    if problems:
        raise PhotozError(
            f"{path}: {len(problems)} problems; delete the parts named above and run the same "
            f"'photozhpc infer' again: it makes them anew"
        )
    where = "" if store is None else f", those of {store.path}, each once"
    click.echo(f"{path}: sound: {n_rows} sources{where}")


@main.command(
    cls=_Examples, example="photozhpc evaluate out/roman-sim --truth 'sky/*_truth.parquet'"
)
@click.argument("catalog", type=click.Path(path_type=Path))
@click.option(
    "--truth",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Table with source_id and z_true or z_spec, or a quoted glob of such, or a store whose "
    "labels are the truth; may be repeated.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder; default: CATALOG/evaluation.")
@click.option("--json", "as_json", is_flag=True, help="Print the JSON document, nothing else.")
def evaluate(catalog: Path, truth: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Compare a catalogue with known redshifts: tables, figures and evaluation.json."""
    from photozhpc.report import evaluate as run
    from photozhpc.report import evaluation_table, write_evaluation

    evaluation = run(catalog, truth)
    files = write_evaluation(evaluation, out)
    if as_json:
        click.echo(files[0].read_text(), nl=False)
        return
    click.echo(
        f"{evaluation_table(evaluation)}\n\nwritten to {files[0].parent}: "
        f"{', '.join(path.name for path in files)}"
    )


@main.command(
    cls=_Examples,
    example="photozhpc report --latents ssl.safetensors --latents pita.safetensors \\\n"
    "    --store store --truth 'sky/*_truth.parquet' --out figures\n"
    "  photozhpc report --scaling results.json --out figures",
)
@click.option(
    "--latents",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Checkpoint whose latent space is shown; may be repeated: side by side.",
)
@click.option("--store", type=click.Path(path_type=Path), help="Store of the sources for it.")
@click.option(
    "--truth",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Truth table(s), or globs of them; default: the store's labels.",
)
@click.option(
    "--scaling",
    type=click.Path(path_type=Path),
    help="Results of trainings with different numbers of labels, JSON.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
def report(
    checkpoints: tuple[Path, ...],
    store: Path | None,
    truth: tuple[Path, ...],
    scaling: Path | None,
    out: Path,
) -> None:
    """Draw what models know: their latent space, and their accuracy against labels."""
    if not checkpoints and scaling is None:
        raise click.UsageError("nothing to report; pass --latents CHECKPOINT or --scaling FILE")
    if checkpoints:
        from photozhpc.report.latents_report import report_latents

        if store is None:
            raise click.UsageError("--latents needs --store PATH")
        click.echo(report_latents(checkpoints, store, out, truth))
    if scaling is not None:
        from photozhpc.report.scaling import report_scaling

        click.echo(report_scaling(scaling, out))


@main.command(
    "import-checkpoint",
    cls=_Examples,
    example="photozhpc import-checkpoint epoch=1549.ckpt --survey candels --out pita.safetensors",
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--survey", required=True, help="Survey name or YAML file.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Model file to write.")
@click.option(
    "--zero-point", multiple=True, type=float, help="AB magnitude of one count, once a band."
)
@click.option("--crop", default=64, show_default=True, type=click.IntRange(32))
def import_checkpoint(
    path: Path, survey: str, out: Path, zero_point: tuple[float, ...], crop: int
) -> None:
    """Turn a Lightning checkpoint of pita-z into a model; nothing in it is executed."""
    from photozhpc.model import save_checkpoint
    from photozhpc.model.pita_z import import_checkpoint as run

    wanted = load_survey(survey)
    model, notes = run(path, wanted, zero_point or None, crop)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    training = {"imported_from": path.name, "notes": list(notes)}
    click.echo(f"model file: {save_checkpoint(out, model, wanted, training)}")


@main.command(
    "import-hdf5",
    cls=_Examples,
    example="photozhpc import-hdf5 candels_test.hdf5 --survey candels --store test.zarr",
)
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--survey", required=True, help="Survey name or YAML file.")
@click.option("--store", required=True, type=click.Path(path_type=Path), help="Store to write.")
@click.option(
    "--label-f", default=1, show_default=True, type=click.IntRange(1), help="use_redshift_N"
)
@click.option(
    "--zero-point", multiple=True, type=float, help="AB magnitude of one count, once a band."
)
@click.option(
    "--colours",
    type=click.Choice(["red/blue", "blue/red"]),
    help="Ratios of the file's colour features; default: what its fluxes say, else red/blue.",
)
@click.option(
    "--flux-band", help="Band of their flux; default: what its fluxes say, else the last."
)
def import_hdf5(
    path: Path,
    survey: str,
    store: Path,
    label_f: int,
    zero_point: tuple[float, ...],
    colours: str | None,
    flux_band: str | None,
) -> None:
    """Copy an HDF5 catalogue of pita-z into a store; run again to go on."""
    from photozhpc.store.hdf5_catalogue import import_hdf5 as run
    from photozhpc.store.pita_z_units import FluxFeatures

    wanted = load_survey(survey)
    features = None
    if colours or flux_band:
        band = wanted.band(flux_band).name if flux_band else wanted.band_names[-1]
        features = FluxFeatures(colours != "blue/red", wanted.band_names.index(band))
    progress = _Lines("sources")
    summary = run(path, wanted, store, label_f, features, zero_point or None, progress=progress)
    for note in summary.notes:
        click.echo(f"note: {note}", err=True)
    click.echo(f"{summary.sources} sources in {store}, {summary.labelled} with a z_spec")


class _Lines:
    """Progress: a bar on a terminal, about ten plain lines in a log."""

    def __init__(self, unit: str) -> None:
        from tqdm import tqdm

        tqdm.set_lock(RLock())  # its own is for several processes, and starts another one
        self._unit = unit
        self._bar = tqdm(unit=f" {unit}", disable=None, leave=False, total=0)
        self._next = 0.1

    def __call__(self, done: int, total: int) -> None:
        if not self._bar.disable:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            if done >= total:
                self._bar.close()
        elif total and done / total >= self._next:
            click.echo(f"  {done}/{total} {self._unit}", err=True)
            self._next = done / total + 0.1
