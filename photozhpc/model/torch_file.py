"""Files of torch.save, read without executing anything in them."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

_DOS_FOLDER = 0x10


def misfit(error: Exception) -> str:
    """Return the first mismatch of weights and module from an error of load_state_dict."""
    first = str(error).splitlines()[1:2] or [str(error)]
    return first[0].strip()[:160]


def load_torch_file(path: Path) -> Any:
    """Read a file of tensors and plain values, on the CPU; its checksums must be right.

    Raises:
        Exception: of any kind, if the file is damaged or contains something else.
    """
    # PyTorch writes the archive's checksums but does not check them. A member that is marked as a
    # folder it does not read at all, and returns uninitialised memory.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            folders = [member.filename for member in members if member.external_attr & _DOS_FOLDER]
            damaged = archive.testzip() or next(iter(folders), None)
        if damaged is not None:
            raise ValueError(f"its member {damaged} was altered")
    with warnings.catch_warnings():  # about damaged files
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)
