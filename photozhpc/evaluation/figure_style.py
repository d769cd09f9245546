"""How figures look: on paper and in light pages, and in dark ones."""

from dataclasses import dataclass
from typing import Any

STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "pdf.fonttype": 42,  # text stays text; journals refuse Type 3 fonts
}


@dataclass(frozen=True)
class Look:
    """Colours of a figure; those of data can be told apart without colour vision.

    Attributes:
        ink, paper: text and lines; what they stand on.
        blue, orange, green, purple, grey: of data, after Okabe & Ito (2008), at 3:1 or more
            against the paper (WCAG 2.2, 1.4.11).
        density: colour map of densities: the more, the further from the paper.
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
        """Settings of Matplotlib to draw and to save a figure with."""
        inks = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color")
        ticks = ("xtick.color", "ytick.color")
        papers = ("axes.facecolor", "figure.facecolor", "savefig.facecolor")
        return {
            **STYLE,
            **dict.fromkeys((*inks, *ticks), self.ink),
            **dict.fromkeys(papers, self.paper),
            "svg.hashsalt": "photozhpc",  # the same figure is the same file
        }

    @property
    def data_colours(self) -> tuple[str, ...]:
        return (self.blue, self.orange, self.green, self.purple, self.grey)


PAPER = Look(
    ink="black",
    paper="white",
    blue="#0072B2",
    orange="#D55E00",
    green="#00855F",
    purple="#AA4585",
    grey="#777777",
    density="viridis_r",
)
DARK = Look(
    ink="#E4E7EB",
    paper="#171B21",
    blue="#56B4E9",
    orange="#F0A030",
    green="#2CC295",
    purple="#E08FC0",
    grey="#9AA3AD",
    density="viridis",
)
