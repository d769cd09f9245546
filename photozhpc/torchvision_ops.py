"""Let `import timm` work beside a CPU build of torch.

PyPI's torchvision is linked against CUDA. Beside a CPU torch its native library cannot load, and
`import torchvision` (hence timm) fails with 'operator torchvision::nms does not exist', because it
registers shape rules for undefined operators. Defining the two schemas is enough: photozhpc never
calls them.

torch calls `define_if_missing` on import through its entry point group `torch.backends`, so that a
plain `import timm` works too.
"""

from importlib import metadata
from typing import Any

_library: Any = None  # a torch.library.Library lives as long as this name does


def define_if_missing() -> None:
    """Define the schemas of torchvision's nms and qnms if its native library cannot load."""
    global _library
    import torch

    if _library is not None or torch.version.cuda is not None:
        return
    try:
        files = metadata.files("torchvision") or []
    except metadata.PackageNotFoundError:
        return
    native = [file for file in files if str(file).startswith("torchvision/_C")]
    try:
        for file in native:
            torch.ops.load_library(str(file.locate()))
    except (OSError, RuntimeError):
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
