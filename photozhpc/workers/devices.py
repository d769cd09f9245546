"""The CUDA devices of this machine, without loading torch or CUDA."""

import os
import runpy
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from photozhpc.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]


def device_list(device: Device, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the CUDA devices to use, as CUDA_VISIBLE_DEVICES names them; empty: use the CPU.

    This loads neither torch nor CUDA: a process that has used CUDA holds memory on the device.

    Raises:
        ConfigError: `device` is unknown, or "cuda" without a CUDA device or a CUDA build of torch.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"unknown device '{device}'; use auto, cpu or cuda")
    has_cuda = device != "cpu" and _torch_has_cuda()
    if device == "cuda" and not has_cuda:
        raise ConfigError("the installed torch is a CPU build; use --device cpu")
    devices = visible_devices(environ) if has_cuda else []
    if device == "cuda" and not devices:
        raise ConfigError("no CUDA device was found on this machine; use --device cpu")
    return devices


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the devices that CUDA would see, as CUDA_VISIBLE_DEVICES names them."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _nvidia_devices()
    devices = [name.strip() for name in visible.split(",") if name.strip()]
    return devices[: devices.index("-1")] if "-1" in devices else devices  # as CUDA does


def _torch_has_cuda() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = Path(spec.origin).with_name("version.py")
    return version.is_file() and runpy.run_path(str(version)).get("cuda") is not None


def _nvidia_devices() -> list[str]:
    program = shutil.which("nvidia-smi")
    if program is not None:
        query = [program, "--query-gpu=index", "--format=csv,noheader"]
        with suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
            return answer.stdout.split()
    return sorted(path.name[len("nvidia") :] for path in Path("/dev").glob("nvidia[0-9]*"))
