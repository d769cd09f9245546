"""How the engine's arithmetic changes the redshifts of the bundled model, on an unseen sky.

    photozhpc simulate --survey roman-sim --out sky --tiles 20 --seed 7808
    photozhpc extract --survey roman-sim --mosaics sky --store store
    python benchmarks/bench_precision.py store 'sky/*_truth.parquet' [--save]

float32, bfloat16 eager and bfloat16 compiled: bias, NMAD and outlier fraction of all galaxies, and
the shift of single redshifts against float32, in units of the NMAD.
"""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from science import galaxies, predict_images
from side_by_side import about, finish, parser

from photozhpc.metrics import point_metrics
from photozhpc.model import bundled_checkpoint, load_checkpoint
from photozhpc.model.engine import Engine
from photozhpc.store import CutoutStore


def main() -> None:
    options = parser(__doc__, rounds=None)
    options.add_argument("store", type=Path)
    options.add_argument("truth", help="glob of Parquet files with source_id, z_true, is_star")
    options = options.parse_args()
    store = CutoutStore.open(options.store)
    checkpoint = load_checkpoint(bundled_checkpoint("roman-sim"))
    truth = galaxies([options.truth])
    engines = {
        "float32": Engine(checkpoint, precision=torch.float32),
        "bfloat16": Engine(checkpoint, precision=torch.bfloat16),
        "bfloat16, compiled": Engine(checkpoint, precision=torch.bfloat16, compiled=True),
    }
    assert engines["bfloat16, compiled"].is_compiled
    measured = {}
    for name, engine in engines.items():
        ids, z_phot = predict_images([store], engine)
        z_true = truth["z_true"].reindex(ids).to_numpy()
        galaxy = np.isfinite(z_true) & np.isfinite(z_phot)
        measured[name] = (z_phot[galaxy], point_metrics(z_true[galaxy], z_phot[galaxy]))
    exact, exact_metrics = measured["float32"]
    results = about("precision", "torch", sources=len(exact))
    for name, (z_phot, metrics) in measured.items():
        shift = (z_phot - exact) / (1 + exact)
        results[name] = {
            **asdict(metrics),
            "shift_99_in_nmad": float(np.quantile(np.abs(shift), 0.99)) / exact_metrics.nmad,
            "mean_shift": float(shift.mean()),
            "nmad_change": metrics.nmad / exact_metrics.nmad - 1,
            "outlier_fraction_change": metrics.outlier_fraction / exact_metrics.outlier_fraction
            - 1,
        }
        print(name, results[name], flush=True)
    finish(results, options.save)


if __name__ == "__main__":
    main()
