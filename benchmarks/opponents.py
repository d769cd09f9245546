"""Redshifts from stores without their pixels: what a model of images has to beat.

    python benchmarks/opponents.py --store STORE ... --test STORE ... --truth GLOB ... --work DIR \
        [--ours MODEL ...] [--labels 600 1800 6000 20000] [--seeds 1 2 3] [--methods METHOD ...] \
        [--out OPPONENTS.json]

Several stores count as one. Every method gets the same labels, about as many as --labels says: of
all labelled sources of --store, those with the lowest `loader.hash_of` (identifier, seed). So a
smaller number is a subset of a larger one, and a training has the same labels if its label_fraction
is LABELS / (all labels of the store), with labels: all, or LABELS / (0.7 of them) with labels:
train. Numbers that the stores do not have are left out.

Every method is tuned on these labels alone, over four settings or more, by cross-validation. It
sees dereddened asinh colours and magnitudes of all apertures and Kron ('four features': of one
aperture; the template fit: Kron fluxes), and predicts all galaxies of an unseen sky. The 'limit of
the photometry' is the density MLP on all true redshifts that --truth has of --store.

--ours takes finished trainings, as folders or model files; NAME=FOLDER names one. Their labels and
seeds are read from the model files. Of a training with labels: all that is not calibrated
(`by_labels.py`) the densities are compared as they are.

Each (method, labels, seed) is kept in a file in --work, and not made again: the command continues
where it was stopped, several can run side by side with different --methods or --seeds, and another
model is added without repeating the rest. --out is written anew from all files in --work, with
paired bootstrap differences to the first of --ours.
"""

import argparse
import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rivals import RIVALS, Grid, Result, chosen, kept, on_grid, paired, scores, stacked, tuned
from science import galaxies
from side_by_side import processor

from photozhpc import __version__
from photozhpc.metrics import point_metrics
from photozhpc.model import load_checkpoint
from photozhpc.model.checkpoint import Checkpoint
from photozhpc.model.colours import colour_features
from photozhpc.model.encode import encode
from photozhpc.model.engine import make_engine, usable
from photozhpc.model.flux_expert import FluxExpert, FluxExpertConfig, fit_flux_expert
from photozhpc.model.flux_features import FluxFeatures
from photozhpc.model.photometry import FluxInput, PhotometryConfig, enough_bands
from photozhpc.model.photometry_fit import N_FOLDS
from photozhpc.model.photometry_mlp import MLPFitConfig, fit_mlp
from photozhpc.model.pita import PITA
from photozhpc.store import CutoutStore
from photozhpc.store.loader import hash_of

GRID = Grid(256, 4.0)
FOUR = "photometry-mlp, four features"
DENSITY_MLP = "density MLP"
TEMPLATES = "template fit, BPZ SEDs"
STACK = "stack of the best two"
LIMIT = "limit of the photometry"
OURS = "photozhpc"
METHODS = (DENSITY_MLP, *RIVALS, FOUR, TEMPLATES, STACK, LIMIT)
LABELS = (600, 1800, 6000, 20000)
FOUR_ARCSEC = 0.4
# Steps: of the schedule of one network, at least; it stops at the best.
MLP_SETTINGS = [
    {"dropout": dropout, "widths": (width,) * 5, "steps": steps}
    for dropout in (0.1, 0.3)
    for width in (128, 256)
    for steps in (2000, 8000)
]
FOUR_SETTINGS = [{"huber_delta": h, "weight_decay": w} for h in (0.05, 0.15) for w in (1e-4, 1e-2)]


class Photometry:
    """All sources of stores that have fluxes: the apertures, then Kron."""

    def __init__(self, stores: list[CutoutStore]) -> None:
        survey = stores[0].survey
        radii = survey.aperture_radii_arcsec
        expert = FluxExpertConfig(n_bands=len(survey.bands), n_apertures=len(radii) + 1)
        config = PhotometryConfig(radii, True, expert)
        columns, self.n_labels = [], 0
        for store in stores:
            pick = FluxInput(config, store.survey)
            for key in store.shards():
                sources = store.read_sources(key)
                flux_NCR, err_NCR = pick(store.read_measurements(key))
                self.n_labels += int(np.isfinite(sources.z_spec_N).sum())
                rows = enough_bands(flux_NCR)
                arrays = (sources.source_id_N, sources.z_spec_N, sources.ebv_N, flux_NCR, err_NCR)
                columns.append([array[rows] for array in arrays])
        joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        self.source_id_N, self.z_spec_N, self.ebv_N, self.flux_NCR, self.err_NCR = joined
        self.survey = survey
        if len(np.unique(self.source_id_N)) < len(self.source_id_N):
            raise SystemExit("an identifier is in the stores twice: are they of the same sky?")

    def take(self, rows_N: NDArray) -> "Photometry":
        taken = object.__new__(Photometry)
        taken.__dict__ = {
            name: values[rows_N] if name.endswith(("_N", "_NCR")) else values
            for name, values in vars(self).items()
        }
        return taken

    @property
    def extinction_r_C(self) -> NDArray[np.float64]:
        return np.array([band.extinction_r for band in self.survey.bands])

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(map(torch.from_numpy, (self.flux_NCR, self.err_NCR, self.ebv_N)))


def calibrated(model: PITA) -> bool:
    uncertainty = model.uncertainty
    return uncertainty is not None and bool(uncertainty.level_GQ.isfinite().all())


def features(fit: Photometry, *others: Photometry) -> list[NDArray[np.float32]]:
    """Return the `FluxFeatures` of every sample that vary, scaled by the first sample."""
    made = FluxFeatures(*fit.flux_NCR.shape[1:])
    made.extinction_r_C.copy_(torch.from_numpy(fit.extinction_r_C))
    made.fit(*fit.tensors())
    vary_F = made.scale_F > 0
    return [made(*sample.tensors())[:, vary_F].numpy() for sample in (fit, *others)]


def density_mlp(
    fit: Photometry, z_N: NDArray, new: Photometry, seed: int, settings: list[dict]
) -> Result:
    """Method 'photometry', before calibration."""
    started = time.process_time()
    fold_N = torch.from_numpy((hash_of(fit.source_id_N, seed + 1) * N_FOLDS).astype(np.int64))
    z = torch.from_numpy(z_N.astype(np.float32))
    trials = []
    for setting in settings:
        shape = {name: value for name, value in setting.items() if name != "steps"}
        config = FluxExpertConfig(
            *fit.flux_NCR.shape[1:], bins=GRID.n_bins, z_max=GRID.z_max, **shape
        )
        expert = FluxExpert(config)
        expert.features.extinction_r_C.copy_(torch.from_numpy(fit.extinction_r_C))
        labels = fit_flux_expert(
            expert, *fit.tensors(), z, fold_N, steps=setting["steps"], seed=seed
        )

        @torch.no_grad()
        def predict(expert: FluxExpert = expert) -> NDArray:
            return expert.eval()(*new.tensors()).numpy()

        trials.append((setting, labels.numpy(), predict))
    return chosen(trials, z_N, GRID, started)


def four_features(fit: Photometry, z_N: NDArray, new: Photometry, seed: int) -> Result:
    """The paper's baseline: three colours and a magnitude, a Huber loss, four networks averaged.

    A held-out fifth stops the training and chooses the setting. It has no density; it gets one as
    `gradient_boosting` does, from the errors of labels of similar estimates in that fifth.
    """
    started = time.process_time()
    aperture = fit.survey.aperture_radii_arcsec.index(FOUR_ARCSEC)
    soft_C = np.nanmedian(fit.err_NCR[:, :, aperture], axis=0)
    x_NF, x_MF = (
        np.nan_to_num(
            colour_features(s.flux_NCR[:, :, aperture], soft_C, s.ebv_N, s.extinction_r_C)
        )
        for s in (fit, new)
    )
    held_N = hash_of(fit.source_id_N, seed + 1) < 0.2
    samples = (x_NF[~held_N], z_N[~held_N], x_NF[held_N], z_N[held_N])
    trials = []
    for setting in FOUR_SETTINGS:
        configs = [MLPFitConfig(seed=100 * seed + i, **setting) for i in range(4)]
        networks = [fit_mlp(*samples, config) for config in configs]
        held_z = np.mean([network.predict(x_NF[held_N]) for network in networks], axis=0)
        trials.append((point_metrics(z_N[held_N], held_z).nmad, setting, networks, held_z))
    _, setting, networks, held_z = min(trials, key=lambda trial: trial[0])
    z_M = np.mean([network.predict(x_MF) for network in networks], axis=0)
    error_H = np.log1p(z_N[held_N]) - np.log1p(held_z)
    k = min(100, len(error_H))
    near_MK = np.argsort(np.abs(held_z - z_M[:, None]), axis=1)[:, :k]
    shifted_M = np.log1p(z_M)
    density_MK = sum(
        GRID.kernels(np.expm1((shifted_M + error_H[near_MK[:, j]]).clip(0)), 0.02) / k
        for j in range(k)
    )
    seconds = time.process_time() - started
    return Result(
        density_MK.astype(np.float32), z_M.astype(np.float64), np.empty(0), setting, seconds
    )


def fit_templates(fit: Photometry, z_N: NDArray, new: Photometry) -> Result:
    from template_fit import BPZ, template_fit

    def kron(sample: Photometry) -> tuple[NDArray, NDArray]:
        gain_NC = 10 ** (0.4 * sample.ebv_N[:, None] * sample.extinction_r_C)
        return sample.flux_NCR[:, :, -1] * gain_NC, sample.err_NCR[:, :, -1] * gain_NC

    return template_fit(kron(fit), z_N, kron(new), fit.survey.band_names, GRID, BPZ)


class Comparison:
    """The labels, the unseen galaxies, and the results in a folder."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.work: Path = options.work
        self.tests = [CutoutStore.open(path) for path in options.test]
        stores = [CutoutStore.open(path) for path in options.store]
        self._check_work([*stores, *self.tests])
        self.train = Photometry(stores)
        truth = galaxies(options.truth)["z_true"]
        self.true_N = truth.reindex(self.train.source_id_N).to_numpy()
        test = Photometry(self.tests)
        z_M = truth.reindex(test.source_id_N).to_numpy()
        self.new, self.z_M = test.take(np.isfinite(z_M)), z_M[np.isfinite(z_M)]

    def _check_work(self, stores: list[CutoutStore]) -> None:
        """Refuse results that were made with other stores."""
        stamp = [store.fingerprint() for store in stores]
        path = self.work / "stores.json"
        if path.exists() and json.loads(path.read_text()) != stamp:
            raise SystemExit(f"{self.work} has results of other stores; use another --work")
        self.work.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(stamp))

    def labelled(self, labels: int, seed: int) -> NDArray[np.bool_]:
        hash_N = hash_of(self.train.source_id_N, seed)
        return np.isfinite(self.train.z_spec_N) & (hash_N < labels / self.train.n_labels)

    def path(self, name: str, labels: int, seed: int) -> Path:
        slug = name.replace(", ", "-").replace(" ", "-")
        return self.work / f"{labels or 'all-true'}-seed{seed}" / f"{slug}.npz"

    def make(self, name: str, labels: int, seed: int) -> Result:
        """Return the result of a method, from its file if it is there."""
        return kept(self.path(name, labels, seed), lambda: self._make(name, labels, seed))

    def _make(self, name: str, labels: int, seed: int) -> Result:
        if name == LIMIT:
            rows_N = np.isfinite(self.true_N)
            fit, z_N = self.train.take(rows_N), self.true_N[rows_N]
            result = density_mlp(fit, z_N, self.new, seed, MLP_SETTINGS[:1])
            result.labels_NK = np.empty(0)
            result.settings["labels"] = len(z_N)
            return result
        fit = self.train.take(self.labelled(labels, seed))
        z_N = fit.z_spec_N.astype(np.float64)
        if name == STACK:
            pool = {n: self.make(n, labels, seed) for n in (DENSITY_MLP, *RIVALS, TEMPLATES)}
            crps = {n: GRID.crps(r.labels_NK, z_N).mean() for n, r in pool.items()}
            best = sorted(crps, key=crps.__getitem__)[:2]
            result = stacked(pool[best[0]], pool[best[1]], z_N, GRID)
            result.settings["of"] = best
        elif name == DENSITY_MLP:
            result = density_mlp(fit, z_N, self.new, seed, MLP_SETTINGS)
        elif name == FOUR:
            result = four_features(fit, z_N, self.new, seed)
        elif name == TEMPLATES:
            result = fit_templates(fit, z_N, self.new)
        else:
            result = tuned(RIVALS[name], *self._features(fit, z_N), GRID, seed)
        result.settings = {**result.settings, "labels": len(z_N)}
        return result

    def _features(self, fit: Photometry, z_N: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        x_NF, x_MF = features(fit, self.new)
        return x_NF, z_N, x_MF

    def predict(self, model: Path) -> Result:
        """Return what one of our models says of the galaxies; NaN where it says nothing."""
        checkpoint = load_checkpoint(model)
        started = time.process_time()
        if isinstance(checkpoint.model, PITA) and not calibrated(checkpoint.model):
            return self.densities(checkpoint, str(model))
        parts: dict[str, list[NDArray]] = {"id": [], "density": [], "z": [], "quantile": []}
        for store in self.tests:
            engine = make_engine(checkpoint, store.survey, pdf="grid")
            for key in store.shards():
                sources, measured = store.read_sources(key), store.read_measurements(key)
                cutout_NCSS = (
                    store.read_cutouts(key, side=engine.side_pix)
                    if engine.side_pix
                    else np.empty(0)
                )
                found, pdf_NP = engine.predict_pdf(cutout_NCSS, sources.ebv_N, measured)
                parts["id"].append(sources.source_id_N)
                parts["density"].append(on_grid(GRID, pdf_NP, engine.pdf.axis_P))
                parts["z"].append(found.z_phot_N.astype(np.float64))
                parts["quantile"].append(found.quantile_NQ)
        id_N, density_NK, z_N, quantile_NQ = map(np.concatenate, parts.values())
        rows_M = self._rows(id_N)
        return Result(
            density_NK[rows_M],
            z_N[rows_M],
            np.empty(0),
            {"model": str(model), "sha256": checkpoint.sha256},
            time.process_time() - started,
            quantile_NQ[rows_M],
        )

    def densities(self, checkpoint: Checkpoint, name: str) -> Result:
        """Return the densities of a model that was trained on all labels, with their quantiles."""
        model, started, parts = checkpoint.pita.eval(), time.process_time(), []
        if Grid(model.config.density_bins, model.config.density_z_max) != GRID:
            raise SystemExit(f"{name}: has other bins than {GRID}; calibrate it first")
        pick = FluxInput(model.config.fluxes, self.tests[0].survey)
        for store in self.tests:
            for key in store.shards():
                sources, cutout_NCSS = store.read_sources(key), store.read_cutouts(key)
                fluxes = pick(store.read_measurements(key))
                encoded = encode(model, cutout_NCSS, sources.ebv_N, fluxes)
                with torch.no_grad():
                    expert = None if model.expert is None else torch.from_numpy(encoded.expert_NK)
                    density_NK = model.density(torch.from_numpy(encoded.input_NF), expert).numpy()
                density_NK[~usable(cutout_NCSS, model.config.crop)] = np.nan
                parts.append((sources.source_id_N, density_NK))
        id_N, density_NK = (np.concatenate(values) for values in zip(*parts, strict=True))
        density_MK = density_NK[self._rows(id_N)]
        z_M = GRID.least_risk(density_MK)
        z_M[np.isnan(density_MK[:, 0])] = np.nan
        seconds = time.process_time() - started
        settings = {"model": name, "sha256": checkpoint.sha256}
        return Result(density_MK, z_M, np.empty(0), settings, seconds)

    def _rows(self, id_N: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return where the unseen galaxies are among identifiers in any order."""
        order_N = np.argsort(id_N)
        return order_N[np.searchsorted(id_N[order_N], self.new.source_id_N)]

    def add_ours(self, name: str, path: Path, numbers: list[int]) -> None:
        """Keep the result of a finished training, under the number of its labels and its seed."""
        model = path if path.is_file() else path / "model.safetensors"
        config = load_checkpoint(model).training["config"]
        share = config["label_fraction"] * (0.7 if config.get("labels") != "all" else 1.0)
        if config["method"] == "photometry":  # takes the labels of all splits
            share = config["label_fraction"]
        labels = share * self.train.n_labels
        nearest = min(numbers, key=lambda n: abs(n / labels - 1))
        if abs(nearest / labels - 1) > 0.03:
            raise SystemExit(
                f"{model}: was trained on {labels:.0f} of the {self.train.n_labels} labels, which "
                f"is none of --labels {numbers}"
            )
        result = kept(self.path(name, nearest, config["seed"]), lambda: self.predict(model))
        if result.settings["model"] != str(model):
            raise SystemExit(f"{name}: {nearest} labels, seed {config['seed']} is given twice")


def document(comparison: Comparison, names: Iterable[str], ours: str, seeds: list[int]) -> dict:
    """Return scores and paired differences of all results in the folder."""
    z_M, groups = comparison.z_M, {}
    common_M = np.full(len(z_M), True)
    found: dict[tuple[str, int, int], Result] = {}
    for name in names:
        for labels in (*comparison.numbers, 0):
            for seed in seeds:
                path = comparison.path(name, labels, seed)
                if path.exists():
                    found[name, labels, seed] = result = Result.read(path)
                    common_M &= np.isfinite(result.z_phot_M)
    for result in found.values():
        result.density_MK = result.density_MK[common_M]
        result.z_phot_M = result.z_phot_M[common_M]
        if result.quantile_MQ.size:
            result.quantile_MQ = result.quantile_MQ[common_M]
    z_M = z_M[common_M]
    for (name, labels, seed), result in found.items():
        group = groups.setdefault(str(labels or "all true redshifts"), {})
        row = scores(GRID, result, z_M) | {
            "seed": seed,
            "settings": result.settings,
            "cpu_seconds": round(result.cpu_seconds, 1),
        }
        group.setdefault(name, {"runs": []})["runs"].append(row)
    for labels_text, group in groups.items():
        labels = 0 if labels_text.startswith("all") else int(labels_text)
        for name, entry in group.items():
            both = [s for s in seeds if {(name, labels, s), (ours, labels, s)} <= set(found)]
            if name != ours and both:
                entry["minus_ours"] = paired(
                    GRID,
                    [found[name, labels, s] for s in both],
                    [found[ours, labels, s] for s in both],
                    z_M,
                )
    return {
        "photozhpc": __version__,
        "processor": processor(),
        "sources": len(comparison.train.source_id_N),
        "labels": comparison.train.n_labels,
        "true_redshifts": int(np.isfinite(comparison.true_N).sum()),
        "galaxies": len(z_M),
        "galaxies_without_a_redshift_by_some_method": int((~common_M).sum()),
        "ours": ours,
        "by_labels": groups,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", required=True)
    parser.add_argument("--truth", nargs="+", required=True, help="globs of truth tables")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--ours", nargs="+", default=[], help="[NAME=]MODEL or folder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    comparison = Comparison(options)
    n_labels = comparison.train.n_labels
    comparison.numbers = [n for n in options.labels if n <= 1.03 * n_labels]
    if left_out := set(options.labels) - set(comparison.numbers):
        print(f"the stores have {n_labels} labels: {sorted(left_out)} are left out", flush=True)
    given = [text.rpartition("=")[::2] for text in options.ours]
    names = list(dict.fromkeys(name or OURS for name, _ in given))
    for name, path in given:
        comparison.add_ours(name or OURS, Path(path), comparison.numbers)
    for seed in options.seeds:
        for labels in comparison.numbers:
            for name in options.methods:
                if name == LIMIT:
                    continue
                _show(comparison, name, labels, seed)
        if LIMIT in options.methods:
            _show(comparison, LIMIT, 0, seed)
    ours = names[0] if names else OURS
    result = document(comparison, [*names, *METHODS], ours, options.seeds)
    out = options.out or options.work / "opponents.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"written": str(out), "galaxies": result["galaxies"]}))


def _show(comparison: Comparison, name: str, labels: int, seed: int) -> None:
    result = comparison.make(name, labels, seed)
    metrics = point_metrics(comparison.z_M, result.z_phot_M)
    print(
        f"{time.strftime('%H:%M')} {result.settings['labels']:6d} labels  seed {seed}  {name:30s} "
        f"NMAD {metrics.nmad:.4f}  outliers {100 * metrics.outlier_fraction:.2f}  "
        f"{result.cpu_seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
