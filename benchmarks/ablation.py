"""What each ingredient of a recipe is worth: one training without it, or with another.

    python benchmarks/ablation.py --store STORE --test TEST_STORE --truth 'SKY/*_truth.parquet' \
        --work DIR [--recipe pixels-and-fluxes] [--seeds 1 2 3] [--labels 5700 680 1800] \
        [--names recipe "no expert" ...]

Every training is resumed where it stopped, and writes DIR/results/NAME-LABELS-seedS.json at its
end; one that has written it is not made again. So the script can be stopped and started at any
time. The recipe comes first, then each change of it: all label counts with the first seed, then
the next seed. Ingredients that only inference has (the expert's share in the pool, the point
estimate) are varied on each finished model, without training ('variants' in the JSON).

--labels are numbers of training labels; the loader's hash chooses them, so there are about as many,
and a smaller number is a subset of a larger one. A number beyond the store's means all of them. The
metrics are of all galaxies of the test store, with bootstrap errors.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from science import galaxies
from side_by_side import processor

from photozhpc import __version__
from photozhpc.config import config_path, from_mapping, load_yaml
from photozhpc.metrics import bootstrap_errors, crps, sample_statistics
from photozhpc.model import load_checkpoint
from photozhpc.model.checkpoint import Checkpoint
from photozhpc.model.density import LEVEL_Q
from photozhpc.model.engine import Engine
from photozhpc.model.pdf import PDF_LEVELS
from photozhpc.model.pita import PITA
from photozhpc.model.train import train
from photozhpc.model.train_config import TrainConfig
from photozhpc.store import CutoutStore
from photozhpc.store.loader import read_labels

RECIPE = "recipe"
NO_FLUXES = {"aperture_radii_arcsec": [], "total": False}
NO_FLUXES |= {"seen_by_heads": False, "expert_networks": 0}
ATTO = {"encoder": "convnext_atto", "layer_scale": 0.1, "crop": 32}
LOSSES = {"contrastive_weight": 0.1, "colour_weight": 1.0}
# As many labelled images in all as the recipe sees: 5 times as often in a fifth of the epochs.
UNLABELLED = {"method": "pita", "batch_size": 256}
LABEL_REPEAT = 5


def merged(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a nested dictionary with changes."""
    result = copy.deepcopy(raw)
    for key, value in changes.items():
        result[key] = merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result


# name -> what differs from the recipe
CHANGES: dict[str, dict[str, Any]] = {
    RECIPE: {},
    "no forced photometry": {"model": {"fluxes": NO_FLUXES}},
    "no expert": {"model": {"fluxes": {"expert_networks": 0}}},
    "heads without fluxes": {"model": {"fluxes": {"seen_by_heads": False}}},
    "ConvNeXt-Atto, 32 px": {"model": ATTO},
    "colour loss": UNLABELLED | {"loss": {"contrastive_weight": 0.0, "colour_weight": 1.0}},
    "contrastive loss": UNLABELLED | {"loss": {"contrastive_weight": 0.1, "colour_weight": 0.0}},
    "both losses": UNLABELLED | {"loss": LOSSES},
    "0.4 x epochs": {},
    "2 x epochs": {},
    "no dimming": {"augment": {"dimming": 0.0}},
    "dimming by 0.25": {"augment": {"dimming": 0.25}},
    "dimming by 1": {"augment": {"dimming": 1.0}},
    "no averaged weights": {"average_weights": False},
    "30 px": {"model": {"crop": 30}},
    "wider": {"model": {"encoder_widths": [32, 64, 128]}},
    "no dropout": {"model": {"dropout": 0.0}},
    "labels smoothed by 0.03": {"loss": {"smoothing": 0.03}},
}
EPOCHS = {"0.4 x epochs": 0.4, "2 x epochs": 2}
N_RESAMPLES = 200


def run_name(name: str, labels: int, seed: int) -> str:
    return f"{name.replace(', ', '-').replace(' ', '-')}-{labels}-seed{seed}"


def configured(options: argparse.Namespace, name: str, labels: int, seed: int) -> TrainConfig:
    """Return the configuration of one training."""
    path = config_path(options.recipe, "recipe")
    raw = load_yaml(path)
    recipe = from_mapping(TrainConfig, raw, str(path))
    store = CutoutStore.open(options.store)
    fraction = min(1.0, labels / len(read_labels(store, "train", seed)))
    epochs = round(recipe.epochs * EPOCHS.get(name, 1))
    raw = merged(raw, CHANGES[name])
    if raw["method"] == "pita":
        share = epochs / LABEL_REPEAT
        raw |= {"label_repeat": LABEL_REPEAT, "epochs": round(share)}
        raw["label_repeat"] = round(epochs / raw["epochs"])
    else:
        raw["epochs"] = epochs
    raw |= {"out": str(options.work / run_name(name, labels, seed)), "store": str(options.store)}
    raw |= {"seed": seed, "label_fraction": fraction}
    return from_mapping(TrainConfig, raw, str(path))


def variants(model: PITA) -> Iterator[tuple[str, PITA]]:
    """Yield a model as it is, and with other settings of inference; calibrated as it is."""
    config = model.config
    yield "as configured", model
    if model.expert is not None:
        for name, share in (("no expert", 0.0), ("expert alone", 1.0)):
            changed = _changed(model)
            changed.expert_share.fill_(share)
            yield name, changed
    other = "median" if config.point_estimate == "least_risk" else "least_risk"
    yield other, _changed(model, point_estimate=other)


def _changed(model: PITA, **settings: Any) -> PITA:
    changed = PITA(replace(model.config, **settings))
    changed.load_state_dict(model.state_dict())
    return changed.eval()


class Test:
    """The galaxies of the test store, which no training has seen."""

    def __init__(self, store: str, truth: list[str]) -> None:
        self.store = CutoutStore.open(store)
        self.z_true = galaxies(truth)["z_true"]

    def metrics(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return metrics of all galaxies that get a redshift, with errors, and the CPU time."""
        engine = Engine(checkpoint, pdf="quantiles", survey=self.store.survey)
        columns: list[tuple[NDArray, ...]] = []
        seconds = 0.0
        for key in self.store.shards():
            sources, measured = self.store.read_sources(key), self.store.read_measurements(key)
            cutout_NCSS = self.store.read_cutouts(key, side=engine.side_pix)
            started = time.process_time()
            prediction, pdf_NP = engine.predict_pdf(cutout_NCSS, sources.ebv_N, measured)
            seconds += time.process_time() - started
            assert pdf_NP is not None
            columns.append(
                (sources.source_id_N, prediction.z_phot_N, prediction.quantile_NQ, pdf_NP)
            )
        id_N, z_phot_N, quantile_NQ, pdf_NP = map(np.concatenate, zip(*columns, strict=True))
        z_N = self.z_true.reindex(id_N).to_numpy()
        kept_N = np.isfinite(z_N) & np.isfinite(z_phot_N)
        z_N, z_phot_N, quantile_NQ = z_N[kept_N], z_phot_N[kept_N], quantile_NQ[kept_N]
        dz_N = (z_N - z_phot_N) / (1 + z_N)
        means = {"crps": crps(z_N, pdf_NP[kept_N], np.array(PDF_LEVELS))}
        for percent, low in ((68, 0.16), (90, 0.05), (99, 0.005)):
            ends_N2 = quantile_NQ[:, [LEVEL_Q.index(low), LEVEL_Q.index(1 - low)]]
            inside_N = (ends_N2[:, 0] <= z_N) & (z_N <= ends_N2[:, 1])
            means[f"inside_{percent}"] = inside_N.astype(float)
        rng = np.random.default_rng(0)
        errors = bootstrap_errors(dz_N, None, means, n_resamples=N_RESAMPLES, rng=rng)
        values = {k: round(float(v), 5) for k, v in sample_statistics(dz_N, None, means).items()}
        return {
            **values,
            "errors": {name: round(error, 5) for name, error in errors.items()},
            "galaxies": len(z_N),
            "cpu_ms_per_source": round(1000 * seconds / len(id_N), 4),
        }


def run(options: argparse.Namespace, test: Test, name: str, labels: int, seed: int) -> None:
    """Make one training, unless its result is there, and write the result."""
    path = options.work / "results" / f"{run_name(name, labels, seed)}.json"
    if path.exists():
        return
    config = configured(options, name, labels, seed)
    started = time.process_time()
    checkpoint = load_checkpoint(train(config))
    seconds = time.process_time() - started
    log = [json.loads(line) for line in (Path(config.out) / "log.jsonl").read_text().splitlines()]
    model = checkpoint.pita
    found = {
        what: test.metrics(replace(checkpoint, model=variant)) for what, variant in variants(model)
    }
    document = {
        "photozhpc": __version__,
        "name": name,
        "labels": len(
            read_labels(CutoutStore.open(options.store), "train", seed, config.label_fraction)
        ),
        "seed": seed,
        "processor": processor(),
        "training_cpu_s": round(seconds, 1),
        "expert_share": None if model.expert is None else round(model.expert_share.item(), 3),
        "best_epoch": checkpoint.training["last_epoch"]["epoch"],
        "validation_nll": [epoch.get("validation_nll") for epoch in log],
        "variants": found,
        "config": config.noted(),
        "store_sha256": checkpoint.training["store_sha256"],
        "test_store_sha256": test.store.fingerprint(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    best = found["as configured"]
    print(
        f"{time.strftime('%H:%M')} {name}, {document['labels']} labels, seed {seed}: NMAD "
        f"{best['nmad']:.4f} +- {best['errors']['nmad']:.4f}, outliers "
        f"{100 * best['outlier_fraction']:.1f}%, CRPS {best['crps']:.4f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--truth", nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", default="pixels-and-fluxes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--labels", type=int, nargs="+", default=[5700, 680, 1800])
    parser.add_argument("--names", nargs="+", default=list(CHANGES), choices=list(CHANGES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = Test(options.test, options.truth)
    for seed in options.seeds:
        for name in options.names:
            for labels in options.labels:
                run(options, test, name, labels, seed)


if __name__ == "__main__":
    main()
