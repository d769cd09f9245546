"""timm is whole for whoever imports it, before photozhpc or after it."""

import subprocess
import sys

import pytest

BEFORE, AFTER = "import timm\n", "import photozhpc.model.pita\n"
WHOLE = """
import timm, timm.models, torchvision.ops
from photozhpc.model.timm_convnext import ConvNeXt
assert timm.models.convnext.ConvNeXt is ConvNeXt
assert timm.is_model("resnet18") and len(timm.list_models()) > 1000
assert timm.create_model("resnet10t").num_features == 512
import torch._dynamo.utils
assert torch._dynamo.utils.is_compile_supported("cpu") in (True, False)
"""


@pytest.mark.parametrize("first", [BEFORE, AFTER])
def test_timm_is_whole_when_it_is_asked_for(first: str) -> None:
    done = subprocess.run([sys.executable, "-c", first + WHOLE], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
