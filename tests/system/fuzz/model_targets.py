"""Model files: photozhpc's own, and checkpoints of pita-z."""

import copy
import io
import json
import shutil
import zipfile
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import timm
import torch
from harness import AS_IT_SAYS, Damage, Target
from mutate import mangle, mutate_json, mutate_value, to_json
from safetensors.torch import load
from store_targets import make_store
from timm.models.convnext import ConvNeXt

from photozhpc.model import PITA, PITAConfig, load_checkpoint, save_checkpoint
from photozhpc.model.checkpoint import _digest
from photozhpc.model.photometry_mlp import PhotometryMLP, PhotometryMLPConfig
from photozhpc.model.train_config import AugmentConfig, LossConfig, TrainConfig
from photozhpc.model.trainer import Trainer
from photozhpc.pita_z import checkpoint as pita_z
from photozhpc.pita_z.checkpoint import import_checkpoint
from photozhpc.survey import load_survey

SURVEY = load_survey("roman-sim")
ZERO_POINTS = (25.0, 26.0, 27.0, 26.5)
WIDTHS, DEPTHS, TINY = (8, 8, 16, 16), (1, 1, 1, 1), "convnext_fuzz"


@timm.models.register_model
def convnext_fuzz(**options: Any) -> ConvNeXt:
    """The smallest network that a checkpoint can be of: reading it takes the time of reading."""
    options.pop("pretrained_cfg", None)
    options.pop("pretrained_cfg_overlay", None)
    options.pop("cache_dir", None)
    options.pop("pretrained", None)
    return ConvNeXt(**{"dims": WIDTHS, "depths": DEPTHS, **options})


def tiny_pita() -> PITA:
    torch.manual_seed(0)
    return PITA(tiny_config())


def tiny_config() -> PITAConfig:
    narrow = {"redshift_mlp": (8,), "colour_mlp": (8,), "projection_mlp": (8, 4)}
    return PITAConfig(4, encoder=TINY, encoder_out=8, encoder_mlp=(8, 6), crop=32, **narrow)


class Checkpoint(Target):
    cases = 100
    weight = 5.0

    def make(self) -> None:
        save_checkpoint(self.folder / "pita.safetensors", tiny_pita(), SURVEY, {"note": "x"})
        mlp = PhotometryMLP(PhotometryMLPConfig(widths=(8, 8)))
        save_checkpoint(self.folder / "mlp.safetensors", mlp, SURVEY, {"note": "x"})

    def damage(self, rng: Random) -> Damage:
        name = rng.choice(list(self.files))
        content = self.files[name]
        n = int.from_bytes(content[:8], "little")
        kind = rng.random()
        if kind < 0.3:
            return Damage(name, mangle(content, rng))
        if kind < 0.4:
            return Damage(name, mangle(content[: n + 8], rng) + content[n + 8 :])
        if kind < 0.6:
            outer = mutate_json(content[8 : n + 8], rng)
            return Damage(name, len(outer).to_bytes(8, "little") + outer + content[n + 8 :])
        # What the checksum covers, with the checksum put right: a file that someone made so.
        document = json.loads(content[8 : n + 8])
        metadata = document["__metadata__"]
        metadata["photozhpc"] = mutate_json(metadata["photozhpc"].encode(), rng).decode()
        metadata["sha256"] = _digest(metadata["photozhpc"], load(content))
        outer = json.dumps(document).encode()
        sealed = len(outer).to_bytes(8, "little") + outer + content[n + 8 :]
        return Damage(name, sealed, sealed=True)

    def read(self, damage: Damage) -> Any:
        found = load_checkpoint(self.folder / damage.name)
        weights = {name: tensor.numpy() for name, tensor in found.model.state_dict().items()}
        return found.config, found.survey, found.training, weights

    def judge(self, damage: Damage, found: Any) -> str:
        assert damage.sealed, "altered, and read"
        return AS_IT_SAYS


class TrainingState(Target):
    """What a training run is taken up from."""

    cases = 60
    weight = 0.5

    def make(self) -> None:
        store = self.folder.with_name("training-store")
        shutil.rmtree(store, ignore_errors=True)
        config = TrainConfig(
            out="x",
            model=tiny_config(),
            loss=LossConfig(queue_len=8),
            batch_size=4,
            lanes=1,
            augment=AugmentConfig(rotation="quarter", jitter_pix=0),
            device="cpu",
            precision="float32",
        )
        self.trainer = Trainer(config, make_store(store, 40))
        self.trainer.train_step(next(iter(self.trainer.batches())))
        self.trainer.save_state(self.folder / "state.pt")
        self.state = torch.load(self.folder / "state.pt", weights_only=True)
        archive = io.BytesIO()  # its name, which is in it, would be that of this process
        torch.save(self.state, archive)
        (self.folder / "state.pt").write_bytes(archive.getvalue())

    def damage(self, rng: Random) -> Damage:
        content = self.files["state.pt"]
        kind = rng.random()
        if kind < 0.4:
            return Damage("state.pt", mangle(content, rng))
        if kind < 0.6:
            return Damage("state.pt", _with_damaged_pickle(content, rng), sealed=True)
        out = io.BytesIO()
        torch.save(_ill_typed_state(self.state, rng), out)
        return Damage("state.pt", out.getvalue(), sealed=True)

    def read(self, damage: Damage) -> Any:
        self.trainer.load_state(self.folder / damage.name)
        weights = {k: v.numpy() for k, v in self.trainer.model.state_dict().items()}
        keys = {k: v.numpy() for k, v in self.trainer.keys.state_dict().items()}
        return weights, keys, self.trainer.step, self.trainer.best_score

    def judge(self, damage: Damage, found: Any) -> str:
        assert damage.sealed, "altered, and resumed from"
        assert 0 <= found[2] <= self.trainer.total_steps
        return AS_IT_SAYS


class PitaZ(Target):
    """A checkpoint as Lightning writes it, of a network that is smaller than any of the paper's."""

    cases = 100
    weight = 1.0

    def make(self) -> None:
        self.state = {_reference_name(k): v for k, v in tiny_pita().state_dict().items()}
        self.state = {k: v for k, v in self.state.items() if k is not None}
        for name, tensor in self.state.items():
            if name.endswith("layer_scale"):
                self.state[name] = tensor[:, None, None].clone()
        self.checkpoint = {
            "epoch": 3,
            "pytorch-lightning_version": "2.4",
            "state_dict": self.state,
            "lr_schedulers": [{"_last_lr": [np.float64(0.1)]}],
        }
        torch.save(self.checkpoint, self.folder / "a.ckpt")
        torch.save(self.checkpoint, self.folder / "old.ckpt", _use_new_zipfile_serialization=False)

    def damage(self, rng: Random) -> Damage:
        name = rng.choice(list(self.files))
        content = self.files[name]
        kind = rng.random()
        if kind < 0.3:
            return Damage(name, mangle(content, rng))
        if kind < 0.6 and name == "a.ckpt":
            return Damage(name, _with_damaged_pickle(content, rng))
        if kind < 0.6:
            return Damage(name, mangle(content[:4000], rng) + content[4000:])
        out = io.BytesIO()
        torch.save(_ill_typed(self.checkpoint, rng), out)
        return Damage(name, out.getvalue())

    def read(self, damage: Damage) -> Any:
        with patch.dict(pita_z._ENCODERS, {(WIDTHS[0], DEPTHS): TINY}):
            model, notes = import_checkpoint(self.folder / damage.name, SURVEY, ZERO_POINTS, 32)
        return {k: v.numpy() for k, v in model.state_dict().items()}, notes

    def judge(self, damage: Damage, found: Any) -> str:
        weights, _ = found
        for name, weight in weights.items():
            if "uncertainty" not in name:
                assert np.isfinite(weight).all(), f"{name} is not finite"
        return AS_IT_SAYS


def _reference_name(name: str) -> str | None:
    """Name a parameter of PITA as pita-z does."""
    for new, old in (
        ("encoder.stem.", "encoder.features.0."),
        ("encoder.head.norm.", "encoder.classifier.0."),
        ("encoder.head.fc.", "encoder.classifier.2."),
        ("redshift_mlp.0.", "redshift_mlp.projection_layers."),
        ("colour_mlp.", "color_mlp.projection_layers."),
        ("encoder_mlp.", "encoder_mlp.projection_layers."),
        ("projection_mlp.", "projection_head.projection_layers."),
    ):
        if name.startswith(new):
            return old + name.removeprefix(new)
    if not name.startswith("encoder.stages."):
        return None
    _, _, stage, *rest = name.split(".")
    if rest[0] == "downsample":
        return f"encoder.features.{2 * int(stage)}.{'.'.join(rest[1:])}"
    block, what = rest[1], ".".join(rest[2:])
    if what == "gamma":
        return f"encoder.features.{2 * int(stage) + 1}.{block}.layer_scale"
    layer, kind = what.rsplit(".", 1)
    old = {new: old for old, new in pita_z._BLOCK.items()}[layer]
    return f"encoder.features.{2 * int(stage) + 1}.{block}.{old}.{kind}"


def _with_damaged_pickle(content: bytes, rng: Random) -> bytes:
    """Damage a member of the archive, whose own checksums are put right."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        names = old.namelist()
        chosen = next(n for n in names if n.endswith("data.pkl"))
        if rng.random() < 0.2:
            chosen = rng.choice(names)
        for name in names:
            member = old.read(name)
            new.writestr(name, mangle(member, rng) if name == chosen else member)
    return out.getvalue()


def _ill_typed_state(state: dict[str, Any], rng: Random) -> Any:
    """A state with a value, or a tensor of one of its parts, that no run has saved."""
    part = rng.choice(list(state))
    if part in ("model", "keys") and rng.random() < 0.7:
        return {**state, part: _ill_typed({"state_dict": state[part]}, rng)}
    return mutate_value(copy.deepcopy(state), rng)


def _ill_typed(checkpoint: dict[str, Any], rng: Random) -> Any:
    """A checkpoint with a value that none has, which PyTorch itself reads."""
    state = dict(checkpoint["state_dict"])
    name = rng.choice(list(state))
    tensor = state[name]
    values: tuple[Any, ...] = (
        None, 1, "x", [], {}, [tensor], torch.empty(0), torch.tensor(1.0), torch.tensor(2),
        tensor.to(torch.complex64), tensor.double(), tensor.half(), tensor.to(torch.int8),
        tensor.bool(), tensor[None], tensor.flatten(), tensor[:1], torch.cat([tensor, tensor]),
        torch.full_like(tensor, torch.nan), torch.full_like(tensor, torch.inf),
        torch.zeros(1).expand(tensor.shape), torch.zeros(1).expand(10**6, 10**6),
        torch.zeros(1, 1, 1, 1).expand(8, 4, 10**5, 10**5), tensor.to_sparse(),
        torch.zeros(tensor.shape, device="meta"), torch.zeros(9000, 1),
        tensor.t() if tensor.ndim == 2 else 5, torch.nn.Parameter(tensor.float()),
    )  # fmt: skip
    kind = rng.randrange(8)
    if kind == 0:
        del state[name]
    elif kind == 1:
        state[rng.choice((5, None, ("a",), "", "encoder.x", "a\nb", "redshift_mlp.x"))] = tensor
    elif kind == 2:
        other = rng.choice(list(state))
        state[name], state[other] = state[other], tensor
    elif kind == 3:
        rest = {k: v for k, v in checkpoint.items() if k != "state_dict"}
        changed = mutate_value(
            json.loads(to_json({"epoch": 3, "hyper_parameters": {"a": [1]}})), rng
        )
        return rng.choice((state, rest, changed, [state], {**rest, "state_dict": [state]}))
    else:
        state[name] = rng.choice(values)
    return {**checkpoint, "state_dict": state}
