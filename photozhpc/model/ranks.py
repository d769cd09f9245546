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
# A process that nobody joins has the variables of another run. One that was joined, or that a
# launcher certainly started, waits longer: nodes may be slow to import.
_SAY_AFTER_SECONDS = 5.0
_ALONE_SECONDS = 60.0
_JOIN_SECONDS = 600.0
_CONNECT_SECONDS = 20.0
_TRY_SECONDS = 0.1


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, the number of ranks, and its device.

    `control` is a gloo group for a few numbers per step: it does not make the GPU wait.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of a few numbers over all ranks."""
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
        """Return the parts of all ranks, in rank order: numbers, texts, lists, None.

        Sent as JSON, which keeps numbers to the last bit. PyTorch's function unpickles what it
        receives, so anyone who reaches a rank's port could run code.
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
        """Raise an error that one rank meets in the block on all ranks, at its end.

        Otherwise the others would wait for that rank, and only notice that it is gone.
        """
        own_error: PhotozError | None = None
        try:
            yield
        except PhotozError as error:
            own_error = error
        if own_error is not None and self.world == 1:
            raise own_error
        kinds = {kind.__name__: kind for kind in PhotozError.__subclasses__()}
        part = None if own_error is None else [type(own_error).__name__, str(own_error)]
        for named_error in self.gather_plain(part):
            if named_error is not None:
                kind, message = named_error
                raise kinds.get(kind, PhotozError)(message) from own_error


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that a launcher started, if any; leave them at the end.

    Args:
        device: "auto", "cpu" or "cuda". On CUDA each rank takes the GPU of its LOCAL_RANK, or the
            only one that it sees.

    Raises:
        ConfigError: there is no CUDA device for "cuda"; the launcher's variables contradict each
            other; two ranks would share a GPU.
        RunError: the other processes did not join, or one was lost later.
    """
    launch = Launch.of(os.environ)
    if launch.by_torchrun:
        end_with(os.getppid())
    chosen = _device(device, launch)
    if launch.world == 1:
        yield Ranks(device=chosen)
        return
    try:
        with _report_lost_ranks():
            store = _joined_store(launch)
            group: dict[str, Any] = {
                "store": store,
                "rank": launch.rank,
                "world_size": launch.world,
            }
            if chosen.type == "cuda":
                _check_gpus(store, launch, chosen)
                torch.cuda.set_device(chosen)
                dist.init_process_group("nccl", **group, device_id=chosen)
                control = dist.new_group(backend="gloo")
            else:
                dist.init_process_group("gloo", **group)
                control = dist.group.WORLD
            yield Ranks(launch.rank, launch.world, chosen, control)
    finally:
        if dist.is_initialized():
            # gloo's threads need the GIL to free the tensors of the last sum, but the destructor of
            # their group holds it while it waits for them: let them finish first.
            time.sleep(_GLOO_SECONDS)
            dist.destroy_process_group()


@contextmanager
def _report_lost_ranks() -> Iterator[None]:
    """Say in one line that another rank was lost: gloo and NCCL only report a closed socket."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        LOG.debug("train: %s", one_line(error, 500))
        raise RunError(
            "another process of this training has ended or cannot be reached; its last messages "
            "tell why; run the same command again"
        ) from error


def _joined_store(launch: Launch) -> dist.Store:
    """Return the store through which ranks find each other, once all have joined.

    It is polled, so that Ctrl-C and signals are handled, and the user is told.

    Raises:
        RunError: the others did not join in time, or another process has this rank.
    """
    start = time.monotonic()
    missing = [rank for rank in range(launch.world) if rank != launch.rank]
    server = launch.rank == 0 and not launch.met_by_torchrun
    store: dist.Store | None = None
    warned = False
    while True:
        if store is None and (server or _answers(launch)):
            store = _entered_store(launch, server)
        absent = "rank 0 (nobody answers there)"
        if store is not None:
            missing = [r for r in range(launch.world) if not store.check([f"joined/{r}"])]
            if not missing:
                return store
            absent = f"rank {first_few(missing)} of {launch.world}"
        was_joined = (store is not None and not server) or len(missing) < launch.world - 1
        limit = _JOIN_SECONDS if launch.by_slurm or was_joined else _ALONE_SECONDS
        elapsed = time.monotonic() - start
        if elapsed > limit:
            raise RunError(
                f"{absent} did not join within {limit:.0f} s; this is {launch}; "
                f"{advice(os.environ)}"
            )
        if elapsed > _SAY_AFTER_SECONDS and not warned:
            warned = True
            LOG.warning(
                f"train: waiting for {absent}, for at most {limit:.0f} s; this is {launch}; "
                f"{advice(os.environ)}"
            )
        time.sleep(_TRY_SECONDS)


def _answers(launch: Launch) -> bool:
    """Return whether something listens where the ranks meet, without PyTorch's many warnings."""
    try:
        socket.create_connection((launch.address, launch.port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _entered_store(launch: Launch, server: bool) -> dist.Store:
    """Open the store, or serve it, and register this rank there.

    Raises:
        RunError: the port is taken, something else answers there, or this rank is registered.
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

    # In a thread: if a program listens and never answers, PyTorch waits forever.
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
            f"or training uses it ({reason}); choose another MASTER_PORT; this is {launch}; "
            f"{advice(os.environ)}"
        )
    store = dist.PrefixStore(f"photozhpc/{launch.attempt}", outcome)
    if store.add(f"joined/{launch.rank}", 1) != 1:
        raise RunError(
            f"another process is rank {launch.rank} of the training that meets there; this is "
            f"{launch}; {advice(os.environ)}"
        )
    return store


def _check_gpus(store: dist.Store, launch: Launch, device: torch.device) -> None:
    """Raise ConfigError if two ranks have the same GPU: NCCL would fail or hang."""
    gpu_uuid = torch.cuda.get_device_properties(device).uuid
    store.set(f"gpu/{launch.rank}", f"{socket.gethostname()} {gpu_uuid}")
    owners: dict[str, int] = {}
    for rank in range(launch.world):
        gpu = store.get(f"gpu/{rank}").decode()  # waits for it
        owner = owners.setdefault(gpu, rank)
        if owner != rank:
            raise ConfigError(
                f"ranks {owner} and {rank} have the same GPU ({gpu}); start at most one process "
                f"per GPU, or give each its own (torchrun --nproc-per-node, srun --gpus-per-task)"
            )


def _device(device: str, launch: Launch) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "torch sees no CUDA device for device 'cuda'; use device cpu, or check the driver and "
            "PyTorch's CUDA build"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    n_gpus = torch.cuda.device_count()
    if n_gpus == 1:  # Slurm may show each of its tasks a single one
        return torch.device("cuda", 0)
    if launch.local_rank >= n_gpus:
        raise ConfigError(
            f"there are more processes than GPUs on this machine (LOCAL_RANK is "
            f"{launch.local_rank}, with {n_gpus} GPUs); start at most one process per GPU"
        )
    return torch.device("cuda", launch.local_rank)
