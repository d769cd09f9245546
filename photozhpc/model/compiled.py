"""Compiled forward passes, made once per machine and kept.

torch exports the forward pass and AOTInductor turns it into a shared library, in a separate
process; every later worker and run loads that in milliseconds. A library is for one model, torch,
processor or GPU, number of threads and batch size: its name is a digest of all of these.

    compiled/KEY.pt2     in the folder of photozhpc/files/code_cache.py, private to the user
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from photozhpc.errors import CheckpointError
from photozhpc.files.code_cache import keep_torch_code, private_folder
from photozhpc.files.disk import replacing
from photozhpc.model.checkpoint import Checkpoint, load_checkpoint
from photozhpc.model.forward import Forward
from photozhpc.model.pdf import PdfForm

_MAX_SECONDS = 900  # a compilation that takes longer has failed
_Compiled = Callable[..., Sequence[Tensor]]


def compiled_forward(
    checkpoint: Checkpoint,
    precision: torch.dtype,
    batch_size: int,
    device: torch.device,
    pdf: PdfForm | None = None,
) -> _Compiled | None:
    """Return compiled code that does what `forward.Forward` does, for batches of one size.

    It is compiled if it is not there yet, while other processes that need the same wait. None, with
    a warning: it cannot be compiled here (no C++ compiler, no folder to keep it in).

    Args:
        batch_size: images in a batch, each of the model's crop.
        pdf: as in `Forward`.
    """
    identity = [checkpoint.sha256, precision, batch_size, torch.__version__, _code_digest(), pdf]
    identity += [torch.get_num_threads()] if device.type == "cpu" else []
    identity += [platform.machine(), _processor(device)]
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    try:
        path = private_folder(keep_torch_code() / "compiled") / f"{key}.pt2"
        if not path.exists():
            args = (checkpoint.path, checkpoint.sha256, precision, batch_size, device, pdf or "")
            _make(path, list(map(str, args)))
        index = -1 if device.index is None else device.index
        return torch._inductor.aoti_load_package(str(path), device_index=index)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"the model runs uncompiled, which is slower ({_reason(error)})", stacklevel=2
        )
        return None


def _make(path: Path, args: list[str]) -> None:
    """Compile in another process: the compiler needs more memory than inference does."""
    start = time.time()
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process
        if path.exists():
            return
        failure = path.with_suffix(".failed")
        with suppress(FileNotFoundError):  # of another worker that this one waited for
            if failure.stat().st_mtime > start:
                raise RuntimeError(failure.read_text())
        try:
            with replacing(path) as partial:
                subprocess.run(
                    [sys.executable, "-m", "photozhpc.model.compiled", *args, str(partial)],
                    env={
                        **os.environ,
                        "OMP_NUM_THREADS": str(torch.get_num_threads()),
                        "PYTHONSAFEPATH": "1",  # -m would import from the working folder
                    },
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=_MAX_SECONDS,
                )
        except (OSError, subprocess.SubprocessError) as error:
            failure.write_text(_reason(error))
            raise
        failure.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    lines = str(getattr(error, "stderr", None) or error).strip().splitlines()
    return lines[-1][:200] if lines else type(error).__name__


def _code_digest() -> str:
    """Return a digest of the source files in this folder: the code that is compiled."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        # Without its serial number: equal devices share the code.
        return f"{gpu.name} {gpu.major}.{gpu.minor} {gpu.multi_processor_count}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(
    path: str, sha256: str, precision: str, batch_size: str, device: str, pdf: str, out: str
) -> None:
    checkpoint = load_checkpoint(path)
    if checkpoint.sha256 != sha256:
        raise CheckpointError(f"{path}: was changed in the meantime; run the same command again")
    model = checkpoint.pita
    keep_torch_code()
    dtype = getattr(torch, precision.removeprefix("torch."))
    shape = (int(batch_size), model.config.n_bands, model.config.crop, model.config.crop)
    shapes = [shape, shape[:1]]
    if n_apertures := model.config.fluxes.n_apertures:
        shapes += 2 * [(*shape[:2], n_apertures)]
    example = tuple(torch.zeros(size, device=device) for size in shapes)
    forward = Forward(model, dtype, cast(PdfForm, pdf) if pdf else None)
    options = {"freezing": True} if device == "cpu" else {"max_autotune": True}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        program = torch.export.export(forward.eval().to(device), example)
        package = str(Path(folder) / "model.pt2")
        torch._inductor.aoti_compile_and_package(
            program, package_path=package, inductor_configs=options
        )
        shutil.copyfile(package, out)


if __name__ == "__main__":
    _compile(*sys.argv[1:])
