"""`photozhpc report OUT`: a catalogue on one self-contained HTML page."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup

from photozhpc.errors import CatalogError
from photozhpc.files.disk import write_durably
from photozhpc.files.objects import AnyPath
from photozhpc.html_report import page_sections as sections
from photozhpc.html_report.catalog_scan import scan_catalog
from photozhpc.html_report.page_accuracy import compare
from photozhpc.html_report.page_source import PageSource, open_source
from photozhpc.html_report.plot import data_uri

FILE_NAME = "report.html"
_TEMPLATES = files("photozhpc.html_report") / "templates"


def write_report(
    path: str | Path, truth: Sequence[str | AnyPath] = (), file: str | Path | None = None
) -> Path:
    """Write the page of a catalogue, whole or not at all, and return where it is.

    Args:
        path: the --out folder of `photozhpc infer`, finished or not, its catalog/ folder, or a
            part.
        truth: passed to `read_truth`; empty: the truth in the run's folder or its store.
        file: default: report.html in the --out folder.

    Raises:
        CatalogError: there is no catalogue, or it is damaged.
        SourceListError: `truth` is faulty, or of other sources.
        RunError: the page cannot be written.
    """
    source = open_source(Path(path))
    target = Path(file) if file is not None else source.folder / FILE_NAME
    if target.is_dir():
        raise CatalogError(f"{target}: is a folder; pass --out FILE.html")
    write_durably(target, render(source, truth).encode())
    return target


def render(source: PageSource, truth: Sequence[str | AnyPath] = ()) -> str:
    """Return the page as HTML."""
    scan = scan_catalog(source.parts)
    accuracy = compare(source, truth, scan.n_rows)
    sky = sections.sky(source, scan)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (_TEMPLATES / name).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    environment.filters["png"] = lambda content: data_uri(content, "image/png")
    return environment.get_template("report.html").render(
        style=Markup((_TEMPLATES / "report.css").read_text("utf-8")),
        about=sections.summary(source, scan, sky, accuracy),
        sky=sky,
        redshifts=sections.redshifts(scan, accuracy),
        accuracy=accuracy,
        photometry=sections.photometry(scan, sky),
        flags=sections.flags(scan),
        galleries=sections.galleries(source, scan),
        pace=sections.pace(source),
        provenance=sections.provenance(source),
    )


def _printable(value: object) -> object:
    """Replace characters of a text that would reverse or hide the text after them."""
    if type(value) is not str:
        return value
    return "".join(letter if letter.isprintable() else "?" for letter in value)
