"""timm is whole for whoever imports it, before us or after us."""

import subprocess
import sys

import pytest

LIGHT = """
import photozhpc.model.pita, sys
assert "torch._dynamo" not in sys.modules and "timm.models.resnet" not in sys.modules
"""
WHOLE = """
import timm, timm.models, torch
import torchvision.ops
from photozhpc.model.timm_convnext import ConvNeXt
assert timm.models.convnext.ConvNeXt is ConvNeXt
assert timm.is_model("resnet18") and len(timm.list_models()) > 1000
assert timm.create_model("resnet10t").num_features == 512
import torch._dynamo.utils
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
"""


@pytest.mark.parametrize("program", [LIGHT, LIGHT + WHOLE, "import timm\n" + WHOLE])
def test_timm_is_light_until_all_of_it_is_asked_for(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
