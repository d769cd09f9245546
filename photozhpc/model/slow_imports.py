"""What a model file needs that takes long to import, known without torch."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from photozhpc.model.pita_config import RESNET


def slow_imports(path: Path) -> tuple[str, ...]:
    """Return the modules that the encoder of a model file needs; () if the file cannot be read."""
    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})["photozhpc"])
        has_timm = header["kind"] == "pita" and header["model"].get("encoder") != RESNET
    except (OSError, SafetensorError, LookupError, ValueError, AttributeError, TypeError):
        return ()  # whoever loads it says what is wrong
    return ("photozhpc.model.convnext",) if has_timm else ()
