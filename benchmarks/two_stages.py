"""Trainings of our recipe at several numbers of labels, for `opponents.py --ours`.

    python benchmarks/two_stages.py --store STORE --work DIR [--labels 600 1800 6000 20000] \
        [--seeds 1 2 3] [--epochs 8]

For each number of labels and seed: `pixels-and-fluxes` (DIR/first-LABELS-seedS), then `bundled`
(DIR/student-LABELS-seedS), whose teacher it is and which sees all images of the store. Both take
`labels: all` of a share of the labels, so nothing but these labels decides anything: not when to
stop, not the expert's share, no calibration. A training that was stopped goes on.

--epochs are the student's, of all images of the store.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from photozhpc.config import config_path, from_mapping, load_yaml
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore
from photozhpc.store.loader import read_labels


def trained(name: str, out: Path, changes: dict[str, Any]) -> Path:
    """Return the model file of a recipe with changes, made if it is not there."""
    model, seconds = out / "model.safetensors", out / "cpu_seconds.json"
    if not model.exists():
        path = config_path(name, "recipe")
        config = from_mapping(
            TrainConfig, load_yaml(path) | {"out": str(out), **changes}, str(path)
        )
        before = json.loads(seconds.read_text()) if seconds.exists() else 0.0
        started = time.process_time()
        try:
            train(config)
        finally:
            if out.exists():
                seconds.write_text(json.dumps(round(before + time.process_time() - started, 1)))
        print(f"{time.strftime('%H:%M')} {model} {seconds.read_text()} CPU s", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[600, 1800, 6000, 20000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = CutoutStore.open(options.store)
    for seed in options.seeds:
        n_labels = len(read_labels(store, "all", seed))
        for labels in options.labels:
            shared = {
                "store": options.store,
                "seed": seed,
                "labels": "all",
                "label_fraction": min(1.0, labels / n_labels),
            }
            first = trained(
                "pixels-and-fluxes",
                options.work / f"first-{labels}-seed{seed}",
                shared,
            )
            trained(
                "bundled",
                options.work / f"student-{labels}-seed{seed}",
                shared | {"teacher": str(first), "epochs": options.epochs},
            )


if __name__ == "__main__":
    main()
