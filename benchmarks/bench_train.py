"""A training step of the paper's PITA beside the reference's own LightningModule, same batch.

python benchmarks/bench_train.py [--save] [--device cpu] [--batch 64] [--rounds 5]

ConvNeXt-Tiny, images of 108 px seen as 64, a queue of 60 000 keys, a fifth of the batch labelled.
Ours is `Trainer.train_step` with the paper's recipe: random views of every image, bfloat16 if the
device supports it, AdamW. The reference is its `training_step`, its transforms and Adam, in the
precision of its scripts (16-bit mixed on a GPU, float32 on a CPU). Each side is a separate process;
one waits while the other works.
"""

import multiprocessing
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from reference import pita_module
from side_by_side import about, alternate, finish, parser, profile, ratio

from photozhpc.bench.synthetic_store import make_store
from photozhpc.config import from_mapping, load_yaml
from photozhpc.model.train_config import TrainConfig
from photozhpc.model.trainer import Trainer
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

RECIPE = Path(__file__).parent.parent / "photozhpc/configs/train/paper/pita.yaml"


def our_side(store: CutoutStore, device: str, batch: int, compiled: bool = False):
    config = from_mapping(TrainConfig, load_yaml(RECIPE), "paper")
    config = replace(config, store=str(store.path), batch_size=batch, compile=compiled)
    trainer = Trainer(replace(config, device=device), store)
    lanes = next(iter(trainer.batches()))

    def run() -> torch.Tensor:
        losses = trainer.train_step(lanes)
        if device == "cuda":
            torch.cuda.synchronize()
        return losses

    return run


def their_side(folder: Path, device: str, batch: int):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/group", rank=0, world_size=1
    )
    queue_len = from_mapping(TrainConfig, load_yaml(RECIPE), "paper").loss.queue_len
    module = pita_module(queue_len, np.ones(4, np.float32)).to(device).train()
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3, weight_decay=1e-5)
    scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
    image = torch.randn(batch, 4, 108, 108, device=device)
    z = torch.rand(batch, device=device)
    labelled = (torch.arange(batch, device=device) % 5 == 0).float()
    data = (image, z, labelled, torch.randn(batch, 4, device=device))

    def run() -> torch.Tensor:
        optimiser.zero_grad()
        with torch.autocast(device, dtype=torch.float16, enabled=device == "cuda"):
            loss = module.training_step(data, 0)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        if device == "cuda":
            torch.cuda.synchronize()
        return loss.detach()

    return run


def serve(side: str, folder: Path, device: str, batch: int, compiled: bool, pipe) -> None:
    """Make a step, or a profile of one, on each request.

    Answers with the loss and the GPU's memory in GB, or with shares of the time by operator.
    """
    if side == "ours":
        run = our_side(CutoutStore.open(folder / "store"), device, batch, compiled)
    else:
        run = their_side(folder, device, batch)
    while wanted := pipe.recv():
        if wanted == "profile":
            pipe.send(profile(run))
            continue
        loss = float(run().flatten()[0])
        pipe.send((loss, torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0))


class Side:
    """A process that makes steps on request."""

    def __init__(self, *what: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(*what, theirs), daemon=True)
        self.process.start()
        theirs.close()  # so that its death is noticed
        self.losses: list[float] = []
        self.gpu_gb = 0.0

    def step(self) -> None:
        self.pipe.send("step")
        loss, self.gpu_gb = self.pipe.recv()
        self.losses.append(loss)

    def profile(self) -> dict[str, float]:
        self.pipe.send("profile")
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send("")
        self.process.join()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--compile", action="store_true")
    options = options.parse_args()
    results = about(
        "train",
        "torch timm torchvision pita-z",
        device=options.device,
        batch=options.batch,
        queue_len=from_mapping(TrainConfig, load_yaml(RECIPE), "paper").loss.queue_len,
        threads=torch.get_num_threads(),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_store(folder / "store", load_survey("candels"), 512, 108)
        shared = (folder, options.device, options.batch, options.compile)
        sides = {side: Side(side, *shared) for side in ("ours", "pita-z")}
        steps = {name: side.step for name, side in sides.items()}
        alternate(steps, 4)  # the first steps are slow
        seconds = alternate(steps, options.rounds)
        results["profile"] = {name: side.profile() for name, side in sides.items()}
        for side in sides.values():
            side.stop()
    assert all(np.isfinite(side.losses).all() for side in sides.values())
    results["losses"] = {name: [side.losses[0], side.losses[-1]] for name, side in sides.items()}
    results["images_per_s"] = {k: options.batch / median(t) for k, t in seconds.items()}
    results["times_pita_z"] = ratio(seconds, "pita-z", "ours")
    if options.device == "cuda":
        results["gpu_gb"] = {name: side.gpu_gb for name, side in sides.items()}
    print(f"{results['images_per_s']} images/s, {results['times_pita_z']:.2f} times pita-z")
    finish(results, options.save, f"train_{options.device}")


if __name__ == "__main__":
    main()
