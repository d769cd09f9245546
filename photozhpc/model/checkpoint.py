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
from torch.overrides import TorchFunctionMode

from photozhpc.config import from_mapping, to_mapping
from photozhpc.errors import CheckpointError, ConfigError, one_line
from photozhpc.files.disk import disk_errors, read_fault, write_durably
from photozhpc.model.photometry import FluxInput, PhotometryConfig, PhotometryModel, TakesFluxes
from photozhpc.model.photometry_mlp import PhotometryMLP, PhotometryMLPConfig
from photozhpc.model.pita import PITA
from photozhpc.model.pita_config import PITAConfig
from photozhpc.model.torch_file import misfit
from photozhpc.survey import Survey

FORMAT = 1
_HEADER = "photozhpc"
_INITIALISERS = {"uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_"}
_DIGEST = "sha256"  # of the header and the weights: detects a flipped bit
Model = PITA | PhotometryModel | PhotometryMLP
ModelConfig = PITAConfig | PhotometryConfig | PhotometryMLPConfig
_MODELS = {"pita": PITA, "photometry": PhotometryModel, "photometry-mlp": PhotometryMLP}
_CONFIGS = {
    "pita": PITAConfig,
    "photometry": PhotometryConfig,
    "photometry-mlp": PhotometryMLPConfig,
}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and the survey that it was trained for.

    Attributes:
        path: of the file.
        model: in evaluation mode.
        survey: bands and pixel scale that the cutouts must have, or the bands of the fluxes.
        training: how it was made (free form, for provenance).
        sha256: of the file.
    """

    path: Path
    model: Model
    survey: Survey
    training: dict[str, Any]
    sha256: str

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def pita(self) -> PITA:
        """The model, as a PITA.

        Raises:
            CheckpointError: it is a model of fluxes.
        """
        if not isinstance(self.model, PITA):
            raise CheckpointError(
                f"{self.path}: is a model of fluxes, without images and latents; pass a model file "
                f"of a method that uses images"
            )
        return self.model

    def check_store(self, store_survey: Survey, cutout_size: int) -> None:
        """Check that a store's cutouts, or fluxes, are like those that the model was trained on.

        Raises:
            CheckpointError: the bands or the pixel scale differ, or the cutouts are too small; for
                a model of fluxes: the bands differ, or the store lacks fluxes that it takes.
        """
        advice = (
            f"; use a checkpoint trained for survey '{store_survey.name}' "
            f"(photozhpc train) or a store of survey '{self.survey.name}'"
        )
        if store_survey.band_names != self.survey.band_names:
            raise CheckpointError(
                f"{self.path.name} was trained on survey '{self.survey.name}' with bands "
                f"{' '.join(self.survey.band_names)}, but the store is of survey "
                f"'{store_survey.name}' with bands {' '.join(store_survey.band_names)}{advice}"
            )
        if isinstance(self.model, PhotometryModel):
            self._check_fluxes(self.model.config, store_survey)
            return
        if isinstance(self.model, PhotometryMLP):
            radius = self.model.config.aperture_radius_arcsec
            if radius not in store_survey.aperture_radii_arcsec:
                raise CheckpointError(
                    f"{self.path.name} needs fluxes in an aperture of {radius} arcsec, but the "
                    f"store's apertures are {store_survey.aperture_radii_arcsec}; add {radius} to "
                    f"the survey's aperture_radii_arcsec and extract again"
                )
            return
        if not cutout_size:
            raise CheckpointError(
                f"{self.path.name} sees images, and a photometric catalogue has none; train a "
                f"model of method 'photometry' on a catalogue with z_spec"
            )
        ratio = store_survey.pixel_scale_arcsec / self.survey.pixel_scale_arcsec
        if abs(ratio - 1) > 0.02:
            raise CheckpointError(
                f"{self.path.name} was trained on {self.survey.pixel_scale_arcsec} arcsec/px, "
                f"but the store has {store_survey.pixel_scale_arcsec} arcsec/px{advice}"
            )
        self._check_fluxes(self.model.config.fluxes, store_survey)
        crop = self.model.config.crop
        if cutout_size < crop:
            raise CheckpointError(
                f"{self.path.name} needs cutouts of {crop} px, but the store's have "
                f"{cutout_size} px; extract again with --size {crop} or more"
            )

    def _check_fluxes(self, config: TakesFluxes, store_survey: Survey) -> None:
        try:
            FluxInput(config, store_survey)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path.name}: {error}") from None


def save_checkpoint(
    path: str | Path,
    model: Model,
    survey: Survey,
    training: dict[str, Any] | None = None,
    *,
    compact: bool = False,
    check: Callable[[], None] = lambda: None,
) -> Path:
    """Write a model file (temporary name, fsync, rename); return its path.

    The same model gives the same bytes.

    Args:
        compact: write the encoder's matrices and kernels in float16, at half the size; inference
            in bfloat16 rounds them further anyway.
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
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, _in_order(content), check=check)
    return path


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with its metadata in alphabetical order.

    safetensors keeps it in a Rust hash table, whose order differs between processes. The format
    (https://huggingface.co/docs/safetensors/index#format): length of the header in 8 bytes, the
    header as JSON padded with spaces, the arrays.
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
        CheckpointError: the file is missing, damaged, or not a photozhpc checkpoint.
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
                f"{path}: the checkpoint has format {header['format']}, but this photozhpc reads "
                f"format {FORMAT}; upgrade photozhpc"
            )
        if metadata[_DIGEST] != _digest(metadata[_HEADER], tensors):
            raise CheckpointError(
                f"{path}: was altered or damaged; download or train the model again"
            )
        kind = header["kind"]
        if kind not in _MODELS:
            raise CheckpointError(f"{path}: the kind of model is unknown; upgrade photozhpc")
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
            f"{path}: is damaged: {config.n_bands} channels, but {len(survey.bands)} bands"
        )
    try:
        with _WithoutValues(sum(tensor.numel() for tensor in tensors.values())):
            model = _MODELS[kind](config)
        # Copied, because safetensors maps the file, which may be truncated while in use.
        weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
        model.load_state_dict(weights, assign=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: weights do not fit the model: {misfit(error)}") from error
    with open(path, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Checkpoint(path, model.eval(), survey, training, sha256)


class _WithoutValues(TorchFunctionMode):
    """Makes a network whose weights are about to be replaced: it gives them no values.

    The device "meta" would do so too, but it needs torch's compiler, which takes long to import.
    A damaged configuration cannot ask for much more memory than the file's weights have.
    """

    def __init__(self, n_weights: int) -> None:
        super().__init__()
        self._left = 2 * n_weights + 2**20

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _INITIALISERS and args:
            return args[0]
        result = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.ones, torch.zeros):
            self._left -= result.numel()
            if self._left < 0:
                raise ValueError("the configuration asks for more weights than the file has")
        return result


def _digest(header: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
