"""Would more epochs help? Finished runs of different lengths on an unseen sky.

    python benchmarks/learning_curve.py --runs RUN ... --test STORE \
        --truth 'SKY/*_truth.parquet' [--process-hours N] --save

Each run has its whole schedule of learning rates; an epoch in the middle of a longer one has not.
Of each, last.safetensors is used: the moving average of the weights, without the second expert,
which is fitted at the end. The metrics are of all galaxies.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rivals import Grid
from science import galaxies
from side_by_side import about, finish

from photozhpc.metrics import point_metrics
from photozhpc.model import load_checkpoint
from photozhpc.model.encode import encode
from photozhpc.model.photometry import FluxInput
from photozhpc.store import CutoutStore

GRID = Grid(256, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", required=True, nargs="+", type=Path)
    parser.add_argument("--test", required=True)
    parser.add_argument("--truth", nargs="+", required=True)
    parser.add_argument("--process-hours", type=float, help="of the longest, by the clock")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = CutoutStore.open(options.test)
    keys = store.shards()
    id_N = np.concatenate([store.read_sources(key).source_id_N for key in keys])
    z_N = galaxies(options.truth)["z_true"].reindex(id_N).to_numpy()
    epochs = {}
    for path in options.runs:
        checkpoint = load_checkpoint(path / "last.safetensors")
        model = checkpoint.pita.eval()
        length = checkpoint.training["config"]["epochs"]
        pick = FluxInput(model.config.fluxes, store.survey)
        parts = []
        for key in keys:
            fluxes = pick(store.read_measurements(key))
            ebv_N = store.read_sources(key).ebv_N
            encoded = encode(model, store.read_cutouts(key), ebv_N, fluxes)
            with torch.no_grad():
                parts.append(model.density(torch.from_numpy(encoded.input_NF)).numpy())
        density_NK = np.concatenate(parts)
        kept_N = np.isfinite(z_N) & np.isfinite(density_NK[:, 0])
        metrics = point_metrics(z_N[kept_N], GRID.least_risk(density_NK[kept_N]))
        epochs[length] = {
            "nmad": metrics.nmad,
            "outliers_percent": 100 * metrics.outlier_fraction,
            "crps": float(GRID.crps(density_NK[kept_N], z_N[kept_N]).mean()),
        }
        print(length, epochs[length], flush=True)
    result = about("learning_curve", "torch", galaxies=int(kept_N.sum()))
    result |= {"process_hours": options.process_hours, "epochs": epochs}
    finish(result, options.save)


if __name__ == "__main__":
    main()
