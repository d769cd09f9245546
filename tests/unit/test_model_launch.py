"""The variables of torchrun and Slurm: believed if they agree, named if they do not."""

import socket

import pytest

from photozhpc.errors import ConfigError, RunError
from photozhpc.model import ranks as ranks_module
from photozhpc.model.launch import NAMES, Launch
from photozhpc.model.ranks import joined_ranks

FOUR = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    "left_over",
    [
        {},
        {"WORLD_SIZE": ""},
        {"RANK": "3", "LOCAL_RANK": "3", "MASTER_ADDR": "nid001", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "3"},
        SLURM | {"SLURM_JOB_ID": "1", "SLURM_LOCALID": "3", "SLURM_NNODES": "2"},
        {
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_RANK": "3",
            "PMI_SIZE": "4",
            "PMI_RANK": "3",
        },
    ],
)
def test_one_process_is_one_whatever_else_is_set(left_over) -> None:
    assert Launch.of(left_over) == Launch()


def test_what_torchrun_and_slurm_set() -> None:
    launch = Launch.of(FOUR | SLURM)
    assert (launch.rank, launch.world, launch.address, launch.port) == (3, 4, "127.0.0.1", 29500)
    assert launch.by_slurm
    assert not launch.by_torchrun
    assert not Launch.of(FOUR | SLURM | {"SLURM_PROCID": "0"}).by_slurm
    torchrun = {"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert Launch.of(FOUR | torchrun).met_by_torchrun
    assert Launch.of({"WORLD_SIZE": "1", "RANK": "0", "TORCHELASTIC_RUN_ID": "a"}).by_torchrun


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": ""}, "RANK is missing"),
        ({"RANK": "4"}, "RANK is '4', not a number from 0 to 3"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "1"}, "RANK is '3', not a number from 0 to 0"),
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE is 'four'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK is '4'"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is missing"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is missing"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
    ],
)
def test_a_contradiction_names_the_variables_and_what_to_do(wrong, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"{said}.*'unset WORLD_SIZE RANK.*torchrun"):
        Launch.of(FOUR | wrong)


@pytest.fixture
def left_over(monkeypatch):
    for name in (*NAMES, *SLURM, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ranks_module, "_SAY_AFTER_SECONDS", 0.2)
    monkeypatch.setattr(ranks_module, "_ALONE_SECONDS", 1.0)
    monkeypatch.setattr(ranks_module, "_CONNECT_SECONDS", 1.0)

    def set_variables(rank: int, port: int, address: str = "127.0.0.1") -> None:
        values = ("4", str(rank), "0", address, str(port))
        for name, value in zip(NAMES, values, strict=True):
            monkeypatch.setenv(name, value)

    return set_variables


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("rank", "address", "whom"),
    [
        (0, "127.0.0.1", "rank 1, 2, 3 of 4"),
        (0, "nid001.invalid", "rank 1, 2, 3 of 4"),
        (3, "127.0.0.1", "rank 0"),
        (3, "nid001.invalid", "rank 0"),
    ],
)
def test_who_waits_says_for_whom_and_does_not_wait_for_ever(
    left_over, caplog, rank: int, address: str, whom: str
) -> None:
    left_over(rank, free_port(), address)
    said = f"{whom}.*did not join within 1 s.*unset WORLD_SIZE"
    with pytest.raises(RunError, match=said), joined_ranks("cpu"):
        pass
    (line,) = caplog.messages
    assert line.startswith(f"train: waiting for {whom}")
    assert f"RANK={rank}" in line


def test_a_port_that_is_taken_is_named(left_over) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        left_over(0, port)
        with pytest.raises(RunError, match=f"port {port}.*another program"), joined_ranks("cpu"):
            pass


def test_a_rank_that_is_there_twice_is_refused(left_over) -> None:
    port = free_port()
    left_over(1, port)
    store = ranks_module.dist.TCPStore("127.0.0.1", port, 4, True, wait_for_workers=False)
    ranks_module.dist.PrefixStore("photozhpc/0", store).add("joined/1", 1)
    with pytest.raises(RunError, match="another process is rank 1"), joined_ranks("cpu"):
        pass


def test_an_error_of_one_rank_is_raised_on_it() -> None:
    with pytest.raises(RunError, match="full"), ranks_module.Ranks().together():
        raise RunError("full")
