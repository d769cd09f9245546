"""The command line."""

import subprocess
import sys

from click.testing import CliRunner, Result

from photozhpc.cli import main


def run(*arguments: object) -> Result:
    """In this process; stdout and stderr apart."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def photozhpc(*arguments: object, **settings) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    command = [sys.executable, "-m", "photozhpc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, **settings)
