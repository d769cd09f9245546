"""Files that torch.save wrote, read so that nothing in them is executed."""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

_DOS_FOLDER = 0x10


def misfit(error: Exception) -> str:
    """Return the first difference between weights and a module in an error of load_state_dict."""
    first = str(error).splitlines()[1:2] or [str(error)]
    return first[0].strip()[:160]


def load_torch_file(path: Path) -> Any:
    """Read a file of tensors and plain values, on the CPU; its checksums must be right.

    Raises:
        Exception: of any kind, if the file is damaged or holds something else.
    """
    # PyTorch writes the archive's checksums, and does not compare them when it reads; of a member
    # that is marked as a folder it reads nothing, and gives what was in memory.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            folders = [it.filename for it in archive.infolist() if it.external_attr & _DOS_FOLDER]
            damaged = archive.testzip() or next(iter(folders), None)
        if damaged is not None:
            raise ValueError(f"{damaged} in it was altered")
    with warnings.catch_warnings():  # of a damaged file; what comes of it is what counts
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)
