"""`python -m photozhpc` is the command `photozhpc`."""

from photozhpc.cli import main

main(prog_name="photozhpc")
