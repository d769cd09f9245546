"""A training of seconds, and its processes."""

import socket
from pathlib import Path

import yaml

from builders.models import TINY as TINY_MODEL
from photozhpc.config import to_mapping
from photozhpc.model.train_config import AugmentConfig, LossConfig, OptimiserConfig, TrainConfig

TINY = TrainConfig(
    out="",
    model=TINY_MODEL,
    augment=AugmentConfig(rotation="quarter", jitter_pix=1, noise=0.2, dimming=0.3),
    loss=LossConfig(queue_len=64),
    optimiser=OptimiserConfig(lr=2e-3, warmup_steps=2, clip_norm=1.0),
    batch_size=32,
    epochs=2,
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_config(config: TrainConfig, folder: Path) -> list[str]:
    """The command that trains as configured."""
    path = folder / f"{Path(config.out).name}.yaml"
    path.write_text(yaml.safe_dump(to_mapping(config)))
    return ["-m", "photozhpc", "train", "--config", str(path)]
