"""asdf's extensions, loaded once in a process and quickly."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import asdf
import yaml


@cache
def load_extensions() -> None:
    """Load what the installed packages add to asdf, before the first file is opened or written.

    Each `asdf.config_context` would load it anew, 0.5 s each time. The packages parse 60 manifests
    of YAML in Python, 1.5 s; with libyaml it is 0.2 s.
    """
    with _libyaml():
        asdf.get_config().extensions  # noqa: B018  (a property that loads them)


@contextmanager
def _libyaml() -> Iterator[None]:
    """Let `yaml.safe_load` use libyaml, where PyYAML was built with it."""
    module: Any = yaml
    original = module.SafeLoader
    module.SafeLoader = getattr(yaml, "CSafeLoader", original)
    try:
        yield
    finally:
        module.SafeLoader = original
