"""The reference, pita-z 0.0.1 from PyPI, as its scripts use it (`pip install photozhpc[dev]`)."""

import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

R = [2.471, 1.526, 0.726, 0.512]


def reference(name: str) -> types.ModuleType:
    """Import a module of pita-z, which needs three corrections.

    It imports its own `lr_schedulers` by a bare name. `ReddeningTransform` asserts that a shape
    equals a number, which is never true (it is corrected in the repository), so asserts are left
    out. And NumPy 2.4 does not convert an array of length one to an int.
    """
    spec = importlib.util.find_spec("pita_z")
    assert spec is not None
    assert spec.submodule_search_locations is not None, "pip install photozhpc[dev]"
    folder = Path(spec.submodule_search_locations[0])
    module = types.ModuleType(name.replace("/", "_"))
    source = (folder / f"{name}.py").read_text().replace("jitter_lim+1, 1)", "jitter_lim+1)")
    sys.path.insert(0, str(folder / "utils"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Lightning's imports
            exec(compile(source, name, "exec", optimize=1), module.__dict__)
    finally:
        sys.path.remove(str(folder / "utils"))
    return module


def randomise(module: nn.Module, seed: int) -> None:
    """Draw every parameter so that each layer and each residual branch matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("layer_scale"):
                parameter.copy_(0.5 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(noise * (1.5 / parameter[0].numel()) ** 0.5)


def pita_module(queue_len: int, noise_C: np.ndarray) -> Any:
    """Return PITA as the reference's training script makes it."""
    from torchvision import models, transforms

    mlp = reference("models/basic_models").MLP
    augment = reference("utils/augmentations")
    encoder = models.convnext_tiny(weights=None)
    encoder.features[0][0] = nn.Conv2d(4, 96, kernel_size=(4, 4), stride=(4, 4))
    hidden = [128, 128, 128, 128, 128, 64]
    module = reference("models/pita_model").PITALightning(
        encoder=encoder,
        encoder_mlp=mlp(1000, [512, 128]),
        projection_head=mlp(128, [128, 64]),
        redshift_mlp=mlp(128, [*hidden, 1]),
        color_mlp=mlp(128, [*hidden, 4]),
        queue_size=queue_len,
        transforms=transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                transforms.RandomVerticalFlip(),
                transforms.RandomRotation(180, transforms.InterpolationMode.BILINEAR),
                augment.JitterCrop(output_dim=64, jitter_lim=4),
                augment.AddGaussianNoise(0, noise_C),
            ]
        ),
    )
    module.log = lambda *_, **__: None
    return module


def dataset(path: Path, with_labels: bool) -> torch.utils.data.Dataset:
    """Its dataset over an HDF5 file."""
    redden = reference("utils/reddening").ReddeningTransform(R=R)
    return reference("data_modules/data_modules").ImagesDataset(
        str(path),
        with_redshift=with_labels,
        with_features=with_labels,
        with_weights=with_labels,
        reddening_transform=redden,
        load_ebv=True,
    )
