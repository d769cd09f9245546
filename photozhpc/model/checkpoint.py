"""A model file: safetensors weights with the configuration and survey in the header.

Nothing in it is executed on loading: safetensors holds arrays and JSON text only.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from photozhpc.config import from_mapping, to_mapping
from photozhpc.errors import CheckpointError, ConfigError, one_line
from photozhpc.files.disk import disk_error, read_fault, write_durably
from photozhpc.model.photometry_mlp import PhotometryMLP, PhotometryMLPConfig
from photozhpc.model.pita import PITA, PITAConfig
from photozhpc.model.torch_file import misfit
from photozhpc.survey import Survey

FORMAT = 1
_HEADER = "photozhpc"
_DIGEST = "sha256"  # of the header and the weights: a flipped bit is not another model
_MODELS = {"pita": PITA, "photometry-mlp": PhotometryMLP}
_CONFIGS = {"pita": PITAConfig, "photometry-mlp": PhotometryMLPConfig}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model with what it was trained for.

    Attributes:
        path: of the file.
        model: in evaluation mode.
        survey: bands and pixel scale that the cutouts must have, or the bands of the fluxes.
        training: how it was made (free form, for provenance).
        sha256: of the file.
    """

    path: Path
    model: PITA | PhotometryMLP
    survey: Survey
    training: dict[str, Any]
    sha256: str

    @property
    def config(self) -> PITAConfig | PhotometryMLPConfig:
        return self.model.config

    @property
    def pita(self) -> PITA:
        """The model, where only PITA will do.

        Raises:
            CheckpointError: it is a photometry-MLP.
        """
        if not isinstance(self.model, PITA):
            raise CheckpointError(
                f"{self.path}: is a photometry-MLP, which has no images, latents or intervals; "
                f"pass the model file of a method that sees images"
            )
        return self.model

    def check_store(self, store_survey: Survey, cutout_size: int) -> None:
        """Check that a store's cutouts, or fluxes, are what the model was trained on.

        Raises:
            CheckpointError: other bands, another pixel scale, or cutouts that are too small; for
                a photometry-MLP: other bands, or no fluxes in its aperture.
        """
        need = (
            f"; use a checkpoint trained for survey '{store_survey.name}' "
            f"(photozhpc train) or a store of survey '{self.survey.name}'"
        )
        if store_survey.band_names != self.survey.band_names:
            raise CheckpointError(
                f"{self.path.name} was trained on survey '{self.survey.name}' with bands "
                f"{' '.join(self.survey.band_names)}, the store is of survey "
                f"'{store_survey.name}' with bands {' '.join(store_survey.band_names)}{need}"
            )
        if isinstance(self.model, PhotometryMLP):
            radius = self.model.config.aperture_radius_arcsec
            if radius not in store_survey.aperture_radii_arcsec:
                raise CheckpointError(
                    f"{self.path.name} needs fluxes in an aperture of {radius} arcsec, the store's "
                    f"are {store_survey.aperture_radii_arcsec}; extract again with "
                    f"aperture_radii_arcsec of the survey holding {radius}"
                )
            return
        ratio = store_survey.pixel_scale_arcsec / self.survey.pixel_scale_arcsec
        if abs(ratio - 1) > 0.02:
            raise CheckpointError(
                f"{self.path.name} was trained on {self.survey.pixel_scale_arcsec} arcsec/px, "
                f"the store has {store_survey.pixel_scale_arcsec} arcsec/px{need}"
            )
        crop = self.model.config.crop
        if cutout_size < crop:
            raise CheckpointError(
                f"{self.path.name} sees {crop} px, the store's cutouts have "
                f"{cutout_size} px; extract again with --size {crop} or more"
            )


def save_checkpoint(
    path: str | Path,
    model: PITA | PhotometryMLP,
    survey: Survey,
    training: dict[str, Any] | None = None,
    *,
    compact: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write a model file (temporary name, fsync, rename); return its path.

    The same model gives the same bytes.

    Args:
        compact: keep the encoder's matrices and kernels in float16, half as large; inference in
            bfloat16 rounds them further anyway.
        check: see `disk.replacing`.

    Raises:
        RunError: the disk is full, or cannot be written.
    """
    path = Path(path)
    header = {
        "format": FORMAT,
        "kind": next(kind for kind, cls in _MODELS.items() if isinstance(model, cls)),
        "model": to_mapping(model.config),
        "survey": to_mapping(survey),
        "training": training or {},
    }
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
    }
    if compact:
        for name, tensor in tensors.items():
            if name.startswith("encoder.") and tensor.ndim > 1:
                tensors[name] = tensor.half()
    text = json.dumps(header)
    content = save(tensors, metadata={_HEADER: text, _DIGEST: _digest(text, tensors)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path.parent, error) from error
    write_durably(path, _in_order(content), check=check)
    return path


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order.

    safetensors keeps them in a hash table of Rust, which has another order in every process.
    https://huggingface.co/docs/safetensors/index#format: the length of the header in 8 bytes, the
    header in JSON, padded with spaces, the arrays.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model file and build the model, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of photozhpc's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = json.loads(metadata[_HEADER])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: the checkpoint has format {header['format']}, this photozhpc reads "
                f"format {FORMAT}; upgrade photozhpc"
            )
        if metadata[_DIGEST] != _digest(metadata[_HEADER], tensors):
            raise CheckpointError(f"{path}: was altered or damaged; get or train it again")
        kind = header["kind"]
        if kind not in _MODELS:
            raise CheckpointError(f"{path}: holds an unknown kind of model; upgrade photozhpc")
        config: Any = from_mapping(_CONFIGS[kind], header["model"], f"{path}: model")
        survey = from_mapping(Survey, header["survey"], f"{path}: survey")
        training = dict(header["training"])
    except (
        SafetensorError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
        ConfigError,
    ) as error:
        raise CheckpointError(
            read_fault(path, error)
            or f"{path}: not a photozhpc checkpoint, or damaged ({one_line(error)})"
        ) from error
    if config.n_bands != len(survey.bands):
        raise CheckpointError(
            f"{path}: damaged: {config.n_bands} channels, {len(survey.bands)} bands"
        )
    try:
        # Without memory of its own: the file gives it, and a configuration cannot ask for more.
        # Copied, because safetensors maps the file, which may be cut short while it is in use.
        with torch.device("meta"):
            model = _MODELS[kind](config)
        weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: weights do not fit the model: {misfit(error)}") from error
    with open(path, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Checkpoint(path, model.eval(), survey, training, sha256)


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
