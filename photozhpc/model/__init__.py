"""The PITA network: architecture, losses, training, inference.

torch takes seconds to import, so what needs it is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from photozhpc.model.bundled_model import bundled_checkpoint

if TYPE_CHECKING:
    from photozhpc.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from photozhpc.model.pita import PITA, PITAConfig, PITAOutput

__all__ = [
    "PITA",
    "Checkpoint",
    "PITAConfig",
    "PITAOutput",
    "bundled_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

_MODULES = {
    **dict.fromkeys(("PITA", "PITAConfig", "PITAOutput"), "photozhpc.model.pita"),
    **dict.fromkeys(
        ("Checkpoint", "load_checkpoint", "save_checkpoint"), "photozhpc.model.checkpoint"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
