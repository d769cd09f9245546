"""The PITA network: architecture, losses, training, inference."""

from photozhpc.model.checkpoint import (
    Checkpoint,
    bundled_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
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
