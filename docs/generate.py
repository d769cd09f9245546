"""The pages of the reference, from the code: commands, configuration, columns, surveys, Python."""

import ast
import dataclasses
import enum
import inspect
import json
import pydoc
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import click

from photozhpc.catalog.photoz_catalog import PhotozFlag, catalog_schema
from photozhpc.cli import main
from photozhpc.config import to_mapping
from photozhpc.info.docstrings import attributes, entries, sections
from photozhpc.model.train_config import TrainConfig
from photozhpc.sky.sky_config import SkyConfig
from photozhpc.survey import Survey, load_survey, survey_names
from photozhpc.workers.site import Site

# What a user writes in YAML: class, its heading, where such a file is used.
CONFIGS: tuple[tuple[type, str, str], ...] = (
    (Survey, "Survey", "`--survey FILE.yaml`; those of the package are in `configs/surveys/`"),
    (TrainConfig, "Training", "`photozhpc train --config FILE.yaml`; see `configs/train/`"),
    (SkyConfig, "Simulated sky", "`photozhpc simulate --config FILE.yaml`; see `configs/sky/`"),
    (Site, "Slurm site", "`--site FILE.yaml`; see `configs/sites/`"),
)
# The Python interface: heading -> names that users import.
PYTHON: dict[str, tuple[str, ...]] = {
    "Stages": (
        "photozhpc.simulate",
        "photozhpc.detect",
        "photozhpc.extract",
        "photozhpc.train",
        "photozhpc.calibrate",
        "photozhpc.infer",
        "photozhpc.evaluate",
        "photozhpc.report",
        "photozhpc.export",
        "photozhpc.Result",
        "photozhpc.plot_pdf",
        "photozhpc.plot_cutouts",
    ),
    "Catalogues": (
        "photozhpc.catalog.read_catalog",
        "photozhpc.catalog.read_pdf",
        "photozhpc.catalog.PdfPart",
        "photozhpc.catalog.PdfPart.cdf",
        "photozhpc.catalog.PdfPart.density",
    ),
    "Stores": (
        "photozhpc.store.CutoutStore",
        "photozhpc.store.CutoutStore.create",
        "photozhpc.store.CutoutStore.open",
        "photozhpc.store.CutoutStore.tiles",
        "photozhpc.store.CutoutStore.shards",
        "photozhpc.store.CutoutStore.shard_lengths",
        "photozhpc.store.CutoutStore.read_cutouts",
        "photozhpc.store.CutoutStore.read_sources",
        "photozhpc.store.CutoutStore.read_measurements",
        "photozhpc.store.CutoutStore.tile_attributes",
        "photozhpc.store.CutoutStore.fingerprint",
        "photozhpc.store.CutoutStore.verify",
        "photozhpc.store.ShardKey",
        "photozhpc.sources.read.Sources",
        "photozhpc.store.Measurements",
    ),
    "Models": (
        "photozhpc.model.load_checkpoint",
        "photozhpc.model.bundled_checkpoint",
        "photozhpc.model.Checkpoint",
        "photozhpc.model.Checkpoint.check_store",
        "photozhpc.model.engine.Engine",
        "photozhpc.model.engine.Engine.predict",
        "photozhpc.model.engine.Engine.predict_pdf",
        "photozhpc.model.engine.Prediction",
    ),
    "Metrics": (
        "photozhpc.metrics.point_metrics",
        "photozhpc.metrics.PointMetrics",
        "photozhpc.metrics.interval_coverage",
        "photozhpc.metrics.pit",
        "photozhpc.metrics.crps",
    ),
    "Mosaics": (
        "photozhpc.survey.load_survey",
        "photozhpc.mosaic.tile.read_tile",
        "photozhpc.mosaic.tile.Tile",
        "photozhpc.mosaic.tile.Tile.sky_to_pixel",
        "photozhpc.mosaic.tile.Tile.pixel_to_sky",
        "photozhpc.mosaic.measure.forced_photometry",
        "photozhpc.mosaic.measure.Photometry",
        "photozhpc.mosaic.photometry.sum_circles",
        "photozhpc.mosaic.photometry.PhotFlag",
        "photozhpc.mosaic.cutouts.extract_cutouts",
    ),
    "Simulated skies": ("photozhpc.sky.simulate_sky",),
}


def commands() -> str:
    """Every command with its usage, options, defaults and example, from click."""
    lines = [
        "# Commands\n",
        "This page is generated from the program; `photozhpc COMMAND --help` prints the same. "
        "Options marked **required** must be given. An error is one line on stderr and exit code "
        "1 (2 for a mistyped option). Ctrl-C gives 130. A job that saved its state because its "
        "time was up exits with 75.\n",
    ]
    for name, command in walk(main, "photozhpc"):
        context = click.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += [f"## {name}\n", _paragraphs(command.help), f"```text\n{name} {usage}\n```\n"]
        rows = [
            (_names(p, context), _default(p, context), p.help or "")
            for p in command.params
            if isinstance(p, click.Option) and not p.hidden
        ]
        if rows:
            lines.append(_table(("option", "default", "description"), rows))
        if command.epilog:
            example = inspect.cleandoc(command.epilog.replace("\b\nExample:\n", ""))
            lines.append(f"```text\n{example}\n```\n")
    return "\n".join(lines)


def config() -> str:
    """Every key of every YAML file, from the dataclasses that read it."""
    lines = [
        "# Configuration\n",
        "Every key of every YAML file, from the classes that read it. Keys marked **required** "
        "have no default. A key that is not in these tables, or a value of the wrong type, stops "
        "the run with a message that names it and the nearest valid key.\n",
        "Any file may have the key `base`: the name of a bundled configuration, or the path of a "
        "file relative to this one. Its keys apply where the file does not set them; lists are "
        "replaced as a whole. `photozhpc config show FILE` shows what results.\n",
    ]
    for root, heading, where in CONFIGS:
        for cls in nested(root):
            first = cls is root
            lines.append(f"## {heading}\n" if first else f"### {cls.__name__}\n")
            lines.append(f"{_yaml(_summary(cls))}\n\n")
            lines.append(f"Given with {where}.\n" if first else f"Under {_keys(root, cls)}.\n")
            texts, hints = descriptions(cls), typing.get_type_hints(cls)
            rows = [
                (f"`{f.name}`", _type(hints[f.name]), _field_default(f), _yaml(texts[f.name]))
                for f in dataclasses.fields(cls)
            ]
            lines.append(_table(("key", "type", "default", "description"), rows))
    return "\n".join(lines)


def catalogue() -> str:
    """Columns of a catalogue: type, unit, UCD and description, from the schema that is written."""
    survey = load_survey("roman-sim")
    rows = []
    for column in catalog_schema(survey):
        meta = {key.decode(): value.decode() for key, value in (column.metadata or {}).items()}
        unit, ucd = meta.get("unit", ""), meta.get("ucd", "")
        what = meta.get("description", "")
        rows.append((f"`{column.name}`", str(column.type), unit, ucd.replace(";", ";<wbr>"), what))
    return "\n".join(
        [
            "# Catalogue\n",
            "Columns of a catalogue of the survey `roman-sim`, from the schema that is written "
            "into its Parquet files; other surveys have their own bands and apertures. Missing "
            "values are Parquet nulls. Units, UCDs and descriptions are in each file, both as "
            "column metadata and as a VOTable (VOParquet).\n",
            _table(("column", "type", "unit", "UCD", "description"), rows),
            "## Flags\n",
            "`photoz_flags` is the sum of:\n",
            _flags(PhotozFlag),
        ]
    )


def surveys() -> str:
    """The surveys that come with the package, from their YAML files."""
    lines = [
        "# Surveys\n",
        "These come with the package. Any other survey is a YAML file with the keys of "
        "[Configuration](config.md#survey): see [Your own survey](../own_survey.md).\n",
    ]
    for name in survey_names():
        survey = load_survey(name)
        radii = ", ".join(f"{radius:g}" for radius in survey.aperture_radii_arcsec)
        lines += [
            f"## {name}\n",
            f"{survey.description}. {survey.pixel_scale_arcsec:g}″ per pixel, cutouts of "
            f"{survey.cutout_size} px, apertures of {radii}″.\n",
            f"Mosaics `{survey.mosaic_pattern}`, source lists `{survey.source_pattern}`.\n",
            _table(
                ("band", "PSF FWHM (″)", "A / E(B-V)", "AB zero point"),
                [
                    (
                        band.name,
                        f"{band.psf_fwhm_arcsec:g}",
                        f"{band.extinction_r:g}",
                        "the file's" if band.zero_point_ab is None else f"{band.zero_point_ab:g}",
                    )
                    for band in survey.bands
                ],
            ),
        ]
    return "\n".join(lines)


def python() -> str:
    """The functions and classes that users import, from their signatures and docstrings."""
    lines = [
        "# Python\n",
        "The functions and classes that are meant to be imported, from their docstrings. The "
        "[guide](../guide.md#from-python) has an example. Anything not on this page may change "
        "without notice.\n",
        "The capital letters at the end of an array's name are its axes: N sources, C bands, "
        "H and W the rows and columns of a tile, S the side of a cutout, R aperture radii, "
        "Q quantile levels, P the points at which p(z) is given. Fluxes are in nJy, sky "
        "positions in ICRS degrees; pixels are (y, x), counted from 0, with centres on integers. "
        "Exceptions are subclasses of `photozhpc.errors.PhotozError`, or ValueError from "
        "functions that take arrays.\n",
    ]
    for heading, names in PYTHON.items():
        lines.append(f"## {heading}\n")
        for dotted in names:
            target = typing.cast(Any, pydoc.locate(dotted))
            is_method = "." in target.__qualname__
            module, _, name = dotted.rpartition(".")
            code = "" if is_method else f"from {module} import {name}\n\n"
            lines.append(f"{'####' if is_method else '###'} {target.__qualname__}\n")
            lines.append(f"```python\n{(code + _signature(target)).strip()}\n```\n")
            lines += _documented(target)
    return "\n".join(lines)


# Page of docs/reference/ -> what makes its text.
PAGES: dict[str, Callable[[], str]] = {
    "commands": commands,
    "config": config,
    "catalogue": catalogue,
    "surveys": surveys,
    "python": python,
}


def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command and all its subcommands, each with its full name."""
    yield name, command
    if isinstance(command, click.Group):
        for word in sorted(command.commands):
            if command.commands[word].hidden:
                continue
            yield from walk(command.commands[word], f"{name} {word}")


def nested(cls: type) -> list[type]:
    """Return a dataclass and the dataclasses of its fields, each once."""
    classes = [cls]
    for hint in typing.get_type_hints(cls).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                classes += [c for c in nested(typing.cast(type, part)) if c not in classes]
    return classes


def descriptions(cls: type) -> dict[str, str]:
    """Return the text of each field in the Attributes section of a class's docstring."""
    return {name: text for names, text in attributes(cls).items() for name in names.split(", ")}


def _documented(target: Any) -> list[str]:
    """A docstring, its sections as tables."""
    lines = []
    for title, text in sections(target):
        if title in ("", "Returns"):
            lines.append(f"{title and '**Returns:** '}{text}\n")
        elif issubclass(type(target), enum.EnumMeta):
            lines.append(_flags(target))
        else:
            rows = [(f"`{name}`", what) for name, what in entries(text).items()]
            lines.append(_table((title.lower().replace("args", "arguments"), ""), rows))
    return lines


def _flags(cls: type[enum.IntFlag]) -> str:
    texts = descriptions(cls)
    rows = [(str(flag.value), flag.name or "", texts[flag.name or ""]) for flag in cls]
    return _table(("value", "name", "meaning"), rows)


def _signature(target: Any) -> str:
    """The call of a function or class, with the annotations of the source."""
    called = target
    if isinstance(target, type):
        if "\nArgs:" not in (inspect.getdoc(target) or ""):
            return ""  # users do not make it by calling it
        called = vars(target)["__init__"]
    tree = ast.parse(textwrap.dedent(inspect.getsource(called)))
    node = typing.cast(ast.FunctionDef, tree.body[0])
    if node.args.args and node.args.args[0].arg in ("self", "cls"):
        del node.args.args[0]
    arguments = re.sub(r"(: [^=]*)=", r"\1 = ", ast.unparse(node.args))
    gives = f" -> {ast.unparse(node.returns)}" if node.returns and called is target else ""
    line = f"{target.__name__}({arguments}){gives}".replace("'", '"')
    if len(line) <= 72:
        return line
    spread = re.sub(r", (?=\*|\w+: )", ",\n    ", arguments)
    return f"{target.__name__}(\n    {spread},\n){gives}".replace("'", '"')


def _keys(root: type, cls: type) -> str:
    """The keys whose value is a nested class."""
    return ", ".join(
        f"`{name}`"
        for parent in nested(root)
        for name, hint in typing.get_type_hints(parent).items()
        if cls in (hint, *typing.get_args(hint))
    )


def _summary(cls: type) -> str:
    text, _, _ = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    return text.strip()


def _yaml(text: str) -> str:
    """A docstring's text as the reader of a YAML file knows it: null, not None."""
    return re.sub(r"\bNone\b", "`null`", text)


def _paragraphs(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("\b\n", "") + "\n"


def _names(option: click.Option, context: click.Context) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    metavar = "" if option.is_flag else f" {option.make_metavar(context)}"
    required = " **required**" if option.required else ""
    return f"`{names}{metavar}`{required}"


def _default(option: click.Option, context: click.Context) -> str:
    value = option.get_default(context)
    if option.required or option.multiple or value is None or value is False:
        return ""
    if not isinstance(value, str | int | float):  # click's own mark of 'not set'
        return ""
    return f"`{value}`"


def _type(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(arg) for arg in args)
    if origin is typing.Literal:
        return " ".join(f"`{arg}`" for arg in args)
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        name = typing.cast(type, hint).__name__
        return f"[{name}](#{name.lower()})"
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"{_type(args[0])}: {_type(args[1])}"
    return {str: "text", bool: "true, false", int: "integer", float: "number"}[hint]


def _field_default(field: "dataclasses.Field[Any]") -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "**required**"
    return "its own" if dataclasses.is_dataclass(value) else f"`{json.dumps(to_mapping(value))}`"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = (" | ".join(map(_cell, row)) for row in (head, (":--",) * len(head), *rows))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    parts = text.replace("\n", " ").split("`")  # within code a | needs no backslash, and shows it
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    return "`".join(parts)
