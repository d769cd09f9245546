"""The command line in a process of its own."""

import subprocess
import sys


def photozhpc(*arguments: object, **settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "photozhpc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, **settings)
