"""The processes of a training run: one, or as many as torchrun or Slurm started."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from photozhpc.errors import ConfigError, PhotozError, RunError, first_few, one_line
from photozhpc.logs import LOG
from photozhpc.model.launch import Launch, advice
from photozhpc.workers.signals import end_with

_GLOO_SECONDS = 1.0
# A process that nobody joins is alone: the variables are of another run. One that was joined, or
# that a launcher surely started, waits for nodes that are slow to import.
_SAY_AFTER_SECONDS = 5.0
_ALONE_SECONDS = 60.0
_JOIN_SECONDS = 600.0
_CONNECT_SECONDS = 20.0
_TRY_SECONDS = 0.1


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

    def gather_plain(self, part: Any) -> list[Any]:
        """Return what every rank gave, in rank order: numbers, texts, lists, None.

        As JSON, whose numbers come back to the last bit. PyTorch's own would unpickle what it
        received, and whoever reaches a rank's port could have it run code.
        """
        if self.world == 1:
            return [part]
        mine = torch.frombuffer(bytearray(json.dumps(part).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(lengths, torch.tensor([len(mine)]), group=self.control)
        longest = max(int(length) for length in lengths)
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
        padded = torch.nn.functional.pad(mine, (0, longest - len(mine)))
        dist.all_gather(texts, padded, group=self.control)
        return [
            json.loads(bytes(text[: int(length)].numpy()))
            for text, length in zip(texts, lengths, strict=True)
        ]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let an error that one rank meets in the block be raised on all, at its end.

        What one writes, the others would wait for, and would then only know that it is gone.
        """
        met: PhotozError | None = None
        try:
            yield
        except PhotozError as error:
            met = error
        if met is not None and self.world == 1:
            raise met
        kinds: dict[str, type[PhotozError]] = {
            kind.__name__: kind for kind in PhotozError.__subclasses__()
        }
        for theirs in self.gather_plain(None if met is None else [type(met).__name__, str(met)]):
            if theirs is not None:
                raise kinds.get(theirs[0], PhotozError)(theirs[1]) from met


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that a launcher started, if it did; leave them at the end.

    Args:
        device: "auto", "cpu" or "cuda". On CUDA each rank takes the GPU of its LOCAL_RANK, or the
            only one that it sees.

    Raises:
        ConfigError: CUDA was asked for and is not there; the variables of the launcher contradict
            each other; two ranks would share a GPU.
        RunError: the other processes did not come, or one was lost later.
    """
    launch = Launch.of(os.environ)
    if launch.by_torchrun:
        end_with(os.getppid())
    chosen = _device(device, launch)
    if launch.world == 1:
        yield Ranks(device=chosen)
        return
    try:
        with _losses_told():
            store = _joined_store(launch)
            if chosen.type == "cuda":
                _check_gpus(store, launch, chosen)
                torch.cuda.set_device(chosen)
                dist.init_process_group(
                    "nccl",
                    store=store,
                    rank=launch.rank,
                    world_size=launch.world,
                    device_id=chosen,
                )
                control = dist.new_group(backend="gloo")
            else:
                dist.init_process_group(
                    "gloo", store=store, rank=launch.rank, world_size=launch.world
                )
                control = dist.group.WORLD
            yield Ranks(launch.rank, launch.world, chosen, control)
    finally:
        if dist.is_initialized():
            # To free the tensors of the last sum gloo's threads need the GIL, and the destructor
            # of their group holds it while it waits for them: let them finish first.
            time.sleep(_GLOO_SECONDS)
            dist.destroy_process_group()


@contextmanager
def _losses_told() -> Iterator[None]:
    """Say in a line that another rank was lost: gloo and NCCL only know that a socket closed."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        LOG.debug("train: %s", one_line(error, 500))
        raise RunError(
            "another process of this training has ended or cannot be reached; what it said last "
            "tells why; run the same command again with --resume"
        ) from error


def _joined_store(launch: Launch) -> dist.Store:
    """Return the store through which ranks find each other, once all are there.

    It is asked again and again, so that Ctrl-C and signals are heard, and the user is told.

    Raises:
        RunError: they did not come in time, or another process has this rank.
    """
    started = time.monotonic()
    missing = [rank for rank in range(launch.world) if rank != launch.rank]
    server = launch.rank == 0 and not launch.met_by_torchrun
    store: dist.Store | None = None
    said = False
    while missing:
        if store is None and (server or _answers(launch)):
            store = _entered_store(launch, server)
        if store is not None:
            missing = [r for r in range(launch.world) if not store.check([f"joined/{r}"])]
        waited = time.monotonic() - started
        met = (
            launch.by_slurm or (store is not None and not server) or len(missing) < launch.world - 1
        )
        limit = _JOIN_SECONDS if met else _ALONE_SECONDS
        who = (
            f"rank {first_few(missing)} of {launch.world}"
            if store
            else "rank 0 (nobody answers there)"
        )
        if missing and waited > limit:
            raise RunError(
                f"{who} did not come in {limit:.0f} s; this is {launch}; {advice(os.environ)}"
            )
        if missing and waited > _SAY_AFTER_SECONDS and not said:
            said = True
            LOG.warning(
                "train: waiting for %s, for %.0f s at most; this is %s; %s",
                who,
                limit,
                launch,
                advice(os.environ),
            )
        if missing:
            time.sleep(_TRY_SECONDS)
    assert store is not None
    return store


def _answers(launch: Launch) -> bool:
    """Return whether something listens where the ranks meet: PyTorch asks with much noise."""
    try:
        socket.create_connection((launch.address, launch.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _entered_store(launch: Launch, server: bool) -> dist.Store:
    """Open the store, or serve it, and enter this rank there.

    Raises:
        RunError: the port is taken, something else answers there, or this rank was entered.
    """
    opened: list[dist.Store | RuntimeError] = []

    def connect() -> None:
        host = "127.0.0.1" if server else launch.address
        try:
            opened.append(
                dist.TCPStore(host, launch.port, launch.world, server, wait_for_workers=False)
            )
        except RuntimeError as error:
            opened.append(error)

    # In a thread: of a program that listens and never answers PyTorch waits for an answer for ever.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    end = time.monotonic() + _CONNECT_SECONDS
    while thread.is_alive() and time.monotonic() < end:
        thread.join(_TRY_SECONDS)
    outcome = opened[0] if opened else RuntimeError("it does not answer")
    if isinstance(outcome, RuntimeError):
        reason = str(outcome).split("\n", 1)[0][:200]
        raise RunError(
            f"the processes of the training cannot meet at port {launch.port}: another program "
            f"has it, or another training ({reason}); choose another MASTER_PORT; this is "
            f"{launch}; {advice(os.environ)}"
        )
    store = dist.PrefixStore(f"photozhpc/{launch.attempt}", outcome)
    if store.add(f"joined/{launch.rank}", 1) != 1:
        raise RunError(
            f"another process is rank {launch.rank} of the training that meets there; this is "
            f"{launch}; {advice(os.environ)}"
        )
    return store


def _check_gpus(store: dist.Store, launch: Launch, device: torch.device) -> None:
    """Make sure that no two ranks have the same GPU, at which NCCL fails or waits.

    Raises:
        ConfigError: two have.
    """
    gpu = f"{torch.cuda.get_device_properties(device).uuid}"
    store.set(f"gpu/{launch.rank}", f"{socket.gethostname()} {gpu}")
    owners: dict[str, int] = {}
    for rank in range(launch.world):
        place = store.get(f"gpu/{rank}").decode()  # waits for it
        first = owners.setdefault(place, rank)
        if first != rank:
            raise ConfigError(
                f"ranks {first} and {rank} have the same GPU ({place}); start at most one process "
                f"a GPU, or give each its own (torchrun --nproc-per-node, srun --gpus-per-task)"
            )


def _device(device: str, launch: Launch) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device 'cuda' was asked for, but torch sees no CUDA device")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    n_gpus = torch.cuda.device_count()
    if n_gpus == 1:  # Slurm may show each of its tasks a single one
        return torch.device("cuda", 0)
    if launch.local_rank >= n_gpus:
        raise ConfigError(
            f"there are more processes than GPUs on this machine (LOCAL_RANK is "
            f"{launch.local_rank}, of {n_gpus} GPUs); start at most one process a GPU"
        )
    return torch.device("cuda", launch.local_rank)
