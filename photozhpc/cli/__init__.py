"""The command line: each command parses, calls one function, and reports.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

from photozhpc.cli import about, catalogs, imports, jobs, models, mosaics
from photozhpc.cli.group import main

__all__ = ["about", "catalogs", "imports", "jobs", "main", "models", "mosaics"]
