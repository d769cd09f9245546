"""Training in several processes, killed and stopped: the same run as one that was left alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from builders.disks import disk_of
from builders.draws import drawn
from builders.models import TINY_RESNET
from builders.training import TINY, free_port, write_config
from photozhpc.config import to_mapping
from photozhpc.errors import RunError
from photozhpc.files.lock import is_held
from photozhpc.model import PITAConfig, load_checkpoint
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore

# One thread: a second one must not change the order of a sum.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
STEPS = """
import json, sys, torch
from photozhpc.config import from_mapping
from photozhpc.model.ranks import joined_ranks
from photozhpc.model.trainer import Trainer
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore

config = from_mapping(TrainConfig, json.loads(sys.argv[1]), "test")
with joined_ranks("cpu") as ranks:
    trainer = Trainer(config, CutoutStore.open(config.store), ranks)
    losses, labels = [], []
    while len(losses) < 20:
        for lanes in trainer.batches():
            labels.append([int((lane.z_spec_N == lane.z_spec_N).sum()) for lane in lanes])
            losses.append(trainer.train_step(lanes).tolist())
    trainer.share_statistics()
    torch.save(
        {
            "losses": losses[:20],
            "labels": labels[:20],
            "queue": trainer.keys.queue_KP,
            "pointer": trainer.keys.pointer,
            "weights": trainer.model.state_dict(),
        },
        f"{sys.argv[2]}/{ranks.world}-{ranks.rank}.pt",
    )
"""


def start(command: list[str], world: int = 1, heed_ctrl_c: bool = False) -> list[subprocess.Popen]:
    """Start a command as so many ranks.

    Args:
        heed_ctrl_c: as at a terminal; a shell's background jobs, and tests in one, ignore it.
    """
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env={**ENVIRONMENT, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_heed_ctrl_c if heed_ctrl_c else None,
        )
        for rank in range(world)
    ]


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(processes: list[subprocess.Popen], timeout: float = 120) -> list[tuple[int, str]]:
    """Wait for all; return their exit codes and what they said on stderr."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.fixture(scope="module")
def config(small_store: CutoutStore) -> TrainConfig:
    return replace(TINY, store=str(small_store.path), precision="float32", epochs=3)


def weights(out: str) -> dict[str, torch.Tensor]:
    state = torch.load(Path(out) / "state.pt", weights_only=True)
    return {**state["model"], **{f"keys.{name}": value for name, value in state["keys"].items()}}


def assert_same_run(one: str, other: str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    logs = [(Path(out) / "log.jsonl").read_text().splitlines() for out in (one, other)]
    assert len(logs[0]) == len(logs[1]) == 3
    for mine, theirs in zip(*(map(json.loads, lines) for lines in logs), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


@pytest.fixture(scope="module")
def undisturbed(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("undisturbed")
    whole = replace(config, out=str(folder / "run"))
    assert [code for code, _ in end(start(write_config(whole, folder)))] == [0]
    return whole.out


@pytest.mark.parametrize(
    "model", drawn([TINY.model, TINY_RESNET], 1), ids=lambda model: model.encoder
)
def test_two_gloo_ranks_have_the_loss_curve_of_one_process(
    config: TrainConfig, model: PITAConfig, tmp_path: Path
) -> None:
    # 40% of the labels in 8 lanes of 4: some rank has a step without any.
    settings = json.dumps(to_mapping(replace(config, label_fraction=0.4, model=model)))
    for world in (1, 2):
        assert [c for c, _ in end(start(["-c", STEPS, settings, str(tmp_path)], world))] == (
            [0] * world
        )
    one, first, second = (
        torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1-0", "2-0", "2-1")
    )
    per_rank = [np.array(rank["labels"]).sum(axis=1) for rank in (first, second)]
    assert min(map(min, per_rank)) == 0
    assert np.array(one["labels"]).sum(axis=1).tolist() == (per_rank[0] + per_rank[1]).tolist()
    mean = (np.array(first["losses"]) + np.array(second["losses"])) / 2
    np.testing.assert_allclose(mean[:2], np.array(one["losses"])[:2], rtol=1e-5, atol=1e-5)
    # Normalisation by lanes of four tiny images makes the last bits of a gradient grow fast.
    growth = 1000 if model.encoder == "resnet" else 1
    near = 1e-5 * growth
    np.testing.assert_allclose(mean, np.array(one["losses"]), rtol=near, atol=near)
    assert torch.equal(first["queue"], second["queue"])
    assert torch.equal(first["pointer"], one["pointer"])
    torch.testing.assert_close(first["queue"], one["queue"], rtol=0, atol=1e-3 + 3 * near)
    for name, tensor in first["weights"].items():
        assert torch.equal(tensor.nan_to_num(), second["weights"][name].nan_to_num()), name
        if "running" in name:
            torch.testing.assert_close(tensor, one["weights"][name], rtol=0.1, atol=1e-2)


_CODES = {signal.SIGKILL: -9, signal.SIGUSR1: 75, signal.SIGTERM: 75, signal.SIGINT: 130}


@pytest.mark.parametrize("number", drawn(list(_CODES), 2))
def test_a_run_stopped_anywhere_and_resumed_is_bit_identical(
    config: TrainConfig, undisturbed: str, tmp_path: Path, number: signal.Signals
) -> None:
    # The state is saved after every step, so that it lies in the middle of an epoch.
    broken = replace(config, out=str(tmp_path / "run"), checkpoint_minutes=0.0)
    command = write_config(broken, tmp_path)
    processes = start(command, heed_ctrl_c=True)
    state = Path(broken.out) / "state.pt"
    while not state.exists() and processes[0].poll() is None:
        time.sleep(0.01)
    time.sleep(random.random() * 0.6)
    processes[0].send_signal(number)
    ((code, said),) = end(processes)
    if code != 0:  # it may have been over before the signal came
        assert code == _CODES[number], said
        if number != signal.SIGKILL:
            assert "run the same command again" in said
            assert "Traceback" not in said
        reached = torch.load(state, weights_only=True)["step"]
        assert reached > 0
    assert [code for code, _ in end(start(command))] == [0]
    assert_same_run(undisturbed, broken.out)


@pytest.mark.drawn
def test_a_signal_to_one_rank_stops_all_and_one_process_can_go_on(
    config: TrainConfig, undisturbed: str, tmp_path: Path
) -> None:
    broken = replace(config, out=str(tmp_path / "run"), checkpoint_minutes=0.0)
    command = write_config(broken, tmp_path)
    processes = start(command, world=2)
    state = Path(broken.out) / "state.pt"
    while not state.exists() and processes[0].poll() is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGUSR1)
    assert [code for code, _ in end(processes)] == [75, 75]
    assert [code for code, _ in end(start(command))] == [0]
    one, other = weights(undisturbed), weights(broken.out)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("method", "batch_size"),
    [("supervised", 32), pytest.param("pita", 100_000, marks=pytest.mark.slow)],
)
def test_what_cannot_be_trained_is_one_line_on_every_rank(
    config: TrainConfig,
    unlabelled_store: CutoutStore,
    tmp_path: Path,
    method: str,
    batch_size: int,
) -> None:
    wrong = replace(
        config,
        out=str(tmp_path / "run"),
        store=str(unlabelled_store.path),
        method=method,  # type: ignore[arg-type]
        batch_size=batch_size,
    )
    for code, said in end(start(write_config(wrong, tmp_path), world=2)):
        assert code == 1
        assert "do not fill one batch" in said
        assert "Traceback" not in said


@pytest.fixture(scope="module")
def one_epoch(config: TrainConfig) -> TrainConfig:
    return replace(config, epochs=1, batch_size=64, device="cpu")


@pytest.mark.parametrize("number", drawn([signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], 1))
def test_a_signal_while_heads_are_refitted_stops_within_seconds(
    one_epoch: TrainConfig, tmp_path: Path, number: signal.Signals
) -> None:
    """The refit would take hours; with few steps, what is taken up again ends as undisturbed."""
    slow = replace(one_epoch, out=str(tmp_path / "run"), refit_steps=10**7)
    (process,) = start(write_config(slow, tmp_path), heed_ctrl_c=True)
    wait_for_epochs(process, tmp_path / "run", 1)
    time.sleep(0.5)
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # the second one does no harm
    sent = time.monotonic()
    ((code, said),) = end([process])
    assert code == (130 if number == signal.SIGINT else 75), said
    assert time.monotonic() - sent < 20
    assert "Traceback" not in said
    assert "run the same command again" in said
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / ".lock").exists()


def wait_for_epochs(process: subprocess.Popen, out: Path, n: int) -> None:
    """Until the state of so many epochs is saved."""
    while process.poll() is None:
        log = out / "log.jsonl"
        if log.exists() and log.read_text().count("\n") >= n and (out / "state.pt").exists():
            return
        time.sleep(0.02)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with disk_of(tmp_path / "disk", "150m") as folder:
        yield folder


@pytest.mark.parametrize("free_kib", [0, 9_000, 85_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_room(
    one_epoch: TrainConfig, small_disk: Path, free_kib: int
) -> None:
    mine = replace(one_epoch, out=str(small_disk / "run"))
    ballast = small_disk / "ballast"
    with open(ballast, "wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, (150 * 1024 - free_kib) * 1024)
    with pytest.raises(RunError, match=r"disk is full .* run the same command again"):
        train(mine)
    assert not list(small_disk.glob("run/.*"))
    ballast.unlink()
    train(mine)
    assert load_checkpoint(small_disk / "run" / "model.safetensors").sha256


@pytest.mark.drawn
@pytest.mark.timeout(240)  # three processes that import torch
def test_killing_torchrun_ends_its_ranks(config: TrainConfig, tmp_path: Path) -> None:
    mine = replace(config, out=str(tmp_path / "run"), epochs=1000)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launcher = subprocess.Popen(
        [sys.executable, *torchrun, *write_config(mine, tmp_path)],
        env=ENVIRONMENT,
        start_new_session=True,
    )
    wait_for_epochs(launcher, tmp_path / "run", 1)
    ranks = psutil.Process(launcher.pid).children(recursive=True)
    assert len(ranks) == 2
    assert is_held(tmp_path / "run" / ".lock")
    launcher.kill()
    launcher.wait()
    _, alive = psutil.wait_procs(ranks, timeout=20)
    assert alive == []
    assert not is_held(tmp_path / "run" / ".lock")
