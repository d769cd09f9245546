"""Files that torch.save wrote, read so that nothing in them is executed."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def load_torch_file(path: Path) -> Any:
    """Read a file of tensors and plain values, on the CPU; its checksums must be right.

    Raises:
        Exception: of any kind, if the file is damaged or holds something else.
    """
    # PyTorch writes the archive's checksums, and does not compare them when it reads.
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)
