"""Redshifts from a store without its pixels: what a model of images has to beat.

    python benchmarks/opponents.py --store STORE --test TEST_STORE --truth 'SKY/*_truth.parquet' \
        --out OPPONENTS.json [--labels 600 1800 6000 0] [--seeds 1 2 3] [--methods METHOD ...]

Every method is fitted to the same labels: those of the training split (`loader.in_split`) of which
a share is used, so that about as many remain as --labels says (0: all); a smaller number is a
subset of a larger one. It is tuned on these labels alone, by cross-validation. It sees dereddened
asinh colours and magnitudes of all apertures and Kron ('four features': those of one aperture), and
predicts all galaxies of an unseen sky. A result that is in OPPONENTS.json is not made again.
"""

import argparse
import glob
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rivals import (
    RIVALS,
    Grid,
    Result,
    better_estimate,
    scores,
    stacked,
    tuned,
)
from side_by_side import processor

from photozhpc import __version__
from photozhpc.evaluation.truth import read_truth
from photozhpc.model.colours import colour_features
from photozhpc.model.flux_expert import FluxExpert, FluxExpertConfig, fit_flux_expert
from photozhpc.model.flux_features import FluxFeatures
from photozhpc.model.photometry import FluxInput, PhotometryConfig, enough_bands
from photozhpc.model.photometry_fit import N_FOLDS
from photozhpc.model.photometry_mlp import MLPFitConfig, fit_mlp
from photozhpc.store import CutoutStore
from photozhpc.store.loader import hash_of, in_split
from photozhpc.survey import Survey, ab_magnitude

GRID = Grid(256, 4.0)
FOUR = "photometry-mlp, four features"
DENSITY_MLP = "density MLP"
TEMPLATES = "template fit"
STACK = "stack of the best two"
METHODS = (DENSITY_MLP, *RIVALS, FOUR, TEMPLATES, STACK)
FOUR_ARCSEC = 0.4
STEPS = 2000  # of the density MLP


class Photometry:
    """All sources of a store that have fluxes: the apertures, then Kron."""

    def __init__(self, store: CutoutStore) -> None:
        survey: Survey = store.survey
        radii = survey.aperture_radii_arcsec
        expert = FluxExpertConfig(n_bands=len(survey.bands), n_apertures=len(radii) + 1)
        pick = FluxInput(PhotometryConfig(radii, True, expert), survey)
        columns = []
        for key in store.shards():
            sources = store.read_sources(key)
            flux_NCR, err_NCR = pick(store.read_measurements(key))
            rows = enough_bands(flux_NCR)
            arrays = (sources.source_id_N, sources.z_spec_N, sources.ebv_N, flux_NCR, err_NCR)
            columns.append([array[rows] for array in arrays])
        joined = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        self.source_id_N, self.z_spec_N, self.ebv_N, self.flux_NCR, self.err_NCR = joined
        self.survey = survey

    def take(self, rows_N: NDArray) -> "Photometry":
        taken = object.__new__(Photometry)
        taken.__dict__ = {
            name: values if name == "survey" else values[rows_N]
            for name, values in vars(self).items()
        }
        return taken

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return tuple(map(torch.from_numpy, (self.flux_NCR, self.err_NCR, self.ebv_N)))


def features(fit: Photometry, *others: Photometry) -> list[NDArray[np.float32]]:
    """Return the `FluxFeatures` of every sample that vary, scaled by the first sample."""
    made = FluxFeatures(*fit.flux_NCR.shape[1:])
    made.extinction_r_C.copy_(torch.tensor([band.extinction_r for band in fit.survey.bands]))
    made.fit(*fit.tensors())
    vary_F = made.scale_F > 0
    return [made(*sample.tensors())[:, vary_F].numpy() for sample in (fit, *others)]


def density_mlp(fit: Photometry, z_N: NDArray, new: Photometry, seed: int) -> Result:
    """Method 'photometry', before calibration."""
    started = time.process_time()
    n_bands, n_apertures = fit.flux_NCR.shape[1:]
    config = FluxExpertConfig(n_bands, n_apertures, bins=GRID.n_bins, z_max=GRID.z_max)
    expert = FluxExpert(config)
    expert.features.extinction_r_C.copy_(
        torch.tensor([band.extinction_r for band in fit.survey.bands])
    )
    fold_N = torch.from_numpy((hash_of(fit.source_id_N, seed + 1) * N_FOLDS).astype(np.int64))
    z = torch.from_numpy(z_N.astype(np.float32))
    labels_NK = fit_flux_expert(expert, *fit.tensors(), z, fold_N, steps=STEPS, seed=seed).numpy()
    with torch.no_grad():
        density_MK = expert.eval()(*new.tensors()).numpy()
    estimate = better_estimate(labels_NK, z_N, GRID)
    return Result(density_MK, labels_NK, {}, estimate, time.process_time() - started)


def four_features(fit: Photometry, z_N: NDArray, new: Photometry, seed: int) -> Result:
    """The paper's baseline: three colours and a magnitude, a Huber loss, four networks averaged.

    It has no density; it gets one as `gradient_boosting` does, from the errors of labels of similar
    estimates, here in the held-out fifth that stops the training.
    """
    started = time.process_time()
    survey = fit.survey
    aperture = survey.aperture_radii_arcsec.index(FOUR_ARCSEC)
    r_C = np.array([band.extinction_r for band in survey.bands])
    soft_C = np.nanmedian(fit.err_NCR[:, :, aperture], axis=0)
    x_NF, x_MF = (
        np.nan_to_num(colour_features(s.flux_NCR[:, :, aperture], soft_C, s.ebv_N, r_C))
        for s in (fit, new)
    )
    held_N = hash_of(fit.source_id_N, seed + 1) < 0.2
    config = MLPFitConfig(huber_delta=0.05)
    estimates = [
        (mlp.predict(x_NF[held_N]), mlp.predict(x_MF))
        for mlp in (
            fit_mlp(x_NF[~held_N], z_N[~held_N], x_NF[held_N], z_N[held_N],
                    replace(config, seed=100 * seed + i))
            for i in range(4)
        )
    ]  # fmt: skip
    held_z, z_M = (np.mean(values, axis=0) for values in zip(*estimates, strict=True))
    error_H = np.log1p(z_N[held_N]) - np.log1p(held_z)
    k = min(100, len(error_H))
    near_MK = np.argsort(np.abs(held_z - z_M[:, None]), axis=1)[:, :k]
    shifted_M = np.log1p(z_M)
    density_MK = sum(
        GRID.kernels(np.expm1((shifted_M + error_H[near_MK[:, j]]).clip(0)), 0.02) / k
        for j in range(k)
    )
    result = Result(density_MK.astype(np.float32), np.empty(0), {}, "", 0.0)
    result.z_phot = lambda grid: z_M.astype(np.float64)  # type: ignore[method-assign]
    result.cpu_seconds = time.process_time() - started
    return result


def template_fit(fit: Photometry, z_N: NDArray, new: Photometry, seds: str) -> Result:
    from template_fit import template_densities

    started = time.process_time()
    r_C = np.array([band.extinction_r for band in fit.survey.bands])
    parts = []
    for sample in (fit, new):
        gain_NC = 10 ** (0.4 * sample.ebv_N[:, None] * r_C)
        parts.append((sample.flux_NCR[:, :, -1] * gain_NC, sample.err_NCR[:, :, -1] * gain_NC))
    magnitude_N = np.nan_to_num(ab_magnitude(parts[0][0][:, -1]), nan=30.0)
    names = fit.survey.band_names
    labels_NK, density_MK = (
        template_densities(*part, names, GRID, magnitude_N, z_N, seds) for part in parts
    )
    estimate = better_estimate(labels_NK, z_N, GRID)
    return Result(density_MK, labels_NK, {"seds": seds}, estimate, time.process_time() - started)


def compare(
    fit: Photometry, new: Photometry, z_M: NDArray, methods: list[str], seed: int, seds: str,
    done: dict[str, dict],
) -> None:  # fmt: skip
    """Add the scores of the methods to `done`, for one set of labels."""
    z_N = fit.z_spec_N.astype(np.float64)
    x_NF, x_MF = features(fit, new)
    pool: dict[str, Result] = {}
    for name in methods:
        if name in RIVALS:
            pool[name] = result = tuned(RIVALS[name], x_NF, z_N, x_MF, GRID, seed)
        elif name == DENSITY_MLP:
            pool[name] = result = density_mlp(fit, z_N, new, seed)
        elif name == FOUR:
            result = four_features(fit, z_N, new, seed)
        elif name == TEMPLATES:
            result = template_fit(fit, z_N, new, seds)
        else:
            crps = {n: GRID.crps(r.labels_NK, z_N).mean() for n, r in pool.items()}
            best = sorted(crps, key=crps.__getitem__)[:2]
            result = stacked(pool[best[0]], pool[best[1]], z_N, GRID)
            result.settings["of"] = best
        done[name] = scores(GRID, result.density_MK, z_M, result.z_phot(GRID)) | {
            "labels": len(z_N),
            "settings": result.settings,
            "estimate": result.estimate,
            "cpu_seconds": round(result.cpu_seconds, 1),
        }
        row = done[name]
        print(
            f"{len(z_N):6d} labels  seed {seed}  {name:30s} NMAD {row['nmad']:.4f}  outliers "
            f"{row['outliers_percent']:.2f}  CRPS {row['crps']:.4f}  {row['cpu_seconds']:.0f} s",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--store", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--truth", required=True, help="glob of truth tables of the test sky")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=[600, 1800, 6000, 0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seds", default="COSMOS_seds.list", help="templates, see template_fit.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = (Photometry(CutoutStore.open(path)) for path in (args.store, args.test))
    truth = read_truth(sorted(glob.glob(args.truth)))
    place_N = np.searchsorted(truth.source_id_N, test.source_id_N).clip(max=len(truth.z_ref_N) - 1)
    known_N = truth.source_id_N[place_N] == test.source_id_N
    new, z_M = test.take(known_N), truth.z_ref_N[place_N[known_N]]
    document = json.loads(args.out.read_text()) if args.out.exists() else {}
    runs = document.setdefault("runs", {})
    for seed in args.seeds:
        labelled_N = np.isfinite(train.z_spec_N)
        n_all = np.count_nonzero(labelled_N & in_split(train.source_id_N, "train", seed))
        for n_labels in args.labels:
            if n_labels > 1.05 * n_all:
                continue
            share = 1.0 if n_labels == 0 else min(1.0, n_labels / n_all)
            rows_N = labelled_N & in_split(train.source_id_N, "train", seed, share)
            done = runs.setdefault(f"{n_labels or 'all'} labels, seed {seed}", {})
            missing = [name for name in args.methods if name not in done]
            if not missing:
                continue
            if STACK in missing:  # of the densities of all these
                missing = list(dict.fromkeys([DENSITY_MLP, *RIVALS, *missing]))
                missing.sort(key=METHODS.index)
            compare(train.take(rows_N), new, z_M, missing, seed, args.seds, done)
            document |= {
                "photozhpc": __version__,
                "processor": processor(),
                "galaxies": len(z_M),
            }
            args.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps({"runs": len(runs), "galaxies": len(z_M)}))


if __name__ == "__main__":
    main()
