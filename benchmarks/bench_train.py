"""A training step of the paper's PITA beside the reference's own LightningModule, same batch.

python benchmarks/bench_train.py [--save] [--device cpu] [--batch 64] [--rounds 5]

ConvNeXt-Tiny, images of 108 px seen as 64, a queue of 60 000 keys, a fifth of the batch labelled.
Ours is `Trainer.train_step` with the paper's recipe: random views of every image, bfloat16 where
the device has it, AdamW. The reference's is its `training_step`, its transforms and Adam, in the
precision its scripts use (16-bit mixed on a GPU, float32 on a CPU).
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from reference import pita_module
from side_by_side import about, alternate, finish, parser, ratio

from photozhpc.config import from_mapping, load_yaml
from photozhpc.model.train import Trainer
from photozhpc.model.train_config import TrainConfig
from photozhpc.report.synthetic_store import make_store
from photozhpc.store import CutoutStore
from photozhpc.survey import load_survey

RECIPE = Path(__file__).parent.parent / "photozhpc/configs/train/paper/pita.yaml"


def our_side(store: CutoutStore, device: str, batch: int, compiled: bool):
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


def their_side(batch: int, queue_len: int, device: str):
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


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--compile", action="store_true")
    options = options.parse_args()
    queue_len = from_mapping(TrainConfig, load_yaml(RECIPE), "paper").loss.queue_len
    results = about(
        "train",
        "torch timm torchvision pita-z",
        device=options.device,
        batch=options.batch,
        queue_len=queue_len,
        threads=torch.get_num_threads(),
    )
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder) / "store", load_survey("candels"), 512, 108)
        ours = our_side(store, options.device, options.batch, options.compile)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/group", rank=0, world_size=1
        )
        theirs = their_side(options.batch, queue_len, options.device)
        first = [float(ours()[0]), float(theirs())]
        start = time.perf_counter()
        for _ in range(3):
            ours(), theirs()
        last = [float(ours()[0]), float(theirs())]
        print(f"losses {first} -> {last}, {time.perf_counter() - start:.0f} s")
        # Both train: on the same batch over and over, the loss falls.
        assert all(np.isfinite([*first, *last])), (first, last)
        seconds = alternate({"ours": ours, "pita-z": theirs}, options.rounds)
        torch.distributed.destroy_process_group()
    results["images_per_s"] = {k: options.batch / median(t) for k, t in seconds.items()}
    results["times_pita_z"] = ratio(seconds, "pita-z", "ours")
    if options.device == "cuda":
        results["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9
    print(f"{results['images_per_s']} images/s, {results['times_pita_z']:.2f} times pita-z")
    finish(results, options.save, f"train_{options.device}")


if __name__ == "__main__":
    main()
