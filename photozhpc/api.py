"""What `import photozhpc` offers: every stage as a function, which the command of its name calls.

    import photozhpc

    catalogue = photozhpc.infer("roman-sim")
    table = photozhpc.read_catalog(catalogue)

Each returns a `Result`: a path that the next stage takes, with what there is to say about it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, Literal

from photozhpc.errors import ConfigError, PhotozError
from photozhpc.files.disk import read_json
from photozhpc.files.objects import AnyPath, PathLike, is_remote, location
from photozhpc.logs import LOG
from photozhpc.progress import Progress
from photozhpc.survey import Survey, load_survey

# The sky that `infer("roman-sim")` makes; no bundled model was trained on its seed.
DEFAULT_SEED = 2027
DEFAULT_TILES = 4
LocalPath = str | os.PathLike[str]
Format = Literal["hats", "vo-parquet", "fits", "qp"]


@dataclass(frozen=True, repr=False)
class Result(os.PathLike[str]):
    """What a stage has made; it can be passed on wherever a path is expected.

    Attributes:
        path: of the file or folder.
        facts: what the command prints with --json.
        text: what it prints without, and what a notebook shows.
    """

    path: AnyPath
    facts: dict[str, Any]
    text: str

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:  # what a notebook shows
        return self.text


def simulate(
    out: LocalPath,
    survey: str | Path | Survey = "roman-sim",
    tiles: int = 1,
    seed: int = 0,
    config: str | Path | None = None,
    workers: int | None = None,
) -> Result:
    """Make a simulated Roman sky: L3 mosaics, source lists and truth tables.

        sky = photozhpc.simulate("sky", tiles=4, seed=7)

    Args:
        config: name or YAML file of the sky's physics (docs/sky.md).
        workers: processes; default: one per core.

    Raises:
        ConfigError: the folder has a sky of another configuration; a value is wrong.
        RunError: it cannot be written.
    """
    from photozhpc.sky import load_sky_config, simulate_sky

    sky_config = load_sky_config() if config is None else load_sky_config(config)
    folder = _local(out)
    simulate_sky(_survey(survey), folder, tiles, seed, sky_config, workers, Progress("tiles"))
    facts = {"kind": "sky", "path": str(folder), "tiles": tiles, "seed": seed}
    return Result(folder, facts, f"{tiles} tiles written to {folder}")


def detect(
    mosaics: PathLike,
    out: LocalPath,
    survey: str | Path | Survey,
    threshold: float | None = None,
    min_area: int = 5,
    workers: int | None = None,
) -> Result:
    """Make a source list for `extract` from mosaics without a catalogue.

        sources = photozhpc.detect("l3", "sources.parquet", "roman-l3")

    Args:
        mosaics: folder or glob.
        threshold: minimum value of a filtered pixel, in standard deviations of the unfiltered
            noise; default: 4 standard deviations of the filtered noise.
        min_area: minimum number of adjacent pixels above it.

    Raises:
        PhotozError: there are no mosaics, or one cannot be read.
    """
    from photozhpc.extraction.detect import make_source_list

    target = _local(out)
    summary = make_source_list(
        _survey(survey),
        _location(mosaics),  # not its text, which leaves out secrets
        target,
        threshold,
        min_area,
        workers,
        Progress("tiles"),
    )
    _log_notes(summary.notes)
    text = f"{summary.sources} sources of {summary.tiles} tiles in {target}"
    text += "; it existed already" if summary.present else ""
    text += f"; {summary.repeats} repeats in overlaps left out" if summary.repeats else ""
    return Result(target, {"kind": "source list", "path": str(target), **asdict(summary)}, text)


def extract(
    mosaics: PathLike,
    store: PathLike,
    survey: str | Path | Survey,
    sources: PathLike | Iterable[PathLike] = (),
    size: int | None = None,
    ebv_map: Literal["sfd", "sfd-hires", "none"] = "sfd",
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
    allow_missing_bands: bool = False,
    dry_run: bool = False,
) -> Result:
    """Measure sources on mosaics and store their cutouts; called again, it continues.

        store = photozhpc.extract("sky", "store", "roman-sim")

    Args:
        mosaics: folder or glob; a `Result` of `simulate`.
        sources: source lists (Parquet, FITS, ECSV, CSV, text); default: those beside the mosaics.
        size: side of the cutouts, pixels; default: the survey's.
        ebv_map: E(B-V) if the list has none.
        share: (i, n): the i-th of n equal shares of the tiles.
        allow_missing_bands: leave bands empty that no tile has, instead of raising.
        dry_run: say what would be done, and write nothing.

    Raises:
        PhotozError: a mosaic or list cannot be used; its message says what to do.
    """
    from photozhpc.extraction.extract import extract as extract_store
    from photozhpc.extraction.plan import plan_extraction
    from photozhpc.store.cutout_store import local_path

    target = local_path(_location(store))
    loaded, where = _survey(survey), _location(mosaics)  # not its text, which leaves out secrets
    lists = _locations(sources)
    plan = plan_extraction(loaded, where, lists, ebv_map, allow_missing_bands)
    lines = plan.lines(check=dry_run)
    if dry_run:
        _log_notes(plan.notes)
        facts = {"kind": "plan", "tiles": len(plan.tile_mosaics), "sources": len(plan.sources)}
        return Result(target, facts | {"lines": lines, "notes": plan.notes}, "\n".join(lines))
    for line in lines:
        LOG.info("%s", line)
    summary = extract_store(
        loaded,
        where,
        target,
        lists,
        size,
        workers=workers,
        share=share,
        ebv_map=ebv_map,
        allow_missing_bands=allow_missing_bands,
        progress=Progress("sources"),
        plan=plan,
    )
    _log_notes(summary.notes)
    text = f"{summary.sources} sources of {summary.tiles} tiles in {target}, "
    text += f"{summary.bytes_per_cutout:.0f} bytes per cutout"
    text += f"; {summary.skipped_tiles} tiles existed already" if summary.skipped_tiles else ""
    text += f"; {summary.off_tile} sources lie on no tile" if summary.off_tile else ""
    return Result(target, {"kind": "store", "path": str(target), **asdict(summary)}, text)


def train(
    config: str | Path | Mapping[str, Any],
    store: LocalPath | None = None,
    survey: str | Path | None = None,
    out: LocalPath | None = None,
    restart: bool = False,
) -> Result:
    """Train a model on a store or a table of fluxes; called again, it continues.

    Under torchrun it trains in several processes.

        model = photozhpc.train("pixels-and-fluxes", store="store", out="run")

    Args:
        config: name or YAML file of a recipe, or a mapping of the same keys, `base` among them.
        store, survey, out: in place of the recipe's.
        restart: delete the run that is in the folder, and begin anew.

    Raises:
        ConfigError: the recipe is wrong.
        StoreError: the store does not suit it.
        CheckpointError: another training has been in the folder.
        Preempted: a signal stopped it; call it again.
    """
    from photozhpc.config import from_mapping, on_base, read_config
    from photozhpc.model.launch import Launch
    from photozhpc.model.train import train as train_model
    from photozhpc.model.train_config import TrainConfig

    if isinstance(config, Mapping):
        settings = from_mapping(TrainConfig, on_base(config, "the recipe"), "the recipe")
    else:
        settings = read_config(TrainConfig, config, "recipe")
    if store is not None:
        settings = replace(settings, store=str(_local(store)))
    if survey is not None:
        settings = replace(settings, survey=str(survey))
    if out is not None:
        settings = replace(settings, out=str(_local(out)))
    if not settings.store:
        name = "the recipe" if isinstance(config, Mapping) else config
        raise ConfigError(f"{name} names no store; pass --store PATH")
    path = train_model(settings, restart)
    # Of several ranks one speaks.
    return _model(path) if Launch.of(os.environ).rank == 0 else Result(path, {}, "")


def calibrate(
    checkpoint: LocalPath,
    store: PathLike,
    out: LocalPath,
    survey: str | Path | Survey | None = None,
    compact: bool = False,
) -> Result:
    """Recalibrate a model's intervals on the labels of a store or a table of fluxes.

        model = photozhpc.calibrate("run/model.safetensors", "labelled-store", "model.safetensors")

    Args:
        survey: for a table: what its columns are; default: as in training.
        compact: store the encoder's weights in float16.

    Raises:
        CheckpointError: the model has no density heads.
        StoreError: there are too few labels.
    """
    from photozhpc.model import load_checkpoint
    from photozhpc.model.calibrate import calibrate as calibrate_model
    from photozhpc.store import open_store

    path = _local(checkpoint)
    its_survey = load_checkpoint(path).survey if survey is None else _survey(survey)
    opened = open_store(_location(store), its_survey)
    opened.check_complete()
    return _model(calibrate_model(path, opened, _local(out), compact))


def infer(
    survey: str | Path | Survey | None = None,
    store: PathLike | None = None,
    checkpoint: LocalPath | None = None,
    out: LocalPath | None = None,
    truth: PathLike | Iterable[PathLike] = (),
    *,
    workers: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    compiled: bool | None = None,
    pdf: Literal["quantiles", "grid"] | None = None,
    site: str | Path | None = None,
    jobs: int = 1,
    scheduler: str | None = None,
    command: str | None = None,
) -> Result:
    """Stream a store through a model into a photo-z catalogue; called again, it continues.

    For survey roman-sim without a store, it first makes a small simulated sky and its store in
    `out`.

        catalogue = photozhpc.infer("roman-l3", "s.zarr", out="dr1", pdf="quantiles")
        table = photozhpc.read_catalog(catalogue)

    Args:
        survey: name, YAML file or `Survey`; default: the store's own.
        checkpoint: model file; default: the bundled model.
        out: folder; default: out/SURVEY.
        truth: tables of known redshifts; default: the store's labels.
        workers: processes; default: one per core or GPU.
        compiled: compile the model; default: for a million sources or more.
        pdf: also write p(z), as quantiles or as densities on a grid (`read_pdf`).
        site: Slurm site whose jobs do the work, with `jobs` jobs.
        scheduler: address of a Dask scheduler whose workers do the work.
        command: noted as what made the catalogue; default: this call.

    Raises:
        PhotozError: something given cannot be used, or the disk is full; what is finished is kept.
    """
    from photozhpc.model.bundled_model import bundled_checkpoint
    from photozhpc.model.slow_imports import slow_imports
    from photozhpc.workers.devices import device_list
    from photozhpc.workers.fork_server import PRELOAD, import_early

    loaded = survey_of(survey, store)
    folder = Path("out") / loaded.name if out is None else _local(out)
    model = bundled_checkpoint(loaded.name) if checkpoint is None else _local(checkpoint)
    if site is None and scheduler is None and not device_list(device):
        import_early([*PRELOAD, *slow_imports(model)])  # before this process imports Dask
    from photozhpc.catalog.run import run_inference
    from photozhpc.workers.dask_workers import DaskWorkers
    from photozhpc.workers.site import load_site

    chosen = DaskWorkers.of(workers, device, load_site(site) if site else None, jobs, scheduler)
    tables = _locations(truth)
    made: AnyPath
    if store is None:
        made, tables = _own_sky(loaded, folder, tables, workers)
    else:
        made = _location(store)
    if tables:
        from photozhpc.evaluation.truth import read_truth

        read_truth(tables, loaded.source_columns)  # report a fault in it before the run
    if command is None:
        command = f"photozhpc.infer({loaded.name!r}, {str(made)!r}, {str(model)!r}, ...)"
    # Its import takes a second or two, in which this process would wait for the workers.
    early = Thread(target=_import, args=["photozhpc.evaluation.summary"], daemon=True)
    early.start()
    summary = run_inference(
        made, model, folder, loaded, chosen, compiled=compiled, pdf=pdf, command=command
    )
    early.join()
    from photozhpc.evaluation.summary import summarise

    text = summarise(summary, tables or None)
    return Result(folder, read_json(folder / "summary.json"), text)


def evaluate(
    catalog: LocalPath,
    truth: PathLike | Iterable[PathLike],
    survey: str | Path | Survey | None = None,
    out: LocalPath | None = None,
) -> Result:
    """Compare a catalogue with known redshifts: tables, figures and evaluation.json.

        accuracy = photozhpc.evaluate("out/roman-sim", "out/roman-sim/sky/*_truth.parquet")
        accuracy.facts["overall"]["nmad"]["value"]

    Args:
        truth: tables with source_id and z_true or z_spec, globs of them, or a store whose labels
            are the truth.
        survey: whose source_columns the truth has, if others.
        out: folder; default: CATALOG/evaluation.

    Raises:
        CatalogError: the catalogue is missing, not finished or damaged.
        SourceListError: a truth table is wrong.
    """
    from photozhpc.evaluation.evaluate import evaluate as evaluate_catalog
    from photozhpc.evaluation.tables import evaluation_table, write_evaluation

    columns = None if survey is None else _survey(survey).source_columns
    evaluation = evaluate_catalog(_local(catalog), _locations(truth), columns=columns)
    files = write_evaluation(evaluation, None if out is None else _local(out))
    names = ", ".join(path.name for path in files)
    text = f"{evaluation_table(evaluation)}\n\nwritten to {files[0].parent}: {names}"
    return Result(files[0].parent, read_json(files[0]), text)


def report(
    catalog: LocalPath, truth: PathLike | Iterable[PathLike] = (), out: LocalPath | None = None
) -> Result:
    """Make one self-contained HTML page about a catalogue, finished or not.

        photozhpc.report("out/roman-sim")

    Args:
        truth: tables, globs of them, or a store; default: the truth of the run's evaluation or
            simulated sky, else the store's labels.
        out: file; default: report.html in the catalogue's folder.

    Raises:
        CatalogError: there is no catalogue, or it is damaged.
    """
    from photozhpc.html_report.page import write_report

    file = None if out is None else _local(out)
    path = write_report(_local(catalog), _locations(truth), file)
    return Result(path, {"kind": "report", "path": str(path)}, f"report  {path}")


def export(
    catalog: LocalPath,
    to: Format,
    out: LocalPath,
    columns: Literal["roman", "rubin", "euclid"] = "roman",
    workers: int | None = None,
) -> Result:
    """Write a catalogue for other tools: HATS for LSDB, FITS or VOParquet for TOPCAT, qp for RAIL.

        photozhpc.export("out/roman-sim", "hats", "out/roman-sim/hats")

    Args:
        to: format.
        out: file or folder; a complete new export replaces an older one there, and nothing else.
        columns: survey whose names and units the columns get.
        workers: processes, for hats; default: one per core.

    Raises:
        CatalogError: the catalogue is missing, unfinished or damaged.
        ConfigError: a package is not installed.
    """
    from photozhpc.exports.export import export as export_rows

    target = _local(out)
    written = export_rows(_local(catalog), to, target, columns, workers, Progress("sources"))
    facts = {"format": to, "path": str(target), "sources": written.rows}
    facts["left_out"] = written.left_out
    facts["why_left_out"] = written.why if written.left_out else None
    text = f"{written.rows} sources in {target}"
    text += f"; {written.left_out} left out: they {written.why}" if written.left_out else ""
    return Result(target, facts, text)


def survey_of(survey: str | Path | Survey | None, store: PathLike | None) -> Survey:
    """Return the survey, or if none is given that of the store.

    Raises:
        PhotozError: neither is given; the store cannot be opened or is a table.
    """
    if survey is not None:
        return _survey(survey)
    if store is None:
        raise ConfigError("pass --survey, or a --store, which knows its own survey")
    from photozhpc.store.flux_table import open_store

    return open_store(_location(store)).survey


def _survey(survey: str | Path | Survey) -> Survey:
    return survey if isinstance(survey, Survey) else load_survey(survey)


def _local(where: LocalPath) -> Path:
    path = location(os.fspath(where))
    if is_remote(path):
        raise ConfigError(f"{path}: is a URL; pass a path on a disk")
    return path


def _location(where: PathLike) -> AnyPath:
    return where.path if isinstance(where, Result) else location(where)


def _locations(where: PathLike | Iterable[PathLike]) -> tuple[AnyPath, ...]:
    given = where if isinstance(where, Iterable) and not isinstance(where, str) else [where]
    return tuple(map(_location, given))


def _import(module: str) -> None:
    with suppress(Exception):  # whoever imports it next says why
        import_module(module)


def _log_notes(notes: Sequence[str]) -> None:
    for note in notes:
        LOG.info("note: %s", note)


def _model(path: Path) -> Result:
    from photozhpc.info.models import about_checkpoint

    return Result(path, about_checkpoint(path), f"model file: {path}")


def _own_sky(
    survey: Survey, out: Path, truth: tuple[AnyPath, ...], workers: int | None
) -> tuple[Path, tuple[AnyPath, ...]]:
    """Make the small sky of `infer("roman-sim")` and its store."""
    if survey.name != "roman-sim":
        raise PhotozError(
            f"no store was given; make one with 'photozhpc extract --survey {survey.name} "
            f"--mosaics DIR --store PATH' and pass --store PATH"
        )
    from photozhpc.extraction.extract import extract as extract_store
    from photozhpc.sky import load_sky_config, simulate_sky

    sky, store = out / "sky", out / "store"
    LOG.info("no --store: simulating %d tiles of sky in %s", DEFAULT_TILES, sky)
    simulate_sky(
        survey, sky, DEFAULT_TILES, DEFAULT_SEED, load_sky_config(), workers, Progress("tiles")
    )
    LOG.info("extracting cutouts and photometry to %s", store)
    extract_store(survey, sky, store, workers=workers, progress=Progress("sources"))
    return store, truth or tuple(sorted(sky.glob("*_truth.parquet")))
