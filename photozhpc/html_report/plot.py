"""A figure of a page: drawn in a light and a dark theme, embedded as SVG, and put in words."""

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup, escape
from matplotlib.figure import Figure

from photozhpc.evaluation.figure_style import DARK, PAPER, Theme, drawn, figure_file

_PICTURE = """<picture>
<source media="print" srcset="{light}">
<source media="(prefers-color-scheme: dark)" srcset="{dark}">
<img src="{light}" alt="{alt}" width="{width}" height="{height}">
</picture>"""


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        draw: draws it in a Theme.
        title: a few words.
        caption: how it was computed.
        alt: what it shows, with numbers, for readers who cannot see it.
        wide: two columns wide.
    """

    draw: Callable[[Theme], Figure]
    title: str
    caption: str
    alt: str
    wide: bool = False

    def picture(self) -> Markup:
        """Return the HTML of the picture, with one image for each theme."""
        light, dark = (
            figure_file(drawn(self.draw, theme), "svg", theme) for theme in (PAPER, DARK)
        )
        width, height = _size(light)
        return Markup(
            _PICTURE.format(
                light=data_uri(light, "image/svg+xml"),
                dark=data_uri(dark, "image/svg+xml"),
                alt=escape(self.alt),
                width=width,
                height=height,
            )
        )


def data_uri(content: bytes, kind: str) -> str:
    """Return content as a URI that needs no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def with_minus(text: str) -> str:
    """Return a number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def _size(svg: bytes) -> tuple[int, int]:
    """Return width and height in CSS pixels (96 per inch); the viewBox is in points (72)."""
    box = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg[:2000])
    if box is None:
        raise ValueError("an SVG without a viewBox")
    return round(float(box[1]) * 96 / 72), round(float(box[2]) * 96 / 72)
