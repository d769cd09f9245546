"""Checkpoints made by pita-z itself, imported, give what pita-z gives; others are refused."""

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import randomise, reference
from torch import nn

from photozhpc.errors import CheckpointError, StoreError
from photozhpc.model import PITA, load_checkpoint, save_checkpoint
from photozhpc.model.augment import prepare
from photozhpc.pita_z.checkpoint import import_checkpoint
from photozhpc.pita_z.hdf5 import import_hdf5
from photozhpc.pita_z.units import njy_per_count
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

SURVEY = load_survey("candels")
PAPER = [128, 128, 128, 128, 128, 64]
RELEASED = [256, 128, 128, 128, 128, 64]
pytest.importorskip("pita_z")


def encoder(n_bands: int = 4) -> nn.Module:
    """As the reference's training scripts make it; its weights are left to `randomise`."""
    from torchvision import models

    with torch.device("meta"):
        convnext = models.convnext_tiny(weights=None)
        convnext.features[0][0] = nn.Conv2d(n_bands, 96, kernel_size=(4, 4), stride=(4, 4))
    return convnext.to_empty(device="cpu")


def save(module: Any, path: Path) -> Path:
    """Write a Lightning checkpoint with the states of optimiser and schedule."""
    import pytorch_lightning as pl

    def add_states(checkpoint: dict[str, Any]) -> None:
        module.lr, module.lr_scheduler = 1e-3, "warmupcosine"
        (optimiser,), (schedule,) = module.configure_optimizers()
        last_lr = schedule.min_lr + 1e-3 * (1 + np.cos(0.3)) / 2  # a NumPy number
        checkpoint["optimizer_states"] = [optimiser.state_dict()]
        checkpoint["lr_schedulers"] = [schedule.state_dict() | {"_last_lr": [last_lr]}]

    module.on_save_checkpoint = add_states
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on hardware and folders
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=False, mmap=True)
    assert isinstance(content["lr_schedulers"][0]["_last_lr"][0], np.float64)
    return path


def pita(widths: list[int]) -> Any:
    mlp = reference("models/basic_models").MLP
    module = reference("models/pita_model").PITALightning(
        encoder=encoder(),
        encoder_mlp=mlp(1000, [512, 128]),
        projection_head=mlp(128, [128, 64]),
        redshift_mlp=mlp(128, [*widths, 1]),
        color_mlp=mlp(128, [*widths, 4]),
        queue_size=128,
    )
    randomise(module, seed=widths[0])
    return module.eval()


@pytest.fixture(scope="module", params=[PAPER, RELEASED], ids=["paper", "released"])
def trained(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, PITA, tuple[str, ...]]:
    """pita-z's module, what became of its checkpoint, and the notes."""
    module = pita(request.param)
    path = save(module, tmp_path_factory.mktemp("pita_z") / "epoch=1549.ckpt")
    imported = import_checkpoint(path, SURVEY)
    path.unlink()  # 250 MB
    return module, *imported


@torch.no_grad()
def test_outputs_are_the_references(
    trained: tuple[Any, PITA, tuple[str, ...]], tmp_path: Path
) -> None:
    module, model, notes = trained
    assert notes == ("saved in epoch 0, counted from 0",)
    assert model.config.redshift_mlp == model.config.colour_mlp
    assert model.config.redshift_mlp[0] == module.redshift_mlp.projection_layers[0].out_features
    image = 3 * torch.randn(3, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    projection, redshift, colour = module(image)
    path = save_checkpoint(tmp_path / "m.safetensors", model, SURVEY)
    ours = load_checkpoint(path).model(image)
    torch.testing.assert_close(ours.z_phot_B, redshift, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.colour_BM, colour, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.projection_BP, projection, rtol=1e-5, atol=1e-5)
    path.unlink()
    assert redshift.std() > 0.01  # the comparison is not of constants
    assert colour.std(dim=0).min() > 0.01


@torch.no_grad()
def test_whole_path_from_catalogue_to_redshift(
    trained: tuple[Any, PITA, tuple[str, ...]], tmp_path: Path
) -> None:
    """The network sees the reference's pixels, whatever the unit of its images is taken to be."""
    h5py = pytest.importorskip("h5py")
    module, model, _ = trained
    rng = np.random.default_rng(2)
    raw = rng.normal(0, 2, (3, 4, 108, 108)).astype(np.float32)
    ebv = np.array([0.0, 0.02, 0.3], np.float32)
    redden = reference("utils/reddening").ReddeningTransform(R=[2.471, 1.526, 0.726, 0.512])
    crop = reference("utils/augmentations").JitterCrop(output_dim=64)
    seen = crop(torch.from_numpy(np.stack([redden(pair) for pair in zip(raw, ebv, strict=True)])))
    with h5py.File(tmp_path / "c.hdf5", "w") as file:
        file["images"], file["ebvs"], file["redshifts"] = raw, ebv, np.full(3, -1.0)
    torch.testing.assert_close(model.noise_C, torch.from_numpy(njy_per_count(SURVEY)))
    for name, zero_point_ab_C in (("a", None), ("b", (31.4, 20.0, 28.9, 26.4))):
        import_hdf5(tmp_path / "c.hdf5", SURVEY, tmp_path / name, zero_point_ab_C=zero_point_ab_C)
        store = CutoutStore.open(tmp_path / name)
        (key,) = store.shards()
        image = prepare(
            torch.from_numpy(store.read_cutouts(key)),
            torch.from_numpy(store.read_sources(key).ebv_N),
            model.extinction_r_C,
            torch.from_numpy(njy_per_count(SURVEY, zero_point_ab_C)),
            crop=64,
            kind="none",
        )
        torch.testing.assert_close(image, seen, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(model(image).z_phot_B, module(seen)[1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("with_mlp", [True, False])
def test_supervised_network(with_mlp: bool, tmp_path: Path) -> None:
    mlp = reference("models/basic_models").MLP
    module = reference("models/fully_supervised_model").CNNPhotoz(
        encoder=encoder(),
        encoder_mlp=mlp(1000, [512, 128]) if with_mlp else None,
        redshift_mlp=mlp(128 if with_mlp else 1000, [64, 1]),
    )
    randomise(module, seed=3)
    model, notes = import_checkpoint(save(module.eval(), tmp_path / "cnn.ckpt"), SURVEY)
    image = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(4))
    output = model(image)
    torch.testing.assert_close(output.z_phot_B, module(image)[:, 0], rtol=1e-5, atol=1e-5)
    assert not output.colour_BM.any()
    latent = nn.functional.normalize(output.latent_BD, dim=1)
    torch.testing.assert_close(output.projection_BP, latent)
    assert len(notes) == (3 if with_mlp else 4)


def state(**changes: Any) -> dict[str, Any]:
    """Return a state_dict as CNNPhotoz's; a change to None leaves a part out."""
    with torch.device("meta"):
        mlp = reference("models/basic_models").MLP
        parts = {"encoder": encoder(), "encoder_mlp": mlp(1000, [512, 128])}
        parts |= {"redshift_mlp": mlp(128, [8, 1])} | changes
        modules = nn.ModuleDict({name: part for name, part in parts.items() if part is not None})
    return {  # large ones are left small: they are not looked at before the fault is found
        name: torch.zeros(tensor.shape if tensor.numel() < 70_000 else 1)
        for name, tensor in modules.state_dict().items()
    }


def test_models_that_do_not_map_are_named(tmp_path: Path) -> None:
    basic = reference("models/basic_models")
    blocks = basic.JointBlocks(block_channels=[32, 64], avg_pooling_layers=[4, 4])
    cases = {
        "no redshift MLP": state(redshift_mlp=None),
        "Cal-PIT": state(redshift_mlp=basic.MLP(129, [8, 1])),
        "not torchvision's ConvNeXt": state(encoder=basic.Encoder(joint_blocks=blocks)),
        "no image encoder": state(encoder=None),
        "has 5 channels, survey 'candels' has 4": state(encoder=encoder(5)),
        "neither PITALightning nor CNNPhotoz": state(model=nn.Linear(2, 2)),
        "not from an MLP of pita-z": state(redshift_mlp=nn.Sequential(nn.Linear(128, 1))),
        "lacks the weights of": {
            name: tensor for name, tensor in state().items() if "features.7.1.block.3" not in name
        },
        "does not fit a PITA": state() | {"encoder.features.0.1.weight": torch.zeros(95)},
        "is not finite": state() | {"encoder.features.0.1.bias": torch.full((96,), np.nan)},
        "no state_dict": {"epoch": 3},
        "holds a list": [torch.zeros(1)],
    }
    for message, content in cases.items():
        path = tmp_path / "model.ckpt"
        torch.save(content, path)  # a bare state_dict is taken too
        with pytest.raises(CheckpointError, match=message) as caught:
            import_checkpoint(path, SURVEY)
        assert str(path) in str(caught.value)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        import_checkpoint(path, SURVEY)
    torch.save({"state_dict": {"encoder.x": torch.zeros(1000)}}, path)
    whole = path.read_bytes()
    for content in (b"", b"PITA" * 300, whole[: len(whole) // 2], whole[:40]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="checkpoint"):
            import_checkpoint(path, SURVEY)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("as_zip", [True, False])
def test_damage_is_one_clear_error(as_zip: bool, tmp_path: Path) -> None:
    path, rng = tmp_path / "model.ckpt", np.random.default_rng(0)
    content = {"state_dict": {"encoder.x": torch.zeros(3)}, "lr": [np.float64(1e-3)]}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(300):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        with pytest.raises(CheckpointError):
            import_checkpoint(path, SURVEY)


class _Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    path, target = tmp_path / "model.ckpt", tmp_path / "created"
    content = {"state_dict": {"encoder.x": torch.zeros(3)}, "hyper_parameters": _Evil(target)}
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="could run code"):
        import_checkpoint(path, SURVEY)
    bare = tmp_path / "bare.ckpt"
    bare.write_bytes(pickle.dumps(content["hyper_parameters"], protocol=2))
    with pytest.raises(CheckpointError):
        import_checkpoint(bare, SURVEY)
    assert not target.exists()
    torch.load(path, weights_only=False)  # plain unpickling would have run it
    assert target.exists()


def test_zero_points() -> None:
    # one count of F160W is 10^(0.4 (31.4 - 25.9463)) nJy
    np.testing.assert_allclose(njy_per_count(SURVEY)[3], 151.95, rtol=1e-3)
    np.testing.assert_allclose(njy_per_count(SURVEY, [31.4, 28.9, 26.4, 23.9]), [1, 10, 100, 1000])
    with pytest.raises(StoreError, match="4 zero points"):
        njy_per_count(SURVEY, [25.0])
    with pytest.raises(StoreError, match="no zero point for F062 F087"):
        njy_per_count(load_survey("roman-sim"))
