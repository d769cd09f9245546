"""The style of every figure: width, fonts and colours, on paper and on dark pages."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from photozhpc.files.disk import write_durably

COLUMN_WIDTH_INCH = 3.5  # one column of a journal
WIDE_INCH = 7.1  # two columns and the gap between them
_SVG_DPI = 200  # of the rasterised parts of an SVG
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "pdf.fonttype": 42,  # text stays text; journals refuse Type 3 fonts
    "svg.hashsalt": "photozhpc",  # the same figure is the same file
}


@dataclass(frozen=True)
class Theme:
    """The colours of a figure; those of data also differ for readers without colour vision.

    Attributes:
        ink, paper: text and lines; background.
        blue, orange, green, purple, grey: of data, after Okabe & Ito (2008), with a contrast of
            3:1 or more to the paper (WCAG 2.2, 1.4.11).
        density: colour map of densities; higher ones contrast more with the paper.
    """

    ink: str
    paper: str
    blue: str
    orange: str
    green: str
    purple: str
    grey: str
    density: str

    @property
    def rc(self) -> dict[Any, Any]:
        """Matplotlib's settings, for drawing and for saving a figure."""
        inks = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color")
        ticks = ("xtick.color", "ytick.color")
        papers = ("axes.facecolor", "figure.facecolor", "savefig.facecolor")
        ink, paper = dict.fromkeys((*inks, *ticks), self.ink), dict.fromkeys(papers, self.paper)
        return _STYLE | ink | paper

    @property
    def data_colours(self) -> tuple[str, ...]:
        return (self.blue, self.orange, self.green, self.purple, self.grey)


PAPER = Theme(
    ink="black",
    paper="white",
    blue="#0072B2",
    orange="#D55E00",
    green="#00855F",
    purple="#AA4585",
    grey="#777777",
    density="viridis_r",
)
DARK = Theme(
    ink="#E4E7EB",
    paper="#171B21",
    blue="#56B4E9",
    orange="#F0A030",
    green="#2CC295",
    purple="#E08FC0",
    grey="#9AA3AD",
    density="viridis",
)


def drawn(draw: Callable[[Theme], Figure], theme: Theme = PAPER) -> Figure:
    """Return what `draw` draws, with the Matplotlib settings of the theme."""
    with matplotlib.rc_context(theme.rc):
        return draw(theme)


def new_figure(
    height_inch: float, width_inch: float = COLUMN_WIDTH_INCH, *, arranged: bool = True
) -> Figure:
    """Return an empty figure, to be drawn with the `rc` of its theme.

    Args:
        arranged: Matplotlib places the axes so that no label is cut off; else the caller does.
    """
    layout = "constrained" if arranged else None
    figure = Figure(figsize=(width_inch, height_inch), dpi=300, layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def figure_file(figure: Figure, kind: str, theme: Theme = PAPER) -> bytes:
    """Return a figure as a file: "png", "pdf" or "svg". Equal figures make equal files."""
    undated: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
    dpi = _SVG_DPI if kind == "svg" else "figure"
    buffer = io.BytesIO()
    with matplotlib.rc_context(theme.rc):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=undated.get(kind))
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format that the path's suffix names.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    path = Path(path)
    write_durably(path, figure_file(figure, path.suffix.removeprefix(".")))


def save_png_and_pdf(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG, and as PDF beside it; return both paths.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    paths = [path.with_suffix(suffix) for suffix in (".png", ".pdf")]
    for file in paths:
        save_figure(figure, file)
    return paths
