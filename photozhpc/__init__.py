"""photozhpc: survey mosaics in, photometric-redshift catalogues out.

The stages are functions of this module (see `photozhpc.api`); they are imported when they are used.
"""

from importlib import import_module
from typing import Any

from photozhpc.files.code_cache import keep_numba_code

__version__ = "0.1.0"

_HOMES = {
    "photozhpc.api": "simulate detect extract train calibrate infer evaluate report export Result",
    "photozhpc.catalog": "read_catalog read_pdf",
    "photozhpc.figures.single_sources": "plot_pdf plot_cutouts",
    "photozhpc.store": "CutoutStore",
    "photozhpc.survey": "load_survey",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}
__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]

keep_numba_code()  # before any module imports Numba


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'photozhpc' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOME]
