"""The environment variables by which torchrun and jobs/train.slurm describe this process.

They are read once, and trusted only if they agree: a shell inside a job, or one that exports them,
passes them on to programs that no launcher started.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from photozhpc.errors import ConfigError

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_MAX_WORLD = 1 << 20


@dataclass(frozen=True)
class Launch:
    """This process among those of a training.

    Attributes:
        rank, world: its number, and the number of processes.
        local_rank: its number on its machine.
        address, port: where the ranks meet; unused by a single process.
        attempt: how often torchrun has restarted the processes.
        by_torchrun: torchrun started it, as a child.
        met_by_torchrun: torchrun, not rank 0, answers at the address.
        by_slurm: the variables agree with those of this Slurm step.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    address: str = ""
    port: int = 0
    attempt: str = "0"
    by_torchrun: bool = False
    met_by_torchrun: bool = False
    by_slurm: bool = False

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Launch":
        """Read the variables; without WORLD_SIZE there is one process, whatever else is set.

        Raises:
            ConfigError: the variables contradict each other, or one is missing.
        """
        by_torchrun = "TORCHELASTIC_RUN_ID" in environment
        world = _number(environment, "WORLD_SIZE", "1", 1, _MAX_WORLD)
        if not environment.get("WORLD_SIZE"):
            return cls(by_torchrun=by_torchrun)
        rank = _number(environment, "RANK", "0" if world == 1 else "", 0, world - 1)
        if world == 1:
            return cls(by_torchrun=by_torchrun)
        if not environment.get("MASTER_ADDR"):
            raise ConfigError(_contradiction(environment, "MASTER_ADDR is missing"))
        return cls(
            rank,
            world,
            _number(environment, "LOCAL_RANK", "0", 0, world - 1),
            environment["MASTER_ADDR"],
            _number(environment, "MASTER_PORT", "", 1, 65535),
            environment.get("TORCHELASTIC_RESTART_COUNT", "0"),
            by_torchrun,
            environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            "SLURM_STEP_ID" in environment
            and environment.get("SLURM_PROCID") == str(rank)
            and environment.get("SLURM_NTASKS") == str(world),
        )

    def __str__(self) -> str:
        return (
            f"rank {self.rank} of {self.world} according to WORLD_SIZE={self.world}, "
            f"RANK={self.rank}, MASTER_ADDR={self.address} and MASTER_PORT={self.port}"
        )


def advice(environment: Mapping[str, str]) -> str:
    """Return what to do if the variables may be left over from another program."""
    names = " ".join(name for name in NAMES if name in environment)
    return f"to train in one process, 'unset {names}'; for several, start them with torchrun"


def _number(environment: Mapping[str, str], name: str, default: str, least: int, most: int) -> int:
    text = environment.get(name) or default
    if not text:
        raise ConfigError(_contradiction(environment, f"{name} is missing"))
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        fault = f"{name} is {text!r}, not a number from {least} to {most}"
        raise ConfigError(_contradiction(environment, fault))
    return int(text)


def _contradiction(environment: Mapping[str, str], fault: str) -> str:
    values = ", ".join(f"{name}={environment[name]}" for name in NAMES if name in environment)
    return f"{fault}, but the environment has {values}; {advice(environment)}"
