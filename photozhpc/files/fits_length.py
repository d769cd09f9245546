"""Whether a FITS file is as long as its headers say; unpacking of .gz files."""

import contextlib
import gzip
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from photozhpc.errors import MosaicError
from photozhpc.files.disk import is_full, read_fault, temporary_folder
from photozhpc.files.objects import AnyPath, is_remote

_BLOCK = 2880
_CARD = 80
_NUMBERS = re.compile(r"(BITPIX|NAXIS\d*|PCOUNT|GCOUNT|TFIELDS)\s*=\s*([+-]?\d+)")
_MAX_COUNT = 999  # of axes, and of columns (FITS standard 4.0, sections 4.4.1 and 7.3.1)


@contextlib.contextmanager
def unzipped(path: AnyPath, shown: AnyPath | None = None) -> Iterator[Path]:
    """Give the path of a plain file: the file itself, or a temporary copy, fetched or unpacked.

    Args:
        shown: the path that errors name; default: `path`.

    Raises:
        MosaicError: missing, a folder, not readable, or a truncated gzip file.
    """
    shown = shown or path
    if is_remote(path):
        try:
            with path.fetched() as copy, unzipped(copy, path) as plain:
                yield plain
        except FileNotFoundError as error:
            if error.filename != str(path):
                raise
            raise MosaicError(f"{path}: no such object") from error
        return
    if not os.path.exists(path):
        raise MosaicError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise MosaicError(f"{path}: not a file")
    try:
        with open(path, "rb") as stream:
            magic = stream.read(2)
        if magic != b"\x1f\x8b":
            yield path
            return
    except OSError as error:
        raise MosaicError(f"{path}: cannot be read ({error.strerror})") from error
    with temporary_folder("photozhpc-unpacked") as folder:
        plain = folder / path.name.removesuffix(".gz")
        try:
            with gzip.open(path, "rb") as packed, open(plain, "wb") as out:
                shutil.copyfileobj(packed, out, 1 << 20)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise MosaicError(
                f"{shown}: truncated or damaged gzip file ({error}); copy or download it again"
            ) from error
        except OSError as error:
            if not is_full(error):
                raise MosaicError(read_fault(shown, error) or f"{shown}: {error}") from error
            raise MosaicError(
                f"{shown}: no room to unpack it in {folder} ({error.strerror}); set TMPDIR to a "
                "larger disk"
            ) from error
        yield plain


def check_length(path: Path, shown: AnyPath) -> None:
    """Walk the headers: astropy only warns of a truncated file, and reads on.

    Args:
        shown: the path that errors name.

    Raises:
        MosaicError: a header without END or with an impossible size, or data that extend past the
            end of the file.
    """
    size = os.path.getsize(path)
    at, number = 0, 0
    with open(path, "rb") as stream:
        while at < size:
            stream.seek(at)
            cards: dict[str, int] = {}
            ended = False
            while not ended:
                is_first = stream.tell() == at
                block = stream.read(_BLOCK)
                if is_first and number and not block.startswith(b"XTENSION"):
                    if block.startswith(b"XTENSION"[: len(block)]) and block:
                        break
                    return  # padding or special records after the last HDU
                for k in range(0, len(block) - _CARD + 1, _CARD):
                    card = block[k : k + _CARD].decode("latin-1")
                    if card.rstrip() == "END":
                        ended = True
                        break
                    if match := _NUMBERS.match(card):
                        cards.setdefault(match[1], int(match[2]))
                if len(block) < _BLOCK:
                    break
            if not ended:
                raise MosaicError(
                    f"{shown}: truncated in the header of HDU {number}; copy or download it again"
                )
            # With such values a reader would count for ever, or walk in circles.
            for key, value in cards.items():
                limit = _MAX_COUNT if key in ("NAXIS", "TFIELDS") else sys.maxsize
                if key != "BITPIX" and not 0 <= value <= limit:
                    raise MosaicError(
                        f"{shown}: damaged: HDU {number} has {key} = {value}; "
                        "copy or download it again"
                    )
            at = stream.tell()
            # Padding counts: where it is missing, whole HDUs after it may be missing too.
            n_bytes = -(-_data_bytes(cards) // _BLOCK) * _BLOCK
            if at + n_bytes > size:
                raise MosaicError(
                    f"{shown}: truncated: {size} bytes, but HDU {number} needs {at + n_bytes}; "
                    "copy or download it again"
                )
            at += n_bytes
            number += 1


def _data_bytes(cards: dict[str, int]) -> int:
    n_axes = cards.get("NAXIS", 0)
    if n_axes == 0:
        return 0
    n_values = math.prod(cards.get(f"NAXIS{axis}", 0) for axis in range(1, n_axes + 1))
    bits = abs(cards.get("BITPIX", 8)) * cards.get("GCOUNT", 1)
    return bits * (cards.get("PCOUNT", 0) + n_values) // 8
