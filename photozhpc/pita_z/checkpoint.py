"""Checkpoints of the reference code `pita-z` (github.com/ashodkh/PITA) -> PITA.

The reference trains torchvision's ConvNeXt with its own MLPs and saves them in a Lightning
checkpoint, which is a pickle: `torch.load(weights_only=True)` reads it without executing anything.

    reference (torchvision, pita_z.models)        photozhpc (timm, model/pita.py)
    encoder.features.0.{0,1}                      encoder.stem.{0,1}
    encoder.features.{1,3,5,7}.B.layer_scale      encoder.stages.S.blocks.B.gamma
    encoder.features.{1,3,5,7}.B.block.{0,2,3,5}  ... .{conv_dw,norm,mlp.fc1,mlp.fc2}
    encoder.features.{2,4,6}.{0,1}                encoder.stages.S.downsample.{0,1}
    encoder.classifier.{0,2}                      encoder.head.{norm,fc}
    encoder_mlp, redshift_mlp, color_mlp,         encoder_mlp, redshift_mlp.0, colour_mlp,
      projection_head: .projection_layers.L         projection_mlp: .L
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from photozhpc.errors import CheckpointError, one_line
from photozhpc.files.disk import read_fault
from photozhpc.model.pita import PITA
from photozhpc.model.pita_config import PITAConfig
from photozhpc.model.torch_file import load_torch_file, misfit
from photozhpc.pita_z.units import njy_per_count
from photozhpc.survey import Survey

# (width of the stem, blocks per stage) of torchvision's models -> timm's name.
_ENCODERS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (3, 3, 9, 3)): "convnext_tiny",
    (96, (3, 3, 27, 3)): "convnext_small",
    (128, (3, 3, 27, 3)): "convnext_base",
    (192, (3, 3, 27, 3)): "convnext_large",
}
_BLOCK = {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2"}
_CLASSIFIER = {"0": "norm", "2": "fc"}
_MLPS = {
    "encoder_mlp": "encoder_mlp",
    "redshift_mlp": "redshift_mlp.0",
    "color_mlp": "colour_mlp",
    "projection_head": "projection_mlp",
}
# MoCo's momentum copies and its queue are only for the contrastive loss.
_NOT_NEEDED = re.compile(r"momentum_(encoder|encoder_mlp|projection_head)\.|queue$|queue_ptr$")

# The reference's learning-rate schedules leave NumPy numbers in a checkpoint, beside tensors and
# plain Python values. They hold bytes and execute nothing.
_scalar = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8")),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),  # pickled by NumPy 1
]


def import_checkpoint(
    path: str | Path,
    survey: Survey,
    zero_point_ab_C: Sequence[float] | None = None,
    crop: int = 64,
) -> tuple[PITA, tuple[str, ...]]:
    """Return the network of a pita-z checkpoint, in evaluation mode, and notes for the user.

    Supported models: `PITALightning` with a redshift MLP, and `CNNPhotoz` (no projection and no
    colours: the latent itself is the projection, colours are 0), each with torchvision's
    ConvNeXt Tiny, Small, Base or Large, with or without an encoder MLP, and MLPs of any widths.
    They give the same redshifts, colours and projections as the reference.

    No publication states the unit of the reference's images. It is assumed to be the drizzles'
    counts per second: `noise_C` becomes the nJy of one count, so that `augment.prepare` turns a
    store in nJy into what the reference's network saw. On a store that `import_hdf5` made with the
    same zero points the unit cancels, whatever it is. The colours are the log10 flux ratios and
    the log10 flux of the reference's data (see `FluxFeatures`), not those of
    `colours.colour_features`.

    Args:
        survey: its bands must be the channels, in order; their `extinction_r` is used.
        zero_point_ab_C: AB magnitude of one count; default: see `njy_per_count`.
        crop: side of the image that the network saw, pixels (64 in the paper and the reference's
            configurations; the checkpoint does not state it).

    Raises:
        CheckpointError: the file is missing, damaged, holds more than weights and plain values,
            or holds an unsupported model.
    """
    path = Path(path)
    checkpoint = _read(path)
    encoder, others = _encoder(path, _weights(path, checkpoint))
    config, mlps, notes = _heads(path, others, encoder)
    n_bands = encoder["encoder.stem.0.weight"].shape[1]
    if n_bands != len(survey.bands):
        raise CheckpointError(
            f"{path}: the model has {n_bands} channels, survey '{survey.name}' has "
            f"{len(survey.bands)} bands; pass the --survey of its training"
        )
    buffers = {
        "extinction_r_C": torch.tensor([band.extinction_r for band in survey.bands]),
        "noise_C": torch.from_numpy(njy_per_count(survey, zero_point_ab_C)),
    }
    try:
        pita_config = PITAConfig(n_bands=n_bands, crop=crop, **config)
    except ValueError as error:
        raise CheckpointError(f"{path}: does not fit a PITA: {error}") from error
    model = _filled(path, pita_config, {**encoder, **mlps, **buffers})
    epoch = checkpoint.get("epoch")
    if isinstance(epoch, int):
        notes = (f"saved in epoch {epoch}, counted from 0", *notes)
    return model.eval(), notes


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            checkpoint = load_torch_file(path)
    except Exception as error:  # PyTorch's reader of pickles lets any exception through
        is_pickle_error = isinstance(error, pickle.UnpicklingError)
        if is_pickle_error and (name := re.search(r"GLOBAL ([\w.]+)", str(error))):
            raise CheckpointError(
                f"{path}: holds '{name[1]}', which could run code; nothing was loaded. If you "
                f"trust it, save only its state_dict where it was made: "
                f"torch.save({{'state_dict': model.state_dict()}}, FILE)"
            ) from error
        reason = "" if is_pickle_error else f" ({one_line(error)})"
        raise CheckpointError(
            read_fault(path, error) or f"{path}: not a PyTorch checkpoint, or damaged{reason}"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def _weights(path: Path, checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights that inference needs, as float32."""
    state = checkpoint.get("state_dict", checkpoint)  # the file may hold only a state_dict
    if not isinstance(state, dict) or not state or not all(map(torch.is_tensor, state.values())):
        raise CheckpointError(f"{path}: has no state_dict; give a Lightning checkpoint of pita-z")
    weights = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise CheckpointError(f"{path}: damaged: '{name}' is not a plain array of numbers")
        if not _NOT_NEEDED.match(name):
            weights[name] = tensor.float()
            if not torch.isfinite(weights[name]).all():
                raise CheckpointError(
                    f"{path}: '{name}' is not finite (the training diverged); give another "
                    f"checkpoint"
                )
    return weights


def _is_plain(tensor: Tensor) -> bool:
    """Return whether the file holds all of its numbers: a view may repeat one number endlessly."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.is_complex() or tensor.is_quantized)
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


def _encoder(
    path: Path, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the encoder's tensors under their new names, and the other tensors."""
    encoder, others = {}, {}
    for name, tensor in weights.items():
        if not name.startswith("encoder."):
            others[name] = tensor
            continue
        # The reference's CustomConvNeXt wraps torchvision's model as 'model'.
        new = _encoder_name(name.removeprefix("encoder.").removeprefix("model."))
        if new is None:
            raise CheckpointError(
                f"{path}: the encoder is not torchvision's ConvNeXt ('{name}'); no other encoder "
                f"can be imported"
            )
        encoder[f"encoder.{new}"] = tensor.flatten() if new.endswith(".gamma") else tensor
    if encoder.get("encoder.stem.0.weight", torch.empty(0)).ndim != 4:
        raise CheckpointError(f"{path}: has no image encoder; give a checkpoint of pita-z")
    return encoder, others


def _encoder_name(name: str) -> str | None:
    """Return timm's name of a parameter of torchvision's ConvNeXt."""
    if match := re.fullmatch(r"features\.0\.([01])\.(weight|bias)", name):
        return f"stem.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"features\.([1357])\.(\d+)\.layer_scale", name):
        return f"stages.{int(match[1]) // 2}.blocks.{match[2]}.gamma"
    if match := re.fullmatch(r"features\.([1357])\.(\d+)\.(block\.[0235])\.(weight|bias)", name):
        return f"stages.{int(match[1]) // 2}.blocks.{match[2]}.{_BLOCK[match[3]]}.{match[4]}"
    if match := re.fullmatch(r"features\.([246])\.([01])\.(weight|bias)", name):
        return f"stages.{int(match[1]) // 2}.downsample.{match[2]}.{match[3]}"
    if match := re.fullmatch(r"classifier\.([02])\.(weight|bias)", name):
        return f"head.{_CLASSIFIER[match[1]]}.{match[2]}"
    return None


def _heads(
    path: Path, weights: Mapping[str, Tensor], encoder: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor], tuple[str, ...]]:
    """Return the configuration that the shapes imply, the MLPs' tensors, and notes."""
    stem = encoder["encoder.stem.0.weight"]
    depths: tuple[int, ...] = tuple(
        sum(bool(re.fullmatch(rf"encoder\.stages\.{s}\.blocks\.\d+\.gamma", n)) for n in encoder)
        for s in range(4)
    )
    name = _ENCODERS.get((stem.shape[0], depths))
    out = encoder.get("encoder.head.fc.bias", torch.tensor(0))
    if name is None or out.ndim != 1:
        raise CheckpointError(
            f"{path}: the encoder is not a ConvNeXt of torchvision (stem {stem.shape[0]} wide, "
            f"{depths} blocks); only Tiny, Small, Base and Large can be imported"
        )
    prefixes = tuple(f"{mlp}." for mlp in _MLPS)
    if foreign := [name for name in weights if not name.startswith(prefixes)]:
        raise CheckpointError(
            f"{path}: has '{foreign[0]}', which neither PITALightning nor CNNPhotoz of pita-z has; "
            f"only these models can be imported"
        )
    layers = {mlp: _linear_layers(path, weights, mlp) for mlp in _MLPS}
    if not layers["redshift_mlp"]:
        raise CheckpointError(
            f"{path}: the model has no redshift MLP (is it only self-supervised?); import the one "
            f"that was fine-tuned on redshifts"
        )
    notes = []
    n_latent = len(out)
    if not layers["encoder_mlp"]:
        layers["encoder_mlp"] = [(torch.eye(n_latent), torch.zeros(n_latent))]
        notes.append("no encoder MLP: the latent is the encoder's output")
    n_latent = len(layers["encoder_mlp"][-1][1])
    if not layers["projection_head"]:
        layers["projection_head"] = [(torch.eye(n_latent), torch.zeros(n_latent))]
        notes.append("no projection head: the projection is the latent, of unit length")
    if not layers["color_mlp"]:
        layers["color_mlp"] = [(torch.zeros(stem.shape[1], n_latent), torch.zeros(stem.shape[1]))]
        notes.append("no colour MLP: the colours are 0")
    n_in = layers["redshift_mlp"][0][0].shape[-1:].numel()
    n_out = len(layers["redshift_mlp"][-1][1])
    if (n_in, n_out) != (n_latent, 1):
        raise CheckpointError(
            f"{path}: the redshift MLP maps {n_in} numbers to {n_out}, but must map the {n_latent} "
            f"of the latent to 1; Cal-PIT models cannot be imported"
        )
    widths = {mlp: tuple(len(bias) for _, bias in layers[mlp]) for mlp in _MLPS}
    config = {
        "encoder": name,
        "encoder_out": len(out),
        "encoder_mlp": widths["encoder_mlp"],
        "projection_mlp": widths["projection_head"],
        "redshift_mlp": widths["redshift_mlp"][:-1],
        "colour_mlp": widths["color_mlp"][:-1],
        "n_colours": widths["color_mlp"][-1],
    }
    tensors = {
        f"{new}.{2 * index}.{kind}": tensor  # every other layer is a ReLU
        for mlp, new in _MLPS.items()
        for index, layer in enumerate(layers[mlp])
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    return config, tensors, tuple(notes)


def _linear_layers(
    path: Path, weights: Mapping[str, Tensor], mlp: str
) -> list[tuple[Tensor, Tensor]]:
    """Return (weight, bias) of an MLP's linear layers, in order; empty if there is no such MLP."""
    tensors = {name: tensor for name, tensor in weights.items() if name.startswith(f"{mlp}.")}
    layers = []
    for index in range(0, len(tensors), 2):
        names = [f"{mlp}.projection_layers.{index}.{kind}" for kind in ("weight", "bias")]
        if not set(names) <= set(tensors):
            raise CheckpointError(
                f"{path}: '{next(iter(tensors))}' is not from an MLP of pita-z; only its MLPs of "
                f"linear layers with ReLU between them can be imported"
            )
        weight, bias = tensors[names[0]], tensors[names[1]]
        if bias.ndim != 1:
            raise CheckpointError(f"{path}: damaged: '{names[1]}' is not a bias of a linear layer")
        layers.append((weight, bias))
    return layers


def _filled(path: Path, config: PITAConfig, tensors: Mapping[str, Tensor]) -> PITA:
    """Return the model with these tensors, which must include all of its parameters."""
    with torch.device("meta"):  # no memory is allocated before the shapes are checked
        skeleton = PITA(config)
    missing = {name for name, _ in skeleton.named_parameters()} - set(tensors)
    if missing:
        raise CheckpointError(f"{path}: damaged: lacks the weights of '{min(missing)}'")
    try:
        skeleton.load_state_dict(tensors, strict=False, assign=True)
        model = PITA(config)
        model.load_state_dict({**model.state_dict(), **tensors})
        return model
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit a PITA: {misfit(error)}") from error
