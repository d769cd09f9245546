"""The paper's experiment: four methods, several label counts, several seeds, an unseen sky.

    python benchmarks/science.py --store STORE --test TEST_STORE --truth 'SKY/*_truth.parquet' \
        --work DIR [--recipe small|paper] [--seeds 1 2 3] [--fractions 0.1 0.316 1.0] \
        [--methods photometry-mlp supervised self-supervised pita]

Every run is resumed where it stopped, and skipped if its result is in DIR/runs, so any part can be
run at any time, and several parts side by side. When all have finished, `--collect` writes
benchmarks/results/science_{recipe}.json.

All methods see the same training labels, stop at their best epoch on the same validation labels,
and average the same number of networks or heads. A smaller share of labels is a subset of a
larger one. Every method takes the same number of optimisation steps at every share: the epochs of
methods that see only labels, and PITA's label_repeat, are proportional to 1/share.
"pita, 3 x epochs", which is not among the default methods, shows whether PITA was trained enough.
"""

import argparse
import dataclasses
import glob
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from side_by_side import processor

from photozhpc import __version__
from photozhpc.config import from_mapping, load_yaml
from photozhpc.metrics import point_metrics
from photozhpc.model import load_checkpoint
from photozhpc.model.colours import colour_features
from photozhpc.model.engine import Engine
from photozhpc.model.photometry_mlp import MLPFitConfig, fit_mlp
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore
from photozhpc.store.loader import read_labels, typical_noise

HERE = Path(__file__).parent
RECIPES = HERE.parent / "photozhpc" / "configs" / "train"
LONGER = "pita, 3 x epochs"
METHODS = (
    "photometry-mlp",
    "photometry-mlp, all apertures",
    "supervised",
    "self-supervised",
    "pita",
    LONGER,
)


def run_name(method: str, fraction: float, seed: int) -> str:
    return f"{method.replace(', ', '-').replace(' ', '-')}-{fraction:g}-seed{seed}"


def image_config(
    recipe: str, name: str, options: argparse.Namespace, fraction: float, seed: int
) -> TrainConfig:
    """A recipe for a share of the labels."""
    path = RECIPES / recipe / f"{'pita' if name == LONGER else name}.yaml"
    raw = load_yaml(path)
    raw |= {"out": str(options.work / run_name(name, fraction, seed)), "store": str(options.store)}
    if name == "fine-tuned":
        pretrained = options.work / run_name("self-supervised", 1.0, seed)
        raw["initial_checkpoint"] = str(pretrained / "best.safetensors")
    config = from_mapping(TrainConfig, raw, str(path))
    config = replace(config, seed=seed, device=options.device)
    if name == LONGER:
        config = replace(config, epochs=3 * config.epochs)
    if name == "self-supervised":
        return config
    config = replace(config, label_fraction=fraction)
    if config.labelled_only:
        return replace(config, epochs=round(config.epochs / fraction))
    return replace(config, label_repeat=round(config.label_repeat / fraction))


def train_images(
    method: str, options: argparse.Namespace, fraction: float, seed: int
) -> tuple[Path, TrainConfig]:
    """Train an image method; return its model file and configuration."""
    if method == "self-supervised":
        pretraining = image_config(options.recipe, "self-supervised", options, 1.0, seed)
        if not finished(pretraining):
            train(pretraining)
        config = image_config(options.recipe, "fine-tuned", options, fraction, seed)
    else:
        config = image_config(options.recipe, method, options, fraction, seed)
    return train(config), config


def finished(config: TrainConfig) -> bool:
    log = Path(config.out) / "log.jsonl"
    return log.exists() and len(log.read_text().splitlines()) >= config.epochs


def history(config: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]


def galaxies(patterns: list[str]) -> pd.DataFrame:
    """The galaxies of truth tables, by source_id."""
    files = sorted(path for pattern in patterns for path in glob.glob(pattern))
    table = pd.concat(map(pd.read_parquet, files))
    return table[~table["is_star"]].set_index("source_id")


def predict_images(stores: list[CutoutStore], engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """Identifiers and redshifts of all sources of some stores."""
    ids, z = [], []
    for store in stores:
        for key in store.shards():
            sources = store.read_sources(key)
            cutout_NCSS, measured = store.read_cutouts(key), store.read_measurements(key)
            z.append(engine.predict(cutout_NCSS, sources.ebv_N, measured).z_phot_N)
            ids.append(sources.source_id_N)
    return np.concatenate(ids), np.concatenate(z)


class Sky:
    """Galaxies of unseen skies with their true redshifts."""

    def __init__(self, stores: list[str], truth: list[str]) -> None:
        self.stores = [CutoutStore.open(path) for path in stores]
        self.z_true = galaxies(truth)["z_true"]

    def metrics(self, source_id: np.ndarray, z_phot: np.ndarray) -> dict:
        z_true = self.z_true.reindex(source_id).to_numpy()
        return dataclasses.asdict(point_metrics(z_true, z_phot))


def photometry(store: CutoutStore, softening: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Identifiers, labels and the colour features in the given apertures, side by side."""
    r_C = np.array([band.extinction_r for band in store.survey.bands])
    columns: dict[str, list] = {"source_id": [], "z_spec": [], "x": []}
    for key in store.shards():
        sources, measured = store.read_sources(key), store.read_measurements(key)
        columns["source_id"].append(sources.source_id_N)
        columns["z_spec"].append(sources.z_spec_N)
        columns["x"].append(
            np.concatenate(
                [
                    colour_features(measured.flux_NCR[:, :, a], softening_C, sources.ebv_N, r_C)
                    for a, softening_C in softening.items()
                ],
                axis=1,
            )
        )
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def run_mlp(
    method: str, options: argparse.Namespace, fraction: float, seed: int, sky: Sky
) -> tuple[dict, dict, int]:
    """Fit as many MLPs as PITA has heads; return metrics of their mean: unseen sky, validation."""
    store = CutoutStore.open(options.store)
    pita = image_config(options.recipe, "pita", options, fraction, seed)
    radii = store.survey.aperture_radii_arcsec
    chosen = [radii.index(pita.feature_aperture_arcsec)]
    if method.endswith("all apertures"):
        chosen = list(range(len(radii)))
    softening = {a: typical_noise(store, a)[1] for a in chosen}
    seen = photometry(store, softening)
    unseen = [photometry(test, softening) for test in sky.stores]
    x_test = np.concatenate([part["x"] for part in unseen])
    ids = np.concatenate([part["source_id"] for part in unseen])
    rows = {}
    for split in ("train", "validation"):
        wanted = read_labels(store, split, seed, fraction)
        rows[split] = np.isin(seen["source_id"], wanted) & np.isfinite(seen["x"]).all(axis=1)
    log_test, log_check = [], []
    for number in range(pita.model.redshift_heads):
        mlp = fit_mlp(
            seen["x"][rows["train"]],
            seen["z_spec"][rows["train"]],
            seen["x"][rows["validation"]],
            seen["z_spec"][rows["validation"]],
            MLPFitConfig(seed=100 * seed + number),
        )
        log_test.append(np.log1p(mlp.predict(x_test)))
        log_check.append(np.log1p(mlp.predict(seen["x"][rows["validation"]])))
    z_test, z_check = (np.expm1(np.mean(log, axis=0)) for log in (log_test, log_check))
    validation = point_metrics(seen["z_spec"][rows["validation"]], z_check)
    return sky.metrics(ids, z_test), dataclasses.asdict(validation), int(rows["train"].sum())


def better(refit_validation: dict[str, dict]) -> dict:
    """The validation metrics of the heads that were kept."""
    return min(refit_validation.values(), key=lambda metrics: metrics["nmad"])


def run(method: str, options: argparse.Namespace, fraction: float, seed: int, sky: Sky) -> None:
    """Make one run and write its result, unless it exists."""
    path = options.work / "runs" / f"{run_name(method, fraction, seed)}.json"
    if path.exists():
        return
    print(f"== {path.stem}", flush=True)
    started = time.monotonic()
    result: dict = {"method": method, "fraction": fraction, "seed": seed}
    if method.startswith("photometry-mlp"):
        metrics, validation, n_labels = run_mlp(method, options, fraction, seed, sky)
        result |= {"metrics": metrics, "validation": validation, "n_labels": n_labels}
    else:
        model_file, config = train_images(method, options, fraction, seed)
        device = "cpu" if options.device == "auto" else options.device
        z = predict_images(sky.stores, Engine(load_checkpoint(model_file), device))
        labels = read_labels(CutoutStore.open(options.store), "train", seed, fraction)
        result |= {
            "metrics": sky.metrics(*z),
            "validation": better(load_checkpoint(model_file).training["refit_validation"]),
            "n_labels": len(labels),
            "epochs": config.epochs,
            "history": history(config),
        }
        joint = Path(config.out) / "best.safetensors"
        if joint != model_file:
            result["metrics_before_refit"] = sky.metrics(
                *predict_images(sky.stores, Engine(load_checkpoint(joint)))
            )
        if method == "self-supervised":
            pretraining = image_config(options.recipe, "self-supervised", options, 1.0, seed)
            result["pretraining_history"] = history(pretraining)
    result["seconds_of_last_attempt"] = time.monotonic() - started
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    m = result["metrics"]
    print(
        f"   n {m['n']}  bias {m['bias']:+.4f}  NMAD {m['nmad']:.4f}  "
        f"outliers {m['outlier_fraction']:.4f}",
        flush=True,
    )


def short(epochs: list[dict], n: int = 100) -> list[dict]:
    """The values that the learning curves show, at about n epochs of a run's log and the last."""
    shown = epochs[:: max(1, len(epochs) // n)]
    if shown[-1] is not epochs[-1]:
        shown.append(epochs[-1])
    keys = ("epoch", "step", "loss_total", "validation_nmad")
    return [{k: round(epoch[k], 5) for k in keys if k in epoch} for epoch in shown]


def collect(options: argparse.Namespace, sky: Sky) -> Path:
    """Write all available results into one file."""
    runs = [json.loads(path.read_text()) for path in sorted((options.work / "runs").glob("*.json"))]
    runs.sort(key=lambda run: (METHODS.index(run["method"]), run["fraction"], run["seed"]))
    # Which labels a share takes depends on the seed; one number stands for all seeds.
    for fraction in {run["fraction"] for run in runs}:
        same = [run for run in runs if run["fraction"] == fraction]
        typical = round(float(np.median([run["n_labels"] for run in same])))
        for run in same:
            run["n_labels_used"], run["n_labels"] = run["n_labels"], typical
    for run in runs:
        for name in ("history", "pretraining_history"):
            if name in run:
                run[name] = short(run[name])
    store = CutoutStore.open(options.store)
    document = {
        "command": "benchmarks/science.py",
        "recipe": options.recipe,
        "photozhpc": __version__,
        "machine": f"{processor()}, {os.cpu_count()} cores"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "torch": torch.__version__,
        "training_sources": len(store),
        "labelled_sources": sum(
            len(read_labels(store, split, 1))
            for split in ("train", "validation", "calibration", "test")
        ),
        "test_sources": sum(map(len, sky.stores)),
        "runs": runs,
    }
    path = HERE / "results" / f"science_{options.recipe}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True, type=Path)
    parser.add_argument("--test", required=True, nargs="+", help="stores of unseen skies")
    parser.add_argument("--truth", required=True, nargs="+", help="globs of their truth tables")
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--fractions", nargs="+", type=float, default=[1.0, 0.1, 0.316])
    parser.add_argument("--methods", nargs="+", default=METHODS[:-1], choices=METHODS)
    parser.add_argument("--collect", action="store_true", help="only collect the available results")
    options = parser.parse_args()
    sky = Sky(options.test, options.truth)
    if not options.collect:
        for seed in options.seeds:
            for fraction in options.fractions:
                for method in options.methods:
                    run(method, options, fraction, seed, sky)
    print(json.dumps({"written": str(collect(options, sky))}))


if __name__ == "__main__":
    main()
