"""A figure of a page: drawn for light and for dark, as SVG inside the page, and told in words."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from photozhpc.evaluation.figure_style import DARK, PAPER, Look

_PICTURE = """<picture>
<source media="print" srcset="{light}">
<source media="(prefers-color-scheme: dark)" srcset="{dark}">
<img src="{light}" alt="{alt}" width="{width}" height="{height}">
</picture>"""


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        draw: draws it in a Look.
        title: a few words.
        caption: how it was computed.
        alt: what it shows, with the numbers, for those who do not see it.
        wide: two columns wide.
    """

    draw: Callable[[Look], Figure]
    title: str
    caption: str
    alt: str
    wide: bool = False

    def picture(self) -> Markup:
        """Return the HTML of the picture, with one image for each look."""
        light, dark = (self._svg(look) for look in (PAPER, DARK))
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

    def _svg(self, look: Look) -> bytes:
        buffer = io.BytesIO()
        figure = self.draw(look)
        with matplotlib.rc_context(look.rc):
            figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None})
        return buffer.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    """Return content as a URI that needs no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _size(svg: bytes) -> tuple[int, int]:
    """Return width and height in CSS pixels: 96 an inch, of which an SVG's point is a 72nd."""
    found = re.search(rb'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg[:2000])
    if found is None:
        raise ValueError("an SVG without a viewBox")
    return round(float(found[1]) * 96 / 72), round(float(found[2]) * 96 / 72)
