"""The command line: each command parses, calls one function, and reports.

Heavy packages are imported inside the commands, so that --help answers at once.
"""

from photozhpc.cli import about, catalogs, exports, imports, jobs, models, mosaics
from photozhpc.cli.group import main

__all__ = ["about", "catalogs", "exports", "imports", "jobs", "main", "models", "mosaics"]
