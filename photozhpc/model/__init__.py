"""The PITA network: architecture, losses, training, inference.

torch takes seconds to import, so what needs it is imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from photozhpc.model.bundled_model import bundled_checkpoint

if TYPE_CHECKING:
    from photozhpc.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from photozhpc.model.pita import PITA, PITAOutput
    from photozhpc.model.pita_config import PITAConfig

__all__ = [
    "PITA",
    "Checkpoint",
    "PITAConfig",
    "PITAOutput",
    "bundled_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    modules = {"PITA": "pita", "PITAOutput": "pita", "PITAConfig": "pita_config"}
    module = import_module(f"photozhpc.model.{modules.get(name, 'checkpoint')}")
    return getattr(module, name)
