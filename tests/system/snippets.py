"""The code blocks of the documentation: found, run in a folder, compared with what is shown.

A ```bash, ```console or ```python block is run, all of a page in one folder and in order; the lines
of a ```console block without "$ " and a ```text block after ```python are what comes out, where
"..." stands for anything (doctest's ELLIPSIS). A ```yaml block with a title is a file. After
`<!-- not run: REASON -->` a block is not run; like every other that names photozhpc, indented ones
too, it is parsed with the command line's own parser.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from builders.paths import ROOT
from photozhpc.cli import main

_NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")


@dataclass(frozen=True)
class Block:
    """A code block: the language and title of its fence, and why it is not run, if it is not."""

    where: str
    language: str
    title: str
    text: str
    not_run: str


def read_blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page in order; indented ones have the language "indented"."""
    lines = page.read_text().splitlines()
    blocks: list[Block] = []
    not_run, i = "", 0
    while i < len(lines):
        line, start = lines[i], i
        where = f"{page.name}:{i + 1}"
        i += 1
        if mark := _NOT_RUN.fullmatch(line.strip()):
            not_run = mark[1]
            continue
        if fence := re.match(r"( *)```(\w*)(.*)", line):
            indent = len(fence[1])
            while lines[i].strip() != "```":
                i += 1
            text = "\n".join(each[indent:] for each in lines[start + 1 : i])
            title = re.search(r'title="([^"]+)"', fence[3])
            blocks.append(Block(where, fence[2], title[1] if title else "", text, not_run))
            i += 1
        elif line.startswith("    ") and line.strip():
            while i < len(lines) and lines[i].startswith("    "):
                i += 1
            text = "\n".join(each[4:] for each in lines[start:i])
            blocks.append(Block(where, "indented", "", text, not_run))
        if line.strip():
            not_run = ""
    return blocks


class Runner:
    """Runs the blocks of pages in one folder, as a reader would who follows them.

    Attributes:
        outputs: command -> what it printed, the first time.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outputs: dict[str, str] = {}
        self._env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    @classmethod
    def in_checkout(cls, folder: Path) -> "Runner":
        """A folder in which the paths of a checkout are right."""
        for name in ("configs", "jobs", "docs", "tests", "photozhpc"):
            (folder / name).symlink_to(ROOT / name)
        return cls(folder)

    def run_page(self, page: Path) -> None:
        """Run what is to be run on a page; AssertionError where it fails or differs."""
        names: dict[str, Any] = {"__name__": "__main__"}
        printed = None
        for block in read_blocks(page):
            if block.language == "text" and printed is not None:
                compare(block.where, block.text, printed)
            printed = None
            if block.not_run:
                continue
            if block.language == "yaml" and block.title:
                (self.folder / block.title).write_text(block.text + "\n")
            elif block.language == "bash":
                self.shell(block.where, block.text)
            elif block.language == "console":
                for command, shown in split_console(block.text):
                    compare(block.where, shown, self.shell(block.where, command))
            elif block.language == "python":
                printed = self._python(block, names)

    def shell(self, where: str, text: str) -> str:
        """Return what a script prints, stderr too, in the order of its lines."""
        done = subprocess.run(
            ["bash", "-euc", text],
            cwd=self.folder,
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=380,  # a test has 400
        )
        assert done.returncode == 0, f"{where}: {text}\n{done.stdout}"
        self.outputs.setdefault(text, done.stdout)
        return done.stdout

    def _python(self, block: Block, names: dict[str, Any]) -> str:
        with (
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(io.StringIO()) as out,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")  # as a reader has them, not as errors
            exec(compile(block.text, block.where, "exec"), names)
        return out.getvalue()


def split_console(text: str) -> list[tuple[str, str]]:
    """Return (command, output) pairs of a ```console block."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]
    pairs = []
    for part in parts:
        command, _, shown = re.sub(r"\\\n> ", r"\\\n", part).partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command += f"\n{more}"
        pairs.append((command, shown))
    return pairs


def compare(where: str, shown: str, printed: str) -> None:
    """Raise AssertionError where the output is not what is shown; "..." stands for anything."""
    checker = doctest.OutputChecker()
    want, got = (_stripped(text) for text in (shown, printed))
    assert checker.check_output(want, got, doctest.ELLIPSIS), (
        f"{where}: the page shows\n{want}\nbut it prints\n{got}"
    )


def _stripped(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.strip("\n").splitlines())


def commands_of(text: str) -> list[list[str]]:
    """Return the words of each photozhpc command of a script, without "photozhpc" itself."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^\$ |^[A-Z_]+=\S+ ", "", line.strip())
        line = re.sub(r"^torchrun .* -m photozhpc ", "photozhpc ", line)
        if not line.startswith("photozhpc "):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = []
        for word in lexer:
            if set(word) <= set("|&;<>"):
                break
            words.append(word)
        found.append(words[1:])
    return found


def parse(words: list[str]) -> None:
    """Parse a command as the program would, without running it.

    Raises:
        click.UsageError: there is no such command or option, or one is missing.
    """
    command: click.Command = main
    name = "photozhpc"
    while isinstance(command, click.Group):
        if not words or words[0].startswith("-"):
            return  # photozhpc --help
        found = command.get_command(click.Context(command), words[0])
        if found is None:
            raise click.UsageError(f"no such command: {name} {words[0]}")
        command, name, words = found, f"{name} {words[0]}", words[1:]
    with contextlib.suppress(click.exceptions.Exit):  # --help
        context = command.make_context(name, list(words))
        if command.name == "submit":
            parse([context.params["stage"], *context.params["arguments"]])
