"""Reads the sections of docstrings, which `config show` and the reference print."""

import inspect
import re
import textwrap
from typing import Any


def sections(target: Any) -> list[tuple[str, str]]:
    """Return (heading, text) of each section of a docstring; the heading of plain text is ""."""
    doc = inspect.getdoc(target) or ""
    parts = re.split(r"^(Args|Attributes|Returns|Raises):\n((?:    .*\n?|\n)*)", doc, flags=re.M)
    texts = [("", parts[0])]
    for title, inside, after in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        texts += [(title, textwrap.dedent(inside)), ("", after)]
    return [(title, text.strip()) for title, text in texts if text.strip()]


def entries(text: str) -> dict[str, str]:
    """Return the description of each "name" or "name, name" in a section."""
    pairs = re.findall(r"^(\w[\w, ]*): (.*(?:\n .*)*)", text, re.M)
    return {names: " ".join(description.split()) for names, description in pairs}


def attributes(cls: type) -> dict[str, str]:
    """Return the entries of the Attributes section of a class."""
    return next((entries(text) for title, text in sections(cls) if title == "Attributes"), {})
