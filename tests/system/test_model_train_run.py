"""Training in one process: what cannot work, folders of others, and what was left half done."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from builders.training import TINY
from photozhpc.errors import CheckpointError, RunError, StoreError
from photozhpc.files.lock import locked
from photozhpc.model import train as train_module
from photozhpc.model.ranks import Ranks
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.model.trainer import Trainer
from photozhpc.store import CutoutStore


@pytest.fixture(scope="module")
def one_epoch(small_store: CutoutStore) -> TrainConfig:
    config = replace(TINY, store=str(small_store.path), precision="float32", device="cpu")
    return replace(config, epochs=1, batch_size=64)


def test_an_unlabelled_survey_can_be_trained_without_labels(
    one_epoch: TrainConfig, unlabelled_store: CutoutStore, tmp_path: Path
) -> None:
    free = replace(
        one_epoch,
        out=str(tmp_path / "run"),
        store=str(unlabelled_store.path),
        method="self-supervised",
    )
    assert train(free).exists()
    with pytest.raises(StoreError, match="label more sources"):
        train(replace(free, out=str(tmp_path / "pita"), method="pita"))


def test_cutouts_without_any_pixel_do_no_harm(
    one_epoch: TrainConfig, small_store: CutoutStore
) -> None:
    trainer = Trainer(one_epoch, small_store)
    lanes = next(trainer.batches())
    lanes[0].cutout_NCSS[:] = np.nan
    lanes[1].flux_NCR[:] = np.nan
    losses = trainer.train_step(lanes)
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_loss_that_is_not_finite_stops_the_run(
    one_epoch: TrainConfig, small_store: CutoutStore, tmp_path: Path
) -> None:
    trainer = Trainer(one_epoch, small_store, Ranks())
    for lanes in trainer.batches():
        lanes[0].cutout_NCSS[:] = np.inf
        trainer.loss_sums += trainer.train_step(lanes)
        break
    with pytest.raises(RunError, match="no longer finite"):
        trainer.save_state(tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


def test_a_second_training_in_a_folder_is_told_who_is_there(
    one_epoch: TrainConfig, tmp_path: Path
) -> None:
    mine = replace(one_epoch, out=str(tmp_path / "run"))
    with (
        locked_folder(tmp_path / "run"),
        pytest.raises(CheckpointError, match=r"writing there now \(photozhpc train, process \d+ "),
    ):
        train(mine)
    train(mine)
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    other = replace(mine, method="photometry-mlp")
    with pytest.raises(CheckpointError, match="another method"):
        train(other)
    train(replace(other, out=str(tmp_path / "mlp")))
    with pytest.raises(CheckpointError, match=r"no state\.pt"):
        train(replace(mine, out=str(tmp_path / "mlp")))
    with pytest.raises(CheckpointError, match="another configuration"):
        train(replace(other, out=str(tmp_path / "mlp"), seed=5))
    train(replace(other, out=str(tmp_path / "mlp")))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob("*/.lock"))


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    folder.mkdir()
    with locked(folder / ".lock", "photozhpc train"):
        yield


def test_a_run_whose_folder_was_taken_over_replaces_nothing_more(
    one_epoch: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system without locks: another one wrote its word into the file."""
    out = tmp_path / "run"
    save_state = Trainer.save_state

    def taken_over(self: Trainer, *arguments: object) -> None:
        (out / ".lock").write_text('{"token": "another", "pid": 1}')
        (out / "state.pt").write_bytes(b"the other's")
        save_state(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "save_state", taken_over)
    with pytest.raises(RunError, match="another run has taken over"):
        train(replace(one_epoch, out=str(out)))
    assert (out / "state.pt").read_bytes() == b"the other's"
    assert (out / ".lock").exists()
    assert not list(out.glob("*.partial"))


def test_what_dead_processes_left_half_written_is_cleared(
    one_epoch: TrainConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    dead = (f".state.pt.{socket.gethostname()}.{2**22 + 1}.partial", ".best.x.elsewhere.7.partial")
    for name in dead:
        (out / name).write_bytes(b"half")
    (out / ".lock").write_text('{"pid": 1, "host": "elsewhere", "token": "x"}')
    train(replace(one_epoch, out=str(out)))
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("stage", ["heads", "densities"])
def test_a_run_stopped_after_its_last_epoch_ends_with_the_same_bytes(
    one_epoch: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    model = replace(TINY.model, density_bins=16, density_z_max=3.5)
    whole = replace(one_epoch, out="run", refit_steps=50, density_steps=50, model=model)
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    train(whole)
    monkeypatch.chdir(tmp_path / "broken")
    what = "refit_redshift_heads" if stage == "heads" else "fit_uncertainty"

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_module, what, stopped)
        with pytest.raises(KeyboardInterrupt):
            train(whole)
    assert not Path("run/model.safetensors").exists()
    train(whole)
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "run").glob("*.*")}
        for name in ("whole", "broken")
    ]
    assert set(files[0]) == {
        "log.jsonl",
        "state.pt",
        *(f"{x}.safetensors" for x in ("best", "last", "model")),
    }
    assert files[0] == files[1]
