"""The processes of a training run: one, or as many as torchrun started."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from photozhpc.errors import ConfigError

_GLOO_SECONDS = 1.0


@dataclass(frozen=True)
class Ranks:
    """This process's rank, how many there are, and its device.

    `control` is a gloo group for a few numbers a step: it does not make the GPU wait.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums over all ranks of a few numbers."""
        if self.world == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def gather(self, part: Tensor) -> Tensor:
        """Return the parts of all ranks, of one shape, joined along axis 0 in rank order."""
        if self.world == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def gather_objects(self, part: Any) -> list[Any]:
        """Return what every rank gave, in rank order."""
        if self.world == 1:
            return [part]
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, part, group=self.control)
        return parts


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did; leave them at the end.

    Args:
        device: "auto", "cpu" or "cuda". On CUDA each rank takes the GPU of its LOCAL_RANK.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    chosen = _device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(device=chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", device_id=chosen)
        control = dist.new_group(backend="gloo")
    else:
        dist.init_process_group("gloo")
        control = dist.group.WORLD
    try:
        yield Ranks(dist.get_rank(), world, chosen, control)
    finally:
        # To free the tensors of the last sum gloo's threads need the GIL, and the destructor of
        # their group holds it while it waits for them: let them finish first.
        time.sleep(_GLOO_SECONDS)
        dist.destroy_process_group()


def _device(device: str) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
