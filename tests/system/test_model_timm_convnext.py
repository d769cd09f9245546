"""timm's ConvNeXt is imported without the rest of timm and without torch's compiler."""

import subprocess
import sys

LIGHT = """
import sys
import photozhpc.model.pita
assert "torch._dynamo" not in sys.modules and "timm.models.resnet" not in sys.modules
"""


def test_a_model_needs_neither_all_of_timm_nor_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
