"""Trainings of a recipe at several numbers of labels, for `opponents.py --ours`.

    python benchmarks/by_labels.py --store STORE --work DIR [--labels 600 1800 6000 20000] \
        [--seeds 1 2 3] [--recipe pixels-and-fluxes]

Each writes DIR/LABELS-seedS. They take `labels: all` of a share of the labels, so nothing but these
labels decides anything: not when to stop, not the expert's share, no calibration. A training that
was stopped goes on; its CPU seconds are in DIR/LABELS-seedS/cpu_seconds.json.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from photozhpc.config import config_path, from_mapping, load_yaml
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore
from photozhpc.store.loader import read_labels


def run(config: TrainConfig) -> None:
    """Make one training, unless its model file is there."""
    out = Path(config.out)
    model, seconds = out / "model.safetensors", out / "cpu_seconds.json"
    if model.exists():
        return
    before = json.loads(seconds.read_text()) if seconds.exists() else 0.0
    started = time.process_time()
    try:
        train(config)
    finally:
        if out.exists():
            seconds.write_text(json.dumps(round(before + time.process_time() - started, 1)))
    print(f"{time.strftime('%H:%M')} {model} {seconds.read_text()} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[600, 1800, 6000, 20000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--recipe", default="pixels-and-fluxes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = CutoutStore.open(options.store)
    path = config_path(options.recipe, "recipe")
    for seed in options.seeds:
        n_labels = len(read_labels(store, "all", seed))
        for labels in options.labels:
            changes = {
                "out": str(options.work / f"{labels}-seed{seed}"),
                "store": options.store,
                "seed": seed,
                "labels": "all",
                "label_fraction": min(1.0, labels / n_labels),
            }
            run(from_mapping(TrainConfig, load_yaml(path) | changes, str(path)))


if __name__ == "__main__":
    main()
