"""The bundled model against the photometry-MLP, on the same labels and the same unseen sky.

    python benchmarks/bundled_model.py --train-store TRAIN --test-store TEST \
        --test-truth 'SKY/*_truth.parquet' --checkpoint best.safetensors --save RESULT.json

All see only the labels of the training split, and choose their best epoch on the validation split.
The MLP is fitted to three kinds of features: the paper's four in each of two apertures, and those
of all apertures. Each is fitted with the paper's Huber loss (the mean of as many networks as PITA
has heads) and with PITA's density heads (the median of as many; input dropout by validation).
"""

import argparse
import dataclasses
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from science import galaxies, photometry, predict_images

from photozhpc import __version__
from photozhpc.metrics import point_metrics
from photozhpc.model import load_checkpoint
from photozhpc.model.density import Uncertainty
from photozhpc.model.density_fit import fit_heads
from photozhpc.model.engine import Engine
from photozhpc.model.photometry_mlp import MLPFitConfig, fit_mlp
from photozhpc.model.pita_config import PITAConfig
from photozhpc.store import CutoutStore
from photozhpc.store.loader import label_split, typical_noise


def density_median(config: PITAConfig, sample: tuple, x_test: np.ndarray, steps: int) -> np.ndarray:
    """Median of PITA's density heads, fitted to photometry; NaN where a feature is not finite."""
    best_loss, best = np.inf, None
    for dropout in (0.0, 0.1):
        density = Uncertainty(
            x_test.shape[1],
            1,
            config.redshift_mlp,
            config.redshift_heads,
            config.density_bins,
            config.density_z_max,
        )
        fit_heads(density, *sample, steps, seed=0, input_dropout=dropout)
        with torch.no_grad():
            check, z = (torch.from_numpy(column) for column in sample[2:])
            loss = float((torch.log1p(density.median(check)) - torch.log1p(z)).abs().mean())
            if loss < best_loss:
                best_loss = loss
                best = density.median(torch.from_numpy(np.nan_to_num(x_test))).numpy().copy()
    assert best is not None
    best[~np.isfinite(x_test).all(axis=1)] = np.nan
    return best


def table(z_true: np.ndarray, mag: np.ndarray, estimates: dict[str, np.ndarray]) -> dict:
    """Point metrics of every method: overall, against magnitude and against redshift."""
    cuts = {"all": np.ones(len(z_true), dtype=bool)}
    for low, high in [(0, 21), (21, 22), (22, 23), (23, 24), (24, 25)]:
        cuts[f"F158 {low}-{high}" if low else f"F158 < {high}"] = (mag >= low) & (mag < high)
    for low, high in [(0, 0.5), (0.5, 1), (1, 1.5), (1.5, 2), (2, 3)]:
        cuts[f"z {low}-{high}"] = (z_true >= low) & (z_true < high)
    return {
        cut: {
            name: dataclasses.asdict(point_metrics(z_true[rows], z_phot[rows]))
            for name, z_phot in estimates.items()
        }
        for cut, rows in cuts.items()
    }


def bootstrap(z_true: np.ndarray, a: np.ndarray, b: np.ndarray, n: int = 500) -> dict:
    """How often, and by how much, method a is better than b in bootstrap samples."""
    rng = np.random.default_rng(0)
    gains = {"nmad": [], "outlier_fraction": []}
    for _ in range(n):
        rows = rng.integers(len(z_true), size=len(z_true))
        for name, gain in gains.items():
            left = getattr(point_metrics(z_true[rows], a[rows]), name)
            right = getattr(point_metrics(z_true[rows], b[rows]), name)
            gain.append(right - left)
    return {
        name: {
            "better_in": float(np.mean(np.array(gain) > 0)),
            "mean": float(np.mean(gain)),
            "std": float(np.std(gain)),
        }
        for name, gain in gains.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-store", required=True)
    parser.add_argument("--test-store", required=True)
    parser.add_argument("--test-truth", required=True, help="glob of truth tables")
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--save")
    parser.add_argument("--mlp-epochs", type=int, default=300)
    parser.add_argument("--density-steps", type=int, default=2000)
    options = parser.parse_args()

    train, test = CutoutStore.open(options.train_store), CutoutStore.open(options.test_store)
    checkpoint = load_checkpoint(options.checkpoint)
    seed = checkpoint.training["config"]["seed"]
    radii = list(train.survey.aperture_radii_arcsec)
    engine = Engine(checkpoint)
    started = time.perf_counter()
    test_ids, z_phot = predict_images([test], engine)
    rate = len(z_phot) / (time.perf_counter() - started)
    truth = galaxies([options.test_truth])
    galaxy = np.isin(test_ids, truth.index)
    truth = truth.loc[test_ids[galaxy]]

    estimates = {}
    kinds = {
        "MLP, 4 features at 0.2 arcsec": [radii.index(0.2)],
        "MLP, 4 features at 0.4 arcsec": [radii.index(0.4)],
        "MLP, all apertures": list(range(len(radii))),
    }
    for name, apertures in kinds.items():
        softening = {a: typical_noise(train, a)[1] for a in apertures}
        seen, unseen = photometry(train, softening), photometry(test, softening)
        x, x_test = seen["x"], unseen["x"]
        has_label = np.isfinite(seen["z_spec"])
        split = np.where(has_label, label_split(seen["source_id"], seed), "none")
        good = np.isfinite(x).all(axis=1)
        fit, check = good & (split == "train"), good & (split == "validation")
        log1p = []
        for mlp_seed in range(checkpoint.config.redshift_heads):
            config = MLPFitConfig(epochs=options.mlp_epochs, seed=mlp_seed)
            mlp = fit_mlp(x[fit], seen["z_spec"][fit], x[check], seen["z_spec"][check], config)
            log1p.append(np.log1p(mlp.predict(x_test)))
        estimates[name] = np.expm1(np.mean(log1p, axis=0))[galaxy]
        sample = (x[fit], seen["z_spec"][fit], x[check], seen["z_spec"][check])
        median = density_median(checkpoint.config, sample, x_test, options.density_steps)
        estimates[f"{name}, density"] = median[galaxy]
    estimates["PITA"] = z_phot[galaxy]

    # Every method is judged on the same sources: those that all of them could measure.
    common = np.all([np.isfinite(z) for z in estimates.values()], axis=0)
    estimates = {name: z[common] for name, z in estimates.items()}
    z_true = truth["z_true"].to_numpy()[common]
    mag = truth["mag_f158"].to_numpy()[common]
    labelled = np.isfinite(unseen["z_spec"][galaxy][common])
    rows = table(z_true, mag, estimates)
    rows["like the labelled"] = {
        name: dataclasses.asdict(point_metrics(z_true[labelled], z[labelled]))
        for name, z in estimates.items()
    }
    paired = {
        name: bootstrap(z_true, estimates["PITA"], z)
        for name, z in estimates.items()
        if name != "PITA"
    }
    for cut, methods in rows.items():
        print(cut)
        for name, m in methods.items():
            print(
                f"  {name:32s} n {m['n']:6d}  bias {m['bias']:+.4f}  NMAD {m['nmad']:.4f}  "
                f"outliers {m['outlier_fraction']:.4f}"
            )
    result = {
        "command": "benchmarks/bundled_model.py",
        "photozhpc": __version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "checkpoint_sha256": checkpoint.sha256,
        "training_sources": len(train),
        "training_labels": int((split == "train").sum()),
        "validation_labels": int((split == "validation").sum()),
        "test_galaxies": int(common.sum()),
        "pita_cutouts_per_second_with_reading": rate,
        "metrics": rows,
        "pita_gain_bootstrap": paired,
    }
    if options.save:
        Path(options.save).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if k != "metrics"}))


if __name__ == "__main__":
    main()
