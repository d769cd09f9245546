"""Errors that a user can cause and fix. The command line shows each as one line."""

import difflib
from collections.abc import Iterable

from photozhpc.printable import printable

_MAX_LENGTH = 1500


class PhotozError(Exception):
    """Base class: the message says what is wrong and what to do next, in one line.

    It may quote names and values from damaged files. So control characters become '?', line breaks
    become spaces, secrets in URLs are left out, and a very long message loses its middle.
    """

    def __init__(self, message: str) -> None:
        line = printable(" ".join(message.splitlines()))
        if len(line) > _MAX_LENGTH:
            line = f"{line[: _MAX_LENGTH * 2 // 3]} ... {line[-_MAX_LENGTH // 3 :]}"
        super().__init__("".join(letter if letter.isprintable() else "?" for letter in line))


class ConfigError(PhotozError):
    """An unknown name, an unknown key, or a value of the wrong type in a configuration."""


class MosaicError(PhotozError):
    """A mosaic that is missing, damaged, uncalibrated, or on another grid than the other bands."""


class SourceListError(PhotozError):
    """A source list that is missing, damaged, or lacks a required column."""


class StoreError(PhotozError):
    """A cutout store that is missing, damaged, or made for another survey."""


class CheckpointError(PhotozError):
    """A model file that is missing, damaged, or does not fit the store."""


class CatalogError(PhotozError):
    """A catalogue that is missing, damaged, or belongs to another run."""


class RunError(PhotozError):
    """A run that could not finish: a full disk, lost workers, parts set aside."""


class StorageError(RunError):
    """An object store or web server that cannot be reached, refuses, or sends something else."""


class Preempted(RunError):
    """A run that was asked to stop and saved its state: run it again to continue."""


def one_line(error: object, length: int = 200) -> str:
    """Return the text of an error as one line of at most `length`; its type if it has none."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def first_few(items: Iterable[object], shown: int = 5, separator: str = ", ") -> str:
    """Return the first items of a list, and how many more there are."""
    texts = [str(item) for item in items]
    more = len(texts) - shown
    text = separator.join(texts[:shown])
    return f"{text}{separator}and {more} more" if more > 0 else text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'? Known: ..." for an error about an unknown name."""
    names = sorted(known)
    lowered = {candidate.lower(): candidate for candidate in names}
    near = difflib.get_close_matches(str(name).lower(), list(lowered), n=1, cutoff=0.5)
    hint = f"; did you mean '{lowered[near[0]]}'?" if near else "."
    return f"{hint} Known: {', '.join(name[:60] for name in names)}"
