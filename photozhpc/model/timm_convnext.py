"""timm's ConvNeXt, without the hundreds of other models that `import timm` loads.

Those, and torch's compiler, which torchvision's detection operators name, take longer to import
than torch itself, in every process of a run. Here the packages `timm` and `timm.models` run their
own `__init__` only once a name is asked of them, so that whoever imports timm elsewhere gets all
of it; the one function of the compiler that torchvision names loads the compiler when called.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

from photozhpc import torchvision_ops

_COMPILER = "torch._dynamo.utils"


def _run_init_when_asked(name: str) -> None:
    """Register a package whose `__init__` runs when an attribute is first asked of it."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is None or (loader := spec.loader) is None:
        return
    package = module_from_spec(spec)

    def run_init(attribute: str) -> Any:
        del package.__dict__["__getattr__"]
        loader.exec_module(package)
        return getattr(package, attribute)

    _register(package, run_init)


@contextmanager
def _compiler_when_called() -> Iterator[None]:
    """Keep imports of names of torch's compiler from loading it."""
    if _COMPILER in sys.modules:
        yield
        return

    def is_compile_supported(device_type: str) -> bool:
        return importlib.import_module(_COMPILER).is_compile_supported(device_type)

    def load(attribute: str) -> Any:
        sys.modules.pop(_COMPILER, None)
        return getattr(importlib.import_module(_COMPILER), attribute)

    stand_in = ModuleType(_COMPILER)
    stand_in.__dict__["is_compile_supported"] = is_compile_supported
    _register(stand_in, load)
    try:
        yield
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]


def _register(module: ModuleType, load: Callable[[str], Any]) -> None:
    """Put a module into `sys.modules`; `load` answers for the attributes that it lacks."""

    def answer(attribute: str) -> Any:  # PEP 562
        if attribute.startswith("__"):  # `inspect` asks any module for them
            raise AttributeError(f"module {module.__name__!r} has no attribute {attribute!r}")
        return load(attribute)

    module.__dict__["__getattr__"] = answer
    sys.modules[module.__name__] = module
    parent, _, own_name = module.__name__.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], own_name, module)


torchvision_ops.define_if_missing()
_run_init_when_asked("timm")
sys.modules["timm"].__dict__["__version__"] = importlib.import_module("timm.version").__version__
_run_init_when_asked("timm.models")
with _compiler_when_called():
    from timm.layers import GELU, LayerNorm, LayerNorm2d, Mlp, NormMlpClassifierHead
    from timm.models._factory import create_model
    from timm.models._registry import is_model, list_models
    from timm.models.convnext import ConvNeXt

__all__ = [
    "GELU",
    "ConvNeXt",
    "LayerNorm",
    "LayerNorm2d",
    "Mlp",
    "NormMlpClassifierHead",
    "create_model",
    "is_model",
    "list_models",
]
